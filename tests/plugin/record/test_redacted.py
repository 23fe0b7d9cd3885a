"""`include_original: redacted`: the item for an audit, with its user as `user` says."""

import hmac
import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.plugin.record.record import LogRecordEncoder
from statsig_otel.plugin.webhook.body import parse
from tests.looped import looped
from tests.plugin.record.mapping_helpers import OBSERVED, mapper_of
from tests.plugin.record.record_helpers import attributes_in, record_in
from tests.plugin.record.test_arrays import body_of

USERS = {
    "hash": "user: hash\nhash_key: pepper\ninclude_original: redacted",
    "drop": "user: drop\ninclude_original: redacted",
}
SECRET = "who-did-it"


def hashed(value: str) -> str:
    return hmac.new(b"pepper", value.encode(), sha256).hexdigest()


def record_of(user: str, item: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    (change,) = mapper_of(USERS[user]).map(parse(json.dumps([item]).encode()), OBSERVED).changes
    return change.records[0], attributes_in(record_in(change.records[0]).attributes)


def item_of(**members: object) -> dict[str, Any]:
    return {**json.loads(body_of(description="d\u00e9", n=1.5, nested=[{"a": None}]))[0], **members}


@looped(
    ("who", "redacted"),
    [
        ({}, {}),
        (
            {"user": {"name": "A", "email": "a@b", "userID": "1"}, "userID": "1"},
            {"user": {"name": hashed("A"), "email": hashed("a@b"), "userID": hashed("1")}, "userID": hashed("1")},
        ),
        ({"user": {"name": "A", "ip": "10.0.0.1", "custom": {"x": 1}}}, {"user": {"name": hashed("A")}}),
        ({"user": {"userID": 7, "name": None, "email": ["a"]}}, {"user": {"userID": hashed("7")}}),
        ({"user": {}, "userID": ""}, {}),
        (
            {"user": "A", "unitID": "u", "UserID": 5},
            {"user": hashed("A"), "unitID": hashed("u"), "UserID": hashed("5")},
        ),
        ({"user": ["A"], "userID": {"a": 1}}, {}),
    ],
)
def test_the_user_of_the_original_is_the_one_of_the_record(who: dict[str, Any], redacted: dict[str, Any]) -> None:
    for user, expected in (("hash", redacted), ("drop", {})):
        _, attributes = record_of(user, item_of(**who))
        assert json.loads(attributes["log.record.original"]) == item_of(**expected)
    named = record_of("hash", item_of(user={"name": "A"}))[1]
    assert named["user.name"] == json.loads(named["log.record.original"])["user"]["name"]


WHO = st.recursive(
    st.just(SECRET) | st.none() | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "email", "userID", "x"]), inner)
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted(USERS)), WHO, WHO, WHO)
def test_nobody_finds_the_user_anywhere_in_the_record(user: str, who: Any, user_id: Any, unit_id: Any) -> None:
    encoded, attributes = record_of(user, item_of(user=who, userID=user_id, unitID=unit_id))
    assert SECRET.encode() not in encoded
    redacted = json.loads(attributes["log.record.original"])
    assert {name: value for name, value in redacted.items() if name not in ("user", "userID", "unitID")} == item_of()


def test_the_hash_of_an_original_that_is_too_large_is_that_of_the_redacted_one() -> None:
    """Otherwise somebody could try the users one by one."""
    item = item_of(user={"name": SECRET}, other="x" * 900_000)
    _, attributes = record_of("drop", item)
    text = json.dumps(
        {name: value for name, value in item.items() if name != "user"}, ensure_ascii=False, separators=(",", ":")
    )
    assert attributes["statsig.original.sha256"] == sha256(text.encode()).hexdigest()


def test_nothing_is_redacted_where_the_user_is_shown() -> None:
    with pytest.raises(ValueError, match="needs user: hash or user: drop"):
        LogRecordEncoder(include_original="redacted")
