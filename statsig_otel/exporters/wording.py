"""Numbers and times in words, for people: `2 records`, `4 minutes ago`, `1-3, 7`, `Not Found`."""

from collections.abc import Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

_UNITS: Final = {"day": 86_400, "hour": 3600, "minute": 60, "second": 1}
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


def counted(count: int, noun: str) -> str:
    """`1 record`, `2 records`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def ago(seconds: float) -> str:
    """How long ago something was: `just now`, `12 seconds ago`, `4 minutes ago`, `2 days ago`."""
    for noun, length in _UNITS.items():
        if seconds >= length:
            return f"{counted(int(seconds // length), noun)} ago"
    return "just now"


def age(seconds: float) -> str:
    """A time in its two largest units: `2d3h`, `4m5s`, `0s`."""
    rest, parts = int(seconds), list[str]()
    for noun, length in _UNITS.items():
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append(f"{count}{noun[0]}")
    return "".join(parts[:2]) or "0s"


def about(seconds: float) -> str:
    """A time in the unit that fits, rounded to a half of it: `90 s`, `47 min`, `5.5 h`, `5 days`."""
    for unit, length in {"days": 86_400, "h": 3600, "min": 60}.items():
        if seconds >= 2 * length:
            return f"{round(2 * seconds / length) / 2:g} {unit}"
    return f"{seconds:.3g} s"


def phrase_of(status: int) -> str:
    """The reason phrase of an HTTP status, such as `Not Found`; empty for one that the standard does not name."""
    return _PHRASES.get(status, "")


def ranges(ids: Iterable[int]) -> str:
    """Ids in order, with ranges where they follow each other: `1-3, 7`; `none` if there are none."""
    found: list[tuple[int, int]] = []
    for number in sorted(ids):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found) or "none"


def rfc3339(seconds: int) -> str:
    """A time, given in seconds since the epoch: `2026-01-31T12:00:00Z`."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
