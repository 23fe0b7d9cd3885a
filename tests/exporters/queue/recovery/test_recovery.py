"""What was set aside is carried over: to whom it was for, once."""

import contextlib
import itertools
import logging
import os
import signal
import sqlite3
import stat
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from statsig_otel import _telemetry
from statsig_otel.exporters.consumer import Receipt
from statsig_otel.exporters.queue import open_files
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.recovery import carry_over, damaged_file, recovery
from statsig_otel.exporters.routing import QueuedExporter, Route, Routing
from tests.exporters.queue.helpers import (
    PATIENCE,
    batch,
    check_counters,
    child,
    consume,
    copy_of,
    count,
    dead_letters_in,
    delivered,
    errors,
    line_of,
    put,
    read_all,
    reading,
    running,
    said,
    settled,
    state_of,
)
from tests.exporters.queue.recovery.damage import PAGE, spoil
from tests.waiting import wait_until


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


def test_dead_letters_are_counted_by_the_kinds_that_the_metric_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Counter[str] = Counter()

    class Counting:
        def add(self, number: int, kind: str, _: str) -> None:
            counted[kind] += number

    with running(tmp_path) as queue:
        consume(queue, batch(1, invalid=2)).result(PATIENCE)
    spoil(tmp_path)
    monkeypatch.setattr(_telemetry, "dead_letters", Counting())
    with running(tmp_path):
        settled(tmp_path)
    assert +counted == {"item": 2}


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


def test_without_readable_cursors_all_records_go_to_all_exporters_of_their_receiver(tmp_path: Path) -> None:
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
            wait_until(lambda: bool(said(caplog, logging.ERROR, "none is configured: they stay")), "it is said")
            queue.shutdown()
            assert (count(queue.database), count(queue.database, "dead_letters")) == (0, 0)
        caplog.clear()
    with running(tmp_path, exporters=()) as queue:
        wait_until(lambda: bool(said(caplog, logging.ERROR, "none is configured: they stay")), "it is said")
        queue.reconfigure(Routing({"statsig": Route(("new",))}, {"new": QueuedExporter()}))
        settled(tmp_path)
        check_counters(queue)
        cursor = queue.cursor("new")
        assert delivered(cursor) == [1, 3]
        cursor.close()
        assert [(dead_letter.kind, dead_letter.owner) for dead_letter in dead_letters_in(queue.database)] == [
            ("damaged", "new")
        ]


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
    assert said(caplog, logging.ERROR, "How many records are missing is unknown") == 1


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
        assert [(dead_letter.kind, dead_letter.owner) for dead_letter in dead_letters_in(queue.database)] == [
            ("damaged", "a"),
            ("damaged", "b"),
        ]
        assert {dead_letter.content[:6] for dead_letter in dead_letters_in(queue.database)} == {b"2.0!--"}
        assert (delivered(queue.cursor("a")), delivered(queue.cursor("b"))) == ([3], [1, 3])
    assert (
        said(caplog, logging.ERROR, "3 waiting records, 2 damaged records as dead letters, and 0 earlier dead letters")
        == 1
    )
    assert said(caplog, logging.ERROR, "No record that waited is missing") == 1


def is_readable(database: Path, seq: int) -> bool:
    """Whether SQLite finds a record by its key."""
    with contextlib.closing(sqlite3.connect(database)) as connection, contextlib.suppress(sqlite3.Error):
        return connection.execute("SELECT payload FROM records WHERE seq = ?", (seq,)).fetchone() is not None
    return False


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
    expected = [number for number in range(1, 401) if is_readable(tmp_path / "queue.db", number)]
    missing = 400 - len(expected)
    assert 6 <= missing <= 30
    spoil(tmp_path)
    with running(tmp_path) as queue:
        settled(tmp_path)
        found = delivered(queue.cursor("otlp"))
    assert found == expected, "also the last one before a page that can't be read"
    assert said(caplog, logging.ERROR, f"Missing: {missing} waiting records") == 1


def test_a_wrong_size_of_the_pages_content_hides_no_record(tmp_path: Path) -> None:
    """One flipped bit in the first page, which SQLite takes for true."""
    for bit in (0, 3, 7):
        directory = tmp_path / str(bit)
        with running(directory) as queue:
            put(queue, *range(1, 31), size=500)
        with (directory / "queue.db").open("r+b") as file:
            file.seek(20)
            file.write(bytes((1 << bit,)))
        with running(directory) as queue:
            settled(directory)
            assert delivered(queue.cursor("otlp")) == [*range(1, 31)], bit


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


def went_on(database: Path, before: int) -> bool:
    """Whether more was carried over than before, or all of it."""
    done = count(database) + count(database, "dead_letters") > before
    return done or not list(database.parent.glob("queue.db.corrupt-*-1"))


def test_a_stop_in_the_middle_goes_on_after_the_next_start_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as queue:
        consume(queue, batch(*range(300), invalid=40)).result(PATIENCE)
    spoil(tmp_path)
    monkeypatch.setattr(carry_over, "_AT_ONCE", 10)
    starts, middle = 0, 0
    while not starts or list(tmp_path.glob("queue.db.corrupt-*-1")):
        with running(tmp_path) as queue:
            before = count(queue.database) + count(queue.database, "dead_letters")
            wait_until(partial(went_on, queue.database, before), "it goes on")
        middle += 0 < count(tmp_path / "queue.db") < 300
        starts += 1
        assert starts < 100
    assert middle
    with running(tmp_path) as queue:
        assert delivered(queue.cursor("otlp")) == list(range(300))
        assert count(queue.database, "dead_letters") == 40
        assert count(queue.database, "salvage") == 0


@pytest.mark.slow
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


@pytest.mark.parametrize("renames", range(4))
def test_a_crash_while_a_file_is_set_aside_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, renames: int
) -> None:
    """What was committed last is in the log alone, and belongs to that file whichever of both was renamed."""
    with running(tmp_path / "queue") as queue:
        put(queue, 1, size=50_000)
    with monkeypatch.context() as patch, running(tmp_path / "queue") as queue:
        patch.setattr(open_files, "fold", lambda _: False)
        put(queue, 2, 3)
        crashed = copy_of(queue.directory.path, tmp_path / "crashed")
    rename, so_far = Path.rename, itertools.count()

    def rename_or_crash(path: Path, to: str) -> Path:
        if next(so_far) == renames:
            raise KeyboardInterrupt
        return rename(path, to)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "rename", rename_or_crash)
        QueueDirectory(crashed).set_aside()
    with running(crashed) as queue:
        put(queue, 4)
        settled(crashed)
        assert sorted(delivered(queue.cursor("otlp"))) == [1, 2, 3, 4]
    assert not [line for line in errors(caplog) if "lost" in line]


def test_a_kill_within_a_step_undoes_that_step_alone_and_repeats_nothing(tmp_path: Path) -> None:
    with running(tmp_path, exporters=("otlp", "done")) as queue:
        consume(queue, batch(*range(100), records=2, invalid=15)).result(PATIENCE)
        read_all(queue.cursor("done"))
    spoil(tmp_path)
    for steps, before in ((1, 0), (3, 0)):
        with child("recover and crash", tmp_path, steps) as process:
            assert process.wait(PATIENCE) == -signal.SIGKILL
        assert count(tmp_path / "queue.db") == before + 10 * (steps - 1)
    with running(tmp_path, exporters=("otlp", "done")) as queue:
        settled(tmp_path)
        check_counters(queue)
        found = [record.payload.rstrip(b"-") for record in read_all(queue.cursor("otlp"))]
        assert found == [b"%d.%d" % (number, place) for number in range(100) for place in range(2)]
        assert queue.cursor("done").waiting == 0
        assert len(dead_letters_in(queue.database)) == 15


def test_while_the_disk_is_short_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path) as queue:
        put(queue, 1)
    spoil(tmp_path)
    monkeypatch.setattr(recovery, "_PAUSE", 0.01)
    with running(tmp_path, min_free_bytes=1 << 60):
        time.sleep(0.1)
        assert count(tmp_path / "queue.db") == 0
    with running(tmp_path) as queue:
        settled(tmp_path)
        assert delivered(queue.cursor("otlp")) == [1]


def test_the_copy_of_a_damaged_file_is_for_its_owner_alone_and_gone_afterwards(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, 1)
    spoil(tmp_path)
    left = tmp_path / "queue.db.repaired"
    left.write_bytes(b"of a process that was killed")
    before = os.umask(0)
    try:
        with damaged_file.opened(tmp_path / "queue.db", spare_bytes=1 << 30) as connection:
            assert connection.execute("SELECT count(*) FROM records").fetchone() == (1,)
            assert stat.S_IMODE(left.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert not list(tmp_path.glob("*.repaired*"))
