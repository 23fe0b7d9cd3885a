"""Opens a queue's directory: owns it, checks how it was left, and starts the writer of its database."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final, Literal, Self, TypeVar

from statsig_otel.exporters.queue import checks, schema, write_ahead_log
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.writer import Work, Writer

_T = TypeVar("_T")

_logger: Final = logging.getLogger(__name__)


class OpenDirectory:
    """Owns a directory and runs the writer of its database, from `open` to `close`.

    `missing_file` is one of the last owner's files that is gone; see `QueueDirectory.missing_file`.
    """

    def __init__(self, directory: QueueDirectory, writer: Writer) -> None:
        self.missing_file: Literal["queue.db", "queue.db-wal"] | None = None
        self._directory = directory
        self._writer = writer

    def open(self, *, set_aside: Callable[[Exception], None] | None = None) -> None:
        """Own the directory, open the database, and note that it is in use.

        Args:
            set_aside: Sets a damaged database aside, so that a new one is begun. Without it none is begun.

        Raises:
            QueueError: Another process owns the directory, or the file is not for this version.
            DamagedError: The file is damaged or gone, and no new one may be begun.
            sqlite3.Error: The file can't be opened now.
            OSError: The directory can't be created or written.
        """
        self._directory.acquire()
        try:
            self.missing_file = self._directory.missing_file()
            try:
                self._check_files(may_begin=set_aside is not None)
                self._writer.start()
            except schema.DamagedError as error:
                if set_aside is None:
                    raise
                set_aside(error)
                self._writer.start()
            # After there is a log again, and before anything can be acknowledged.
            self._directory.mark(clean=False)
            self._directory.make_private()
        except BaseException:
            try:
                self._writer.stop()
            finally:
                self._directory.release()
            raise

    def _check_files(self, *, may_begin: bool) -> None:
        """Check that the database is there, and that SQLite would read all of its log: it deletes the rest.

        Raises:
            DamagedError: A new database has to be begun, which `may_begin` may forbid.
        """
        if self.missing_file == "queue.db" and not may_begin:
            raise schema.DamagedError("queue.db is gone or empty")
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
        """Finish what is being written, and give the directory up; `clean` says whether it is in order."""
        try:
            self._writer.stop()
            self._directory.mark(clean=clean)
        except OSError as error:
            _logger.warning("%s: can't note that the queue was closed in order: %s", self._directory.path, error)
        finally:
            self._directory.release()


class StoppedQueue:
    """Changes the queue in a directory without delivering from it. Inside the `with` block it owns the directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = QueueDirectory(directory)
        # What is delivered is deleted by the service.
        self._writer = Writer(self._directory.database, prepare=checks.check_database, tidy=lambda _, __: False)
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

    def __exit__(self, *_: object) -> None:
        """Close the database, and leave the directory in order."""
        # If the log is gone the service has to say so at its next start, so that stays visible.
        self._open_directory.close(clean=not self._open_directory.missing_file)

    @property
    def database(self) -> Path:
        """The database file."""
        return self._directory.database

    def submit(self, work: Work[_T]) -> Future[_T]:
        """Run a function on the writing connection; see `DurableQueue.submit`."""
        return self._writer.submit(work)

    def now_ms(self) -> int:
        """The time now, in milliseconds since the epoch."""
        return time.time_ns() // 1_000_000
