"""Reads pages of Statsig's audit log into entries. Pure functions, without I/O.

Statsig publishes the format (docs.statsig.com, console-api/audit-logs). It is read leniently: entries have an id and a
time, everything else may be missing or of another type, and unknown members are ignored.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from typing import Final, Literal

from statsig_otel.exporters.arrival import comparable
from statsig_otel.plugin.record.change_event import valid

Kind = Literal["change", "webhook", "other", "unknown"]
"""What an entry is about: a change for which Statsig sends a webhook; the webhooks themselves; something else; or that
is not known, since Statsig adds types of entries all the time."""

ABOUT_WEBHOOK: Final[Mapping[str, str]] = {
    "generate_integration_webhook_secret": "a webhook's signing secret was generated anew",
    "integration_set_enabled": "an integration was switched on or off",
    "integration_update": "an integration was changed",
    "integration_update_disabled_events": "the events that an integration sends were chosen anew",
    "integration_update_outgoing_config": "where an integration sends was changed",
    "integration_update_rate_limits": "an integration's rate limits were changed",
    "update_precommit_hook": "a pre-commit webhook was changed",
}
"""The types of entries that can explain why changes are missing, in words."""

_CHANGE: Final = re.compile(
    r"(gate|config|dynamic_config|segment|experiment|layer|holdout|holdout_layer|autotune|param_store)_\w+"
    r"|ID_list_update|(un)?archive_experiment|resalt_experiment|schedule_experiment_start|modify_overrides"
    r"|hypothesis_edit|key_experiment_metrics_edit|set_stop_new_assignment_toggle|update_gate_\w+"
)
"""The types of entries about gates, configs, segments, experiments, layers and the like."""

_OTHER: Final = re.compile(
    r"\w*_reviews?_\w+|\w+_review|\w*require_reviews|\w*_template_\w+"
    r"|(user|scim|sso|team|role|invite|login|billing|dashboard|metric|metric_source|alert|api_key|company|project"
    r"|tag|target_app|comment|discussion)_\w+"
)
"""The types of entries that no webhook is sent for, as far as is known: reviews, templates, logins, metrics, ..."""

_TYPES: Final[Mapping[str, str | None]] = {
    "gate": "Gate",
    "dynamic_config": "Dynamic Config",
    "segment": "Segment",
    "experiment": "Experiment",
    "layer": "Layer",
    "holdout": "Holdout",
    "autotune": "Autotune",
    "config": None,  # of gates, dynamic configs and segments alike
    "param_store": None,  # it is not known how a webhook spells it
}
"""What the types of entries begin with, and the types of webhooks that mean the same without a doubt."""

_ACTIONS: Final[Mapping[str, str]] = {"create": "created", "update": "updated", "delete": "deleted"}
"""What the types of entries end with, and the actions of webhooks, likewise."""

_TYPE_AND_ACTION: Final = re.compile(rf"({'|'.join(_TYPES)})_(?!layer_)(\w+)")

_MOST_VALUES: Final = 32 << 10
"""The most bytes of the old values of an entry, and of the new ones, in JSON. Larger ones are left out."""

_MOST_DIGITS: Final = 1000

_compact: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)

_DATE: Final = re.compile(r"(?:[A-Z][a-z]{2},? )?([A-Z][a-z]{2}) ([0-9]{1,2}),? ([0-9]{4})")
"""JavaScript's `toDateString` (ECMA-262, section 21.4.4.35): `Mon Sep 26 2022`."""

_TIME: Final = re.compile(
    r"([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]) GMT(?:([+-])([0-9]{2}):?([0-9]{2}))?(?: \(.*\))?"
)
"""JavaScript's `toTimeString` (section 21.4.4.42): `23:46:14 GMT+0000 (Coordinated Universal Time)`. A server has
answered in Pacific Daylight Time, too, and the date is in the same time zone."""

_MONTHS: Final = {
    name: number
    for number, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)  # noqa: SIM905 - shorter
}


class MalformedPageError(ValueError):
    """A page can't be read: it is not JSON, was cut short, or has no entries where they belong."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One entry of the audit log.

    Attributes:
        id: Its id, which is not sortable.
        second: When it happened, in seconds since the epoch: the log has no fractions.
        name: The name of what was changed, or of the person who logged in; empty if there is none.
        action_type: Its type, such as `gate_create`; empty if it is not a string.
        text: What happened, in words.
        user_id: The id of the user who did it.
        user_name: That user's name.
        user_email: That user's email address.
        old: The values of before, as a JSON object by field; empty if there are none.
        new: Those of after, likewise.
        size: The bytes of `old` and `new`, if they are left out since one of them is too large; else 0.
    """

    id: str
    second: int
    name: str
    action_type: str
    text: str
    user_id: str | None
    user_name: str | None
    user_email: str | None
    old: str = ""
    new: str = ""
    size: int = 0

    @property
    def kind(self) -> Kind:
        """What it is about."""
        return kind_of_entry(self.action_type)

    @property
    def uid(self) -> str:
        """The `log.record.uid` of a record that is made of it, since no webhook brought its change.

        The first half of SHA-256 over `statsig-otel/1/audit_log`, a line feed and the id. So it is the same each time
        and everywhere, and no change that a webhook brings has it. A change of this definition is a major version.
        """
        return _digest("statsig-otel/1/audit_log", self.id)

    @property
    def details_uid(self) -> str:
        """The `log.record.uid` of the record with its old and new values: likewise, over `.../audit_log/details`."""
        return _digest("statsig-otel/1/audit_log/details", self.id)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the log.

    Attributes:
        entries: The entries, in the page's order.
        unreadable: Why each of the others can't be compared with webhooks.
    """

    entries: tuple[AuditEntry, ...]
    unreadable: tuple[str, ...]


def kind_of_entry(action_type: str) -> Kind:
    """What the entries of a type are about."""
    if action_type in ABOUT_WEBHOOK:
        return "webhook"
    if _OTHER.fullmatch(action_type):
        return "other"
    return "change" if _CHANGE.fullmatch(action_type) else "unknown"


def type_and_action(action_type: str) -> tuple[str | None, str | None]:
    """What a webhook would say of a change, as far as the type of its entry says it without a doubt.

    Args:
        action_type: The type of the entry.

    Returns:
        The type of what was changed, and the action.
    """
    if action_type == "archive_experiment":
        return "Experiment", "archived"
    found = _TYPE_AND_ACTION.fullmatch(action_type.removeprefix("update_"))
    return (_TYPES[found[1]], _ACTIONS.get(found[2])) if found else (None, None)


def parse_page(body: bytes) -> Page:
    """Read the body of an answer.

    Raises:
        MalformedPageError: It is not a page. The message does not show its content.
    """
    try:
        document = json.loads(body, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise MalformedPageError("the answer is not JSON, or was cut short") from error
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, list):
        raise MalformedPageError("the answer has no array `data`")
    entries: list[AuditEntry] = []
    unreadable: list[str] = []
    for item in data:
        found = _entry(item)
        if isinstance(found, str):
            unreadable.append(found)
        else:
            entries.append(found)
    return Page(tuple(entries), tuple(unreadable))


def _entry(item: object) -> AuditEntry | str:
    """An entry, or why it can't be read."""
    if not isinstance(item, dict):
        return "an entry is not an object"
    identity = _string(item, "id")
    if identity is None:
        return "an entry has no id"
    second = _second(_string(item, "date") or "", _string(item, "time") or "")
    if second is None:
        return f"the entry {identity} has no date and time that can be read"
    old, new, size = _values(item.get("changes"))
    entry = AuditEntry(
        id=identity,
        second=second,
        name=comparable(_string(item, "name") or ""),
        action_type=_string(item, "actionType") or "",
        text=comparable(_string(item, "changeLog") or ""),
        user_id=comparable(_string(item, "updatedByUserID") or "") or None,
        user_name=comparable(_string(item, "updatedBy") or "") or None,
        user_email=comparable(_string(item, "modifierEmail") or "") or None,
        old=old,
        new=new,
        size=size,
    )
    if not entry.name and entry.kind in ("change", "unknown"):
        return f"the entry {identity} does not name what was changed"
    return entry


def _string(item: Mapping[str, object], name: str) -> str | None:
    value = item.get(name)
    return valid(value) if isinstance(value, str) and value else None


def _integer(digits: str) -> float:
    """A number. One of thousands of digits, which Python would take long to read, is infinite."""
    return int(digits) if len(digits) <= _MOST_DIGITS else math.inf


def _values(changes: object) -> tuple[str, str, int]:
    """The old and the new values of an entry's fields, and their bytes if these are too many to keep."""
    fields = changes if isinstance(changes, dict) else {}
    pairs = {
        name: value if isinstance(value, dict) and value.keys() <= {"old", "new"} else {"new": value}
        for name, value in fields.items()
    }
    texts: list[str] = []
    for side in ("old", "new"):
        values = {name: pair[side] for name, pair in pairs.items() if side in pair}
        try:
            texts.append(valid(_compact.encode(values)) if values else "")
        except (ValueError, RecursionError):  # NaN is not JSON
            return "", "", 0
    sizes = [len(text.encode()) for text in texts]
    return ("", "", sum(sizes)) if max(sizes) > _MOST_VALUES else (texts[0], texts[1], 0)


def _digest(rule: str, identity: str) -> str:
    return sha256(f"{rule}\n{identity}".encode()).hexdigest()[:32]


def _second(date: str, time: str) -> int | None:
    """Seconds since the epoch of a date and a time as JavaScript writes them; None if they are something else."""
    day, clock = _DATE.fullmatch(date.strip()), _TIME.fullmatch(time.strip())
    if day is None or clock is None or day[1] not in _MONTHS:
        return None
    hour, minute, second = (int(clock[group]) for group in (1, 2, 3))
    offset = timedelta(hours=int(clock[5] or 0), minutes=int(clock[6] or 0))
    try:
        zone = timezone(-offset if clock[4] == "-" else offset) if clock[4] else UTC
        moment = datetime(int(day[3]), _MONTHS[day[1]], int(day[2]), hour, minute, second, tzinfo=zone)
        return int(moment.timestamp())
    except (ValueError, OverflowError):
        return None
