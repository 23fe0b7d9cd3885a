"""`otlp_http` through the environment's proxies: which requests, and what a proxy gets to see."""

from urllib.parse import urlsplit

import pytest

from statsig_otel.exporters.exporter import Blocked, Delivered, RetryLater
from statsig_otel.exporters.network.proxy import Proxy, grpc_proxy_for, proxy_for
from statsig_otel.exporters.otlp.grpc import OtlpGrpcExporter
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings
from tests.exporters.otlp.over_http import exporting, send_to
from tests.exporters.otlp.requests import LONG, encoded
from tests.looped import looped
from tests.peers.certs import Authority, ServerTls
from tests.peers.http_proxy import HttpProxy
from tests.peers.otlp_servers import GrpcSink, HttpAnswer, HttpSink, RawServer
from tests.waiting import wait_until

PROXY = Proxy("proxy", 3128)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@looped(
    ("variables", "url", "expected"),
    [
        ({}, "https://backend", None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "https://backend", PROXY),
        ({"https_proxy": "proxy:3128"}, "https://backend", PROXY),
        ({"HTTPS_PROXY": "http://proxy"}, "https://backend", Proxy("proxy", 80)),
        ({"HTTPS_PROXY": "http://[::1]:3128"}, "https://backend", Proxy("::1", 3128)),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://backend", None),
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://backend:4318", PROXY),
        ({"ALL_PROXY": "http://proxy:3128"}, "http://backend:4318", PROXY),
        (
            {"HTTPS_PROXY": "http://u:p%40@proxy:3128"},
            "https://backend",
            Proxy("proxy", 3128, "Basic dTpwQA==", "p@", "u:p%40"),
        ),
        *(
            ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": no_proxy}, url, expected)
            for no_proxy, url, expected in [
                ("*", "https://backend", None),
                ("backend", "https://backend", None),
                ("other, backend.example.com", "https://BACKEND.example.com.", None),
                (".example.com", "https://backend.example.com", None),
                ("example.com", "https://backend.example.com:8443", None),
                ("example.com:443", "https://backend.example.com:8443", PROXY),
                ("example.com:8443", "https://backend.example.com:8443", None),
                ("example.com:443", "https://backend.example.com", None),
                ("example.com:80", "https://backend.example.com", PROXY),
                ("*.example.com", "https://backend.example.com", None),
                ("*.example.com:8443", "https://backend.example.com:8443", None),
                ("*.example.com:8443", "https://backend.example.com", PROXY),
                ("example.com.", "https://backend.example.com", None),
                ("other backend", "https://backend", None),
                ("ample.com", "https://backend.example.com", PROXY),
                ("*ample.com", "https://backend.other.com", PROXY),
                ("*:80", "https://backend", PROXY),
                ("10.1.2.3:443", "https://10.1.2.3", None),
                ("10.1.2.3:80", "https://10.1.2.3", PROXY),
                ("[fd00::1]", "https://[fd00::1]", None),
                ("[fd00:0::1]:443", "https://[fd00::1]", None),
                ("[fd00::1]:80", "https://[fd00::1]", PROXY),
                ("fd00::1", "https://[fd00::1]", None),
                ("fd00::2", "https://[fd00::1]", PROXY),
                (". : [] .: :443 [:1", "https://backend", PROXY),
                ("10.0.0.0/8", "https://10.1.2.3", None),
                ("10.0.0.0/8", "https://11.1.2.3", PROXY),
                ("fd00::/8", "https://[fd00::1]:443", None),
                ("10.0.0.0/8", "https://backend", PROXY),
                ("", "https://localhost", None),
                ("", "https://127.0.0.5", None),
                ("", "https://[::1]", None),
                (",,", "https://backend", PROXY),
            ]
        ),
    ],
)
def test_which_proxy(variables: dict[str, str], url: str, expected: Proxy | None) -> None:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        assert proxy_for(urlsplit(url)) == expected


@pytest.mark.parametrize("value", ["socks5://user:secret@proxy", "https://user:secret@proxy", "http://", "http://h:x"])
def test_a_proxy_that_can_not_be_used_is_said_at_the_start(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with (
        pytest.raises(ValueError, match=r"variable HTTPS_PROXY .* or write backend into NO_PROXY") as caught,
        exporting("https://backend"),
    ):
        pass
    assert "secret" not in str(caught.value)


def test_the_address_of_a_proxy_is_written_as_in_a_url() -> None:
    assert (str(PROXY), str(Proxy("::1", 3128))) == ("proxy:3128", "[::1]:3128")


def test_the_variable_that_is_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "socks5://h:1")
        with pytest.raises(ValueError, match=f"variable {name} must be the URL of an HTTP proxy"):
            proxy_for(urlsplit("http://backend"))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_requests_go_through_the_proxy_with_its_credentials(
    scheme: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Over TLS in a tunnel, verified by the name of the server; the proxy's credentials never reach the server."""
    caplog.set_level("INFO")
    authority = Authority()
    tls = ServerTls(authority.issue("backend.example")) if scheme == "https" else None
    with HttpProxy(authorization="Basic dXNlcjpzZWNyZXQ=") as proxy, HttpSink(tls=tls) as sink:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://user:secret@127.0.0.1:{proxy.port}")
        url = f"{scheme}://backend.example:{sink.port}"
        keys = {"tls": {"ca_pem": authority.pem.decode()}} if tls else {}
        with exporting(url, **keys) as exporter:
            assert exporter.send(encoded(), 1, LONG) == Delivered()
            assert exporter.send(encoded(), 1, LONG) == Delivered()
            sink.answer = HttpAnswer(close_after=True)
            assert exporter.send(encoded(), 1, LONG) == Delivered()
            sink.answer = HttpAnswer()
            wait_until(lambda: exporter.send(encoded(), 1, LONG) == Delivered(), "with a new tunnel")
        if tls:
            assert proxy.asked == [("CONNECT", f"backend.example:{sink.port}")] * 2
        else:
            assert proxy.asked == [("POST", f"{url}/v1/logs")] * 4
        assert [got.path for got in sink.requests] == ["/v1/logs"] * 4
        assert all("proxy-authorization" not in got.headers for got in sink.requests)
    assert f"sends to {url}/v1/logs through the proxy 127.0.0.1:{proxy.port}" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(("status", "kind"), [(407, Blocked), (403, Blocked), (503, RetryLater), (502, RetryLater)])
def test_a_proxy_that_refuses_is_named(status: int, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpProxy(status=status) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        outcome = send_to("https://backend.example")
    assert isinstance(outcome, Blocked | RetryLater)
    assert type(outcome) is kind
    assert outcome.reason.startswith(
        f"the proxy 127.0.0.1:{proxy.port} refuses a tunnel to https://backend.example/v1/logs: HTTP {status}"
    )


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\n<html>sign in here</html>"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_answers_otherwise_is_named(scheme: str, reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is said of the server's port, which was not asked."""
    with RawServer(reply) as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://{proxy.address}")
        outcome = send_to(f"{scheme}://backend.example")
    assert isinstance(outcome, Blocked | RetryLater)
    assert f"{scheme}://backend.example/v1/logs through the proxy {proxy.address}" in outcome.reason
    assert "this port" not in outcome.reason


def test_no_secret_of_a_proxy_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Neither as it is sent nor decoded, as a proxy may quote it."""
    caplog.set_level("DEBUG")
    with HttpProxy(status=407, message="user:s3cr3t-0123 is not Basic dXNlcjpzM2NyM3QtMDEyMw==") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:s3cr3t-0123@127.0.0.1:{proxy.port}")
        outcome = send_to("https://backend.example")
        assert "s3cr3t" not in repr(proxy_for(urlsplit("https://backend.example")))
    assert isinstance(outcome, Blocked)
    assert outcome.reason.endswith("HTTP 407 user:[REDACTED] is not [REDACTED]")
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize(
    ("variables", "host", "is_used"),
    [
        ({"http_proxy": "PROXY"}, "backend.example", True),
        ({"HTTPS_PROXY": "PROXY"}, "backend.example", True),
        ({"HTTP_PROXY": "PROXY", "NO_PROXY": "*.other.example"}, "backend.example", True),
        ({"https_proxy": "PROXY", "http_proxy": "http://127.0.0.1:1"}, "backend.example", True),
        ({"grpc_proxy": "PROXY", "https_proxy": "http://127.0.0.1:1"}, "backend.example", True),
        ({"http_proxy": "PROXY", "no_proxy": "other.example"}, "backend.example", True),
        ({"http_proxy": "PROXY", "no_grpc_proxy": "", "no_proxy": "example"}, "backend.example", True),
        ({"https_proxy": "PROXY"}, "localhost", False),
        ({"HTTPS_PROXY": "PROXY"}, "127.0.0.1", False),
        ({"http_proxy": "PROXY", "grpc_proxy": ""}, "backend.example", False),
        ({"http_proxy": "PROXY", "no_grpc_proxy": "other, example"}, "backend.example", False),
        ({"http_proxy": "PROXY", "no_proxy": "*"}, "backend.example", False),
        ({"HTTPS_PROXY": "PROXY", "NO_PROXY": "*.example:1, *.example"}, "backend.example", False),
    ],
)
def test_the_proxy_of_grpc_is_the_one_that_it_uses(
    variables: dict[str, str],
    host: str,
    *,
    is_used: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    for name in ("grpc_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with HttpProxy() as proxy, GrpcSink() as sink:
        for name, value in variables.items():
            monkeypatch.setenv(name, value.replace("PROXY", f"http://127.0.0.1:{proxy.port}"))
        settings = OtlpGrpcSettings.model_validate({"endpoint": f"http://{host}:{sink.port}"})
        exporter = OtlpGrpcExporter("otlp", settings)
        exporter.start()
        try:
            if is_used or host != "backend.example":  # no name service knows it
                assert exporter.send(encoded(), 1, LONG) == Delivered()
        finally:
            exporter.shutdown()
        assert bool(proxy.asked) == is_used
        assert grpc_proxy_for(settings.target) == (Proxy("127.0.0.1", proxy.port) if is_used else None)
        assert (f"through the proxy 127.0.0.1:{proxy.port}" in caplog.text) == is_used


def test_grpc_gives_a_proxy_its_credentials_and_tells_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with HttpProxy("Basic dXNlcjpzM2NyM3QtMDEyMw==") as proxy, GrpcSink() as sink:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:s3cr3t-0123@127.0.0.1:{proxy.port}")
        settings = OtlpGrpcSettings.model_validate({"endpoint": f"http://backend.example:{sink.port}"})
        exporter = OtlpGrpcExporter("otlp", settings)
        exporter.start()
        try:
            assert exporter.send(encoded(), 1, LONG) == Delivered()
        finally:
            exporter.shutdown()
    assert "s3cr3t" not in caplog.text


def test_a_proxy_that_grpc_can_not_use_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
    settings = OtlpGrpcSettings.model_validate({"endpoint": "http://backend.example:4317"})
    exporter = OtlpGrpcExporter("otlp", settings)
    with pytest.raises(ValueError, match="the environment variable HTTPS_PROXY must be the URL of an HTTP proxy"):
        exporter.start()
