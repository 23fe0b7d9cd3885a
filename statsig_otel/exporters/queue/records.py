"""Records as they were read from the queue."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload


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
    def of(cls, records: Iterable[Stored]) -> "Records":
        """Those records, in their order."""
        columns = tuple(zip(*records, strict=True))
        return cls(*columns)

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
