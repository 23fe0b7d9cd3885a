"""What the tests of both OTLP exporters send, and whom they trust."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters.exporter import Exporter, Outcome
from tests.peers.certs import Authority

LONG = 30.0
"""Seconds that no test comes near."""

NOT_VERIFIED = pytest.mark.parametrize(
    ("names", "expired", "trusted"),
    [(["localhost"], False, False), (["localhost"], True, True), (["elsewhere.test"], False, True)],
    ids=["untrusted", "expired", "wrong host"],
)
"""Certificates that do not verify: for which names, whether expired, and whether by an authority that is trusted."""


def encoded(body: str = "x") -> bytes:
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add().body.string_value = body
    return request.SerializeToString()


def trust(authority: Authority, **more: Any) -> dict[str, Any]:
    return {"ca_pem": authority.pem.decode(), **more}


def ended_by_shutdown(exporter: Exporter, wait: Callable[[], object]) -> Outcome:
    """The outcome of a send that hangs when the exporter is shut down. `wait` returns once the send has arrived."""
    outcomes: list[Outcome] = []
    sender = threading.Thread(target=lambda: outcomes.append(exporter.send(encoded(), 1, 60.0)))
    sender.start()
    wait()
    exporter.shutdown()
    sender.join(LONG)
    assert not sender.is_alive()
    (outcome,) = outcomes
    return outcome
