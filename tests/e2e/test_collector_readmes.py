"""examples/collector and examples/clickhouse: the commands of their READMEs, but for the ports, and where they lead."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.e2e import otelcol
from tests.e2e.otelcol import UnavailableError
from tests.e2e.service_process import ServiceProcess, environment
from tests.e2e.stores import otel_logs, sql
from tests.peers.otlp_servers import GrpcSink, HttpSink
from tests.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]
EXAMPLES: Final = ROOT / "examples"
RUN: Final = "statsig-otel run --config "

pytestmark = [pytest.mark.slow, pytest.mark.timeout(otelcol.TEST_TIMEOUT)]


def blocks(example: str) -> list[list[str]]:
    """The commands of each block."""
    found = re.findall(r"^ *```sh\n(.*?)```", (EXAMPLES / example / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [[line.strip() for line in block.strip().splitlines()] for block in found]


def exported(line: str) -> dict[str, str]:
    (name, value) = line.removeprefix("export ").split("=")
    return {name: value}


def sends_a_sample(example: str, run: list[str], send: list[str], collector: str, queue: Path) -> None:
    """The service and the sample change. It sends to a Collector at another port than the usual one."""
    secret, command = run
    assert command.startswith(RUN)
    env = {"COLLECTOR_ENDPOINT": collector, "WEBHOOK_ENDPOINT": "127.0.0.1:0", "QUEUE_DIRECTORY": str(queue)}
    with ServiceProcess(EXAMPLES / example / command.removeprefix(RUN), env={**exported(secret), **env}) as service:
        secret, command = send
        assert "http://localhost:8080" in command
        program, *words = shlex.split(command.replace("http://localhost:8080", service.url.partition("/api")[0]))
        assert program == "statsig-otel"
        sent = subprocess.run(
            [sys.executable, "-m", "statsig_otel", *words],
            env=environment(exported(secret)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert sent.returncode == 0, sent.stdout + sent.stderr


def configuration(command: str, program: str, example: str) -> Path:
    """The file of a Collector's command."""
    *words, name = shlex.split(command)
    assert words == [program, "--config"]
    return EXAMPLES / example / name


def test_the_collector_prints_the_sample_and_the_sidecar_passes_it_on(tmp_path: Path) -> None:
    try:
        binary = otelcol.build()
    except UnavailableError as error:
        pytest.skip(f"NO REAL COLLECTOR: the commands of examples/collector are not run: {error}")
    (collect,), run, send, (backend, sidecar), *_ = blocks("collector")
    free = {"OTLP_GRPC_ENDPOINT": "127.0.0.1:0", "OTLP_HTTP_ENDPOINT": "127.0.0.1:0"}
    with otelcol.start(binary, configuration(collect, "otelcol", "collector"), **free) as collector:
        sends_a_sample("collector", run, send, f"127.0.0.1:{collector.ports.grpc}", tmp_path / "printed")
        collector.process.wait_for("EventName: statsig.config_change")
        collector.process.wait_for("sample_gate updated")
    assert exported(backend).keys() == {"BACKEND_ENDPOINT"}
    with HttpSink() as sink:
        variables = {**free, "BACKEND_ENDPOINT": sink.url}
        with otelcol.start(binary, configuration(sidecar, "otelcol", "collector"), **variables) as collector:
            sends_a_sample("collector", run, send, f"127.0.0.1:{collector.ports.grpc}", tmp_path / "passed on")
            wait_until(lambda: sink.records, within=60)
        assert sink.records[0].body.string_value == "sample_gate updated"


def test_the_compose_command_of_the_sidecar_has_both_files() -> None:
    """What they make together is tested with the other files of Docker."""
    backend, command = blocks("collector")[-1]
    assert exported(backend).keys() == {"BACKEND_ENDPOINT"}
    files = re.findall(r"--file (\S+)", command)
    assert [(ROOT / name).relative_to(EXAMPLES / "docker").name for name in files] == ["compose.yaml", "sidecar.yaml"]
    assert all((ROOT / name).exists() for name in files)


def test_the_query_finds_the_sample_in_clickhouse(tmp_path: Path) -> None:
    """Its engine, and a table that is filled as the Collector's exporter does."""
    (collect,), run, send, (ask,) = blocks("clickhouse")
    assert configuration(collect, "otelcol-contrib", "clickhouse").exists()
    with GrpcSink() as sink:
        sends_a_sample("clickhouse", run, send, sink.address, tmp_path / "queue")
        received = [ExportLogsServiceRequest.FromString(one.payload) for one in sink.wait_for(1)]
    program, _, file = ask.split()
    assert program == "clickhouse-client"
    try:
        (row,) = sql(*otel_logs(received), (EXAMPLES / "clickhouse" / file).read_text())
    except UnavailableError as error:
        pytest.skip(f"NO REAL STORE: the query is not run in ClickHouse: {error}")
    assert row["Body"] == "sample_gate updated"
