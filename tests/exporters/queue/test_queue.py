"""The durable queue as its users see it: duplicates, routes and cursors, limits, space, one owner, a quick start."""

import re
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError
from statsig_otel.exporters.queue import queries, schema, store
from statsig_otel.exporters.queue.directory import DirectoryInUseError
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.queue.writer import NotRunningError, StorageError
from statsig_otel.exporters.routing import CurrentRouting, QueuedExporter, Route, Routing
from tests.exporters.queue.helpers import (
    PATIENCE,
    batch,
    blocked,
    check_counters,
    child,
    copy_of,
    count,
    delivered,
    errors,
    failing_disk,
    letters,
    line_of,
    numbers_of,
    put,
    read_all,
    reading,
    running,
    settled,
    state_of,
    tidied,
    uid,
    wait_until,
)

DAY = 24 * 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def refusal(queue: DurableQueue, made: Batch) -> RefusedError:
    error = queue.consume(made).exception(PATIENCE)
    assert isinstance(error, RefusedError)
    return error


# --- acknowledged means on disk -------------------------------------------------------------------------------------


def test_an_answer_means_that_another_connection_sees_the_records_and_the_invalid_items(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        receipt = queue.consume(batch(1, 2, 1, records=2, invalid=1)).result(PATIENCE)
        assert receipt == Receipt(accepted=2, duplicates=1)
        assert count(queue.database) == 4
        assert letters(queue.database) == [DeadLetter("item", "statsig", "no name", b"bad 0")]
        check_counters(queue)
        found = read_all(queue.cursor("otlp"))
        assert [record.payload.rstrip(b"-") for record in found] == [b"1.0", b"1.1", b"2.0", b"2.1"]
        assert [record.uid.hex() for record in found] == [uid(1), uid(1), uid(2), uid(2)]
        check_counters(queue)


def test_nothing_is_opened_before_the_start_and_all_is_refused(tmp_path: Path) -> None:
    queue = DurableQueue(
        tmp_path,
        CurrentRouting(Routing({"statsig": Route(("otlp",))}, {"otlp": QueuedExporter()})),
        min_free_bytes=0,
    )
    assert not list(tmp_path.iterdir())
    assert refusal(queue, batch(1)).reason == "shutting_down"
    queue.shutdown()


def test_after_the_end_all_is_refused_and_the_directory_is_in_order(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, 1)
        records = queue.cursor("otlp").read(10, 1000)
    error = refusal(queue, batch(2))
    assert (error.reason, error.retry_after) == ("shutting_down", 10)
    with pytest.raises(NotRunningError):
        queue.cursor("otlp").finish(records)
    queue.shutdown()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["lock", "queue.db", "state.json"]


def test_a_queue_can_be_started_again(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, 1)
        queue.cursor("otlp").close()
        queue.shutdown()
        queue.start()
        put(queue, 2)
        assert delivered(queue.cursor("otlp")) == [1, 2]


def test_a_directory_that_is_gone_is_a_refusal_and_no_crash(tmp_path: Path) -> None:
    with running(tmp_path / "a", min_free_bytes=1) as queue:
        (tmp_path / "a").rename(tmp_path / "b")
        assert refusal(queue, batch(1)).reason == "storage_failed"
        (tmp_path / "b").rename(tmp_path / "a")
        assert put(queue, 1) == Receipt(1)


# --- duplicates -----------------------------------------------------------------------------------------------------


def test_the_same_change_is_stored_and_delivered_once(tmp_path: Path) -> None:
    """In one batch, in later ones, after its delivery and its deletion, and after a restart."""
    with running(tmp_path) as queue:
        assert put(queue, 1, 1, 2, 1) == Receipt(2, 2)
        assert put(queue, 2, 3) == Receipt(1, 1)
        assert delivered(queue.cursor("otlp")) == [1, 2, 3]
        tidied(queue)
        assert count(queue.database) == 0
        assert put(queue, 1, 2, 3) == Receipt(0, 3)
    with running(tmp_path) as queue:
        assert put(queue, 3, 4) == Receipt(1, 1)
        assert delivered(queue.cursor("otlp")) == [4]


def test_the_same_change_a_hundred_times_in_parallel_is_stored_once(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        with ThreadPoolExecutor(20) as threads:
            receipts = list(threads.map(lambda number: put(queue, number % 10, 100 + number), range(100)))
        assert sum(receipt.accepted for receipt in receipts) == 110
        assert sum(receipt.duplicates for receipt in receipts) == 90
        assert sorted(delivered(queue.cursor("otlp"))) == [*range(10), *range(100, 200)]


def test_a_duplicate_is_answered_after_the_commit_of_the_first(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        entered, gate = threading.Event(), threading.Event()

        def busy(_: sqlite3.Connection) -> None:
            entered.set()
            assert gate.wait(PATIENCE)

        holding = queue.submit(busy)
        assert entered.wait(PATIENCE)
        first, second = queue.consume(batch(1)), queue.consume(batch(1))
        seen: list[int] = []
        second.add_done_callback(lambda _: seen.append(count(queue.database)))
        assert not first.done()
        assert not second.done()
        gate.set()
        holding.result(PATIENCE)
        assert (first.result(PATIENCE), second.result(PATIENCE)) == (Receipt(1), Receipt(0, 1))
    assert seen == [1]


def test_the_same_change_at_two_receivers_is_two_changes(tmp_path: Path) -> None:
    receivers = {"statsig": Route(("otlp",)), "statsig/eu": Route(("otlp",))}
    with running(tmp_path, receivers=receivers) as queue:
        assert put(queue, 1) == Receipt(1)
        assert put(queue, 1, receiver="statsig/eu") == Receipt(1)
        assert put(queue, 1, receiver="statsig/eu") == Receipt(0, 1)
        assert delivered(queue.cursor("otlp")) == [1, 1]


def test_after_the_window_a_change_is_new_again(tmp_path: Path) -> None:
    clock = Clock()
    receivers = {"statsig": Route(("otlp",), window=60.0)}
    with running(tmp_path, receivers=receivers, clock=clock) as queue:
        assert put(queue, 1) == Receipt(1)
        clock.now += 59.999
        assert put(queue, 1) == Receipt(0, 1)
        clock.now += 0.001
        assert put(queue, 1) == Receipt(1)
        clock.now += 61
        tidied(queue)
        assert count(queue.database, "seen") == 0


def test_without_a_window_nothing_is_a_duplicate_and_nothing_is_remembered(tmp_path: Path) -> None:
    with running(tmp_path, receivers={"statsig": Route(("otlp",), window=0)}) as queue:
        assert put(queue, 1, 1) == Receipt(2)
        assert put(queue, 1) == Receipt(1)
        assert count(queue.database, "seen") == 0
        assert delivered(queue.cursor("otlp")) == [1, 1, 1]


@pytest.mark.parametrize("jump", [-20 * 365 * DAY, -3600.0, 3600.0, 20 * 365 * DAY])
def test_a_clock_that_jumps_loses_nothing_and_starts_no_storm(tmp_path: Path, jump: float) -> None:
    clock = Clock()
    with running(tmp_path, clock=clock) as queue:
        put(queue, 1, 2)
        clock.now += jump
        again = put(queue, 1, 2, 3)
        assert again.accepted == (3 if jump > DAY else 1)
        tidied(queue)
        assert put(queue, 1, 2, 3) == Receipt(0, 3), "once more, not with each delivery"
        clock.now -= jump
        tidied(queue)
        back = put(queue, 1, 2, 3, 4)
        assert back.accepted >= 1
        assert put(queue, 1, 2, 3, 4) == Receipt(0, 4)
        assert set(delivered(queue.cursor("otlp"))) == {1, 2, 3, 4}
        check_counters(queue)


# --- routes and cursors ---------------------------------------------------------------------------------------------


def test_each_exporter_gets_what_is_for_it_in_order_and_at_its_own_pace(tmp_path: Path) -> None:
    receivers = {
        "x": Route(("a", "b"), window=0),
        "y": Route(("b", "c"), window=0),
        "z": Route(("c",), window=0),
    }
    with running(tmp_path, receivers=receivers, exporters=("a", "b", "c", "idle")) as queue:
        for number in range(60):
            put(queue, number, receiver="xyz"[number * 7 % 3])
        receivers_of = {"a": "x", "b": "xy", "c": "yz"}
        wanted = {name: [n for n in range(60) if "xyz"[n * 7 % 3] in of] for name, of in receivers_of.items()}
        assert delivered(queue.cursor("a")) == wanted["a"]
        tidied(queue)
        check_counters(queue)
        assert delivered(queue.cursor("b")) == wanted["b"]
        check_counters(queue)
        assert delivered(queue.cursor("c")) == wanted["c"]
        tidied(queue)
        check_counters(queue)
        assert delivered(queue.cursor("idle")) == []
        assert count(queue.database) == 0


def test_a_receiver_without_a_queued_exporter_leaves_nothing_behind(tmp_path: Path) -> None:
    with running(tmp_path, receivers={"statsig": Route(())}) as queue:
        assert put(queue, 1) == Receipt(1)
        tidied(queue)
        assert count(queue.database) == 0


def test_a_new_exporter_begins_at_the_next_record(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, 1, 2)
    with running(tmp_path, exporters=("otlp", "new")) as queue:
        put(queue, 3)
        assert delivered(queue.cursor("new")) == [3]
        assert delivered(queue.cursor("otlp")) == [1, 2, 3]
        check_counters(queue)


def test_a_new_exporter_that_is_told_so_begins_at_the_oldest_of_its_receivers(tmp_path: Path) -> None:
    """What other receivers brought is not for it, and what is deleted is gone."""
    receivers = {"x": Route(("otlp",)), "y": Route(("otlp",))}
    with running(tmp_path, receivers=receivers) as queue:
        put(queue, 1, receiver="x")
        assert delivered(queue.cursor("otlp")) == [1]
        tidied(queue)
        for number in range(2, 8):
            put(queue, number, receiver="yx"[number % 2])
    wider = {"x": Route(("otlp", "new")), "y": Route(("otlp",))}
    exporters = {"otlp": QueuedExporter(), "new": QueuedExporter(from_oldest=True)}
    for _ in range(2):  # the second start changes nothing
        with running(tmp_path, receivers=wider, exporters=exporters) as queue:
            assert queue.cursor("new").waiting == 3
            check_counters(queue)
    with running(tmp_path, receivers=wider, exporters=exporters) as queue:
        put(queue, 8, receiver="x")
        assert delivered(queue.cursor("new")) == [3, 5, 7, 8]
        assert delivered(queue.cursor("otlp")) == [2, 3, 4, 5, 6, 7, 8]
        check_counters(queue)


def test_an_exporter_that_left_keeps_its_place_until_it_comes_back(tmp_path: Path) -> None:
    with running(tmp_path, exporters=("a", "b")) as queue:
        put(queue, 1, 2, 3)
        cursor = queue.cursor("a")
        cursor.finish(cursor.read(1, 1000))
        assert not queue.forgotten_exporters()
    with running(tmp_path, exporters=("b",)) as queue:
        (gone,) = queue.forgotten_exporters()
        assert (gone.name, gone.waiting, gone.bytes) == ("a", 2, 40)
        put(queue, 4)
        assert delivered(queue.cursor("b")) == [1, 2, 3, 4]
        tidied(queue)
        assert count(queue.database) == 2, "what it has not got yet"
        check_counters(queue)
    with running(tmp_path, exporters=("a", "b")) as queue:
        put(queue, 5)
        assert delivered(queue.cursor("a")) == [2, 3, 5]
        assert delivered(queue.cursor("b")) == [5]


def test_removing_an_exporter_that_left_frees_what_it_held(tmp_path: Path) -> None:
    with running(tmp_path, exporters=("a", "b")) as queue:
        put(queue, 1, 2, 3)
    with running(tmp_path, exporters=("b",)) as queue:
        assert delivered(queue.cursor("b")) == [1, 2, 3]
        removed = queue.submit(lambda connection: store.remove_exporter(connection, "a")).result(PATIENCE)
        assert removed is not None
        tidied(queue)
        assert (count(queue.database), queue.forgotten_exporters()) == (0, [])
    with running(tmp_path, exporters=("a", "b")) as queue:
        put(queue, 4)
        assert delivered(queue.cursor("a")) == [4]


def test_what_is_replayed_while_it_runs_is_delivered_to_that_exporter_alone(tmp_path: Path) -> None:
    """Also on a route that nobody had when the queue was started."""
    with running(tmp_path, exporters=("a", "b", "c")) as queue:
        put(queue, 1)

        def replay(connection: sqlite3.Connection) -> None:
            for names in (["a"], ["a", "b"]):
                cursors = [store.ensure_exporter(connection, name) for name in names]
                store.append_copies(connection, cursors, [(bytes(16), b"again")])

        queue.cursor("c").wait(0)
        queue.submit(replay).result(PATIENCE)
        check_counters(queue)
        put(queue, 2)
        assert delivered(queue.cursor("a")) == [1, 0, 0, 2]
        assert delivered(queue.cursor("b")) == [1, 0, 2]
        assert delivered(queue.cursor("c")) == [1, 2]
        check_counters(queue)


def test_a_place_that_a_command_moved_is_the_senders_too(tmp_path: Path) -> None:
    """The record that was skipped while it was being sent is not counted down twice."""
    with running(tmp_path) as queue:
        put(queue, 1, 2, 3)
        cursor = queue.cursor("otlp")
        records = cursor.read(2, 1000)

        def skip(connection: sqlite3.Connection) -> None:
            store.advance(connection, cursor.id, cursor=records[0].seq, records=1, size=20)

        queue.submit(skip).result(PATIENCE)
        assert (cursor.waiting, cursor.position) == (2, records[0].seq)
        cursor.finish(records)
        check_counters(queue)
        assert delivered(cursor) == [3]


def test_records_that_were_ticked_off_before_are_not_counted_twice(tmp_path: Path) -> None:
    """A commit that was said to have failed can have reached the disk."""
    with running(tmp_path) as queue:
        put(queue, 1, 2, 3)
        cursor = queue.cursor("otlp")
        records = cursor.read(2, 1000)
        cursor.finish(records, [DeadLetter("record", "otlp", "no", records[0].payload)])
        cursor.finish(records, [DeadLetter("record", "otlp", "no", records[0].payload)])
        check_counters(queue)
        assert (cursor.waiting, len(letters(queue.database))) == (1, 1)
        assert delivered(cursor) == [3]


# --- ticked off ahead of the disk -----------------------------------------------------------------------------------


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


def test_what_can_not_be_ticked_off_ahead_is_told_by_the_next_call_and_is_not_read_again(tmp_path: Path) -> None:
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
    """Every command takes the places over from the database, which is behind."""
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


# --- another plan while it runs -------------------------------------------------------------------------------------


def test_exporters_that_begin_at_the_oldest_record_come_under_load_and_every_count_stays_true(tmp_path: Path) -> None:
    with running(tmp_path, exporters=("a",)) as queue:
        put(queue, *range(50))
        names = ["a"]
        stopping = threading.Event()
        taken = [0] * 6

        def load(thread: int) -> None:
            while not stopping.is_set():
                taken[thread] += 1
                put(queue, 1000 * (thread + 1) + taken[thread])

        with ThreadPoolExecutor(len(taken)) as threads:
            loading = [threads.submit(load, thread) for thread in range(len(taken))]
            for number in range(10):
                names.append(f"new {number}")
                exporters = {name: QueuedExporter(from_oldest=True) for name in names}
                queue.reconfigure(Routing({"statsig": Route(tuple(names))}, exporters))
            stopping.set()
            for one in loading:
                one.result(PATIENCE)
        check_counters(queue)
        waiting = {state.name: state.waiting for state in queue.states()}
        assert waiting["a"] == 50 + sum(taken)
        for name in names:
            assert len(delivered(queue.cursor(name))) == waiting[name] >= 50
            queue.cursor(name).close()


def test_an_exporter_that_is_just_coming_back_counts_as_configured(tmp_path: Path) -> None:
    """A command that would forget it asks here."""
    with running(tmp_path, exporters=("a",)) as queue:
        assert queue.serves("a")
        assert not queue.serves("b")
        exporters = {name: QueuedExporter() for name in ("a", "b")}
        with ThreadPoolExecutor(1) as thread:
            with blocked(queue):
                coming = thread.submit(lambda: queue.reconfigure(Routing({}, exporters)))
                wait_until(lambda: queue.serves("b"), "it is told")
                assert "b" not in queue.routing.exporters
            coming.result(PATIENCE)
        assert queue.serves("b")
        queue.cursor("b").close()


def test_routes_that_no_record_is_on_are_forgotten(tmp_path: Path) -> None:
    with running(tmp_path, exporters=("a",)) as queue:
        put(queue, 1)
        for number in range(30):
            name = f"e{number}"
            exporters = {name: QueuedExporter(), "a": QueuedExporter()}
            queue.reconfigure(Routing({"statsig": Route((name,))}, exporters))
            put(queue, 100 + number)
            read_all(queue.cursor(name))
            queue.cursor(name).close()
            tidied(queue)
        assert count(queue.database, "routes") < 10
        assert delivered(queue.cursor("a")) == [1]


def test_a_sender_is_woken_by_a_record_also_by_one_that_came_before_it_waits(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        cursor = queue.cursor("otlp")
        cursor.wait(0)
        assert not cursor.read(1, 1000)
        put(queue, 1)
        cursor.wait(None)
        assert numbers_of(cursor.read(1, 1000)) == [1]
        cursor.wake()
        cursor.wait(None)


# --- limits and space -----------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_the_whole_batch_for_all_and_resumes_by_itself(tmp_path: Path) -> None:
    exporters = {"small": QueuedExporter(queue_size=3), "large": QueuedExporter()}
    with running(tmp_path, exporters=exporters) as queue:
        put(queue, 1, 2)
        put(queue, 3, 4)
        error = refusal(queue, batch(5))
        assert (error.reason, error.retry_after) == ("queue_full", 10)
        assert "3 records wait for small, which is its queue_size" in str(error)
        assert count(queue.database) == 4
        check_counters(queue)
        cursor = queue.cursor("small")
        cursor.finish(cursor.read(2, 1000))
        assert put(queue, 5) == Receipt(1)
        assert delivered(queue.cursor("large")) == [1, 2, 3, 4, 5]


def test_a_limit_holds_also_for_batches_that_come_together(tmp_path: Path) -> None:
    with running(tmp_path, exporters={"otlp": QueuedExporter(queue_size=10)}) as queue:
        entered, gate = threading.Event(), threading.Event()

        def busy(_: sqlite3.Connection) -> None:
            entered.set()
            assert gate.wait(PATIENCE)

        queue.submit(busy)
        assert entered.wait(PATIENCE)
        futures = [queue.consume(batch(number)) for number in range(50)]
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


# --- one owner ------------------------------------------------------------------------------------------------------


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
    (tmp_path / "state.json.new").mkdir()
    with pytest.raises(IsADirectoryError), running(tmp_path):
        pass
    (tmp_path / "state.json.new").rmdir()
    with running(tmp_path) as queue:
        assert delivered(queue.cursor("otlp")) == [1]
    assert not errors(caplog)


# --- a quick start and bounded memory -------------------------------------------------------------------------------


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
    sizes = {"few": 100, "many": 200_000}
    steps = {}
    for name, size in sizes.items():
        with running(tmp_path / name) as queue:

            def fill(connection: sqlite3.Connection, queue: DurableQueue = queue, size: int = size) -> None:
                connection.execute(
                    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2) "
                    "INSERT INTO records (route, uid, payload, checksum) "
                    "SELECT ?1, zeroblob(16), zeroblob(50), 0 FROM n",
                    (store.ensure_route(connection, [1], "statsig"), size),
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


def submit_damage(queue: DurableQueue) -> Future[None]:
    before = queue.generation

    def finds_it(_: sqlite3.Connection) -> None:
        if queue.generation == before:
            raise schema.DamagedError("found by a test")

    return queue.submit(finds_it)
