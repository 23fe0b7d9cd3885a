"""The rule about refusals, as a property: whatever a backend does, each dead letter and each wait has its reason."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

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
        self.probed_at = 0.0
        self.has_to_wait = False
        self.begin_anew()

    def begin_anew(self) -> None:
        """All count as untried."""
        self.probe: set[int] = set()  # the records that were read last to be sent
        self.tried: set[int] = set()
        self.refusals: dict[int, str] = {}  # the words of each refusal alone

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

    @rule()
    def repair(self) -> None:
        self.decisions.count_as_untried()
        self.begin_anew()

    @rule(steps=st.integers(1, 30), waits=st.booleans())
    def send(self, steps: int, waits: bool) -> None:
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
        head, probe = self.waiting[0], self.probe
        part = self.decisions.next(batch, self, self.now)
        if not part:
            assert self.waits(head), "a head that may be sent is sent"
            assert self.decisions.all_refused(head).state in ("refused", "blocked")
            self.has_to_wait = self.decisions.probe_pause(self.now) <= 0
            if self.has_to_wait:
                untried = {*self.waiting} - {*self.taken, *self.dead_letters} - self.tried
                assert not untried, "each that waits is tried before new ones are waited for"
            return
        assert not {*part.seqs} & {*self.taken, *self.dead_letters}
        if not self.waits(head):
            assert part.seqs[0] == head
            self.probe = {*batch.seqs}
        elif part.seqs[0] != head:
            assert part.seqs[0] in probe or self.now - self.probed_at >= SETTINGS.between_probes
            self.probed_at = self.now
        self.judge(part, self.answer(part.seqs))

    def newest(self, up_to: int, passed_over: Callable[[int], bool]) -> Records:
        return self.read([seq for seq in reversed(self.waiting) if seq <= up_to and not passed_over(seq)][:1])

    def read_behind(self, after: int, count: int, size: int) -> Records:
        assert size == SETTINGS.max_bytes
        return self.read([seq for seq in self.waiting if seq > after][:count])

    def read(self, seqs: list[int]) -> Records:
        self.probe = {*seqs}
        return records(seqs)

    def waits(self, seq: int) -> bool:
        return seq in self.refusals and not self.is_data(seq)

    def answer(self, seqs: tuple[int, ...]) -> Outcome:
        qualities = {self.quality[seq] for seq in seqs}
        match self.mood:
            case "refuses all":
                return Rejected("wrong path")
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
                self.take(taken)
                assert failure is None
            case PartiallyRejected(count) if count < len(seqs):
                self.take(seqs)
            case PartiallyRejected():
                self.history.append(Sent((), "unclear"))
                self.taken += seqs
            case Blocked():
                self.history.append(Sent(seqs, "failed"))
                self.tried.update(seqs if len(seqs) == 1 else ())
                assert failure == (Failure("blocked", outcome.reason) if len(seqs) == 1 else None)
            case RetryLater(may_be_data=False):
                self.history.append(Sent(seqs, "failed"))
                assert failure == Failure("retrying", outcome.reason)
            case RetryLater():
                self.tried.update(seqs if len(seqs) == 1 else ())
                if len(seqs) == 1 and self.failing_for(seqs[0]) >= SETTINGS.refused_after:
                    self.refuse(seqs, outcome.reason, fault_at=self.now)
                    assert failure is None
                else:
                    self.history.append(Sent(seqs, "unclear", self.now))
                    assert failure == (Failure("retrying", outcome.reason) if len(seqs) == 1 else None)
            case Rejected():
                self.refuse(seqs, outcome.reason)
                assert failure is None
        self.has_to_wait = failure is not None

    def take(self, seqs: tuple[int, ...]) -> None:
        self.history.append(Sent(seqs, "taken"))
        self.taken += seqs
        if self.refusals.keys() & {*seqs}:
            self.begin_anew()

    def refuse(self, seqs: tuple[int, ...], reason: str, fault_at: float | None = None) -> None:
        self.history.append(Sent(seqs, "refused", fault_at))
        if len(seqs) > 1:
            return
        if self.waits(seqs[0]) and self.refusals[seqs[0]] != reason:
            self.begin_anew()
        self.tried.update(seqs)
        self.refusals[seqs[0]] = reason
        decided = self.decisions.decided(records(seqs))
        assert (decided is not None) == self.is_data(seqs[0]), "a dead letter exactly if another record was taken"
        if decided is not None:
            (dead_letter,) = decided.dead_letters
            assert (dead_letter.kind, dead_letter.content) == ("record", b"%d" % seqs[0])
            self.dead_letters += seqs

    def is_data(self, seq: int) -> bool:
        """The rule, from the history: the last send is a refusal of this record alone."""
        first = next(index for index, sent in enumerate(self.history) if sent.kind == "refused" and seq in sent.seqs)
        since = range(len(self.history) - 1, self.last_failed(), -1)
        taken = ((index, self.history[index].seqs) for index in since if self.history[index].kind == "taken")
        return any(index > first or max(seqs) > seq for index, seqs in taken)

    def failing_for(self, seq: int) -> float:
        """How long this record alone gets faults that may be about it, this moment included."""
        since = self.history[self.last_failed() + 1 :]
        faults = [sent.fault_at for sent in since if sent.fault_at is not None and sent.seqs == (seq,)]
        return sum(min(later - earlier, 60.0) for earlier, later in pairwise([*faults, self.now]))

    def last_failed(self) -> int:
        """The index of the last failure of another kind, after which the backend may be a different one; or -1."""
        backwards = range(len(self.history) - 1, -1, -1)
        return next((index for index in backwards if self.history[index].kind == "failed"), -1)

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
        while self.waiting and before != (before := (len(self.waiting), len(self.taken), len(self.tried))):
            for _ in range(12 + len(self.waiting)):
                self.now += 60.0
                self.end_wait()
                for _ in range(3):
                    self.now += 1.0
                    self.send(10, waits=True)


BROKEN = RetryLater("HTTP 500", may_be_data=True)


@pytest.mark.parametrize("other", [RetryLater("connection refused"), Blocked("HTTP 401"), None])
def test_two_isolated_faults_make_no_dead_letter_of_a_good_record(other: Outcome | None) -> None:
    decisions, head = Decisions("out", DeliverySettings()), records([1])
    decisions.record_outcome(head, BROKEN, 0.0)
    for now in (5.0, 700.0):
        decisions.try_again()
        if other:
            decisions.record_outcome(head, other, now)
    assert decisions.record_outcome(head, BROKEN, 730.0) == Failure("retrying", "HTTP 500")
    for now in range(760, 1260, 30):
        assert decisions.record_outcome(head, BROKEN, now) == Failure("retrying", "HTTP 500")
    decisions.record_outcome(head, BROKEN, 1300.0)
    assert decisions.record_outcome(head, BROKEN, 1360.0) is None, "a row of ten minutes counts as a refusal"
    assert decisions.all_refused(1).state == "refused"


@pytest.mark.parametrize("other", [Rejected("no"), Blocked("HTTP 401")])
def test_max_elapsed_time_counts_temporary_failures_in_a_row(other: Outcome) -> None:
    bounded = RetrySettings(max_elapsed_time=60.0)
    decisions, head, away = Decisions("out", DeliverySettings(retry=bounded)), records([1]), RetryLater("away")
    for now, outcome in ((0.0, away), (5.0, other), (700.0, away), (755.0, away)):
        decisions.record_outcome(head, outcome, now)
        assert decisions.decided(head) is None
    assert decisions.record_outcome(head, away, 760.0) is None
    assert decisions.decided(head) is not None


class Simulation:
    """A sender without threads, in seconds of its own: each send takes 5 ms, each wait five minutes."""

    def __init__(self, answer: Callable[[tuple[int, ...]], Outcome]) -> None:
        self.answer = answer
        self.settings = DeliverySettings(max_records=64)
        self.decisions = Decisions("out", self.settings)
        self.now = 0.0
        self.next_attempt = 300.0
        self.arrived = records(())
        self.position = 0
        self.taken: list[int] = []
        self.dead_letters: list[int] = []
        self.sends: list[tuple[int, ...]] = []
        self.read = 0  # how many records the decisions looked at

    def newest(self, up_to: int, passed_over: Callable[[int], bool]) -> Records:
        for seq in range(min(up_to, len(self.arrived)), self.position, -1):
            self.read += 1
            if not passed_over(seq):
                return self.arrived[seq - 1 : seq]
        return Records()

    def read_behind(self, after: int, count: int, size: int) -> Records:
        assert (count, size) == (self.settings.max_records, self.settings.max_bytes)
        after = max(after, self.position)
        self.read += len(found := self.arrived[after : after + count])
        return found

    def run(self, seconds: float, *arriving: int) -> Self:
        """Let records arrive, and then time pass."""
        self.arrived += records(arriving)
        end = self.now + seconds
        while self.now < end and (batch := self.arrived[self.position : self.position + self.settings.max_records]):
            if (decided := self.decisions.decided(batch)) is not None:
                self.dead_letters += decided.records.seqs if decided.dead_letters else ()
                self.position = decided.records.seqs[-1]
                self.decisions.ticked_off(decided.records)
            elif part := self.decisions.next(batch, self, self.now):
                outcome = self.answer(part.seqs)
                self.sends.append(part.seqs)
                self.taken += part.seqs if isinstance(outcome, Delivered) else ()
                self.now += 0.005
                assert self.decisions.record_outcome(part, outcome, self.now) is None
            elif (pause := self.decisions.probe_pause(self.now)) > 0:
                self.now += pause
            elif self.next_attempt < end:
                self.now = max(self.now, self.next_attempt)
                self.next_attempt = self.now + 300.0
                self.decisions.try_again()
            else:
                break
        self.now = max(self.now, end)
        return self


def refusing(is_bad: Callable[[int], bool], reason: str = "no") -> Callable[[tuple[int, ...]], Outcome]:
    return lambda seqs: Rejected(reason) if any(map(is_bad, seqs)) else Delivered()


@pytest.mark.parametrize(
    ("is_bad", "seconds"),
    [
        pytest.param(lambda seq: seq == 1, 1, id="one bad record at the head"),
        pytest.param(lambda seq: seq in (1, 2000), 2, id="and one at the end"),
        pytest.param(lambda seq: seq % 3 == 1, 1, id="every third is bad"),
        pytest.param(lambda seq: not 1000 < seq <= 1400, 40, id="good records in the middle"),
        pytest.param(lambda seq: seq != 1000, 40, id="one good record in the middle"),
    ],
)
def test_the_good_records_of_a_large_backlog_are_found_soon(is_bad: Callable[[int], bool], seconds: float) -> None:
    """One by one, the last of them would take hours."""
    made = Simulation(refusing(is_bad)).run(0.0, 1).run(seconds, *range(2, 2001))
    assert made.taken
    made.run(100.0)
    assert sorted(made.taken) == [seq for seq in range(1, 2001) if not is_bad(seq)]
    assert {*made.taken, *made.dead_letters} >= {*range(1, max(made.taken))}, "what is bad before them is settled"


def test_a_backend_that_refuses_everything_gets_each_record_in_about_two_requests() -> None:
    """And after that two in five minutes. Each decision is cheap: nothing reads the whole queue again."""
    made = Simulation(refusing(lambda seq: True)).run(100.0, *range(1, 2001))
    assert {seqs for seqs in made.sends if len(seqs) == 1} == {(seq,) for seq in range(1, 2001)}, "each was tried"
    assert len(made.sends) < 2 * 2000
    assert made.read < 3 * 2000
    sends, read = len(made.sends), made.read
    made.run(1500.0)
    assert made.sends[sends:] == [(1,), (2000,), (1,), (1999,), (1,), (1998,), (1,), (1997,), (1,), (1996,)]
    assert made.read - read < 50
    assert made.decisions.all_refused(1).reason == "nothing is taken: each of 2000 records is refused: no"


def test_bad_records_that_keep_coming_hide_no_good_one() -> None:
    made = Simulation(refusing(lambda seq: seq != 2)).run(1.2, 1).run(0.7, 2, 3)
    for seq in range(4, 8):
        made.run(0.7, seq)
    assert made.taken == [2]


def test_what_was_refused_counts_as_untried_once_the_backend_answers_otherwise() -> None:
    """It was repaired by itself. The head and the newest records are bad, so a slow attempt alone finds nothing."""
    good = range(2, 1900)
    made = Simulation(refusing(lambda seq: True, "unknown tenant")).run(60.0, *range(1, 2001))
    assert not made.taken
    made.answer = refusing(lambda seq: seq not in good)
    made.run(300.0)
    assert sorted(made.taken) == [*good]
    assert made.dead_letters == [1, *range(1900, 2001)]


def test_an_answer_with_other_numbers_is_the_same_answer() -> None:
    """Loki says which timestamp would be old enough now, and others give each answer an id."""
    made = Simulation(lambda seqs: Rejected(f"HTTP 400: older than 10:{made.now:.0f}, id {hash(made.now):x}1"))
    made.run(60.0, *range(1, 101))
    sends = len(made.sends)
    made.run(900.0)
    assert len(made.sends) == sends + 2 * 3


def test_records_that_were_refused_before_a_repair_are_sent_in_batches_after_it() -> None:
    made = Simulation(refusing(lambda seq: True)).run(60.0, *range(1, 121))
    sends, made.answer = len(made.sends), refusing(lambda seq: False)
    made.run(300.0)
    assert made.sends[sends:] == [(1,), tuple(range(2, 66)), tuple(range(66, 121))]


Delivery.TestCase.settings = limited(max_examples=limited().max_examples * 2, stateful_step_count=30)
TestDelivery = Delivery.TestCase
