"""Hypothesis strategies for JSON, as text.

Text and not values: one value has many spellings, and some texts (`NaN`, half of a surrogate pair, a number out of
range) are what one decoder reads and another refuses.
"""

import json
from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

CONFIG_CHANGE: Final = "statsig::config_change"

HOSTILE: Final = {
    "nan": "NaN",
    "infinity": "Infinity",
    "minus_infinity": "-Infinity",
    "too_large": "1e999",
    "too_small": "-1E400",
    "fraction_too_large": "1" * 400 + ".5",
    "integer_of_4300_digits": "9" * 4300,
    "integer_of_5000_digits": "9" * 5000,
    "negative_of_5000_digits": "-" + "9" * 5000,
    "high_surrogate": r'"\ud800"',
    "swapped_surrogates": r'"\udc00\ud83d"',
    "surrogate_inside": r'"x\udfffy"',
    "surrogate_name": r'{"\ud800":1}',
    "nested": "[" * 300 + "]" * 300,
}
"""JSON, or nearly, that msgspec refuses or a record can't hold. Python's json reads all but the longest integers."""


def _escape_all(text: str) -> str:
    units = text.encode("utf-16-be")
    return '"' + "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)) + '"'


def spellings(text: str) -> st.SearchStrategy[str]:
    """A text as a JSON string: plain, with ASCII escapes, or with nothing but escapes."""
    return st.sampled_from((json.dumps(text, ensure_ascii=False), json.dumps(text), _escape_all(text)))


_BLANKS: Final = st.sampled_from(("", "", "", " ", "\n", "\t\r\n  "))

_NAMES: Final = (
    "eventName", "timestamp", "user", "userID", "metadata", "data", "event", "verification_code", "timeUUID",
    "type", "name", "action", "description", "environments", "environment", "projectName", "projectID",
    "tags", "targetApps", "email", "x", "",
)  # fmt: skip

_STRINGS: Final = st.one_of(
    st.text(max_size=6).flatmap(spellings),
    st.sampled_from((CONFIG_CHANGE, "statsig::gate_exposure", "url_verification", "production,staging")).flatmap(
        spellings
    ),
    st.sampled_from((r'"\/\b\f"', r'"\ud83d\ude00"', r'"\u0000"', '"\u2028\x7f"', '"1_0"', '"٣"')),
)

_NUMBERS: Final = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)

_SCALARS: Final = st.one_of(st.sampled_from(("null", "true", "false", "0", "-0", "-0.0")), _NUMBERS, _STRINGS)


def arrays(elements: st.SearchStrategy[str], *, max_size: int = 4) -> st.SearchStrategy[str]:
    """Arrays of these, with blanks between."""
    return st.tuples(_BLANKS, st.lists(elements, max_size=max_size), _BLANKS).map(
        lambda parts: "[" + parts[0] + f"{parts[0]},{parts[2]}".join(parts[1]) + parts[2] + "]"
    )


def objects(members: st.SearchStrategy[str], *, max_size: int = 4) -> st.SearchStrategy[str]:
    """Objects of these, under known and unknown names, some of them twice."""
    names = st.one_of(st.sampled_from(_NAMES).flatmap(spellings), _STRINGS)
    pairs = st.lists(st.tuples(names, members), max_size=max_size)
    return st.tuples(_BLANKS, pairs, _BLANKS).map(
        lambda parts: "{" + ",".join(f"{parts[0]}{name}{parts[2]}:{value}" for name, value in parts[1]) + parts[2] + "}"
    )


def json_texts(*, hostile: bool = False, max_leaves: int = 8) -> st.SearchStrategy[str]:
    """Any JSON document; with `hostile` also what only the standard library reads, and what nothing does."""
    leaves = st.one_of(_SCALARS, st.sampled_from(list(HOSTILE)).map(HOSTILE.__getitem__)) if hostile else _SCALARS
    return st.recursive(leaves, lambda inner: arrays(inner) | objects(inner), max_leaves=max_leaves)


def join_object(members: Sequence[tuple[str, str]]) -> str:
    """An object of names and the JSON texts of their values."""
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in members) + "}"


def config_changes(*, hostile: bool = False) -> st.SearchStrategy[str]:
    """Config changes: mostly sound ones, in which any member may be absent or hold anything."""
    anything = json_texts(hostile=hostile, max_leaves=4)
    texts = st.one_of(_STRINGS, anything)

    def members(required: dict[str, st.SearchStrategy[str]], *optional: str) -> st.SearchStrategy[str]:
        return (
            st.fixed_dictionaries(required, optional=dict.fromkeys(optional, texts))
            .flatmap(lambda found: st.permutations(list(found.items())))
            .map(join_object)
        )

    metadata = members(
        {"type": st.just('"Gate"') | texts, "name": st.just('"layout_v2"') | texts},
        "action", "description", "environments", "environment", "projectName", "projectID", "tags", "targetApps",
    )  # fmt: skip
    user = members({}, "name", "email", "userID", "x")
    return members(
        {
            "eventName": st.just(json.dumps(CONFIG_CHANGE)),
            "timestamp": st.one_of(st.just("1709660061095"), st.just('"1709660061095"'), texts),
            "metadata": st.one_of(metadata, metadata, texts),
            "user": st.one_of(user, user, texts),
        },
        "userID", "timeUUID", "x",
    )  # fmt: skip
