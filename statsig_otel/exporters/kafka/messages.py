"""Splits a batch into Kafka messages, one for each record."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel._attributes import CHANGE_UID, UID
from statsig_otel.exporters.decoding import records_in
from statsig_otel.exporters.json_lines import to_json_line
from statsig_otel.exporters.kafka.settings import Encoding

_RESOURCE_LOGS: Final = 0x0A
"""The tag of `ExportLogsServiceRequest.resource_logs`: field 1, with a length (protobuf, "Encoding")."""

_CONTINUES: Final = 0x80
"""The bit of a byte of a length that says that another one follows."""


class Message(NamedTuple):
    """One record.

    Attributes:
        key: The uid of the record's change; None if the record has none.
        value: An `ExportLogsServiceRequest` with this record alone.
    """

    key: str | None
    value: bytes


def messages(payload: bytes, encoding: Encoding) -> Iterator[Message]:
    """The messages of a batch, in order.

    Args:
        payload: A serialised `ExportLogsServiceRequest`.
        encoding: The form of the values.

    Raises:
        google.protobuf.message.DecodeError: The payload is not such a request.
    """
    for content in _split(payload):
        request = ExportLogsServiceRequest.FromString(content)
        records = list(records_in(request))
        if len(records) == 1:
            yield Message(_key(records[0]), content if encoding == "otlp_proto" else to_json_line(request))
            continue
        for one, record in zip(_one_by_one(request), records, strict=True):
            yield Message(_key(record), one.SerializeToString() if encoding == "otlp_proto" else to_json_line(one))


def _split(payload: bytes) -> Iterator[bytes]:
    """The parts that were joined: a batch is joined requests, and here each has one record. Copying bytes is cheap."""
    begin = 0
    while begin < len(payload):
        size, shift, position = 0, 0, begin + 1
        while payload[begin] == _RESOURCE_LOGS and position < len(payload):
            byte = payload[position]
            size |= (byte & ~_CONTINUES) << shift
            position, shift = position + 1, shift + 7
            if not byte & _CONTINUES:
                break
        else:  # another field, or the end: protobuf says what that is
            size = len(payload)
        yield payload[begin : position + size]
        begin = position + size


def _one_by_one(request: ExportLogsServiceRequest) -> Iterator[ExportLogsServiceRequest]:
    """A request for each record of a request."""
    for resource_logs in request.resource_logs:
        for scope_logs in resource_logs.scope_logs:
            for record in scope_logs.log_records:
                one = ExportLogsServiceRequest()
                resource = one.resource_logs.add(resource=resource_logs.resource, schema_url=resource_logs.schema_url)
                scope = resource.scope_logs.add(scope=scope_logs.scope, schema_url=scope_logs.schema_url)
                scope.log_records.append(record)
                yield one


def _key(record: LogRecord) -> str | None:
    """The uid of a record's change: a record of one service has a uid of its own, and that of its change beside it."""
    uids = {one.key: one.value.string_value for one in record.attributes if one.key in (UID, CHANGE_UID)}
    return uids.get(CHANGE_UID) or uids.get(UID) or None
