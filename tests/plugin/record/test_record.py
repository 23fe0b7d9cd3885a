"""The encoded record, read back with the official protobuf classes and compared with the SDK's encoder."""

import json
from collections.abc import Mapping
from typing import Any, Final, get_args

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.semconv._incubating.attributes import (
    deployment_attributes,
    feature_flag_attributes,
    log_attributes,
    service_attributes,
    user_attributes,
)
from opentelemetry.semconv.schemas import Schemas

from statsig_otel import __version__
from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.record import (
    DEFAULT_RESOURCE,
    EVENT_NAME,
    SCHEMA_URL,
    SCOPE_NAME,
    LogRecordEncoder,
    UserMode,
    uid,
)
from statsig_otel.plugin.webhook.body import parse
from tests.looped import looped
from tests.plugin.record.record_helpers import (
    DATA,
    FULL,
    OBSERVED,
    SAMPLES,
    UID,
    attributes_in,
    attributes_of,
    encode,
    plain,
    record_in,
    rfc3339,
    table,
)

GOLDEN: Final = DATA / "records"


def test_every_field() -> None:
    """The record's table, literally."""
    assert attributes_of(FULL) == {
        "change_event.category": "feature_flags",
        "change_event.type": "dynamic_config_updated",
        "change_event.source": "statsig",
        "change_event.happened_at": "2025-02-12T22:43:05.198Z",
        "change_event.title": "layout_v2 updated",
        "change_event.label.type": "Dynamic Config",
        "change_event.label.name": "layout_v2",
        "change_event.label.action": "updated",
        "change_event.label.description": "- Updated rule\n    - 10 to 50",
        "feature_flag.key": "layout_v2",
        "feature_flag.provider.name": "statsig",
        "feature_flag.set.id": "project_1",
        "deployment.environment.name": "production",
        "user.name": "Test User",
        "user.email": "test.user@example.com",
        "user.id": "user_1",
        "log.record.uid": UID,
        "statsig.environments": ["production"],
        "statsig.project.name": "Web",
        "statsig.project.id": "project_1",
        "statsig.tags": ["core", '{"id":1}'],
        "statsig.target_apps": ["app"],
    }


def test_only_what_is_required() -> None:
    assert attributes_of(ChangeEvent(happened_at=1, entity_type="Gate", name="g")) == {
        "change_event.category": "feature_flags",
        "change_event.type": "gate_changed",
        "change_event.source": "statsig",
        "change_event.happened_at": "1970-01-01T00:00:00.001Z",
        "change_event.title": "g changed",
        "change_event.label.type": "Gate",
        "change_event.label.name": "g",
        "feature_flag.key": "g",
        "feature_flag.provider.name": "statsig",
        "log.record.uid": UID,
    }


@pytest.mark.parametrize("item", SAMPLES, ids=["gate", "experiment", "gate_2022"])
def test_a_sample_is_the_table_and_nothing_else(item: dict[str, Any]) -> None:
    event = ChangeEvent.from_item(item)
    request = ExportLogsServiceRequest.FromString(encode(event))
    (resource_logs,) = request.resource_logs
    (scope_logs,) = resource_logs.scope_logs
    (record,) = scope_logs.log_records
    assert set_fields(resource_logs) == {"resource", "scope_logs"}
    assert set_fields(resource_logs.resource) == {"attributes"}
    assert attributes_in(resource_logs.resource.attributes) == {"service.name": "statsig"}
    assert set_fields(scope_logs) == {"scope", "log_records", "schema_url"}
    assert scope_logs.schema_url == SCHEMA_URL
    assert set_fields(scope_logs.scope) == {"name", "version"}
    assert (scope_logs.scope.name, scope_logs.scope.version) == ("statsig_otel", __version__)
    assert set_fields(record) == {
        *("time_unix_nano", "observed_time_unix_nano", "severity_number", "body", "attributes", "event_name")
    }
    assert record.event_name == "statsig.config_change"
    assert record.time_unix_nano == int(item["timestamp"]) * 1_000_000
    assert record.observed_time_unix_nano == OBSERVED
    assert record.severity_number == 9
    assert plain(record.body) == event.title
    assert attributes_in(record.attributes) == table(event)


@pytest.mark.parametrize(
    ("environments", "only"), [((), None), (("production",), "production"), (("production", "staging"), None)]
)
def test_the_environment_is_named_where_there_is_exactly_one(environments: tuple[str, ...], only: str | None) -> None:
    event = ChangeEvent(happened_at=1, entity_type="Gate", name="g", environments=environments)
    attributes = attributes_of(event)
    assert attributes.get("deployment.environment.name") == only
    assert attributes.get("statsig.environments", []) == list(environments)


@looped(
    ("milliseconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (1000, "1970-01-01T00:00:01.000Z"),
        (951782400000, "2000-02-29T00:00:00.000Z"),
        (1709660061095, "2024-03-05T17:34:21.095Z"),
        (253402300799999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_happened_at(milliseconds: int, text: str) -> None:
    event = ChangeEvent(happened_at=milliseconds, entity_type="Gate", name="g")
    assert attributes_of(event)["change_event.happened_at"] == text


@given(st.integers(1, 253402300799999))
def test_happened_at_of_any_time(milliseconds: int) -> None:
    event = ChangeEvent(happened_at=milliseconds, entity_type="Gate", name="g")
    assert attributes_of(event)["change_event.happened_at"] == rfc3339(milliseconds)


@pytest.mark.parametrize(
    ("milliseconds", "nanoseconds"),
    [
        (1, 1_000_000),
        (18446744073709, 18446744073709000000),
        (18446744073710, 0),
        (253402300799999, 0),
    ],
)
def test_a_time_that_nanoseconds_cannot_tell_is_unknown(milliseconds: int, nanoseconds: int) -> None:
    """`time_unix_nano` is a fixed64, and 0 is "unknown" (logs.proto): such a record is delivered all the same."""
    record = record_in(encode(ChangeEvent(happened_at=milliseconds, entity_type="Gate", name="g")))
    assert record.time_unix_nano == nanoseconds
    assert attributes_in(record.attributes)["change_event.happened_at"] == rfc3339(milliseconds)


def test_an_encoder_keeps_nothing_of_the_last_record() -> None:
    encoder = LogRecordEncoder()
    minimal = ChangeEvent(happened_at=1, entity_type="Gate", name="g")
    first, _, again = (encode(event, encoder) for event in (minimal, FULL, minimal))
    assert first == again == encode(minimal)


def test_two_payloads_one_after_the_other_are_one_payload_of_two_records() -> None:
    """What exporters send as a batch: serialised protobuf messages concatenate."""
    joined = encode(FULL) + encode(ChangeEvent(happened_at=1, entity_type="Gate", name="g"))
    request = ExportLogsServiceRequest.FromString(joined)
    records = [record for logs in request.resource_logs for scope in logs.scope_logs for record in scope.log_records]
    assert [record.body.string_value for record in records] == ["layout_v2 updated", "g changed"]


def set_fields(message: Any) -> set[str]:
    return {descriptor.name for descriptor, _ in message.ListFields()}


HASHED: Final[Mapping[str, object]] = {
    "user.name": "83ab72d297f3315427cc7bedda827f786cb11335badbb40b49fccf59fe65fa68",
    "user.email": "295d29f5f731829ae8e99fa8aa55b893b7dbf1b866eb582aa92368bab184c5c4",
    "user.id": "86693d50efdc246c3c8d898667e7714b2d45096dd20a088aa7fd609d263cdcbd",
}


def people(
    encoder: LogRecordEncoder, *, user_id: str | None = "7", name: str | None = "Test User"
) -> dict[str, object]:
    event = ChangeEvent(
        happened_at=1,
        entity_type="Gate",
        name="g",
        user_id=user_id,
        user_name=name,
        user_email="test.user@example.com",
    )
    attributes = attributes_of(event, encoder)
    assert attributes["log.record.uid"] == UID
    return {name: value for name, value in attributes.items() if name.startswith("user.")}


def test_users_in_full() -> None:
    expected = {"user.name": "Test User", "user.email": "test.user@example.com", "user.id": "7"}
    assert people(LogRecordEncoder()) == people(LogRecordEncoder(user="full")) == expected


def test_users_hashed() -> None:
    """HMAC-SHA256 with the key, so that nobody without it can try names."""
    assert people(LogRecordEncoder(user="hash", hash_key="pepper")) == HASHED


def test_users_hashed_are_texts_in_utf8() -> None:
    hashed = people(LogRecordEncoder(user="hash", hash_key="ключ"), name="Zoë")
    assert hashed["user.name"] == "ec18642b527798a34abaee22e1359a3ba0e028f7563304216d8a63a50ef97bb3"


def test_who_is_absent_is_not_hashed() -> None:
    hashed = people(LogRecordEncoder(user="hash", hash_key="pepper"), user_id=None, name=None)
    assert hashed == {"user.email": HASHED["user.email"]}


@pytest.mark.parametrize("hash_key", [None, "pepper"])
def test_users_dropped(hash_key: str | None) -> None:
    encoder = LogRecordEncoder(user="drop", hash_key=hash_key)
    assert people(encoder) == {}
    whole = encode(FULL, encoder)
    assert b"Test User" not in whole
    assert b"test.user@example.com" not in whole


@pytest.mark.parametrize("hash_key", [None, ""])
def test_hash_needs_a_key(hash_key: str | None) -> None:
    with pytest.raises(ValueError, match="needs a hash_key"):
        LogRecordEncoder(user="hash", hash_key=hash_key)


@pytest.mark.parametrize("user", [mode for mode in get_args(UserMode) if mode != "full"])
def test_the_original_would_show_hidden_users(user: UserMode) -> None:
    with pytest.raises(ValueError, match="include_original would show"):
        LogRecordEncoder(user=user, hash_key="pepper", include_original=True)


@pytest.mark.parametrize(
    "original", ['{ "a" : 1.50,\n\t"b":"\\ud800é\\u00e9" }', "{}", '{"x":"' + "y" * 100_000 + '"}']
)
def test_the_original_is_the_exact_text(original: str) -> None:
    attributes = attributes_of(FULL, LogRecordEncoder(include_original=True), original)
    assert attributes == table(FULL) | {"log.record.original": original}


def test_the_original_is_off_by_default() -> None:
    assert "log.record.original" not in attributes_of(FULL)


def test_the_resource() -> None:
    resource: dict[str, Any] = {
        "service.name": "flags",
        "a.bool": True,
        "an.int": -(2**63),
        "a.double": 0.5,
        "texts": ["a", "b"],
        "ints": (1, 2**63 - 1),
        "bools": [True, False],
        "doubles": [1.5],
        "empty": [],
        "": "",
    }
    request = ExportLogsServiceRequest.FromString(encode(FULL, LogRecordEncoder(resource=resource)))
    found = attributes_in(request.resource_logs[0].resource.attributes)
    expected = {name: list(value) if isinstance(value, tuple) else value for name, value in resource.items()}
    assert repr(found) == repr(expected)


def test_an_empty_resource() -> None:
    request = ExportLogsServiceRequest.FromString(encode(FULL, LogRecordEncoder(resource={})))
    assert not request.resource_logs[0].resource.attributes


def test_the_default_resource() -> None:
    assert DEFAULT_RESOURCE == {"service.name": "statsig"}


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, "\ud800", ["\ud800"]])
def test_a_resource_that_otlp_cannot_hold(value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - protobuf's words
        LogRecordEncoder(resource={"x": value})


REGISTERED: Final = {
    deployment_attributes.DEPLOYMENT_ENVIRONMENT_NAME,
    feature_flag_attributes.FEATURE_FLAG_KEY,
    feature_flag_attributes.FEATURE_FLAG_PROVIDER_NAME,
    feature_flag_attributes.FEATURE_FLAG_SET_ID,
    log_attributes.LOG_RECORD_ORIGINAL,
    log_attributes.LOG_RECORD_UID,
    user_attributes.USER_EMAIL,
    user_attributes.USER_ID,
    user_attributes.USER_NAME,
}


def test_a_name_is_registered_or_our_own() -> None:
    names = set(attributes_of(FULL, LogRecordEncoder(include_original=True)))
    own = {name for name in names if name.startswith(("change_event.", "statsig."))}
    assert names - own == REGISTERED


def test_the_resource_is_named_as_registered() -> None:
    assert set(DEFAULT_RESOURCE) == {service_attributes.SERVICE_NAME}


def test_the_schema_url_is_a_published_one() -> None:
    published = [schema.value for schema in Schemas]
    minor = [int(url.rpartition("/")[2].split(".")[1]) for url in (SCHEMA_URL, *published)]
    if minor[0] > max(minor[1:]):
        pytest.skip("older semantic conventions are installed")
    assert SCHEMA_URL in published


def test_the_event_and_the_scope() -> None:
    assert (EVENT_NAME, SCOPE_NAME) == ("statsig.config_change", "statsig_otel")


def readable(node: Any) -> Any:
    """OTLP/JSON that people can compare: attributes as one object, values without their type."""
    if isinstance(node, list):
        return [readable(element) for element in node]
    if not isinstance(node, dict):
        return node
    if "arrayValue" in node:
        return readable(node["arrayValue"]["values"])
    if set(node) == {"stringValue"}:
        return node["stringValue"]
    return {
        name: {attribute["key"]: readable(attribute["value"]) for attribute in value}
        if name == "attributes"
        else readable(value)
        for name, value in node.items()
    }


GOLDEN_NAMES: Final = sorted(path.name.removesuffix(".input.json") for path in GOLDEN.glob("*.input.json"))


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden(name: str, update_golden: bool) -> None:
    """A recorded body makes the recorded record. `pytest --update-golden` writes it anew: then read the difference."""
    payload = parse((GOLDEN / f"{name}.input.json").read_bytes())
    (item,) = payload.changes
    assert isinstance(item.value, dict)
    encoded = encode(ChangeEvent.from_item(item.value), original=item.text, item_uid=uid(item.value))
    made = readable(MessageToDict(ExportLogsServiceRequest.FromString(encoded)))
    scope = made["resourceLogs"][0]["scopeLogs"][0]["scope"]
    assert scope["version"] == __version__
    scope["version"] = "VERSION"
    expected = GOLDEN / f"{name}.record.json"
    if update_golden:
        expected.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    assert made == json.loads(expected.read_text())


def test_every_golden_record_has_its_input() -> None:
    assert GOLDEN_NAMES
    assert {path.name.removesuffix(".record.json") for path in GOLDEN.glob("*.record.json")} == set(GOLDEN_NAMES)


def test_an_unknown_user_mode_is_an_error() -> None:
    """A misspelt mode must not show people."""
    with pytest.raises(ValueError, match="full, hash, drop"):
        LogRecordEncoder(user="hashed")  # type: ignore[arg-type]  # the misspelling is the point
