"""The settings `sending_queue` and `retry_on_failure`, which every exporter has in addition to its own keys.

The names are the Collector's. Some defaults differ, so that nothing is lost: the queue is on disk, and retries never
end.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from statsig_otel._times import SEND_TIMEOUT
from statsig_otel.config.errors import SettingError
from statsig_otel.config.model import Composed, ExtensionOf, Settings
from statsig_otel.config.units import SIZE, Duration, format_duration, parse_size
from statsig_otel.exporters.delivery.retry import RetrySettings
from statsig_otel.exporters.delivery.settings import MAX_BYTES, MAX_RECORDS, DeliverySettings

_MOST_RECORDS: Final = 100_000
_MOST_BYTES: Final = 64 << 20


def _no_requests(value: object) -> object:
    if value == "requests":
        raise SettingError("requests are not counted here", "write items, and count log records, or write bytes")
    return value


Sizer = Annotated[Literal["items", "bytes"], BeforeValidator(_no_requests)]
"""The unit of a size: log records, or their bytes."""


def _refuse_unit(value: object) -> object:
    """As in the Collector, bytes are a plain number here."""
    if isinstance(value, str) and SIZE.fullmatch(value) and not value.isdecimal():
        raise SettingError("must be a whole number", f"write {parse_size(value)}, and sizer: bytes with it")
    return value


class BatchSettings(Settings):
    """`sending_queue::batch`.

    Example:
        >>> from statsig_otel.plugin import BatchSettings, SendingQueueSettings
        >>> SendingQueueSettings(batch=BatchSettings(max_size=100)).batch.sizer
        'items'
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "partition": "leave it out: an exporter has one queue, and keeps the order",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {"partition": ({}, {"metadata_keys": []})}
    # The keys of the Collector's batch processor.
    meant: ClassVar[Mapping[str, str]] = {
        "send_batch_max_size": "max_size",
        "send_batch_size": "max_size",
        "timeout": "flush_timeout",
    }

    sizer: Sizer = Field(
        default="items", description="What max_size counts: log records, or their bytes. Without it: as in the queue."
    )
    max_size: int = Field(
        default=MAX_RECORDS,
        ge=0,
        description="The most log records in one request, which has at most 2 MiB; or with `sizer: bytes` its bytes "
        "as protobuf without compression (JSON is longer), where a larger record goes alone, and the default is 2 MiB. "
        f"More than 0, and at most {_MOST_RECORDS} log records or {_MOST_BYTES} bytes.",
    )
    min_size: int = Field(default=0, ge=0, description="Not used: what waits is sent at once.")
    flush_timeout: Duration = Field(default=0.0, ge=0, description="Not used: what waits is sent at once.")

    @model_validator(mode="before")
    @classmethod
    def _limit_bytes(cls, values: object) -> object:
        """The default of `max_size` counts log records."""
        if isinstance(values, Mapping) and values.get("sizer") == "bytes":
            return {"max_size": MAX_BYTES, **values}
        return values

    _whole_max_size = field_validator("max_size", mode="before")(_refuse_unit)

    @field_validator("max_size")
    @classmethod
    def _check_max_size(cls, size: int, info: ValidationInfo) -> int:
        counts_bytes = info.data.get("sizer") == "bytes"
        most, unit = (_MOST_BYTES, "bytes") if counts_bytes else (_MOST_RECORDS, "log records")
        if size == 0:
            default = "2 MiB" if counts_bytes else f"{MAX_RECORDS} log records"
            raise SettingError(
                "must be more than 0", f"leave it out for the default, {default}: there is always a limit"
            )
        if size > most:
            why = "a request is in memory as a whole" if counts_bytes else "a request has at most 2 MiB anyway"
            raise SettingError(f"must be at most {most} {unit}", f"write less, or leave it out: {why}")
        return size


class SendingQueueSettings(Settings):
    """The queue before an exporter: `sending_queue`.

    Example:
        >>> from statsig_otel.plugin import SendingQueueSettings
        >>> SendingQueueSettings(queue_size=10_000).enabled
        True
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("block_on_overflow", "blocking"),
            "leave it out: a full queue answers the webhook with 503, and does not let it wait",
        ),
        "wait_for_result": "use enabled: false, with which the webhook waits for the exporter itself",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = dict.fromkeys(
        ("block_on_overflow", "blocking", "wait_for_result"), (False,)
    )

    enabled: bool = Field(
        default=True, description="Queue on disk. With false the webhook waits for the exporter itself."
    )
    queue_size: int | None = Field(
        default=None,
        gt=0,
        description="Log records that may wait, or their bytes; at the limit webhooks are refused. Without it: what "
        "fits on the disk.",
    )
    sizer: Sizer = Field(default="items", description="What queue_size counts: log records, or their bytes.")
    storage: Annotated[str | None, ExtensionOf("file_storage")] = Field(
        default=None, description="The id of the file_storage extension; there is one for all."
    )
    start_at: Literal["next", "oldest"] = Field(
        default="next", description="Where an exporter begins if the queue does not know it yet."
    )
    batch: BatchSettings = Field(default_factory=BatchSettings, description="What is sent together.")
    num_consumers: int = Field(default=1, gt=0, description="Not used: there is always one.")

    _whole_queue_size = field_validator("queue_size", mode="before")(_refuse_unit)

    @field_validator("batch", mode="before")
    @classmethod
    def _count_as_the_queue(cls, batch: object, info: ValidationInfo) -> object:
        """As in the Collector, a batch that names no sizer has that of the queue."""
        inherited = {"sizer": info.data.get("sizer", "items")}
        if isinstance(batch, BatchSettings):
            return BatchSettings(**inherited | batch.model_dump(exclude_unset=True))
        return inherited | dict(batch) if isinstance(batch, Mapping) else batch


class RetryOnFailureSettings(Settings):
    """The waits of an exporter after a temporary failure: `retry_on_failure`.

    Example:
        >>> from statsig_otel.plugin import RetryOnFailureSettings
        >>> RetryOnFailureSettings.model_validate({"initial_interval": "1s", "max_interval": "1m"}).max_interval
        60.0
    """

    enabled: bool = Field(
        default=True, description="With false a record that a temporary failure hits becomes a dead letter."
    )
    initial_interval: Duration = Field(default=5.0, gt=0, description="The wait after the first failure.")
    randomization_factor: float = Field(
        default=0.5, ge=0, le=1, allow_inf_nan=False, description="How far a wait is varied at random."
    )
    multiplier: float = Field(default=1.5, ge=1, allow_inf_nan=False, description="The factor by which the wait grows.")
    max_interval: Duration = Field(default=30.0, gt=0, description="The longest wait.")
    max_elapsed_time: Duration = Field(
        default=0.0,
        ge=0,
        description="A record becomes a dead letter once its temporary failures in a row last so long; 0 is never.",
    )

    @model_validator(mode="after")
    def _check_intervals(self) -> Self:
        if self.max_interval < self.initial_interval:
            first, longest = format_duration(self.initial_interval), format_duration(self.max_interval)
            hint = f"write max_interval: {first}, or longer"
            if "initial_interval" not in self.model_fields_set:
                hint = f"write initial_interval: {longest}, or shorter; it is {first} where it is left out"
            elif "max_interval" not in self.model_fields_set:
                hint += f"; it is {longest} where it is left out"
            raise SettingError("max_interval must be at least initial_interval", hint)
        return self


class ExporterObject(Settings):
    """Takes the place of an exporter's settings if the exporter was created in code. No file can name one."""

    exporter: Any = Field(description="The exporter, which keeps the Exporter protocol.")
    timeout: Duration = Field(default=SEND_TIMEOUT, gt=0, description="The time for one send.")


class ConfiguredExporter(Composed):
    """An exporter of a configuration: its settings, and how it is fed."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "batcher": "use sending_queue::batch",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {"batcher": ({"enabled": False},)}
    meant: ClassVar[Mapping[str, str]] = {
        "batch": "sending_queue::batch",
        "queue": "sending_queue",
        "retry": "retry_on_failure",
    }

    sending_queue: SendingQueueSettings = Field(
        default_factory=SendingQueueSettings, description="The queue before the exporter."
    )
    retry_on_failure: RetryOnFailureSettings = Field(
        default_factory=RetryOnFailureSettings, description="The waits after a temporary failure."
    )

    @property
    def is_queued(self) -> bool:
        """Whether it is fed from the queue; otherwise the webhook waits for it."""
        return self.sending_queue.enabled

    @property
    def timeout(self) -> float:
        """Seconds for one `send`."""
        return float(getattr(self.settings, "timeout", SEND_TIMEOUT))

    def delivery(self) -> DeliverySettings:
        """The sender's settings."""
        retry = RetrySettings(**dict(self.retry_on_failure))
        batch = self.sending_queue.batch
        counts_bytes = batch.sizer == "bytes"
        return DeliverySettings(
            max_records=_MOST_RECORDS if counts_bytes else batch.max_size,
            max_bytes=batch.max_size if counts_bytes else MAX_BYTES,
            timeout=self.timeout,
            retry=retry,
        )
