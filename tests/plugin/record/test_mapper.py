"""From a body to records: whatever stands in one item, each item is in exactly one place and no neighbour is lost."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.consumer import Change, Invalid
from statsig_otel.plugin.record.filter import ChangeFilter
from statsig_otel.plugin.record.mapper import Mapped, Mapper
from statsig_otel.plugin.record.record import LogRecordEncoder
from statsig_otel.plugin.webhook.body import ParsedBody, parse
from statsig_otel.plugin.webhook.lenient_json import Item
from tests.looped import looped
from tests.plugin.strategies import HOSTILE, config_changes, join_object, json_texts

DATA: Final = Path(__file__).parents[2] / "data"
OBSERVED: Final = 1_739_400_185_400_000_000


def map_body(body: str, mapper: Mapper | None = None) -> Mapped:
    payload = parse(body.encode())
    mapped = (mapper or Mapper()).map(payload, OBSERVED)
    assert len(mapped.changes) + len(mapped.invalid) + mapped.ignored == payload.count
    return mapped


def record_of(change: Change) -> LogRecord:
    (encoded,) = change.records
    request = ExportLogsServiceRequest.FromString(encoded)
    return request.resource_logs[0].scope_logs[0].log_records[0]


def texts_of(record: LogRecord) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in record.attributes}


def neighbour(name: str) -> str:
    return json.dumps(
        {"eventName": "statsig::config_change", "timestamp": 5, "metadata": {"type": "Gate", "name": name}}
    )


BEFORE: Final = neighbour("before")
AFTER: Final = neighbour("after")
EXPOSURE: Final = '{"eventName":"statsig::gate_exposure","value":%s}'
(ALONE_BEFORE,) = map_body(f"[{BEFORE}]").changes
(ALONE_AFTER,) = map_body(f"[{AFTER}]").changes

MEMBERS: Final[dict[str, str]] = {
    "eventName": '"statsig::config_change"',
    "timestamp": "1709660061095",
    "timeUUID": '"af379f61"',
    "userID": '"id"',
    "user.name": '"Test User"',
    "user.email": '"test.user@example.com"',
    "user.userID": '"id"',
    "user.unknown": "[1]",
    "metadata.type": '"Gate"',
    "metadata.name": '"layout_v2"',
    "metadata.action": '"updated"',
    "metadata.description": '"text"',
    "metadata.environments": '"production"',
    "metadata.environment": '"older"',
    "metadata.projectName": '"Web"',
    "metadata.projectID": '"p1"',
    "metadata.tags": '["core"]',
    "metadata.targetApps": '["app"]',
    "metadata.unknown": "null",
}
POSITIONS: Final = ("", "user", "metadata", *MEMBERS)
"""Every place of a config change where a value can stand; the empty one is the whole item."""

UNREADABLE: Final = {
    *("nan", "infinity", "minus_infinity", "too_large", "too_small", "fraction_too_large"),
    *("integer_of_5000_digits", "negative_of_5000_digits"),
}
"""The hostile texts that hold a number which no JSON text can stand for."""

TEXTS: Final = {"high_surrogate", "swapped_surrogates", "surrogate_inside"}
"""The hostile texts that are a text all the same."""

REQUIRED: Final = {"timestamp", "metadata", "metadata.type", "metadata.name"}


def config_change_with(position: str, text: str) -> str:
    """A full config change as JSON text, with another text at one position."""
    if not position:
        return text
    members = {name: value for name, value in MEMBERS.items() if not name.startswith(f"{position}.")}
    members[position] = text
    groups: dict[str, list[tuple[str, str]]] = {"user": [], "metadata": []}
    top: list[tuple[str, str]] = []
    for path, value in members.items():
        group, _, name = path.rpartition(".")
        groups.get(group, top).append((name, value))
    return join_object(top + [(group, join_object(inside)) for group, inside in groups.items() if inside])


def fate(mapped: Mapped) -> str:
    """What became of the one item between two neighbours, which must both be there, the same as alone."""
    first, *between, last = mapped.changes
    assert (first, last) == (ALONE_BEFORE, ALONE_AFTER)
    fates = ["record"] * len(between) + ["invalid"] * len(mapped.invalid) + ["ignored"] * mapped.ignored
    (only,) = fates
    return only


@given(
    position=st.sampled_from(POSITIONS),
    text=json_texts(hostile=True),
    shape=st.sampled_from(("[%s,%s,%s]", '{"data":[%s,%s,%s]}', '{"data":[ %s ,%s\n,%s],"x":NaN}')),
)
def test_any_value_in_any_position_affects_no_other_item(position: str, text: str, shape: str) -> None:
    """Exactly one of record, ignored, invalid; never an exception, never a lost neighbour."""
    item = config_change_with(position, text)
    mapped = map_body(shape % (BEFORE, item, AFTER))
    what = fate(mapped)
    if position and position != "eventName":
        assert what != "ignored"
    if what == "invalid":
        assert mapped.invalid[0].text.decode() == item
        assert not mapped.invalid[0].whole_body
    if what == "record":
        assert re.fullmatch(r"[0-9a-f]{32}", mapped.changes[1].uid)
        assert texts_of(record_of(mapped.changes[1]))["log.record.uid"] == mapped.changes[1].uid


@looped("position", POSITIONS)
def test_a_hostile_text_in_this_position_affects_no_other_item(position: str) -> None:
    for name, hostile in HOSTILE.items():
        if position in {"", "eventName"}:
            expected = "ignored"
        elif name in UNREADABLE:
            expected = "invalid"
        elif position in {"metadata.type", "metadata.name"}:
            expected = "record" if name in TEXTS else "invalid"
        else:
            expected = "invalid" if position in REQUIRED else "record"
        item = config_change_with(position, hostile)
        assert fate(map_body(f"[{BEFORE},{item},{AFTER}]")) == expected, name


def test_an_exposure_with_a_hostile_text_is_ignored() -> None:
    for name, hostile in HOSTILE.items():
        assert fate(map_body(f"[{BEFORE},{EXPOSURE % hostile},{AFTER}]")) == "ignored", name


@looped("item", ["1", "null", "true", '"statsig::config_change"', "[]", "[{}]", "{}", "1e5"])
def test_what_is_no_event_is_ignored(item: str) -> None:
    assert fate(map_body(f"[{BEFORE},{item},{AFTER}]")) == "ignored"


@given(st.lists(st.one_of(config_changes(hostile=True), json_texts(hostile=True)), max_size=5))
def test_a_batch_is_what_its_items_are_alone(items: Sequence[str]) -> None:
    together = map_body(f"[{','.join(items)}]")
    alone = [map_body(f"[{item}]") for item in items]
    assert together == Mapped(
        tuple(change for mapped in alone for change in mapped.changes),
        tuple(invalid for mapped in alone for invalid in mapped.invalid),
        sum(mapped.ignored for mapped in alone),
        tuple(field for mapped in alone for field in mapped.left_out),
    )


def test_nesting_close_to_the_limit() -> None:
    """Where one step still reads an item and the next no longer does, the item is invalid."""
    for depth in (*range(100, 960, 100), *range(960, 1000)):
        item = config_change_with("metadata.tags", "[" * depth + "]" * depth)
        assert fate(map_body(f"[{BEFORE},{item},{AFTER}]")) in {"record", "invalid"}


def test_an_item_that_is_nested_too_deeply_is_invalid_beside_its_neighbours() -> None:
    item = config_change_with("metadata.tags", "[" * 100_000 + "]" * 100_000)
    mapped = map_body(f"[{BEFORE},{item},{AFTER}]")
    assert fate(mapped) == "invalid"
    assert mapped.invalid == (Invalid(item.encode(), "is nested too deeply"),)


def test_the_samples_mixed_with_exposures() -> None:
    changes, exposures = (
        [entry["event"] for entry in json.loads((DATA / f"{name}.json").read_text())["events"]]
        for name in ("config_changes", "exposures")
    )
    mixed: list[Any] = [exposures[0], changes[0], *exposures[1:3], *changes[1:], *exposures[3:]]
    mapped = map_body(json.dumps({"data": mixed}))
    assert [record_of(change).body.string_value for change in mapped.changes] == [
        "layout_v2 created",
        "heading_test updated",
        "a_gate_name changed",
    ]
    assert (mapped.invalid, mapped.ignored, mapped.left_out) == ((), 5, ())


@pytest.mark.parametrize("body", ["[]", '{"data":[]}'])
def test_an_empty_payload(body: str) -> None:
    assert map_body(body) == Mapped((), (), 0, ())


@looped(
    ("position", "text", "reason"),
    [
        ("metadata.name", "5", "metadata.name: must be a string that is not empty, is an integer"),
        ("metadata", "null", "metadata: must be an object, is missing or null"),
        ("timestamp", '"now"', "timestamp: must be an integer of milliseconds, is a string"),
        ("timestamp", "0", "timestamp: must be milliseconds between 1970 and the year 9999"),
        ("user.unknown", "NaN", "contains NaN, which is not JSON"),
        ("metadata.unknown", "[1e999]", "contains a number that is out of range"),
        ("timeUUID", "9" * 5000, "contains an integer of 5000 digits"),
    ],
)
def test_an_invalid_item_says_why_and_keeps_its_text(position: str, text: str, reason: str) -> None:
    item = config_change_with(position, text)
    mapped = map_body(f"[ {item} ,1]")
    (invalid,) = mapped.invalid
    assert (invalid.text.decode(), invalid.reason, invalid.whole_body) == (item, reason, False)
    assert (mapped.changes, mapped.ignored) == ((), 1)


@looped(
    ("position", "shown"),
    [
        (position, shown)
        for position in sorted(REQUIRED)
        for shown in ('"%s"', '["%s"]', '{"%s":1}', '{"x":{"%s":NaN}}', '{"%s":1e999}', '"%s\\ud800"')
        if not (shown.startswith('"') and position in ("metadata.name", "metadata.type"))  # which is valid
    ],
)
def test_a_reason_never_shows_what_was_sent(position: str, shown: str) -> None:
    """It goes to the log."""
    (invalid,) = map_body(f"[{config_change_with(position, shown % 'SECRET')}]").invalid
    assert "SECRET" in invalid.text.decode()
    assert "SECRET" not in invalid.reason


def test_left_out_fields_are_told_once_each_time() -> None:
    items = [config_change_with("metadata.tags", "{}")] * 2 + [config_change_with("user", "[]")]
    assert map_body(f"[{','.join(items)}]").left_out == ("metadata.tags", "metadata.tags", "user")


def test_a_lone_surrogate_is_replaced_and_delivered() -> None:
    item = config_change_with("metadata.name", r'"a\ud800b"')
    (change,) = map_body(f"[{item}]").changes
    record = record_of(change)
    assert record.body.string_value == "a\ufffdb updated"
    assert texts_of(record)["feature_flag.key"] == "a\ufffdb"


@pytest.mark.parametrize("timestamp", ["18446744073709", "18446744073710", "253402300799999"])
def test_the_far_future_is_delivered(timestamp: str) -> None:
    """Nanoseconds end in the year 2554, milliseconds in a text do not."""
    (change,) = map_body(f"[{config_change_with('timestamp', timestamp)}]").changes
    assert texts_of(record_of(change))["change_event.happened_at"].endswith("Z")


def test_a_payload_is_mapped_by_the_encoder_it_was_given() -> None:
    mapper = Mapper(LogRecordEncoder(user="drop"))
    body = f"[{config_change_with('userID', '1')}]"
    (full,), (dropped,) = map_body(body).changes, map_body(body, mapper).changes
    assert full.uid == dropped.uid
    assert "user.name" in texts_of(record_of(full))
    assert not {"user.name", "user.email", "user.id"} & set(texts_of(record_of(dropped)))


def test_the_original_is_the_text_as_sent() -> None:
    mapper = Mapper(LogRecordEncoder(include_original=True))
    item = '{ "eventName":"statsig::config_change", "timestamp":1, "metadata":{"type":"T","name":"\\u00e9é\\ud800"}\n}'
    (change,) = map_body(f"[ {item} ]", mapper).changes
    assert texts_of(record_of(change))["log.record.original"] == item


def test_an_item_that_is_no_object_is_invalid() -> None:
    """`parse` makes none such; an embedder might."""
    mapped = Mapper().map(ParsedBody(1, (Item("[]"),)), OBSERVED)
    assert [invalid.reason for invalid in mapped.invalid] == ["is not an object"]


def test_the_pure_part_loads_no_server_and_no_exporter() -> None:
    """It is what an embedder imports into a process of its own."""
    pure = ("webhook.body", "record.change_event", "record.record", "record.mapper", "record.filter", "record.mapping",
            "record.template", "record.services")  # fmt: skip
    modules = [f"statsig_otel.plugin.{name}" for name in pure]
    script = f"import sys, {', '.join(modules)}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert {*modules} <= loaded
    heavy = (
        "falcon",
        "grpc",
        "uvicorn",
        "opentelemetry.sdk",
        "opentelemetry.exporter",
        "urllib3",
        "pydantic",
        "ruamel",
    )
    assert {name for name in loaded if name.startswith(heavy)} == set()


def test_what_came_is_told_only_if_it_is_to_be_remembered() -> None:
    """Also of what the filter drops, and of a change that is too large for a record."""
    items = [
        {"name": "gate", "action": "updated", "description": "Updated Gate\n    - more"},
        {"name": "noise"},
        {"name": "large", "description": "x" * 20_000},
        {"name": ""},
    ]
    user = {"userID": "u1", "email": "ada@example.com"}
    body = json.dumps({
        "data": [
            {
                "eventName": "statsig::config_change",
                "timestamp": 1739400185999,
                "user": user,
                "metadata": {"type": "Gate", **metadata},
            }
            for metadata in items
        ]
    }).encode()  # fmt: skip
    encoder, dropping = LogRecordEncoder(max_record_bytes=10_000), ChangeFilter(exclude=[{"names": ["noise"]}])
    mapped = Mapper(encoder, dropping, remembers=True).map(parse(body), observed_ns=1)
    ada = partial(Arrival, user_id="u1", user_email="ada@example.com", type="Gate")
    uids = [one.uid for one in mapped.arrivals]
    assert mapped.arrivals == (
        ada(uids[0], 1739400185, "gate", action="updated", text="Updated Gate"),
        ada(uids[1], 1739400185, "noise", filtered=True),
        ada(uids[2], 1739400185, "large", text="x" * 1000),
    )
    assert [change.uid for change in mapped.changes] == uids[:1]
    assert (len(mapped.invalid), mapped.ignored) == (2, 1)
    forgetting = Mapper(encoder, dropping).map(parse(body), observed_ns=1)
    assert forgetting.arrivals == ()
    assert (forgetting.changes, forgetting.invalid, forgetting.ignored) == (mapped.changes, mapped.invalid, 1)
