"""Guards against mistakes of an exporter: whatever it does, its sender gets an outcome, and no record is lost."""

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Final

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value

from statsig_otel import _telemetry
from statsig_otel._arguments import described, type_name
from statsig_otel._journal import journal
from statsig_otel._tracing import CurrentSpan, tracing
from statsig_otel.exporters.exporter import (
    Blocked,
    Delivered,
    Exporter,
    Outcome,
    PartiallyRejected,
    Rejected,
    RetryLater,
)
from statsig_otel.exporters.terminal import printable

if TYPE_CHECKING:
    from opentelemetry.trace import Link

_logger: Final = logging.getLogger(__name__)

TOO_LITTLE_MEMORY: Final = "there is too little memory to send it"
"""Why a batch is sent later for which memory could not be had. A part of it needs less."""

WORDS: Final[dict[type[Outcome], str]] = dict(
    zip((Delivered, PartiallyRejected, Rejected, RetryLater, Blocked), _telemetry.OUTCOMES, strict=True)
)
"""The word for each outcome, in metrics and in the journal."""


class StartError(OSError, ValueError):
    """An exporter can't be started. The message has its id and the reason, whichever type the exporter's error has."""

    def __init__(self, name: str, error: OSError | ValueError) -> None:
        super().__init__(f"exporters::{name}: can't be started: {error}")


class Guarded:
    """Keeps an exporter to the protocol `Exporter`. A mistake of the exporter blocks it, and is logged."""

    def __init__(self, name: str, exporter: Exporter) -> None:
        self._name = name
        self._exporter = exporter
        _begin_counts(name)
        self._logged = ""  # the last mistake that was logged: each attempt repeats it

    def start(self) -> None:
        """Start the exporter.

        Raises:
            OSError: A file can't be opened.
            ValueError: A file's content is wrong, or the exporter raised something else.
        """
        try:
            self._exporter.start()
        except (OSError, ValueError):
            raise
        except BaseException as error:  # not even sys.exit() ends the host program
            _logger.exception("%s: unexpected error of the exporter's start", self._name)
            raise ValueError(f"unexpected {type(error).__name__} of the exporter's start") from error

    def send(self, payload: bytes, count: int, timeout: float, links: "Sequence[Link]" = ()) -> Outcome:
        """Send a batch. An exception or an answer that is not an outcome is `Blocked`: the records stay.

        A `MemoryError` counts as HTTP 500 does: a smaller batch needs less memory, and later there may be more. The
        host program's instrumentation makes no spans of the call, as for the exporters of an OpenTelemetry SDK. If
        spans are made, one with these links is made here.
        """
        if tracing.tracer is None:
            return self._send(payload, count, timeout)
        attributes: dict[str, str | int] = {
            "messaging.system": "statsig_otel",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": self._name,
            "messaging.batch.message_count": count,
        }
        span = CurrentSpan(tracing.tracer, f"send {self._name}", "CLIENT", attributes, links)
        outcome = self._send(payload, count, timeout)
        word = WORDS[type(outcome)]
        if isinstance(outcome, Delivered):
            span.end({"statsig_otel.outcome": word})
        else:
            span.end({"statsig_otel.outcome": word, "error.type": word}, failed=outcome.reason)
        return outcome

    def _send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, value=True))
        try:
            outcome = self._exporter.send(payload, count, timeout)
        except MemoryError:
            return RetryLater(TOO_LITTLE_MEMORY, may_be_data=True)
        except BaseException as error:  # noqa: BLE001 - not even sys.exit() ends a sender
            return self._mistaken(f"unexpected {type(error).__name__}", error)
        finally:
            detach(token)
        if not _is_outcome(outcome, count):
            return self._mistaken(f"the exporter answered with {_described(outcome)} instead of an outcome")
        self._logged = ""
        return _storable(outcome)

    def shutdown(self) -> None:
        """Shut the exporter down. Never raises."""
        try:
            self._exporter.shutdown()
        except BaseException:
            _logger.exception("%s: unexpected error of the exporter's shutdown", self._name)

    def _mistaken(self, mistake: str, error: BaseException | None = None) -> Blocked:
        if mistake != self._logged:
            self._logged = mistake
            _logger.error("%s: %s of the exporter's send", self._name, mistake, exc_info=error)
        return Blocked(mistake)


def _is_outcome(value: object, records: int) -> bool:
    """Whether it is an outcome that fits the number of records."""
    match value:
        case Delivered((*_, last)):
            return last < records
        case PartiallyRejected(count):
            return count <= records
    return isinstance(value, Outcome)


def _storable(outcome: Outcome) -> Outcome:
    """The outcome with a reason that can be stored, and logged as one line: it may quote what a backend sent."""
    if isinstance(outcome, Delivered) or outcome.reason.isprintable():
        return outcome
    return replace(outcome, reason=printable(outcome.reason.encode(errors="replace").decode()))


def _described(value: object) -> str:
    """Only types and numbers, since other content may be a secret."""
    if not isinstance(value, Outcome):
        return described(value)
    given = {field.name: getattr(value, field.name) for field in fields(value)}
    shown = [
        f"{name}={one!r}" if isinstance(one, int | float) else f"{name}: {type_name(one)}"
        for name, one in given.items()
    ]
    return f"{described(value)} with wrong values ({', '.join(shown)})"


def _begin_counts(name: str) -> None:
    """Let the counts of an exporter begin at 0."""
    _telemetry.exporter_sent.add(0, name)
    _telemetry.exporter_send_failed.add(0, name)
    for word in _telemetry.OUTCOMES:
        _telemetry.exporter_attempts.add(0, name, word)


def report_sent(name: str, outcome: Outcome, records: int, seconds: float) -> None:
    """Count and log the records of one `send` of an exporter, by its outcome."""
    match outcome:
        case Delivered(None):
            failed = 0
        case Delivered(tuple() as only):
            failed = records - len(only)
        case PartiallyRejected(count):
            failed = count
        case _:
            failed = records
    _telemetry.exporter_sent.add(records - failed, name)
    _telemetry.exporter_send_failed.add(failed, name)
    _telemetry.exporter_attempts.add(1, name, WORDS[type(outcome)])
    reason = "" if isinstance(outcome, Delivered) else outcome.reason
    word, delivered = WORDS[type(outcome)], records - failed
    journal.add_attempt(name, word, reason, records=records, delivered=delivered, seconds=seconds)
    if _logger.isEnabledFor(logging.DEBUG):
        said = "delivered" if isinstance(outcome, Delivered) else f"{type(outcome).__name__}: {outcome.reason}"
        message = "%s: records delivered: %d of %d, in %.0f ms: %s"
        _logger.debug(message, name, records - failed, records, seconds * 1000, said)
