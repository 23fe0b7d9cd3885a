"""The pause between two requests: under a limit on the rate it is found, and beside random failures it stays short."""

import random

import pytest

from statsig_otel.exporters.delivery.pace import Pace


def test_the_pause_grows_once_three_rows_in_succession_ended_early() -> None:
    pace = Pace(1.0)
    for began, pause in ((100.0, 1.0), (105.0, 1.0), (110.0, 2.0), (115.0, 4.0), (120.0, 8.0), (125.0, 15.0)):
        pace.answered(began)
        pace.failed(began + 0.1)
        assert pace.pause == pytest.approx(pause, rel=0.1)
    pace.reset()
    assert pace.pause == 0.0


@pytest.mark.parametrize(
    "row",
    [
        pytest.param((0.0, False), id="a failure after a rest"),
        pytest.param((0.0, True, 0.1, True, 0.1, True, 0.1, False), id="a failure after several answers"),
    ],
)
def test_a_failure_that_no_limit_explains_ends_the_suspicion(row: tuple[float | bool, ...]) -> None:
    """The pause stays the shortest one."""
    pace, now = Pace(1.0), 0.0
    for _ in range(5):
        for rows in ((0.0, True, 0.1, False), (0.0, True, 0.1, False), row):
            now += 5.0
            for after, is_answered in zip(rows[::2], rows[1::2], strict=True):
                now += after
                (pace.answered if is_answered else pace.failed)(now)
    assert pace.pause <= 1.0


def test_failures_far_from_other_requests_need_no_pause() -> None:
    pace = Pace(1.0)
    for step in range(40):
        (pace.failed if step % 2 else pace.answered)(step * 5.0)
    assert pace.pause == 0.0


def test_a_single_row_that_ended_early_causes_a_pause_that_soon_gets_short() -> None:
    pace = Pace(1.0)
    pace.answered(100.0)
    pace.failed(100.1)
    assert pace.pause == 1.0
    pace.answered(105.0)
    for step in range(10):
        pace.answered(105.5 + step / 2)
    assert 0.0 < pace.pause < 0.15


@pytest.mark.parametrize("spacing", [0.1, 1.0, 4.0])
def test_rows_of_three_requests_become_possible_under_each_limit(spacing: float) -> None:
    """And go on: the pause is shortened again and again, since the limit may be gone."""
    pace, now, taken_at, rows = Pace(1.0), 100.0, 0.0, [0]
    for _ in range(300):
        if now - taken_at < spacing:
            pace.failed(now)
            rows.append(0)
            now += 7.5
        else:
            pace.answered(now)
            taken_at = now
            rows[-1] += 1
        now += max(pace.pause, 0.01)
    assert sum(row for row in rows if row >= 3) >= 100


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_random_failures_cause_hardly_any_pause(share: float) -> None:
    pace, now, chance, paused = Pace(1.0), 0.0, random.Random(share), 0.0
    for _ in range(2000):
        if chance.random() < share:
            pace.failed(now)
            now += 5.0
        else:
            pace.answered(now)
        paused += pace.pause
        now += pace.pause + 0.01
    assert paused / 2000 < 0.5
