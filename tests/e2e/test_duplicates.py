"""docs/scaling.md and examples/victorialogs: the queries that show a repeated change once do so in real stores."""

import json
import re
from pathlib import Path

import pytest

from tests.e2e.processes import write_config
from tests.e2e.service_process import ServiceProcess
from tests.e2e.statsig_client import ENV, change, post
from tests.e2e.stores import asked, otel_logs, sql, victorialogs, victorialogs_binary
from tests.e2e.test_dashboards import had
from tests.peers.otlp_servers import HttpSink
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30 * 60)]


def query(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def send_twice(folder: Path, exporter: dict[str, object]) -> None:
    """Without a queue nobody recognises what comes again: three records of two changes."""
    with ServiceProcess(write_config(folder, {"otlp_http": exporter}), env=ENV) as service:
        for changes in ([change(1), change(2)], [change(1)]):
            assert post(service.url, *changes).status == 200


def test_in_victorialogs(tmp_path: Path) -> None:
    binary = had("VictoriaLogs", victorialogs_binary)
    with victorialogs(binary, tmp_path / "store") as url:
        send_twice(tmp_path, {"logs_endpoint": f"{url}/insert/opentelemetry/v1/logs"})

        def found(text: str) -> list[dict[str, str]]:
            answer = asked(f"{url}/select/logsql/query", query=text, start="2020-01-01T00:00:00Z")
            return [json.loads(line) for line in answer.splitlines()]

        wait_until(lambda: len(found('event_name:="statsig.config_change"')) == 3, "the records")
        (pipe,) = re.findall(r"`(\| .*)`", (ROOT / "examples" / "victorialogs" / "README.md").read_text())
        for one_each in (query("logsql"), f'{{event_name="statsig.config_change"}} {pipe}'):
            titles = sorted(one["change_event.title"] for one in found(one_each))
            assert titles == ["gate_1 updated", "gate_2 updated"]


def test_in_clickhouse(tmp_path: Path) -> None:
    had("ClickHouse", lambda: sql("SELECT 1"))
    with HttpSink() as sink:
        send_twice(tmp_path, {"endpoint": sink.url})
        filled = otel_logs(one.message for one in sink.requests)
    assert sql(*filled, "SELECT count() AS stored FROM otel_logs") == [{"stored": 3}]
    assert [one["change"] for one in sql(*filled, query("sql"))] == ["gate_2 updated", "gate_1 updated"]
