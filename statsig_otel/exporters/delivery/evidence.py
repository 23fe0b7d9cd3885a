"""Judges the records that a backend did not take by what it has taken. Pure decisions, without a clock."""

import math
from dataclasses import dataclass
from typing import Final

_MOST_SETTLED: Final = 10
"""The most records that one behind them settles, if nothing else is taken: the backend may have broken meanwhile."""

FEWEST_FAULTS: Final = 3
"""So many faults of a record have to follow what was taken until they can count as a refusal. Two can be chance."""

_MORE: Final = 3
"""How many times the faults of another record a record needs, if that one was taken after all."""

_MOST_NEEDED: Final = 60
"""The most faults that it needs."""


@dataclass(slots=True)
class Failed:
    """The history of a waiting record that was sent and not taken."""

    limit: int = 0  # the largest number of records, from this one on, that are sent together; 0 for no limit
    refused_by: int = 0  # the number of the send that its evidence has to follow; 0 for none
    refusal: str | None = None  # the reason of its last refusal or fault alone; None if there was none
    is_fault: bool = False  # whether its last refusal or fault, also with others, was a fault: that may be the data
    had_faults: bool = False
    faulty_since: float = math.inf  # its first fault alone, by the clock of faults
    counted: int = 0  # its faults alone after another record was taken: they are not those of an outage
    attempts: int = 0
    reason: str = ""


UNSENT: Final = Failed()
"""Stands for the history of each record that was not sent, or that was taken at once. It is never changed."""


class Evidence:
    """What one exporter has taken. A send is known by its number, and a record by its seq.

    Attributes:
        taken_by: The last send from which something was taken; 0 for none.
        needed: The faults after something was taken that a record needs until they can count as a refusal.
    """

    def __init__(self) -> None:
        self.taken_by: int = 0
        self.needed: int = FEWEST_FAULTS
        self._up_to = 0  # the last record that was taken
        self._settled = 0  # how many became dead letters since then, only because that one stands behind them

    def take(self, send: int, up_to: int) -> None:
        """A send has taken records up to this one."""
        self.taken_by, self._settled = send, 0
        self._up_to = max(self._up_to, up_to)

    def passed(self, sends: int) -> None:
        """A record with faults was taken, `sends` sends after another was taken: the backend fails at random."""
        self.needed = min(max(self.needed, sends * _MORE), _MOST_NEEDED)

    def forget(self) -> None:
        """The backend may be a different one now."""
        self.taken_by = self._up_to = 0

    def follows(self, failed: Failed) -> bool:
        """Whether another record was taken since a send that refused a record."""
        return failed.refused_by < self.taken_by

    def is_against(self, seq: int, failed: Failed) -> bool:
        """Whether a record is at fault: another was taken since a send that refused it, or stands behind it.

        Faults last for minutes. So for a record that had some, only what was taken since then counts.
        """
        return self.follows(failed) or (not failed.had_faults and seq < self._up_to)

    def is_unclear(self, failed: Failed) -> bool:
        """Whether another record was taken since a record had a fault, and too few faults followed that."""
        return failed.is_fault and failed.counted < self.needed and self.follows(failed)

    def settle(self, refused_by: int) -> None:
        """A record became a dead letter. A record that stands behind it settles a few: it gets old."""
        if refused_by > self.taken_by:
            self._settled += 1
            if self._settled == _MOST_SETTLED:
                self._up_to = 0
