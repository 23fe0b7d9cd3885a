"""`statsig-otel run` as a user runs it: a real process, real sockets, real backends."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
import urllib3
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from statsig_otel.plugin.webhook.signature import sign
from tests.e2e.processes import write_config
from tests.e2e.service_process import ServiceProcess, environment, run_to_end
from tests.peers.certs import Authority
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink, HttpSink
from tests.peers.ports import free_port
from tests.waiting import wait_until

SECRET = "webhook-0123456789abcdef0123456789abcdef"
SECRET_ENV = {"STATSIG_SIGNING_SECRET": SECRET}
CHANGE = {
    "eventName": "statsig::config_change",
    "timestamp": 1739400185198,
    "metadata": {"type": "Gate", "name": "layout_v2", "action": "updated"},
}
BODY = json.dumps({"data": [CHANGE]}).encode()
TAKEN = {"accepted": 1, "duplicates": 0, "ignored": 0, "invalid": 0}
VERIFICATION = b'{"data": {"event": "url_verification", "verification_code": "abc123"}}'

default_port = pytest.mark.usefixtures("documented_ports")
"""Without a file the service listens on its default port."""

http = urllib3.PoolManager(retries=False, timeout=20)


def post(url: str, body: bytes = BODY, *, secret: str = SECRET) -> urllib3.BaseHTTPResponse:
    headers = sign(body, secret=secret, timestamp_ms=time.time_ns() // 1_000_000)
    return http.request("POST", url, body=body, headers=headers)


def grpc_exporter(port: int) -> dict[str, object]:
    return {"endpoint": f"127.0.0.1:{port}", "tls": {"insecure": True}}


@pytest.mark.slow
def test_prometheus_and_a_backend_read_what_the_service_counts(tmp_path: Path) -> None:
    """Prometheus reads at once, and the backend gets a last report at the end."""
    with HttpSink() as changes, HttpSink() as metrics:
        config = write_config(tmp_path, {"otlp_http": {"endpoint": changes.url}}, queued=True)
        port = free_port()
        otlp = {"protocol": "http/protobuf", "endpoint": metrics.url, "headers": {"key": "${env:KEY}"}}
        readers = [
            {"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": port}}}},
            {"periodic": {"interval": "1h", "exporter": {"otlp": otlp}}},
        ]
        more = tmp_path / "readers.yaml"
        more.write_text(json.dumps({"service": {"telemetry": {"metrics": {"readers": readers}}}}))
        variables = {**SECRET_ENV, "KEY": "s3cr3t-of-metrics", "OTEL_EXPORTER_OTLP_HEADERS": "key=of-another"}
        with ServiceProcess(config, "--config", str(more), env=variables) as service:
            assert post(service.url).status == 200
            text = http.request("GET", f"http://127.0.0.1:{port}/metrics").data.decode()
            assert not metrics.requests
        assert service.has_logged(f"Metrics for Prometheus: http://127.0.0.1:{port}/metrics")
        assert "s3cr3t-of-metrics" not in "\n".join(service.log)
        (report,) = metrics.requests
    lines = text.splitlines()
    assert 'otelcol_receiver_accepted_log_records_total{receiver="statsig",transport="http"} 1.0' in lines
    assert 'statsig_otel_receiver_request_duration_seconds_count{receiver="statsig"} 1.0' in lines
    assert 'statsig_otel_receiver_requests_total{reason="accepted",receiver="statsig",status="200"} 1.0' in lines
    assert 'statsig_otel_server_refused_requests_total{reason="not_found",status="404"} 0.0' in lines
    assert report.headers["key"] == "s3cr3t-of-metrics"
    sent = ExportMetricsServiceRequest.FromString(report.payload)
    names = {metric.name for scope in sent.resource_metrics[0].scope_metrics for metric in scope.metrics}
    assert {"otelcol_exporter_sent_log_records", "statsig_otel_queue_commit_duration"} <= names


@pytest.mark.slow
def test_spans_are_sent_at_the_end_at_the_latest(tmp_path: Path) -> None:
    with HttpSink() as changes, HttpSink() as spans:
        config = write_config(tmp_path, {"otlp_http": {"endpoint": changes.url}}, queued=True)
        otlp = {"protocol": "http/protobuf", "endpoint": spans.url, "headers": {"key": "${env:KEY}"}}
        processors = [{"batch": {"schedule_delay": "1h", "exporter": {"otlp": otlp}}}]
        more = tmp_path / "traces.yaml"
        more.write_text(json.dumps({"service": {"telemetry": {"traces": {"processors": processors}}}}))
        variables = {**SECRET_ENV, "KEY": "s3cr3t-of-traces", "OTEL_EXPORTER_OTLP_HEADERS": "key=of-another"}
        with ServiceProcess(config, "--config", str(more), env=variables) as service:
            assert post(service.url).status == 200
            changes.wait_for(1)
        (request,) = spans.requests
    assert request.headers["key"] == "s3cr3t-of-traces"
    (of_resource,) = ExportTraceServiceRequest.FromString(request.payload).resource_spans
    names = {span.name for span in of_resource.scope_spans[0].spans}
    assert names == {"POST /api/v1/data/events/receiver/statsig", "send otlp_http"}


def test_a_signed_change_reaches_every_exporter_before_the_200(tmp_path: Path) -> None:
    lines = tmp_path / "changes.jsonl"
    with GrpcSink() as over_grpc, HttpSink() as over_http:
        exporters: dict[str, dict[str, object]] = {
            "otlp_grpc": grpc_exporter(over_grpc.port),
            "otlp_http/two": {"endpoint": over_http.url},
            "file": {"path": str(lines)},
            "debug": {},
        }
        with ServiceProcess(write_config(tmp_path, exporters), env=SECRET_ENV) as service:
            answer = post(service.url)
            assert (answer.status, answer.json()) == (200, TAKEN)
            assert len(over_grpc.records) == len(over_http.records) == 1
            assert len(lines.read_bytes().splitlines()) == 1
        assert over_grpc.requests[0].payload == over_http.requests[0].payload
    assert any("gate_updated" in line and "layout_v2 updated" in line for line in service.output)


@default_port
def test_the_set_up_in_its_true_order() -> None:
    """Start without a secret, let Statsig verify the URL, add the secret, take the first signed event."""
    with HttpSink() as backend:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        with ServiceProcess(env=env) as service:
            verified = http.request("POST", service.url, body=VERIFICATION)
            assert (verified.status, verified.json()) == (200, {"verification_code": "abc123"})
            assert post(service.url).status == 401
        assert any("no signing secret yet" in line for line in service.output)
        wait_until(lambda: service.has_logged("Copy its signing secret"), "it is said")
        assert not backend.requests
        with ServiceProcess(env={**env, **SECRET_ENV}) as service:
            assert post(service.url).status == 200
        assert not any("no signing secret" in line for line in service.output)
        assert len(backend.records) == 1


@default_port
@pytest.mark.parametrize("protocol", ["grpc", pytest.param("http/protobuf", marks=pytest.mark.slow)])
def test_the_environment_alone_configures_the_exporter_and_the_resource(protocol: str) -> None:
    with GrpcSink() as over_grpc, HttpSink() as over_http:
        sink = over_grpc if protocol == "grpc" else over_http
        env = {
            **SECRET_ENV,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "ignored",
            "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-team=a%20b, X-Other = c",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "7",
            "OTEL_RESOURCE_ATTRIBUTES": "team=flags,service.name=lost,broken",
            "OTEL_SERVICE_NAME": "flags",
        }
        with ServiceProcess(env=env) as service:
            assert post(service.url).status == 200
        (received,) = sink.requests
        resource = received.message.resource_logs[0].resource.attributes
        assert (received.headers["x-team"], received.headers["x-other"]) == ("a b", "c")
        assert {item.key: item.value.string_value for item in resource} == {"service.name": "flags", "team": "flags"}
        wait_until(lambda: service.has_logged("OTEL_RESOURCE_ATTRIBUTES"), "it is said")
        if protocol != "grpc":
            assert received.path == "/v1/logs"


@default_port
@pytest.mark.slow
def test_the_logs_endpoint_of_the_environment_is_used_as_it_is() -> None:
    with HttpSink() as backend:
        env = {
            **SECRET_ENV,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"{backend.url}/own/path",
        }
        with ServiceProcess(env=env) as service:
            assert post(service.url).status == 200
        assert backend.requests[0].path == "/own/path"


@pytest.mark.slow
def test_a_receiver_resource_goes_over_the_environment(tmp_path: Path) -> None:
    with GrpcSink() as backend:
        resource = {"service.name": "own", "shards": [1, 2], "primary": True}
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(backend.port)}, resource=resource)
        env = {**SECRET_ENV, "OTEL_SERVICE_NAME": "environment", "OTEL_RESOURCE_ATTRIBUTES": "team=flags"}
        with ServiceProcess(config, env=env) as service:
            assert post(service.url).status == 200
        found = {item.key: item.value for item in backend.requests[0].message.resource_logs[0].resource.attributes}
    assert set(found) == {"service.name", "team", "shards", "primary"}
    assert found["service.name"].string_value == "own"
    assert [value.int_value for value in found["shards"].array_value.values] == [1, 2]
    assert found["primary"].bool_value is True


def test_a_backend_that_is_down_is_503_and_its_return_needs_no_restart(tmp_path: Path) -> None:
    port = free_port()
    with ServiceProcess(write_config(tmp_path, {"otlp_grpc": grpc_exporter(port)}), env=SECRET_ENV) as service:
        answer = post(service.url)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
        with GrpcSink(port=port) as backend:
            deadline = time.monotonic() + 20
            while (status := post(service.url).status) != 200 and time.monotonic() < deadline:
                assert status == 503
                time.sleep(0.1)
            assert status == 200
            assert {record.event_name for record in backend.records} == {"statsig.config_change"}
    assert any("exporter_failed" in line and "otlp_grpc" in line for line in service.log)


@pytest.mark.slow
def test_one_of_two_backends_down_is_503_and_a_redelivery_has_the_same_uid(tmp_path: Path) -> None:
    with GrpcSink() as good, GrpcSink() as bad:
        bad.answer = GrpcAnswer(grpc.StatusCode.UNAUTHENTICATED, "the key has expired")
        exporters = {"otlp_grpc/good": grpc_exporter(good.port), "otlp_grpc/bad": grpc_exporter(bad.port)}
        with ServiceProcess(write_config(tmp_path, exporters), env=SECRET_ENV) as service:
            assert post(service.url).status == 503
            bad.answer = GrpcAnswer()
            assert post(service.url).status == 200
        uids = {
            item.value.string_value
            for record in [*good.records, *bad.records]
            for item in record.attributes
            if item.key == "log.record.uid"
        }
        assert (len(good.records), len(bad.records), len(uids)) == (2, 2, 1)


@pytest.mark.slow
def test_several_receivers_share_an_endpoint_and_keep_to_themselves(tmp_path: Path) -> None:
    port = free_port()
    with GrpcSink() as all_changes, GrpcSink() as eu_changes:
        config = {
            "receivers": {
                "statsig": {"endpoint": f"127.0.0.1:{port}", "signing_secrets": ["webhook-us"]},
                "statsig/eu": {"endpoint": f"127.0.0.1:{port}", "path": "/eu", "signing_secrets": ["webhook-eu"]},
            },
            "exporters": {
                "otlp_grpc/all": grpc_exporter(all_changes.port),
                "otlp_grpc/eu": grpc_exporter(eu_changes.port),
            },
            "service": {
                "pipelines": {
                    "logs": {"receivers": ["statsig", "statsig/eu"], "exporters": ["otlp_grpc/all"]},
                    "logs/eu": {"receivers": ["statsig/eu"], "exporters": ["otlp_grpc/eu", "otlp_grpc/all"]},
                }
            },
        }
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(config))
        with ServiceProcess(path) as service:
            eu = f"http://127.0.0.1:{port}/eu"
            assert post(service.url, secret="webhook-us").status == 200
            assert post(eu, secret="webhook-eu").status == 200
            assert post(eu, secret="webhook-us").status == 401
        assert (len(all_changes.records), len(eu_changes.records)) == (2, 1)


def test_receivers_on_one_endpoint_that_disagree_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = {
        "receivers": {
            "statsig": {"signing_secrets": []},
            "statsig/eu": {"signing_secrets": [], "max_connections": 5},
        },
        "exporters": {"debug": {}},
        "service": {"pipelines": {"logs": {"receivers": ["statsig", "statsig/eu"], "exporters": ["debug"]}}},
    }
    path.write_text(json.dumps(config))
    ended = run_to_end("run", "--config", str(path))
    assert ended.returncode == 1
    assert "receivers::statsig/eu::max_connections: differs from receivers::statsig::max_connections" in ended.stderr
    assert "receivers::statsig/eu::path: is the path of receivers::statsig too" in ended.stderr


def test_tls_serves_the_webhook(tmp_path: Path) -> None:
    authority = Authority()
    cert, key = authority.issue("127.0.0.1").write(tmp_path)
    tls = {"cert_file": cert, "key_file": key, "min_version": "1.3"}
    with (
        HttpSink() as backend,
        ServiceProcess(
            write_config(tmp_path, {"otlp_http": {"endpoint": backend.url}}, tls=tls), env=SECRET_ENV
        ) as service,
    ):
        assert service.url.startswith("https://127.0.0.1:")
        pool = urllib3.PoolManager(ca_certs=authority.write(tmp_path), retries=False, timeout=20)
        headers = sign(BODY, secret=SECRET, timestamp_ms=time.time_ns() // 1_000_000)
        assert pool.request("POST", service.url, body=BODY, headers=headers).status == 200
        pool.clear()
        with pytest.raises(urllib3.exceptions.SSLError):
            http.request("POST", service.url, body=BODY)


def test_sigterm_finishes_what_is_in_flight(tmp_path: Path) -> None:
    with GrpcSink() as backend:
        backend.answer = GrpcAnswer(hang=True)
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(backend.port)})
        answers: list[int] = []
        with ServiceProcess(config, env=SECRET_ENV) as service:
            client = threading.Thread(target=lambda: answers.append(post(service.url).status))
            client.start()
            backend.wait_for(1)
            service.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            backend.release()
            client.join(20)
            assert service.wait() == 0
        assert answers == [200]


@pytest.mark.slow
def test_a_second_signal_ends_at_once_but_one_sent_twice_does_not(tmp_path: Path) -> None:
    with GrpcSink() as backend:
        backend.answer = GrpcAnswer(hang=True)
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(backend.port)})
        with ServiceProcess(config, env=SECRET_ENV, exit_code=-signal.SIGTERM) as service:
            cut_off: list[Exception] = []

            def wait_for_an_answer() -> None:
                try:
                    post(service.url)
                except urllib3.exceptions.HTTPError as error:
                    cut_off.append(error)

            client = threading.Thread(target=wait_for_an_answer)
            client.start()
            backend.wait_for(1)
            service.process.send_signal(signal.SIGTERM)
            service.process.send_signal(signal.SIGTERM)
            time.sleep(1)
            assert service.process.poll() is None
            service.process.send_signal(signal.SIGTERM)
            service.wait()
            client.join(20)
            assert cut_off


def test_a_port_in_use_is_one_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = write_config(tmp_path, {"debug": {}}, endpoint=f"127.0.0.1:{port}")
        ended = run_to_end("run", "--config", str(config), env=SECRET_ENV)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: the port is in use" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"STATSIG_SIGNING_SECRET": ""}, "STATSIG_SIGNING_SECRET: is empty"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/xml"}, "OTEL_EXPORTER_OTLP_PROTOCOL: is not a protocol"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OTEL_EXPORTER_OTLP_TIMEOUT: must be a number of seconds"),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "ftp://x"}, "(OTEL_EXPORTER_OTLP_LOGS_ENDPOINT)"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "hidden-key"}, "OTEL_EXPORTER_OTLP_HEADERS: contains an entry"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, "(OTEL_EXPORTER_OTLP_COMPRESSION)"),
        ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such/file"}, "/no/such/file"),
    ],
)
def test_a_wrong_environment_is_one_clear_error(env: dict[str, str], message: str) -> None:
    ended = run_to_end("run", env={**SECRET_ENV, "OTEL_EXPORTER_OTLP_ENDPOINT": "https://localhost:4317", **env})
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "hidden-key" not in ended.stderr


def test_all_errors_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        """\
receivers:
  statsig:
    endpont: localhost:8080
    signing_secrets: [""]
exporters:
  otlp_grpc:
    endpoint: localhost:4317
    compression: zstd
service:
  pipelines:
    logs: {receivers: [statsig], exporters: [otlp_grcp]}
"""
    )
    ended = run_to_end("run", "--config", str(path))
    assert ended.returncode == 1
    for place in (
        "receivers::statsig::endpont: unknown key",
        "did you mean endpoint",
        f"receivers::statsig::signing_secrets[0]: is empty ({path}:4)",
        f"exporters::otlp_grpc::compression: zstd is not supported here; use gzip or none ({path}:8)",
        "did you mean otlp_grpc",
    ):
        assert place in ended.stderr


def test_no_secret_is_ever_printed(tmp_path: Path) -> None:
    """Neither the signing secret nor a header's value is in what a run writes, at the most talkative level."""
    with HttpSink() as backend:
        exporter = {"endpoint": backend.url, "headers": {"x-api-key": "hidden-key"}}
        config = write_config(tmp_path, {"otlp_http": exporter, "debug": {"verbosity": "detailed"}})
        with ServiceProcess(config, "--log-level", "debug", env=SECRET_ENV) as service:
            assert post(service.url).status == 200
            assert post(service.url, secret="webhook-wrong").status == 401
            backend.close()
            assert post(service.url).status == 503
    written = "\n".join([*service.output, *service.log])
    assert "exporter_failed" in written
    assert SECRET not in written
    assert "hidden-key" not in written


def test_files_are_checked_at_the_start_all_at_once_and_with_their_places(tmp_path: Path) -> None:
    tls = {"ca_file": "/no/ca.pem"}
    exporters: dict[str, dict[str, object]] = {
        "otlp_http": {"endpoint": "https://x", "tls": tls},
        "file": {"path": "/no/x"},
    }
    config = write_config(tmp_path, exporters, tls={"cert_file": "/no/cert.pem", "key_file": "/no/key.pem"})
    ended = run_to_end("run", "--config", str(config), env=SECRET_ENV)
    assert ended.returncode == 1
    for problem in (
        "receivers::statsig::tls::cert_file: /no/cert.pem can't be read: No such file or directory",
        "receivers::statsig::tls::key_file: /no/key.pem can't be read: No such file or directory",
        "exporters::otlp_http::tls::ca_file: /no/ca.pem can't be read: No such file or directory",
        "exporters::file::path: there is no directory /no",
    ):
        assert f"{problem} ({config}:" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_and_version() -> None:
    assert "run" in run_to_end("--help").stdout
    assert "statsig-otel" in run_to_end("--version").stdout
    unknown = run_to_end("rnu")
    assert unknown.returncode == 2
    assert "rnu" in unknown.stderr


@pytest.mark.slow
def test_a_service_that_can_accept_nothing_any_more_ends_for_its_supervisor(tmp_path: Path) -> None:
    """Not a process that lives and listens no more."""
    program = (
        "import socket, sys, threading, time\n"
        "from statsig_otel.plugin.cli.main import main\n"
        "from statsig_otel.plugin.server.listening import _sockets\n"
        "def end():\n"
        "    while not (listening := list(_sockets)):\n"
        "        time.sleep(0.1)\n"
        "    time.sleep(1)\n"
        "    listening[0].shutdown(socket.SHUT_RDWR)\n"
        "threading.Thread(target=end, daemon=True).start()\n"
        "main(sys.argv[1:])\n"
    )
    config = write_config(tmp_path, {"debug": {}})
    command = [sys.executable, "-c", program, "run", "--config", str(config)]
    ended = subprocess.run(
        command, env=environment(SECRET_ENV), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "The server failed: no more webhooks are accepted" in ended.stderr
    assert ended.stderr.splitlines()[-1] == "Error: the service failed: Invalid argument"


@pytest.mark.slow
def test_a_service_whose_queue_can_store_nothing_any_more_ends_for_its_supervisor(tmp_path: Path) -> None:
    """By an error that nobody has foreseen, in the thread that all that is stored goes through."""
    program = (
        "import sys\n"
        "from statsig_otel.exporters.queue.queue import DurableQueue\n"
        "from statsig_otel.plugin.cli.main import main\n"
        "def end(*_):\n"
        "    raise SystemExit(0)\n"
        "DurableQueue._tidy = end\n"
        "main(sys.argv[1:])\n"
    )
    config = write_config(tmp_path, {"otlp": {"endpoint": "http://127.0.0.1:1"}}, queued=True)
    command = [sys.executable, "-c", program, "run", "--config", str(config)]
    ended = subprocess.run(
        command, env=environment(SECRET_ENV), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    last = "Error: the service failed: the queue's writer ended by an unexpected error: SystemExit(0)"
    assert ended.stderr.splitlines()[-1] == last
    assert [json.loads(state.read_text())["clean"] for state in tmp_path.rglob("state.json")] == [False]
