"""Records of entries of the audit log: their uids, what they tell, and what filters, mappings and limits make of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel import _attributes
from statsig_otel.config import ConfigError
from statsig_otel.exporters.consumer import Batch
from statsig_otel.plugin.audit_log.entries import AuditEntry, parse_page, type_and_action
from statsig_otel.plugin.audit_log.records import LogRecords
from statsig_otel.plugin.record.change_event import InvalidItemError
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings, log_records
from tests.looped import looped
from tests.peers.audit_log import KEY, audit_entry
from tests.plugin.record.record_helpers import plain, record_in

SECOND = 1_790_000_000
NOW = (SECOND + 1000) * 10**9
PAGE = Path(__file__).parents[3].joinpath("docs", "no-gaps.md").read_text()
RULES = {"rules": {"old": [{"passPercentage": 0}], "new": [{"passPercentage": 50}]}}


def read(**others: object) -> AuditEntry:
    """An entry as it is read from a page."""
    (entry,) = parse_page(json.dumps({"data": [audit_entry(1, SECOND, **others)]}).encode()).entries  # type: ignore[arg-type]
    return entry


def records(**keys: object) -> LogRecords:
    """What makes records, for a receiver with these keys."""
    log = {"api_key": KEY, "backfill": True}
    given = {"signing_secrets": ["webhook-0123456789"], "audit_log": log, **keys}
    return log_records(StatsigReceiverSettings.model_validate(given))


def filled_in(entry: AuditEntry, **keys: object) -> Batch:
    return records(**keys).change("statsig", entry, observed_ns=NOW)


def only(made: Batch) -> LogRecord:
    (change,) = made.changes
    (encoded,) = change.records
    return record_in(encoded)


def attributes(record: LogRecord) -> dict[str, Any]:
    return {one.key: plain(one.value) for one in record.attributes}


def dropped(entry: AuditEntry, **blocks: object) -> bool:
    made = filled_in(entry, filter=blocks)
    assert bool(made.changes) is not made.arrivals[0].filtered
    return not made.changes


def test_the_uids_are_those_of_the_documentation() -> None:
    """Made by hand from the rule: the vectors are the contract."""
    rows = re.findall(r"^\| `(\w{22})` \| `([0-9a-f]{32})` \| `([0-9a-f]{32})` \|$", PAGE, re.MULTILINE)
    assert len(rows) == 2
    for identity, uid, details in rows:
        entry = read(id=identity)
        assert (entry.uid, entry.details_uid) == (uid, details)


def test_a_filled_in_record_tells_what_the_log_tells() -> None:
    entry = read(name="new_menu", changeLog="Created Gate", actionType="gate_create", changes=RULES)
    made = filled_in(entry)
    record = only(made)
    assert (record.time_unix_nano, record.observed_time_unix_nano) == (SECOND * 10**9, NOW)
    assert (record.event_name, plain(record.body)) == ("statsig.config_change", "new_menu created")
    assert attributes(record) == {
        "change_event.category": "feature_flags",
        "change_event.type": "gate_created",
        "change_event.source": "statsig",
        "change_event.happened_at": "2026-09-21T14:13:20.000Z",
        "change_event.title": "new_menu created",
        "change_event.label.type": "Gate",
        "change_event.label.name": "new_menu",
        "change_event.label.action": "created",
        "change_event.label.description": "Created Gate",
        "feature_flag.key": "new_menu",
        "feature_flag.provider.name": "statsig",
        "user.name": "Ada",
        "user.email": "ada@example.com",
        "user.id": "u1",
        "log.record.uid": entry.uid,
        "statsig.origin": "audit_log",
        "statsig.audit_log.id": entry.id,
        "statsig.audit_log.action_type": "gate_create",
        "statsig.audit_log.old": '{"rules":[{"passPercentage":0}]}',
        "statsig.audit_log.new": '{"rules":[{"passPercentage":50}]}',
    }
    (arrival,) = made.arrivals
    assert (arrival.uid, arrival.second, arrival.from_log, made.changes[0].uid) == (entry.uid, SECOND, True, entry.uid)


def test_the_attributes_are_those_that_a_template_may_read() -> None:
    entry = read(changes=RULES)
    small = filled_in(read(changes={"rules": {"new": "x" * 20_000}}), max_record_bytes=10_000)
    names = {*attributes(only(filled_in(entry))), *attributes(only(small))}
    assert {name for name in names if name.startswith(("statsig.origin", "statsig.audit_log"))} == _attributes.FROM_LOG
    key = {"attributes": {"from": "{statsig.origin:-webhook}"}}
    assert attributes(only(filled_in(entry, mapping=key)))["from"] == "audit_log"
    with pytest.raises(ValueError, match=r"no change has without audit_log::backfill"):
        StatsigReceiverSettings.model_validate({"signing_secrets": [], "mapping": key})
    assert issubclass(ConfigError, ValueError)


@looped(
    ("action_type", "type_", "action"),
    [
        ("gate_create", "Gate", "created"),
        ("gate_update", "Gate", "updated"),
        ("gate_overrides_update", "Gate", None),
        ("update_gate_display_name", "Gate", None),
        ("dynamic_config_create", "Dynamic Config", "created"),
        ("segment_create", "Segment", "created"),
        ("experiment_create", "Experiment", "created"),
        ("experiment_start", "Experiment", None),
        ("experiment_delete", "Experiment", "deleted"),
        ("archive_experiment", "Experiment", "archived"),
        ("unarchive_experiment", None, None),
        ("holdout_delete", "Holdout", "deleted"),
        ("holdout_layer_parameter_values_update", None, None),
        ("layer_create", "Layer", "created"),
        ("param_store_create", None, "created"),
        ("config_delete", None, "deleted"),
        ("config_conditions_update", None, None),
        ("config_create_thing", None, None),
        ("gate", None, None),
        ("thing_of_tomorrow", None, None),
        ("", None, None),
        ("gate_create\n", None, None),
    ],
)
def test_type_and_action_are_only_told_where_they_are_certain(
    action_type: str, type_: str | None, action: str | None
) -> None:
    assert type_and_action(action_type) == (type_, action)


def test_without_a_type_there_are_no_attributes_of_it() -> None:
    found = attributes(only(filled_in(read(name="a", actionType="config_conditions_update"))))
    assert not {"change_event.type", "change_event.label.type", "change_event.label.action"} & found.keys()
    assert found["change_event.title"] == "a changed"
    assert attributes(only(filled_in(read(name="a", actionType="config_delete"))))["change_event.title"] == "a deleted"
    mapping = {"event_name": "statsig.{type:-unknown}", "body": "{name} {action:-changed}", "drop": ["statsig.*"]}
    record = only(filled_in(read(name="a", actionType="config_delete"), mapping=mapping))
    assert (record.event_name, plain(record.body)) == ("statsig.unknown", "a deleted")
    assert not [name for name in attributes(record) if name.startswith("statsig.")]


def test_a_filter_drops_only_what_it_would_drop_whatever_the_log_does_not_tell() -> None:
    gate, unclear = read(name="a", actionType="gate_create"), read(name="a", actionType="config_conditions_update")
    for entry in (gate, unclear):
        assert dropped(entry, include={"names": ["b"]})
        assert dropped(entry, exclude={"names": ["a"]})
        assert dropped(entry, include={"names": ["b"], "environments": ["production"]})
        assert dropped(entry, exclude=[{"tags": ["x"]}, {"actors": ["ADA@*"]}])
        assert not dropped(entry, include={"environments": ["production"]})
        assert not dropped(entry, include=[{"names": ["b"]}, {"tags": ["core"], "projects": ["p"]}])
        assert not dropped(entry, exclude={"names": ["a"], "environments": [""]})
        assert not dropped(entry, exclude={"target_apps": ["*"]})
    assert dropped(gate, include={"types": ["segment"]})
    assert not dropped(gate, include={"types": ["feature gate"]}), "webhooks have both"
    assert not dropped(gate, exclude={"types": ["feature_gate"]})
    assert dropped(gate, exclude={"types": ["gate", "feature_gate"], "actions": ["created"]})
    assert not dropped(unclear, include={"types": ["segment"]})
    assert not dropped(unclear, exclude={"types": ["*"]})
    assert not dropped(unclear, exclude={"actions": [""]})


def test_users_are_shown_as_the_receiver_says_and_an_original_there_is_not() -> None:
    entry = read()
    shown = attributes(only(filled_in(entry, user="drop", include_original="redacted")))
    assert not {"user.id", "user.name", "user.email", "log.record.original"} & shown.keys()
    hashed = attributes(only(filled_in(entry, user="hash", hash_key="k")))
    assert re.fullmatch("[0-9a-f]{64}", hashed["user.id"])
    assert "log.record.original" not in attributes(only(filled_in(entry, include_original=True)))


def test_there_is_a_record_for_each_service() -> None:
    rules = [
        {"match": {"names": ["menu_*"]}, "name": "shop"},
        {"name": "{name}"},
        {"match": {"environments": ["production"]}, "name": "never"},
    ]
    (change,) = filled_in(read(name="menu_new"), impacted_services={"rules": rules}).changes
    resources = [
        {
            one.key: plain(one.value)
            for one in ExportLogsServiceRequest.FromString(each).resource_logs[0].resource.attributes
        }
        for each in change.records
    ]
    assert [one["service.name"] for one in resources] == ["shop", "menu_new"]
    uids = [attributes(record_in(each))["log.record.uid"] for each in change.records]
    assert change.uid not in uids
    assert len({*uids}) == 2
    assert {attributes(record_in(each))["statsig.config_change.uid"] for each in change.records} == {change.uid}


def test_old_and_new_values_are_bounded() -> None:
    """Each of the two has at most 32 KiB; and a record that is too large with them has their size instead."""
    most = 32 << 10
    fits = read(changes={"a": {"old": "x" * (most - len('{"a":""}')), "new": None}})
    assert (len(fits.old), fits.new, fits.size) == (most, '{"a":null}', 0)
    above = read(changes={"a": {"old": "\u00e9" * (most // 2), "new": None}})
    assert (above.old, above.new, above.size) == ("", "", most + len('{"a":""}') + len('{"a":null}'))
    huge = read(changes={"a": {"old": "x" * 10_000_000, "new": "y"}})
    assert (huge.old, huge.size) == ("", 10_000_000 + len('{"a":""}{"a":"y"}'))
    assert attributes(only(filled_in(above)))["statsig.audit_log.size"] == above.size
    small = attributes(only(filled_in(fits, max_record_bytes=10_000)))
    assert small["statsig.audit_log.size"] == most + len('{"a":null}')
    assert not {"statsig.audit_log.old", "statsig.audit_log.new"} & small.keys()
    with pytest.raises(InvalidItemError, match="too large"):
        filled_in(fits, max_record_bytes=10_000, resource={"k": "x" * 10_000})


@looped(
    ("changes", "old", "new"),
    [
        ({}, "", ""),
        (None, "", ""),
        ([1], "", ""),
        ({"rules": {}}, "", ""),
        ({"a": 1, "b": {"new": 2}}, "", '{"a":1,"b":2}'),
        ({"a": {"x": 1, "old": 2}}, "", '{"a":{"x":1,"old":2}}'),
        ({"a": {"old": None, "new": "\u00fc\ud800"}}, '{"a":null}', '{"a":"\u00fc\ufffd"}'),
        ({"a": {"old": float("nan"), "new": 1}}, "", ""),
        ({"a": {"old": 1 << 60, "new": -1}}, '{"a":1152921504606846976}', '{"a":-1}'),
    ],
)
def test_values_are_read_leniently(changes: object, old: str, new: str) -> None:
    entry = read(changes=changes)
    assert (entry.old, entry.new) == (old, new)


def test_a_number_that_nobody_can_read_spoils_no_page() -> None:
    page = json.dumps({"data": [audit_entry(1, SECOND, changes={"a": {"new": 0}})]})
    (entry,) = parse_page(page.replace('"new": 0', '"new": ' + "9" * 100_000).encode()).entries
    assert (entry.old, entry.new) == ("", "")


def test_hostile_strings_make_a_bounded_record() -> None:
    """None of an entry's strings can be longer than a thousand characters, and each has a place in a record."""
    text = "\ud800\u202e\x00\n{name}${env:HOME}" + "y" * 1_000_000
    entry = read(name="x" * 1_000_000, changeLog=text, updatedBy=text, modifierEmail=text, updatedByUserID=text)
    made = filled_in(entry, mapping={"body": "{name} {description}"})
    assert len(made.changes[0].records[0]) < 20_000
    assert attributes(only(made))["user.name"] == "\ufffd\u202e\x00"


def test_details_bear_the_uid_of_their_change_and_of_a_mapping_only_the_attributes() -> None:
    entry = read(name="a", changes=RULES)
    mapping = {
        "event_name": "other",
        "body": "other",
        "severity_number": 17,
        "rename": {"statsig.audit_log.old": "before"},
        "attributes": {"team": "menus"},
    }
    made = records(mapping=mapping, user="drop").details("statsig", entry, "f" * 32, observed_ns=NOW)
    record = only(made)
    assert (record.event_name, plain(record.body)) == ("statsig.config_change.details", "a: old and new values")
    assert (record.severity_number, record.time_unix_nano) == (9, SECOND * 10**9)
    assert attributes(record) == {
        "log.record.uid": entry.details_uid,
        "statsig.config_change.uid": "f" * 32,
        "feature_flag.key": "a",
        "feature_flag.provider.name": "statsig",
        "statsig.origin": "audit_log",
        "statsig.audit_log.id": entry.id,
        "statsig.audit_log.action_type": "gate_update",
        "before": '{"rules":[{"passPercentage":0}]}',
        "statsig.audit_log.new": '{"rules":[{"passPercentage":50}]}',
        "team": "menus",
    }
    (arrival,) = made.arrivals
    assert (arrival.uid, arrival.from_log) == (entry.details_uid, True)
    small = records(max_record_bytes=10_000).details(
        "statsig", read(changes={"a": {"new": "x" * 20_000}}), "f" * 32, observed_ns=NOW
    )
    assert attributes(only(small))["statsig.audit_log.size"] == 20_000 + len('{"a":""}')
