"""The `service::telemetry::traces` settings, with the Collector's names: where the service's own spans are sent."""

from collections.abc import Mapping
from typing import ClassVar, Final

from pydantic import Field, model_validator

from statsig_otel.config.errors import SettingError
from statsig_otel.config.model import Settings
from statsig_otel.plugin.settings.metrics import WRITE_EXPORTER, WRITE_OTLP, Level, Milliseconds, OtlpPushSettings

_BATCH: Final = "write batch: {exporter: {otlp: {protocol: grpc, endpoint: http://HOST:4317}}}"


class SpanPushSettings(OtlpPushSettings):
    """`processors::batch::exporter::otlp`: where the spans are sent."""

    signal_path: ClassVar[str] = "/v1/traces"


class SpanExporterSettings(Settings):
    """`processors::batch::exporter`."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "console": "use otlp: a Collector's debug exporter prints spans",
        "zipkin": "use otlp: a Collector's zipkin exporter takes them on",
    }
    needed: ClassVar[Mapping[str, str]] = {"otlp": WRITE_OTLP}

    otlp: SpanPushSettings = Field(description="Send OTLP.")


class SpanBatchSettings(Settings):
    """`processors::batch`: spans wait in memory until they are sent, and are dropped if too many wait."""

    needed: ClassVar[Mapping[str, str]] = {"exporter": WRITE_EXPORTER}

    schedule_delay: Milliseconds = Field(default=5.0, gt=0, description="The longest time that a span waits.")
    export_timeout: Milliseconds = Field(default=30.0, gt=0, description="The time for one batch, retries included.")
    max_queue_size: int = Field(default=2048, ge=1, description="The most spans that wait; more are dropped.")
    max_export_batch_size: int = Field(default=512, ge=1, description="The most spans of one batch.")
    exporter: SpanExporterSettings = Field(description="Where the spans go.")

    @model_validator(mode="after")
    def _check(self) -> "SpanBatchSettings":
        if self.max_export_batch_size > self.max_queue_size:
            raise SettingError("max_export_batch_size must be at most max_queue_size", "lower it, or leave both out")
        return self


class ProcessorSettings(Settings):
    """One of `processors`."""

    unsupported: ClassVar[Mapping[str, str]] = {"simple": _BATCH}
    needed: ClassVar[Mapping[str, str]] = {"batch": _BATCH}

    batch: SpanBatchSettings = Field(description="Spans are sent in batches.")


class TracesSettings(Settings):
    """`service::telemetry::traces`."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "limits": "leave it out: spans have few attributes",
        "propagators": "leave it out: a webhook continues no trace, since anybody could send its headers",
        "sampler": "leave it out: a Collector can sample what it is sent",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {"propagators": ([],), "sampler": ({"always_on": {}},)}

    level: Level = Field(default="normal", description="`none` makes no spans. All other levels mean the same.")
    processors: list[ProcessorSettings] = Field(
        default_factory=list, description="Where spans go. Without one, no spans are made."
    )

    @property
    def active(self) -> dict[int, ProcessorSettings]:
        """The processors that are switched on, by their position."""
        return dict(enumerate(self.processors)) if self.level != "none" else {}
