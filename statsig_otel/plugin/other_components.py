"""Types of components that the Collector has and this service has not, and what to do instead."""

from collections.abc import Mapping
from typing import Final

_CREDENTIALS: Final = (
    'leave it out: put the credentials into the exporter\'s headers, such as authorization: "Bearer ..."'
)
_NO_METRICS: Final = "leave it out: changes are log records, and no metrics; for the service's own see docs/queue.md"
_NO_TRACES: Final = "leave it out: changes are log records, and no traces"
_BY_COLLECTOR: Final = "send OTLP to a Collector that has it"
_DEBUG: Final = "use debug, which prints"
_ONE_RECEIVER: Final = "what comes in here are Statsig's webhooks; let a Collector receive all else"
_DOCTOR: Final = "leave it out: statsig-otel doctor looks at what the service depends on"

ELSEWHERE: Final[Mapping[str, Mapping[str, str]]] = {
    "receivers": {
        **dict.fromkeys(("otlp", "filelog", "hostmetrics", "kafka", "prometheus", "webhookevent"), _ONE_RECEIVER),
    },
    "exporters": {
        "logging": "use debug, its name today",
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
                "kafka",
                "loadbalancing",
                "opensearch",
                "pulsar",
                "rabbitmq",
                "splunk_hec",
                "syslog",
            ),
            _BY_COLLECTOR,
        ),
    },
    "extensions": {
        **dict.fromkeys(("basicauth", "bearertokenauth", "headers_setter", "oauth2client", "sigv4auth"), _CREDENTIALS),
        **dict.fromkeys(("db_storage", "redis_storage"), "use file_storage, a directory of this machine"),
        **dict.fromkeys(("health_check", "healthcheckv2", "pprof", "zpages"), _DOCTOR),
        "memory_ballast": "leave it out: max_in_flight_bytes of the receiver bounds the memory",
        "memory_limiter": "leave it out: max_in_flight_bytes of the receiver bounds the memory",
    },
}
"""By section and type."""
