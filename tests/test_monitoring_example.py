"""examples/monitoring: the alerts fire, and each query asks for metrics and attributes that there are."""

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from ruamel.yaml import YAML

from statsig_otel._instruments import METRICS
from statsig_otel._telemetry import EXPORTER_STATES, OUTCOMES
from statsig_otel.plugin.receiver.counting import STATUS_OF
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.webhook.body import parse
from tests.test_troubleshooting import anchors

ROOT: Final = Path(__file__).parents[1]
EXAMPLE: Final = ROOT / "examples" / "monitoring"
RULES: Final[list[dict[str, Any]]] = YAML(typ="safe").load(EXAMPLE / "alerts.yaml")["groups"][0]["rules"]
TESTS: Final[list[dict[str, Any]]] = YAML(typ="safe").load(EXAMPLE / "alerts_test.yaml")["tests"]
DASHBOARDS: Final[dict[str, dict[str, Any]]] = {
    path.stem: json.loads(path.read_text()) for path in sorted(EXAMPLE.glob("*.json"))
}
SCRAPED: Final = {"job", "instance"}
"""The labels that Prometheus adds."""

VALUES: Final = {"status": ["200", "401", "503"], "state": EXPORTER_STATES, "outcome": OUTCOMES, "reason": [*STATUS_OF]}
"""The values of labels that are known beforehand."""

SERIES: Final = {
    name: set(metric.attributes) | SCRAPED | ({"le"} if name.endswith("_bucket") else set())
    for metric in METRICS.values()
    for name in (
        [f"{metric.prometheus_name}{suffix}" for suffix in ("_bucket", "_sum", "_count")]
        if metric.kind == "histogram"
        else [metric.prometheus_name]
    )
}
"""The labels of each series that Prometheus has, by its name."""


def promtool(*arguments: str | Path) -> str:
    """What promtool says, once it has found nothing wrong."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("NOT PROVEN HERE: running the alerts needs promtool, of Debian's package prometheus")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queries() -> Iterator[tuple[str, str]]:
    """Each query of Prometheus, and what else of it names its labels."""
    for rule in RULES:
        yield rule["expr"], " ".join(rule["annotations"].values())
    for panel in DASHBOARDS["service"]["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"], target["legendFormat"]


@pytest.mark.slow
def test_each_alert_fires_and_does_not_fire() -> None:
    promtool("check", "rules", EXAMPLE / "alerts.yaml")
    promtool("test", "rules", EXAMPLE / "alerts_test.yaml")


def test_each_alert_is_tested_both_ways() -> None:
    tested = [one for test in TESTS for one in test["alert_rule_test"]]
    for rule in RULES:
        expected = [bool(one["exp_alerts"]) for one in tested if one["alertname"] == rule["alert"]]
        assert {True, False} == set(expected), rule["alert"]


def test_each_query_names_series_and_labels_that_there_are() -> None:
    for query, text in queries():
        bare = re.sub(r'"[^"]*"', '""', query)
        names = set(re.findall(r"\b(?:statsig_otel|otelcol)_\w+", bare))
        assert names, query
        assert names <= SERIES.keys(), query
        known = set.union(*(SERIES[name] for name in names))
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", bare))
        for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", bare):
            used |= set(re.findall(r"\w+", group))
        used |= set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text))
        assert used <= known, query


def test_each_query_names_values_that_there_are() -> None:
    for query, _ in queries():
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"$]*)"', query):
            for one in value.split("|"):
                pattern = one if "~" in operator else re.escape(one)
                assert any(re.fullmatch(pattern, known) for known in VALUES[label]), query


def test_the_dashboard_shows_each_metric() -> None:
    shown = " ".join(query for query, _ in queries())
    for metric in METRICS.values():
        assert re.search(rf"\b{metric.prometheus_name}(_bucket|_sum)?\b", shown), metric.name


def test_prometheus_understands_each_query_and_finds_something(tmp_path: Path) -> None:
    """With a series for each metric and each value of its labels that is known."""
    series = []
    for name, labels in SERIES.items():
        values = [[(label, value) for value in VALUES.get(label, ["1"])] for label in sorted(labels)]
        for chosen in itertools.product(*values):
            written = ",".join(f'{label}="{value}"' for label, value in chosen)
            grows = name.endswith(("_total", "_bucket", "_sum", "_count"))
            series.append({"series": f"{name}{{{written}}}", "values": "0+1x60" if grows else "1x60"})
    asked = [
        query.replace("$__rate_interval", "5m").replace("$job", ".+")
        for panel in DASHBOARDS["service"]["panels"]
        for query in (target["expr"] for target in panel.get("targets", ()))
    ]
    expected = [{"labels": "{}", "value": 1}]
    tests = [{"expr": f"count({one}) > bool 0", "eval_time": "30m", "exp_samples": expected} for one in asked]
    told = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}]}
    (tmp_path / "queries.yaml").write_text(json.dumps(told))
    promtool("test", "rules", tmp_path / "queries.yaml")
    assert len(asked) > 30


def test_each_panel_has_a_place_and_an_id_of_its_own() -> None:
    for name, dashboard in DASHBOARDS.items():
        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels), name
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
            cells = set(itertools.product(columns, rows))
            assert max(columns) < 24, (name, panel["title"])
            assert not cells & taken, (name, panel["title"])
            taken |= cells
    uids = {dashboard["uid"] for dashboard in DASHBOARDS.values()}
    assert len(uids) == len(DASHBOARDS) == 4


def test_no_dashboard_knows_a_data_source_of_its_own() -> None:
    """Each asks for it, since its uid is another one in every Grafana."""
    for dashboard in DASHBOARDS.values():
        variables = [one for one in dashboard["templating"]["list"] if one["type"] == "datasource"]
        assert [one["name"] for one in variables] == ["datasource"]
        own = {"type": variables[0]["query"], "uid": "${datasource}"}
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        parts = [*dashboard["annotations"]["list"], *panels, *(one for panel in panels for one in panel["targets"])]
        for part in parts:
            assert part["datasource"] in (own, {"type": "datasource", "uid": "grafana"})


def emitted() -> tuple[set[str], set[str], set[str]]:
    """The EventNames of records, the names of their attributes, and of their resources'."""
    event_names: set[str] = set()
    attributes: set[str] = set()
    resource: set[str] = set()
    for name in ("every_field", "one_environment"):
        body = (ROOT / "tests" / "data" / "records" / f"{name}.input.json").read_bytes()
        for change in Mapper().map(parse(body), 1).changes:
            message = ExportLogsServiceRequest.FromString(change.records[0])
            for of_resource in message.resource_logs:
                resource |= {one.key for one in of_resource.resource.attributes}
                for record in of_resource.scope_logs[0].log_records:
                    event_names.add(record.event_name)
                    attributes |= {one.key for one in record.attributes}
    return event_names, attributes, resource


def shown_of(store: str) -> list[str]:
    """The queries of a dashboard of changes, and what else names fields."""
    dashboard = DASHBOARDS[f"changes_{store}"]
    (annotation,) = dashboard["annotations"]["list"]
    (listed,) = (panel for panel in dashboard["panels"] if panel["title"] == "Config changes")
    asked = [annotation["target"], *listed["targets"]]
    return [*(one.get("expr") or one["rawSql"] for one in asked), *map(str, annotation.values())]


def test_the_queries_of_changes_name_what_records_have() -> None:
    (event_name,), attributes, resource = emitted()
    for store in ("loki", "victorialogs", "clickhouse"):
        for query in shown_of(store)[:2]:
            assert event_name in query
    in_loki = {re.sub(r"\W", "_", name) for name in attributes | resource} | {"event_name"}
    loki = " ".join(shown_of("loki"))
    used = set(re.findall(r"\{\{\.?(\w+)\}\}", loki)) | set(re.findall(r"(\w+)(?:=~|=)\"", loki))
    used |= set(DASHBOARDS["changes_loki"]["annotations"]["list"][0]["tagKeys"].split(","))
    assert len(used) >= 6
    assert used <= in_loki
    victoria = " ".join(shown_of("victorialogs"))
    used = set(re.findall(r"<([\w.]+)>", victoria)) | set(re.findall(r"([\w.]+)\"?:[~=]", victoria))
    assert len(used) >= 6
    assert used <= attributes | resource | {"event_name"}
    clickhouse = " ".join(shown_of("clickhouse"))
    used = set(re.findall(r"LogAttributes\['([^']+)'\]", clickhouse))
    assert len(used) >= 6
    assert used <= attributes
    # The columns that the Collector's clickhouse exporter makes.
    columns = set(
        re.findall(r"\b(?:Timestamp|EventName|ServiceName|Body|LogAttributes|ResourceAttributes)\b", clickhouse)
    )
    assert columns == {"Timestamp", "EventName", "ServiceName", "LogAttributes"}


def test_each_alert_leads_to_a_section_that_says_what_to_do() -> None:
    for rule in RULES:
        page, _, anchor = rule["annotations"]["page"].partition("#")
        assert anchor in anchors((ROOT / page).read_text()), rule["alert"]


def test_the_readme_names_each_file_and_each_alert() -> None:
    readme = (EXAMPLE / "README.md").read_text()
    for path in EXAMPLE.iterdir():
        assert path.name == "README.md" or f"[{path.name}]({path.name})" in readme
    for rule in RULES:
        assert f"`{rule['alert']}`" in readme
