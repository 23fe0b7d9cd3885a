"""The interface between a receiver and the destination of its records.

A receiver passes on the changes and invalid items of one request and waits. It answers 200 only after the consumer has
accepted them.
"""

import logging
import re
from collections.abc import Awaitable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Protocol

from statsig_otel._arguments import check_items, check_type, mistyped
from statsig_otel._futures import failed
from statsig_otel._times import RETRY_AFTER
from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.terminal import printable

_YEAR: Final = 31_536_000  # seconds
_UID: Final = re.compile("[0-9a-fA-F]{32}")


@dataclass(frozen=True, slots=True)
class Change:
    """One verified config change that passed the receiver's filter.

    Attributes:
        uid: The change's `log.record.uid`: 32 hex digits, the same for every delivery of the change.
        records: The change's log records, at least one, each as a serialised `ExportLogsServiceRequest` with a single
            record.

    Raises:
        TypeError: A value has another type.
        ValueError: The uid is not 32 hex digits, or `records` is empty, or one of them is.

    Example:
        >>> from statsig_otel.exporters import Change
        >>> Change("3f2a0c9d5e8b4f6a7c1d2e3f4a5b6c7d", records=(b"an encoded record",)).uid
        '3f2a0c9d5e8b4f6a7c1d2e3f4a5b6c7d'
    """

    uid: str
    records: tuple[bytes, ...]

    def __post_init__(self) -> None:
        check_items("records", self.records, bytes)
        if not self.records or not all(self.records):
            raise ValueError("records must have at least one record, and none that is empty")
        if not isinstance(self.uid, str):  # without a call, since this is for each change
            raise TypeError(mistyped("uid", self.uid, "a str"))
        if not _UID.fullmatch(self.uid):
            raise ValueError("uid must be 32 hex digits")


@dataclass(frozen=True, slots=True)
class Invalid:
    """A verified item or body that could not be mapped to a record. It may be the only copy.

    Attributes:
        text: The item as it was sent, or the whole body if it could not be split into items.
        reason: What is wrong, and where.
        whole_body: True for a body, False for an item.

    Raises:
        TypeError: A value has another type.

    Example:
        >>> from statsig_otel.exporters import Invalid
        >>> Invalid(b'{"eventName": "statsig::config_change"}', "metadata is missing").whole_body
        False
    """

    text: bytes
    reason: str
    whole_body: bool = False

    def __post_init__(self) -> None:
        check_type("text", self.text, bytes, "bytes")
        check_type("reason", self.reason, str)


@dataclass(frozen=True, slots=True)
class Batch:
    """The changes and invalid items of one request.

    Attributes:
        receiver: The id of the receiver, such as `statsig` or `statsig/eu`.
        changes: The changes, in the order of the request.
        invalid: The invalid items, which a durable consumer stores as dead letters together with the changes.
        arrivals: What the queue remembers of each config change of the request, also of those that the filter dropped,
            to compare it with the audit log. Empty for a receiver without `audit_log`.

    Raises:
        TypeError: A value has another type.

    Example:
        >>> from statsig_otel.exporters import Batch, Change, Invalid
        >>> batch = Batch("statsig/eu", (Change("0" * 32, (b"record",)),), (Invalid(b"{}", "metadata is missing"),))
        >>> batch.size
        8
    """

    receiver: str
    changes: tuple[Change, ...] = ()
    invalid: tuple[Invalid, ...] = ()
    arrivals: tuple[Arrival, ...] = ()

    def __post_init__(self) -> None:
        check_type("receiver", self.receiver, str)
        check_items("changes", self.changes, Change)
        check_items("invalid", self.invalid, Invalid)
        check_items("arrivals", self.arrivals, Arrival)

    @property
    def size(self) -> int:
        """The size of the records and the invalid items, in bytes."""
        records = sum(len(record) for change in self.changes for record in change.records)
        return records + sum(len(invalid.text) for invalid in self.invalid)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The consumer's promise that it has accepted a batch.

    Attributes:
        accepted: The number of new changes.
        duplicates: The number of changes that had been accepted before. The sum is the number of changes in the batch;
            a receiver answers any other sum with 500.

    Raises:
        TypeError: A value is not an integer.
        ValueError: A value is negative.

    Example:
        >>> from statsig_otel.exporters import Receipt
        >>> Receipt(accepted=2, duplicates=1)
        Receipt(accepted=2, duplicates=1)
    """

    accepted: int
    duplicates: int = 0

    def __post_init__(self) -> None:
        for argument, value in (("accepted", self.accepted), ("duplicates", self.duplicates)):
            check_type(argument, value, int)
            if value < 0:
                raise ValueError(f"{argument} must not be negative")


def check_receipt(receipt: Receipt, changes: int) -> None:
    """Check that a receipt covers a batch with this number of changes.

    Raises:
        TypeError: It is not a receipt.
        ValueError: It counts more or fewer changes.
    """
    check_type("receipt", receipt, Receipt)
    counted = receipt.accepted + receipt.duplicates
    if counted != changes:
        counts = f"accepted {receipt.accepted}, duplicates {receipt.duplicates}"
        raise ValueError(f"receipt must count the changes of the batch, which has {changes}, not {counted} ({counts})")


class RefusedError(Exception):
    """The consumer can't accept the batch now. The receiver answers 503 with Retry-After.

    Attributes:
        reason: A short identifier for metrics, such as `exporter_failed`. The message is for the log.
        retry_after: Seconds after which another attempt makes sense, from 0 to a year.
        subject: What failed, such as an exporter. Of refusals with the same reason and subject not all are logged.

    Raises:
        TypeError: A value has another type.
        ValueError: `retry_after` is negative, or more than a year.

    Example:
        >>> from statsig_otel.exporters import RefusedError
        >>> error = RefusedError("the disk is full", reason="storage", retry_after=60)
        >>> (str(error), error.reason, error.retry_after)
        ('the disk is full', 'storage', 60)
    """

    def __init__(self, message: str, *, reason: str, retry_after: int = RETRY_AFTER, subject: str = "") -> None:
        check_type("reason", reason, str)
        check_type("retry_after", retry_after, int)
        if not 0 <= retry_after <= _YEAR:
            raise ValueError(f"retry_after must be from 0 to {_YEAR} seconds")
        check_type("subject", subject, str)
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after
        self.subject = subject


def refused(message: str, *, reason: str) -> Future[Receipt]:
    """The answer of a consumer that refuses a batch at once."""
    return failed(RefusedError(message, reason=reason))


class Consumer(Protocol):
    """Accepts the batches of receivers. Examples are a queue, a database table and a LoggerProvider.

    **Threads.** `consume` is called from any thread, for several batches at a time, and before earlier batches are
    answered. Under ASGI it is called in the event loop's thread. So it must not wait there: it passes the batch to
    another thread and returns a future at once, or it is an `async def`. Under ASGI that runs in the loop of the
    request. Under WSGI each call runs in a thread and a loop of its own.

    **Outcomes.** A `Receipt` is the promise behind the webhook's 200: the consumer has accepted the whole batch,
    including its invalid items, with whatever durability it offers. It may be returned, or be the result of the future
    or the awaitable that is returned. `RefusedError`, raised or as the future's exception, means "not now": the
    consumer has accepted nothing of the batch, or does no harm if it receives the batch again, with the same uids.
    Statsig gets a 503 with Retry-After. A `Receipt` counts changes, not their records.

    **Mistakes.** Any other exception or result is answered with 500 and logged with its traceback, also a `Receipt`
    that counts more or fewer changes than the batch has. It never leads to a 2xx. In the main thread `SystemExit` and
    `KeyboardInterrupt` end the process instead, since signals raise them there.

    **Time.** If the receiver has a `patience`, it waits for the future that many seconds, and then answers 503.
    Otherwise it waits without limit. The future is never cancelled: the consumer may still accept the batch later, and
    then finds a duplicate in the redelivery.

    **Lifecycle.** A consumer has none here: whoever creates it also starts and closes it. It must work from before the
    receiver's first request until the last request is answered, which is after the receiver's `close` or the server's
    `stop`.

    Example:
        >>> from statsig_otel.exporters import Batch, Change, Consumer, Receipt, RefusedError
        >>> class Shelf:
        ...     def __init__(self, room: int) -> None:
        ...         self.changes: dict[str, Change] = {}
        ...         self._room = room
        ...     def consume(self, batch: Batch) -> Receipt:
        ...         new = {change.uid: change for change in batch.changes if change.uid not in self.changes}
        ...         if len(self.changes) + len(new) > self._room:
        ...             raise RefusedError("the shelf is full", reason="full", retry_after=60)
        ...         self.changes |= new
        ...         return Receipt(len(new), duplicates=len(batch.changes) - len(new))
        >>> shelf = Shelf(room=1)
        >>> consumer: Consumer = shelf
        >>> first, second = (Change(digit * 32, (b"record",)) for digit in "12")
        >>> shelf.consume(Batch("statsig", (first,)))
        Receipt(accepted=1, duplicates=0)
        >>> shelf.consume(Batch("statsig", (first,)))
        Receipt(accepted=0, duplicates=1)
        >>> try:
        ...     shelf.consume(Batch("statsig", (second,)))
        ... except RefusedError as error:
        ...     print(error.reason)
        full
    """

    def consume(self, batch: Batch, /) -> Future[Receipt] | Awaitable[Receipt] | Receipt:
        """Accept one batch, completely or not at all.

        Args:
            batch: The changes and invalid items of one request. It is never empty, but may contain only invalid items
                or arrivals.

        Returns:
            A `Receipt`, or a future or an awaitable of one. A `concurrent.futures.Future` may be completed from any
            thread.

        Raises:
            RefusedError: The consumer can't accept the batch now.
        """


_MAX_LOGGED: Final = 10
"""The most invalid items of a batch that are logged."""

_MAX_LOGGED_TEXT: Final = 2048


def log_invalid(logger: logging.Logger, batch: Batch, *, hidden: bool) -> None:
    """Log the invalid items of a batch: a limited number of them, and a limited part of each.

    Args:
        logger: The logger.
        batch: The batch.
        hidden: Whether the content may include what must not be shown. Then only its size is logged.
    """
    for invalid in batch.invalid[:_MAX_LOGGED]:
        text = "its content is not shown"
        if not hidden:
            # Escaping lengthens the text, so it is cut before and after. An item can have 20 MiB.
            text = invalid.text[:_MAX_LOGGED_TEXT].decode(errors="backslashreplace")
            text = printable(text)[:_MAX_LOGGED_TEXT]
        kind = "body" if invalid.whole_body else "item"
        message = "%s: an invalid %s of %d bytes is stored nowhere but in this log: %s: %s"
        logger.warning(message, batch.receiver, kind, len(invalid.text), printable(invalid.reason), text)
    if (more := len(batch.invalid) - _MAX_LOGGED) > 0:
        logger.warning("%s: and %d more invalid items in the same request", batch.receiver, more)
