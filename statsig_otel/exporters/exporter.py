"""The seam between delivery and a backend."""

from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Delivered:
    """The backend has the batch; it is done.

    Example:
        >>> from statsig_otel.exporters import Delivered
        >>> Delivered()
        Delivered()
    """


@dataclass(frozen=True, slots=True)
class RetryLater:
    """A passing fault: the same batch is sent again, without an end.

    Attributes:
        reason: What happened, for the log.
        after: Seconds that the backend asks to wait at least, an hour at most; None where it named none.

    Example:
        >>> from statsig_otel.exporters import RetryLater
        >>> RetryLater("503 out for lunch", after=30)
        RetryLater(reason='503 out for lunch', after=30)
    """

    reason: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """The backend refuses the data itself; sending the same bytes again can't help.

    Attributes:
        reason: What the backend said, for the log.

    Example:
        >>> from statsig_otel.exporters import Rejected
        >>> Rejected("400 no such field")
        Rejected(reason='400 no such field')
    """

    reason: str


@dataclass(frozen=True, slots=True)
class PartiallyRejected:
    """The backend took the batch but for some records, and does not say which.

    OTLP forbids sending such a batch again (OTLP specification, "Partial Success").

    Attributes:
        count: How many log records were refused, at least 1.
        reason: What the backend said, for the log.

    Example:
        >>> from statsig_otel.exporters import PartiallyRejected
        >>> PartiallyRejected(2, "too old")
        PartiallyRejected(count=2, reason='too old')
    """

    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """Neither the data nor a passing fault: somebody has to mend a key, an address or a certificate.

    Attributes:
        reason: What the backend or the library said, for the log.

    Example:
        >>> from statsig_otel.exporters import Blocked
        >>> Blocked("401 the key has expired")
        Blocked(reason='401 the key has expired')
    """

    reason: str


Outcome: TypeAlias = Delivered | RetryLater | Rejected | PartiallyRejected | Blocked


class Exporter(Protocol):
    """Sends encoded log records to one backend.

    **Lifecycle.** The constructor opens nothing and starts nothing. `start` is called once, then `send` any number of
    times, then `shutdown`. After a reload with other settings another exporter is made; this one is shut down first.

    **Threads.** `start` and `send` are called from one thread at a time. `shutdown` may come from another one while a
    `send` is under way: that `send` has to end soon, with any outcome, which then says nothing. One that does not is
    left behind after a few seconds, and its batch stays in the queue.

    **Outcomes.** What `send` returns is what becomes of the batch:

    - `Delivered`: it is done. Say so only once the backend has it for good.
    - `RetryLater`: a passing fault. The same records come again after a wait, without an end.
    - `Rejected`: the data is at fault. Halves of the batch come, until the record is alone: that is a dead letter. The
      others go on.
    - `PartiallyRejected`: the backend took the batch but for some records, and must not get it again. It is done, and a
      copy is kept as a dead letter.
    - `Blocked`: neither of these; somebody has to mend something. Nothing leaves the queue. When in doubt, say this.

    Batches may come twice: after a crash, a timeout or a reload. A record's `log.record.uid` tells.

    **Without a queue** (`sending_queue: {enabled: false}`) anything but `Delivered` refuses the webhook with 503.

    **Mistakes.** It never raises. What raises all the same, or returns something that is no outcome, counts as
    `Blocked`; the log has the traceback once. So a mistake loses no record, but holds up those behind it.

    **Secrets.** Reasons are logged and kept with dead letters, and what is raised is logged: put no key into either.

    Example:
        >>> from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
        >>> from statsig_otel.exporters import Delivered, Exporter, Outcome, RetryLater
        >>> class Tape:
        ...     def __init__(self) -> None:
        ...         self.titles: list[str] = []
        ...         self._is_open = False
        ...     def start(self) -> None:
        ...         self._is_open = True
        ...     def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        ...         if not self._is_open:
        ...             return RetryLater("not started, or shut down")
        ...         for resource_logs in ExportLogsServiceRequest.FromString(payload).resource_logs:
        ...             for scope_logs in resource_logs.scope_logs:
        ...                 self.titles += [record.body.string_value for record in scope_logs.log_records]
        ...         return Delivered()
        ...     def shutdown(self) -> None:
        ...         self._is_open = False
        >>> exporter: Exporter = Tape()
        >>> exporter.start()
        >>> exporter.send(b"", count=0, timeout=5)
        Delivered()
        >>> exporter.shutdown()
        >>> exporter.send(b"", count=0, timeout=5)
        RetryLater(reason='not started, or shut down', after=None)
    """

    def start(self) -> None:
        """Open what `send` needs. A backend that does not answer is no error here: `send` will say so.

        What it raises ends the start of the service, with the message for people. At a reload all else is taken over,
        and what is for this exporter waits in the queue, or is refused.

        Raises:
            OSError: A local file that the settings name can't be opened.
            ValueError: A local file that the settings name holds something else than it should.
        """

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        """Send one batch and say what became of it. Never raises.

        Args:
            payload: A serialised `ExportLogsServiceRequest`. Serialised messages concatenate, so a batch is the
                joined bytes of its records, in order.
            count: How many log records the payload holds.
            timeout: Seconds for the whole call, connecting included: the settings' own `timeout`, else 30. Without a
                queue it can be less, and the webhook is refused a second after it.
        """

    def shutdown(self) -> None:
        """Close everything, and end a `send` that is under way. Safe to call twice, and without a `start`."""
