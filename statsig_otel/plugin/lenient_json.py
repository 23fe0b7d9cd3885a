"""Splits a JSON document into the items of a batch where the strict decoder refuses the document as a whole.

msgspec refuses all of a body for one lone surrogate, one NaN or one number out of range. The standard library reads
those; it is slower, so only such bodies come here. Each item keeps its own text, and an item that holds a number which
no JSON text can stand for says so, without touching its neighbours.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecodeError, JSONDecoder
from typing import Final, cast

_BLANKS: Final = re.compile(r"[ \t\n\r]*")
_MAX_DIGITS: Final = 4300
"""CPython's own bound for reading an integer (`sys.int_info.default_max_str_digits`), fixed here so that a process
which lifts it reads no more. One that sets a lower bound reads less."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a batch.

    Attributes:
        text: The item's own JSON text.
        value: The item, decoded.
        problem: Why no record can be made of it, whatever it is; None where nothing stands against it.
    """

    text: str
    value: object
    problem: str | None = None


class _Scanner:
    """Walks one document. Raises `JSONDecodeError` or `RecursionError` where it is no JSON."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._problem: str | None = None
        self._decoder = JSONDecoder(
            parse_int=self._integer, parse_float=self._float, parse_constant=self._constant, strict=True
        )
        self._skip_blanks()

    def _integer(self, digits: str) -> int:
        try:
            if len(digits) <= _MAX_DIGITS:
                return int(digits)
        except ValueError:  # this process has a lower bound
            pass
        self._problem = f"holds an integer of {len(digits)} digits"
        return 0

    def _float(self, digits: str) -> float:
        number = float(digits)
        if math.isinf(number):
            self._problem = "holds a number that is out of range"
        return number

    def _constant(self, name: str) -> float:
        self._problem = f"holds {name}, which is no JSON"
        return math.nan

    def _skip_blanks(self) -> None:
        match = _BLANKS.match(self._text, self._position)
        self._position = match.end() if match else self._position

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        return self._text[self._position : self._position + 1]

    def take(self, expected: str) -> None:
        """Step over one expected character and the blanks behind it."""
        if self.peek() != expected:
            raise JSONDecodeError(f"Expecting {expected!r}", self._text, self._position)
        self._position += 1
        self._skip_blanks()

    def value(self) -> Item:
        """Step over one value of any kind."""
        start = self._position
        self._problem = None
        try:
            value, self._position = self._decoder.raw_decode(self._text, start)
        except StopIteration as stop:  # raised by some versions at the end of the text
            raise JSONDecodeError("Expecting value", self._text, start) from stop
        text = self._text[start : self._position]
        self._skip_blanks()
        return Item(text, value, self._problem)

    def _series(self, opening: str, closing: str) -> Iterator[None]:
        """Step through what stands between two brackets; yields before each element."""
        self.take(opening)
        while self.peek() != closing:
            yield
            if self.peek() != closing:
                self.take(",")
                if self.peek() == closing:
                    raise JSONDecodeError("Expecting value", self._text, self._position)
        self.take(closing)

    def elements(self) -> list[Item]:
        """Step over one array, item by item."""
        return [self.value() for _ in self._series("[", "]")]

    def members(self) -> dict[str, "Item | list[Item]"]:
        """Step over one object; arrays among its members are split into items. The last of equal names counts."""
        found: dict[str, Item | list[Item]] = {}
        for _ in self._series("{", "}"):
            if self.peek() != '"':
                raise JSONDecodeError("Expecting a name", self._text, self._position)
            name = cast("str", self.value().value)
            self.take(":")
            found[name] = self.elements() if self.peek() == "[" else self.value()
        return found

    def end(self) -> None:
        """Make sure that nothing but blanks is left."""
        if self._position != len(self._text):
            raise JSONDecodeError("Extra data", self._text, self._position)


def read(text: str) -> Item:
    """Decode one value.

    Raises:
        JSONDecodeError: It is no JSON.
        RecursionError: It is nested past the decoder's limit.
    """
    scanner = _Scanner(text)
    item = scanner.value()
    scanner.end()
    return item


def split(text: str) -> list[Item] | dict[str, Item | list[Item]]:
    """Split a document at its first level: the items of an array, or the members of an object.

    Raises:
        JSONDecodeError: It is no JSON, or neither an array nor an object.
        RecursionError: It is nested past the decoder's limit.
    """
    scanner = _Scanner(text)
    parts = scanner.members() if scanner.peek() == "{" else scanner.elements()
    scanner.end()
    return parts
