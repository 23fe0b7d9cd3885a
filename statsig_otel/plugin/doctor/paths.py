"""Places on disk that a service needs, and whether it could have them. Nothing is made, changed or kept open."""

import errno
import fcntl
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from statsig_otel.config.errors import Fault
from statsig_otel.exporters.local.file import begins_as_ours
from statsig_otel.exporters.queue import schema
from statsig_otel.exporters.queue.directory import CONTROL, DATABASE, LOCK
from statsig_otel.plugin.control.socket import ControlError, ServiceNotRunningError, call

_WRITABLE_HINT: Final = "let the service's own user write there, or name another place"
_ELSEWHERE: Final = "name another directory, or move what is there away"
_NO_PATH: Final = "holds a NUL, and is no path that a file can have"
_LONGEST_SHOWN: Final = 120
_QUEUE_FILES: Final = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", LOCK, CONTROL, "state.json", "state.json.new")


def nearest(directory: Path) -> Path:
    """The directory, or the first one above it that is there, as far as this user may look."""
    return next(place for place in (directory.absolute(), *directory.absolute().parents) if _is_there(place))


def owner(directory: Path) -> str | None:
    """Who owns a queue now, in words; None for nobody.

    Raises:
        OSError: That can't be told.
    """
    with suppress(ServiceNotRunningError, ControlError):
        return f"process {call(directory / CONTROL, 'queue')['pid']}"
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if not _is_locked(descriptor):
            return None
        text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        return f"process {text or 'unknown'}, starting or stopping"
    finally:
        os.close(descriptor)


def is_locked(file: Path) -> bool:
    """Whether an exporter writes to a file now, here or in another process."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False
    try:
        return _is_locked(descriptor)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    try:
        # For a moment, and shared: only a service that starts in this very moment would see it.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def same_file(file: Path) -> object:
    """What two paths have in common that lead to one file, by links or in other words."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return os.path.realpath(file) if "\0" not in str(file) else str(file)
    return found.st_dev, found.st_ino


def file_fault(file: Path) -> Fault | None:
    """Why a `file` exporter can't write to a file; None where it can."""
    if "\0" in str(file):
        return Fault(_NO_PATH)
    try:
        is_there = _exists(file)
        # A link may lead to a file that is still to be made.
        folder = Path(os.path.realpath(file)).parent if file.is_symlink() else file.parent
    except OSError as error:
        return unusable(file, error)
    if not folder.is_dir():
        return Fault(f"there is no directory {folder}", "make it: the exporter does not")
    if is_there and not file.is_file():
        return Fault(f"{file} is no regular file", "only a regular file can be synced and cut")
    if not (os.access(file, os.R_OK | os.W_OK) if is_there else os.access(folder, os.W_OK | os.X_OK)):
        return Fault(f"{file} can't be written", _WRITABLE_HINT)
    if is_there and not begins_as_ours(file):
        return Fault(f"{file} holds something else than OTLP/JSON lines of logs", "move it away, or name another")
    return None


def is_of_queue(file: Path, directory: Path) -> bool:
    """Whether a path is that of a file that a queue keeps in its directory."""
    found = Path(os.path.realpath(file)) if "\0" not in str(file) else file
    return found.name in _QUEUE_FILES and found.parent == Path(os.path.realpath(directory))


def queue_fault(directory: Path) -> Fault | None:
    """Why a queue that nobody has open can't be in a directory; None where it can."""
    place = nearest(directory)
    fault = _unmakeable(directory, place)
    if fault is not None:
        return fault
    if not place.is_dir():
        return Fault(f"{place} is no directory", _WRITABLE_HINT)
    if not os.access(place, os.W_OK | os.X_OK):
        return Fault(f"{place} can't be written", _WRITABLE_HINT)
    for name in _QUEUE_FILES:
        if (directory / name).is_dir():
            return Fault(f"{directory / name} is a directory, where the queue has a file", _ELSEWHERE)
    return _foreign(directory / DATABASE)


def _unmakeable(directory: Path, place: Path) -> Fault | None:
    """What is in the way of the directories that are still to be made below a place that is there."""
    longest = os.pathconf(place, "PC_NAME_MAX")
    try:
        for missing in (directory.absolute(), *directory.absolute().parents):
            if missing == place:
                break
            if 0 < longest < len(os.fsencode(missing.name)):
                return _too_long(directory)
            if missing.is_symlink():
                return Fault(f"{missing} is a symbolic link that leads nowhere", _ELSEWHERE)
        # With what has to fit behind it; the name is that of the longest file that a queue makes.
        (directory / f"{DATABASE}.unreadable-00000000T000000Z-1-journal").lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as error:
        return unusable(directory, error)
    return None


def _foreign(database: Path) -> Fault | None:
    """Whether a database is one that a queue leaves alone. One that is only damaged is set aside."""
    if not database.is_file() or _exists(database.with_name(f"{database.name}-wal")):
        return None
    try:
        schema.look(database)
    except schema.NewerSchemaError as error:
        return error.fault
    except schema.ForeignFileError as error:
        return Fault(str(error), _ELSEWHERE)
    except sqlite3.Error:
        return None
    return None


def _too_long(place: Path) -> Fault:
    return Fault(f"{_shown(place)} is longer than a path, or a name in it, may be", "choose a shorter one")


def unusable(place: Path, error: OSError) -> Fault:
    """What an error of the system says of a place."""
    if error.errno == errno.ENAMETOOLONG:
        return _too_long(place)
    if error.errno == errno.ELOOP:
        return Fault(
            f"{_shown(place)} is a symbolic link that leads in a circle", "remove the link, or name another place"
        )
    return Fault(f"{_shown(place)} can't be used: {error.strerror}", _WRITABLE_HINT)


def _shown(place: Path) -> str:
    text = str(place)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _exists(place: Path) -> bool:
    """Whether something is there; raises an `OSError` where that can't be told."""
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_there(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:  # not ours to look at, or longer than any name
        return False
