"""examples/victorialogs: of a webhook, a query for its flag and time finds each documented field in VictoriaLogs."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from statsig_otel.exporters import OtlpHttpSettings
from statsig_otel.plugin.doctor.endpoints import check_backends
from tests.e2e import otelcol
from tests.e2e.otelcol import UnavailableError
from tests.e2e.processes import SECRET, post, signed
from tests.e2e.service_process import ServiceProcess, environment
from tests.e2e.stores import as_text, asked, victorialogs, victorialogs_binary
from tests.e2e.test_collectors import EVERY_FIELD, EXPECTED, body_of
from tests.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]
EXAMPLE: Final = ROOT / "examples" / "victorialogs"
UNAVAILABLE: Final = "NO REAL STORE: the example is not proven with"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(otelcol.TEST_TIMEOUT)]


Way: TypeAlias = Callable[[str, str], AbstractContextManager[ServiceProcess]]
"""A service that sends to a store, with its queue in a directory."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    try:
        binary = victorialogs_binary()
    except UnavailableError as error:
        pytest.skip(f"{UNAVAILABLE} VictoriaLogs: {error}")
    with victorialogs(binary, tmp_path / "store") as url:
        yield url


@contextmanager
def straight(store: str, queue: str) -> Iterator[ServiceProcess]:
    env = {"VICTORIALOGS_URL": store, "WEBHOOK_ENDPOINT": "127.0.0.1:0", "QUEUE_DIRECTORY": queue}
    with ServiceProcess(EXAMPLE / "statsig-otel.yaml", env={"STATSIG_SIGNING_SECRET": SECRET, **env}) as service:
        yield service


@contextmanager
def behind_a_collector(store: str, queue: str) -> Iterator[ServiceProcess]:
    try:
        binary = otelcol.build()
    except UnavailableError as error:
        pytest.skip(f"{UNAVAILABLE} an OpenTelemetry Collector: {error}")
    with ExitStack() as stack:
        free = "127.0.0.1:0"
        variables = {"OTLP_GRPC_ENDPOINT": free, "OTLP_HTTP_ENDPOINT": free, "VICTORIALOGS_URL": store}
        collector = stack.enter_context(otelcol.start(binary, EXAMPLE / "collector.yaml", **variables))
        env = {"COLLECTOR_ENDPOINT": f"127.0.0.1:{collector.ports.grpc}", "WEBHOOK_ENDPOINT": "127.0.0.1:0"}
        env |= {"STATSIG_SIGNING_SECRET": SECRET, "QUEUE_DIRECTORY": queue}
        yield stack.enter_context(ServiceProcess(ROOT / "examples" / "collector" / "statsig-otel.yaml", env=env))


def found(store: str, query: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in asked(f"{store}/select/logsql/query", query=query).splitlines()]


@pytest.mark.parametrize("way", [straight, behind_a_collector])
def test_every_documented_field_is_found_by_flag_and_time(way: Way, store: str, tmp_path: Path) -> None:
    expected: dict[str, Any] = next(one for one in EXPECTED if one["timeUnixNano"] == "1739400185198000000")
    attributes = {key: as_text(value) for key, value in expected["attributes"].items()}
    query = 'feature_flag.key:="größe_布局" _time:[2025-02-12T22:43:05Z, 2025-02-12T22:43:06Z]'
    with way(store, str(tmp_path / "queue")) as service:
        body = body_of(EVERY_FIELD)
        assert post(service.url, body, signed(body)).status == 200
        wait_until(lambda: bool(found(store, query)))
        (row,) = found(store, query)
    for name in ("_stream", "_stream_id", "scope.version", "severity_text"):
        row.pop(name, None)
    assert row == {
        **attributes,
        "_msg": "größe_布局 updated",
        "_time": "2025-02-12T22:43:05.198Z",
        "event_name": "statsig.config_change",
        "service.name": "statsig",
        "scope.name": "statsig_otel",
        "severity_number": "9",
    }


def test_the_doctor_finds_it_well(store: str) -> None:
    (finding,), _ = check_backends({"otlp_http": OtlpHttpSettings(endpoint=f"{store}/insert/opentelemetry")})
    assert (finding.status, finding.hint) == ("ok", None)


def test_the_commands_of_the_readme(store: str, tmp_path: Path) -> None:
    """But for the ports, and for the store, which runs."""
    commands = [
        line.strip()
        for block in re.findall(r"```sh\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
        for line in block.splitlines()
        if line.strip()
    ]
    start, run, send, query = commands
    program, *options = shlex.split(start)
    assert program == "victoria-logs"
    assert "-httpListenAddr=localhost:9428" in options, "it has no password, so nobody else may reach it"
    with straight(store, str(tmp_path / "queue")) as service:
        assert run.endswith("statsig-otel run --config statsig-otel.yaml")
        words = shlex.split(send.replace("http://localhost:8080", service.url.partition("/api")[0]))
        assert words[1] == "statsig-otel"
        command = [sys.executable, "-m", "statsig_otel", *words[2:]]
        env = environment({"STATSIG_SIGNING_SECRET": SECRET})
        sent = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert sent.returncode == 0, sent.stdout + sent.stderr

        def asked_for() -> str:
            words = shlex.split(query.replace("http://localhost:9428", store))
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout

        wait_until(lambda: "sample_gate updated" in asked_for())
