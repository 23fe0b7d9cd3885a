"""The debug exporter: prints log records to the terminal."""

import errno
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal, TextIO

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from statsig_otel import _attributes
from statsig_otel.config.model import Settings
from statsig_otel.exporters.decoding import records_in, unreadable
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, Rejected, RetryLater
from statsig_otel.exporters.exporter_type import IN_A_DESTINATION
from statsig_otel.exporters.terminal import ColorMode, paint, printable, shorten, wants_color, width, write
from statsig_otel.exporters.wording import counted

_logger: Final = logging.getLogger(__name__)

_MISSING: Final = "-"
_TEMPORARY: Final = frozenset({errno.EAGAIN, errno.EINTR, errno.ENOSPC, errno.EDQUOT})
_SEVERITIES: Final = SeverityNumber.DESCRIPTOR.values_by_number

# The columns of `normal`: the smallest and the largest width, and the colour (SGR parameters, ECMA-48 8.3.117).
_COLUMNS: Final = (
    (24, 24, "2"),  # time
    (12, 28, "36"),  # type
    (24, 48, "1"),  # title
    (16, 32, ""),  # who
    (10, 24, "32"),  # environments
    (1, 24, "2"),  # source
)
_HEADING: Final = "1"
_KEY: Final = "36"


class DebugSettings(Settings):
    """The settings of a `debug` exporter.

    Attributes:
        verbosity: `basic` prints one line per batch, `normal` one line per log record, `detailed` everything. The
            names are the Collector's, whose default is `basic`.
        color: `auto` uses colours on a terminal, unless NO_COLOR is set or TERM is dumb; FORCE_COLOR switches them on
            without a terminal too. `always` and `never` ignore the environment.

    Example:
        >>> from statsig_otel.exporters import DebugSettings
        >>> DebugSettings(verbosity="detailed").color
        'auto'
    """

    meant: ClassVar[Mapping[str, str]] = IN_A_DESTINATION
    unsupported: ClassVar[Mapping[str, str]] = {
        "output": "leave it out: verbosity sets how much is printed",
        "output_paths": "leave it out: the exporter prints to standard output; use the file exporter for a file",
        "sampling_initial": "leave it out: each record is printed",
        "sampling_thereafter": "leave it out: each record is printed",
        "use_internal_logger": "leave it out: the exporter prints to standard output",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "output_paths": (["stdout"],),
        "sampling_thereafter": (1,),
        "use_internal_logger": (False,),
    }

    verbosity: Literal["basic", "normal", "detailed"] = "normal"
    color: ColorMode = "auto"


class DebugExporter:
    r"""Prints log records. The output is meant to be read by a person and may change with any version.

    Unprintable characters are shown as escapes such as `\x1b`, so that data can't control the terminal. The timeout of
    `send` does not apply: a stopped terminal delays it without limit.

    Args:
        name: The exporter's id, such as `debug/all`.
        settings: The exporter's settings.
        stream: The stream to print to, by default the standard output. It is not closed.
    """

    def __init__(self, name: str, settings: DebugSettings, stream: TextIO | None = None) -> None:
        self._name = name
        self._settings = settings
        self._given_stream = stream
        self._stream: TextIO | None = None
        self._colored = False
        self._widths = [least for least, _, _ in _COLUMNS]

    def start(self) -> None:
        """Choose the stream, and whether to use colours.

        Raises:
            OSError: The process has no standard output.
        """
        stream = self._given_stream or sys.stdout
        if stream is None:
            raise OSError(f"{self._name}: the process has no standard output; use the file exporter")
        self._colored = wants_color(self._settings.color, stream, os.environ)
        self._stream = stream
        _logger.info("%s prints to standard output", self._name)

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:  # noqa: ARG002 - the seam's signature
        """Print the batch. For the parameters see `Exporter.send`.

        Returns:
            `Delivered`: The batch was written and flushed.
            `RetryLater`: The output can't be written now, for example because the disk behind a redirection is full.
            `Blocked`: The output has no reader: a broken pipe, a closed stream, a terminal that hung up. That does not
                pass by itself.
            `Rejected`: The payload is not an `ExportLogsServiceRequest`.
        """
        stream = self._stream
        if stream is None:
            return RetryLater(f"{self._name} was not started, or was shut down")
        try:
            text = self._render(ExportLogsServiceRequest.FromString(payload))
        except (DecodeError, RecursionError) as error:
            return Rejected(unreadable(error))
        try:
            write(stream, text)
        except ValueError as error:  # Python's streams raise it once they are closed
            return Blocked(f"the output is closed: {error}")
        except OSError as error:
            if error.errno in _TEMPORARY:
                return RetryLater(f"the output can't be written now: {error}")
            return Blocked(f"the output has no reader: {error}")
        return Delivered()

    def shutdown(self) -> None:
        """Stop printing; the stream stays open. Safe to call twice, and without `start`."""
        self._stream = None

    def _render(self, request: ExportLogsServiceRequest) -> str:
        render = {"basic": self._basic, "normal": self._normal, "detailed": self._detailed}[self._settings.verbosity]
        return "".join(f"{line}\n" for line in render(request))

    def _basic(self, request: ExportLogsServiceRequest) -> Iterator[str]:
        count = sum(1 for _ in records_in(request))
        yield f"{printable(self._name)}: {counted(count, 'log record')}"

    def _normal(self, request: ExportLogsServiceRequest) -> Iterator[str]:
        rows = [
            [shorten(cell, most) for cell, (_, most, _) in zip(_cells(record), _COLUMNS, strict=True)]
            for record in records_in(request)
        ]
        # The widths never shrink, so that the columns stay aligned from batch to batch.
        for row in rows:
            self._widths = [max(least, width(cell)) for least, cell in zip(self._widths, row, strict=True)]
        for row in rows:
            yield "  ".join(
                self._color(cell, sgr) + " " * (cells - width(cell))
                for cell, cells, (_, _, sgr) in zip(row, self._widths, _COLUMNS, strict=True)
            ).rstrip(" ")

    def _detailed(self, request: ExportLogsServiceRequest) -> Iterator[str]:
        for number, resource_logs in enumerate(request.resource_logs):
            yield self._color(f"ResourceLogs #{number}", _HEADING)
            yield from self._pairs("  ", _resource_pairs(resource_logs.resource, resource_logs.schema_url))
            for scope_number, scope_logs in enumerate(resource_logs.scope_logs):
                yield "  " + self._color(f"ScopeLogs #{scope_number}", _HEADING)
                yield from self._pairs("    ", _scope_pairs(scope_logs.scope, scope_logs.schema_url))
                for record_number, record in enumerate(scope_logs.log_records):
                    yield "    " + self._color(f"LogRecord #{record_number}", _HEADING)
                    yield from self._pairs("      ", _record_pairs(record))

    def _pairs(self, indent: str, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
        """One `key  value` line per pair, with aligned values. Further lines of a value are aligned too."""
        shown = [(printable(key), value) for key, value in pairs]
        cells = max((width(key) for key, _ in shown), default=0)
        for key, value in shown:
            first, *others = (printable(line) for line in value.replace("\r\n", "\n").split("\n"))
            yield f"{indent}{self._color(key, _KEY)}{' ' * (cells - width(key))}  {first}".rstrip(" ")
            for line in others:
                yield f"{indent}{' ' * cells}  {line}".rstrip(" ")

    def _color(self, text: str, sgr: str) -> str:
        return paint(text, sgr, colored=self._colored)


def _cells(record: LogRecord) -> tuple[str, ...]:
    """The columns of `normal`. Other programs' records show their event name and body instead of attributes."""
    attributes = {attribute.key: attribute.value for attribute in record.attributes}

    def first(*keys: str, default: str = "") -> str:
        return next((text for key in keys if key in attributes and (text := _text(attributes[key]))), default)

    environments = attributes.get(_attributes.ENVIRONMENTS, AnyValue()).array_value.values
    # OTLP's logs.proto: if the time is missing, use the observed time.
    time = record.time_unix_nano or record.observed_time_unix_nano
    cells = (
        _time(time - time % 1_000_000),
        first(_attributes.TYPE, default=record.event_name),
        first(_attributes.TITLE, default=_text(record.body)),
        first(_attributes.USER_EMAIL, _attributes.USER_NAME, _attributes.USER_ID),
        ", ".join(map(_text, environments)) or first(_attributes.ENVIRONMENT),
        first(_attributes.SOURCE),
    )
    return tuple(printable(cell) or _MISSING for cell in cells)


def _resource_pairs(resource: Resource, schema_url: str) -> Iterator[tuple[str, str]]:
    yield "SchemaURL", schema_url or _MISSING
    yield from _attribute_pairs(resource.attributes, resource.dropped_attributes_count)
    for reference in resource.entity_refs:
        yield "EntityRef", json.dumps(json_format.MessageToDict(reference), ensure_ascii=False)


def _scope_pairs(scope: InstrumentationScope, schema_url: str) -> Iterator[tuple[str, str]]:
    yield "Name", scope.name or _MISSING
    yield "Version", scope.version or _MISSING
    yield "SchemaURL", schema_url or _MISSING
    yield from _attribute_pairs(scope.attributes, scope.dropped_attributes_count)


def _record_pairs(record: LogRecord) -> Iterator[tuple[str, str]]:
    severity = _SEVERITIES.get(record.severity_number)
    name = f" ({severity.name.removeprefix('SEVERITY_NUMBER_')})" if severity and severity.number else ""
    yield "EventName", record.event_name or _MISSING
    yield "Timestamp", _time(record.time_unix_nano)
    yield "ObservedTimestamp", _time(record.observed_time_unix_nano)
    yield "SeverityNumber", f"{record.severity_number}{name}" if record.severity_number else _MISSING
    yield "SeverityText", record.severity_text or _MISSING
    yield "Body", _text(record.body) or _MISSING
    yield "TraceId", record.trace_id.hex() or _MISSING
    yield "SpanId", record.span_id.hex() or _MISSING
    yield "Flags", str(record.flags)
    yield from _attribute_pairs(record.attributes, record.dropped_attributes_count)


def _attribute_pairs(attributes: Iterable[KeyValue], dropped: int) -> Iterator[tuple[str, str]]:
    if dropped:
        yield "DroppedAttributesCount", str(dropped)
    for attribute in attributes:
        yield f"-> {attribute.key}", _text(attribute.value)


def _text(value: AnyValue) -> str:
    """A string unchanged, an empty value as an empty string, and all else as JSON."""
    plain = _plain(value)
    if isinstance(plain, str):
        return plain
    return "" if plain is None else json.dumps(plain, ensure_ascii=False)


def _plain(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_plain(element) for element in value.array_value.values]
        case "kvlist_value":
            return {pair.key: _plain(pair.value) for pair in value.kvlist_value.values}
        case "bytes_value":
            return f"0x{value.bytes_value.hex()}"
        case field:
            return getattr(value, field)


def _time(nanoseconds: int) -> str:
    """A time in RFC 3339 and UTC, with milliseconds, or with nanoseconds if it has any."""
    if not nanoseconds:
        return _MISSING
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    digits = f"{fraction:09}".removesuffix("000000")
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{digits}Z"
