"""Decides what to send next, and which records become dead letters. Pure decisions, without I/O or a clock.

A refusal can be the fault of the record or of the backend. A wrong path whose server answers 400 must not turn the
queue into dead letters, and one bad record must not hold up the others. These are the rules:

1. A batch that is refused is halved, in order, until each record that is refused was refused alone.
2. A record becomes a dead letter when it is refused alone and there is evidence that this is its own fault: the
   exporter has taken another record that was sent since this record was last refused together with others, or first
   alone. So the refusal of a batch does not count against each of its records, if the backend breaks while the batch is
   halved. A record that stands behind it is evidence too, for at most ten records.
3. Without evidence the record keeps its place. While it is the head, the records behind it are probed until each was
   tried (refused alone): in turn the newest record and the next batch. A second passes between two probes.
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
8. A failure that may be about the data (HTTP 500) is a fault. A record that gets one alone keeps its place too, and
   counts as tried. Ten minutes after its first one, its faults count as refusals. Only what was taken since the first
   one is evidence, and some faults have to follow it: a backend that comes back can fail at random. If records with
   faults are taken after all, the others need more of them. If a record is refused after faults, only what was taken
   since that refusal is evidence. The ten minutes run for all records at once, and stand still while the exporter fails
   in any other way.
9. A fault is followed by a wait, as is a failure of any other kind. But if anything was taken since the last wait, or
   if the head was refused, the sender goes on with rule 3. So a backend that is away gets one request at a time, and
   one that takes other records gets them.
"""

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from statsig_otel._telemetry import FailedState
from statsig_otel.exporters.delivery.answers import SeenAnswers, is_taken, words_of
from statsig_otel.exporters.delivery.evidence import FEWEST_FAULTS, UNSENT, Evidence, Failed
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

_LONGEST_GAP: Final = 60.0
"""The most seconds that count between two sends for a row of faults: two far apart show nothing of the time between."""

_MORE_UNTRIED: Final = 4
"""After so many waits a record that may have been tried is sent, though others were not: those may fail each time."""


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
        self._clock = 0.0  # of faults: seconds in which the exporter did not fail in any other way
        self._runs = False  # this clock
        self._evidence = Evidence()
        self._failing_since = math.inf  # the first temporary failure since another outcome, or since a record was done
        self._trying = Records()  # the batch that is halved now: at the head, or a probe
        self._tried_up_to = 0  # each record up to this seq was tried
        self._probed_at = -settings.between_probes
        self._probes_newest = True  # with the next probe
        self._head = 0  # the seq of the head at the last send
        self._tries_head = self._tries_another = False  # a wait is over: the head and another record are sent
        self._others = 0  # the number of other records that were to be sent after a wait
        self._another = sys.maxsize  # the seq of the last other record that was sent after a wait
        self._answers = SeenAnswers()  # how records were refused alone in this outage

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
        if may_probe or self._works() or not self._of(head).is_fault:
            part = self._part(self._trying, self._was_refused)
        if not part and may_probe:
            part = self._probe(head, waiting)
        if part:
            self._probed_at, self._tries_head = now, self._tries_head and not self._may_pass(head)
        elif self._tries_head:  # no other record waits
            self._tries_head, part = False, batch[:1]
        return part

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
        if failed.refusal is None or self._may_pass(seq) or self._evidence.is_unclear(failed):
            return failed.refusal is not None
        return not self._evidence.is_against(seq, failed)

    def record_outcome(self, part: Records, outcome: Outcome, now: float) -> Failure | None:
        """Take the outcome of a send into account; a failure if nothing more can be sent before a wait.

        Args:
            part: What was sent, from `next`.
            outcome: Its outcome.
            now: Seconds of a monotonic clock.
        """
        if not self._failed:
            self._waited_at = self._sends
        self._sends += 1
        self._pass_time(outcome, now)
        if not isinstance(outcome, RetryLater):
            self._failing_since = math.inf
        if isinstance(outcome, Delivered):
            self._take_delivered(part, outcome.only)
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
            case Blocked(reason, hint):
                self.forget_evidence()
                if self._narrow(part):
                    return None
                self._avoid_haste()
                return Failure("blocked", self._with_refusal(reason), hint=hint)
        return None

    def failure_of_head(self, head: int) -> Failure:
        """The failure while the record at the head, with this seq, was refused and nothing says that it is the data.

        If that is true of several records, the backend is blocked rather than each of them bad.
        """
        reason = self._of(head).refusal or ""
        if self._may_pass(head) or self._evidence.is_unclear(self._of(head)):
            return Failure("retrying", reason)
        if any(seq > head and self.is_held_back(seq) for seq in self._failed):
            every = f"nothing is taken: each record that was sent is refused: {reason}"
            return Failure("blocked", every, hint="look at what the backend says, at its limits and at what it takes")
        return Failure("refused", reason)

    def try_again(self) -> None:
        """A wait is over: the head is sent again, even if it was refused, and then one of the others."""
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
            failed.limit = failed.limit if failed.refusal is None else 0
            failed.refusal = None

    def forget_evidence(self) -> None:
        """Forget the evidence that failures are about the data. Records sent out of order are still passed over."""
        self._evidence.forget()

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
                self._evidence.needed = FEWEST_FAULTS
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
            if part := self._part(batch, self._was_refused):
                self._trying = batch
                return part
            self._tried_up_to = batch.seqs[-1]
        return Records()

    def _newest_untried(self, waiting: Waiting) -> Records:
        """The newest record if it was not tried, but not twice in a row; else empty."""
        probes_newest, self._probes_newest = self._probes_newest, True
        if probes_newest:
            newest = waiting.newest(sys.maxsize, self._done.__contains__)
            if newest and not self._was_refused(newest.seqs[0]):
                self._probes_newest = False
                return newest
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
            for failed in taken:
                if failed.faulty_since < math.inf:
                    self._evidence.passed(failed.counted + 1)
            if any(failed.refusal is not None for failed in taken):
                self._try_all()
        self._evidence.take(self._sends, records.seqs[-1])
        self._decide(records, kind, reason)

    def _decide(self, records: Records, kind: DeadLetterKind | None, reason: str) -> None:
        self._verdicts[records.seqs[0]] = _Verdict(records.seqs, kind, reason)
        self._done.update(records.seqs)

    def _refuse(self, part: Records, reason: str, *, is_fault: bool = False) -> None:
        first = self._failed[part.seqs[0]]
        if len(part) > 1 or not first.refused_by or (first.is_fault and not is_fault):
            self._begin_evidence(part, is_fault=is_fault)
        if len(part) > 1:
            self._split(part, len(part) // 2)
            return
        (seq,) = part.seqs
        failed = self._failed[seq]
        is_new = self._answers.is_new(reason)
        if is_new and self.is_held_back(seq) and words_of(failed.refusal or "") != words_of(reason):
            self._try_all()
        failed.limit, failed.refusal, failed.is_fault = 1, failed.reason, is_fault
        if not self.is_held_back(seq):
            self._decide(part, "record", reason)
            self._evidence.settle(failed.refused_by)

    def _begin_evidence(self, part: Records, *, is_fault: bool) -> None:
        """Only what is taken from now on says that these records are at fault."""
        for seq in part.seqs:
            failed = self._failed[seq]
            failed.refused_by, failed.is_fault = self._sends, is_fault
            failed.had_faults = failed.had_faults or is_fault

    def _retry(self, part: Records, outcome: RetryLater, now: float) -> Failure | None:
        retry, first = self._settings.retry, self._failed[part.seqs[0]]
        failure = Failure("retrying", outcome.reason, outcome.after)
        self._failing_since = min(self._failing_since, now)
        lasts = now - self._failing_since
        if not outcome.may_be_data:
            self.forget_evidence()
            self._avoid_haste()
        elif self._narrow(part):
            self._begin_evidence(part, is_fault=True)
            return failure if self._may_pass(self._head) and not self._works() else None
        else:
            if first.faulty_since == math.inf:
                first.faulty_since = self._clock
                self._begin_evidence(part, is_fault=True)
            first.counted += self._evidence.follows(first)
            lasts = max(lasts, self._clock - first.faulty_since)
        if not retry.enabled or 0 < retry.max_elapsed_time <= lasts:
            self._decide(part, "record", f"not sent again, as configured: {outcome.reason}")
            return None
        if not outcome.may_be_data:
            return failure._replace(reason=self._with_refusal(outcome.reason))
        self._refuse(part, outcome.reason, is_fault=True)
        return failure if self._may_pass(self._head) and not self._works() else None

    def _with_refusal(self, reason: str) -> str:
        """The reason of a failure and, if the head was refused before, why: that still holds it up afterwards."""
        refusal = self._of(self._head).refusal
        return f"{reason}; before, a record was refused: {refusal}" if refusal else reason

    def _avoid_haste(self) -> None:
        """The exporter failed, and not because of the data. If it came soon after another send, that may be why."""
        if any(failed.refused_by for failed in self._failed.values()):
            self._pace.failed(self._sent_at)

    def _pass_time(self, outcome: Outcome, now: float) -> None:
        """Let the clock of faults run between two answers."""
        answers = outcome.may_be_data if isinstance(outcome, RetryLater) else not isinstance(outcome, Blocked)
        if answers:
            self._pace.answered(now)
            if self._runs:
                self._clock += max(0.0, min(now - self._sent_at, _LONGEST_GAP))
        self._runs, self._sent_at = answers, now

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
            failed = self._failed.setdefault(seq, Failed())
            failed.attempts += 1
            failed.reason = reason

    def _may_pass(self, seq: int) -> bool:
        """Whether a record had a fault alone, and its faults do not count as a refusal yet."""
        failed = self._of(seq)
        is_early = self._clock - failed.faulty_since < self._settings.refused_after
        return failed.refusal is not None and failed.is_fault and is_early

    def _works(self) -> bool:
        """Whether anything was taken since the last wait."""
        return self._evidence.taken_by > self._waited_at

    def _was_refused(self, seq: int) -> bool:
        return self._of(seq).refusal is not None

    def _of(self, seq: int) -> Failed:
        return self._failed.get(seq, UNSENT)

    def _skipped(self, record: Records) -> DeadLetter:
        said = self._of(record.seqs[0]).reason
        return self._dead_letter("record", record, f"{SKIPPED}: {said}" if said else SKIPPED)

    def _dead_letter(self, kind: DeadLetterKind, records: Records, reason: str) -> DeadLetter:
        uid = records.uids[0] if len(records) == 1 else None
        attempts = self._of(records.seqs[0]).attempts
        return DeadLetter(kind, self._exporter, reason, records.content, uid, attempts, len(records))
