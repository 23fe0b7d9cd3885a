"""Text for a terminal: harmless, of a known width, in colour where that is shown."""

import unicodedata
from collections.abc import Mapping
from typing import Final, Literal, TextIO

ColorMode = Literal["auto", "always", "never"]

_ELLIPSIS: Final = "…"


def wants_color(mode: ColorMode, stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether to colour. The order is that of Python's own tracebacks: NO_COLOR before FORCE_COLOR before TERM=dumb."""
    if mode != "auto":
        return mode == "always"
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return environment.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, sgr: str, *, colored: bool) -> str:
    """The text in a colour: SGR parameters as ECMA-48, 8.3.117, has them, such as `1;33`."""
    return f"\x1b[{sgr}m{text}\x1b[0m" if colored and sgr and text.strip() else text


def write(stream: TextIO, text: str) -> None:
    """Write and flush. What the stream's encoding can't hold becomes an escape.

    Raises:
        OSError: Nobody reads any more, or the output can't be written.
        ValueError: The stream is closed.
    """
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def printable(text: str) -> str:
    """Each character that does not print (controls, line ends, bidi overrides, zero widths) as its Python escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def width(text: str) -> int:
    """How many cells of a terminal the text takes: two for East Asian wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def pad(text: str, cells: int) -> str:
    """The text, filled up with blanks to so many cells."""
    return text + " " * (cells - width(text))


def shorten(text: str, cells: int) -> str:
    """The text, or its beginning and an ellipsis, in at most so many cells and twice as many characters."""
    if width(text) <= cells and len(text) <= 2 * cells:
        return text
    room, end = cells - 1, 0
    for character in text[: 2 * cells - 1]:
        room -= _cells(character)
        if room < 0:
            break
        end += 1
    return text[:end] + _ELLIPSIS


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
