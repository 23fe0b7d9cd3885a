"""Owns a queue's directory and its database: opens it, runs its writer, and sets a damaged or deleted one aside."""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final, Literal, Self, TypeVar

from statsig_otel import _telemetry
from statsig_otel.exporters.paths import exists
from statsig_otel.exporters.queue import checks, open_files, schema, store, write_ahead_log
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.errors import DamagedError, DirectoryInUseError, QueueError
from statsig_otel.exporters.queue.jobs import Work
from statsig_otel.exporters.queue.open_files import OpenFiles
from statsig_otel.exporters.queue.writer import Writer
from statsig_otel.exporters.wording import counted

_T = TypeVar("_T")

_logger: Final = logging.getLogger(__name__)

_RESERVE: Final = 8 << 20
"""Bytes that are set apart for a full disk: what the log grows to before it is folded in, and as much for its index and
for what deletes."""

_INDEX: Final = 32 << 10
"""Bytes of the log's index: a database can't be opened without it."""


class Database:
    """The database in a directory that this process owns, from `open` to `close`, with the thread that writes to it.

    Args:
        path: The directory.
        prepare: Run on every connection that the writer opens, after the check of its content.
        tidy: Deletes what is delivered; see `Writer`.
        replaces: Whether a damaged, deleted or missing database is set aside, and a new one begun.
        min_free: Bytes of the disk that should stay free. A part of them is the reserve.
        clock: Seconds since the epoch.
        failed: See `Writer`.

    Attributes:
        directory: The directory.
        writer: Runs functions on the writing connection.
        generation: How often connections for reading became useless since the start: the database was set aside, or its
            log was deleted.
        recovery_due: Set after a database was set aside: there may be something to recover.
        not_recovered: The files that this process has set aside, and that recovery has not finished.
        missing_file: One of the last owner's files that is gone; see `QueueDirectory.missing_file`.
    """

    def __init__(
        self,
        path: Path,
        *,
        prepare: Work[None] = lambda _: None,
        tidy: Callable[[sqlite3.Connection, bool], bool] = lambda _, __: False,
        replaces: bool = False,
        min_free: int = 0,
        clock: Callable[[], float] = time.time,
        failed: Callable[[QueueError], None] = lambda _: None,
    ) -> None:
        self.directory: QueueDirectory = QueueDirectory(path)
        self.generation: int = 0
        self.recovery_due: threading.Event = threading.Event()
        self.not_recovered: set[Path] = set()
        self.missing_file: Literal["queue.db", "queue.db-wal"] | None = None
        self._prepare = prepare
        self._is_marked = False  # as being in use
        self._not_kept: set[Path] = set()  # files that are gone, and can't be made again
        self._incomplete: list[Path] = []  # files that were set aside, and may lack something
        self._tidy = tidy
        self._replaces = replaces
        self._min_free = min_free
        self._clock = clock
        self._files = (
            OpenFiles(
                self.path,
                keep_directory=self._keep_directory,
                copy_aside=self._copy_aside,
                set_aside=self._set_aside_incomplete,
                rescue=self._rescue,
                log_kept=self._count_generation,
            )
            if replaces
            else None
        )
        self.writer: Writer = Writer(
            self.directory.database,
            prepare=self._check_and_prepare,
            tidy=self._tidy_up,
            free_space=self.directory.reserve.give,
            failed=failed,
            set_aside=self._set_aside if replaces else None,
            files=self._files,
        )

    @property
    def path(self) -> Path:
        """The database file."""
        return self.directory.database

    def open(self) -> None:
        """Own the directory, open the database, and note that it is in use.

        If `replaces` is true and the disk is too full even for that, the database is opened once there is space. Until
        then nothing can be stored.

        Raises:
            QueueError: Another process owns the directory, or the file is not for this version.
            DamagedError: The file is damaged or gone, and no new one may be begun.
            sqlite3.Error: The file can't be opened now.
            OSError: The directory can't be created or written.
        """
        self.directory.acquire()
        try:
            self.directory.check_files()  # SQLite would not say which file it can't open, or why
            self.directory.reserve.give(below=_RESERVE)
            if self._replaces:
                self._use_second_names()
            half_set_aside = self.directory.half_set_aside()
            self.missing_file = None if half_set_aside else self.directory.missing_file()
            try:
                self._check_files(half_set_aside)
                self.writer.start(later=self._is_disk_full)
            except DamagedError as error:
                if not self._replaces:
                    raise
                self._set_aside(error, half_set_aside)
                self.writer.start(later=self._is_disk_full)
            self._keep_reserve()
        except BaseException:
            self.close(clean=not self.missing_file)
            raise

    def _use_second_names(self) -> None:
        """The last owner may have ended while the files had second names, and somebody may have deleted the first."""
        second = open_files.second_name(self.path)
        if not exists(second):
            return
        if exists(self.path):
            if second.samefile(self.path):
                open_files.put_back(self.path)
            self.directory.discard(second)
        else:
            self._rescue(second)

    def _check_files(self, half_set_aside: Path | None) -> None:
        """Check that the database is there, and that SQLite would read all of its log: it deletes the rest.

        Raises:
            DamagedError: A new database has to be begun.
        """
        if self.missing_file == "queue.db" and not self._replaces:
            raise DamagedError("queue.db is gone or empty")
        if half_set_aside is not None:
            raise DamagedError("it was being set aside when the process ended")
        log = write_ahead_log.check(self.path)
        if log.is_damaged:
            raise DamagedError(f"its log is damaged, and SQLite would not read {counted(log.unread_commits, 'commit')}")
        if log.missing_frames:
            if not self._replaces:
                raise DamagedError("its log was cut short")
            _logger.error(
                "%s: the queue's log (queue.db-wal) was cut short: what was acknowledged last is lost",
                self.directory.path,
            )
        elif log.unread_commits:
            _logger.warning(
                "%s: the last commit of the queue's log is incomplete. That is how a power failure leaves it, and then "
                "nothing of it was acknowledged; without one the disk is damaged, and that commit is lost",
                self.directory.path,
            )

    def close(self, *, clean: bool = True, patience: float = 0.0) -> None:
        """Finish what is being written, and give the directory up.

        Args:
            clean: Whether the directory is in order.
            patience: See `Writer.stop`.
        """
        is_marked, self._is_marked = self._is_marked, False
        try:
            self.writer.stop(patience)
            if is_marked and self.directory.is_owned:  # else another process may have it in use
                self.directory.mark(clean=clean and not self.writer.has_lost)
        except OSError as error:
            _logger.warning("%s: can't note that the queue was closed in order: %s", self.directory.path, error)
        finally:
            self.directory.release()

    def connect_reading(self) -> sqlite3.Connection:
        """Open the database for a sender, which keeps it open.

        Not one that somebody has put in its place just now. All connections of a process to a file share the index of
        its log, and so the writer's could not be opened with a new log while the sender has this one open.

        Raises:
            DamagedError: See `schema.connect_reading`.
            sqlite3.Error: It can't be read now.
        """
        connection = schema.connect_reading(self.path)
        if self._files is not None and not self._files.is_written_to():
            connection.close()
            raise sqlite3.OperationalError("somebody replaced it just now")
        return connection

    def now_ms(self) -> int:
        """The time now, in milliseconds since the epoch."""
        return int(self._clock() * 1000)

    def _is_disk_full(self, error: Exception) -> bool:
        """Whether an error of opening the database will pass once the disk has space."""
        # Without space for its index SQLite says that there is an I/O error.
        is_passing = isinstance(error, OSError) or (isinstance(error, sqlite3.Error) and schema.will_pass(error))
        return self._replaces and (
            schema.is_disk_full(error) or (is_passing and self.directory.reserve.free_bytes() < _INDEX)
        )

    def _keep_reserve(self) -> None:
        if self._min_free:
            self.directory.reserve.keep(min(_RESERVE, self._min_free // 2), min_free=self._min_free)

    def _tidy_up(self, connection: sqlite3.Connection, idle: bool) -> bool:  # noqa: FBT001 - the writer's signature
        more = self._tidy(connection, idle)
        if idle and not more:
            self._keep_reserve()
        return more

    def _check_and_prepare(self, connection: sqlite3.Connection) -> None:
        checks.check_database(connection)
        self._prepare(connection)
        for file in self._incomplete:
            if exists(file):
                store.note_incomplete(connection, file.name)
        if not self._is_marked:  # after there is a log again, and before anything can be acknowledged
            self.directory.mark(clean=False)
            self.directory.make_private()
            self._is_marked = True

    def _set_aside(self, error: Exception, to: Path | None = None) -> Path:
        """Keep a damaged database under another name. Senders that still read it can't tick anything off any more."""
        aside = self.directory.set_aside(to)
        self._begin_anew(aside)
        _logger.error(
            "The queue's database can't be read (%s). It is kept as %s, and a new one is begun: "
            "what can still be read of it will be carried over",
            error,
            aside,
        )
        return aside

    def _set_aside_incomplete(self, error: Exception) -> Path:
        """The same for one whose own counts do not tell how much of it is missing."""
        aside = self._set_aside(error)
        self._incomplete.append(aside)
        return aside

    def _keep_directory(self) -> bool:
        """Make the lock and `state.json` again if somebody deleted or replaced them.

        Returns:
            Whether another process has used the database: the lock was gone, and `state.json` is another process's. If
            that is gone too, somebody has deleted both.

        Raises:
            DirectoryInUseError: Another process owns the directory now.
        """
        if self.directory.is_untouched:
            return False
        lock = self.directory.lock
        try:
            is_retaken = self._keep(lock, self.directory.reclaim, "nothing keeps another process from using the queue")
        except DirectoryInUseError as error:
            raise DirectoryInUseError(
                f"somebody deleted or replaced {lock} while it was in use, and {error}", is_own=error.is_own
            ) from error
        was_used = is_retaken and self.directory.is_mark_of_another
        if was_used:
            with contextlib.suppress(OSError):  # it is tried again, and logged, below
                self.directory.mark(clean=False)
        meanwhile = "a start after a crash does not notice a log that is gone"
        self._keep(self.directory.state, self.directory.keep_mark, meanwhile)
        return was_used

    def _keep(self, file: Path, again: Callable[[], bool], meanwhile: str) -> bool:
        """Make a file again if it is gone; whether it was."""
        try:
            is_made = again()
        except OSError as error:
            if file not in self._not_kept:
                self._not_kept.add(file)
                _logger.error(
                    "Somebody deleted or replaced %s while it was in use, and it can't be made again now (%s): until "
                    "then %s",
                    file,
                    error,
                    meanwhile,
                )
            return False
        self._not_kept.discard(file)
        if is_made:
            _logger.error("Somebody deleted or replaced %s while it was in use. It is made again", file)
        return is_made

    def _copy_aside(self, connection: sqlite3.Connection) -> None:
        """Copy a database that somebody deleted, and that is still open, to a file that counts as set aside."""
        if self.directory.reclaim():
            self.directory.mark(clean=False)
        aside = self.directory.path_aside()
        try:
            with contextlib.closing(schema.create(aside)) as copy:
                connection.backup(copy)
        except BaseException:
            self.directory.discard(aside)  # it is incomplete, and its space may be what is missing
            raise
        self._begin_anew(aside)
        _logger.warning("The content of %s is kept as %s, and will be carried over", self.path, aside)

    def _rescue(self, second: Path) -> None:
        """Set a database aside that somebody deleted while it was closed for a moment, by its second name."""
        aside = self.directory.rename(second, self.directory.path_aside())
        self._begin_anew(aside)
        _logger.error(
            "Somebody deleted %s while it was closed for a moment. Its content is kept as %s, and will be carried over",
            self.path,
            aside,
        )

    def _count_generation(self) -> None:
        self.generation += 1

    def _begin_anew(self, aside: Path) -> None:
        self._count_generation()
        self.not_recovered.add(aside)
        _telemetry.queue_set_aside.add(1)
        self.recovery_due.set()


class StoppedQueue:
    """Changes the queue in a directory without delivering from it. Inside the `with` block it owns the directory.

    The service deletes delivered records.
    """

    def __init__(self, directory: Path) -> None:
        self._database = Database(directory)

    def __enter__(self) -> Self:
        """Own the directory and open the database.

        Raises:
            QueueError: Another process owns the directory, or the file is not for this version.
            sqlite3.Error: The file can't be read.
            OSError: The directory can't be written.
        """
        self._database.open()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the database, and leave the directory in order."""
        # If the log is gone the service has to say so at its next start, so that stays visible.
        self._database.close(clean=not self._database.missing_file)

    @property
    def database(self) -> Path:
        """The database file."""
        return self._database.path

    def submit(self, work: Work[_T]) -> Future[_T]:
        """Run a function on the writing connection; see `DurableQueue.submit`."""
        return self._database.writer.submit(work)

    def now_ms(self) -> int:
        """The time now, in milliseconds since the epoch."""
        return self._database.now_ms()
