"""The OTLP/HTTP exporter, and what it is sent to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from statsig_otel.exporters.exporter import Outcome
from statsig_otel.exporters.otlp.http import OtlpHttpExporter
from statsig_otel.exporters.otlp.settings import OtlpHttpSettings
from tests.exporters.otlp.requests import LONG, encoded


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
