"""Who gets which records, from where on, and at whose pace; also while the routing changes."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from statsig_otel.exporters.consumer import Receipt
from statsig_otel.exporters.queue import store
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.routing import QueuedExporter, Route, Routing
from tests.exporters.queue.helpers import (
    PATIENCE,
    blocked,
    check_counters,
    count,
    dead_letters_in,
    delivered,
    numbers_of,
    put,
    read_all,
    running,
    tidied,
)
from tests.waiting import wait_until


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
        assert not queue.unconfigured_exporters()
    with running(tmp_path, exporters=("b",)) as queue:
        (gone,) = queue.unconfigured_exporters()
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
        assert (count(queue.database), queue.unconfigured_exporters()) == (0, [])
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
        assert (cursor.waiting, len(dead_letters_in(queue.database))) == (1, 1)
        assert delivered(cursor) == [3]


def test_exporters_added_under_load_begin_at_the_oldest_record_and_counts_stay_true(tmp_path: Path) -> None:
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


def test_records_behind_the_head_are_read_without_moving_the_place(tmp_path: Path) -> None:
    with running(tmp_path, exporters=("a",)) as queue:
        put(queue, *range(10))
        cursor = queue.cursor("a")
        assert len(cursor.read_behind(0, 9, 10_000)) == 0, "nothing was read yet"
        head = cursor.read(3, 10_000)
        assert numbers_of(cursor.read_behind(head.seqs[-1], 4, 10_000)) == [3, 4, 5, 6]
        assert numbers_of(cursor.read_behind(head.seqs[-1], 4, 1)) == [3], "one record, however small the limit"
        cursor.finish(head)
        assert numbers_of(cursor.read_behind(0, 2, 10_000)) == [3, 4], "not what is ticked off"
        assert numbers_of(cursor.read(1, 1)) == [3], "the place is the same"
