"""The seam between a receiver and where its records go.

A receiver hands over all that it made of one request and waits: only what the consumer has taken over may be answered
with 200.
"""

import logging
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Protocol

from statsig_otel.exporters.terminal import printable


@dataclass(frozen=True, slots=True)
class Change:
    """One config change that was accepted at the door.

    Attributes:
        uid: Its `log.record.uid`, 32 hex digits: the same for every delivery of the same change.
        records: Its log records, each a serialised `ExportLogsServiceRequest` that holds just that one.

    Example:
        >>> from statsig_otel.exporters import Change
        >>> Change("3f2a0c9d5e8b4f6a7c1d2e3f4a5b6c7d", records=(b"an encoded record",)).uid
        '3f2a0c9d5e8b4f6a7c1d2e3f4a5b6c7d'
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

    Example:
        >>> from statsig_otel.exporters import Invalid
        >>> Invalid(b'{"eventName": "statsig::config_change"}', "metadata is missing").whole_body
        False
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

    Example:
        >>> from statsig_otel.exporters import Batch, Change, Invalid
        >>> batch = Batch("statsig/eu", (Change("0" * 32, (b"record",)),), (Invalid(b"{}", "metadata is missing"),))
        >>> batch.size
        8
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

    Example:
        >>> from statsig_otel.exporters import Receipt
        >>> Receipt(accepted=2, duplicates=1)
        Receipt(accepted=2, duplicates=1)
    """

    accepted: int
    duplicates: int = 0


class RefusedError(Exception):
    """The consumer can't take the batch now. The sender is told to come again.

    Attributes:
        reason: A short word for the counter, such as `exporter_failed`; the message is for the log.
        retry_after: Seconds until another try makes sense.

    Example:
        >>> from statsig_otel.exporters import RefusedError
        >>> error = RefusedError("the disk is full", reason="storage", retry_after=60)
        >>> (str(error), error.reason, error.retry_after)
        ('the disk is full', 'storage', 60)
    """

    def __init__(self, message: str, *, reason: str, retry_after: int = 10) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after


class Consumer(Protocol):
    """Takes batches over: a queue, a table, a LoggerProvider. Receivers hand it all that one request brought.

    **Threads.** `consume` is called from any thread, for several batches at a time, and before the futures of earlier
    ones are answered. Under ASGI it is called in the event loop's own thread: it must not wait for anything, but hand
    the batch to a thread of the consumer's and return the future at once.

    **Outcomes.** The future's result, a `Receipt`, is the promise that the webhook's 200 passes on: all of the batch is
    taken over, as durably as the consumer takes things, its invalid items too. `RefusedError` is "not now": nothing of
    the batch was taken over, or it does no harm that it comes again, with the same uids; Statsig is told 503 and when
    to come again. A `Receipt` counts changes, and not their records.

    **Mistakes.** Any other exception, out of the future or out of `consume` itself, is answered with 500 and logged
    with its traceback: never a 2xx.

    **Time.** A receiver waits for the future as long as its `patience` says, and answers 503 then; without one it waits
    as long as it takes. Nobody cancels the future: what was handed over may be taken over all the same, and is a
    duplicate when it comes again.

    **Lifecycle.** There is none: whoever makes a consumer starts and closes it. It has to work before the receiver's
    first request and until its last one is answered, which is after `close` of the receiver or `stop` of the server.

    Example:
        >>> from concurrent.futures import Future
        >>> from statsig_otel.exporters import Batch, Change, Consumer, Receipt, RefusedError
        >>> class Shelf:
        ...     def __init__(self, room: int) -> None:
        ...         self.changes: dict[str, Change] = {}
        ...         self._room = room
        ...     def consume(self, batch: Batch) -> Future[Receipt]:
        ...         future: Future[Receipt] = Future()
        ...         new = {change.uid: change for change in batch.changes if change.uid not in self.changes}
        ...         if len(self.changes) + len(new) > self._room:
        ...             future.set_exception(RefusedError("the shelf is full", reason="full", retry_after=60))
        ...         else:
        ...             self.changes |= new
        ...             future.set_result(Receipt(len(new), duplicates=len(batch.changes) - len(new)))
        ...         return future
        >>> consumer: Consumer = Shelf(room=1)
        >>> first, second = (Change(digit * 32, (b"record",)) for digit in "12")
        >>> consumer.consume(Batch("statsig", (first,))).result()
        Receipt(accepted=1, duplicates=0)
        >>> consumer.consume(Batch("statsig", (first,))).result()
        Receipt(accepted=0, duplicates=1)
        >>> consumer.consume(Batch("statsig", (second,))).exception().reason
        'full'
    """

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Take over one batch, as a whole or not at all.

        Args:
            batch: What one request brought. It is never empty, but may hold invalid items alone.

        Returns:
            A future of the consumer's, answered from whichever thread: with a `Receipt` once the batch is taken over,
            or with a `RefusedError` where it can't be now.
        """


_MAX_LOGGED: Final = 10
"""Invalid items of a batch that go into the log."""


_MAX_LOGGED_TEXT: Final = 2048


def log_invalid(logger: logging.Logger, batch: Batch, *, hidden: bool) -> None:
    """Log the invalid items of a batch, a bounded number of them and a bounded part of each.

    Args:
        logger: Where to.
        batch: The batch.
        hidden: Whether the texts may hold what must not be shown: then only their size is told.
    """
    for invalid in batch.invalid[:_MAX_LOGGED]:
        text = "its text is not shown"
        if not hidden:
            # In this order: escaping may lengthen it, and one of 20 MiB is not worth it.
            text = invalid.text[:_MAX_LOGGED_TEXT].decode(errors="backslashreplace")
            text = printable(text)[:_MAX_LOGGED_TEXT]
        kind = "body" if invalid.whole_body else "item"
        message = "%s: an invalid %s of %d bytes is in no queue, only here: %s: %s"
        logger.warning(message, batch.receiver, kind, len(invalid.text), printable(invalid.reason), text)
    if (more := len(batch.invalid) - _MAX_LOGGED) > 0:
        logger.warning("%s: and %d more invalid items in the same request", batch.receiver, more)
