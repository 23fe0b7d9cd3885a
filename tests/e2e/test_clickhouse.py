"""examples/clickhouse: in a table with the columns of the Collector's exporter, each documented field is found."""

from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.e2e.otelcol import UnavailableError
from tests.e2e.processes import SECRET, post, signed
from tests.e2e.service_process import ServiceProcess
from tests.e2e.stores import as_text, otel_logs, sql
from tests.e2e.test_collectors import CONTEXT, EVERY_FIELD, EXPECTED, body_of
from tests.peers.otlp_servers import GrpcSink

ROOT: Final = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def received(tmp_path: Path) -> list[ExportLogsServiceRequest]:
    """What the service of examples/collector sends, twice the same, as after a lost answer."""
    with GrpcSink() as sink:
        env = {"STATSIG_SIGNING_SECRET": SECRET, "COLLECTOR_ENDPOINT": sink.address, "WEBHOOK_ENDPOINT": "127.0.0.1:0"}
        env |= {"QUEUE_DIRECTORY": str(tmp_path / "queue")}
        with ServiceProcess(ROOT / "examples" / "collector" / "statsig-otel.yaml", env=env) as service:
            body = body_of(EVERY_FIELD)
            assert post(service.url, body, signed(body)).status == 200
        return [ExportLogsServiceRequest.FromString(one.payload) for one in sink.requests] * 2


def found(*statements: str) -> list[dict[str, Any]]:
    try:
        return sql(*statements)
    except UnavailableError as error:
        pytest.skip(f"NO REAL STORE: the example is not proven with ClickHouse: {error}")


def test_every_documented_field_is_found_by_flag_and_time(tmp_path: Path) -> None:
    expected: dict[str, Any] = next(one for one in EXPECTED if one["timeUnixNano"] == "1739400185198000000")
    where = "LogAttributes['feature_flag.key'] = 'größe_布局' AND toDate(Timestamp) = '2025-02-12'"
    table = otel_logs(received(tmp_path))
    rows = found(*table, f"SELECT * EXCEPT TimestampTime FROM otel_logs WHERE {where}")
    assert len(rows) == 2
    for row in rows:
        assert row.pop("LogAttributes") == {key: as_text(value) for key, value in expected["attributes"].items()}
        assert row == {
            "Timestamp": "2025-02-12 22:43:05.198000000",
            "SeverityText": "",
            "SeverityNumber": 9,
            "ServiceName": "statsig",
            "Body": "größe_布局 updated",
            "ResourceSchemaUrl": "",
            "ResourceAttributes": {"service.name": "statsig"},
            "ScopeSchemaUrl": CONTEXT["schemaUrl"],
            "ScopeName": "statsig_otel",
            "ScopeVersion": CONTEXT["scope"]["version"],  # type: ignore[index]
            "EventName": "statsig.config_change",
        }


@pytest.mark.parametrize("page", ["examples/clickhouse/changes.sql", "docs/backends.md"])
def test_the_shown_query_finds_each_change_once(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text()
    query = text if page.endswith(".sql") else text.partition("```sql\n")[2].partition("```")[0]
    for shown, meant in (("sample_gate", "größe_布局"), ("'checkout'", "'statsig'"), ("1 DAY", "20 YEAR")):
        query = query.replace(shown, meant)
    (row,) = found(*otel_logs(received(tmp_path)), query)
    assert row["Body"] == "größe_布局 updated"
    assert row["Timestamp"] == "2025-02-12 22:43:05.198000000"
