"""The ignored items of a body are counted by the names of their events, and none twice or not at all."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel._instruments import collecting
from statsig_otel.plugin import MalformedBodyError, Mapper, parse
from statsig_otel.plugin.receiver.counting import ignored_names
from statsig_otel.plugin.record.filter import ChangeFilter
from tests.plugin.adapters import CHANGE

SHAPES: dict[str, Callable[[list[Any]], Any]] = {
    "bare": lambda items: items,
    "below data": lambda items: {"data": items},
    "one": lambda items: items[0],
    "one below data": lambda items: {"data": items[0]},
}


def counted(body: bytes, change_filter: ChangeFilter | None = None) -> dict[str, int]:
    parsed = parse(body)
    mapped = Mapper(change_filter=change_filter).map(parsed, 1)
    found = ignored_names(body, parsed, mapped)
    assert sum(found.values()) == mapped.ignored
    assert min(found.values()) >= 0
    return {name: number for name, number in found.items() if number}


@pytest.fixture
def _read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody collects metrics."""
    monkeypatch.setattr(collecting, "has_begun", True)


@pytest.mark.usefixtures("_read")
@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_of_a_body_is_counted(shape: str) -> None:
    body = json.dumps(SHAPES[shape]([{"eventName": "checkout"}, {"eventName": "checkout"}, CHANGE])).encode()
    assert counted(body) == {"checkout": 1 if "one" in shape else 2}


@pytest.mark.usefixtures("_read")
def test_what_has_no_name_or_can_not_be_read_is_other() -> None:
    assert counted(b'[{"eventName": "a"}, {}, {"eventName": ""}]') == {"a": 1, "other": 2}
    assert counted(b'[{"eventName": "a"}, {"eventName": 5}]') == {"other": 2}
    assert counted(b'[{"eventName": "a"}, 7, "b"]') == {"other": 3}
    assert counted(b'[{"eventName": "a", "value": NaN}]') == {"other": 1}
    assert counted(json.dumps([{"eventName": "a"}, "b" * (1 << 20)]).encode()) == {"other": 2}


def test_names_are_not_looked_for_while_nobody_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "has_begun", False)
    assert counted(b'[{"eventName": "a"}]') == {"other": 1}


ITEMS: st.SearchStrategy[Any] = st.sampled_from(
    [CHANGE, {"eventName": "a"}, {"eventName": "b", "x": [CHANGE]}, {}, 5, None, "a", {"eventName": None}, {"data": []}]
)


@given(st.lists(ITEMS, min_size=1, max_size=6), st.sampled_from([*SHAPES]))
def test_none_is_counted_twice_or_not_at_all(items: list[Any], shape: str) -> None:
    """Whatever two readers make of a body."""
    body = json.dumps(SHAPES[shape](items)).encode()
    collecting.has_begun = True
    try:
        counted(body)
    except MalformedBodyError:
        return
    finally:
        collecting.has_begun = False
