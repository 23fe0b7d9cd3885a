"""Texts with fields in braces, as a mapping has them: literal text, `{field}`, `{field:-default}`, `{{` and `}}`.

There is no more to the grammar: nothing is called, indexed or formatted.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from statsig_otel.config.errors import SettingError
from statsig_otel.plugin.record.otlp import AttributeValue

FieldsOf: TypeAlias = Callable[[str], AttributeValue | None]
"""The value of a field of one change; None where it has none."""

_PART: Final = re.compile(r"(?P<text>[^{}]+)|(?P<brace>\{\{|\}\})|\{(?P<field>[^{}]*)\}")


class TemplateError(SettingError):
    """The string is not a template."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A field in a template.

    Attributes:
        name: The field's name.
        default: What stands there where a change has no such field; in a tuple where the field is an array.
    """

    name: str
    default: str | tuple[str] | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """A text with fields.

    Attributes:
        parts: Literal texts and placeholders, in their order.
    """

    parts: tuple[str | Placeholder, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Read a template.

        Raises:
            TemplateError: It is none.
        """
        parts: list[str | Placeholder] = []
        position = 0
        while position < len(text):
            match = _PART.match(text, position)
            if match is None:
                fault = "a { that no } closes" if text[position] == "{" else "a } that no { opens"
                raise TemplateError(f"has {fault}", "write {{ and }} for the characters themselves")
            parts.append(_part(match))
            position = match.end()
        return cls(tuple(parts))

    @property
    def names(self) -> Iterable[str]:
        """The names of its fields."""
        return (part.name for part in self.parts if isinstance(part, Placeholder))

    @property
    def only(self) -> Placeholder | None:
        """The placeholder that it is; None where there is anything else in it."""
        part = self.parts[0] if len(self.parts) == 1 else None
        return part if isinstance(part, Placeholder) else None

    def value(self, fields: FieldsOf) -> AttributeValue | None:
        """What it stands for: the field's own value where it is one field and nothing else, a text otherwise."""
        return self.text(fields) if self.only is None else _value(self.only, fields)

    def text(self, fields: FieldsOf) -> str | None:
        """The text, where a field that is absent is an empty one; None where all its fields are."""
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
    """A value within a text: numbers and booleans as their JSON, arrays with `, ` between."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return ", ".join(map(as_text, value))
