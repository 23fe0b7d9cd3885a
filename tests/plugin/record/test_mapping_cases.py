"""Each case in mapping_cases/: a webhook's body, a receiver's keys, and the records that come out as OTLP/JSON.

A record is shown with its resource. Where a change has several, they stand in the order in which they are sent.
"""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters.json_lines import to_json_line
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.webhook.body import parse
from tests.plugin.record.mapping_helpers import OBSERVED, mapper_of

CASES: Final = Path(__file__).parent / "mapping_cases"
NAMES: Final = sorted(path.stem for path in CASES.glob("*.yaml"))


def records(body: bytes, mapper: Mapper) -> dict[str, Any]:
    """The log records of a body, with what no record was made of. Each bears the uid of its change."""
    payload = parse(body)
    mapped = mapper.map(payload, OBSERVED)
    assert len(mapped.changes) + len(mapped.invalid) + mapped.ignored == payload.count
    found = []
    for change in mapped.changes:
        assert change.records
        for encoded in change.records:
            whole = json.loads(to_json_line(ExportLogsServiceRequest.FromString(encoded)))
            (resource_logs,) = whole["resourceLogs"]
            (record,) = resource_logs["scopeLogs"][0]["logRecords"]
            uid = {"key": "log.record.uid", "value": {"stringValue": change.uid}}
            assert (uid in record["attributes"]) is (len(change.records) == 1 and not of_one_service(record))
            found.append({"resource": resource_logs["resource"], **record})
    return {"ignored": mapped.ignored, "invalid": len(mapped.invalid), "logRecords": found}


def of_one_service(record: dict[str, Any]) -> bool:
    """Whether a record was split off its change."""
    return any(attribute["key"] == "statsig.config_change.uid" for attribute in record["attributes"])


@pytest.mark.parametrize("name", NAMES)
def test_makes_exactly_these_records(name: str, update_golden: bool) -> None:
    """`pytest --update-golden` writes them anew: then read the difference."""
    made = records((CASES / f"{name}.input.json").read_bytes(), mapper_of((CASES / f"{name}.yaml").read_text()))
    expected = CASES / f"{name}.record.json"
    if update_golden:
        expected.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    assert made == json.loads(expected.read_text())


def test_every_case_is_complete() -> None:
    for kind in ("input", "record"):
        assert sorted(path.name.removesuffix(f".{kind}.json") for path in CASES.glob(f"*.{kind}.json")) == NAMES
