"""Reads what can still be read of a database that the queue can't use any more. The file itself is never changed."""

import contextlib
import errno
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

from statsig_otel.exporters.queue import checks, queries, schema, write_ahead_log
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.exporters.queue.queries import ExporterState
from statsig_otel.exporters.queue.records import Stored
from statsig_otel.exporters.queue.store import DeadLetter

_MOST_FAILURES: Final = 50_000
"""Failures in a row after which the rest of a table is given up: about a second."""

_FAILURES_PER_STEP: Final = 1000
"""The steps over what can't be read grow with it: a thousandth of what was passed. So a million rows can be passed."""

_LAST_KEY: Final = 2**63 - 1

Routes: TypeAlias = dict[int, tuple[str, tuple[int, ...]]]
"""Every route's receiver and exporters, by its number."""


class UnreadableError(QueueError):
    """Not even the beginning of a file can be read."""


@contextlib.contextmanager
def opened(path: Path, *, room: int) -> Iterator[sqlite3.Connection]:
    """A connection for reading a damaged file, or a copy of it.

    A copy has a new first page and all of the log folded in: where SQLite could not read the one, or all of the other.

    Args:
        path: The file.
        room: Bytes that a copy may have.

    Raises:
        UnreadableError: There is nothing in it that can be read.
        OSError: The copy can't be written, or there is no room for it.
    """
    copy = path.with_name(f"{path.name}.repaired")
    try:
        connection = None if write_ahead_log.check(path).unread_commits else _connect(path)
        if connection is None:
            _repair(path, copy, room)
            connection = _connect(copy)
        if connection is None:
            raise UnreadableError(f"nothing in {path.name} can be read")
        with contextlib.closing(connection):
            yield connection
    finally:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)


def places(connection: sqlite3.Connection) -> dict[int, ExporterState] | None:
    """Every exporter's place, by its number; None where one of them can't be trusted."""
    try:
        checks.check_table(connection, "exporters")
        states = queries.exporter_states(connection)
        last = queries.last_seq(connection)
    except sqlite3.Error:
        return None
    trusted = all(type(state.name) is str and 0 <= state.cursor <= last for state in states)
    return {state.id: state for state in states} if trusted else None


def routes(connection: sqlite3.Connection) -> Routes | None:
    """Every route; None where one of them can't be read."""
    try:
        checks.check_table(connection, "routes")
        found = queries.routes(connection)
    except sqlite3.Error:
        return None
    return found if all(type(receiver) is str for receiver, _ in found.values()) else None


def records(connection: sqlite3.Connection, after: int) -> Iterator[tuple[int | None, Stored]]:
    """All records behind a seq that can be read, in order, also those that changed; each with its route's number."""
    columns = "seq, route, CAST(uid AS BLOB), CAST(payload AS BLOB), checksum"
    for seq, route, uid, payload, checksum in _rows(connection, columns, "records", after):
        yield route if type(route) is int else None, Stored.checked(seq, uid, payload, checksum)


def dead_letters(connection: sqlite3.Connection, after: int) -> Iterator[tuple[int, int, DeadLetter]]:
    """All dead letters behind an id that can be read: the id, the time in milliseconds, and the letter."""
    columns = "id, at, kind, owner, reason, CAST(content AS BLOB), uid, attempts, count"
    for number, at_ms, kind, owner, reason, content, uid, *counts in _rows(connection, columns, "dead_letters", after):
        if {type(value) for value in (at_ms, *counts)} == {int} and {type(kind), type(owner), type(reason)} == {str}:
            uid_bytes = uid if isinstance(uid, bytes) else None
            yield number, at_ms, DeadLetter(kind, owner, reason, content or b"", uid_bytes, *counts)


def seen(connection: sqlite3.Connection) -> Iterator[tuple[str, bytes, int]]:
    """The uids that can be read, with their receiver and time: up to the first damage from both ends."""
    for order in ("ASC", "DESC"):
        query = f"SELECT receiver, uid, at FROM seen ORDER BY receiver {order}, uid {order}"  # noqa: S608 - ours
        try:
            for receiver, uid, at in connection.execute(query):
                if type(receiver) is str and type(uid) is bytes and type(at) is int:
                    yield receiver, uid, at
        except sqlite3.Error:
            continue
        return


def _connect(path: Path) -> sqlite3.Connection | None:
    """A connection that reads past damage; None where not even the tables' names can be read."""
    if not schema.size_of(path):
        return None  # SQLite would delete its log
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA writable_schema = ON")  # a file that was cut short can't be opened otherwise
        if schema.has_all_tables(connection):
            for table in ("exporters", "routes", "records", "seen", "dead_letters"):
                connection.execute(f"SELECT * FROM {table} LIMIT 0")  # noqa: S608 - ours
            return connection
    except (sqlite3.Error, UnicodeDecodeError):
        pass
    connection.close()
    return None


def _repair(path: Path, copy: Path, room: int) -> None:
    """Write a copy with a new first page, and with all of the log.

    With auto_vacuum SQLite keeps the beginnings of all tables at the front of the file, in the order in which they were
    made. So the first page of each file of a version is the same, but for the number of pages (the file format's
    section 1.3).
    """
    if schema.size_of(path) + schema.size_of(path.with_name(f"{path.name}-wal")) > room:
        raise OSError(errno.ENOSPC, "the disk has no room for a copy with a new first page", str(path))
    shutil.copyfile(path, copy)
    fold(path, copy)
    with schema.in_memory() as connection:
        size: int = connection.execute("PRAGMA page_size").fetchone()[0]
        page = bytearray(connection.serialize()[:size])
    pages = max(copy.stat().st_size // size, 1)
    page[18:20] = b"\x02\x02"  # in WAL mode
    page[28:32] = pages.to_bytes(4)
    page[92:96] = page[24:28]  # the number of pages counts only where these agree
    with copy.open("r+b") as file:
        file.write(page)
        file.truncate(pages * size)


def fold(database: Path, into: Path) -> None:
    """Write all that was committed to a database's log into a copy of it, damaged or not."""
    with into.open("r+b") as file, write_ahead_log.opened(database) as log:
        most = into.stat().st_size  # bytes that it can have: a damaged page number leads nowhere else
        transaction: list[write_ahead_log.Frame] = []
        for frame in log.frames():
            most += len(frame.content)
            transaction.append(frame)
            if frame.is_commit:
                for one in transaction:
                    place = (one.page - 1) * len(one.content)
                    if 0 <= place < most:
                        file.seek(place)
                        file.write(one.content)
                transaction.clear()


def _rows(connection: sqlite3.Connection, columns: str, table: str, after: int) -> Iterator[tuple[Any, ...]]:
    """The rows of a table by its key, the first column, over those that can't be read."""
    query = f"SELECT {columns} FROM {table} WHERE rowid >= ? ORDER BY rowid"  # noqa: S608 - ours
    following = after + 1
    failures = 0
    while failures < _MOST_FAILURES and following <= _LAST_KEY:
        try:
            for row in connection.execute(query, (following,)):
                if row[0] < following:
                    break  # damage can lead back to the beginning
                following, failures = row[0] + 1, 0
                yield row
            else:
                return
        except sqlite3.Error as error:
            # What the disk can't read of a file that nobody writes to any more is damage.
            if schema.will_pass(error) and not _is_unreadable(error):
                raise
        failures += 1
        following += 1 + failures // _FAILURES_PER_STEP


def _is_unreadable(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
