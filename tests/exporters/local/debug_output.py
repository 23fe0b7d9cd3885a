"""Payloads for the debug exporter, and what it prints of them."""

import io

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from statsig_otel.exporters.exporter import Delivered
from statsig_otel.exporters.local.debug import DebugExporter, DebugSettings

SCHEMA = "https://opentelemetry.io/schemas/1.37.0"


DESCRIPTION = "Updated Config Conditions\n    - Updated rule test pass percentage from 100 to 50"


def text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def strings(key: str, *values: str) -> KeyValue:
    array = ArrayValue(values=[AnyValue(string_value=value) for value in values])
    return KeyValue(key=key, value=AnyValue(array_value=array))


def payload(*records: LogRecord) -> bytes:
    """The joined requests of these records, as the queue's sender hands them over."""
    resource = Resource(attributes=[text("service.name", "statsig")])
    scope = InstrumentationScope(name="statsig_otel", version="0.1.0")
    return b"".join(
        ExportLogsServiceRequest(
            resource_logs=[
                ResourceLogs(
                    resource=resource,
                    scope_logs=[ScopeLogs(scope=scope, log_records=[record], schema_url=SCHEMA)],
                )
            ]
        ).SerializeToString()
        for record in records
    )


def change(
    title: str = "layout_v2 updated",
    kind: str = "gate_updated",
    who: str = "dev@example.com",
    environments: tuple[str, ...] = ("production",),
) -> LogRecord:
    """A config change as the receiver makes it, with what the columns need."""
    return LogRecord(
        time_unix_nano=1738324800123000000,
        observed_time_unix_nano=1738324801123456789,
        severity_number=9,  # type: ignore[arg-type]  # a plain integer is what a decoded message holds
        body=AnyValue(string_value=title),
        attributes=[
            text("change_event.type", kind),
            text("change_event.title", title),
            text("change_event.source", "statsig"),
            text("change_event.label.description", DESCRIPTION),
            text("user.email", who),
            text("user.id", "1234"),
            strings("statsig.environments", *environments),
        ],
        event_name="statsig.config_change",
    )


def printed(data: bytes, verbosity: str = "normal", color: str = "never") -> str:
    """What one send prints."""
    stream = io.StringIO()
    checked = DebugSettings.model_validate({"verbosity": verbosity, "color": color})
    exporter = DebugExporter("debug/mine", checked, stream)
    exporter.start()
    assert exporter.send(data, 1, 5) == Delivered()
    return stream.getvalue()
