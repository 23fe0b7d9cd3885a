"""The rule about refusals, as a property: whatever a backend does, each dead letter and each wait has its reason."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
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
        self.counted: dict[int, int] = {}  # each record's faults that count
        self.counted_last: dict[int, int] = {}  # the place of the last of them in the history, if it was alone
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
            expected = ["retrying"] if self.is_faulty(head) else ["refused", "blocked"]
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
        elif len(part) == 1 and self.is_due(part.seqs[0]):
            self.probe |= probe
        elif part.seqs[0] != head:
            may_probe = self.now - self.probed_at >= SETTINGS.between_probes
            assert part.seqs[0] in probe or may_probe or (self.is_faulty(head) and self.last_was_taken())
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
        return seq in self.refusals and not (self.refusals_of(seq) and self.is_data(seq))

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
                is_passed = self.counted.get(seqs[0], 0) > 1 or self.was_taken_since_it_counted(seqs[0])
                self.counted.update((seq, max(self.counted.get(seq, 0), 1)) for seq in seqs)
                self.refuse(seqs, reason, "fault")
                waits = self.is_faulty(head) and not self.works() and not is_passed
                assert failure == (Failure("retrying", reason) if waits else None)
            case Rejected():
                self.refuse(seqs, outcome.reason, "refused")
                assert failure is None
        self.has_to_wait = failure is not None

    def take(self, seqs: tuple[int, ...]) -> None:
        self.history.append(Sent(seqs, "taken", self.now))
        self.taken += seqs
        self.settled = 0
        if any(self.counted.get(seq, 0) > 1 for seq in seqs):
            self.counted = dict.fromkeys(self.counted, 1)
        if self.refusals.keys() & {*seqs}:
            self.begin_anew()

    def refuse(self, seqs: tuple[int, ...], reason: str, kind: Literal["refused", "fault"]) -> None:
        waited = len(seqs) == 1 and self.waits(seqs[0])
        is_due = self.is_due(seqs[0])
        self.history.append(Sent(seqs, kind, self.now))
        if len(seqs) > 1:
            return
        (seq,) = seqs
        if reason not in self.answers and waited:
            self.begin_anew()
        self.answers.add(reason)
        self.tried.add(seq)
        self.refusals[seq] = reason
        self.counted[seq] = self.counted.get(seq, 0) + is_due
        if is_due or (kind == "fault" and seq not in self.counted_last):
            self.counted_last[seq] = len(self.history) - 1
        decided = self.decisions.decided(self.records(seqs))
        assert (decided is not None) == (not self.waits(seq) or self.counted[seq] > 3), "only what is at fault"
        if decided is not None:
            (dead_letter,) = decided.dead_letters
            assert (dead_letter.kind, dead_letter.content) == ("record", b"%d" % seq)
            self.dead_letters += seqs
            self.settled += not self.waits(seq) and not self.was_taken_since(seq)
            if self.settled == 10:
                self.used_up_at = len(self.history)

    def is_due(self, seq: int) -> bool:
        """Whether the next fault of this record alone counts."""
        last = self.counted_last.get(seq)
        if last is None or not self.was_taken_since_it_counted(seq):
            return False
        return self.now - (self.history[last].at or 0.0) >= SETTINGS.refused_after / 3

    def was_taken_since_it_counted(self, seq: int) -> bool:
        since = self.counted_last.get(seq)
        return since is not None and any(sent.kind == "taken" for sent in self.history[since:])

    def is_data(self, seq: int) -> bool:
        """The rule, from the history: whether a refusal of this record alone is its own fault."""
        behind = not self.counted.get(seq) and any(
            index >= self.used_up_at and max(seqs) > seq for index, seqs in self.taken_lately()
        )
        return behind or self.was_taken_since(seq)

    def was_taken_since(self, seq: int) -> bool:
        """Whether another record was taken since this one was refused last with others, or else first alone."""
        refusals = self.refusals_of(seq)
        together = [index for index in refusals if len(self.history[index].seqs) > 1]
        return any(index > (together or refusals)[-1 if together else 0] for index, _ in self.taken_lately())

    def refusals_of(self, seq: int) -> list[int]:
        """The places of this record's refusals in the history, since its last fault."""
        places = [index for index, sent in enumerate(self.history) if self.is_refusal(sent) and seq in sent.seqs]
        faults = [index for index in places if self.history[index].kind == "fault"]
        return [index for index in places if index > max(faults, default=-1)]

    def is_refusal(self, sent: Sent) -> bool:
        return sent.kind in ("refused", "fault")

    def taken_lately(self) -> list[tuple[int, tuple[int, ...]]]:
        """What was taken since the exporter failed otherwise, with its place in the history."""
        since = range(self.last_failed() + 1, len(self.history))
        return [(index, self.history[index].seqs) for index in since if self.history[index].kind == "taken"]

    def works(self) -> bool:
        return any(sent.kind == "taken" for sent in self.history[self.waited_at :])

    def last_was_taken(self) -> bool:
        return next((sent.kind == "taken" for sent in reversed(self.history) if sent.at is not None), False)

    def is_faulty(self, seq: int) -> bool:
        """Whether this record had a fault alone, and was not refused since."""
        return seq in self.counted_last and not self.refusals_of(seq)

    def with_refusal(self, reason: str, head: int) -> str:
        refusal = self.refusals.get(head)
        return f"{reason}; before, a record was refused: {refusal}" if refusal else reason

    def last_failed(self) -> int:
        """The index of the last failure of another kind, after which the backend may be a different one; or -1."""
        backwards = range(len(self.history) - 1, -1, -1)
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
def test_an_outage_counts_once_however_long_it_lasts(other: Outcome | None) -> None:
    """After each of two outages the backend takes one record, and the head still fails."""
    made = Simulation(lambda seqs: BROKEN)
    for seq in (2, 3):
        made.run(7200.0, *range(len(made.arrived) + 1, seq + 1))
        assert made.decisions.failure_of_head(1).state == "retrying"
        made.answer = lambda seqs, seq=seq: other if other and seq in seqs else BROKEN  # type: ignore[misc]
        made.run(60.0)
        made.answer = lambda seqs, seq=seq: Delivered() if seqs == (seq,) else BROKEN  # type: ignore[misc]
        made.run(60.0)
        assert seq in made.taken
        made.answer = lambda seqs: BROKEN
    made.run(7200.0, 4)
    made.answer = lambda seqs: Delivered()
    made.run(600.0)
    assert (made.dead_letters, sorted(made.taken)) == ([], [1, 2, 3, 4])


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
