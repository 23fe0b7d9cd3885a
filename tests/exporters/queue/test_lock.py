"""A lock that somebody deletes or replaces while its owner runs: one process owns the queue, then too."""

import contextlib
import logging
import math
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from statsig_otel.exporters.consumer import Receipt
from statsig_otel.exporters.queue import open_files, store, writer
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.errors import DirectoryInUseError
from tests.exporters.queue.helpers import (
    PATIENCE,
    ask,
    batch,
    check_counters,
    child,
    copy_of,
    delivered,
    put,
    refusal,
    running,
    said,
    settled,
)
from tests.waiting import wait_until

DELETED = "Somebody deleted or replaced"


@pytest.fixture
def never_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner notices nothing before the next webhook."""
    monkeypatch.setattr(writer, "_IDLE", PATIENCE)


def delete(directory: Path) -> None:
    (directory / "lock").unlink()


def replace(directory: Path) -> None:
    (directory / "other").touch()
    (directory / "other").rename(directory / "lock")


def delete_with_log(directory: Path) -> None:
    delete(directory)
    (directory / "queue.db-wal").unlink()


def delete_with_database(directory: Path) -> None:
    delete(directory)
    (directory / "queue.db").unlink()


HARMS = [delete, replace, delete_with_log]


@pytest.mark.usefixtures("soon_idle")
@pytest.mark.parametrize("harm", HARMS)
def test_a_lock_that_is_gone_is_taken_again_while_nothing_comes_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    with running(tmp_path) as queue:
        put(queue, 1)
        harm(tmp_path)
        wait_until(lambda: said(caplog, logging.ERROR, f"{DELETED} {tmp_path / 'lock'} ") == 1, "it is noticed")
        with pytest.raises(DirectoryInUseError), running(tmp_path):
            pass
        assert put(queue, 2) == Receipt(1)
        assert delivered(queue.cursor("otlp")) == [1, 2]
        check_counters(queue)
    assert QueueDirectory(tmp_path).was_left_clean()


@pytest.mark.usefixtures("never_idle")
@pytest.mark.parametrize("harm", HARMS)
def test_a_lock_that_is_gone_is_taken_again_before_the_next_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(open_files, "fold", lambda _: False)
    directory = tmp_path / "queue"
    with running(directory) as queue:
        put(queue, 1)
        harm(directory)
        assert put(queue, 2) == Receipt(1)
        with pytest.raises(DirectoryInUseError):
            QueueDirectory(directory).acquire()
        crashed = copy_of(directory, tmp_path / "crashed")
    with running(crashed) as queue:
        assert delivered(queue.cursor("otlp")) == [1, 2]


@pytest.mark.usefixtures("never_idle")
def test_a_lock_that_is_gone_since_the_commit_began_is_taken_again_before_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that takes it meanwhile writes the log once more, while the commit is written behind it."""
    append, due = store.append_batches, threading.Event()

    def harm_and_append(*arguments: Any, **named: Any) -> Any:
        if due.is_set():
            due.clear()
            (tmp_path / "lock").unlink()
        return append(*arguments, **named)

    monkeypatch.setattr(store, "append_batches", harm_and_append)
    with running(tmp_path) as queue:
        queue._database.writer._tidy_at = math.inf
        put(queue, 1)
        due.set()
        assert put(queue, 2) == Receipt(1)
        with pytest.raises(DirectoryInUseError):
            QueueDirectory(tmp_path).acquire()
        assert delivered(queue.cursor("otlp")) == [1, 2]


@pytest.mark.usefixtures("never_idle")
@pytest.mark.parametrize("harm", [*HARMS, delete_with_database])
def test_a_lock_that_is_gone_since_the_writer_tidied_up_is_taken_again_before_the_next_answer(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    with running(tmp_path) as queue:
        owner = queue._database.writer
        put(queue, 1)
        wait_until(lambda: owner._tidy_at > 0, "it has tidied up")
        tidied = threading.Event()

        def harm_and_tidy(connection: sqlite3.Connection, idle: bool) -> bool:
            harm(tmp_path)
            tidied.set()
            return tidy(connection, idle)

        tidy, owner._tidy, owner._tidy_at = owner._tidy, harm_and_tidy, 0.0
        put(queue, 2)
        assert tidied.wait(PATIENCE)
        owner._tidy = tidy
        assert put(queue, 3) == Receipt(1)
        with pytest.raises(DirectoryInUseError):
            QueueDirectory(tmp_path).acquire()
        cursor, arrived = queue.cursor("otlp"), set[int]()

        def all_arrive() -> bool:
            arrived.update(delivered(cursor))
            return arrived == {1, 2, 3}

        wait_until(all_arrive, "all is delivered")


@pytest.mark.usefixtures("never_idle")
def test_beside_a_process_that_was_faster_nothing_is_acknowledged_until_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as queue:
        queue._database.writer._tidy_at = math.inf  # it would notice it then
        put(queue, 1)
        delete(tmp_path)
        with child("answer", tmp_path) as other:
            assert ask(other, 2) == "2"
            refused = refusal(queue, batch(3))
            assert refused.reason == "storage_failed"
            assert f"{DELETED[0].lower()}{DELETED[1:]} {tmp_path / 'lock'}" in str(refused)
            assert f"in use by the process {other.pid}" in str(refused)
            assert ask(other, 4) == "4"
        assert said(caplog, logging.ERROR, "nothing is acknowledged until it can") == 1
        assert put(queue, 5, 4) == Receipt(1, 1)
        check_counters(queue)  # with what the other one has stored
        assert delivered(queue.cursor("otlp")) == [1, 2, 4, 5]
        assert said(caplog, logging.ERROR, "It is made again") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("never_idle")
@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("is_read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("gone", ["queue.db-shm", "queue.db-wal queue.db-shm", "queue.db"])
def test_what_a_process_acknowledged_with_files_of_its_own_and_what_was_acknowledged_before_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str, *, is_read: bool, is_killed: bool
) -> None:
    """Neither of the two sees the other's commits. To bring the one's log into the other's database would lose some."""
    monkeypatch.setattr(open_files, "fold", lambda _: False)
    directory = tmp_path / "queue"
    before, between = set(range(1, 20)), set(range(100, 120))
    with running(directory) as queue:
        queue._database.writer._tidy_at = math.inf
        cursor = queue.cursor("otlp")
        put(queue, *before)
        if is_read:
            assert len(cursor.read(3, 1 << 20)) == 3
        for name in ("lock", *gone.split()):
            (directory / name).unlink()
        with child("answer", directory) as other:
            assert {int(ask(other, number)) for number in between} == between
            assert refusal(queue, batch(200)).reason == "storage_failed"
            if is_killed:
                other.kill()
            elif other.stdin is not None:
                other.stdin.close()
            other.wait(PATIENCE)
        assert put(queue, 200) == Receipt(1)
        crashed = copy_of(directory, tmp_path / "crashed")
        settled(directory)
        assert before | between | {200} <= set(delivered(cursor))
    with running(crashed) as queue:
        settled(crashed)
        assert before | between | {200} <= set(delivered(queue.cursor("otlp")))


@pytest.mark.usefixtures("never_idle")
def test_an_owner_that_ends_beside_another_one_does_not_note_that_the_queue_is_in_order(tmp_path: Path) -> None:
    with contextlib.ExitStack() as until_the_end:
        with running(tmp_path) as first:
            first._database.writer._tidy_at = math.inf
            put(first, 1)
            delete(tmp_path)
            second = until_the_end.enter_context(child("answer", tmp_path))
            assert ask(second, 2) == "2"
        assert not QueueDirectory(tmp_path).was_left_clean()
        assert ask(second, 3) == "3"
    with running(tmp_path) as queue:
        assert delivered(queue.cursor("otlp")) == [1, 2, 3]


@pytest.mark.usefixtures("soon_idle")
def test_a_lock_that_cannot_be_made_again_is_said_once_and_refuses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").touch()
    with running(tmp_path) as queue:
        put(queue, 1)
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere")  # which is not followed
        (tmp_path / "link").rename(tmp_path / "lock")
        for number in (2, 3):
            assert put(queue, number) == Receipt(1)
        assert said(caplog, logging.ERROR, "nothing keeps another process from using the queue") == 1
        (tmp_path / "lock").unlink()
        wait_until(lambda: said(caplog, logging.ERROR, "It is made again") == 1, "it is taken again")
        assert delivered(queue.cursor("otlp")) == [1, 2, 3]
