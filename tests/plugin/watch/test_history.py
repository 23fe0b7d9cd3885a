"""The last hour, minute by minute, from counts that only grow."""

from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.plugin.watch.history import MINUTES, SERIES, History


class Counted:
    """Counts that a test sets, at a time that it sets."""

    def __init__(self) -> None:
        self.numbers = (0.0,) * len(SERIES)
        self.now = 1_800_000_000.0
        self.history = History(lambda: self.numbers, lambda: self.now)

    def add(self, number: float) -> None:
        self.numbers = tuple(one + number for one in self.numbers)


def test_each_minute_has_what_was_counted_in_it() -> None:
    counted = Counted()
    counted.add(100)
    counted.history.note()
    counted.add(3)
    assert counted.history.minutes()[-1] == (int(counted.now), (3.0,) * 4)
    counted.now += 61
    counted.history.note()
    counted.add(5)
    values = [values[0] for _, values in counted.history.minutes()]
    assert values[-3:] == [0.0, 3.0, 5.0]
    assert len(values) == MINUTES


def test_after_the_clock_was_put_back_minutes_are_noted() -> None:
    counted = Counted()
    counted.history.note()
    counted.add(100)
    counted.now -= 86400
    counted.history.note()
    counted.add(3)
    counted.now += 60
    counted.history.note()
    counted.add(5)
    assert [values[0] for _, values in counted.history.minutes()][-2:] == [3.0, 5.0]


def test_a_minute_in_which_nobody_looked_counts_with_the_one_before() -> None:
    counted = Counted()
    counted.history.note()
    counted.now += 600
    counted.add(7)
    values = [values[0] for _, values in counted.history.minutes()]
    assert sum(values) == 7


def test_a_clock_that_is_set_back_breaks_nothing() -> None:
    counted = Counted()
    counted.history.note()
    counted.now -= 7200
    counted.add(1)
    assert len(counted.history.minutes()) == MINUTES


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9)), max_size=200))
def test_nothing_is_counted_twice_or_lost_within_the_hour(steps: list[tuple[int, int]]) -> None:
    counted = Counted()
    counted.history.note()
    added: list[tuple[float, int]] = []
    for seconds, number in steps:
        counted.now += seconds
        counted.history.note()
        counted.add(number)
        added.append((counted.now, number))
    minutes = counted.history.minutes()
    assert [at for at, _ in minutes] == [(int(counted.now // 60) - ago) * 60 for ago in range(MINUTES - 1, -1, -1)]
    recent = sum(number for at, number in added if at // 60 > counted.now // 60 - MINUTES)
    assert sum(values[0] for _, values in minutes) == recent
