"""The OTLP/HTTP exporter against servers with TLS."""

import os
import ssl
import sys
import tempfile
from pathlib import Path

import pytest

from statsig_otel.exporters.exporter import (
    Blocked,
    Delivered,
    RetryLater,
)
from statsig_otel.exporters.network.tls import ClientTlsSettings
from statsig_otel.exporters.otlp.http import OtlpHttpExporter
from statsig_otel.exporters.otlp.settings import OtlpHttpSettings
from tests.exporters.otlp.over_http import exporting, send_to
from tests.exporters.otlp.requests import LONG, NOT_VERIFIED, encoded, trust
from tests.peers.certs import Authority, ServerTls
from tests.peers.otlp_servers import (
    HttpSink,
    RawServer,
    server_context,
)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_tls_keeps_its_connection_too(authority: Authority, name: str) -> None:
    tls = ServerTls(authority.issue("localhost", "127.0.0.1"))
    with HttpSink(tls=tls) as sink, exporting(f"https://{name}:{sink.port}", tls=trust(authority)) as exporter:
        for _ in range(3):
            assert exporter.send(encoded(), 1, LONG) == Delivered()
        assert sink.connections == 1


@NOT_VERIFIED
def test_a_certificate_that_does_not_verify_is_blocked(
    authority: Authority, names: list[str], *, expired: bool, trusted: bool
) -> None:
    with HttpSink(tls=ServerTls(authority.issue(*names, expired=expired))) as sink:
        outcome = send_to(f"https://localhost:{sink.port}", tls=trust(authority if trusted else Authority()))
        assert isinstance(outcome, Blocked)
        assert "the server's certificate is not trusted" in outcome.reason
        assert sink.requests == []


def test_a_private_authority_is_not_trusted_by_default(authority: Authority) -> None:
    with HttpSink(tls=ServerTls(authority.issue("localhost"))) as sink:
        assert isinstance(send_to(f"https://localhost:{sink.port}"), Blocked)


def test_the_name_in_the_certificate_can_be_set(authority: Authority) -> None:
    with HttpSink(tls=ServerTls(authority.issue("elsewhere.test"))) as sink:
        tls = trust(authority, server_name_override="elsewhere.test")
        assert send_to(f"https://localhost:{sink.port}", tls=tls) == Delivered()


def test_verification_can_be_skipped_and_start_warns(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    with HttpSink(tls=ServerTls(authority.issue("elsewhere.test"))) as sink:
        assert send_to(f"https://localhost:{sink.port}", tls={"insecure_skip_verify": True}) == Delivered()
    assert "insecure_skip_verify" in caplog.text


def test_min_version_is_kept(authority: Authority) -> None:
    context = server_context(ServerTls(authority.issue("localhost")))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with RawServer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", tls=context) as server:
        endpoint = f"https://localhost:{server.port}"
        assert send_to(endpoint, tls=trust(authority)) == Delivered()
        assert isinstance(send_to(endpoint, tls=trust(authority, min_version="1.3")), RetryLater)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the key is in a temporary file for a moment")
def test_a_client_certificate_needs_no_temporary_directory(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with a read-only file system."""
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    own = authority.issue("client.test")
    settings = ClientTlsSettings(cert_pem=own.chain.decode(), key_pem=own.key.decode())
    assert settings.read().key == own.key


def test_mutual_tls(authority: Authority, tmp_path: Path) -> None:
    cert_file, key_file = authority.issue("client.test").write(tmp_path)
    tls = trust(authority, cert_file=cert_file, key_file=key_file)
    with HttpSink(tls=ServerTls(authority.issue("localhost"), client_ca=authority.pem)) as sink:
        assert send_to(f"https://localhost:{sink.port}", tls=tls) == Delivered()


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_refused_client_certificate_delivers_and_loses_nothing(authority: Authority, version: str) -> None:
    """It is blocked where the server's alert is seen; in TLS 1.3 a reset may be faster, and is a temporary failure."""
    stranger = Authority().issue("client.test")
    context = server_context(ServerTls(authority.issue("localhost"), client_ca=authority.pem))
    context.maximum_version = context.minimum_version = ssl.TLSVersion[version]
    tls = trust(authority, cert_pem=stranger.chain.decode(), key_pem=stranger.key.decode())
    with RawServer(tls=context) as server:
        outcome = send_to(f"https://localhost:{server.port}", tls=tls)
    if version == "TLSv1_2":
        assert isinstance(outcome, Blocked)
    assert isinstance(outcome, Blocked | RetryLater)
    assert "refuses the client certificate" in outcome.reason or isinstance(outcome, RetryLater)


def test_tls_to_a_plain_server_and_the_other_way_round(authority: Authority, sink: HttpSink) -> None:
    assert isinstance(send_to(f"https://localhost:{sink.port}", timeout=5.0), RetryLater)
    with HttpSink(tls=ServerTls(authority.issue("localhost"))) as encrypted:
        assert isinstance(send_to(f"http://localhost:{encrypted.port}"), RetryLater)


def test_start_names_the_setting_of_a_wrong_file(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    settings = OtlpHttpSettings.model_validate({"endpoint": "https://localhost", "tls": {"ca_file": str(path)}})
    with pytest.raises(FileNotFoundError, match="tls::ca_file"):
        OtlpHttpExporter("otlp_http", settings).start()
    path.write_text("garbage")
    with pytest.raises(ValueError, match="tls::ca_file"):
        OtlpHttpExporter("otlp_http", settings).start()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match=r"tls::ca_file can't be read: it is not a regular file: .*ca\.pem"):
        OtlpHttpExporter("otlp_http", settings).start()
