"""The OTLP/gRPC exporter against real servers."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived, StreamEnded

from statsig_otel import __version__
from statsig_otel.exporters.exporter import (
    Blocked,
    Delivered,
    Exporter,
    Outcome,
    PartiallyRejected,
    Rejected,
    RetryLater,
)
from statsig_otel.exporters.otlp.grpc import OtlpGrpcExporter
from statsig_otel.exporters.otlp.protocols import NOT_HTTP2, SPEAKS_HTTP1
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings
from statsig_otel.exporters.otlp.status import MAX_RESPONSE_BYTES
from tests.exporters.otlp.requests import LONG, NOT_VERIFIED, encoded, ended_by_shutdown, trust
from tests.exporters.otlp.test_status import GRPC
from tests.peers.certs import Authority, ServerTls
from tests.peers.otlp_servers import (
    GrpcAnswer,
    GrpcSink,
    HttpSink,
    RawServer,
    Relay,
    partial_success,
    retry_info,
    server_context,
)
from tests.peers.ports import free_port


@contextmanager
def exporting(endpoint: str, **keys: Any) -> Iterator[OtlpGrpcExporter]:
    """A started exporter; plain text unless `tls` is given."""
    settings = OtlpGrpcSettings.model_validate({"endpoint": endpoint, "tls": {"insecure": True}, **keys})
    exporter = OtlpGrpcExporter("otlp_grpc/test", settings)
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.shutdown()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def sink() -> Iterator[GrpcSink]:
    with GrpcSink() as running:
        yield running


def send_to(endpoint: str, *, timeout: float = LONG, **keys: Any) -> Outcome:
    with exporting(endpoint, **keys) as exporter:
        return exporter.send(encoded(), 1, timeout)


def eventually(exporter: Exporter, wanted: Callable[[Outcome], bool]) -> Outcome:
    """Send until the outcome is as wanted, as a sender does."""
    pause = threading.Event()
    outcome = exporter.send(encoded(), 1, LONG)
    for _ in range(300):
        if wanted(outcome):
            return outcome
        pause.wait(0.1)
        outcome = exporter.send(encoded(), 1, LONG)
    pytest.fail(f"still {outcome}")


def test_it_keeps_the_contract_of_an_exporter() -> None:
    exporter: Exporter = OtlpGrpcExporter("otlp_grpc", OtlpGrpcSettings(endpoint="localhost:4317"))
    assert isinstance(exporter.send(b"", 0, 1.0), RetryLater), "not started"
    exporter.shutdown()
    exporter.shutdown()


def test_concatenated_requests_arrive_as_one(sink: GrpcSink) -> None:
    """Two stored records, joined as bytes, are one request with two records."""
    with exporting(sink.address) as exporter:
        assert exporter.send(encoded("one") + encoded("two"), 2, LONG) == Delivered()
    (request,) = sink.requests
    assert [record.body.string_value for record in request.records] == ["one", "two"]


def test_headers_and_user_agent_arrive(sink: GrpcSink) -> None:
    headers = {"Api-Key": "hush hush", "x-scope-orgid": "7"}
    assert send_to(sink.address, headers=headers) == Delivered()
    (request,) = sink.requests
    assert request.headers["api-key"] == "hush hush"
    assert request.headers["x-scope-orgid"] == "7"
    assert request.headers["user-agent"].startswith(f"statsig-otel/{__version__} ")


@pytest.mark.parametrize(("compression", "smaller"), [("gzip", True), ("none", False)])
def test_compression(sink: GrpcSink, compression: str, smaller: bool) -> None:
    """Both arrive whole; what crosses the wire tells them apart."""
    payload = encoded("z" * 200_000)
    with Relay(sink.port) as relay, exporting(relay.address, compression=compression) as exporter:
        assert exporter.send(payload, 1, LONG) == Delivered()
        assert (relay.sent < len(payload) / 10) is smaller
    assert sink.requests[0].payload == payload


def test_a_unix_socket_is_a_target(tmp_path: Path) -> None:
    path = tmp_path / "otlp.sock"
    with GrpcSink(address=f"unix:{path}") as sink:
        assert send_to(f"unix://{path}") == Delivered()
        assert len(sink.requests) == 1


@pytest.mark.parametrize(("keys", "authority"), [({}, "localhost"), ({"authority": "backend"}, "backend")])
def test_a_unix_socket_gets_an_authority_that_is_one(tmp_path: Path, keys: dict[str, Any], authority: str) -> None:
    """gRPC's own, the escaped path, is reset by servers in Rust. The peer here decodes what is sent."""
    path = tmp_path / "otlp.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    found: list[str] = []

    def serve() -> None:
        peer, _ = listening.accept()
        with peer:
            http2 = H2Connection(H2Configuration(client_side=False))
            http2.initiate_connection()
            peer.sendall(http2.data_to_send())
            while not found and (data := peer.recv(65536)):
                requests = (event for event in http2.receive_data(data) if isinstance(event, RequestReceived))
                found.extend(dict(request.headers)[b":authority"].decode() for request in requests)
                peer.sendall(http2.data_to_send())

    serving = threading.Thread(target=serve)
    serving.start()
    assert isinstance(send_to(f"unix:{path}", **keys), RetryLater), "the peer answers nothing"
    serving.join(LONG)
    listening.close()
    assert found == [authority]


@contextmanager
def web_server(status: int, body: bytes) -> Iterator[str]:
    """Answers each request over HTTP/2 as a web server does, for one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            peer, _ = listening.accept()
            with peer:
                http2 = H2Connection(H2Configuration(client_side=False))
                http2.initiate_connection()
                peer.sendall(http2.data_to_send())
                while data := peer.recv(65536):
                    for event in http2.receive_data(data):
                        if isinstance(event, StreamEnded):
                            headers = [(":status", str(status)), ("content-type", "text/html")]
                            http2.send_headers(event.stream_id, headers, end_stream=not body)
                            if body:
                                http2.send_data(event.stream_id, body, end_stream=True)
                    peer.sendall(http2.data_to_send())

        serving = threading.Thread(target=serve)
        serving.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        serving.join(LONG)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"<!doctype html>", Blocked),
        (200, b"", Blocked),
        (302, b"", Blocked),
        (404, b"<html>", Blocked),
        (413, b"<html>", Rejected),
        (500, b"<html>", RetryLater),
        (503, b"", RetryLater),
    ],
)
def test_an_answer_over_http2_that_is_not_grpc_counts_by_its_status(
    status: int, body: bytes, expected: type[Outcome]
) -> None:
    with web_server(status, body) as address:
        outcome = send_to(address)
    assert not isinstance(outcome, Delivered)
    if outcome == RetryLater("UNKNOWN: Stream removed"):
        return  # older versions of grpcio do not say why
    assert type(outcome) is expected
    assert outcome.reason.startswith(
        f"HTTP {status} instead of a gRPC status: " if status != 200 else "the server answers as a web server does"
    )


def test_an_ip_address_and_a_name_are_endpoints(sink: GrpcSink) -> None:
    for endpoint in (f"127.0.0.1:{sink.port}", f"http://127.0.0.1:{sink.port}", f"dns:///127.0.0.1:{sink.port}"):
        assert send_to(endpoint) == Delivered()


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_over_the_wire(sink: GrpcSink, code: grpc.StatusCode) -> None:
    sink.answer = GrpcAnswer(code=code, message="käse\nbroke")
    outcome = send_to(sink.address)
    assert type(outcome) is GRPC[code.name]
    assert not isinstance(outcome, Delivered)
    assert outcome.reason == f"{code.name}: käse broke"
    assert len(sink.requests) == 1, "the library sends nothing twice by itself"


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_retry_info_over_the_wire(sink: GrpcSink, code: grpc.StatusCode) -> None:
    details = retry_info(12, 500_000_000, code=code.value[0])
    sink.answer = GrpcAnswer(code=code, message="m", trailers=(("grpc-status-details-bin", details),))
    assert send_to(sink.address) == RetryLater(f"{code.name}: m", 12.5)


def test_broken_status_details_are_ignored(sink: GrpcSink) -> None:
    trailers = (("grpc-status-details-bin", b"\xff\xff"), ("other", "x"))
    sink.answer = GrpcAnswer(code=grpc.StatusCode.RESOURCE_EXHAUSTED, message="m", trailers=trailers)
    assert send_to(sink.address) == RetryLater("RESOURCE_EXHAUSTED: m")


def test_a_quoted_header_value_is_hidden(sink: GrpcSink) -> None:
    def quote(request: object) -> GrpcAnswer:
        return GrpcAnswer(code=grpc.StatusCode.UNAUTHENTICATED, message="bad key hush-hush-hush")

    sink.answer = quote
    outcome = send_to(sink.address, headers={"authorization": "Bearer hush-hush-hush"})
    assert outcome == Blocked("UNAUTHENTICATED: bad key [REDACTED]")


def test_partial_success(sink: GrpcSink) -> None:
    sink.answer = GrpcAnswer(body=partial_success(2, "too old"))
    with exporting(sink.address) as exporter:
        assert exporter.send(encoded() * 3, 3, LONG) == PartiallyRejected(2, "too old")


def test_a_partial_success_without_refusals_warns_once(sink: GrpcSink, caplog: pytest.LogCaptureFixture) -> None:
    sink.answer = GrpcAnswer(body=partial_success(0, "please update"))
    with exporting(sink.address) as exporter:
        assert [exporter.send(encoded(), 1, LONG) for _ in range(3)] == [Delivered()] * 3
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == "otlp_grpc/test: the backend accepted the records with a warning: please update"


@pytest.mark.parametrize("body", [b"\xff\xff", b"x" * (MAX_RESPONSE_BYTES + 1)], ids=["unreadable", "too large"])
def test_success_with_a_useless_body_is_delivered(sink: GrpcSink, body: bytes) -> None:
    sink.answer = GrpcAnswer(body=body)
    assert send_to(sink.address) == Delivered()


def test_a_server_that_hangs_is_left_after_the_timeout(sink: GrpcSink) -> None:
    sink.answer = GrpcAnswer(hang=True)
    outcome = send_to(sink.address, timeout=0.2)
    assert isinstance(outcome, RetryLater)
    assert outcome.reason.startswith("DEADLINE_EXCEEDED")


def test_the_timeout_bounds_connecting(authority: Authority) -> None:
    """A server that accepts and then says nothing, not even in the TLS handshake."""
    with GrpcSink() as sink, Relay(sink.port) as relay:
        relay.pass_nothing = True
        outcome = send_to(relay.address, timeout=0.2, tls=trust(authority))
    assert isinstance(outcome, RetryLater)


def test_a_connection_that_died_silently_is_replaced(sink: GrpcSink) -> None:
    """As after a node is lost: nobody says that the connection is gone. Two deadlines are enough to find out."""
    with Relay(sink.port) as relay, exporting(relay.address) as exporter:
        assert exporter.send(encoded(), 1, LONG) == Delivered()
        relay.go_dead()
        assert isinstance(exporter.send(encoded(), 1, 0.2), RetryLater)
        assert isinstance(exporter.send(encoded(), 1, 0.2), RetryLater)
        assert exporter.send(encoded(), 1, LONG) == Delivered()
        assert relay.connections == 2


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"", "this port ends the connection without an answer: if it expects TLS, leave tls::insecure out"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "UNAVAILABLE: "),
        (b"SSH-2.0-OpenSSH_9.6\r\n", f"this port {NOT_HTTP2.message}"),
        (b"\x00" * 5000, f"this port {NOT_HTTP2.message}"),
    ],
    ids=["closes", "a proxy", "another protocol", "zeros"],
)
def test_a_server_of_another_kind_is_a_passing_fault(reply: bytes, said: str) -> None:
    with RawServer(reply) as server:
        outcome = send_to(server.address)
    assert isinstance(outcome, RetryLater)
    assert outcome.reason.startswith(said)


def test_a_port_for_http_is_named() -> None:
    with RawServer(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        outcome = send_to(server.address)
    assert isinstance(outcome, Blocked)
    assert outcome.reason.startswith(f"this port {SPEAKS_HTTP1.message}: {SPEAKS_HTTP1.hint}: UNAVAILABLE")


def test_a_server_that_answers_with_a_page_and_no_status_is_named_too() -> None:
    """As Python's http.server does. An older grpcio does not tell what it read."""
    with HttpSink() as sink:
        outcome = send_to(sink.address)
    tells = [int(part) for part in grpc.__version__.split(".")[:2]] >= [1, 85]
    kind, words = (Blocked, SPEAKS_HTTP1) if tells else (RetryLater, NOT_HTTP2)
    assert isinstance(outcome, kind)
    assert outcome.reason.startswith(f"this port {words.message}")


@pytest.mark.parametrize(
    ("scheme", "plain"),
    [
        ("", "tls: {insecure: true} (without a file: OTEL_EXPORTER_OTLP_INSECURE=true)"),
        ("https://", "http:// instead of https://"),
    ],
)
def test_a_server_without_tls_is_named_with_what_has_an_effect(scheme: str, plain: str) -> None:
    with GrpcSink() as sink:
        outcome = send_to(f"{scheme}{sink.address}", tls={})
    assert isinstance(outcome, RetryLater)
    assert outcome.reason.startswith(f"this port speaks without TLS: if that is meant, write {plain}: UNAVAILABLE")


def test_a_server_with_tls_is_named(authority: Authority) -> None:
    with (
        RawServer(b"\x15\x03\x03\x00\x02\x02F") as alerting,
        HttpSink(tls=ServerTls(authority.issue("127.0.0.1"))) as https,
    ):
        plain = send_to(alerting.address)
        encrypted = send_to(https.address, tls=trust(authority))
    assert isinstance(plain, RetryLater)
    assert "if it expects TLS, leave tls::insecure out" in plain.reason
    assert isinstance(encrypted, Blocked)
    assert encrypted.reason.startswith(f"this port {NOT_HTTP2.message}: {NOT_HTTP2.hint}: UNAVAILABLE")


def test_a_name_that_does_not_resolve_is_a_passing_fault() -> None:
    assert isinstance(send_to("does-not-exist.invalid:4317"), RetryLater)


def test_it_recovers_by_itself_once_somebody_listens() -> None:
    port = free_port()
    with exporting(f"127.0.0.1:{port}") as exporter:
        first = exporter.send(encoded(), 1, LONG)
        assert isinstance(first, RetryLater)
        assert "refused" in first.reason
        with GrpcSink(port=port) as sink:
            eventually(exporter, lambda outcome: outcome == Delivered())
            assert len(sink.requests) == 1
        assert isinstance(exporter.send(encoded(), 1, LONG), RetryLater), "and it notices that the server has gone"
        with GrpcSink(port=port):
            eventually(exporter, lambda outcome: outcome == Delivered())


def test_shutdown_ends_a_call_that_hangs(sink: GrpcSink) -> None:
    sink.answer = GrpcAnswer(hang=True)
    with exporting(sink.address) as exporter:
        assert isinstance(ended_by_shutdown(exporter, lambda: sink.wait_for(1)), RetryLater)
        assert exporter.send(encoded(), 1, LONG) == RetryLater("the exporter is not running")


# TLS


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_tls(authority: Authority, name: str) -> None:
    with GrpcSink(tls=ServerTls(authority.issue("localhost", "127.0.0.1"))) as sink:
        assert send_to(f"{name}:{sink.port}", tls=trust(authority)) == Delivered()
        assert send_to(f"https://{name}:{sink.port}", tls=trust(authority)) == Delivered()


@NOT_VERIFIED
def test_a_certificate_that_does_not_verify_is_blocked(
    authority: Authority, names: list[str], *, expired: bool, trusted: bool
) -> None:
    with GrpcSink(tls=ServerTls(authority.issue(*names, expired=expired))) as sink:
        outcome = send_to(f"localhost:{sink.port}", tls=trust(authority if trusted else Authority()))
        assert isinstance(outcome, Blocked)
        assert "the server's certificate is not trusted" in outcome.reason
        assert sink.requests == []


def test_a_private_authority_is_not_trusted_by_default(authority: Authority) -> None:
    with GrpcSink(tls=ServerTls(authority.issue("localhost"))) as sink:
        assert isinstance(send_to(f"localhost:{sink.port}", tls={}), Blocked)


def test_the_name_in_the_certificate_can_be_set(authority: Authority) -> None:
    with GrpcSink(tls=ServerTls(authority.issue("elsewhere.test"))) as sink:
        endpoint = f"localhost:{sink.port}"
        assert send_to(endpoint, tls=trust(authority, server_name_override="elsewhere.test")) == Delivered()


def test_the_authority_can_be_set(authority: Authority) -> None:
    """It is what the server's certificate is checked against, too."""
    with GrpcSink(tls=ServerTls(authority.issue("tenant.test"))) as sink:
        endpoint, tls = f"localhost:{sink.port}", trust(authority)
        assert send_to(endpoint, tls=tls, authority="tenant.test") == Delivered()
        assert isinstance(send_to(endpoint, tls=tls, authority="other.test"), Blocked)


def test_mutual_tls(authority: Authority, tmp_path: Path) -> None:
    cert_file, key_file = authority.issue("client.test").write(tmp_path)
    tls = trust(authority, cert_file=cert_file, key_file=key_file)
    with GrpcSink(tls=ServerTls(authority.issue("localhost"), client_ca=authority.pem)) as sink:
        assert send_to(f"localhost:{sink.port}", tls=tls) == Delivered()


def test_without_its_client_certificate_nothing_is_delivered_or_lost(authority: Authority) -> None:
    """In TLS 1.3 the refusal comes after the handshake, and grpcio shows a closed connection only."""
    with GrpcSink(tls=ServerTls(authority.issue("localhost"), client_ca=authority.pem)) as sink:
        assert isinstance(send_to(f"localhost:{sink.port}", tls=trust(authority)), RetryLater)
        assert sink.requests == []


def test_a_refused_client_certificate_is_blocked_where_it_shows(authority: Authority) -> None:
    """In TLS 1.2 the alert names the certificate."""
    stranger = Authority().issue("client.test")
    context = server_context(ServerTls(authority.issue("localhost"), client_ca=authority.pem))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    tls = trust(authority, cert_pem=stranger.chain.decode(), key_pem=stranger.key.decode())
    with RawServer(tls=context) as server:
        outcome = send_to(f"localhost:{server.port}", tls=tls)
    assert isinstance(outcome, Blocked)
    assert "refuses the client certificate" in outcome.reason


def test_tls_to_a_plain_server_and_the_other_way_round(authority: Authority, sink: GrpcSink) -> None:
    assert isinstance(send_to(f"localhost:{sink.port}", tls=trust(authority)), RetryLater)
    with GrpcSink(tls=ServerTls(authority.issue("localhost"))) as encrypted:
        assert isinstance(send_to(f"localhost:{encrypted.port}"), RetryLater)


def test_start_names_the_setting_of_a_wrong_file(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    settings = OtlpGrpcSettings.model_validate({"endpoint": "localhost:1", "tls": {"ca_file": str(path)}})
    with pytest.raises(FileNotFoundError, match="tls::ca_file"):
        OtlpGrpcExporter("otlp_grpc", settings).start()
    path.write_text("garbage")
    with pytest.raises(ValueError, match="tls::ca_file"):
        OtlpGrpcExporter("otlp_grpc", settings).start()


def test_keepalive_is_accepted_by_the_library(sink: GrpcSink) -> None:
    keepalive = {"time": "10m", "timeout": "10s", "permit_without_stream": False}
    assert send_to(sink.address, keepalive=keepalive) == Delivered()


def test_what_the_library_raises_unexpectedly_is_blocked_and_logged(
    sink: GrpcSink, caplog: pytest.LogCaptureFixture
) -> None:
    """`send` never raises; here the caller breaks the contract by text in place of bytes."""
    caplog.set_level("DEBUG")
    with exporting(sink.address) as exporter:
        outcome = exporter.send("text", 1, LONG)  # type: ignore[arg-type] # what is tried here
    assert isinstance(outcome, Blocked)
    assert outcome.reason.startswith("unexpected TypeError of the gRPC library")
    assert "grpc.py" in caplog.text
