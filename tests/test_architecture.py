"""The floors, and what an import of the package costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import statsig_otel

ROOT = Path(statsig_otel.__file__).parent
FLOORS = {"config": 1, "exporters": 2, "plugin": 3}
HEAVY = (
    "falcon",
    "uvicorn",
    "grpc",
    "urllib3",
    "pydantic",
    "click",
    "ruamel",
    "opentelemetry.sdk",
    "opentelemetry.exporter",
)


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_floor_imports_only_from_those_below(path: Path) -> None:
    own = FLOORS.get(path.relative_to(ROOT).parts[0], 4 if path.name == "__main__.py" else 0)
    for name in imports_of(path):
        first, _, rest = name.partition(".")
        if first == "statsig_otel":
            assert FLOORS.get(rest.partition(".")[0], 0) <= own, f"{path} imports {name}"


@pytest.mark.parametrize("floor", FLOORS)
def test_every_public_name_can_be_loaded_and_is_what_it_says(floor: str) -> None:
    package = import_module(f"statsig_otel.{floor}")
    for name in dir(package):
        found = getattr(package, name)
        assert not isinstance(found, ModuleType), f"{name} is hidden by the module of that name"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import statsig_otel.plugin, statsig_otel.exporters, statsig_otel.config", ()),
        ("from statsig_otel.plugin import verify, parse, sign, ChangeEvent, LogRecordEncoder, Mapper, uid", ()),
        ("from statsig_otel.plugin import Intake", ()),
        ("from statsig_otel.exporters import SynchronousConsumer, Delivered", ()),
        ("from statsig_otel.plugin import StatsigReceiver", ("falcon",)),
        ("from statsig_otel.plugin.cli.main import main", ("click",)),
    ],
)
def test_an_import_loads_no_more_than_it_needs(statement: str, allowed: tuple[str, ...]) -> None:
    script = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    heavy = {name for name in HEAVY for module in loaded if module == name or module.startswith(f"{name}.")}
    assert heavy <= set(allowed)
