"""The queue's limits, its space on disk, its one owner, and how quickly it starts."""

import re
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from statsig_otel.exporters.consumer import Batch, Invalid, Receipt, RefusedError
from statsig_otel.exporters.queue import store, writer
from statsig_otel.exporters.queue.errors import DirectoryInUseError, StorageError
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.routing import QueuedExporter
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
    put,
    read_all,
    reading,
    refusal,
    running,
    settled,
    state_of,
    submit_damage,
    tidied,
)


def test_a_full_queue_refuses_the_whole_batch_for_all_and_resumes_by_itself(tmp_path: Path) -> None:
    exporters = {"small": QueuedExporter(queue_size=3), "large": QueuedExporter()}
    with running(tmp_path, exporters=exporters) as queue:
        put(queue, 1, 2)
        put(queue, 3, 4)
        error = refusal(queue, batch(5))
        assert (error.reason, error.retry_after) == ("queue_full", 10)
        assert "3 records or more wait for small: that is its queue_size" in str(error)
        assert count(queue.database) == 4
        check_counters(queue)
        cursor = queue.cursor("small")
        cursor.finish(cursor.read(2, 1000))
        assert put(queue, 5) == Receipt(1)
        assert delivered(queue.cursor("large")) == [1, 2, 3, 4, 5]


def test_a_queue_can_be_full_of_bytes(tmp_path: Path) -> None:
    exporters = {"small": QueuedExporter(queue_size=1, counts_bytes=True), "large": QueuedExporter()}
    with running(tmp_path, exporters=exporters) as queue:
        assert put(queue, 1, 2) == Receipt(2), "whatever comes first is stored"
        size = queue.cursor("small").size
        assert size == sum(len(record.payload) for record in queue.cursor("small").read(2, 1000))
        error = refusal(queue, batch(3))
        assert error.reason == "queue_full"
        assert "1 byte or more wait for small: that is its queue_size" in str(error)
        check_counters(queue)
        assert queue.capacities() == {}, "the metric counts records"
        assert delivered(queue.cursor("small")) == [1, 2]
        assert (queue.cursor("small").waiting, queue.cursor("small").size) == (0, 0)
        assert put(queue, 3) == Receipt(1)
    with running(tmp_path, exporters={"small": QueuedExporter(queue_size=2 * size, counts_bytes=True)}) as queue:
        assert queue.cursor("small").size == size / 2, "also after a start"
        assert [put(queue, 4), put(queue, 5), put(queue, 6)] == [Receipt(1)] * 3
        assert refusal(queue, batch(7)).reason == "queue_full"
        cursor = queue.cursor("small")
        cursor.finish_soon(cursor.read(1, 1000))
        cursor.flush()
        assert put(queue, 7) == Receipt(1)
        check_counters(queue)


def test_a_limit_holds_also_for_batches_that_come_together(tmp_path: Path) -> None:
    with running(tmp_path, exporters={"otlp": QueuedExporter(queue_size=10)}) as queue:
        entered, gate = threading.Event(), threading.Event()

        def busy(_: sqlite3.Connection) -> None:
            entered.set()
            assert gate.wait(PATIENCE)

        queue.submit(busy)
        assert entered.wait(PATIENCE)
        futures = [consume(queue, batch(number)) for number in range(50)]
        gate.set()
        failures = [future.exception(PATIENCE) for future in futures]
        assert failures[:10] == [None] * 10
        assert all(isinstance(one, RefusedError) and one.reason == "queue_full" for one in failures[10:])
        check_counters(queue)
        assert delivered(queue.cursor("otlp")) == list(range(10))
        assert [put(queue, number) for number in (10, 49)] == [Receipt(1), Receipt(1)], (
            "what was refused is no duplicate"
        )


def test_a_disk_with_too_little_left_refuses_before_it_is_full(tmp_path: Path) -> None:
    with running(tmp_path, min_free_bytes=1 << 60) as queue:
        error = refusal(queue, batch(1))
        assert (error.reason, error.retry_after) == ("disk_full", 10)
        assert re.search(r"the disk has \d+ bytes left, less than min_free_bytes", str(error))
        assert count(queue.database) == 0


def test_the_file_shrinks_while_it_serves(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        for start in range(0, 3000, 500):
            put(queue, *range(start, start + 500), size=4000)
        before = queue.database.stat().st_size
        assert len(read_all(queue.cursor("otlp"), at_once=200)) == 3000
        queue.cursor("otlp").close()
        tidied(queue)
        put(queue, 3000)
        with reading(queue.database) as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
        assert pages * 4096 < 6 << 20
    assert before > 8 << 20
    assert queue.database.stat().st_size < 6 << 20


def test_a_second_queue_on_the_same_directory_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, 1)
        with pytest.raises(DirectoryInUseError), running(tmp_path):
            pass
        with child("acknowledge", tmp_path, 1) as process:
            assert process.wait(PATIENCE) != 0
        put(queue, 2)
        assert delivered(queue.cursor("otlp")) == [1, 2]


def test_a_forked_child_gets_a_clear_error_and_does_no_harm(tmp_path: Path) -> None:
    with child("fork and use", tmp_path) as process:
        said = [line_of(process) for _ in range(14)]
    message = "this queue was started by the process PARENT: start one after the fork"
    wanted = []
    for name in ("consume", "cursor", "read", "finish", "states"):
        wanted += [f"{name}: {message}", "exit 0"]
    assert said == [*wanted, "shutdown: nothing raised", "exit 0", "delivered 1 3", "end"]
    with running(tmp_path) as queue:
        assert delivered(queue.cursor("otlp")) == []


def test_a_start_that_fails_leaves_the_directory_to_others_and_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as queue:
        put(queue, 1)
    (tmp_path / "state.json").rename(tmp_path / "elsewhere")
    (tmp_path / "state.json").mkdir()
    with pytest.raises(IsADirectoryError), running(tmp_path):
        pass
    (tmp_path / "state.json").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "state.json")
    with running(tmp_path) as queue:
        assert delivered(queue.cursor("otlp")) == [1]
    assert not errors(caplog)


def steps_of(directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many hundreds of the engine's steps a start, a first read and an idle round take."""
    steps = 0
    original: Callable[[DurableQueue, sqlite3.Connection], None] = DurableQueue._prepare

    def counted(queue: DurableQueue, connection: sqlite3.Connection) -> None:
        def step() -> None:
            nonlocal steps
            steps += 1

        connection.set_progress_handler(step, 100)
        original(queue, connection)

    with monkeypatch.context() as patched:
        patched.setattr(DurableQueue, "_prepare", counted)
        with running(directory) as queue:
            assert not queue.submit(lambda connection: queue._tidy(connection, True)).result(PATIENCE)
            assert len(queue.cursor("otlp").read(100, 1 << 20)) == 100
            assert state_of(queue, "otlp").waiting >= 100
    return steps


def test_a_start_with_many_waiting_records_takes_no_more_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"few": 100, "many": 50_000}
    steps = {}
    for name, size in sizes.items():
        with running(tmp_path / name) as queue:

            def fill(connection: sqlite3.Connection, queue: DurableQueue = queue, size: int = size) -> None:
                connection.execute(
                    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :size) "
                    "INSERT INTO records (route, uid, payload, checksum) "
                    "SELECT :route, zeroblob(16), zeroblob(50), 0 FROM n",
                    {"route": store.ensure_route(connection, [1], "statsig"), "size": size},
                )
                store.add_waiting(connection, [queue.cursor("otlp").id], size, 50 * size)

            queue.submit(fill).result(PATIENCE * 2)
        steps[name] = steps_of(tmp_path / name, monkeypatch)
    assert steps["many"] <= steps["few"] + 3, steps


def test_a_job_of_a_stopped_lane_is_refused_by_the_database_that_it_did_not_read(tmp_path: Path) -> None:
    """What was read from a database that is set aside must not move a place in the new one."""
    with running(tmp_path) as queue:
        put(queue, 1, 2, 3)
        cursor = queue.cursor("otlp")
        records = cursor.read(10, 1000)
        damage(queue)
        put(queue, 4)
        with pytest.raises(StorageError, match="set aside"):
            cursor.finish(records)
        settled(tmp_path)
        assert sorted(delivered(cursor)) == [1, 2, 3, 4], "carried over, and not ticked off"
        check_counters(queue)


def damage(queue: DurableQueue) -> None:
    """Make the writer believe that its file is damaged, until it begins another one."""
    submit_damage(queue).result(PATIENCE)


def test_it_is_said_once_that_bodies_are_no_longer_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither invalid items nor smaller bodies between them make it new; room that somebody makes does."""
    monkeypatch.setattr(store, "MOST_BODY_BYTES", 100)
    with running(tmp_path) as queue:
        assert bring(queue, caplog, 60) == 0
        assert bring(queue, caplog, 50) == 1
        for _ in range(3):
            assert bring(queue, caplog, 10, whole_body=False) == 1
            assert bring(queue, caplog, 5, 50, 45, 1) == 1
        queue.submit(lambda connection: connection.execute("DELETE FROM dead_letters").rowcount).result(PATIENCE)
        assert bring(queue, caplog, 50, 50) == 1
        assert bring(queue, caplog, 50) == 2


def test_it_is_said_once_that_there_are_too_many_bodies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of empty ones, which need no room."""
    monkeypatch.setattr(store, "MOST_BODIES", 2)
    with running(tmp_path) as queue:
        assert bring(queue, caplog, 5, 0) == 0
        for _ in range(3):
            assert bring(queue, caplog, 5, 0) == 1
            assert bring(queue, caplog, 10, whole_body=False) == 1


def bring(queue: DurableQueue, caplog: pytest.LogCaptureFixture, *sizes: int, whole_body: bool = True) -> int:
    """Bring invalid items or bodies of these sizes; how often it was said by now that bodies are not kept."""
    for size in sizes:
        invalid = Invalid(bytes(size), "no JSON", whole_body=whole_body)
        consume(queue, Batch("statsig", (), (invalid,))).result(PATIENCE)
    return sum("no longer kept" in record.message for record in caplog.records)


def test_the_files_are_looked_at_each_second() -> None:
    """By a writer that has nothing to write; else before each answer."""
    assert writer._IDLE <= 1.0
