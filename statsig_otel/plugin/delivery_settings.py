"""`sending_queue` and `retry_on_failure`: what every exporter has beside its own keys, with the Collector's names.

The defaults differ from the Collector's where losing nothing asks for it: the queue is on disk, nothing is given up.
"""

import logging
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from statsig_otel.config.model import Duration, Settings
from statsig_otel.exporters.delivery import DeliverySettings
from statsig_otel.exporters.retry import RetrySettings

_logger: Final = logging.getLogger(__name__)


def _one_consumer(value: int) -> int:
    if value != 1:
        _logger.warning("sending_queue::num_consumers: %d is not used: one sender keeps the order", value)
    return value


def _no_blocking(value: bool) -> bool:  # noqa: FBT001 - a validator's signature
    if value:
        _logger.warning("sending_queue::block_on_overflow is not used: a full queue answers the webhook with 503")
    return value


class BatchSettings(Settings):
    """`sending_queue::batch`."""

    max_size: int = Field(default=512, gt=0, le=100_000, description="Log records of one request at most.")


class SendingQueueSettings(Settings):
    """`sending_queue`."""

    enabled: bool = Field(
        default=True, description="Queue on disk. With false the webhook waits for the exporter itself."
    )
    queue_size: int | None = Field(
        default=None, gt=0, description="Log records that may wait; at the limit webhooks are refused. None: the disk."
    )
    sizer: Literal["items"] = Field(default="items", description="What queue_size counts: log records.")
    storage: str | None = Field(default=None, description="The file_storage extension; there is one for all.")
    start_at: Literal["next", "oldest"] = Field(
        default="next", description="Where an exporter begins that the queue does not know yet."
    )
    batch: BatchSettings = Field(default_factory=BatchSettings, description="What is sent together.")
    num_consumers: Annotated[int, AfterValidator(_one_consumer)] = Field(default=1, gt=0, description="Always 1.")
    block_on_overflow: Annotated[bool, AfterValidator(_no_blocking)] = Field(default=False, description="Always false.")


class RetryOnFailureSettings(Settings):
    """`retry_on_failure`."""

    enabled: bool = Field(default=True, description="With false what a passing fault hits becomes a dead letter.")
    initial_interval: Duration = Field(default=5.0, gt=0, description="The wait after the first failure.")
    randomization_factor: float = Field(default=0.5, ge=0, le=1, description="How far a wait is moved by chance.")
    multiplier: float = Field(default=1.5, ge=1, description="By what the wait grows.")
    max_interval: Duration = Field(default=30.0, gt=0, description="The longest wait.")
    max_elapsed_time: Duration = Field(default=0.0, ge=0, description="Dead letter after this; 0 is never.")

    @model_validator(mode="after")
    def _check_intervals(self) -> Self:
        if self.max_interval < self.initial_interval:
            raise ValueError("max_interval must be at least initial_interval")
        return self


class DeliveryKeys(Settings):
    """What every exporter's settings have beside their own."""

    sending_queue: SendingQueueSettings = Field(default_factory=SendingQueueSettings)
    retry_on_failure: RetryOnFailureSettings = Field(default_factory=RetryOnFailureSettings)

    def delivery(self, timeout: float) -> DeliverySettings:
        """The sender's settings."""
        retry = RetrySettings(**dict(self.retry_on_failure))
        return DeliverySettings(max_records=self.sending_queue.batch.max_size, timeout=timeout, retry=retry)
