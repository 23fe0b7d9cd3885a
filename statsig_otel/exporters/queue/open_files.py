"""Keeps what is committed if somebody deletes, replaces or shortens the database's files while they are in use.

That is noticed by stat alone: to open a file that SQLite has open, and to close it again, would drop this process's
locks on it (POSIX locks). Only the log has no locks. So one that somebody has cut, and that this process has made as
long again by its next commit, is noticed by the zeros in between. A file that is overwritten in place, with the same
size, is not noticed here.
"""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from statsig_otel.exporters.paths import exists
from statsig_otel.exporters.queue import schema, write_ahead_log
from statsig_otel.exporters.queue.errors import DamagedError

_logger: Final = logging.getLogger(__name__)

_NO_FILE: Final = os.stat_result([0] * 10)


@dataclass(frozen=True, slots=True)
class _Changes:
    """The files that somebody else has changed, by their suffixes: none for the database, `-wal`, `-shm`."""

    gone: frozenset[str] = frozenset()  # deleted, or another file is in its place
    shorter: frozenset[str] = frozenset()


_NO_CHANGES: Final = _Changes()


def second_name(database: Path, suffix: str = "") -> Path:
    """The name that a database, or its log, has beside its own until it is open again."""
    return database.with_name(f"{database.name}.held{suffix}")


def put_back(database: Path) -> None:
    """Give the log its name again, if it is gone since nothing has it open.

    SQLite itself removes a log that it has brought into the database. To bring that in once more changes nothing.
    """
    log, second = Path(f"{database}-wal"), second_name(database, "-wal")
    if exists(second) and not os.path.lexists(log):
        second.rename(log)


class BusyError(sqlite3.OperationalError):
    """A reader is in the way of what has to be done."""


class OpenFiles:
    """The database, its log and the log's index, as they were after this process last wrote to them.

    Args:
        database: The database file.
        keep_directory: Run before and after each write. Whether the lock was gone, and another process has written.
            Raises an error if that process still runs.
        copy_aside: Run with the connection if the database is gone, whose content ends with the connection.
        set_aside: Run with an error if the database or its log lacks something that was committed. Returns the path
            that the database has now.
        rescue: Run with the only name that is left of a database that somebody has deleted while it was closed.
        log_kept: Run after the content of a log that is gone was brought into the database. Connections for reading
            from before are of no use.
    """

    def __init__(
        self,
        database: Path,
        *,
        keep_directory: Callable[[], bool],
        copy_aside: Callable[[sqlite3.Connection], None],
        set_aside: Callable[[Exception], Path],
        rescue: Callable[[Path], None],
        log_kept: Callable[[], None],
    ) -> None:
        self._database = database
        self._paths = {suffix: f"{database}{suffix}" for suffix in schema.SUFFIXES}
        self._known: dict[str, os.stat_result] = {}
        self._cut: set[str] = set()  # the suffixes of files that were shortened, and have grown since
        self._is_sound = False  # the log: a power failure may have left zeros at its end
        self._has_tail = False  # the log: it has begun again, with earlier frames behind those of this time
        self._log_header = b""  # of a log over its limit
        self._index_is_gone = False
        self._said_gone: set[str] = set()  # the suffixes of files whose content is not yet kept elsewhere
        self._keep_directory = keep_directory
        self._copy_aside = copy_aside
        self._set_aside = set_aside
        self._rescue = rescue
        self._second = {suffix: second_name(database, suffix) for suffix in ("", "-wal")}
        self._log_kept = log_kept

    def hold(self) -> None:
        """Give the database and its log second names until they are open again. The connection is about to be closed.

        Somebody who deletes all files one after another may come to these just then, when nothing has them open.
        """
        for suffix, second in self._second.items():
            with contextlib.suppress(OSError):  # not every file system has such names
                second.unlink(missing_ok=True)
                if self._is_open(suffix, path := Path(self._paths[suffix])):
                    second.hardlink_to(path)

    def opening(self) -> None:
        """A connection is about to be opened: use the second names if the others are gone since it was closed."""
        known = self._known.get("")
        if known is None or known is _NO_FILE:
            return
        if _is_at(known, self._database):
            put_back(self._database)
            return
        with contextlib.suppress(OSError), os.scandir(self._database.parent) as files:
            names = {file.name for file in files if os.path.samestat(known, file.stat(follow_symlinks=False))}
            if names == {self._second[""].name}:
                if not exists(self._second["-wal"]):
                    self._known.pop("-wal", None)  # it is not held, and has to be carried over by itself
                self._rescue(self._second[""])
                self._remove_leftovers()
            elif names:  # it was set aside
                return
            else:
                _logger.error(
                    "Somebody deleted %s while it was closed for a moment: what waited in it is lost", self._database
                )
            self._known.pop("")

    def opened(self, connection: sqlite3.Connection) -> None:
        """The connection was just opened, and has written nothing yet."""
        index = self._known.get("-shm")
        self._known.clear()
        self._cut.clear()
        self._is_sound = self._has_tail = False
        schema.pragma(connection, "page_count")  # the first access to a database that was in another mode makes the log
        self._compare(connection, after_writing=True)
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            self._check_open()
            self._is_sound = self._known["-wal"] is not _NO_FILE and not write_ahead_log.has_gap(self._database, 0)
        if "-shm" in self._known:
            self._index_is_gone = False
        elif index is not None:  # gone, and shared with other connections of this process that are still open
            self._known["-shm"] = index
        for second in self._second.values():
            with contextlib.suppress(OSError):
                second.unlink(missing_ok=True)

    def _check_open(self) -> None:
        """Find out whether the database and its log were deleted or replaced since SQLite opened them just now."""
        is_open = _identities()
        for suffix in ("", "-wal"):
            known = self._known.get(suffix)
            if known is None or (is_open and (known.st_dev, known.st_ino) not in is_open):
                self._known[suffix] = _NO_FILE

    def written(self, connection: sqlite3.Connection) -> None:
        """The connection has written. What is wrong with the files is found by the next `keep`."""
        self._compare(connection, after_writing=True)

    def folded(self, connection: sqlite3.Connection) -> None:
        """The connection has brought all of the log into the database, and emptied it."""
        with contextlib.suppress(OSError, KeyError):
            now = Path(self._paths["-wal"]).stat()
            if not now.st_size and os.path.samestat(now, self._known["-wal"]):
                self._known["-wal"] = now
        self._compare(connection, after_writing=True)
        with contextlib.suppress(sqlite3.Error, KeyError):
            if self._known[""].st_size < _bytes_of_pages(connection):
                self._cut.add("")

    def is_written_to(self) -> bool:
        """Whether the database's name still leads to the file that the writer has open. For any thread."""
        return self._is_open("", self._database)

    def are_whole(self, connection: sqlite3.Connection) -> bool:
        """After writing: whether the database and its log are still the files of these names, and not shorter."""
        try:
            changes = self._compare(connection, after_writing=True)
        except OSError:  # nobody can tell
            return False
        return changes.gone | changes.shorter <= {"-shm"} and not self._cut

    def keep(self, connection: sqlite3.Connection | None, *, after_writing: bool) -> bool:
        """Keep what is committed; whether the connection was closed for it, and another has to be opened.

        Args:
            connection: The connection of the writer, if one is open.
            after_writing: This process has written since the last check, so the files may be shorter than they were.

        Raises:
            DamagedError: What was just written may be lost, and the file is set aside. Another one has to be begun.
            QueueError, sqlite3.Error, OSError: The content could not be kept. The connection stays open, since
                closing it would lose the content.
        """
        if connection is None:
            return self._keep_directory()
        changes = self._changes(connection, after_writing=after_writing)
        if "-shm" in changes.shorter:
            self._extend_index()
        if "" in changes.gone:
            self._say_gone("")
            self._copy(connection)
            close(connection)
            self._remove_leftovers()
            self._said_gone.clear()
            return True
        was_used = self._keep_directory()
        if was_used and changes.gone:
            self._leave_files(connection)
            return True
        shorter = changes.shorter - {"-shm"}
        has_to_reopen = False
        if "-wal" in changes.gone:
            self._leave_log(connection)
            has_to_reopen = True
        elif shorter or self._cut:
            has_to_reopen = not self._is_whole(connection, shorter)
            if has_to_reopen and after_writing:
                raise DamagedError("it became shorter while it was written to")
        if "-shm" in changes.gone:
            self._leave_index()
        if was_used and not has_to_reopen:
            self._close(connection)
        return has_to_reopen or was_used

    def _changes(self, connection: sqlite3.Connection, *, after_writing: bool) -> _Changes:
        """What a check finds; a second one if a file is gone, since others may have been deleted just before it."""
        changes = self._compare(connection, after_writing=after_writing)
        return self._compare(connection, after_writing=after_writing) if changes.gone else changes

    def _compare(self, connection: sqlite3.Connection, *, after_writing: bool) -> _Changes:
        gone, shorter = set(), set()
        for suffix, path in self._paths.items():
            known = self._known.get(suffix)
            try:
                now = os.stat(path)  # noqa: PTH116 - twice for every commit
            except (FileNotFoundError, NotADirectoryError):
                now = None
            if now == known and not (after_writing and suffix == "-wal"):
                continue  # nearly always
            if known is None:
                if now is not None and after_writing:
                    self._remember(suffix, now)
            elif now is None or not os.path.samestat(known, now):
                gone.add(suffix)
            elif now.st_size < known.st_size and not (after_writing and self._has_shortened(connection, suffix, now)):
                shorter.add(suffix)
            elif after_writing:
                if suffix == "-wal":
                    self._follow_log(known, now)
                self._remember(suffix, now)
        return _Changes(frozenset(gone), frozenset(shorter)) if gone or shorter else _NO_CHANGES

    def _remember(self, suffix: str, now: os.stat_result) -> None:
        self._known[suffix] = now
        if suffix == "-wal" and now.st_size > schema.LOG_LIMIT:
            self._log_header = write_ahead_log.header(self._database)

    def _follow_log(self, known: os.stat_result, now: os.stat_result) -> None:
        """Look for a gap in a log after a commit, which is as long as before or longer."""
        has_grown = now.st_size > known.st_size
        if self._is_sound and now.st_size:
            before = 0 if has_grown and self._has_tail else known.st_size
            self._cut |= {"-wal"} if write_ahead_log.has_gap(self._database, before) else set()
        self._is_sound |= has_grown
        self._has_tail = not has_grown and (self._has_tail or now.st_mtime_ns != known.st_mtime_ns)

    def _has_shortened(self, connection: sqlite3.Connection, suffix: str, now: os.stat_result) -> bool:
        """Whether the connection itself may have shortened a file by a commit."""
        if suffix == "-wal":  # to its limit, or to what a commit needs, when it begins again
            has_begun_again = write_ahead_log.header(self._database) != self._log_header
            return (
                now.st_size >= schema.LOG_LIMIT and has_begun_again and not write_ahead_log.has_gap(self._database, 0)
            )
        try:  # by a checkpoint, which leaves all pages of the database in the file
            return suffix == "" and now.st_size >= _bytes_of_pages(connection)
        except sqlite3.Error:
            return False

    def _say_gone(self, suffix: str) -> None:
        """Before an attempt to keep the content, which may take long or fail."""
        if suffix not in self._said_gone:
            self._said_gone.add(suffix)
            _logger.error(
                "Somebody deleted or replaced %s while it was in use. Its content is still open, and is lost if the "
                "service ends before it is kept",
                self._paths[suffix],
            )

    def _leave_index(self) -> None:
        """All connections of this process share the index that is gone.

        Another process that reads makes another index, which lacks what this process commits later. If this process
        restarts while that one still reads, it believes that index, and overwrites those commits. So the index is
        removed before the next commit.
        """
        with contextlib.suppress(OSError):
            Path(self._paths["-shm"]).unlink()
        if not self._index_is_gone:
            self._index_is_gone = True
            _logger.warning(
                "Somebody deleted or replaced %s while it was in use. Nothing is lost, but commands can't read the "
                "queue until the service is started again",
                self._paths["-shm"],
            )

    def _extend_index(self) -> None:
        """Make the index as long as it was: to read behind its end would end this process (SIGBUS).

        SQLite does not believe an index of zeros, and rebuilds it from the log.
        """
        with contextlib.suppress(OSError):
            os.truncate(self._paths["-shm"], self._known["-shm"].st_size)

    def _remove_leftovers(self) -> None:
        """Remove the log and the index of the database that is gone: they stay if only the database was moved.

        A new database would find another one's frames in its log. And it would cut the index under a sender that still
        reads by it, which ends the process (SIGBUS).
        """
        for suffix in ("-wal", "-shm"):
            path, known = Path(self._paths[suffix]), self._known.get(suffix)
            with contextlib.suppress(FileNotFoundError):
                if known is not None and os.path.samestat(path.stat(), known):
                    path.unlink()

    def _leave_files(self, connection: sqlite3.Connection) -> None:
        """Set aside a database that another process has used with a log, or an index, of its own.

        Neither process saw what the other one had committed. To bring the log of one into the database of both could
        lose what the other one has written to it. So what only this process can read is copied, too.
        """
        aside = self._set_aside(DamagedError("another process has used it with another log or index"))
        for suffix in ("", "-wal"):
            if not self._is_open(suffix, Path(f"{aside}{suffix}")):
                self._say_gone(suffix)
                self._copy(connection)
                break
        close(connection)
        self._said_gone.clear()

    def _leave_log(self, connection: sqlite3.Connection) -> None:
        """Bring a log that only this process can still read into the database."""
        self._say_gone("-wal")
        _fold_all(connection)
        Path(self._paths["-wal"]).unlink(missing_ok=True)  # if there is one, it is somebody else's
        self._close(connection)
        self._log_kept()
        self._said_gone.clear()
        _logger.warning("The content of %s is kept: it is in %s now", self._paths["-wal"], self._database.name)

    def _close(self, connection: sqlite3.Connection) -> None:
        """Close a connection, whose database may have been deleted since the last check, such as by `rm -r`."""
        self.hold()
        if not (self._is_open("", self._database) or self._is_open("", self._second[""])):
            self._say_gone("")
            self._copy(connection)
        close(connection)

    def _copy(self, connection: sqlite3.Connection) -> None:
        self._copy_aside(connection)
        self._known.pop("", None)

    def _is_open(self, suffix: str, path: Path) -> bool:
        """Whether this process has the file of this path open as that one, or had none."""
        known = self._known.get(suffix)
        return known is None or _is_at(known, path)

    def _is_whole(self, connection: sqlite3.Connection, shorter: Collection[str]) -> bool:
        """Whether all that is committed is in the database. If not, it is closed and set aside."""
        names = " and ".join(f"{self._database.name}{suffix}" for suffix in sorted({*shorter, *self._cut}))
        try:
            if self._cut or ("-wal" in shorter and write_ahead_log.has_gap(self._database, 0)):
                # SQLite would bring the zeros of a log into the database.
                raise DamagedError("a part is missing")
            if "" in shorter and self._database.stat().st_size < _bytes_of_pages(connection):
                raise DamagedError("pages are missing")
            _fold_all(connection)
        except BusyError:
            raise
        except sqlite3.Error as error:
            self._set_aside(DamagedError(f"{names} became shorter while it was in use: {error}"))
            close(connection)  # not before it is renamed: SQLite would bring the rest of the log into it
            return False
        self.folded(connection)
        _logger.warning("Somebody shortened %s while it was in use. Nothing is lost", names)
        return True


def _is_at(known: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(known, path.stat())
    except OSError:
        return False


def _identities() -> set[tuple[int, int]]:
    """The files that this process has open, by device and number; none if the system does not tell."""
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in os.listdir("/dev/fd"):  # noqa: PTH208 - numbers
            with contextlib.suppress(OSError):  # closed meanwhile, such as that of the list
                status = os.fstat(int(descriptor))
                found.add((status.st_dev, status.st_ino))
    return found


def _bytes_of_pages(connection: sqlite3.Connection) -> int:
    return schema.pragma(connection, "page_count") * schema.pragma(connection, "page_size")


def close(connection: sqlite3.Connection) -> None:
    """Close the writing connection, and roll back what was begun."""
    try:
        connection.close()
    except sqlite3.Error as error:
        _logger.warning("The queue's file could not be closed: %s", error)


def fold(connection: sqlite3.Connection) -> bool:
    """Bring all of the log into the database, and free the log's space; whether no reader was in the way."""
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy
    finally:
        connection.execute("PRAGMA busy_timeout = 5000")


def _fold_all(connection: sqlite3.Connection) -> None:
    """Bring all of the log into the database, on disk, and begin a new log.

    Raises:
        sqlite3.Error: Not all of the log can be read, or written.
    """
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise BusyError("a reader of the log is in the way")
