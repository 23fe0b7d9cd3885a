"""What an exporter answers for one batch: five outcomes, as values.

Each says what its sender does next. `statsig_otel.exporters.otlp.status` holds the table that turns gRPC and HTTP
answers into them.
"""

from dataclasses import dataclass
from typing import TypeAlias


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
