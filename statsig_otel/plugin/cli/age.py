"""The types of options that are an age, such as `7d` or `1d12h`, or a moment."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click
from pydantic import TypeAdapter

from statsig_otel.config.units import Duration

_DIGITS_OF_DAYS: Final = 5
_seconds: Final = TypeAdapter[float](Duration).validate_python


if TYPE_CHECKING:
    _ParamType = click.ParamType[float, str]
else:
    _ParamType = click.ParamType  # generic only in newer versions of click


class Age(_ParamType):
    """A duration that may begin with days, in seconds: `7d`, `1d12h`."""

    name = "age"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        days, unit, rest = value.partition("d")
        try:
            if unit and days.isascii() and days.isdigit() and len(days) <= _DIGITS_OF_DAYS:
                return int(days) * 86400.0 + _seconds(rest or "0")
            return _seconds(value)
        except ValueError:
            self.fail(f"{value!r} is not an age such as 7d, 12h or 1d12h", param, ctx)


class Moment(Age):
    """A moment in seconds since the epoch: how long ago it was, or its date and time, without a zone in UTC."""

    name = "moment"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds since the epoch."""
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return time.time() - super().convert(value, param, ctx)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
