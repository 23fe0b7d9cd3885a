"""Decides what to send next, and which records become dead letters. Pure decisions, without I/O or a clock.

A refusal can be the fault of the record or of the backend. A wrong path whose server answers 400 must not turn the
queue into dead letters, and one bad record must not hold up the others. These are the rules:

1. A batch that is refused is halved, in order, until each record that is refused was refused alone.
2. A record becomes a dead letter when it is refused alone and there is evidence that this is its own fault: the
   exporter has taken another record that was sent since this record was last refused together with others, or first
   alone. So the refusal of a batch does not count against each of its records, if the backend breaks while the batch is
   halved. A record that stands behind it is evidence too, for at most ten records.
3. Without evidence the record keeps its place. While it is the head, the records behind it are probed until each was
   tried (refused alone): in turn the newest record and the next batch. A second passes between two probes, but not if
   the head has a fault (8) and the last send was taken.
4. If part of a probe is taken, that is evidence, and the head is sent again. What was taken is passed over later.
5. Once each record was tried, only new ones are probed. After each wait the head and another record are sent, each
   time another one: the backend may have been repaired. Which of both is first has no period: a backend that fails each
   second time must not fail each time that the same of the two is sent.
6. All count as untried when somebody may have repaired something, and when a record that was refused alone is taken, or
   refused in words that are new in this outage, since the backend has changed then. If there are too many wordings,
   only the kind of the answer (the status) counts.
7. Evidence ends when the exporter fails in any other way, since the backend may be a different one after that. But a
   limit on the rate of requests can be the cause. So while a refused record waits, `Pace` finds the pause that two
   sends need between them.
8. A failure that may be about the data (HTTP 500) is a fault. A record that gets one alone keeps its place and counts
   as tried. Its first fault counts, and each one 200 s or more after the last that counted, if another record was taken
   in between; a refusal after a fault counts too. The fourth makes it a dead letter. If a record is taken after two or
   more, the backend fails at random, and all records are back at one. Failures of other kinds do not change this.
9. A record whose next fault counts is sent in turn with those that were not tried. A fault is followed by a wait, but
   not if anything was taken since the last wait, or since a fault of the same record that counted, or if the head was
   refused. So a backend that is away gets one request at a time, and one that takes other records gets them.
"""

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias

from statsig_otel._telemetry import FailedState
from statsig_otel.exporters.delivery.answers import SeenAnswers, is_answer, is_taken
from statsig_otel.exporters.delivery.evidence import UNSENT, Evidence, Failed, Faults
from statsig_otel.exporters.delivery.pace import Pace
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

SKIPPED: Final = "skipped by command"
"""The reason of a dead letter that somebody asked for; what the backend said about the record follows."""

_MORE_UNTRIED: Final = 4
"""After one of so many waits a record is sent that may have been tried, though others were not, and may always fail."""

_ONE_FAILS: Final = "a record fails while others are delivered, and becomes a dead letter if that goes on"
"""The kind of the failure while the record at the head has faults and the backend takes others."""

_NotTaken: TypeAlias = RetryLater | Rejected | PartiallyRejected | Blocked


class Waiting(Protocol):
    """Reads the records that wait, as an `ExporterCursor` does."""

    def newest(self, up_to: int, passed_over: Callable[[int], bool]) -> Records:
        """The newest intact record up to a seq, except for seqs to pass over; empty if there is none."""

    def read_behind(self, after: int, count: int, size: int) -> Records:
        """The next records behind a seq, at most `count`, and `size` bytes or one record."""


class Failure(NamedTuple):
    """Nothing can be sent before a wait; `after` is the least number of seconds that the backend asks for.

    `hint` says what somebody has to do.
    """

    state: FailedState
    reason: str
    after: float | None = None
    hint: str = ""


class Decided(NamedTuple):
    """Records that can be ticked off together, with the dead letters among them."""

    records: Records
    dead_letters: list[DeadLetter]


class _Verdict(NamedTuple):
    """Records that are not sent again: they were taken, or become dead letters of a kind."""

    seqs: tuple[int, ...]
    kind: DeadLetterKind | None
    reason: str


class Decisions:
    """The decisions for one exporter under one configuration, over one database.

    Args:
        exporter: The exporter's id, for its dead letters.
        settings: The sender's settings.
    """

    def __init__(self, exporter: str, settings: DeliverySettings) -> None:
        self._exporter = exporter
        self._settings = settings
        self._failed: dict[int, Failed] = {}  # by seq
        self._verdicts: dict[int, _Verdict] = {}  # by the seq of the first record; not ticked off yet
        self._done: set[int] = set()  # the seqs of all verdicts
        self._sends = 0
        self._sent_at = -math.inf  # the time of the last outcome
        self._pace = Pace(settings.between_probes)
        self._waited_at = 0  # the number of the last send before the last wait, or before the first failure
        self._evidence = Evidence()
        self._faults = Faults(settings.refused_after)
        self._trying = Records()  # the batch that is halved now: at the head, or a probe
        self._tried_up_to = 0  # each record up to this seq was tried
        self._probed_at = -settings.between_probes
        self._probes_newest = True  # with the next probe
        self._head = 0  # the seq of the head at the last send
        self._tries_head = self._tries_another = False  # a wait is over: the head and another record are sent
        self._others = 0  # the number of other records that were to be sent after a wait
        self._another = sys.maxsize  # the seq of the last other record that was sent after a wait
        self._answers = SeenAnswers()  # in this outage

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
        self._head = head = batch.seqs[0]
        if not self._failed and not self._done:
            return batch.until_damage()
        if not self.is_held_back(head):
            self._trying, self._tries_head, self._tries_another = batch, False, False
            return self._part(batch, self.is_held_back)
        if self._tries_head and (not self._tries_another or self._sends.bit_count() % 2):  # an order without a period
            self._tries_head = False
            return batch[:1]
        part, may_probe = Records(), self.probe_pause(now) <= 0
        if self._sends.bit_count() % 2 and (due := self._due(waiting, now)):
            return due
        if may_probe or self._works() or not self._is_faulty(head):
            part = self._part(self._trying, self._was_tried)
        is_delivering = self._is_faulty(head) and self._evidence.taken_by == self._sends
        if not part and (may_probe or is_delivering):
            part = self._probe(head, waiting)
        if part:
            self._probed_at, self._tries_head = now, self._tries_head and not self._is_faulty(head)
        elif self._tries_head:  # no other record waits
            self._tries_head, part = False, batch[:1]
        return part or self._due(waiting, now)

    @property
    def answers(self) -> bool:
        """Whether the backend has answered several sends in a row, though it may have refused them."""
        return self._pace.answers

    def probe_pause(self, now: float) -> float:
        """Seconds until the next probe may begin; 0 or less if it may begin now."""
        return self._probed_at + self._settings.between_probes - now

    def send_pause(self, now: float) -> float:
        """Seconds until anything may be sent; 0 or less if it may be sent now."""
        return self._sent_at + self._pace.pause - now

    def is_held_back(self, seq: int) -> bool:
        """Whether a record was refused alone, or had a fault alone, and nothing says yet that it is the data."""
        failed = self._of(seq)
        return failed.is_tried and (not failed.refused_by or not self._evidence.is_against(seq, failed))

    def record_outcome(self, part: Records, outcome: Outcome, now: float) -> Failure | None:
        """Take the outcome of a send into account; a failure if nothing more can be sent before a wait.

        Args:
            part: What was sent, from `next`.
            outcome: Its outcome.
            now: Seconds of a monotonic clock.
        """
        self._count_send(outcome, now)
        if isinstance(outcome, Delivered):
            self._take_delivered(part, outcome.only)
            return None
        self._count(part, outcome, now)
        match outcome:
            case PartiallyRejected(count, reason):
                said = f"{count} of {len(part)} were refused: {reason}"
                if is_taken(part, outcome):
                    self._take(part, "batch", said)
                else:
                    self._decide(part, "batch", said)
            case Rejected(reason):
                self._refuse(part, reason, now)
            case RetryLater():
                return self._retry(part, outcome, now)
            case Blocked(reason, hint):
                self.forget_evidence()
                if self._narrow(part):
                    return None
                self._avoid_haste()
                return Failure("blocked", self._with_refusal(reason), hint=hint)
        return None

    def failure_of_head(self, head: int) -> Failure:
        """The failure while the record at the head, with this seq, was refused and nothing says that it is the data.

        If others were refused too since anything was taken, the backend is blocked rather than each of them bad.
        """
        reason, taken_by = self._of(head).reason, self._evidence.taken_by
        if self._is_faulty(head):
            others_taken = self._faults.others_taken(head, self._of(head), taken_by)
            return Failure("retrying", f"{_ONE_FAILS}: {reason}" if others_taken else reason)
        others = ((seq, failed) for seq, failed in self._failed.items() if seq > head and self.is_held_back(seq))
        if any(
            failed.refused_by > taken_by if failed.refused_by else not self._faults.others_taken(seq, failed, taken_by)
            for seq, failed in others
        ):
            every = f"nothing is taken: each record that was sent is refused: {reason}"
            return Failure("blocked", every, hint="look at what the backend says, at its limits and at what it takes")
        return Failure("refused", reason)

    def try_again(self) -> None:
        """A wait is over: the head, even if it was refused, and one of the others are sent again, in any order."""
        self._tries_head = self._tries_another = True
        self._trying, self._waited_at = Records(), self._sends

    def count_as_untried(self) -> None:
        """Somebody may have repaired something: what was refused is sent as if it was new.

        Records that were taken out of order are still passed over.
        """
        self._answers.clear()
        self._try_all()

    def _try_all(self) -> None:
        self._trying, self._tried_up_to = Records(), 0
        for failed in self._failed.values():
            failed.limit = 0 if failed.is_tried else failed.limit
            failed.is_tried = False

    def forget_evidence(self) -> None:
        """Forget the evidence that refusals are about the data. Records sent out of order are still passed over."""
        self._evidence.begin_anew(self._sends)

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
        self._trying = Records()
        if self._failed:
            self._faults.remove(records.seqs)
            for seq in records.seqs:
                self._failed.pop(seq, None)
            if not self._failed:
                self._pace.reset()
                self._answers.clear()
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
        """What to send while the head waits: the newest record or, in turn, others that were not tried.

        After a wait it can be another record, which may have been tried.
        """
        tries_another, self._tries_another = self._tries_another, False
        if newest := self._newest_untried(waiting):
            self._trying = newest
            return newest
        if tries_another:
            self._others += 1
            if self._others % _MORE_UNTRIED and (untried := self._next_untried(waiting)):
                return untried
            left_out = {*self._done, head}
            another = waiting.newest(self._another - 1, left_out.__contains__)
            if another := another or waiting.newest(sys.maxsize, left_out.__contains__):
                self._another = another.seqs[0]
                return another
        return self._next_untried(waiting)

    def _next_untried(self, waiting: Waiting) -> Records:
        """The next records that were not tried, from the head on; empty if there are none."""
        while batch := waiting.read_behind(self._tried_up_to, self._settings.max_records, self._settings.max_bytes):
            if part := self._part(batch, self._was_tried):
                self._trying = batch
                return part
            self._tried_up_to = batch.seqs[-1]
        return Records()

    def _newest_untried(self, waiting: Waiting) -> Records:
        """The newest record if it was not tried, but not twice in a row; else empty."""
        probes_newest, self._probes_newest = self._probes_newest, True
        if probes_newest:
            newest = waiting.newest(sys.maxsize, self._done.__contains__)
            if newest and not self._was_tried(newest.seqs[0]):
                self._probes_newest = False
                return newest
        return Records()

    def _due(self, waiting: Waiting, now: float) -> Records:
        """A record whose next fault counts, alone; empty if there is none."""
        while (seq := self._faults.due(self._evidence.taken_by, now)) is not None:
            if record := waiting.newest(seq, seq.__ne__):
                return record
            self._faults.remove([seq])  # it was damaged meanwhile
        return Records()

    def _take_delivered(self, part: Records, only: Sequence[int] | None) -> None:
        """Take a part, or only the records at some positions: those that follow each other together."""
        if only is None:
            self._take(part)
            return
        begin = 0
        for end in range(1, len(only) + 1):
            if end == len(only) or only[end] != only[end - 1] + 1:
                self._take(part[only[begin] : only[end - 1] + 1])
                begin = end

    def _take(self, records: Records, kind: DeadLetterKind | None = None, reason: str = "") -> None:
        if self._failed:
            taken = [self._of(seq) for seq in records.seqs]
            if any(failed.is_tried for failed in taken):
                self._try_all()
            if any(failed.faults > 1 for failed in taken):  # the backend fails at random
                for failed in self._failed.values():
                    failed.faults = min(failed.faults, 1)
        self._evidence.take(self._sends, records.seqs[-1])
        self._decide(records, kind, reason)

    def _decide(self, records: Records, kind: DeadLetterKind | None, reason: str) -> None:
        self._verdicts[records.seqs[0]] = _Verdict(records.seqs, kind, reason)
        self._done.update(records.seqs)
        self._faults.remove(records.seqs)

    def _refuse(self, part: Records, reason: str, now: float) -> None:
        seq, first = part.seqs[0], self._failed[part.seqs[0]]
        if len(part) > 1 or not first.refused_by:
            for each in part.seqs:  # only what is taken from now on says that these records are at fault
                self._failed[each].refused_by = self._sends
        if len(part) > 1:
            self._split(part, len(part) // 2)
            return
        self._set_tried(seq, reason)
        if not self.is_held_back(seq):
            self._decide(part, "record", reason)
            self._evidence.settle(first.refused_by)
        elif seq in self._faults and self._faults.add(seq, first, self._sends, self._evidence.taken_by, now):
            self._decide(part, "record", reason)

    def _set_tried(self, seq: int, reason: str) -> None:
        """A record was refused alone, or had a fault alone."""
        if self._answers.is_new(reason) and self.is_held_back(seq):
            self._try_all()
        self._failed[seq].limit, self._failed[seq].is_tried = 1, True

    def _retry(self, part: Records, outcome: RetryLater, now: float) -> Failure | None:
        if not outcome.may_be_data:
            self.forget_evidence()
            self._avoid_haste()
            failure = Failure("retrying", self._with_refusal(outcome.reason), outcome.after)
            return failure if not self._give_up(part, outcome, now) or outcome.after is not None else None
        failed = [self._failed[seq] for seq in part.seqs]
        for each in failed:
            each.faults, each.refused_by = max(each.faults, 1), 0
        seq, taken_by = part.seqs[0], self._evidence.taken_by
        works = self._works() or self._faults.others_taken(seq, failed[0], taken_by)
        if not self._narrow(part) and not self._give_up(part, outcome, now):
            is_at_fault = self._faults.add(seq, failed[0], self._sends, taken_by, now)
            self._set_tried(seq, outcome.reason)
            if is_at_fault:
                self._decide(part, "record", outcome.reason)
        waits = outcome.after is not None or (self._is_faulty(self._head) and not works)
        return Failure("retrying", outcome.reason, outcome.after) if waits else None

    def _give_up(self, part: Records, outcome: RetryLater, now: float) -> bool:
        """Make dead letters of the first records of a part, if they are configured to end; whether all do."""
        retry, end = self._settings.retry, len(part)
        if retry.enabled:
            longest = retry.max_elapsed_time or math.inf
            lasting = (now - self._failed[seq].failing_since for seq in part.seqs)
            end = next((index for index, lasts in enumerate(lasting) if lasts < longest), end)
        if end:
            self._decide(part[:end], "record", f"not sent again, as configured: {outcome.reason}")
        return end == len(part)

    def _with_refusal(self, reason: str) -> str:
        """The reason of a failure and, if the head was refused before, why: that still holds it up afterwards."""
        head = self._of(self._head)
        return f"{reason}; before, a record was refused: {head.reason}" if head.is_tried else reason

    def _avoid_haste(self) -> None:
        """The exporter failed, and not because of the data. If it came soon after another send, that may be why."""
        if any(failed.refused_by or failed.faults for failed in self._failed.values()):
            self._pace.failed(self._sent_at)

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

    def _count_send(self, outcome: Outcome, now: float) -> None:
        if not self._failed:
            self._waited_at = self._sends
        self._sends += 1
        self._sent_at = now
        if is_answer(outcome):
            self._pace.answered(now)

    def _count(self, part: Records, outcome: _NotTaken, now: float) -> None:
        reason = self._answers.kept(outcome.reason, len(self._failed))
        for seq in part.seqs:
            failed = self._failed.setdefault(seq, Failed())
            failed.attempts += 1
            failed.failing_since = min(failed.failing_since, now) if isinstance(outcome, RetryLater) else math.inf
            if is_answer(outcome) or not failed.is_tried:
                failed.reason = reason

    def _works(self) -> bool:
        """Whether anything was taken since the last wait."""
        return self._evidence.taken_by > self._waited_at

    def _is_faulty(self, seq: int) -> bool:
        """Whether a record had a fault alone, and was not refused since."""
        return seq in self._faults and not self._of(seq).refused_by

    def _was_tried(self, seq: int) -> bool:
        return self._of(seq).is_tried

    def _of(self, seq: int) -> Failed:
        return self._failed.get(seq, UNSENT)

    def _skipped(self, record: Records) -> DeadLetter:
        said = self._of(record.seqs[0]).reason
        return self._dead_letter("record", record, f"{SKIPPED}: {said}" if said else SKIPPED)

    def _dead_letter(self, kind: DeadLetterKind, records: Records, reason: str) -> DeadLetter:
        uid = records.uids[0] if len(records) == 1 else None
        attempts = self._of(records.seqs[0]).attempts
        return DeadLetter(kind, self._exporter, reason, records.content, uid, attempts, len(records))
