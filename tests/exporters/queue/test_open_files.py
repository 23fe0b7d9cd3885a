"""Files of the database that somebody deletes, replaces or shortens while it is in use: what is committed is kept."""

import contextlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from statsig_otel.exporters.consumer import Receipt
from statsig_otel.exporters.queue import writer
from statsig_otel.exporters.queue.recovery import damaged_file
from tests.exporters.queue.helpers import (
    PATIENCE,
    ask,
    batch,
    check_counters,
    child,
    copy_of,
    delivered,
    errors,
    kept,
    line_of,
    put,
    reading,
    refusal,
    running,
    said,
    settled,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("soon_idle")

DELETED = "Somebody deleted or replaced"


@pytest.fixture
def unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed stays in the log, as it does while webhooks come."""
    monkeypatch.setattr(writer, "_fold", lambda _: None)


def delete_log(directory: Path) -> None:
    (directory / "queue.db-wal").unlink()


def replace_log(directory: Path) -> None:
    shutil.copyfile(directory / "queue.db-wal", directory / "other")
    (directory / "other").rename(directory / "queue.db-wal")


def garble_log(directory: Path) -> None:
    (directory / "other").write_bytes(b"garbage" * 10_000)
    (directory / "other").rename(directory / "queue.db-wal")


def delete_log_and_index(directory: Path) -> None:
    delete_log(directory)
    (directory / "queue.db-shm").unlink()


HARMS = [delete_log, replace_log, garble_log, delete_log_and_index]


@pytest.mark.usefixtures("unfolded")
@pytest.mark.parametrize("is_read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_log_that_is_deleted_in_use_is_kept_before_the_next_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None], *, is_read: bool
) -> None:
    directory = tmp_path / "queue"
    with running(directory) as queue:
        cursor = queue.cursor("otlp")
        put(queue, 1, 2, 3)
        if is_read:
            cursor.finish(cursor.read(1, 1000))
        harm(directory)
        assert put(queue, 4) == Receipt(1)
        crashed = copy_of(directory, tmp_path / "crashed")
        assert put(queue, 5) == Receipt(1)
        crashed_later = copy_of(directory, tmp_path / "later")
        first = 2 if is_read else 1
        assert delivered(cursor) == [*range(first, 6)]
        check_counters(queue)
        assert kept(directory) == []
    assert said(caplog, logging.ERROR, DELETED) == 1
    for copy, last in ((crashed, 4), (crashed_later, 5)):
        with running(copy) as queue:
            assert delivered(queue.cursor("otlp")) == [*range(first, last + 1)]
            check_counters(queue)


@pytest.mark.usefixtures("unfolded")
@pytest.mark.parametrize("harm", HARMS)
def test_a_log_that_is_deleted_while_nothing_comes_in_is_kept_soon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    directory = tmp_path / "queue"
    with running(directory) as queue:
        put(queue, 1, 2, 3)
        harm(directory)
        wait_until(lambda: said(caplog, logging.WARNING, "queue.db-wal is kept") == 1, "it is kept")
        crashed = copy_of(directory, tmp_path / "crashed")
        assert delivered(queue.cursor("otlp")) == [1, 2, 3]
    with running(crashed) as queue:
        assert delivered(queue.cursor("otlp")) == [1, 2, 3]


@pytest.mark.usefixtures("unfolded")
def test_while_a_reader_is_in_the_way_nothing_is_acknowledged_and_then_it_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as queue:
        put(queue, 1)
        queue.submit(lambda connection: connection.execute("PRAGMA busy_timeout = 10")).result(PATIENCE)
        with reading(queue.database) as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT * FROM records").fetchall()
            put(queue, 2)
            delete_log(tmp_path)
            assert refusal(queue, batch(3)).reason == "storage_failed"
            assert refusal(queue, batch(3)).reason == "storage_failed"
            assert said(caplog, logging.ERROR, f"{DELETED} {queue.database}-wal") == 1
            assert said(caplog, logging.WARNING, "queue.db-wal is kept") == 0
            connection.execute("COMMIT")
        assert put(queue, 4) == Receipt(1)
        assert said(caplog, logging.WARNING, "queue.db-wal is kept") == 1
        assert delivered(queue.cursor("otlp")) == [1, 2, 4]
    with running(tmp_path) as queue:
        assert put(queue, 1, 2, 3, 4) == Receipt(1, 3)


@pytest.mark.usefixtures("unfolded")
def test_a_log_that_is_deleted_just_before_an_error_is_kept(tmp_path: Path) -> None:
    """A connection that is closed after an error would take with it what only it can read."""

    def fail(_: sqlite3.Connection) -> None:
        delete_log(tmp_path)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    with running(tmp_path) as queue:
        put(queue, 1, 2)
        assert len(queue.cursor("otlp").read(1, 1000)) == 1
        assert queue.submit(fail).exception(PATIENCE) is not None
        assert put(queue, 3) == Receipt(1)
        assert delivered(queue.cursor("otlp")) == [1, 2, 3]


@pytest.mark.usefixtures("unfolded")
def test_a_log_that_becomes_shorter_is_damage_and_the_rest_is_carried_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as queue:
        for number in range(1, 51):
            put(queue, number)
        os.truncate(tmp_path / "queue.db-wal", (tmp_path / "queue.db-wal").stat().st_size // 2)
        assert put(queue, 100) == Receipt(1)
        assert queue._database.generation == 1
        settled(tmp_path)
        found = delivered(queue.cursor("otlp"))
        assert {*range(1, 20), 100} <= set(found)
        check_counters(queue)
    assert said(caplog, logging.ERROR, "queue.db-wal became shorter while it was in use") == 1


def test_a_database_that_becomes_shorter_is_damage_and_the_rest_is_carried_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damaged_file, "_MOST_FAILURES", 500)  # else it takes seconds
    with running(tmp_path) as queue:
        put(queue, *range(1, 201), size=500)
        wait_until(lambda: (tmp_path / "queue.db-wal").stat().st_size == 0, "the log is folded in")
        os.truncate(queue.database, queue.database.stat().st_size // 2)
        wait_until(lambda: queue._database.generation == 1, "it is noticed")
        settled(tmp_path)
        found = set(delivered(queue.cursor("otlp")))
        assert len(found) > 20
        assert put(queue, 1000) == Receipt(1)
    assert said(caplog, logging.ERROR, "queue.db became shorter while it was in use") == 1


@pytest.mark.usefixtures("unfolded")
def test_a_log_that_somebody_else_folded_in_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As with the shell of SQLite."""
    with running(tmp_path) as queue:
        put(queue, *range(1, 51))
        with contextlib.closing(sqlite3.connect(queue.database)) as connection:
            assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        assert put(queue, 100) == Receipt(1)
        assert queue._database.generation == 0
        assert delivered(queue.cursor("otlp")) == [*range(1, 51), 100]
    assert [line for line in errors(caplog) if "Nothing is lost" not in line] == []


def test_an_index_that_is_deleted_is_said_and_nothing_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "queue"
    with running(directory) as queue:
        put(queue, 1)
        (directory / "queue.db-shm").unlink()
        wait_until(lambda: said(caplog, logging.WARNING, DELETED) == 1, "it is noticed")
        assert put(queue, 2) == Receipt(1)
        crashed = copy_of(directory, tmp_path / "crashed")
        assert delivered(queue.cursor("otlp")) == [1, 2]
    assert len(errors(caplog)) == 1
    for place in (directory, crashed):
        with running(place) as queue:
            assert put(queue, 1, 2) == Receipt(0, 2)


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "stopped"])
def test_an_index_that_another_process_made_hides_nothing_after_a_restart(tmp_path: Path, *, is_killed: bool) -> None:
    """That process reads on meanwhile, so SQLite takes its index for the one that counts."""
    with child("answer", tmp_path) as process:
        assert ask(process, 1) == "1"
        (tmp_path / "queue.db-shm").unlink()
        with reading(tmp_path / "queue.db") as connection:
            assert len(connection.execute("SELECT * FROM records").fetchall()) == 1
            for number in (2, 3):
                assert ask(process, number) == str(number)
            if is_killed:
                process.kill()
            elif process.stdin is not None:
                process.stdin.close()
            process.wait(PATIENCE)
            with child("answer", tmp_path) as restarted:
                assert ask(restarted, 4) == "4"
    with running(tmp_path) as queue:
        assert delivered(queue.cursor("otlp")) == [1, 2, 3, 4]


def test_an_index_that_is_cut_is_made_as_long_as_it_was_and_the_process_lives(tmp_path: Path) -> None:
    index = tmp_path / "queue.db-shm"
    with child("answer", tmp_path) as process:
        for number in range(5):
            assert ask(process, number) == str(number)
        size = index.stat().st_size
        os.truncate(index, 0)
        wait_until(lambda: index.stat().st_size == size, "it is noticed")
        for number in range(5, 10):
            assert ask(process, number) == str(number)
    with running(tmp_path) as queue:
        assert delivered(queue.cursor("otlp")) == [*range(10)]


@pytest.mark.slow
def test_an_index_that_is_cut_under_load_costs_at_most_the_process(tmp_path: Path) -> None:
    with child("acknowledge", tmp_path, 4) as process:
        acknowledged = {int(line_of(process)) for _ in range(20)}
        os.truncate(tmp_path / "queue.db-shm", 0)
        for _ in range(200):
            if not (line := line_of(process)):
                break
            acknowledged.add(int(line))
    with running(tmp_path) as queue:
        assert acknowledged <= set(delivered(queue.cursor("otlp")))
