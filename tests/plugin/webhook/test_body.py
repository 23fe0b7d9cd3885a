"""The body of a webhook: its shapes, the config changes in it, and the URL verification."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from statsig_otel.plugin.webhook.body import (
    CONFIG_CHANGE,
    ParsedBody,
    _parse_leniently,
    _parse_strictly,
    parse,
)
from statsig_otel.plugin.webhook.errors import MalformedBodyError
from statsig_otel.plugin.webhook.lenient_json import read
from tests.looped import looped, slow_except
from tests.plugin.strategies import HOSTILE, arrays, config_changes, json_texts

DATA: Final = Path(__file__).parents[2] / "data"

CHANGE: Final = '{"eventName":"statsig::config_change","timestamp":1,"metadata":{"type":"Gate","name":"g"}}'
EXPOSURE: Final = '{"eventName":"statsig::gate_exposure","timestamp":"1","statsigMetadata":{"deviceType":null}}'
OTHER_ITEMS: Final = ("{}", "null", "0", "[]", '"a,b"', '{"eventName":1}', '{"eventName":[]}')


def batch(body: str | bytes) -> ParsedBody:
    payload = parse(body if isinstance(body, bytes) else body.encode())
    assert payload.ignored + len(payload.changes) == payload.count
    return payload


def malformed(body: str | bytes) -> str:
    """The reason for which a body is refused."""
    try:
        parse(body if isinstance(body, bytes) else body.encode())
    except MalformedBodyError as error:
        return error.reason
    pytest.fail(f"{body[:200]!r} is not malformed")


def item_is_change(data: str) -> bool:
    """Whether `data` is a config change, or an array that holds one."""
    found = read(data).value
    events = found if isinstance(found, list) else [found]
    return any(isinstance(event, dict) and event.get("eventName") == CONFIG_CHANGE for event in events)


@looped(
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
def test_a_known_shape(body: str, count: int, changes: int) -> None:
    payload = batch(body)
    assert (payload.count, len(payload.changes)) == (count, changes)
    assert payload.ignored == count - changes


@pytest.mark.parametrize("name", ["config_changes", "exposures"])
def test_the_samples_in_both_shapes(name: str) -> None:
    events = [entry["event"] for entry in json.loads((DATA / f"{name}.json").read_text())["events"]]
    for body in (json.dumps(events), json.dumps({"data": events}, indent=2)):
        payload = batch(body)
        assert payload.count == len(events)
        assert [item.value for item in payload.changes] == [
            event for event in events if event.get("eventName") == CONFIG_CHANGE
        ]


def test_the_sample_of_a_bare_array() -> None:
    sample = json.loads((DATA / "exposures.json").read_text())["bare_array_batch"]
    assert batch(json.dumps(sample)) == ParsedBody(3, ())


@pytest.mark.parametrize("body", ["\ufeff[]", f'\ufeff{{"data":[{CHANGE}]}}', "\ufeff"])
def test_a_byte_order_mark_is_named(body: str) -> None:
    with pytest.raises(
        MalformedBodyError, match="it begins with a byte order mark, which Statsig does not send"
    ) as caught:
        parse(body.encode())
    assert caught.value.reason == "not_json"


def test_an_item_keeps_its_own_text() -> None:
    """As sent, for a dead letter and `log.record.original`."""
    spaced = '{ "eventName" : "statsig::config_change",\n "a" : 1.50, "b":"\\u00e9é" }'
    for body in (f"[ {spaced} ,1.0]", f'{{"data":[\n{spaced}\n]}}', f' {{"data": {spaced} }} ', f" {spaced}\n"):
        (item,) = batch(body).changes
        assert item.text == spaced
        assert item.value == {"eventName": CONFIG_CHANGE, "a": 1.5, "b": "éé"}
        assert item.problem is None


@looped(
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
def test_an_unknown_shape(body: str, reason: str) -> None:
    assert malformed(body) == reason


def test_a_body_cut_anywhere_is_malformed() -> None:
    body = f'{{"data":[{EXPOSURE},{CHANGE}]}}'
    for cut in range(len(body)):
        assert malformed(body[:cut]) == "not_json", f"cut after {cut} characters"


@looped("wrong", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"])
@looped(
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
def test_what_is_not_utf8_anywhere_is_malformed(body: bytes, wrong: bytes) -> None:
    """msgspec by itself would let it pass in what it skips."""
    assert malformed(body % wrong) == "not_utf8"


DEEP_BODIES: Final[list[tuple[Callable[[bytes, bytes], bytes], int, int]]] = [
    (lambda deep, change: b"[" + deep + b"," + change + b"]", 2, 1),
    (lambda deep, change: b'[{"eventName":"statsig::gate_exposure","x":' + deep + b"}," + change + b"]", 2, 1),
    (lambda deep, change: b'{"data":[' + change + b"," + deep + b',1],"x":' + deep + b"}", 3, 1),
    (lambda deep, change: b"[NaN, " + deep + b" , " + change + b" ]", 3, 1),
    (lambda deep, change: b'{"data":{"a":' + deep + b',"eventName":"statsig::config_change"}}', 1, 1),
    (lambda deep, change: b'{"eventName":"statsig::config_change","a":' + deep + b',"b":[1]}', 1, 1),
]


@pytest.mark.parametrize("depth", slow_except([5_000, 50_000], 5_000))
@pytest.mark.parametrize(("body", "count", "changes"), DEEP_BODIES)
def test_deep_nesting_is_the_fault_of_its_item_alone(
    body: Callable[[bytes, bytes], bytes], count: int, changes: int, depth: int
) -> None:
    """Its neighbours are read, and an item that is a change keeps its own text."""
    change = b'{"eventName":"statsig::config_change"}'
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":1,"b":', b"}]"), (b"[\n1, ", b" ] ")):
        many = depth // len(opening + closing)
        deep = (opening * many + b"[]" + closing * many).strip()
        payload = parse(body(deep, change))
        assert (payload.count, len(payload.changes)) == (count, changes)
        text = payload.changes[-1].text.encode()
        assert text == change or (
            text.startswith(b"{") and deep in text and payload.changes[-1].text in body(deep, change).decode()
        )


@pytest.mark.parametrize("depth", [5_000, 200_000, pytest.param(5_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "body",
    [
        lambda depth: b"[" * depth,
        lambda depth: b"[" * depth + b"]" * (depth - 1),
        lambda depth: b"[" + b"[" * depth + b"}" * depth + b"]",
        lambda depth: b'{"data":' * depth,
        lambda depth: b'{"data":' * depth + b"}" * depth,
        lambda depth: b'{"data":[' + b'{"a":' * depth + b"1" + b"}" * (depth - 1) + b"]}",
        lambda depth: b"[" + b"[" * depth + b",1" + b"]" * depth + b"]",
        lambda depth: b"[" + b"[" * depth + b"1" + b"]" * 10 + b",,1" + b"]" * (depth - 10) + b"]",
    ],
)
def test_what_is_deep_and_not_json_is_malformed(body: Callable[[int], bytes], depth: int) -> None:
    assert malformed(body(depth)) == "not_json"


@given(
    before=st.lists(st.tuples(st.text(max_size=3), json_texts(hostile=True)), max_size=3),
    data=st.one_of(json_texts(hostile=True), arrays(config_changes(hostile=True)), config_changes()),
    repeated=st.booleans(),
    name=st.sampled_from((CONFIG_CHANGE, "statsig::gate_exposure", None)),
    shape=st.sampled_from(("%s", '{"data":%s}', '{"data":[%s]}', "[%s]", '[[],%s,"\\ud800"]')),
    at=st.integers(0, 4),
)
def test_a_change_is_never_lost(  # noqa: PLR0917 - hypothesis passes them by name
    before: list[tuple[str, str]],
    data: str,
    repeated: bool,
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
def test_a_million_items_are_counted(element: str) -> None:
    many = 100_000 if len(element) > 5 else 1_000_000
    payload = batch(f"[{f'{element},' * many}{CHANGE}]")
    assert (payload.count, len(payload.changes)) == (many + 1, 1)


@given(
    items=st.lists(st.one_of(config_changes(hostile=True), json_texts(hostile=True)), max_size=4),
    shape=st.sampled_from(["[%s]", '{"data":[%s]}', ' {"x":{"data":1},"data": [%s ] ,"y":[]}\n']),
)
def test_every_item_is_counted_once(items: list[str], shape: str) -> None:
    payload = batch(shape % ",".join(items))
    assert payload.count == len(items)
    texts = [item.text for item in payload.changes]
    assert texts == [text for text in items if text in texts]


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
def test_a_batch_that_is_searched_is_what_it_is_element_by_element(pieces: list[bytes], comma: bytes) -> None:
    text = b"[" + comma.join(pieces) + b"]"
    around = _parse_strictly(text)
    if around is not None:
        assert around == _parse_leniently(text.decode())
        for change in around.changes:
            assert repr(change.decoded()) == repr(read(change.text))


def test_a_search_finds_few_changes_among_others() -> None:
    items = [*PIECES[:2], b'{"eventName":"x","value":"\\\\"}', b"1"] * 4
    payload = _parse_strictly(b" [ %s ]\n" % b" ,\n".join(items))
    assert payload is not None
    assert (payload.count, [change.text.encode() for change in payload.changes]) == (16, [*PIECES[:2]] * 4)


def assert_payload_or_malformed(body: bytes) -> None:
    """No bytes at all make anything else, and each reason is a known one."""
    try:
        result = parse(body)
    except MalformedBodyError as error:
        reason: str | None = error.reason
    else:
        reason = None
        assert 0 <= len(result.changes) <= result.count
    assert reason in {None, "not_utf8", "not_json", "unknown_shape"}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_payload_or_malformed(body: bytes) -> None:
    assert_payload_or_malformed(body)


@given(st.text('{}[]",:\\ud80019.eE-+NaInfty \t\n\ufeff', max_size=60))
def test_any_punctuation_is_a_payload_or_malformed(body: str) -> None:
    assert_payload_or_malformed(body.encode())


@given(
    body=arrays(st.one_of(config_changes(hostile=True), json_texts(hostile=True))),
    edits=st.lists(st.tuples(st.integers(0), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3),
    enveloped=st.booleans(),
)
def test_any_mutated_body_is_a_payload_or_malformed(
    body: str,
    edits: list[tuple[int, int, bytes]],
    enveloped: bool,
) -> None:
    mutated = bytearray((f'{{"data":{body}}}' if enveloped else body).encode())
    for place, removed, inserted in edits:
        at = place % (len(mutated) + 1)
        mutated[at : at + removed] = inserted
    assert_payload_or_malformed(bytes(mutated))


@looped("hostile", HOSTILE.values())
def test_a_hostile_text_leaves_its_neighbours_alone(hostile: str) -> None:
    """In an exposure, and as an item by itself."""
    payload = batch(f'[{{"eventName":"x","value":{hostile}}},{CHANGE},{hostile}]')
    assert (payload.count, [item.text for item in payload.changes]) == (3, [CHANGE])
    assert payload.changes[0].problem is None
