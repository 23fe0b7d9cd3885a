"""Commands, deliveries and stops between two steps of the recovery lose nothing, and double nothing."""

import contextlib
import itertools
import shutil
import sqlite3
import threading
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statsig_otel.exporters.queue import queries, store
from statsig_otel.exporters.queue.dead_letters import Resend, Selection, drop, replay
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.recovery import carry_over, damaged_file
from statsig_otel.exporters.queue.recovery.carry_over import CarriedOver, CarryOver, NobodyConfiguredError
from statsig_otel.exporters.queue.recovery.recovery import Recovery
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.routing import QueuedExporter, Route, Routing
from tests.exporters.delivery.helpers import Backend, rig
from tests.exporters.delivery.helpers import settings as delivery_settings
from tests.exporters.queue.helpers import (
    PATIENCE,
    check_counters,
    count,
    dead_letters_in,
    delivered,
    numbers_of,
    put,
    reading,
    running,
    settled,
    tidied,
)
from tests.exporters.queue.recovery.damage import delete_all, spoil
from tests.waiting import wait_until

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
                dead_letter = [DeadLetter("record", name, "skipped", one.payload, one.uid) for one in records[:1]]
                cursor.finish(records, dead_letter if skipped else ())
            self.done[name] |= set(numbers_of(records[1:] if skipped else records))

    def put(self, _: int) -> None:
        number = next(self.fresh)
        for receiver, of in self.queue.routing.receivers.items():
            put(self.queue, number, receiver=receiver)
            for name in of.queued:
                self.owed[name].add(number)

    def replay(self, _: int) -> None:
        for dead_letter in dead_letters_in(self.queue.database)[:1]:
            wanted = Resend(self.first_id(), dead_letter.owner, ((dead_letter.uid or b"", dead_letter.content),))
            self.queue.submit(partial(replay, wanted=wanted, routing=Routing(), now_ms=1)).result(PATIENCE)

    def drop(self, _: int) -> None:
        for dead_letter in dead_letters_in(self.queue.database)[:1]:
            self.done[dead_letter.owner].add(int.from_bytes(dead_letter.uid or b""))  # a person gave it up
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
        for state in self.queue.unconfigured_exporters():
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
    """A database with records of two receivers and some dead letters; one exporter is done with a few."""
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
@settings(max_examples=settings().max_examples // 2)
def test_commands_between_any_two_steps_lose_nothing_and_every_count_stays_right(
    harmed: Path,
    commands: list[list[tuple[str, int]]],
    places: bool,
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
            damaged_file.opened(path, spare_bytes=1 << 30) as old,
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
            for dead_letter in dead_letters_in(queue.database):
                attack.done[dead_letter.owner].add(int.from_bytes(dead_letter.uid or b""))
            for name, numbers in attack.owed.items():
                assert numbers <= attack.done[name], name
            assert x | y <= set().union(*attack.done.values()), "also those that may be for anybody"
            assert count(queue.database) == 0
            attack.reload(0)


@pytest.mark.usefixtures("soon_idle")
def test_records_sent_from_a_file_that_is_gone_tick_off_none_in_the_new_one(
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
        wait_until(lambda: queue._database.generation == 1, "it is noticed")
        with damaged_file.opened(copy, spare_bytes=1 << 30) as old:
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


@pytest.mark.usefixtures("soon_idle")
def test_a_refused_head_of_a_file_that_is_gone_is_not_judged_by_the_new_one(tmp_path: Path) -> None:
    """Else it would be ticked off there with the record behind it, and take one along that was never sent."""

    def rule(names: list[str]) -> Literal["delivered", "rejected"]:
        if not backend.calls:
            made.recovery.stop()
            delete_all(made.queue.database.parent)
            wait_until(lambda: made.queue._database.generation == 1, "it is noticed")
            made.put("between", "behind")
        return "rejected" if names == ["1"] else "delivered"

    wanted = delivery_settings(max_records=1)
    with Backend(rule=rule) as backend, rig(tmp_path / "queue", backend.exporter(), wanted) as made:
        made.put("1", "2", "3")
        made.start()
        wait_until(lambda: backend.taken == ["between", "behind"], "the new file is delivered by itself")
        made.recovery.start()
        wait_until(lambda: sorted(backend.taken[2:]) == ["2", "3"], "the old one is, too")
        made.drained()
        assert made.dead_letter_names() == ["1"]
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
@settings(max_examples=settings().max_examples // 2)
def test_a_step_that_is_done_again_repeats_nothing(
    harmed: Path,
    failing: list[bool],
    places: bool,
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
                damaged_file.opened(path, spare_bytes=1 << 30) as old,
            ):
                rescued = CarryOver(
                    path.name, old, exporters_of=lambda receiver: receivers[receiver].queued, now_ms=queue.now_ms
                )
                for step, twice in zip(rescued.steps(), again, strict=False):
                    if twice:
                        queue.submit(step).result(PATIENCE)
                    rescued.done += queue.submit(step).result(PATIENCE)
                check_counters(queue)
                dead_letters = [
                    (dead_letter.kind, dead_letter.owner, dead_letter.uid)
                    for dead_letter in dead_letters_in(queue.database)
                ]
                found.append((rescued.done, dead_letters, delivered(queue.cursor("a")), delivered(queue.cursor("b"))))
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
        wait_until(lambda: "it is kept, and is tried again at the next start" in caplog.text, "it is said")
    monkeypatch.undo()
    spoil(tmp_path)
    with running(tmp_path) as queue:
        settled(tmp_path)
        assert set(delivered(queue.cursor("otlp"))) == {1, 2, 3}
        check_counters(queue)
