"""Statsig's webhook: its signature, and the shapes of its body."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from statsig_otel.plugin.webhook.errors import MalformedBodyError, UnauthorizedError, WebhookError
from statsig_otel.plugin.webhook.lenient_json import read
from statsig_otel.plugin.webhook.payload import (
    CONFIG_CHANGE,
    MAX_URL_VERIFICATION_SIZE,
    Payload,
    _parse_leniently,
    _search_for_changes,
    parse,
    parse_url_verification,
)
from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER, Verifier, sign, verify
from tests.plugin.strategies import HOSTILE, arrays, config_changes, json_texts, spellings

DATA: Final = Path(__file__).parents[2] / "data"
VECTORS: Final[list[dict[str, str]]] = json.loads((DATA / "signatures.json").read_text())["vectors"]

SECRET: Final = "webhook-test-secret"
BODY: Final = b'{"data":[]}'
NOW: Final = 1739400185400
TIMESTAMP: Final = b"1739400185400"
SIGNATURE: Final = b"v0=9f8d016c811a0bfa2a610cadb9da0a3822dace8927fb19739372f4e682d0c8d0"
HEX: Final = SIGNATURE[3:]

SECRETS: Final = st.text(min_size=1, max_size=80)
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


class TestSignature:
    @pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
    def test_a_vector_is_accepted_and_made_again(self, vector: dict[str, str]) -> None:
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

    def test_the_headers_are_statsigs(self) -> None:
        assert (SIGNATURE_HEADER, TIMESTAMP_HEADER) == ("X-Statsig-Signature", "X-Statsig-Request-Timestamp")

    @pytest.mark.parametrize(
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
    def test_each_header_stands_there_exactly_once(
        self, signatures: list[bytes], timestamps: list[bytes], reason: str
    ) -> None:
        assert refusal(signatures, timestamps) == reason

    @pytest.mark.parametrize(
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
    def test_a_signature_is_v0_and_64_lower_case_hex_digits(self, signature: bytes) -> None:
        assert refusal([signature], [TIMESTAMP]) == "signature_malformed"

    @pytest.mark.parametrize(
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
    def test_a_timestamp_is_13_ascii_digits(self, timestamp: bytes) -> None:
        assert refusal([SIGNATURE], [timestamp]) == "timestamp_malformed"

    @pytest.mark.parametrize("text", ["é", "\ud800", "\u0661" * 13, "v0=" + "\uff11" * 64, "\r\nX: y"])
    def test_headers_as_text_are_judged_like_bytes(self, text: str) -> None:
        """A header that no byte string can hold is refused, not raised about."""
        with pytest.raises(UnauthorizedError, match="signature_malformed"):
            verify(BODY, signature=text, timestamp=TIMESTAMP.decode(), secrets=[SECRET], now_ms=NOW)
        with pytest.raises(UnauthorizedError, match="timestamp_malformed"):
            verify(BODY, signature=SIGNATURE.decode(), timestamp=text, secrets=[SECRET], now_ms=NOW)

    def test_an_error_shows_nothing_of_the_request(self) -> None:
        with pytest.raises(UnauthorizedError) as raised:
            verify(BODY, signature="v0=leak", timestamp="leak", secrets=["leak"], now_ms=NOW)
        assert isinstance(raised.value, WebhookError)
        assert "leak" not in str(raised.value)

    @given(body=st.binary(max_size=300), secret=SECRETS, timestamp=TIMES, cuts=st.lists(st.integers(0, 300)))
    def test_any_body_and_secret_round_trip_however_the_body_is_cut(
        self, body: bytes, secret: str, timestamp: int, cuts: list[int]
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
        self, body: bytes, secret: str, timestamp: int, part: str, place: int, change: int
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
        else:
            changed = bytearray(sent[part])
            changed[place % len(changed)] ^= change
            sent[part] = bytes(changed)
        tolerant = Verifier([secret], tolerance=1e12)
        reason = refusal([sent["signature"]], [sent["timestamp"]], sent["body"], verifier=tolerant, now_ms=timestamp)
        assert reason in {"signature_wrong", "signature_malformed", "timestamp_malformed"}

    @pytest.mark.parametrize("change", [b"", BODY + b" ", b" " + BODY, BODY[:-1], b"\xef\xbb\xbf" + BODY])
    def test_another_length_of_the_body_is_refused(self, change: bytes) -> None:
        assert refusal([SIGNATURE], [TIMESTAMP], change) == "signature_wrong"

    def test_a_signature_over_the_body_alone_is_refused(self) -> None:
        signed = b"v0=03c6ad6a9ebd6243037f47d3a6aef40a26aadb98ffe603f666521b6256a13875"
        assert refusal([signed], [TIMESTAMP]) == "signature_wrong"


class TestTolerance:
    @pytest.mark.parametrize("distance", [-300_000, -299_999, -1, 0, 1, 299_999, 300_000])
    def test_five_minutes_both_ways_ends_included(self, distance: int) -> None:
        assert refusal([SIGNATURE], [TIMESTAMP], now_ms=NOW + distance) is None

    @pytest.mark.parametrize("distance", [-300_001, 300_001, -(10**12), 10**12])
    def test_one_millisecond_past_is_refused(self, distance: int) -> None:
        assert refusal([SIGNATURE], [TIMESTAMP], now_ms=NOW + distance) == "timestamp_outside_tolerance"

    @given(milliseconds=st.integers(0, 10**9), sign_of=st.sampled_from((-1, 1)))
    @example(milliseconds=1001, sign_of=1)
    def test_the_ends_of_any_tolerance_are_exact(self, milliseconds: int, sign_of: int) -> None:
        verifier = Verifier([SECRET], tolerance=milliseconds / 1000)
        end = NOW + sign_of * milliseconds
        assert refusal([SIGNATURE], [TIMESTAMP], verifier=verifier, now_ms=end) is None
        past = refusal([SIGNATURE], [TIMESTAMP], verifier=verifier, now_ms=end + sign_of)
        assert past == "timestamp_outside_tolerance"


class TestSecrets:
    @pytest.mark.parametrize("secrets", list(itertools.permutations(["webhook-old", SECRET, "webhook-new"])))
    def test_any_of_several_secrets_will_do_in_any_order(self, secrets: tuple[str, ...]) -> None:
        assert refusal([SIGNATURE], [TIMESTAMP], verifier=Verifier(secrets)) is None

    def test_no_secret_of_several_is_signature_wrong(self) -> None:
        verifier = Verifier(["webhook-old", "webhook-new"])
        assert refusal([SIGNATURE], [TIMESTAMP], verifier=verifier) == "signature_wrong"

    @pytest.mark.parametrize("other", ["test-secret", "Webhook-test-secret", " " + SECRET, SECRET + " ", SECRET + "\n"])
    def test_a_secret_is_the_whole_string_with_its_prefix(self, other: str) -> None:
        assert refusal([SIGNATURE], [TIMESTAMP], verifier=Verifier([other])) == "signature_wrong"

    def test_a_secret_is_keyed_as_utf8(self) -> None:
        signed = b"v0=c428440ba989c90fee90a7e13b122cde56170e4ff88aea64a5c68814cf7ed1b2"
        assert refusal([signed], [TIMESTAMP], verifier=Verifier(["webhook-geheim-ключ-鍵-🔑"])) is None

    @pytest.mark.parametrize("secrets", [[""], [SECRET, ""], ["", SECRET]])
    def test_an_empty_secret_is_an_error(self, secrets: list[str]) -> None:
        with pytest.raises(ValueError, match="empty"):
            Verifier(secrets)
        with pytest.raises(ValueError, match="empty"):
            verify(BODY, signature=SIGNATURE.decode(), timestamp=TIMESTAMP.decode(), secrets=secrets, now_ms=NOW)

    def test_one_string_is_no_sequence_of_secrets(self) -> None:
        """Else each of its characters would be a secret, and one guess in a few dozen a forgery."""
        with pytest.raises(TypeError, match="one string"):
            Verifier(SECRET)

    @pytest.mark.parametrize(
        ("signatures", "timestamps"), [([SIGNATURE], [TIMESTAMP]), ([], []), ([b"x"], [b"y"]), ([SIGNATURE], [])]
    )
    def test_without_a_secret_all_is_refused_as_no_secret(
        self, signatures: list[bytes], timestamps: list[bytes]
    ) -> None:
        verifier = Verifier([])
        assert not verifier.has_secret
        assert refusal(signatures, timestamps, verifier=verifier) == "no_secret"

    def test_has_secret(self) -> None:
        assert Verifier([SECRET]).has_secret


CHANGE: Final = '{"eventName":"statsig::config_change","timestamp":1,"metadata":{"type":"Gate","name":"g"}}'
EXPOSURE: Final = '{"eventName":"statsig::gate_exposure","timestamp":"1","statsigMetadata":{"deviceType":null}}'
OTHER_ITEMS: Final = ("{}", "null", "0", "[]", '"a,b"', '{"eventName":1}', '{"eventName":[]}')


def batch(body: str | bytes) -> Payload:
    payload = parse(body if isinstance(body, bytes) else body.encode())
    assert payload.ignored + len(payload.changes) == payload.count
    return payload


def malformed(body: str | bytes) -> str:
    with pytest.raises(MalformedBodyError) as raised:
        parse(body if isinstance(body, bytes) else body.encode())
    return raised.value.reason


def item_is_change(data: str) -> bool:
    """Whether `data` is a config change, or an array that holds one."""
    found = read(data).value
    events = found if isinstance(found, list) else [found]
    return any(isinstance(event, dict) and event.get("eventName") == CONFIG_CHANGE for event in events)


class TestShapes:
    @pytest.mark.parametrize(
        ("body", "count", "changes"),
        [
            ("[]", 0, 0),
            ('{"data":[]}', 0, 0),
            (f'{{"data":[{CHANGE}]}}', 1, 1),
            (f"[{CHANGE}]", 1, 1),
            (f'{{"data":{CHANGE}}}', 1, 1),
            (CHANGE, 1, 1),
            (f"[{EXPOSURE}]", 1, 0),
            (f'{{"data":[{EXPOSURE}]}}', 1, 0),
            (f'{{"data":{EXPOSURE}}}', 1, 0),
            (EXPOSURE, 1, 0),
            (f"[{EXPOSURE},{CHANGE},{EXPOSURE},{CHANGE}]", 4, 2),
            (f'{{"data":[{EXPOSURE},{CHANGE},{EXPOSURE},{CHANGE}]}}', 4, 2),
            (f'{{"version":2,"data":[{CHANGE}],"more":[[{CHANGE}]]}}', 1, 1),
            (f'{{"data":[{CHANGE}],"eventName":"x"}}', 1, 1),
            (f'{{"data":[{CHANGE}],"more":NaN,"id":"\\ud800"}}', 1, 1),
            (f" \t\r\n[ {CHANGE} , {EXPOSURE} ]\n ", 2, 1),
            (f'\n{{ "data" : [ {CHANGE} ] }}\r\n', 1, 1),
            (f"\n{CHANGE}\n", 1, 1),
            ("[1,null,true,-2.5,[],{}]", 6, 0),
            ('["statsig::config_change",["statsig::config_change"]]', 2, 0),
            ('{"data":[1,null,"x"]}', 3, 0),
            (f"[[{CHANGE}]]", 1, 0),
            ('[{"eventName":null},{"eventName":1},{"eventName":["statsig::config_change"]},{"eventname":1}]', 4, 0),
            ('{"data":{"eventName":null}}', 1, 0),
            ('{"eventName":5}', 1, 0),
            ('{"data":null,"eventName":"statsig::config_change"}', 1, 1),
            ('{"data":{},"eventName":"statsig::config_change"}', 1, 1),
            ('{"data":[],"eventName":"statsig::config_change"}', 1, 1),
            ('{"eventName":"statsig::config_change","data":[]}', 1, 1),
            ('{"eventName":"statsig::config_change","data":[1,2]}', 1, 1),
            ('{"eventName":"statsig::config_change","data":[1,NaN]}', 1, 1),
            (f'{{"eventName":"statsig::config_change","data":[{CHANGE},{CHANGE}]}}', 1, 1),
            (f'{{"eventName":"statsig::config_change","data":{EXPOSURE}}}', 1, 1),
            (r'{"event\u004eame":"statsig::config_chang\u0065","data":[[]]}', 1, 1),
            (f'{{"data":[],"data":[{CHANGE}]}}', 1, 1),
            (f'{{"data":[{EXPOSURE}],"data":[{CHANGE}],"data_":"data"}}', 1, 1),
            (f'[{{"data":[{CHANGE}],"data":[]}},{CHANGE}]', 2, 1),
            (f'{{"version":{{"data":[{CHANGE}],"data":[]}},"data":[{{"data":"data"}},{CHANGE}]}}', 2, 1),
            ('{"data":[1],"data":[]}', 0, 0),
            (f'{{"data":5,"data":[{CHANGE}]}}', 1, 1),
            ('[{"eventName":"x","eventName":"statsig::config_change"}]', 1, 1),
            ('[{"eventName":"statsig::config_change","eventName":"x"}]', 1, 0),
            ('[{"eventName":NaN,"eventName":"statsig::config_change"}]', 1, 1),
            ('[{"eventName":"Statsig::config_change"},{"eventName":"statsig::config_change "}]', 2, 0),
            (r'[{"event\u004eame":"statsig::\u0063onfig_change"}]', 1, 1),
            (r'{"d\u0061ta":[{"eventName":"\u0073tatsig::config_change"}]}', 1, 1),
        ],
    )
    def test_a_known_shape(self, body: str, count: int, changes: int) -> None:
        payload = batch(body)
        assert (payload.count, len(payload.changes)) == (count, changes)
        assert payload.ignored == count - changes

    @pytest.mark.parametrize("name", ["config_changes", "exposures"])
    def test_the_samples_in_both_shapes(self, name: str) -> None:
        events = [entry["event"] for entry in json.loads((DATA / f"{name}.json").read_text())["events"]]
        for body in (json.dumps(events), json.dumps({"data": events}, indent=2)):
            payload = batch(body)
            assert payload.count == len(events)
            assert [item.value for item in payload.changes] == [
                event for event in events if event.get("eventName") == CONFIG_CHANGE
            ]

    def test_the_sample_of_a_bare_array(self) -> None:
        sample = json.loads((DATA / "exposures.json").read_text())["bare_array_batch"]
        assert batch(json.dumps(sample)) == Payload(3, ())

    def test_an_item_keeps_its_own_text(self) -> None:
        """As sent, for a dead letter and `log.record.original`."""
        spaced = '{ "eventName" : "statsig::config_change",\n "a" : 1.50, "b":"\\u00e9é" }'
        for body in (f"[ {spaced} ,1.0]", f'{{"data":[\n{spaced}\n]}}', f' {{"data": {spaced} }} ', f" {spaced}\n"):
            (item,) = batch(body).changes
            assert item.text == spaced
            assert item.value == {"eventName": CONFIG_CHANGE, "a": 1.5, "b": "éé"}
            assert item.problem is None

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ("", "not_json"),
            (" ", "not_json"),
            ("x", "not_json"),
            ("\x00", "not_json"),
            ("\ufeff[]", "not_json"),
            ("\x0b[]", "not_json"),
            ("\xa0[]", "not_json"),
            ("[", "not_json"),
            ('{"data":[', "not_json"),
            (f'{{"data":[{CHANGE}', "not_json"),
            (f'{{"data":[{CHANGE}]', "not_json"),
            (f"[{CHANGE[:-1]}]", "not_json"),
            (f"[{CHANGE},]", "not_json"),
            (f"[{CHANGE}]]", "not_json"),
            (f"[{CHANGE}]x", "not_json"),
            ("[][]", "not_json"),
            (f"{CHANGE}{CHANGE}", "not_json"),
            (f"{CHANGE}\n{CHANGE}", "not_json"),
            ("{}x", "not_json"),
            ("['a']", "not_json"),
            ("[01]", "not_json"),
            ("[1 2]", "not_json"),
            ("[,]", "not_json"),
            ("[//\n]", "not_json"),
            ('["\t"]', "not_json"),
            (r'["\x"]', "not_json"),
            ('{"data":[],}', "not_json"),
            ('{"data" []}', "not_json"),
            ("{data:[]}", "not_json"),
            ("{1:[]}", "not_json"),
            ('{"eventName":"x"', "not_json"),
            ("null", "unknown_shape"),
            ("1", "unknown_shape"),
            ('"x"', "unknown_shape"),
            (" true\n", "unknown_shape"),
            ("NaN", "unknown_shape"),
            ("{}", "unknown_shape"),
            ('{"data":null}', "unknown_shape"),
            ('{"data":"x"}', "unknown_shape"),
            ('{"data":1}', "unknown_shape"),
            ('{"data":{}}', "unknown_shape"),
            ('{"data":{"data":[]}}', "unknown_shape"),
            ('{"Data":[]}', "unknown_shape"),
            ('{"data":[],"data":null}', "unknown_shape"),
            # msgspec, like most readers, takes the last silently.
            (f'{{"data":[{CHANGE}],"data":[]}}', "unknown_shape"),
            (f'{{"data":[{CHANGE}],"data":[{CHANGE}]}}', "unknown_shape"),
            (f'{{"data":{CHANGE},"data":[]}}', "unknown_shape"),
            (f'{{"data":[{CHANGE}],"data":1,"eventName":"x"}}', "unknown_shape"),
            (f'{{"d\\u0061ta":[{CHANGE}],"data":[]}}', "unknown_shape"),
            (f'{{"data":[{CHANGE}],"d\\u0061t\\u0061":[]}}', "unknown_shape"),
            (f'{{"data":[{CHANGE}],"data":[{EXPOSURE}],"data":[]}}', "unknown_shape"),
            (f'{{"data":[{CHANGE}],"data":[],"x":NaN}}', "unknown_shape"),
            ('{"events":[]}', "unknown_shape"),
            ('{"data":{"event":"other","verification_code":"x"}}', "unknown_shape"),
        ],
    )
    def test_an_unknown_shape(self, body: str, reason: str) -> None:
        assert malformed(body) == reason

    @pytest.mark.parametrize("cut", range(len(f'{{"data":[{EXPOSURE},{CHANGE}]}}')))
    def test_a_body_cut_anywhere_is_malformed(self, cut: int) -> None:
        assert malformed(f'{{"data":[{EXPOSURE},{CHANGE}]}}'[:cut]) == "not_json"

    @pytest.mark.parametrize("wrong", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"])
    @pytest.mark.parametrize(
        "body",
        [
            b'[{"eventName":"statsig::config_change","x":"%s"}]',
            b'[{"eventName":"statsig::gate_exposure","x":{"y":["%s"]}}]',
            b'{"data":[],"unknown":"%s"}',
            b'{"data":[],"%s":1}',
            b'[{"eventName":"%s"}]',
            b"[]%s",
            b"%s[]",
        ],
    )
    def test_what_is_no_utf8_anywhere_is_malformed(self, body: bytes, wrong: bytes) -> None:
        """msgspec by itself would let it pass in what it skips."""
        assert malformed(body % wrong) == "not_utf8"

    @pytest.mark.parametrize("depth", [100_000, 5_000_000])
    @pytest.mark.parametrize(
        "body",
        [
            lambda depth: b"[" * depth,
            lambda depth: b"[" * depth + b"]" * depth,
            lambda depth: b'{"data":' * depth,
            lambda depth: b'{"data":[' + b'{"a":' * depth + b"1" + b"}" * depth + b"]}",
            lambda depth: b'{"x":' + b"[" * depth + b"]" * depth + b',"data":[]}',
            lambda depth: b'{"eventName":"statsig::config_change","x":' + b"[" * depth + b"]" * depth + b"}",
            lambda depth: b"[NaN," + b"[" * depth + b"]" * depth + b"]",
        ],
    )
    def test_deep_nesting_is_malformed(self, body: Callable[[int], bytes], depth: int) -> None:
        assert malformed(body(depth)) in {"nested_too_deeply", "not_json"}

    @given(
        before=st.lists(st.tuples(st.text(max_size=3), json_texts(hostile=True)), max_size=3),
        data=st.one_of(json_texts(hostile=True), arrays(config_changes(hostile=True)), config_changes()),
        repeated=st.booleans(),
        name=st.sampled_from((CONFIG_CHANGE, "statsig::gate_exposure", None)),
        shape=st.sampled_from(("%s", '{"data":%s}', '{"data":[%s]}', "[%s]", '[[],%s,"\\ud800"]')),
        at=st.integers(0, 4),
    )
    def test_a_change_is_never_lost(  # noqa: PLR0917 - hypothesis passes them by name
        self,
        before: list[tuple[str, str]],
        data: str,
        repeated: bool,  # noqa: FBT001 - drawn
        name: str | None,
        shape: str,
        at: int,
    ) -> None:
        """An object that is a config change by its own name is one, whatever else it holds, wherever it may stand."""
        members = [(json.dumps(key), text) for key, text in before if key not in {"eventName", "data"}]
        members += [('"data"', data)] * (1 + repeated)
        if name is not None:
            members.insert(at, ('"eventName"', json.dumps(name)))
        item = "{" + ",".join(f"{key}:{text}" for key, text in members) + "}"
        try:
            payload = parse((shape % item).encode())
        except MalformedBodyError:
            assert name != CONFIG_CHANGE  # else it is kept, too, but needlessly
            return
        if name == CONFIG_CHANGE:
            assert [change.text for change in payload.changes] == [item]
        elif shape == "%s":
            assert not (repeated and f'"{CONFIG_CHANGE}"' in data and item_is_change(data))

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize(
        "element",
        [EXPOSURE, *(pytest.param(other, marks=pytest.mark.slow) for other in OTHER_ITEMS)],
    )
    def test_a_million_items_are_counted(self, element: str) -> None:
        many = 100_000 if len(element) > 5 else 1_000_000
        payload = batch(f"[{f'{element},' * many}{CHANGE}]")
        assert (payload.count, len(payload.changes)) == (many + 1, 1)

    @given(
        items=st.lists(st.one_of(config_changes(hostile=True), json_texts(hostile=True)), max_size=4),
        shape=st.sampled_from(["[%s]", '{"data":[%s]}', ' {"x":{"data":1},"data": [%s ] ,"y":[]}\n']),
    )
    def test_every_item_is_counted_once(self, items: list[str], shape: str) -> None:
        payload = batch(shape % ",".join(items))
        assert payload.count == len(items)
        texts = [item.text for item in payload.changes]
        assert texts == [text for text in items if text in texts]


class TestStepsOverAllButChanges:
    """Where a batch is read around its few changes, it is read as it would be element by element."""

    PIECES: Final = (
        b'{"eventName":"statsig::config_change"}',
        b'{"user":{"a":{}}, "eventName" : "statsig::config_change","metadata":{"name":"\xc3\xa9"},"x":[{}]}',
        b'{"eventName":"statsig::config_change","eventName":"x"}',
        b'{"eventName":"x","eventName":"statsig::config_change"}',
        b'{"a":{"eventName":"statsig::config_change"}}',
        b'{"a":[{"eventName":"statsig::config_change"}],"eventName":"x"}',
        b'{"a":[{"eventName":"statsig::config_change"}],"eventName":"statsig::config_change"}',
        b'{"eventName":"statsig::config_change","metadata":{"name":"statsig::config_change"}}',
        b'{"eventName":"x","value":"a \\"statsig::config_change\\" {"}',
        b'{"eventName":"statsig::config_change","x":NaN}',
        b'{"eventName":"statsig::config_chang\\u0065"}',
        b'"statsig::config_change"',
        b'{"eventName":"x"}',
        b"{}",
        b"null",
        b"12",
        b"[]",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b" ",
        b'"',
    )

    @given(pieces=st.lists(st.sampled_from(PIECES), max_size=12), comma=st.sampled_from((b",", b" , ", b"")))
    @example(pieces=[PIECES[1]] * 8, comma=b",")
    @example(pieces=[PIECES[0]] * 9, comma=b",")
    def test_as_element_by_element(self, pieces: list[bytes], comma: bytes) -> None:
        text = b"[" + comma.join(pieces) + b"]"
        around = _search_for_changes(text)
        if around is not None:
            assert around == _parse_leniently(text.decode())

    def test_few_changes_among_others_are_found_so(self) -> None:
        items = [*self.PIECES[:2], b'{"eventName":"x","value":"\\\\"}', b"1"] * 4
        payload = _search_for_changes(b" [ %s ]\n" % b" ,\n".join(items))
        assert payload is not None
        assert (payload.count, [change.text.encode() for change in payload.changes]) == (16, [*self.PIECES[:2]] * 4)


class TestFuzz:
    """Any bytes at all make a result or a MalformedBodyError."""

    @staticmethod
    def judge(body: bytes) -> None:
        try:
            result = parse(body)
        except MalformedBodyError as error:
            reason: str | None = error.reason
        else:
            reason = None
            assert 0 <= len(result.changes) <= result.count
        assert reason in {None, "not_utf8", "not_json", "nested_too_deeply", "unknown_shape"}

    @given(st.binary(max_size=200))
    def test_arbitrary_bytes(self, body: bytes) -> None:
        self.judge(body)

    @given(st.text('{}[]",:\\ud80019.eE-+NaInfty \t\n\ufeff', max_size=60))
    def test_arbitrary_punctuation(self, body: str) -> None:
        self.judge(body.encode())

    @given(
        body=arrays(st.one_of(config_changes(hostile=True), json_texts(hostile=True))),
        edits=st.lists(st.tuples(st.integers(0), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3),
        enveloped=st.booleans(),
    )
    def test_mutated_bodies(self, body: str, edits: list[tuple[int, int, bytes]], enveloped: bool) -> None:  # noqa: FBT001 - drawn
        mutated = bytearray((f'{{"data":{body}}}' if enveloped else body).encode())
        for place, removed, inserted in edits:
            at = place % (len(mutated) + 1)
            mutated[at : at + removed] = inserted
        self.judge(bytes(mutated))


def url_verification(**members: object) -> bytes:
    data = {"event": "url_verification", "verification_code": "abc123"} | members
    return json.dumps({"data": data}, ensure_ascii=False).encode()


class TestUrlVerification:
    def test_the_sample(self) -> None:
        sample = json.loads((DATA / "url_verification.json").read_text())
        code = sample["response"]["verification_code"]
        body = json.dumps(sample["request"], indent=1).encode()
        assert parse_url_verification(body) == code

    def test_it_is_no_batch(self) -> None:
        """Whoever has not looked for it before gets no payload of it."""
        assert malformed(url_verification()) == "unknown_shape"

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
    def test_its_shape(self, body: bytes, code: str) -> None:
        assert parse_url_verification(body) == code
        assert malformed(body) == "unknown_shape"

    @pytest.mark.parametrize(
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
    def test_anything_else_is_none(self, body: bytes) -> None:
        assert parse_url_verification(body) is None

    def test_the_size_is_bounded_exactly(self) -> None:
        body = url_verification()
        longest = body + b" " * (MAX_URL_VERIFICATION_SIZE - len(body))
        assert parse_url_verification(longest) == "abc123"
        assert parse_url_verification(longest + b" ") is None

    @given(st.one_of(st.binary(max_size=80), json_texts(hostile=True).map(str.encode)))
    def test_nothing_else_gets_an_answer(self, body: bytes) -> None:
        assert parse_url_verification(body) is None

    @given(
        code=st.one_of(st.text(max_size=300), st.text(st.characters(min_codepoint=32, max_codepoint=126))),
        data=st.data(),
    )
    def test_a_code_is_answered_if_and_only_if_it_is_short_and_printable(self, code: str, data: st.DataObject) -> None:
        text = data.draw(spellings(code))
        body = f'{{"data":{{"event":"url_verification","verification_code":{text}}}}}'.encode()
        expected: Any = code if re.fullmatch(r"[ -~]{1,256}", code) else None
        assert parse_url_verification(body) == expected


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_text_leaves_its_neighbours_alone(hostile: str) -> None:
    """In an exposure, and as an item by itself."""
    payload = batch(f'[{{"eventName":"x","value":{hostile}}},{CHANGE},{hostile}]')
    assert (payload.count, [item.text for item in payload.changes]) == (3, [CHANGE])
    assert payload.changes[0].problem is None


@pytest.mark.parametrize("tolerance", [-0.001, float("nan"), float("inf")])
def test_a_tolerance_is_a_number_of_seconds(tolerance: float) -> None:
    """NaN would let every timestamp pass."""
    with pytest.raises(ValueError, match="tolerance"):
        Verifier(["webhook-x"], tolerance=tolerance)
