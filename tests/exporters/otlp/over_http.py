"""The OTLP/HTTP exporter, and what it is sent to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters.exporter import (
    Outcome,
)
from statsig_otel.exporters.otlp.http import OtlpHttpExporter
from statsig_otel.exporters.otlp.settings import OtlpHttpSettings
from tests.peers.certs import Authority

LONG = 30.0
"""Seconds that no test comes near."""


def encoded(body: str = "x") -> bytes:
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add().body.string_value = body
    return request.SerializeToString()


@contextmanager
def exporting(endpoint: str = "", **keys: Any) -> Iterator[OtlpHttpExporter]:
    exporter = OtlpHttpExporter("otlp_http/test", OtlpHttpSettings.model_validate({"endpoint": endpoint, **keys}))
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.shutdown()


def send_to(endpoint: str = "", *, timeout: float = LONG, **keys: Any) -> Outcome:
    with exporting(endpoint, **keys) as exporter:
        return exporter.send(encoded(), 1, timeout)


def trust(authority: Authority, **more: Any) -> dict[str, Any]:
    return {"ca_pem": authority.pem.decode(), **more}
