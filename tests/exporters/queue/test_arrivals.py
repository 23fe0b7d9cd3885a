"""What the queue remembers of the changes that came, and that it is nothing where that is not configured."""

import contextlib
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.consumer import Batch, Invalid, Receipt, RefusedError
from statsig_otel.exporters.queue import arrivals, schema
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.routing import QueuedExporter, Route, Routing
from tests.exporters.queue import test_earlier_version
from tests.exporters.queue.child import LATER
from tests.exporters.queue.helpers import (
    PATIENCE,
    batch,
    child,
    consume,
    count,
    delivered,
    kept,
    line_of,
    put,
    reading,
    running,
    uid,
)
from tests.exporters.queue.recovery.damage import PAGE
from tests.exporters.queue.test_earlier_version import DIRECTORIES
from tests.looped import looped
from tests.waiting import wait_until

NOW = 1_700_000_000
DAY = 86_400.0
REMEMBERING = {"statsig": Route(("otlp",), remembered=30 * DAY)}
FORGETTING = {"statsig": Route(("otlp",))}


def arrival(number: int, second: int = NOW, **others: object) -> Arrival:
    defaults = {"user_id": "u1", "user_name": "Ada", "type": "Gate", "action": "updated", "text": "Updated Gate"}
    return Arrival(uid(number), second, f"gate {number}", **{**defaults, **others})  # type: ignore[arg-type]


def told(*numbers: int, receiver: str = "statsig", records: int = 1) -> Batch:
    """A batch with these changes and what is remembered of them."""
    made = batch(*numbers, receiver=receiver, records=records)
    return Batch(receiver, made.changes, made.invalid, tuple(map(arrival, numbers)))


@contextlib.contextmanager
def remembering(directory: Path, **options: object) -> Iterator[DurableQueue]:
    with running(directory, **{"receivers": REMEMBERING, **options}) as queue:  # type: ignore[arg-type]
        yield queue


def remembered(queue: DurableQueue, receiver: str = "statsig") -> list[Arrival]:
    with reading(queue.database) as connection:
        found = arrivals.read(connection, receiver, 0, 1 << 40)
    return [] if found is None else found.arrivals


def since(queue: DurableQueue) -> int | None:
    with reading(queue.database) as connection:
        found = arrivals.read(connection, "statsig", 0, 0)
    return None if found is None else found.since


def version(database: Path) -> int:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return schema.pragma(connection, "user_version")


def tables(database: Path) -> set[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return {*connection.execute("SELECT type, name, rootpage, sql FROM sqlite_master")}


def test_what_came_is_stored_with_its_change(tmp_path: Path) -> None:
    dropped = arrival(3, filtered=True, user_id=None, action="", text="\u00e9 \U0001f600")
    with remembering(tmp_path) as queue:
        consume(queue, told(1, 2)).result(PATIENCE)
        only_dropped = consume(queue, Batch("statsig", arrivals=(dropped,))).result(PATIENCE)
        assert remembered(queue) == [arrival(1), arrival(2), dropped]
        assert delivered(queue.cursor("otlp")) == [1, 2]
    assert only_dropped == Receipt(0)


def test_a_redelivery_is_not_a_second_arrival(tmp_path: Path) -> None:
    with remembering(tmp_path) as queue:
        for _ in range(2):
            consume(queue, told(1)).result(PATIENCE)
        again = Batch("statsig", arrivals=(arrival(1, filtered=True),))
        consume(queue, again).result(PATIENCE)
        assert remembered(queue) == [arrival(1)]


def test_what_is_refused_has_not_come(tmp_path: Path) -> None:
    with remembering(tmp_path, exporters={"otlp": QueuedExporter(queue_size=1)}) as queue:
        consume(queue, told(1)).result(PATIENCE)
        with pytest.raises(RefusedError, match="queue_size"):
            consume(queue, told(2)).result(PATIENCE)
        assert remembered(queue) == [arrival(1)]


def test_of_a_large_batch_all_is_remembered(tmp_path: Path) -> None:
    made = told(*range(1200), records=2)
    bad = tuple(Invalid(b"{}", "?") for _ in range(300))
    dropped = tuple(arrival(number, filtered=True) for number in range(2000, 3500))
    with remembering(tmp_path) as queue:
        consume(queue, Batch("statsig", made.changes, bad, made.arrivals + dropped)).result(PATIENCE)
        assert len(remembered(queue)) == 1200 + 1500


def test_where_it_is_not_configured_nothing_is_remembered_and_an_older_version_can_open_the_file(
    tmp_path: Path,
) -> None:
    with running(tmp_path, receivers=FORGETTING) as queue:
        assert consume(queue, told(1)).result(PATIENCE) == Receipt(1)
        assert consume(queue, Batch("statsig", arrivals=(arrival(2),))).result(PATIENCE) == Receipt(0)
    assert version(tmp_path / "queue.db") == 1
    with schema.in_memory(1) as connection:
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    assert {row[1] for row in tables(tmp_path / "queue.db")} == names


@pytest.mark.parametrize(
    "written",
    [one for one in DIRECTORIES if not one.name.endswith(test_earlier_version.REMEMBERING)],
    ids=lambda directory: directory.name,
)
def test_a_queue_of_an_earlier_version_becomes_one_that_remembers(written: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(written, tmp_path / "queue"))
    receivers = {"statsig": Route(("otlp", "archive"), remembered=DAY), "statsig/eu": Route(("archive",))}
    with running(directory, receivers=receivers, exporters=("otlp", "archive")) as queue:
        waiting = queue.sizes()
        assert consume(queue, told(1)).result(PATIENCE) == Receipt(1)
        assert remembered(queue) == [arrival(1)]
        assert remembered(queue, "statsig/eu") == []
    assert waiting == {"otlp": 4, "archive": 7}
    assert version(directory / "queue.db") == 2
    with schema.in_memory(2) as connection:
        new = {*connection.execute("SELECT type, name, rootpage, sql FROM sqlite_master")}
    assert tables(directory / "queue.db") == new, "the beginnings of its tables are where a repair expects them"


def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with contextlib.closing(schema.connect(path)) as connection:
        connection.execute("CREATE TABLE arrivals (a)")
        before = {*connection.execute("SELECT name FROM sqlite_master")}
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="already exists"):
            schema.upgrade(connection, schema.REMEMBERING)
        connection.execute("ROLLBACK")
        assert {*connection.execute("SELECT name FROM sqlite_master")} == before
        assert schema.pragma(connection, "user_version") == 1


def test_it_is_remembered_from_when_on(tmp_path: Path) -> None:
    """A start later does not change that. Switched off it is forgotten, and switched on again it begins anew."""
    time = float(NOW)

    def state(receivers: dict[str, Route]) -> tuple[int | None, int]:
        with running(tmp_path, receivers=receivers, clock=lambda: time) as queue:
            return since(queue), len(remembered(queue))

    assert state(FORGETTING) == (None, 0)
    assert state(REMEMBERING) == (NOW, 0)
    time += 100
    with remembering(tmp_path, clock=lambda: time) as queue:
        consume(queue, told(1)).result(PATIENCE)
    assert state(REMEMBERING) == (NOW, 1)
    with running(tmp_path, receivers=FORGETTING, clock=lambda: time) as queue:
        assert (since(queue), remembered(queue)) == (None, [])
        wait_until(lambda: count(queue.database, "arrivals") == 0)
    assert state(REMEMBERING) == (NOW + 100, 0)
    assert version(tmp_path / "queue.db") == 2


def test_neither_reading_nor_deleting_looks_at_all_that_came(tmp_path: Path) -> None:
    with contextlib.closing(schema.connect(tmp_path / "queue.db")) as connection:
        schema.upgrade(connection, schema.REMEMBERING)
        asked: list[str] = []
        connection.set_trace_callback(asked.append)
        arrivals.begin(connection, ["statsig"], now_ms=NOW * 1000)
        arrivals.add(connection, "statsig", [arrival(1, NOW - 100)])
        assert arrivals.forget(connection, {"statsig": 50.0}, now_ms=NOW * 1000) == 1
        arrivals.read(connection, "statsig", NOW - 10, NOW)
        connection.set_trace_callback(None)
        about = [one for one in asked if "FROM arrivals" in one]
        plans = [str(row[3]) for one in about for row in connection.execute(f"EXPLAIN QUERY PLAN {one}")]
    assert len(about) == 4
    assert not [plan for plan in plans if plan.startswith(("SCAN arrivals", "SCAN TABLE arrivals"))], plans
    assert sum("arrivals_by_time (receiver=? AND second" in plan for plan in plans) == 2


def test_a_reload_can_begin_and_end_it(tmp_path: Path) -> None:
    exporters = {"otlp": QueuedExporter()}
    with running(tmp_path, receivers=FORGETTING) as queue:
        put(queue, 1)
        queue.reconfigure(Routing(REMEMBERING, exporters))
        consume(queue, told(2)).result(PATIENCE)
        assert remembered(queue) == [arrival(2)]
        queue.reconfigure(Routing(FORGETTING, exporters))
        assert remembered(queue) == []
        consume(queue, told(3)).result(PATIENCE)
        assert remembered(queue) == []
        assert delivered(queue.cursor("otlp")) == [1, 2, 3]


def test_it_is_forgotten_after_its_time(tmp_path: Path) -> None:
    time = float(NOW)
    with remembering(tmp_path, clock=lambda: time) as queue:
        consume(queue, told(1)).result(PATIENCE)
        time += 30 * DAY
        later = arrival(2, int(time))
        consume(queue, Batch("statsig", arrivals=(later,))).result(PATIENCE)
        assert len(remembered(queue)) == 2
        time += 1
        wait_until(lambda: remembered(queue) == [later])
        time -= 30 * DAY  # the clock was wrong: what is forgotten is not missed
        assert since(queue) == NOW + 1


@looped("number", range(4))
def test_what_is_forgotten_before_one_of_the_statements_that_read_it_does_not_look_missed(
    number: int, tmp_path: Path
) -> None:
    statements: list[str] = []
    late = int(NOW + 60 * DAY) * 1000
    with remembering(tmp_path / str(number)) as queue, reading(queue.database) as connection:
        consume(queue, told(1)).result(PATIENCE)

        def forget(statement: str) -> None:
            statements.append(statement)
            if len(statements) == number + 1:
                queue.submit(lambda writer: arrivals.forget(writer, {"statsig": 30 * DAY}, now_ms=late)).result()

        connection.set_trace_callback(forget)
        found = arrivals.read(connection, "statsig", 0, NOW + DAY)
        assert found is not None
        assert found.arrivals or found.since > NOW
        assert len(statements) == 4


def test_a_damaged_file_is_carried_over_and_remembering_begins_anew(tmp_path: Path) -> None:
    """Also with another first page, which a repair makes: that of a file without these tables fits."""
    time = float(NOW)
    with remembering(tmp_path) as queue:
        consume(queue, told(1, 2, 3)).result(PATIENCE)
    path = tmp_path / "queue.db"
    content = path.read_bytes()
    path.write_bytes(b"\xff" * PAGE + content[PAGE:])
    time += 500
    with remembering(tmp_path, clock=lambda: time) as queue:
        wait_until(lambda: bool(list(tmp_path.glob("queue.db.salvaged-*"))))
        assert delivered(queue.cursor("otlp")) == [1, 2, 3]
        assert since(queue) == NOW + 500
        assert remembered(queue) == []
        assert count(queue.database, "remembered") == 1
    assert kept(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 19, 20, 21, 25, 60])
def test_a_process_that_is_killed_remembers_exactly_what_it_stored(tmp_path: Path, after: int) -> None:
    """Also while it begins to remember: the file is of the one version or of the other."""
    with child("remember", tmp_path) as process:
        while int(line_of(process)) < after:
            pass
        os.kill(process.pid, signal.SIGKILL)
        rest = process.communicate()[0].split()
    acknowledged = max(map(int, rest), default=after)
    with remembering(tmp_path, clock=time.time) as queue, reading(queue.database) as connection:
        stored = {int.from_bytes(row[0]) for row in connection.execute("SELECT uid FROM seen")}
        assert stored >= {*range(acknowledged + 1)}
        found = arrivals.read(connection, "statsig", 0, 1 << 40)
        assert found is not None
        for filtered in (False, True):
            numbers = {one.second - LATER for one in found.arrivals if one.filtered is filtered}
            assert numbers == {number for number in stored if number >= 20}
