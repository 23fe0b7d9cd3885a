"""Records for a Kafka exporter, and exporters."""

from collections.abc import Iterable
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters.kafka.exporter import KafkaExporter
from statsig_otel.exporters.kafka.settings import KafkaSettings


def record(uid: str, *, change: str = "", size: int = 0) -> bytes:
    """A record, as the queue has it; with the uid of its change if it is for one service."""
    request = ExportLogsServiceRequest()
    made = request.resource_logs.add().scope_logs.add().log_records.add()
    made.body.string_value = "x" * size
    for key, value in (("log.record.uid", uid), ("statsig.config_change.uid", change)):
        if value:
            made.attributes.add(key=key).value.string_value = value
    return request.SerializeToString()


def uids_of(values: Iterable[bytes | None]) -> list[str]:
    """The uids of messages with one record each."""
    return [uid_of(value) for value in values]


def uid_of(value: bytes | None) -> str:
    """The uid of a message, which has to have exactly one record."""
    assert value is not None
    (resource_logs,) = ExportLogsServiceRequest.FromString(value).resource_logs
    (scope_logs,) = resource_logs.scope_logs
    (made,) = scope_logs.log_records
    return next(one.value.string_value for one in made.attributes if one.key == "log.record.uid")


def exporter(brokers: list[str], **keys: Any) -> KafkaExporter:
    """An exporter that is not started."""
    return KafkaExporter("kafka", KafkaSettings.model_validate({"brokers": brokers, **keys}))
