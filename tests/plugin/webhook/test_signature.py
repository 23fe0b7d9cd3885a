"""The signature of a webhook: which requests pass, and how the header of a request is made."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from statsig_otel.config import Opaque
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.webhook import signature as signature_module
from statsig_otel.plugin.webhook.body import parse, parse_url_verification
from statsig_otel.plugin.webhook.errors import UnauthorizedError, WebhookError
from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER, Verifier, sign, verify
from tests.looped import looped

DATA: Final = Path(__file__).parents[2] / "data"
VECTORS: Final[list[dict[str, str]]] = json.loads((DATA / "signatures.json").read_text())["vectors"]

SECRET: Final = "webhook-test-secret"
BODY: Final = b'{"data":[]}'
NOW: Final = 1739400185400
TIMESTAMP: Final = b"1739400185400"
SIGNATURE: Final = b"v0=9f8d016c811a0bfa2a610cadb9da0a3822dace8927fb19739372f4e682d0c8d0"
HEX: Final = SIGNATURE[3:]

SECRETS: Final = st.text(min_size=1, max_size=80).filter(lambda secret: "${" not in secret)  # a reference is refused
TIMES: Final = st.integers(0, 9_999_999_999_999)


def refusal(
    signatures: list[bytes],
    timestamps: list[bytes],
    body: bytes = BODY,
    *,
    verifier: Verifier | None = None,
    now_ms: int = NOW,
) -> str | None:
    """The reason for which a request is refused; None where it passes."""
    try:
        verification = (verifier or Verifier([SECRET])).begin(signatures, timestamps, now_ms)
        verification.update(body)
        verification.finish()
    except UnauthorizedError as error:
        return error.reason
    return None


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_a_vector_is_accepted_and_made_again(vector: dict[str, str]) -> None:
    body = vector["raw_body_utf8"].encode()
    now = int(vector["timestamp"])
    verify(
        body,
        signature=vector["signature"],
        timestamp=vector["timestamp"],
        secrets=[vector["secret"]],
        now_ms=now,
    )
    assert sign(body, secret=vector["secret"], timestamp_ms=now) == {
        TIMESTAMP_HEADER: vector["timestamp"],
        SIGNATURE_HEADER: vector["signature"],
    }


def test_the_headers_are_statsigs() -> None:
    assert (SIGNATURE_HEADER, TIMESTAMP_HEADER) == ("X-Statsig-Signature", "X-Statsig-Request-Timestamp")


@looped(
    ("signatures", "timestamps", "reason"),
    [
        ([], [TIMESTAMP], "signature_missing"),
        ([SIGNATURE], [], "timestamp_missing"),
        ([], [], "signature_missing"),
        ([SIGNATURE, SIGNATURE], [TIMESTAMP], "signature_repeated"),
        ([SIGNATURE], [TIMESTAMP, TIMESTAMP], "timestamp_repeated"),
        ([SIGNATURE, b""], [TIMESTAMP], "signature_repeated"),
        ([SIGNATURE], [b"", TIMESTAMP], "timestamp_repeated"),
    ],
)
def test_each_header_stands_there_exactly_once(signatures: list[bytes], timestamps: list[bytes], reason: str) -> None:
    assert refusal(signatures, timestamps) == reason


@looped(
    "signature",
    [
        b"",
        b"v0=",
        HEX,
        b"v0=" + HEX.upper(),
        b"V0=" + HEX,
        b"v1=" + HEX,
        b"v0:" + HEX,
        b"v0==" + HEX[1:],
        b"v0=" + HEX[:-1],
        b"v0=" + HEX + b"0",
        b"v0=g" + HEX[1:],
        b"v0=0x" + HEX[2:],
        b"v0=+" + HEX[1:],
        b"v0=_" + HEX[1:],
        b" " + SIGNATURE,
        SIGNATURE + b" ",
        SIGNATURE + b"\n",
        SIGNATURE + b"\x00",
        b"v0= " + HEX[:-1],
        SIGNATURE + b", " + SIGNATURE,
        SIGNATURE + b"," + SIGNATURE,
        b"v0=" + b"\xff" * 64,
        b"v0=" + "\u0663".encode() * 32,
        ("v0=" + "\uff11" * 64).encode(),
    ],
)
def test_a_signature_is_v0_and_64_lower_case_hex_digits(signature: bytes) -> None:
    assert refusal([signature], [TIMESTAMP]) == "signature_malformed"


@looped(
    "timestamp",
    [
        b"",
        b"173940018540",
        b"17394001854000",
        b"01739400185400",
        b"+173940018540",
        b"-173940018540",
        b"1_73940018540",
        b" 173940018540",
        b"173940018540 ",
        b" 1739400185400",
        b"1739400185400 ",
        b"1739400185400\n",
        b"1739400185.40",
        b"1.73940018e12",
        b"0x17394001854",
        b"173940018540a",
        b"1739400185400,1739400185400",
        b"1739400185400, 1739400185400",
        b"\xff" * 13,
        "\u0661\u0667\u0663\u0669\u0664\u0660\u0660\u0661\u0668\u0665\u0664\u0660\u0660".encode(),
        "\uff11\uff17\uff13\uff19\uff14\uff10\uff10\uff11\uff18\uff15\uff14\uff10\uff10".encode(),
        "173940018540\u00b2".encode("latin-1"),
    ],
)
def test_a_timestamp_is_13_ascii_digits(timestamp: bytes) -> None:
    assert refusal([SIGNATURE], [timestamp]) == "timestamp_malformed"


@pytest.mark.parametrize("text", ["é", "\ud800", "\u0661" * 13, "v0=" + "\uff11" * 64, "\r\nX: y"])
def test_headers_as_text_are_judged_like_bytes(text: str) -> None:
    """A header that no byte string can hold is refused, not raised about."""
    for signature, timestamp in ((text, TIMESTAMP.decode()), (SIGNATURE.decode(), text)):
        with pytest.raises(UnauthorizedError) as caught:
            verify(BODY, signature=signature, timestamp=timestamp, secrets=[SECRET], now_ms=NOW)
        assert caught.value.reason in ("signature_malformed", "timestamp_malformed")


@pytest.mark.parametrize(
    ("signature", "timestamp", "reason", "sentence"),
    [
        (
            SIGNATURE,
            TIMESTAMP[:10],
            "timestamp_malformed",
            r"\(these are seconds\): look at who else",
        ),
        (
            SIGNATURE,
            b"%d" % (NOW - 412_000),
            "timestamp_outside_tolerance",
            "7 min old, .* 5 min: something holds webhooks back, this machine's clock is fast",
        ),
        (
            SIGNATURE,
            b"%d" % (NOW + 3_600_000),
            "timestamp_outside_tolerance",
            "60 min in the future, .* 5 min: this machine's clock is slow, or the sender's is fast$",
        ),
        (b"v0=" + b"0" * 64, TIMESTAMP, "signature_wrong", "something changed the body on the way"),
        (
            b"",
            TIMESTAMP,
            "signature_malformed",
            "64 lower-case hex digits: look at who else",
        ),
    ],
)
def test_a_refusal_says_what_to_check(signature: bytes, timestamp: bytes, reason: str, sentence: str) -> None:
    with pytest.raises(UnauthorizedError, match=sentence) as caught:
        verify(BODY, signature=signature.decode(), timestamp=timestamp.decode(), secrets=[SECRET], now_ms=NOW)
    assert caught.value.reason == reason


def test_the_documentation_lists_every_reason_of_a_401() -> None:
    source = Path(signature_module.__file__).read_text()
    reasons = set(re.findall(r'UnauthorizedError\("(no_secret|(?:signature|timestamp)_[a-z_]+)"', source))
    reasons |= {f"{name}_{fault}" for name in ("signature", "timestamp") for fault in ("missing", "repeated")}
    page = (Path(__file__).parents[3] / "docs" / "webhook.md").read_text()
    assert {reason for reason in reasons if f"`{reason}`" not in page} == set()


def test_an_error_shows_nothing_of_the_request() -> None:
    with pytest.raises(UnauthorizedError) as raised:
        verify(BODY, signature="v0=leak", timestamp="leak", secrets=["leak"], now_ms=NOW)
    assert isinstance(raised.value, WebhookError)
    assert "leak" not in str(raised.value)


@given(body=st.binary(max_size=300), secret=SECRETS, timestamp=TIMES, cuts=st.lists(st.integers(0, 300)))
def test_any_body_and_secret_round_trip_however_the_body_is_cut(
    body: bytes, secret: str, timestamp: int, cuts: list[int]
) -> None:
    headers = sign(body, secret=secret, timestamp_ms=timestamp)
    verification = Verifier(["other", secret]).begin(
        [headers[SIGNATURE_HEADER].encode()], [headers[TIMESTAMP_HEADER].encode()], timestamp
    )
    for start, end in itertools.pairwise([0, *sorted(cuts), max([*cuts, len(body)])]):
        verification.update(body[start:end])
    verification.finish()


@given(
    body=st.binary(min_size=1, max_size=100),
    secret=SECRETS,
    timestamp=TIMES,
    part=st.sampled_from(["body", "timestamp", "signature", "secret"]),
    place=st.integers(0),
    change=st.integers(1, 255),
)
def test_any_one_changed_byte_is_refused(  # noqa: PLR0917 - hypothesis passes them by name
    body: bytes, secret: str, timestamp: int, part: str, place: int, change: int
) -> None:
    """Of the body, the timestamp, the signature, and of the secret, character by character."""
    headers = sign(body, secret=secret, timestamp_ms=timestamp)
    sent = {
        "body": body,
        "timestamp": headers[TIMESTAMP_HEADER].encode(),
        "signature": headers[SIGNATURE_HEADER].encode(),
    }
    if part == "secret":
        at = place % len(secret)
        secret = secret[:at] + chr(ord(secret[at]) ^ (change & 0x7F or 1)) + secret[at + 1 :]
        assume("${" not in secret)
    else:
        changed = bytearray(sent[part])
        changed[place % len(changed)] ^= change
        sent[part] = bytes(changed)
    tolerant = Verifier([secret], tolerance=1e12)
    reason = refusal([sent["signature"]], [sent["timestamp"]], sent["body"], verifier=tolerant, now_ms=timestamp)
    assert reason in {"signature_wrong", "signature_malformed", "timestamp_malformed"}


@pytest.mark.parametrize("change", [b"", BODY + b" ", b" " + BODY, BODY[:-1], b"\xef\xbb\xbf" + BODY])
def test_another_length_of_the_body_is_refused(change: bytes) -> None:
    assert refusal([SIGNATURE], [TIMESTAMP], change) == "signature_wrong"


def test_a_signature_over_the_body_alone_is_refused() -> None:
    signed = b"v0=03c6ad6a9ebd6243037f47d3a6aef40a26aadb98ffe603f666521b6256a13875"
    assert refusal([signed], [TIMESTAMP]) == "signature_wrong"


@looped("distance", [-300_000, -299_999, -1, 0, 1, 299_999, 300_000])
def test_five_minutes_both_ways_ends_included(distance: int) -> None:
    assert refusal([SIGNATURE], [TIMESTAMP], now_ms=NOW + distance) is None


@pytest.mark.parametrize("distance", [-300_001, 300_001, -(10**12), 10**12])
def test_one_millisecond_past_is_refused(distance: int) -> None:
    assert refusal([SIGNATURE], [TIMESTAMP], now_ms=NOW + distance) == "timestamp_outside_tolerance"


@given(milliseconds=st.integers(0, 10**9), sign_of=st.sampled_from((-1, 1)))
@example(milliseconds=1001, sign_of=1)
def test_the_ends_of_any_tolerance_are_exact(milliseconds: int, sign_of: int) -> None:
    verifier = Verifier([SECRET], tolerance=milliseconds / 1000)
    end = NOW + sign_of * milliseconds
    assert refusal([SIGNATURE], [TIMESTAMP], verifier=verifier, now_ms=end) is None
    past = refusal([SIGNATURE], [TIMESTAMP], verifier=verifier, now_ms=end + sign_of)
    assert past == "timestamp_outside_tolerance"


@pytest.mark.parametrize("secrets", list(itertools.permutations(["webhook-old", SECRET, "webhook-new"])))
def test_any_of_several_secrets_will_do_in_any_order(secrets: tuple[str, ...]) -> None:
    assert refusal([SIGNATURE], [TIMESTAMP], verifier=Verifier(secrets)) is None


def test_no_secret_of_several_is_signature_wrong() -> None:
    verifier = Verifier(["webhook-old", "webhook-new"])
    assert refusal([SIGNATURE], [TIMESTAMP], verifier=verifier) == "signature_wrong"


@pytest.mark.parametrize("other", ["test-secret", "Webhook-test-secret", " " + SECRET, SECRET + " ", SECRET + "\n"])
def test_a_secret_is_the_whole_string_with_its_prefix(other: str) -> None:
    assert refusal([SIGNATURE], [TIMESTAMP], verifier=Verifier([other])) == "signature_wrong"


def test_a_secret_is_keyed_as_utf8() -> None:
    signed = b"v0=c428440ba989c90fee90a7e13b122cde56170e4ff88aea64a5c68814cf7ed1b2"
    assert refusal([signed], [TIMESTAMP], verifier=Verifier(["webhook-geheim-ключ-鍵-🔑"])) is None


@pytest.mark.parametrize(
    ("secrets", "position"),
    [([SECRET], 1), ([SECRET, ""], 1), (["", SECRET], 2), (["webhook-old", "", SECRET], 3), ([SECRET, SECRET], 1)],
)
def test_says_which_secret_it_was(secrets: list[str], position: int) -> None:
    """An empty one is only a place: nothing passes with it."""
    verification = Verifier(secrets).begin([SIGNATURE], [TIMESTAMP], NOW)
    verification.update(BODY)
    assert verification.finish() == position
    headers = sign(BODY, secret="", timestamp_ms=NOW)
    assert refusal([headers[SIGNATURE_HEADER].encode()], [TIMESTAMP], verifier=Verifier(secrets)) == "signature_wrong"


@pytest.mark.parametrize("secrets", [[""], ["", ""]])
def test_a_list_of_empty_secrets_is_an_error(secrets: list[str]) -> None:
    with pytest.raises(ValueError, match="empty"):
        Verifier(secrets)
    with pytest.raises(ValueError, match="empty"):
        verify(BODY, signature=SIGNATURE.decode(), timestamp=TIMESTAMP.decode(), secrets=secrets, now_ms=NOW)


def test_one_string_is_no_sequence_of_secrets() -> None:
    """Else each of its characters would be a secret, and one guess in a few dozen a forgery."""
    with pytest.raises(TypeError, match="secrets must be a list of strings, not str"):
        Verifier(SECRET)


def test_a_secret_may_be_opaque() -> None:
    """As in settings, so that one list of secrets serves all."""
    secret = Opaque(SECRET)
    assert sign(BODY, secret=secret, timestamp_ms=NOW) == sign(BODY, secret=SECRET, timestamp_ms=NOW)
    several: list[list[str | Opaque]] = [[secret], ["webhook-other", secret], [Opaque(""), secret]]
    for secrets in several:
        verify(BODY, signature=SIGNATURE.decode(), timestamp=TIMESTAMP.decode(), secrets=secrets, now_ms=NOW)
    with pytest.raises(UnauthorizedError):
        verify(BODY, signature=SIGNATURE.decode(), timestamp=TIMESTAMP.decode(), secrets=[Opaque("x")], now_ms=NOW)
    with pytest.raises(ValueError, match="empty"):
        Verifier([Opaque("")])
    with pytest.raises(ValueError, match=r"contains \$\{"):
        Verifier([Opaque("${env:SECRET}")])


def test_a_secret_is_a_string() -> None:
    secret: Any = SECRET.encode()
    for call in (lambda: Verifier([SECRET, secret]), lambda: sign(b"{}", secret=secret, timestamp_ms=1)):
        with pytest.raises(TypeError, match="secret must be a str or an Opaque, not bytes"):
            call()


@pytest.mark.parametrize(
    ("signatures", "timestamps"), [([SIGNATURE], [TIMESTAMP]), ([], []), ([b"x"], [b"y"]), ([SIGNATURE], [])]
)
def test_without_a_secret_all_is_refused_as_no_secret(signatures: list[bytes], timestamps: list[bytes]) -> None:
    verifier = Verifier([])
    assert not verifier.has_secret
    assert refusal(signatures, timestamps, verifier=verifier) == "no_secret"


def test_has_secret() -> None:
    assert Verifier([SECRET]).has_secret


@pytest.mark.parametrize("tolerance", [-0.001, float("nan"), float("inf")])
def test_a_tolerance_is_a_number_of_seconds(tolerance: float) -> None:
    """NaN would let every timestamp pass."""
    with pytest.raises(ValueError, match="tolerance"):
        Verifier(["webhook-x"], tolerance=tolerance)


def test_a_body_that_was_decoded_is_refused_by_a_clear_error() -> None:
    """The signature covers bytes, and a framework may have changed the string on the way."""
    headers = sign(b"{}", secret="webhook-x", timestamp_ms=1)
    signature, timestamp = headers[SIGNATURE_HEADER], headers[TIMESTAMP_HEADER]
    request = Intake(verifier=Verifier(["webhook-x"])).begin([], now_ns=1)
    body: Any = "{}"
    calls: list[Callable[[], object]] = [
        lambda: verify(body, signature=signature, timestamp=timestamp, secrets=["webhook-x"], now_ms=1),
        lambda: sign(body, secret="webhook-x", timestamp_ms=1),
        lambda: parse(body),
        lambda: parse_url_verification(body),
        lambda: request.feed(body),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="body must be bytes, not str"):
            call()
