"""The readers of the metrics: what Prometheus gets, what is sent, and what they can't do."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData

from statsig_otel import _telemetry
from statsig_otel._instruments import METRICS
from statsig_otel.plugin.settings.metrics import MetricsSettings
from statsig_otel.plugin.watch.prometheus import Scrapes
from statsig_otel.plugin.watch.readers import ReaderError, Readers
from tests.metrics import forgotten
from tests.peers.certs import Authority, ServerTls
from tests.peers.otlp_servers import HttpSink
from tests.plugin.http_client import Address, Response, exchange, request
from tests.waiting import wait_until

PULL = {"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": 0}}}}


def periodic(
    endpoint: str, protocol: str = "http/protobuf", interval: object = "1h", **keys: object
) -> dict[str, object]:
    otlp = {"protocol": protocol, "endpoint": endpoint, **keys}
    return {"periodic": {"interval": interval, "exporter": {"otlp": otlp}}}


@contextmanager
def reading(*readers: object, level: str = "normal") -> Iterator[Readers]:
    """Run readers during the block."""
    running = Readers(MetricsSettings.model_validate({"level": level, "readers": list(readers)}))
    with forgotten():
        running.start()
        try:
            yield running
        finally:
            running.shutdown(timeout=30)


def address_of(readers: Readers) -> Address:
    (url,) = readers.urls
    host, port = url.removeprefix("http://").removesuffix("/metrics").rsplit(":", 1)
    return host, int(port)


def get(address: Address, path: str = "/metrics", **headers: str) -> Response:
    return exchange(address, request(method="GET", path=path, headers=headers))


def test_prometheus_reads_text_or_openmetrics() -> None:
    counts = _telemetry.counts_of("statsig/scraped")
    counts.ignore({'a "quoted"\nname\\': 3})
    with reading(PULL) as readers:
        _telemetry.request_duration.record(0.3, {"receiver": "statsig/scraped"})
        text, openmetrics = (
            get(address_of(readers)),
            get(address_of(readers), Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5"),
        )
    assert text.headers["content-type"].startswith("text/plain")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.body.endswith(b"# EOF\n")
    lines = text.body.decode().split("\n")
    escaped = r"a \"quoted\"\nname\\"
    assert (
        f'statsig_otel_receiver_ignored_items_total{{event_name="{escaped}",receiver="statsig/scraped"}} 3.0' in lines
    )
    name = "statsig_otel_receiver_request_duration_seconds"
    assert f'{name}_bucket{{le="0.25",receiver="statsig/scraped"}} 0.0' in lines
    assert f'{name}_bucket{{le="0.5",receiver="statsig/scraped"}} 1.0' in lines
    assert f'{name}_sum{{receiver="statsig/scraped"}} 0.3' in lines
    assert f"# UNIT {name} seconds" in openmetrics.body.decode().split("\n")
    assert any(line.startswith("target_info{") and 'service_name="statsig-otel"' in line for line in lines)
    told = {line.split()[2] for line in lines if line.startswith("# TYPE")} - {"target_info"}
    assert told <= {metric.prometheus_name for metric in METRICS.values()}


def test_only_get_and_head_of_one_path_are_answered() -> None:
    with reading(PULL) as readers:
        address = address_of(readers)
        head = exchange(address, request(method="HEAD", path="/metrics"), head=True)
        assert (head.status, head.body) == (200, b"")
        assert (get(address, "/").status, get(address, "/").body) == (404, b"the metrics are at /metrics\n")
        assert exchange(address, request(path="/metrics")).status == 405


def test_scrapes_can_not_keep_a_processor_busy() -> None:
    """A collection that took two seconds is the answer for eighteen more."""
    now, collections = 100.0, 0

    class Slow(InMemoryMetricReader):
        def get_metrics_data(self) -> MetricsData | None:
            nonlocal now, collections
            now, collections = now + 2, collections + 1
            return None

    scrapes = Scrapes(Slow(), clock=lambda: now)
    for passed, wanted in ((0, 1), (17.9, 1), (0.2, 2), (1, 2)):
        now += passed
        first, again, other = (
            scrapes.answer(accept)[1] for accept in ("", "text/plain", "application/openmetrics-text")
        )
        assert first is again
        assert first != other
        assert collections == wanted


def test_many_scrapes_at_once_are_all_answered() -> None:
    with reading(PULL) as readers, ThreadPoolExecutor(16) as pool:
        address = address_of(readers)
        assert {one.status for one in pool.map(lambda _: get(address), range(60))} == {200}


def test_nothing_runs_at_the_level_none() -> None:
    with reading(PULL, level="none") as readers:
        assert readers.urls == []


@contextmanager
def grpc_server(taken: Callable[[ExportMetricsServiceRequest, dict[str, str]], None]) -> Iterator[str]:
    """A backend for metrics over gRPC."""

    def export(message: ExportMetricsServiceRequest, context: grpc.ServicerContext) -> ExportMetricsServiceResponse:
        taken(message, {key: str(value) for key, value in context.invocation_metadata()})
        return ExportMetricsServiceResponse()

    handler: grpc.RpcMethodHandler[ExportMetricsServiceRequest, ExportMetricsServiceResponse]
    handler = grpc.unary_unary_rpc_method_handler(
        export, ExportMetricsServiceRequest.FromString, lambda answer: answer.SerializeToString()
    )
    server = grpc.server(ThreadPoolExecutor(2))
    name = "opentelemetry.proto.collector.metrics.v1.MetricsService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, {"Export": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def names_in(message: ExportMetricsServiceRequest) -> set[str]:
    return {metric.name for of in message.resource_metrics for scope in of.scope_metrics for metric in scope.metrics}


def test_metrics_are_sent_and_a_last_time_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP and gRPC, with the headers of the configuration alone: others are for another backend."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-secret=another")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "x-secret=another")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "deflate")
    over_grpc: list[tuple[ExportMetricsServiceRequest, dict[str, str]]] = []
    with HttpSink() as sink, grpc_server(lambda *one: over_grpc.append(one)) as address:
        with reading(
            periodic(sink.url, compression="gzip", headers={"x-key": "k"}),
            periodic(address, "grpc", insecure=True),
            periodic(f"{sink.url}/elsewhere"),
            PULL,
        ):
            assert os.environ["OTEL_EXPORTER_OTLP_COMPRESSION"] == "deflate"
            _telemetry.counts_of("statsig/sent").accepted += 1
        (first,) = (one for one in sink.requests if one.path == "/v1/metrics")
        (second,) = (one for one in sink.requests if one.path != "/v1/metrics")
        ((message, metadata),) = over_grpc
    assert second.path == "/elsewhere"
    assert (first.headers["x-key"], first.headers["content-encoding"]) == ("k", "gzip")
    assert "content-encoding" not in second.headers
    for headers in (first.headers, second.headers, metadata):
        assert "x-secret" not in headers
    sent = ExportMetricsServiceRequest.FromString(first.payload)
    assert {"otelcol_receiver_accepted_log_records"} <= names_in(sent) <= {*METRICS}
    assert names_in(message) == names_in(sent)
    resource = {one.key: one.value.string_value for one in sent.resource_metrics[0].resource.attributes}
    assert resource["service.name"] == "statsig-otel"


@pytest.mark.slow
def test_metrics_are_sent_every_interval() -> None:
    with HttpSink() as sink, reading(periodic(sink.url, interval=1000)):
        _telemetry.request_duration.record(0.3, {"receiver": "statsig"})  # without a value nothing is sent
        wait_until(lambda: sink.requests)


def test_certificates_are_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority()
    tls = ServerTls(authority.issue("127.0.0.1"))
    with HttpSink(tls=tls) as sink:
        with reading(periodic(sink.url, certificate=authority.write(tmp_path))):
            _telemetry.request_duration.record(0.3, {"receiver": "statsig"})
        with reading(periodic(sink.url, timeout="100ms")):
            _telemetry.request_duration.record(0.3, {"receiver": "statsig"})
        assert len(sink.requests) == 1
    assert [record for record in caplog.records if record.levelno == logging.ERROR]


def test_a_certificate_that_becomes_a_pipe_holds_nothing_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The exporter of the SDK reads the file again for each connection."""
    authority = Authority()
    with HttpSink(tls=ServerTls(authority.issue("127.0.0.1"))) as sink:
        file = Path(authority.write(tmp_path))
        with reading(periodic(sink.url, certificate=str(file), timeout="1s")):
            _telemetry.request_duration.record(0.3, {"receiver": "statsig"})
            os.mkfifo(tmp_path / "pipe")
            (tmp_path / "pipe").rename(file)
        assert not sink.requests
    assert "it is not a regular file" in caplog.text


def test_what_can_not_be_started_is_told_with_its_position(tmp_path: Path) -> None:
    """And nothing else is left open."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as freed:
        port, free = taken.getsockname()[1], freed.getsockname()[1]
        freed.close()
        in_use = {"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": port}}}}
        before = {"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": free}}}}
        with pytest.raises(ReaderError) as caught, reading(before, periodic("http://127.0.0.1:1"), in_use):
            pass
        assert caught.value.position == 2
        assert f"cannot listen on 127.0.0.1:{port}" in caught.value.fault.message
        socket.create_server(("127.0.0.1", free)).close()
    os.mkfifo(tmp_path / "pipe.pem")
    for name, said in (("missing.pem", "No such file"), ("pipe.pem", "it is not a regular file")):
        unusable = periodic("https://127.0.0.1:1", certificate=str(tmp_path / name))
        with pytest.raises(ReaderError, match=f"{said}.*{name}") as caught, reading(unusable):
            pass
        assert caught.value.position == 0
