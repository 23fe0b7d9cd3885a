"""Decides what to send next, and which records become dead letters. Pure decisions, without I/O or a clock.

A rejection is blamed on a record only if the backend accepts another one. A batch that a backend refuses is halved, in
order, until the refused record is alone. It becomes a dead letter when it is refused alone after the exporter has taken
another record that was sent since its first refusal, or that stands behind it in the queue. Until then it keeps its
place, and other records are tried: first the rest of its batch, and once each of these was refused alone, the newest
record that waits, as a probe, and then those before it, until one is taken. A record that was taken out of order is
passed over later.

A fault that may be about the data (HTTP 500) counts as a refusal after a row of such faults of the record alone.

The evidence of both kinds ends when the exporter fails in any other way: the backend may be a different one after that.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from statsig_otel.exporters.delivery.settings import DeliverySettings
from statsig_otel.exporters.exporter import (
    Blocked,
    Delivered,
    Outcome,
    PartiallyRejected,
    Rejected,
    RetryLater,
)
from statsig_otel.exporters.queue.records import Records
from statsig_otel.exporters.queue.store import DAMAGED, DeadLetter, DeadLetterKind

Newest: TypeAlias = Callable[[int, Callable[[int], bool]], Records]
"""Finds the newest waiting record up to a seq that is intact, except for seqs to pass over; empty if there is none."""

FailedState = Literal["retrying", "refused", "blocked"]
"""The state of a sender after a failure: `refused` while no evidence says whether the data is at fault."""

SKIPPED: Final = "skipped by command"
"""The reason of a dead letter that somebody asked for; what the backend said about the record follows."""

_LONGEST_GAP: Final = 60.0
"""The most seconds that a row of faults grows with one fault: two faults far apart show nothing of the time between."""


class Failure(NamedTuple):
    """Nothing can be sent before a wait; `after` is the least number of seconds that the backend asks for."""

    state: FailedState
    reason: str
    after: float | None = None


class Decided(NamedTuple):
    """Records that can be ticked off together, with the dead letters among them."""

    records: Records
    dead_letters: Sequence[DeadLetter]


@dataclass(slots=True)
class _Failed:
    """The history of a waiting record that was sent and not taken."""

    size: int = 0  # the largest number of records, from this one on, that are sent together; 0 for no limit
    first_refusal: int = 0  # the number of the send that was its first refusal, alone or with others; 0 for none
    is_alone: bool = False  # it was refused alone
    failing_for: float = 0.0  # seconds of a row of faults that may be about the data
    fault_at: float = math.inf  # the last one of that row
    attempts: int = 0
    reason: str = ""


class Decisions:
    """The decisions for one exporter under one configuration, over one database.

    Args:
        exporter: The exporter's id, for its dead letters.
        settings: The sender's settings.
    """

    def __init__(self, exporter: str, settings: DeliverySettings) -> None:
        self._exporter = exporter
        self._settings = settings
        self._sends = 0
        self._failed: dict[int, _Failed] = {}  # by seq
        self._decided: dict[int, Decided] = {}  # by the seq of its first record; not ticked off yet
        self._last_taken = 0  # the number of the last send from which something was taken
        self._taken_up_to = 0  # the last seq that was taken
        self._failing_since = math.inf  # the first temporary failure since another outcome, or since a record was done
        self._probed_at = -settings.between_probes
        self._newest = 0  # the seq of the newest record at the last probe
        self._tried_down_to = 0  # probes have tried the records from `_newest` down to this seq
        self._tried_again_down_to = 0  # and those of slow attempts once more, down to this one
        self._only_probes = False  # a whole batch was refused: what comes behind it is sent as a probe only
        self._tries_head = False  # a wait is over: the head is sent again, and then a probe
        self._tries_probe = False

    def decided(self, batch: Records) -> Decided | None:
        """The decided records at the head of the queue; None if the first record of the batch is not decided."""
        return self._decided.get(batch.seqs[0])

    def next(self, batch: Records) -> Records:
        """The part of a batch to send next. Empty if each of its records was refused alone.

        Args:
            batch: Records from the head of the queue on. The first is not decided.
        """
        if not self._failed and not self._decided:
            return batch
        tries_head, self._tries_head = self._tries_head, False
        decided = self._decided_seqs()
        candidates = (index for index, seq in enumerate(batch.seqs) if seq not in decided and not self._waits(seq))
        start = next(candidates, None)
        if start is None or (start > 0 and self._only_probes):
            self._only_probes = True
            self._tries_probe = self._tries_probe or tries_head
            return batch[:1] if tries_head else Records()
        size = self._size(batch.seqs[start])
        end = start + 1
        while end < len(batch) and (not size or end - start < size):
            seq = batch.seqs[end]
            if seq in decided or self._waits(seq) or self._size(seq) != size:
                break
            end += 1
        return batch[start:end]

    def probe(self, head: Records, newest: Newest, now: float) -> Records:
        """The record to send while each one of a batch was refused alone. Empty if none may be sent now.

        It is the newest one that was not refused alone yet. After a wait it is one that was: the newest first, and the
        one before it after the next wait, since the backend may have been repaired meanwhile.

        Args:
            head: The record at the head of the queue.
            newest: Finds records that wait.
            now: Seconds of a monotonic clock.
        """
        if self.probe_pause(now) > 0:
            return Records()
        left_out = self._decided_seqs() | {*head.seqs}
        probe = newest(sys.maxsize, left_out.__contains__)
        if probe and probe.seqs[0] > self._newest:  # it came after the last probe
            self._newest = self._tried_down_to = probe.seqs[0]
            self._tried_again_down_to = sys.maxsize
        if self._tries_probe:
            probe = newest(self._tried_again_down_to - 1, left_out.__contains__) or probe
            self._tried_again_down_to = probe.seqs[0] if probe else 0
        else:
            # From here on down: each record that was refused is passed over once, not with each probe.
            probe = newest(self._tried_down_to, lambda seq: seq in left_out or self._waits(seq))
            self._tried_down_to = probe.seqs[0] if probe else head.seqs[0]
        if probe:
            self._tries_probe = False
            self._probed_at = now
        return probe

    def probe_pause(self, now: float) -> float:
        """Seconds until the next probe may be sent; 0 or less if it may be sent now."""
        return self._probed_at + self._settings.between_probes - now

    def record_outcome(self, part: Records, outcome: Outcome, now: float) -> Failure | None:
        """Take the outcome of a send into account; a failure if nothing more can be sent before a wait.

        Args:
            part: What was sent: of `next` or `probe`.
            outcome: Its outcome.
            now: Seconds of a monotonic clock.
        """
        self._sends += 1
        if not isinstance(outcome, RetryLater):
            self._failing_since = math.inf
        if isinstance(outcome, Delivered):
            self._take(part if outcome.first is None else part[: outcome.first])
            return None
        self._count(part, outcome.reason)
        match outcome:
            case PartiallyRejected(count, reason):
                dead_letter = self._dead_letter("batch", part, f"{count} of {len(part)} were refused: {reason}")
                if count < len(part):
                    self._take(part, dead_letter)
                else:
                    self._decide(part, dead_letter)
            case Rejected():
                self._refuse(part, outcome.reason)
            case RetryLater():
                return self._retry(part, outcome, now)
            case Blocked(reason):
                self.forget_evidence()
                if self._narrow(part):
                    return None
                return Failure("blocked", reason)
        return None

    def all_refused(self) -> Failure:
        """The failure while each record of a batch was refused alone, and nothing says yet that it is the data."""
        refused = [seq for seq in self._failed if self._waits(seq)]
        reason = self._failed[min(refused)].reason
        if len(refused) == 1:
            return Failure("refused", reason)
        return Failure("blocked", f"nothing is taken: each of {len(refused)} records is refused: {reason}")

    def try_again(self) -> None:
        """A wait is over: the head is sent again, even if it was refused, and then a probe."""
        self._tries_head = True

    def forget_evidence(self) -> None:
        """Forget the evidence that failures are about the data. Records sent out of order are still passed over."""
        self._last_taken = self._taken_up_to = 0
        for failed in self._failed.values():
            failed.failing_for, failed.fault_at = 0.0, math.inf

    def skip(self, batch: Records) -> Decided:
        """Skip a batch, up to the first record that is decided, with the reasons that the backend gave for them."""
        decided = self._decided_seqs()
        end = next((index for index, seq in enumerate(batch.seqs) if seq in decided), len(batch))
        records = batch[:end]
        return Decided(records, [self._skipped(record) for record in records.one_by_one()])

    def damaged(self, record: Records) -> DeadLetter:
        """The dead letter of a record that changed on disk."""
        return self._dead_letter("damaged", record, DAMAGED)

    def ticked_off(self, records: Records) -> None:
        """These records, and all before them, do not wait any more."""
        self._failing_since = math.inf
        self._decided.pop(records.seqs[0], None)
        last = records.seqs[-1]
        if self._decided:
            self._decided = {first: decided for first, decided in self._decided.items() if first > last}
        if self._failed:
            self._failed = {seq: failed for seq, failed in self._failed.items() if seq > last}

    def _take(self, records: Records, *dead_letters: DeadLetter) -> None:
        self._last_taken, self._only_probes = self._sends, False
        self._newest = 0  # what was refused before may be sent again
        self._taken_up_to = max(self._taken_up_to, records.seqs[-1])
        self._decide(records, *dead_letters)

    def _decide(self, records: Records, *dead_letters: DeadLetter) -> None:
        self._decided[records.seqs[0]] = Decided(records, dead_letters)

    def _refuse(self, part: Records, reason: str) -> None:
        for seq in part.seqs:
            self._failed[seq].first_refusal = self._failed[seq].first_refusal or self._sends
        if len(part) > 1:
            self._split(part, len(part) // 2)
            return
        (seq,) = part.seqs
        self._failed[seq].size, self._failed[seq].is_alone = 1, True
        if not self._waits(seq):
            self._decide(part, self._dead_letter("record", part, reason))

    def _retry(self, part: Records, outcome: RetryLater, now: float) -> Failure | None:
        retry, first = self._settings.retry, self._failed[part.seqs[0]]
        self._failing_since = min(self._failing_since, now)
        if not outcome.may_be_data:
            self.forget_evidence()
        elif self._narrow(part):
            return None
        else:
            first.failing_for += max(0.0, min(now - first.fault_at, _LONGEST_GAP))
            first.fault_at = now
        if not retry.enabled or 0 < retry.max_elapsed_time <= now - self._failing_since:
            said = f"not sent again, as configured: {outcome.reason}"
            self._decide(part, *(self._dead_letter("record", one, said) for one in part.one_by_one()))
        elif outcome.may_be_data and first.failing_for >= self._settings.refused_after:
            self._refuse(part, outcome.reason)
        else:
            return Failure("retrying", outcome.reason, outcome.after)
        return None

    def _narrow(self, part: Records) -> bool:
        """Send less of a part, since its failure may be about one record; False if it is one record.

        The head alone tells. Once it was taken, halves find the record.
        """
        self._split(part, len(part) // 2 if self._size(part.seqs[0]) and len(part) > 1 else 1)
        return len(part) > 1

    def _split(self, part: Records, first: int) -> None:
        """Send the part in two parts, the first with `first` records."""
        for index, seq in enumerate(part.seqs):
            self._failed[seq].size = first if index < first else len(part) - first

    def _count(self, part: Records, reason: str) -> None:
        for seq in part.seqs:
            failed = self._failed.setdefault(seq, _Failed())
            failed.attempts += 1
            failed.reason = reason

    def _waits(self, seq: int) -> bool:
        """Whether a record was refused alone, and nothing says yet that it is the data."""
        failed = self._failed.get(seq)
        if failed is None or not failed.is_alone:
            return False
        return failed.first_refusal > self._last_taken and seq > self._taken_up_to

    def _skipped(self, record: Records) -> DeadLetter:
        failed = self._failed.get(record.seqs[0])
        return self._dead_letter("record", record, f"{SKIPPED}: {failed.reason}" if failed else SKIPPED)

    def _size(self, seq: int) -> int:
        failed = self._failed.get(seq)
        return failed.size if failed else 0

    def _decided_seqs(self) -> set[int]:
        return {seq for decided in self._decided.values() for seq in decided.records.seqs}

    def _dead_letter(self, kind: DeadLetterKind, records: Records, reason: str) -> DeadLetter:
        failed = self._failed.get(records.seqs[0])
        uid = records.uids[0] if len(records) == 1 else None
        attempts = failed.attempts if failed else 0
        return DeadLetter(kind, self._exporter, reason, records.content, uid, attempts, len(records))
