"""Decides which part of a batch to send next when a backend refuses some of it. Pure decisions, without I/O."""

from statsig_otel.exporters.queue.records import Records
from statsig_otel.exporters.queue.store import DeadLetter


class Halving:
    """One batch under way: which of its records are decided, in order, and which part is to be sent next.

    A record that is refused alone becomes a dead letter only once it is confirmed that refusals are about the data: the
    backend has taken another record of the batch. Records that were refused before that are sent once more, since the
    backend may have been repaired in between. If all of several are refused it is not the data, and none is given up.

    Attributes:
        records: The batch.
        confirmed: Whether a refusal is about the data. A batch may begin with this, if no other record is needed.
        attempts: How often the records of the next segment will have been sent, also as a part of larger segments.
    """

    def __init__(self, batch: Records, *, confirmed: bool, attempts: int = 0) -> None:
        self.records: Records = batch
        self.confirmed: bool = confirmed
        self.attempts: int = attempts
        self._segments = [(0, len(self.records), attempts)]  # beginning, end, attempts; the last one is sent next
        self._unsure: list[tuple[int, int, int]] = []  # segments that were refused before it was confirmed
        self._dead_letters: list[tuple[int, DeadLetter]] = []  # each with the end of its segment
        self._popped = 0

    def next_segment(self) -> Records | None:
        """What to send next; None at the end."""
        if not self._segments:
            return None
        start, end, attempts = self._segments[-1]
        self.attempts = attempts + 1
        return self.records[start:end]

    def finish(self, *dead_letters: DeadLetter) -> None:
        """The segment is done; with dead letters, not all of it was delivered. This confirms refusals."""
        _, end, _ = self._segments.pop()
        self._dead_letters += [(end, dead_letter) for dead_letter in dead_letters]
        self.confirm()

    def refuse(self, dead_letter: DeadLetter) -> None:
        """The segment, one record, is refused: it becomes this dead letter if that is about the data."""
        start, end, attempts = self._segments.pop()
        if self.confirmed:
            self._dead_letters.append((end, dead_letter))
        else:
            self._unsure.append((start, end, attempts + 1))

    def confirm(self) -> None:
        """Refusals are about the data. Records that were refused before are sent once more."""
        self.confirmed = True
        self._segments += reversed(self._unsure)
        self._unsure = []

    def split(self, size: int) -> None:
        """Send the segment in two parts; the first has `size` records."""
        start, end, attempts = self._segments.pop()
        self._segments += [(start + size, end, attempts + 1), (start, start + size, attempts + 1)]

    def extend(self, records: Records) -> None:
        """Add records behind the batch."""
        self._segments.insert(0, (len(self.records), len(self.records) + len(records), 0))
        self.records += records

    def pop_decided(self) -> tuple[Records, list[DeadLetter]]:
        """The records that can be ticked off now, and the dead letters among them; each only once."""
        first_open = self._segments[-1][0] if self._segments else len(self.records)
        if not self.confirmed or first_open <= self._popped:
            return Records(), []
        records, self._popped = self.records[self._popped : first_open], first_open
        self._dead_letters.sort(key=lambda one: one[0])  # records that were sent once more came later
        dead_letters = [dead_letter for end, dead_letter in self._dead_letters if end <= first_open]
        self._dead_letters = self._dead_letters[len(dead_letters) :]
        return records, dead_letters
