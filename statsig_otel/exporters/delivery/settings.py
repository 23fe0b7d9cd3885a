"""How an exporter's sender works: the sizes of its batches, and the times of its attempts."""

from dataclasses import dataclass, field
from typing import Final

from statsig_otel._times import SEND_TIMEOUT
from statsig_otel.exporters.delivery.retry import RetrySettings

MAX_RECORDS: Final = 512
MAX_BYTES: Final = 2 << 20
"""The limits of one `send`; a larger record goes alone. A Collector's gRPC receiver takes 4 MiB."""

BLOCKED: Final = RetrySettings(initial_interval=30.0, multiplier=2.0, max_interval=240.0, randomization_factor=0.25)
"""When the head is tried again while somebody has to repair something: at least every five minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """How an exporter's sender works. All times are in seconds."""

    max_records: int = MAX_RECORDS  # of a batch
    max_bytes: int = MAX_BYTES  # of a batch
    timeout: float = SEND_TIMEOUT  # for one attempt
    retry: RetrySettings = field(default_factory=RetrySettings)  # after a temporary failure
    blocked: RetrySettings = BLOCKED  # while somebody has to repair something; it never ends
    between_probes: float = 1.0  # at least, while the head is refused
    refused_after: float = 600.0  # of failures that may be about the data (HTTP 500), until a record is a dead letter
    reminder: float = 3600.0  # between two log lines about an exporter that stays blocked
    storage_pause: float = 5.0  # before the queue's file is tried again
