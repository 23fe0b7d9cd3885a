"""Templates and patterns, as users write them: a result or our error, and what is read can be written again.

An input is a template and, behind a NUL, a pattern and a value that the pattern is compared with.
"""

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.filter import ChangeFilter
from statsig_otel.plugin.record.mapping import parse_template
from statsig_otel.plugin.record.services import parse_service_template
from statsig_otel.plugin.record.template import Placeholder, Template, TemplateError
from tests.fuzz.targets import Check

LONGEST: Final = 256
TOKENS: Final = (
    b"{", b"}", b"{{", b"}}", b":-", b"{type}", b"{name}", b"{action}", b"{title}", b"{tags}", b"{metadata.x}",
    b"{environments}", b"{service.name}", b"{change.uid}", b"*", b"?", b"[!", b"[", b"]", b"-", b"_", b" ", b"\0",
    b"[a-z]", b"**", b"\\", b"\n", b"(?", b"\xc3\xa9",
)  # fmt: skip


def seeds() -> Iterator[bytes]:
    yield from (b"{name} {action}", b"a {{b}} {type:-none}", b"{tags:-x}\0*a[!b-d]?\0xac1", b"{metadata.name}\0[]]\0]")


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
        assert unbalanced(text)
        return
    assert not unbalanced(text)
    assert Template.parse(written(template.parts)) == template
    shown = "".join(part if isinstance(part, str) else f"<{part.name}>" for part in template.parts)
    assert (template.text(lambda name: f"<{name}>") or "") == shown


def unbalanced(text: str) -> bool:
    """Whether a string is not a template: the same grammar, read character by character."""
    position = 0
    while position < len(text):
        if text[position : position + 2] in ("{{", "}}"):
            position += 2
        elif text[position] == "{":
            end = text.find("}", position)
            inside = text[position + 1 : end]
            if end < 0 or "{" in inside or not inside.partition(":-")[0]:
                return True
            position = end + 1
        elif text[position] == "}":
            return True
        else:
            position += 1
    return False


def written(parts: Sequence[str | Placeholder]) -> str:
    """The template with these parts."""
    return "".join(
        part.replace("{", "{{").replace("}", "}}")
        if isinstance(part, str)
        else "{" + part.name + ("" if part.default is None else f":-{part.default}") + "}"
        for part in parts
    )


def check_pattern(pattern: str, value: str) -> None:
    """A pattern of names is one of fnmatch's, and no pattern of any field fails."""
    event = ChangeEvent.from_item({"timestamp": 1, "metadata": {"name": value or "x", "type": value or "x"}})
    passes = ChangeFilter(include=[{"names": [pattern]}]).why_dropped(event) is None
    assert passes == fnmatch.fnmatchcase(event.name, pattern)
    for field in ("types", "environments", "tags", "actors"):
        ChangeFilter(include=[{field: [pattern]}], exclude=[{field: [value or "x"]}]).why_dropped(event)
