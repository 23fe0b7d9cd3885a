"""Parses YAML into a tree of nodes that know their lines. YAML 1.2's core schema: `on` and `yes` are strings.

It is built from the parser's events without recursion, so that deep nesting is not too deep for Python. An alias is the
node of its anchor once more, so whoever walks the tree has to limit how many nodes it visits.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from statsig_otel.config.scalars import Atom, resolve

MAX_DEPTH: Final = 64
"""How deep values may be nested."""

MAX_VALUES: Final = 20_000
"""How many values a file may contain."""

_TAG: Final = "tag:yaml.org,2002:"
_TAGGED: Final = "has a YAML tag, which is not supported"
_REMOVE_TAG: Final = "remove the word that begins with !"


@dataclass(frozen=True, slots=True, eq=False)
class Scalar:
    """A scalar: its characters, and the value that they mean."""

    line: int
    text: str
    value: Atom
    plain: bool


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """A sequence."""

    line: int
    items: "list[Node]" = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Mapping:
    """A mapping. A key may be any node, and may occur twice."""

    line: int
    pairs: "list[tuple[Node, Node]]" = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class BadNode:
    """A node that can't be used, and why."""

    line: int
    message: str
    hint: str | None = None


Node: TypeAlias = Scalar | Sequence | Mapping | BadNode


class TreeError(Exception):
    """The string is not a YAML document."""

    def __init__(self, line: int, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.line: Final = line
        self.message: Final = message
        self.hint: Final = hint


def parse(text: str) -> Node:
    """The root of the only document in the string.

    Raises:
        TreeError: There is no document, or more than one; it breaks YAML's syntax; it is too deep or too large.
    """
    builder = _Builder()
    for event in _events(text):
        builder.take(event)
    if builder.root is None:
        raise TreeError(1, "the file is empty")
    return builder.root


def _events(text: str) -> Iterator[Event]:
    line = 1
    try:
        for event in YAML(typ="safe", pure=True).parse(io.StringIO(text)):
            line = _line(event)
            yield event
    except ReaderError as error:
        # Its position counts from the beginning of the string.
        line = text.count("\n", 0, error.position) + 1
        raise TreeError(line, f"the file contains the character {error.character:#06x}, which YAML forbids") from None
    except MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except (YAMLError, ValueError, OverflowError, LookupError, TypeError, AttributeError, AssertionError):
        # The scanner itself raises for some strings, such as a \U escape past the end of Unicode.
        raise TreeError(line, "the file can't be read as YAML from here on") from None


def _syntax_error(error: MarkedYAMLError) -> TreeError:
    """The parser's error in one line. Its excerpt of the file is left out, since it may contain a secret."""
    problem = " ".join((error.problem or error.context or "it can't be read").split())
    line = _mark_line(error.problem_mark) or _mark_line(error.context_mark) or 1
    begun = _mark_line(error.context_mark) or line
    hint = None
    if "could not find expected ':'" in problem:
        line, problem, hint = begun, "a key without its :", "write KEY: VALUE"
    elif "end of stream" in problem:
        line, problem = begun, "a quote that is not closed"
    elif "<stream end>" in problem:
        line, problem = begun, "a [ or { that is not closed"
    elif "mapping values are not allowed" in problem:
        problem, hint = "a : where none can be", 'quote a string that contains ": ", and check the indentation'
    elif "'\\t'" in problem:
        problem, hint = "a tab where spaces are expected", "indent with spaces"
    elif "tag handle" in problem:
        problem, hint = "a tag (!), which is not supported", "quote a string that begins with a !"
    elif "cannot start any token" in problem:
        hint = "quote a string that begins with this character"
    elif problem.endswith("but got '{'"):
        hint = "quote a string that contains ${...} where it stands between [ ] or { }"
    elif "expected <block end>" in problem:
        problem = "this does not belong to what stands above it"
        hint = f"check the indentation and the quotes; the block begins in line {begun}"
    return TreeError(line, f"the file breaks YAML's syntax: {problem}", hint)


def _mark_line(mark: Any) -> int | None:
    return None if mark is None else mark.line + 1


class _Builder:
    """Makes nodes of the parser's events."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._count = 0

    def take(self, event: Event) -> None:
        if isinstance(event, DocumentStartEvent) and self.root is not None:
            raise TreeError(_line(event), "the file contains several documents", "put all into one, without ---")
        if isinstance(event, SequenceEndEvent | MappingEndEvent):
            closed = self._open.pop()
            self._add(closed.fault or closed.node)
        elif isinstance(event, AliasEvent):
            self._add(self._alias(event))
        elif isinstance(event, ScalarEvent):
            self._add(self._anchored(event, _scalar(event)))
        elif isinstance(event, SequenceStartEvent | MappingStartEvent):
            self._begin(event)

    def _begin(self, event: SequenceStartEvent | MappingStartEvent) -> None:
        if len(self._open) == MAX_DEPTH:
            raise TreeError(_line(event), f"values are nested more than {MAX_DEPTH} deep")
        node = Sequence(_line(event)) if isinstance(event, SequenceStartEvent) else Mapping(_line(event))
        fault = None
        if event.tag not in (None, "!", _TAG + ("seq" if isinstance(node, Sequence) else "map")):
            fault = BadNode(_line(event), _TAGGED, _REMOVE_TAG)
        self._anchored(event, fault or node)
        self._open.append(_Open(node, event.anchor, fault))

    def _anchored(self, event: NodeEvent, node: Node) -> Node:
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: AliasEvent) -> Node:
        node = self._anchors.get(event.anchor)
        if node is None:
            message = "is an alias (*) of an anchor (&) that is nowhere above"
            return BadNode(_line(event), message, "quote a string that begins with a *")
        if any(entry.node is node for entry in self._open):
            return BadNode(_line(event), "is an alias (*) of a value that it is a part of")
        return node

    def _add(self, node: Node) -> None:
        self._count += 1
        if self._count > MAX_VALUES:
            raise TreeError(node.line, f"the file contains more than {MAX_VALUES} values")
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if isinstance(parent.node, Sequence):
            parent.node.items.append(node)
        elif parent.key is None:
            parent.key = node
        else:
            parent.node.pairs.append((parent.key, node))
            parent.key = None


@dataclass(slots=True)
class _Open:
    """A collection that has not ended yet."""

    node: Sequence | Mapping
    anchor: str | None
    fault: BadNode | None
    key: Node | None = None


def _line(event: Event) -> int:
    line: int = event.start_mark.line
    return line + 1


def _scalar(event: ScalarEvent) -> Scalar | BadNode:
    line = _line(event)
    try:
        # Two escapes may be the halves of one character past U+FFFF (JSON's way, and JSON is YAML).
        text = event.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return BadNode(line, "contains half of a character (a lone surrogate)")
    plain = not event.style
    tag = event.tag
    if tag is None:
        return Scalar(line, text, resolve(text) if plain else text, plain)
    if tag in ("!", _TAG + "str"):
        return Scalar(line, text, text, plain=False)
    value = resolve(text)
    if tag in (_TAG + "int", _TAG + "float", _TAG + "bool", _TAG + "null"):
        if _kind(value) == tag.removeprefix(_TAG):
            return Scalar(line, text, value, plain=True)
        return BadNode(line, "is not what its YAML tag says", _REMOVE_TAG)
    return BadNode(line, _TAGGED, "quote a string that begins with a !")


def _kind(value: Atom) -> str:
    return "null" if value is None else type(value).__name__
