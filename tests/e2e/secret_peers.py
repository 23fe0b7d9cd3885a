"""What stands around the service in the search for secrets: backends, brokers, an audit log and a proxy that refuse.

Where they can, they quote the keys that they were sent, as some real ones do.
"""

import base64
import html
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import grpc
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # the package has no py.typed

from tests.e2e.canaries import PROXY, SINKS
from tests.e2e.statsig_client import dead_port
from tests.peers.audit_log import AuditLogServer, failing
from tests.peers.certs import Authority, ServerTls
from tests.peers.http_proxy import HttpProxy
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink, HttpAnswer, HttpSink, Received, partial_success
from tests.peers.refusing_kafka import RefusingKafka

METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def quoting(received: Received, spell: Callable[[str], str] = str) -> str:
    """What was sent, as some backends tell it."""
    return "not allowed: " + "; ".join(spell(value) for value in received.headers.values() if "s3cr3t" in value)


def as_text(status: int, spell: Callable[[str], str]) -> Callable[[Received], HttpAnswer]:
    return lambda received: HttpAnswer(status, {"Content-Type": "text/plain"}, quoting(received, spell).encode())


def as_status(received: Received) -> HttpAnswer:
    return HttpAnswer(400, body=Status(message=quoting(received)).SerializeToString())


def as_grpc(received: Received) -> GrpcAnswer:
    text = quoting(received)
    details = Status(code=16, message=text).SerializeToString()
    return GrpcAnswer(grpc.StatusCode.UNAUTHENTICATED, text, (("grpc-status-details-bin", details),))


HTTP_ANSWERS: Mapping[str, Callable[[Received], HttpAnswer]] = {
    "blocked": as_text(401, json.dumps),
    "retried": as_text(503, html.escape),
    "elsewhere": as_text(404, quote),
    "rejected": as_status,
    "query": lambda received: HttpAnswer(
        403, {"Content-Type": "text/plain"}, received.path.rpartition("=")[2].encode()
    ),
    "partly": lambda received: HttpAnswer(body=partial_success(1, quoting(received))),
    "warning": lambda received: HttpAnswer(body=partial_success(0, quoting(received))),
}
assert {*HTTP_ANSWERS} == {*SINKS}


@dataclass(frozen=True)
class Peers:
    """All that is around the service.

    Attributes:
        at: Where each of them listens, as `host:port`.
        sinks: The OTLP backends.
        proxy: The proxy.
        log: The audit log that can be read with the right key.
    """

    at: Mapping[str, str]
    sinks: Mapping[str, HttpSink | GrpcSink]
    proxy: HttpProxy
    log: AuditLogServer

    @property
    def sent(self) -> dict[str, str]:
        """All bodies that came to each backend, without their headers, which have to have the key."""
        return {
            name: b"".join(request.payload for request in list(sink.requests)).decode("latin-1")
            for name, sink in self.sinks.items()
        }


@contextmanager
def refusing_peers(folder: Path) -> Iterator[Peers]:
    """Let all of them listen for the time of the block. None has a certificate that is trusted."""
    tls = ServerTls(Authority().issue("localhost", "127.0.0.1"))
    sinks: dict[str, HttpSink | GrpcSink] = {
        "grpc": GrpcSink(),
        "tls-http": HttpSink(tls=tls),
        "tls-grpc": GrpcSink(tls=tls),
        "metrics-grpc": GrpcSink(method=METRICS),
        "metrics-http": HttpSink(),
        "traces-grpc": GrpcSink(method=TRACES),
        "traces-http": HttpSink(),
        **{name: HttpSink() for name in HTTP_ANSWERS},
    }
    for name, sink in sinks.items():
        if isinstance(sink, HttpSink):
            sink.answer = HTTP_ANSWERS.get(name, as_text(401, str))
        else:
            sink.answer = as_grpc
    basic = base64.b64encode(f"user:{PROXY}".encode()).decode()
    logs = {
        "audit": AuditLogServer(),
        "audit-failing": AuditLogServer(),
        "audit-untrusted": AuditLogServer(certificate=tls.certificate, folder=folder),
    }
    logs["audit-failing"].faults = [failing(500, Retry_After="3600")] * 100
    proxy = HttpProxy(status=407, message=f"{PROXY} is not {basic}")
    with ExitStack() as stack:
        broker = stack.enter_context(RefusingKafka())
        for one in (*sinks.values(), *logs.values(), proxy):
            stack.enter_context(one)
        at = {
            **{name: sink.address for name, sink in sinks.items()},
            **{name: f"127.0.0.1:{log.port}" for name, log in logs.items()},
            "nobody": f"127.0.0.1:{stack.enter_context(dead_port())}",
            "kafka": broker.address,
        }
        at["tls-grpc"] = at["tls-grpc"].replace("127.0.0.1", "localhost")
        yield Peers(at, sinks, proxy, logs["audit"])
