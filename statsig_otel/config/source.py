"""Reads one YAML file into plain values, and remembers the line of each.

A plain scalar that YAML reads as a number or a boolean also keeps its characters (`Place.text`), so that `name: 007`
can still become the string `007` if the component's model wants a string.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Final

from statsig_otel.config import yaml_tree
from statsig_otel.config.document import UNKNOWN, Document, Place, Unknown
from statsig_otel.config.errors import ConfigError, Path, Problem, quoted
from statsig_otel.config.files import absolute, read_regular
from statsig_otel.config.substitution import FileBacked, Substitution, Unresolved, has_old_reference
from statsig_otel.config.yaml_tree import MAX_DEPTH, MAX_VALUES, BadNode, Node, Scalar, Sequence, TreeError

MAX_FILE: Final = 1 << 20
"""Bytes of a configuration file at most."""

_OPENED: Final = re.compile(r"/dev/stdin|(?:/dev|/proc/self)/fd/[0-9]+")
"""Names of descriptors that this process has open."""


def read(path: FilePath, *, environ: Mapping[str, str]) -> Document:
    """Read a file. Relative paths in it start at its directory; in standard input, at the working directory.

    Raises:
        ConfigError: It can't be read, or is not a YAML mapping. What is wrong with single values is in the document.
    """
    try:
        data = _read(path)
    except OSError as error:
        hint = "name a file, such as config.yaml within it" if isinstance(error, IsADirectoryError) else None
        raise ConfigError([Problem((), f"the file can't be read: {error.strerror}", hint, str(path))]) from None
    except ValueError:  # a NUL, or a surrogate
        raise ConfigError(
            [Problem((), f"{quoted(str(path))} is not a path: it contains a NUL byte or a surrogate")]
        ) from None
    directory = absolute(FilePath()) if _OPENED.fullmatch(str(path)) else absolute(path.parent)
    return parse(data, file=str(path), directory=directory, environ=environ)


def _read(path: FilePath) -> bytes:
    """The file's bytes: at most one more than allowed.

    A named pipe is refused, since a reload could wait for ever. A pipe of the shell, such as `<(...)`, is read.
    """
    if not _OPENED.fullmatch(str(path)):
        return read_regular(path, MAX_FILE)
    with path.open("rb") as file:
        return file.read(MAX_FILE + 1)


def parse(data: bytes, *, file: str, directory: FilePath, environ: Mapping[str, str]) -> Document:
    """Read the bytes of a file. Messages name `file`; relative paths in `${file:...}` start at `directory`.

    Raises:
        ConfigError: It is not a YAML mapping. What is wrong with single values is in the document.
    """
    if len(data) > MAX_FILE:
        raise ConfigError([Problem((), f"the file is larger than {MAX_FILE >> 20} MiB", file=file)])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem((), "the file is not UTF-8", "save it as UTF-8", file, line)]) from None
    try:
        return _Builder(file, directory, Substitution(environ, directory)).document(_root(text))
    except TreeError as error:
        raise ConfigError([Problem((), error.message, error.hint, file, error.line)]) from None


def _root(text: str) -> yaml_tree.Mapping:
    root = yaml_tree.parse(text)
    if isinstance(root, yaml_tree.Mapping):
        return root
    if isinstance(root, Scalar) and root.value is None:
        raise TreeError(root.line, "the file is empty")
    raise TreeError(root.line, "the file is not a mapping", "begin with receivers: in the first column")


@dataclass(slots=True)
class _Builder:
    """Makes values of nodes. It counts what it visits, since a few aliases can stand for very many values."""

    file: str
    directory: FilePath
    substitution: Substitution
    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unresolved: list[Problem] = field(default_factory=list)
    file_backed: dict[Path, FileBacked] = field(default_factory=dict)
    doubts: list[Problem] = field(default_factory=list)
    _texts: dict[Scalar, tuple[str, list[Unresolved]]] = field(default_factory=dict)
    _faults: set[BadNode] = field(default_factory=set)
    _count: int = 0

    def document(self, root: yaml_tree.Mapping) -> Document:
        values = self.mapping(root, ())
        problems, unresolved, doubts = tuple(self.problems), tuple(self.unresolved), tuple(self.doubts)
        return Document(values, self.places, problems, unresolved, self.file_backed, doubts)

    def value(self, node: Node, path: Path, line: int) -> object:
        self._visit(path, line)
        self.places[path] = Place(self.file, line, directory=self.directory)
        if isinstance(node, Scalar):
            return self._scalar(node, path)
        if isinstance(node, Sequence):
            return [self.value(item, (*path, index), item.line) for index, item in enumerate(node.items)]
        if isinstance(node, yaml_tree.Mapping):
            return self.mapping(node, path)
        if node not in self._faults:  # once, however many aliases stand for it
            self._faults.add(node)
            self._fault(path, node)
        return UNKNOWN

    def mapping(self, node: yaml_tree.Mapping, path: Path) -> dict[str, object]:
        self.places.setdefault(path, Place(self.file, node.line, directory=self.directory))
        values: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.pairs:
            key = self._key(key_node, path)
            if key is None:
                continue
            # The parser gives an empty value the line of whatever follows.
            line = value_node.line if isinstance(value_node, Scalar) and value_node.text else key_node.line
            below = (*path, key)
            if key in values:
                hint = f"the first is in line {lines[key]}"
                values[key] = self._fault(below, BadNode(key_node.line, "is there twice", hint))
                continue
            lines[key] = key_node.line
            values[key] = self.value(value_node, below, line)
        return values

    def _key(self, node: Node, path: Path) -> str | None:
        """A key, which has to be a string."""
        fault: tuple[str, str | None]
        if isinstance(node, Scalar):
            if node.plain and node.text == "<<":
                fault = "has a merge key (<<), which YAML 1.2 does not have", "write the keys out"
            elif isinstance(node.value, str):
                return node.value
            elif node.text:
                fault = "has a key that is a number, true, false or null", "put it in quotes"
            else:
                fault = "has a key that is empty", 'write it as ""'
        elif isinstance(node, BadNode):
            fault = f"has a key that {node.message}", node.hint
        else:
            fault = "has a key that is a list or a mapping", "keys are strings; quote one that begins with [, { or ?"
        self._fault(path, BadNode(node.line, *fault))
        return None

    def _scalar(self, node: Scalar, path: Path) -> object:
        if not isinstance(node.value, str):
            if node.value is not None:
                self.places[path] = replace(self.places[path], text=node.text)
            return node.value
        if string := self.substitution.file_backed(node.value):
            self.file_backed[path] = string
        if has_old_reference(node.value):  # the name is not shown: it may be a part of a password
            message = "contains a $ before a name, which is not replaced: write ${env:NAME}, or $$ where a $ is meant"
            self.doubts.append(Problem(path, message, file=self.file, line=node.line))
        if node.value.startswith("~/"):
            message = "begins with ~, which is not replaced by a home directory: write ${env:HOME}, or the whole path"
            self.doubts.append(Problem(path, message, file=self.file, line=node.line))
        if node not in self._texts:
            self._texts[node] = self.substitution.expand(node.value)
        text, faults = self._texts[node]
        # For each alias by itself: another document may replace the value there, or only there.
        for message, hint, unset, of_running in faults:
            self.unresolved.append(Problem(path, message, hint, self.file, node.line, unset, of_running))
        return text if all(fault.of_running for fault in faults) else UNKNOWN

    def _fault(self, path: Path, fault: BadNode) -> Unknown:
        message = fault.message if path else f"the file {fault.message}"  # without a path the message has no subject
        self.problems.append(Problem(path, message, fault.hint, self.file, fault.line))
        return UNKNOWN

    def _visit(self, path: Path, line: int) -> None:
        self._count += 1
        if self._count > MAX_VALUES:
            raise TreeError(line, f"the file contains more than {MAX_VALUES} values, with its aliases (*) written out")
        if len(path) > MAX_DEPTH:
            raise TreeError(line, f"values are nested more than {MAX_DEPTH} deep, with their aliases (*) written out")
