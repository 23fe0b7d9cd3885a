"""The lenient reader: what it reads, what it refuses, and that it agrees with the strict one."""

import json
import os
import subprocess
import sys
from typing import Final

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from statsig_otel.plugin.webhook import body as webhook
from statsig_otel.plugin.webhook.body import ParsedBody
from statsig_otel.plugin.webhook.errors import MalformedBodyError
from statsig_otel.plugin.webhook.lenient_json import MAX_PARTS, Item, Items, Members, read, split
from tests.looped import looped, slow_except
from tests.plugin.strategies import arrays, config_changes, json_texts, objects


@looped(
    ("text", "value"),
    [
        ("null", None),
        ("true", True),
        ("-0", 0),
        ("18446744073709551616", 2**64),
        ("1.5e3", 1500.0),
        ("1e-999", 0.0),
        (r'"\ud83d\ude00"', "😀"),
        (r'"\ud800"', "\ud800"),
        ('{"a":1,"a":[2]}', {"a": [2]}),
        (" \t\r\n[ ] \n", []),
    ],
)
def test_read_gives_a_value(text: str, value: object) -> None:
    item = read(text)
    assert (item.value, type(item.value), item.problem) == (value, type(value), None)


@looped(
    ("text", "problem"),
    [
        ("NaN", "contains NaN, which is not JSON"),
        ("[[-Infinity]]", "contains -Infinity, which is not JSON"),
        ('{"a":Infinity}', "contains Infinity, which is not JSON"),
        ("1e999", "contains a number that is out of range"),
        ("[-1E400]", "contains a number that is out of range"),
        ("9" * 5000, "contains an integer of 5000 digits"),
        ('{"a":[' + "9" * 4301 + "]}", "contains an integer of 4301 digits"),
    ],
)
def test_what_no_json_text_can_stand_for(text: str, problem: str) -> None:
    assert read(text).problem == problem


def test_the_largest_and_the_smallest_integer() -> None:
    for sign, factor in (("", 1), ("-", -1)):
        item = read(sign + "9" * 4300)
        assert (item.value, item.problem) == (factor * (10**4300 - 1), None)
        assert read(sign + "9" * 4301).problem == "contains an integer of 4301 digits"


def test_the_largest_number() -> None:
    item = read("[1.7976931348623157e308, 5e-324]")
    assert (item.value, item.problem) == ([1.7976931348623157e308, 5e-324], None)


@looped("text", ["", " ", "x", "[1", '"', "nul", "01", "1.", "+1", "1 2", "[],", '"\n"', r'"\x"'])
def test_read_refuses_what_is_not_json(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        read(text)


DEEP: Final = 100_000
"""Deeper than any decoder that calls itself for each level. On a stack of 8 MiB, that of Python 3.14 gets to 50,000."""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[" * DEEP + "]" * DEEP, []),
        (
            '{"a": 1, "b": [2], "deep":' + "[" * DEEP + "]" * DEEP + ' , "c": {}  }',
            {"a": 1, "b": [2], "deep": None, "c": {}},
        ),
        ('{"a":' * DEEP + "{}" + "}" * DEEP, {"a": None}),
    ],
)
def test_of_what_is_nested_too_deeply_the_first_level_is_read(text: str, value: object) -> None:
    assert read(f" {text} ") == (value, "is nested too deeply")


HALF: Final = MAX_PARTS // 2 + 1
CROWDED: Final = "has more than 250,000 objects, arrays and members"


PARTS: Final = {"[]": 1, "{ }": 1, '{"a": 0}': 2, '[[{"[:": "{\\"[::"}]]': 4, '"[:"': 0, "7": 0}
"""Values, and the number of their parts."""


@pytest.mark.parametrize("part", slow_except(PARTS, '{"a": 0}'))
def test_parts_are_counted_outside_of_strings(part: str) -> None:
    parts = PARTS[part]
    fits = (MAX_PARTS - 4) // parts if parts else MAX_PARTS + 1
    for count in (fits, fits + 1):
        text = f' {{"eventName": "x", "many": [{", ".join([part] * count)}]}}  '
        is_crowded = 4 + count * parts > MAX_PARTS
        if is_crowded:
            assert read(text) == ({"eventName": "x", "many": None}, CROWDED)
            assert Item(text.strip()).decoded() == (None, CROWDED)
        else:
            assert Item(text.strip()).decoded() == read(text) == (json.loads(text), None)


MANY: Final = {"arrays": f"[{'[],' * MAX_PARTS}0]", "an object": f'{{"x": [{{}}{",[[]]" * HALF}]}}'}
"""Values with too many parts."""


@pytest.mark.parametrize("kind", slow_except(MANY, "an object"))
def test_an_item_with_too_many_parts_leaves_its_neighbours_alone(kind: str) -> None:
    """Of it, only numbers, strings and the like are decoded."""
    many = MANY[kind]
    text = f'{{"a": {many} , "b": 1, "c": [2]}}'
    large = f'{{"many": [{"[]," * HALF}0]}}'  # together they are too many
    texts = [large, large, text, '{"d": NaN}', large]
    assert split_at_all(f"[ {' , '.join(texts)}]") == Items(5, tuple(map(Item, texts)))
    assert [Item(one).problem for one in texts] == [None, None, CROWDED, "contains NaN, which is not JSON", None]
    assert read(text) == ({"a": None, "b": 1, "c": None}, CROWDED)
    assert read(many).problem == CROWDED
    for end in ("", "]", '"'):
        with pytest.raises(json.JSONDecodeError):
            split_at_all(f"[{text[:-1]}{end}")


@given(json_texts(hostile=True) | st.text(st.sampled_from('[]{}:,"a1 \\'), max_size=12), st.booleans())
def test_what_is_deep_inside_is_still_checked(inside: str, in_objects: bool) -> None:
    """The standard library is the judge, for the same text within fewer levels."""
    opening, closing = ('{"a": ', " }") if in_objects else ("[", "]")
    text = opening * DEEP + inside + closing * DEEP
    try:
        json.loads(opening * 20 + inside + closing * 20)
    except json.JSONDecodeError:
        with pytest.raises(json.JSONDecodeError):
            read(text)
        return
    except ValueError:  # a number of more digits than the library reads
        pass
    read(text)


@given(json_texts(hostile=True))
def test_read_gives_what_the_standard_library_gives(text: str) -> None:
    item = read(text)
    if item.problem is None:
        assert repr(item.value) == repr(json.loads(text))


def is_object(value: object) -> bool:
    return isinstance(value, dict) and bool(value)


def split_at_all(text: str) -> Items | Members | None:
    return split(text, is_object, ("data", "x"))


def test_split_an_array() -> None:
    assert split_at_all(' [1 , "a",{"b" : [NaN]} ,1e999,{"c":1},{}, 2] ') == Items(
        7,
        (Item('{"b" : [NaN]}'), Item('{"c":1}')),
    )


def test_split_an_object() -> None:
    text = '{ "data" : [1, [2]] , "x":{"y" : []},"z":[{"a":1}],"data" : [3 ,{"a":2}] , "\\u0078":4}'
    assert split_at_all(text) == Members({"data": Items(2, (Item('{"a":2}'),)), "x": 4}, lost=True)


@looped(
    ("text", "lost"),
    [
        ('{"data":[{"a":1}],"data":[]}', True),
        ('{"data":{"a":1},"data":{"a":1}}', True),
        ('{"data":[{"a":1}],"data":1,"data":2}', True),
        ('{"d\\u0061ta":[{"a":1}],"data":[]}', True),
        ('{"data":[],"data":[{"a":1}]}', False),
        ('{"data":[1],"data":[2]}', False),
        ('{"z":[{"a":1}],"z":[]}', False),
        ('{"data":[{"data":[{"a":1}],"data":1}]}', False),
    ],
)
def test_whether_an_equal_name_takes_something_away(text: str, *, lost: bool) -> None:
    parts = split_at_all(text)
    assert isinstance(parts, Members)
    assert parts.lost == lost


@looped("text", ["1", "null", '"[]"', " true ", "NaN", "1e999", "9" * 5000, r'"\ud800"'])
def test_a_scalar_has_no_parts(text: str) -> None:
    assert split_at_all(text) is None


@pytest.mark.parametrize("blank", slow_except(["", " ", "\n\t"], "", "\n\t"))
@pytest.mark.parametrize(
    "element",
    [
        *("0", "-1.5e3", "null", "true", '"a"', '""', "[]", "{}", "[ ]", "NaN", "-Infinity"),
        *(pytest.param(longer, marks=pytest.mark.slow) for longer in ('"a,b"', r'"\n"', "[0]")),
    ],
)
def test_thousands_of_small_items(element: str, blank: str) -> None:
    """They are counted in runs, which end within the array, at its end, and at what has to be looked at."""
    for many in (1, 4095, 4096, 4097, 9000):
        items = [element] * many
        separator = f"{blank},{blank}"
        assert split_at_all(f"[{blank}{separator.join(items)}{blank}]") == Items(many, ())
        with_one = [*items, '{"a":0}', *items]
        assert split_at_all(f"[{separator.join(with_one)}]") == Items(2 * many + 1, (Item('{"a":0}'),))
        for wrong in ("01", ",", "]", "x", "1 2", "-", '"', "1,"):
            with pytest.raises(json.JSONDecodeError):
                split_at_all(f"[{separator.join([*items, wrong])}]")


@pytest.mark.parametrize("text", ["[]", " [ ] ", "{}", "\n{ }\n"])
def test_split_nothing(text: str) -> None:
    parts = split_at_all(text)
    assert parts in (Items(0, ()), Members({}, lost=False))


@looped(
    "text",
    [
        "",
        "[",
        "{",
        "]",
        "[,]",
        "[1,]",
        "[,1]",
        "[1,,2]",
        "[1 2]",
        "[1]]",
        "[1],",
        "[1}",
        "{]",
        '{"a"}',
        '{"a":}',
        '{"a":1,}',
        '{,"a":1}',
        '{"a" 1}',
        "{1:2}",
        "{null:2}",
        '{"a":1"b":2}',
        '{"a":[1,]}',
        '{"a":[1}',
        '{"a":1}}',
        "[\x0b1]",
        "[\xa01]",
        "\ufeff[]",
        "[1]\x00",
    ],
)
def test_split_refuses_what_is_not_json(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        split_at_all(text)


@given(st.lists(json_texts(hostile=True), max_size=5))
def test_split_cuts_an_array_where_its_items_were_joined(texts: list[str]) -> None:
    for joined in (f"[{','.join(texts)}]", f" [ {' , '.join(texts)} ]\n"):
        items = split_at_all(joined)
        assert isinstance(items, Items)
        assert items.count == len(texts)
        assert items.kept == tuple(map(Item, filter(lambda text: is_object(read(text).value), texts)))


@given(st.text('{}[]",:1\\ \nNa', max_size=25))
def test_split_takes_exactly_what_the_standard_library_takes(text: str) -> None:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        expected = False
    else:
        expected = True
    try:
        split_at_all(text)
    except json.JSONDecodeError:
        taken = False
    else:
        taken = True
    assert taken == expected


LENIENT_ONLY: Final = (msgspec.MsgspecError, RecursionError)


def lenient(body: bytes) -> ParsedBody | str:
    try:
        return webhook._parse_leniently(body.decode())
    except MalformedBodyError as error:
        return error.reason


def parsed(body: bytes) -> ParsedBody | str:
    try:
        return webhook.parse(body)
    except MalformedBodyError as error:
        return error.reason


SHAPES: Final = (
    "%s",
    '{"data":%s}',
    '{"data":1,"data":%s}',
    '{"data":%s,"data":1}',
    '{"data":%s,"data":[]}',
    '{"data":[],"d\\u0061ta":%s}',
    '{"d\\u0061ta":%s,"data":{"eventName":"x"}}',
    '{"data":%s,"x":[[]],"eventName":"x"}',
    '{"eventName":"x","data":[],"data":%s}',
    '{"eventName":"statsig::config_change","data":%s}',
    '{"data":%s,"data":1,"eventName":"statsig::config_ch\\u0061nge"}',
)


def assert_both_paths_agree(body: str) -> None:
    """The fast path and the lenient path give the same items, texts and values, or refuse for the same reason."""
    # By repr: 1, 1.0 and True are equal, as are 0.0 and -0.0, and NaN is not.
    assert repr(parsed(body.encode())) == repr(lenient(body.encode()))


@given(json_texts(hostile=True))
def test_both_paths_agree_on_any_document(body: str) -> None:
    assert_both_paths_agree(body)


@given(
    arrays(st.one_of(config_changes(), objects(json_texts())), max_size=3),
    st.sampled_from(SHAPES),
)
@example('[{"eventName":"statsig::config_change","a":-0,"b":-0.0,"c":0.1e1,"d":1E400}]', "%s")
@example(r'[{"event\u004eame":"statsig::\u0063onfig_change","eventName":"x"}]', "%s")
@example(r'[{"eventName":"x","event\u004eame":"statsig::\u0063onfig_change"}]', '{"data":%s}')
@example('[{"eventName":"statsig::config_change","a":{"b":1,"b":2}},{"eventName":1}]', "%s")
def test_both_paths_agree_on_batches(items: str, shape: str) -> None:
    assert_both_paths_agree(shape % items)


@given(config_changes(hostile=True), st.sampled_from((*SHAPES, '[%s,"\\ud800"]', "[{},%s]", "[[],%s,1]")))
def test_both_paths_agree_on_single_events(event: str, shape: str) -> None:
    assert_both_paths_agree(shape % event)


@given(st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True))
@example("2.2250738585072011e-308")
@example("9007199254740993")
@example("9007199254740993.0")
@example("0.500000000000000166533453693773481063544750213623046875")
@example("1.00000000000000011102230246251565404236316680908203125")
@example("179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977587207096330")
@example("1" + "0" * 308)
@example("1" + "0" * 309)
@example("4.9406564584124654417656879286822137236505980e-324")
def test_both_paths_agree_on_numbers_to_the_last_bit(number: str) -> None:
    """A uid hashes a number as decoded: an upgrade that rounds differently would break deduplication."""
    assert_both_paths_agree(f'[{{"eventName":"statsig::config_change","x":{number}}}]')


@given(st.binary(max_size=12))
def test_both_paths_agree_on_texts_that_may_not_be_strings(inside: bytes) -> None:
    text = inside.decode(errors="ignore")
    assert_both_paths_agree(f'[{{"eventName":"statsig::config_change","x":"{text}"}},{{"y":"{text}"}}]')


def test_the_strict_path_reads_what_statsig_sends() -> None:
    """Else the comparisons above would compare the lenient path with itself."""
    body = b'{"data":[{"eventName":"statsig::config_change","x":1.5},{"eventName":"y","z":[null]}]}'
    payload = webhook._parse_strictly(body)
    assert payload is not None
    assert payload == lenient(body)
    assert [item.text for item in payload.changes] == ['{"eventName":"statsig::config_change","x":1.5}']


@pytest.mark.parametrize("hostile", ["NaN", "1e999", r'"\ud800"', "9" * 5000])
def test_the_strict_path_refuses_what_the_lenient_one_is_for(hostile: str) -> None:
    """What this module is there for. Where msgspec learns to read one of these, look at it anew."""
    with pytest.raises(LENIENT_ONLY):
        msgspec.json.decode(hostile)


@pytest.mark.parametrize(("bound", "readable"), [("640", 640), ("0", 4300)])
def test_a_process_with_another_bound_of_digits(bound: str, readable: int) -> None:
    """Python's bound can be set to less, or lifted: one long integer still makes only its own item invalid."""
    script = """
from statsig_otel.plugin.webhook.body import parse
for digits in (640, 641, 4300, 4301):
    event = '{"eventName":"statsig::config_change","x":%s}'
    payload = parse(("[" + event % 1 + "," + event % ("9" * digits) + ']').encode())
    print(digits, *(item.problem is None for item in payload.changes))
"""
    environment = os.environ | {"PYTHONINTMAXSTRDIGITS": bound}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [f"{digits} True {digits <= readable}" for digits in (640, 641, 4300, 4301)]
