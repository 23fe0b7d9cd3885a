"""The uid of a config change: the rule, its vectors, and what changes it."""

import json
import random
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from statsig_otel.plugin.record.change_event import InvalidItemError
from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.webhook.body import parse
from statsig_otel.plugin.webhook.lenient_json import read
from tests.looped import looped
from tests.plugin.strategies import json_texts, objects

DATA: Final = Path(__file__).parents[2] / "data"
SAMPLES: Final = [entry["event"] for entry in json.loads((DATA / "config_changes.json").read_text())["events"]]
VECTORS: Final = json.loads((DATA / "uid_vectors.json").read_text())["vectors"]


def canonical(value: object) -> str:
    """Canonical JSON by the words of the rule, sharing no code with what the product uses."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{canonical(name)}:{canonical(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(map(escaped, value)) + '"'
    if isinstance(value, float):
        return shortest(value)
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def escaped(character: str) -> str:
    short = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}
    code = ord(character)
    if character in short:
        return short[character]
    if 0x20 <= code < 0x7F:
        return character
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def shortest(number: float) -> str:
    """The fewest digits that read back as the same number, with an exponent below 1e-4 and from 1e16 on.

    The digits are by msgspec's algorithm: two implementations agree on them, to the last tie.
    """
    sign, digits, exponent = Decimal(msgspec.json.encode(number).decode()).normalize().as_tuple()
    assert isinstance(exponent, int)
    written = "".join(map(str, digits))
    point = len(written) + exponent
    minus = "-" if sign else ""
    if number == 0:
        return f"{minus}0.0"
    if -4 < point <= 16:
        if point <= 0:
            return f"{minus}0.{'0' * -point}{written}"
        padded = written.ljust(point, "0")
        return f"{minus}{padded[:point]}.{padded[point:] or '0'}"
    mantissa = written[0] + (f".{written[1:]}" if len(written) > 1 else "")
    return f"{minus}{mantissa}e{'-' if point < 1 else '+'}{abs(point - 1):02d}"


def redelivered(value: object, shuffle: random.Random) -> object:
    """The same value with its members in another order."""
    if isinstance(value, list):
        return [redelivered(element, shuffle) for element in value]
    if isinstance(value, dict):
        names = list(value)
        shuffle.shuffle(names)
        return {name: redelivered(value[name], shuffle) for name in names}
    return value


def finite(text: str) -> object:
    """The value of a JSON text, if each of its numbers is one that a uid can be made of."""
    item = read(text)
    assume(item.problem is None)
    return item.value


def item_in(body: str) -> dict[str, Any]:
    payload = parse(body.encode())
    value = payload.changes[0].value
    assert isinstance(value, dict)
    return value


@looped("vector", VECTORS)
def test_a_vector_of_uids(vector: dict[str, str]) -> None:
    """A change here is a major version: all that waits in a queue would be taken for new."""
    item = json.loads(vector["item"])
    assert canonical(item) == vector["canonical"]
    assert sha256(b"statsig-otel/1\n" + vector["canonical"].encode()).hexdigest()[:32] == vector["uid"]
    assert uid(item) == vector["uid"]


@looped("vector", VECTORS)
def test_a_vector_of_uids_on_either_path_of_the_parser(vector: dict[str, str]) -> None:
    """A neighbour that the strict path refuses changes no uid."""
    item = vector["item"]
    if '"eventName"' not in item:
        item = item[:-1] + ("," if item != "{}" else "") + '"eventName":"statsig::config_change"}'
    strict, lenient = (uid(item_in(body)) for body in (f"[{item}]", f"[{item},NaN]"))
    assert strict == lenient
    if item == vector["item"]:
        assert strict == vector["uid"]


def test_uids_differ_where_the_canonical_texts_of_the_vectors_do() -> None:
    assert len({vector["uid"] for vector in VECTORS}) == len({vector["canonical"] for vector in VECTORS})


@given(objects(json_texts(hostile=True)))
def test_the_uid_of_any_item(text: str) -> None:
    item = finite(text)
    assert isinstance(item, dict)
    assert uid(item) == sha256(b"statsig-otel/1\n" + canonical(item).encode()).hexdigest()[:32]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_uid_of_any_number(number: float) -> None:
    assert uid({"x": number}) == sha256(f'statsig-otel/1\n{{"x":{shortest(number)}}}'.encode()).hexdigest()[:32]


@given(
    text=objects(json_texts()),
    shuffle=st.randoms(use_true_random=False),
    indent=st.sampled_from((None, 0, 3, "\t")),
    ascii_only=st.booleans(),
)
def test_a_redelivery_has_the_same_uid(
    text: str,
    shuffle: random.Random,
    indent: int | str | None,
    ascii_only: bool,
) -> None:
    """With other blanks, another order of members, other escapes, in another batch."""
    item = finite(text)
    assert isinstance(item, dict)
    item["eventName"] = "statsig::config_change"
    again = json.dumps(redelivered(item, shuffle), indent=indent, ensure_ascii=ascii_only)
    assert uid(item_in(f'{{"data":[{again}]}}')) == uid(item_in(f"[ {again},1,{{}} ]")) == uid(item)


@given(
    path=st.sampled_from(("timestamp", "userID", "new", "metadata.name", "metadata.new", "user.email")),
    text=json_texts(),
)
def test_any_other_member_makes_another_uid(path: str, text: str) -> None:
    item = json.loads(json.dumps(SAMPLES[0]))
    *parents, name = path.split(".")
    holder = item
    for parent in parents:
        holder = holder[parent]
    before = repr(holder[name]) if name in holder else None
    holder[name] = finite(text)
    assert (uid(item) == uid(SAMPLES[0])) == (repr(holder[name]) == before)


@pytest.mark.parametrize("path", ["eventName", "timestamp", "user", "metadata", "user.name", "metadata.description"])
def test_a_missing_member_makes_another_uid(path: str) -> None:
    item = json.loads(json.dumps(SAMPLES[0]))
    *parents, name = path.split(".")
    del (item[parents[0]] if parents else item)[name]
    assert uid(item) != uid(SAMPLES[0])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_an_item_with_a_number_that_is_not_json_has_no_uid(number: float) -> None:
    with pytest.raises(InvalidItemError, match="contains a number that is not JSON"):
        uid({"a": [{"b": number}]})


def test_an_item_that_is_nested_too_deeply_has_no_uid() -> None:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(InvalidItemError, match="nested too deeply"):
        uid({"x": deep})
