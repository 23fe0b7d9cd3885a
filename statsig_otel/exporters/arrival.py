"""What is remembered of each change that a webhook brought, so that it can be compared with Statsig's audit log."""

from dataclasses import dataclass
from typing import Final, NamedTuple

_LONGEST: Final = 1000


class User(NamedTuple):
    """Who made a change, as far as a webhook or the audit log says.

    Attributes:
        id: Statsig's id of the user.
        email: The user's email address.
        name: The user's name.

    Example:
        >>> from statsig_otel.exporters import User
        >>> User(email="ada@example.com").may_be(User(id="4eoD", email="Ada@example.com"))
        True
    """

    id: str | None = None
    email: str | None = None
    name: str | None = None

    def may_be(self, other: "User") -> bool:
        """Whether both can be the same person: one of the fields that both have is equal, or they have none in common.

        Args:
            other: The other one.
        """
        pairs = [(one, two) for one, two in zip(self, other, strict=True) if one and two]
        return not pairs or any(one.casefold() == two.casefold() for one, two in pairs)


_NOBODY: Final = User()


@dataclass(frozen=True, slots=True)
class Arrival:
    """A config change that a webhook brought, whether or not a record was made of it.

    Attributes:
        uid: The change's `log.record.uid`: 32 hex digits.
        second: When the change was made, in seconds since the epoch.
        name: The name of the gate, the experiment, ...
        user: Who made it.
        type: The type of what was changed, as Statsig sent it.
        action: What was done to it; empty if Statsig did not say.
        text: The first line of the description.
        filtered: Whether the receiver's filter dropped it.

    Example:
        >>> from statsig_otel.exporters import Arrival
        >>> Arrival("0" * 32, 1739400185, "layout_v2", type="Gate", action="updated").filtered
        False
    """

    uid: str
    second: int
    name: str
    user: User = _NOBODY
    type: str = ""
    action: str = ""
    text: str = ""
    filtered: bool = False


def comparable(text: str) -> str:
    """A name or a text as it is compared: its first line without space around it, and at most 1,000 characters."""
    return text.strip().partition("\n")[0][:_LONGEST].strip()
