"""A `queue skip` that a sender carries out: which of the records that wait become dead letters without being sent."""

from bisect import bisect_right
from dataclasses import dataclass

from statsig_otel.exporters.queue.records import Records


@dataclass(slots=True)
class Skip:
    """A skip of the records behind one seq, up to another. It is void once the first of them is delivered.

    Attributes:
        behind: The cursor's position for which it is meant.
        up_to: The seq of the last record to skip.
    """

    behind: int
    up_to: int

    def part_of(self, batch: Records) -> Records:
        """The records of a batch to skip. A damaged one ends them: it becomes a dead letter of another kind."""
        intact = batch.until_damage()
        return intact[: bisect_right(intact.seqs, self.up_to)]

    def ticked_off(self, before: int, position: int) -> bool:
        """Go on after records that were ticked off without being sent; whether it is done.

        Args:
            before: The cursor's position before them.
            position: Its position now.
        """
        if self.behind != before:
            return False
        self.behind = position
        return position >= self.up_to
