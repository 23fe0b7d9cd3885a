"""Says how a service is, in numbers and in plain words, for the live page and `statsig-otel top`.

The command `status` of the control socket answers with it:

    {"words": "Receiving. Last config change 4 minutes ago. otlp_grpc is retrying: 12 records wait.",
     "pid": 4711, "version": "0.1.0", "since": "2026-11-28T14:00:00.000Z", "reasons": {},
     "receivers": {"statsig": {"has_secret": true, "last_verified_at": "2026-11-28T14:04:00.000Z",
                               "last_change_at": null, "clock_difference_seconds": -0.2,
                               "answers": {"accepted": 3}, "ignored": {"statsig::gate_exposure": 17}}},
     "exporters": {"otlp_grpc": {"state": "retrying", "waiting": 12, "oldest_age_seconds": 240.5, "attempts": 7,
                                 "last_error": "UNAVAILABLE: ...", "delivered": 120, "delivered_last_minute": 0}},
     "dead_letters": 0}

`reasons` has a sentence for each reason why webhooks are refused. `answers` and `ignored` are counts since the process
began, and so is `delivered`. An exporter without a queue has only its state and what it has delivered. Strings are as
they came from outside.
"""

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from statsig_otel import __version__
from statsig_otel._journal import Journal, RequestEntry, journal
from statsig_otel._telemetry import ReceiverCounts, exporter_sent
from statsig_otel.exporters.wording import ago, counted
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.watch.facts import rfc3339
from statsig_otel.plugin.watch.health import Condition
from statsig_otel.plugin.webhook.body import CONFIG_CHANGE

_MINUTE: Final = 60.0
_FIRST_TO_CHECK: Final = ("not_found", "tls", "tls_handshake")
"""Reasons of refusals by the server that are worth a word until the first webhook with a valid signature arrives."""


def status(
    *,
    condition: Condition,
    exporters: Mapping[str, Mapping[str, Any]],
    receivers: Mapping[str, Intake],
    dead_letters: int,
    since: float,
    of: Journal = journal,
) -> dict[str, Any]:
    """How a service is, as values for JSON; see the module's docstring.

    Args:
        condition: Why webhooks are refused now.
        exporters: What is known of each exporter, by id.
        receivers: What answers for each receiver, by id.
        dead_letters: The number of dead letters that are held.
        since: When the service started, in seconds since the epoch.
        of: The journal.
    """
    now = time.time()
    sent = {name: int(number) for (name, *_), number in exporter_sent.read()}
    recent: dict[str, int] = {}
    for attempt in of.attempts():
        if attempt.at > now - _MINUTE:
            recent[attempt.exporter] = recent.get(attempt.exporter, 0) + attempt.delivered
    shown = {
        name: {**one, "delivered": sent.get(name, 0), "delivered_last_minute": recent.get(name, 0)}
        for name, one in exporters.items()
    }
    words = [
        _receiving(condition.reasons, receivers, of.last_requests(), since=since, now=now),
        *_exporting(shown),
        *([f"{counted(dead_letters, 'dead letter')} held."] if dead_letters else []),
    ]
    return {
        "words": " ".join(words),
        "pid": os.getpid(),
        "version": __version__,
        "since": rfc3339(since),
        "reasons": dict(condition.reasons),
        "receivers": {name: _receiver(intake) for name, intake in receivers.items()},
        "exporters": shown,
        "dead_letters": dead_letters,
    }


def _receiver(intake: Intake) -> dict[str, Any]:
    counts = intake.counts
    with counts.lock:
        return {
            "has_secret": intake.verifier.has_secret,
            "last_verified_at": rfc3339(counts.last_verified_ns / 1e9) if counts.last_verified_ns else None,
            "last_change_at": rfc3339(counts.last_change_ns / 1e9) if counts.last_change_ns else None,
            "clock_difference_seconds": counts.ahead_ms / 1000 if counts.last_verified_ns else None,
            "answers": {reason: number for (_, reason), number in counts.answers.items() if number},
            "ignored": {name: number for name, number in counts.ignored.items() if number},
        }


def _receiving(
    reasons: Mapping[str, str],
    receivers: Mapping[str, Intake],
    requests: Iterable[RequestEntry],
    *,
    since: float,
    now: float,
) -> str:
    """Whether webhooks are taken, and what came last."""
    if reasons:
        return f"Not receiving: {'; '.join(reasons.values())}."
    counts: list[ReceiverCounts] = [intake.counts for intake in receivers.values()]
    verified = max((one.last_verified_ns for one in counts), default=0) / 1e9
    changed = max((one.last_change_ns for one in counts), default=0) / 1e9
    refused = _last_refusal(requests, after=max(verified, since), is_first=not verified)
    without = [name for name, intake in receivers.items() if not intake.verifier.has_secret]
    if without and not verified:
        said = f"{', '.join(without)} has no signing secret yet: it only answers Statsig's URL verification."
    elif not verified:
        said = f"Receiving. No webhook with a valid signature since the start, {ago(now - since)}."
    elif not changed:
        what = _instead(counts)
        said = f"Receiving. Last webhook {ago(now - verified)}, but no new config change since the start{what}."
    else:
        said = f"Receiving. Last config change {ago(now - changed)}."
    if refused is not None:
        detail = f": {refused.detail}" if refused.detail else ""
        said += f" A request was refused {ago(now - refused.at)} ({refused.reason}{detail})."
    return said


def _instead(counts: Iterable[ReceiverCounts]) -> str:
    """What webhooks have contained instead of changes that are new."""
    found: Counter[str] = Counter()
    for one in counts:
        with one.lock:
            filtered = one.ignored[CONFIG_CHANGE]
            found["other event"] += sum(one.ignored.values()) - filtered
            found["filtered change"] += filtered
            found["duplicate"] += one.duplicates
            found["invalid item"] += one.invalid
    parts = [counted(number, noun) for noun, number in found.items() if number]
    return f": {', '.join(parts)}" if parts else ""


def _last_refusal(requests: Iterable[RequestEntry], *, after: float, is_first: bool) -> RequestEntry | None:
    """The last refusal after a time. Those of the server count as long as nothing valid has arrived."""
    for entry in requests:
        if entry.at < after:
            return None
        is_ours = entry.receiver if not is_first else entry.receiver or entry.reason in _FIRST_TO_CHECK
        if entry.status != 200 and is_ours:  # noqa: PLR2004 - HTTP's OK
            return entry
    return None


def _exporting(exporters: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """The exporters that hold records up."""
    for name, one in exporters.items():
        if one["state"] in ("idle", "sending"):
            continue
        waiting = one.get("waiting")
        what = "" if waiting is None else f": {counted(waiting, 'record')} {'waits' if waiting == 1 else 'wait'}"
        yield f"{name} is {one['state']}{what}."
