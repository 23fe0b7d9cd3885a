"""The lenient reader: what it reads, what it refuses, and that it agrees with the strict one."""

import json
import math
import os
import subprocess
import sys
from typing import Final

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from statsig_otel.plugin import webhook
from statsig_otel.plugin.lenient_json import Item, read, split
from statsig_otel.plugin.webhook import MalformedBodyError, Payload, UrlVerification
from tests.plugin.strategies import arrays, config_changes, json_texts, objects


class TestRead:
    @pytest.mark.parametrize(
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
    def test_a_value(self, text: str, value: object) -> None:
        item = read(text)
        assert (item.value, type(item.value), item.problem) == (value, type(value), None)
        assert item.text == text.strip()

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("NaN", "holds NaN, which is no JSON"),
            ("[[-Infinity]]", "holds -Infinity, which is no JSON"),
            ('{"a":Infinity}', "holds Infinity, which is no JSON"),
            ("1e999", "holds a number that is out of range"),
            ("[-1E400]", "holds a number that is out of range"),
            ("9" * 5000, "holds an integer of 5000 digits"),
            ('{"a":[' + "9" * 4301 + "]}", "holds an integer of 4301 digits"),
        ],
    )
    def test_what_no_json_text_can_stand_for(self, text: str, problem: str) -> None:
        item = read(text)
        assert item.problem == problem
        assert item.text == text

    def test_the_largest_integer(self) -> None:
        item = read("9" * 4300)
        assert item.problem is None
        assert item.value == 10**4300 - 1

    def test_the_largest_number(self) -> None:
        item = read("[1.7976931348623157e308, 5e-324]")
        assert (item.value, item.problem) == ([1.7976931348623157e308, 5e-324], None)

    @pytest.mark.parametrize("text", ["", " ", "x", "[1", '"', "nul", "01", "1.", "+1", "1 2", "[],", '"\n"', r'"\x"'])
    def test_what_is_no_json(self, text: str) -> None:
        with pytest.raises(json.JSONDecodeError):
            read(text)

    def test_what_is_nested_too_deeply(self) -> None:
        with pytest.raises(RecursionError):
            read("[" * 100_000)

    @given(json_texts(hostile=True))
    def test_it_reads_what_the_standard_library_reads(self, text: str) -> None:
        item = read(text)
        assert item.text == text.strip(" \t\r\n")
        if item.problem is None:
            assert repr(item.value) == repr(json.loads(text))


class TestSplit:
    def test_an_array(self) -> None:
        assert split(' [1 , "a",{"b" : [NaN]} ,1e999, 2] ') == [
            Item("1", 1),
            Item('"a"', "a"),
            # Equal only because the reader gives this very object.
            Item('{"b" : [NaN]}', {"b": [math.nan]}, "holds NaN, which is no JSON"),
            Item("1e999", math.inf, "holds a number that is out of range"),
            Item("2", 2),
        ]

    def test_an_object(self) -> None:
        parts = split('{ "data" : [1, [2]] , "x":{"y" : []},"data" : [3 ] , "\\u0078":4}')
        assert parts == {"data": [Item("3", 3)], "x": Item("4", 4)}

    @pytest.mark.parametrize("text", ["[]", " [ ] ", "{}", "\n{ }\n"])
    def test_nothing(self, text: str) -> None:
        assert not split(text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "1",
            "null",
            '"[]"',
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
    def test_what_is_no_json(self, text: str) -> None:
        with pytest.raises(json.JSONDecodeError):
            split(text)

    @given(st.lists(json_texts(hostile=True), max_size=5))
    def test_it_cuts_an_array_where_its_items_were_joined(self, texts: list[str]) -> None:
        for joined in (f"[{','.join(texts)}]", f" [ {' , '.join(texts)} ]\n"):
            items = split(joined)
            assert isinstance(items, list)
            assert [item.text for item in items] == texts
            assert [item.problem for item in items] == [read(text).problem for text in texts]

    @given(st.text('{}[]",:1\\ \nNa', max_size=25))
    def test_it_takes_exactly_what_the_standard_library_takes(self, text: str) -> None:
        try:
            expected = isinstance(json.loads(text), list | dict)
        except json.JSONDecodeError:
            expected = False
        try:
            split(text)
        except json.JSONDecodeError:
            taken = False
        else:
            taken = True
        assert taken == expected


LENIENT_ONLY: Final = (msgspec.MsgspecError, RecursionError)


def lenient(body: bytes) -> UrlVerification | Payload | str:
    try:
        return webhook.parse_url_verification(body) or webhook._parse_leniently(body.decode())
    except MalformedBodyError as error:
        return error.reason


def parsed(body: bytes) -> UrlVerification | Payload | str:
    try:
        return webhook.parse(body)
    except MalformedBodyError as error:
        return error.reason


class TestAgreement:
    """The fast path and the lenient path give the same items, texts and values, or refuse for the same reason."""

    @staticmethod
    def judge(body: str) -> None:
        # By repr: 1, 1.0 and True are equal, as are 0.0 and -0.0, and NaN is not.
        assert repr(parsed(body.encode())) == repr(lenient(body.encode()))

    @given(json_texts(hostile=True))
    def test_on_any_document(self, body: str) -> None:
        self.judge(body)

    @given(
        arrays(st.one_of(config_changes(), objects(json_texts())), max_size=3),
        st.sampled_from(("%s", '{"data":%s}', '{"data":1,"data":%s}', '{"data":%s,"x":[[]],"eventName":"x"}')),
    )
    @example('[{"eventName":"statsig::config_change","a":-0,"b":-0.0,"c":0.1e1,"d":1E400}]', "%s")
    @example(r'[{"event\u004eame":"statsig::\u0063onfig_change","eventName":"x"}]', "%s")
    @example(r'[{"eventName":"x","event\u004eame":"statsig::\u0063onfig_change"}]', '{"data":%s}')
    @example('[{"eventName":"statsig::config_change","a":{"b":1,"b":2}},{"eventName":1}]', "%s")
    def test_on_batches(self, items: str, shape: str) -> None:
        self.judge(shape % items)

    @given(config_changes(hostile=True), st.sampled_from(("%s", '{"data":%s}', '[%s,"\\ud800"]', "[{},%s]")))
    def test_on_single_events(self, event: str, shape: str) -> None:
        self.judge(shape % event)

    @given(st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True))
    @example("2.2250738585072011e-308")
    @example("9007199254740993")
    @example("9007199254740993.0")
    @example("0.500000000000000166533453693773481063544750213623046875")
    @example("1.00000000000000011102230246251565404236316680908203125")
    @example(
        "179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977587207096330"
    )
    @example("1" + "0" * 308)
    @example("1" + "0" * 309)
    @example("4.9406564584124654417656879286822137236505980e-324")
    def test_on_numbers_to_the_last_bit(self, number: str) -> None:
        """A uid hashes a number as decoded: an upgrade that rounds differently would break deduplication."""
        self.judge(f'[{{"eventName":"statsig::config_change","x":{number}}}]')

    @given(st.binary(max_size=12))
    def test_on_texts_that_may_be_no_string(self, inside: bytes) -> None:
        text = inside.decode(errors="ignore")
        self.judge(f'[{{"eventName":"statsig::config_change","x":"{text}"}},{{"y":"{text}"}}]')

    def test_the_strict_path_reads_what_statsig_sends(self) -> None:
        """Else the comparisons above would compare the lenient path with itself."""
        body = b'{"data":[{"eventName":"statsig::config_change","x":1.5},{"eventName":"y","z":[null]}]}'
        payload = webhook._parse_strictly(body)
        assert payload == lenient(body)
        assert [item.text for item in payload.changes] == ['{"eventName":"statsig::config_change","x":1.5}']

    @pytest.mark.parametrize("hostile", ["NaN", "1e999", r'"\ud800"', "9" * 5000])
    def test_the_strict_path_refuses_what_the_lenient_one_is_for(self, hostile: str) -> None:
        """What this module is there for. Where msgspec learns to read one of these, look at it anew."""
        with pytest.raises(LENIENT_ONLY):
            msgspec.json.decode(hostile)


@pytest.mark.parametrize(("bound", "readable"), [("640", 640), ("0", 4300)])
def test_a_process_with_another_bound_of_digits(bound: str, readable: int) -> None:
    """Python's bound can be set to less, or lifted: one long integer still makes only its own item invalid."""
    script = """
from statsig_otel.plugin.webhook import parse
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
