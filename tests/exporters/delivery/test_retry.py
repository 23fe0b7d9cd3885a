"""When to try again."""

from math import isfinite

from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.exporters.delivery.retry import LONGEST_ASKED, SHORTEST_WAIT, Backoff, RetrySettings

chances = st.floats(0, 1)
retry_settings = st.builds(
    RetrySettings,
    initial_interval=st.floats(0, 1e4),
    randomization_factor=st.floats(0, 1),
    multiplier=st.floats(1, 1e12),
    max_interval=st.floats(0, 1e5),
)


@given(retry_settings, st.lists(chances, min_size=1, max_size=30))
def test_a_wait_is_within_the_spread_of_its_interval(settings: RetrySettings, luck: list[float]) -> None:
    backoff = Backoff(settings)
    interval = min(settings.initial_interval, settings.max_interval)
    for chance in luck:
        wait = backoff.next(chance)
        low, high = interval * (1 - settings.randomization_factor), interval * (1 + settings.randomization_factor)
        assert max(low, SHORTEST_WAIT) - 1e-6 <= wait <= max(high, SHORTEST_WAIT) + 1e-6
        interval = min(interval * settings.multiplier, settings.max_interval)


@given(retry_settings, st.lists(chances, max_size=20), st.floats(0, 1e6))
def test_a_backend_is_never_asked_before_it_wants_to_be(
    settings: RetrySettings, luck: list[float], asked: float
) -> None:
    backoff = Backoff(settings)
    assert all(backoff.next(chance, asked) >= min(asked, LONGEST_ASKED) for chance in luck)


@given(retry_settings)
def test_waits_without_chance_only_grow_and_end_at_the_longest(settings: RetrySettings) -> None:
    backoff = Backoff(settings)
    waits = [backoff.next(0.5) for _ in range(100)]
    assert waits == sorted(waits)
    assert waits[-1] <= max(settings.max_interval, SHORTEST_WAIT)


def test_the_defaults_are_those_of_the_collector_without_an_end() -> None:
    backoff = Backoff(RetrySettings())
    assert [round(backoff.next(0.5), 3) for _ in range(6)] == [5, 7.5, 11.25, 16.875, 25.312, 30]
    assert RetrySettings().max_elapsed_time == 0


def test_a_slow_growth_gets_to_the_longest_wait_too() -> None:
    backoff = Backoff(RetrySettings(initial_interval=1, multiplier=1.01, max_interval=10))
    assert [backoff.next(0.5) for _ in range(300)][-1] == 10


def test_many_attempts_overflow_nothing() -> None:
    backoff = Backoff(RetrySettings(multiplier=1e300, max_interval=1e308, randomization_factor=0))
    assert all(isfinite(backoff.next(1)) for _ in range(50_000))
    assert backoff.attempts == 50_000


@given(retry_settings, st.integers(1, 50))
def test_after_an_outage_it_begins_anew(settings: RetrySettings, attempts: int) -> None:
    backoff = Backoff(settings)
    first = backoff.next(0.5)
    for _ in range(attempts):
        backoff.next(0.5)
    backoff.reset()
    assert (backoff.attempts, backoff.next(0.5)) == (0, first)


def test_no_settings_make_a_busy_loop() -> None:
    backoff = Backoff(RetrySettings(initial_interval=0, max_interval=0))
    assert {backoff.next(0) for _ in range(10)} == {SHORTEST_WAIT}
