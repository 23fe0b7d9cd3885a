"""Nothing that a file holds crashes the reader: a result or a ConfigError, and no secret in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from statsig_otel.config import ConfigError
from statsig_otel.config.configuration import Configuration
from statsig_otel.config.document import Document
from statsig_otel.config.grammar import check
from statsig_otel.config.locations import read_all
from statsig_otel.config.source import parse
from tests.config.models import COMPONENTS
from tests.config.test_cases import CASES, ENVIRON

GOOD = """
receivers:
  statsig: &r {signing_secrets: ["${env:SECRET}"], tolerance: 5m, resource: {a: 1, b: x}}
exporters:
  otlp_grpc: {endpoint: "a:1", headers: {x: "${SECRET}"}, num_consumers: 1, tls: {insecure: true}, api_key: abcd}
  debug:
service:
  pipelines:
    logs: {receivers: [statsig], exporters: [otlp_grpc, debug]}
"""


def outcome(data: bytes) -> Configuration | ConfigError:
    """What becomes of a file. Anything raised but a ConfigError fails the test."""
    try:
        return check(parse(data, file="config.yaml", directory=Path("/nonexistent"), environ=ENVIRON), COMPONENTS)
    except ConfigError as error:
        found = error
    assert found.problems
    assert all(problem.file == "config.yaml" for problem in found.problems)
    text = str(found)
    text.encode()
    assert "s3cr3t" not in text  # the environment's; what stands in the file itself may have become a key
    return found


@given(st.binary(max_size=200))
@example(b"%TAG ! tag:x,2000:\n--- !a b")
@example(b'a: "\\UFFFFFFFF"')
@example(b"a: !<> b")
@example(b"a: !%zz b")
@example(b"a: |9999999999999999999\n x")
@example(b"a: &a &b c")
@example(b"%YAML 99999999999999999999.1\n---\na")
@example(b"%YAML " + b"9" * 5000 + b".1\n---\na")
@example(b"\xf0\x9f")
@example(b"\xff\xfea\x00")
def test_random_bytes(data: bytes) -> None:
    outcome(data)


YAML_PARTS = [
    "receivers", "exporters", "service", "pipelines", "statsig", "logs", "a", "'", '"', ":", ": ", "- ", "? ", "\n",
    "\n  ", " ", "[", "]", "{", "}", ",", "&a ", "*a", "!", "!!str ", "!!int ", "!<x> ", "|", ">", "|2-", "#", "%", "@",
    "`", "---", "...", "<<", "~", "1", "1e9", ".nan", "0x", "true", "\\", "\\x", "\\ud800", "\\U00110000", "\t", "\r",
    "\x85", "\u2028", "\ufeff", "\0", "${", "}", "${A}", "${env:", ":-", "${file:", "$$", "é", "😀", "%YAML 1.1\n",
    "%TAG !a! b\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(YAML_PARTS), max_size=40).map("".join))
def test_random_yaml(text: str) -> None:
    outcome(text.encode("utf-8"))


@given(st.lists(st.sampled_from([*YAML_PARTS, "a::b: ", "::", "a::"]), max_size=30).map("".join), st.booleans())
@example("a::b: 1\na: 2\na::c: ${NO}\n::: 3", False)
@example("a::b: 1\na::b: 2", False)
def test_random_yaml_on_the_command_line(text: str, is_variable: bool) -> None:
    """As `yaml:TEXT` and as `env:NAME`: every value of the document has a place, or there is an error."""
    environ = {**ENVIRON, "TEXT": text}
    try:
        found = read_all(["env:TEXT" if is_variable else f"yaml:{text}", "yaml:a::x: 1"], environ=environ)
    except ConfigError as error:
        said = str(error)
    else:
        assert_placed(found)
        return
    assert said
    assert "s3cr3t" not in said


def assert_placed(found: Document) -> None:
    """Every value of the document has a place."""
    pending: list[tuple[tuple[str | int, ...], object]] = [((), found.values)]
    while pending:
        path, value = pending.pop()
        assert path in found.places
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        pending += [((*path, step), item) for step, item in items]


@given(st.data())
def test_a_good_file_with_something_changed(data: st.DataObject) -> None:
    """Cut out, put in, said twice, at any place."""
    text = GOOD
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        new = data.draw(st.sampled_from([*YAML_PARTS, "", text[start:end] * 2]) | st.text(max_size=3))
        text = text[:start] + new + text[end:]
    outcome(text.encode("utf-8", "replace"))


def cut_off(places: int) -> None:
    """Read each of the broken files up to so many of its bytes; a small file up to each."""
    for path in sorted(CASES.glob("*.yaml")):
        data = path.read_bytes()
        for end in range(0, len(data), 1 + len(data) // places):
            try:
                outcome(data[:end])
            except Exception as error:
                error.add_note(f"{path.name} up to byte {end}")
                raise


def test_a_file_cut_off_anywhere() -> None:
    cut_off(places=6)


@pytest.mark.slow
def test_a_file_cut_off_at_every_place() -> None:
    cut_off(places=10_000)


KEYS = st.sampled_from(
    ["receivers", "exporters", "extensions", "service", "processors", "pipelines", "telemetry", "statsig", "debug/x",
     "otlp", "file_storage", "logs", "traces", "logs/", "signing_secrets", "tolerance", "max_request_body_size", "tls",
     "insecure", "headers", "resource", "compression", "limits", "sources", "anything", "ratio", "pair", "api_key", ""]
) | st.text(max_size=3)  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.just(10).map(lambda ten: ten**5000)
    | st.sampled_from(["statsig", "debug/x", "otlp", "5s", "1MiB", "\ud800", "bad", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=30,
)  # fmt: skip
BODIES = st.dictionaries(KEYS, VALUES, max_size=8) | VALUES
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "receivers": st.fixed_dictionaries({"statsig": BODIES}) | VALUES,
        "exporters": st.fixed_dictionaries({"otlp": BODIES}, optional={"debug/x": BODIES}) | VALUES,
        "extensions": st.fixed_dictionaries({"file_storage": BODIES}) | VALUES,
        "service": st.fixed_dictionaries(
            {}, optional={"extensions": VALUES, "pipelines": st.fixed_dictionaries({"logs": BODIES}) | VALUES}
        )
        | VALUES,
    },
)


@given(DOCUMENTS)
def test_random_values(values: dict[str, Any]) -> None:
    """Values of every shape in every place: a configuration, or problems that can be printed."""
    try:
        check(Document.from_values(values, "the environment"), COMPONENTS)
    except ConfigError as error:
        found = error
    else:
        return
    assert len(set(found.problems)) == len(found.problems) > 0
    assert str(found).encode()


def test_the_good_file_is_good() -> None:
    assert isinstance(outcome(GOOD.encode()), Configuration)
