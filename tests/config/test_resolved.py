"""A configuration as the file that would say all of it."""

import math
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.config.grammar import check
from statsig_otel.config.resolved import plain_values, to_yaml
from statsig_otel.config.source import parse
from statsig_otel.config.units import format_duration, format_size, parse_duration, parse_size
from tests.config.models import COMPONENTS
from tests.looped import looped


@looped(
    ("seconds", "text"),
    [
        (0.0, "0s"), (5.0, "5s"), (1.5, "1.5s"), (0.3, "300ms"), (0.0005, "0.5ms"), (1e-9, "0.000001ms"),
        (60.0, "1m0s"), (300.0, "5m0s"), (3600.0, "1h0m0s"), (5400.5, "1h30m0.5s"), (86400.0, "24h0m0s"),
    ],
)  # fmt: skip
def test_a_duration_as_go_prints_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000) | st.floats(0, 9e9))
def test_a_printed_duration_is_the_same_again(seconds: float) -> None:
    found = parse_duration(format_duration(seconds))
    assert isinstance(found, float)
    assert math.isclose(found, seconds, rel_tol=1e-12)


@looped(
    ("size", "text"),
    [(0, 0), (1, 1), (1000, 1000), (1024, "1KiB"), (1536, 1536), (20 << 20, "20MiB"),
     (3 << 40, "3TiB"), (5 << 50, "5120TiB")],
)  # fmt: skip
def test_a_size_with_its_unit(size: int, text: str | int) -> None:
    assert format_size(size) == text


@given(st.integers(0, 10**17) | st.integers(0, 2**20).map(lambda number: number << 20))
def test_a_printed_size_is_the_same_again(size: int) -> None:
    assert parse_size(format_size(size)) == size


ATOMS: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
    | st.sampled_from(["null", "on", "5m0s", "1e3", "0x1F", "007", "a: b", "- a", "a:", "~", "---", "", ".inf", "&a"])
)  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


def without_dollars(value: Any) -> Any:
    """Texts without `$`, which would be references."""
    if isinstance(value, str):
        return value.replace("$", "")
    if isinstance(value, list):
        return [without_dollars(item) for item in value]
    if isinstance(value, dict):
        return {key: without_dollars(item) for key, item in value.items()}
    return value


@given(st.dictionaries(st.text(max_size=5), VALUES, min_size=1, max_size=4))
def test_printed_yaml_reads_as_the_same_values(values: dict[str, Any]) -> None:
    values = without_dollars(values)
    found = parse(to_yaml(values).encode(), file="f", directory=Path(), environ={})
    assert found.values == values
    assert not found.problems


@looped(
    ("value", "text"),
    [
        ("plain", "plain"), ("localhost:8080", "localhost:8080"), ("/a/b.c-d", "/a/b.c-d"), ("5m0s", "5m0s"),
        ("on", '"on"'), ("Yes", '"Yes"'), ("a:", '"a:"'), ("5:30", '"5:30"'), ("1e3", '"1e3"'), ("a b", '"a b"'),
        ("", '""'), ("é", '"\\u00e9"'), (1, "1"), (1.0, "1.0"), (True, "true"), (None, "null"), ([], "[]"), ({}, "{}"),
    ],
)  # fmt: skip
def test_quotes_stand_only_where_they_are_needed(value: object, text: str) -> None:
    assert to_yaml({"a": value}) == f"a: {text}\n"


def test_lists_and_mappings_stand_below_their_key() -> None:
    assert to_yaml({"a": {"b": [1, {"c": 2, "d": [3]}, []]}, "e": {}}) == (
        "a:\n  b:\n    - 1\n    - c: 2\n      d:\n        - 3\n    - []\ne: {}\n"
    )


CONFIG = """
extensions: {file_storage: {directory: "$$x"}}
receivers:
  statsig: {signing_secrets: [%s], tolerance: 90s, max_request_body_size: 3MiB, resource: {a: "${A}", b: 7}}
exporters:
  otlp/old: {endpoint: 007, colour: blue, from: here, pair: [3, 4], until: 2026-01-02, %s}
  debug:
service:
  extensions: [file_storage]
  pipelines:
    logs/x: {receivers: [statsig], exporters: [otlp/old, debug]}
"""


def printed(text: str) -> str:
    document = parse(text.encode(), file="f", directory=Path(), environ={"A": "${B} costs $5"})
    return to_yaml(plain_values(check(document, COMPONENTS)))


def test_what_is_printed_is_the_same_configuration() -> None:
    text = printed(CONFIG % ("", "name: b"))
    assert "tolerance: 1m30s\n" in text
    assert "max_request_body_size: 3MiB\n" in text
    assert 'a: "$${B} costs $$5"\n' in text
    assert 'endpoint: "007"\n' in text
    assert "compression: gzip\n" in text
    first = check(
        parse((CONFIG % ("", "name: b")).encode(), file="f", directory=Path(), environ={"A": "${B} costs $5"}),
        COMPONENTS,
    )
    assert check(parse(text.encode(), file="f", directory=Path(), environ={}), COMPONENTS) == first
    assert printed(text) == text


def test_secrets_are_not_printed() -> None:
    text = printed(CONFIG % ("s3cr3t-1", "headers: {x: s3cr3t-2, y: ''}, api_key: s3cr3t-3"))
    assert "s3cr3t" not in text
    assert text.count('"[REDACTED]"') == 4
