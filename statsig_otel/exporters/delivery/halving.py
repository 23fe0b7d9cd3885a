"""Which part of a batch to send next, where a backend refuses some of it: pure decisions, without I/O."""

from statsig_otel.exporters.queue.records import Records
from statsig_otel.exporters.queue.store import DeadLetter


class Halving:
    """One batch on its way: which records are decided, in order, and which part is to be sent next.

    A record that is refused alone becomes a dead letter only once it is settled that refusals are about the data:
    another record of its batch was taken. Those that were refused before that are sent once more, since the backend may
    have been mended in between. Where all of several are refused it is not the data, and none is given up.

    Args:
        batch: The records.
        settled: It needs no other record to tell that a refusal is about the data.
        attempts: How often the batch was sent in vain before.

    Attributes:
        records: The batch.
        settled: Whether a refusal is about the data.
        attempts: How often the next segment's records will have been sent, as a part of larger ones too.
    """

    def __init__(self, batch: Records, *, settled: bool, attempts: int = 0) -> None:
        self.records: Records = batch
        self.settled: bool = settled
        self.attempts: int = attempts
        self._segments = [(0, len(self.records), attempts)]  # beginning, end, attempts; the last one is the first
        self._unsure: list[tuple[int, int, int]] = []  # segments that were refused before it was settled
        self._letters: list[tuple[int, DeadLetter]] = []  # each with the end of its segment
        self._taken = 0

    def next_segment(self) -> Records | None:
        """What to send next; None at the end."""
        if not self._segments:
            return None
        start, end, attempts = self._segments[-1]
        self.attempts = attempts + 1
        return self.records[start:end]

    def finish(self, *letters: DeadLetter) -> None:
        """The segment is done; with dead letters, not all of it was delivered. Settles the batch."""
        _, end, _ = self._segments.pop()
        self._letters += [(end, letter) for letter in letters]
        self.settle()

    def refuse(self, letter: DeadLetter) -> None:
        """The segment, one record, is refused: a dead letter if that is about the data."""
        start, end, attempts = self._segments.pop()
        if self.settled:
            self._letters.append((end, letter))
        else:
            self._unsure.append((start, end, attempts + 1))

    def settle(self) -> None:
        """Refusals are about the data. What was refused before is sent once more."""
        self.settled = True
        self._segments += reversed(self._unsure)
        self._unsure = []

    def split(self, size: int) -> None:
        """Send the segment in two parts, the first one, of so many records, first."""
        start, end, attempts = self._segments.pop()
        self._segments += [(start + size, end, attempts + 1), (start, start + size, attempts + 1)]

    def extend(self, records: Records) -> None:
        """Send others after all."""
        self._segments.insert(0, (len(self.records), len(self.records) + len(records), 0))
        self.records += records

    def take(self) -> tuple[Records, list[DeadLetter]]:
        """The records that can be ticked off now, and the dead letters among them; each only once."""
        first_open = self._segments[-1][0] if self._segments else len(self.records)
        if not self.settled or first_open <= self._taken:
            return Records(), []
        records, self._taken = self.records[self._taken : first_open], first_open
        self._letters.sort(key=lambda one: one[0])  # what was sent once more came later
        letters = [letter for end, letter in self._letters if end <= first_open]
        self._letters = self._letters[len(letters) :]
        return records, letters
