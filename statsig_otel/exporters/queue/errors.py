"""The errors of the queue.

QueueError
├── DirectoryInUseError    another process owns the directory
├── NewerSchemaError       the file was written by a newer version
├── ForeignFileError       the file is another program's
├── StorageError           the database can't be written
└── NotRunningError        the queue was not started, or is stopped

sqlite3.DatabaseError
└── DamagedError           the file can't be what this package wrote
"""

import sqlite3
from typing import Final

from statsig_otel.config.errors import Fault


class QueueError(Exception):
    """The queue can't do what it was asked.

    Example:
        >>> from statsig_otel.exporters import DirectoryInUseError, QueueError
        >>> issubclass(DirectoryInUseError, QueueError)
        True
    """


class DirectoryInUseError(QueueError):
    """The directory has an owner already; the message names it and the ways out.

    Attributes:
        is_own: Whether that is this process itself.
        fact: Who owns the directory: the message without the ways out.
        ways_out: What to do about it, if anything.

    Example:
        >>> from statsig_otel.exporters import DirectoryInUseError
        >>> str(DirectoryInUseError("the queue in q belongs to the process 4711"))
        'the queue in q belongs to the process 4711'
    """

    def __init__(self, fact: str, *, ways_out: str = "", is_own: bool = False) -> None:
        super().__init__(f"{fact}: {ways_out}" if ways_out else fact)
        self.fact = fact
        self.ways_out = ways_out
        self.is_own = is_own


class NewerSchemaError(QueueError):
    """The file was written by a newer version of this package. It is not touched."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message}: {hint}")
        self.fault: Final = Fault(message, hint)


class ForeignFileError(QueueError):
    """The file is a sound SQLite database of another program. It is not touched."""


class StorageError(QueueError):
    """Nothing was stored: the database can't be written. The message is the database's.

    Attributes:
        is_disk_full: Whether the disk has no space left.
    """

    def __init__(self, message: str, *, is_disk_full: bool = False) -> None:
        super().__init__(message)
        self.is_disk_full: Final = is_disk_full


class NotRunningError(QueueError):
    """The writer was not started, or is stopped."""


class DamagedError(sqlite3.DatabaseError):
    """The file's content can't be what this package wrote."""
