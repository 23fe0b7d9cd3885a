"""Which tests `.ci/run` runs a second time if they fail: none of kills, power loss and the states of the queue."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
_WITHOUT = re.search(r"^no_second_try='/test_\((.*)\)\\\.py::'$", SCRIPT, re.MULTILINE)
_FUNCTION = re.search(r"^tests\(\) \{$.*?^\}$", SCRIPT, re.MULTILINE | re.DOTALL)


def tried(folder: Path, *failed: str) -> tuple[int, int]:
    """The exit code of the script's function where these tests fail once, and how often it ran tests."""
    assert _WITHOUT is not None
    assert _FUNCTION is not None
    cache = folder / ".pytest_cache/v/cache/lastfailed"
    cache.parent.mkdir(parents=True)
    cache.write_text('{"tests/e2e/test_kills.py::test_of_an_earlier_run": true}')
    (folder / "failed").write_text(json.dumps(dict.fromkeys(failed, True), indent=2))  # as pytest writes it
    stage = f"stage() {{ echo ran >>runs; cat failed >>{cache}; [ $(wc -l <runs) -gt 1 ]; }}"
    script = "\n".join(["set -euo pipefail", stage, _WITHOUT[0], _FUNCTION[0], "tests make test"])
    environ = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    for test in failed if done.returncode else ():
        assert test in done.stdout
    return done.returncode, len((folder / "runs").read_text().splitlines())


@pytest.mark.parametrize(
    "test",
    [
        "tests/e2e/test_kills.py::test_nothing_acknowledged_is_lost_under_tls",
        "tests/e2e/test_power_loss.py::test_what_was_acknowledged_is_in_the_files_and_the_next_change_too",
        "tests/exporters/queue/test_power_loss.py::test_what_was_acknowledged_is_there_on_fifty_images",
        "tests/exporters/queue/test_stateful_harm.py::TestHarm::runTest",
    ],
)
def test_a_test_that_proves_that_nothing_is_lost_has_no_second_try(test: str, tmp_path: Path) -> None:
    assert tried(tmp_path, test) == (1, 1)


def test_other_tests_have_one(tmp_path: Path) -> None:
    assert tried(tmp_path, "tests/e2e/test_demo.py::test_the_day_ends") == (0, 2)


def test_these_tests_are_where_the_script_looks_for_them() -> None:
    assert _WITHOUT is not None
    for name in _WITHOUT[1].split("|"):
        assert list((ROOT / "tests").rglob(f"test_{name}.py")), name
