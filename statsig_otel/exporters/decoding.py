"""Takes the log records out of a batch, for exporters that do not send OTLP."""

from collections.abc import Iterator

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel._arguments import check_type


def log_records(payload: bytes) -> Iterator[LogRecord]:
    """The log records of a batch, in order: as many as `Exporter.send` is told.

    Args:
        payload: A serialised `ExportLogsServiceRequest`, as `send` gets it.

    Raises:
        google.protobuf.message.DecodeError: The bytes are not such a request.
        TypeError: It is not bytes.

    Example:
        >>> from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
        >>> from statsig_otel.exporters import log_records
        >>> request = ExportLogsServiceRequest()
        >>> record = request.resource_logs.add().scope_logs.add().log_records.add()
        >>> record.body.string_value = "layout_v2 updated"
        >>> [record.body.string_value for record in log_records(request.SerializeToString())]
        ['layout_v2 updated']
    """
    check_type("payload", payload, bytes, "bytes")
    return records_in(ExportLogsServiceRequest.FromString(payload))


def records_in(request: ExportLogsServiceRequest) -> Iterator[LogRecord]:
    """The log records of a decoded request, in order."""
    for resource_logs in request.resource_logs:
        for scope_logs in resource_logs.scope_logs:
            yield from scope_logs.log_records


def unreadable(error: Exception) -> str:
    """The reason of an exporter that can't read its payload."""
    return f"the payload can't be read as an ExportLogsServiceRequest: {error}"
