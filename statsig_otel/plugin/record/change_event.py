"""A Statsig config change as a change event: the reference mapping, as plain data.

`statsig::config_change` is read leniently: types and actions are open sets, fields come and go between deliveries of
different years. Only a name, a type and a time are required. Unknown members change nothing here.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_MAX_TIMESTAMP: Final = 253_402_300_799_999
"""The last millisecond of the year 9999: what RFC 3339 can write."""

_DIGITS: Final = re.compile(r"[0-9]{1,20}")
_BLANK: Final = re.compile(r"\s")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class InvalidItemError(Exception):
    """A config change that no record can be made of. The message says what is wrong, and where.

    Example:
        >>> from statsig_otel.plugin import ChangeEvent
        >>> from statsig_otel.plugin.record.change_event import InvalidItemError
        >>> try:
        ...     ChangeEvent.from_item({"timestamp": 1739400185198})
        ... except InvalidItemError as error:
        ...     print(error)
        metadata: must be an object, is missing or null
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeEvent:
    """One config change. Texts are valid Unicode, times in range; what Statsig did not send is None or empty.

    Attributes:
        happened_at: When it happened, in milliseconds since the epoch.
        entity_type: What was changed, as sent, such as `Gate` or `Dynamic Config`.
        name: The name of the gate, the experiment, ...
        action: What was done to it, as sent, such as `created`.
        description: Statsig's free text, often of several lines.
        environments: The environments that the change names.
        project_id: Statsig's id of the project.
        project_name: The project's name.
        tags: The entity's tags; elements that are no text as compact JSON.
        target_apps: The entity's target apps, likewise.
        user_id: Who made the change.
        user_name: The same person's name.
        user_email: The same person's address.
        left_out: The fields whose value had an unusable type.

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

    @classmethod
    def from_item(cls, item: Mapping[str, object]) -> "ChangeEvent":
        """Map one decoded `statsig::config_change`.

        Raises:
            InvalidItemError: A required field is missing or unusable.
        """
        metadata = item.get("metadata")
        if not isinstance(metadata, dict):
            raise InvalidItemError(f"metadata: must be an object, is {_kind(metadata)}")
        fields = _Fields(item.get("user"))
        return cls(
            happened_at=_timestamp(item.get("timestamp")),
            entity_type=_required(metadata, "type"),
            name=_required(metadata, "name"),
            action=fields.text(metadata, "metadata.action"),
            description=fields.text(metadata, "metadata.description"),
            environments=_split(
                fields.text(metadata, "metadata.environments") or fields.text(metadata, "metadata.environment")
            ),
            project_id=fields.text(metadata, "metadata.projectID"),
            project_name=fields.text(metadata, "metadata.projectName"),
            tags=fields.texts(metadata, "metadata.tags"),
            target_apps=fields.texts(metadata, "metadata.targetApps"),
            user_id=fields.text(fields.user, "user.userID") or fields.text(item, "userID"),
            user_name=fields.text(fields.user, "user.name"),
            user_email=fields.text(fields.user, "user.email"),
            left_out=tuple(fields.left_out),
        )

    @property
    def type(self) -> str:
        """The kind of change in lower case, blanks as `_`, such as `gate_updated`; `gate_changed` with no action."""
        return _BLANK.sub("_", f"{self.entity_type}_{self.action or 'changed'}".lower())

    @property
    def title(self) -> str:
        """NAME ACTION, such as `layout_v2 updated`; `layout_v2 changed` with no action."""
        return f"{self.name} {self.action or 'changed'}"


def _timestamp(value: object) -> int:
    """Milliseconds: an integer, or its digits as older deliveries have them."""
    number: object = value
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        number = int(value)
    if not isinstance(number, int) or isinstance(number, bool):
        raise InvalidItemError(f"timestamp: must be an integer of milliseconds, is {_kind(value)}")
    if not 1 <= number <= _MAX_TIMESTAMP:
        raise InvalidItemError("timestamp: must be milliseconds between 1970 and the year 9999")
    return number


def _required(metadata: Mapping[str, object], name: str) -> str:
    value = metadata.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidItemError(f"metadata.{name}: must be a text that is not empty, is {_kind(value)}")
    return valid(value)


class _Fields:
    """Reads optional fields, and remembers those that had an unusable type."""

    def __init__(self, user: object) -> None:
        self.left_out: list[str] = []
        self.user: Mapping[str, object] = user if isinstance(user, dict) else {}
        if user not in (None, "") and not isinstance(user, dict):
            self.left_out.append("user")

    def text(self, holder: Mapping[str, object], path: str) -> str | None:
        """A text; numbers and booleans as their JSON text; None where there is none, or something else."""
        value = holder.get(path.rpartition(".")[2])
        if value is None or value == "":
            return None
        if isinstance(value, list | dict):
            self.left_out.append(path)
            return None
        return _as_text(value)

    def texts(self, holder: Mapping[str, object], path: str) -> tuple[str, ...]:
        """An array, each element as a text. A single value counts as an array of one; nulls and "" are dropped."""
        value = holder.get(path.rpartition(".")[2])
        if isinstance(value, dict):
            self.left_out.append(path)
            return ()
        elements = value if isinstance(value, list) else [value]
        return tuple(_as_text(element) for element in elements if element is not None and element != "")


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return valid(value)
    try:
        return valid(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    except RecursionError:
        raise InvalidItemError("an element is nested too deeply") from None


def _split(environments: str | None) -> tuple[str, ...]:
    parts = (part.strip() for part in (environments or "").split(","))
    return tuple(part for part in parts if part)


def valid(text: str) -> str:
    """JSON can escape half of a surrogate pair; protobuf's strings, UTF-8, can't hold one."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def _kind(value: object) -> str:
    """The JSON type of a value, for an error that must not show the value itself."""
    if value is None:
        return "missing or null"
    if isinstance(value, float) and not math.isfinite(value):
        return "no number"
    if value == "":
        return "empty"
    names = {bool: "a boolean", int: "an integer", float: "a fraction", str: "a text", list: "an array"}
    return names.get(type(value), "an object")
