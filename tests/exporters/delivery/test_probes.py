"""Probes behind a refused head: how soon good records are found, at what cost, and what a backend's faults change."""

from collections.abc import Callable
from typing import Self

import pytest

from statsig_otel.exporters.delivery.decisions import Decisions
from statsig_otel.exporters.delivery.settings import DeliverySettings
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, PartiallyRejected, Rejected, RetryLater
from statsig_otel.exporters.queue.records import Records
from tests.exporters.delivery.helpers import records


class Simulation:
    """A sender without threads, in its own seconds: a send takes 5 ms, a wait five minutes, or 5 s after a failure."""

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
            elif (pause := self.decisions.send_pause(self.now)) > 0:
                self.now += pause
            elif part := self.decisions.next(batch, self, self.now):
                outcome = self.answer(part.seqs)
                self.sends.append(part.seqs)
                self.taken += part.seqs if isinstance(outcome, Delivered) else ()
                self.now += 0.005
                if self.decisions.record_outcome(part, outcome, self.now):
                    self.now += 5.0
                    self.decisions.try_again()
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
    assert made.decisions.failure_of_head(1).reason == "nothing is taken: each of 2000 records is refused: no"


def test_bad_records_that_keep_coming_hide_no_good_one() -> None:
    made = Simulation(refusing(lambda seq: seq != 2)).run(1.2, 1).run(0.7, 2, 3)
    for seq in range(4, 8):
        made.run(0.7, seq)
    assert made.taken == [2]


@pytest.mark.parametrize("fault", [RetryLater("500", may_be_data=True), Blocked("404"), RetryLater("a timeout")])
def test_a_record_that_always_fails_otherwise_hides_none_that_comes_later(fault: Outcome) -> None:
    made, sent = Simulation(refusing(lambda seq: True)).run(1.0, 1), list[tuple[int, ...]]()
    for step in range(40):
        made.arrived = records(range(1, 7 if step > 20 else 4))
        if part := made.decisions.next(made.arrived, made, now := 30.0 * step + 1.0):
            sent.append(part.seqs)
            if made.decisions.record_outcome(part, fault if 2 in part.seqs else Rejected("no"), now):
                made.decisions.try_again()
    assert sent[:4] == [(3,), (2,), (1,), (3,)]
    assert {(4,), (5,), (6,)} <= {*sent}


def test_what_was_ticked_off_is_not_sent_again() -> None:
    made = Simulation(refusing(lambda seq: True)).run(2.0, 1).run(0.1, 2, 3)
    assert made.sends == [(1,), (3,)]
    for done, outcome in ((1, None), (2, PartiallyRejected(1, "no"))):
        head = made.arrived[done - 1 : done]
        if outcome:
            assert made.decisions.next(made.arrived[1:], made, made.now).seqs == (2,)
            made.decisions.record_outcome(head, outcome, made.now)
        made.decisions.ticked_off(head)
        made.position = done
    assert made.decisions.next(made.arrived[2:], made, made.now).seqs == ()


def test_what_was_refused_counts_as_untried_once_the_backend_answers_otherwise() -> None:
    """It was repaired by itself. The head and the newest records are bad, so a slow attempt alone finds nothing."""
    good = [*range(2, 1900), 2001]
    made = Simulation(refusing(lambda seq: True, "unknown tenant")).run(60.0, *range(1, 2001))
    assert not made.taken
    made.answer = refusing(lambda seq: seq not in good)
    made.run(300.0)
    assert sorted(made.taken) == good[:-1]
    assert made.dead_letters == [1, 1900], "nothing was taken since the rest was refused together"
    made.run(1.0, 2001)
    assert made.dead_letters == [1, *range(1900, 2001)]


def test_an_answer_with_other_numbers_is_the_same_answer() -> None:
    """Loki says which timestamp would be old enough now, and others give each answer an id."""

    class Message(str):
        """Exporters may have strings of their own."""

        __slots__ = ()

    made = Simulation(lambda seqs: Rejected(Message(f"HTTP 400: older than 10:{made.now:.0f}, id x{hash(made.now)}")))
    made.run(60.0, *range(1, 101))
    sends = len(made.sends)
    made.run(900.0)
    assert len(made.sends) == sends + 2 * 3


def test_records_that_were_refused_before_a_repair_are_sent_in_batches_after_it() -> None:
    made = Simulation(refusing(lambda seq: True)).run(60.0, *range(1, 121))
    sends, made.answer = len(made.sends), refusing(lambda seq: False)
    made.run(300.0)
    assert made.sends[sends:] == [(1,), tuple(range(2, 66)), tuple(range(66, 121))]


@pytest.mark.parametrize("too_soon", [RetryLater("503"), RetryLater("429", after=1.0), Blocked("403")])
@pytest.mark.parametrize("spacing", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("bad", [(1,), (3,), (2, 5, 6), (9,), range(3, 9)])
def test_a_limit_on_the_rate_holds_up_no_record(too_soon: Outcome, spacing: float, bad: tuple[int, ...]) -> None:
    """nginx refuses what comes too soon after the last request, if its limit has no burst."""
    taken_at = -spacing

    def answer(seqs: tuple[int, ...]) -> Outcome:
        nonlocal taken_at
        if made.now - taken_at < spacing:
            return too_soon
        taken_at = made.now
        return Rejected("no") if {*bad}.intersection(seqs) else Delivered()

    made = Simulation(answer)
    made.run(600.0, *range(1, 10)).run(300.0, 10)
    assert sorted(made.taken) == [seq for seq in range(1, 11) if seq not in bad]
    assert made.dead_letters == [*bad]


def test_a_pause_between_sends_needs_a_failure_soon_after_another_send_and_ends_with_what_failed() -> None:
    made = Simulation(lambda seqs: Delivered())
    made.arrived = two = records([1, 2])
    for sent_at, outcome, pause in (
        (100.0, RetryLater("503"), 0.0),
        (105.0, Rejected("no"), 0.0),
        (105.1, RetryLater("503"), 1.0),
        (110.1, Rejected("no"), 1.0),
        (111.2, Blocked("403"), 2.0),
        (115.0, Rejected("no"), 1.9),
        (120.0, RetryLater("503"), 1.9),
    ):
        made.decisions.next(two, made, sent_at)
        made.decisions.record_outcome(two[:1], outcome, sent_at)
        assert made.decisions.send_pause(sent_at) == pytest.approx(pause)
    made.decisions.ticked_off(two[:1])
    assert made.decisions.send_pause(120.0) == 0.0


@pytest.mark.parametrize("poison", [0, 1, 20, 32])
@pytest.mark.parametrize("limit", [1, 8, 32])
def test_a_backend_that_breaks_inside_a_batch_buries_at_most_one_good_record(poison: int, limit: int) -> None:
    """It answers 413 or 400 to a whole batch, takes a part, and then it refuses everything, until it is repaired."""
    for sends in range(70):

        def answer(seqs: tuple[int, ...], sends: int = sends) -> Outcome:
            if len(made.sends) >= sends and made.now < 200.0:  # noqa: B023 - it is called in this turn of the loop
                return Rejected("wrong tenant")
            return Rejected("no") if poison in seqs or len(seqs) > limit else Delivered()

        made = Simulation(answer)
        made.run(400.0, *range(1, 33)).run(400.0, 33)
        buried = {*made.dead_letters} - {poison}
        assert len(buried) <= 1, "only one whose neighbour was taken just before can be mistaken"
        assert {*made.taken} == {*range(1, 34)} - {poison} - buried
