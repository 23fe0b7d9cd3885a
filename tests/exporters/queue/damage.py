"""Damages the files of a queue, and checks that it serves all the same."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from statsig_otel.exporters.queue.errors import StorageError
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.records import Stored
from tests.exporters.queue.helpers import (
    PATIENCE,
    batch,
    change,
    consume,
    kept,
    numbers_of,
    read_all,
    reading,
    settled,
)

PAGE = 4096
STORED = range(1, 601)
SIZE = 500


def pages_of(database: Path, name: str) -> dict[str, list[int]]:
    """The numbers of a table's or index's pages, by their kind."""
    with reading(database) as connection:
        found: dict[str, list[int]] = {}
        for page, kind in connection.execute("SELECT pageno, pagetype FROM dbstat WHERE name = ?", (name,)):
            found.setdefault(kind, []).append(page)
    return found


def overwrite(database: Path, place: int, data: bytes) -> None:
    with database.open("r+b") as file:
        file.seek(place)
        file.write(data)


def check_that_it_serves(queue: DurableQueue) -> list[Stored]:
    """What is delivered of all that is there, with a change that is taken now among it."""
    found: list[Stored] = []
    cursor = queue.cursor("otlp")
    for fresh in (10_000, 10_001):  # the first may be in a file that only the reading of it shows to be damaged
        for _ in range(5):
            if consume(queue, batch(fresh)).exception(PATIENCE) is None:
                break
        for _ in range(20):
            with contextlib.suppress(sqlite3.Error, StorageError):  # its sender says so, and tries again
                found += read_all(cursor, at_once=100)
                break
        else:
            pytest.fail("it can't be read for ever")
    settled(queue.database.parent)
    found += read_all(cursor, at_once=100)
    numbers = numbers_of(found)
    assert 10_001 in numbers, "a fresh change arrives"
    assert cursor.waiting == 0
    assert kept(queue.database.parent) or 10_000 in numbers
    for record in found:
        number = int.from_bytes(record.uid)
        if record.intact and number in STORED:
            assert (record.payload,) == change(number, size=SIZE).records
    return found
