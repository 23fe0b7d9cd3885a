"""Arrays of a record: the first 1,000 elements, and the number of all, however they come into the record."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.plugin.record.arrays import MAX_ELEMENTS, Cut, converted, first, hidden, joined, split
from statsig_otel.plugin.webhook.body import parse
from tests.plugin.record.mapping_helpers import OBSERVED, mapper_of
from tests.plugin.record.record_helpers import attributes_in, record_in

FEW = st.lists(st.integers(), max_size=20).map(tuple)


def body_of(**metadata: object) -> bytes:
    event = {
        "eventName": "statsig::config_change",
        "timestamp": 1739400185198,
        "metadata": {"type": "Gate", "name": "a", **metadata},
    }
    return json.dumps([event]).encode()


def attributes_of(keys: str = "user: full", **metadata: object) -> dict[str, Any]:
    (change,) = mapper_of(keys).map(parse(body_of(**metadata)), OBSERVED).changes
    (record,) = change.records
    return attributes_in(record_in(record).attributes)


@pytest.mark.parametrize("length", [0, 1, MAX_ELEMENTS - 1, MAX_ELEMENTS, MAX_ELEMENTS + 1, 3 * MAX_ELEMENTS])
def test_the_first_elements_are_kept_and_the_others_counted(length: int) -> None:
    array = first(iter(range(length)))
    assert array == tuple(range(min(length, MAX_ELEMENTS)))
    assert (array.total if isinstance(array, Cut) else len(array)) == length
    assert (converted(array, str), hidden(converted(array, str))) == (tuple(map(str, array)), hidden(array))


@given(FEW, FEW, st.sampled_from([0, MAX_ELEMENTS, 5 * MAX_ELEMENTS]))
def test_arrays_that_were_cut_can_be_joined(left: tuple[int, ...], right: tuple[int, ...], more: int) -> None:
    """Nothing that an array hides is forgotten in the count."""
    middle = first(range(more))
    array = joined([left, middle, right])
    assert array == (*left, *middle, *right)[:MAX_ELEMENTS]
    assert len(array) + hidden(array) == len(left) + more + len(right)
    distinct = joined([left, left, right], distinct=True)
    assert distinct == tuple(dict.fromkeys((*left, *right)))


@given(st.text(st.sampled_from("ab, \t\xa0")), st.sampled_from([0, 400, 4000]))
def test_a_long_string_is_split_as_a_short_one_is(text: str, more: int) -> None:
    long = text + ", c" * more
    parts = [part.strip() for part in long.split(",") if part.strip()]
    assert split(long) == tuple(parts[:MAX_ELEMENTS])
    assert len(split(long)) + hidden(split(long)) == len(parts)


def test_a_record_has_the_number_of_elements_after_each_array_that_was_cut() -> None:
    many = [f"e{index}" for index in range(1500)]
    attributes = attributes_of(environments=",".join(many), tags=[None, "", *many], targetApps=many[:1000])
    assert attributes["statsig.environments"] == attributes["statsig.tags"] == many[:1000]
    assert attributes["statsig.environments_count"] == attributes["statsig.tags_count"] == 1500
    assert attributes["statsig.target_apps"] == many[:1000]
    assert "statsig.target_apps_count" not in attributes


def test_the_number_follows_its_array_through_the_mapping() -> None:
    keys = """
        mapping:
          rename: {statsig.tags: labels}
          drop: [statsig.environments]
          attributes:
            others: "{metadata.others}"
            all: ["{tags}", "{environments}", more]
            mixed: ["{metadata.others}"]
            mixed_count: 7
            found: {lookup: "{tags}", table: {e1: one, e1200: never}, default: "{metadata.others}"}
    """
    many = [f"e{index}" for index in range(1500)]
    attributes = attributes_of(keys, environments=",".join(many), tags=many, others=list(range(2000)))
    counts = {name: value for name, value in attributes.items() if name.endswith("_count")}
    assert counts == {
        "labels_count": 1500, "others_count": 2000, "all_count": 3001, "mixed_count": 7, "found_count": 2001
    }  # fmt: skip
    assert attributes["others"] == list(range(1000))
    assert attributes["all"] == many[:1000]
    assert len(attributes["found"]) == 1000
    assert attributes["labels"] == many[:1000]


def test_the_services_of_a_change_are_counted_too() -> None:
    many = [f"e{index}" for index in range(1500)]
    keys = 'impacted_services: {rules: [{name: "{target_apps}"}, {name: "{tags}"}]}'
    attributes = attributes_of(keys, targetApps=many, tags=["x", "e0"])
    assert attributes["statsig.impacted_services"] == many[:1000]
    assert attributes["statsig.impacted_services_count"] == 1501


def test_of_a_long_description_the_first_changes_are_recognised() -> None:
    lines = [f"Added rule r{index}" for index in range(1200)]
    attributes = attributes_of("include_change_details: true", description="\n".join(lines))
    assert attributes["statsig.change.rules"] == [f"r{index}" for index in range(1000)]
    groups = ", ".join(f"g{index}" for index in range(1200))
    attributes = attributes_of("include_change_details: true", description=f"Groups added: {groups}")
    assert attributes["statsig.change.groups"] == [f"g{index}" for index in range(1000)]
    assert attributes["statsig.change.groups_count"] == 1200


def test_environments_can_be_written_in_lower_case() -> None:
    attributes = attributes_of("lowercase_environments: true", environments="Production, production,STAGING")
    assert attributes["statsig.environments"] == ["production", "staging"]
    attributes = attributes_of("lowercase_environments: true", environments="Production,PRODUCTION")
    assert attributes["deployment.environment.name"] == "production"
    attributes = attributes_of("lowercase_environments: true", environments="p," * 1000 + "q")
    assert attributes["statsig.environments"] == ["p"]
    assert "deployment.environment.name" not in attributes  # nobody has looked at the last one
    many = ",".join(f"E{index}" for index in range(1500))
    attributes = attributes_of("lowercase_environments: true", environments=many)
    assert (attributes["statsig.environments"][-1], attributes["statsig.environments_count"]) == ("e999", 1500)
    assert attributes_of(environments="Production")["statsig.environments"] == ["Production"]
