"""Collects what is known of a service, and tells it as JSON, for `statsig-otel top`.

The command `status` of the control socket answers with it:

    {"words": "Receiving. Last config change 4 minutes ago. otlp_grpc is retrying: 12 records wait.",
     "pid": 4711, "version": "0.1.0", "since": "2026-11-28T14:00:00.000Z", "reasons": {},
     "receivers": {"statsig": {"has_secret": true, "last_verified_at": "2026-11-28T14:04:00.000Z",
                               "last_change_at": null, "clock_difference_seconds": -0.2,
                               "answers": {"accepted": 3}, "ignored": {"statsig::gate_exposure": 17},
                               "missed_changes": null, "last_missed": []}},
     "exporters": {"otlp_grpc": {"destination": "collector:4317", "state": "retrying", "waiting": 12,
                                 "oldest_age_seconds": 240.5, "attempts": 7, "last_error": "UNAVAILABLE: ...",
                                 "delivered": 120, "delivered_last_minute": 0}},
     "dead_letters": 0, "set_aside": []}

`words` is what `watch/diagnosis.py` says. `reasons` has a sentence for each reason why webhooks are refused. `answers`
and `ignored` are counts since the process began, and so is `delivered`. `missed_changes` is null while no audit log is
read; `last_missed` names the last ones of a day. `set_aside` names files of the queue. An exporter without a queue has
only its destination, its state and what it has delivered. Strings are as they came from outside.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from statsig_otel import __version__
from statsig_otel._journal import ACCEPTED, Journal, journal
from statsig_otel._telemetry import FAILED_STATES, exporter_sent
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.watch.diagnosis import ExporterFacts, Facts, ReceiverFacts, sentence
from statsig_otel.plugin.watch.health import Condition
from statsig_otel.plugin.watch.journal_json import rfc3339

_SHOWN: Final = 5


def facts_of(
    *,
    condition: Condition,
    exporters: Mapping[str, Mapping[str, Any]],
    receivers: Mapping[str, Intake],
    paths: Mapping[str, str],
    urls: Mapping[str, str],
    ports: Mapping[str, int],
    dead_letters: int,
    set_aside: Sequence[str],
    since: float,
    of: Journal = journal,
) -> Facts:
    """What is known of a service.

    Args:
        condition: Why webhooks are refused now.
        exporters: What is known of each exporter, by id.
        receivers: What answers for each receiver, by id.
        paths: The path of each receiver, by id.
        urls: The URL of each receiver, by id, as far as they are known.
        ports: The port of each receiver that listens, by id.
        dead_letters: The number of dead letters that are kept.
        set_aside: The names of the queue's files that were set aside and are kept.
        since: When the service started, in seconds since the epoch.
        of: The journal.
    """
    now = time.time()
    sent = {name: int(number) for (name, *_), number in exporter_sent.read()}
    requests = of.last_requests()
    accepted = {one.receiver: one.last for one in requests if one.reason == ACCEPTED}
    recent = of.delivered_last_minute()
    errors: dict[str, str] = {}  # the last one of each exporter
    for attempt in of.attempts():
        if attempt.reason:
            errors.setdefault(attempt.exporter, attempt.reason)
    return Facts(
        now=now,
        since=since,
        reasons=condition.reasons,
        receivers=[
            replace(
                _receiver(name, intake),
                path=paths[name],
                url=urls.get(name, ""),
                port=ports.get(name, 0),
                last_accepted=accepted.get(name, 0.0),
            )
            for name, intake in receivers.items()
        ],
        exporters=[
            ExporterFacts(
                name=name,
                destination=one.get("destination", ""),
                state=one["state"],
                waiting=one.get("waiting"),
                oldest=one.get("oldest_age_seconds"),
                attempts=one.get("attempts", 0),
                last_error=one["last_error"] if "last_error" in one else _failing(one["state"], errors.get(name, "")),
                hint=one.get("hint", ""),
                delivered=sent.get(name, 0),
                delivered_last_minute=recent.get(name, 0),
            )
            for name, one in exporters.items()
        ],
        dead_letters=dead_letters,
        set_aside=set_aside,
        requests=requests,
    )


def status(facts: Facts) -> dict[str, Any]:
    """How a service is, as values for JSON; see the module's docstring."""
    return {
        "words": sentence(facts),
        "pid": os.getpid(),
        "version": __version__,
        "since": rfc3339(facts.since),
        "reasons": dict(facts.reasons),
        "receivers": {
            one.name: {
                "has_secret": one.has_secret,
                "last_verified_at": rfc3339(one.last_verified) if one.last_verified else None,
                "last_change_at": rfc3339(one.last_change) if one.last_change else None,
                "clock_difference_seconds": one.clock_difference if one.last_verified else None,
                "answers": dict(one.answers),
                "ignored": dict(one.ignored),
                "missed_changes": one.missed,
                "last_missed": [{"name": name, "at": rfc3339(second)} for name, second in one.last_missed[:_SHOWN]],
            }
            for one in facts.receivers
        },
        "exporters": {one.name: _exporter(one) for one in facts.exporters},
        "dead_letters": facts.dead_letters,
        "set_aside": list(facts.set_aside),
    }


def _exporter(one: ExporterFacts) -> dict[str, Any]:
    queued = {
        "waiting": one.waiting,
        "oldest_age_seconds": one.oldest,
        "attempts": one.attempts,
        "last_error": one.last_error,
    }
    sent = {"delivered": one.delivered, "delivered_last_minute": one.delivered_last_minute}
    return {"destination": one.destination, "state": one.state, **(queued if one.waiting is not None else {}), **sent}


def _failing(state: str, error: str) -> str:
    """What the backend of an exporter without a queue said last, while it is not well."""
    return error if state in FAILED_STATES else ""


def _receiver(name: str, intake: Intake) -> ReceiverFacts:
    counts = intake.counts
    with counts.lock:
        counts.move_back()
        return ReceiverFacts(
            name=name,
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
