"""Remembers what a backend has taken: it shows that a refused record is at fault. Pure decisions, without a clock."""

from typing import Final

_MOST_SETTLED: Final = 10
"""The most records that one behind them settles, if nothing else is taken: the backend may have broken meanwhile."""

_MORE: Final = 3
"""A record with faults needs so many times the attempts of one that had faults too, and was taken after all."""

_MOST_NEEDED: Final = 60
"""The most attempts that it needs: in a long outage, each record has many."""


class Evidence:
    """What one exporter has taken. A send is known by its number, and a record by its seq.

    Attributes:
        taken_by: The last send from which something was taken; 0 for none.
        needed: The attempts that a record needs until its faults can count as a refusal.
    """

    def __init__(self) -> None:
        self.taken_by: int = 0
        self.needed: int = 0
        self._up_to = 0  # the last record that was taken
        self._settled = 0  # how many became dead letters since then, only because that one stands behind them

    def take(self, send: int, up_to: int) -> None:
        """A send has taken records up to this one."""
        self.taken_by, self._settled = send, 0
        self._up_to = max(self._up_to, up_to)

    def passed(self, attempts: int) -> None:
        """A record that had faults alone was taken after so many attempts: the backend has faults at random."""
        self.needed = min(max(self.needed, attempts * _MORE), _MOST_NEEDED)

    def forget(self) -> None:
        """The backend may be a different one now."""
        self.taken_by = self._up_to = 0

    def is_against(self, seq: int, refused_by: int, *, had_faults: bool) -> bool:
        """Whether a record is at fault: another was taken since a send that refused this one, or stands behind it.

        Faults last for minutes. So for a record that had some, only what was taken since then counts.
        """
        return refused_by < self.taken_by or (not had_faults and seq < self._up_to)

    def settle(self, refused_by: int) -> None:
        """A record became a dead letter. A record that stands behind it settles a few: it gets old."""
        if refused_by > self.taken_by:
            self._settled += 1
            if self._settled == _MOST_SETTLED:
                self._up_to = 0
