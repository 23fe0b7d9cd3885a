"""Faults of the machine, with real processes and disks: kill -9, a full disk, a file that can't grow."""

import subprocess
from pathlib import Path

import pytest

from statsig_otel.exporters.consumer import RefusedError
from tests.exporters.queue.helpers import (
    PATIENCE,
    check_counters,
    child,
    delivered,
    errors,
    line_of,
    put,
    running,
    tidied,
)
from tests.waiting import wait_until


def lines_until_killed(process: subprocess.Popen[str], lines: int) -> list[int]:
    """The numbers that a process says; it is killed after so many, in the middle of what it does."""
    assert process.stdout is not None
    said = [line_of(process) for _ in range(lines)]
    process.kill()
    said += process.stdout.read().splitlines()
    process.wait(PATIENCE)
    return [int(line) for line in said if line]


def check_kills(directory: Path, kills: int) -> None:
    """What was acknowledged before each kill is there after it, and what was ticked off does not come back."""
    acknowledged: set[int] = set()
    found: list[int] = []
    for kill in range(kills):
        with child("acknowledge", directory, 4) as process:
            acknowledged |= set(lines_until_killed(process, 20 + 7 * kill % 50))
        if kill % 2:
            with running(directory) as queue:
                check_counters(queue)
                found += delivered(queue.cursor("otlp"))
                tidied(queue)
    with running(directory) as queue:
        found += delivered(queue.cursor("otlp"))
        check_counters(queue)
    assert len(acknowledged) >= 20
    assert acknowledged <= set(found)
    assert len(found) == len(set(found)), "stored once"


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_kills(tmp_path, 2)
    assert not errors(caplog)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_was_acknowledged_survives_kill_9_many_times(tmp_path: Path) -> None:
    check_kills(tmp_path, 100)


def check_kills_while_delivering(directory: Path, kills: int) -> None:
    size = 30 * kills
    with running(directory) as queue:
        put(queue, *range(size))
    sent: list[int] = []
    for kill in range(kills):
        with child("deliver", directory) as process:
            sent += lines_until_killed(process, 5 + 7 * kill % 10)
    with running(directory) as queue:
        sent += delivered(queue.cursor("otlp"))
        check_counters(queue)
    assert set(sent) == set(range(size))
    assert len(sent) <= size + kills, "once more at most for each kill"
    assert [number for place, number in enumerate(sent) if number not in sent[:place]] == list(range(size)), "in order"


def test_a_kill_between_a_delivery_and_its_tick_repeats_that_one_only(tmp_path: Path) -> None:
    check_kills_while_delivering(tmp_path, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_between_a_delivery_and_its_tick_many_times(tmp_path: Path) -> None:
    check_kills_while_delivering(tmp_path, 60)


def test_a_file_that_can_not_grow_acknowledges_only_what_is_on_disk(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real I/O error in the middle of a commit: the process may write no file beyond a size."""
    with child("limited", tmp_path, 300_000) as process:
        assert process.stdout is not None
        said = process.stdout.read().splitlines()
        assert process.wait(PATIENCE) == 0
    taken = [int(line.split()[1]) for line in said if line.startswith("taken")]
    refused = [line.split() for line in said if line.startswith("refused")]
    assert len(taken) > 3, said
    assert [(line[2], line[3]) for line in refused] == [("storage_failed", "True")] * 3, said
    assert said[-3] == "failing False"
    assert said[-1] == "end"
    assert [int(number) for number in said[-2].split()[1:]] == [0, *taken], "no more and no less than was taken"


def test_a_directory_that_can_not_be_looked_into_for_a_while_is_used_again_without_a_webhook(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A load balancer sends nothing to a service that is not ready, so nothing else would show that it can write."""
    directory, real, link = tmp_path / "queue", tmp_path / "real", tmp_path / "link"
    real.mkdir()
    directory.symlink_to(real)
    with running(directory) as queue:
        put(queue, 1)
        link.symlink_to(directory)
        link.replace(directory)  # a link to itself. As without permission, the names lead to an error from now on
        with pytest.raises(RefusedError) as refused:
            put(queue, 2)
        assert refused.value.reason == "storage_failed"
        assert queue.waiting() == {"otlp": 1}
        assert "storage_failed" in queue.refusal_reasons()
        link.symlink_to(real)
        link.replace(directory)
        wait_until(lambda: not queue.refusal_reasons())
        put(queue, 3)
        assert delivered(queue.cursor("otlp")) == [1, 3]
    said = [one for one in errors(caplog) if "disk space" not in one]  # it is freed now and then, perhaps meanwhile
    assert "Too many levels of symbolic links" in said[0]
    assert said[1:] == ["The queue can be written again"]
