"""Prepares text for a terminal: escapes unprintable characters, measures and pads its width, adds colour."""

import unicodedata
from collections.abc import Mapping
from typing import Final, Literal, TextIO

ColorMode = Literal["auto", "always", "never"]

_ELLIPSIS: Final = "…"


def wants_color(mode: ColorMode, stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether to use colours. As for Python's tracebacks, NO_COLOR overrides FORCE_COLOR, which overrides TERM=dumb."""
    if mode != "auto":
        return mode == "always"
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return environment.get("TERM") != "dumb" and stream.isatty()


def paint(text: str, sgr: str, *, colored: bool) -> str:
    """The text in a colour, given as SGR parameters (ECMA-48, 8.3.117) such as `1;33`."""
    return f"\x1b[{sgr}m{text}\x1b[0m" if colored and sgr and text.strip() else text


def write(stream: TextIO, text: str) -> None:
    """Write and flush. Characters that the stream's encoding lacks become escapes.

    Raises:
        OSError: The output has no reader, or can't be written.
        ValueError: The stream is closed.
    """
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def printable(text: str) -> str:
    """The text with unprintable characters (controls, line breaks, bidi overrides, zero widths) as Python escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def width(text: str) -> int:
    """The text's width in terminal cells: two for East Asian wide characters, none for combining characters."""
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def pad(text: str, cells: int) -> str:
    """The text, padded with spaces to a width in cells."""
    return text + " " * (cells - width(text))


def shorten(text: str, cells: int) -> str:
    """The text, or its beginning with an ellipsis, within a number of cells and at most twice as many characters."""
    if width(text) <= cells and len(text) <= 2 * cells:
        return text
    remaining, end = cells - 1, 0
    for character in text[: 2 * cells - 1]:
        remaining -= _cells(character)
        if remaining < 0:
            break
        end += 1
    return text[:end] + _ELLIPSIS


def wrap(text: str, cells: int) -> list[str]:
    """The text in lines of at most `cells` cells, broken at spaces where that is possible."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and width(lines[-1]) + 1 + width(word) <= cells:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if width(lines[-1]) + _cells(character) > cells:
                lines.append("")
            lines[-1] += character
    return lines


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
