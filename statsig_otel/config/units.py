"""Reads and writes durations such as `1m30s` and sizes such as `20MiB`."""

import math
import re
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Final, get_args

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationInfo, WithJsonSchema

from statsig_otel.config.errors import SettingError

_SECONDS: Final = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0,
}  # fmt: skip
_PART: Final = rf"([0-9]+(\.[0-9]*)?|\.[0-9]+)({'|'.join(_SECONDS)})"
_DURATION_PART: Final = re.compile(_PART)
_DURATION: Final = re.compile(f"({_PART})+")
_NOT_A_DURATION: Final = "must be a duration such as 30s, 500ms or 1h30m"
_NOT_SECONDS: Final = "must be a number of seconds, or a duration such as 30s, 500ms or 1h30m"
_LONGEST: Final = 9_223_372_036.0  # the most that Go's durations and the timeouts of Python's threads can be
_TOO_LONG: Final = "is too long: a duration is at most 292 years"
_LIKE_A_DURATION: Final = re.compile(r"([-+]?)([0-9]{1,9}(?:\.[0-9]{1,9})?) *([a-z]*)")
_UNIT_WORDS: Final = {
    "s": "s", "sec": "s", "second": "s", "m": "m", "min": "m", "minute": "m", "h": "h", "hr": "h", "hour": "h",
    "ms": "ms", "milli": "ms", "msec": "ms", "millisecond": "ms", "us": "us", "microsecond": "us", "ns": "ns",
    "nanosecond": "ns",
}  # fmt: skip

_BYTES: Final = {
    "": 1, "B": 1,
    "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
SIZE: Final = re.compile(r"([0-9]{1,18})(?: ?((?:[KMGT]I?)?B))?", re.IGNORECASE | re.ASCII)
"""A size with or without a unit."""
_NOT_A_SIZE: Final = "must be a size such as 20MiB, 512KiB or a number of bytes"
_MOST_BYTES: Final = 2**63 - 1
_TOO_LARGE: Final = "is too large: a size is less than 8 EiB (2^63 bytes)"
_LIKE_A_SIZE: Final = re.compile(
    r"([-+]?)([0-9]{1,9}(?:\.[0-9]{1,9})?) *([KMGT]?)(I?)(?:B|BYTES?)?", re.IGNORECASE | re.ASCII
)

AS_WRITTEN: Final = object()
"""A marker: the context of a validation of values from a file, where a duration needs a unit."""


def _duration_hint(value: str) -> str | None:
    """The right form of a duration that is nearly right."""
    match = _LIKE_A_DURATION.fullmatch(value.strip().lower())
    if match is None:
        return None
    sign, number, unit = match.groups()
    if sign == "-":
        return "it can't be negative"
    if not unit:
        return f"it needs a unit, such as {number}s or {number}ms"
    if unit[0] in "dw":
        return f"write hours: {float(number) * (24 if unit[0] == 'd' else 168):g}h"
    known = _UNIT_WORDS.get(unit) or _UNIT_WORDS.get(unit.removesuffix("s"))
    return f"write {number}{known}" if known else None


def parse_duration(value: object) -> object:
    """Seconds of a duration in Go's grammar: `300ms`, `1.5h`, `2h45m`, `0`. Code may pass a `timedelta`.

    Raises:
        ValueError: It is not a duration. A number without a unit is refused, since its unit could only be guessed.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, float | int) and not isinstance(value, bool):
        if value == 0:
            return 0.0
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(_NOT_A_DURATION)
        number = int(value) if isinstance(value, float) and value.is_integer() else value  # 1e3 is a float
        raise ValueError(f"a duration needs a unit, such as {number}s or {number}ms")
    if not isinstance(value, str):
        raise SettingError(_NOT_A_DURATION)
    if value == "0":
        return 0.0
    if not _DURATION.fullmatch(value):
        raise SettingError(_NOT_A_DURATION, _duration_hint(value))
    seconds = sum(float(number) * _SECONDS[unit] for number, _, unit in _DURATION_PART.findall(value))
    if seconds > _LONGEST:
        raise ValueError(_TOO_LONG)
    return seconds


def _duration_or_seconds(value: object, info: ValidationInfo) -> object:
    """As `parse_duration`, but a number that comes from code means seconds."""
    if info.context is AS_WRITTEN:
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, float | int):
        try:
            return parse_duration(value)
        except SettingError as error:
            raise SettingError(_NOT_SECONDS, error.hint) from None
    if not value <= _LONGEST:  # so no NaN either
        raise ValueError(_TOO_LONG)
    return value


def format_duration(seconds: float) -> str:
    """A duration as Go prints it: `5m0s`, `1.5s`, `300ms`."""
    exact = Decimal(repr(seconds))
    if 0 < exact < 1:
        return f"{(exact * 1000).normalize():f}ms"
    minutes, rest = divmod(exact, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest.normalize():f}s"
    if hours:
        return f"{hours:f}h{minutes:f}m{text}"
    return f"{minutes:f}m{text}" if minutes else text


def _size_hint(value: object) -> str | None:
    """The right form of a size that is nearly right."""
    match = _LIKE_A_SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    sign, number, prefix, binary = match.groups()
    if sign == "-":
        return "it can't be negative"
    unit = prefix.upper() + ("iB" if binary else "B") if prefix else ""
    if "." not in number:
        return f"write {number}{unit}"
    size = float(number) * _BYTES[unit.upper()]
    return f"write whole numbers: {format_size(int(size))}" if size.is_integer() else None


def parse_size(value: object) -> object:
    """Bytes of a size such as `20MiB`, `512KiB` or `1048576`.

    Raises:
        ValueError: It is not a size.
    """
    if isinstance(value, float) and value.is_integer():  # 1e6
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := SIZE.fullmatch(value)):
        size = int(match[1]) * _BYTES[(match[2] or "").upper()]
    else:
        raise SettingError(_NOT_A_SIZE, _size_hint(value))
    if size < 0:
        raise ValueError("must not be negative")
    if size > _MOST_BYTES:
        raise ValueError(_TOO_LARGE)
    return size


def format_size(size: int) -> str | int:
    """A size with the largest unit that leaves a whole number, such as `20MiB`; else a plain number."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit.upper()] == 0:
            return f"{size // _BYTES[unit.upper()]}{unit}"
    return size


def formatter_of(annotation: Any) -> Callable[[Any], str | int] | None:
    """The function that formats values of a type, if it is a duration or a size; else None."""
    validators = [one.func for one in get_args(annotation) if isinstance(one, BeforeValidator)]
    if _duration_or_seconds in validators:
        return format_duration
    return format_size if parse_size in validators else None


# In both schemas a string that contains a ${...} is allowed.
DURATION_SCHEMA: Final = {
    "title": "duration",
    "type": ["string", "number"],
    "pattern": rf"^0$|^({_PART})+$|\$\{{",
    "minimum": 0,  # of numbers only 0 needs no unit
    "maximum": 0,
}
_SIZE_SCHEMA: Final = {
    "title": "size",
    "type": ["string", "integer"],
    "pattern": r"^[0-9]{1,18}( ?([KkMmGgTt][Ii]?)?[Bb])?$|\$\{",
    "minimum": 0,
    "maximum": _MOST_BYTES,
}

Duration = Annotated[
    float,
    BeforeValidator(_duration_or_seconds),
    PlainSerializer(format_duration, when_used="json"),
    WithJsonSchema(DURATION_SCHEMA),
]
"""Seconds, written in Go's grammar (`5s`, `1m30s`); in code a number of seconds, or a `timedelta`."""

Timeout = Annotated[Duration, Field(gt=0)]
"""A duration above 0, in seconds."""

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, when_used="json"),
    WithJsonSchema(_SIZE_SCHEMA),
]
"""Bytes, written with a unit (`20MiB`) or as a plain number."""
