"""Judges the records that a backend did not take by what it has taken. Pure decisions, without a clock."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

_MOST_SETTLED: Final = 10
"""The most records that one behind them settles, if nothing else is taken: the backend may have broken meanwhile."""

_AT_FAULT: Final = 4
"""So many faults that count make a record a dead letter. Fewer can be chance, or an outage that begins and ends."""


@dataclass(slots=True)
class Failed:
    """The history of a waiting record that was sent and not taken."""

    attempts: int = 0
    reason: str = ""  # of the last attempt, but a failure that is not about the data does not replace a refusal
    limit: int = 0  # the largest number of records, from this one on, that are sent together; 0 for no limit
    is_tried: bool = False  # whether it was refused or had a fault alone, since all counted as untried
    refused_by: int = 0  # the number of the send that evidence of a refusal has to follow; 0 for none
    faults: int = 0  # that count: the first, which it may have had together with others, and later ones alone
    failing_since: float = math.inf  # the first of its temporary failures, since another outcome


UNSENT: Final = Failed()
"""Stands for the history of each record that was not sent, or that was taken at once. It is never changed."""


class Evidence:
    """What one exporter has taken. A send is known by its number, and a record by its seq.

    Attributes:
        taken_by: The last send from which something was taken; 0 for none.
    """

    def __init__(self) -> None:
        self.taken_by: int = 0
        self._begins_at = 0  # sends up to this one say nothing about the backend of now
        self._up_to = 0  # the last record that was taken since then
        self._settled = 0  # how many became dead letters since then, only because that one stands behind them

    def take(self, send: int, up_to: int) -> None:
        """A send has taken records up to this one."""
        self.taken_by, self._settled = send, 0
        self._up_to = max(self._up_to, up_to)

    def begin_anew(self, send: int) -> None:
        """The backend may be a different one since a send."""
        self._begins_at, self._up_to = send, 0

    def is_against(self, seq: int, failed: Failed) -> bool:
        """Whether a refused record is at fault: another was taken since a send that refused it, or stands behind it.

        A record that had faults may have waited for long. So for it, only what was taken since then counts.
        """
        return max(failed.refused_by, self._begins_at) < self.taken_by or (not failed.faults and seq < self._up_to)

    def settle(self, refused_by: int) -> None:
        """A record became a dead letter. A record that stands behind it settles a few: it gets old."""
        if refused_by > self.taken_by:
            self._settled += 1
            if self._settled == _MOST_SETTLED:
                self._up_to = 0


class _Counted(NamedTuple):
    """The last fault of a record that counts: its time, and the number of the send."""

    at: float
    by: int


class Faults:
    """The records that had a fault alone. A fault is a failure that may be about the data.

    Args:
        seconds: From the first fault that counts to the last one, at least.
    """

    def __init__(self, seconds: float) -> None:
        self._between = seconds / (_AT_FAULT - 1)
        self._last: dict[int, _Counted] = {}  # by seq, in the order of these faults

    def __contains__(self, seq: int) -> bool:
        """Whether a record had a fault alone."""
        return seq in self._last

    def add(self, seq: int, failed: Failed, send: int, taken_by: int, now: float) -> bool:
        """A record had a fault alone, or was refused alone after one; whether it is at fault."""
        if seq in self._last:
            if not self._counts(seq, taken_by, now):
                return False
            failed.faults += 1
            del self._last[seq]
        self._last[seq] = _Counted(now, send)
        return failed.faults >= _AT_FAULT

    def due(self, taken_by: int, now: float) -> int | None:
        """A record whose next fault counts: of these, the one whose last such fault is longest ago."""
        seq = next(iter(self._last), None)
        return seq if seq is not None and self._counts(seq, taken_by, now) else None

    def others_taken(self, seq: int, failed: Failed, taken_by: int) -> bool:
        """Whether another record was taken since a record's fault that counted: the backend does not fail for all."""
        return failed.faults > 1 or (seq in self._last and self._last[seq].by < taken_by)

    def remove(self, seqs: Iterable[int]) -> None:
        """These records were answered otherwise, or do not wait any more."""
        if self._last:
            for seq in seqs:
                self._last.pop(seq, None)

    def _counts(self, seq: int, taken_by: int, now: float) -> bool:
        last = self._last[seq]
        return last.by < taken_by and now - last.at >= self._between
