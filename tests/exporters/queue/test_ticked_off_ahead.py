"""A cursor is ahead of the disk: what counts as delivered before its commit, and what a crash repeats."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from statsig_otel.exporters.queue import queries
from statsig_otel.exporters.queue.errors import StorageError
from tests.exporters.queue.helpers import (
    PATIENCE,
    blocked,
    check_counters,
    copy_of,
    delivered,
    failing_disk,
    numbers_of,
    put,
    reading,
    running,
    settled,
    submit_damage,
)


def test_what_is_ticked_off_ahead_counts_as_done_and_is_on_disk_once_it_is_settled(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, *range(1, 8))
        cursor = queue.cursor("otlp")
        cursor.finish_soon(cursor.read(2, 1000))
        assert cursor.waiting == 5
        assert numbers_of(cursor.read(2, 1000)) == [3, 4]
        cursor.finish_soon(cursor.read(2, 1000))
        put(queue, 8)
        assert numbers_of(cursor.read(9, 1000)) == [5, 6, 7, 8]
        cursor.flush()
        check_counters(queue)
        cursor.finish(cursor.read(1, 1000))
        check_counters(queue)
        assert delivered(cursor) == [6, 7, 8]


def test_a_failure_to_tick_off_ahead_is_raised_by_the_next_call(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, *range(1, 8))
        cursor = queue.cursor("otlp")
        with failing_disk():
            cursor.finish_soon(cursor.read(2, 1000))
            for _ in range(3):
                with pytest.raises(StorageError):
                    cursor.flush()
            with pytest.raises(StorageError):
                cursor.finish_soon(cursor.read(2, 1000))
            assert numbers_of(cursor.read(2, 1000)) == [3, 4]
        cursor.finish_soon(cursor.read(2, 1000))
        assert delivered(cursor) == [5, 6, 7]
        check_counters(queue)


def test_what_is_ticked_off_ahead_waits_for_no_disk_and_shares_commits(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, *range(1, 101))
        cursor = queue.cursor("otlp")
        with blocked(queue):
            for _ in range(10):
                cursor.finish_soon(cursor.read(3, 1000))
            with reading(queue.database) as connection:
                assert [state.waiting for state in queries.exporter_states(connection)] == [100], "nothing is on disk"
            assert cursor.waiting == 70
        cursor.flush()
        check_counters(queue)
        assert delivered(cursor) == [*range(31, 101)]


def test_a_disk_that_hangs_holds_up_what_would_be_done_without_end(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, *range(1, 101))
        cursor = queue.cursor("otlp")

        def deliver() -> None:
            while records := cursor.read(1, 1000):
                cursor.finish_soon(records)
            cursor.flush()

        with ThreadPoolExecutor(1) as sender:
            with blocked(queue):
                delivering = sender.submit(deliver)
                with pytest.raises(TimeoutError):
                    delivering.result(0.3)
                assert cursor.waiting == 84, "sixteen batches are ahead, and the next one waits with what it sent"
            delivering.result(PATIENCE)
        assert cursor.waiting == 0
        check_counters(queue)


def test_a_crash_repeats_what_was_ticked_off_ahead_and_not_written(tmp_path: Path) -> None:
    with running(tmp_path / "before") as queue:
        put(queue, *range(1, 8))
        cursor = queue.cursor("otlp")
        cursor.finish_soon(cursor.read(2, 1000))
        cursor.flush()
        with blocked(queue):
            cursor.finish_soon(cursor.read(2, 1000))
            left = copy_of(tmp_path / "before", tmp_path / "after")
    with running(left) as queue:
        assert delivered(queue.cursor("otlp")) == [3, 4, 5, 6, 7]


def test_a_command_between_sees_and_changes_nothing_of_what_is_ahead(tmp_path: Path) -> None:
    """Every command takes the positions from the database, which is behind."""
    with running(tmp_path) as queue:
        put(queue, *range(1, 101))
        cursor = queue.cursor("otlp")
        found: list[int] = []
        while records := cursor.read(3, 1000):
            found += numbers_of(records)
            cursor.read_ahead(records[-1].seq, 3, 1000)
            command = queue.submit(queries.exporter_states)
            cursor.finish_soon(records)
            queue.submit(queries.exporter_states)
            command.result(PATIENCE)
            assert cursor.position == records[-1].seq
        assert found == list(range(1, 101))
        cursor.flush()
        check_counters(queue)


def test_what_was_ticked_off_ahead_in_a_database_that_is_set_aside_is_void(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, 1, 2, 3)
        cursor = queue.cursor("otlp")
        with blocked(queue):
            cursor.finish_soon(cursor.read(1, 1000))
            damaging = submit_damage(queue)
        damaging.result(PATIENCE)
        cursor.flush()
        settled(tmp_path)
        assert delivered(cursor) == [1, 2, 3], "it was never written down"
        check_counters(queue)


def test_what_was_read_ahead_counts_only_for_the_same_place(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, *range(1, 8))
        cursor = queue.cursor("otlp")
        records = cursor.read(2, 1000)
        cursor.read_ahead(records[-1].seq, 2, 1000)
        assert numbers_of(cursor.read(2, 1000)) == [1, 2], "nothing is ticked off yet"
        cursor.read_ahead(records[-1].seq, 2, 1000)
        cursor.finish(records)
        assert numbers_of(cursor.read(3, 1000)) == [3, 4, 5], "another limit"
        cursor.read_ahead(records[-1].seq, 3, 1000)
        queue.database.unlink()
        assert numbers_of(cursor.read(3, 1000)) == [3, 4, 5], "it was read before"


def test_a_lane_that_is_closed_has_settled(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, 1, 2, 3)
        cursor = queue.cursor("otlp")
        cursor.finish_soon(cursor.read(2, 1000))
        cursor.close()
    with running(tmp_path) as queue:
        assert delivered(queue.cursor("otlp")) == [3]
