"""How the doctor checks whether a backend answers, without sending it a record."""

import socket
import ssl
import threading
import time
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from statsig_otel.config import Settings
from statsig_otel.exporters import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.exporters.otlp.hints import INSECURE
from statsig_otel.exporters.otlp.protocols import NOT_HTTP1, NOT_HTTP2, SEE_ITS_LOG, SPEAKS_HTTP1, SPEAKS_HTTP2
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.plugin.control.socket import ControlServer
from statsig_otel.plugin.doctor import endpoints, storage
from statsig_otel.plugin.doctor.finding import Finding
from tests.looped import looped
from tests.peers.certs import Authority, ServerTls
from tests.peers.otlp_servers import GrpcSink, HttpSink, RawServer, server_context
from tests.peers.ports import free_port


def look(name: str, settings: Settings) -> tuple[Finding, list[tuple[str, float]]]:
    (found,), offsets = endpoints.check_backends({name: settings})
    assert found.check == f"exporters::{name}"
    return found, offsets


def grpc(endpoint: str, **tls: Any) -> OtlpGrpcSettings:
    return OtlpGrpcSettings.model_validate({"endpoint": endpoint, "tls": tls, "headers": {"api-key": "s3cr3t"}})


def http(endpoint: str, **tls: Any) -> OtlpHttpSettings:
    return OtlpHttpSettings.model_validate({"endpoint": endpoint, "tls": tls, "headers": {"api-key": "s3cr3t"}})


def test_an_endpoint_that_answers_gets_no_record(tmp_path: Path) -> None:
    with GrpcSink() as first, HttpSink() as second, GrpcSink(address=f"unix:{tmp_path}/socket") as third:
        for found in (
            look("a", grpc(first.address, insecure=True))[0],
            look("b", http(second.url))[0],
            look("c", grpc(third.address, insecure=True))[0],
        ):
            assert (found.status, found.hint) == ("ok", None)
            assert found.detail.endswith("answers, without TLS")
        assert first.requests == second.requests == third.requests == []


def test_a_server_with_tls_is_verified_as_the_exporter_does() -> None:
    authority, other = Authority(), Authority()
    tls = ServerTls(authority.issue("localhost"))
    with GrpcSink(tls=tls) as first, HttpSink(tls=tls) as second:
        for settings in (
            grpc(f"localhost:{first.port}", ca_pem=authority.pem.decode()),
            http(f"https://localhost:{second.port}", ca_pem=authority.pem.decode()),
            grpc(first.address, ca_pem=authority.pem.decode(), server_name_override="localhost"),
        ):
            assert "answers with TLSv1." in look("a", settings)[0].detail
        for settings in (
            grpc(f"localhost:{first.port}", ca_pem=other.pem.decode()),
            http(second.url, ca_pem=authority.pem.decode()),
        ):
            found = look("a", settings)[0]
            assert found.status == "failed"
            assert "its certificate is not trusted" in found.detail
        wrong_protocol = look("a", grpc(f"localhost:{second.port}", ca_pem=authority.pem.decode()))[0]
        assert (wrong_protocol.status, wrong_protocol.hint) == ("failed", NOT_HTTP2.hint)
        wrong_protocol = look("a", http(f"https://localhost:{first.port}", ca_pem=authority.pem.decode()))[0]
        assert (wrong_protocol.status, "use otlp_grpc" in (wrong_protocol.hint or "")) == ("failed", True)
        unusable = look("a", grpc(f"localhost:{first.port}", ca_file="/no/such/file"))[0]
        assert (unusable.status, "TLS can't be tried" in unusable.detail) == ("unknown", True)


@pytest.mark.parametrize("has_one", [True, False])
def test_a_client_certificate_that_is_refused_is_told(*, has_one: bool) -> None:
    """Also with TLS 1.3, where the server says so after the handshake, or only ends the connection."""
    authority, stranger = Authority(), Authority().issue("client")
    trust = {"ca_pem": authority.pem.decode(), "server_name_override": "localhost"}
    if has_one:
        trust |= {"cert_pem": stranger.chain.decode(), "key_pem": stranger.key.decode()}
    tls = ServerTls(authority.issue("localhost"), client_ca=authority.pem)
    older = server_context(tls)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    with GrpcSink(tls=tls) as rpc, HttpSink(tls=tls) as sink, RawServer(tls=older) as raw:
        for settings in (grpc(rpc.address, **trust), http(sink.url, **trust), http(f"https://{raw.address}", **trust)):
            found = look("a", settings)[0]
            assert found.status == "failed"
            assert "no TLS" not in found.detail
            assert (found.hint or "").startswith(("see tls::cert_file", SEE_ITS_LOG)), found


def test_a_server_without_tls_is_told_with_what_has_an_effect() -> None:
    with HttpSink() as sink, GrpcSink() as rpc:
        for settings, address, hint in (
            (http(sink.url.replace("http", "https")), sink.address, "write http:// instead of https://"),
            (grpc(f"https://{rpc.address}"), rpc.address, "write http:// instead of https://"),
            (grpc(rpc.address), rpc.address, f"write {INSECURE}"),
        ):
            found = look("a", settings)[0]
            assert (found.status, found.detail) == ("failed", f"{address} speaks without TLS")
            assert found.hint == f"if that is meant, {hint}"


def test_the_port_of_the_other_protocol_is_told() -> None:
    http1, ssh = b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"
    with HttpSink() as sink, GrpcSink() as rpc, RawServer(http1) as raw, RawServer(ssh) as other:
        for settings, fault in (
            (grpc(other.address, insecure=True), NOT_HTTP2),
            (http(f"http://{other.address}"), NOT_HTTP1),
            (grpc(sink.address, insecure=True), SPEAKS_HTTP1),
            (grpc(raw.address, insecure=True), SPEAKS_HTTP1),
            (http(f"http://{rpc.address}"), SPEAKS_HTTP2),
        ):
            found = look("a", settings)[0]
            assert (found.status, found.hint) == ("failed", fault.hint)
            assert found.detail.endswith(fault.message)


def test_a_server_with_tls_is_told_to_who_speaks_without() -> None:
    encrypted = server_context(ServerTls(Authority().issue("127.0.0.1")))
    with RawServer(b"\x15\x03\x03\x00\x02\x02F") as alerting, RawServer(tls=encrypted) as silent:
        for settings, hint in (
            (grpc(alerting.address, insecure=True), "leave tls::insecure out"),
            (http(f"http://{alerting.address}"), "write https:// instead of http://"),
        ):
            found = look("a", settings)[0]
            assert (found.status, hint in (found.hint or "")) == ("failed", True)
        for settings in (grpc(silent.address, insecure=True), http(f"http://{silent.address}")):
            found = look("a", settings)[0]
            assert (found.status, "if it expects TLS, " in (found.hint or "")) == ("warning", True)


def test_a_server_for_https_that_answers_without_is_told() -> None:
    with RawServer(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n") as server:
        found = look("a", http(f"http://{server.address}"))[0]
    assert (found.status, found.hint) == ("warning", "if it expects TLS, write https:// instead of http://")


class _NoHead(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(HTTPStatus.BAD_REQUEST)

    def do_GET(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.end_headers()


def test_a_server_that_refuses_only_a_head_is_well() -> None:
    """As VictoriaLogs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _NoHead) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            found = look("a", http(f"http://127.0.0.1:{server.server_port}"))[0]
        finally:
            server.shutdown()
    assert (found.status, found.hint) == ("ok", None)


def test_a_server_that_accepts_and_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for settings in (grpc(address, insecure=True), http(f"http://{address}")):
            found = look("a", settings)[0]
            assert (found.status, "says nothing for" in found.detail) == ("warning", True)


@pytest.mark.parametrize(
    ("variable", "settings"),
    [("HTTPS_PROXY", http("https://backend.invalid")), ("grpc_proxy", grpc("backend.invalid:4317"))],
)
def test_behind_a_proxy_only_the_proxy_is_checked(
    variable: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the proxy may know the name. A proxy that does not listen takes nothing on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = f"127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv(variable, f"http://{proxy}")
        found, _ = look("a", settings)
        assert (found.status, f"the proxy {proxy}, which answers" in found.detail) == ("unknown", True)
    found, _ = look("a", settings)
    assert (found.status, f"the proxy {proxy}, which does not answer: " in found.detail) == ("failed", True)
    assert "HTTPS_PROXY" in (found.hint or "")


def test_a_proxy_of_another_kind_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy")
    found, _ = look("a", http("https://backend.example"))
    assert (found.status, "variable HTTPS_PROXY" in found.detail) == ("failed", True)


@pytest.mark.parametrize("state", ["blocked", "refused", "retrying", "idle"])
def test_an_exporter_of_the_running_service_that_can_not_deliver_is_told(tmp_path: Path, state: str) -> None:
    senders = {"out": {"state": state, "attempts": 3, "last_error": "HTTP 401"}}
    control = ControlServer(tmp_path / CONTROL, {"queue": lambda _: {"pid": 1, "exporters": senders}})
    control.start()
    try:
        (found,) = storage.exporters(tmp_path)
    finally:
        control.shutdown()
    status = {"blocked": "failed", "idle": "ok"}.get(state, "warning")
    assert (found.check, found.status, "HTTP 401" in found.detail) == ("exporters::out", status, state != "idle")
    assert list(storage.exporters(tmp_path / "none")) == []


def test_what_does_not_answer_is_told() -> None:
    found = look("a", grpc(f"127.0.0.1:{free_port()}"))[0]
    assert (found.status, "no connection: Connection refused" in found.detail) == ("failed", True)
    found = look("a", grpc("unix:/no/such/socket", insecure=True))[0]
    assert (found.status, "No such file" in found.detail) == ("failed", True)
    assert look("a", grpc("unix-abstract:x", insecure=True))[0].status == "unknown"


@looped(
    ("endpoint", "address"),
    [
        ("h:1", "h:1"), ("http://[::1]:1", "[::1]:1"), ("dns:///h", "h:443"), ("dns://8.8.8.8/h:1", "h:1"),
        ("ipv4:1.2.3.4:5,6.7.8.9:10", "1.2.3.4:5"), ("ipv6:[::1]:5", "[::1]:5"), ("dns:///[::1]", "[::1]:443"),
        ("unix:///a/b", "/a/b"), ("unix:/a", "/a"),
    ],
)  # fmt: skip
def test_where_grpc_connects_to(endpoint: str, address: str) -> None:
    assert str(endpoints._address(grpc(endpoint))) == address


@pytest.mark.parametrize("off", [-1000, 0, 1000])
def test_a_server_that_says_the_time_tells_how_far_we_are_off(off: int) -> None:
    date = formatdate(time.time() + off, usegmt=True)
    with RawServer(f"HTTP/1.1 404 Not Found\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n".encode()) as server:
        found, offsets = look("a", http(f"http://{server.address}"))
    assert found.status == "ok"
    ((name, ahead),) = offsets
    assert name == "exporters::a"
    assert abs(ahead - off) < 5  # how long the exchange took, and a part of a second


def test_a_server_that_says_nothing_of_the_time_answers_all_the_same() -> None:
    with RawServer(b"HTTP/1.1 200 OK\r\nDate: never\r\n\r\n") as server:
        found, offsets = look("a", http(f"http://{server.address}"))
    assert (found.status, offsets) == ("ok", [])
