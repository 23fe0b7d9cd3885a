"""Checks after a crash whether SQLite would read all of the database's write-ahead log (`queue.db-wal`).

SQLite ends a log at the first frame whose checksum is wrong, since an interrupted commit looks like that. So what was
committed behind a flipped byte, or was cut off, is dropped silently. A log's format is section 4 of
https://www.sqlite.org/fileformat2.html, and that of its index section 2 of https://www.sqlite.org/walformat.html
"""

import contextlib
import io
import os
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from statsig_otel.exporters.queue import schema

_HEADER: Final = struct.Struct(">4I8s2I")
"""Magic number, version, page size, checkpoints, salts, and two checksums of all before them."""

_FRAME: Final = struct.Struct(">2I8s2I")
"""Page number, pages of the database after a commit or 0, the header's salts, and two checksums of the first two of
these and the page, which go on from those of the frame before."""

_INDEX: Final = struct.Struct("=16xI12x8s2I")
"""Frames that are committed, the salts, and two checksums of all before them."""

_NUMBER: Final = 4
"""Bytes of the number of its page, with which a frame begins. It is not 0."""

_CHECKED_OF_HEADER: Final = 24
_CHECKED_OF_FRAME: Final = 8
_CHECKED_OF_INDEX: Final = 40

_ORDERS: Final = {0x377F0682: "<", 0x377F0683: ">"}
"""The byte order of what is summed up, by the magic number."""


@dataclass(frozen=True, slots=True)
class LogCheck:
    """How much of a log SQLite does not read."""

    unread_commits: int  # at or behind damage; a power failure can leave the last one of a log incomplete
    missing_frames: int  # that were committed, according to the log's index

    @property
    def is_damaged(self) -> bool:
        """Whether something that was acknowledged is in the log and not read."""
        return self.unread_commits > 1 or (self.unread_commits > 0 and self.missing_frames > 0)


class Frame(NamedTuple):
    """A page that a transaction wrote."""

    page: int  # its number, from 1
    pages: int  # of the database after its transaction, if it is the last one of that; else 0
    is_read: bool  # whether SQLite reads it: its checksum and those of all frames before it are right
    content: bytes

    @property
    def is_commit(self) -> bool:
        """Whether it is the last one of its transaction."""
        return self.pages > 0


class Log:
    """A log, read from its beginning, with the number of its committed frames; 0 if the index does not tell.

    The index may be an earlier one, since nobody brings it to disk. Only its beginning is needed.
    """

    def __init__(self, file: BinaryIO, index: bytes) -> None:
        self._file = file
        is_empty = not (header := file.read(_HEADER.size))
        header = header.ljust(_HEADER.size, b"\0")
        magic, _, self._size, _, self._salts, *self._sums = _HEADER.unpack(header)
        self._order = _ORDERS.get(magic, "")
        self._is_sound = bool(self._order) and _sum_up(header[:_CHECKED_OF_HEADER], self._order, [0, 0]) == self._sums
        index = index.ljust(_INDEX.size, b"\0")
        committed, salts, *sums = _INDEX.unpack(index)
        if not any(index) or _sum_up(index[:_CHECKED_OF_INDEX], "=", [0, 0]) != sums:
            committed, salts = 0, b""
        if not self._is_sound:  # then the usual page size, and the salts of the index or of the first frame
            self._size, self._salts = _usual_page_size(), salts
        self.committed: int = committed if not is_empty and salts == self._salts else 0

    def frames(self) -> Iterator[Frame]:
        """The frames that were written since the log last began again, in order."""
        is_read = self._is_sound
        while len(raw := self._file.read(_FRAME.size + self._size)) == _FRAME.size + self._size:
            page, pages, salts, *sums = _FRAME.unpack_from(raw)
            content = raw[_FRAME.size :]
            self._salts = self._salts or salts
            if is_read:
                checked = raw[:_CHECKED_OF_FRAME] + content
                is_read = salts == self._salts and _sum_up(checked, self._order, self._sums) == sums
                self._sums = sums
            if salts == self._salts:  # else it is from before the log began again
                yield Frame(page, pages, is_read, content)


@contextlib.contextmanager
def opened(database: Path) -> Iterator[Log]:
    """A database's log; a missing one counts as one without frames."""
    index = b""
    with contextlib.suppress(FileNotFoundError), Path(f"{database}-shm").open("rb") as file:
        index = file.read(_INDEX.size)
    with contextlib.ExitStack() as stack:
        log: BinaryIO = io.BytesIO()
        with contextlib.suppress(FileNotFoundError):
            log = stack.enter_context(Path(f"{database}-wal").open("rb"))
        yield Log(log, index)


def check(database: Path) -> LogCheck:
    """How much of a database's log SQLite would not read.

    Not for a database that this process has open: to close its index here would drop the locks on it (POSIX locks).
    """
    unread = read = 0
    with opened(database) as log:
        for frame in log.frames():
            read += frame.is_read
            unread += frame.is_commit and not frame.is_read
        return LogCheck(unread, max(log.committed - read, 0))


def has_gap(database: Path, before: int) -> bool:
    """Whether a log was cut, and frames were written behind the cut: there are zeros between.

    Also for a database that this process has open, since SQLite does not lock the log. False if that can't be found
    out, as when this process can open no more files.

    Args:
        database: The database file.
        before: The log's bytes up to which nothing was missing. A gap that begins there has the end of these, too.
    """
    with contextlib.suppress(OSError), _descriptor(database) as log:
        if not (header := os.pread(log, _HEADER.size, 0)):
            return False
        magic, _, page_size, *_ = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
        if not magic:
            return True
        frame = page_size + _FRAME.size
        first = max((before - _HEADER.size) // frame - 1, 0)  # whole ones: a full disk leaves a part of another
        place = _HEADER.size + first * frame
        while page := os.pread(log, _NUMBER, place):
            if not any(page):
                return True
            place += frame
    return False


def header(database: Path) -> bytes:
    """A log's header, which is another one each time that the log begins again. Also for one that is open, as above."""
    with contextlib.suppress(OSError), _descriptor(database) as log:
        return os.pread(log, _HEADER.size, 0)
    return b""


@contextlib.contextmanager
def _descriptor(database: Path) -> Iterator[int]:
    """A descriptor of a log: after every commit, so not by the slower `open`. It waits for no pipe's other end."""
    log = os.open(f"{database}-wal", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield log
    finally:
        os.close(log)


def first_page(database: Path) -> bytes:
    """The first page of a database, as the last commit that SQLite would read has left it; empty if there is none.

    Not for a database that this process has open, as above.
    """
    with database.open("rb") as file:
        found = file.read(_usual_page_size())
    with opened(database) as log:
        uncommitted = found
        for frame in log.frames():
            if not frame.is_read:
                break
            if frame.page == 1:
                uncommitted = frame.content
            if frame.is_commit:
                found = uncommitted
    return found


def _usual_page_size() -> int:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        return schema.pragma(connection, "page_size")


def _sum_up(data: bytes, order: str, sums: list[int]) -> list[int]:
    """The checksum of bytes behind others with the checksum `sums`; section 4.2."""
    first, second = sums
    numbers = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for one, another in zip(numbers, numbers, strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + another + first) & 0xFFFFFFFF
    return [first, second]
