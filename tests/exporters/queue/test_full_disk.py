"""A disk that is full, with a real one: what was accepted is delivered, the rest is refused, and nothing is lost."""

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from statsig_otel.exporters.consumer import Receipt, RefusedError
from statsig_otel.exporters.queue.queue import DurableQueue
from tests.e2e.faulty_machine import fill, small_disk
from tests.exporters.queue.helpers import (
    PATIENCE,
    ask,
    batch,
    check_counters,
    child,
    consume,
    count,
    delivered,
    errors,
    failing_disk,
    numbers_of,
    put,
    read_all,
    refusal,
    running,
    tidied,
)
from tests.looped import slow_except
from tests.waiting import wait_until

UNTIDY = {
    "The disk space of delivered records can't be freed now",
    "The disk space of delivered records is freed again",
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", mebibytes=6) as place:
        yield place


def is_failing(queue: DurableQueue) -> bool:
    return queue._database.writer.failing


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


def test_the_limit_of_a_file_s_size_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite says of it only that there is an I/O error."""
    with running(tmp_path) as queue:
        with failing_disk():
            error = consume(queue, batch(1)).exception(PATIENCE)
        said = "disk I/O error; perhaps a file has reached the limit of this process, 1 bytes (ulimit -f, LimitFSIZE=)"
        assert said in str(error)
        assert f"The queue can't be written; nothing is acknowledged until it can: {said}" in errors(caplog)
        put(queue, 2)


def test_a_disk_that_others_filled_refuses_and_recovers_by_itself(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def leave(directory: Path, *, killed: bool) -> None:
    """Leave a queue behind in which ten records wait."""
    if not killed:
        with running(directory, min_free_bytes=2 << 20) as queue:
            put(queue, *range(10), size=5000)
        return
    with child("answer", directory, 2 << 20) as process:
        for number in range(10):
            assert ask(process, number) == str(number)


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize(
    "exporters", slow_except([("otlp",), ("otlp", "new")], ("otlp", "new")), ids=["same", "new exporter"]
)
def test_a_queue_on_a_full_disk_starts_refuses_delivers_and_recovers(
    disk: Path, caplog: pytest.LogCaptureFixture, exporters: tuple[str, ...], *, killed: bool
) -> None:
    directory = disk / "queue"
    leave(directory, killed=killed)
    ballast = fill(disk)
    with running(directory, exporters=exporters, min_free_bytes=2 << 20) as queue:
        assert refusal(queue, batch(100)).reason == "disk_full"
        assert delivered(queue.cursor("otlp")) == list(range(10))
        fill(disk)
        assert refusal(queue, batch(100)).reason == "disk_full"
    with running(directory, exporters=exporters, min_free_bytes=2 << 20) as queue:
        assert delivered(queue.cursor("otlp")) == [], "all of it is ticked off on disk"
        assert refusal(queue, batch(100)).reason == "disk_full"
        ballast.unlink()
        wait_until(lambda: consume(queue, batch(100)).exception(PATIENCE) is None, "it recovers")
        for name in exporters:
            assert delivered(queue.cursor(name)) == [100]
        check_counters(queue)
        wait_until((directory / "reserve").exists, "space is set apart again")
    assert {re.sub(r": .*", "", line) for line in errors(caplog)} <= UNTIDY


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize(
    "exporters", slow_except([("otlp",), ("otlp", "new")], ("otlp",)), ids=["same", "new exporter"]
)
def test_a_queue_without_a_reserve_on_a_full_disk_starts_and_waits_for_space(
    disk: Path, caplog: pytest.LogCaptureFixture, exporters: tuple[str, ...], *, killed: bool
) -> None:
    """As an earlier version left it, or where somebody else was faster to take the space."""
    directory = disk / "queue"
    leave(directory, killed=killed)
    (directory / "reserve").unlink()
    ballast = fill(disk)
    with running(directory, exporters=exporters, min_free_bytes=2 << 20) as queue:
        assert refusal(queue, batch(100)).reason == "disk_full"
        assert queue.unconfigured_exporters() == []
        ballast.unlink()
        wait_until(lambda: consume(queue, batch(100)).exception(PATIENCE) is None, "it recovers")
        found = delivered(queue.cursor("otlp"))
        assert set(found) >= {*range(10), 100}
        assert not is_failing(queue)
        check_counters(queue)
    assert {re.sub(r": .*", "", line) for line in errors(caplog)} <= UNTIDY | {
        "The queue can't be written; nothing is acknowledged until it can",
        "The queue can be written again",
    }


def test_what_waits_on_a_disk_that_gets_full_is_delivered_and_ticked_off(disk: Path) -> None:
    directory = disk / "queue"
    with running(directory, min_free_bytes=2 << 20) as queue:
        put(queue, *range(10), size=5000)
        fill(disk)
        time.sleep(0.15)  # the disk is looked at ten times a second
        assert refusal(queue, batch(100)).reason == "disk_full"
        assert delivered(queue.cursor("otlp")) == list(range(10))
    with running(directory, min_free_bytes=2 << 20) as queue:
        assert delivered(queue.cursor("otlp")) == []


def test_a_new_queue_on_a_full_disk_begins_once_there_is_space(disk: Path) -> None:
    ballast = fill(disk)
    with running(disk / "queue", min_free_bytes=2 << 20) as queue:
        assert refusal(queue, batch(1)).reason == "disk_full"
        ballast.unlink()
        wait_until(lambda: consume(queue, batch(1)).exception(PATIENCE) is None, "it recovers")
        assert delivered(queue.cursor("otlp")) == [1]


@pytest.mark.parametrize("name", ["queue.db", "queue.db-wal"])
def test_a_file_that_is_deleted_on_a_full_disk_is_kept_in_the_reserve(disk: Path, name: str) -> None:
    directory = disk / "queue"
    with running(directory, min_free_bytes=4 << 20) as queue:
        put(queue, *range(10), size=5000)
        ballast = fill(disk)
        (directory / name).unlink()
        assert queue.shutdown()
    ballast.unlink()
    with running(directory, min_free_bytes=4 << 20) as queue:
        wait_until(lambda: queue.cursor("otlp").waiting == 10, "all is carried over")
        assert sorted(delivered(queue.cursor("otlp"))) == list(range(10))


@pytest.mark.parametrize("name", ["queue.db", "queue.db-wal"])
def test_a_stop_waits_for_space_to_keep_a_file_that_is_deleted(disk: Path, name: str) -> None:
    directory = disk / "queue"
    with running(directory) as queue:
        put(queue, *range(10), size=5000)
        ballast = fill(disk)
        (directory / name).unlink()
        fill(disk)
        with ThreadPoolExecutor(1) as stopping:
            stopped = stopping.submit(queue.shutdown, PATIENCE)
            wait_until(lambda: is_failing(queue), "it is noticed")
            ballast.unlink()
            assert stopped.result(PATIENCE)
    with running(directory) as queue:
        wait_until(lambda: queue.cursor("otlp").waiting == 10, "all is carried over")


@pytest.mark.parametrize("name", ["queue.db", "queue.db-wal"])
def test_a_stop_that_loses_a_file_that_is_deleted_says_so_and_so_does_the_next_start(
    disk: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    directory = disk / "queue"
    with running(directory) as queue:
        put(queue, *range(10), size=5000)
        ballast = fill(disk)
        (directory / name).unlink()
        fill(disk)
        assert not queue.shutdown()
    ballast.unlink()
    caplog.clear()
    with running(directory):
        assert any(str(directory) in line for line in errors(caplog))
