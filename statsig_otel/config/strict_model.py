"""The base model of all settings: it knows the keys, and gives advice about those that are not accepted."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path as FilePath
from types import UnionType
from typing import Any, ClassVar, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator, model_validator

from statsig_otel.config.errors import SettingError
from statsig_otel.config.files import absolute
from statsig_otel.config.scalars import YAML_1_1_BOOLEANS, resolve
from statsig_otel.config.units import Duration, parse_duration
from statsig_otel.config.values import check_home, is_path

_BOOLEANS: Final = {"t": "true", "1": "true", "f": "false", "0": "false"}


def _boolean_hint(value: object) -> str | None:
    """The boolean to write instead of a word or a number that means one elsewhere."""
    written = str(value).lower()
    if written in YAML_1_1_BOOLEANS:
        return f"write {YAML_1_1_BOOLEANS[written]}: to YAML 1.2 {value} is a string"
    return f"write {_BOOLEANS[written]}" if written in _BOOLEANS else None


def _is_one_of(implied: Iterable[object], value: object) -> bool:
    """Whether a value is one of `Settings.implied`. The value of a variable is a string; null counts as empty."""
    for one in implied:
        if value is None and one in ("", [], {}):
            return True
        if one is Duration:
            with suppress(ValueError):
                parse_duration(value)
                return True
        elif isinstance(one, type):
            if isinstance(value, one):
                return True
        elif str(value).lower() == str(one).lower():
            return True
    return False


class StrictModel(BaseModel):
    """Refuses unknown keys. See `Settings` for the tables of advice, and for errors as those of a file."""

    unsupported: ClassVar[Mapping[str, str]] = {}  # for a key that is refused: what to do instead
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {}  # for such a key: the values that are accepted anyway
    meant: ClassVar[Mapping[str, str]] = {}  # for a wrong key: the right one
    needed: ClassVar[Mapping[str, str]] = {}  # for a required key: what to write

    # pydantic's own messages would show what was written, which may be a secret.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    @classmethod
    def advice(cls, key: str, value: object) -> str | None:  # noqa: ARG003 - for subclasses
        """The advice for a key that is refused; None for another key. A model may look at the value.

        Args:
            key: The key.
            value: What was written there.
        """
        return cls.unsupported.get(key)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_implied(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if not _is_one_of(cls.implied.get(key, ()), value)}

    @field_validator("*", mode="before")
    @classmethod
    def _plain_value(cls, value: object, info: ValidationInfo) -> object:
        """Read a string, which may come from a variable, as YAML would read it where a number or a boolean is wanted.

        Refuse `true` for a number, which Python takes for 1, and 1 for a boolean.
        """
        field = cls.model_fields.get(info.field_name or "")
        if field is None or any(isinstance(one, BeforeValidator) for one in field.metadata):
            return value  # a type with messages of its own
        is_union = get_origin(field.annotation) in (Union, UnionType)
        members = set(get_args(field.annotation) if is_union else [field.annotation]) - {type(None)}
        words = [word for member in members if get_origin(member) is Literal for word in get_args(member)]
        types = {member for member in members if get_origin(member) is not Literal}
        if value in words:
            return value
        is_plain = bool(types) and types <= {bool, int, float}
        if is_plain and isinstance(value, str) and (read := resolve(value.strip())) is not None:
            value = read
        if isinstance(value, bool) and {int, float} & types and bool not in types:
            raise ValueError(f"must be a {'whole ' if int in types else ''}number")
        if not isinstance(value, bool | None) and types == {bool}:
            others = " or ".join(["true, false", *words]) if words else "true or false"
            raise SettingError(f"must be {others}", _boolean_hint(value))
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _whole_path(cls, value: object, info: ValidationInfo) -> object:
        """Refuse a path such as `~/chain.pem`, and make a relative one absolute: it may be read again much later.

        In a file it is absolute by now: relative paths start at the file.
        """
        if isinstance(value, FilePath):
            check_home(str(value))
            return absolute(value)
        if isinstance(value, str) and value and is_path(None, cls.model_fields[info.field_name or ""].metadata):
            check_home(value)
            return str(absolute(FilePath(value)))
        return value

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Add the tables of the models that this one is built on to its own."""
        for name in ("unsupported", "implied", "meant", "needed"):
            tables = [vars(base).get(name, {}) for base in reversed(cls.__mro__)]
            setattr(cls, name, {key: advice for table in tables for key, advice in table.items()})
