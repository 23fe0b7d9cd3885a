"""The queue's directory: one process owns it, and it remembers whether it was left in order.

lock            locked with flock while a process owns the directory; contains its pid
state.json      {"clean": true} after an orderly stop
reserve         space that is given back when the disk is full, so that the queue can still be opened and delivered
queue.db        the database, with queue.db-wal and queue.db-shm beside it while it is in use
queue.db.corrupt-TIME-N     set aside: it could not be read, or was deleted while it was in use
queue.db.salvaged-TIME-N    the same, after what can be read of it was carried over
queue.db.unreadable-TIME-N  the same, if nothing can be read
"""

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import re
import sqlite3
import time
from operator import attrgetter
from pathlib import Path
from typing import Final, Literal

from statsig_otel.config.errors import Fault
from statsig_otel.exporters.paths import exists, forbidden, is_open_as, nearest, too_long, unusable
from statsig_otel.exporters.queue import schema, write_ahead_log
from statsig_otel.exporters.queue.errors import DirectoryInUseError, ForeignFileError, NewerSchemaError
from statsig_otel.exporters.queue.reserve import Reserve, unused_bytes

_logger: Final = logging.getLogger(__name__)

DATABASE: Final = "queue.db"
CONTROL: Final = "control.sock"
LOCK: Final = "lock"
STATE: Final = "state.json"
_STATE_SIZE: Final = 64
_RESERVE: Final = "reserve"
_FILES: Final = (*(f"{DATABASE}{suffix}" for suffix in schema.SUFFIXES), LOCK, CONTROL, _RESERVE, STATE)
_ASIDE: Final = re.compile(rf"{re.escape(DATABASE)}\.(corrupt|salvaged|unreadable)-[0-9TZ]+-[0-9]+")
_LONGEST_NAME: Final = f"{DATABASE}.unreadable-00000000T000000Z-1-journal"
_ELSEWHERE: Final = "name another directory, or move what is there away"
_NOT_A_FILE: Final = "is a pipe or a device, where the queue has a file"
_version: Final = attrgetter("st_dev", "st_ino", "st_size", "st_mtime_ns")  # another file may get the same number
_PRIVATE_FILE: Final = 0o600
_PRIVATE_DIRECTORY: Final = 0o700


class QueueDirectory:
    """The directory of one queue, which `acquire` opens, and creates if it is missing.

    Attributes:
        database, log, lock, state: The files. Each is one object, since two of them are looked at before every commit.
        reserve: The space that is set apart for a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database: Path = path / DATABASE
        self.log: Path = path / f"{DATABASE}-wal"
        self.lock: Path = path / LOCK
        self.state: Path = path / STATE
        self.reserve: Reserve = Reserve(path / _RESERVE)
        self._looked_at: tuple[str, str] = str(self.lock), str(self.state)
        self._lock: int | None = None
        self._lock_status: os.stat_result | None = None
        self._noted: object = None  # the version of `state.json` that this process has written
        self._given: set[Path] = set()  # the paths for what is set aside

    def check(self) -> Fault | None:
        """Why a queue can't be in this directory, while nobody has it open; None if it can. Creates nothing."""
        existing = nearest(self.path)
        fault = self._check_missing(existing)
        if fault is not None:
            return fault
        if not existing.is_dir():
            return Fault(f"{existing} is not a directory", _ELSEWHERE)
        if not os.access(existing, os.W_OK | os.X_OK):
            return forbidden(existing)
        if link := self._link():
            return Fault(f"{link} {schema.A_LINK}", _ELSEWHERE)
        if strange := self._not_a_file():
            return Fault(f"{strange} {_NOT_A_FILE}", _ELSEWHERE)
        for name in _FILES:
            if (self.path / name).is_dir():
                return Fault(f"{self.path / name} is a directory, where the queue has a file", _ELSEWHERE)
        try:
            self.check_files()
        except OSError as error:
            return unusable(Path(error.filename), error)
        return self._check_database()

    def check_files(self) -> None:
        """Check that this process can read and write the files that are there, and make new ones beside them.

        Not while it has the database open.

        Raises:
            OSError: It can't.
        """
        if self.path.is_dir() and not os.access(self.path, os.W_OK | os.X_OK):  # for the database's log
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))
        for name in (LOCK, STATE, *(f"{DATABASE}{suffix}" for suffix in schema.SUFFIXES)):
            with contextlib.suppress(FileNotFoundError):
                os.close(os.open(self.path / name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))

    def owner(self) -> str | None:
        """The pid of the process that owns the directory; None if there is none.

        Raises:
            OSError: The lock can't be read.
        """
        try:
            descriptor = os.open(self.lock, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            # Shared and only for a moment: a service that starts at this very moment would notice it.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _written_owner(descriptor)
        finally:
            os.close(descriptor)
        return None

    def has(self, file: Path) -> bool:
        """Whether a path is that of a file that a queue keeps in this directory."""
        real = Path(os.path.realpath(file)) if "\0" not in str(file) else file
        is_own = real.name in _FILES or real.name.startswith(DATABASE)  # its journal, and what is set aside
        return is_own and real.parent == Path(os.path.realpath(self.path))

    def acquire(self) -> None:
        """Become the owner.

        Raises:
            DirectoryInUseError: Another process is the owner.
            OSError: The directory can't be created or written, or one of the files is a symbolic link.
        """
        self._make()
        if strange := self._not_a_file():
            raise OSError(errno.EINVAL, _NOT_A_FILE, str(strange))
        if link := self._link():  # whoever made it may want a file of somebody else to be overwritten
            raise OSError(errno.ELOOP, schema.A_LINK, str(link))
        descriptor = _open(self.lock, os.O_RDWR)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._in_use(descriptor) from None
            _write_owner(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._lock, self._lock_status = descriptor, os.fstat(descriptor)
        _held.add(descriptor)

    def _in_use(self, lock: int) -> DirectoryInUseError:
        owner, is_own = _written_owner(lock), _is_held(lock)
        elsewhere = " of another container" if owner == str(os.getpid()) else ""
        who = "another service of this process" if is_own else f"the process {owner}{elsewhere}"
        return DirectoryInUseError(
            f"{self.path} is in use by {who}",
            ways_out="stop that one, or give each service its own queue directory",
            is_own=is_own,
        )

    def release(self) -> None:
        """Give the directory up. Safe to call twice."""
        descriptor, self._lock = self._lock, None
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)

    def was_left_clean(self) -> bool:
        """Whether the last owner stopped in order, or there was none."""
        try:
            state = json.loads(self.state.read_text())
        except FileNotFoundError:  # a new queue, or a copy of one
            return not exists(self.log)
        except (OSError, ValueError):
            return False
        return isinstance(state, dict) and state.get("clean") is True

    def missing_file(self) -> Literal["queue.db", "queue.db-wal"] | None:
        """Which of the last owner's files is gone, with content that nothing else has; None if none is.

        With the database, all that waited is gone, unless it was set aside. With a log that was not folded in, what was
        acknowledged last is.
        """
        if self.has_only_log():
            return None
        if not schema.size_of(self.database):
            return "queue.db" if exists(self.state) and not self.set_aside_files() else None
        return None if self.was_left_clean() or exists(self.log) else "queue.db-wal"

    def has_only_log(self) -> bool:
        """Whether the database is gone or empty and its log is not: the log's content can be carried over."""
        return schema.has_only_log(self.database)

    def mark(self, *, clean: bool) -> None:
        """Note whether the directory is in order; on disk when this returns.

        The file is overwritten, in one sector: that needs no space, and a power failure leaves one of both states.

        Raises:
            OSError: It can't be noted.
        """
        content = json.dumps({"clean": clean, "pid": os.getpid()}).encode().ljust(_STATE_SIZE)
        descriptor = _open(self.state, os.O_WRONLY)
        try:
            os.pwrite(descriptor, content, 0)
            os.fsync(descriptor)
            self._noted = _version(os.fstat(descriptor))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.state)) from error
        finally:
            os.close(descriptor)
        sync_directory(self.path)

    @property
    def is_untouched(self) -> bool:
        """Whether the lock and `state.json` are as this process made them: nearly always. Each commit asks twice."""
        held = self._lock_status
        try:
            lock, state = map(os.lstat, self._looked_at)
        except OSError:
            return False
        return held is not None and os.path.samestat(held, lock) and self._noted in (None, _version(state))

    @property
    def is_mark_of_another(self) -> bool:
        """Whether another process has noted something since this one did."""
        try:
            return self._noted not in (None, _version(self.state.lstat()))
        except FileNotFoundError:
            return False

    def keep_mark(self) -> bool:
        """Note again that the directory is in use, if somebody deleted or changed the note; whether that was so.

        Raises:
            OSError: It can't be noted.
        """
        if exists(self.state) and not self.is_mark_of_another:
            return False
        self.mark(clean=False)
        return True

    def make_private(self) -> None:
        """Deny all but the owner access to the database. If the owner is another user, only log that."""
        for suffix in schema.SUFFIXES:
            file = Path(f"{self.database}{suffix}")
            with contextlib.suppress(FileNotFoundError):
                found = file.stat()
                mode = found.st_mode & 0o777
                try:
                    if mode != _PRIVATE_FILE:
                        file.chmod(_PRIVATE_FILE)
                except PermissionError:
                    message = "%s belongs to uid %d, and this service has uid %d: its mode stays %o"
                    _logger.warning(message, file, found.st_uid, os.geteuid(), mode)

    def set_aside(self, to: Path | None = None) -> Path:
        """Rename a database that can't be read, with its log and index; its new path, which may be given."""
        if not exists(self.database):
            self.database.touch(_PRIVATE_FILE)  # for its log, which is found by the database's name
        return self.rename(self.database, to or self.path_aside())

    def half_set_aside(self) -> Path | None:
        """Where the database belongs if its owner ended while it set it aside: the log is there already."""
        if exists(self.log) or self.was_left_clean():
            return None
        moved = (log.with_name(log.name.removesuffix("-wal")) for log in self.path.glob(f"{DATABASE}.corrupt-*-wal"))
        return next((database for database in moved if not exists(database)), None)

    def path_aside(self) -> Path:
        """A path for a database that is set aside, which was never used.

        Recovery may still read a file that somebody has deleted, and renames its path in the end. So no other file must
        get that path.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        paths = (self.path / f"{DATABASE}.corrupt-{stamp}-{number}" for number in itertools.count(1))
        aside = next(path for path in paths if path not in self._given and not self._is_used(path))
        self._given.add(aside)
        return aside

    def _is_used(self, aside: Path) -> bool:
        """Whether a file has this path, or had it before its recovery."""
        return any(self.path.glob(aside.name.replace(".corrupt-", ".*-")))

    def discard(self, aside: Path) -> None:
        """Delete an incomplete copy."""
        for suffix in (*schema.SUFFIXES, "-journal"):
            Path(f"{aside}{suffix}").unlink(missing_ok=True)

    def set_aside_files(self, what: Literal["corrupt", "salvaged", "unreadable"] = "corrupt") -> list[Path]:
        """The databases that were set aside, the oldest first: those not yet recovered, or those of another kind."""
        files = ((file, _ASIDE.fullmatch(file.name)) for file in self.path.iterdir())
        return sorted(file for file, match in files if match is not None and match[1] == what)

    def rename_aside(self, aside: Path, what: Literal["salvaged", "unreadable"]) -> Path:
        """Rename a database that was set aside after its recovery; its new path."""
        return self.rename(aside, aside.with_name(aside.name.replace(".corrupt-", f".{what}-")))

    @property
    def is_owned(self) -> bool:
        """Whether this process owns the directory, and nobody has deleted or replaced the lock."""
        return self._lock is not None and is_open_as(self.lock, self._lock)

    def reclaim(self) -> bool:
        """Own the directory again if it, or its lock, was deleted under its owner; whether it was.

        Raises:
            DirectoryInUseError: Another process was faster.
            OSError: The directory can't be created or written.
        """
        before = self._lock
        if before is None or self.is_owned:
            return False
        self.acquire()
        _held.discard(before)
        os.close(before)
        return True

    def check_space(self, min_free: int) -> Fault | None:
        """Why all webhooks would be refused: the disk has less than `min_free` bytes left. None if it has more.

        Raises:
            OSError: This user can't find out.
        """
        free = unused_bytes(nearest(self.path)) + self.reserve.size
        if free >= min_free:
            return None
        return Fault(
            f"the disk has {free >> 20} MiB left, and webhooks are refused below {-(-min_free >> 20)} MiB",
            "free some space; a smaller min_free_bytes leaves less for delivering what waits",
        )

    def _link(self) -> Path | None:
        """One of the queue's files that is a symbolic link; None if none is. SQLite would follow it, too."""
        return next((path for name in _FILES if (path := self.path / name).is_symlink()), None)

    def _not_a_file(self) -> Path | None:
        """One of the queue's files that is a pipe or a device; None if none is."""
        paths = (self.path / name for name in _FILES if name != CONTROL)
        return next((path for path in paths if exists(path) and not path.is_file() and not path.is_dir()), None)

    def _check_missing(self, existing: Path) -> Fault | None:
        """Why the missing directories below an existing one can't be created."""
        longest = os.pathconf(existing, "PC_NAME_MAX")
        try:
            for missing in (self.path.absolute(), *self.path.absolute().parents):
                if missing == existing:
                    break
                if 0 < longest < len(os.fsencode(missing.name)):
                    return too_long(self.path)
                if missing.is_symlink():
                    return Fault(f"{missing} is a symbolic link that leads nowhere", _ELSEWHERE)
            (self.path / _LONGEST_NAME).lstat()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        except OSError as error:
            return unusable(self.path, error)
        return None

    def _check_database(self) -> Fault | None:
        """Why a queue refuses the database. One that is only damaged is set aside instead."""
        if not self.database.is_file():
            return None
        try:
            if exists(self.log):
                schema.check_first_page(write_ahead_log.first_page(self.database), self.database)
            else:
                schema.check(self.database)
        except NewerSchemaError as error:
            return error.fault
        except ForeignFileError as error:
            return Fault(str(error), _ELSEWHERE)
        except (sqlite3.Error, OSError):
            return None
        return None

    def rename(self, database: Path, to: Path) -> Path:
        """Rename a database with its log, journal and index; on disk when this returns.

        The log comes first, since a crash can come in between: behind its database's new name it can't be mistaken, and
        alone in the old place it could be the log of any database.
        """
        for suffixes in (("-wal", "-journal"), ("", "-shm")):  # a journal is of a copy during which the process ended
            for suffix in suffixes:
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{database}{suffix}").rename(f"{to}{suffix}")
            sync_directory(self.path)
        return to

    def _make(self) -> None:
        """Create the directory and those above it, if they are missing; on disk when this returns."""
        missing = [directory for directory in (self.path, *self.path.parents) if not exists(directory)]
        self.path.mkdir(mode=_PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        for directory in missing:
            sync_directory(directory.parent)


def _open(path: Path, flags: int) -> int:
    """Open a file of the queue, and create it for its owner only if it is missing.

    A symbolic link is not followed, and a pipe in its place is an error: nobody waits until it is read.
    """
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, _PRIVATE_FILE)


def _written_owner(descriptor: int) -> str:
    """The pid in the lock file."""
    return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"


def _write_owner(descriptor: int) -> None:
    """Write this process's pid into the lock file. On a full disk only a message is without it."""
    pid = f"{os.getpid()}\n".encode()
    try:
        os.pwrite(descriptor, pid, 0)  # over an earlier one, which needs no space
        os.ftruncate(descriptor, len(pid))
    except OSError as error:
        if not schema.is_disk_full(error):
            raise


def _is_held(descriptor: int) -> bool:
    """Whether this process has a lock on the same file. The pid does not tell: each container has a process 1."""
    for held in tuple(_held):
        with contextlib.suppress(OSError):  # given up just now
            if os.path.sameopenfile(descriptor, held):
                return True
    return False


def sync_directory(directory: Path) -> None:
    """Bring a directory's entries to disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_held: Final[set[int]] = set()
"""The locks of this process."""


def _close_copies() -> None:
    """Close a forked child's copies: while one is open the directory is locked, even if its owner is gone."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_copies)
