"""The seam between a receiver and where its records go.

A receiver hands over all that it made of one request and waits: only what the consumer has taken over may be answered
with 200.
"""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Change:
    """One config change that was accepted at the door.

    Attributes:
        uid: Its `log.record.uid`, 32 hex digits: the same for every delivery of the same change.
        records: Its log records, each a serialised `ExportLogsServiceRequest` that holds just that one.
    """

    uid: str
    records: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Invalid:
    """A verified piece of a request that no record could be made of. It may be the only copy.

    Attributes:
        text: The item as it was sent, or the whole body where the body could not be told apart into items.
        reason: What is wrong with it, and where.
        whole_body: True for a body, False for an item.
    """

    text: bytes
    reason: str
    whole_body: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """What one request brought.

    Attributes:
        receiver: The id of the receiver, such as `statsig` or `statsig/eu`.
        changes: The accepted changes, in the order of the request.
        invalid: What has to be kept as a dead letter, in the same transaction.
    """

    receiver: str
    changes: tuple[Change, ...] = ()
    invalid: tuple[Invalid, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the records and of the invalid texts."""
        records = sum(len(record) for change in self.changes for record in change.records)
        return records + sum(len(invalid.text) for invalid in self.invalid)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The consumer's promise for a batch.

    Attributes:
        accepted: How many changes are new.
        duplicates: How many it had already; `accepted + duplicates` is the number of changes.
    """

    accepted: int
    duplicates: int = 0


class RefusedError(Exception):
    """The consumer can't take the batch now. The sender is told to come again.

    Attributes:
        reason: A short word for the counter, such as `exporter_failed`; the message is for the log.
        retry_after: Seconds until another try makes sense.
    """

    def __init__(self, message: str, *, reason: str, retry_after: int = 10) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after


class Consumer(Protocol):
    """Takes batches over. May be called from any thread, and for several batches at a time."""

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Take over one batch, as a whole or not at all.

        The future is answered from a thread of the consumer's. It fails with `RefusedError` where the batch can't be
        taken now, and is never cancelled by a caller who no longer waits.
        """
