"""Generates sample bodies for trying a receiver: what Statsig sends, with invented names and the current time.

Each config change contains the current time and a random string. So a sample sent twice is two changes, never a
duplicate. To send a duplicate, write a body to a file and send the file twice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Final

from statsig_otel.plugin.webhook.body import CONFIG_CHANGE

Event = Mapping[str, object]

_MINUTE_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Actor:
    """The author of a change: a role, not a person."""

    name: str

    @property
    def user(self) -> dict[str, str]:
        """Statsig's `user` object."""
        slug = self.name.lower().replace(" ", ".")
        return {"name": self.name, "email": f"{slug}@example.com", "userID": f"user-{slug}"}


PLATFORM_ENGINEER: Final = Actor("Platform Engineer")
RELEASE_MANAGER: Final = Actor("Release Manager")
GROWTH_ANALYST: Final = Actor("Growth Analyst")
SEARCH_ENGINEER: Final = Actor("Search Engineer")


def config_change(
    at_ms: int,
    entity_type: str,
    name: str,
    action: str,
    description: str,
    *,
    environments: Sequence[str] = (),
    by: Actor | None = None,
) -> Event:
    """One `statsig::config_change`, in the shape that Statsig sends today.

    `at_ms` is in milliseconds since the epoch. A creation has no environments.
    """
    user = {} if by is None else {"user": by.user, "userID": by.user["userID"]}
    return {
        **user,
        "timestamp": at_ms,
        "eventName": CONFIG_CHANGE,
        "metadata": {
            "type": entity_type,
            "name": name,
            "description": description,
            "environments": ",".join(environments),
            "projectName": "Example Shop",
            "projectID": "example-shop",
            "tags": [],
            "targetApps": [],
            "action": action,
        },
    }


def exposure(at_ms: int, kind: str, name: str, *, user_id: str) -> Event:
    """One exposure event, which a receiver counts and ignores.

    `at_ms` is in milliseconds since the epoch. The kind is `gate`, `config`, `experiment`, `layer` or `holdout`.
    """
    key = "gate" if kind == "gate" else "config"
    return {
        "eventName": f"statsig::{kind}_exposure",
        "user": {"userID": user_id},
        "userID": user_id,
        "timestamp": at_ms,
        "value": "",
        "metadata": {key: name, "ruleID": "default", "reason": "Network"},
        "statsigMetadata": {"sdkType": "py-server", "deviceType": None},
        "timeUUID": token_hex(16),
        "unitID": "userID",
    }


def enveloped(events: Sequence[Event]) -> bytes:
    """The body of a webhook with config changes: `{"data": [...]}`."""
    return _json({"data": list(events)})


def bare(events: Sequence[Event]) -> bytes:
    """The body of a webhook with exposures and custom events: `[...]`."""
    return _json(list(events))


def url_verification(code: str) -> bytes:
    """The body that Statsig sends, unsigned, when a webhook is saved."""
    return _json({"data": {"event": "url_verification", "verification_code": code}})


@dataclass(frozen=True, slots=True)
class Sample:
    """A body with a description of one line. `build` makes it at a time in milliseconds since the epoch."""

    about: str
    build: Callable[[int], bytes]


def _gate(now_ms: int, action: str = "updated") -> Event:
    text = f"{action.capitalize()} Gate\n    - Updated rule Everyone pass percentage from 10 to 50"
    return config_change(
        now_ms, "Gate", "sample_gate", action, _unique(text), environments=["production"], by=RELEASE_MANAGER
    )


def _experiment(now_ms: int) -> Event:
    text = _unique("Started Experiment\n    - Groups: control, test")
    environments = ["staging", "production"]
    return config_change(
        now_ms, "Experiment", "sample_experiment", "updated", text, environments=environments, by=GROWTH_ANALYST
    )


def _dynamic_config(now_ms: int) -> Event:
    text = _unique("Created Dynamic Config")
    return config_change(now_ms, "DynamicConfig", "sample_config", "created", text, by=SEARCH_ENGINEER)


def _exposures(now_ms: int) -> list[Event]:
    kinds = ("gate", "config", "experiment", "gate")
    return [exposure(now_ms - i, kind, f"sample_{kind}", user_id=f"visitor-{i}") for i, kind in enumerate(kinds)]


def _batch(now_ms: int) -> bytes:
    minutes_ago = [now_ms - minutes * _MINUTE_MS for minutes in (3, 2, 1)]
    return enveloped([_gate(minutes_ago[0]), _experiment(minutes_ago[1]), _dynamic_config(minutes_ago[2])])


def _mixed(now_ms: int) -> bytes:
    first, *others = _exposures(now_ms)
    return bare([first, _gate(now_ms), *others, _experiment(now_ms)])


def _older(now_ms: int) -> bytes:
    """A webhook as Statsig sent them in 2022: time as a string, lower-case type, no action, one environment, an id."""
    metadata = {
        "type": "gate",
        "name": "sample_gate",
        "description": _unique("- Updated Rule Everyone rollout from 10.00% to 50.00%"),
        "environment": "production",
    }
    user = {"name": RELEASE_MANAGER.name, "email": RELEASE_MANAGER.user["email"]}
    event = {"eventName": CONFIG_CHANGE, "user": user, "timestamp": str(now_ms), "metadata": metadata}
    return enveloped([{**event, "timeUUID": token_hex(16)}])


SAMPLES: Final[Mapping[str, Sample]] = {
    "gate": Sample("one gate, updated in production", lambda now_ms: enveloped([_gate(now_ms)])),
    "experiment": Sample("one experiment, started", lambda now_ms: enveloped([_experiment(now_ms)])),
    "dynamic_config": Sample("one dynamic config, created", lambda now_ms: enveloped([_dynamic_config(now_ms)])),
    "archived": Sample("one gate, archived", lambda now_ms: enveloped([_gate(now_ms, "archived")])),
    "batch": Sample("three changes in one delivery", _batch),
    "exposures": Sample("four exposures and no change: all are ignored", lambda now_ms: bare(_exposures(now_ms))),
    "mixed": Sample("two changes among four exposures, as a bare array", _mixed),
    "older": Sample("one gate, in the shape of 2022", _older),
}
"""The samples by name."""


def _unique(text: str) -> str:
    return f"{text}\n    - Sample {token_hex(4)}"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
