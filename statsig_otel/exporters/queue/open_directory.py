"""Opens a queue's directory: owns it, checks in which state it was left, and starts the writer of its database."""

import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

from statsig_otel.exporters.queue import checks, schema, write_ahead_log
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.writer import Work, Writer

_T = TypeVar("_T")

_logger: Final = logging.getLogger(__name__)


class OpenDirectory:
    """Owns a directory and runs the writer of its database, from `open` to `close`.

    Args:
        directory: The directory.
        writer: The writer.

    Attributes:
        missing_file: Which of the last owner's files was gone; see `QueueDirectory.missing_file`.
    """

    def __init__(self, directory: QueueDirectory, writer: Writer) -> None:
        self.missing_file: Literal["queue.db", "queue.db-wal"] | None = None
        self._directory = directory
        self._writer = writer

    def open(self, *, set_aside: Callable[[Exception], None] | None = None) -> None:
        """Own the directory, open the database, and write down that it is in use.

        Args:
            set_aside: Puts a damaged database away, so that a new one is begun.

        Raises:
            QueueError: Another process owns the directory, or the file is not for this version.
            DamagedError: The file is damaged or gone, and no new one may be begun.
            sqlite3.Error: The file can't be opened now.
            OSError: The directory can't be made or written.
        """
        self._directory.acquire()
        try:
            self._check_files(may_begin=set_aside is not None)
            try:
                self._check_log(may_begin=set_aside is not None)
                self._writer.start()
            except schema.DamagedError as error:
                if set_aside is None:
                    raise
                set_aside(error)
                self._writer.start()
            # Not before there is a log again, and before anything can be acknowledged.
            self._directory.mark(clean=False)
            self._directory.make_private()
        except BaseException:
            try:
                self._writer.stop()
            finally:
                self._directory.release()
            raise

    def _check_files(self, *, may_begin: bool) -> None:
        self.missing_file = self._directory.missing_file()
        if self.missing_file == "queue.db" and not may_begin:
            raise schema.DamagedError("queue.db is gone or empty")

    def _check_log(self, *, may_begin: bool) -> None:
        """See that SQLite reads all of the log: what it does not read it deletes.

        Raises:
            DamagedError: It does not, and more than that is left.
        """
        log = write_ahead_log.check(self._directory.database)
        if log.is_damaged:
            raise schema.DamagedError(f"its log is damaged, and SQLite would not read {log.unread_commits} commits")
        if log.missing_frames:
            if not may_begin:
                raise schema.DamagedError("its log was cut short")
            _logger.error(
                "%s: the queue's log (queue.db-wal) was cut short: what was acknowledged last is lost",
                self._directory.path,
            )
        elif log.unread_commits:
            _logger.warning(
                "%s: the last commit of the queue's log is incomplete. That is how a power failure leaves it, and then "
                "nothing of it was acknowledged; without one the disk is damaged, and that commit is lost",
                self._directory.path,
            )

    def close(self, *, clean: bool = True) -> None:
        """Finish what is being written, and give the directory up.

        Args:
            clean: Whether to write down that it was left in order.
        """
        try:
            self._writer.stop()
            self._mark(clean=clean)
        finally:
            self._directory.release()

    def _mark(self, *, clean: bool) -> None:
        try:
            self._directory.mark(clean=clean)
        except OSError as error:
            _logger.warning("%s: can't write down that the queue was closed in order: %s", self._directory.path, error)


class StoppedQueue:
    """Changes a queue without delivering from it. A context manager: it owns the directory inside the block.

    Args:
        directory: A directory that holds a queue.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = QueueDirectory(directory)
        self._writer = Writer(self._directory.database, prepare=checks.check_database, tidy=_leave)
        self._open_directory = OpenDirectory(self._directory, self._writer)

    def __enter__(self) -> Self:
        """Own the directory and open the database.

        Raises:
            QueueError: Another process owns the directory, or the file is not for this version.
            sqlite3.Error: The file can't be read.
            OSError: The directory can't be written.
        """
        self._open_directory.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the database, and leave the directory in order."""
        # Where the log is gone the service has to say so at its next start, so that stays visible.
        self._open_directory.close(clean=not self._open_directory.missing_file)

    @property
    def database(self) -> Path:
        """The database file."""
        return self._directory.database

    def submit(self, work: Work[_T]) -> Future[_T]:
        """Run a function of `store` or `dead_letters` on the writing connection; see `DurableQueue.submit`."""
        return self._writer.submit(work)

    def now_ms(self) -> int:
        """The time now, in milliseconds since the epoch."""
        return time.time_ns() // 1_000_000


def _leave(_connection: sqlite3.Connection, _idle: bool) -> bool:  # noqa: FBT001 - the writer's signature
    """What is delivered is deleted by the service, in its own time."""
    return False
