"""Pages of the audit log, by the published description and its examples."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.plugin.audit_log.entries import MalformedPageError, kind_of_entry, parse_page
from tests.looped import looped

PUBLISHED: dict[str, Any] = {
    "id": "19LZJaPtCM4GT1sUbWlqVC",
    "name": "check_employee",
    "changeLog": "Removed Tag from Config",
    "actionType": "config_remove_tag",
    "date": "Mon Sep 26 2022",
    "time": "21:25:22 GMT+0000 (Coordinated Universal Time)",
    "updatedBy": "John Doe",
    "updatedByUserID": "fd7dWH15Ddncvl3xhVLH",
    "changes": {},
}


def page(*entries: object) -> bytes:
    return json.dumps({"message": "Audit logs listed successfully.", "data": list(entries)}).encode()


def second(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def test_the_published_example_is_read() -> None:
    (entry,) = parse_page(page(PUBLISHED)).entries
    assert (entry.id, entry.name, entry.action_type) == (PUBLISHED["id"], "check_employee", "config_remove_tag")
    assert entry.second == second("2022-09-26T21:25:22+00:00")
    assert (entry.text, entry.kind) == ("Removed Tag from Config", "change")
    assert (entry.user_id, entry.user_name, entry.user_email) == ("fd7dWH15Ddncvl3xhVLH", "John Doe", None)


@looped(
    ("date", "time", "expected"),
    [
        ("Mon Sep 26 2022", "23:46:14 GMT+0000 (Coordinated Universal Time)", "2022-09-26T23:46:14+00:00"),
        ("Thu Sep 22 2022", "10:44:27 GMT-0700 (Pacific Daylight Time)", "2022-09-22T17:44:27+00:00"),
        ("Thu Dec 31 2026", "23:59:59 GMT-0800", "2027-01-01T07:59:59+00:00"),
        ("Thu Jan 1 2026", "00:10:00 GMT+0530 (India Standard Time)", "2025-12-31T18:40:00+00:00"),
        ("Thu Feb 29 2024", "12:00:00 GMT", "2024-02-29T12:00:00+00:00"),
        ("Thu Feb 30 2024", "12:00:00 GMT", None),
        ("Thu Foo 12 2024", "12:00:00 GMT", None),
        ("2022-09-26", "23:46:14", None),
        ("Mon Sep 26 2022", "24:00:00 GMT+0000", None),
        ("Mon Sep 26 2022", "23:46:14 GMT+9900", None),
        ("", "", None),
    ],
)
def test_a_date_and_a_time_of_javascript_are_one_second(date: str, time: str, expected: str | None) -> None:
    found = parse_page(page({**PUBLISHED, "date": date, "time": time}))
    if expected is None:
        assert found.unreadable == (f"the entry {PUBLISHED['id']} has no date and time that can be read",)
        assert found.entries == ()
    else:
        assert [entry.second for entry in found.entries] == [second(expected)]


def test_only_the_id_and_the_time_are_needed() -> None:
    """The oldest examples have no `modifierEmail`, and an action type may be an object by the published schema."""
    bare = {key: PUBLISHED[key] for key in ("id", "date", "time", "name")}
    odd = {**bare, "actionType": {}, "changes": None, "changeLog": 3, "updatedBy": "", "tags": 7, "new": [1]}
    found = parse_page(page(bare, odd)).entries
    assert [(one.kind, one.text, one.user_name) for one in found] == [("unknown", "", None)] * 2


def test_an_entry_that_can_not_be_compared_is_told_and_its_neighbours_stay() -> None:
    nameless = {**PUBLISHED, "name": None}
    login = {**nameless, "actionType": "user_login"}
    found = parse_page(page(PUBLISHED, 3, {"name": "x"}, nameless, login))
    assert [entry.action_type for entry in found.entries] == ["config_remove_tag", "user_login"]
    assert found.unreadable == (
        "an entry is not an object",
        "an entry has no id",
        f"the entry {PUBLISHED['id']} does not name what was changed",
    )


def test_lone_surrogates_and_long_texts_do_no_harm() -> None:
    (entry,) = parse_page(page({**PUBLISHED, "name": "a\ud800" * 5000, "changeLog": " x \n y"})).entries
    assert len(entry.name) == 1000
    entry.name.encode()
    assert entry.text == "x"


@looped("cut", range(0, len(page(PUBLISHED)), 7))
def test_a_page_that_was_cut_is_not_a_page(cut: int) -> None:
    with pytest.raises(MalformedPageError, match="was cut short"):
        parse_page(page(PUBLISHED)[:cut])


@looped("body", [b"[]", b"3", b"null", b'{"data": {}}', b'{"message": "hi"}', b'{"data": null}', b"[" * 100_000])
def test_other_json_is_not_a_page(body: bytes) -> None:
    with pytest.raises(MalformedPageError):
        parse_page(body)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(PUBLISHED)), inner, max_size=5),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(list(PUBLISHED)), _JSON))
def test_whatever_an_entry_has_is_read_or_told(members: dict[str, Any]) -> None:
    found = parse_page(page({**PUBLISHED, **members}))
    assert len(found.entries) + len(found.unreadable) == 1


CHANGES = """
    gate_create gate_update gate_overrides_update config_conditions_update config_state_toggle config_delete
    config_add_tag dynamic_config_create segment_create ID_list_update experiment_start experiment_stopped
    archive_experiment unarchive_experiment layer_update holdout_create autotune_start param_store_update
    modify_overrides update_gate_display_name
"""
OTHERS = """
    user_login config_review_create config_review_commit experiment_review_accept config_require_reviews
    config_reviews_disable gate_template_create metric_create dashboard_update
"""


@looped(
    ("action_type", "kind"),
    [
        *((name, "change") for name in CHANGES.split()),
        *((name, "other") for name in OTHERS.split()),
        ("generate_integration_webhook_secret", "webhook"),
        ("integration_update_disabled_events", "webhook"),
        ("something_of_tomorrow", "unknown"),
        ("", "unknown"),
    ],
)
def test_what_an_entry_is_about(action_type: str, kind: str) -> None:
    assert kind_of_entry(action_type) == kind


def test_now_is_read_back_as_javascript_writes_it() -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    date, time = now.strftime("%a %b %d %Y"), now.strftime("%H:%M:%S GMT+0000 (Coordinated Universal Time)")
    (entry,) = parse_page(page({**PUBLISHED, "date": date, "time": time})).entries
    assert entry.second == int(now.timestamp())
