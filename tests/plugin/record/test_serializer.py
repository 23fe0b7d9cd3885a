"""The bytes of a record, against those of protobuf's own library."""

from typing import TypedDict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord as SdkLogRecord
from opentelemetry._logs import SeverityNumber as SdkSeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import (
    SEVERITY_NUMBER_INFO,
    LogRecord,
    ResourceLogs,
    ScopeLogs,
    SeverityNumber,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope as SdkScope

from statsig_otel.plugin.record.serializer import Attributes, AttributeValue, LogSerializer

SCOPE = InstrumentationScope(name="scope", version="1")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
# Around 127 bytes, and around 16,383, a length takes a byte more.
LONG_TEXTS = st.builds(lambda text, times: text * times, st.sampled_from(["a", "é", "😀"]), st.integers(0, 20_000))
INTEGERS = st.integers(-(2**63), 2**63 - 1)
SCALARS = TEXTS | LONG_TEXTS | st.booleans() | INTEGERS | st.floats(allow_nan=False)
ARRAYS = st.one_of(
    st.lists(TEXTS), st.lists(TEXTS).map(tuple), st.lists(st.booleans()), st.lists(INTEGERS),
    st.lists(st.floats(allow_nan=False)),
)  # fmt: skip
ATTRIBUTES = st.dictionaries(TEXTS, SCALARS | ARRAYS, max_size=8)
NANOSECONDS = st.integers(0, 2**64 - 1)


class Record(TypedDict):
    """What `LogSerializer.serialize` takes."""

    time_ns: int
    observed_ns: int
    event_name: str
    body: str
    attributes: Attributes
    severity_number: int
    severity_text: str


RECORDS = st.fixed_dictionaries(
    {
        "time_ns": NANOSECONDS,
        "observed_ns": NANOSECONDS,
        "event_name": TEXTS,
        "body": TEXTS | LONG_TEXTS,
        "attributes": ATTRIBUTES,
        "severity_number": st.integers(1, 24),
        "severity_text": TEXTS,
    }
)
EMPTY: Record = {
    "time_ns": 0,
    "observed_ns": 0,
    "event_name": "",
    "body": "",
    "attributes": {},
    "severity_number": 9,
    "severity_text": "",
}
LENGTHS = {"k" * size: "v" * (size - 20) for size in range(20, 140)}


def any_value(value: AttributeValue) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)
    return AnyValue(array_value=ArrayValue(values=[any_value(element) for element in value]))


def by_the_library(
    *,
    resource: Attributes,
    time_ns: int,
    observed_ns: int,
    event_name: str,
    body: str,
    attributes: Attributes,
    severity_number: int = SEVERITY_NUMBER_INFO,
    severity_text: str = "",
) -> bytes:
    record = LogRecord(
        time_unix_nano=time_ns,
        observed_time_unix_nano=observed_ns,
        severity_number=SeverityNumber.ValueType(severity_number),
        severity_text=severity_text,
        event_name=event_name,
        body=AnyValue(string_value=body),
        attributes=[KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()],
    )
    resource_attributes = [KeyValue(key=key, value=any_value(value)) for key, value in resource.items()]
    scope_logs = ScopeLogs(scope=SCOPE, log_records=[record], schema_url="https://schema")
    resource_logs = ResourceLogs(resource=Resource(attributes=resource_attributes), scope_logs=[scope_logs])
    return ExportLogsServiceRequest(resource_logs=[resource_logs]).SerializeToString()


@given(ATTRIBUTES, RECORDS)
@example({}, {**EMPTY})
@example({"a": "b"}, {**EMPTY, "time_ns": 1, "event_name": "event", "body": "body", "attributes": LENGTHS})
def test_a_record_is_byte_by_byte_what_the_library_makes_of_it(resource: Attributes, record: Record) -> None:
    assert LogSerializer(resource, scope=SCOPE, schema_url="https://schema").serialize(**record) == by_the_library(
        resource=resource, **record
    )


SDK_ATTRIBUTES = st.dictionaries(TEXTS.filter(bool), SCALARS | ARRAYS, max_size=8)


@given(SDK_ATTRIBUTES, RECORDS, SDK_ATTRIBUTES)
def test_any_record_is_what_the_sdk_makes_of_it(resource: Attributes, record: Record, attributes: Attributes) -> None:
    """Whatever a mapping makes: values of every type, severities, and names that nobody expects."""
    ours = LogSerializer(resource, scope=SCOPE, schema_url="https://schema")
    theirs = ReadableLogRecord(
        SdkLogRecord(
            timestamp=record["time_ns"],
            observed_timestamp=record["observed_ns"],
            severity_number=SdkSeverityNumber(record["severity_number"]),
            severity_text=record["severity_text"],
            body=record["body"],
            attributes=attributes,
            event_name=record["event_name"],
        ),
        SdkResource(resource),
        SdkScope(SCOPE.name, SCOPE.version, "https://schema"),
    )
    record["attributes"] = attributes
    assert ExportLogsServiceRequest.FromString(ours.serialize(**record)) == encode_logs([theirs])


@pytest.mark.parametrize("time_ns", [-1, 2**64])
def test_a_time_that_otlp_can_not_hold_is_an_unknown_one(time_ns: int) -> None:
    encoded = LogSerializer({}, scope=SCOPE, schema_url="https://schema").serialize(
        time_ns=time_ns, observed_ns=1, event_name="event", body="body", attributes={}
    )
    assert encoded == by_the_library(
        resource={}, time_ns=0, observed_ns=1, event_name="event", body="body", attributes={}
    )


@pytest.mark.parametrize("attributes", [{"a": "\ud800"}, {"a": ["\ud800"]}, {"\ud800": "a"}, {"a": 2**63}])
def test_what_otlp_can_not_hold_is_refused(attributes: Attributes) -> None:
    serializer = LogSerializer({}, scope=SCOPE, schema_url="https://schema")
    with pytest.raises(ValueError, match=r"surrogate|range"):
        serializer.serialize(time_ns=1, observed_ns=1, event_name="event", body="body", attributes=attributes)
