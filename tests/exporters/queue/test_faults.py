"""Faults of the machine, with real processes and disks: kill -9, a full disk, a file that can't grow."""

import contextlib
import re
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsig_otel.exporters.consumer import Receipt, RefusedError
from statsig_otel.exporters.queue.queue import DurableQueue
from tests.exporters.queue.helpers import (
    PATIENCE,
    batch,
    check_counters,
    child,
    consume,
    count,
    delivered,
    errors,
    line_of,
    numbers_of,
    put,
    read_all,
    running,
    tidied,
)


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
    check_kills(tmp_path, 3)
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
    check_kills_while_delivering(tmp_path, 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_between_a_delivery_and_its_tick_many_times(tmp_path: Path) -> None:
    check_kills_while_delivering(tmp_path, 60)


def test_a_file_that_cannot_grow_acknowledges_nothing_that_is_not_on_disk_and_recovers(
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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("can't mount a small disk here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=PATIENCE)


def is_failing(queue: DurableQueue) -> bool:
    return queue._database.writer.failing


def fill(disk: Path) -> Path:
    """Take all that is left of a disk."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_a_reserve_is_kept_in_which_all_can_be_delivered_and_deleted(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(disk / "queue", min_free_bytes=2 << 20) as queue:
        taken: list[int] = []
        for number in range(1, 1000):
            error = consume(queue, batch(number, size=20_000)).exception(PATIENCE)
            if error is not None:
                assert isinstance(error, RefusedError)
                assert (error.reason, error.retry_after) == ("disk_full", 10)
                break
            taken.append(number)
        assert 50 < len(taken) < 300
        assert count(queue.database) == len(taken)
        assert delivered(queue.cursor("otlp")) == taken
        queue.cursor("otlp").close()
        tidied(queue)
        check_counters(queue)
        pause, waited = threading.Event(), 0
        while consume(queue, batch(1000)).exception(PATIENCE) is not None:  # it gives the space back in its own time
            waited += 1
            assert waited < PATIENCE * 20
            pause.wait(0.05)
        assert delivered(queue.cursor("otlp")) == [1000]
    assert not errors(caplog)


def test_a_disk_that_somebody_else_filled_refuses_and_recovers_without_a_hand_on_the_queue(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(disk / "queue") as queue:
        put(queue, 1, 2, 3)
        cursor = queue.cursor("otlp")
        assert numbers_of(cursor.read(1, 1 << 20)) == [1]
        ballast = fill(disk)
        taken = []
        for number in range(4, 40):
            error = consume(queue, batch(number, size=20_000)).exception(PATIENCE)
            if error is None:
                taken.append(number)
            else:
                assert isinstance(error, RefusedError)
                assert error.reason in ("disk_full", "storage_failed")
        assert len(taken) < 36
        assert is_failing(queue)
        ballast.unlink()
        assert put(queue, 100) == Receipt(1)
        assert not is_failing(queue)
        check_counters(queue)
        assert delivered(cursor) == [1, 2, 3, *taken, 100]
    lines = [re.sub(r": .*", "", line) for line in errors(caplog)]
    assert lines.count("The queue can't be written; nothing is acknowledged until it can") == 1
    assert lines.count("The queue can be written again") == 1
    assert len(lines) <= 4, lines
    with running(disk / "queue") as queue:
        assert read_all(queue.cursor("otlp")) == []


def test_a_disk_that_is_full_at_the_start_is_a_clear_error_and_no_damage(disk: Path) -> None:
    with running(disk / "queue") as queue:
        put(queue, 1)
    ballast = fill(disk)
    with (
        pytest.raises((OSError, sqlite3.OperationalError), match=r"[Nn]o space|full|disk I/O"),
        running(disk / "queue"),
    ):
        pass
    ballast.unlink()
    with running(disk / "queue") as queue:
        assert delivered(queue.cursor("otlp")) == [1]
