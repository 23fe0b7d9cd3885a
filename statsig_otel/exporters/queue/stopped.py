"""The queue of a service that does not run, owned for as long as a command needs to change it."""

import sqlite3
import time
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from statsig_otel.exporters.queue import store
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.session import Session
from statsig_otel.exporters.queue.writer import Work, Writer

_T = TypeVar("_T")


class StoppedQueue:
    """Changes a queue without delivering from it. A context manager: it owns the directory inside the block.

    Args:
        directory: A directory that holds a queue.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = QueueDirectory(directory)
        self._writer = Writer(self._directory.database, prepare=store.look, tidy=_leave)
        self._session = Session(self._directory, self._writer)

    def __enter__(self) -> Self:
        """Own the directory and open the database.

        Raises:
            QueueError: Another process owns the directory, or the file is not for this version.
            sqlite3.Error: The file can't be read.
            OSError: The directory can't be written.
        """
        self._session.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the database, and leave the directory in order."""
        # Where the log is gone the service has to say so at its next start, so that stays visible.
        self._session.close(clean=not self._session.missing_file)

    @property
    def database(self) -> Path:
        """The database file."""
        return self._directory.database

    def submit(self, work: Work[_T]) -> Future[_T]:
        """Run a function of `store` or `letters` on the writing connection; see `DurableQueue.submit`."""
        return self._writer.submit(work)

    def now_ms(self) -> int:
        """The time now, in milliseconds since the epoch."""
        return time.time_ns() // 1_000_000


def _leave(_connection: sqlite3.Connection, _idle: bool) -> bool:  # noqa: FBT001 - the writer's signature
    """What is delivered is deleted by the service, in its own time."""
    return False
