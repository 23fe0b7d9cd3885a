"""docs/security.md: what it says of files is true, and what it refers to is there."""

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import Final

import pytest

from tests.exporters.queue.helpers import running
from tests.exporters.queue.recovery.damage import spoil
from tests.fuzz.targets import TARGETS
from tests.plugin.services import post_change, service

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = (ROOT / "docs" / "security.md").read_text()


def modes(directory: Path) -> dict[str, str]:
    """The mode of each file, as the page writes it."""
    found = {}
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):  # recovery has just removed its copy
            found[path.name] = f"{stat.S_IMODE(path.lstat().st_mode):04o}"
    return found


@pytest.mark.parametrize("exists", [False, True])
def test_the_modes_of_the_files(tmp_path: Path, *, exists: bool) -> None:
    """With the most careless umask, and in a directory that everybody may read."""
    directory = tmp_path / "queue"
    before = os.umask(0)
    try:
        if exists:
            directory.mkdir(mode=0o755)
            with running(directory):
                pass
            spoil(directory)
        with service(directory, {"file": {"path": str(tmp_path / "changes.jsonl")}}) as one:
            assert post_change(one, "gate_1").status == 200
            found = modes(directory)
        after = modes(directory)
    finally:
        os.umask(before)
    assert {"queue.db", "queue.db-wal", "queue.db-shm", "lock", "state.json", "control.sock"} <= found.keys()
    assert any(name.startswith("queue.db.") for name in after) == exists
    assert set((found | after).values()) == {"0600"}
    assert modes(tmp_path) == {"changes.jsonl": "0600", "queue": "0755" if exists else "0700"}
    for name in ("queue.db", "lock", "state.json", "control.sock"):
        assert re.search(rf"^\|.*`{re.escape(name)}`.*\| 0600", PAGE, re.MULTILINE), name


def test_it_names_each_target_of_the_fuzzer() -> None:
    words = {"payload": "bodies", "configuration": "configurations", "templates": "templates", "answers": "answers"}
    words |= {"queue_file": "queue's files", "control_socket": "control socket", "framing": "HTTP", "yaml": "YAML"}
    part = " ".join(PAGE.partition("## Parsers")[2].split())
    assert all(words[name] in part for name in TARGETS)


@pytest.mark.parametrize("page", ["docs/security.md", "docs/dependencies.md", "SECURITY.md"])
def test_its_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = [
                re.sub(r"[^\w -]", "", line.lstrip("# ")) for line in path.read_text().splitlines() if line[:1] == "#"
            ]
            assert anchor in {heading.strip().lower().replace(" ", "-") for heading in headings}, anchor
