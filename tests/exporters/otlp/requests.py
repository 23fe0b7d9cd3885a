"""What the tests of both OTLP exporters send, and whom they trust."""

from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.peers.certs import Authority

LONG = 30.0
"""Seconds that no test comes near."""


def encoded(body: str = "x") -> bytes:
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add().body.string_value = body
    return request.SerializeToString()


def trust(authority: Authority, **more: Any) -> dict[str, Any]:
    return {"ca_pem": authority.pem.decode(), **more}
