"""Reserves space in a file, and gives it back when the disk is full, so that the queue can go on."""

import contextlib
import errno
import logging
import os
from pathlib import Path
from typing import Final

from statsig_otel.exporters.queue import schema

_logger: Final = logging.getLogger(__name__)

_ZEROS: Final = bytes(1 << 16)
_NOT_SUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)
"""By the file system: glibc writes zeros then, and musl does not."""

_NEVER_WAIT: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Somebody may have put a link or a pipe in the place of the file."""


class Reserve:
    """The file `reserve` of a queue's directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._has_complained = False

    @property
    def size(self) -> int:
        """The bytes that are set apart."""
        return schema.size_of(self._path)

    def free_bytes(self) -> int:
        """The free bytes of the disk, and those of the reserve.

        Raises:
            OSError: The system does not tell.
        """
        return unused_bytes(self._path.parent) + self.size

    def keep(self, size: int, *, min_free: int) -> None:
        """Set `size` bytes of the disk apart, if they are not and the disk has at least `min_free` bytes left."""
        if self.size >= size or unused_bytes(self._path.parent) < min_free:
            return
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | _NEVER_WAIT, 0o600)
            try:
                _allocate(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError:  # the disk is nearly full, or has no room for one more file
            self.give()

    def give(self, *, below: int | None = None) -> bool:
        """Give the space back to the disk, if it has less than `below` bytes left; whether there was any to give."""
        if below is not None and unused_bytes(self._path.parent) >= below:
            return False
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            return self._empty(error)
        return True

    def _empty(self, error: OSError) -> bool:
        """Make the file empty if it can't be deleted; whether it was not.

        File systems that copy on writing, such as btrfs and ZFS, may need space to delete a file.
        """
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | _NEVER_WAIT)
            try:
                if os.fstat(descriptor).st_size:
                    os.ftruncate(descriptor, 0)
                    return True
            finally:
                os.close(descriptor)
        if not self._has_complained:
            self._has_complained = True
            _logger.error("%s can't be deleted, so its space can't be used: %s", self._path, error.strerror)
        return False


def unused_bytes(path: Path) -> int:
    """The free bytes of the disk that a directory is on."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _allocate(descriptor: int, size: int) -> None:
    """Take space on the disk for a file."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
        else:
            return
    for offset in range(0, size, len(_ZEROS)):
        os.pwrite(descriptor, _ZEROS[: size - offset], offset)
