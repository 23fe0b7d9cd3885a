"""Records through an embedder's LoggerProvider, compared with what the durable path sends, at a real gRPC backend.

The build runs it with the oldest OpenTelemetry that is allowed too.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry._logs import NoOpLoggerProvider
from opentelemetry.context import attach, detach
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue, KeyValueList
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from statsig_otel.exporters.consumer import Batch, Change, Invalid, RefusedError
from statsig_otel.exporters.local.logger_provider import LoggerProviderConsumer
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.record.record import LogRecordEncoder
from statsig_otel.plugin.webhook.body import parse
from tests.peers.otlp_servers import GrpcSink

DATA = Path(__file__).parents[2] / "data"
EVENTS = [entry["event"] for entry in json.loads((DATA / "config_changes.json").read_text())["events"]]
OBSERVED = 1_739_400_185_400_123_456
PAST_2554 = {**EVENTS[0], "timestamp": 32_503_680_000_000}


def batch_of(*events: object, encoder: LogRecordEncoder | None = None) -> Batch:
    payload = parse(json.dumps(events).encode())
    mapped = Mapper(encoder).map(payload, OBSERVED)
    return Batch("statsig", mapped.changes, mapped.invalid)


def messages_of(batch: Batch) -> list[ExportLogsServiceRequest]:
    return [ExportLogsServiceRequest.FromString(record) for change in batch.changes for record in change.records]


@contextmanager
def exporting_to(sink: GrpcSink) -> Iterator[LoggerProvider]:
    """A provider as embedders have it: a batch processor, and opentelemetry-exporter-otlp as it is."""
    provider = LoggerProvider(Resource({"service.name": "agent"}), shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=sink.address, insecure=True)))
    try:
        yield provider
    finally:
        provider.shutdown()


def sent(batch: Batch) -> ExportLogsServiceRequest:
    """What a backend gets of a batch."""
    with GrpcSink() as sink, exporting_to(sink) as provider:
        receipt = LoggerProviderConsumer(provider).consume(batch).result(0)
        assert (receipt.accepted, receipt.duplicates) == (len(batch.changes), 0)
        assert provider.force_flush()
        (request,) = sink.requests
        return request.message


def test_records_arrive_as_the_durable_path_sends_them_but_for_the_resource() -> None:
    batch = batch_of(*EVENTS, PAST_2554, encoder=LogRecordEncoder(include_original=True))
    direct = messages_of(batch)
    (resource_logs,) = sent(batch).resource_logs
    (scope_logs,) = resource_logs.scope_logs
    expected = direct[0].resource_logs[0].scope_logs[0]
    assert [[r] for r in scope_logs.log_records] == [list(m.resource_logs[0].scope_logs[0].log_records) for m in direct]
    assert (scope_logs.scope, scope_logs.schema_url) == (expected.scope, expected.schema_url)
    assert [(a.key, a.value.string_value) for a in resource_logs.resource.attributes] == [("service.name", "agent")]


def test_values_of_every_kind_arrive(caplog: pytest.LogCaptureFixture) -> None:
    """The encoder writes texts and lists of them only; a mapping may add others."""
    (change,) = batch_of(EVENTS[0]).changes
    message = ExportLogsServiceRequest.FromString(change.records[0])
    (record,) = message.resource_logs[0].scope_logs[0].log_records
    values = {
        "bool": AnyValue(bool_value=True),
        "int": AnyValue(int_value=-(1 << 63)),
        "double": AnyValue(double_value=0.1),
        "bytes": AnyValue(bytes_value=b"\0\xff"),
        "map": AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="a", value=AnyValue(int_value=1))])),
    }
    record.attributes.extend(KeyValue(key=key, value=value) for key, value in values.items())
    batch = Batch("statsig", (Change(change.uid, (message.SerializeToString(),)),))
    assert sent(batch).resource_logs[0].scope_logs[0].log_records == [record]
    assert not caplog.text


def test_a_change_belongs_to_no_trace_even_under_instrumentation() -> None:
    span = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1)))
    token = attach(set_span_in_context(span))
    try:
        (record,) = sent(batch_of(EVENTS[0])).resource_logs[0].scope_logs[0].log_records
    finally:
        detach(token)
    assert (record.trace_id, record.span_id, record.flags) == (b"", b"", 0)


GLOBAL_PROVIDER = """
import sys
from opentelemetry._logs import get_logger_provider
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
from statsig_otel.exporters.consumer import Batch, Change, RefusedError
from statsig_otel.exporters.local.logger_provider import LoggerProviderConsumer

consumer = LoggerProviderConsumer()
batch = Batch("statsig", (Change("0" * 32, (sys.stdin.buffer.read(),)),))
print(consumer.consume(batch).exception(0).reason)
_OTelSDKConfigurator().configure()  # what opentelemetry-instrument calls
print(consumer.consume(batch).exception(0))
get_logger_provider().shutdown()
"""


def run_global_provider(batch: Batch, **variables: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ran = subprocess.run(
        [sys.executable, "-c", GLOBAL_PROVIDER],
        input=batch.changes[0].records[0],
        env={**kept, **variables},
        capture_output=True,
        check=True,
        timeout=60,
    )
    return ran.stdout.decode().splitlines()


def test_the_global_provider_of_the_environment_is_used_once_it_is_there() -> None:
    """The same consumer, before and after what opentelemetry-instrument does with the OTEL_* variables."""
    batch = batch_of(EVENTS[0])
    with GrpcSink() as sink:
        said = run_global_provider(
            batch,
            OTEL_LOGS_EXPORTER="otlp",
            OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{sink.address}",
            OTEL_SERVICE_NAME="agent",
        )
        assert said == ["no_logger_provider", "None"]
        (message,) = [request.message for request in sink.requests]
    (direct,) = messages_of(batch)
    assert message.resource_logs[0].scope_logs == direct.resource_logs[0].scope_logs
    resource = {a.key: a.value.string_value for a in message.resource_logs[0].resource.attributes}
    assert resource["service.name"] == "agent"


def test_an_sdk_that_is_switched_off_refuses() -> None:
    said = run_global_provider(batch_of(EVENTS[0]), OTEL_SDK_DISABLED="true", OTEL_LOGS_EXPORTER="none")
    assert said[0] == "no_logger_provider"
    assert said[1].startswith("no LoggerProvider is set, it is disabled")


def refusal_of(consumer: LoggerProviderConsumer, batch: Batch) -> RefusedError:
    error = consumer.consume(batch).exception(0)
    assert isinstance(error, RefusedError)
    return error


def test_a_provider_that_does_nothing_refuses() -> None:
    """A 200 for what goes nowhere would be a loss."""
    consumer = LoggerProviderConsumer(NoOpLoggerProvider())
    assert refusal_of(consumer, batch_of(EVENTS[0])).reason == "no_logger_provider"


@pytest.mark.skipif(not hasattr(NoOpLoggerProvider().get_logger("x"), "enabled"), reason="an API that can't tell")
def test_a_provider_without_a_processor_refuses() -> None:
    consumer = LoggerProviderConsumer(LoggerProvider(shutdown_on_exit=False))
    assert refusal_of(consumer, batch_of(EVENTS[0])).reason == "no_logger_provider"


class Failing:
    """A processor that raises; of no base class, since its method has had two names."""

    def on_emit(self, record: object) -> None:
        raise ZeroDivisionError("of the processor")

    emit = on_emit

    def enabled(self, **_: Any) -> bool:
        return True

    def shutdown(self) -> None:
        """Nothing to do."""


def test_a_processor_that_raises_refuses() -> None:
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(Failing())  # type: ignore[arg-type] # see there
    refused = refusal_of(LoggerProviderConsumer(provider), batch_of(EVENTS[0]))
    assert refused.reason == "logger_provider_failed"
    assert "of the processor" in str(refused)


@pytest.mark.parametrize("show", [True, False])
def test_invalid_items_are_logged_a_bounded_number_of_them(show: bool, caplog: pytest.LogCaptureFixture) -> None:
    invalid = (*(Invalid(b'{"n": %d}\x1b' % number, "is odd") for number in range(12)),)
    consumer = LoggerProviderConsumer(NoOpLoggerProvider(), show_invalid=show)
    with caplog.at_level(logging.WARNING):
        assert consumer.consume(Batch("statsig/eu", invalid=invalid)).result(0).accepted == 0
    lines = [entry.getMessage() for entry in caplog.records]
    assert len(lines) == 11
    assert lines[-1] == "statsig/eu: and 2 more invalid items in the same request"
    assert all(('{"n": ' in line) is show for line in lines[:-1])
    assert all("\x1b" not in line for line in lines)
