"""Copies a queue's database while its service runs, or while none does."""

import contextlib
import os
import sqlite3
from pathlib import Path

from statsig_otel.exporters.queue import schema
from statsig_otel.exporters.queue.directory import sync_directory


def back_up(connection: sqlite3.Connection, to: Path) -> int:
    """Copy the database, as of one moment, to a new file that only its owner can read; its size in bytes.

    The copy is on disk when this returns.

    Args:
        connection: One for reading, such as `schema.connect_reading` gives.
        to: The file.

    Raises:
        FileExistsError: There is a file of this name.
        OSError: The file can't be written.
        sqlite3.Error: The database can't be read, or the copy can't be written.
    """
    descriptor = os.open(to, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.close(descriptor)
    try:
        with contextlib.closing(sqlite3.connect(to, isolation_level=None)) as copy:
            connection.backup(copy)  # all pages in one step: the copy is of one moment
            copy.execute("PRAGMA journal_mode = DELETE")  # one file alone; the queue sets its own mode
            schema.check_version(copy, to)
        descriptor = os.open(to, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(to.parent)
    except BaseException:
        to.unlink(missing_ok=True)
        raise
    return to.stat().st_size
