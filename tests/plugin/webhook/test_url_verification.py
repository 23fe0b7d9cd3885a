"""Which bodies are Statsig's URL verification."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.plugin.webhook.body import (
    CONFIG_CHANGE,
    MAX_URL_VERIFICATION_SIZE,
    parse,
    parse_url_verification,
)
from statsig_otel.plugin.webhook.errors import MalformedBodyError
from tests.looped import looped
from tests.plugin.strategies import json_texts, spellings

DATA: Final = Path(__file__).parents[2] / "data"


def url_verification(**members: object) -> bytes:
    data = {"event": "url_verification", "verification_code": "abc123"} | members
    return json.dumps({"data": data}, ensure_ascii=False).encode()


def test_the_sample_of_a_url_verification() -> None:
    sample = json.loads((DATA / "url_verification.json").read_text())
    code = sample["response"]["verification_code"]
    body = json.dumps(sample["request"], indent=1).encode()
    assert parse_url_verification(body) == code


def test_a_url_verification_is_not_a_batch() -> None:
    """Callers look for a URL verification before they parse the body."""
    with pytest.raises(MalformedBodyError) as refused:
        parse(url_verification())
    assert refused.value.reason == "unknown_shape"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"data":{"verification_code":"1","event":"url_verification"}}', "1"),
        (b' \r\n{ "data" : { "event" : "url_verification" , "verification_code" : "1" } }\n', "1"),
        (rb'{"d\u0061ta":{"event":"\u0075rl_verification","verification_code":"\u0041\/"}}', "A/"),
        (url_verification(verification_code=" ~ !"), " ~ !"),
        (url_verification(verification_code='<">&'), '<">&'),
        (url_verification(verification_code="x" * 256), "x" * 256),
    ],
)
def test_the_shape_of_a_url_verification(body: bytes, code: str) -> None:
    assert parse_url_verification(body) == code
    with pytest.raises(MalformedBodyError) as refused:
        parse(body)
    assert refused.value.reason == "unknown_shape"


@looped(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"data":[]}',
        b'{"data":{}}',
        b'{"data":{"event":"url_verification"}}',
        b'{"data":{"verification_code":"abc123"}}',
        b'{"event":"url_verification","verification_code":"abc123"}',
        b'{"data":[{"event":"url_verification","verification_code":"abc123"}]}',
        b'[{"data":{"event":"url_verification","verification_code":"abc123"}}]',
        b'{"data":{"event":"url_verification","verification_code":"abc123"},"more":1}',
        url_verification(more=1),
        url_verification(eventName=CONFIG_CHANGE),
        url_verification(event="url_verification2"),
        url_verification(event="URL_VERIFICATION"),
        url_verification(event=None),
        url_verification(event=["url_verification"]),
        url_verification(verification_code=""),
        url_verification(verification_code="x" * 257),
        url_verification(verification_code="\n"),
        url_verification(verification_code="abc\n"),
        url_verification(verification_code="\x00"),
        url_verification(verification_code="\x7f"),
        url_verification(verification_code="é"),
        url_verification(verification_code="\u0661"),
        url_verification(verification_code="\u2028"),
        url_verification(verification_code=1),
        url_verification(verification_code=None),
        url_verification(verification_code=["x"]),
        url_verification(verification_code={"x": "y"}),
        url_verification() + b"x",
        url_verification() * 2,
        url_verification()[:-1],
        b"\xef\xbb\xbf" + url_verification(),
        url_verification(verification_code="@").replace(b"@", b"\xff"),
        url_verification(verification_code="@").replace(b"@", rb"\ud800"),
        url_verification() + b" " * MAX_URL_VERIFICATION_SIZE,
        b"[" * MAX_URL_VERIFICATION_SIZE,
        b'{"data":' * 500,
    ],
)
def test_anything_else_is_not_a_url_verification(body: bytes) -> None:
    assert parse_url_verification(body) is None


def test_the_size_of_a_url_verification_is_bounded_exactly() -> None:
    body = url_verification()
    longest = body + b" " * (MAX_URL_VERIFICATION_SIZE - len(body))
    assert parse_url_verification(longest) == "abc123"
    assert parse_url_verification(longest + b" ") is None


@given(st.one_of(st.binary(max_size=80), json_texts(hostile=True).map(str.encode)))
def test_nothing_arbitrary_is_a_url_verification(body: bytes) -> None:
    assert parse_url_verification(body) is None


@given(
    code=st.one_of(st.text(max_size=300), st.text(st.characters(min_codepoint=32, max_codepoint=126))),
    data=st.data(),
)
def test_a_code_is_answered_if_and_only_if_it_is_short_and_printable(code: str, data: st.DataObject) -> None:
    text = data.draw(spellings(code))
    body = f'{{"data":{{"event":"url_verification","verification_code":{text}}}}}'.encode()
    expected: Any = code if re.fullmatch(r"[ -~]{1,256}", code) else None
    assert parse_url_verification(body) == expected
