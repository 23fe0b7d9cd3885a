"""Templates and patterns, as users write them: a result or our error, and what is read can be written again.

An input is a template and, behind a NUL, a pattern and a value that the pattern is compared with.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.filter import ChangeFilter
from statsig_otel.plugin.record.mapping import parse_template
from statsig_otel.plugin.record.services import parse_service_template
from statsig_otel.plugin.record.template import Template, TemplateError
from tests.fuzz.targets import Check

LONGEST: Final = 256
ENOUGH: Final = 10_000_000
TOKENS: Final = (
    b"{", b"}", b"{{", b"}}", b":-", b"{type}", b"{name}", b"{action}", b"{title}", b"{tags}", b"{metadata.x}",
    b"{environments}", b"{service.name}", b"{change.uid}", b"*", b"?", b"[!", b"[", b"]", b"-", b"_", b" ", b"\0",
    b"[a-z]", b"**", b"\\", b"\n", b"(?", b"\xc3\xa9",
)  # fmt: skip

MOST_DEFAULTS: Final = 10
"""Defaults within defaults."""


def seeds() -> Iterator[bytes]:
    yield from (
        b"{name} {action}",
        b"{tags:-{type:-{name}}} x",
        b"{a:-" * 11 + b"}" * 11,
        b"a {{b}} {type:-none}",
        b"{tags:-x}\0*a[!b-d]?\0xac1",
        b"{metadata.name}\0[]]\0]",
        b"\0A*\0ab",
        b"\0a\0a, b",
        b"\0dynamic_config\0Dynamic Config",
        b"\0[!A-C]\0b",
    )


@contextmanager
def checking() -> Iterator[Check]:
    def check(data: bytes) -> None:
        template, _, rest = data.decode("utf-8", "replace").partition("\0")
        pattern, _, value = rest.partition("\0")
        check_template(template)
        if pattern:
            check_pattern(pattern, value)

    yield check


def check_template(text: str) -> None:
    for read in (parse_template, parse_service_template):
        try:
            read(text)
        except TemplateError as error:
            assert error.message
            assert error.hint
    try:
        template = Template.parse(text)
    except TemplateError as error:
        assert error.hint
        assert not is_template(text)
        return
    assert is_template(text)
    assert Template.parse(written(template)) == template
    assert template.value(lambda _: None) == template.text(lambda _: None)
    shown = "".join(part if isinstance(part, str) else f"<{part.name}>" for part in template.parts)
    assert (template.text(lambda name: f"<{name}>") or "") == shown


def is_template(text: str) -> bool:
    """The same grammar, read character by character."""
    return _end(text, 0, 0) == len(text)


def _end(text: str, position: int, depth: int) -> int:
    """Where a template ends that begins there, that many defaults deep; -1 if it is wrong."""
    while position < len(text):
        if not depth and text[position : position + 2] in ("{{", "}}"):
            position += 2
        elif text[position] == "}":
            return position if depth else -1
        elif text[position] == "{":
            inside = re.split(r"[{}]|:-", text[position + 1 :], maxsplit=1)[0]
            position += 1 + len(inside)
            if not inside:
                return -1
            if text.startswith(":-", position):
                position = _end(text, position + 2, depth + 1) if depth < MOST_DEFAULTS else -1
            if position < 0 or not text.startswith("}", position):
                return -1
            position += 1
        else:
            position += 1
    return position


def written(template: Template, *, inside: bool = False) -> str:
    """The template as a string. Within a default a brace can't be a character."""
    parts = []
    for part in template.parts:
        if isinstance(part, str):
            parts.append(part if inside else part.replace("{", "{{").replace("}", "}}"))
        else:
            default = "" if part.default is None else f":-{written(part.default, inside=True)}"
            parts.append(f"{{{part.name}{default}}}")
    return "".join(parts)


def check_pattern(pattern: str, value: str) -> None:
    """A pattern is one of fnmatch's, in the spelling of its field."""
    value = value or "x"
    metadata = {"name": value, "type": value, "environments": value, "tags": [value]}
    event = ChangeEvent.from_item({"timestamp": 1, "metadata": metadata, "userID": value})
    check_field("names", [event.name], pattern, event)
    check_field("tags", event.tags, pattern, event)
    check_field("actors", filter(None, [event.user_id]), pattern, event, spelled=str.lower)
    check_field("environments", event.environments, pattern, event, spelled=str.lower, excludes=all)
    if "[" in pattern:  # a set has a spelling of its own
        ChangeFilter(include=[{"types": [pattern]}]).why_dropped(event)
    else:
        check_field("types", [event.entity_type], pattern, event, spelled=without_separators)


def check_field(
    field: str,
    values: Iterable[str],
    pattern: str,
    event: ChangeEvent,
    *,
    spelled: Callable[[str], str] = str,
    excludes: Callable[[Iterable[bool]], bool] = any,
) -> None:
    matches = [fnmatch.fnmatchcase(spelled(value), spelled(pattern)) for value in (*values,) or ("",)]
    assert (ChangeFilter(include=[{field: [pattern]}]).why_dropped(event) is None) == any(matches)
    assert (ChangeFilter(exclude=[{field: [pattern]}]).why_dropped(event) is None) != excludes(matches)


def without_separators(text: str) -> str:
    return re.sub(r"[\s_]", "", text.lower())
