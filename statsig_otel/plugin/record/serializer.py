"""Serialises log records to OTLP protobuf: one `ExportLogsServiceRequest` for each record.

The protobuf library serialises once what all records share. Strings, which are nearly all of a record, are written
here (protobuf.dev/programming-guides/encoding): making the library's messages of them takes twice as long.
The fields are in the order of their numbers, so the bytes are the same as the library's.
"""

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import (
    SEVERITY_NUMBER_INFO,
    LogRecord,
    ResourceLogs,
    ScopeLogs,
    SeverityNumber,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from statsig_otel.plugin.record.arrays import Cut

Scalar: TypeAlias = str | bool | int | float
AttributeValue: TypeAlias = Scalar | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
Attributes: TypeAlias = Mapping[str, AttributeValue]

COUNT: Final = "_count"
"""The end of a name: after an array that was cut, an attribute with its name and this has the number of elements."""

_MAX_NANOSECONDS: Final = (1 << 64) - 1
"""The largest `fixed64 time_unix_nano`: July 2554."""

# The number of a field and the type of its content, in one byte. From collector/logs/v1 and logs/v1 of
# opentelemetry-proto:
_RESOURCE_LOGS: Final = b"\x0a"
_SCOPE_LOGS: Final = b"\x12"
_LOG_RECORDS: Final = b"\x12"
_TIME_UNIX_NANO: Final = b"\x09"
_OBSERVED_TIME_UNIX_NANO: Final = b"\x59"
_SEVERITY_TEXT: Final = b"\x1a"
_BODY: Final = b"\x2a"
_ATTRIBUTES: Final = b"\x32"
_EVENT_NAME: Final = b"\x62"
# From common/v1:
_KEY: Final = b"\x0a"
_VALUE: Final = b"\x12"
_STRING_VALUE: Final = b"\x0a"
_ARRAY_VALUE: Final = b"\x2a"
_VALUES: Final = b"\x0a"

_SEVERITIES: Final = tuple(LogRecord(severity_number=number).SerializeToString() for number in SeverityNumber.values())
_FIXED64: Final = struct.Struct("<Q")
_ONE_BYTE: Final = tuple(bytes((number,)) for number in range(0x80))


class LogSerializer:
    """Serialises log records of one resource and one scope.

    Args:
        resource: The resource's attributes.
        scope: The instrumentation scope.
        schema_url: The schema of the attributes.

    Raises:
        ValueError: A string contains a lone surrogate, or a number is too large for OTLP.
    """

    def __init__(self, resource: Attributes, *, scope: InstrumentationScope, schema_url: str) -> None:
        attributes = [KeyValue(key=key, value=_any_value(value)) for key, value in resource.items()]
        self._resource = ResourceLogs(resource=Resource(attributes=attributes)).SerializeToString()
        self._scope = ScopeLogs(scope=scope).SerializeToString()
        self._schema_url = ScopeLogs(schema_url=schema_url).SerializeToString()

    def serialize(
        self,
        *,
        time_ns: int,
        observed_ns: int,
        event_name: str,
        body: str,
        attributes: Attributes,
        severity_number: int = SEVERITY_NUMBER_INFO,
        severity_text: str = "",
    ) -> bytes:
        """Serialise one record.

        Args:
            time_ns: When it happened, in nanoseconds since the epoch. A time outside OTLP's range becomes 0: unknown.
            observed_ns: When it was observed, likewise.
            event_name: Its EventName.
            body: Its body.
            attributes: Its attributes, in order.
            severity_number: Its SeverityNumber, 1 to 24.
            severity_text: Its SeverityText; empty for none.

        Raises:
            ValueError: See the class.
        """
        severity = _SEVERITIES[severity_number]
        if severity_text:
            severity += _field(_SEVERITY_TEXT, severity_text.encode())
        parts = [_time(_TIME_UNIX_NANO, time_ns), severity, _field(_BODY, _field(_STRING_VALUE, body.encode()))]
        parts += [
            _before_string(key, len(text := value.encode())) + text
            if isinstance(value, str)
            else _attribute(key, value, attributes)
            for key, value in attributes.items()
        ]
        parts.append(_time(_OBSERVED_TIME_UNIX_NANO, observed_ns))
        if event_name:
            parts.append(_field(_EVENT_NAME, event_name.encode()))
        scope_logs = b"%b%b%b" % (self._scope, _field(_LOG_RECORDS, b"".join(parts)), self._schema_url)
        return _field(_RESOURCE_LOGS, self._resource + _field(_SCOPE_LOGS, scope_logs))


@lru_cache(maxsize=2048)
def _before_string(key: str, size: int) -> bytes:
    """The bytes before the string in an attribute, by the string's size: the same pairs come again and again."""
    string = _before(_STRING_VALUE, size)
    value = _before(_VALUE, len(string) + size) + string
    name = _name(key)
    return _before(_ATTRIBUTES, len(name) + len(value) + size) + name + value


def _attribute(key: str, value: AttributeValue, others: Attributes) -> bytes:
    """An attribute that is not a string. After an array that was cut comes the number of all its elements.

    Args:
        key: Its name.
        value: Its value.
        others: All attributes of the record.
    """
    if isinstance(value, Cut) and (count := f"{key}{COUNT}") not in others:
        return _attribute(key, tuple(value), others) + _attribute(count, value.total, others)
    if not isinstance(value, bool | int | float) and all(isinstance(element, str) for element in value):
        elements = b"".join([_element(element) for element in value])
        return _field(_ATTRIBUTES, _name(key) + _field(_VALUE, _field(_ARRAY_VALUE, elements)))
    return LogRecord(attributes=[KeyValue(key=key, value=_any_value(value))]).SerializeToString()


def _element(text: object) -> bytes:
    return _field(_VALUES, _field(_STRING_VALUE, str(text).encode()))


@lru_cache(maxsize=1024)
def _name(key: str) -> bytes:
    """The name of an attribute. There are two dozen, and those of a configuration."""
    return _field(_KEY, key.encode()) if key else b""


def _time(field: bytes, nanoseconds: int) -> bytes:
    # logs.proto: 0 is an unknown time, and so is a time that does not fit.
    return field + _FIXED64.pack(nanoseconds) if 0 < nanoseconds <= _MAX_NANOSECONDS else b""


def _field(field: bytes, content: bytes) -> bytes:
    """A field: its tag, the length of its content, and the content."""
    return _before(field, len(content)) + content


def _before(field: bytes, size: int) -> bytes:
    """A tag and the length of the content that follows."""
    return field + _varint(size)


def _varint(number: int) -> bytes:
    """A number in groups of seven bits, the lowest first. The highest bit of a byte says that another one follows."""
    if number < len(_ONE_BYTE):
        return _ONE_BYTE[number]
    return bytes((number & 0x7F | 0x80,)) + _varint(number >> 7)


def _any_value(value: AttributeValue) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(array_value=ArrayValue(values=[_any_value(element) for element in value]))
