"""Messages that say why a path can't be used, or show it to a shell. Creates, changes and opens nothing."""

import errno
import os
import shlex
from pathlib import Path
from typing import Final

from statsig_otel.config.errors import Fault

WRITABLE_HINT: Final = (
    "let the service's own user write there (chown; in Kubernetes securityContext.fsGroup), or name another path"
)
_MOUNT: Final = "mount it for writing (in Kubernetes a volume), or name another path"
ELSEWHERE: Final = "name another path"
_LONGEST_SHOWN: Final = 120


def nearest(directory: Path) -> Path:
    """The directory, or the nearest one above it that exists and that this user may see."""
    return next(path for path in (directory.absolute(), *directory.absolute().parents) if _is_there(path))


def exists(path: Path) -> bool:
    """Whether something is at the path. `Path.exists` of Python 3.14 says no, too, where nobody can know.

    Raises:
        OSError: This user can't find out.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_open_as(path: Path, descriptor: int) -> bool:
    """Whether the path still leads to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def directory_option(directory: Path) -> str:
    """The option with which the commands of `statsig-otel` find a queue, as somebody writes it in a shell."""
    return f"--directory {shlex.quote(str(directory))}"


def too_long(path: Path) -> Fault:
    """The path, or a name in it, is longer than the system allows."""
    return Fault(f"{_shown(path)} is longer than a path, or a name in it, may be", "choose a shorter one")


def unusable(path: Path, error: OSError) -> Fault:
    """The fault of a path, by an error of the system."""
    if error.errno == errno.ENAMETOOLONG:
        return too_long(path)
    if error.errno == errno.ELOOP:
        hint = "remove the link, or name another path"
        return Fault(f"{_shown(path)} is a symbolic link that leads in a circle", hint)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return forbidden(path)
    return Fault(f"{_shown(path)} can't be used: {error.strerror}", ELSEWHERE)


def forbidden(path: Path) -> Fault:
    """This process may not write to a file, or create one in a directory; who may."""
    existing = nearest(path)
    try:
        if os.statvfs(existing).f_flag & os.ST_RDONLY:
            return Fault(f"{_shown(path)} can't be written: it is on a file system that is mounted read-only", _MOUNT)
        found = existing.stat()
        mode = found.st_mode & 0o7777
        owner = f"{_shown(existing)} belongs to uid {found.st_uid}, gid {found.st_gid}, with mode {mode:o}"
    except OSError:
        owner = f"{_shown(existing)} can't be looked at"
    return Fault(f"{_shown(path)} can't be written by uid {os.geteuid()}: {owner}", WRITABLE_HINT)


def _shown(path: Path) -> str:
    text = str(path)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no permission to look, or longer than any name
        return False
