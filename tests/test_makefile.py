"""Which Python the Makefile takes, which versions of the dependencies it allows, and what git leaves out."""

import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from tests.conftest import needs_clone

ROOT = Path(__file__).parents[1]
OURS = f"Python {sys.version.split()[0]} from {sys.executable}\n"
OLD = "exit 1"
SHIM = "echo 'the version is not installed' >&2; exit 127"
NEW = f"""
case $1 in
-c) exec '{sys.executable}' "$@" ;;
-m) mkdir -p "$3/bin"; echo "$0 made it" >"$3/bin/python" ;;
esac
"""


def make_environment(folder: Path, pythons: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the Makefile's rule for the virtual environment, with only these interpreters on the PATH."""
    tools, names = folder / "tools", folder / "names"
    tools.mkdir()
    names.mkdir()
    for tool in ("sh", "grep", "sort", "uniq", "ls", "mkdir", "rm"):
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    for name, script in pythons.items():
        (names / name).write_text(f"#!/bin/sh\n{script}\n")
        (names / name).chmod(0o755)
    shutil.copy(ROOT / "Makefile", folder)
    make = shutil.which("make")
    assert make is not None
    return subprocess.run(
        [make, "--no-print-directory", *arguments],
        cwd=folder,
        env={"PATH": f"{tools}:{folder / 'missing'}:{names}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3": NEW, "python3.99": NEW}, "python3"),
        ({"python3": OLD, "python3.9": NEW, "python3.11": NEW, "python3.12": NEW}, "python3.12"),
        ({"python3": SHIM, "python3.13": SHIM, "python3.11": NEW, "python3.9": OLD}, "python3.11"),
        ({"python3.13-config": NEW, "python3.13t": NEW, "python3.12": NEW}, "python3.12"),
    ],
)
def test_make_takes_python3_or_the_newest_that_is_there(tmp_path: Path, pythons: dict[str, str], taken: str) -> None:
    made = make_environment(tmp_path, pythons, ".venv/bin/python")
    assert (made.returncode, made.stdout, made.stderr) == (0, OURS, "")
    assert (tmp_path / ".venv/bin/python").read_text() == f"{tmp_path}/names/{taken} made it\n"


def test_make_takes_the_python_that_is_named_into_an_environment_of_its_own(tmp_path: Path) -> None:
    arguments = ("PYTHON=python3.12", ".venv-python3.12/bin/python")
    made = make_environment(tmp_path, {"python3": NEW, "python3.12": NEW}, *arguments)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / arguments[1]).read_text() == f"{tmp_path}/names/python3.12 made it\n"


@pytest.mark.parametrize(
    ("pythons", "arguments", "tried"),
    [
        ({"python3": OLD, "python3.10": OLD, "python3.9": OLD}, (), "python3 python3.10 python3.9"),
        ({}, (), "python3"),
        ({"python3": NEW}, ("PYTHON=/nowhere/python3", "VENV=.venv"), "/nowhere/python3"),
    ],
)
def test_make_says_where_it_has_looked_for_python(
    tmp_path: Path, pythons: dict[str, str], arguments: tuple[str, ...], tried: str
) -> None:
    made = make_environment(tmp_path, pythons, *arguments, ".venv/bin/python")
    assert made.returncode == 2
    assert f"Python 3.11 or newer is needed, and was not found at: {tried}\n" in made.stdout
    assert "make PYTHON=/path/to/python3" in made.stdout


def test_an_environment_that_could_not_be_made_is_made_again(tmp_path: Path) -> None:
    """Debian's Python without python3-venv leaves half of one behind, and says what is missing."""
    half = NEW.replace('made it" >"$3/bin/python"', 'made half" >"$3/bin/python"; echo install python3-venv; exit 1')
    made = make_environment(tmp_path, {"python3": half}, ".venv/bin/python")
    assert made.returncode == 2
    assert "install python3-venv" in made.stdout
    assert not (tmp_path / ".venv/bin/python").exists()


def test_a_misspelt_choice_of_dependencies_is_refused() -> None:
    script = ROOT / ".ci" / "constraints.py"
    ran = subprocess.run([sys.executable, script, "olddest"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "oldest|newest|pinned" in ran.stderr


def test_the_oldest_dependencies_are_the_lower_bounds() -> None:
    script = ROOT / ".ci" / "constraints.py"
    ran = subprocess.run([sys.executable, script, "oldest"], capture_output=True, text=True, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    lines = ran.stdout.splitlines()
    assert len(lines) == len(required)
    for line, requirement in zip(lines, required, strict=True):
        name, _, version = line.partition(";")[0].partition("==")
        assert requirement.startswith(f"{name}>={version}")
        assert line.partition(";")[2] == requirement.partition(";")[2]


@needs_clone
def test_git_ignores_the_queues_that_the_examples_make() -> None:
    """They have personal data, and `make release` refuses files that are not committed."""
    found: set[Path] = set()
    for path in (ROOT / "examples").glob("*/*"):
        if path.suffix in (".yaml", ".py", ".md"):
            text = path.read_text()
            names = re.findall(r"\bdirectory(?:=\"|: \$\{env:\w+:-)([\w.][\w./-]*)", text)
            found |= {path.parent / name for name in [*names, *re.findall(r"-storageDataPath=(\w+)", text)]}
    assert len(found) >= 8, found
    for directory in found:
        command = ["git", "check-ignore", "--quiet", f"{directory.relative_to(ROOT)}/queue.db"]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0, directory
    tracked = subprocess.run(
        ["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    assert tracked.stdout == b""


def test_each_python_that_the_package_names_is_checked_and_told() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    minors = [match[1] for one in classifiers if (match := re.search(r":: 3\.(\d+)$", one))]
    assert f"for minor in {' '.join(minors)}; do" in (ROOT / ".ci" / "run").read_text()
    for page in ("README.md", "docs/quick-start.md"):
        assert f"tested with 3.{minors[0]} to 3.{minors[-1]}" in " ".join((ROOT / page).read_text().split())
