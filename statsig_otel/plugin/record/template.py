"""Templates: strings with fields of a change in braces, as users write them in `mapping` and `impacted_services`.

The whole grammar is literal text, `{field}`, `{field:-default}`, `{{` and `}}`: no calls, indexes or formats. A default
is literal text and fields again.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from statsig_otel.config.errors import SettingError
from statsig_otel.plugin.record.serializer import AttributeValue

FieldsOf: TypeAlias = Callable[[str], AttributeValue | None]
"""Gets the value of a field of one change by its name; None if the change has no such field."""

_TEXT: Final = re.compile(r"[^{}]+")
_NAME: Final = re.compile(r"(?:(?!:-)[^{}])*")
_DEFAULT: Final = ":-"
_MAX_DEPTH: Final = 10
"""Defaults within defaults."""

_WRITE_BRACES: Final = "write {{ and }} for the characters themselves"


class TemplateError(SettingError):
    """A string is not a template. The message says why, and the hint what to write instead."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A field in a template.

    Attributes:
        name: The field's name.
        default: Its value if a change has none.
        is_array: Whether the field is an array. A default becomes an array or a string by that, since an attribute has
            one type. If it is not known (None), a default keeps its own type.
    """

    name: str
    default: "Template | None" = None
    is_array: bool | None = None

    def value(self, fields: FieldsOf) -> AttributeValue | None:
        """The value for one change."""
        found = fields(self.name)
        if found is not None or self.default is None:
            return found
        other = self.default.value(fields)
        if other is None or self.is_array is None or self.is_array is not isinstance(other, str | bool | int | float):
            return other
        return (as_text(other),) if self.is_array else as_text(other)


@dataclass(frozen=True, slots=True)
class Template:
    """A string with fields: literal strings and placeholders, in order."""

    parts: tuple[str | Placeholder, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Read a template.

        Raises:
            TemplateError: The text is not a template.
        """
        return _Parser(text).template()

    @property
    def names(self) -> Iterator[str]:
        """The names of the fields in it, also of those in defaults."""
        for part in self.parts:
            if isinstance(part, Placeholder):
                yield part.name
                if part.default is not None:
                    yield from part.default.names

    @property
    def only(self) -> Placeholder | None:
        """The only placeholder, if the template consists of nothing else; otherwise None."""
        part = self.parts[0] if len(self.parts) == 1 else None
        return part if isinstance(part, Placeholder) else None

    def value(self, fields: FieldsOf) -> AttributeValue | None:
        """The value for one change: that of the field if the template is only one field, otherwise a string."""
        return self.text(fields) if self.only is None else self.only.value(fields)

    def text(self, fields: FieldsOf) -> str | None:
        """The string for one change, with absent fields left empty; None if all fields are absent."""
        values = [part if isinstance(part, str) else part.value(fields) for part in self.parts]
        absent = [
            value is None for value, part in zip(values, self.parts, strict=True) if isinstance(part, Placeholder)
        ]
        if absent and all(absent):
            return None
        return "".join(as_text(value) for value in values if value is not None) or None


class _Parser:
    """Reads one template, from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def template(self, depth: int = 0) -> Template:
        """Read a template, or a default that many levels down, which ends at its `}`."""
        parts: list[str | Placeholder] = []
        while self._position < len(self._text):
            if text := _TEXT.match(self._text, self._position):
                parts.append(text[0])
                self._position = text.end()
            elif not depth and self._text.startswith(("{{", "}}"), self._position):
                parts.append(self._text[self._position])
                self._position += 2
            elif self._text[self._position] == "{":
                parts.append(self._placeholder(depth))
            elif depth:
                break
            else:
                raise TemplateError("has a } that was not opened", _WRITE_BRACES)
        return Template(tuple(parts))

    def _placeholder(self, depth: int) -> Placeholder:
        name = self._name()
        default = None
        if self._text.startswith(_DEFAULT, self._position):
            if depth == _MAX_DEPTH:
                raise TemplateError("has too many defaults within defaults", f"write at most {_MAX_DEPTH}")
            self._position += len(_DEFAULT)
            default = self.template(depth + 1)
        if not self._text.startswith("}", self._position):
            raise TemplateError("has a { that is not closed", _WRITE_BRACES)
        self._position += 1
        if not name:
            raise TemplateError(
                "has braces without a field", "write {name}, or {{ and }} for the characters themselves"
            )
        return Placeholder(name, default if default is not None and default.parts else None)

    def _name(self) -> str:
        match = _NAME.match(self._text, self._position + 1)
        if match is None:  # it matches anything
            return ""
        self._position = match.end()
        return match[0]


def as_text(value: AttributeValue) -> str:
    """A value within a string: numbers and booleans as JSON, the elements of an array joined by `, `."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return ", ".join(map(as_text, value))
