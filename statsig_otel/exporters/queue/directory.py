"""The queue's directory: one process owns it, and it remembers whether it was left in order.

lock            held with flock while a process owns the directory; holds its pid
state.json      {"clean": true} after an orderly stop
queue.db        the database, with queue.db-wal and queue.db-shm beside it while it is in use
queue.db.corrupt-TIME-N    set aside: what could not be read, or was deleted while it was in use
queue.db.salvaged-TIME-N   the same, after all of it that can be read was carried over
queue.db.unreadable-TIME-N the same, where nothing can be read
"""

import contextlib
import fcntl
import json
import os
import re
import sqlite3
import time
from pathlib import Path
from typing import Final, Literal

from statsig_otel.config.errors import Fault
from statsig_otel.exporters.paths import WRITABLE_HINT, exists, nearest, too_long, unusable
from statsig_otel.exporters.queue import schema
from statsig_otel.exporters.queue.errors import QueueError

DATABASE: Final = "queue.db"
CONTROL: Final = "control.sock"
LOCK: Final = "lock"
_STATE: Final = "state.json"
_SUFFIXES: Final = ("", "-wal", "-shm")
_FILES: Final = (*(f"{DATABASE}{suffix}" for suffix in _SUFFIXES), LOCK, CONTROL, _STATE, f"{_STATE}.new")
_ASIDE: Final = re.compile(rf"{re.escape(DATABASE)}\.(corrupt|salvaged|unreadable)-[0-9TZ]+-[0-9]+")
_LONGEST_NAME: Final = f"{DATABASE}.unreadable-00000000T000000Z-1-journal"
_ELSEWHERE: Final = "name another directory, or move what is there away"
_PRIVATE_FILE: Final = 0o600
_PRIVATE_DIRECTORY: Final = 0o700


class DirectoryInUseError(QueueError):
    """The directory has an owner already; the message names it and the ways out.

    Attributes:
        is_own: Whether that is this process itself.

    Example:
        >>> from statsig_otel.exporters import DirectoryInUseError
        >>> str(DirectoryInUseError("the queue in q belongs to the process 4711"))
        'the queue in q belongs to the process 4711'
    """

    def __init__(self, message: str, *, is_own: bool = False) -> None:
        super().__init__(message)
        self.is_own = is_own


class QueueDirectory:
    """A directory of one queue. Nothing is opened before `acquire`.

    Args:
        path: The directory; it is made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def database(self) -> Path:
        """The database file."""
        return self.path / DATABASE

    @property
    def log(self) -> Path:
        """The database's log."""
        return self.path / f"{DATABASE}-wal"

    def check(self) -> Fault | None:
        """What would keep a queue that nobody has open from being in this directory. Creates nothing."""
        place = nearest(self.path)
        fault = self._check_missing(place)
        if fault is not None:
            return fault
        if not place.is_dir():
            return Fault(f"{place} is no directory", WRITABLE_HINT)
        if not os.access(place, os.W_OK | os.X_OK):
            return Fault(f"{place} can't be written", WRITABLE_HINT)
        for name in _FILES:
            if (self.path / name).is_dir():
                return Fault(f"{self.path / name} is a directory, where the queue has a file", _ELSEWHERE)
        return self._check_database()

    def owner(self) -> str | None:
        """The process that owns the directory now, by its number; None where nobody does. Locks nothing.

        Raises:
            OSError: It can't be told.
        """
        try:
            descriptor = os.open(self.path / LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            # For a moment, and shared: only a service that starts in this very moment would see it.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _written_owner(descriptor)
        finally:
            os.close(descriptor)
        return None

    def has(self, file: Path) -> bool:
        """Whether a path is that of a file that a queue keeps in this directory."""
        found = Path(os.path.realpath(file)) if "\0" not in str(file) else file
        return found.name in _FILES and found.parent == Path(os.path.realpath(self.path))

    def acquire(self) -> None:
        """Become the owner.

        Raises:
            DirectoryInUseError: Another process is; the message names it and the ways out.
            OSError: The directory can't be made or written.
        """
        self._make()
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE_FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _written_owner(descriptor)
            is_own = _is_held(descriptor)
            os.close(descriptor)
            elsewhere = " of another container" if owner == str(os.getpid()) else ""
            who = "another service of this process" if is_own else f"the process {owner}{elsewhere}"
            raise DirectoryInUseError(
                f"{self.path} is in use by {who}: stop that one, or give each service its own file_storage directory",
                is_own=is_own,
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            os.close(descriptor)
            raise
        self._lock = descriptor
        _held.add(descriptor)

    def release(self) -> None:
        """Give it up. Safe to call twice."""
        descriptor, self._lock = self._lock, None
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)

    def was_left_clean(self) -> bool:
        """Whether the last owner stopped in order; also where there was none."""
        try:
            state = json.loads((self.path / _STATE).read_text())
        except FileNotFoundError:
            return not self.database.exists()
        except (OSError, ValueError):
            return False
        return isinstance(state, dict) and state.get("clean") is True

    def missing_file(self) -> Literal["queue.db", "queue.db-wal"] | None:
        """Which of the last owner's files is gone, and nothing is left of what it held.

        The database, where what waited is gone with it; the log, where it was not folded in and what was acknowledged
        last is gone with it.
        """
        if self.has_only_log():
            return None
        if not schema.size_of(self.database):
            return "queue.db" if (self.path / _STATE).exists() else None
        return None if self.was_left_clean() or self.log.exists() else "queue.db-wal"

    def has_only_log(self) -> bool:
        """Whether the database is gone, or empty, and its log is not: what that holds can be carried over."""
        return schema.has_only_log(self.database)

    def mark(self, *, clean: bool) -> None:
        """Write down whether the directory is in order; on disk when this returns."""
        temporary = self.path / f"{_STATE}.new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _PRIVATE_FILE)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"clean": clean, "pid": os.getpid()}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / _STATE)
        _sync(self.path)

    def make_private(self) -> None:
        """Take everybody else's rights from the database."""
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.database}{suffix}").chmod(_PRIVATE_FILE)

    def set_aside(self) -> Path:
        """Rename a database that can't be read, with all that belongs to it; where it is now."""
        if not self.database.exists():
            self.database.touch(_PRIVATE_FILE)  # its log is there, and found by the name of its database
        return self._rename(self.database, self.path_aside())

    def path_aside(self) -> Path:
        """A name that is free for a database that is set aside."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        number = 1
        while any(self.path.glob(f"{DATABASE}.*-{stamp}-{number}")):
            number += 1
        return self.path / f"{DATABASE}.corrupt-{stamp}-{number}"

    def discard(self, aside: Path) -> None:
        """Delete a copy that could not be written to its end."""
        for suffix in (*_SUFFIXES, "-journal"):
            Path(f"{aside}{suffix}").unlink(missing_ok=True)

    def set_aside_files(self, what: Literal["corrupt", "salvaged", "unreadable"] = "corrupt") -> list[Path]:
        """The databases that were set aside, the oldest first: those not yet salvaged, or those of another kind."""
        files = ((file, _ASIDE.fullmatch(file.name)) for file in self.path.iterdir())
        return sorted(file for file, match in files if match is not None and match[1] == what)

    def rename_aside(self, aside: Path, what: Literal["salvaged", "unreadable"]) -> Path:
        """Write down what became of a file that was set aside; where it is now."""
        return self._rename(aside, aside.with_name(aside.name.replace(".corrupt-", f".{what}-")))

    def reclaim(self) -> None:
        """Own the directory anew where it, or its lock, was deleted under its owner.

        Raises:
            DirectoryInUseError: Another process was faster.
            OSError: The directory can't be made or written.
        """
        if self._lock is None or _is_at(self.path / LOCK, self._lock):
            return
        before = self._lock
        self.acquire()
        _held.discard(before)
        os.close(before)
        self.mark(clean=False)

    def free_bytes(self) -> int:
        """What the disk has left for this process."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def _check_missing(self, place: Path) -> Fault | None:
        """What is in the way of the directories that are still to be made below a place that exists."""
        longest = os.pathconf(place, "PC_NAME_MAX")
        try:
            for missing in (self.path.absolute(), *self.path.absolute().parents):
                if missing == place:
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
        """Whether the database is one that a queue leaves alone. One that is only damaged is set aside."""
        if not self.database.is_file() or exists(self.log):
            return None
        try:
            schema.check(self.database)
        except schema.NewerSchemaError as error:
            return error.fault
        except schema.ForeignFileError as error:
            return Fault(str(error), _ELSEWHERE)
        except sqlite3.Error:
            return None
        return None

    def _rename(self, database: Path, to: Path) -> Path:
        """Rename a database, with all that belongs to it; on disk when this returns."""
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{database}{suffix}").rename(f"{to}{suffix}")
        _sync(self.path)
        return to

    def _make(self) -> None:
        """Make the directory where it is missing, with those above it; on disk when this returns."""
        missing = [place for place in (self.path, *self.path.parents) if not place.exists()]
        self.path.mkdir(mode=_PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        for place in missing:
            _sync(place.parent)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _written_owner(descriptor: int) -> str:
    """The process that has written its number into the lock file."""
    return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"


def _is_held(descriptor: int) -> bool:
    """Whether a lock of this process is on the same file. Its number alone tells nothing: each container has a 1."""
    for held in tuple(_held):
        with contextlib.suppress(OSError):  # given up just now
            if os.path.sameopenfile(descriptor, held):
                return True
    return False


def _sync(directory: Path) -> None:
    """Bring a directory's entries to disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_held: Final[set[int]] = set()
"""The locks of this process."""


def _let_go() -> None:
    """Close a forked child's copies: as long as one is open, the directory is locked, also when its owner is gone."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
