"""The demo's backend: an OTLP gRPC server that passes each received change event to a callback."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel import _attributes
from statsig_otel.exporters.decoding import records_in
from statsig_otel.plugin.demo.table import Row

_SERVICE: Final = "opentelemetry.proto.collector.logs.v1.LogsService"


@dataclass(frozen=True, slots=True)
class Arrived:
    """A log record reached the backend. `uid` is its `log.record.uid`, or an empty string."""

    uid: str
    row: Row


@contextmanager
def backend(on_record: Callable[[Arrived], None]) -> Iterator[str]:
    """An OTLP gRPC server on a free port of 127.0.0.1; the value is its host:port.

    `on_record` is called in the server's thread with each record, in the order of arrival.
    """

    def export(request: ExportLogsServiceRequest, _: grpc.ServicerContext) -> ExportLogsServiceResponse:
        for record in records_in(request):
            on_record(_arrived(record))
        return ExportLogsServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=ExportLogsServiceRequest.FromString,
        response_serializer=ExportLogsServiceResponse.SerializeToString,
    )
    # With one thread the rows of the table are in the order of arrival.
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=1).wait(5)


def _arrived(record: LogRecord) -> Arrived:
    attributes = {attribute.key: attribute.value for attribute in record.attributes}

    def text(*keys: str) -> str:
        return next((attributes[key].string_value for key in keys if key in attributes), "")

    environments = attributes.get(_attributes.ENVIRONMENTS, AnyValue()).array_value.values
    row = Row(
        happened_at_ms=record.time_unix_nano // 1_000_000,
        type=text(_attributes.TYPE),
        title=text(_attributes.TITLE),
        environments=tuple(environment.string_value for environment in environments),
        who=text(_attributes.USER_NAME, _attributes.USER_EMAIL, _attributes.USER_ID),
    )
    return Arrived(text(_attributes.UID), row)
