"""Records that were read from the queue, with a checksum that tells whether they have changed on disk."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any, Final, NamedTuple, TypeAlias, overload
from zlib import crc32

try:
    from isal.isal_zlib import crc32 as _quick_crc32
except ImportError:  # there is no wheel for this machine
    from zlib import crc32 as _quick_crc32

quick_crc32: Final = _quick_crc32
"""zlib's CRC-32, with special instructions if the machine has them: each record of a backlog costs one."""

Row: TypeAlias = tuple[int, Any, Any, Any]
"""seq, uid, payload and checksum from the database; damage can change the type of all but the first."""


def checksum(uid: bytes, payload: bytes) -> int:
    """The checksum that is stored with a record."""
    return crc32(payload, crc32(uid))


class Stored(NamedTuple):
    """One record: its uid (16 bytes) and its payload, an encoded request; empty if they can't be read.

    `intact` says whether both could be read and have their checksum.
    """

    seq: int
    uid: bytes
    payload: bytes
    intact: bool

    @classmethod
    def checked(cls, seq: int, uid: object, payload: object, stored: object) -> "Stored":
        """A record from values of any type."""
        if isinstance(uid, bytes) and isinstance(payload, bytes):
            return cls(seq, uid, payload, checksum(uid, payload) == stored)
        return cls(seq, uid if isinstance(uid, bytes) else b"", payload if isinstance(payload, bytes) else b"", False)


@dataclass(frozen=True, slots=True)
class Records(Sequence[Stored]):
    """Records in the order of their seqs, as columns: a backlog is delivered without an object for each record."""

    seqs: tuple[int, ...] = ()
    uids: tuple[bytes, ...] = ()
    payloads: tuple[bytes, ...] = ()
    intact: tuple[bool, ...] = ()

    @classmethod
    def checked(cls, rows: Sequence[Row]) -> "Records":
        """Records from rows."""
        if not rows:
            return cls()
        # Column by column, without a step of the interpreter for each record: this limits how fast a backlog is sent.
        seqs, uids, payloads, checksums = zip(*rows, strict=True)
        with contextlib.suppress(TypeError):  # damage can change a value's type
            if all(map(eq, map(quick_crc32, payloads, map(quick_crc32, uids)), checksums)):
                return cls(seqs, uids, payloads, (True,) * len(seqs))
        return cls(*zip(*(Stored.checked(*row) for row in rows), strict=True))  # zlib has the last word on damage

    def __len__(self) -> int:
        return len(self.seqs)

    @overload
    def __getitem__(self, index: int) -> Stored: ...

    @overload
    def __getitem__(self, index: slice) -> "Records": ...

    def __getitem__(self, index: int | slice) -> "Stored | Records":
        columns = (column[index] for column in self._columns)
        return Records(*columns) if isinstance(index, slice) else Stored._make(columns)

    def __add__(self, others: "Records") -> "Records":
        return Records(*(column + other for column, other in zip(self._columns, others._columns, strict=True)))

    @property
    def _columns(self) -> tuple[tuple[Any, ...], ...]:
        return self.seqs, self.uids, self.payloads, self.intact

    @property
    def size(self) -> int:
        """Bytes of all payloads."""
        return sum(map(len, self.payloads))

    @property
    def content(self) -> bytes:
        """All payloads as one request: concatenated protobuf messages merge."""
        return b"".join(self.payloads)

    def one_by_one(self) -> Iterator["Records"]:
        """Each record by itself."""
        return (self[index : index + 1] for index in range(len(self)))

    def until_damage(self) -> "Records":
        """The records before the first one that is not intact."""
        return self if all(self.intact) else self[: self.intact.index(False)]
