"""Records are the same as those that the OpenTelemetry SDK makes."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord as SdkLogRecord
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from statsig_otel import __version__
from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.record import (
    SCHEMA_URL,
    LogRecordEncoder,
    uid,
)
from tests.plugin.record.record_helpers import OBSERVED, SAMPLES, UID, encode, table

TEXT: Final = st.text(min_size=1, max_size=12)


OPTIONAL: Final = st.none() | TEXT


ARRAY: Final = st.lists(TEXT, max_size=3).map(tuple)


EVENTS: Final = st.builds(
    ChangeEvent,
    happened_at=st.integers(1, 2**64 // 1_000_000),
    entity_type=TEXT,
    name=TEXT,
    action=OPTIONAL,
    description=OPTIONAL,
    environments=ARRAY,
    project_id=OPTIONAL,
    project_name=OPTIONAL,
    tags=ARRAY,
    target_apps=ARRAY,
    user_id=OPTIONAL,
    user_name=OPTIONAL,
    user_email=OPTIONAL,
)


def sorted_attributes(request: ExportLogsServiceRequest) -> ExportLogsServiceRequest:
    """A copy with the attributes of each record sorted by name: their order means nothing."""
    copy = ExportLogsServiceRequest()
    copy.CopyFrom(request)
    for resource_logs in copy.resource_logs:
        for scope_logs in resource_logs.scope_logs:
            for record in scope_logs.log_records:
                record.attributes.sort(key=lambda attribute: attribute.key)
    return copy


def sdk_record(event: ChangeEvent, item_uid: str) -> SdkLogRecord:
    return SdkLogRecord(
        timestamp=event.happened_at * 1_000_000,
        observed_timestamp=OBSERVED,
        severity_number=SeverityNumber.INFO,
        body=event.title,
        attributes=table(event, item_uid),
        event_name="statsig.config_change",
    )


@pytest.mark.parametrize("item", SAMPLES, ids=["gate", "experiment", "gate_2022"])
def test_a_sample_is_what_the_sdk_makes_through_a_logger(item: dict[str, Any]) -> None:
    """But for the order of the attributes, also on the whole way that an embedder's record goes."""
    event, item_uid = ChangeEvent.from_item(item), uid(item)
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # the SDK leaves it without annotations
    provider = LoggerProvider(resource=Resource({"service.name": "statsig"}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logger = provider.get_logger("statsig_otel", version=__version__, schema_url=SCHEMA_URL)
    logger.emit(sdk_record(event, item_uid))
    ours = encode(event, item_uid=item_uid)
    theirs = encode_logs(exporter.get_finished_logs())
    provider.shutdown()
    assert sorted_attributes(ExportLogsServiceRequest.FromString(ours)) == sorted_attributes(theirs)


@given(EVENTS)
def test_any_event_is_what_the_sdk_makes(event: ChangeEvent) -> None:
    """NUL, emoji, U+FFFD and all: it is valid protobuf, and the SDK's."""
    resource: dict[str, Any] = {"service.name": "statsig", "numbers": (1, 2), "on": True, "ratio": 0.5, "n": 7}
    ours = ExportLogsServiceRequest.FromString(encode(event, LogRecordEncoder(resource=resource)))
    theirs = encode_logs(
        [
            ReadableLogRecord(
                sdk_record(event, UID),
                Resource(resource),
                InstrumentationScope("statsig_otel", __version__, SCHEMA_URL),
            )
        ]
    )
    assert sorted_attributes(ours) == sorted_attributes(theirs)
