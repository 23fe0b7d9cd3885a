"""Writes the service's log and the warnings of libraries to standard error, with the configured level and encoding.

Lines that are logged before the configuration is read are buffered, so that none is lost or written in the wrong form.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final, TextIO

from statsig_otel.exporters.terminal import printable
from statsig_otel.plugin.settings.telemetry import LogEncoding, LogLevel

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


_DELETE: Final = "\x7f"
"""The one control character that json.dumps leaves as a character."""


class LogOutput:
    """The log of the process, whose lines are buffered until `begin`. `buffered_log` creates it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._buffer = _Buffer()
        logging.basicConfig(level=logging.DEBUG, handlers=[self._buffer], force=True)

    def begin(self, level: LogLevel = "info", encoding: LogEncoding = "console") -> None:
        """Write the buffered lines of at least this level, and all later ones. Only the first call has an effect."""
        if self._buffer not in logging.root.handlers:
            return
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(_JsonLines() if encoding == "json" else _Console())
        handler.addFilter(_is_for_operators)
        logging.basicConfig(level=_LEVELS[level], handlers=[handler], force=True)
        for record in self._buffer.records:
            if logging.getLogger(record.name).isEnabledFor(record.levelno):
                handler.handle(record)


@contextmanager
def buffered_log(stream: TextIO) -> Iterator[LogOutput]:
    """Buffer the log until `begin` is called, at the latest until the end of the block."""
    output = LogOutput(stream)
    try:
        yield output
    finally:
        output.begin()


def _is_for_operators(record: logging.LogRecord) -> bool:
    """Whether to write a record: of the libraries only warnings. Popular HTTP clients log whole URLs, with secrets."""
    return record.levelno >= logging.WARNING or f"{record.name}.".startswith("statsig_otel.")


class _Buffer(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _Console(logging.Formatter):
    """Plain lines. Control characters become escapes, and further lines begin with spaces.

    An error may quote what somebody sent: nobody else can write a line that looks like one of the log's own.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return "\n  ".join(map(printable, super().format(record).split("\n")))


class _JsonLines(logging.Formatter):
    """One JSON object per line, with the keys of the Collector's JSON log."""

    def format(self, record: logging.LogRecord) -> str:
        level = "warn" if record.levelno == logging.WARNING else record.levelname.lower()
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"level": level, "ts": moment, "logger": record.name, "msg": record.getMessage()}
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(line).replace(_DELETE, "\\u007f")
