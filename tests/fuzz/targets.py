"""The targets of the fuzzer, and the inputs that are kept for each."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol, TypeAlias, cast

Check: TypeAlias = Callable[[bytes], None]
"""Raises an error if something is not true of one input that has to be true of all."""

TARGETS: Final[Mapping[str, tuple[str, ...]]] = {
    "framing": ("statsig_otel.plugin.server",),
    "payload": ("statsig_otel.plugin", "json.decoder"),
    "configuration": ("statsig_otel", "ruamel"),
    "templates": ("statsig_otel.plugin.record", "fnmatch"),
    "answers": ("statsig_otel.exporters.otlp",),
    "queue_file": ("statsig_otel.exporters",),
    "control_socket": ("statsig_otel.plugin.control", "statsig_otel.exporters"),
}
"""The packages whose code the fuzzer tries to cover, by target: a module of this package."""

CORPUS: Final = Path(__file__).with_name("corpus")


class Target(Protocol):
    """A module of this package."""

    TOKENS: Collection[bytes]
    """Strings that inputs are made of."""

    LONGEST: int
    """Bytes of an input at most."""

    def seeds(self) -> Iterable[bytes]:
        """The inputs to begin with, beside those that are kept."""
        ...

    def checking(self) -> AbstractContextManager[Check]:
        """The check, with what it needs for as long as the block."""
        ...


def target(name: str) -> Target:
    """The module of a target."""
    return cast("Target", import_module(f"tests.fuzz.{name}"))


def kept(name: str) -> list[bytes]:
    """The inputs that are kept for a target."""
    file = CORPUS / f"{name}.jsonl"
    return [json.loads(line).encode("latin-1") for line in file.read_text().splitlines()] if file.exists() else []


def keep(name: str, inputs: Iterable[bytes]) -> None:
    """Write the inputs of a target, one JSON string a line, with a character for each byte."""
    lines = [json.dumps(one.decode("latin-1")) + "\n" for one in sorted(set(inputs), key=lambda one: (len(one), one))]
    (CORPUS / f"{name}.jsonl").write_text("".join(lines))
