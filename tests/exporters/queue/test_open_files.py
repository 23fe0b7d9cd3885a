"""Files of the database that somebody deletes or replaces while it is in use: what is committed is kept."""

import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from statsig_otel.exporters.consumer import Receipt
from statsig_otel.exporters.queue import checks
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.open_files import OpenFiles
from tests.exporters.queue.helpers import (
    PATIENCE,
    ask,
    batch,
    check_counters,
    child,
    consume,
    copy_of,
    delivered,
    errors,
    kept,
    no_more_files,
    put,
    reading,
    refusal,
    running,
    said,
    settled,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("soon_idle")

LOCKS = Path("/proc/locks")
OF_TRANSACTIONS = range(120, 128)  # bytes of the index
DELETED = "Somebody deleted or replaced"


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
    (directory / "queue.db-shm").unlink(missing_ok=True)  # the service may have noticed already


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
@pytest.mark.skipif(not LOCKS.exists(), reason="LOUD: /proc/locks is missing, so the test can't see who holds a lock")
@pytest.mark.parametrize("harm", [lambda _: None, delete_log, replace_log])
def test_to_look_at_the_files_drops_no_lock(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """A process that opens a file once more, and closes it, drops its locks on it (POSIX)."""
    with running(tmp_path) as queue:
        put(queue, 1)
        held = locks(tmp_path)
        assert {name for name, _ in held} == {"queue.db", "queue.db-shm"}
        harm(tmp_path)
        put(queue, 2)
        settled(tmp_path)
        assert locks(tmp_path) >= held


def locks(directory: Path) -> set[tuple[str, str]]:
    """The locks that this process holds on the database's files while it has them open, each with its range.

    Those of a transaction are left out: they come and go (SQLite, WAL-index locks).
    """
    names = {(directory / name).stat().st_ino: name for name in ("queue.db", "queue.db-shm")}
    held = set()
    for line in LOCKS.read_text().splitlines():
        *_, kind, _, _, pid, file, first, last = line.split()
        name = names.get(int(file.rpartition(":")[2]))
        if name and kind == "POSIX" and int(pid) == os.getpid() and int(first) not in OF_TRANSACTIONS:
            held.add((name, f"{first}-{last}"))
    return held


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
@pytest.mark.parametrize("how", ["deleted", "replaced"])
@pytest.mark.parametrize("moment", ["before the first look", "after it"])
@pytest.mark.parametrize("name", ["queue.db", "queue.db-wal"])
def test_a_file_that_is_gone_while_it_is_opened_is_kept_before_the_next_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, moment: str, how: str
) -> None:
    directory, due, check, opened = tmp_path / "queue", threading.Event(), checks.check_database, OpenFiles.opened

    def harm() -> None:
        if due.is_set():
            due.clear()
            if how == "replaced":
                shutil.copyfile(directory / name, directory / "other")
                (directory / "other").rename(directory / name)
            else:
                (directory / name).unlink()

    def check_and_harm(connection: sqlite3.Connection) -> None:
        check(connection)
        if moment == "after it":
            harm()

    def harm_and_look(self: OpenFiles, connection: sqlite3.Connection) -> None:
        if moment != "after it":
            harm()
        opened(self, connection)

    def fail(_: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    monkeypatch.setattr(checks, "check_database", check_and_harm)
    monkeypatch.setattr(OpenFiles, "opened", harm_and_look)
    with running(directory) as queue:
        put(queue, 1, 2)
        due.set()  # before it is closed: the writer may open it again by itself
        assert queue.submit(fail).exception(PATIENCE) is not None
        assert put(queue, 3) == Receipt(1)
        assert not due.is_set()
        settled(directory)
        assert put(queue, 4) == Receipt(1)
        crashed = copy_of(directory, tmp_path / "crashed")
    for place in (crashed, directory):
        with running(place) as queue:
            settled(place)
            assert set(delivered(queue.cursor("otlp"))) == {1, 2, 3, 4}


def test_a_process_that_can_open_no_more_files_acknowledges_what_is_on_disk(tmp_path: Path) -> None:
    """It can't look into the log then, as little as a user who may not read it."""
    with running(tmp_path) as queue:
        put(queue, 1)
        put(queue, 2)
        with no_more_files():
            assert put(queue, 3) == Receipt(1)
        assert delivered(queue.cursor("otlp")) == [1, 2, 3]


@pytest.mark.parametrize("name", ["state.json", "reserve", "lock", "queue.db", "queue.db-wal", "queue.db-shm"])
def test_a_pipe_in_the_place_of_a_file_holds_nothing_up(tmp_path: Path, name: str) -> None:
    with running(tmp_path) as queue:
        put(queue, 1)
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "pipe").rename(tmp_path / name)
        consume(queue, batch(2)).exception(PATIENCE)
        (tmp_path / name).unlink(missing_ok=True)
        wait_until(lambda: consume(queue, batch(3)).exception(PATIENCE) is None, "it is stored again")
        settled(tmp_path)
        assert {1, 3} <= set(delivered(queue.cursor("otlp")))


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


def test_nothing_is_said_of_the_index_before_a_log_that_was_deleted_with_it_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be deleted between the looks at the one and at the other."""
    look, log = os.stat, tmp_path / "queue.db-wal"

    def delete_between(path: str | Path, **options: bool) -> os.stat_result:
        if str(path).endswith("-shm") and log.is_file() and threading.current_thread().name == "queue writer":
            monkeypatch.setattr(os, "stat", look)
            delete_log_and_index(tmp_path)
        return look(path, **options)

    with running(tmp_path) as queue:
        put(queue, 1)
        monkeypatch.setattr(os, "stat", delete_between)
        assert put(queue, 2) == Receipt(1)
    told = [record.getMessage() for record in caplog.records if record.name.endswith("open_files")]
    assert f"{DELETED} {log} while" in told[0]
    assert "is kept: it is in queue.db now" in told[1]
