"""The interface of an exporter, and the outcomes of an export."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, TypeAlias

from statsig_otel._arguments import check_type, mistyped


def _check_count(argument: str, count: int) -> None:
    check_type(argument, count, int)
    if count < 1:
        raise ValueError(f"{argument} must be at least 1, not {count}")


@dataclass(frozen=True, slots=True)
class Delivered:
    """The backend has accepted the batch, or some of its records.

    Attributes:
        only: The positions of the records that were accepted, at least one, in rising order, counted from 0:
            `range(3)` for the first three. The rest is sent again at once, and until it is accepted or becomes a dead
            letter, nothing from behind the batch is sent. None if all were accepted.

    Raises:
        TypeError: `only` is not a sequence of integers.
        ValueError: It is empty, its order is another one, or a position is below 0.

    Example:
        >>> from statsig_otel.exporters import Delivered
        >>> Delivered()
        Delivered(only=None)
        >>> Delivered(only=range(3))
        Delivered(only=(0, 1, 2))
        >>> Delivered(only=[0, 4])
        Delivered(only=(0, 4))
    """

    only: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.only is None:
            return
        if isinstance(self.only, str | bytes):
            raise TypeError(mistyped("only", self.only, "a sequence of positions"))
        check_type("only", self.only, Sequence, "a sequence of positions")
        positions = tuple(self.only)
        for index, position in enumerate(positions):
            check_type(f"only[{index}]", position, int)
        if not positions:
            raise ValueError("only must not be empty: return the failure instead")
        if positions[0] < 0 or any(first >= second for first, second in pairwise(positions)):
            raise ValueError("only must contain positions from 0 on, in rising order")
        object.__setattr__(self, "only", positions)


@dataclass(frozen=True, slots=True)
class RetryLater:
    """A temporary failure: the same batch is sent again, without a limit on attempts.

    Attributes:
        reason: What happened, for the log.
        after: The least number of seconds to wait, if the backend asks for one; at most an hour.
        may_be_data: Whether one of the records may be the cause, as with HTTP 500. Then the record is found, and the
            others are sent. It becomes a dead letter if it fails alone in this way three more times, at least 200
            seconds apart, and each time another record was taken in between.

    Raises:
        TypeError: A value has another type.
        ValueError: `after` is infinite or NaN.

    Example:
        >>> from statsig_otel.exporters import RetryLater
        >>> RetryLater("503 out for lunch", after=30)
        RetryLater(reason='503 out for lunch', after=30, may_be_data=False)
    """

    reason: str
    after: float | None = None
    may_be_data: bool = False

    def __post_init__(self) -> None:
        check_type("reason", self.reason, str)
        if self.after is not None:
            check_type("after", self.after, (int, float), "a number of seconds or None")
            if not -math.inf < self.after < math.inf:  # math.isfinite raises for a large integer
                raise ValueError(f"after must be a finite number of seconds, not {self.after!r}")
        if not isinstance(self.may_be_data, bool):
            raise TypeError(mistyped("may_be_data", self.may_be_data, "True or False"))


@dataclass(frozen=True, slots=True)
class Rejected:
    """The backend refuses the data itself. Sending the same bytes again can't help.

    Attributes:
        reason: What the backend said, for the log.

    Raises:
        TypeError: It is not a string.

    Example:
        >>> from statsig_otel.exporters import Rejected
        >>> Rejected("400 no such field")
        Rejected(reason='400 no such field')
    """

    reason: str

    def __post_init__(self) -> None:
        check_type("reason", self.reason, str)


@dataclass(frozen=True, slots=True)
class PartiallyRejected:
    """The backend has accepted the batch except for some records, and does not say which.

    OTLP forbids sending such a batch again (OTLP specification, "Partial Success").

    Attributes:
        count: The number of refused log records, at least 1, and at most those of the batch.
        reason: What the backend said, for the log.

    Raises:
        TypeError: A value has another type.
        ValueError: The count is less than 1.

    Example:
        >>> from statsig_otel.exporters import PartiallyRejected
        >>> PartiallyRejected(2, "too old")
        PartiallyRejected(count=2, reason='too old')
    """

    count: int
    reason: str

    def __post_init__(self) -> None:
        _check_count("count", self.count)
        check_type("reason", self.reason, str)


@dataclass(frozen=True, slots=True)
class Blocked:
    """A failure that neither the data nor waiting can change: someone has to fix a key, an address or a certificate.

    Attributes:
        reason: What the backend or the library said, for the log.
        hint: What somebody has to do, for the live page, such as `replace the key`. Outcomes that differ only in it are
            equal.

    Raises:
        TypeError: One of them is not a string.

    Example:
        >>> from statsig_otel.exporters import Blocked
        >>> Blocked("401 the key has expired", hint="replace the key (headers)").reason
        '401 the key has expired'
    """

    reason: str
    hint: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_type("reason", self.reason, str)
        check_type("hint", self.hint, str)


Outcome: TypeAlias = Delivered | RetryLater | Rejected | PartiallyRejected | Blocked


class Exporter(Protocol):
    """Sends encoded log records to one backend.

    **Lifecycle.** The constructor opens nothing and starts nothing. `start` is called once, then `send` any number of
    times, then `shutdown`. If a reload changes the settings, this exporter is shut down and another one is created. If
    the start of the service fails, an exporter that you made yourself is shut down, and started again with the next
    attempt.

    **Threads.** `start` and `send` are called from one thread at a time. `shutdown` may be called from another thread
    during a `send`. That `send` must end soon. If it answers with `Delivered` or `PartiallyRejected`, that counts; any
    other outcome is ignored. A `send` that does not end is abandoned after a few seconds, and its batch stays in the
    queue.

    **Outcomes.** The return value of `send` decides what happens to the batch:

    - `Delivered`: The batch is done. Return this only once the backend has accepted it for good. With `only` these
      records are done, and the rest is sent again at once. This is for a backend that takes one record at a time: if
      the third record fails, return `Delivered(only=range(2))`, and the failure with the next call.
    - `RetryLater`: A temporary failure. The same records are sent again after a wait, by default for ever.
    - `Rejected`: The data is at fault. The batch is halved until the refused record is alone. That record becomes a
      dead letter once the backend has taken another one; until then it waits. The other records are delivered.
    - `PartiallyRejected`: The backend has accepted the batch except for some records, and must not receive it again.
      The batch is done, and a copy is stored as a dead letter.
    - `Blocked`: Any other failure: someone has to fix something. Nothing leaves the queue. When in doubt, return this.

    Begin a reason with the kind of the failure, and end the kind with a colon, as in `HTTP 503: try later`. Failures
    of one kind are logged once in an outage.

    A batch may arrive twice: after a crash, a timeout or a reload. A record's `log.record.uid` identifies it.

    **Without a queue** (`sending_queue: {enabled: false}`) any outcome but `Delivered` refuses the webhook with 503.

    **Mistakes.** `send` never raises. If it does, or returns something that is not an outcome, that counts as
    `Blocked`, and the traceback is logged once. So a mistake loses no record, but delays those behind it.

    **Secrets.** Reasons are logged and stored with dead letters, and exceptions are logged: neither may contain a key.

    Example:
        >>> from statsig_otel.exporters import Delivered, Exporter, Outcome, RetryLater, log_records
        >>> class Tape:
        ...     def __init__(self) -> None:
        ...         self.titles: list[str] = []
        ...         self._is_open = False
        ...     def start(self) -> None:
        ...         self._is_open = True
        ...     def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        ...         if not self._is_open:
        ...             return RetryLater("not started, or shut down")
        ...         self.titles += [record.body.string_value for record in log_records(payload)]
        ...         return Delivered()
        ...     def shutdown(self) -> None:
        ...         self._is_open = False
        >>> exporter: Exporter = Tape()
        >>> exporter.start()
        >>> exporter.send(b"", 0, 5.0)
        Delivered(only=None)
        >>> exporter.shutdown()
        >>> exporter.send(b"", 0, 5.0)
        RetryLater(reason='not started, or shut down', after=None, may_be_data=False)
    """

    def start(self) -> None:
        """Open what `send` needs. A backend that does not answer is not an error here: `send` will report it.

        An exception ends the start of the service, which shows its message to the user. At a reload, everything else
        is applied, and the records for this exporter wait in the queue. Then this method is called again, from the
        thread that calls `send`, until it succeeds.

        Raises:
            OSError: A local file that the settings name can't be opened.
            ValueError: A local file that the settings name does not contain what it should.
        """

    def send(self, payload: bytes, count: int, timeout: float, /) -> Outcome:
        """Send one batch and return the outcome. Never raises.

        Args:
            payload: A serialised `ExportLogsServiceRequest`. Serialised messages can be concatenated, so a batch is the
                bytes of its records, joined in order.
            count: The number of log records in the payload.
            timeout: Seconds for the whole call, including connecting: the `timeout` of the settings, or else 30.
                Without a queue it can be less, and the webhook is refused one second later.
        """

    def shutdown(self) -> None:
        """Close everything, and make a `send` in progress end. Safe to call twice, and without `start`."""
