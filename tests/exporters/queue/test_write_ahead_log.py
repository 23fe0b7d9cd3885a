"""The database's log after a crash: what SQLite would drop of it without a word is noticed, and carried over."""

import contextlib
import logging
import os
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.exporters.queue import open_files, write_ahead_log
from statsig_otel.exporters.queue.database import StoppedQueue
from statsig_otel.exporters.queue.errors import DamagedError
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.recovery import damaged_file
from statsig_otel.exporters.queue.write_ahead_log import LogCheck
from tests.exporters.queue.helpers import (
    check_counters,
    copy_of,
    dead_letters_in,
    delivered,
    errors,
    kept,
    put,
    running,
    said,
    settled,
)
from tests.looped import slow_except

HEADER: Final = 32
PAGE: Final = 4096
FRAME: Final = 24 + 4096
STORED: Final = range(1, 31)


@contextlib.contextmanager
def running_untidied(directory: Path, patch: pytest.MonkeyPatch) -> Iterator[DurableQueue]:
    """A queue whose log stays as its commits leave it, however slow the machine is."""
    patch.setattr(DurableQueue, "_tidy", lambda *_: False)
    patch.setattr(open_files, "fold", lambda _: False)
    with running(directory) as queue:
        yield queue


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a crash leaves behind after some changes were taken and some of them delivered, one commit each."""
    directory = tmp_path_factory.mktemp("stock")
    with pytest.MonkeyPatch.context() as patch, running_untidied(directory / "running", patch) as queue:
        cursor = queue.cursor("otlp")
        for number in STORED:
            put(queue, number, size=500)
            if number % 10 == 0:
                cursor.finish(cursor.read(2, 1 << 20))
        return copy_of(directory / "running", directory / "crashed")


WAITING: Final = set(range(7, 31))


@pytest.fixture
def directory(stock: Path, tmp_path: Path) -> Path:
    """A copy of it to harm."""
    return Path(shutil.copytree(stock, tmp_path / "queue"))


@contextlib.contextmanager
def changed(directory: Path) -> Iterator[bytearray]:
    """The log's bytes, to be harmed."""
    log = directory / "queue.db-wal"
    content = bytearray(log.read_bytes())
    yield content
    log.write_bytes(content)


def check(directory: Path) -> LogCheck:
    return write_ahead_log.check(directory / "queue.db")


def commits(log: bytes | bytearray) -> list[int]:
    """The places of the frames that end a transaction."""
    return [place for place in range(HEADER, len(log), FRAME) if struct.unpack_from(">I", log, place + 4) > (0,)]


def everything(database: Path) -> list[object]:
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        tables = ("exporters", "routes", "records", "seen", "dead_letters")
        return [connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables]


def test_a_log_in_order_is_read_to_its_end(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert check(directory) == LogCheck(0, 0)
    with running(directory) as queue:
        assert set(delivered(queue.cursor("otlp"))) == WAITING
    assert not errors(caplog)


def test_what_is_folded_is_what_sqlite_reads(directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    shutil.copyfile(directory / "queue.db", copy)
    damaged_file.fold(directory / "queue.db", copy)
    assert everything(copy) == everything(directory / "queue.db")


def test_all_of_a_log_is_folded_into_a_database_that_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path / "queue") as queue:
        put(queue, *range(100), size=500)
    with running_untidied(tmp_path / "queue", monkeypatch) as queue:
        put(queue, 100)
        database = copy_of(tmp_path / "queue", tmp_path / "crashed") / "queue.db"
    copy = tmp_path / "copy.db"
    shutil.copyfile(database, copy)
    os.truncate(copy, PAGE)
    damaged_file.fold(database, copy)
    with write_ahead_log.opened(database) as log:
        pages = {frame.page: frame.content for frame in log.frames()}
    assert max(pages) > len(pages) + 1  # so its place is behind what the files have together
    for page, content in pages.items():
        assert copy.read_bytes()[(page - 1) * PAGE : page * PAGE] == content


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for(tmp_path: Path) -> None:
    """It may come between the look at the file and its reading."""
    os.mkfifo(tmp_path / "queue.db-wal")
    assert not write_ahead_log.has_gap(tmp_path / "queue.db", 0)
    assert write_ahead_log.header(tmp_path / "queue.db") == b""


def test_where_there_is_no_log_nothing_is_unread(tmp_path: Path) -> None:
    assert check(tmp_path) == LogCheck(0, 0)
    (tmp_path / "queue.db-wal").touch()
    assert check(tmp_path) == LogCheck(0, 0)


PLACES: dict[str, Callable[[bytearray], int]] = {
    "the magic number": lambda _: 0,
    "the page size": lambda _: 10,
    "the header's salts": lambda _: 17,
    "the header's checksum": lambda _: 25,
    "the first frame's salts": lambda _: HEADER + 9,
    "a frame's page number": lambda log: commits(log)[3] + 3,
    "a far page number": lambda log: commits(log)[3],
    "a frame that ends a transaction": lambda log: commits(log)[3] + 5,
    "a frame's salts": lambda log: commits(log)[4] + 12,
    "a frame's checksum": lambda log: commits(log)[5] + 17,
    "a page": lambda log: commits(log)[6] + 24 + 3000,
    "the last transaction": lambda log: commits(log)[-1] + 24 + 3000,
}


@pytest.mark.parametrize(
    "place",
    slow_except(PLACES, "the header's salts", "a frame's page number", "a frame that ends a transaction", "a page"),
)
def test_a_log_that_is_damaged_is_said_loudly_and_all_behind_the_damage_carried_over(
    directory: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    with changed(directory) as log:
        log[PLACES[place](log)] ^= 0x40
    harmed = {file.name: file.read_bytes() for file in directory.iterdir()}
    with pytest.raises(DamagedError, match="its log is damaged"), StoppedQueue(directory):
        pass
    with running(directory) as queue:
        settled(directory)
        put(queue, 1000)
        found = set(delivered(queue.cursor("otlp")))
        damaged = [dead_letter for dead_letter in dead_letters_in(queue.database) if dead_letter.kind == "damaged"]
        check_counters(queue)
        assert 1000 in found
        assert len(WAITING - found) <= 1
        assert WAITING - found == {int.from_bytes(dead_letter.uid or b"") for dead_letter in damaged} - found
        assert put(queue, 1000).duplicates == 1
    assert said(caplog, logging.ERROR, "its log is damaged, and SQLite would not read") == 1
    assert said(caplog, logging.WARNING, "is carried over") == 1
    (aside,) = kept(directory)
    for suffix in ("", "-wal"):
        assert Path(f"{aside}{suffix}").read_bytes() == harmed[f"queue.db{suffix}"], "kept as it was found"
    caplog.clear()
    with running(directory):
        pass
    assert not errors(caplog)


def test_damage_is_known_by_the_commits_behind_it_where_the_index_is_gone(directory: Path) -> None:
    with changed(directory) as log:
        log[commits(log)[3] + 24 + 3000] ^= 0x40
    (directory / "queue.db-shm").unlink()
    found = check(directory)
    assert (found.unread_commits, found.missing_frames, found.is_damaged) == (len(commits(log)) - 3, 0, True)
    with running(directory) as queue:
        settled(directory)
        assert set(delivered(queue.cursor("otlp"))) >= WAITING
    assert len(kept(directory)) == 1


def test_a_first_sector_that_is_gone_hides_nothing(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with changed(directory) as log:
        log[:512] = bytes(512)
    with running(directory) as queue:
        settled(directory)
        assert set(delivered(queue.cursor("otlp"))) >= WAITING
    assert said(caplog, logging.ERROR, "its log is damaged") == 1


def test_a_last_commit_left_incomplete_by_a_power_failure_is_dropped(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with changed(directory) as log:
        log[commits(log)[-1] + 24 + 3000] ^= 0x40
    (directory / "queue.db-shm").unlink()  # nobody brings it to disk
    assert check(directory) == LogCheck(1, 0)
    with running(directory) as queue:
        found = delivered(queue.cursor("otlp"))
        assert found == sorted(found)
        assert set(found) >= WAITING - {30}
    assert said(caplog, logging.WARNING, "the last commit of the queue's log is incomplete") == 1
    assert not kept(directory)


@pytest.mark.parametrize("left", [HEADER, HEADER + 1, 20_000, 0.5, 0.999])
def test_a_log_that_was_cut_short_is_said_loudly(
    directory: Path, caplog: pytest.LogCaptureFixture, left: float
) -> None:
    with changed(directory) as log:
        del log[int(left if left > 1 else len(log) * left) :]
    with pytest.raises(DamagedError, match="cut short"), StoppedQueue(directory):
        pass
    with running(directory) as queue:
        put(queue, 1000)
        assert 1000 in delivered(queue.cursor("otlp"))
    assert said(caplog, logging.ERROR, "the queue's log (queue.db-wal) was cut short") == 1
    caplog.clear()
    with running(directory):
        pass
    assert not errors(caplog)


def test_an_index_of_an_earlier_log_says_nothing(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_untidied(tmp_path / "other", monkeypatch) as queue:
        for number in range(100):
            put(queue, number)
        copy_of(tmp_path / "other", tmp_path / "earlier")
    shutil.copyfile(tmp_path / "earlier" / "queue.db-shm", directory / "queue.db-shm")
    assert check(directory) == LogCheck(0, 0)


@pytest.mark.parametrize("harm", [lambda index: bytes(len(index)), lambda index: index[:20], lambda _: b""])
def test_an_index_that_is_damaged_says_nothing(directory: Path, harm: Callable[[bytes], bytes]) -> None:
    index = directory / "queue.db-shm"
    index.write_bytes(harm(index.read_bytes()))
    assert check(directory) == LogCheck(0, 0)
    with changed(directory) as log:
        del log[-FRAME:]
    assert check(directory) == LogCheck(0, 0)


def test_what_was_never_committed_and_what_is_from_before_are_no_damage(directory: Path) -> None:
    with changed(directory) as log:
        unfinished = bytearray(log[HEADER : HEADER + 2 * FRAME])
        for place in (0, FRAME):
            unfinished[place + 4 : place + 8] = bytes(4)
        before = bytearray(log[HEADER:])
        for place in range(0, len(before), FRAME):
            before[place + 11] ^= 1
        log.extend(unfinished + before)
    assert check(directory) == LogCheck(0, 0)


@given(data=st.data())
def test_no_flipped_bit_of_a_log_loses_anything_in_silence(stock: Path, data: st.DataObject) -> None:
    with TemporaryDirectory() as temporary:
        directory = Path(shutil.copytree(stock, Path(temporary) / "queue"))
        with changed(directory) as log:
            log[data.draw(st.integers(0, len(log) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        with running(directory) as queue:
            settled(directory)
            found = set(delivered(queue.cursor("otlp")))
            damaged = {int.from_bytes(dead_letter.uid or b"") for dead_letter in dead_letters_in(queue.database)}
        assert len(WAITING - found) <= 1
        assert WAITING - found <= damaged
        assert kept(directory) or found == WAITING
