"""examples/agent: run as it stands, against a real OTLP receiver."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tests.e2e.processes import SECRET, Process, clean_environment, post, signed
from tests.peers.otlp_servers import HttpSink
from tests.peers.ports import free_port
from tests.plugin.services import change_body, names_in
from tests.waiting import wait_until

AGENT = Path(__file__).parents[1] / "examples" / "agent" / "agent.py"


def metrics_in(payload: bytes) -> set[str]:
    message = ExportMetricsServiceRequest.FromString(payload)
    return {
        metric.name
        for resource in message.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def agent(sink: HttpSink, directory: Path, listen: str = "127.0.0.1:0") -> Process:
    options = ["--listen", listen, "--directory", str(directory)]
    env = clean_environment(
        STATSIG_SIGNING_SECRET=SECRET, OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, OTEL_METRIC_EXPORT_INTERVAL="60000"
    )
    return Process([sys.executable, str(AGENT), *options], env)


@pytest.mark.slow
def test_the_agent_sends_metrics_and_a_change_to_one_endpoint(tmp_path: Path) -> None:
    with HttpSink() as sink, agent(sink, tmp_path) as process:
        url = process.wait_for(r"^Webhook URL: (\S+)$")[1]
        body = change_body("layout_v2")
        assert post(url, body, signed(body)).status == 200
        assert process.stop() == 0
        received = list(sink.requests)
    changes = [name for one in received if one.path == "/v1/logs" for name in names_in(one.payload)]
    metrics = {name for one in received if one.path == "/v1/metrics" for name in metrics_in(one.payload)}
    assert {one.path for one in received} == {"/v1/logs", "/v1/metrics"}
    assert changes == ["layout_v2"]
    assert {"system.cpu.load_average.1m", "system.filesystem.usage", "system.memory.limit"} <= metrics
    assert {"statsig_otel_receiver_requests", "otelcol_exporter_sent_log_records"} <= metrics
    assert "agent: Stopped" in process.output


@pytest.mark.slow
def test_an_option_that_can_not_be_used_is_one_line(tmp_path: Path) -> None:
    with HttpSink() as sink, agent(sink, tmp_path / "file" / "queue") as process:
        process.wait_for(r"^Webhook URL: ")
        with agent(sink, tmp_path / "file" / "queue") as second:
            line = second.wait_for(r"^agent: (.*)$")[1]
        assert "is in use by the process" in line
        assert "Traceback" not in second.output


@pytest.mark.slow
def test_the_commands_of_the_readme_work_as_printed(tmp_path: Path) -> None:
    """Only the port is another."""
    readme = AGENT.with_name("README.md").read_text()
    run, send = re.findall(r"(?m)^ {7}(STATSIG_SIGNING_SECRET=(?:.*\\\n)*.*)$", readme)
    port = free_port()
    with HttpSink() as sink:
        env = clean_environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        )
        command = f"exec env {run.replace('agent.py', str(AGENT))} --listen localhost:{port} --directory {tmp_path}"
        with Process(["sh", "-c", command], env) as process:
            process.wait_for(r"^Webhook URL: ")
            sent = subprocess.run(
                ["sh", "-c", send.replace("8080", str(port))], env=env, capture_output=True, text=True, check=True
            )
            assert '"accepted":1' in sent.stdout
            wait_until(lambda: [one for one in sink.requests if one.path == "/v1/logs"])


def test_the_readme_names_what_there_is() -> None:
    readme = AGENT.with_name("README.md").read_text()
    found = re.findall(r"`(--[a-z-]+)`", readme)
    assert found
    for option in found:
        assert f'"{option}"' in AGENT.read_text()
