"""examples/monitoring: the queries of the dashboards find what the service really sends, in real stores.

Where a store can't be had, its test is skipped with a reason that begins with "NO REAL STORE". Loki is not among them:
it is neither a Debian package nor something that `go install` builds. tests/test_monitoring_example.py compares the
names in its queries with those that records have, and no more.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.e2e.otelcol import UnavailableError
from tests.e2e.processes import SECRET, post, signed
from tests.e2e.service_process import ServiceProcess
from tests.e2e.stores import (
    asked,
    otel_logs,
    prometheus,
    prometheus_binary,
    sql,
    victorialogs,
    victorialogs_binary,
)
from tests.peers.audit_log import KEY, AuditLogServer
from tests.peers.certs import Authority
from tests.peers.otlp_servers import HttpAnswer, HttpSink
from tests.peers.ports import free_port
from tests.waiting import wait_until

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "monitoring"
UNAVAILABLE: Final = "NO REAL STORE: the dashboard is not proven with"
SERVICE: Final = "shop"

CHANGE: Final = {
    "eventName": "statsig::config_change",
    "timestamp": 1739400185198,
    "user": {"name": "Release Manager", "email": "release@example.com"},
    "metadata": {
        "type": "Gate",
        "name": "layout_v2",
        "action": "updated",
        "description": '- Updated rule "beta"\n- 10 % of all users pass',
        "environments": "production,staging",
    },
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30 * 60)]

_T = TypeVar("_T")


def had(store: str, get: Callable[[], _T]) -> _T:
    """What is needed for a store, or the test is skipped."""
    try:
        return get()
    except UnavailableError as error:
        pytest.skip(f"{UNAVAILABLE} {store}: {error}")


@contextmanager
def serving(
    folder: Path,
    exporters: dict[str, Any],
    *,
    secure: Mapping[str, object] | None = None,
    audit_log: Mapping[str, object] | None = None,
    **telemetry: Any,
) -> Iterator[ServiceProcess]:
    """A service whose records have the `service.name` shop; `secure` is of a second receiver."""
    receiver = {"endpoint": "127.0.0.1:0", "signing_secrets": [SECRET], "resource": {"service.name": SERVICE}}
    receiver |= {"audit_log": audit_log} if audit_log else {}
    receivers = {"statsig": receiver, **({"statsig/secure": {**receiver, **secure}} if secure else {})}
    configuration = {
        "receivers": receivers,
        "exporters": exporters,
        "extensions": {"file_storage": {"directory": str(folder / "queue"), "min_free_bytes": 0}},
        "service": {
            "extensions": ["file_storage"],
            "telemetry": telemetry,
            "pipelines": {"logs": {"receivers": list(receivers), "exporters": list(exporters)}},
        },
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(configuration))
    with ServiceProcess(path) as service:
        yield service


def send(service: ServiceProcess, *items: object, status: int = 200, secret: str = SECRET) -> None:
    body = json.dumps(items).encode()
    assert post(service.url, body, signed(body, secret=secret)).status == status


def queries(store: str) -> tuple[str, str]:
    """The query of the annotation, and that of the list, for services that match a pattern."""
    dashboard = json.loads((EXAMPLE / f"changes_{store}.json").read_text())
    (annotation,) = dashboard["annotations"]["list"]
    (listed,) = (panel for panel in dashboard["panels"] if panel["title"] == "Config changes")
    targets = [annotation["target"], *listed["targets"]]
    first, second = (one.get("expr") or one["rawSql"] for one in targets)
    return first, second


def test_victorialogs_finds_what_it_was_sent(tmp_path: Path) -> None:
    binary = had("VictoriaLogs", victorialogs_binary)
    another = CHANGE | {"timestamp": 1739400185199, "eventName": "statsig::gate_exposure"}
    with victorialogs(binary, tmp_path / "store") as url:
        exporter = {"logs_endpoint": f"{url}/insert/opentelemetry/v1/logs"}
        with serving(tmp_path, {"otlp_http": exporter}) as service:
            send(service, CHANGE, another)
            annotation, listed = queries("victorialogs")

            def found(query: str, pattern: str) -> list[dict[str, str]]:
                whole = query.replace("$service", pattern)
                answer = asked(f"{url}/select/logsql/query", query=whole, start="2020-01-01T00:00:00Z")
                return [json.loads(line) for line in answer.splitlines()]

            wait_until(lambda: len(found(annotation, ".+")) == 1)
            (marked,), (row,) = found(annotation, "sh.p"), found(listed, SERVICE)
            assert found(annotation, "another") == []
    said = 'layout_v2 updated ["production","staging"]'
    description = CHANGE["metadata"]["description"]  # type: ignore[index]
    assert marked["_msg"] == f"{said}: {description}"
    assert row["_msg"] == f"{said} Release Manager: {description}"
    # An annotation stands where the change was accepted or happened, and not where it was stored.
    assert marked["_time"].startswith(("2025-02-12T22:43:05.198", time.strftime("%Y-%m-%d")))


def test_clickhouse_finds_what_was_sent(tmp_path: Path) -> None:
    """Twice, as after a retry: each change is shown once."""
    refuses = True

    def answer(_: object) -> HttpAnswer:
        return HttpAnswer(status=503 if refuses else 200)

    had("ClickHouse", lambda: sql("SELECT 1"))
    with HttpSink() as sink, serving(tmp_path, {"otlp_http": {"endpoint": sink.url}}) as service:
        sink.answer = answer
        send(service, CHANGE, CHANGE | {"timestamp": 1739400185199, "user": {"email": "jane@example.com"}})
        sink.wait_for(1)
        refuses = False
        wait_until(lambda: len(sink.requests) > 1)
        requests = [ExportLogsServiceRequest.FromString(one.payload) for one in sink.requests]
    filled = otel_logs(requests)

    def found(query: str, pattern: str) -> list[dict[str, Any]]:
        # What Grafana's plugin makes of its macro, of the last 20 years.
        within = "Timestamp >= now() - INTERVAL 20 YEAR AND Timestamp <= now()"
        return sql(*filled, query.replace("$__timeFilter(Timestamp)", within).replace("$service", pattern))

    annotation, listed = queries("clickhouse")
    assert sum(len(request.resource_logs) for request in requests) >= 4
    marked, table = found(annotation, "sh.p"), found(listed, SERVICE)
    assert found(annotation, "another") == []
    description = CHANGE["metadata"]["description"]  # type: ignore[index]
    assert [(one["title"], one["text"], one["tags"]) for one in marked] == [
        ("layout_v2 updated", description, "layout_v2")
    ] * 2
    assert [one["who"] for one in table] == ["", "Release Manager"], "the newest first"
    assert {(one["ServiceName"], one["change"], one["environments"]) for one in table} == {
        (SERVICE, "layout_v2 updated", '["production","staging"]')
    }


def everything_happens(service: ServiceProcess, secure_port: int) -> None:
    """What makes each number of the dashboard grow, once."""
    changed = CHANGE | {"timestamp": time.time_ns() // 1_000_000}
    left_out = changed | {"metadata": CHANGE["metadata"] | {"name": "another", "description": {"a": 1}}}  # type: ignore[operator]
    invalid, exposure = {"eventName": "statsig::config_change"}, {"eventName": "statsig::gate_exposure"}
    send(service, changed, CHANGE, left_out, invalid, exposure)
    send(service, CHANGE, status=401, secret=f"{SECRET}0")
    assert post(f"{service.url}/elsewhere", b"{}", {}).status == 404
    with suppress(OSError), socket.create_connection(("127.0.0.1", secure_port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        plain.recv(100)


def test_prometheus_finds_something_for_each_panel_of_the_dashboard(tmp_path: Path) -> None:
    """Of a service to which everything happens. Prometheus understands the alerts, too."""
    program = had("Prometheus", prometheus_binary)
    port = free_port()
    reader = {"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": port}}}}
    panels = json.loads((EXAMPLE / "service.json").read_text())["panels"]
    expressions = {
        target["expr"].replace("$__rate_interval", "30s").replace("$job", ".+")
        for panel in panels
        for target in panel.get("targets", ())
    }
    certificate, key = Authority().issue("127.0.0.1").write(tmp_path)
    with ExitStack() as stack:
        sink = stack.enter_context(HttpSink())
        queue = {"queue_size": 100_000}
        exporters = {
            "otlp_http": {"endpoint": sink.url, "sending_queue": queue},
            "otlp_http/away": {"endpoint": f"http://127.0.0.1:{free_port()}", "sending_queue": queue},
        }
        secure_port, tls = free_port(), {"cert_file": certificate, "key_file": key}
        secure = {"endpoint": f"127.0.0.1:{secure_port}", "tls": tls}
        log = stack.enter_context(AuditLogServer())
        audit_log = {"api_key": KEY, "endpoint": log.url, "interval": "1s", "grace": "0s"}
        service = stack.enter_context(
            serving(tmp_path, exporters, secure=secure, audit_log=audit_log, metrics={"readers": [reader]})
        )
        target, rules = f"127.0.0.1:{port}", EXAMPLE / "alerts.yaml"
        url = stack.enter_context(prometheus(program, tmp_path, target, rules))

        def found(expression: str) -> list[Any]:
            return [*json.loads(asked(f"{url}/api/v1/query", query=expression))["data"]["result"]]

        missing = expressions
        deadline = time.monotonic() + 120
        while missing and time.monotonic() < deadline:
            everything_happens(service, secure_port)
            missing = {one for one in expressions if not found(one)}
            time.sleep(0.2)  # the queue must not fill up until Prometheus has looked twice
        assert missing == set()

        def healths() -> set[str]:
            (group,) = json.loads(asked(f"{url}/api/v1/rules"))["data"]["groups"]
            return {one["health"] for one in group["rules"]}

        wait_until(lambda: "unknown" not in healths(), "the first evaluation of the alerts")
        assert healths() == {"ok"}
