"""The targets of the fuzzer, and the inputs that are kept for each."""

import ast
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol, TypeAlias, cast
from zlib import crc32

Check: TypeAlias = Callable[[bytes], None]
"""Raises an error if something is not true of one input that has to be true of all."""

Mutate: TypeAlias = Callable[[bytes], bytes]
"""Changes a few bytes, as libFuzzer does."""

TARGETS: Final[Mapping[str, tuple[str, ...]]] = {
    "framing": ("statsig_otel.plugin.server",),
    "payload": ("statsig_otel.plugin.webhook", "statsig_otel.plugin.record", "json.decoder"),
    "yaml": ("statsig_otel.config", "ruamel"),
    "configuration": ("statsig_otel.config", "statsig_otel.plugin.settings", "statsig_otel.plugin.record"),
    "templates": ("statsig_otel.plugin.record", "fnmatch"),
    "answers": ("statsig_otel.exporters.network", "statsig_otel.exporters.otlp"),
    "queue_file": ("statsig_otel.exporters",),
    "control_socket": ("statsig_otel.plugin.control", "statsig_otel.exporters"),
}
"""The packages whose code the fuzzer tries to cover, by target: a module of this package."""

ROOT: Final = Path(__file__).parents[2]
CORPUS: Final = Path(__file__).with_name("corpus")


class Target(Protocol):
    """A module of this package. If it has `mutated(data, random, mutate)`, that changes the inputs.

    If it has a `SHARE`, its check does what takes long for one of so many inputs; see `is_chosen`.
    """

    TOKENS: Collection[bytes]
    """Strings that inputs are made of."""

    LONGEST: int
    """Bytes of an input at most."""

    ENOUGH: int
    """Inputs after which a target has been searched for long enough."""

    def seeds(self) -> Iterable[bytes]:
        """The inputs to begin with, beside those that are kept."""
        ...

    def checking(self) -> AbstractContextManager[Check]:
        """The check, with what it needs for as long as the block."""
        ...


def target(name: str) -> Target:
    """The module of a target."""
    return cast("Target", import_module(f"tests.fuzz.{name}"))


@contextmanager
def limited(module: ModuleType, smaller: Mapping[str, int]) -> Iterator[None]:
    """Let a module have smaller limits during the block, which short inputs reach."""
    before = {name: getattr(module, name) for name in smaller}
    vars(module).update(smaller)
    try:
        yield
    finally:
        vars(module).update(before)


def is_chosen(data: bytes, share: int) -> bool:
    """Whether an input is in a sample of one in `share`. Its bytes decide, so the answer is always the same."""
    return crc32(data) % share == 0


def fingerprint(name: str) -> str:
    """A hash of the code that a target tries to cover, and of the target; without packages of others."""
    folders = [ROOT.joinpath(*package.split(".")) for package in TARGETS[name]]
    files = [Path(__file__).with_name(f"{name}.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    return sha256("".join(code(file.read_text()) for file in sorted(files)).encode()).hexdigest()[:12]


def code(source: str) -> str:
    """What a module does, without its comments and docstrings."""
    return ast.dump(_WithoutDocstrings().visit(ast.parse(source)))


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_string = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_string else node


def kept(name: str) -> list[bytes]:
    """The inputs that are kept for a target."""
    file = CORPUS / f"{name}.jsonl"
    return [json.loads(line).encode("latin-1") for line in file.read_text().splitlines()] if file.exists() else []


def keep(name: str, inputs: Iterable[bytes]) -> None:
    """Write the inputs of a target, one JSON string a line, with a character for each byte."""
    lines = [json.dumps(one.decode("latin-1")) + "\n" for one in sorted(set(inputs), key=lambda one: (len(one), one))]
    (CORPUS / f"{name}.jsonl").write_text("".join(lines))
