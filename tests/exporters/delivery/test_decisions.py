"""The rule about refusals, as a property: whatever a backend does, each dead letter and each wait has its reason."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import settings as limited
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from statsig_otel.exporters.delivery.decisions import Decisions, Failure
from statsig_otel.exporters.delivery.retry import RetrySettings
from statsig_otel.exporters.delivery.settings import DeliverySettings
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, PartiallyRejected, Rejected, RetryLater
from statsig_otel.exporters.queue.records import Records

Quality = Literal["good", "refused", "broken"]
Mood = Literal["well", "refuses all", "away", "locked", "broken", "takes the first"]

SETTINGS = DeliverySettings(max_records=6, refused_after=100.0)


def records(seqs: Iterable[int]) -> Records:
    seqs = tuple(seqs)
    payloads = tuple(b"%d" % seq for seq in seqs)
    return Records(seqs, tuple(bytes(16) for _ in seqs), payloads, (True,) * len(seqs))


@dataclass
class Sent:
    """One send of the model's history."""

    seqs: tuple[int, ...]
    kind: Literal["taken", "refused", "failed", "unclear"]
    fault_at: float | None = None  # when it got a fault that may be about the data


class Delivery(RuleBasedStateMachine):
    """Records, a backend with moods, and a history from which the rule is computed anew for each refusal."""

    @initialize()
    def begin(self) -> None:
        self.decisions = Decisions("out", SETTINGS)
        self.now = 1000.0
        self.mood: Mood = "well"
        self.quality: dict[int, Quality] = {}
        self.waiting: list[int] = []
        self.history: list[Sent] = []
        self.taken: list[int] = []
        self.dead_letters: list[int] = []
        self.refused_alone: list[int] = []
        self.probed_at = 0.0
        self.has_to_wait = False

    @rule(quality=st.sampled_from(["good", "good", "refused", "broken"]), count=st.integers(1, 4))
    def arrive(self, quality: Quality, count: int) -> None:
        for _ in range(count):
            seq = len(self.quality) + 1
            self.quality[seq] = quality
            self.waiting.append(seq)

    @rule(
        mood=st.sampled_from(["well", "well", "well", "refuses all", "away", "locked", "broken", "takes the first"]),
        steps=st.integers(0, 9),
    )
    def change(self, mood: Mood, steps: int) -> None:
        self.mood = mood
        self.send(steps, waits=False)

    @rule(seconds=st.sampled_from([0.1, 1.0, 60.0, 700.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def renew(self) -> None:
        self.decisions.forget_evidence()
        self.history.append(Sent((), "failed"))

    @rule(steps=st.integers(1, 30), waits=st.booleans())
    def send(self, steps: int, waits: bool) -> None:  # noqa: FBT001 - a rule's signature
        if self.has_to_wait and not waits:
            self.end_wait()
        for _ in range(steps):
            self.step()

    def end_wait(self) -> None:
        self.has_to_wait = False
        self.decisions.try_again()

    @invariant()
    def nothing_is_lost_or_sent_again(self) -> None:
        if not hasattr(self, "taken"):
            return
        assert len(self.taken) == len(set(self.taken)), "what was taken is not sent again"
        assert len(self.dead_letters) == len(set(self.dead_letters))
        assert {*self.taken, *self.dead_letters} | {*self.waiting} == {*self.quality}

    def step(self) -> None:
        """What the sender does next, if it does not have to wait."""
        if not self.waiting or self.has_to_wait:
            return
        self.now += 0.01
        batch = records(self.waiting[: SETTINGS.max_records])
        if (decided := self.decisions.decided(batch)) is not None:
            assert decided.records.seqs == tuple(self.waiting[: len(decided.records)]), "only from the head on"
            self.waiting = self.waiting[len(decided.records) :]
            self.decisions.ticked_off(decided.records)
            return
        segment = self.decisions.next(batch)
        if not segment:
            segment = self.decisions.probe(batch[:1], partial(newest, self.waiting), self.now)
            if segment:
                assert self.now - self.probed_at >= SETTINGS.between_probes
                self.probed_at = self.now
        if not segment:
            assert self.decisions.all_refused().state in ("refused", "blocked")
            self.has_to_wait = self.decisions.probe_pause(self.now) <= 0
            if self.has_to_wait:
                untried = {*self.waiting} - {*self.taken, *self.dead_letters} - {*self.refused_alone}
                assert not untried, "each that waits is tried before new ones are waited for"
            return
        assert not {*segment.seqs} & {*self.taken, *self.dead_letters}
        self.judge(segment, self.answer(segment.seqs))

    def answer(self, seqs: tuple[int, ...]) -> Outcome:
        qualities = {self.quality[seq] for seq in seqs}
        match self.mood:
            case "refuses all":
                return Rejected("no")
            case "away":
                return RetryLater("away")
            case "locked":
                return Blocked("who are you")
            case "broken":
                return RetryLater("oops", may_be_data=True)
            case "takes the first" if self.quality[seqs[0]] == "good" and len(seqs) > 1:
                return Delivered(first=1)
        if "broken" in qualities:
            return RetryLater("oops", may_be_data=True)
        if "refused" in qualities:
            return Rejected("no") if len(seqs) % 2 else PartiallyRejected(1, "one") if len(seqs) > 4 else Rejected("no")
        return Delivered()

    def judge(self, segment: Records, outcome: Outcome) -> None:
        """Tell the outcome, and compare what is decided with the rule."""
        seqs = segment.seqs
        failure = self.decisions.record_outcome(segment, outcome, self.now)
        match outcome:
            case Delivered(first):
                taken = seqs[:first]
                self.history.append(Sent(taken, "taken"))
                self.taken += taken
                assert failure is None
            case PartiallyRejected():
                self.history.append(Sent(seqs, "taken"))
                self.taken += seqs
            case Blocked():
                self.history.append(Sent(seqs, "failed"))
                assert failure == (Failure("blocked", outcome.reason) if len(seqs) == 1 else None)
            case RetryLater(may_be_data=False):
                self.history.append(Sent(seqs, "failed"))
                assert failure == Failure("retrying", outcome.reason)
            case RetryLater():
                if len(seqs) == 1 and self.failing_for(seqs[0]) >= SETTINGS.refused_after:
                    self.refuse(seqs, fault_at=self.now)
                    assert failure is None
                else:
                    self.history.append(Sent(seqs, "unclear", self.now))
                    assert failure == (Failure("retrying", outcome.reason) if len(seqs) == 1 else None)
            case Rejected():
                self.refuse(seqs)
                assert failure is None
        self.has_to_wait = failure is not None

    def refuse(self, seqs: tuple[int, ...], fault_at: float | None = None) -> None:
        self.history.append(Sent(seqs, "refused", fault_at))
        if len(seqs) > 1:
            return
        self.refused_alone += seqs
        decided = self.decisions.decided(records(seqs))
        assert (decided is not None) == self.is_data(seqs[0]), "a dead letter exactly if another record was taken"
        if decided is not None:
            (dead_letter,) = decided.dead_letters
            assert (dead_letter.kind, dead_letter.content) == ("record", b"%d" % seqs[0])
            self.dead_letters += seqs

    def is_data(self, seq: int) -> bool:
        """The rule, from the history: the last send is a refusal of this record alone."""
        first = next(index for index, sent in enumerate(self.history) if sent.kind == "refused" and seq in sent.seqs)
        return any(
            sent.kind == "taken" and (index > first or max(sent.seqs) > seq)
            for index, sent in enumerate(self.history)
            if index > self.last_failed()
        )

    def failing_for(self, seq: int) -> float:
        """How long this record alone gets faults that may be about it, this moment included."""
        since = self.history[self.last_failed() + 1 :]
        faults = [sent.fault_at for sent in since if sent.fault_at is not None and sent.seqs == (seq,)]
        return sum(min(later - earlier, 60.0) for earlier, later in pairwise([*faults, self.now]))

    def last_failed(self) -> int:
        """The index of the last failure of another kind, after which the backend may be a different one; or -1."""
        return max((index for index, sent in enumerate(self.history) if sent.kind == "failed"), default=-1)

    def teardown(self) -> None:
        """Once the backend is well, all that is good is delivered, and the rest is given up: none blocks for good."""
        if not hasattr(self, "taken"):
            return
        self.mood = "well"
        self.settle()
        good = {seq for seq, quality in self.quality.items() if quality == "good"}
        assert good <= {*self.taken, *self.dead_letters}, (
            "what is refused holds up nothing, and no new record is needed"
        )
        while self.waiting:
            self.arrive("good", 1)
            self.settle()
        assert {*self.dead_letters} | {*self.taken} == {*self.quality}

    def settle(self) -> None:
        """Let time pass until nothing is left to do."""
        before = None
        while self.waiting and before != (before := (len(self.waiting), len(self.taken), len({*self.refused_alone}))):
            for _ in range(12 + len(self.waiting)):
                self.now += 60.0
                self.end_wait()
                for _ in range(3):
                    self.now += 1.0
                    self.send(10, waits=True)


def newest(waiting: Sequence[int], up_to: int, passed_over: Callable[[int], bool]) -> Records:
    return records([seq for seq in reversed(waiting) if seq <= up_to and not passed_over(seq)][:1])


BROKEN = RetryLater("HTTP 500", may_be_data=True)


@pytest.mark.parametrize("other", [RetryLater("connection refused"), Blocked("HTTP 401"), None])
def test_two_isolated_faults_make_no_dead_letter_of_a_good_record(other: Outcome | None) -> None:
    decisions, head = Decisions("out", DeliverySettings()), records([1])
    decisions.record_outcome(decisions.next(head), BROKEN, 0.0)
    for now in (5.0, 700.0):
        decisions.try_again()
        if other:
            decisions.record_outcome(decisions.next(head), other, now)
    assert decisions.record_outcome(head, BROKEN, 730.0) == Failure("retrying", "HTTP 500")
    for now in range(760, 1260, 30):
        assert decisions.record_outcome(head, BROKEN, now) == Failure("retrying", "HTTP 500")
    decisions.record_outcome(head, BROKEN, 1300.0)
    assert decisions.record_outcome(head, BROKEN, 1360.0) is None, "a row of ten minutes counts as a refusal"
    assert decisions.all_refused().state == "refused"


@pytest.mark.parametrize("other", [Rejected("no"), Blocked("HTTP 401")])
def test_max_elapsed_time_counts_temporary_failures_in_a_row(other: Outcome) -> None:
    bounded = RetrySettings(max_elapsed_time=60.0)
    decisions, head, away = Decisions("out", DeliverySettings(retry=bounded)), records([1]), RetryLater("away")
    for now, outcome in ((0.0, away), (5.0, other), (700.0, away), (755.0, away)):
        decisions.record_outcome(head, outcome, now)
        assert decisions.decided(head) is None
    assert decisions.record_outcome(head, away, 760.0) is None
    assert decisions.decided(head) is not None


def test_a_probe_looks_at_each_record_a_few_times_however_many_wait() -> None:
    """All are refused. Each probe goes on where the last one ended, and a new record is tried at once."""
    decisions, waiting, looked_at, now = Decisions("out", SETTINGS), [*range(1, 1001)], 0, 0.0

    def find(up_to: int, passed_over: Callable[[int], bool]) -> Records:
        nonlocal looked_at
        for seq in reversed(waiting[:up_to]):
            looked_at += 1
            if not passed_over(seq):
                return records([seq])
        return Records()

    def probe() -> Records:
        while part := decisions.next(records(waiting[:6])):
            decisions.record_outcome(part, Rejected("no"), now)
        return decisions.probe(records(waiting[:1]), find, now)

    tried: list[int] = []
    while part := probe():
        tried += part.seqs
        decisions.record_outcome(part, Rejected("no"), now)
        now += 1.0
    assert tried == [*range(1000, 6, -1)]
    waiting += [1001, 1002]
    for newcomer in (1002, 1001):
        part = probe()
        assert part.seqs == (newcomer,)
        decisions.record_outcome(part, Rejected("no"), now)
        now += 1.0
    assert not probe()
    assert looked_at < 5 * len(waiting)
    assert decisions.all_refused().reason == "nothing is taken: each of 1002 records is refused: no"


Delivery.TestCase.settings = limited(max_examples=limited().max_examples * 2, stateful_step_count=30)
TestDelivery = Delivery.TestCase
