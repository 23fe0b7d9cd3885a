"""An exporter that may be anybody's: whatever it does, its sender gets an outcome, and no record is lost."""

import logging
import math
from dataclasses import replace
from typing import Final

from statsig_otel.exporters.exporter import (
    Blocked,
    Delivered,
    Exporter,
    Outcome,
    PartiallyRejected,
    Rejected,
    RetryLater,
)

_logger: Final = logging.getLogger(__name__)


class Guarded:
    """Keeps an exporter to what the protocol `Exporter` says. A mistake of its own blocks it, and is logged.

    Args:
        name: The exporter's id, for the log.
        exporter: The exporter.
    """

    def __init__(self, name: str, exporter: Exporter) -> None:
        self._name = name
        self._exporter = exporter
        self._said = ""  # the mistake that the log has already: each attempt repeats it

    def start(self) -> None:
        """Start the exporter.

        Raises:
            OSError: A file can't be opened.
            ValueError: A file holds something else than it should, or the exporter raised what it should not.
        """
        try:
            self._exporter.start()
        except (OSError, ValueError):
            raise
        except Exception as error:
            _logger.exception("%s: unexpected error of the exporter's start", self._name)
            raise ValueError(f"{self._name}: the exporter can't be started: unexpected {_kind(error)}") from error

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        """Send a batch. What raises, or answers with no outcome, is `Blocked`: nothing leaves the queue for it."""
        try:
            outcome = self._exporter.send(payload, count, timeout)
        except BaseException as error:  # noqa: BLE001 - not even sys.exit() ends a sender
            return self._mistaken(f"unexpected {_kind(error)}", error)
        if not _is_outcome(outcome):
            return self._mistaken(f"the exporter answered with no outcome but with {_described(outcome)}")
        self._said = ""
        return _storable(outcome)

    def shutdown(self) -> None:
        """Shut the exporter down. Never raises."""
        try:
            self._exporter.shutdown()
        except BaseException:
            _logger.exception("%s: unexpected error of the exporter's shutdown", self._name)

    def _mistaken(self, mistake: str, error: BaseException | None = None) -> Blocked:
        if mistake != self._said:
            self._said = mistake
            _logger.error("%s: %s of the exporter's send", self._name, mistake, exc_info=error)
        return Blocked(mistake)


def _kind(error: BaseException) -> str:
    return type(error).__name__


def _is_outcome(value: object) -> bool:
    """Whether it is an outcome with values of the right types: annotations bind nobody who runs."""
    match value:
        case Delivered() | Rejected(str()) | Blocked(str()) | RetryLater(str(), None):
            return True
        case RetryLater(str(), int() | float() as after):
            return -math.inf < after < math.inf  # math.isfinite raises for a large integer
        case PartiallyRejected(int() as count, str()):
            return count > 0
    return False


def _storable(outcome: Outcome) -> Outcome:
    """The same outcome with a reason that a dead letter can bear: bytes of a backend's may have become surrogates."""
    if isinstance(outcome, Delivered) or outcome.reason.isascii():
        return outcome
    return replace(outcome, reason=outcome.reason.encode(errors="replace").decode())


def _described(value: object) -> str:
    """The value's type alone: what is in it may be a secret."""
    kind = type(value).__name__
    return f"a {kind} of the wrong values" if isinstance(value, Outcome) else f"a {kind}"
