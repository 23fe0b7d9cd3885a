"""The `mapping` settings of a receiver."""

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from statsig_otel.config.errors import SettingError
from statsig_otel.config.model import Settings
from statsig_otel.plugin.record.mapping import (
    MAX_INT,
    Constant,
    Lookup,
    RecordMapping,
    Source,
    Texts,
    array,
    check_new_name,
    check_old_name,
    check_pattern,
    is_array,
    is_severity,
    parse_template,
)
from statsig_otel.plugin.record.template import Template


def _passing(check: Callable[[str], object]) -> AfterValidator:
    """Validates a string by a function that raises for a wrong one."""

    def validate(text: str) -> str:
        check(text)
        return text

    return AfterValidator(validate)


def check_integer(value: object, name: str = "") -> object:
    """A value, unless it is an integer that no attribute can have. `name` is said of it, with a space behind it.

    It is checked first, since pydantic would make a fraction of a large integer.

    Raises:
        SettingError: It is too large.
    """
    if isinstance(value, int) and not -MAX_INT - 1 <= value <= MAX_INT:
        raise SettingError(f"{name}is larger than the 64 bits of an attribute", "write it as a string")
    return value


def _check_types(values: list[str | float]) -> list[str | float]:
    """Most backends can't search values of several types under one name."""
    kinds = set(map(type, values))
    if len(kinds) > 1 and kinds != {int, float}:
        raise SettingError("has values of several types", "write all of them as strings, in quotes")
    return values


_FIRST_MATCH: Final = "use a lookup with first_match: true, which gives one number"

_Template = Annotated[str, _passing(parse_template)]
_NewName = Annotated[str, _passing(check_new_name)]
_OldName = Annotated[str, _passing(check_old_name)]
_Pattern = Annotated[str, _passing(check_pattern)]
_Scalar = Annotated[_Template | bool | int | float, BeforeValidator(check_integer)]


class LookupSettings(Settings):
    """Looks a value up by another one, such as a team by a project."""

    needed: ClassVar[Mapping[str, str]] = {
        "lookup": 'write what is looked up, such as "{project.name}"',
        "table": "write {NAME: VALUE} for each value that is looked up",
    }

    lookup: _Template = Field(description="What is looked up, a template.", examples=["{project.name}"])
    table: dict[str, _Scalar] = Field(description="The values, by the string that is looked up.", min_length=1)
    default: _Scalar | None = Field(default=None, description="The value of all else; without it there is none.")
    first_match: bool = Field(
        default=False,
        description="Give one value, also for an array: that of the first key of the table that is among its elements.",
    )

    @model_validator(mode="after")
    def _check_types(self) -> "LookupSettings":
        _check_types([*self.table.values(), *([] if self.default is None else [self.default])])
        return self

    def source(self) -> Lookup:
        """The lookup itself. If one value is a fraction, all numbers become fractions: an attribute has one type."""
        fractions = any(isinstance(value, float) for value in (*self.table.values(), self.default))

        def source(value: str | float) -> Template | Constant:
            return _single(float(value) if fractions else value)

        table = {key: source(value) for key, value in self.table.items()}
        default = None if self.default is None else source(self.default)
        return Lookup(parse_template(self.lookup), table, default, self.first_match)


def _check_severity(value: str | float) -> str | float:
    """A constant has to be a SeverityNumber. A template is one if it gives one."""
    template = parse_template(value) if isinstance(value, str) else Template(())
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not any(template.names) and not (is_number and is_severity(str(value))):
        raise SettingError("is not a SeverityNumber", "write a number from 1 to 24: 9 is INFO, 13 WARN, 17 ERROR")
    if is_array(template):
        raise SettingError("is an array", _FIRST_MATCH)
    return value


def _check_severities(written: LookupSettings) -> LookupSettings:
    for value in (*written.table.values(), *([] if written.default is None else [written.default])):
        _check_severity(value)
    if not written.first_match and is_array(parse_template(written.lookup)):
        raise SettingError("gives an array, for it looks up each element of one", _FIRST_MATCH)
    return written


_SeverityNumber = Annotated[_Scalar, AfterValidator(_check_severity)]
_SeverityLookup = Annotated[LookupSettings, AfterValidator(_check_severities)]
_List = Annotated[list[_Scalar], Field(min_length=1), AfterValidator(_check_types)]
_Written = _Scalar | _List | LookupSettings


class MappingSettings(Settings):
    """How a receiver's records differ from the default record."""

    meant: ClassVar[Mapping[str, str]] = {"severity": "severity_number", "level": "severity_text"}

    event_name: _Template | None = Field(
        default=None, description="The EventName, a template.", examples=["statsig.{change_event.type}"]
    )
    body: _Template | None = Field(
        default=None, description="The body, a template.", examples=["{name} {action:-changed}: {description}"]
    )
    severity_number: _SeverityNumber | _SeverityLookup | None = Field(
        default=None,
        description="The SeverityNumber, 1 to 24: a number, a template, or a lookup. 9, INFO, where it gives nothing.",
        examples=[13, {"lookup": "{environments}", "table": {"production": 13}, "first_match": True}],
    )
    severity_text: _Template | LookupSettings | None = Field(
        default=None, description="The SeverityText: a template, or a lookup. None by default.", examples=["{action}"]
    )
    attributes: dict[_NewName, _Written] = Field(
        default_factory=dict,
        description="Attributes to set: a template, a constant, a list of either, or a lookup.",
        examples=[{"deployment.environments": "{environments}", "team": "web"}],
    )
    rename: dict[_OldName, _NewName] = Field(
        default_factory=dict,
        description="New names of attributes of the default record.",
        examples=[{"user.email": "enduser.id"}],
    )
    drop: list[_Pattern] = Field(
        default_factory=list,
        description="Attributes of the default record to leave out, by name or pattern.",
        examples=[["change_event.*"]],
    )

    @model_validator(mode="after")
    def _check_names(self) -> "MappingSettings":
        self.create()
        return self

    def create(self) -> RecordMapping:
        """The mapping itself."""
        return RecordMapping(
            event_name=None if self.event_name is None else parse_template(self.event_name),
            body=None if self.body is None else parse_template(self.body),
            severity_number=None if self.severity_number is None else _source(self.severity_number),
            severity_text=None if self.severity_text is None else _source(self.severity_text),
            attributes={name: _source(written) for name, written in self.attributes.items()},
            rename=self.rename,
            drop=self.drop,
        )


def _single(value: str | float) -> Template | Constant:
    return parse_template(value) if isinstance(value, str) else Constant(value)


def _source(written: _Written) -> Source:
    if isinstance(written, LookupSettings):
        return written.source()
    if not isinstance(written, list):
        return _single(written)
    texts = [parse_template(value) for value in written if isinstance(value, str)]
    numbers = tuple(value for value in written if not isinstance(value, str))
    return Texts(tuple(texts)) if texts else Constant(array(numbers))
