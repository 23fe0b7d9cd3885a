"""Reads files that the configuration names, while a service runs. Nothing that could block is opened."""

import errno
import os
import stat
from pathlib import Path
from typing import Final

MOST_PEM: Final = 4 << 20
"""The most bytes of a PEM file. A bundle of all authorities that browsers trust has about 0.3 MiB."""


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a regular file: at most one more than allowed. A pipe or a device could block the reader for ever.

    Raises:
        OSError: It can't be read, or is not a regular file.
        ValueError: No file can have such a path.
    """
    # By an opener: open() refuses a descriptor of a directory, and would leave it open.
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return file.read(most + 1)


def read_pem(path: Path) -> bytes:
    """The content of a PEM file.

    Raises:
        OSError: It can't be read, is not a regular file, or is larger than `MOST_PEM`.
        ValueError: No file can have such a path.
    """
    content = read_regular(path, MOST_PEM)
    if len(content) > MOST_PEM:
        raise OSError(errno.EFBIG, f"it is larger than {MOST_PEM >> 20} MiB", str(path))
    return content


def absolute(path: Path) -> Path:
    """The path from the root, so that it can be read again once the program works elsewhere.

    It stays relative if the working directory is gone.
    """
    try:
        return path.absolute()
    except FileNotFoundError:
        return path


def _without_waiting(path: str, flags: int) -> int:
    """Open a file. Without O_NONBLOCK, opening a pipe that nobody writes to would block."""
    return os.open(path, flags | os.O_NONBLOCK)
