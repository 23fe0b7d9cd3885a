"""Prints the demo's table row by row, to a terminal or a pipe."""

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TextIO

from statsig_otel.exporters.terminal import pad, paint, printable, shorten, wants_color, width, write
from statsig_otel.plugin.record.change_event import ChangeEvent

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HEADINGS: Final = ("time UTC", "type", "title", "environments", "who")
_COLORS: Final = ("2", "36", "1", "32", "")  # SGR parameters, ECMA-48 8.3.117
_HEADING_COLOR: Final = "4"
_REDELIVERY: Final = "redelivery"
_REDELIVERY_COLOR: Final = "33"
_MAX_WIDTH: Final = 60
_SHRINKING: Final = ((3, 10), (4, 10), (1, 12), (2, 12))
"""The columns that shrink on a narrow terminal, in this order, each with its smallest width."""

_GAP: Final = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One change event in the table. A field is empty if the record lacks it."""

    happened_at_ms: int
    type: str
    title: str
    environments: tuple[str, ...] = ()
    who: str = ""

    @classmethod
    def of(cls, event: ChangeEvent) -> "Row":
        """The row that is expected for a change event."""
        return cls(
            happened_at_ms=event.happened_at,
            type=event.type,
            title=event.title,
            environments=event.environments,
            who=event.user_name or event.user_email or event.user_id or "",
        )

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells in the order of the headings."""
        time = f"{_EPOCH + timedelta(milliseconds=self.happened_at_ms):%H:%M:%S}"
        texts = (time, self.type, self.title, ", ".join(self.environments), self.who)
        return tuple(printable(text) or "-" for text in texts)


class Table:
    """Writes lines to a stream, in colour if the stream is a terminal that supports it.

    The columns get their width from rows that are expected later.
    """

    def __init__(
        self, stream: TextIO, expected: Iterable[Row] = (), environment: Mapping[str, str] = os.environ
    ) -> None:
        self._stream = stream
        self._colored = wants_color("auto", stream, environment)
        columns = zip(_HEADINGS, *(row.cells for row in expected), strict=True)
        self._widths = [min(max(map(width, column)), _MAX_WIDTH) for column in columns]
        gaps = len(_GAP) * (len(self._widths) - 1)
        self._available = shutil.get_terminal_size().columns - 1 - gaps if stream.isatty() else math.inf
        for column, least in _SHRINKING:
            excess = max(0, sum(self._widths) - self._available)
            self._widths[column] = int(max(min(least, self._widths[column]), self._widths[column] - excess))

    def print(self, text: str = "", color: str = "") -> None:
        """Write one or more lines that do not belong to the table."""
        for line in text.split("\n"):
            self._write(self._color(line, color))

    def heading(self) -> None:
        """Write the headings."""
        self._write(self._line(_HEADINGS, [_HEADING_COLOR] * len(_HEADINGS)).rstrip())

    def row(self, row: Row, *, redelivery: bool = False) -> None:
        """Write a row. A redelivery is a record whose `log.record.uid` arrived before."""
        for column, cell in enumerate(row.cells):
            wider = min(width(cell), _MAX_WIDTH) - self._widths[column]
            if wider > 0 and sum(self._widths) + wider <= self._available:
                self._widths[column] += wider
        line = self._line(row.cells, _COLORS)
        self._write(f"{line}{_GAP}{self._color(_REDELIVERY, _REDELIVERY_COLOR)}" if redelivery else line.rstrip())

    def _line(self, cells: Iterable[str], colors: Iterable[str]) -> str:
        if self._available < math.inf:  # cells are not shortened in a pipe
            cells = [shorten(cell, most) for cell, most in zip(cells, self._widths, strict=True)]
        cells = [pad(cell, least) for cell, least in zip(cells, self._widths, strict=True)]
        return _GAP.join(self._color(cell, color) for cell, color in zip(cells, colors, strict=True))

    def _color(self, text: str, sgr: str) -> str:
        return paint(text, sgr, colored=self._colored)

    def _write(self, line: str) -> None:
        write(self._stream, line + "\n")
