"""A mapping of a team's own: from the record that is made by default to the one that goes out. Data in, data out.

All of it reads the fields of the default record, whatever becomes of them: first attributes are dropped and renamed,
then those of the mapping are set. `log.record.uid` stays what it is: a change is known again behind every mapping.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, TypeAlias, cast

from statsig_otel.config.errors import SettingError, hint_for
from statsig_otel.plugin.record.change_event import ChangeEvent, valid
from statsig_otel.plugin.record.otlp import AttributeValue
from statsig_otel.plugin.record.record import RecordFields
from statsig_otel.plugin.record.template import FieldsOf, Placeholder, Template, TemplateError, as_text

UID: Final = "log.record.uid"

ATTRIBUTES: Final = (
    "change_event.category",
    "change_event.type",
    "change_event.source",
    "change_event.happened_at",
    "change_event.title",
    "change_event.label.type",
    "change_event.label.name",
    "change_event.label.action",
    "change_event.label.description",
    "feature_flag.key",
    "feature_flag.provider.name",
    "feature_flag.set.id",
    "deployment.environment.name",
    "user.name",
    "user.email",
    "user.id",
    UID,
    "statsig.environments",
    "statsig.project.name",
    "statsig.project.id",
    "statsig.tags",
    "statsig.target_apps",
    "statsig.change.kind",
    "statsig.change.rule",
    "statsig.change.from",
    "statsig.change.to",
    "statsig.change.kinds",
    "statsig.change.rules",
    "statsig.change.groups",
    "statsig.change.parameters",
    "statsig.config_change.uid",
    "statsig.impacted_services",
    "log.record.original",
)
"""The attributes that the default record can have."""

SHORT_NAMES: Final[Mapping[str, str]] = {
    "name": "change_event.label.name",
    "type": "change_event.label.type",
    "action": "change_event.label.action",
    "description": "change_event.label.description",
    "title": "change_event.title",
    "environment": "deployment.environment.name",
    "environments": "statsig.environments",
    "project.id": "statsig.project.id",
    "project.name": "statsig.project.name",
    "tags": "statsig.tags",
    "target_apps": "statsig.target_apps",
}
"""Fields of a template that are attributes by another name."""

_ARRAYS: Final = {
    "statsig.environments", "statsig.tags", "statsig.target_apps", "statsig.impacted_services",
    "statsig.change.kinds", "statsig.change.rules", "statsig.change.groups", "statsig.change.parameters",
}  # fmt: skip

SERVICE_FIELDS: Final = ("service.name", "service.namespace")
"""Fields of a record that is about one service: what its resource says."""

TIMESTAMP: Final = "timestamp"
METADATA: Final = "metadata."

_FIELDS: Final = (*SHORT_NAMES, TIMESTAMP, *ATTRIBUTES, *SERVICE_FIELDS)

MAX_INT: Final = 2**63 - 1
"""What an OTLP integer holds."""


def parse_template(text: str) -> Template:
    """Read a template over the fields of a change.

    Raises:
        TemplateError: It is no template, it is empty, or it names a field that there is not.
    """
    if not text:
        raise TemplateError("is empty", "leave the key out")
    template = Template.parse(text)
    for name in template.names:
        if not (name in _FIELDS or _is_metadata(name)):
            near = hint_for(name, [*_FIELDS, f"{METADATA}NAME"])
            raise TemplateError(f"has {{{name}}}, which is no field of a change", near)
    only = template.only
    if only is not None and isinstance(only.default, str) and _is_array(only.name):
        # An attribute is not of two types.
        return Template((Placeholder(only.name, (only.default,)),))
    return template


def _is_array(name: str) -> bool:
    return SHORT_NAMES.get(name, name) in _ARRAYS


def _is_metadata(name: str) -> bool:
    return len(name) > len(METADATA) and name.startswith(METADATA)


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value in each record.

    Attributes:
        constant: The value; None for no attribute.
    """

    constant: AttributeValue | None

    def value(self, _: FieldsOf) -> AttributeValue | None:
        """The value for one change."""
        return self.constant


@dataclass(frozen=True, slots=True)
class Texts:
    """An array of texts. A template that is an array adds each of its elements; what is absent adds none."""

    templates: tuple[Template, ...]

    def value(self, fields: FieldsOf) -> AttributeValue | None:
        """The value for one change."""
        return tuple(texts_of(template.value(fields) for template in self.templates)) or None


@dataclass(frozen=True, slots=True)
class Lookup:
    """A value by another one. An array is looked up element by element, and gives an array.

    Attributes:
        key: What is looked up.
        table: Values by the texts of keys.
        default: The value of all other keys, and of none; None for no attribute.
    """

    key: Template
    table: Mapping[str, "Template | Constant"]
    default: "Template | Constant | None" = None

    def value(self, fields: FieldsOf) -> AttributeValue | None:
        """The value for one change."""
        key = self.key.value(fields)
        if isinstance(key, str | bool | int | float) or (key is None and not self._is_of_array()):
            source = self._source(key)
            return None if source is None else source.value(fields)
        # Each source once: the default of a thousand tags would else be made a thousand times.
        sources = {id(source): source for source in map(self._source, [None] if key is None else key)}
        values = [source.value(fields) for source in sources.values() if source is not None]
        return array(dict.fromkeys(_flat(value for value in values if value is not None)))

    def _is_of_array(self) -> bool:
        """Whether an array is looked up, even where a change has none: an attribute is not of two types."""
        only = self.key.only
        return only is not None and _is_array(only.name)

    def _source(self, key: AttributeValue | None) -> "Template | Constant | None":
        return self.default if key is None else self.table.get(as_text(key), self.default)


Source: TypeAlias = Template | Constant | Texts | Lookup
"""Where the value of an attribute comes from."""


@dataclass(frozen=True, slots=True)
class RecordMapping:
    """How records look.

    Attributes:
        event_name: The EventName; None for the default one, which also stands where the template has nothing to say.
        body: The body, likewise.
        attributes: Attributes to set, in place of those of the same name.
        rename: New names of default attributes.
        drop: Default attributes to leave out, by name or by a pattern of `fnmatch.fnmatchcase`.

    Raises:
        ValueError: An attribute is named that there is not, twice, or that has to stay.
    """

    event_name: Template | None = None
    body: Template | None = None
    attributes: Mapping[str, Source] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    drop: Sequence[str] = ()
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
                raise ValueError(f"{name} is dropped and renamed")
        stay = set(ATTRIBUTES) - self._dropped - self.rename.keys()
        seen: set[str] = set()
        for target in self.rename.values():
            if target in self.attributes or target in seen:
                raise ValueError(f"{target} would stand twice in a record")
            if target in stay:
                raise SettingError(f"{target} would stand twice in a record", "drop or rename that one, too")
            seen.add(target)

    def apply(self, record: RecordFields, event: ChangeEvent, item: Mapping[str, object]) -> RecordFields:
        """Make a record of the default one. Never raises, whatever the item holds.

        Args:
            record: The default record.
            event: The change that it is of.
            item: The item that it was made of.
        """
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
        )


def fields_of(record: RecordFields, event: ChangeEvent, item: Mapping[str, object]) -> FieldsOf:
    """The fields of one change, as templates read them.

    Args:
        record: The default record.
        event: The change that it is of.
        item: The item that it was made of.
    """
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
    """Check the name of an attribute that a mapping makes.

    Raises:
        ValueError: It can't have that name.
    """
    if not name:
        raise ValueError("an attribute has a name")
    if name == UID:
        raise ValueError(f"{UID} stays what it is: a change is known again by it")


def check_old_name(name: str) -> None:
    """Check the name of a default attribute that is to be taken away.

    Raises:
        ValueError: There is none of that name, or it has to stay.
    """
    check_new_name(name)
    if name not in ATTRIBUTES:
        others = [known for known in ATTRIBUTES if known != UID]
        raise SettingError(f"no record has the attribute {name}", hint_for(name, others))


def check_pattern(pattern: str) -> None:
    """Check a pattern of default attributes that are to be left out.

    Raises:
        ValueError: It matches none of them.
    """
    if not matching(pattern):
        check_old_name(pattern)


def matching(pattern: str) -> list[str]:
    """The default attributes that a pattern leaves out. None leaves out the uid."""
    return [name for name in ATTRIBUTES if name != UID and fnmatchcase(name, pattern)]


def _of_json(value: object) -> AttributeValue | None:
    """A member of the metadata as an attribute. As everywhere, null, "" and [] are absent."""
    if isinstance(value, list):
        return array([found for element in value if (found := _scalar(element)) is not None])
    return _scalar(value)


def _scalar(value: object) -> str | bool | int | float | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -MAX_INT - 1 <= value <= MAX_INT:
        return value
    try:
        return valid(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    except RecursionError:
        return None


def _flat(values: Iterable[AttributeValue]) -> Iterable[str | bool | int | float]:
    for value in values:
        if isinstance(value, str | bool | int | float):
            yield value
        else:
            yield from value


def texts_of(values: Iterable[AttributeValue | None]) -> Iterable[str]:
    """Each value as a text, those of arrays one by one."""
    return (as_text(value) for value in _flat(value for value in values if value is not None))


def array(values: Iterable[str | bool | int | float]) -> AttributeValue | None:
    """An array of one type: numbers as fractions where one is, texts where there is anything else among them.

    An empty one is None: it has nothing to say.
    """
    elements = list(values)
    kinds = set(map(type, elements))
    if kinds == {int, float}:
        return [float(element) for element in elements]
    if len(kinds) > 1:
        return [as_text(element) for element in elements]
    return cast("AttributeValue", elements) or None
