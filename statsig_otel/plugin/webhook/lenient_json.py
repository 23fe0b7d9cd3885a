"""Splits any JSON document into the items of a batch, also one that the strict decoder refuses.

msgspec refuses a whole body because of one lone surrogate, one NaN or one number out of range. The standard library
reads those, but more slowly. Only the items that the caller wants are kept, each as its own text: a body with millions
of others takes no more memory than its own size. An item with a number that JSON can't express, that is nested too
deeply for the decoder, or that has too many parts, has a `problem`, and its neighbours are not affected.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final, NamedTuple, cast

import msgspec

_SPACE: Final = " \t\n\r"
_SPACES: Final = re.compile(f"[{_SPACE}]*")
_SCALAR: Final = (
    r'(?:"[^"\\,\x00-\x1f]*+"'
    r"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+"
    r"|null|true|false|NaN|-?Infinity|\[[ \t\n\r]*+\]|\{[ \t\n\r]*+\})[ \t\n\r]*+,[ \t\n\r]*+"
)
"""A value that is not needed, and the one comma after it. Possessive, so that nothing is tried twice."""

# A body of a million small values would otherwise hold the interpreter for seconds. No other thread runs during a
# match, so it covers at most a few thousand.
_AT_ONCE: Final = 4096
_SCALARS: Final = re.compile(f"(?>(?:{_SCALAR}){{1,{_AT_ONCE}}})")
"""An atomic group, since before Python 3.11.5 a possessive repetition of alternatives can take a character too much:
https://github.com/python/cpython/issues/106052"""

_MAX_DIGITS: Final = 4300
"""CPython's own limit for reading an integer (`sys.int_info.default_max_str_digits`), fixed here so that a process with
a higher limit reads no longer ones. A process with a lower limit reads only shorter ones."""

MAX_AT_ONCE: Final = 256 << 10
"""Characters that are decoded in one call whatever they contain. Other threads wait for the call, some milliseconds."""

MAX_PARTS: Final = 250_000
"""Objects, arrays and members of a value: some 50 MB at most. No text of `MAX_AT_ONCE` characters has more."""

_TOO_MANY_PARTS: Final = f"has more than {MAX_PARTS:,} objects, arrays and members"

_PLAIN: Final = r'[^"\[\]{}:]'
_PARTS: Final = re.compile(
    rf'(?:"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|(?P<begin>[\[{{])|(?P<end>[\]}}])|(?P<member>:)|{_PLAIN}){_PLAIN}{{0,4096}}+',
    re.DOTALL,
)
"""What begins or ends a part; or a string, also one without its end, so that no character is looked at twice. And some
of what follows: no other thread runs during a match, so it is a few thousand characters and one string at most."""

_BLOCK: Final = 64 << 10
"""Characters in which the brackets and colons are counted at once, to find out how much may be decoded in one call."""


class _Nothing(msgspec.Struct, gc=False):
    """Any object. Its members are checked, but not decoded."""


_decoder: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder()
_skipper: Final = msgspec.json.Decoder(_Nothing)


@dataclass(frozen=True, slots=True)
class _Bracket:
    """The brackets of arrays or of objects, and expressions for several that follow each other."""

    opening: str
    closing: str
    openings: re.Pattern[str]
    closings: re.Pattern[str]


_BRACKETS: Final = {
    "[": _Bracket(
        "[",
        "]",
        re.compile(rf"(?>(?:\[[ \t\n\r]*+){{1,{_AT_ONCE}}})"),
        re.compile(rf"(?>(?:\][ \t\n\r]*+){{1,{_AT_ONCE}}})"),
    ),
    "{": _Bracket(
        "{",
        "}",
        re.compile(rf'(?>(?:\{{[ \t\n\r]*+"[^"{{\\\x00-\x1f]*+"[ \t\n\r]*+:[ \t\n\r]*+){{1,{_AT_ONCE}}})'),
        re.compile(rf"(?>(?:\}}[ \t\n\r]*+){{1,{_AT_ONCE}}})"),
    ),
}


@dataclass(slots=True)
class _Levels:
    """Arrays or objects that are open, each directly within the one before."""

    bracket: _Bracket
    count: int = 0


class Decoded(NamedTuple):
    """What a text says.

    Attributes:
        value: The value. Of one that is nested too deeply, only the members that are not; of one with too many parts,
            only those that have none.
        problem: Why no record can be made of it, if it can't be read exactly; None if it can.
    """

    value: object
    problem: str | None


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a batch.

    It is decoded each time that it is asked for: all items of a body, decoded at once, would take many times its size.

    Attributes:
        text: The item's own JSON text.
    """

    text: str

    def decoded(self) -> Decoded:
        """The item's value, and what is wrong with it. The value is None if the item has too many parts.

        Raises:
            JSONDecodeError: The text is not JSON. `parse` makes no such item.
        """
        if len(self.text) <= MAX_AT_ONCE:
            try:
                return Decoded(_decoder.decode(self.text), None)
            except (msgspec.MsgspecError, ValueError, RecursionError):  # the reader below says what it is
                pass
        scanner = _Scanner(self.text)
        try:
            decoded = scanner.exactly()
        except _TooManyPartsError:
            return Decoded(None, _TOO_MANY_PARTS)
        except RecursionError:
            decoded = scanner.decoded()
        scanner.skip_spaces()
        scanner.end()
        return decoded

    @property
    def value(self) -> object:
        """The item's value; see `Decoded`."""
        return self.decoded().value

    @property
    def problem(self) -> str | None:
        """Why no record can be made of the item; see `Decoded`."""
        return self.decoded().problem


@dataclass(frozen=True, slots=True)
class Items:
    """The items of an array.

    Attributes:
        count: The number of all items.
        kept: The items that the caller wants, in order.
    """

    count: int
    kept: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Members:
    """The members of an object that have the names which the caller asked for.

    Attributes:
        last: The last member of each name: an array as `Items`, a value that the caller wants as an `Item`, any other
            value decoded.
        lost: Whether an earlier member of the same name contains something that the caller wants.
    """

    last: dict[str, object]
    lost: bool


class _Numbers:
    """Reads the numbers of a document.

    It is not a part of the scanner: a decoder refers to itself and to these methods, and would keep the scanner's text
    in memory until the garbage collector finds it.

    Attributes:
        problem: What is wrong with one of the numbers.
    """

    def __init__(self) -> None:
        self.problem: str | None = None

    def integer(self, digits: str) -> int:
        count = len(digits.removeprefix("-"))
        try:
            if count <= _MAX_DIGITS:
                return int(digits)
        except ValueError:  # this process has a lower limit
            pass
        self.problem = f"contains an integer of {count} digits"
        return 0

    def fraction(self, digits: str) -> float:
        number = float(digits)
        if math.isinf(number):
            self.problem = "contains a number that is out of range"
        return number

    def constant(self, name: str) -> float:
        self.problem = f"contains {name}, which is not JSON"
        return math.nan


class _TooManyPartsError(Exception):
    """A value has more than `MAX_PARTS`."""


class _Scanner:
    """Reads one document from its beginning to its end. Raises `JSONDecodeError` if it can't."""

    def __init__(self, text: str, keep: Callable[[object], bool] | None = None) -> None:
        self._text = text
        self._keep = keep
        self._position = 0
        self._numbers = _Numbers()
        self._decoder = JSONDecoder(
            parse_int=self._numbers.integer,
            parse_float=self._numbers.fraction,
            parse_constant=self._numbers.constant,
            strict=True,
        )
        self.skip_spaces()
        self._begin_window()

    def skip_spaces(self) -> None:
        """Go on to the next character that is not a space."""
        match = _SPACES.match(self._text, self._position)
        self._position = match.end() if match else self._position

    def peek(self) -> str:
        """The next character that is not a space; empty at the end."""
        return self._text[self._position : self._position + 1]

    def take(self, expected: str) -> None:
        """Skip one expected character and the spaces after it."""
        if self.peek() != expected:
            raise JSONDecodeError(f"Expecting {expected!r}", self._text, self._position)
        self._position += 1
        self.skip_spaces()

    def value(self) -> object:
        """Read one value of any kind: as an `Item` if the caller wants it, otherwise just decoded."""
        start = self._position
        value = self.decoded().value
        if self._keep is None or self._keep(value):
            value = Item(self._text[start : self._position].rstrip(_SPACE))
        self.skip_spaces()
        return value

    def exactly(self) -> Decoded:
        """Decode one value of any kind.

        Raises:
            RecursionError: It is nested too deeply.
            _TooManyPartsError: It has too many parts.
        """
        value = self._decode()
        return Decoded(value, self._numbers.problem)

    def decoded(self) -> Decoded:
        """Decode one value of any kind, as much of it as can be read."""
        try:
            return self.exactly()
        except RecursionError:
            return Decoded(self._decode_shallowly(self._decode_or_step_over), "is nested too deeply")
        except _TooManyPartsError:
            return Decoded(self._decode_shallowly(self._decode_or_skip), _TOO_MANY_PARTS)

    def _decode(self) -> object:
        self._numbers.problem = None
        while self.peek() in _BRACKETS:
            try:
                value, length = self._decoder.raw_decode(self._window, self._position - self._window_at)
            except JSONDecodeError:  # or the value does not end in the window
                self._numbers.problem = None
                if self._window_at < self._position:
                    self._begin_window()
                    continue
                if self._window_at + len(self._window) < len(self._text) and self._end_by_brackets(MAX_PARTS) < 0:
                    raise _TooManyPartsError from None
                break
            self._position = self._window_at + length
            return value
        value, self._position = self._decoder.raw_decode(self._text, self._position)
        return value

    def _begin_window(self) -> None:
        """Begin the part of the text here that may be decoded in one call: it can't have too many parts."""
        end, parts = self._position, 0
        while end < len(self._text):
            block = self._text[end : end + _BLOCK]
            parts += sum(map(block.count, "[{:"))
            if parts > MAX_PARTS:
                break
            end += _BLOCK
        self._window_at, self._window = self._position, self._text[self._position : end]

    def _end_by_brackets(self, most: float) -> int:
        """Where the next array or object ends, or else the text; -1 if it has more parts than that.

        Nothing is decoded, nor checked: only strings and brackets are told apart.
        """
        parts = depth = 0
        for found in _PARTS.finditer(self._text, self._position):
            parts += found.lastgroup in {"begin", "member"}
            depth += (found.lastgroup == "begin") - (found.lastgroup == "end")
            if depth <= 0:
                return found.end("end")
            if parts > most:
                return -1
        return len(self._text)

    def _decode_shallowly(self, member: Callable[[], object]) -> object:
        """Decode an object that can't be decoded at once, with a function for its members. An array is just empty."""
        if self.peek() == "[":
            member()
            return []
        value: dict[str, object] = {}
        for _ in self._steps("{", "}"):
            name = self._name()
            value[name] = member()
            self.skip_spaces()
        return value

    def _decode_or_step_over(self) -> object:
        """Decode a value; null if it is nested too deeply."""
        try:
            return self._decode()
        except RecursionError:
            self._step_over()
            return None

    def _decode_or_skip(self) -> object:
        """Decode a value; null for an array or an object."""
        if self.peek() not in _BRACKETS:
            return self._decode()
        end = self._end_by_brackets(math.inf)
        try:
            _skipper.decode(f'{{"":{self._text[self._position : end]}}}')
        except (msgspec.MsgspecError, ValueError, RecursionError):  # or what msgspec refuses, but not the library
            self._step_over()
        else:
            self._position = end
        return None

    def _step_over(self) -> None:
        """Skip a value, however deeply it is nested: without a call for each level."""
        levels: list[_Levels] = []  # the innermost last
        while True:
            if self.peek() not in _BRACKETS:
                self._decode()
                self.skip_spaces()
            elif not self._is_empty_after_opening(levels):
                continue  # with the first value in it
            while levels and self.peek() != ",":
                self._close(levels)
            if not levels:
                return
            self.take(",")
            if levels[-1].bracket is _BRACKETS["{"]:
                self._name()

    def _is_empty_after_opening(self, levels: "list[_Levels]") -> bool:
        """Open an array or an object, and those that begin in it at once. If the last one is empty, close that."""
        bracket = _BRACKETS[self.peek()]
        if not levels or levels[-1].bracket is not bracket:
            levels.append(_Levels(bracket))
        if several := bracket.openings.match(self._text, self._position):
            levels[-1].count += self._text.count(bracket.opening, self._position, several.end())
            self._position = several.end()
            is_empty = bracket.opening == "[" and self.peek() == bracket.closing
        else:  # an object that is empty, or whose first name is an unusual one
            levels[-1].count += 1
            self.take(bracket.opening)
            is_empty = self.peek() == bracket.closing
            if not is_empty:
                self._name()
        if is_empty:
            self._close(levels)
        return is_empty

    def _close(self, levels: "list[_Levels]") -> None:
        """Close the innermost array or object, and those around it that end here."""
        inner = levels[-1]
        several = None
        if inner.count > _AT_ONCE:
            several = inner.bracket.closings.match(self._text, self._position)
        if several:
            inner.count -= self._text.count(inner.bracket.closing, self._position, several.end())
            self._position = several.end()
        else:
            self.take(inner.bracket.closing)
            inner.count -= 1
        if not inner.count:
            levels.pop()

    def _steps(self, opening: str, closing: str) -> Iterator[None]:
        """Stop at the beginning of each element of an array or member of an object, until all are read."""
        self.take(opening)
        if self.peek() != closing:
            yield
            while self.peek() != closing:
                self.take(",")
                yield
        self.take(closing)

    def _name(self) -> str:
        """Read the name of a member, and the colon after it."""
        if self.peek() != '"':
            raise JSONDecodeError("Expecting a name", self._text, self._position)
        name = cast("str", self._decode())
        self.skip_spaces()
        self.take(":")
        return name

    def elements(self) -> Items:
        """Read one array, item by item."""
        count = 0
        kept: list[Item] = []
        for _ in self._steps("[", "]"):
            while self._keep and (scalars := _SCALARS.match(self._text, self._position)):
                count += self._text.count(",", self._position, scalars.end())
                self._position = scalars.end()
            count += 1
            value = self.value()
            if isinstance(value, Item):
                kept.append(value)
        return Items(count, tuple(kept))

    def members(self, names: Collection[str]) -> Members:
        """Read one object, member by member."""
        last: dict[str, object] = {}
        lost = False
        for _ in self._steps("{", "}"):
            name = self._name()
            value = self.elements() if name in names and self.peek() == "[" else self.value()
            if name in names:
                earlier = last.get(name)
                lost = lost or isinstance(earlier, Item) or (isinstance(earlier, Items) and bool(earlier.kept))
                last[name] = value
        return Members(last, lost)

    def end(self) -> None:
        """Make sure that only spaces are left."""
        if self._position != len(self._text):
            raise JSONDecodeError("Extra data", self._text, self._position)


def read(text: str) -> Decoded:
    """Decode one value.

    Raises:
        JSONDecodeError: The text is not JSON.
    """
    scanner = _Scanner(text)
    decoded = scanner.decoded()
    scanner.skip_spaces()
    scanner.end()
    return decoded


def split(text: str, keep: Callable[[object], bool] | None, names: Collection[str]) -> Items | Members | None:
    """Split a document at its first level, into the items of an array or members of an object; None for a scalar.

    Args:
        text: The document.
        keep: Whether a decoded value is wanted. It must refuse the empty object and everything that is not an object.
            None to keep all values.
        names: The names of the members that are wanted. An array among them is split into items.

    Raises:
        JSONDecodeError: The text is not JSON.
    """
    scanner = _Scanner(text, keep)
    parts: Items | Members | None = None
    if scanner.peek() == "{":
        parts = scanner.members(names)
    elif scanner.peek() == "[":
        parts = scanner.elements()
    else:
        scanner.value()
    scanner.end()
    return parts
