"""An arrival: what the queue remembers of a change, to compare it with Statsig's audit log."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Final

from statsig_otel._arguments import check_type

_LONGEST: Final = 1000


@dataclass(frozen=True, slots=True)
class Arrival:
    """A config change that came, whether or not a record was made of it.

    Attributes:
        uid: The change's `log.record.uid`: 32 hex digits.
        second: When the change was made, in seconds since the epoch.
        name: The name of the gate, the experiment, ...
        user_id: The id of the user who made the change.
        user_name: That user's name.
        user_email: That user's email address.
        type: The type of what was changed, as Statsig sent it.
        action: What was done to it; empty if Statsig did not say.
        text: The first line of the description.
        filtered: Whether the receiver's filter dropped it.
        from_log: Whether no webhook brought it, and the service has read it in the audit log.

    Raises:
        TypeError: A value has another type.

    Example:
        >>> from statsig_otel.exporters import Arrival
        >>> Arrival("0" * 32, 1739400185, "layout_v2", type="Gate", action="updated").filtered
        False
    """

    uid: str
    second: int
    name: str
    user_id: str | None = None
    user_name: str | None = None
    user_email: str | None = None
    type: str = ""
    action: str = ""
    text: str = ""
    filtered: bool = False
    from_log: bool = False

    def __post_init__(self) -> None:
        for name, types in _TYPES:
            if not isinstance(value := getattr(self, name), types):
                check_type(name, value, types)


_TYPES: Final[Sequence[tuple[str, type | tuple[type, ...]]]] = (
    *((name, str) for name in ("uid", "name", "type", "action", "text")),
    *((name, (str, NoneType)) for name in ("user_id", "user_name", "user_email")),
    ("second", int),
    *((name, bool) for name in ("filtered", "from_log")),
)


def comparable(text: str) -> str:
    """The part of a name or text that is compared: its first line, stripped, at most 1,000 characters."""
    return text.strip().partition("\n")[0][:_LONGEST].strip()
