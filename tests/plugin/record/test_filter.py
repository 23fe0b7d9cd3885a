"""Which changes go on: by each field, by several, and in every spelling that Statsig has."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from statsig_otel.config import ConfigError
from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.filter import FIELDS, Block, ChangeFilter
from statsig_otel.plugin.settings.filter import ChangeMatchSettings, FilterSettings
from tests.looped import looped

FULL: Final[Mapping[str, Any]] = {
    "happened_at": 1,
    "entity_type": "Dynamic Config",
    "name": "checkout_v2",
    "action": "updated",
    "environments": ("production",),
    "project_id": "p1",
    "project_name": "Web",
    "tags": ("core", "ui"),
    "target_apps": ("web", "iOS"),
    "user_id": "u1",
    "user_name": "Test User",
    "user_email": "Test.User@example.com",
}
MINIMAL: Final = ChangeEvent(happened_at=1, entity_type="Gate", name="g")


def event(**values: object) -> ChangeEvent:
    return ChangeEvent(**{**FULL, **values})


def includes(block: Block, change: ChangeEvent) -> bool:
    return ChangeFilter(include=[block]).why_dropped(change) is None


def excludes(block: Block, change: ChangeEvent) -> bool:
    return ChangeFilter(exclude=[block]).why_dropped(change) is not None


MATCHING: Final = [
    ("types", "Dynamic Config"),
    ("types", "dynamic_config"),
    ("types", "DynamicConfig"),
    ("types", "*CONFIG"),
    ("actions", "Updated"),
    ("environments", "Production"),
    ("environments", "prod*"),
    ("names", "checkout_v2"),
    ("names", "checkout_*"),
    ("names", "checkout_v[0-9]"),
    ("names", "checkout?v2"),
    ("names", "[!x]*"),
    ("projects", "p1"),
    ("projects", "Web"),
    ("tags", "core"),
    ("tags", "u?"),
    ("target_apps", "web"),
    ("target_apps", "i*"),
    ("actors", "u1"),
    ("actors", "test user"),
    ("actors", "*@EXAMPLE.com"),
]
OTHERS: Final = [
    ("types", "gate"),
    ("types", "dynamic"),
    ("actions", "update"),
    ("environments", "staging"),
    ("names", "Checkout_v2"),
    ("names", "checkout"),
    ("names", "v2"),
    ("names", "checkoutv2"),
    ("projects", "web"),
    ("tags", "Core"),
    ("tags", ""),
    ("target_apps", "ios"),
    ("actors", "@example.com"),
]


@looped(("field", "pattern"), MATCHING)
def test_what_matches_is_included_or_excluded(field: str, pattern: str) -> None:
    assert includes({field: [pattern]}, event())
    assert excludes({field: ["another", pattern]}, event())


@looped(("field", "pattern"), OTHERS)
def test_what_does_not_match_is_neither(field: str, pattern: str) -> None:
    assert not includes({field: [pattern]}, event())
    assert not excludes({field: [pattern, "another"]}, event())


@looped("type_", ["Dynamic Config", "DynamicConfig", "dynamic_config", "dynamic config", "DYNAMICCONFIG"])
@looped("pattern", ["Dynamic Config", "DynamicConfig", "dynamic_config"])
def test_a_type_in_any_spelling(type_: str, pattern: str) -> None:
    assert includes({"types": [pattern]}, event(entity_type=type_))


@looped(
    ("pattern", "type_", "matches"),
    [
        ("feature[ _]gate", "Feature Gate", True),
        ("feature[ _]gate", "feature_gate", True),
        ("feature[ _]gate", "Feature Flag", False),
        ("[!_]*", "Gate", True),
        ("[!_]*", "", False),
        ("[_!g]ate", "Gate", True),
        ("[_!g]ate", "Late", False),
        ("[!_g]ate", "Late", True),
        ("[!_g]ate", "Gate", False),
        ("[]_]ate", "]ate", True),
        ("g[ ate", "g[ate", True),
    ],
)
def test_a_set_with_what_does_not_count(pattern: str, type_: str, matches: bool) -> None:
    assert includes({"types": [pattern]}, event(entity_type=type_)) is matches


@pytest.mark.parametrize("field", [name for name in FIELDS if name not in {"types", "names"}])
def test_what_is_absent_is_an_empty_text(field: str) -> None:
    assert includes({field: [""]}, MINIMAL)
    assert includes({field: ["*"]}, MINIMAL)
    assert not includes({field: ["?*"]}, MINIMAL)
    assert not includes({field: [""]}, event())


def test_one_of_several_environments_is_enough_to_include() -> None:
    both = event(environments=("development", "production"))
    assert includes({"environments": ["production"]}, both)
    assert includes({"environments": ["development"]}, both)


def test_a_change_is_excluded_for_its_environments_only_where_all_match() -> None:
    both = event(environments=("development", "production"))
    assert not excludes({"environments": ["development"]}, both)
    assert excludes({"environments": ["development", "prod*"]}, both)
    assert excludes({"environments": ["development"]}, event(environments=("development",)))


@pytest.mark.parametrize("block", [{"tags": ["ui"]}, {"target_apps": ["iOS"]}])
def test_one_of_several_tags_or_apps_is_enough_to_exclude(block: Block) -> None:
    assert excludes(block, event())


def test_all_fields_of_a_block_have_to_match() -> None:
    assert includes({"names": ["checkout_*"], "actions": ["updated"]}, event())
    assert not includes({"names": ["checkout_*"], "actions": ["created"]}, event())
    assert excludes({"names": ["checkout_*"], "actions": ["updated"]}, event())
    assert not excludes({"names": ["checkout_*"], "actions": ["created"]}, event())


def test_one_of_several_blocks_is_enough() -> None:
    blocks = [{"names": ["another"]}, {"actions": ["updated"]}]
    assert ChangeFilter(include=blocks).why_dropped(event()) is None
    assert ChangeFilter(exclude=blocks).why_dropped(event()) == "exclude[1] matches"


def test_exclude_goes_before_include() -> None:
    both = ChangeFilter(include=[{"names": ["checkout_*"]}], exclude=[{"names": ["*_v2"]}])
    assert both.why_dropped(event()) == "exclude[0] matches"
    assert both.why_dropped(event(name="checkout_v3")) is None
    assert both.why_dropped(event(name="cart")) == "no include matches"


def test_an_empty_filter_keeps_everything() -> None:
    assert ChangeFilter().why_dropped(MINIMAL) is None


@pytest.mark.parametrize("block", [{}, {"type": ["gate"]}, {"names": ["*"], "x": []}])
def test_a_block_has_known_fields(block: Block) -> None:
    for arguments in ({"include": [block]}, {"exclude": [block]}):
        with pytest.raises(ValueError, match="a block needs at least one field, and knows types, actions, "):
            ChangeFilter(**arguments)


@given(
    st.lists(st.text(alphabet="ab*?[]!-\\\n^.", max_size=8), min_size=1, max_size=3),
    st.text(alphabet="ab]-\n.", min_size=1),
)
@example(["[b-a]"], "a")
@example(["[]"], "[]")
def test_names_match_as_fnmatchcase_says(patterns: Sequence[str], name: str) -> None:
    """Whatever a pattern looks like, it is one."""
    expected = any(fnmatchcase(name, pattern) for pattern in patterns)
    change = event(name=name)
    assert includes({"names": patterns}, change) == excludes({"names": patterns}, change) == expected


BLOCKS: Final = st.dictionaries(
    st.sampled_from(sorted(FIELDS)),
    st.lists(st.text(alphabet="abAB *?_", max_size=4), min_size=1, max_size=2),
    min_size=1,
    max_size=2,
)
VALUES: Final = st.text(alphabet="abAB _", max_size=3)
CHANGES: Final = st.builds(
    ChangeEvent,
    happened_at=st.just(1),
    entity_type=VALUES,
    name=VALUES,
    action=st.none() | VALUES,
    environments=st.lists(VALUES, max_size=2).map(tuple),
    tags=st.lists(VALUES, max_size=2).map(tuple),
    project_id=st.none() | VALUES,
    user_email=st.none() | VALUES,
)


@given(st.lists(BLOCKS, max_size=2), st.lists(BLOCKS, max_size=2), CHANGES)
def test_blocks_are_joined_as_said(include: list[Block], exclude: list[Block], change: ChangeEvent) -> None:
    wanted = not include or any(includes({name: block[name]}, change) for block in include for name in list(block)[:1])
    kept = ChangeFilter(include=include, exclude=exclude).why_dropped(change) is None
    dropped = any(all(excludes({name: block[name]}, change) for name in block) for block in exclude)
    if dropped or not wanted:
        assert not kept
    if all(len(block) == 1 for block in include):
        assert kept == (wanted and not dropped)


def test_the_keys_of_the_settings_are_the_fields() -> None:
    assert list(ChangeMatchSettings.model_fields) == list(FIELDS)


def test_every_key_of_the_settings_takes_effect() -> None:
    for name in FIELDS:
        made = FilterSettings.model_validate({"include": {name: ["nothing"]}}).create()
        assert made.why_dropped(event()) == "no include matches"


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_settings_are_one_block_or_a_list(key: str) -> None:
    one = FilterSettings.model_validate({key: {"names": ["checkout_*"]}}).create()
    two = FilterSettings.model_validate({key: [{"names": ["x"]}, {"names": ["checkout_*"]}]}).create()
    for made in (one, two):
        assert (made.why_dropped(event()) is None) == (key == "include")
        assert (made.why_dropped(event(name="y")) is None) == (key == "exclude")


def test_settings_without_a_block_keep_everything() -> None:
    assert FilterSettings().create().why_dropped(MINIMAL) is None


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"include": {}}, "names no field\n  hint: there are: actions, actors"),
        ({"exclude": [{}]}, "names no field"),
        ({"exclude": {"names": None}}, "names no field"),
        ({"include": []}, "include: is empty"),
        ({"include": {"names": []}}, "include::names: is empty"),
        ({"include": {"type": ["gate"]}}, "type"),
    ],
)
def test_settings_that_match_nothing_or_everything_are_refused(written: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        FilterSettings.model_validate(written)


def test_a_pattern_that_looks_negated_is_an_error() -> None:
    """It would match nothing, and nobody would notice."""
    for field in FIELDS:
        with pytest.raises(ConfigError, match="begins with !, which stands for itself"):
            ChangeMatchSettings.model_validate({field: ["a", "!checkout_*"]})
        assert ChangeMatchSettings.model_validate({field: ["a!", "[!a]", "?checkout"]}).block()
