"""OTLP/JSON: the JSON form of an OTLP message.

The rules are those of the OTLP specification, "JSON Protobuf Encoding": protobuf's own JSON mapping, but for trace and
span ids, which are hex text instead of base64, and for enums, which are always integers.
"""

import json
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest


def to_json_line(request: ExportLogsServiceRequest) -> bytes:
    r"""The request as one line of OTLP/JSON, without the line feed at its end.

    The line is ASCII: all else is written as `\u` escapes, so that nothing in a flag's name is taken for the end of a
    line, or acted on by a terminal, when the line is looked at. A field that holds its default value is left out, as
    protobuf's mapping does. Fields of a newer OTLP than the installed opentelemetry-proto knows are left out too.
    """
    # lowerCamelCase keys, 64-bit integers as decimal strings, and NaN and the infinities as strings are json_format's
    # defaults and OTLP's rules alike.
    tree = json_format.MessageToDict(request, use_integers_for_enums=True)
    _write_ids_in_hex(request, tree)
    return json.dumps(tree, separators=(",", ":"), allow_nan=False).encode("ascii")


def _write_ids_in_hex(request: ExportLogsServiceRequest, tree: dict[str, Any]) -> None:
    """Put hex text where json_format wrote base64. An empty id is left out there, and stays so."""
    for resource_logs, resource_tree in zip(request.resource_logs, tree.get("resourceLogs", ()), strict=True):
        for scope_logs, scope_tree in zip(resource_logs.scope_logs, resource_tree.get("scopeLogs", ()), strict=True):
            for record, record_tree in zip(scope_logs.log_records, scope_tree.get("logRecords", ()), strict=True):
                if record.trace_id:
                    record_tree["traceId"] = record.trace_id.hex()
                if record.span_id:
                    record_tree["spanId"] = record.span_id.hex()
