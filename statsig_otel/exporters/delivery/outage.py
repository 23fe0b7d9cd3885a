"""Logs an outage of one exporter: each state of it once, and a reminder while somebody has to repair something."""

import logging
import time
from dataclasses import dataclass, field
from typing import Final

from statsig_otel.exporters.delivery.decisions import FailedState

_logger: Final = logging.getLogger(__name__)

_REFUSED: Final = (
    "%(name)s: a record is refused: %(reason)s. It keeps its place (waiting: %(waiting)d). It becomes a dead letter "
    "once the backend takes another record, which is sent at once, or by `statsig-otel queue skip %(name)s`"
)
_BLOCKED: Final = (
    "%(name)s is blocked until somebody repairs it: %(reason)s. Nothing is given up (waiting: %(waiting)d). Repair it, "
    "then run `statsig-otel reload`, or `statsig-otel queue resume %(name)s` if the configuration stays the same"
)
_MESSAGES: Final[dict[FailedState, tuple[int, str]]] = {
    "retrying": (logging.WARNING, "%(name)s can't deliver now: %(reason)s (waiting: %(waiting)d)"),
    "refused": (logging.WARNING, _REFUSED),
    "blocked": (logging.ERROR, _BLOCKED),
}
"""The level and the message of each state."""


@dataclass(slots=True)
class Outage:
    """A time in which an exporter delivers nothing, since a time of the monotonic clock.

    `logged_at` is when each of the sender's states in it was logged: a backend may change between them.
    """

    since: float = field(default_factory=time.monotonic)
    attempts: int = 0
    logged_at: dict[FailedState, float] = field(default_factory=dict)

    def log(self, state: FailedState, name: str, reason: str, *, waiting: int, reminder: float) -> None:
        """Log a state the first time, and that an exporter is blocked again after `reminder` seconds."""
        now, logged_at = time.monotonic(), self.logged_at.get(state)
        if logged_at is None or (state == "blocked" and now - logged_at >= reminder):
            self.logged_at[state] = now
            level, message = _MESSAGES[state]
            _logger.log(level, message, {"name": name, "reason": reason, "waiting": waiting})

    def log_end(self, message: str, name: str, *, waiting: int) -> None:
        """Log that the exporter delivers again, or can."""
        away = time.monotonic() - self.since
        _logger.warning(
            "%s %s after %.0f s (failed attempts: %d, waiting: %d)", name, message, away, self.attempts, waiting
        )
