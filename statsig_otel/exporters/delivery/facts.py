"""The state of an exporter at one moment, for health checks, `queue`, the live page and `top`."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from statsig_otel._journal import Journal, journal
from statsig_otel._telemetry import FAILED_STATES, StateName, exporter_sent
from statsig_otel.exporters.delivery.sender import QueueSender


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterFacts:
    """The state of an exporter at one moment.

    Attributes:
        name: Its id.
        destination: Where it sends to, such as a host; empty if that is not known.
        state: What it does now.
        waiting: The records that wait for it; None if it has no queue, and a webhook waits for it.
        oldest: Seconds since the webhook of the oldest of them arrived; None if none waits.
        attempts: The failed attempts to send the head.
        last_error: Its last failure, such as what the backend said; empty while all is well.
        hint: What somebody has to do about it; empty if the exporter does not say.
        delivered: The records that its backend has taken.
        delivered_last_minute: Those of the last minute.
    """

    name: str
    destination: str = ""
    state: StateName | Literal["not configured"] = "idle"
    waiting: int | None = 0
    oldest: float | None = None
    attempts: int = 0
    last_error: str = ""
    hint: str = ""
    delivered: int = 0
    delivered_last_minute: int = 0


def sender_facts(sender: QueueSender, *, waiting: int, oldest: float | None) -> ExporterFacts:
    """The state of a queued exporter, by its sender.

    Args:
        sender: The sender.
        waiting: The records that wait for it.
        oldest: Seconds since the first of them arrived; None if none waits.
    """
    return ExporterFacts(
        name=sender.name,
        state=sender.state,
        waiting=waiting,
        oldest=oldest,
        attempts=sender.attempts,
        last_error=sender.last_error,
        hint=sender.hint,
    )


def with_history(exporters: Iterable[ExporterFacts], of: Journal = journal) -> list[ExporterFacts]:
    """Add what each exporter has delivered, and the last error of those without a queue, which no sender keeps.

    Args:
        exporters: The exporters.
        of: The journal.
    """
    sent = {name: int(number) for (name, *_), number in exporter_sent.read()}
    recent = of.delivered_last_minute()
    errors: dict[str, str] = {}  # the last one of each exporter
    for attempt in of.attempts():
        if attempt.reason:
            errors.setdefault(attempt.exporter, attempt.reason)
    return [
        replace(
            one,
            last_error=errors.get(one.name, "")
            if one.waiting is None and one.state in FAILED_STATES
            else one.last_error,
            delivered=sent.get(one.name, 0),
            delivered_last_minute=recent.get(one.name, 0),
        )
        for one in exporters
    ]
