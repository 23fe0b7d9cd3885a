"""The service's own log: on standard error, at a level and in a form that only the configuration tells.

What is logged before that is known is held back, so that no line has the wrong form and none is lost.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final, TextIO

from statsig_otel.plugin.settings.telemetry import LogEncoding, LogLevel

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


class LogOutput:
    """The handler of all log lines of the process. `held_back` makes one.

    Args:
        stream: Where lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held = _Held()

    def hold(self) -> None:
        """Hold lines back."""
        logging.basicConfig(level=logging.DEBUG, handlers=[self._held], force=True)

    def begin(self, level: LogLevel = "info", encoding: LogEncoding = "console") -> None:
        """Write what was held back and is of this level, and all that comes. Only the first call counts."""
        if self._held not in logging.root.handlers:
            return
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(
            _JsonLines()
            if encoding == "json"
            else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        )
        logging.basicConfig(level=_LEVELS[level], handlers=[handler], force=True)
        for record in self._held.records:
            if logging.getLogger(record.name).isEnabledFor(record.levelno):
                handler.handle(record)


@contextmanager
def held_back(stream: TextIO) -> Iterator[LogOutput]:
    """Hold the log back; at the end of the block, if not before, it begins."""
    output = LogOutput(stream)
    output.hold()
    try:
        yield output
    finally:
        output.begin()


class _Held(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _JsonLines(logging.Formatter):
    """One JSON object a line, with the names of the Collector's JSON log."""

    def format(self, record: logging.LogRecord) -> str:
        level = "warn" if record.levelno == logging.WARNING else record.levelname.lower()
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"level": level, "ts": moment, "logger": record.name, "msg": record.getMessage()}
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(line)
