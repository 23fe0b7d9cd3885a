"""The types of options that are an age, such as `7d` or `1d12h`, or a moment."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click
from pydantic import TypeAdapter

from statsig_otel.config.units import Duration

_DIGITS_OF_DAYS: Final = 5
_FIRST_YEAR: Final = 1970
_LAST_YEAR: Final = 2999
_seconds: Final = TypeAdapter[float](Duration).validate_python


if TYPE_CHECKING:
    _ParamType = click.ParamType[float, str]
else:
    _ParamType = click.ParamType  # generic only in newer versions of click


class Age(_ParamType):
    """A duration that may begin with days, in seconds: `7d`, `1d12h`."""

    name = "age"
    _meant = "an age such as 7d, 12h or 1d12h"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        days, unit, rest = value.partition("d")
        try:
            if unit and days.isascii() and days.isdigit() and len(days) <= _DIGITS_OF_DAYS:
                return int(days) * 86400.0 + _seconds(rest or "0")
            return _seconds(value)
        except ValueError:
            self.fail(f"{value!r} is not {self._meant}", param, ctx)


class Moment(Age):
    """A moment in seconds since the epoch: how long ago it was, or its date and time, without a zone in UTC."""

    name = "moment"
    _meant = "an age such as 7d, 12h or 1d12h, nor a date and time such as 2026-02-13T10:15:00Z"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds since the epoch; not before it."""
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return max(0.0, time.time() - super().convert(value, param, ctx))
        if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
            self.fail(f"{value!r} is not in the years {_FIRST_YEAR} to {_LAST_YEAR}", param, ctx)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
