"""Probes behind a refused head: how soon good records are found, at what cost, and what a backend's faults change."""

import itertools
from collections.abc import Callable
from itertools import product

import pytest

from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, PartiallyRejected, Rejected, RetryLater
from tests.exporters.delivery.helpers import records
from tests.exporters.delivery.simulation import Simulation
from tests.looped import looped, slow_except


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
    attempts = [made.sends[index : index + 2] for index in range(sends, len(made.sends), 2)]
    assert [sorted(both) for both in attempts] == [[(1,), (other,)] for other in range(2000, 1995, -1)]
    assert {both[0] == (1,) for both in attempts} == {True, False}, "the order has no period"
    assert made.read - read < 50
    assert made.decisions.failure_of_head(1).reason == "nothing is taken: each record that was sent is refused: no"


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
    assert sent[:2] == [(3,), (2,)]
    if fault != RetryLater("500", may_be_data=True):
        assert {(1,), (3,)} <= {*sent[2:8]}, "a wait is over"
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
    assert sorted(made.taken) == [*range(1, 121)]
    assert len(made.sends[sends:]) == 3


@looped(
    ("too_soon", "spacing", "bad"),
    product(
        [RetryLater("503"), RetryLater("429", after=1.0), Blocked("403")],
        [0.1, 1.0, 4.0],
        [(1,), (3,), (2, 5, 6), (9,), range(3, 9)],
    ),
)
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
    made.run(600.0, *range(1, 10))
    for seq in range(10, 14):
        made.run(300.0, seq)
    assert sorted(made.taken) == [seq for seq in range(1, 14) if seq not in bad]
    assert made.dead_letters == [*bad]


@pytest.mark.parametrize("poison", slow_except([0, 1, 20, 32], 1, 20))
@pytest.mark.parametrize("limit", slow_except([1, 8, 32], 1, 8))
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


@pytest.mark.parametrize("wordings", [2, 1000])
def test_words_that_differ_each_time_start_no_search_again(wordings: int) -> None:
    def answer(seqs: tuple[int, ...]) -> Outcome:
        number = len(made.sends) % wordings
        return Rejected("HTTP 400: request " + "".join("abcdefghij"[int(digit)] for digit in str(number)))

    made = Simulation(answer)
    made.run(7200.0, *range(1, 601))
    assert len(made.sends) < 2 * 600 + 2 * 7200 / 300 + 20


def test_another_status_starts_a_search_again_whatever_the_words() -> None:
    made = Simulation(refusing(lambda seq: True, "HTTP 400: no")).run(60.0, *range(1, 101))
    made.answer = refusing(lambda seq: seq in (1, 100), "HTTP 422: no")
    made.run(400.0)
    assert sorted(made.taken) == [*range(2, 100)]


def test_one_record_out_of_turn_settles_ten_before_it() -> None:
    """The backend breaks as soon as it has taken the newest one."""
    made = Simulation(refusing(lambda seq: seq == 1))
    made.run(2.0, 1)
    made.answer = lambda seqs: Rejected("no") if made.taken or 1 in seqs else Delivered()
    made.run(600.0, *range(2, 201))
    assert made.taken == [200]
    assert made.dead_letters == [*range(1, 12)], "the first one was refused before the newest was taken"
    made.answer = refusing(lambda seq: False)
    made.run(600.0)
    assert sorted(made.taken) == [*range(12, 201)]


def test_a_failure_says_why_the_head_was_refused_before_and_a_refusal_only_what_refused_it() -> None:
    made = Simulation(lambda seqs: Delivered())
    made.arrived = two = records([1, 2])
    for part, outcome in ((two, Rejected("HTTP 400: no")), (two[:1], Rejected("HTTP 400: no"))):
        assert made.decisions.next(two, made, made.now) == part
        assert made.decisions.record_outcome(part, outcome, made.now) is None
    made.decisions.next(two, made, made.now)
    failure = made.decisions.record_outcome(two[1:], RetryLater("HTTP 503"), made.now)
    assert failure
    assert (failure.state, failure.reason) == ("retrying", "HTTP 503; before, a record was refused: HTTP 400: no")
    made.decisions.try_again()
    made.decisions.next(two, made, made.now)
    failure = made.decisions.record_outcome(two[:1], Blocked("HTTP 401"), made.now)
    assert failure
    assert (failure.state, failure.reason) == ("blocked", "HTTP 401; before, a record was refused: HTTP 400: no")
    assert made.decisions.failure_of_head(1).reason == "HTTP 400: no", "not of the last answer"


def in_turn(every: int, away: Outcome, bad: Outcome, first: int) -> Callable[[tuple[int, ...]], Outcome]:
    """Servers in turn, of which one is away, and all others take each record but the first."""
    turns = itertools.count(first)
    return lambda seqs: away if next(turns) % every == 0 else bad if 1 in seqs else Delivered()


@looped("every", [2, 3, 4, 5])
def test_a_backend_that_fails_each_nth_time_hides_no_good_record(every: int) -> None:
    """The bad record takes some of the requests that could succeed."""
    failures: list[Outcome] = [RetryLater("HTTP 503"), Blocked("HTTP 404")]
    refusals: list[Outcome] = [Rejected("HTTP 400"), RetryLater("HTTP 500", may_be_data=True)]
    for away, bad, first in product(failures, refusals, range(every)):
        made = Simulation(in_turn(every, away, bad, first)).run(60.0, 1).run(1500.0, *range(2, 12))
        assert sorted(made.taken) == [*range(2, 12)], (away, bad, first)


@looped("first", [0, 1])
def test_a_backend_that_fails_each_second_time_takes_a_backlog_in_batches(first: int) -> None:
    made = Simulation(in_turn(2, RetryLater("HTTP 503"), Rejected("HTTP 400"), first)).run(2400.0, *range(1, 300))
    assert sorted(made.taken) == [*range(2, 300)]


@looped("first", [0, 1])
def test_a_slow_attempt_has_no_order_that_a_backend_which_fails_each_second_time_could_follow(first: int) -> None:
    """Else the head would always be refused, and the other record always get 500."""
    fault = RetryLater("HTTP 500", may_be_data=True)
    made = Simulation(refusing(lambda seq: True)).run(60.0, *range(1, 12))
    made.answer = in_turn(2, fault, Rejected("no"), first)
    made.run(4 * 3600.0)
    assert sorted(made.taken) == [*range(2, 12)]
