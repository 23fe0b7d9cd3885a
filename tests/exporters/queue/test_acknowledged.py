"""What the queue's answer means: on disk, once, also where the same change comes again or the clock jumps."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from statsig_otel.exporters.consumer import Receipt
from statsig_otel.exporters.queue.errors import NotRunningError
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.routing import CurrentRouting, QueuedExporter, Route, Routing
from tests.exporters.queue.helpers import (
    PATIENCE,
    batch,
    check_counters,
    consume,
    count,
    dead_letters_in,
    delivered,
    put,
    read_all,
    refusal,
    running,
    tidied,
    uid,
)

DAY = 24 * 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def test_after_an_answer_another_connection_sees_the_records_and_invalid_items(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        receipt = consume(queue, batch(1, 2, 1, records=2, invalid=1)).result(PATIENCE)
        assert receipt == Receipt(accepted=2, duplicates=1)
        assert count(queue.database) == 4
        assert dead_letters_in(queue.database) == [DeadLetter("item", "statsig", "no name", b"bad 0")]
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
        first, second = consume(queue, batch(1)), consume(queue, batch(1))
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
