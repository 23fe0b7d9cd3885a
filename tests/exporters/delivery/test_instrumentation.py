"""The host program's instrumentation makes no spans of exports, as with the exporters of an OpenTelemetry SDK.

The libraries are patched here in the way in which the instrumentation packages of OpenTelemetry patch them.
"""

import urllib.request
from typing import Any

import grpc
import pytest
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, get_value
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from urllib3.connection import HTTPConnection

from statsig_otel.exporters.delivery.guarded import Guarded
from statsig_otel.exporters.exporter import Delivered, Exporter, Outcome
from tests.exporters.delivery.helpers import encoded, exporter_to
from tests.peers.otlp_servers import GrpcSink, HttpSink


class Interceptor(grpc.UnaryUnaryClientInterceptor):
    """What `opentelemetry-instrumentation-grpc` puts before a channel."""

    def __init__(self, spans: "Spans") -> None:
        self._spans = spans

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self._spans.see("gRPC")
        return continuation(client_call_details, request)


class Spans:
    """The spans of an instrumentation."""

    def __init__(self) -> None:
        self.finished = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.finished))
        self._tracer = provider.get_tracer("an instrumentation")

    def see(self, name: str) -> None:
        if not get_value(_SUPPRESS_INSTRUMENTATION_KEY):
            self._tracer.start_span(name).end()

    def take(self) -> list[str]:
        names = [span.name for span in self.finished.get_finished_spans()]
        self.finished.clear()
        return names


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    made = Spans()
    request, channel, urlopen = HTTPConnection.request, grpc.insecure_channel, urllib.request.urlopen

    def traced_request(*args: Any, **keys: Any) -> Any:
        made.see("HTTP")
        return request(*args, **keys)

    def traced_channel(*args: Any, **keys: Any) -> Any:
        return grpc.intercept_channel(channel(*args, **keys), Interceptor(made))

    def traced_urlopen(*args: Any, **keys: Any) -> Any:
        made.see("urlopen")
        return urlopen(*args, **keys)

    monkeypatch.setattr(HTTPConnection, "request", traced_request)
    monkeypatch.setattr(grpc, "insecure_channel", traced_channel)
    monkeypatch.setattr(urllib.request, "urlopen", traced_urlopen)
    return made


class Own:
    """An exporter with an HTTP client of its own."""

    def __init__(self, url: str) -> None:
        self._url = url

    def start(self) -> None:
        """Nothing to open."""

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        urllib.request.urlopen(urllib.request.Request(self._url, data=payload), timeout=timeout).close()
        return Delivered()

    def shutdown(self) -> None:
        """Nothing to close."""


def test_no_exporter_is_traced_while_it_sends(spans: Spans) -> None:
    with HttpSink() as http, GrpcSink() as rpc:
        exporters: dict[str, Exporter] = {
            "HTTP": exporter_to("http", http.address),
            "gRPC": exporter_to("grpc", rpc.address),
            "urlopen": Own(f"{http.url}/v1/logs"),
        }
        for library, exporter in exporters.items():
            exporter.start()
            assert exporter.send(encoded("a"), 1, 30) == Delivered()
            assert spans.take() == [library], "without its guard it is traced"
            assert Guarded("out", exporter).send(encoded("a"), 1, 30) == Delivered()
            assert spans.take() == []
            exporter.shutdown()
    assert not get_value(_SUPPRESS_INSTRUMENTATION_KEY)
