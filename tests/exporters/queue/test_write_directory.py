"""The check of a release: the queue directory that is kept of a version is what its code writes."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from statsig_otel.exporters.queue import schema
from tests.exporters.queue.test_earlier_version import DIRECTORIES, REMEMBERING
from tests.exporters.queue.write_directory import check, content, write
from tests.looped import looped


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("written") / "queue"
    write(DIRECTORIES[0], directory)
    return directory


def test_what_the_code_writes_passes_and_a_missing_directory_does_not(written: Path, tmp_path: Path) -> None:
    check(written)
    with pytest.raises(SystemExit, match="is missing, and every later version has to open it"):
        check(tmp_path / "missing")


def test_a_directory_that_remembers_what_came_is_checked_too(tmp_path: Path) -> None:
    directory = tmp_path / f"queue{REMEMBERING}"
    write(DIRECTORIES[0], directory)
    check(directory)
    assert content(directory)["user_version"] == (schema.REMEMBERING,)
    with contextlib.closing(sqlite3.connect(directory / "queue.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM missed")
    with pytest.raises(SystemExit, match="not what this code writes"):
        check(directory)


def test_another_format_is_named(written: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(written, tmp_path / "queue"))
    (other / "state.json").write_text('{"stopped": true, "pid": 1}')
    with pytest.raises(SystemExit, match=r"not what this code writes \(state.json stopped, state.json clean\)"):
        check(other)


@looped(
    "harm",
    [
        "PRAGMA user_version = 2",
        "PRAGMA application_id = 7",
        "DROP INDEX records_by_route",
        "CREATE INDEX one_more ON dead_letters (at)",
        "ALTER TABLE seen RENAME COLUMN at TO first",
        "CREATE TABLE one_more (a)",
        "UPDATE records SET checksum = checksum + 1 WHERE seq = 5",
        "UPDATE dead_letters SET kind = 'event' WHERE kind = 'item'",
    ],
)
def test_each_change_of_the_database_is_seen(
    harm: str, written: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Path(shutil.copytree(written, tmp_path_factory.mktemp("other") / "queue"))
    assert content(other) == content(written)
    with contextlib.closing(sqlite3.connect(other / "queue.db", isolation_level=None)) as connection:
        connection.execute(harm)
    assert content(other) != content(written)


def test_a_file_more_is_seen(written: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(written, tmp_path / "queue"))
    (other / "one-more").touch()
    assert content(other) != content(written)
