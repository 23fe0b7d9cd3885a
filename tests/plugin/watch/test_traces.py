"""The spans of webhooks and deliveries: what they say, how they are linked, and where they are sent."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import falcon.testing
import pytest
from opentelemetry.context import attach, detach
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span, set_span_in_context

from statsig_otel import _tracing
from statsig_otel.exporters import Batch, Blocked, Outcome, Receipt
from statsig_otel.plugin import (
    DEFAULT_PATH,
    Destination,
    Intake,
    SendingQueueSettings,
    Service,
    StatsigWsgiReceiver,
    Verifier,
    create_wsgi_app,
    sign,
)
from statsig_otel.plugin.settings.traces import TracesSettings
from statsig_otel.plugin.watch.traces import ProcessorError, Traces
from tests.peers.otlp_servers import GrpcSink, HttpSink
from tests.plugin.services import SECRET, Keeper, change_body, post_change, service
from tests.waiting import wait_until

SYNCHRONOUS = SendingQueueSettings(enabled=False)


class Spans:
    """A TracerProvider of a host program, and what it got."""

    def __init__(self) -> None:
        self._memory = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._memory.get_finished_spans() if span.name == name]


@pytest.fixture
def spans() -> Iterator[Spans]:
    with forgetting():
        yield Spans()


@contextmanager
def forgetting() -> Iterator[None]:
    """No spans are made after the block."""
    try:
        yield
    finally:
        _tracing.tracing.tracer = None
        _tracing._spans.clear()


def signed(body: bytes) -> dict[str, str]:
    return sign(body, secret=SECRET, timestamp_ms=time.time_ns() // 1_000_000)


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


WEBHOOK = f"POST {DEFAULT_PATH}"


def test_a_webhook_and_its_delivery_have_a_span_each_and_are_linked(tmp_path: Path, spans: Spans) -> None:
    exporters = {"queued": Keeper(), "at_once": Destination(Keeper(), sending_queue=SYNCHRONOUS)}
    with service(tmp_path, exporters, tracer_provider=spans.provider) as running:
        assert post_change(running, "a").status == 200
        wait_until(lambda: spans.named("send queued") and spans.named(WEBHOOK))
    (webhook,) = spans.named(WEBHOOK)
    assert (webhook.kind, webhook.parent, webhook.status.status_code) == (SpanKind.SERVER, None, StatusCode.UNSET)
    assert attributes(webhook) == {
        "http.request.method": "POST",
        "http.route": DEFAULT_PATH,
        "url.path": DEFAULT_PATH,
        "url.scheme": "http",
        "http.response.status_code": 200,
        "statsig_otel.receiver": "statsig",
        "statsig_otel.reason": "accepted",
        "statsig_otel.accepted": 1,
        "statsig_otel.duplicates": 0,
        "statsig_otel.ignored": 0,
        "statsig_otel.invalid": 0,
    }
    for name in exporters:
        (delivery,) = spans.named(f"send {name}")
        assert (delivery.kind, delivery.parent) == (SpanKind.CLIENT, None)
        assert [link.context for link in delivery.links] == [webhook.context]
        assert attributes(delivery) == {
            "messaging.system": "statsig_otel",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": name,
            "messaging.batch.message_count": 1,
            "statsig_otel.outcome": "delivered",
        }


class Refusing(Keeper):
    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        return Blocked("401: the key is wrong")


def test_what_is_refused_and_what_fails_is_told(tmp_path: Path, spans: Spans) -> None:
    exporters = {"refusing": Refusing(), "at_once": Destination(Refusing(), sending_queue=SYNCHRONOUS)}
    with service(tmp_path, exporters, tracer_provider=spans.provider) as running:
        assert post_change(running, "a", secret="webhook-another").status == 401
        assert post_change(running, "a").status == 503
        wait_until(lambda: len(spans.named(WEBHOOK)) == 2)
    unsigned, unsaved = spans.named(WEBHOOK)
    assert unsigned.status.status_code == StatusCode.UNSET, "it is the client's fault"
    assert attributes(unsigned)["statsig_otel.reason"] == "signature_wrong"
    assert "error.type" not in attributes(unsigned)
    assert unsaved.status.status_code == StatusCode.ERROR
    assert attributes(unsaved)["error.type"] == "503"
    assert attributes(unsaved)["statsig_otel.reason"] == "exporter_failed"
    (failed,) = spans.named("send at_once")
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "401: the key is wrong")
    assert attributes(failed)["error.type"] == "blocked"
    assert not spans.named("send refusing"), "the queue did not get it"


def test_a_batch_has_a_link_to_each_webhook_that_it_came_with(tmp_path: Path, spans: Spans) -> None:
    held = Keeper(hold=True)
    with service(tmp_path, {"held": held}, tracer_provider=spans.provider) as running:
        for name in ("a", "b", "c", "b"):
            assert post_change(running, name).status == 200
            assert held.sending.wait(60)
        held.go_on.set()
        wait_until(lambda: held.names == ["a", "b", "c"] and len(spans.named("send held")) == 2)
        wait_until(lambda: len(spans.named(WEBHOOK)) == 4)
    linked = [link.context.span_id for span in spans.named("send held") for link in span.links]
    webhooks = [span.context.span_id for span in spans.named(WEBHOOK) if span.context is not None]
    assert linked == webhooks[:3], "the fourth was a duplicate"


def test_a_delivery_after_a_restart_has_no_link(tmp_path: Path, spans: Spans) -> None:
    """Which span a change came with is remembered in memory alone."""
    with service(tmp_path, {"mine": Refusing()}, tracer_provider=spans.provider) as running:
        assert post_change(running, "a").status == 200
        wait_until(lambda: spans.named("send mine"))
    _tracing._spans.clear()
    with service(tmp_path, {"mine": Keeper()}, tracer_provider=spans.provider):
        wait_until(lambda: spans.named("send mine")[-1].status.status_code == StatusCode.UNSET)
    assert spans.named("send mine")[0].links
    assert not spans.named("send mine")[-1].links


def test_only_the_latest_changes_are_remembered(spans: Spans) -> None:
    tracer = spans.provider.get_tracer("test")
    _tracing.begin(spans.provider)
    uids = [f"{number:032x}" for number in range(5000)]
    with tracer.start_as_current_span("first"):
        _tracing.remember(uids)
        _tracing.remember(uids[-10:])
    assert len(_tracing._spans) == 4096
    assert not _tracing.links_of([bytes.fromhex(uids[0])])
    assert len(_tracing.links_of(map(bytes.fromhex, uids[-10:]))) == 1
    _tracing.tracing.tracer = None
    assert not _tracing.links_of([bytes.fromhex(uids[-1])])


def test_a_span_of_the_host_program_is_the_parent(spans: Spans) -> None:
    """An application around the receiver that is instrumented has the span of the HTTP server already."""
    tracer = spans.provider.get_tracer("host")
    keeper = Keeper()
    inner = Service(
        receivers={"statsig": {"signing_secrets": [SECRET]}},
        exporters={"mine": Destination(keeper, sending_queue=SYNCHRONOUS)},
        listen=False,
        tracer_provider=spans.provider,
    )
    body = change_body("a")
    headers = signed(body)
    with inner:
        client = falcon.testing.TestClient(inner.wsgi_app())
        with tracer.start_as_current_span("host") as host:
            answer = client.simulate_post(DEFAULT_PATH, body=body, headers=headers)
    assert answer.status_code == 200
    (webhook,) = spans.named(WEBHOOK)
    assert webhook.parent == host.get_span_context()
    assert webhook.kind == SpanKind.INTERNAL
    assert [link.context for link in spans.named("send mine")[0].links] == [webhook.context]


def test_an_unexpected_error_ends_the_span(spans: Spans) -> None:
    class Broken:
        def consume(self, batch: Batch) -> Receipt:
            raise LookupError("broken")

    _tracing.begin(spans.provider)
    app = create_wsgi_app({"/hook": StatsigWsgiReceiver(Intake(verifier=Verifier([SECRET])), Broken())})
    body = change_body("a")
    headers = signed(body)
    assert falcon.testing.TestClient(app).simulate_post("/hook", body=body, headers=headers).status_code == 500
    (webhook,) = spans.named("POST /hook")
    assert webhook.status.status_code == StatusCode.ERROR
    assert attributes(webhook)["error.type"] == "unexpected"
    assert not get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("when", ["on_start", "on_end"])
def test_a_broken_processor_of_the_host_program_harms_nobody(
    when: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(SpanProcessor):
        pass

    def fail(*_: object, **__: object) -> None:
        raise LookupError("broken")

    setattr(Broken, when, fail)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Broken())
    _tracing._throttle._states.clear()
    keeper = Keeper()
    exporters = {"queued": keeper, "at_once": Destination(Keeper(), sending_queue=SYNCHRONOUS)}
    with forgetting(), service(tmp_path, exporters, tracer_provider=provider) as running:
        assert post_change(running, "a").status == 200
        wait_until(lambda: keeper.names == ["a"])
        assert running.shutdown(), "nothing waits"
    assert keeper.names == ["a"]
    assert caplog.messages.count("A span can't be made: unexpected LookupError: broken") == 1
    assert not get_current_span().get_span_context().is_valid


def test_no_span_is_made_unless_somebody_asks_for_it(tmp_path: Path) -> None:
    """Not even where the host program has a TracerProvider for all others."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    token = attach(set_span_in_context(provider.get_tracer("host").start_span("host")))
    try:
        keeper = Keeper()
        with service(tmp_path, {"mine": keeper}) as running:
            assert post_change(running, "a").status == 200
            wait_until(lambda: keeper.names == ["a"])
    finally:
        detach(token)
    assert not memory.get_finished_spans()
    assert not _tracing._spans


def processor(endpoint: str, protocol: str, **keys: object) -> dict[str, object]:
    return {"batch": {"exporter": {"otlp": {"protocol": protocol, "endpoint": endpoint, **keys}}}}


def test_spans_are_sent_over_http_and_grpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the headers of the configuration alone, and at the end at the latest."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-secret=another")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    method = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    with HttpSink() as over_http, GrpcSink(method=method) as over_grpc, forgetting():
        settings = {
            "processors": [
                processor(over_http.url, "http/protobuf", headers={"x-key": "k"}, compression="gzip"),
                processor(over_grpc.address, "grpc", insecure=True),
            ]
        }
        traces = Traces(TracesSettings.model_validate(settings))
        traces.start()
        keeper = Keeper()
        with service(tmp_path, {"mine": keeper}) as running:
            assert post_change(running, "a").status == 200
            wait_until(lambda: keeper.names == ["a"])
        traces.shutdown(timeout=30)
        traces.shutdown()
        (request,), (call,) = over_http.requests, over_grpc.requests
    assert (request.path, request.headers["x-key"]) == ("/v1/traces", "k")
    assert "x-secret" not in request.headers | call.headers
    for payload in (request.payload, call.payload):
        (of_resource,) = ExportTraceServiceRequest.FromString(payload).resource_spans
        described = {one.key: one.value.string_value for one in of_resource.resource.attributes}
        assert described["service.name"] == "statsig-otel"
        (scope,) = of_resource.scope_spans
        assert scope.scope.name == "statsig_otel"
        sent = {span.name: span for span in scope.spans}
        assert set(sent) == {WEBHOOK, "send mine"}
        assert [link.span_id for link in sent["send mine"].links] == [sent[WEBHOOK].span_id]


def test_a_processor_that_can_not_start_is_told_with_its_position(tmp_path: Path) -> None:
    settings = {
        "processors": [
            processor("http://127.0.0.1:1", "http/protobuf"),
            processor("https://127.0.0.1:1", "grpc", certificate=str(tmp_path / "missing.pem")),
        ]
    }
    traces = Traces(TracesSettings.model_validate(settings))
    with pytest.raises(ProcessorError, match=r"No such file.*missing\.pem") as caught:
        traces.start()
    assert caught.value.position == 1
    assert _tracing.tracing.tracer is None


def test_the_level_none_sends_nothing() -> None:
    settings = {"level": "None", "processors": [processor("http://127.0.0.1:1", "http/protobuf")]}
    assert TracesSettings.model_validate(settings).active == {}
