"""Maps the default record of a change to the record that users configured: event name, body and attributes.

First attributes are dropped and renamed, then those of the mapping are set. Every template reads the default record,
whatever happens to its attributes. `log.record.uid` can't be changed: it identifies a change behind every mapping.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, TypeAlias, cast

from statsig_otel import _attributes
from statsig_otel.config.errors import SettingError, hint_for
from statsig_otel.plugin.record.arrays import converted, first, joined
from statsig_otel.plugin.record.change_event import ChangeEvent, valid
from statsig_otel.plugin.record.record import RecordFields
from statsig_otel.plugin.record.serializer import AttributeValue, Scalar
from statsig_otel.plugin.record.template import FieldsOf, Placeholder, Template, TemplateError, as_text

SHORT_NAMES: Final[Mapping[str, str]] = {
    "name": _attributes.LABEL_NAME,
    "type": _attributes.LABEL_TYPE,
    "action": _attributes.LABEL_ACTION,
    "description": _attributes.LABEL_DESCRIPTION,
    "title": _attributes.TITLE,
    "environment": _attributes.ENVIRONMENT,
    "environments": _attributes.ENVIRONMENTS,
    "project.id": _attributes.PROJECT_ID,
    "project.name": _attributes.PROJECT_NAME,
    "tags": _attributes.TAGS,
    "target_apps": _attributes.TARGET_APPS,
}
"""Fields of templates that are other names of attributes."""

SERVICE_FIELDS: Final = ("service.name", "service.namespace")
"""Fields of a record that is about one service: they are in its resource."""

TIMESTAMP: Final = "timestamp"
METADATA: Final = "metadata."

_FIELDS: Final = (*SHORT_NAMES, TIMESTAMP, *_attributes.ALL, *SERVICE_FIELDS)

_SEVERITY: Final = re.compile(r"[1-9]|1[0-9]|2[0-4]")

MAX_INT: Final = 2**63 - 1
"""The largest integer in OTLP."""


def parse_template(text: str) -> Template:
    """Parse a template with fields of a change.

    Raises:
        TemplateError: The text is not a template, is empty, or names an unknown field.
    """
    if not text:
        raise TemplateError("is empty", "leave the key out")
    template = Template.parse(text)
    for name in template.names:
        if not (name in _FIELDS or _is_metadata(name)):
            near = hint_for(name, [*_FIELDS, f"{METADATA}NAME"])
            raise TemplateError(f"has {{{name}}}, which is not a field of a change", near)
    return _typed(template)


def _typed(template: Template) -> Template:
    """The template, with its fields knowing whether they are arrays."""
    return Template(tuple(part if isinstance(part, str) else _typed_placeholder(part) for part in template.parts))


def _typed_placeholder(field: Placeholder) -> Placeholder:
    is_array = None if _is_metadata(field.name) else _is_array(field.name)
    return Placeholder(field.name, field.default and _typed(field.default), is_array)


def is_array(template: Template) -> bool:
    """Whether a template always gives an array: it is nothing but a field that is one."""
    return template.only is not None and bool(template.only.is_array)


def is_severity(text: str) -> bool:
    """Whether a string is a SeverityNumber of OpenTelemetry's log data model."""
    return _SEVERITY.fullmatch(text) is not None


def _is_array(name: str) -> bool:
    return SHORT_NAMES.get(name, name) in _attributes.ARRAYS


def _is_metadata(name: str) -> bool:
    return len(name) > len(METADATA) and name.startswith(METADATA)


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value in each record; None for no attribute."""

    constant: AttributeValue | None

    def value(self, _: FieldsOf) -> AttributeValue | None:
        """The value for one change."""
        return self.constant


@dataclass(frozen=True, slots=True)
class Texts:
    """An array of strings. A template that gives an array adds each of its elements; an absent one adds none."""

    templates: tuple[Template, ...]

    def value(self, fields: FieldsOf) -> AttributeValue | None:
        """The value for one change."""
        return joined(texts_of(template.value(fields)) for template in self.templates) or None


@dataclass(frozen=True, slots=True)
class Lookup:
    """A value from a table. An array is looked up element by element, and gives an array, or its first match.

    Attributes:
        key: What is looked up.
        table: The values by key.
        default: The value for all other keys and for an absent one; None for no attribute.
        first_match: Give one value, also for an array: that of the first key of the table that is among its elements.
    """

    key: Template
    table: Mapping[str, "Template | Constant"]
    default: "Template | Constant | None" = None
    first_match: bool = False

    def value(self, fields: FieldsOf) -> AttributeValue | None:
        """The value for one change."""
        key = self.key.value(fields)
        if self.first_match:
            return self._first_match(set(texts_of(key)), fields)
        if isinstance(key, str | bool | int | float) or (key is None and not self._is_of_array()):
            source = self._source(key)
            return None if source is None else source.value(fields)
        # Each source once: otherwise the default would be made a thousand times for a thousand tags.
        sources = {id(source): source for source in map(self._source, [None] if key is None else key)}
        values = [source.value(fields) for source in sources.values() if source is not None]
        return array(joined(map(_elements, values), distinct=True))

    def _first_match(self, keys: Collection[str], fields: FieldsOf) -> AttributeValue | None:
        for key, source in self.table.items():
            if key in keys and (value := source.value(fields)) is not None:
                return value
        return None if self.default is None else self.default.value(fields)

    def _is_of_array(self) -> bool:
        """Whether the key is an array by its field, even if a change has none: an attribute has one type."""
        return is_array(self.key)

    def _source(self, key: AttributeValue | None) -> "Template | Constant | None":
        return self.default if key is None else self.table.get(as_text(key), self.default)


Source: TypeAlias = Template | Constant | Texts | Lookup
"""Gives the value of an attribute."""


@dataclass(frozen=True, slots=True)
class RecordMapping:
    """A user's mapping.

    Attributes:
        event_name: The EventName. None for the default one, which is also used if the template gives nothing.
        body: The body, likewise.
        attributes: Attributes to set. They replace those of the same name.
        rename: New names of default attributes.
        drop: Default attributes to leave out, by name or by a pattern of `fnmatch.fnmatchcase`.
        severity_number: The SeverityNumber. Anything but an integer from 1 to 24 counts as nothing.
        severity_text: The SeverityText.

    Raises:
        ValueError: An attribute is unknown, can't be changed, or would be in a record twice.
    """

    event_name: Template | None = None
    body: Template | None = None
    attributes: Mapping[str, Source] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    drop: Sequence[str] = ()
    severity_number: Source | None = None
    severity_text: Source | None = None
    _dropped: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in (*self.attributes, *self.rename.values()):
            check_new_name(name)
        for name in self.rename:
            check_old_name(name)
        for pattern in self.drop:
            check_pattern(pattern)
        object.__setattr__(self, "_dropped", frozenset(name for pattern in self.drop for name in matching(pattern)))
        self._check_targets()

    def _check_targets(self) -> None:
        for name in self.rename:
            if name in self._dropped:
                raise ValueError(f"{name} is both dropped and renamed")
        stay = set(_attributes.ALL) - self._dropped - self.rename.keys()
        seen: set[str] = set()
        for target in self.rename.values():
            if target in self.attributes or target in seen:
                raise ValueError(f"a record would have {target} twice")
            if target in stay:
                raise SettingError(f"a record would have {target} twice", "drop or rename the default attribute, too")
            seen.add(target)

    def apply(self, record: RecordFields, event: ChangeEvent, item: Mapping[str, object]) -> RecordFields:
        """Map a default record. Never raises, whatever the item contains."""
        fields = fields_of(record, event, item)
        attributes = {
            self.rename.get(name, name): value for name, value in record.attributes.items() if name not in self._dropped
        }
        for name, source in self.attributes.items():
            value = source.value(fields)
            if value is None:
                attributes.pop(name, None)
            else:
                attributes[name] = value
        return RecordFields(
            event_name=(self.event_name and self.event_name.text(fields)) or record.event_name,
            body=(self.body and self.body.text(fields)) or record.body,
            attributes=attributes,
            severity_number=_severity_of(self.severity_number, fields) or record.severity_number,
            severity_text=_text_of(self.severity_text, fields) or record.severity_text,
        )


def _severity_of(source: Source | None, fields: FieldsOf) -> int | None:
    text = _text_of(source, fields)
    return int(text) if text is not None and is_severity(text) else None


def _text_of(source: Source | None, fields: FieldsOf) -> str | None:
    value = None if source is None else source.value(fields)
    return None if value is None else as_text(value)


def fields_of(record: RecordFields, event: ChangeEvent, item: Mapping[str, object]) -> FieldsOf:
    """The fields of one change for its templates: of its default record, its event and its item."""
    metadata = item.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}

    def value(name: str) -> AttributeValue | None:
        if name == TIMESTAMP:
            return event.happened_at
        if name.startswith(METADATA):
            return _of_json(metadata.get(name.removeprefix(METADATA)))
        if name in SERVICE_FIELDS:
            return record.service.get(name)
        return record.attributes.get(SHORT_NAMES.get(name, name))

    return value


def check_new_name(name: str) -> None:
    """Check the name of an attribute that a mapping sets.

    Raises:
        ValueError: No attribute can have that name.
    """
    if not name:
        raise ValueError("an attribute needs a name")
    if name == _attributes.UID:
        raise ValueError(f"{_attributes.UID} can't be changed: it identifies the change")


def check_old_name(name: str) -> None:
    """Check the name of a default attribute that a mapping drops or renames.

    Raises:
        ValueError: There is no such attribute, or it can't be changed.
    """
    check_new_name(name)
    if name not in _attributes.ALL:
        others = [known for known in _attributes.ALL if known != _attributes.UID]
        raise SettingError(f"no record has the attribute {name}", hint_for(name, others))


def check_pattern(pattern: str) -> None:
    """Check a pattern of default attributes that a mapping drops.

    Raises:
        ValueError: The pattern matches none of them.
    """
    if not matching(pattern):
        check_old_name(pattern)


def matching(pattern: str) -> list[str]:
    """The default attributes that a pattern drops; never the uid."""
    return [name for name in _attributes.ALL if name != _attributes.UID and fnmatchcase(name, pattern)]


def _of_json(value: object) -> AttributeValue | None:
    """A member of the metadata as the value of an attribute. As everywhere, null, "" and [] count as absent."""
    try:
        if isinstance(value, list):
            return array(converted(first(element for element in value if not _is_absent(element)), _scalar))
        return None if _is_absent(value) else _scalar(value)
    except RecursionError:
        return None


def _is_absent(value: object) -> bool:
    return value is None or value == ""


def _scalar(value: object) -> Scalar:
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -MAX_INT - 1 <= value <= MAX_INT:
        return value
    return valid(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _elements(value: AttributeValue | None) -> tuple[Scalar, ...]:
    """The elements of an array; a single value as an array of one."""
    if value is None:
        return ()
    if isinstance(value, str | bool | int | float):
        return (value,)
    return value if isinstance(value, tuple) else tuple(value)


def texts_of(value: AttributeValue | None) -> tuple[str, ...]:
    """The elements of an array as strings; a single value as an array of one."""
    return converted(_elements(value), as_text)


def array(elements: tuple[Scalar, ...]) -> AttributeValue | None:
    """An array with elements of one type; None for an empty one.

    If there are integers and fractions, all become fractions; any other mixture becomes strings.
    """
    kinds = set(map(type, elements))
    if kinds == {int, float}:
        return converted(elements, float)
    if len(kinds) > 1:
        return converted(elements, as_text)
    return cast("AttributeValue", elements) or None
