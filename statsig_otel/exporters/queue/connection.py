"""A connection to SQLite all of whose errors are the standard library's errors of a database."""

import sqlite3
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Final

from statsig_otel.exporters.queue.errors import DamagedError

_MORE_THAN_A_ROW: Final = 128 << 20
"""Bytes. No row is as large, unless somebody has made the limit of a body several times as large as the default."""


class Connection(sqlite3.Connection):
    """Raises a `sqlite3.Error` where the standard library raises a `MemoryError`.

    SQLite finds that it has too little memory also if a damaged page says that a row has billions of bytes. To those
    who read the file a `MemoryError` would be a mistake of the program, and not damage that they know how to pass.
    """

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run one statement. What the result's iteration and its `fetchone` and `fetchall` raise is changed, too."""
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
        with _Failing(self):
            return super().fetchall()

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
        if error is None:
            return
        self._cursor.close()
        if isinstance(error, MemoryError):
            raise _error_of_sqlite() from error


def _error_of_sqlite() -> sqlite3.DatabaseError:
    """Damage, if there is memory for any row; otherwise an error that passes, as SQLite's own would be."""
    try:
        bytearray(_MORE_THAN_A_ROW)  # the system gives it without writing to it, and it is given back
    except MemoryError:
        error = sqlite3.OperationalError("out of memory")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_NOMEM, "SQLITE_NOMEM"
        return error
    return DamagedError("a page says that a row is larger than the memory")
