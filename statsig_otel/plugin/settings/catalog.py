"""The components that a configuration file can name: their settings models, and how exporters are created."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from statsig_otel.config.configuration import Components
from statsig_otel.config.errors import ConfigError, Fault, Problem
from statsig_otel.config.model import Settings
from statsig_otel.exporters.exporter import Exporter
from statsig_otel.exporters.exporter_type import ExporterType
from statsig_otel.exporters.kafka.settings import KafkaSettings
from statsig_otel.exporters.local.debug import DebugExporter, DebugSettings
from statsig_otel.exporters.local.file import FileExporter, FileSettings
from statsig_otel.exporters.otlp.settings import AUTHENTICATORS, OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.plugin.settings.exporter_types import ExporterTypes
from statsig_otel.plugin.settings.exporters import ConfiguredExporter, ExporterObject
from statsig_otel.plugin.settings.health_check import HealthCheckSettings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.settings.storage import FileStorageSettings
from statsig_otel.plugin.settings.telemetry import TelemetrySettings
from statsig_otel.plugin.settings.zpages import ZpagesSettings

_NO_METRICS: Final = "leave it out: changes are log records, not metrics; for the service's own see docs/metrics.md"
_NO_TRACES: Final = "leave it out: changes are log records, not traces"
_BY_COLLECTOR: Final = "send OTLP to a Collector that has it"
_DEBUG: Final = "use debug, which prints"
_ONE_RECEIVER: Final = "only Statsig's webhooks come in here; let a Collector receive everything else"
_DOCTOR: Final = "leave it out: statsig-otel doctor checks what the service depends on"

UNSUPPORTED_TYPES: Final[Mapping[str, Mapping[str, str]]] = {
    "receivers": {
        **dict.fromkeys(("otlp", "filelog", "hostmetrics", "kafka", "prometheus", "webhookevent", ""), _ONE_RECEIVER),
    },
    "exporters": {
        "logging": "use debug, its current name",
        "console": _DEBUG,
        "stdout": _DEBUG,
        "http": "use otlp_http",
        "loki": "use otlp_http with endpoint: http://HOST:3100/otlp, which Loki takes from 3.0 on",
        **dict.fromkeys(("prometheus", "prometheusremotewrite"), _NO_METRICS),
        **dict.fromkeys(("jaeger", "zipkin"), _NO_TRACES),
        **dict.fromkeys(
            (
                "awscloudwatchlogs",
                "azuremonitor",
                "clickhouse",
                "coralogix",
                "datadog",
                "elasticsearch",
                "googlecloud",
                "loadbalancing",
                "opensearch",
                "pulsar",
                "rabbitmq",
                "splunk_hec",
                "syslog",
            ),
            _BY_COLLECTOR,
        ),
        "": _BY_COLLECTOR,
    },
    "processors": {
        "attributes": "use the receiver's mapping",
        "batch": "leave it out: what waits is sent together, see sending_queue::batch",
        **dict.fromkeys(("cumulativetodelta", "deltatocumulative"), "leave it out: it is for metrics"),
        "filter": "use the receiver's filter",
        "memory_limiter": "leave it out: max_in_flight_bytes of the receiver bounds the memory",
        "resource": "use the receiver's resource",
        "resourcedetection": "use the receiver's resource, or OTEL_RESOURCE_ATTRIBUTES",
        "transform": "use the receiver's mapping",
    },
    "extensions": {
        **AUTHENTICATORS,
        **dict.fromkeys(("db_storage", "redis_storage"), "use file_storage, a directory of this machine"),
        "healthcheckv2": "use health_check",
        "pprof": _DOCTOR,
        "memory_ballast": "leave it out: max_in_flight_bytes of the receiver bounds the memory",
        "memory_limiter": "leave it out: max_in_flight_bytes of the receiver bounds the memory",
        "": "leave it out, or send OTLP to a Collector that has it",
    },
}
"""By section and type. Without a type: what to do instead of any other."""


def _otlp_grpc(name: str, settings: OtlpGrpcSettings) -> Exporter:
    from statsig_otel.exporters.otlp.grpc import OtlpGrpcExporter  # noqa: PLC0415 - grpc is loaded where it is used

    return OtlpGrpcExporter(name, settings)


def _otlp_http(name: str, settings: OtlpHttpSettings) -> Exporter:
    from statsig_otel.exporters.otlp.http import OtlpHttpExporter  # noqa: PLC0415 - likewise

    return OtlpHttpExporter(name, settings)


def _kafka(name: str, settings: KafkaSettings) -> Exporter:
    if fault := missing_library("kafka"):
        raise ConfigError([Problem(("exporters", name), *fault)])
    from statsig_otel.exporters.kafka.exporter import KafkaExporter  # noqa: PLC0415 - likewise, and it is optional

    return KafkaExporter(name, settings)


def missing_library(type_: str) -> Fault | None:
    """Why a built-in exporter type can't be used on this machine; imports the library that it needs, if any."""
    if type_ != "kafka":
        return None
    try:
        import confluent_kafka  # noqa: F401, PLC0415 - optional
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != "confluent_kafka":
            raise
        return Fault(f"needs the package confluent-kafka, which can't be imported: {error}", KAFKA_EXTRA)
    return None


KAFKA_EXTRA: Final = "pip install 'statsig-otel[kafka]'"
"""What installs the library of the Kafka exporter."""

_BUILT_IN: Final[Mapping[str, ExporterType[Any]]] = {
    "otlp_grpc": ExporterType(OtlpGrpcSettings, _otlp_grpc),
    "otlp_http": ExporterType(OtlpHttpSettings, _otlp_http),
    "kafka": ExporterType(KafkaSettings, _kafka),
    "file": ExporterType(FileSettings, FileExporter),
    "debug": ExporterType(DebugSettings, DebugExporter),
}

ALIASES: Final[Mapping[str, str]] = {"otlp": "otlp_grpc", "otlphttp": "otlp_http"}
"""The Collector's older names."""

EXPORTERS: Final = ExporterTypes(_BUILT_IN, ALIASES)
"""All types of exporters, including those of installed distributions."""

BUILT_IN: Final = Components(
    receivers={"statsig": StatsigReceiverSettings},
    exporters={name: one.settings for name, one in _BUILT_IN.items()},
    extensions={"file_storage": FileStorageSettings, "health_check": HealthCheckSettings, "zpages": ZpagesSettings},
    aliases=ALIASES,
    telemetry=TelemetrySettings,
    single=frozenset({"file_storage", "health_check", "zpages"}),
    unsupported=UNSUPPORTED_TYPES,
    composed={"exporters": ConfiguredExporter},
)
"""The types of this distribution."""

COMPONENTS: Final = replace(BUILT_IN, exporters=EXPORTERS)
"""The types that a configuration file can name."""


def create_exporter(name: str, settings: Settings) -> Exporter:
    """Create the exporter of an id such as `otlp_grpc/backend`, or return the one that was given; nothing is opened.

    Raises:
        ConfigError: The distribution that adds its type can't create an exporter from these settings.
    """
    if isinstance(settings, ExporterObject):
        exporter: Exporter = settings.exporter
        return exporter
    return EXPORTERS.create(name, settings)


def destination(settings: Settings) -> str:
    """Where an exporter with these settings sends to, without anything secret; empty if nobody can tell."""
    match settings:
        case OtlpHttpSettings(url=url):
            return url.netloc.rpartition("@")[2]
        case OtlpGrpcSettings(target=target):
            return target.removeprefix("dns:///")
        case KafkaSettings(brokers=brokers):
            return ", ".join(brokers)
        case FileSettings(path=path):
            return str(path)
    return ""
