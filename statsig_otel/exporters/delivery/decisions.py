"""Decides what to send next, and which records become dead letters. Pure decisions, without I/O or a clock.

A refusal can be the fault of the record or of the backend. A wrong path whose server answers 400 must not turn the
queue into dead letters, and one bad record must not hold up the others. These are the rules:

1. A batch that is refused is halved, in order, until each record that is refused was refused alone.
2. A record becomes a dead letter when it is refused alone and there is evidence that this is its own fault: the
   exporter has taken another record that stands behind it, or that was sent since this record was last refused
   together with others, or first alone if that never happened. So the refusal of a batch does not count against each
   of its records, if the backend breaks while the batch is halved.
3. Without evidence the record keeps its place. While it is the head, the records behind it are probed until each was
   tried (refused alone): in turn the newest record and the next batch. A second passes between two probes.
4. If part of a probe is taken, that is evidence, and the head is sent again. What was taken is passed over later.
5. Once each record was tried, only new ones are probed. After each wait the head is sent again, and then one of the
   others, each time another one: the backend may have been repaired.
6. All count as untried when somebody may have repaired something, and when a record that was refused alone gets another
   answer, since the backend has changed then.
7. Evidence ends when the exporter fails in any other way, since the backend may be a different one after that. But a
   limit on the rate of requests can be the cause. So while a refused record waits, a failure soon after another send
   makes the pause between two sends longer. Each answer makes it a little shorter again, and it ends once no record
   that failed is left.
8. A failure that may be about the data (HTTP 500) is retried, and counts as a refusal after a row of such failures of
   the record alone. Rule 7 ends the row.
"""

import math
import sys
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

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

FailedState = Literal["retrying", "refused", "blocked"]
"""The state of a sender after a failure: `refused` while no evidence says whether the data is at fault."""

SKIPPED: Final = "skipped by command"
"""The reason of a dead letter that somebody asked for; what the backend said about the record follows."""

_LONGEST_GAP: Final = 60.0
"""The most seconds by which one failure makes a row longer: two that are far apart show nothing of the time between."""

_LONGEST_PAUSE: Final = 30.0
"""The longest pause between two sends, in seconds."""


class Waiting(Protocol):
    """Reads the records that wait, as an `ExporterCursor` does."""

    def newest(self, up_to: int, passed_over: Callable[[int], bool]) -> Records:
        """The newest intact record up to a seq, except for seqs to pass over; empty if there is none."""

    def read_behind(self, after: int, count: int, size: int) -> Records:
        """The next records behind a seq, at most `count`, and `size` bytes or one record."""


class Failure(NamedTuple):
    """Nothing can be sent before a wait; `after` is the least number of seconds that the backend asks for."""

    state: FailedState
    reason: str
    after: float | None = None


class Decided(NamedTuple):
    """Records that can be ticked off together, with the dead letters among them."""

    records: Records
    dead_letters: list[DeadLetter]


class _Verdict(NamedTuple):
    """Records that are not sent again: they were taken, or become dead letters of a kind."""

    seqs: tuple[int, ...]
    kind: DeadLetterKind | None
    reason: str


@dataclass(slots=True)
class _Failed:
    """The history of a waiting record that was sent and not taken."""

    limit: int = 0  # the largest number of records, from this one on, that are sent together; 0 for no limit
    refused_by: int = 0  # the number of the send that refused it last with others, else first alone; 0 for none
    refusal: str | None = None  # the words of its last refusal alone; None if it was not
    failing_for: float = 0.0  # seconds of a row of failures that may be about the data
    failed_at: float = math.inf  # the last one of that row
    attempts: int = 0
    reason: str = ""


_UNSENT: Final = _Failed()
"""Stands for the history of each record that was not sent, or that was taken at once. It is never changed."""


class Decisions:
    """The decisions for one exporter under one configuration, over one database.

    Args:
        exporter: The exporter's id, for its dead letters.
        settings: The sender's settings.
    """

    def __init__(self, exporter: str, settings: DeliverySettings) -> None:
        self._exporter = exporter
        self._settings = settings
        self._failed: dict[int, _Failed] = {}  # by seq
        self._verdicts: dict[int, _Verdict] = {}  # by the seq of the first record; not ticked off yet
        self._done: set[int] = set()  # the seqs of all verdicts
        self._sends = 0
        self._sent_at = -math.inf  # the time of the last outcome
        self._rested = math.inf  # seconds without a send before the last one
        self._pause = 0.0  # seconds from an outcome to the next send, at least
        self._last_taken = 0  # the number of the last send from which something was taken
        self._taken_up_to = 0  # the last seq that was taken
        self._failing_since = math.inf  # the first temporary failure since another outcome, or since a record was done
        self._trying = Records()  # the batch that is halved now: at the head, or a probe
        self._tried_up_to = 0  # each record up to this seq was tried
        self._probed_at = -settings.between_probes
        self._probes_newest = True  # with the next probe
        self._tries_head = False  # a wait is over: the head is sent again, and then another record that was tried
        self._tries_another = False
        self._another = sys.maxsize  # the seq of the last such record

    def decided(self, batch: Records) -> Decided | None:
        """The decided records at the head of the queue; None if the first record of the batch is not decided."""
        verdict = self._verdicts.get(batch.seqs[0])
        if verdict is None:
            return None
        records = batch[: bisect_right(batch.seqs, verdict.seqs[-1])]
        if verdict.kind is None:
            return Decided(records, [])
        parts = [records] if verdict.kind == "batch" else records.one_by_one()
        return Decided(records, [self._dead_letter(verdict.kind, part, verdict.reason) for part in parts])

    def next(self, batch: Records, waiting: Waiting, now: float) -> Records:
        """What to send next. Empty if nothing may be sent before a new record comes, or a wait is over.

        Args:
            batch: Records from the head of the queue on. The first is intact, and not decided.
            waiting: Reads other records that wait.
            now: Seconds of a monotonic clock.
        """
        self._rested = now - self._sent_at
        if not self._failed and not self._done:
            return batch.until_damage()
        tries_head, self._tries_head = self._tries_head, False
        if not self._is_held_back(batch.seqs[0]):
            self._trying, self._tries_another = batch, False
            return self._part(batch, self._is_held_back)
        if tries_head:
            self._tries_another = True
            return batch[:1]
        part = self._part(self._trying, self._was_refused)
        if not part and self.probe_pause(now) <= 0:
            part = self._probe(batch.seqs[0], waiting)
        if part:
            self._probed_at = now
        return part

    def probe_pause(self, now: float) -> float:
        """Seconds until the next probe may begin; 0 or less if it may begin now."""
        return self._probed_at + self._settings.between_probes - now

    def send_pause(self, now: float) -> float:
        """Seconds until anything may be sent; 0 or less if it may be sent now."""
        return self._sent_at + self._pause - now

    def record_outcome(self, part: Records, outcome: Outcome, now: float) -> Failure | None:
        """Take the outcome of a send into account; a failure if nothing more can be sent before a wait.

        Args:
            part: What was sent, from `next`.
            outcome: Its outcome.
            now: Seconds of a monotonic clock.
        """
        self._sends += 1
        self._sent_at = now
        if not isinstance(outcome, RetryLater):
            self._failing_since = math.inf
        if not isinstance(outcome, RetryLater | Blocked) and self._pause > self._settings.between_probes:
            self._pause -= self._settings.between_probes / 10
        if isinstance(outcome, Delivered):
            self._take(part if outcome.first is None else part[: outcome.first])
            return None
        self._count(part, outcome.reason)
        match outcome:
            case PartiallyRejected(count, reason):
                said = f"{count} of {len(part)} were refused: {reason}"
                if is_taken(part, outcome):
                    self._take(part, "batch", said)
                else:
                    self._decide(part, "batch", said)
            case Rejected(reason):
                self._refuse(part, reason)
            case RetryLater():
                return self._retry(part, outcome, now)
            case Blocked(reason):
                self.forget_evidence()
                if self._narrow(part):
                    return None
                self._avoid_haste()
                return Failure("blocked", reason)
        return None

    def failure_of_head(self, head: int) -> Failure:
        """The failure while the record at the head, with this seq, was refused and nothing says that it is the data.

        If that is true of several records, the backend is blocked rather than each of them bad.
        """
        count = sum(seq >= head and self._is_held_back(seq) for seq in self._failed)
        reason = self._failed[head].reason
        if count == 1:
            return Failure("refused", reason)
        return Failure("blocked", f"nothing is taken: each of {count} records is refused: {reason}")

    def try_again(self) -> None:
        """A wait is over: the head is sent again, even if it was refused, and then one of the others."""
        self._tries_head, self._trying = True, Records()

    def count_as_untried(self) -> None:
        """Somebody may have repaired something, or the backend has changed: what was refused is sent as if it was new.

        Records that were taken out of order are still passed over.
        """
        self._trying, self._tried_up_to = Records(), 0
        for failed in self._failed.values():
            failed.limit = failed.limit if failed.refusal is None else 0
            failed.refusal = None

    def forget_evidence(self) -> None:
        """Forget the evidence that failures are about the data. Records sent out of order are still passed over."""
        self._last_taken = self._taken_up_to = 0
        for failed in self._failed.values():
            failed.failing_for, failed.failed_at = 0.0, math.inf

    def skip(self, batch: Records) -> Decided:
        """Skip a batch, up to the first record that is decided, with the reasons that the backend gave for them."""
        end = next((index for index, seq in enumerate(batch.seqs) if seq in self._done), len(batch))
        records = batch[:end]
        return Decided(records, [self._skipped(record) for record in records.one_by_one()])

    def damaged(self, record: Records) -> DeadLetter:
        """The dead letter of a record that changed on disk."""
        return self._dead_letter("damaged", record, DAMAGED)

    def ticked_off(self, records: Records) -> None:
        """These records do not wait any more."""
        self._failing_since, self._trying = math.inf, Records()
        if self._failed:
            for seq in records.seqs:
                self._failed.pop(seq, None)
            if not self._failed:
                self._pause = 0.0
        verdict = self._verdicts.pop(records.seqs[0], None)
        if verdict is not None:
            self._done.difference_update(records.seqs)
            if rest := verdict.seqs[len(records) :]:  # more than one batch that was read
                self._verdicts[rest[0]] = verdict._replace(seqs=rest)

    def _part(self, batch: Records, passed_over: Callable[[int], bool]) -> Records:
        """The next part of a batch to send: records in a row that have the same limit. Empty if none is left."""
        seqs = batch.seqs
        wanted = (
            index
            for index, seq in enumerate(seqs)
            if batch.intact[index] and seq not in self._done and not passed_over(seq)
        )
        start = next(wanted, None)
        if start is None:
            return Records()
        limit, end = self._of(seqs[start]).limit, start + 1
        for index in wanted:
            if index > end or end - start == limit or self._of(seqs[index]).limit != limit:
                break
            end += 1
        return batch[start:end]

    def _probe(self, head: int, waiting: Waiting) -> Records:
        """What to send while the head waits: after a wait another record that was tried, else one that was not."""
        if self._tries_another:
            self._tries_another = False
            left_out = {*self._done, head}
            another = waiting.newest(self._another - 1, left_out.__contains__)
            if another := another or waiting.newest(sys.maxsize, left_out.__contains__):
                self._another = another.seqs[0]
                return another
        self._trying = self._untried(waiting)
        return self._part(self._trying, self._was_refused)

    def _untried(self, waiting: Waiting) -> Records:
        """In turn the newest record, if it was not tried, and the next batch in which one was not tried."""
        probes_newest, self._probes_newest = self._probes_newest, True
        if probes_newest:
            newest = waiting.newest(sys.maxsize, self._done.__contains__)
            if newest and not self._was_refused(newest.seqs[0]):
                self._probes_newest = False
                return newest
        while batch := waiting.read_behind(self._tried_up_to, self._settings.max_records, self._settings.max_bytes):
            if self._part(batch, self._was_refused):
                return batch
            self._tried_up_to = batch.seqs[-1]
        return Records()

    def _take(self, records: Records, kind: DeadLetterKind | None = None, reason: str = "") -> None:
        if self._failed and any(map(self._was_refused, records.seqs)):
            self.count_as_untried()
        self._last_taken = self._sends
        self._taken_up_to = max(self._taken_up_to, records.seqs[-1])
        self._decide(records, kind, reason)

    def _decide(self, records: Records, kind: DeadLetterKind | None, reason: str) -> None:
        self._verdicts[records.seqs[0]] = _Verdict(records.seqs, kind, reason)
        self._done.update(records.seqs)

    def _refuse(self, part: Records, reason: str) -> None:
        for seq in part.seqs:
            if len(part) > 1 or not self._failed[seq].refused_by:
                self._failed[seq].refused_by = self._sends
        if len(part) > 1:
            self._split(part, len(part) // 2)
            return
        (seq,), words = part.seqs, _words(reason)
        failed = self._failed[seq]
        if failed.refusal != words and self._is_held_back(seq):
            self.count_as_untried()
        failed.limit, failed.refusal = 1, words
        if not self._is_held_back(seq):
            self._decide(part, "record", reason)

    def _retry(self, part: Records, outcome: RetryLater, now: float) -> Failure | None:
        retry, first = self._settings.retry, self._failed[part.seqs[0]]
        self._failing_since = min(self._failing_since, now)
        if not outcome.may_be_data:
            self.forget_evidence()
            self._avoid_haste()
        elif self._narrow(part):
            return None
        else:
            first.failing_for += max(0.0, min(now - first.failed_at, _LONGEST_GAP))
            first.failed_at = now
        if not retry.enabled or 0 < retry.max_elapsed_time <= now - self._failing_since:
            self._decide(part, "record", f"not sent again, as configured: {outcome.reason}")
        elif outcome.may_be_data and first.failing_for >= self._settings.refused_after:
            self._refuse(part, outcome.reason)
        else:
            return Failure("retrying", outcome.reason, outcome.after)
        return None

    def _avoid_haste(self) -> None:
        """The exporter failed, and not because of the data. If it came soon after another send, that may be why."""
        longer = self._pause + self._settings.between_probes
        if self._rested < longer <= _LONGEST_PAUSE and any(failed.refused_by for failed in self._failed.values()):
            self._pause = longer

    def _narrow(self, part: Records) -> bool:
        """Send less of a part, since its failure may be about one record; False if it is one record.

        First one record alone, which tells whether the backend takes anything. If that was done, it has a limit, and
        halves find the record.
        """
        had_limit = self._of(part.seqs[0]).limit > 0
        self._split(part, max(len(part) // 2, 1) if had_limit else 1)
        return len(part) > 1

    def _split(self, part: Records, first: int) -> None:
        """Send the part in two parts, the first with `first` records."""
        for index, seq in enumerate(part.seqs):
            self._failed[seq].limit = first if index < first else len(part) - first

    def _count(self, part: Records, reason: str) -> None:
        reason = sys.intern(str(reason))  # one string for all that are refused alone
        for seq in part.seqs:
            failed = self._failed.setdefault(seq, _Failed())
            failed.attempts += 1
            failed.reason = reason

    def _is_held_back(self, seq: int) -> bool:
        """Whether a record was refused alone, and nothing says yet that it is the data."""
        if not self._was_refused(seq):
            return False
        return self._failed[seq].refused_by > self._last_taken and seq > self._taken_up_to

    def _was_refused(self, seq: int) -> bool:
        return self._of(seq).refusal is not None

    def _of(self, seq: int) -> _Failed:
        return self._failed.get(seq, _UNSENT)

    def _skipped(self, record: Records) -> DeadLetter:
        said = self._of(record.seqs[0]).reason
        return self._dead_letter("record", record, f"{SKIPPED}: {said}" if said else SKIPPED)

    def _dead_letter(self, kind: DeadLetterKind, records: Records, reason: str) -> DeadLetter:
        uid = records.uids[0] if len(records) == 1 else None
        attempts = self._of(records.seqs[0]).attempts
        return DeadLetter(kind, self._exporter, reason, records.content, uid, attempts, len(records))


def _words(reason: str) -> str:
    """A reason without the words that may differ each time: those with a digit, such as numbers, times and ids."""
    return sys.intern(" ".join(word for word in reason.split() if not any(map(str.isdigit, word))))


def is_taken(part: Records, outcome: Outcome) -> bool:
    """Whether the backend has taken something: a partial success can refuse all."""
    return isinstance(outcome, Delivered) or (isinstance(outcome, PartiallyRejected) and outcome.count < len(part))
