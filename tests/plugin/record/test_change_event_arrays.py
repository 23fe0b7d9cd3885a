"""Tags, target apps and other arrays of an item: each element is a string of the change event."""

from typing import Any, Final

import pytest

from statsig_otel.plugin.record.change_event import ChangeEvent, InvalidItemError
from tests.looped import looped
from tests.plugin.record.change_event_samples import ABSENT, mapped, with_member

ARRAYS: Final = {"metadata.tags": "tags", "metadata.targetApps": "target_apps"}


@looped(
    ("value", "expected"),
    [
        (ABSENT, ()),
        (None, ()),
        ("", ()),
        ([], ()),
        ([None, ""], ()),
        (["core", "web"], ("core", "web")),
        (["b", None, "a", "", "b"], ("b", "a", "b")),
        ([1, -2.5, True, False, 0], ("1", "-2.5", "true", "false", "0")),
        ([{"name": "é", "id": 1}], ('{"name":"é","id":1}',)),
        ([{}, [], [1, [None, "x"]]], ("{}", "[]", '[1,[null,"x"]]')),
        (["\ud800", {"\udfff": "\ud83d"}], ("\ufffd", '{"\ufffd":"\ufffd"}')),
        ("core", ("core",)),
        (5, ("5",)),
        (0, ("0",)),
        (False, ("false",)),
    ],
)
def test_each_element_of_an_array_is_a_text(value: object, expected: tuple[str, ...]) -> None:
    for path, attribute in ARRAYS.items():
        event = mapped(path, value)
        assert (getattr(event, attribute), event.left_out) == (expected, ()), path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("web, ios,,  ", ("web", "ios")),
        (",", ()),
        ("\ud800,b", ("\ufffd", "b")),
        (["web,ios"], ("web,ios",)),
    ],
)
def test_target_apps_in_one_string_are_split_as_environments_are(value: object, expected: tuple[str, ...]) -> None:
    """Each of them may be a service. A comma in a tag is a part of it."""
    assert mapped("metadata.targetApps", value).target_apps == expected
    assert mapped("metadata.tags", "a,b").tags == ("a,b",)


@pytest.mark.parametrize("value", [{}, {"core": True}])
def test_an_object_in_place_of_an_array_is_left_out(value: object) -> None:
    for path, attribute in ARRAYS.items():
        event = mapped(path, value)
        assert (getattr(event, attribute), event.left_out) == ((), (path,)), path


@pytest.mark.parametrize("path", ARRAYS)
def test_an_element_of_an_array_that_is_nested_too_deeply(path: str) -> None:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    item = with_member(path, ABSENT)
    item["metadata"][path.removeprefix("metadata.")] = [deep]
    with pytest.raises(InvalidItemError, match="nested too deeply"):
        ChangeEvent.from_item(item)
