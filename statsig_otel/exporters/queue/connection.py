"""A connection to SQLite whose statements raise only the standard library's errors of a database."""

import sqlite3
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Final

from statsig_otel.exporters.queue.errors import DamagedError

_COPIES: Final = 3
"""The copies of a row that reading it may need at a time: SQLite's, the one that Python makes of it, and one more."""

_MOST: Final = 1 << 30
"""Bytes that are asked for at most. SQLite itself allows no longer value (SQLITE_MAX_LENGTH)."""


class Connection(sqlite3.Connection):
    """Raises a `sqlite3.Error` where the standard library raises a `MemoryError`.

    SQLite finds that it has too little memory also if a damaged page says that a row has billions of bytes. To those
    who read the file a `MemoryError` would be a mistake of the program, and not damage that they know how to pass.
    This is so for `execute` and `executemany`, and for `fetchone`, `fetchall` and the iteration of their results.
    """

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run one statement."""
        cursor = self.cursor(_Cursor)
        with _Failing(cursor):
            return cursor.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """Run one statement with each of several parameters."""
        cursor = self.cursor(_Cursor)
        with _Failing(cursor):
            return cursor.executemany(sql, parameters)


class _Cursor(sqlite3.Cursor):
    def fetchone(self) -> Any:
        with _Failing(self):
            return super().fetchone()

    def fetchall(self) -> list[Any]:
        return [*self]  # if memory is short because of the rows before, they are still there when that is judged

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # faster than a `__next__` of its own
        following = super().__next__
        with _Failing(self):
            while True:
                try:
                    row = following()
                except StopIteration:
                    return
                yield row


class _Failing:
    """Closes a cursor if the block raises an error, and changes a `MemoryError`.

    The error's traceback refers to the cursor. An open one would keep its statement, and thus the file and its locks,
    after the connection is closed.
    """

    __slots__ = ("_cursor",)

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception):  # None, or an iteration that is given up, perhaps by another thread
            return
        # Before the row's memory is free again: it may be what is missing.
        changed = _error_of_sqlite(self._cursor.connection) if isinstance(error, MemoryError) else None
        self._cursor.close()
        if changed is not None:
            raise changed from error


def _error_of_sqlite(connection: sqlite3.Connection) -> sqlite3.DatabaseError:
    """Damage, if there is memory for any row; otherwise an error that passes, as SQLite's own would be.

    No row is larger than its file. The memory is asked for and not written to, so that this costs nothing.
    """
    try:
        plain = sqlite3.Cursor(connection)
        (pages,), (size,) = (plain.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        bytes(min(_COPIES * pages * size, _MOST))
    except MemoryError:
        error = sqlite3.OperationalError("out of memory")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_NOMEM, "SQLITE_NOMEM"
        return error
    except sqlite3.DatabaseError as error:
        return error
    return DamagedError("a page says that a row is larger than the memory")
