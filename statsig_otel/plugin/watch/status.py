"""Makes JSON of the state of a service, for `statsig-otel top`.

The command `status` of the control socket answers with it:

    {"words": "Receiving. Last config change 4 minutes ago. otlp_grpc is retrying: 12 records wait.",
     "pid": 4711, "version": "0.1.0", "since": "2026-11-28T14:00:00.000Z", "reasons": {},
     "receivers": {"statsig": {"has_secret": true, "last_verified_at": "2026-11-28T14:04:00.000Z",
                               "last_change_at": null, "clock_difference_seconds": -0.2,
                               "answers": {"accepted": 3}, "ignored": {"statsig::gate_exposure": 17},
                               "missed_changes": null, "last_missed": []}},
     "exporters": {"otlp_grpc": {"destination": "collector:4317", "state": "retrying", "waiting": 12,
                                 "oldest_age_seconds": 240, "attempts": 7, "last_error": "UNAVAILABLE: ...",
                                 "delivered": 120, "delivered_last_minute": 0}},
     "dead_letters": 0, "set_aside": []}

`words` is what `watch/diagnosis.py` says. `reasons` has a sentence for each reason why webhooks are refused. `answers`
and `ignored` are counts since the process began, and so is `delivered`. `missed_changes` is null while no audit log is
read; `last_missed` names the last ones of a day. `set_aside` names files of the queue. An exporter without a queue has
only its destination, its state and what it has delivered. Strings are as they came from outside.
"""

import os
from typing import Any, Final

from statsig_otel import __version__
from statsig_otel.exporters.delivery.facts import ExporterFacts
from statsig_otel.plugin.watch.diagnosis import summary
from statsig_otel.plugin.watch.facts import Facts
from statsig_otel.plugin.watch.journal_json import rfc3339_ms

_SHOWN: Final = 5


def status(facts: Facts) -> dict[str, Any]:
    """The state of a service, as values for JSON; see the module's docstring."""
    return {
        "words": summary(facts),
        "pid": os.getpid(),
        "version": __version__,
        "since": rfc3339_ms(facts.since),
        "reasons": dict(facts.reasons),
        "receivers": {
            one.name: {
                "has_secret": one.has_secret,
                "last_verified_at": rfc3339_ms(one.last_verified) if one.last_verified else None,
                "last_change_at": rfc3339_ms(one.last_change) if one.last_change else None,
                "clock_difference_seconds": one.clock_difference if one.last_verified else None,
                "answers": dict(one.answers),
                "ignored": dict(one.ignored),
                "missed_changes": one.missed,
                "last_missed": [{"name": name, "at": rfc3339_ms(second)} for name, second in one.last_missed[:_SHOWN]],
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
        "oldest_age_seconds": None if one.oldest is None else int(one.oldest),
        "attempts": one.attempts,
        "last_error": one.last_error,
    }
    sent = {"delivered": one.delivered, "delivered_last_minute": one.delivered_last_minute}
    return {"destination": one.destination, "state": one.state, **(queued if one.waiting is not None else {}), **sent}
