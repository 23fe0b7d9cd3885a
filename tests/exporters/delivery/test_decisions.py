"""The rule about refusals, as a property: whatever a backend does, each dead letter and each wait has its reason."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

import pytest
from hypothesis import settings as limited
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from statsig_otel.exporters.delivery.decisions import Decisions, Failure
from statsig_otel.exporters.delivery.retry import RetrySettings
from statsig_otel.exporters.delivery.settings import DeliverySettings
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, PartiallyRejected, Rejected, RetryLater
from statsig_otel.exporters.queue.records import Records
from tests.exporters.delivery.helpers import records
from tests.exporters.delivery.simulation import Simulation

Quality = Literal["good", "refused", "broken", "damaged"]
Mood = Literal["well", "refuses all", "away", "locked", "broken", "takes some", "takes none", "limits the rate"]

SETTINGS = DeliverySettings(max_records=6, refused_after=100.0)


@dataclass
class Sent:
    """One send of the model's history."""

    seqs: tuple[int, ...]
    kind: Literal["taken", "refused", "fault", "failed", "unclear"]  # a fault may be about the data
    at: float | None = None  # None if nothing was sent


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
        self.probed_at = self.taken_at = 0.0
        self.has_to_wait = False
        self.read_up_to = 0
        self.failed: set[int] = set()  # the records that wait and were sent, and not taken
        self.answers: set[str] = set()  # the words of all refusals alone since one of them failed
        self.settled = 0  # dead letters since something was taken, only because that stands behind them
        self.used_up_at = 0  # the length of the history when there were ten
        self.needed = 3  # faults that count: more if a record that had some was taken after all
        self.waited_at = 0  # the length of the history at the last wait, or before the first failure
        self.begin_anew()

    def begin_anew(self) -> None:
        """All count as untried."""
        self.probe: set[int] = set()  # the records that were read last to be sent
        self.tried: set[int] = set()
        self.refusals: dict[int, str] = {}  # the words of each refusal alone

    @rule(quality=st.sampled_from(["good", "good", "refused", "broken", "damaged"]), count=st.integers(1, 4))
    def arrive(self, quality: Quality, count: int) -> None:
        for _ in range(count):
            seq = len(self.quality) + 1
            self.quality[seq] = quality
            self.waiting.append(seq)

    @rule(
        mood=st.sampled_from(["well", "well", "well", *get_args(Mood)]),
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

    @rule()
    def repair(self) -> None:
        self.decisions.count_as_untried()
        self.answers.clear()
        self.begin_anew()

    @rule(steps=st.integers(1, 30), waits=st.booleans())
    def send(self, steps: int, waits: bool) -> None:
        self.read_up_to = 0
        if self.has_to_wait and not waits:
            self.end_wait()
        for _ in range(steps):
            self.step()

    @rule(count=st.integers(1, 4))
    def skip(self, count: int) -> None:
        if self.waiting and self.decisions.decided(self.batch()) is None:
            skipped = self.decisions.skip(self.batch()[:count]).records
            self.dead_letters += skipped.seqs
            self.tick_off(skipped)
            self.end_wait()

    def end_wait(self) -> None:
        self.has_to_wait, self.read_up_to, self.waited_at = False, 0, len(self.history)
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
        self.now += max(0.01, self.decisions.send_pause(self.now))
        batch = self.batch()
        if (decided := self.decisions.decided(batch)) is not None:
            self.tick_off(decided.records)
            return
        if not batch.intact[0]:
            self.dead_letters += batch.seqs[:1]
            self.tick_off(batch[:1])
            return
        head, probe = self.waiting[0], self.probe
        part = self.decisions.next(batch, self, self.now)
        if not part:
            assert self.waits(head), "a head that may be sent is sent"
            expected = ["retrying"] if self.may_pass(head) or self.is_unclear(head) else ["refused", "blocked"]
            assert self.decisions.failure_of_head(head).state in expected
            self.has_to_wait = self.decisions.probe_pause(self.now) <= 0
            if self.has_to_wait:
                untried = {*self.waiting} - {*self.taken, *self.dead_letters} - self.tried
                untried = {seq for seq in untried if self.quality[seq] != "damaged"}
                assert not untried, "each that waits is tried before new ones are waited for"
            return
        assert all(part.intact)
        assert {*part.seqs} <= {*self.waiting} - {*self.taken, *self.dead_letters}
        if not self.waits(head):
            assert part.seqs[0] == head
            self.probe = {*batch.seqs}
        elif part.seqs[0] != head:
            assert part.seqs[0] in probe or self.now - self.probed_at >= SETTINGS.between_probes
            self.probed_at = self.now
        if not self.failed:
            self.waited_at = len(self.history)
        self.judge(part, self.answer(part.seqs), head)

    def tick_off(self, done: Records) -> None:
        assert done.seqs == tuple(self.waiting[: len(done)]), "only from the head on"
        self.waiting = self.waiting[len(done) :]
        self.decisions.ticked_off(done)
        self.failed.difference_update(done.seqs)
        if not self.failed:
            self.answers.clear()
            self.needed = 3

    def newest(self, up_to: int, passed_over: Callable[[int], bool]) -> Records:
        intact = [seq for seq in self.waiting if seq <= up_to and self.quality[seq] != "damaged"]
        return self.read([seq for seq in reversed(intact) if not passed_over(seq)][:1])

    def read_behind(self, after: int, count: int, size: int) -> Records:
        assert size == SETTINGS.max_bytes
        return self.read([seq for seq in self.waiting if seq > after][:count])

    def read(self, seqs: list[int]) -> Records:
        self.probe = {*seqs}
        return self.records(seqs)

    def records(self, seqs: Iterable[int]) -> Records:
        found = records(seqs)
        return replace(found, intact=tuple(self.quality[seq] != "damaged" for seq in found.seqs))

    def batch(self) -> Records:
        """What is left of the batch that was read last, else the next one."""
        head = self.waiting[: SETTINGS.max_records]
        batch = [seq for seq in head if seq <= self.read_up_to] or head
        self.read_up_to = batch[-1]
        return self.records(batch)

    def waits(self, seq: int) -> bool:
        return seq in self.refusals and (self.may_pass(seq) or self.is_unclear(seq) or not self.is_data(seq))

    def answer(self, seqs: tuple[int, ...]) -> Outcome:
        qualities = {self.quality[seq] for seq in seqs}
        if self.is_too_soon():
            return RetryLater("too soon")
        match self.mood:
            case "refuses all":
                return Rejected("wrong path")
            case "takes none":
                return PartiallyRejected(len(seqs), "none of them")
            case "away":
                return RetryLater("away")
            case "locked":
                return Blocked("who are you")
            case "broken":
                return RetryLater("oops", may_be_data=True)
            case "takes some" if taken := [index for index, seq in enumerate(seqs) if self.quality[seq] == "good"]:
                return Delivered(taken)
        if "broken" in qualities:
            return RetryLater("oops", may_be_data=True)
        if "refused" in qualities:
            return Rejected("no") if len(seqs) % 2 else PartiallyRejected(1, "one") if len(seqs) > 4 else Rejected("no")
        return Delivered()

    def is_too_soon(self) -> bool:
        too_soon = self.mood == "limits the rate" and self.now - self.taken_at < 2.5
        if not too_soon:
            self.taken_at = self.now
        return too_soon

    def judge(self, segment: Records, outcome: Outcome, head: int) -> None:
        """Tell the outcome, and compare what is decided with the rule."""
        seqs = segment.seqs
        if not isinstance(outcome, Delivered):
            self.failed.update(seqs)
        failure = self.decisions.record_outcome(segment, outcome, self.now)
        match outcome:
            case Delivered(only):
                self.take(seqs if only is None else tuple(seqs[index] for index in only))
                assert failure is None
            case PartiallyRejected(count) if count < len(seqs):
                self.take(seqs)
            case PartiallyRejected():
                self.history.append(Sent((), "unclear", self.now))
                self.taken += seqs
            case Blocked():
                self.history.append(Sent(seqs, "failed", self.now))
                assert failure == (
                    Failure("blocked", self.with_refusal(outcome.reason, head)) if len(seqs) == 1 else None
                )
            case RetryLater(may_be_data=False):
                self.history.append(Sent(seqs, "failed", self.now))
                assert failure == Failure("retrying", self.with_refusal(outcome.reason, head))
            case RetryLater(reason):
                if len(seqs) == 1:
                    self.refuse(seqs, reason, "fault")
                else:
                    self.history.append(Sent(seqs, "fault", self.now))
                waits = self.may_pass(head) and not self.works()
                assert failure == (Failure("retrying", reason) if waits else None)
            case Rejected():
                self.refuse(seqs, outcome.reason)
                assert failure is None
        self.has_to_wait = failure is not None

    def take(self, seqs: tuple[int, ...]) -> None:
        self.history.append(Sent(seqs, "taken", self.now))
        self.taken += seqs
        self.settled = 0
        needed = [3 * (self.counted(seq) + 1) for seq in seqs if self.faults(seq)]
        self.needed = min(max([self.needed, *needed]), 60)
        if self.refusals.keys() & {*seqs}:
            self.begin_anew()

    def refuse(self, seqs: tuple[int, ...], reason: str, kind: Literal["refused", "fault"] = "refused") -> None:
        is_new = len(seqs) == 1 and reason not in self.answers
        waited = self.waits(seqs[0]) and self.refusals[seqs[0]] != reason
        self.history.append(Sent(seqs, kind, self.now))
        if len(seqs) > 1:
            return
        if is_new and waited:
            self.begin_anew()
        self.answers.add(reason)
        self.tried.update(seqs)
        self.refusals[seqs[0]] = reason
        decided = self.decisions.decided(self.records(seqs))
        assert (decided is not None) != self.waits(seqs[0]), "a dead letter exactly if another record was taken"
        if decided is not None:
            (dead_letter,) = decided.dead_letters
            assert (dead_letter.kind, dead_letter.content) == ("record", b"%d" % seqs[0])
            self.dead_letters += seqs
            self.settled += not self.was_taken_since(seqs[0])
            if self.settled == 10:
                self.used_up_at = len(self.history)

    def is_data(self, seq: int) -> bool:
        """The rule, from the history: whether a refusal of this record alone is its own fault."""
        had_faults = any(sent.kind == "fault" and seq in sent.seqs for sent in self.history)
        behind = not had_faults and any(
            index >= self.used_up_at and max(seqs) > seq for index, seqs in self.taken_lately()
        )
        return behind or self.was_taken_since(seq)

    def was_taken_since(self, seq: int, up_to: int | None = None) -> bool:
        """Whether another record was taken since this one was refused last with others, or else first alone.

        It begins anew with the first fault, and with a refusal that follows a fault.

        Args:
            seq: The record.
            up_to: The length of the history that counts; None for all.
        """
        history = self.history[:up_to]
        refusals = [index for index, sent in enumerate(history) if self.is_refusal(sent) and seq in sent.seqs]
        alone = [index for index in refusals if len(history[index].seqs) == 1]
        changed = [
            index
            for before, index in pairwise(refusals)
            if (history[before].kind, history[index].kind) == ("fault", "refused")
        ]
        refused_at = max([*({*refusals} - {*alone}), *self.faults(seq)[:1], *changed], default=refusals[0])
        return any(index > refused_at for index, _ in self.taken_lately(up_to))

    def is_refusal(self, sent: Sent) -> bool:
        return sent.kind in ("refused", "fault")

    def taken_lately(self, up_to: int | None = None) -> list[tuple[int, tuple[int, ...]]]:
        """What was taken since the exporter failed otherwise, with its place in the history."""
        since = range(self.last_failed(up_to) + 1, len(self.history[:up_to]))
        return [(index, self.history[index].seqs) for index in since if self.history[index].kind == "taken"]

    def works(self) -> bool:
        return any(index >= self.waited_at for index, _ in self.taken_lately())

    def may_pass(self, seq: int) -> bool:
        """Whether the last answer to this record alone is a fault, and its faults do not last long enough."""
        if seq not in self.refusals or not self.is_fault(seq):
            return False
        return self.lasts(self.faults(seq)[0]) < SETTINGS.refused_after

    def is_unclear(self, seq: int) -> bool:
        """Whether something was taken since this record's first fault, and too few faults followed it."""
        return self.is_fault(seq) and self.was_taken_since(seq) and self.counted(seq) < self.needed

    def counted(self, seq: int) -> int:
        """The faults of this record alone that followed what was taken since its first one."""
        return sum(self.was_taken_since(seq, index) for index in self.faults(seq)[1:])

    def is_fault(self, seq: int) -> bool:
        """Whether the last answer to this record alone is a fault."""
        alone = [sent.kind for sent in self.history if self.is_refusal(sent) and sent.seqs == (seq,)]
        return alone[-1:] == ["fault"]

    def faults(self, seq: int) -> list[int]:
        """The places of this record's faults alone in the history."""
        return [index for index, sent in enumerate(self.history) if sent.kind == "fault" and sent.seqs == (seq,)]

    def lasts(self, first: int) -> float:
        """Seconds since a send in which the exporter did not fail otherwise, up to the last send."""
        sends = [sent for sent in self.history[first:] if sent.at is not None]
        pairs = [pair for pair in pairwise(sends) if all(sent.kind != "failed" for sent in pair)]
        return sum(min((after.at or 0.0) - (before.at or 0.0), 60.0) for before, after in pairs)

    def with_refusal(self, reason: str, head: int) -> str:
        refusal = self.refusals.get(head)
        return f"{reason}; before, a record was refused: {refusal}" if refusal else reason

    def last_failed(self, up_to: int | None = None) -> int:
        """The index of the last failure of another kind, after which the backend may be a different one; or -1."""
        backwards = range(len(self.history[:up_to]) - 1, -1, -1)
        return next((index for index in backwards if self.history[index].kind == "failed"), -1)

    def teardown(self) -> None:
        """Once the backend takes what is good, that is delivered, and the rest is given up: none blocks for good."""
        if not hasattr(self, "taken"):
            return
        if self.mood != "limits the rate":
            self.mood = "well"
        self.settle()
        good = {seq for seq, quality in self.quality.items() if quality == "good"}
        assert good <= {*self.taken, *self.dead_letters}, (
            "what is refused holds up nothing, and no new record is needed"
        )
        for _ in range(100):
            if self.waiting:
                self.arrive("good", 1)
                self.settle()
        assert {*self.dead_letters} | {*self.taken} == {*self.quality}

    def settle(self) -> None:
        """Let time pass until nothing is left to do."""
        before = None
        while self.waiting and before != (before := (len(self.waiting), len(self.taken), len(self.tried))):
            for _ in range(18 + len(self.waiting)):
                self.now += 60.0
                self.end_wait()
                for _ in range(3):
                    self.now += 1.0
                    self.send(10, waits=True)


BROKEN = RetryLater("HTTP 500", may_be_data=True)


@pytest.mark.parametrize("other", [RetryLater("connection refused"), Blocked("HTTP 401"), None])
def test_two_isolated_faults_make_no_dead_letter_of_a_good_record(other: Outcome | None) -> None:
    """Of the time between two sends a minute counts at most, and none if one of them failed otherwise."""
    made = Simulation(lambda seqs: Delivered())
    made.arrived = head = records([1])

    def send(now: float, outcome: Outcome) -> Failure | None:
        made.decisions.try_again()
        assert made.decisions.next(head, made, now).seqs == (1,), "there is no other to send instead"
        return made.decisions.record_outcome(head, outcome, now)

    send(0.0, BROKEN)
    for now in (5.0, 700.0):
        if other:
            send(now, other)
    assert send(730.0, BROKEN) == Failure("retrying", "HTTP 500")
    for now in range(760, 1260, 30):
        assert send(now, BROKEN) == Failure("retrying", "HTTP 500")
    send(1300.0, BROKEN)
    assert send(1360.0, BROKEN) is None, "ten minutes count as a refusal"
    assert made.decisions.failure_of_head(1).state == "refused"


def test_what_was_taken_between_a_fault_and_the_first_refusal_is_no_evidence() -> None:
    """Somebody changed the backend meanwhile, and now it refuses everything."""
    no = Rejected("HTTP 400: no such path")
    made = Simulation(lambda seqs: BROKEN if 1 in seqs else Delivered()).run(30.0, 1).run(30.0, 2)
    assert made.taken == [2]
    made.answer = lambda seqs: no
    made.run(1000.0, 3)
    assert made.sends[-3:].count((1,)) in (1, 2), "it is tried again and again"
    assert made.dead_letters == []
    made.answer = lambda seqs: no if 1 in seqs else Delivered()
    made.run(1000.0)
    assert (made.dead_letters, made.taken) == ([1], [2, 3]), "what is taken after the refusal is evidence"


@pytest.mark.parametrize("other", [Rejected("no"), Blocked("HTTP 401")])
def test_max_elapsed_time_counts_temporary_failures_in_a_row(other: Outcome) -> None:
    bounded = RetrySettings(max_elapsed_time=60.0)
    decisions, head, away = Decisions("out", DeliverySettings(retry=bounded)), records([1]), RetryLater("away")
    for now, outcome in ((0.0, away), (5.0, other), (700.0, away), (755.0, away)):
        decisions.record_outcome(head, outcome, now)
        assert decisions.decided(head) is None
    assert decisions.record_outcome(head, away, 760.0) is None
    assert decisions.decided(head) is not None


def test_what_was_taken_together_is_ticked_off_as_it_is_read() -> None:
    """The limit in bytes can end a batch in the middle of it."""
    decisions = Decisions("out", SETTINGS)
    decisions.record_outcome(records([2, 3, 4]), PartiallyRejected(1, "one"), 0.0)
    for batch, seqs in ((records([2, 3]), (2, 3)), (records([4, 5]), (4,))):
        decided = decisions.decided(batch)
        assert decided
        assert decided.records.seqs == seqs
        assert [(one.content, one.reason) for one in decided.dead_letters] == [
            (decided.records.content, "1 of 3 were refused: one")
        ]
        decisions.ticked_off(decided.records)
    assert decisions.decided(records([5])) is None


Delivery.TestCase.settings = limited(max_examples=limited().max_examples * 2, stateful_step_count=30)
TestDelivery = Delivery.TestCase
