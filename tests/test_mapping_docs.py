"""The examples of docs/mapping.md do what stands below them, and its tables name what there is."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel import _attributes
from statsig_otel.plugin.record.description import details
from statsig_otel.plugin.record.filter import FIELDS
from statsig_otel.plugin.record.mapping import METADATA, SERVICE_FIELDS, SHORT_NAMES, TIMESTAMP
from statsig_otel.plugin.settings.services import ServiceRuleSettings
from statsig_otel.plugin.webhook.body import parse
from tests.looped import looped
from tests.plugin.record.mapping_helpers import OBSERVED, mapper_of, plain

PAGE: Final = (Path(__file__).parent.parent / "docs" / "mapping.md").read_text(encoding="utf-8")
SAMPLE: Final = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0]
EXAMPLES: Final = re.findall(r"```yaml\n(.*?)```\n\n```json\n(.*?)```", PAGE, re.DOTALL)


def table(title: str) -> Iterable[str]:
    """The names in the first column of the table below a heading."""
    section = PAGE.partition(f"# {title}\n")[2].partition("\n#")[0]
    for line in section.splitlines():
        if line.startswith("| "):
            yield from re.findall(r"`([^`]+)`", line.split("|")[1])


@looped(("keys", "expected"), EXAMPLES)
def test_an_example_makes_what_stands_below_it(keys: str, expected: str) -> None:
    """`null` is for no such attribute, or for no record; an array is for several records."""
    payload = parse(f"[{SAMPLE}]".encode())
    mapped = mapper_of(keys).map(payload, OBSERVED)
    wanted: list[dict[str, Any]] | dict[str, Any] | None = json.loads(expected)
    if wanted is None:
        assert (mapped.changes, mapped.ignored) == ((), 1)
        return
    (change,) = mapped.changes
    each = wanted if isinstance(wanted, list) else [wanted]
    assert [shown(record, one) for record, one in zip(change.records, each, strict=True)] == each


@looped("keys", [keys for keys, _ in EXAMPLES])
def test_the_body_of_an_example_has_no_gaps_where_a_change_says_little(keys: str) -> None:
    payload = parse(
        b'{"eventName": "statsig::config_change", "timestamp": 1, "metadata": {"type": "Gate", "name": "a"}}'
    )
    for change in mapper_of(keys).map(payload, OBSERVED).changes:
        body = shown(change.records[0], {"body": None})["body"]
        assert isinstance(body, str)
        assert body.split(" ") == body.split()


def shown(encoded: bytes, wanted: dict[str, Any]) -> dict[str, object]:
    """Of a record what a page shows of it."""
    (resource_logs,) = ExportLogsServiceRequest.FromString(encoded).resource_logs
    (record,) = resource_logs.scope_logs[0].log_records
    attributes = {attribute.key: plain(attribute.value) for attribute in record.attributes}
    found = {
        "event_name": record.event_name,
        "body": plain(record.body),
        "severity_number": record.severity_number,
        "severity_text": record.severity_text,
        "resource": {attribute.key: plain(attribute.value) for attribute in resource_logs.resource.attributes},
        "attributes": {name: attributes.get(name) for name in wanted.get("attributes", {})},
    }
    return {name: found[name] for name in wanted}


def test_every_yaml_is_an_example() -> None:
    assert len(EXAMPLES) == PAGE.count("```yaml") == 12


def test_the_tables_name_all_there_is() -> None:
    assert list(table("Filter")) == list(FIELDS)
    assert list(table("The default record")) == list(_attributes.ALL)
    for line in table("What the description says"):
        assert list(details(line)), line
    assert list(table("Impacted services")) == list(ServiceRuleSettings.model_fields)
    users = {"user.id", "user.name", "user.email"}
    assert set(table("Templates")) - {"{FIELD}", "{FIELD:-TEXT}", "{{", "}}"} == {
        *SHORT_NAMES, *users, *SERVICE_FIELDS, TIMESTAMP, f"{METADATA}NAME",
    }  # fmt: skip
