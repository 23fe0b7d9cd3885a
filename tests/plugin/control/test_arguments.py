"""Senseless arguments of a command are an error for the caller, never a traceback: running service and stopped one."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from statsig_otel.exporters.queue.database import StoppedQueue
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.exporters.routing import Routing
from statsig_otel.plugin.control.handlers import stopped_handlers
from statsig_otel.plugin.control.socket import ControlError
from statsig_otel.plugin.watch.journal_json import journal_command
from tests.plugin.cli.served_queue import Served, add_dead_letter, letter_of_record, run
from tests.plugin.control.test_socket import talk

COMMANDS = ["queue resume", "queue skip", "queue remove", "dead-letters replay", "dead-letters drop"]
SENSELESS: list[dict[str, Any]] = [
    {"exporter": "\ud800"},
    {"exporter": "bad\udfff", "yes": True},
    {"exporter": "x" * 60_000},
    {"exporter": 10**30},
    {"exporter": "bad", "count": 0},
    {"exporter": "bad", "older_than": 1e308},
    {"exporter": "bad", "older_than": -1.0},
    {"selection": {"ids": [10**30]}},
    {"selection": {"ids": [2**63]}},
    {"selection": {"ids": [-1]}},
    {"selection": {}, "after": 10**30},
    {"selection": {}, "after": -(10**30)},
    {"selection": {}, "upto": 2**64},
    {"selection": {"exporter": "\ud800"}},
    {"selection": {"kind": "\ud800"}},
    {"\ud800": 1},
]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=5,
)
numbers = st.integers(-(2**70), 2**70)
names = st.sampled_from(["bad", "good", "\ud800", ""]) | st.text(st.characters())
selections = st.fixed_dictionaries(
    {},
    optional={
        "ids": st.lists(numbers, max_size=3),
        "exporter": names,
        "receiver": names,
        "kind": st.sampled_from(["item", "record", "none"]),
    },
)
arguments = st.dictionaries(st.text(st.characters()), values, max_size=3) | st.fixed_dictionaries(
    {},
    optional={"exporter": names, "yes": values, "selection": selections | values, "after": numbers, "upto": numbers}
    | {"count": numbers, "older_than": st.floats(), "to": names},
)


@pytest.mark.parametrize("command", COMMANDS)
def test_senseless_values_are_answered_with_an_error(
    tmp_path: Path, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Served(tmp_path):
        for given_arguments in SENSELESS:
            line = json.dumps({"command": command, "arguments": given_arguments}).encode() + b"\n"
            answer = json.loads(talk(tmp_path / CONTROL, line))
            assert "the service's log says why" not in answer["error"], given_arguments
    assert "Traceback" not in caplog.text


@given(command=st.sampled_from(COMMANDS), given_arguments=arguments)
def test_whatever_a_stopped_queue_is_told_is_done_or_refused(
    stopped: StoppedQueue, command: str, given_arguments: dict[str, Any]
) -> None:
    handlers = stopped_handlers(stopped, mappers={}, routing=Routing(), configured=None)
    with suppress(ControlError):
        json.dumps(handlers[command](given_arguments))


@given(
    given_arguments=arguments
    | st.fixed_dictionaries({}, optional={"limit": values | st.integers(0, 200), "records": values | st.booleans()})
)
@example({"limit": 200, "records": True})
def test_whatever_the_journal_is_asked_for_is_answered_or_refused(given_arguments: dict[str, Any]) -> None:
    with suppress(ControlError):
        json.dumps(journal_command(given_arguments))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoppedQueue]:
    directory = tmp_path_factory.mktemp("stopped")
    add_dead_letter(directory, letter_of_record("a"))
    with StoppedQueue(directory) as queue:
        yield queue


@pytest.mark.parametrize(
    "words",
    [
        ("queue", "skip", "\udcff"),
        ("queue", "remove", "\udcff", "--yes"),
        ("dead-letters", "list", "--exporter", "\udcff"),
        ("dead-letters", "drop", "--receiver", "\udcff", "--yes"),
        ("dead-letters", "replay", "--exporter", "\udcff"),
    ],
)
def test_a_name_that_is_not_unicode_is_said_at_the_command_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    add_dead_letter(tmp_path, letter_of_record("a"))
    result = run(tmp_path, *words)
    assert result.exit_code == 1
    assert "is not valid Unicode" in result.output
