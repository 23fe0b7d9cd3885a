"""The floors and the rooms: who may import whom, what each is for, and how long a module may be."""

import ast
import pydoc
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

import statsig_otel
from tests.looped import slow_except

ROOT: Final = Path(statsig_otel.__file__).parent
PAGE: Final = ROOT.parent / "docs" / "architecture.md"
FLOORS: Final = ("config", "exporters", "plugin")
ROOMS: Final = (
    "",
    "config",
    "exporters",
    "exporters.queue",
    "exporters.queue.recovery",
    "exporters.delivery",
    "exporters.network",
    "exporters.otlp",
    "exporters.kafka",
    "exporters.local",
    "plugin.webhook",
    "plugin.server",
    "plugin.record",
    "plugin.audit_log",
    "plugin.receiver",
    "plugin.settings",
    "plugin.demo",
    "plugin.control",
    "plugin.watch",
    "plugin.doctor",
    "plugin.service",
    "plugin.cli",
)
"""The rooms, lowest first. A module imports only from its own room and from those before it in this table."""

FACES: Final = {f"statsig_otel.{floor}" for floor in FLOORS}
"""The packages that embedders import from. They name what their floor makes public, and nothing inside imports them."""

MOST_LINES: Final = 500


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package with its file. A package is named by its folder."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES: Final = dict(modules())


@cache
def imported_by(path: Path) -> frozenset[str]:
    """The modules of the package that a file imports, type checkers' imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, whose room is not seen here"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        else:
            continue
        found |= {name for name in names if name.split(".")[0] == "statsig_otel"}
    return frozenset(found)


def room_of(module: str) -> str:
    """The innermost room that a module stands in."""
    inside = module.removeprefix("statsig_otel").removeprefix(".")
    return max((room for room in ROOMS if f"{inside}.".startswith(f"{room}.") or not room), key=len)


def test_a_room_imports_only_from_the_rooms_below_it() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if module not in {"statsig_otel", "statsig_otel.__main__", *FACES}
        for name in imported_by(path)
        if ROOMS.index(room_of(name)) > ROOMS.index(room_of(module)) or name in FACES
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Neither with an import inside a function, nor with one for type checkers only."""
    inside = {name: path for name, path in MODULES.items() if name not in {"statsig_otel", *FACES}}
    order = TopologicalSorter({name: {*imported_by(path)} - {name, "statsig_otel"} for name, path in inside.items()})
    order.prepare()  # raises a CycleError that names the modules


def test_every_package_is_a_room_and_says_what_it_is_for() -> None:
    packages = {name.removeprefix("statsig_otel.") for name, path in MODULES.items() if path.name == "__init__.py"}
    assert packages - {"statsig_otel", "plugin"} == {room for room in ROOMS if room}
    stray = [name for name in MODULES if room_of(name) == "" and name.startswith("statsig_otel.plugin.")]
    assert stray == []


def test_no_module_is_too_long_to_read_at_once() -> None:
    tests = {str(path): path for path in Path(__file__).parent.rglob("*.py")}
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in {**MODULES, **tests}.items()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_the_page_prints_the_rooms_with_their_sentences() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    printed = [row for row in rows if row.split("`")[1].replace("/", ".").strip(".") in ROOMS]
    expected = [f"| `{room.replace('.', '/')}/` | {purpose(room)} |" for room in ROOMS if room and room != "exporters"]
    assert [row for row in printed if row.startswith(("| `plugin/", "| `exporters/", "| `config/"))] == expected


def purpose(room: str) -> str:
    """The first line of a package's docstring."""
    docstring = ast.get_docstring(ast.parse(MODULES[f"statsig_otel.{room}"].read_text(encoding="utf-8")))
    assert docstring, room
    return docstring.splitlines()[0]


@pytest.mark.parametrize("face", ["statsig_otel", *sorted(FACES)])
def test_every_public_name_can_be_loaded_and_is_what_it_says(face: str) -> None:
    package = import_module(face)
    assert sorted(package.__all__) == sorted(dir(package))
    for name in dir(package):
        found = getattr(package, name)
        assert not isinstance(found, ModuleType), f"{name} is hidden by the module of that name"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("face", slow_except(["statsig_otel", *sorted(FACES)], "statsig_otel.exporters"))
def test_help_lists_what_is_public_and_not_how_it_is_loaded(face: str) -> None:
    package = import_module(face)
    text = pydoc.plain(pydoc.render_doc(package))
    for name in {*package.__all__} - {"__version__"}:  # which has a heading of its own
        assert re.search(rf"\b{name}\b", text), name
    for name in ("exports", "TYPE_CHECKING"):
        assert f"\n    {name}" not in text
    described = text.partition("\nDESCRIPTION\n")[2].partition("\nPACKAGE CONTENTS\n")[0]
    assert re.search(r"modules (below )?are private, though `help` lists them: import from", described)
    assert not re.search(r"(?i)\b(floor|room|seam|face)s?\b", described), "words of the code, not of its users"


def test_no_decision_about_a_queue_takes_an_error_for_a_missing_file() -> None:
    """Since Python 3.14, `Path.exists` returns False on every error. A service that finds no queue starts a new one."""
    for folder in ("exporters/queue", "plugin/control", "plugin/doctor/storage.py"):
        for module in [ROOT / folder] if folder.endswith(".py") else (ROOT / folder).rglob("*.py"):
            assert ".exists()" not in module.read_text(encoding="utf-8"), f"{module}: use exporters.paths.exists"
