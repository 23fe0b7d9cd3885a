"""Templates: a grammar of literal text and fields, and nothing that could be called."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.plugin.record.serializer import AttributeValue
from statsig_otel.plugin.record.template import Placeholder, Template, TemplateError, as_text
from tests.looped import looped

FIELDS: Final[Mapping[str, AttributeValue]] = {
    "text": "a",
    "number": 7,
    "fraction": 0.5,
    "zero": 0,
    "no": False,
    "array": ["x", "y"],
    "numbers": [1, 2],
}


@looped(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("{text}", "a"),
        ("{number}", 7),
        ("{zero}", 0),
        ("{no}", False),
        ("{array}", ["x", "y"]),
        ("{absent}", None),
        ("{absent:-d}", "d"),
        ("{absent:-}", None),
        ("{text:-d}", "a"),
        ("{zero:-d}", 0),
        ("{absent:-:-d}", ":-d"),
        ("{absent:-{text}}", "a"),
        ("{absent:-{number}}", 7),
        ("{absent:-{array}}", ["x", "y"]),
        ("{text:-{number}}", "a"),
        ("{absent:-<{absent:-{text}}> {number}}", "<a> 7"),
        ("{absent:-{absent}}", None),
        ("{absent:-<{absent}>}", None),
        ("{absent:-{absent:-{absent:-d}}}}}", "d}"),
        ("{absent:-{text}} {absent}", "a "),
        ("<{text}>", "<a>"),
        ("{text}{text}", "aa"),
        ("{text} {number} {fraction} {no} {array} {numbers}", "a 7 0.5 false x, y 1, 2"),
        ("{text} {absent}", "a "),
        ("<{absent}>", None),
        ("{absent}{absent}", None),
        ("{absent} {absent:-d}", " d"),
        ("{{text}}", "{text}"),
        ("{{{text}}}", "{a}"),
        ("{{", "{"),
        ("}}{{", "}{"),
        ("$%\n{text}\n", "$%\na\n"),
    ],
)
def test_what_it_stands_for(text: str, value: AttributeValue | None) -> None:
    found = Template.parse(text).value(FIELDS.get)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(("text", "value"), [("{array}", "x, y"), ("{number}", "7"), ("{absent}", None), ("", None)])
def test_as_a_text(text: str, value: str | None) -> None:
    assert Template.parse(text).text(FIELDS.get) == value


@looped(
    ("text", "fault"),
    [
        ("{", "has a { that is not closed"),
        ("a {text", "has a { that is not closed"),
        ("{te{xt}", "has a { that is not closed"),
        ("{{{", "has a { that is not closed"),
        ("}", "has a } that was not opened"),
        ("{text}}", "has a } that was not opened"),
        ("{}", "has braces without a field"),
        ("{:-x}", "has braces without a field"),
        ("{text:-{}}", "has braces without a field"),
        ("{text:-{{a}}}", "has a { that is not closed"),
        ("{text:-{a}", "has a { that is not closed"),
        ("{text:-a}}", "has a } that was not opened"),
        ("{a:-" * 11 + "}" * 11, "has too many defaults within defaults"),
        ("{a:-" * 100_000, "has too many defaults within defaults"),
    ],
)
def test_what_is_none_says_why(text: str, fault: str) -> None:
    with pytest.raises(TemplateError, match=re.escape(f"{fault}\nhint: ")):
        Template.parse(text)


@looped("inside", ["text!r", "text:>9", "text.upper", "text[0]", "text()", " text", "__class__"])
def test_braces_hold_a_name_and_nothing_else(inside: str) -> None:
    assert Template.parse(f"{{{inside}}}").parts == (Placeholder(inside),)


LITERALS: Final = st.text(max_size=6)
NAMES: Final = st.text(alphabet=st.characters(exclude_characters="{}:", codec="utf-8"), min_size=1)
DEFAULT_TEXTS: Final = st.text(alphabet=st.characters(exclude_characters="{}", codec="utf-8"), min_size=1)
PLACEHOLDERS: Final[st.SearchStrategy[Placeholder]] = st.recursive(
    st.builds(Placeholder, NAMES),
    lambda inner: st.builds(
        Placeholder, NAMES, st.lists(DEFAULT_TEXTS | inner, min_size=1, max_size=3).map(tuple).map(Template)
    ),
    max_leaves=4,
)


def written(parts: Sequence[str | Placeholder]) -> str:
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part.replace("{", "{{").replace("}", "}}"))
        else:
            default = "" if part.default is None else f":-{written(part.default.parts)}"
            texts.append("{" + part.name + default + "}")
    return "".join(texts)


def names(parts: Sequence[str | Placeholder]) -> list[str]:
    found = []
    for part in parts:
        if isinstance(part, Placeholder):
            found += [part.name, *(names(part.default.parts) if part.default else [])]
    return found


@given(st.lists(LITERALS | PLACEHOLDERS, max_size=6))
def test_what_is_written_is_read(parts: list[str | Placeholder]) -> None:
    """Any literal text and any fields, one behind the other, come back: none is taken for the other."""
    template = Template.parse(written(parts))
    assert list(template.names) == names(parts)
    shown = "".join(part if isinstance(part, str) else f"<{part.name}>" for part in parts)
    assert (template.text(lambda name: f"<{name}>") or "") == shown
    again = written(template.parts)
    assert Template.parse(again) == template


@given(st.text(alphabet="{}:-ab", max_size=12))
def test_any_text_is_a_template_or_told_not_to_be(text: str) -> None:
    template = None
    with contextlib.suppress(TemplateError):
        template = Template.parse(text)
    singles = re.sub(r"\{\{|\}\}", "", text)
    if template is None:
        assert re.search("[{}]", singles) or "{" in text
    else:
        assert template.value(lambda _: None) == template.text(lambda _: None)


@given(st.recursive(st.text() | st.booleans() | st.integers() | st.floats(), lambda inner: st.lists(inner, max_size=3)))
def test_every_value_has_a_text(value: AttributeValue) -> None:
    assert isinstance(as_text(value), str)
