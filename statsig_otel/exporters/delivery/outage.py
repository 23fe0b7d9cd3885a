"""Logs an outage of one exporter: each kind of failure once, and a reminder."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from statsig_otel._telemetry import FailedState
from statsig_otel.exporters.delivery.answers import kind_of
from statsig_otel.exporters.paths import directory_option

_logger: Final = logging.getLogger(__name__)

_REFUSED: Final = (
    "%(name)s: a record is refused: %(reason)s. It keeps its place (waiting: %(waiting)d). It becomes a dead letter "
    "if it is refused again after the backend has taken another record, which is sent at once, or by "
    "`statsig-otel queue skip %(name)s %(option)s`"
)
_BLOCKED: Final = (
    "%(name)s is blocked until somebody repairs it: %(reason)s. Nothing is given up (waiting: %(waiting)d). Repair it, "
    "then run `statsig-otel queue resume %(name)s %(option)s`, or `statsig-otel reload` with the same option if the "
    "configuration has changed"
)
_MESSAGES: Final[dict[FailedState, tuple[int, str]]] = {
    "retrying": (logging.WARNING, "%(name)s can't deliver now: %(reason)s (waiting: %(waiting)d)"),
    "refused": (logging.WARNING, _REFUSED),
    "blocked": (logging.ERROR, _BLOCKED),
}
"""The level and the message of each state."""

_MOST_KINDS: Final = 10
"""The most kinds of failures that are logged before a reminder is due: an exporter's reasons may all differ."""


@dataclass(slots=True)
class Outage:
    """A time in which an exporter can't deliver the record at the head. It may deliver others.

    Attributes:
        name: The exporter's id.
        directory: The queue's directory. Commands in messages name it, since a service in another program has no file
            that does.
        since: When it began, by the monotonic clock.
        attempts: The failed attempts in it.
        logged: The kinds of failures that were logged, each the sender's state and what its reason begins with: a
            backend may change between them.
        logged_at: When the last of these lines was logged, by the same clock.
    """

    name: str
    directory: Path
    since: float = field(default_factory=time.monotonic)
    attempts: int = 0
    logged: set[tuple[FailedState, str]] = field(default_factory=set)
    logged_at: float = 0.0

    def log(self, state: FailedState, reason: str, *, waiting: int, reminder: float) -> None:
        """Log a kind of failure the first time, and whatever comes once the last line is `reminder` seconds ago."""
        now, kind = time.monotonic(), (state, kind_of(reason))
        is_new = kind not in self.logged and len(self.logged) < _MOST_KINDS
        if is_new or now - self.logged_at >= reminder:
            self.logged.add(kind)
            self.logged_at = now
            level, message = _MESSAGES[state]
            option = directory_option(self.directory)
            _logger.log(level, message, {"name": self.name, "reason": reason, "waiting": waiting, "option": option})

    def log_next(self) -> None:
        """Log the next failure of any kind: somebody has tried to repair it, and wants to know."""
        self.logged.clear()

    def log_end(self, message: str, *, waiting: int) -> None:
        """Log that the exporter delivers again, or can."""
        away = time.monotonic() - self.since
        _logger.warning(
            "%s %s after %.0f s (failed attempts: %d, waiting: %d)", self.name, message, away, self.attempts, waiting
        )
