"""Answers that may be about the data (HTTP 500): bad records are settled, and outages of all kinds bury no good one."""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest

from statsig_otel.exporters.delivery.decisions import Decisions
from statsig_otel.exporters.delivery.retry import RetrySettings
from statsig_otel.exporters.delivery.settings import DeliverySettings
from statsig_otel.exporters.exporter import Delivered, Outcome, Rejected, RetryLater
from tests.exporters.delivery.helpers import records
from tests.exporters.delivery.simulation import Simulation
from tests.looped import looped

FAULT = RetryLater("HTTP 500: oops", may_be_data=True)


def faulty(is_bad: Callable[[int], bool]) -> Callable[[tuple[int, ...]], Outcome]:
    return lambda seqs: FAULT if any(map(is_bad, seqs)) else Delivered()


@pytest.mark.parametrize("count", [1, 60, 1000])
def test_old_records_behind_a_collector_that_answers_500_hold_up_no_other(count: int) -> None:
    """Ten minutes for all of them at once, and the others are delivered meanwhile."""
    made = Simulation(faulty(lambda seq: seq <= count))
    made.run(60.0, *range(1, count + 1))
    for seq in range(count + 1, count + 10):
        made.run(60.0, seq)
        assert made.taken[-1] == seq
    assert not made.dead_letters
    for seq in range(count + 10, count + 16):
        made.run(60.0, seq)
    assert made.dead_letters == [*range(1, count + 1)]
    assert sorted(made.taken) == [*range(count + 1, count + 16)], "each once"
    assert len(made.sends) < 6 * count + 200


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_other_failures_between_the_faults_of_a_record_start_nothing_again(share: float) -> None:
    chance = random.Random(share)

    def answer(seqs: tuple[int, ...]) -> Outcome:
        return RetryLater("HTTP 503") if chance.random() < share else faulty(lambda seq: seq == 1)(seqs)

    made = Simulation(answer)
    made.run(60.0, *range(1, 11))
    for seq in range(11, 61):
        made.run(60.0, seq)
    assert made.dead_letters == [1]
    assert sorted(made.taken) == [*range(2, 61)]


def test_a_backend_that_answers_500_to_all_gets_one_request_after_each_wait() -> None:
    """As if it answered 503. A wait takes 5 s here."""
    made = Simulation(faulty(lambda seq: True)).run(500.0, *range(1, 201))
    assert len(made.sends) <= 500 / 5 + 10
    made.answer = faulty(lambda seq: False)
    made.run(20.0)
    assert sorted(made.taken) == [*range(1, 201)]


@pytest.mark.parametrize("limit", [8, 1000])
def test_500_to_all_after_a_part_of_a_batch_was_taken_buries_no_good_record(limit: int) -> None:
    def answer(seqs: tuple[int, ...]) -> Outcome:
        if len(made.sends) >= 7 and made.now < 3000.0:
            return RetryLater("HTTP 500: broke", may_be_data=True)
        return Rejected("no") if 20 in seqs or len(seqs) > limit else Delivered()

    made = Simulation(answer)
    made.run(3600.0, *range(1, 65)).run(600.0, 65)
    assert made.dead_letters == [20]
    assert sorted(made.taken) == [seq for seq in range(1, 66) if seq != 20]


def test_500_to_all_for_longer_than_ten_minutes_buries_no_good_record() -> None:
    """What was taken before its first such answer says nothing about a record, even if it stands behind it."""
    made = Simulation(lambda seqs: Rejected("no") if 1 in seqs else Delivered())
    made.run(2.0, 1)
    made.answer = lambda seqs: Delivered() if seqs == (40,) else faulty(lambda seq: True)(seqs)
    made.run(1500.0, *range(2, 41))
    assert made.taken == [40]
    made.answer = lambda seqs: Rejected("no") if 1 in seqs else Delivered()
    made.run(600.0, 41)
    assert made.dead_letters == [1]
    assert sorted(made.taken) == [*range(2, 42)]


@pytest.mark.parametrize(("share", "most"), [(0.7, 0), (0.8, 2), (0.9, 10)])
def test_500_at_random_buries_hardly_a_good_record(share: float, most: int) -> None:
    """An overloaded backend may answer so to nearly all, for an hour. What is taken late shows that."""
    chance = random.Random(0)

    def answer(seqs: tuple[int, ...]) -> Outcome:
        return faulty(lambda seq: seq == 3 or (made.now < 3000.0 and chance.random() < share))(seqs)

    made = Simulation(answer)
    for seq in range(1, 360):
        made.run(10.0, seq)
    good = {*range(1, 360)} - {3}
    assert 3 in made.dead_letters
    assert len(good.intersection(made.dead_letters)) <= most
    assert good <= {*made.taken, *made.dead_letters}


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_500_at_random_after_500_to_all_buries_no_good_record(share: float) -> None:
    """The ten minutes of many records are over when the backend comes back, and one more 500 can be chance."""
    for seed in range(8):
        made, chance = Simulation(faulty(lambda seq: True)), random.Random(seed)
        for seq in range(1, 75):
            made.run(20.0, seq)
        made.answer = lambda seqs, chance=chance: faulty(lambda seq: chance.random() < share)(seqs[:1])  # type: ignore[misc]
        for seq in range(75, 100):
            made.run(20.0, seq)
        made.run(600.0)
        assert (made.dead_letters, sorted(made.taken)) == ([], [*range(1, 100)]), seed


def test_in_a_quiet_queue_three_later_records_settle_one_that_gets_500() -> None:
    made = Simulation(faulty(lambda seq: seq == 1)).run(7200.0, 1)
    assert made.decisions.failure_of_head(1).state == "retrying"
    for seq in (2, 3):
        made.run(3600.0, seq)
        assert made.dead_letters == []
        assert made.decisions.failure_of_head(1).reason.startswith("a record fails while others are delivered")
    made.run(60.0, 4)
    assert (made.dead_letters, made.taken) == ([1], [2, 3, 4])


def test_records_that_arrive_together_settle_nothing_at_once() -> None:
    made = Simulation(faulty(lambda seq: seq == 1)).run(7200.0, 1)
    for seq in range(2, 40):
        made.run(5.0, seq)
    assert made.dead_letters == []
    made.run(300.0, 40).run(60.0, 41)
    assert made.dead_letters == [1]


def failing(made: Callable[[], Simulation], shares: dict[range, float], seed: int) -> Callable[..., Outcome]:
    """A backend that answers 500 to a share of the requests, which changes with the seconds."""
    chance = random.Random(seed)

    def answer(seqs: tuple[int, ...]) -> Outcome:
        share = next((share for when, share in shares.items() if int(made().now) in when), 0.0)
        return FAULT if chance.random() < share else Delivered()

    return answer


@looped(("roll", "most"), [(20, 0), (60, 0), (150, 1)])
def test_500_to_all_that_begins_and_ends_by_degrees_buries_hardly_a_good_record(roll: int, most: int) -> None:
    """One server after another gets a bad version, and later the good one again."""
    worse = {range(100 + part * roll, 100 + (part + 1) * roll): (part + 1) / 3 for part in range(2)}
    worst = range(100 + 2 * roll, 1000 + 2 * roll)
    better = {range(worst.stop + part * roll, worst.stop + (part + 1) * roll): (2 - part) / 3 for part in range(2)}
    for seed in range(4):
        made = Simulation(lambda seqs: Delivered())
        made.answer = failing(lambda made=made: made, {**worse, worst: 1.0, **better}, seed)  # type: ignore[misc]
        for seq in range(1, 500):
            made.run(4.0, seq)
        made.run(600.0)
        assert len(made.dead_letters) <= most, seed
        assert sorted([*made.taken, *made.dead_letters]) == [*range(1, 500)]


@pytest.mark.parametrize("every", [pytest.param(100, marks=pytest.mark.slow), 10, 3])
def test_records_that_get_500_are_settled_as_fast_as_they_come(every: int) -> None:
    """A record comes each second, and one in so many is bad."""
    made = Simulation(faulty(lambda seq: seq % every == 0))
    for seq in range(1, 3601):
        made.run(1.0, seq)
        assert len(made.arrived) - made.position < 900
    assert {*made.dead_letters} <= {*range(every, 3601, every)}
    assert {*range(1, 3400)} <= {*made.taken, *range(every, 3601, every)}


@looped("every", [2, 3])
def test_one_server_of_several_that_is_away_keeps_no_bad_record_for_good(every: int) -> None:
    """Requests go to the servers in turn. What fails otherwise does not end the evidence of faults."""
    for away, first in itertools.product([RetryLater("HTTP 503"), FAULT], range(every)):
        turns = itertools.count(first)

        def answer(seqs: tuple[int, ...], turns: Iterator[int] = turns, away: Outcome = away) -> Outcome:
            return away if next(turns) % every == 0 else FAULT if 1 in seqs else Delivered()

        made = Simulation(answer)
        for seq in range(1, 100):
            made.run(30.0, seq)
        made.run(600.0)
        assert (made.dead_letters, sorted(made.taken)) == ([1], [*range(2, 100)]), (away, first)


@looped("first", [0, 1])
def test_a_record_that_gets_400_and_500_in_turn_is_settled(first: int) -> None:
    turns = itertools.count(first)
    made = Simulation(lambda seqs: FAULT if next(turns) % 2 else Rejected("no") if 1 in seqs else Delivered())
    for seq in range(1, 60):
        made.run(30.0, seq)
    made.run(600.0)
    assert (made.dead_letters, sorted(made.taken)) == ([1], [*range(2, 60)])


@pytest.mark.parametrize("refused", [0, 1])
def test_500_that_asks_for_a_time_is_followed_by_a_wait_whatever_else_is_known(refused: int) -> None:
    """A wait takes 5 s here. The head may wait for another reason."""
    asks = RetryLater("HTTP 500", after=300.0, may_be_data=True)
    made = Simulation(lambda seqs: Rejected("no") if refused in seqs else asks).run(1000.0, 1)
    made.run(500.0, *range(2, 50))
    assert len([seqs for seqs in made.sends if refused not in seqs]) <= 1500 / 5 + 2
    made.answer = lambda seqs: Rejected("no") if refused in seqs else Delivered() if len(made.sends) % 2 else asks
    for seq in range(50, 100):
        sends = len(made.sends)
        made.run(4.0, seq)
        asked = [seqs for seqs in made.sends[sends:] if refused not in seqs]
        assert len(asked) <= 4, "one that is taken, and one that is not, for each wait"


def test_bad_records_between_delivered_ones_are_not_called_a_backend_that_takes_nothing() -> None:
    """The renewals stand for failures of another kind: each ends the evidence, so both records wait."""
    made = Simulation(lambda seqs: Rejected("no")).run(60.0, 1, 2)
    assert made.decisions.failure_of_head(1).state == "blocked"
    made.answer = lambda seqs: Delivered() if 3 in seqs else Rejected("no")
    for part, state in ((3, "refused"), (2, "refused"), (4, "blocked")):
        record = records([part])
        made.decisions.record_outcome(record, made.answer(record.seqs), made.now)
        made.decisions.forget_evidence()
        assert made.decisions.failure_of_head(1).state == state


def test_of_many_texts_of_a_backend_only_the_kind_is_kept() -> None:
    """A text of its own for each of a million records would fill the memory."""
    made = Simulation(lambda seqs: Rejected("HTTP 400 in out: " + "x" * 100 + f" at {len(made.sends)}"))
    made.run(600.0, *range(1, 1201))
    said = [letter.reason for letter in made.decisions.skip(made.arrived).dead_letters]
    assert len({*said}) <= 1002
    assert said.count("skipped by command: HTTP 400 in out") >= 199


def test_a_text_that_many_records_share_is_kept() -> None:
    made = Simulation(lambda seqs: Rejected("HTTP 400 in out: entry too far behind"))
    made.run(1000.0, *range(1, 1201))
    assert made.decisions.failure_of_head(1).reason.endswith("entry too far behind")
    said = {letter.reason for letter in made.decisions.skip(made.arrived).dead_letters}
    assert said == {"skipped by command: HTTP 400 in out: entry too far behind"}


@looped("most", [1, 10])
def test_small_batches_behind_a_record_that_gets_500_follow_each_other(most: int) -> None:
    made = Simulation(faulty(lambda seq: seq == 1))
    made.settings = DeliverySettings(max_records=most)
    made.decisions = type(made.decisions)("out", made.settings)
    made.run(60.0, 1).run(10.0, 2).run(20.0, *range(3, 603))
    assert (made.dead_letters, sorted(made.taken)) == ([], [*range(2, 603)])


@pytest.mark.parametrize("most", [1, 10])
def test_500_to_all_after_small_batches_gets_no_request_after_the_other(most: int) -> None:
    made = Simulation(faulty(lambda seq: seq == 1))
    made.settings = DeliverySettings(max_records=most)
    made.decisions = type(made.decisions)("out", made.settings)
    made.run(60.0, 1).run(10.0, 2)
    made.answer = lambda seqs: Delivered() if len(made.sends) < 20 and 1 not in seqs else FAULT
    made.run(100.0, *range(3, 3003))
    assert len(made.sends) < 20 + 100 * (2 * most + 2)


@looped("retry", [RetrySettings(enabled=False), RetrySettings(max_elapsed_time=0.001)])
def test_a_time_that_the_backend_asks_for_is_kept_when_a_record_is_given_up(retry: RetrySettings) -> None:
    for may_be_data in (False, True):
        decisions, part = Decisions("out", DeliverySettings(retry=retry)), records([1])
        asks = RetryLater("HTTP 429", after=60.0, may_be_data=may_be_data)
        failures = [decisions.record_outcome(part, asks, now) for now in (0.0, 1.0)]
        assert decisions.decided(part) is not None
        assert [failure is not None and failure.after for failure in failures] == [60.0, 60.0]


def test_only_what_was_sent_for_so_long_is_given_up() -> None:
    """A record that joins a batch later has its own time."""
    made = Simulation(lambda seqs: RetryLater("HTTP 503"))
    made.settings = DeliverySettings(max_records=64, retry=RetrySettings(max_elapsed_time=60.0))
    made.decisions = type(made.decisions)("out", made.settings)
    made.run(50.0, 1, 2).run(20.0, 3, 4)
    assert made.dead_letters == [1, 2]
    made.run(60.0)
    assert made.dead_letters == [1, 2, 3, 4]
