"""Reads what can still be read of a damaged database. The file itself is never changed."""

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from statsig_otel.exporters.queue import checks, queries, schema, write_ahead_log
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.exporters.queue.queries import ExporterState
from statsig_otel.exporters.queue.records import Stored
from statsig_otel.exporters.queue.store import DeadLetter

_MOST_FAILURES: Final = 50_000
"""Failures in a row, about a second, after which the rest of a table is given up."""

_FAILURES_PER_STEP: Final = 1000
"""Failures after which a step over unreadable rows is one row longer, so that a million rows can be passed."""

_UNUSED: Final = slice(20, 21)
"""Where the first page says how many bytes at the end of each page are not used (section 1.3 of the file format). In
a sound file there are none."""

_HEADER: Final = 100
_MAGIC: Final = b"SQLite format 3\0"
_CHANGES: Final = slice(24, 28)
_PAGES: Final = slice(28, 32)
_COUNTED_AT: Final = slice(92, 96)
"""Where the first page says how many pages there are (the same section). It counts if the other two agree."""

_LAST_KEY: Final = 2**63 - 1

Row: TypeAlias = tuple[Any, ...]

Routes: TypeAlias = dict[int, tuple[str, tuple[int, ...]]]
"""Every route's receiver and exporters, by its id."""


class UnreadableError(QueueError):
    """Nothing of a file can be read."""


@contextlib.contextmanager
def opened(path: Path, *, spare_bytes: int) -> Iterator[sqlite3.Connection]:
    """A connection for reading a damaged file.

    If SQLite can't read its first page or all of its log, or would misread the end of each page, the connection is to a
    copy with a new first page and all of the log folded in. The copy takes at most `spare_bytes` bytes.

    Raises:
        UnreadableError: Nothing in the file can be read.
        OSError: The copy can't be written, or there is no room for it.
    """
    copy = path.with_name(f"{path.name}.repaired")
    _remove(copy)  # of a process that was killed
    try:
        has_all = not write_ahead_log.check(path).unread_commits and not _has_unused_bytes(path)
        connection = _connect(path) if has_all else None
        if connection is None:
            _repair(path, copy, spare_bytes)
            connection = _connect(copy)
        if connection is None:
            raise UnreadableError(f"nothing in {path.name} can be read")
        with contextlib.closing(connection):
            yield connection
    finally:
        _remove(copy)


def _remove(copy: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{copy}{suffix}").unlink(missing_ok=True)


def exporter_states(connection: sqlite3.Connection) -> dict[int, ExporterState] | None:
    """Every exporter's state, by its id; None if one of them can't be trusted."""
    try:
        checks.check_table(connection, "exporters")
        states, last = queries.exporter_states(connection), queries.last_seq(connection)
    except sqlite3.Error as error:
        if not _is_damage(error):
            raise
        return None
    trusted = all(type(state.name) is str and 0 <= state.cursor <= last for state in states)
    return {state.id: state for state in states} if trusted else None


def routes(connection: sqlite3.Connection) -> Routes | None:
    """Every route; None if one of them can't be read."""
    try:
        checks.check_table(connection, "routes")
        readable = queries.routes(connection)
    except sqlite3.Error as error:
        if not _is_damage(error):
            raise
        return None
    return readable if all(type(receiver) is str for receiver, _ in readable.values()) else None


def records(connection: sqlite3.Connection, after: int) -> Iterator[tuple[int | None, Stored]]:
    """The readable records behind a seq, in order, also those that changed; each with its route's id."""
    columns = "seq, route, CAST(uid AS BLOB), CAST(payload AS BLOB), checksum"
    for seq, route, *rest in _rows(connection, columns, "records", after, _is_record):
        yield route if type(route) is int else None, Stored.checked(seq, *rest)


def _is_record(row: Row) -> bool:
    seq, route, *rest = row
    return type(route) is int and Stored.checked(seq, *rest).intact


def dead_letters(connection: sqlite3.Connection, after: int) -> Iterator[tuple[int, int, DeadLetter]]:
    """The readable dead letters behind an id: each one's id, time in milliseconds, and content."""
    columns = "id, at, kind, owner, reason, CAST(content AS BLOB), uid, attempts, count"
    for number, at_ms, kind, owner, reason, content, uid, attempts, count in _rows(
        connection, columns, "dead_letters", after, _is_dead_letter
    ):
        if {type(kind), type(owner), type(reason)} == {str}:  # whose it is, and what: the numbers only tell more
            dead_letter = DeadLetter(
                kind,
                owner,
                reason,
                content or b"",
                uid if type(uid) is bytes else None,
                attempts if type(attempts) is int else 0,
                count if type(count) is int else 1,
            )
            yield number, at_ms if type(at_ms) is int else 0, dead_letter


def _is_dead_letter(row: Row) -> bool:
    _, at_ms, kind, owner, reason, _, _, *counts = row
    return {*map(type, (at_ms, *counts))} == {int} and {type(kind), type(owner), type(reason)} == {str}


def seen(connection: sqlite3.Connection) -> Iterator[tuple[str, bytes, int]]:
    """The readable uids, with their receiver and time: up to the first damage from both ends."""
    for order in ("ASC", "DESC"):
        query = f"SELECT receiver, uid, at FROM seen ORDER BY receiver {order}, uid {order}"  # noqa: S608 - ours
        try:
            for receiver, uid, at in connection.execute(query):
                if type(receiver) is str and type(uid) is bytes and type(at) is int:
                    yield receiver, uid, at
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise
            continue
        return


def _has_unused_bytes(path: Path) -> bool:
    """Whether the first page says that the end of each page is not used: SQLite believes it, and misses rows there."""
    return write_ahead_log.first_page(path)[_UNUSED] not in (b"", b"\0")


def _connect(path: Path) -> sqlite3.Connection | None:
    """A connection that reads past damage; None if not even the tables' names can be read."""
    if not schema.size_of(path):
        return None  # SQLite would delete its log
    # Without locks, since nobody writes to it any more, and with an index of the log that is made anew: those of this
    # process that still read the file have another one in common, which may be of another log.
    connection = schema.open_read_only(path, "&vfs=unix-none")
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        schema.distrust(connection)
        connection.execute("PRAGMA writable_schema = ON")  # otherwise a file that was cut short can't be opened
        if schema.has_all_tables(connection):
            for table in ("exporters", "routes", "records", "seen", "dead_letters"):
                connection.execute(f"SELECT * FROM {table} LIMIT 0")  # noqa: S608 - ours
            return connection
    except UnicodeDecodeError:
        pass
    except sqlite3.Error as error:
        if not _is_damage(error):
            connection.close()
            raise
    connection.close()
    return None


def _repair(path: Path, copy: Path, spare_bytes: int) -> None:
    """Write a copy with a new first page, and with all of the log.

    With auto_vacuum SQLite keeps the beginnings of all tables at the front of the file, in the order of their creation.
    So all files of a version have the same first page, except for the number of pages (section 1.3 of the file format).
    """
    if schema.size_of(path) + schema.size_of(path.with_name(f"{path.name}-wal")) > spare_bytes:
        raise OSError(errno.ENOSPC, "the disk has no room for a copy with a new first page", str(path))
    # For its owner only, whatever the umask: it contains what the file itself does.
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    shutil.copyfile(path, copy)
    fold(path, copy)
    with schema.in_memory() as connection:
        size = schema.pragma(connection, "page_size")
        page = bytearray(connection.serialize()[:size])
    pages = max(copy.stat().st_size // size, 1)
    page[18:20] = b"\x02\x02"  # in WAL mode
    page[_PAGES] = pages.to_bytes(4)
    page[_COUNTED_AT] = page[_CHANGES]
    with copy.open("r+b") as file:
        file.write(page)
        file.truncate(pages * size)


def _stated_pages(first: bytes) -> int:
    """The number of pages by the first one; 0 if that does not say it."""
    is_stated = first.startswith(_MAGIC) and first[_CHANGES] == first[_COUNTED_AT]
    return int.from_bytes(first[_PAGES]) if is_stated else 0


def fold(database: Path, into: Path) -> None:
    """Write all commits in a database's log into a copy of the database, damaged or not.

    The copy may become as long as the database was, also if it was cut. A damaged page number can't make it longer.
    """
    with into.open("r+b") as file, write_ahead_log.opened(database) as log:
        pages = _stated_pages(file.read(_HEADER))
        most = into.stat().st_size + schema.size_of(database.with_name(f"{database.name}-wal"))
        transaction: list[write_ahead_log.Frame] = []
        for frame in log.frames():
            if frame.is_read:
                pages = max(pages, frame.pages)
            transaction.append(frame)
            if frame.is_commit:
                for one in transaction:
                    offset = (one.page - 1) * len(one.content)
                    if 0 <= offset < max(most, pages * len(one.content)):
                        file.seek(offset)
                        file.write(one.content)
                transaction.clear()


def _rows(
    connection: sqlite3.Connection, columns: str, table: str, after: int, is_sound: Callable[[Row], bool]
) -> Iterator[Row]:
    """The readable rows of a table in the order of its key, which is the first column.

    They are read one after another, as they are stored. Damage can lead that reading elsewhere: to rows of another
    table, over others, or back. So each key that it leaves out, and each whose row is not sound, is searched for.
    """
    query = f"SELECT {columns} FROM {table} WHERE rowid >= ? ORDER BY rowid"  # noqa: S608 - ours
    one = f"SELECT {columns} FROM {table} WHERE rowid = ?"  # noqa: S608 - ours
    search = partial(queries.search, connection, one, is_damage=_is_damage)
    following = after + 1
    while following <= _LAST_KEY:
        try:
            for row in connection.execute(query, (following,)):
                if row[0] < following:
                    break
                if row[0] == following and is_sound(row):
                    yield row
                else:
                    yield from _up_to(row, _found(search, following, row[0] + 1), is_sound)
                following = row[0] + 1
            else:
                if following > _last_key(connection, table):
                    return
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise
        next_one = next(_found(search, following, _LAST_KEY), None)
        if next_one is None:
            return
        following = next_one[0] + 1
        yield next_one


def _up_to(row: Row, found: Iterator[Row], is_sound: Callable[[Row], bool]) -> Iterator[Row]:
    """What a search has found up to a row; and the row, unless the search has found that, or better, by its key."""
    one = None
    for one in found:
        yield one
    if one != row and (one is None or one[0] < row[0] or is_sound(row)):
        yield row


def _last_key(connection: sqlite3.Connection, table: str) -> int:
    """The last key of a table, since the rows can end earlier without an error; the last of all if it can't be read."""
    query = f"SELECT max(rowid) FROM {table} WHERE rowid >= ?"  # noqa: S608 - ours
    row = queries.search(connection, query, 0, is_damage=_is_damage)
    return _LAST_KEY if row is None else row[0] or 0


def _found(search: Callable[[int], Row | None], begin: int, end: int) -> Iterator[Row]:
    """The rows that a search finds, from one key up to another. After many failures in a row the rest is given up."""
    failures = 0
    while begin < end and failures < _MOST_FAILURES:
        row = search(begin)
        begin += 1
        if row is None:
            failures += 1
            begin += failures // _FAILURES_PER_STEP
        else:
            failures = 0
            yield row


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether an error will not pass. If the disk can't read a file that nobody writes to any more, that is damage."""
    return not schema.will_pass(error) or schema.error_code(error) == sqlite3.SQLITE_IOERR
