"""A mapping of a team's own: what is checked when it is read, and what holds for every one of them."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel import _attributes
from statsig_otel.config.errors import ConfigError
from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.filter import FIELDS, ChangeFilter
from statsig_otel.plugin.record.mapper import Mapped, Mapper
from statsig_otel.plugin.record.mapping import (
    METADATA,
    SERVICE_FIELDS,
    SHORT_NAMES,
    TIMESTAMP,
    Constant,
    Lookup,
    RecordMapping,
    Source,
    Texts,
    parse_template,
)
from statsig_otel.plugin.record.record import LogRecordEncoder, RecordFields
from statsig_otel.plugin.record.serializer import AttributeValue
from statsig_otel.plugin.record.services import (
    MAX_RECORDS,
    ImpactedServices,
    ServiceRule,
)
from statsig_otel.plugin.record.template import Template, TemplateError
from statsig_otel.plugin.settings.mapping import MappingSettings
from statsig_otel.plugin.webhook.body import parse
from statsig_otel.plugin.webhook.errors import MalformedBodyError
from tests.looped import looped
from tests.plugin.record.mapping_helpers import OBSERVED, mapper_of
from tests.plugin.strategies import config_changes

DATA: Final = Path(__file__).parents[2] / "data"
EVERY_FIELD: Final = (DATA / "records" / "every_field.input.json").read_bytes()


def mapped(mapper: Mapper, body: bytes) -> Mapped:
    payload = parse(body)
    return mapper.map(payload, OBSERVED)


def record_in(encoded: bytes) -> LogRecord:
    (record,) = ExportLogsServiceRequest.FromString(encoded).resource_logs[0].scope_logs[0].log_records
    return record


def uids_in(record: LogRecord) -> list[str]:
    return [attribute.value.string_value for attribute in record.attributes if attribute.key == _attributes.UID]


def bodies() -> Mapping[str, bytes]:
    """All config changes in tests/data."""
    found = {path.name.partition(".")[0]: path.read_bytes() for path in (DATA / "records").glob("*.input.json")}
    samples = json.loads((DATA / "config_changes.json").read_text())["events"]
    return found | {sample["id"]: json.dumps([sample["event"]]).encode() for sample in samples}


DIGESTS: Final = json.loads((DATA / "record_digests.json").read_text())


@pytest.mark.parametrize("keys", ["user: full\n", "filter:\nmapping:\n"])
def test_without_a_mapping_a_record_is_byte_for_byte_what_it_was(keys: str) -> None:
    """The bytes of the record within the message. Around it there is the version."""
    found: dict[str, list[str]] = {}
    for name, body in bodies().items():
        for change in mapped(mapper_of(keys), body).changes:
            record = record_in(change.records[0]).SerializeToString()
            assert record in change.records[0]
            found.setdefault(name, []).append(sha256(record).hexdigest())
    assert found == DIGESTS


@looped("name", bodies())
def test_a_mapping_that_says_nothing_changes_nothing(name: str) -> None:
    body = bodies()[name]
    assert mapped(Mapper(LogRecordEncoder(mapping=RecordMapping())), body) == mapped(Mapper(), body)


def test_the_attributes_are_those_of_the_record() -> None:
    mapper = Mapper(LogRecordEncoder(include_original=True, include_change_details=True))
    details = b"Groups updated: a", b"Parameters added: a", b"Updated rule a rollout from 1% to 2%"
    told = [EVERY_FIELD.replace(b"Archived Config", text) for text in details]
    of_service = Mapper(services=ImpactedServices([ServiceRule(Constant("a"))]))
    records = [record_in(mapped(mapper, body).changes[0].records[0]) for body in (*told, bodies()["one_environment"])]
    records.append(record_in(mapped(of_service, EVERY_FIELD).changes[0].records[0]))
    small = Mapper(LogRecordEncoder(include_original=True, max_record_bytes=len(EVERY_FIELD) + 1000))
    records.append(record_in(mapped(small, EVERY_FIELD).changes[0].records[0]))
    names = {attribute.key for record in records for attribute in record.attributes}
    assert names == set(_attributes.ALL) - _attributes.FROM_LOG
    assert set(SHORT_NAMES.values()) <= set(_attributes.ALL)
    assert not set(SERVICE_FIELDS) & set(_attributes.ALL)


def test_a_field_that_there_is() -> None:
    for name in [*SHORT_NAMES, *_attributes.ALL, *SERVICE_FIELDS, TIMESTAMP, f"{METADATA}x", f"{METADATA}a b.c"]:
        assert list(parse_template(f"-{{{name}}}").names) == [name]


@looped(
    ("text", "hint"),
    [
        ("{nmae}", "did you mean name?"),
        ("{Name}", "did you mean name?"),
        ("{ name }", "did you mean name?"),
        ("{name!r}", "did you mean name?"),
        ("{metadata}", "did you mean metadata.NAME?"),
        ("{metadata.}", "did you mean metadata.NAME?"),
        ("{project_id}", "did you mean project.id?"),
        ("{__class__}", "there are: action, change_event.category, "),
        ("", "leave the key out"),
    ],
)
def test_a_field_that_there_is_not(text: str, hint: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse_template(text)
    assert f"\nhint: {hint}" in str(caught.value)


@looped(
    ("arguments", "message"),
    [
        ({"attributes": {_attributes.UID: Constant("x")}}, f"{_attributes.UID} can't be changed"),
        ({"attributes": {"": Constant("x")}}, "an attribute needs a name"),
        ({"rename": {"user.name": _attributes.UID}}, f"{_attributes.UID} can't be changed"),
        ({"rename": {_attributes.UID: "id"}}, f"{_attributes.UID} can't be changed"),
        ({"rename": {"user.name": ""}}, "an attribute needs a name"),
        ({"rename": {"user.nick": "x"}}, "no record has the attribute user.nick\nhint: did you mean user."),
        ({"drop": [_attributes.UID]}, f"{_attributes.UID} can't be changed"),
        ({"drop": ["user_*"]}, "no record has the attribute user_"),
        ({"drop": ["user.*"], "rename": {"user.id": "x"}}, "user.id is both dropped and renamed"),
        ({"rename": {"user.id": "user.name"}}, "a record would have user.name twice\nhint: drop or rename"),
        ({"rename": {"user.id": "x", "user.name": "x"}}, "a record would have x twice"),
        ({"rename": {"user.id": "x"}, "attributes": {"x": Constant(1)}}, "a record would have x twice"),
    ],
)
def test_a_mapping_that_can_not_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        RecordMapping(**arguments)


def test_names_can_be_exchanged() -> None:
    swap = RecordMapping(rename={"user.id": "user.name", "user.name": "user.id"})
    (change,) = mapped(Mapper(LogRecordEncoder(mapping=swap)), EVERY_FIELD).changes
    texts = {a.key: a.value.string_value for a in record_in(change.records[0]).attributes}
    assert (texts["user.id"], texts["user.name"]) == ("Test User", "user_1")


def test_an_integer_that_otlp_cannot_hold_is_a_text() -> None:
    """In code it is refused."""
    (change,) = mapped(mapper_of(f"mapping: {{attributes: {{x: {2**63}, y: [{2**63}]}}}}"), EVERY_FIELD).changes
    (x, y) = record_in(change.records[0]).attributes[-2:]
    assert x.value.string_value == y.value.array_value.values[0].string_value == str(2**63)
    for value in (2**63, [-(2**63) - 1]):
        with pytest.raises(ConfigError, match="64 bits"):
            MappingSettings.model_validate({"attributes": {"x": value}})


def test_every_mistake_is_told_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        mapper_of('mapping:\n  body: "{nam}"\n  attributes:\n    a: "{"\n    b: ["{name}", "{typ}"]\n')
    assert [(problem.path, problem.line) for problem in caught.value.problems] == [
        (("mapping", "body"), 2),
        (("mapping", "attributes", "a"), 4),
        (("mapping", "attributes", "b", 1), 5),
    ]


NAMES: Final = (
    *SHORT_NAMES, *_attributes.ALL, *SERVICE_FIELDS, TIMESTAMP,
    *(f"{METADATA}{name}" for name in ("name", "description", "environments", "tags", "targetApps", "x")),
)  # fmt: skip
PIECES: Final = st.sampled_from(("text ", "{{", "}}", "é")) | st.sampled_from(NAMES).flatmap(
    lambda name: st.sampled_from((f"{{{name}}}", f"{{{name}:-none}}", f"{{{name}:-}}", f"{{{name}:-{{tags}}}}"))
)
TEMPLATES: Final = st.lists(PIECES, min_size=1, max_size=4).map("".join).map(parse_template)
CONSTANTS: Final = st.builds(
    Constant,
    st.text() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.lists(st.text(), min_size=1),
)
SOURCES: Final[st.SearchStrategy[Source]] = st.one_of(
    TEMPLATES,
    CONSTANTS,
    st.builds(Texts, st.lists(TEMPLATES, min_size=1, max_size=3).map(tuple)),
    st.builds(
        Lookup,
        TEMPLATES,
        st.dictionaries(st.sampled_from(("Gate", "layout_v2", "true", "production", "")), TEMPLATES | CONSTANTS),
        st.none() | TEMPLATES | CONSTANTS,
        st.booleans(),
    ),
)
OTHERS: Final = [name for name in _attributes.ALL if name != _attributes.UID]


@st.composite
def mappings(draw: st.DrawFn) -> RecordMapping:
    """Any mapping that passes the checks."""
    attributes = draw(st.dictionaries(st.sampled_from(("a", "b", *OTHERS)), SOURCES, max_size=4))
    drop = draw(st.lists(st.sampled_from(("*", "user.*", *OTHERS)), max_size=3))
    rename = draw(st.dictionaries(st.sampled_from(OTHERS), st.sampled_from(("x", "y", *OTHERS)), max_size=2))
    event_name, body = draw(st.none() | TEMPLATES), draw(st.none() | TEMPLATES)
    severity = draw(st.none() | SOURCES), draw(st.none() | SOURCES)
    try:
        return RecordMapping(event_name, body, attributes, rename, drop, *severity)
    except ValueError:
        return RecordMapping(event_name, body, attributes, {}, drop, *severity)


BLOCKS: Final = st.dictionaries(
    st.sampled_from(sorted(FIELDS)),
    st.lists(st.sampled_from(("*", "gate", "layout_*", "production", "", "?*")), min_size=1, max_size=2),
    min_size=1,
    max_size=2,
)
FILTERS: Final = st.builds(ChangeFilter, include=st.lists(BLOCKS, max_size=2), exclude=st.lists(BLOCKS, max_size=1))


RULES: Final = st.builds(
    ServiceRule, SOURCES, st.none() | TEMPLATES, st.lists(BLOCKS | st.just({"names": ["*"]}), max_size=2)
)
SERVICES: Final = st.builds(ImpactedServices, st.lists(RULES, min_size=1, max_size=3), split=st.booleans())


@pytest.mark.parametrize("tags", [b"", b', "tags": ["core"]'])
@pytest.mark.parametrize(
    "written",
    [
        "'{tags:-none}'",
        "{lookup: '{tags:-none}', table: {core: platform, none: nobody}}",
        "{lookup: '{tags}', table: {core: platform}, default: nobody}",
    ],
)
def test_what_is_made_of_an_array_is_an_array_in_each_record(written: str, tags: bytes) -> None:
    change = b'{"eventName": "statsig::config_change", "timestamp": 1, "metadata": {"type": "Gate", "name": "a"%s}}'
    mapper = mapper_of(f"mapping: {{attributes: {{made: {written}}}}}")
    record = record_in(mapped(mapper, change % tags).changes[0].records[0])
    (value,) = [attribute.value for attribute in record.attributes if attribute.key == "made"]
    assert value.WhichOneof("value") == "array_value"


@pytest.mark.parametrize("action", [b"created", b"updated", b"deleted"])
def test_of_whole_numbers_and_fractions_all_are_fractions(action: bytes) -> None:
    table = "{lookup: '{action}', table: {created: 1, updated: 2.5}, default: 0}"
    body = EVERY_FIELD.replace(b'"archived"', b'"%s"' % action)
    assert body != EVERY_FIELD
    record = record_in(mapped(mapper_of(f"mapping: {{attributes: {{made: {table}}}}}"), body).changes[0].records[0])
    (value,) = [attribute.value for attribute in record.attributes if attribute.key == "made"]
    assert value.WhichOneof("value") == "double_value"


def test_in_a_text_the_default_of_an_array_is_a_text() -> None:
    assert parse_template("{tags:-none}").text(lambda _: None) == "none"


def test_each_value_is_made_once_however_long_the_array_is() -> None:
    asked: list[str] = []

    def fields(name: str) -> AttributeValue:
        asked.append(name)
        return [f"tag {number}" for number in range(100)] if name == "tags" else "text"

    table: dict[str, Template | Constant] = {"tag 1": parse_template("{name}"), "tag 2": Constant("two")}
    lookup = Lookup(parse_template("{tags}"), table, parse_template("<{description}>"))
    assert lookup.value(fields) == ("<text>", "text", "two")
    assert asked == ["tags", "description", "name"]


@given(mappings(), FILTERS, st.none() | SERVICES, config_changes(hostile=True))
def test_a_mapping_never_raises_changes_a_uid_or_loses_an_event(
    mapping: RecordMapping, change_filter: ChangeFilter, services: ImpactedServices | None, item: str
) -> None:
    body = f"[{item}]".encode()
    default = mapped(Mapper(), body)
    encoder = LogRecordEncoder(mapping=mapping, include_change_details=True)
    ours = mapped(Mapper(encoder, change_filter, services), body)
    assert ours.invalid == default.invalid
    kept = [change for change in default.changes if change_filter.why_dropped(event_of(body)) is None]
    assert [change.uid for change in ours.changes] == [change.uid for change in kept]
    assert ours.ignored == default.ignored + len(default.changes) - len(kept)
    for change, before in zip(ours.changes, kept, strict=True):
        uids = [uid for encoded in change.records for uid in uids_in(record_in(encoded))]
        assert 1 <= len(uids) == len(set(uids)) == len(change.records) <= MAX_RECORDS
        if services is None:
            assert uids == [change.uid]
        check_records(change.records, before.records[0], mapping)


def check_records(records: tuple[bytes, ...], before: bytes, mapping: RecordMapping) -> None:
    was = record_in(before)
    for record in map(record_in, records):
        names = [attribute.key for attribute in record.attributes]
        assert len(names) == len(set(names))
        assert record.body.string_value
        assert record.event_name
        assert record.time_unix_nano == was.time_unix_nano
        assert record.severity_number == was.severity_number or (
            mapping.severity_number and 1 <= record.severity_number <= 24
        )
        for attribute in record.attributes:
            assert attribute.value.WhichOneof("value")
            kinds = {element.WhichOneof("value") for element in attribute.value.array_value.values}
            assert len(kinds) <= 1


@given(SERVICES, config_changes(hostile=True))
def test_services_are_told_by_resource_and_list_alike(services: ImpactedServices, item: str) -> None:
    """A change keeps its uid where its record is about no service alone, and is named where it is."""
    for change in mapped(Mapper(services=services), f"[{item}]".encode()).changes:
        for encoded in change.records:
            (resource_logs,) = ExportLogsServiceRequest.FromString(encoded).resource_logs
            resource = {one.key: one.value.string_value for one in resource_logs.resource.attributes}
            record = {one.key: one.value for one in record_in(encoded).attributes}
            listed = (
                [one.string_value for one in record[_attributes.IMPACTED_SERVICES].array_value.values]
                if (_attributes.IMPACTED_SERVICES in record)
                else []
            )
            if _attributes.CHANGE_UID in record:
                assert record[_attributes.CHANGE_UID].string_value == change.uid != record[_attributes.UID].string_value
                named = [resource[name] for name in reversed(SERVICE_FIELDS) if name in resource]
                assert listed == ["/".join(named)]
                assert resource["service.name"].strip()
            else:
                assert record[_attributes.UID].string_value == change.uid
                assert resource == {"service.name": "statsig"}
                assert len(listed) == len(set(listed)) or "/" in "".join(listed)


def test_metadata_close_to_the_limit_of_nesting() -> None:
    """What is too deep for a text of its own is left out; the record is delivered as without the mapping."""
    mapper = mapper_of('mapping: {attributes: {x: "{metadata.x}"}}')
    for depth in (100, 900, *range(940, 1000)):
        deep = "[" * depth + "]" * depth
        item = '{"eventName":"statsig::config_change","timestamp":1,"metadata":{"type":"T","name":"n","x":%s}}'
        try:
            payload = parse(f"[{item % deep}]".encode())
        except MalformedBodyError as error:
            assert error.reason == "nested_too_deeply"  # noqa: PT017 - one of two ways
            continue
        ours, default = mapper.map(payload, OBSERVED), Mapper().map(payload, OBSERVED)
        assert ours.invalid == default.invalid
        assert [change.uid for change in ours.changes] == [change.uid for change in default.changes]


class Wrong:
    """A hook that forgets its `return`."""

    def apply(self, record: RecordFields, event: object, item: object) -> Any:
        """Change nothing."""


def test_a_hook_that_answers_with_something_else_is_named() -> None:
    mapper = Mapper(LogRecordEncoder(mapping=Wrong()))
    with pytest.raises(TypeError, match=r"^the answer of Wrong\.apply must be a RecordFields, not None$"):
        mapped(mapper, EVERY_FIELD)


def event_of(body: bytes) -> ChangeEvent:
    payload = parse(body)
    value = payload.changes[0].value
    assert isinstance(value, dict)
    return ChangeEvent.from_item(value)
