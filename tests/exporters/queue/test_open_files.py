"""Files of the database that somebody deletes, replaces or shortens while it is in use: what is committed is kept."""

import contextlib
import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from statsig_otel.exporters.consumer import Receipt
from statsig_otel.exporters.queue import open_files, store
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.open_files import OpenFiles
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
    tidied,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("soon_idle")

DELETED = "Somebody deleted or replaced"


@pytest.fixture
def unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed stays in the log, as it does while webhooks come."""
    monkeypatch.setattr(open_files, "fold", lambda _: False)


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
@pytest.mark.parametrize("moment", ["before what it writes", "after it"])
@pytest.mark.parametrize("name", ["queue.db-wal", "queue.db"])
def test_a_file_that_becomes_shorter_within_a_commit_is_damage_and_the_commit_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str, moment: str
) -> None:
    """Within it the files may become shorter by themselves. A log that was cut before is as long again after it."""
    due: list[int] = []

    def cut_once() -> None:
        while due:
            os.truncate(tmp_path / name, due.pop())

    append, keep = store.append_batches, OpenFiles.keep

    def cut_and_append(*arguments: Any, **named: Any) -> Any:
        if moment != "after it":
            cut_once()
        return append(*arguments, **named)

    def cut_and_keep(self: OpenFiles, connection: sqlite3.Connection, *, after_writing: bool) -> bool:
        if after_writing:
            cut_once()
        return keep(self, connection, after_writing=after_writing)

    monkeypatch.setattr(store, "append_batches", cut_and_append)
    monkeypatch.setattr(OpenFiles, "keep", cut_and_keep)
    with running(tmp_path) as queue:
        for number in range(1, 21):
            put(queue, number)
        due.append(0 if name == "queue.db" else (tmp_path / name).stat().st_size // 2)
        assert put(queue, 100) == Receipt(1)
        assert not due
        assert queue._database.generation == 1
        settled(tmp_path)
        assert {*range(1, 8), 100} <= set(delivered(queue.cursor("otlp")))
        check_counters(queue)
    assert said(caplog, logging.ERROR, f"{name} became shorter while it was in use") == 1


def test_a_database_that_becomes_shorter_when_the_log_was_just_brought_into_it_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold, due = open_files.fold, threading.Event()

    def fold_and_cut(connection: sqlite3.Connection) -> bool:
        is_done = fold(connection)
        if due.is_set():
            due.clear()
            os.truncate(tmp_path / "queue.db", 0)
        return is_done

    monkeypatch.setattr(open_files, "fold", fold_and_cut)
    with running(tmp_path) as queue:
        due.set()
        put(queue, 1)
        wait_until(lambda: queue._database.generation == 1, "it is noticed")


@pytest.mark.usefixtures("unfolded")
def test_a_log_that_a_power_failure_has_left_with_zeros_at_its_end_is_whole(tmp_path: Path) -> None:
    """Its size may reach the disk before its content. The next commits are written over the zeros."""
    directory = tmp_path / "queue"
    with running(directory) as queue:
        put(queue, 1, 2)
        crashed = copy_of(directory, tmp_path / "crashed")
    log = crashed / "queue.db-wal"
    os.truncate(log, log.stat().st_size + 50 * 4120)
    with running(crashed) as queue:
        for number in range(3, 20):
            put(queue, number)
        assert queue._database.generation == 0
        assert delivered(queue.cursor("otlp")) == [*range(1, 20)]


@pytest.mark.usefixtures("unfolded")
def test_files_that_become_shorter_by_themselves_are_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A log beyond its limit, which is cut when it begins anew, and a database whose pages are freed."""
    with running(tmp_path) as queue:
        for first in (1, 101, 201):
            put(queue, *range(first, first + 99), size=100_000)
            put(queue, first + 99)
            assert len(delivered(queue.cursor("otlp"))) == 100
        assert queue.database.stat().st_size > 8 << 20
        queue.cursor("otlp").close()
        tidied(queue)
        put(queue, *range(1000, 1045), size=100_000)  # this commit brings all of the log into the database
        assert queue.database.stat().st_size < 5 << 20
        assert queue._database.generation == 0
    assert errors(caplog) == []


@pytest.mark.usefixtures("unfolded")
@pytest.mark.parametrize("is_replaced", [False, True], ids=["deleted", "replaced"])
def test_the_state_that_is_gone_is_made_again_so_that_a_start_notices_a_log_that_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, is_replaced: bool
) -> None:
    directory = tmp_path / "queue"
    with running(directory) as queue:
        put(queue, 1)
        if is_replaced:
            (tmp_path / "other").write_text('{"clean": true}')
            (tmp_path / "other").rename(directory / "state.json")
        else:
            (directory / "state.json").unlink()
        assert put(queue, 2) == Receipt(1)
        crashed = copy_of(directory, tmp_path / "crashed")
    assert (
        said(caplog, logging.ERROR, f"{DELETED} {directory / 'state.json'} while it was in use. It is made again") == 1
    )
    assert QueueDirectory(directory).was_left_clean()
    delete_log(crashed)
    with running(crashed):
        assert said(caplog, logging.ERROR, "its log (queue.db-wal) is gone") == 1


@pytest.mark.usefixtures("unfolded", "soon_idle")
def test_the_state_that_can_not_be_made_again_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tmp_path / "state.json"
    with running(tmp_path) as queue:
        state.unlink()
        state.symlink_to("nowhere")
        wait_until(lambda: said(caplog, logging.ERROR, f"{DELETED} {state} ") == 1, "it is noticed")
        assert put(queue, 1) == Receipt(1)
        assert put(queue, 2) == Receipt(1)
        state.unlink()
        assert put(queue, 3) == Receipt(1)
    assert said(caplog, logging.ERROR, "it can't be made again now") == 1
    assert said(caplog, logging.ERROR, "It is made again") == 1
    assert QueueDirectory(tmp_path).was_left_clean()


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
