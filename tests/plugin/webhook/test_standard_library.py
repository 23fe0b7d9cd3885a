"""The two JSON readers against the standard library: what `parse` says of any body, told once more without them.

The model follows docs/webhook.md and reads a body with `json.loads` alone. So a mistake that both readers share is
found, too.
"""

import json
import math
from typing import Any, Final, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.plugin.webhook import body as webhook
from statsig_otel.plugin.webhook.body import CONFIG_CHANGE
from statsig_otel.plugin.webhook.errors import MalformedBodyError
from tests.plugin.strategies import arrays, config_changes, json_texts
from tests.plugin.webhook.test_lenient_json import SHAPES

Said: TypeAlias = tuple[int, list[str]] | str
"""The number of items, and the changes; or why the body is refused."""

NOT_EXACT: Final = "contains what JSON can't express"
LONGEST: Final = 4300


class Members(list[tuple[str, Any]]):
    """An object with its members in order, also those of the same name."""


def integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST else math.nan


def decoded(text: str) -> Any:
    return json.loads(text, object_pairs_hook=Members, parse_int=integer)


def plain(value: Any) -> Any:
    """The value with objects as dictionaries: of members with the same name the last one counts."""
    if isinstance(value, Members):
        return {name: plain(member) for name, member in value}
    return [plain(element) for element in value] if isinstance(value, list) else value


def is_change(value: Any) -> bool:
    return isinstance(value, Members) and dict(value).get("eventName") == CONFIG_CHANGE


def changes_in(value: Any) -> list[Any]:
    if isinstance(value, Members) or not isinstance(value, list):
        return [value] if is_change(value) else []
    return [element for element in value if is_change(element)]


def is_exact(value: Any) -> bool:
    """Whether JSON can express it, with all of its members."""
    if isinstance(value, Members):
        return all(is_exact(member) for _, member in value)
    if isinstance(value, list):
        return all(map(is_exact, value))
    return not isinstance(value, float) or math.isfinite(value)


def batch(count: int, changes: list[Any]) -> Said:
    return count, list(map(shown, changes))


def shown(value: Any) -> str:
    """What two equal values have in common, and no others: 1, 1.0 and true are equal to Python."""
    return repr(plain(value)) if is_exact(value) else NOT_EXACT


def by_the_standard_library(body: bytes) -> Said:
    try:
        document = decoded(body.decode())
    except UnicodeDecodeError:
        return "not_utf8"
    except json.JSONDecodeError:
        return "not_json"
    if isinstance(document, Members):
        return of_an_object(document)
    return batch(len(document), changes_in(document)) if isinstance(document, list) else "unknown_shape"


def of_an_object(document: Members) -> Said:
    members = dict(document)
    if is_change(document):
        return batch(1, [document])
    for name in ("data", "eventName"):
        of_that_name = [value for found, value in document if found == name]
        if any(map(changes_in, of_that_name[:-1])):
            return "unknown_shape"  # a change would be lost
    data = members.get("data")
    if isinstance(data, list) and not isinstance(data, Members):
        return batch(len(data), changes_in(data))
    if is_change(data):
        return batch(1, [data])
    is_event = "eventName" in members or (isinstance(data, Members) and "eventName" in dict(data))
    return batch(1, []) if is_event else "unknown_shape"


def by_parse(body: bytes) -> Said:
    try:
        payload = webhook.parse(body)
    except MalformedBodyError as error:
        return error.reason
    for item in payload.changes:
        assert item.text in body.decode()
        assert is_exact(decoded(item.text)) == (item.problem is None)
    return payload.count, [repr(item.value) if item.problem is None else NOT_EXACT for item in payload.changes]


BODIES: Final = st.one_of(
    json_texts(hostile=True),
    st.builds(
        lambda shape, data: shape % data,
        st.sampled_from(SHAPES),
        st.one_of(
            arrays(config_changes(hostile=True) | json_texts(hostile=True)), config_changes(hostile=True), json_texts()
        ),
    ),
    st.text(st.sampled_from('[]{}",:1\\ \n'), max_size=20),
).map(str.encode)


def cut(body: bytes, at: int, put: bytes, removed: int) -> bytes:
    at %= len(body) + 1
    return body[:at] + put + body[at + removed :]


PIECES: Final = st.binary(max_size=2) | st.sampled_from([b'"', b",", b"}", b"\\", b"[", b"\xff"])
CHANGED_BODIES: Final = st.builds(cut, BODIES, st.integers(0, 2000), PIECES, st.integers(0, 3))


@pytest.mark.parametrize("counted_by_text", [webhook._MAX_COUNTED_BY_TEXT, 0])
@given(body=BODIES | CHANGED_BODIES)
def test_a_body_is_what_the_standard_library_says(body: bytes, counted_by_text: int) -> None:
    """Also where the items are counted in the way that large bodies are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webhook, "_MAX_COUNTED_BY_TEXT", counted_by_text)
        assert by_parse(body) == by_the_standard_library(body)
