"""Files of the database that somebody shortens while it is in use: that is noticed, and the rest is kept."""

import contextlib
import logging
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from statsig_otel.exporters.consumer import Receipt
from statsig_otel.exporters.queue import open_files, schema, store
from statsig_otel.exporters.queue.open_files import OpenFiles
from statsig_otel.exporters.queue.recovery import damaged_file
from tests.exporters.queue.helpers import (
    PATIENCE,
    ask,
    check_counters,
    child,
    copy_of,
    delivered,
    errors,
    line_of,
    put,
    running,
    said,
    settled,
    tidied,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("soon_idle")

DELETED = "Somebody deleted or replaced"


def fold_in(directory: Path, mode: str) -> None:
    """Bring the log into the database, as with the shell of SQLite."""
    with contextlib.closing(sqlite3.connect(directory / "queue.db")) as connection:
        assert connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()[0] == 0


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


def tear(log: Path, size: int) -> None:
    """Leave a log as one that was cut, and written to behind the cut."""
    content = log.read_bytes()
    os.truncate(log, size)
    with log.open("r+b") as file:
        file.seek(len(content) - 4120)
        file.write(content[-4120:])


@pytest.mark.usefixtures("unfolded")
@pytest.mark.parametrize("place", ["at its beginning", "after some frames"])
def test_a_log_with_earlier_frames_behind_its_end_that_is_cut_within_a_commit_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """It has begun again, so it is shorter after the commit, with zeros that SQLite would bring into the database."""
    due, append, log = threading.Event(), store.append_batches, tmp_path / "queue.db-wal"

    def cut_and_append(*arguments: Any, **named: Any) -> Any:
        if due.is_set():
            due.clear()
            os.truncate(log, 0 if place == "at its beginning" else 32 + 4 * 4120)
        return append(*arguments, **named)

    monkeypatch.setattr(store, "append_batches", cut_and_append)
    with running(tmp_path) as queue:
        put(queue, *range(1, 31), size=100_000)
        fold_in(tmp_path, "RESTART")
        for number in range(101, 111):
            put(queue, number, size=3000)
        size = log.stat().st_size
        due.set()
        assert put(queue, 200) == Receipt(1)
        assert size > 3_000_000
        assert queue._database.generation == 1
        settled(tmp_path)
        assert {*range(1, 31), 200} <= set(delivered(queue.cursor("otlp")))
        check_counters(queue)


@pytest.mark.usefixtures("unfolded")
def test_a_log_beyond_its_limit_that_somebody_cuts_within_a_commit_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    due, append, log = threading.Event(), store.append_batches, tmp_path / "queue.db-wal"

    def cut_and_append(*arguments: Any, **named: Any) -> Any:
        if due.is_set():
            due.clear()
            os.truncate(log, schema.LOG_LIMIT + 4120)
        return append(*arguments, **named)

    monkeypatch.setattr(store, "append_batches", cut_and_append)
    with running(tmp_path) as queue:
        queue.submit(lambda connection: connection.execute("PRAGMA wal_autocheckpoint = 0")).result(PATIENCE)
        put(queue, *range(1, 61), size=100_000)
        fold_in(tmp_path, "RESTART")
        put(queue, *range(61, 66), size=100_000)
        due.set()
        assert put(queue, 100) == Receipt(1)
        assert queue._database.generation == 1
        settled(tmp_path)
        assert {*range(1, 61), 100} <= set(delivered(queue.cursor("otlp")))


@pytest.mark.usefixtures("unfolded")
def test_the_zeros_of_a_log_that_was_cut_are_not_brought_into_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even when the last connection is closed. An earlier state of a page is better than none."""
    log, due, keep = tmp_path / "queue.db-wal", threading.Event(), OpenFiles.keep

    def tear_and_keep(self: OpenFiles, connection: sqlite3.Connection | None, *, after_writing: bool) -> bool:
        if after_writing and due.is_set():
            due.clear()
            tear(log, 0)
        return keep(self, connection, after_writing=after_writing)

    monkeypatch.setattr(OpenFiles, "keep", tear_and_keep)
    with running(tmp_path) as queue:
        put(queue, *range(1, 11))
        fold_in(tmp_path, "TRUNCATE")
        for number in range(101, 111):
            put(queue, number, size=3000)
        due.set()
        assert put(queue, 200, size=3000) == Receipt(1)
        assert queue._database.generation == 1
        settled(tmp_path)
        assert {*range(1, 11), 200} <= set(delivered(queue.cursor("otlp")))


@pytest.mark.usefixtures("unfolded")
def test_what_a_log_that_is_cut_has_lost_is_not_said_to_be_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it the database is a sound, older one, with counts that fit. So a redelivery must replace the rest."""
    with running(tmp_path) as queue:
        put(queue, *range(1, 11))
        fold_in(tmp_path, "TRUNCATE")
        put(queue, 11, 12)
        os.truncate(tmp_path / "queue.db-wal", 0)
        assert put(queue, 13) == Receipt(1)
        unknown = "How many records are missing is unknown"
        wait_until(lambda: said(caplog, logging.ERROR, unknown) == 1, "it is carried over")
        assert put(queue, 11, 12) == Receipt(2)
        assert {*range(1, 14)} == set(delivered(queue.cursor("otlp")))


@pytest.mark.usefixtures("unfolded")
def test_a_reader_of_a_log_that_is_cut_does_not_hide_what_is_left_of_it(tmp_path: Path) -> None:
    """What this process still reads with the index of the whole log is carried over with an index of the rest."""
    with running(tmp_path) as queue:
        cursor = queue.cursor("otlp")
        put(queue, *range(1, 51), size=3000)
        assert len(cursor.read(1, 1 << 20)) == 1
        for number in range(51, 60):
            put(queue, number, size=3000)
        log = tmp_path / "queue.db-wal"
        os.truncate(log, log.stat().st_size - 4120)
        assert put(queue, 100) == Receipt(1)
        settled(tmp_path)
        assert {*range(1, 59), 100} <= set(delivered(cursor))


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
def test_a_log_that_somebody_else_folded_in_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As with the shell of SQLite."""
    with running(tmp_path) as queue:
        put(queue, *range(1, 51))
        fold_in(tmp_path, "TRUNCATE")
        assert put(queue, 100) == Receipt(1)
        assert queue._database.generation == 0
        assert delivered(queue.cursor("otlp")) == [*range(1, 51), 100]
    assert [line for line in errors(caplog) if "Nothing is lost" not in line] == []


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
