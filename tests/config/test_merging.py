"""Several documents as one, as the Collector merges them."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.config import ConfigError
from statsig_otel.config.document import Document, Place
from statsig_otel.config.grammar import check
from statsig_otel.config.merging import merge
from statsig_otel.config.source import parse
from tests.config.models import COMPONENTS
from tests.looped import looped


def document(text: str, file: str = "a.yaml", **environ: str) -> Document:
    return parse(text.encode(), file=file, directory=Path(), environ=environ)


def merged(*texts: str) -> Document:
    return merge(document(text, f"{number}.yaml") for number, text in enumerate(texts))


@looped(
    ("first", "second", "values"),
    [
        ("a: 1", "b: 2", {"a": 1, "b": 2}),
        ("a: 1", "a: 2", {"a": 2}),
        ("a: {b: 1, c: 2}", "a: {c: 3, d: 4}", {"a": {"b": 1, "c": 3, "d": 4}}),
        ("a: {b: {c: {d: 1}}}", "a: {b: {c: {e: 2}}}", {"a": {"b": {"c": {"d": 1, "e": 2}}}}),
        ("a: [1, 2]", "a: [3]", {"a": [3]}),
        ("a: [{b: 1}]", "a: [{c: 2}]", {"a": [{"c": 2}]}),
        ("a: [1]", "a: []", {"a": []}),
        ("a: {b: 1}", "a: {}", {"a": {"b": 1}}),
        ("a: {b: 1}", "a: ", {"a": None}),
        ("a: {b: 1}", "a: x", {"a": "x"}),
        ("a: ", "a: {b: 1}", {"a": {"b": 1}}),
        ("a: x", "a: {b: 1}", {"a": {"b": 1}}),
        ("a: {b: 1}", "a: {b: }", {"a": {"b": None}}),
    ],
)
def test_what_comes_later_wins(first: str, second: str, values: object) -> None:
    """Mappings are merged, everything else is replaced: koanf's `maps.Merge`."""
    assert merged(first, second).values == values


def test_each_value_knows_its_file() -> None:
    found = merged("a:\n  b: 007\n  c: [x,\n   y]\nd: 1\n", "\na:\n  c: [z]\n  e: 2\n")
    assert found.places == {
        (): Place("0.yaml", 1, directory=Path()),
        ("a",): Place("0.yaml", 1, directory=Path()),
        ("a", "b"): Place("0.yaml", 2, "007", Path()),
        ("a", "c"): Place("1.yaml", 3, directory=Path()),
        ("a", "c", 0): Place("1.yaml", 3, directory=Path()),
        ("d",): Place("0.yaml", 5, "1", Path()),
        ("a", "e"): Place("1.yaml", 4, "2", Path()),
    }


def test_a_problem_names_the_file_that_wrote_the_value() -> None:
    base = (
        'receivers: {statsig: {signing_secrets: ["0123"], tolerance: 5}}\nexporters:\n  debug:\n'
        "service: {pipelines: {logs: {receivers: [statsig], exporters: [debug]}}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        check(merged(base, "\nexporters:\n  debug: {verbosity: loud}\n"), COMPONENTS)
    assert str(caught.value) == (
        "receivers::statsig::tolerance: a duration needs a unit, such as 5s or 5ms (0.yaml:1)\n"
        "exporters::debug::verbosity: must be 'basic', 'normal' or 'detailed' (1.yaml:3)"
    )


def test_a_key_twice_is_a_mistake_within_a_file_only() -> None:
    found = merged("a: 1\nb: 1\nb: 2\n", "a: 2\nb: 3\n")
    assert found.values == {"a": 2, "b": 3}
    assert [(problem.message, problem.file, problem.line) for problem in found.problems] == [
        ("is there twice", "0.yaml", 3)
    ]


def test_a_reference_does_not_matter_once_its_value_is_replaced() -> None:
    base = "a: ${NO}\nb: {c: '${NO}', d: '${NO}'}\ne: ['${NO}']\n"
    found = merged(base, "a: 1\nb: {c: 2}\ne: []\n")
    assert found.values["a"] == 1
    assert [problem.path for problem in found.unresolved] == [("b", "d")]
    assert not found.problems
    assert [problem.path for problem in merged("a: 1\n", "a: ${NO}\n").unresolved] == [("a",)]


def test_a_reference_still_matters_where_an_alias_of_it_is_not_replaced() -> None:
    text = (
        "receivers:\n  statsig: {signing_secrets: [a], endpoint: &x '${NO}'}\n"
        "  statsig/b: {signing_secrets: [a], endpoint: *x}\nexporters: {debug: }\n"
        "service: {pipelines: {logs: {receivers: [statsig, statsig/b], exporters: [debug]}}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        check(merged(text, "receivers: {statsig: {endpoint: a}}"), COMPONENTS)
    assert [(problem.path, problem.line) for problem in caught.value.problems] == [
        (("receivers", "statsig/b", "endpoint"), 2)
    ]


KEYS = st.sampled_from("abc")
SCALARS: st.SearchStrategy[Any] = st.integers(0, 9) | st.none() | st.sampled_from(["x", "y"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(KEYS, VALUES, max_size=3)
# Where a mapping stands in one, a mapping stands in the others: `m` is one, `s` is none.
SHAPED: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(st.sampled_from(["s1", "s2"]), SCALARS | st.lists(SCALARS, max_size=2), max_size=2),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"m1": inner, "m2": inner, "s1": SCALARS, "s2": st.lists(SCALARS, max_size=2)}
    ),
    max_leaves=6,
)


def placed(values: dict[str, Any], file: str) -> Document:
    """A document of these values, each with a line of its own."""
    places: dict[tuple[str | int, ...], Place] = {}

    def walk(value: object, path: tuple[str | int, ...]) -> None:
        places[path] = Place(file, len(places) + 1)
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, (*path, index))

    walk(values, ())
    return Document(values, places)


def follow(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def holds(value: Any, path: tuple[str | int, ...]) -> bool:
    try:
        follow(value, path)
    except (KeyError, IndexError, TypeError):
        return False
    return True


@given(MAPPINGS)
def test_nothing_added_changes_nothing(values: dict[str, Any]) -> None:
    one, empty = placed(values, "a"), Document({}, {})
    assert merge([one]) == merge([one, empty]) == merge([empty, one]) == merge([one, one]) == one
    assert merge([]) == empty


@given(MAPPINGS, MAPPINGS, MAPPINGS)
def test_is_done_step_by_step(first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]) -> None:
    a, b, c = placed(first, "a"), placed(second, "b"), placed(third, "c")
    assert merge([a, b, c]) == merge([merge([a, b]), c])


@given(SHAPED, SHAPED, SHAPED)
def test_can_be_grouped_where_mappings_stand_against_mappings(
    first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]
) -> None:
    """Not in general: of a mapping, a null and a mapping, the null takes the first away."""
    a, b, c = placed(first, "a"), placed(second, "b"), placed(third, "c")
    assert merge([merge([a, b]), c]) == merge([a, merge([b, c])])


@given(MAPPINGS, MAPPINGS)
def test_each_value_comes_from_the_last_that_wrote_it(first: dict[str, Any], second: dict[str, Any]) -> None:
    documents = {"a": placed(first, "a"), "b": placed(second, "b")}
    found = merge(documents.values())
    for path, place in found.places.items():
        value = follow(found.values, path)
        source = documents[place.file]
        assert source.places[path] == place
        if isinstance(value, dict):
            continue  # may be of both
        assert follow(source.values, path) == value
        if place.file == "a" and path:
            # Nothing of the later one stands there: neither the value nor a scalar above it.
            assert not holds(second, path)
    assert all(holds(found.values, path) for path in found.places)
    assert all(path in found.places for path in documents["b"].places)
