"""The reference mapping: every field of a config change present, absent, null, empty and of a wrong type."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.plugin.record.change_event import ChangeEvent, InvalidItemError
from tests.looped import looped
from tests.plugin.record.change_event_samples import ABSENT, FULL, FULL_EVENT, MINIMAL, mapped, with_member
from tests.plugin.strategies import json_texts

DATA: Final = Path(__file__).parents[2] / "data"


def test_every_field() -> None:
    assert ChangeEvent.from_item(FULL) == FULL_EVENT


def test_only_what_is_required() -> None:
    assert ChangeEvent.from_item(MINIMAL) == ChangeEvent(
        happened_at=1709660061095, entity_type="Gate", name="layout_v2"
    )


def test_unknown_members_change_nothing() -> None:
    item = FULL | {"x": 1, "timeUUID": [], "metadata": FULL["metadata"] | {"x": {}}, "user": FULL["user"] | {"": 1}}
    assert ChangeEvent.from_item(item) == FULL_EVENT


def test_the_samples() -> None:
    samples = json.loads((DATA / "config_changes.json").read_text())["events"]
    gate, experiment, older = (ChangeEvent.from_item(sample["event"]) for sample in samples)
    assert gate == ChangeEvent(
        happened_at=1709660061095,
        entity_type="Gate",
        name="layout_v2",
        action="created",
        description="Description: Change default page layout",
        user_name="Test User",
        user_email="test.user@example.com",
    )
    assert (gate.type, gate.title) == ("gate_created", "layout_v2 created")
    assert (experiment.type, experiment.title) == ("experiment_updated", "heading_test updated")
    assert experiment.description == (
        "- Updated experiment settings\n    - Groups updated: control, test\n    - Parameters added: heading\n"
        "    - Parameters updated: directives"
    )
    assert older == ChangeEvent(
        happened_at=1655232119734,
        entity_type="gate",
        name="a_gate_name",
        description="a_description",
        environments=("production",),
        user_name="A User",
        user_email="a.user@example.com",
    )
    assert (older.type, older.title) == ("gate_changed", "a_gate_name changed")


@looped(
    ("entity_type", "action", "expected"),
    [
        ("Gate", "created", "gate_created"),
        ("Gate", "updated", "gate_updated"),
        ("Gate", "deleted", "gate_deleted"),
        ("Gate", "archived", "gate_archived"),
        ("Experiment", "created", "experiment_created"),
        ("DynamicConfig", "updated", "dynamicconfig_updated"),
        ("Dynamic Config", "updated", "dynamic_config_updated"),
        ("Feature Gate", "archived", "feature_gate_archived"),
        ("Segment", "deleted", "segment_deleted"),
        ("Layer", "created", "layer_created"),
        ("Holdout", "updated", "holdout_updated"),
        ("Autotune", "updated", "autotune_updated"),
        ("gate", None, "gate_changed"),
        ("Gate", "", "gate_changed"),
        ("Metric Source", "Roll Out", "metric_source_roll_out"),
        ("A\tB\nC\u00a0D", "Started", "a_b_c_d_started"),
        ("Two  Blanks", " x", "two__blanks__x"),
        ("Größe", "ÄNDERN", "größe_ändern"),
        ("Gate", 7, "gate_7"),
        ("Gate", True, "gate_true"),
    ],
)
def test_types_and_actions_are_open_sets(entity_type: str, action: object, expected: str) -> None:
    item = with_member("metadata.action", action)
    item["metadata"]["type"] = entity_type
    assert ChangeEvent.from_item(item).type == expected


@pytest.mark.parametrize(
    ("action", "title"),
    [
        ("updated", "layout_v2 updated"),
        (None, "layout_v2 changed"),
        ("", "layout_v2 changed"),
        (1.5, "layout_v2 1.5"),
    ],
)
def test_the_title_is_name_and_action(action: object, title: str) -> None:
    assert mapped("metadata.action", action).title == title


def test_names_are_kept_as_sent() -> None:
    event = mapped("metadata.name", "  Layout\nV2 ")
    assert (event.name, event.title) == ("  Layout\nV2 ", "  Layout\nV2  updated")


@looped(
    ("value", "kind"),
    [
        (ABSENT, "missing or null"),
        (None, "missing or null"),
        ("", "empty"),
        (0, "an integer"),
        (5, "an integer"),
        (1.5, "a fraction"),
        (True, "a boolean"),
        (False, "a boolean"),
        ([], "an array"),
        (["x"], "an array"),
        ({}, "an object"),
        (float("nan"), "not a number"),
    ],
)
def test_name_and_type_are_texts_that_are_not_empty(value: object, kind: str) -> None:
    for field in ("metadata.name", "metadata.type"):
        with pytest.raises(InvalidItemError) as raised:
            mapped(field, value)
        assert str(raised.value) == f"{field}: must be a string that is not empty, is {kind}"


@looped(
    ("value", "kind"),
    [
        (ABSENT, "missing or null"),
        (None, "missing or null"),
        ("", "empty"),
        ("x", "a string"),
        (1, "an integer"),
        (True, "a boolean"),
        ([], "an array"),
    ],
)
def test_metadata_is_an_object(value: object, kind: str) -> None:
    with pytest.raises(InvalidItemError) as raised:
        mapped("metadata", value)
    assert str(raised.value) == f"metadata: must be an object, is {kind}"


def test_empty_metadata_has_no_type() -> None:
    with pytest.raises(InvalidItemError, match=r"metadata\.type"):
        mapped("metadata", {})


@looped(
    ("value", "expected"),
    [
        (1709660061095, 1709660061095),
        ("1709660061095", 1709660061095),
        (1, 1),
        ("1", 1),
        ("0000000000001", 1),
        (253402300799999, 253402300799999),
        ("253402300799999", 253402300799999),
    ],
)
def test_the_timestamp_is_milliseconds_as_an_integer_or_its_digits(value: object, expected: int) -> None:
    assert mapped("timestamp", value).happened_at == expected


@pytest.mark.parametrize(
    ("value", "expected", "in_seconds"),
    [
        (1_739_400_185, 1_739_400_185_000, True),
        ("1739400185", 1_739_400_185_000, True),
        (1_000_000_000, 1_000_000_000_000, True),
        (9_999_999_999, 9_999_999_999_000, True),
        (999_999_999, 999_999_999, False),
        (10_000_000_000, 10_000_000_000, False),
    ],
)
def test_a_timestamp_of_ten_digits_is_seconds(value: object, expected: int, in_seconds: bool) -> None:
    """As milliseconds it would be in 1970: backends with a retention drop it without a word."""
    event = mapped("timestamp", value)
    assert (event.happened_at, event.in_seconds) == (expected, in_seconds)


@looped("value", [0, -1, "0", "00", 253402300800000, "253402300800000", 2**63, 2**64, 10**400])
def test_the_timestamp_lies_between_1970_and_the_year_9999(value: object) -> None:
    with pytest.raises(InvalidItemError, match="between 1970 and the year 9999"):
        mapped("timestamp", value)


@looped(
    ("value", "kind"),
    [
        (ABSENT, "missing or null"),
        (None, "missing or null"),
        ("", "empty"),
        (True, "a boolean"),
        (False, "a boolean"),
        (1709660061095.0, "a fraction"),
        (1.7e12, "a fraction"),
        (float("nan"), "not a number"),
        (float("inf"), "not a number"),
        ([1709660061095], "an array"),
        ({"ms": 1}, "an object"),
        ("  1", "a string"),
        ("1 ", "a string"),
        ("1\n", "a string"),
        ("1_0", "a string"),
        ("+1", "a string"),
        ("-1", "a string"),
        ("1.0", "a string"),
        ("1e3", "a string"),
        ("0x1", "a string"),
        ("\u0661\u0667", "a string"),
        ("\uff11", "a string"),
        ("1\u00b2", "a string"),
        ("9" * 21, "a string"),
        ("9" * 5000, "a string"),
        ("2024-03-05T17:34:21.095Z", "a string"),
    ],
)
def test_any_other_timestamp_is_invalid(value: object, kind: str) -> None:
    with pytest.raises(InvalidItemError) as raised:
        mapped("timestamp", value)
    assert str(raised.value) == f"timestamp: must be an integer of milliseconds, is {kind}"


TEXTS: Final = {
    "metadata.action": "action",
    "metadata.description": "description",
    "metadata.projectID": "project_id",
    "metadata.projectName": "project_name",
    "user.name": "user_name",
    "user.email": "user_email",
}


@pytest.mark.parametrize("value", [ABSENT, None, ""])
def test_optional_texts_that_are_null_or_empty_are_absent(value: object) -> None:
    for path, attribute in TEXTS.items():
        event = mapped(path, value)
        assert (getattr(event, attribute), event.left_out) == (None, ()), path


@looped(
    ("value", "text"),
    [
        ("x", "x"),
        (" ", " "),
        ("0", "0"),
        ("a\x00b", "a\x00b"),
        ("😀", "😀"),
        ("\ud800a\udfff", "\ufffda\ufffd"),
        (0, "0"),
        (-7, "-7"),
        (2**70, "1180591620717411303424"),
        (1.5, "1.5"),
        (-0.0, "-0.0"),
        (1e22, "1e+22"),
        (True, "true"),
        (False, "false"),
    ],
)
def test_optional_numbers_and_booleans_are_their_json_text(value: object, text: str) -> None:
    for path, attribute in TEXTS.items():
        event = mapped(path, value)
        assert (getattr(event, attribute), event.left_out) == (text, ()), path


@pytest.mark.parametrize("value", [[], ["x"], {}, {"x": "y"}])
def test_any_other_optional_value_is_left_out_and_told(value: object) -> None:
    for path, attribute in TEXTS.items():
        event = mapped(path, value)
        assert (getattr(event, attribute), event.left_out) == (None, (path,)), path


@pytest.mark.parametrize("value", [ABSENT, None, "", {}])
def test_no_user(value: object) -> None:
    event = mapped("user", value)
    assert (event.user_name, event.user_email, event.user_id) == (None, None, "top_level_id")
    assert event.left_out == ()


@looped("value", ["Test User", [], ["x"], 0, 5, 1.5, True, False, float("nan")])
def test_a_user_that_is_not_an_object(value: object) -> None:
    event = mapped("user", value)
    assert (event.user_name, event.user_email, event.user_id) == (None, None, "top_level_id")
    assert event.left_out == ("user",)


@looped(
    ("inner", "top", "expected", "left_out"),
    [
        ("inner", "top", "inner", ()),
        ("inner", ABSENT, "inner", ()),
        (ABSENT, "top", "top", ()),
        (None, "top", "top", ()),
        ("", "top", "top", ()),
        ("", "", None, ()),
        (ABSENT, None, None, ()),
        (0, "top", "0", ()),
        (False, "top", "false", ()),
        (ABSENT, 17, "17", ()),
        ({}, "top", "top", ("user.userID",)),
        ([], [], None, ("user.userID", "userID")),
        ("inner", {}, "inner", ()),
    ],
)
def test_the_id_of_the_user_at_both_levels(
    inner: object, top: object, expected: str | None, left_out: tuple[str, ...]
) -> None:
    event = ChangeEvent.from_item(with_member("userID", top, with_member("user.userID", inner)))
    assert (event.user_id, event.left_out) == (expected, left_out)


@looped(
    ("value", "expected"),
    [
        ("production", ("production",)),
        ("production,staging", ("production", "staging")),
        (" production ,\tstaging\n", ("production", "staging")),
        ("production,,staging,", ("production", "staging")),
        ("production,production", ("production", "production")),
        ("pre prod", ("pre prod",)),
        (5, ("5",)),
        (True, ("true",)),
        ("a\ud800", ("a\ufffd",)),
    ],
)
def test_environments_are_split_at_commas_and_trimmed(value: object, expected: tuple[str, ...]) -> None:
    assert mapped("metadata.environments", value).environments == expected


@pytest.mark.parametrize("value", [ABSENT, None, "", [], ",", " , "])
def test_the_older_environment_counts_where_environments_is_absent(value: object) -> None:
    event = mapped("metadata.environments", value)
    assert (event.environments, event.left_out) == (("older",), ())


@pytest.mark.parametrize("value", [ABSENT, None, ""])
def test_no_environment(value: object) -> None:
    item = with_member("metadata.environment", value, with_member("metadata.environments", ""))
    assert ChangeEvent.from_item(item).environments == ()


def test_environments_in_an_array_count_as_each_of_them() -> None:
    """A filter for production would drop such changes otherwise."""
    event = mapped("metadata.environments", ["production", None, "a,b", 5])
    assert (event.environments, event.left_out) == (("production", "a,b", "5"), ())


def test_environments_of_a_wrong_type() -> None:
    event = mapped("metadata.environments", {})
    assert (event.environments, event.left_out) == (("older",), ("metadata.environments",))
    both = ChangeEvent.from_item(with_member("metadata.environment", {}, with_member("metadata.environments", {})))
    assert (both.environments, both.left_out) == ((), ("metadata.environments", "metadata.environment"))


def test_everything_of_a_wrong_type_at_once() -> None:
    """Each field is told once; what is required is still there, and so is the record."""
    wrong: dict[str, Any] = {}
    metadata = dict.fromkeys(FULL["metadata"], wrong) | {"name": "n", "type": "T"}
    event = ChangeEvent.from_item({"timestamp": 1, "metadata": metadata, "user": [], "userID": wrong})
    assert event == ChangeEvent(happened_at=1, entity_type="T", name="n", left_out=event.left_out)
    assert sorted(event.left_out) == sorted(
        ["user", "userID"] + [f"metadata.{name}" for name in FULL["metadata"] if name not in {"name", "type"}]
    )


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("happened_at", "x", "happened_at must be an int, not str"),
        ("happened_at", -1, "happened_at must be milliseconds between 1970 and the year 9999"),
        ("happened_at", 10**30, "happened_at must be milliseconds between 1970 and the year 9999"),
        ("name", None, "name must be a str, not None"),
        ("action", 5, "action must be a str or None, not int"),
        ("tags", "ab", "tags must be a tuple, not str"),
    ],
)
def test_an_event_made_in_code_is_checked(field: str, value: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        ChangeEvent(**{"happened_at": 1, "entity_type": "Gate", "name": "a", field: value})
    assert str(caught.value) == said


@given(
    path=st.sampled_from(
        ["timestamp", "metadata.name", "metadata.type", "metadata", "user", "user.name", "metadata.tags"]
    ),
    text=json_texts(),
)
def test_whatever_stands_there_the_texts_are_valid(path: str, text: str) -> None:
    """A record or an InvalidItemError; every text of a record can be written as UTF-8 and is not empty."""
    try:
        event = mapped(path, json.loads(text))
    except InvalidItemError:
        assert path in {"timestamp", "metadata.name", "metadata.type", "metadata"}
        return
    texts = (event.entity_type, event.name, event.action, event.description, event.project_id, event.project_name)
    people = (event.user_id, event.user_name, event.user_email)
    for value in (*texts, *people, *event.environments, *event.tags, *event.target_apps):
        assert value is None or value.encode()
    assert 1 <= event.happened_at <= 253402300799999
