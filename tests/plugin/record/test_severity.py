"""The severity of a record: INFO, or what the mapping says."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.config.errors import ConfigError
from statsig_otel.plugin.record.mapping import Constant, Lookup, parse_template
from statsig_otel.plugin.record.serializer import AttributeValue
from statsig_otel.plugin.record.template import Template
from statsig_otel.plugin.webhook.body import parse
from tests.looped import looped
from tests.plugin.record.mapping_helpers import OBSERVED, mapper_of
from tests.plugin.record.record_helpers import record_in
from tests.plugin.record.test_arrays import body_of

BY_ENVIRONMENT = (
    'severity_number: {lookup: "{environments}", table: {production: 17, staging: 13}, default: 5, first_match: true}'
)


def severity(mapping: str, **metadata: object) -> tuple[int, str]:
    (change,) = mapper_of(f"mapping:\n  {mapping}").map(parse(body_of(**metadata)), OBSERVED).changes
    record = record_in(change.records[0])
    return record.severity_number, record.severity_text


@looped(
    ("mapping", "metadata", "expected"),
    [
        ("body: x", {}, (9, "")),
        ("severity_number: 13", {}, (13, "")),
        ('severity_number: "{metadata.risk}"', {"risk": 24}, (24, "")),
        ('severity_number: "{metadata.risk}"', {"risk": "1"}, (1, "")),
        ('severity_number: "1{metadata.risk}"', {"risk": 7}, (17, "")),
        ('severity_number: "{metadata.risk:-{metadata.other}}"', {"other": 2}, (2, "")),
        ("severity_number: {lookup: '{action}', table: {deleted: 17}}", {"action": "deleted"}, (17, "")),
        ("severity_number: {lookup: '{action}', table: {deleted: 17}}", {"action": "created"}, (9, "")),
        ("severity_number: {lookup: '{action}', table: {a: '{metadata.n}'}}", {"action": "a", "n": 10}, (10, "")),
        (BY_ENVIRONMENT, {"environments": "development,staging,production"}, (17, "")),
        (BY_ENVIRONMENT, {"environments": "staging,development"}, (13, "")),
        (BY_ENVIRONMENT, {"environments": "development"}, (5, "")),
        (BY_ENVIRONMENT, {}, (5, "")),
        ('severity_text: "{action}"', {"action": "updated"}, (9, "updated")),
        ('severity_text: "{action}"', {}, (9, "")),
        ('severity_text: "{tags}"', {"tags": ["a", "b"]}, (9, "a, b")),
        ("severity_text: {lookup: '{action}', table: {deleted: WARN}, default: INFO}", {}, (9, "INFO")),
    ],
)
def test_the_severity_of_a_record(mapping: str, metadata: dict[str, object], expected: tuple[int, str]) -> None:
    assert severity(mapping, **metadata) == expected


@looped(
    ("written", "said"),
    [
        ("0", "is not a SeverityNumber"),
        ("25", "is not a SeverityNumber"),
        ("true", "is not a SeverityNumber"),
        ("9.0", "is not a SeverityNumber"),
        ("WARN", "13 WARN, 17 ERROR"),
        ('"13"', "is not a SeverityNumber"),
        ('"{tags}"', "is an array"),
        ('"{tags:-{metadata.risk}}"', "is an array"),
        ('{lookup: "{action}", table: {a: 99}}', "is not a SeverityNumber"),
        ('{lookup: "{action}", table: {a: 9}, default: 0}', "is not a SeverityNumber"),
        ('{lookup: "{tags}", table: {a: 9}}', "use a lookup with first_match: true"),
        ('{lookup: "{tags}", table: {a: "{environments}"}, first_match: true}', "is an array"),
        ('"{log.record.original}"', "set include_original: true"),
        ('"{name:-{service.name}}"', "without impacted_services"),
    ],
)
def test_what_can_never_be_a_severity_is_an_error(written: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        mapper_of(f"mapping: {{severity_number: {written}}}")
    assert "mapping::severity_number" in str(raised.value)
    assert said in str(raised.value)


@looped("risk", [0, 25, -1, 1.0, True, "WARN", "", "013", "\uff11", [13, 14], {}, None, 10**30])
def test_what_is_not_a_severity_is_info(risk: object) -> None:
    assert severity('severity_number: "{metadata.risk}"', risk=risk) == (9, "")


@given(st.one_of(st.integers(-3, 30), st.text(max_size=3), st.none(), st.lists(st.integers(1, 24), max_size=2)))
def test_whatever_statsig_sends_there_the_severity_is_one(risk: object) -> None:
    number, _ = severity('severity_number: "{metadata.risk}"', risk=risk)
    valid = (isinstance(risk, int) and 1 <= risk <= 24) or (isinstance(risk, list) and len(risk) == 1)
    text = isinstance(risk, str) and risk in map(str, range(1, 25))
    assert number == (int(str(risk).strip("[]")) if valid or text else 9)


FIELDS: Final[dict[str, AttributeValue]] = {"tags": ("b", "c", "a"), "name": "b", "timestamp": 7}


@looped(
    ("key", "table", "expected"),
    [
        ("{tags}", {"a": 1, "b": 2}, 1),  # the table's order counts
        ("{tags}", {"x": 1, "c": 2}, 2),
        ("{tags}", {"x": 1}, 0),
        ("{name}", {"a": 1, "b": 2}, 2),
        ("{timestamp}", {"7": 1}, 1),
        ("{tags} {name}", {"b, c, a b": 1}, 1),
        ("{environments}", {"a": 1}, 0),
    ],
)
def test_a_lookup_can_give_the_first_match(key: str, table: dict[str, int], expected: int) -> None:
    constants = {name: Constant(value) for name, value in table.items()}
    lookup = Lookup(parse_template(key), constants, Constant(0), first_match=True)
    assert lookup.value(FIELDS.get) == expected


def test_a_first_match_that_gives_nothing_is_passed_over() -> None:
    table: dict[str, Template | Constant] = {"c": parse_template("{action}"), "a": Constant("found")}
    assert Lookup(parse_template("{tags}"), table, first_match=True).value(FIELDS.get) == "found"
    assert Lookup(parse_template("{tags}"), {"x": Constant(1)}, first_match=True).value(FIELDS.get) is None


def test_a_default_has_the_type_of_its_field() -> None:
    """An attribute has one type in all records."""
    for text, expected in {
        "{environments:-{name}}": ("b",),
        "{environments:-{tags}}": ("b", "c", "a"),
        "{environments:-{timestamp}}": ("7",),
        "{description:-{tags}}": "b, c, a",
        "{description:-{timestamp}}": 7,
        "{metadata.x:-{tags}}": ("b", "c", "a"),
        "{metadata.x:-{timestamp}}": 7,
        "{environments:-{action:-{name}}}": ("b",),
    }.items():
        assert parse_template(text).value(FIELDS.get) == expected, text
