"""OTLP/JSON against the rules of the OTLP specification, "JSON Protobuf Encoding"."""

import base64
import json
import math
import re
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from statsig_otel.exporters.json_lines import to_json_line
from tests.looped import looped

LOWER_CAMEL_CASE = re.compile(r"[a-z][A-Za-z0-9]*")
# Python 3.15 says it of how protobuf reads the base64 that it writes.
pytestmark = pytest.mark.filterwarnings("ignore:invalid character .* in URL-safe Base64")

# The widths of the integers in the messages that an ExportLogsServiceRequest is made of.
INTEGERS_OF_64_BITS = {"timeUnixNano", "observedTimeUnixNano", "intValue"}
INTEGERS_OF_32_BITS = {"severityNumber", "flags", "droppedAttributesCount"}


def one(record: LogRecord) -> ExportLogsServiceRequest:
    """A request with one record."""
    return ExportLogsServiceRequest(resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=[record])])])


def written(record: LogRecord) -> Any:
    """What stands in the line for the record."""
    line = json.loads(to_json_line(one(record)))
    return line["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]


def read_line(line: bytes) -> ExportLogsServiceRequest:
    """The request of an OTLP/JSON line: hex ids put back to base64, the rest is protobuf's own mapping."""
    tree = json.loads(line)
    for resource_logs in tree.get("resourceLogs", []):
        for scope_logs in resource_logs.get("scopeLogs", []):
            for record in scope_logs.get("logRecords", []):
                for key in ("traceId", "spanId"):
                    if key in record:
                        record[key] = base64.b64encode(bytes.fromhex(record[key])).decode()
    return json_format.ParseDict(tree, ExportLogsServiceRequest())


def test_a_whole_record() -> None:
    """Each rule at once: camel case, hex ids, integer enums, 64-bit integers as strings, base64 bytes."""
    record = LogRecord(
        time_unix_nano=1738324800123000000,
        observed_time_unix_nano=1738324800456000001,
        severity_number=9,  # type: ignore[arg-type]  # a plain integer is what a decoded message holds
        body=AnyValue(string_value="layout_v2 updated"),
        attributes=[KeyValue(key="statsig.blob", value=AnyValue(bytes_value=b"\x00\xff"))],
        dropped_attributes_count=2,
        flags=1,
        trace_id=bytes.fromhex("5b8efff798038103d269b633813fc60c"),
        span_id=bytes.fromhex("eee19b7ec3c1b174"),
        event_name="statsig.config_change",
    )
    request = ExportLogsServiceRequest(
        resource_logs=[
            ResourceLogs(
                resource=Resource(attributes=[KeyValue(key="service.name", value=AnyValue(string_value="statsig"))]),
                scope_logs=[
                    ScopeLogs(
                        scope=InstrumentationScope(name="statsig_otel", version="0.1.0"),
                        log_records=[record],
                        schema_url="https://opentelemetry.io/schemas/1.37.0",
                    )
                ],
            )
        ]
    )
    assert to_json_line(request) == (
        b'{"resourceLogs":[{'
        b'"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"statsig"}}]},'
        b'"scopeLogs":[{"scope":{"name":"statsig_otel","version":"0.1.0"},"logRecords":[{'
        b'"timeUnixNano":"1738324800123000000","severityNumber":9,'
        b'"body":{"stringValue":"layout_v2 updated"},'
        b'"attributes":[{"key":"statsig.blob","value":{"bytesValue":"AP8="}}],'
        b'"droppedAttributesCount":2,"flags":1,'
        b'"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174",'
        b'"observedTimeUnixNano":"1738324800456000001","eventName":"statsig.config_change"}],'
        b'"schemaUrl":"https://opentelemetry.io/schemas/1.37.0"}]}]}'
    )


@looped(
    ("value", "expected"),
    [
        (AnyValue(string_value=""), {"stringValue": ""}),
        (AnyValue(bool_value=False), {"boolValue": False}),
        (AnyValue(int_value=0), {"intValue": "0"}),
        (AnyValue(int_value=-(2**63)), {"intValue": "-9223372036854775808"}),
        (AnyValue(double_value=0.0), {"doubleValue": 0.0}),
        (AnyValue(double_value=1.5), {"doubleValue": 1.5}),
        (AnyValue(double_value=math.nan), {"doubleValue": "NaN"}),
        (AnyValue(double_value=math.inf), {"doubleValue": "Infinity"}),
        (AnyValue(double_value=-math.inf), {"doubleValue": "-Infinity"}),
        (AnyValue(bytes_value=b""), {"bytesValue": ""}),
        (AnyValue(bytes_value=b"\xfb\xff\xfe"), {"bytesValue": "+//+"}),
        (AnyValue(), {}),
        (AnyValue(array_value=ArrayValue()), {"arrayValue": {}}),
        (
            AnyValue(array_value=ArrayValue(values=[AnyValue(string_value="production"), AnyValue()])),
            {"arrayValue": {"values": [{"stringValue": "production"}, {}]}},
        ),
        (AnyValue(kvlist_value=KeyValueList()), {"kvlistValue": {}}),
        (
            AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="a", value=AnyValue(int_value=2**53 + 1))])),
            {"kvlistValue": {"values": [{"key": "a", "value": {"intValue": "9007199254740993"}}]}},
        ),
    ],
)
def test_values(value: AnyValue, expected: object) -> None:
    """Each kind of value, the empty ones too: an empty string is not the same as no value."""
    assert written(LogRecord(body=value)) == {"body": expected}


def test_a_severity_of_a_newer_otlp_stays_its_number() -> None:
    """An enum's number without a name is written all the same."""
    record = LogRecord.FromString(b"\x10\x63")  # field 2, severity_number, 99
    assert written(record) == {"severityNumber": 99}


def test_fields_of_a_newer_otlp_are_left_out() -> None:
    """Unknown fields change nothing in the line, at any level."""
    unknown = b"\xc0\x3e\x01"  # field 1000, varint 1
    plain = LogRecord(event_name="statsig.config_change")
    newer = LogRecord.FromString(plain.SerializeToString() + unknown)
    request = ExportLogsServiceRequest.FromString(one(newer).SerializeToString() + unknown)
    assert to_json_line(request) == to_json_line(one(plain))


def test_an_empty_request() -> None:
    """Nothing in it is nothing in the line."""
    assert to_json_line(ExportLogsServiceRequest()) == b"{}"
    assert to_json_line(one(LogRecord())) == b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{}]}]}]}'


@pytest.mark.parametrize("breaks", ["\n", "\r\n", "\x85", "\u2028", "\x1b[2J", "\u202e"])
def test_no_character_can_end_the_line_or_reach_a_terminal(breaks: str) -> None:
    """Line ends of every script, controls and bidi overrides are escaped, and come back as they were."""
    text = f"one{breaks}two"
    line = to_json_line(one(LogRecord(body=AnyValue(string_value=text))))
    assert line.isascii()
    assert line.decode().isprintable()
    assert json.loads(line)["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["body"] == {"stringValue": text}


def test_the_deepest_payload_that_can_be_read_can_be_written() -> None:
    """Nesting is bounded by protobuf's decoder, and what it lets through never raises here."""
    body = AnyValue(string_value="bottom")
    deepest = None
    for _ in range(100):
        body = AnyValue(array_value=ArrayValue(values=[body]))
        try:
            deepest = ExportLogsServiceRequest.FromString(one(LogRecord(body=body)).SerializeToString())
        except DecodeError:
            break
    assert deepest is not None
    assert b"bottom" in to_json_line(deepest)


def keys(element: st.SearchStrategy[AnyValue]) -> st.SearchStrategy[KeyValue]:
    return st.builds(KeyValue, key=st.text(max_size=8), value=element)


scalars = st.one_of(
    st.just(AnyValue()),
    st.builds(AnyValue, string_value=st.text(max_size=12)),
    st.builds(AnyValue, bool_value=st.booleans()),
    st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)),
    st.builds(AnyValue, double_value=st.floats(allow_nan=False) | st.just(math.nan)),
    st.builds(AnyValue, bytes_value=st.binary(max_size=12)),
)
values = st.recursive(
    scalars,
    lambda element: st.one_of(
        st.builds(AnyValue, array_value=st.builds(ArrayValue, values=st.lists(element, max_size=3))),
        st.builds(AnyValue, kvlist_value=st.builds(KeyValueList, values=st.lists(keys(element), max_size=3))),
    ),
    max_leaves=6,
)
attributes = st.lists(keys(values), max_size=3)
uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
records = st.builds(
    LogRecord,
    time_unix_nano=uint64,
    observed_time_unix_nano=uint64,
    severity_number=st.integers(0, 30),
    severity_text=st.text(max_size=5),
    body=st.none() | values,
    attributes=attributes,
    dropped_attributes_count=uint32,
    flags=uint32,
    # 16 and 8 bytes by the rules, but a payload may hold anything.
    trace_id=st.binary(max_size=16),
    span_id=st.binary(max_size=8),
    event_name=st.text(max_size=8),
)
requests = st.builds(
    ExportLogsServiceRequest,
    resource_logs=st.lists(
        st.builds(
            ResourceLogs,
            resource=st.none() | st.builds(Resource, attributes=attributes, dropped_attributes_count=uint32),
            scope_logs=st.lists(
                st.builds(
                    ScopeLogs,
                    scope=st.none()
                    | st.builds(InstrumentationScope, name=st.text(max_size=5), version=st.text(max_size=5)),
                    log_records=st.lists(records, max_size=2),
                    schema_url=st.text(max_size=5),
                ),
                max_size=2,
            ),
            schema_url=st.text(max_size=5),
        ),
        max_size=2,
    ),
)


def check_rules(tree: Any) -> None:
    """Each rule that can be told from the JSON alone."""
    if isinstance(tree, list):
        for element in tree:
            check_rules(element)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            assert LOWER_CAMEL_CASE.fullmatch(key), key
            if key in ("traceId", "spanId"):
                assert re.fullmatch(r"(?:[0-9a-f]{2})+", value), value
            elif key in INTEGERS_OF_64_BITS:
                assert re.fullmatch(r"-?[0-9]+", value), value
            elif key in INTEGERS_OF_32_BITS:
                assert type(value) is int
            elif key == "doubleValue":
                assert type(value) is float or value in ("NaN", "Infinity", "-Infinity")
            else:
                check_rules(value)


@given(requests)
def test_round_trip(request: ExportLogsServiceRequest) -> None:
    """Any request comes back from its line as the same message, and the line keeps the rules."""
    line = to_json_line(request)
    assert b"\n" not in line
    check_rules(json.loads(line))
    # As bytes: a NaN is not equal to itself.
    assert read_line(line).SerializeToString(deterministic=True) == request.SerializeToString(deterministic=True)
