"""Collects the state of a service: what the live page, `top` and their sentences are made from."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from statsig_otel._journal import ACCEPTED, Journal, RequestEntry, journal
from statsig_otel.exporters.delivery.facts import ExporterFacts
from statsig_otel.plugin.receiver.intake import Intake


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverFacts:
    """The state of a receiver. Times are in seconds since the epoch, and 0 for never.

    Attributes:
        name: Its id.
        path: The path that webhooks are sent to.
        url: The URL that webhooks are sent to, on this machine or, behind a proxy, in front of it; empty if it is not
            known.
        has_secret: Whether it has a signing secret.
        port: The port that it listens on; 0 if it is not known.
        last_verified: When the last webhook with a valid signature arrived.
        last_accepted: When the last webhook was answered with 200.
        last_change: When the last accepted change arrived.
        clock_difference: The timestamp of the last webhook with a valid signature, less the time when it arrived, in
            seconds.
        answers: The requests, by the reason of their answers.
        ignored: The ignored items, by the name of their event.
        duplicates: The changes that had been accepted before.
        invalid: The changes that no record could be made of.
        missed: The changes of Statsig's audit log that no webhook brought; None if the log is not read.
        last_missed: The names of those of the last day, newest first, with the time of each.
    """

    name: str
    path: str = ""
    url: str = ""
    has_secret: bool = True
    port: int = 0
    last_verified: float = 0.0
    last_accepted: float = 0.0
    last_change: float = 0.0
    clock_difference: float = 0.0
    answers: Mapping[str, int] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    invalid: int = 0
    missed: int | None = None
    last_missed: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The state of a service at one moment.

    Attributes:
        now: The time, in seconds since the epoch.
        since: When it started.
        reasons: Why it refuses webhooks: a sentence for each reason.
        receivers: Its receivers.
        exporters: Its exporters.
        dead_letters: The dead letters that are kept.
        set_aside: The names of the queue's files that were set aside and are kept.
        requests: Of each receiver, reason and port the last requests, newest first.
    """

    now: float
    since: float = 0.0
    reasons: Mapping[str, str] = field(default_factory=dict)
    receivers: Sequence[ReceiverFacts] = ()
    exporters: Sequence[ExporterFacts] = ()
    dead_letters: int = 0
    set_aside: Sequence[str] = ()
    requests: Sequence[RequestEntry] = ()


def facts_of(
    *,
    reasons: Mapping[str, str],
    exporters: Sequence[ExporterFacts],
    receivers: Sequence[ReceiverFacts],
    dead_letters: int,
    set_aside: Sequence[str],
    since: float,
    of: Journal = journal,
) -> Facts:
    """The state of a service now.

    Args:
        reasons: Why webhooks are refused now: a sentence for each reason.
        exporters: The state of each exporter.
        receivers: The state of each receiver.
        dead_letters: The number of dead letters that are kept.
        set_aside: The names of the queue's files that were set aside and are kept.
        since: When the service started, in seconds since the epoch.
        of: The journal.
    """
    requests = of.last_requests()
    accepted = {one.receiver: one.last for one in requests if one.reason == ACCEPTED}
    return Facts(
        now=time.time(),
        since=since,
        reasons=reasons,
        receivers=[replace(one, last_accepted=accepted.get(one.name, 0.0)) for one in receivers],
        exporters=exporters,
        dead_letters=dead_letters,
        set_aside=set_aside,
        requests=requests,
    )


def receiver_facts(name: str, intake: Intake, *, path: str, url: str = "", port: int = 0) -> ReceiverFacts:
    """The state of a receiver now, without what only the journal knows.

    Args:
        name: Its id.
        intake: What answers for it.
        path: The path that webhooks are sent to.
        url: The URL that webhooks are sent to; empty if it is not known.
        port: The port that it listens on; 0 if it is not known.
    """
    counts = intake.counts
    with counts.lock:
        counts.move_back()
        return ReceiverFacts(
            name=name,
            path=path,
            url=url,
            port=port,
            has_secret=intake.verifier.has_secret,
            last_verified=counts.last_verified_ns / 1e9,
            last_change=counts.last_change_ns / 1e9,
            clock_difference=counts.ahead_ms / 1000,
            answers={reason: number for (_, reason), number in counts.answers.items() if number},
            ignored={event: number for event, number in counts.ignored.items() if number},
            duplicates=counts.duplicates,
            invalid=counts.invalid,
            missed=counts.missed,
            last_missed=counts.last_missed,
        )
