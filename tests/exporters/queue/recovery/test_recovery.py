"""What was set aside is carried over: to whom it was for, once, whatever comes in between."""

import contextlib
import itertools
import logging
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statsig_otel.exporters.consumer import Receipt
from statsig_otel.exporters.queue import queries, store
from statsig_otel.exporters.queue.dead_letters import Resend, Selection, drop, replay
from statsig_otel.exporters.queue.directory import DirectoryInUseError
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.recovery import carry_over, client, damaged_file
from statsig_otel.exporters.queue.recovery.carry_over import CarriedOver, CarryOver, NobodyConfiguredError
from statsig_otel.exporters.queue.recovery.client import Recovery
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.routing import QueuedExporter, Route, Routing
from tests.exporters.delivery.helpers import Backend, rig
from tests.exporters.delivery.helpers import settings as delivery_settings
from tests.exporters.queue.helpers import (
    PATIENCE,
    batch,
    blocked,
    check_counters,
    child,
    copy_of,
    count,
    delivered,
    failing_disk,
    kept,
    letters,
    line_of,
    numbers_of,
    put,
    read_all,
    reading,
    recovering,
    running,
    said,
    settled,
    state_of,
    tidied,
    wait_until,
)

PAGE = 4096


def spoil(directory: Path) -> None:
    """Make a database unusable, without harm to what it holds."""
    with (directory / "queue.db").open("r+b") as file:
        file.write(bytes(PAGE))


def test_each_exporter_gets_what_it_was_not_done_with(tmp_path: Path) -> None:
    receivers = {"statsig": Route(("a", "b")), "statsig/eu": Route(("b", "left"))}
    with running(tmp_path, receivers=receivers, exporters=("a", "b", "left")) as queue:
        put(queue, 1, 2, 3)
        put(queue, 4, 5, receiver="statsig/eu")
        cursor = queue.cursor("a")
        cursor.finish(cursor.read(2, 1000))
    spoil(tmp_path)
    receivers = {"statsig": Route(("a", "b")), "statsig/eu": Route(("b",))}
    with running(tmp_path, receivers=receivers, exporters=("a", "b")) as queue:
        settled(tmp_path)
        check_counters(queue)
        assert delivered(queue.cursor("a")) == [3]
        assert delivered(queue.cursor("b")) == [1, 2, 3, 4, 5]
        assert state_of(queue, "left").waiting == 2, "also for one that left the configuration"
        assert put(queue, 2, 9) == Receipt(1, 1)
        assert put(queue, 4, receiver="statsig/eu") == Receipt(0, 1)


def test_a_change_that_was_split_keeps_all_its_records_though_they_have_one_uid(tmp_path: Path) -> None:
    with running(tmp_path, exporters=("a", "b")) as queue:
        put(queue, 1, records=3)
        put(queue, 2)
        cursor = queue.cursor("a")
        cursor.finish(cursor.read(1, 1000))
    spoil(tmp_path)
    with running(tmp_path, exporters={"a": QueuedExporter(queue_size=1), "b": QueuedExporter()}) as queue:
        settled(tmp_path)
        check_counters(queue)
        assert [record.payload.rstrip(b"-") for record in read_all(queue.cursor("a"))] == [b"1.1", b"1.2", b"2.0"]
        assert [record.payload.rstrip(b"-") for record in read_all(queue.cursor("b"))] == [
            b"1.0",
            b"1.1",
            b"1.2",
            b"2.0",
        ]
        assert put(queue, 1, 2, records=3) == Receipt(0, 2), "what was seen is known"


def test_what_a_receiver_brought_that_has_left_the_configuration_is_delivered(tmp_path: Path) -> None:
    both = {"statsig": Route(("a",)), "statsig/left": Route(("a", "b"))}
    with running(tmp_path, receivers=both, exporters=("a", "b")) as queue:
        put(queue, 1)
        put(queue, 2, receiver="statsig/left", records=2)
        cursor = queue.cursor("a")
        cursor.finish(cursor.read(2, 1000))
    spoil(tmp_path)
    now = {"statsig": Route(("a", "b"))}
    with running(tmp_path, receivers=now, exporters=("a", "b")) as queue:
        settled(tmp_path)
        check_counters(queue)
        assert [record.payload[:3] for record in read_all(queue.cursor("a"))] == [b"2.1"]
        assert [record.payload[:3] for record in read_all(queue.cursor("b"))] == [b"2.0", b"2.1"]
        queue.reconfigure(Routing(both, {"a": QueuedExporter(), "b": QueuedExporter()}))
        assert put(queue, 2, receiver="statsig/left") == Receipt(0, 1), "it comes back"


def test_where_places_can_not_be_read_all_that_is_there_goes_to_all_of_its_receiver(tmp_path: Path) -> None:
    """Rather twice than not at all: the uids are the same."""
    receivers = {"statsig": Route(("a", "b")), "statsig/eu": Route(("b",))}
    with running(tmp_path, receivers=receivers, exporters=("a", "b")) as queue:
        put(queue, 1)
        put(queue, 2, receiver="statsig/eu")
        cursor = queue.cursor("a")
        cursor.finish(cursor.read(1, 1000))
    with sqlite3.connect(tmp_path / "queue.db") as connection:
        connection.execute("UPDATE exporters SET cursor = 'garbage' WHERE name = 'b'")
    connection.close()
    with running(tmp_path, receivers=receivers, exporters=("a", "b")) as queue:
        settled(tmp_path)
        assert delivered(queue.cursor("a")) == [1]
        assert delivered(queue.cursor("b")) == [1, 2]


def test_while_nobody_is_configured_records_that_may_be_for_anybody_wait_in_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as queue:
        put(queue, 1, 2, 3)
    content = (tmp_path / "queue.db").read_bytes()
    (tmp_path / "queue.db").write_bytes(content.replace(b"2.0---", b"2.0!--"))
    with sqlite3.connect(tmp_path / "queue.db") as connection:
        connection.execute("UPDATE exporters SET cursor = 'garbage'")
    connection.close()
    for _ in range(2):
        with running(tmp_path, exporters=()) as queue:
            queue.reconfigure(Routing())
            wait_until(lambda: bool(said(caplog, logging.ERROR, "None is configured, so they stay")), "it is said")
            queue.shutdown()
            assert (count(queue.database), count(queue.database, "dead_letters")) == (0, 0)
        caplog.clear()
    with running(tmp_path, exporters=()) as queue:
        wait_until(lambda: bool(said(caplog, logging.ERROR, "None is configured, so they stay")), "it is said")
        queue.reconfigure(Routing({"statsig": Route(("new",))}, {"new": QueuedExporter()}))
        settled(tmp_path)
        check_counters(queue)
        cursor = queue.cursor("new")
        assert delivered(cursor) == [1, 3]
        cursor.close()
        assert [(letter.kind, letter.owner) for letter in letters(queue.database)] == [("damaged", "new")]


def test_where_routes_can_not_be_read_each_exporter_gets_what_is_behind_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path, exporters=("a", "b")) as queue:
        put(queue, 1, 2)
        cursor = queue.cursor("a")
        cursor.finish(cursor.read(1, 1000))
    with sqlite3.connect(tmp_path / "queue.db") as connection:
        connection.execute("UPDATE routes SET exporters = 'garbage' || id")
    connection.close()
    spoil(tmp_path)
    with running(tmp_path, exporters=("a", "b")) as queue:
        settled(tmp_path)
        assert delivered(queue.cursor("a")) == [2]
        assert delivered(queue.cursor("b")) == [1, 2]
        check_counters(queue)
    assert said(caplog, logging.WARNING, "How many records are missing is unknown") == 1


def test_what_changed_on_the_disk_is_a_dead_letter_for_each_exporter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path, exporters=("a", "b")) as queue:
        put(queue, 1, 2, 3)
        cursor = queue.cursor("a")
        cursor.finish(cursor.read(1, 1000))
    content = (tmp_path / "queue.db").read_bytes()
    (tmp_path / "queue.db").write_bytes(content.replace(b"2.0---", b"2.0!--"))
    spoil(tmp_path)
    with running(tmp_path, exporters=("a", "b")) as queue:
        settled(tmp_path)
        assert [(letter.kind, letter.owner) for letter in letters(queue.database)] == [
            ("damaged", "a"),
            ("damaged", "b"),
        ]
        assert {letter.content[:6] for letter in letters(queue.database)} == {b"2.0!--"}
        assert (delivered(queue.cursor("a")), delivered(queue.cursor("b"))) == ([3], [1, 3])
    assert said(caplog, logging.WARNING, "3 records that wait, 2 damaged ones and 0 others as dead letters") == 1
    assert said(caplog, logging.WARNING, "No record that waited is missing") == 1


def test_pages_that_can_not_be_read_are_passed_over_and_what_is_missing_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as queue:
        put(queue, *range(1, 401), size=500)
    with reading(tmp_path / "queue.db") as connection:
        leaves = [page for (page,) in connection.execute("SELECT pageno FROM dbstat WHERE name = 'records'")]
    with (tmp_path / "queue.db").open("r+b") as file:
        for leaf in (leaves[5], leaves[6], leaves[30]):
            file.seek((leaf - 1) * PAGE)
            file.write(bytes(PAGE))
    spoil(tmp_path)
    with running(tmp_path) as queue:
        settled(tmp_path)
        found = delivered(queue.cursor("otlp"))
    missing = 400 - len(found)
    assert 6 <= missing <= 30
    assert found == sorted(found)
    assert said(caplog, logging.WARNING, f"{missing} records that waited are missing") == 1


def test_what_waits_in_the_log_of_a_file_is_carried_over_too(tmp_path: Path) -> None:
    with running(tmp_path / "running") as queue:
        put(queue, 1, 2, 3)
        directory = copy_of(tmp_path / "running", tmp_path / "crashed")
    log = directory / "queue.db-wal"
    log.write_bytes(log.read_bytes()[:-100])  # the last commit was torn
    (directory / "queue.db").write_bytes(b"garbage" * 10_000)
    with running(directory) as queue:
        settled(directory)
        assert set(delivered(queue.cursor("otlp"))) <= {1, 2, 3}
        assert put(queue, 4) == Receipt(1)


def test_a_large_file_is_carried_over_in_steps_and_others_come_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as queue:
        for start in range(0, 1000, 500):
            put(queue, *range(start, start + 500))
    spoil(tmp_path)
    monkeypatch.setattr(carry_over, "_AT_ONCE", 10)
    with running(tmp_path) as queue:
        for number in range(5000, 5020):
            put(queue, number)
        settled(tmp_path)
        found = delivered(queue.cursor("otlp"))
        check_counters(queue)
    assert sorted(found) == [*range(1000), *range(5000, 5020)]
    assert [number for number in found if number < 1000] == list(range(1000)), "in their order"
    assert found.index(5000) < 999


def test_a_stop_in_the_middle_goes_on_after_the_next_start_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as queue:
        queue.consume(batch(*range(300), invalid=40)).result(PATIENCE)
    spoil(tmp_path)
    monkeypatch.setattr(carry_over, "_AT_ONCE", 10)
    starts, middle = 0, 0
    while not starts or list(tmp_path.glob("queue.db.corrupt-*-1")):
        with running(tmp_path) as queue:
            before = count(queue.database) + count(queue.database, "dead_letters")
            wait_until(
                lambda before=before, queue=queue: (  # type: ignore[misc]
                    count(queue.database) + count(queue.database, "dead_letters") > before
                    or not list(tmp_path.glob("queue.db.corrupt-*-1"))
                ),
                "it goes on",
            )
        middle += 0 < count(tmp_path / "queue.db") < 300
        starts += 1
        assert starts < 100
    assert middle
    with running(tmp_path) as queue:
        assert delivered(queue.cursor("otlp")) == list(range(300))
        assert count(queue.database, "dead_letters") == 40
        assert count(queue.database, "salvage") == 0


def test_a_kill_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        for start in range(0, 2000, 500):
            put(queue, *range(start, start + 500))
    spoil(tmp_path)
    kills = 0
    while not kills or list(tmp_path.glob("queue.db.corrupt-*-1")):
        with child("start", tmp_path) as process:
            assert line_of(process) == "started"
            time.sleep(0.05 * kills)
            process.kill()
        kills += 1
        assert kills < 100
    with running(tmp_path) as queue:
        settled(tmp_path)
        assert delivered(queue.cursor("otlp")) == list(range(2000))


def test_a_kill_within_a_step_undoes_that_step_alone_and_doubles_nothing(tmp_path: Path) -> None:
    with running(tmp_path, exporters=("otlp", "done")) as queue:
        queue.consume(batch(*range(100), records=2, invalid=15)).result(PATIENCE)
        read_all(queue.cursor("done"))
    spoil(tmp_path)
    for steps, before in ((1, 0), (3, 0), (4, 20)):
        with child("recover and crash", tmp_path, steps) as process:
            assert process.wait(PATIENCE) == -signal.SIGKILL
        assert count(tmp_path / "queue.db") == before + 10 * (steps - 1)
    with running(tmp_path, exporters=("otlp", "done")) as queue:
        settled(tmp_path)
        check_counters(queue)
        found = [record.payload.rstrip(b"-") for record in read_all(queue.cursor("otlp"))]
        assert found == [b"%d.%d" % (number, place) for number in range(100) for place in range(2)]
        assert queue.cursor("done").waiting == 0
        assert len(letters(queue.database)) == 15


def test_while_the_disk_is_short_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path) as queue:
        put(queue, 1)
    spoil(tmp_path)
    monkeypatch.setattr(client, "_PAUSE", 0.01)
    with running(tmp_path, min_free_bytes=1 << 60):
        time.sleep(0.1)
        assert count(tmp_path / "queue.db") == 0
    with running(tmp_path) as queue:
        settled(tmp_path)
        assert delivered(queue.cursor("otlp")) == [1]


# --- commands between two steps -------------------------------------------------------------------------------------


BOTH = {"x": Route(("a", "b")), "y": Route(("b", "left"))}
PLANS = (("a", "b"), ("a",), ("a", "b", "left"), ())


class Attack:
    """A queue into which a file is carried over by hand, and what each exporter is owed."""

    def __init__(self, queue: DurableQueue, owed: dict[str, set[int]]) -> None:
        self.queue = queue
        self.owed = owed
        self.done: dict[str, set[int]] = {name: set() for name in owed}
        self.names: tuple[str, ...] = ("a", "b")
        self.fresh = itertools.count(1000)

    def deliver(self, count: int, *, soon: bool = False, skipped: bool = False) -> None:
        for name in self.names:
            cursor = self.queue.cursor(name)
            records = cursor.read(count, 1 << 20)
            if soon and records:
                cursor.finish_soon(records)
            else:
                letter = [DeadLetter("record", name, "skipped", one.payload, one.uid) for one in records[:1]]
                cursor.finish(records, letter if skipped else ())
            self.done[name] |= set(numbers_of(records[1:] if skipped else records))

    def put(self, _: int) -> None:
        number = next(self.fresh)
        for receiver, of in self.queue.routing.receivers.items():
            put(self.queue, number, receiver=receiver)
            for name in of.queued:
                self.owed[name].add(number)

    def replay(self, _: int) -> None:
        for letter in letters(self.queue.database)[:1]:
            plan = Resend(self.first_id(), letter.owner, ((letter.uid or b"", letter.content),))
            self.queue.submit(partial(replay, plan=plan, routing=Routing(), now_ms=1)).result(PATIENCE)

    def drop(self, _: int) -> None:
        for letter in letters(self.queue.database)[:1]:
            self.done[letter.owner].add(int.from_bytes(letter.uid or b""))  # a person gave it up
        work = partial(drop, selection=Selection(), after=0, upto=self.first_id(), limit=1)
        self.queue.submit(work).result(PATIENCE)

    def first_id(self) -> int:
        with reading(self.queue.database) as connection:
            return int(connection.execute("SELECT coalesce(min(id), 0) FROM dead_letters").fetchone()[0])

    def reload(self, number: int) -> None:
        for name in self.names:
            self.queue.cursor(name).close()
        self.names = PLANS[number % len(PLANS)]
        receivers = {
            receiver: Route(tuple(name for name in of.queued if name in self.names)) for receiver, of in BOTH.items()
        }
        self.queue.reconfigure(
            Routing(
                {receiver: of for receiver, of in receivers.items() if of.queued},
                {name: QueuedExporter() for name in self.names},
            )
        )

    def remove(self, _: int) -> None:
        for state in self.queue.forgotten_exporters():
            with reading(self.queue.database) as connection:
                routes = queries.routes_of(connection, state.id)
                waiting = queries.read_records(connection, routes, after=state.cursor, count=1000, size=1 << 20)
            self.done[state.name] |= set(numbers_of(waiting))  # a person gave them up
            self.queue.submit(partial(store.remove_exporter, name=state.name)).result(PATIENCE)

    def act(self, command: str, number: int) -> None:
        match command:
            case "deliver":
                self.deliver(1 + number)
            case "deliver soon":
                self.deliver(1 + number, soon=True)
            case "skip":
                self.deliver(1, skipped=True)
            case "tidy":
                tidied(self.queue)
            case _:
                getattr(self, command)(number)
        for name in self.names:
            self.queue.cursor(name).flush()
        check_counters(self.queue)


COMMANDS = ("deliver", "deliver soon", "skip", "tidy", "put", "replay", "drop", "reload", "remove")


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with records of two receivers and some letters; one exporter is done with a few."""
    directory = tmp_path_factory.mktemp("harmed")
    with running(directory, receivers=BOTH, exporters=("a", "b", "left")) as queue:
        for number in range(1, 7):
            put(queue, number, receiver="yx"[number % 2])
        cursor = queue.cursor("a")
        records = cursor.read(2, 1000)
        cursor.finish(records, [DeadLetter("record", "a", "no", one.payload, one.uid) for one in records])
    return directory / "queue.db"


@given(
    commands=st.lists(st.lists(st.tuples(st.sampled_from(COMMANDS), st.integers(0, 3)), max_size=3), max_size=10),
    places=st.booleans(),
)
@settings(max_examples=settings().max_examples // 4)
def test_commands_between_any_two_steps_lose_nothing_and_every_count_stays_right(
    harmed: Path,
    commands: list[list[tuple[str, int]]],
    places: bool,  # noqa: FBT001 - drawn
) -> None:
    x, y = {1, 3, 5}, {2, 4, 6}
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(carry_over, "_AT_ONCE", 1)
        path = Path(shutil.copyfile(harmed, Path(directory) / "old.db"))
        if not places:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute("UPDATE exporters SET again = again + 1")
        receivers = {"x": Route(("a", "b")), "y": Route(("b",))}
        with (
            running(Path(directory) / "queue", receivers=receivers, exporters=("a", "b")) as queue,
            damaged_file.opened(path, room=1 << 30) as old,
        ):
            owed = {"a": x, "b": x | y, "left": y} if places else {"a": set(), "b": set(), "left": set()}
            attack = Attack(queue, owed)
            rescued = CarryOver(
                path.name,
                old,
                exporters_of=lambda receiver: queue.routing.route(receiver).queued or tuple(queue.routing.exporters),
                now_ms=queue.now_ms,
            )
            between = iter(commands)
            for step in rescued.steps():
                for command in next(between, ()):
                    attack.act(*command)
                while isinstance(queue.submit(step).exception(PATIENCE), NobodyConfiguredError):
                    attack.reload(2)
                check_counters(queue)
            attack.reload(2)
            for name in attack.names:
                attack.done[name] |= set(delivered(queue.cursor(name)))
            attack.act("tidy", 0)
            for letter in letters(queue.database):
                attack.done[letter.owner].add(int.from_bytes(letter.uid or b""))
            for name, numbers in attack.owed.items():
                assert numbers <= attack.done[name], name
            assert x | y <= set().union(*attack.done.values()), "also those that may be for anybody"
            assert count(queue.database) == 0
            attack.reload(0)


def test_what_was_sent_from_a_file_that_is_gone_ticks_nothing_else_off_in_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the same head can be in the same place already, with another record behind it."""
    monkeypatch.setattr(carry_over, "_AT_ONCE", 1)
    copy = tmp_path / "old.db"

    def set_aside_and_carry_over_the_head() -> None:
        queue = made.queue
        made.recovery.stop()  # its steps are done by hand
        with reading(queue.database) as connection, contextlib.closing(sqlite3.connect(copy)) as to:
            connection.backup(to)
        delete_all(queue.database.parent)
        wait_until(lambda: queue.generation == 1, "it is noticed")
        with damaged_file.opened(copy, room=1 << 30) as old:
            rescued = CarryOver(copy.name, old, exporters_of=lambda _: ("out",), now_ms=queue.now_ms)
            resume, head, *others = rescued.steps()
            for step in (resume, head):
                queue.submit(step).result(PATIENCE)
            made.put("between")
            for step in others:
                queue.submit(step).result(PATIENCE)

    def rule(names: list[str]) -> Literal["delivered"]:
        if not backend.calls:
            set_aside_and_carry_over_the_head()
        return "delivered"

    with Backend(rule=rule) as backend, rig(tmp_path / "queue", backend.exporter()) as made:
        made.put("1", "2", "3")
        made.start()
        wait_until(lambda: set(backend.taken) == {"1", "2", "3", "between"}, "all are delivered")
        made.drained()
        check_counters(made.queue)


def test_a_refused_head_of_a_file_that_is_gone_is_not_judged_by_what_the_new_one_holds(tmp_path: Path) -> None:
    """Else it would be ticked off there with the record behind it, and take one along that was never sent."""

    def rule(names: list[str]) -> Literal["delivered", "rejected"]:
        if not backend.calls:
            made.recovery.stop()
            delete_all(made.queue.database.parent)
            wait_until(lambda: made.queue.generation == 1, "it is noticed")
            made.put("between", "behind")
        return "rejected" if names == ["1"] else "delivered"

    wanted = delivery_settings(max_records=1)
    with Backend(rule=rule) as backend, rig(tmp_path / "queue", backend.exporter(), wanted) as made:
        made.put("1", "2", "3")
        made.start()
        wait_until(lambda: backend.taken == ["between", "behind"], "the new file is delivered by itself")
        made.recovery.start()
        wait_until(lambda: backend.taken == ["between", "behind", "2", "3"], "the old one is, too")
        made.drained()
        assert made.buried() == ["1"]
        check_counters(made.queue)


def test_it_ends_also_where_it_is_told_to_just_as_it_begins_to_look(tmp_path: Path) -> None:
    with running(tmp_path, recovers=False) as queue:
        recovery = Recovery(queue)

        class Late(threading.Event):
            def clear(self) -> None:
                recovery._stopping.set()  # as `stop` does, in the worst moment
                self.set()
                super().clear()

        queue.recovery_due = Late()
        recovery.start()
        thread = recovery._thread
        assert thread is not None
        thread.join(PATIENCE)
        assert not thread.is_alive()


@given(failing=st.lists(st.booleans(), min_size=1), places=st.booleans())
@settings(max_examples=settings().max_examples // 4)
def test_a_step_that_is_done_again_doubles_nothing(
    harmed: Path,
    failing: list[bool],
    places: bool,  # noqa: FBT001 - drawn
) -> None:
    """A commit that was said to have failed can have reached the disk."""
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(carry_over, "_AT_ONCE", 2)
        path = Path(shutil.copyfile(harmed, Path(directory) / "old.db"))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE records SET checksum = checksum + 1 WHERE seq = 5")
            if not places:
                connection.execute("UPDATE exporters SET again = again + 1")
        receivers = {"x": Route(("a", "b")), "y": Route(("b",))}
        found: list[tuple[CarriedOver, object, list[int], list[int]]] = []
        for again in (itertools.repeat(False), itertools.cycle(failing)):
            with (
                running(Path(directory) / f"queue{len(found)}", receivers=receivers, exporters=("a", "b")) as queue,
                damaged_file.opened(path, room=1 << 30) as old,
            ):
                rescued = CarryOver(
                    path.name, old, exporters_of=lambda receiver: receivers[receiver].queued, now_ms=queue.now_ms
                )
                for step, twice in zip(rescued.steps(), again, strict=False):
                    if twice:
                        queue.submit(step).result(PATIENCE)
                    rescued.done += queue.submit(step).result(PATIENCE)
                check_counters(queue)
                buried = [(letter.kind, letter.owner, letter.uid) for letter in letters(queue.database)]
                found.append((rescued.done, buried, delivered(queue.cursor("a")), delivered(queue.cursor("b"))))
        assert found[0] == found[1]
        assert found[0][0].total() > 5


def test_a_file_that_is_too_much_for_it_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("what nobody thought of")

    with running(tmp_path) as queue:
        put(queue, 1, 2)
    spoil(tmp_path)
    monkeypatch.setattr(damaged_file, "records", fail)
    with running(tmp_path) as queue:
        put(queue, 3)
        wait_until(lambda: "it stays as it is, and is tried again at the next start" in caplog.text, "it is said")
    monkeypatch.undo()
    spoil(tmp_path)
    with running(tmp_path) as queue:
        settled(tmp_path)
        assert set(delivered(queue.cursor("otlp"))) == {1, 2, 3}
        check_counters(queue)


# --- a file that somebody deletes -----------------------------------------------------------------------------------


def delete_file(directory: Path) -> None:
    (directory / "queue.db").unlink()


def delete_all(directory: Path) -> None:
    for file in directory.glob("queue.db*"):
        file.unlink()


def delete_directory(directory: Path) -> None:
    shutil.rmtree(directory)


def replace_file(directory: Path) -> None:
    shutil.copyfile(directory / "queue.db", directory / "other")
    (directory / "other").rename(directory / "queue.db")


def sent_again(queue: DurableQueue, number: int) -> Receipt:
    """What is answered in the end: until the directory is there again all is refused."""
    wait_until(queue.database.parent.is_dir, "it is made again")
    return put(queue, number)


HARMS = [delete_file, delete_all, delete_directory, replace_file]


@pytest.mark.parametrize("harm", HARMS)
def test_a_file_that_is_deleted_in_use_is_rescued_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    directory = tmp_path / "queue"
    with running(directory) as queue:
        cursor = queue.cursor("otlp")
        put(queue, 1, 2, 3)
        cursor.finish(cursor.read(1, 1000))
        harm(directory)
        assert sent_again(queue, 4) == Receipt(1)
        assert put(queue, 5) == Receipt(1)
        settled(directory)
        with pytest.raises(DirectoryInUseError), running(directory):
            pass
    assert said(caplog, logging.ERROR, "Somebody deleted or replaced") == 1
    with running(directory) as queue:
        assert set(delivered(queue.cursor("otlp"))) == {2, 3, 4, 5}
        check_counters(queue)
        assert put(queue, 2, 4).duplicates == 2
    assert len(kept(directory)) == 1


def test_what_a_deleted_file_was_given_last_is_not_counted_in_the_new_one(tmp_path: Path) -> None:
    """What its commit adds and ticks off is carried over with all else, and that may take until there is room."""
    with running(tmp_path, recovers=False) as queue:
        cursor = queue.cursor("otlp")
        put(queue, 1, 2, 3)
        records = cursor.read(2, 1000)
        with ThreadPoolExecutor(1) as sender:
            with blocked(queue):  # so that they share a commit, after which the file is missed
                adding = queue.consume(batch(4))
                deleting = queue.submit(lambda _: delete_all(tmp_path))
                ticking = sender.submit(cursor.finish, records)
                wait_until(lambda: queue._writer._jobs.qsize() == 3, "all wait for the writer")
            assert adding.result(PATIENCE) == Receipt(1)
            ticking.result(PATIENCE)
            deleting.result(PATIENCE)
        assert (queue.generation, cursor.waiting, cursor.position) == (1, 0, 0)
        put(queue, 5)
        assert delivered(cursor) == [5]
        with recovering(queue):
            settled(tmp_path)
        assert delivered(cursor) == [3, 4]
        check_counters(queue)


def test_a_file_that_is_deleted_while_nothing_comes_in_is_rescued_too(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, 1, 2)
        delete_all(tmp_path)
        wait_until(lambda: bool(kept(tmp_path)), "it is noticed")
        settled(tmp_path)
        assert delivered(queue.cursor("otlp")) == [1, 2]


def test_a_file_that_is_deleted_while_tidying_fails_is_rescued_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete_and_fail(_: sqlite3.Connection) -> int:
        monkeypatch.undo()
        delete_all(tmp_path)
        raise sqlite3.OperationalError("disk I/O error")

    with running(tmp_path) as queue:
        put(queue, 1, 2)
        monkeypatch.setattr(store, "delete_done", delete_and_fail)
        wait_until(lambda: bool(kept(tmp_path)), "it is noticed")
        settled(tmp_path)
        assert delivered(queue.cursor("otlp")) == [1, 2]


def test_a_file_that_can_not_be_rescued_now_is_rescued_later_and_nobody_gets_a_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "queue"
    with running(directory) as queue:
        put(queue, 1, 2)
        delete_directory(directory)
        directory.write_text("in the way")
        refused = queue.consume(batch(3)).exception(PATIENCE)
        assert refused is not None
        directory.unlink()
        assert sent_again(queue, 4) == Receipt(1)
        settled(directory)
        assert {1, 2, 4} <= set(delivered(queue.cursor("otlp")))


def test_while_there_is_no_room_for_a_copy_the_deleted_file_is_kept_open_and_nothing_is_left_lying(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as queue:
        put(queue, *range(1, 201), size=500)
        with failing_disk():
            delete_all(tmp_path)
            for number in range(300, 304):
                assert queue.consume(batch(number)).exception(PATIENCE) is not None
            assert kept(tmp_path) == []
        wait_until(lambda: queue.consume(batch(400)).exception(PATIENCE) is None, "it is rescued in the end")
        settled(tmp_path)
        assert set(range(1, 201)) <= set(delivered(queue.cursor("otlp")))
        assert len(kept(tmp_path)) == 1
    assert said(caplog, logging.WARNING, "No record that waited is missing") == 1


def test_a_place_of_which_a_bit_was_flipped_passes_nothing_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as queue:
        put(queue, *range(1, 11))
        cursor = queue.cursor("otlp")
        cursor.finish(cursor.read(2, 1000))
    with sqlite3.connect(tmp_path / "queue.db") as connection:
        connection.execute("UPDATE exporters SET cursor = cursor | 4")
    connection.close()
    with running(tmp_path) as queue:
        settled(tmp_path)
        assert set(delivered(queue.cursor("otlp"))) >= set(range(3, 11))
    assert said(caplog, logging.ERROR, "an exporter's cursor contradicts itself") == 1


def test_after_a_loss_a_redelivery_is_no_duplicate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(tmp_path) as queue:
        put(queue, *range(1, 101), size=500)
    with reading(tmp_path / "queue.db") as connection:
        leaves = [page for (page,) in connection.execute("SELECT pageno FROM dbstat WHERE name = 'records'")]
    with (tmp_path / "queue.db").open("r+b") as file:
        file.seek((leaves[5] - 1) * PAGE)
        file.write(bytes(PAGE))
    spoil(tmp_path)
    with running(tmp_path) as queue:
        settled(tmp_path)
        missing = set(range(1, 101)) - set(delivered(queue.cursor("otlp")))
        assert missing
        assert put(queue, *missing, size=500) == Receipt(len(missing))
