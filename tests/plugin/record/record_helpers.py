"""Encodes change events, and reads their records."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.record import (
    LogRecordEncoder,
)

DATA: Final = Path(__file__).parents[2] / "data"


OBSERVED: Final = 1_739_400_185_400_123_456


UID: Final = "00112233445566778899aabbccddeeff"


SAMPLES: Final = [entry["event"] for entry in json.loads((DATA / "config_changes.json").read_text())["events"]]


FULL: Final = ChangeEvent(
    happened_at=1739400185198,
    entity_type="Dynamic Config",
    name="layout_v2",
    action="updated",
    description="- Updated rule\n    - 10 to 50",
    environments=("production",),
    project_id="project_1",
    project_name="Web",
    tags=("core", '{"id":1}'),
    target_apps=("app",),
    user_id="user_1",
    user_name="Test User",
    user_email="test.user@example.com",
)


def encode(
    event: ChangeEvent, encoder: LogRecordEncoder | None = None, original: str = "{}", item_uid: str = UID
) -> bytes:
    encoder = encoder or LogRecordEncoder()
    return encoder.encode(encoder.default(event, uid=item_uid, original=original), event, observed_ns=OBSERVED)


def record_in(encoded: bytes) -> LogRecord:
    request = ExportLogsServiceRequest.FromString(encoded)
    (resource_logs,) = request.resource_logs
    (scope_logs,) = resource_logs.scope_logs
    (record,) = scope_logs.log_records
    return record


def plain(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    assert kind is not None
    return [plain(element) for element in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def attributes_in(attributes: Sequence[KeyValue]) -> dict[str, object]:
    found = {attribute.key: plain(attribute.value) for attribute in attributes}
    assert len(found) == len(attributes), "OTLP: the names of attributes are unique"
    return found


def attributes_of(
    event: ChangeEvent, encoder: LogRecordEncoder | None = None, original: str = "{}"
) -> dict[str, object]:
    return attributes_in(record_in(encode(event, encoder, original)).attributes)


def table(event: ChangeEvent, item_uid: str = UID) -> dict[str, Any]:
    """The attributes that the record's table asks for, in its order."""
    action = event.action or "changed"
    rows: dict[str, Any] = {
        "change_event.category": "feature_flags",
        "change_event.type": "".join("_" if c.isspace() else c for c in f"{event.entity_type}_{action}".lower()),
        "change_event.source": "statsig",
        "change_event.happened_at": rfc3339(event.happened_at),
        "change_event.title": f"{event.name} {action}",
        "change_event.label.type": event.entity_type,
        "change_event.label.name": event.name,
        "change_event.label.action": event.action,
        "change_event.label.description": event.description,
        "feature_flag.key": event.name,
        "feature_flag.provider.name": "statsig",
        "feature_flag.set.id": event.project_id,
        "deployment.environment.name": event.environments[0] if len(event.environments) == 1 else None,
        "user.name": event.user_name,
        "user.email": event.user_email,
        "user.id": event.user_id,
        "log.record.uid": item_uid,
        "statsig.environments": list(event.environments),
        "statsig.project.name": event.project_name,
        "statsig.project.id": event.project_id,
        "statsig.tags": list(event.tags),
        "statsig.target_apps": list(event.target_apps),
    }
    return {name: value for name, value in rows.items() if value}


def rfc3339(milliseconds: int) -> str:
    """By the calendar's own rules, year by year: no library's idea of a date stands in between."""
    seconds, ms = divmod(milliseconds, 1000)
    days, second = divmod(seconds, 86400)
    year = 1970
    while days >= (length := 366 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 365):
        days -= length
        year += 1
    month = 1
    for span in (31, 29 if length == 366 else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31):
        if days < span:
            break
        days -= span
        month += 1
    clock = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
    return f"{year:04d}-{month:02d}-{days + 1:02d}T{clock}.{ms:03d}Z"
