"""Templates: strings with fields of a change in braces, as users write them in `mapping` and `impacted_services`.

The whole grammar is literal text, `{field}`, `{field:-default}`, `{{` and `}}`: no calls, indexes or formats.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from statsig_otel.config.errors import SettingError
from statsig_otel.plugin.record.otlp import AttributeValue

FieldsOf: TypeAlias = Callable[[str], AttributeValue | None]
"""Gets the value of a field of one change by its name; None if the change has no such field."""

_PART: Final = re.compile(r"(?P<text>[^{}]+)|(?P<brace>\{\{|\}\})|\{(?P<field>[^{}]*)\}")


class TemplateError(SettingError):
    """A string is not a template. The message says why, and the hint what to write instead."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A field in a template. The default is its value if a change has none; in a tuple if the field is an array."""

    name: str
    default: str | tuple[str] | None = None


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
        parts: list[str | Placeholder] = []
        position = 0
        while position < len(text):
            match = _PART.match(text, position)
            if match is None:
                fault = "a { that is not closed" if text[position] == "{" else "a } that was not opened"
                raise TemplateError(f"has {fault}", "write {{ and }} for the characters themselves")
            parts.append(_part(match))
            position = match.end()
        return cls(tuple(parts))

    @property
    def names(self) -> Iterable[str]:
        """The names of the fields in it."""
        return (part.name for part in self.parts if isinstance(part, Placeholder))

    @property
    def only(self) -> Placeholder | None:
        """The only placeholder, if the template consists of nothing else; otherwise None."""
        part = self.parts[0] if len(self.parts) == 1 else None
        return part if isinstance(part, Placeholder) else None

    def value(self, fields: FieldsOf) -> AttributeValue | None:
        """The value for one change: that of the field if the template is only one field, otherwise a string."""
        return self.text(fields) if self.only is None else _value(self.only, fields)

    def text(self, fields: FieldsOf) -> str | None:
        """The string for one change, with absent fields left empty; None if all fields are absent."""
        values = [part if isinstance(part, str) else _value(part, fields) for part in self.parts]
        absent = [
            value is None for value, part in zip(values, self.parts, strict=True) if isinstance(part, Placeholder)
        ]
        if absent and all(absent):
            return None
        return "".join(as_text(value) for value in values if value is not None) or None


def _part(match: re.Match[str]) -> str | Placeholder:
    if match["field"] is None:
        return match["text"] or match["brace"][0]
    name, _, default = match["field"].partition(":-")
    if not name:
        raise TemplateError("has braces without a field", "write {name}, or {{ and }} for the characters themselves")
    return Placeholder(name, default or None)


def _value(placeholder: Placeholder, fields: FieldsOf) -> AttributeValue | None:
    found = fields(placeholder.name)
    return placeholder.default if found is None else found


def as_text(value: AttributeValue) -> str:
    """A value within a string: numbers and booleans as JSON, the elements of an array joined by `, `."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return ", ".join(map(as_text, value))
