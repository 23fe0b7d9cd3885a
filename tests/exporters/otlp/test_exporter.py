"""Renewed certificates and secrets are used by exporters that run, over both protocols, against real servers."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome
from statsig_otel.exporters.otlp.grpc import OtlpGrpcExporter
from statsig_otel.exporters.otlp.http import OtlpHttpExporter
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings
from tests.exporters.otlp.requests import LONG
from tests.peers.certs import Authority, ServerTls
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink, HttpAnswer, HttpSink

Sink: TypeAlias = GrpcSink | HttpSink


class Peers:
    """Servers and exporters of one protocol."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.running: list[Any] = []

    def sink(self, **keys: Any) -> Sink:
        return GrpcSink(**keys) if self.protocol == "grpc" else HttpSink(**keys)

    def settings(self, sink: Sink, **keys: Any) -> Any:
        scheme = "https" if "tls" in keys else "http"
        model = OtlpGrpcSettings if self.protocol == "grpc" else OtlpHttpSettings
        return model.model_validate({"endpoint": f"{scheme}://127.0.0.1:{sink.port}", **keys})

    def exporter(self, settings: Any) -> Any:
        kind: Any = OtlpGrpcExporter if self.protocol == "grpc" else OtlpHttpExporter
        exporter = kind("otlp", settings)
        exporter.start()
        self.running.append(exporter)
        return exporter

    def hang(self, sink: Sink) -> None:
        answer: Any = GrpcAnswer(hang=True) if self.protocol == "grpc" else HttpAnswer(hang=True)
        sink.answer = answer


@pytest.fixture(params=["grpc", "http"])
def peers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peers]:
    monkeypatch.setenv("no_grpc_proxy", "localhost,127.0.0.1")
    made = Peers(request.param)
    yield made
    for exporter in made.running:
        exporter.shutdown()


def keys(sink: Sink) -> list[str | None]:
    return [received.headers.get("api-key") for received in sink.requests]


def test_a_new_header_is_used_from_the_next_send_on(peers: Peers) -> None:
    with peers.sink() as sink:
        exporter = peers.exporter(peers.settings(sink, headers={"api-key": "old"}))
        peers.hang(sink)
        outcomes: list[Outcome] = []
        sending = threading.Thread(target=lambda: outcomes.append(exporter.send(b"", 0, LONG)))
        sending.start()
        sink.wait_for(1)
        assert exporter.renew(peers.settings(sink, headers={"api-key": "new"}))
        sink.release()
        sending.join(LONG)
        assert outcomes == [Delivered()]
        assert exporter.send(b"", 0, LONG) == Delivered()
        assert keys(sink) == ["old", "new"]


def test_what_is_the_same_changes_nothing(peers: Peers, tmp_path: Path) -> None:
    authority = Authority()
    with peers.sink(tls=ServerTls(authority.issue("127.0.0.1"))) as sink:
        settings = peers.settings(sink, tls={"ca_file": authority.write(tmp_path)})
        exporter = peers.exporter(settings)
        assert exporter.send(b"", 0, LONG) == Delivered()
        assert not exporter.renew(settings)
        assert exporter.send(b"", 0, LONG) == Delivered()
        if isinstance(sink, HttpSink):
            assert sink.connections == 1


@pytest.mark.parametrize("as_text", [False, True])
def test_other_certificates_count_from_the_next_send_on(peers: Peers, tmp_path: Path, *, as_text: bool) -> None:
    first, second = Authority(), Authority()

    def settings(sink: Sink, authority: Authority) -> Any:
        file = authority.write(tmp_path)
        return peers.settings(sink, tls={"ca_pem": authority.pem.decode()} if as_text else {"ca_file": file})

    with peers.sink(tls=ServerTls(first.issue("127.0.0.1"))) as sink:
        exporter = peers.exporter(settings(sink, first))
        assert exporter.send(b"", 0, LONG) == Delivered()
        sink.close()
        with peers.sink(port=sink.port, tls=ServerTls(second.issue("127.0.0.1"))) as renewed:
            exporter.send(b"", 0, LONG)  # may find its old connection closed
            assert isinstance(exporter.send(b"", 0, LONG), Blocked)
            assert exporter.renew(settings(renewed, second))
            assert exporter.send(b"", 0, LONG) == Delivered()


def test_files_that_can_not_be_used_change_nothing(peers: Peers, tmp_path: Path) -> None:
    authority = Authority()
    with peers.sink(tls=ServerTls(authority.issue("127.0.0.1"))) as sink:
        file = Path(authority.write(tmp_path))
        settings = peers.settings(sink, tls={"ca_file": str(file)})
        exporter = peers.exporter(settings)
        good = file.read_bytes()
        file.write_text("no certificate")
        with pytest.raises(ValueError, match="tls::ca_file"):
            exporter.renew(settings)
        file.unlink()
        with pytest.raises(OSError, match="tls::ca_file"):
            exporter.renew(settings)
        assert exporter.send(b"", 0, LONG) == Delivered()
        file.write_bytes(good)
        assert not exporter.renew(settings)


def test_after_a_shutdown_nothing_is_sent_by_what_was_renewed(peers: Peers) -> None:
    with peers.sink() as sink:
        exporter = peers.exporter(peers.settings(sink, headers={"api-key": "old"}))
        exporter.renew(peers.settings(sink, headers={"api-key": "new"}))
        exporter.shutdown()
        assert exporter.send(b"", 0, LONG) != Delivered()
        assert sink.requests == []


def test_the_start_says_where_it_sends(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with peers.sink() as sink:
        peers.exporter(peers.settings(sink))
    address = f"127.0.0.1:{sink.port}"
    place = f"dns:///{address} over gRPC" if peers.protocol == "grpc" else f"http://{address}/v1/logs"
    assert f"otlp sends to {place}, without TLS" in caplog.messages
