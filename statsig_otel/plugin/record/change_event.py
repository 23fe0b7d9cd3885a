"""Reads a Statsig config change into a ChangeEvent, which is plain data.

A `statsig::config_change` is read leniently: types and actions are open sets, and Statsig has added and dropped fields
over the years. Only a name, a type and a time are required. Unknown members are ignored here.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Final, TypeAlias

from statsig_otel._arguments import check_type
from statsig_otel.plugin.record.arrays import converted, first, split

_MAX_TIMESTAMP: Final = 253_402_300_799_999
"""The last millisecond of the year 9999, the last one that RFC 3339 can express."""

_SECONDS: Final = range(10**9, 10**10)
"""Ten digits: seconds of the years 2001 to 2286. As milliseconds they would be in 1970, when there was no Statsig."""

_DIGITS: Final = re.compile(r"[0-9]{1,20}")
_SPACE: Final = re.compile(r"\s")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class InvalidItemError(Exception):
    """No record can be made of a config change. The message says what is wrong, and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEvent:
    """One config change. Its strings are valid Unicode and its time is in range. What Statsig did not send is empty.

    Of an array with more than 1,000 elements the first 1,000 are here, and the record has their number.

    Attributes:
        happened_at: When it happened, in milliseconds since the epoch.
        entity_type: What was changed, as Statsig sent it, such as `Gate` or `Dynamic Config`.
        name: The name of the gate, the experiment, ...
        action: What was done to it, as Statsig sent it, such as `created`.
        description: Statsig's free text, often with several lines.
        environments: The environments that the change names.
        project_id: Statsig's id of the project.
        project_name: The project's name.
        tags: The entity's tags; elements that are not strings as compact JSON.
        target_apps: The entity's target apps, likewise.
        user_id: The id of the user who made the change.
        user_name: That user's name.
        user_email: That user's email address.
        left_out: The fields whose value had an unusable type.
        in_seconds: Whether the time was sent in seconds (ten digits).

    Raises:
        TypeError: A field has another type.
        ValueError: The time is before 1970 or after the year 9999.

    Example:
        >>> from statsig_otel.plugin import ChangeEvent
        >>> event = {"timestamp": 1739400185198, "metadata": {"type": "Gate", "name": "layout_v2", "action": "updated"}}
        >>> change = ChangeEvent.from_item(event)
        >>> (change.title, change.type)
        ('layout_v2 updated', 'gate_updated')
    """

    happened_at: int
    entity_type: str
    name: str
    action: str | None = None
    description: str | None = None
    environments: tuple[str, ...] = ()
    project_id: str | None = None
    project_name: str | None = None
    tags: tuple[str, ...] = ()
    target_apps: tuple[str, ...] = ()
    user_id: str | None = None
    user_name: str | None = None
    user_email: str | None = None
    left_out: tuple[str, ...] = ()
    in_seconds: bool = False

    def __post_init__(self) -> None:
        for name, types in _TYPES:
            if not isinstance(value := getattr(self, name), types):
                check_type(name, value, types)
        if not 0 <= self.happened_at <= _MAX_TIMESTAMP:
            raise ValueError("happened_at must be milliseconds between 1970 and the year 9999")

    @classmethod
    def from_item(cls, item: Mapping[str, object]) -> "ChangeEvent":
        """Map one decoded `statsig::config_change`.

        Raises:
            InvalidItemError: A required field is missing or unusable.
            TypeError: The item is not a mapping.
        """
        check_type("item", item, Mapping, "a mapping", hint="decode its JSON first")
        given, user = item.get("metadata"), item.get("user")
        if not isinstance(given, dict):
            raise InvalidItemError(f"metadata: must be an object, is {_kind(given)}")
        left_out: list[str] = []
        if user not in (None, "") and not isinstance(user, dict):
            left_out.append("user")
        metadata = _Fields("metadata.", given, left_out)
        who = _Fields("user.", user if isinstance(user, dict) else {}, left_out)
        timestamp = _read_timestamp(item.get("timestamp"))
        in_seconds = timestamp in _SECONDS
        return cls(
            happened_at=timestamp * 1000 if in_seconds else timestamp,
            entity_type=_read_required(given, "type"),
            name=_read_required(given, "name"),
            action=metadata.text("action"),
            description=metadata.text("description"),
            environments=metadata.texts_or_list("environments") or metadata.texts_or_list("environment"),
            project_id=metadata.text("projectID"),
            project_name=metadata.text("projectName"),
            tags=metadata.texts("tags"),
            target_apps=metadata.texts_or_list("targetApps"),
            user_id=who.text("userID") or _Fields("", item, left_out).text("userID"),
            user_name=who.text("name"),
            user_email=who.text("email"),
            left_out=tuple(left_out),
            in_seconds=in_seconds,
        )

    @property
    def type(self) -> str:
        """Type and action in lower case, spaces as `_`, such as `gate_updated`; `gate_changed` without an action."""
        return _SPACE.sub("_", f"{self.entity_type}_{self.action or 'changed'}".lower())

    @property
    def title(self) -> str:
        """NAME ACTION, such as `layout_v2 updated`; `layout_v2 changed` without an action."""
        return f"{self.name} {self.action or 'changed'}"


_Types: TypeAlias = type | tuple[type, ...]

_OPTIONAL: Final = (str, NoneType)
_TYPES: Final[Sequence[tuple[str, _Types]]] = (
    *(("happened_at", int), ("entity_type", str), ("name", str)),
    *((name, _OPTIONAL) for name in ("action", "description", "project_id", "project_name")),
    *((name, _OPTIONAL) for name in ("user_id", "user_name", "user_email")),
    *((name, tuple) for name in ("environments", "tags", "target_apps")),
)
"""What a `ChangeEvent` checks, once for each change."""


def _read_timestamp(value: object) -> int:
    """An integer, or a string of its digits as in older deliveries."""
    number: object = value
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        number = int(value)
    if not isinstance(number, int) or isinstance(number, bool):
        raise InvalidItemError(f"timestamp: must be an integer of milliseconds, is {_kind(value)}")
    if not 1 <= number <= _MAX_TIMESTAMP:
        raise InvalidItemError("timestamp: must be milliseconds between 1970 and the year 9999")
    return number


def _read_required(metadata: Mapping[str, object], name: str) -> str:
    value = metadata.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidItemError(f"metadata.{name}: must be a string that is not empty, is {_kind(value)}")
    return valid(value)


class _Fields:
    """Reads the optional fields of an object, and adds those that had an unusable type to `left_out`, with a prefix."""

    def __init__(self, prefix: str, members: Mapping[str, object], left_out: list[str]) -> None:
        self._prefix = prefix
        self._members = members
        self._left_out = left_out

    def text(self, name: str) -> str | None:
        """A string, or a number or a boolean as JSON; None if the field is absent, or an array or an object."""
        value = self._members.get(name)
        if value is None or value == "":
            return None
        if isinstance(value, list | dict):
            self._left_out.append(self._prefix + name)
            return None
        return _as_text(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """The elements of an array as strings, without null and "". A single value counts as an array of one."""
        value = self._members.get(name)
        if value is None or value == []:
            return ()
        if isinstance(value, dict):
            self._left_out.append(self._prefix + name)
            return ()
        elements = value if isinstance(value, list) else [value]
        return converted(first(element for element in elements if element is not None and element != ""), _as_text)

    def texts_or_list(self, name: str) -> tuple[str, ...]:
        """Like `texts`, but a single string is split at its commas."""
        value = self._members.get(name)
        return split(valid(value)) if isinstance(value, str) else self.texts(name)


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return valid(value)
    try:
        return valid(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    except RecursionError:
        raise InvalidItemError("an element is nested too deeply") from None


def valid(text: str) -> str:
    """A string without lone surrogates: JSON can escape them, but protobuf strings, being UTF-8, can't contain them."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def _kind(value: object) -> str:
    """The JSON type of a value, for an error message that must not show the value."""
    if value is None:
        return "missing or null"
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number"
    if value == "":
        return "empty"
    names = {bool: "a boolean", int: "an integer", float: "a fraction", str: "a string", list: "an array"}
    return names.get(type(value), "an object")
