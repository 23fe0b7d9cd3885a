"""A copy of a queue that is made while it works: it has all that was acknowledged before, and can take its place."""

import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from statsig_otel.exporters.queue import schema
from statsig_otel.exporters.queue.backup import back_up
from tests.exporters.queue.helpers import (
    batch,
    check_counters,
    consume,
    count,
    dead_letters_in,
    delivered,
    errors,
    failing_disk,
    put,
    reading,
    running,
)


def restored(copy: Path, directory: Path) -> Path:
    """As docs/queue.md says."""
    directory.mkdir()
    copy.rename(directory / "queue.db")
    return directory


def test_a_copy_that_is_made_under_load_has_what_was_acknowledged_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    acknowledged: list[int] = []
    enough, stop = threading.Event(), threading.Event()
    with running(tmp_path / "queue") as queue:

        def send(first: int) -> None:
            for number in range(first, first + 1_000_000):
                if stop.is_set():
                    return
                put(queue, number)
                acknowledged.append(number)
                if len(acknowledged) >= 100:
                    enough.set()

        threads = [threading.Thread(target=send, args=(1_000_000 * one,)) for one in range(3)]
        for thread in threads:
            thread.start()
        try:
            assert enough.wait(30)
            before = set(acknowledged)
            with reading(queue.database) as connection:
                size = back_up(connection, tmp_path / "copy")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert (tmp_path / "copy").stat().st_size == size
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o600
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy", "queue"]
    with running(restored(tmp_path / "copy", tmp_path / "restored")) as queue:
        check_counters(queue)
        assert before <= set(delivered(queue.cursor("otlp")))
        assert put(queue, min(before)).duplicates == 1
    assert not errors(caplog)


def test_a_copy_of_a_stopped_queue_has_dead_letters_and_cursors(tmp_path: Path) -> None:
    with running(tmp_path / "queue", exporters=("otlp", "slow")) as queue:
        put(queue, 1, 2, 3)
        consume(queue, batch(invalid=1)).result(30)
        cursor = queue.cursor("otlp")
        cursor.finish(cursor.read(2, 1 << 20))
    with reading(tmp_path / "queue" / "queue.db") as connection:
        back_up(connection, tmp_path / "copy")
    with running(restored(tmp_path / "copy", tmp_path / "restored"), exporters=("otlp", "slow")) as queue:
        assert delivered(queue.cursor("otlp")) == [3]
        assert delivered(queue.cursor("slow")) == [1, 2, 3]
        assert [one.reason for one in dead_letters_in(queue.database)] == ["no name"]


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("precious")
    with running(tmp_path / "queue") as queue, reading(queue.database) as connection, pytest.raises(FileExistsError):
        back_up(connection, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "precious"


def test_a_copy_that_can_not_be_written_leaves_nothing_and_harms_nobody(tmp_path: Path) -> None:
    with running(tmp_path / "queue") as queue:
        put(queue, *range(100), size=5000)
        with reading(queue.database) as connection, failing_disk(), pytest.raises((OSError, sqlite3.Error)):
            back_up(connection, tmp_path / "copy")
        assert [file.name for file in tmp_path.iterdir()] == ["queue"]
        put(queue, 1000)
        assert count(queue.database) == 101
    schema.check(tmp_path / "queue" / "queue.db")
