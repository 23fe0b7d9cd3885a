"""The dead letters: found, dropped and replayed, on a real database file."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters.consumer import Batch, Change, Invalid
from statsig_otel.exporters.queue import dead_letters, queries, schema, store
from statsig_otel.exporters.queue.database import StoppedQueue
from statsig_otel.exporters.queue.dead_letters import Keep, MapAgain, Replay, Replayed, Resend, Selection
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.store import DeadLetter, DeadLetterKind
from statsig_otel.exporters.routing import CurrentRouting, QueuedExporter, Route, Routing

T = TypeVar("T")

NOW = 1_700_000_000_000
RECEIVERS = {"statsig": Route(("a", "b"))}
EXPORTERS = {"a": QueuedExporter(), "b": QueuedExporter()}


def payload(name: str, uid: str | None = None) -> bytes:
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add(event_name=name)
    if uid is not None:
        record.attributes.add(key="log.record.uid").value.string_value = uid
    return request.SerializeToString()


def uid(number: int) -> str:
    return f"{number:032x}"


class Database:
    """The writing connection of a test, each call in a transaction of its own."""

    def __init__(self, path: Path) -> None:
        self.connection = schema.connect(path)

    def __call__(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self.connection.execute("BEGIN IMMEDIATE")
        result = work(self.connection)
        self.connection.execute("COMMIT")
        return result

    def add_dead_letter(self, kind: DeadLetterKind, owner: str, content: bytes, **others: str) -> int:
        dead_letter = DeadLetter(kind, owner, others.get("reason", "why"), content, count=1, uid=b"\x07" * 16)
        self(lambda connection: store.add_dead_letter(connection, dead_letter, NOW))
        return dead_letters.last_id(self.connection)

    def replay(self, wanted: Replay, *, now_ms: int = NOW) -> Replayed:
        return self(
            lambda connection: dead_letters.replay(connection, wanted, routing=Routing(RECEIVERS), now_ms=now_ms)
        )

    def waiting(self) -> dict[str, list[bytes]]:
        """What each exporter will be sent, as its sender reads it; asserted to be what is counted."""
        found = {}
        for state in queries.exporter_states(self.connection):
            routes = queries.routes_of(self.connection, state.id)
            records = queries.read_records(self.connection, routes, after=state.cursor, count=10_000, size=1 << 30)
            assert all(record.intact for record in records)
            assert state.waiting == len(records)
            assert state.bytes == sum(len(record.payload) for record in records)
            found[state.name] = [record.payload for record in records]
        return found

    def ids(self, selection: Selection | None = None) -> list[int]:
        return [dead_letter.id for dead_letter in dead_letters.select(self.connection, selection or Selection())]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    found = Database(tmp_path / "queue.db")
    with closing(found.connection):
        found(lambda connection: [store.ensure_exporter(connection, name) for name in EXPORTERS])
        yield found


@pytest.fixture
def five(database: Database) -> Database:
    """One dead letter of each kind: 1 to 5. The receiver and one exporter have the same name."""
    database.add_dead_letter("item", "a", b"item")
    database.add_dead_letter("body", "statsig", b"body")
    database.add_dead_letter("record", "a", payload("x"))
    database.add_dead_letter("batch", "b", payload("y") + payload("z"))
    database.add_dead_letter("damaged", "a", b"\xff")
    return database


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), [1, 2, 3, 4, 5]),
        (Selection(ids=()), []),
        (Selection(ids=(4, 1, 99, 4)), [1, 4]),
        (Selection(exporter="a"), [3, 5]),
        (Selection(receiver="a"), [1]),
        (Selection(exporter="statsig"), []),
        (Selection(kind="batch"), [4]),
        (Selection(kind="damaged"), [5]),
        (Selection(exporter="a", kind="batch"), []),
        (Selection(exporter="a' OR '1'='1"), []),
    ],
)
def test_a_selection_finds_what_it_names_and_nothing_else(
    five: Database, selection: Selection, expected: list[int]
) -> None:
    assert five.ids(selection) == expected
    count, _ = dead_letters.count(five.connection, selection)
    assert count == len(expected)
    dropped = five(lambda connection: dead_letters.drop(connection, selection, after=0, upto=99, limit=99))
    assert [dead_letter.id for dead_letter in dropped] == expected
    assert five.ids() == [number for number in (1, 2, 3, 4, 5) if number not in expected]


def test_a_selection_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"exportr": "a"}, Selection)


def test_pages_are_bounded_by_number_and_size_and_by_the_last_id(database: Database) -> None:
    for size in (10, 10, 100, 10, 10):
        database.add_dead_letter("item", "statsig", b"x" * size)

    def page(after: int, **bounds: int) -> list[int]:
        return [
            dead_letter.id
            for dead_letter in dead_letters.select(database.connection, Selection(), after=after, **bounds)
        ]

    assert page(0, limit=2) == [1, 2]
    assert page(2, limit=2) == [3, 4]
    assert page(0, size=25) == [1, 2]
    assert page(2, size=25) == [3]
    assert page(3, size=25) == [4, 5]
    assert page(0, upto=3) == [1, 2, 3]
    assert page(5) == []
    assert dead_letters.count(database.connection, Selection()) == (5, 140)
    assert dead_letters.content(database.connection, 3) == b"x" * 100
    assert dead_letters.content(database.connection, 99) is None


def test_ids_are_never_used_again(database: Database) -> None:
    first = database.add_dead_letter("item", "statsig", b"1")
    database(lambda connection: dead_letters.drop(connection, Selection(), after=0, upto=first, limit=9))
    assert database.add_dead_letter("item", "statsig", b"2") == first + 1


def test_a_record_is_sent_again_to_its_exporter_alone_though_it_was_seen(database: Database) -> None:
    """A replay goes past the duplicates' check."""
    sent = payload("x")
    batch = Batch("statsig", (Change(uid(1), (sent,)),))

    def accept(connection: sqlite3.Connection) -> None:
        cursors = [store.ensure_exporter(connection, name) for name in EXPORTERS]
        route = store.ensure_route(connection, cursors, "statsig")
        store.append_batches(connection, [store.PendingBatch(batch, Route(window=1), route_id=route)], now_ms=NOW)
        store.add_waiting(connection, cursors, 1, len(sent))

    database(accept)
    dead_letter = database.add_dead_letter("record", "a", sent)
    done = database.replay(Resend(dead_letter, "a", ((bytes.fromhex(uid(1)), sent),)))
    assert done == Replayed(dead_letter, "replayed", records=1, exporters=("a",))
    assert database.waiting() == {"a": [sent, sent], "b": [sent]}
    assert database.ids() == []


def test_a_replay_is_done_once(database: Database) -> None:
    dead_letter = database.add_dead_letter("record", "a", payload("x"))
    wanted = Resend(dead_letter, "a", ((b"u" * 16, payload("x")),))
    assert database.replay(wanted).outcome == "replayed"
    assert database.replay(wanted) == Replayed(dead_letter, "gone")
    assert database.replay(Keep(dead_letter, "why")) == Replayed(dead_letter, "gone")
    assert (
        database.replay(MapAgain(dead_letter, Batch("statsig", (Change(uid(1), (payload("x"),)),)))).outcome == "gone"
    )
    assert database.waiting() == {"a": [payload("x")], "b": []}


def test_a_record_of_an_exporter_that_is_gone_stays(database: Database) -> None:
    dead_letter = database.add_dead_letter("record", "c", payload("x"))
    done = database.replay(Resend(dead_letter, "c", ((b"u" * 16, payload("x")),)))
    assert (done.outcome, done.reason) == ("kept", "the queue knows no exporter c: a service with it has to run first")
    assert database.ids() == [dead_letter]
    assert database.waiting() == {"a": [], "b": []}


def test_a_batch_is_split_into_the_very_requests_that_were_stored() -> None:
    stored = [payload("x", uid(1)), payload("y", uid(2)), payload("z"), payload("w", "no uid")]
    found = dead_letters.split(b"".join(stored))
    assert [one for _, one in found] == stored
    assert [one.hex() for one, _ in found[:2]] == [uid(1), uid(2)]
    assert [len(one) for one, _ in found] == [16] * 4
    assert dead_letters.split(b"") == ()
    assert dead_letters.split(b"".join(stored)) == found


@pytest.mark.parametrize("content", [b"\xff\xff\xff", payload("x")[:-1], b"text"])
def test_what_is_no_request_is_said(content: bytes) -> None:
    with pytest.raises(dead_letters.UnreadableError, match="can't be read"):
        dead_letters.split(content)


def test_an_item_is_taken_over_as_if_its_request_had_come_now(database: Database) -> None:
    """It is for all exporters of its receiver, and from now on a redelivery of it is a duplicate."""
    dead_letter = database.add_dead_letter("item", "statsig", b"item")
    batch = Batch("statsig", (Change(uid(1), (payload("x"),)),))
    done = database.replay(MapAgain(dead_letter, batch))
    assert done == Replayed(dead_letter, "replayed", records=1, exporters=("a", "b"))
    assert database.waiting() == {"a": [payload("x")], "b": [payload("x")]}
    again = database.add_dead_letter("item", "statsig", b"item")
    done = database.replay(MapAgain(again, batch), now_ms=NOW + 1)
    assert done == Replayed(again, "replayed", duplicates=1)
    assert database.waiting() == {"a": [payload("x")], "b": [payload("x")]}
    assert database.ids() == []


def test_items_of_a_body_that_are_still_invalid_become_dead_letters(database: Database) -> None:
    dead_letter = database.add_dead_letter("body", "statsig", b"body")
    changes = (Change(uid(1), (payload("x"), payload("y"))), Change(uid(2), (payload("z"),)))
    done = database.replay(MapAgain(dead_letter, Batch("statsig", changes, (Invalid(b"bad", "no name"),))))
    assert (done.outcome, done.records, done.invalid) == ("replayed", 3, 1)
    (left,) = dead_letters.select(database.connection, Selection())
    assert (left.kind, left.owner, left.reason) == ("item", "statsig", "no name")
    assert dead_letters.content(database.connection, left.id) == b"bad"


@pytest.mark.parametrize("receivers", [{}, {"statsig": Route(())}])
def test_a_receiver_without_a_queued_exporter_loses_nothing(database: Database, receivers: dict[str, Route]) -> None:
    dead_letter = database.add_dead_letter("item", "statsig", b"item")
    wanted = MapAgain(dead_letter, Batch("statsig", (Change(uid(1), (payload("x"),)),)))
    done = database(lambda connection: dead_letters.replay(connection, wanted, routing=Routing(receivers), now_ms=NOW))
    assert done.outcome == "kept"
    assert database.ids() == [dead_letter]


@pytest.mark.parametrize(("receivers", "waits"), [({}, 0), (RECEIVERS, 1)])
def test_records_that_synchronous_exporters_have_enter_a_queue_only_if_there_is_one(
    database: Database, receivers: dict[str, Route], waits: int
) -> None:
    dead_letter = database.add_dead_letter("body", "statsig", b"body")
    batch = Batch("statsig", (Change(uid(1), (payload("x"),)),), (Invalid(b"bad", "no name"),))
    wanted = MapAgain(dead_letter, batch, delivered=("now",))
    done = database(lambda connection: dead_letters.replay(connection, wanted, routing=Routing(receivers), now_ms=NOW))
    assert (done.outcome, done.records, done.delivered, done.invalid) == ("replayed", waits, ("now",), 1)
    assert database.waiting() == {"a": [payload("x")] * waits, "b": [payload("x")] * waits}
    assert [one.reason for one in dead_letters.select(database.connection, Selection())] == ["no name"]
    for table in ("records", "seen"):
        (count,) = database.connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert count == waits


def test_what_is_still_invalid_stays_with_the_new_reason(database: Database) -> None:
    dead_letter = database.add_dead_letter("item", "statsig", b"item", reason="old")
    assert database.replay(Keep(dead_letter, "not now")).outcome == "kept"
    assert [one.reason for one in dead_letters.select(database.connection, Selection())] == ["old"]
    assert database.replay(Keep(dead_letter, "new", new_reason=True)) == Replayed(dead_letter, "kept", "new")
    assert [one.reason for one in dead_letters.select(database.connection, Selection())] == ["new"]


def test_the_head_becomes_a_letter_and_comes_back(database: Database) -> None:
    def fill(connection: sqlite3.Connection) -> None:
        cursors = [store.ensure_exporter(connection, name) for name in EXPORTERS]
        records = [(name.encode() * 16, payload(name)) for name in "xyz"]
        store.append_copies(connection, cursors, records, "statsig")

    database(fill)
    assert database(lambda connection: dead_letters.make_dead_letters(connection, "a", "skipped", count=1, now_ms=NOW))
    assert database.waiting()["a"] == [payload("y"), payload("z")]
    (dead_letter,) = dead_letters.select(database.connection, Selection())
    assert (dead_letter.kind, dead_letter.owner, dead_letter.reason, dead_letter.uid) == (
        "record",
        "a",
        "skipped",
        b"x" * 16,
    )
    assert database.replay(Resend(dead_letter.id, "a", ((b"x" * 16, payload("x")),))).outcome == "replayed"
    assert database.waiting() == {
        "a": [payload("y"), payload("z"), payload("x")],
        "b": [payload("x"), payload("y"), payload("z")],
    }
    assert not database(
        lambda connection: dead_letters.make_dead_letters(connection, "c", "skipped", count=1, now_ms=NOW)
    )


def test_a_head_that_is_damaged_becomes_a_letter_that_says_so(database: Database) -> None:
    def fill(connection: sqlite3.Connection) -> None:
        cursors = [store.ensure_exporter(connection, "a")]
        store.append_copies(connection, cursors, [(b"u" * 16, payload("x"))], "statsig")
        connection.execute("UPDATE records SET payload = ?", (payload("X"),))

    database(fill)
    assert database(lambda connection: dead_letters.make_dead_letters(connection, "a", "skipped", count=1, now_ms=NOW))
    (dead_letter,) = dead_letters.select(database.connection, Selection(exporter="a"))
    assert (dead_letter.kind, dead_letter.reason) == ("damaged", "damaged on disk: its checksum is wrong")
    assert dead_letters.content(database.connection, dead_letter.id) == payload("X")
    assert database.waiting()["a"] == []


def test_replays_in_parallel_double_nothing(tmp_path: Path) -> None:
    """On a running queue; its senders see what was replayed."""
    queue = DurableQueue(tmp_path, CurrentRouting(Routing(RECEIVERS, EXPORTERS)), min_free_bytes=0)
    queue.start()
    try:
        sent = [payload(str(number)) for number in range(20)]
        for one in sent:
            dead_letter = DeadLetter("record", "a", "why", one, b"u" * 16)
            queue.submit(partial(store.add_dead_letter, dead_letter=dead_letter, now_ms=NOW)).result()
        with closing(schema.connect_reading(queue.database)) as reading:
            plans = [
                Resend(dead_letter.id, "a", ((b"u" * 16, dead_letters.content(reading, dead_letter.id) or b""),))
                for dead_letter in dead_letters.select(reading, Selection())
            ]
        assert len(plans) == 20
        outcomes: list[Replayed] = []

        def replay(plans: Sequence[Replay]) -> None:
            for wanted in plans:
                work = queue.submit(partial(dead_letters.replay, wanted=wanted, routing=Routing(RECEIVERS), now_ms=NOW))
                outcomes.append(work.result())

        threads = [threading.Thread(target=replay, args=(plans,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(one.outcome for one in outcomes) == ["gone"] * 60 + ["replayed"] * 20
        cursor = queue.cursor("a")
        assert cursor.waiting == 20
        assert sorted(one.payload for one in cursor.read(100, 1 << 20)) == sorted(sent)
        assert queue.cursor("b").waiting == 0
        cursor.close()
    finally:
        queue.shutdown()


def test_a_replay_that_is_killed_has_happened_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """Each record is a dead letter or waits, never both and never neither, wherever SIGKILL hits."""
    script = """
import os, sys
from pathlib import Path
from statsig_otel.exporters.queue import dead_letters, store
from statsig_otel.exporters.queue.dead_letters import Resend, Selection
from statsig_otel.exporters.queue.database import StoppedQueue
from statsig_otel.exporters.routing import Routing
with StoppedQueue(Path(sys.argv[1])) as queue:
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        found = queue.submit(lambda connection: dead_letters.select(connection, Selection(), limit=1)).result()
        if not found:
            break
        def work(connection):
            content = dead_letters.content(connection, found[0].id)
            plan = Resend(found[0].id, "a", ((b"u" * 16, content),))
            return dead_letters.replay(connection, plan, routing=Routing(), now_ms=0)
        queue.submit(work).result()
        print(".", end="", flush=True)
"""
    sent = {payload(str(number)) for number in range(300)}
    with StoppedQueue(tmp_path) as queue:

        def fill(connection: sqlite3.Connection) -> None:
            store.ensure_exporter(connection, "a")
            for one in sent:
                store.add_dead_letter(connection, DeadLetter("record", "a", "why", one), NOW)

        queue.submit(fill).result()
    waiting: list[bytes] = []
    for replayed in (1, 7, 20):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.read(replayed)
            os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        with closing(schema.connect(tmp_path / "queue.db")) as connection:
            found = Database(tmp_path / "queue.db")
            with closing(found.connection):
                waiting = found.waiting()["a"]
            kept = [
                dead_letters.content(connection, dead_letter.id) or b""
                for dead_letter in dead_letters.select(connection, Selection(), limit=1000)
            ]
        assert len(waiting) + len(kept) == len(sent)
        assert {*waiting, *kept} == sent
    assert len(waiting) >= 28


def test_a_stopped_queue_is_changed_and_left_in_order(tmp_path: Path) -> None:
    directory = QueueDirectory(tmp_path)
    with StoppedQueue(tmp_path) as queue:
        assert not directory.was_left_clean()
        assert queue.submit(lambda connection: store.ensure_exporter(connection, "a")).result() == 1
        assert queue.database.stat().st_mode & 0o777 == 0o600
    assert directory.was_left_clean()
    assert not (tmp_path / "queue.db-wal").exists()
    queue_again = DurableQueue(tmp_path, CurrentRouting(Routing()), min_free_bytes=0)
    queue_again.start()
    try:
        assert [state.name for state in queue_again.states()] == ["a"]
    finally:
        queue_again.shutdown()


def test_a_stopped_queue_has_one_owner(tmp_path: Path) -> None:
    with (
        StoppedQueue(tmp_path),
        pytest.raises(QueueError, match="in use by another service of this process"),
        StoppedQueue(tmp_path),
    ):
        pass
    with StoppedQueue(tmp_path):
        pass


def test_a_log_that_is_gone_stays_to_be_said_by_the_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with StoppedQueue(tmp_path) as queue:
        queue.submit(lambda connection: store.ensure_exporter(connection, "a")).result()
    QueueDirectory(tmp_path).mark(clean=False)
    with StoppedQueue(tmp_path):
        pass
    started = DurableQueue(tmp_path, CurrentRouting(Routing()), min_free_bytes=0)
    started.start()
    started.shutdown()
    assert "queue.db-wal" in caplog.text


def test_a_damaged_file_is_left_alone(tmp_path: Path) -> None:
    """To set it aside is the service's business, which says so in its log."""
    (tmp_path / "queue.db").write_bytes(b"no database" * 1000)
    with pytest.raises(sqlite3.Error), StoppedQueue(tmp_path):
        pass
    assert (tmp_path / "queue.db").read_bytes() == b"no database" * 1000
    with pytest.raises(sqlite3.Error), StoppedQueue(tmp_path):  # and the directory was given back
        pass
