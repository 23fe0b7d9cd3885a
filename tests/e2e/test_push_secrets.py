"""The key for a backend of the service's own metrics and spans is not said, nor is the password of their proxy.

The SDK's exporters send them, and log what backends and proxies answer.
"""

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.e2e.canaries import PROXY, PUSHES, SECRETS, proxies, spellings
from tests.e2e.processes import Process, clean_environment
from tests.e2e.secret_peers import METRICS, TRACES, as_grpc
from tests.e2e.statsig_client import ENV, change, dead_port, post
from tests.peers.http_proxy import HttpProxy
from tests.peers.http_server import LocalServer
from tests.peers.otlp_servers import GrpcSink

pytestmark = pytest.mark.slow

FAILED = {
    "metrics-grpc": "grpc.exporter: Failed to export metrics",
    "metrics-http": "http.metric_exporter: Failed to export metrics",
    "traces-grpc": "grpc.exporter: Failed to export traces",
    "traces-http": "http.trace_exporter: Failed to export spans",
}
"""What the log says once a backend has refused."""


class _Quoting(BaseHTTPRequestHandler):
    """Refuses each request, and quotes its key in the reason phrase."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(401, f"not allowed: {self.headers['key']}")
        self.send_header("Content-Length", "0")
        self.end_headers()


def configured(folder: Path, backends: Mapping[str, str]) -> Path:
    """A configuration that pushes to these backends, by the names of `PUSHES`; each is a URL."""
    readers, processors = [], []
    for name, url in backends.items():
        protocol = "grpc" if name.endswith("grpc") else "http/protobuf"
        otlp = {"protocol": protocol, "endpoint": url, "headers": {"key": SECRETS[name]}, "timeout": "1s"}
        if name.startswith("metrics"):
            readers.append({"periodic": {"interval": "1s", "exporter": {"otlp": otlp}}})
        else:
            processors.append({"batch": {"schedule_delay": "1s", "exporter": {"otlp": otlp}}})
    telemetry = {
        "logs": {"level": "debug"},
        "metrics": {"readers": readers},
        "traces": {"processors": processors},
    }
    document = {
        "receivers": {"statsig": {"endpoint": "127.0.0.1:0", "signing_secrets": ["${env:STATSIG_SIGNING_SECRET}"]}},
        "exporters": {"file": {"path": "changes.jsonl"}},
        "extensions": {"file_storage": {"directory": "queue", "min_free_bytes": 0}},
        "service": {
            "extensions": ["file_storage"],
            "telemetry": telemetry,
            "pipelines": {"logs": {"receivers": ["statsig"], "exporters": ["file"]}},
        },
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(document))
    return path


def said_of_pushes(folder: Path, backends: Mapping[str, str], env: Mapping[str, str]) -> str:
    """All that a service says until each push has failed. gRPC's own library may say something too."""
    program = (sys.executable, "-m", "statsig_otel", "run", "--config", str(configured(folder, backends)))
    with Process(program, clean_environment(**ENV, **env)) as process:
        url = process.wait_for(r"Webhook URL: (\S+)")[1]
        assert post(url, change(1)).status == 200
        for name in backends:
            process.wait_for(FAILED[name])
        process.stop()
    return process.output


def check_that_nothing_is_said(said: str) -> None:
    for name in PUSHES:
        assert not [one for one in spellings(SECRETS[name]) if one in said], name
    assert not [one for one in spellings(PROXY) if one in said]


@contextmanager
def quoting_backends() -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        found = {name: stack.enter_context(LocalServer(_Quoting)).origin for name in PUSHES if name.endswith("http")}
        for name, method in (("metrics-grpc", METRICS), ("traces-grpc", TRACES)):
            sink = stack.enter_context(GrpcSink(method=method))
            sink.answer = as_grpc
            found[name] = f"http://{sink.address}"
        yield found


@pytest.mark.parametrize("signal", ["metrics", "traces"])
def test_a_key_that_a_backend_quotes_is_not_said(signal: str, tmp_path: Path) -> None:
    """Of metrics and spans over gRPC the SDK logs only the first failure of both, so each is by itself."""
    with quoting_backends() as every:
        backends = {name: url for name, url in every.items() if name.startswith(signal)}
        said = said_of_pushes(tmp_path, backends, {"no_proxy": "127.0.0.1"})
    assert "not allowed: " in said
    check_that_nothing_is_said(said)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_password_that_a_proxy_quotes_is_not_said(scheme: str, tmp_path: Path) -> None:
    basic = base64.b64encode(f"user:{PROXY}".encode()).decode()
    backends = dict.fromkeys(("metrics-http", "traces-http", "metrics-grpc"), f"{scheme}://backend.example:443")
    with HttpProxy(status=407, message=f"{PROXY} is not {basic}") as proxy:
        said = said_of_pushes(tmp_path, backends, proxies(proxy.port))
        assert {method for method, _ in proxy.asked} == {"CONNECT", *(["POST"] if scheme == "http" else [])}
    check_that_nothing_is_said(said)


@pytest.mark.parametrize(
    "url",
    [
        '"http://user:{}@127.0.0.1:9"',
        "socks5://user:{}@127.0.0.1:9",
        "http://user:{}@127.0.0.1:port",
    ],
)
def test_a_proxy_that_can_not_be_used_is_not_quoted(url: str, tmp_path: Path) -> None:
    """gRPC's library would write the whole variable to standard error."""
    value = url.format(quote(PROXY, safe=""))
    variables = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"), value)
    with dead_port() as port:
        backends = dict.fromkeys(("metrics-grpc", "metrics-http"), f"http://localhost:{port}")
        said = said_of_pushes(tmp_path, backends, variables)
    check_that_nothing_is_said(said)
