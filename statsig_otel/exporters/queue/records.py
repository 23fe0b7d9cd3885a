"""Records as they were read from the queue, with a checksum that tells whether they are still what was stored."""

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
"""zlib's CRC-32 by instructions made for it, where there are any: each record of a backlog costs one."""

Row: TypeAlias = tuple[int, Any, Any, Any]
"""seq, uid, payload and checksum, as the database has them; damage can change the type of all but the first."""


def checksum(uid: bytes, payload: bytes) -> int:
    """What is stored beside a record."""
    return crc32(payload, crc32(uid))


class Stored(NamedTuple):
    """One record as it was read.

    Attributes:
        seq: Its place in the log.
        uid: The item's uid, 16 bytes; empty where it can't be read.
        payload: The encoded request; empty where it can't be read.
        intact: Whether both could be read and still have their checksum.
    """

    seq: int
    uid: bytes
    payload: bytes
    intact: bool

    @classmethod
    def checked(cls, seq: int, uid: object, payload: object, stored: object) -> "Stored":
        """A record as it was read, whatever the types of its values have become."""
        if isinstance(uid, bytes) and isinstance(payload, bytes):
            return cls(seq, uid, payload, checksum(uid, payload) == stored)
        return cls(seq, uid if isinstance(uid, bytes) else b"", payload if isinstance(payload, bytes) else b"", False)


@dataclass(frozen=True, slots=True)
class Records(Sequence[Stored]):
    """Some records in the order of the log, as columns: a backlog is delivered with no object for each of them.

    Attributes:
        seqs: Their places in the log, ascending.
        uids: Their items' uids.
        payloads: Their encoded requests.
        intact: Whether each could be read and still has its checksum.
    """

    seqs: tuple[int, ...] = ()
    uids: tuple[bytes, ...] = ()
    payloads: tuple[bytes, ...] = ()
    intact: tuple[bool, ...] = ()

    @classmethod
    def checked(cls, rows: Sequence[Row]) -> "Records":
        """Rows as they were read."""
        if not rows:
            return cls()
        # Column by column, with no step of the interpreter for each: a backlog is delivered as fast as this is.
        seqs, uids, payloads, checksums = zip(*rows, strict=True)
        with contextlib.suppress(TypeError):  # damage can change a value's type
            if all(map(eq, map(quick_crc32, payloads, map(quick_crc32, uids)), checksums)):
                return cls(seqs, uids, payloads, (True,) * len(seqs))
        return cls(*zip(*(Stored.checked(*row) for row in rows), strict=True))  # zlib has the last word on damage

    def __len__(self) -> int:
        return len(self.seqs)

    @overload
    def __getitem__(self, place: int) -> Stored: ...

    @overload
    def __getitem__(self, place: slice) -> "Records": ...

    def __getitem__(self, place: int | slice) -> "Stored | Records":
        if isinstance(place, slice):
            return Records(self.seqs[place], self.uids[place], self.payloads[place], self.intact[place])
        return Stored(self.seqs[place], self.uids[place], self.payloads[place], self.intact[place])

    def __add__(self, others: "Records") -> "Records":
        return Records(
            self.seqs + others.seqs,
            self.uids + others.uids,
            self.payloads + others.payloads,
            self.intact + others.intact,
        )

    @property
    def size(self) -> int:
        """Bytes of all payloads."""
        return sum(map(len, self.payloads))

    @property
    def content(self) -> bytes:
        """All payloads as one request: serialised protobuf messages that are concatenated merge."""
        return b"".join(self.payloads)

    def one_by_one(self) -> Iterator["Records"]:
        """Each by itself."""
        return (self[place : place + 1] for place in range(len(self)))

    def until_damage(self) -> "Records":
        """Those before the first one that is not intact."""
        return self if all(self.intact) else self[: self.intact.index(False)]
