"""The database file: what a new one is, and which others are taken."""

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsig_otel.exporters.queue import schema
from statsig_otel.exporters.queue.errors import DamagedError, ForeignFileError, NewerSchemaError, QueueError


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(schema.connect(path)) as connection:
        yield connection


@contextlib.contextmanager
def plain(path: Path) -> Iterator[sqlite3.Connection]:
    """The file by SQLite alone."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def pragma(connection: sqlite3.Connection, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def test_a_new_file_is_durable_and_gives_space_back(tmp_path: Path) -> None:
    with opened(tmp_path / "queue.db") as connection:
        names = ("journal_mode", "synchronous", "auto_vacuum", "mmap_size", "user_version", "application_id")
        found = [pragma(connection, name) for name in names]
    assert found == ["wal", 2, 2, 0, schema.PLAIN, schema.APPLICATION_ID]


def test_opening_it_again_keeps_what_is_in_it(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with opened(tmp_path / "queue.db") as connection:
            connection.execute("INSERT INTO exporters (name, cursor) VALUES (?, 0)", (str(number),))
            assert connection.execute("SELECT count(*) FROM exporters").fetchone() == (number,)
            assert pragma(connection, "auto_vacuum") == 2


def test_nobody_else_can_read_any_of_its_files(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(tmp_path / "queue.db") as connection:
            connection.execute("INSERT INTO exporters (name, cursor) VALUES ('a', 0)")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"queue.db": 0o600, "queue.db-wal": 0o600, "queue.db-shm": 0o600}


def test_a_file_without_a_byte_becomes_a_queue(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    path.touch()
    with opened(path) as connection:
        assert pragma(connection, "user_version") == schema.PLAIN


def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with opened(path) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(NewerSchemaError, match=r"schema version 3.*knows at most 2: use the version") as caught:
        schema.connect(path)
    assert isinstance(caught.value, QueueError)
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with plain(path) as connection:
        connection.execute("CREATE TABLE records (text)")
    before = path.read_bytes()
    with pytest.raises(ForeignFileError, match="another program"):
        schema.connect(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "harm",
    [
        "PRAGMA user_version = 0",
        "PRAGMA user_version = -3",
        "PRAGMA application_id = 7",
        "DROP INDEX records_by_route",
        "DROP TABLE seen",
        "ALTER TABLE records RENAME COLUMN uid TO uie",
    ],
)
def test_a_queue_with_other_tables_than_its_version_is_damaged(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "queue.db"
    with opened(path) as connection:
        connection.execute(harm)
    with pytest.raises(DamagedError):
        schema.connect(path)


def test_what_a_person_added_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with opened(path) as connection:
        connection.execute("CREATE INDEX mine ON dead_letters (at)")
        connection.execute("ANALYZE")
    with opened(path):
        pass


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "queue.db").mkdir()
    with pytest.raises(sqlite3.OperationalError) as caught:
        schema.connect(tmp_path / "queue.db")
    assert not schema.is_damage(caught.value)
    with pytest.raises(FileNotFoundError):
        schema.connect(tmp_path / "missing" / "queue.db")


def test_a_reader_cannot_write_and_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        schema.connect_reading(tmp_path / "queue.db")
    assert not list(tmp_path.iterdir())
    with (
        opened(tmp_path / "queue.db"),
        contextlib.closing(schema.connect_reading(tmp_path / "queue.db")) as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        connection.execute("DELETE FROM records")


@pytest.mark.parametrize("name", ["a b", "50%", "a?b#c", "é"])
def test_a_reader_finds_a_file_of_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "queue.db"
    path.parent.mkdir()
    with opened(path), contextlib.closing(schema.connect_reading(path)) as connection:
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (0,)


def test_each_version_is_brought_up_to_date_in_one_step_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with plain(path) as connection, pytest.raises(sqlite3.OperationalError):
        schema._migrate(connection, "CREATE TABLE one (a);\nCREATE NONSENSE", 1)
    with plain(path) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        assert pragma(connection, "user_version") == 0
    with opened(path) as connection:
        assert pragma(connection, "user_version") == schema.PLAIN


def test_a_full_disk_is_known_by_its_number_and_not_by_its_words(tmp_path: Path) -> None:
    with opened(tmp_path / "queue.db") as connection:
        connection.execute(f"PRAGMA max_page_count = {pragma(connection, 'page_count')}")
        with pytest.raises(sqlite3.OperationalError) as caught:
            connection.execute("INSERT INTO seen VALUES ('a', zeroblob(100000), 0)")
    assert schema.is_disk_full(caught.value)
    assert schema.is_disk_full(OSError(errno.ENOSPC, "No space left on device"))
    assert not schema.is_disk_full(OSError(errno.EIO, "cannot write /var/full/queue.db"))
    assert not schema.is_disk_full(sqlite3.OperationalError("the full text search failed"))
