"""What a command drops for good is not left in the files of the queue."""

import sqlite3
from pathlib import Path

import pytest

from statsig_otel.exporters.queue import dead_letters, store
from statsig_otel.exporters.queue.dead_letters import Selection
from statsig_otel.exporters.queue.store import DeadLetter
from tests.exporters.queue.helpers import PATIENCE, put, running

MARK = b"ada.lovelace@example.com"


@pytest.mark.parametrize("size", [10, 3000, 200_000])
def test_a_dropped_dead_letter_is_overwritten(tmp_path: Path, size: int) -> None:
    with running(tmp_path) as queue:

        def add_dead_letter(connection: sqlite3.Connection) -> None:
            for number in range(20):
                content = (MARK if number % 2 else b"somebody else") * (size // 10)
                store.add_dead_letter(connection, DeadLetter("item", "statsig", "?", content), 0)

        def drop(connection: sqlite3.Connection) -> int:
            odd = Selection(ids=tuple(range(2, 21, 2)))
            return len(dead_letters.drop(connection, odd, after=0, upto=20, limit=100))

        queue.submit(add_dead_letter).result(PATIENCE)
        put(queue, 1)
    assert MARK in content_of(tmp_path)
    with running(tmp_path) as queue:
        assert queue.submit(drop).result(PATIENCE) == 10
    assert MARK not in content_of(tmp_path)
    assert b"somebody else" in content_of(tmp_path)


def content_of(directory: Path) -> bytes:
    return b"".join(file.read_bytes() for file in directory.iterdir())
