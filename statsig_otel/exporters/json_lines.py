"""Encodes an OTLP request as a line of OTLP/JSON.

The rules are those of the OTLP specification, "JSON Protobuf Encoding": protobuf's JSON mapping, except that trace and
span ids are hex strings instead of base64, and enums are always integers.
"""

import json
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest


def to_json_line(request: ExportLogsServiceRequest) -> bytes:
    r"""The request as one line of OTLP/JSON, without a line feed at its end.

    The line is ASCII. Other characters are `\u` escapes, so that a flag's name can't end the line or control a terminal
    that shows it. As in protobuf's mapping, fields with their default value are left out. So are fields that the
    installed version of opentelemetry-proto does not know.
    """
    # json_format's defaults are OTLP's rules: lowerCamelCase keys, 64-bit integers as decimal strings, and NaN and the
    # infinities as strings.
    tree = json_format.MessageToDict(request, use_integers_for_enums=True)
    _write_ids_in_hex(request, tree)
    return json.dumps(tree, separators=(",", ":"), allow_nan=False).encode("ascii")


def _write_ids_in_hex(request: ExportLogsServiceRequest, tree: dict[str, Any]) -> None:
    """Replace json_format's base64 by hex. Empty ids stay left out."""
    for resource_logs, resource_tree in zip(request.resource_logs, tree.get("resourceLogs", ()), strict=True):
        for scope_logs, scope_tree in zip(resource_logs.scope_logs, resource_tree.get("scopeLogs", ()), strict=True):
            for record, record_tree in zip(scope_logs.log_records, scope_tree.get("logRecords", ()), strict=True):
                if record.trace_id:
                    record_tree["traceId"] = record.trace_id.hex()
                if record.span_id:
                    record_tree["spanId"] = record.span_id.hex()
