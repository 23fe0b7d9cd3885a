"""The strict base model of all settings, and the types of special values: secrets, ids of extensions, lists."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema, core_schema

from statsig_otel._arguments import check_type
from statsig_otel.config.errors import ConfigError, SettingError
from statsig_otel.config.scalars import YAML_1_1_BOOLEANS, resolve
from statsig_otel.config.units import Duration, parse_duration

_REDACTED: Final = "[REDACTED]"
_BOOLEANS: Final = {"t": "true", "1": "true", "f": "false", "0": "false"}


def _boolean_hint(value: object) -> str | None:
    """What to write instead of a word or a number that means a boolean elsewhere."""
    written = str(value).lower()
    if written in YAML_1_1_BOOLEANS:
        return f"write {YAML_1_1_BOOLEANS[written]}: to YAML 1.2 {value} is a string"
    return f"write {_BOOLEANS[written]}" if written in _BOOLEANS else None


def _is_one_of(implied: Iterable[object], value: object) -> bool:
    """Whether a value is one of `Settings.implied`. The value of a variable is a string; none counts as empty."""
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


class Settings(BaseModel):
    """The base of every component's settings: unknown keys are errors, values don't change once checked.

    The constructor and `model_validate` raise a `ConfigError` with all problems, as a file has them.

    Attributes:
        unsupported: Keys that the Collector's component has and this one has not, each with what to do instead.
        implied: Values of such keys that ask for what happens here anyway, so they are accepted. `Duration` stands for
            every duration, `dict` for every mapping.
        meant: Keys that are often written by mistake, each with the right one: `{"insecure": "tls::insecure"}`.
        needed: Required keys, each with what to write.

    Example:
        >>> from statsig_otel.config import Duration, Opaque, Settings, Size
        >>> class ChatSettings(Settings):
        ...     url: Opaque
        ...     timeout: Duration = 10.0
        ...     max_message: Size = 4096
        >>> ChatSettings.model_validate({"url": "https://chat/secret", "timeout": "1m30s", "max_message": "2KiB"})
        ChatSettings(url=[REDACTED], timeout=90.0, max_message=2048)
    """

    unsupported: ClassVar[Mapping[str, str]] = {}
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    meant: ClassVar[Mapping[str, str]] = {}
    needed: ClassVar[Mapping[str, str]] = {}

    # pydantic's own messages would show what was written, which may be a secret.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    if not TYPE_CHECKING:  # type checkers know the constructor by the fields

        def __init__(self, /, **values: object) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise _config_error(type(self), values, error) from None

        __init__.__pydantic_base_init__ = True  # so that pydantic does not call it for the models in models

        @classmethod
        def model_validate(cls, obj: object, **options: object) -> Self:
            """Make settings of a mapping.

            Args:
                obj: The mapping; or settings, which are returned.
                options: See pydantic's `BaseModel.model_validate`.

            Raises:
                ConfigError: All that is wrong.
            """
            try:
                return super().model_validate(obj, **options)
            except ValidationError as error:
                raise _config_error(cls, obj, error) from None

    @classmethod
    def advice(cls, key: str, value: object) -> str | None:  # noqa: ARG003 - for subclasses
        """What to do instead of a refused key; None for one that is not. A model may look at the value.

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
    def _no_boolean_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Refuse `true` where a number is wanted, which Python takes for 1, and 1 where a boolean is wanted.

        A string may come from a variable, so it is read as YAML would read it.
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

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Add the tables of the models that this one is built on to its own."""
        for name in ("unsupported", "implied", "meant", "needed"):
            tables = [vars(base).get(name, {}) for base in reversed(cls.__mro__)]
            setattr(cls, name, {key: advice for table in tables for key, advice in table.items()})


def _config_error(model: type[Settings], values: object, error: ValidationError) -> ConfigError:
    """The same problems as of a file, for settings that are made in code."""
    from statsig_otel.config.validation import problems_of  # noqa: PLC0415 - it needs the models

    return ConfigError(problems_of(model, values, error))


class Composed(Settings):
    """The settings of a component's type, with keys that every component of its section has. One mapping contains both.

    Each key is read by the model that has it.
    """

    settings: SkipJsonSchema[Settings] = Field(exclude=True)

    @classmethod
    def shared_keys(cls) -> frozenset[str]:
        """The keys beside those of the type."""
        return frozenset(cls.model_fields) - {"settings"}


class Opaque:
    """A secret string: prints as `[REDACTED]` everywhere, like the Collector's `configopaque.String`.

    Raises:
        TypeError: It is not a string.

    Example:
        >>> from statsig_otel.config import Opaque
        >>> secret = Opaque("webhook-123")
        >>> print(secret, secret.reveal())
        [REDACTED] webhook-123
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        check_type("text", text, str)
        self._text = text

    def reveal(self) -> str:
        """The string itself."""
        return self._text

    def __repr__(self) -> str:
        return _REDACTED

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Any string (or an `Opaque`) in; `[REDACTED]` out, in JSON too."""
        from_text = core_schema.no_info_after_validator_function(cls, core_schema.str_schema())
        return core_schema.json_or_python_schema(
            json_schema=from_text,
            # No union of the two: pydantic would report what is wrong with each.
            python_schema=core_schema.no_info_wrap_validator_function(
                lambda value, text: value if isinstance(value, cls) else text(value), from_text
            ),
            serialization=core_schema.plain_serializer_function_ser_schema(repr),
        )


@dataclass(frozen=True, slots=True)
class ReadAs:
    """Marks a value that code may also give as other types, which are turned into this one."""

    type: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read it as the type."""
        return handler.generate_schema(self.type)


Secret = Annotated[str | Opaque, ReadAs(Opaque)]
"""A secret as a person writes it, a plain string. Settings keep it as an `Opaque`."""


def reveal(secret: str | Opaque) -> str:
    """The string of a secret."""
    return secret.reveal() if isinstance(secret, Opaque) else secret


def without_these(secrets: Iterable[str], text: str) -> str:
    """A message without secrets, which a model's own check may have put into it."""
    for secret in filter(None, secrets):
        for shown in (secret, repr(secret)[1:-1]):
            text = text.replace(shown, _REDACTED)
    return text


def without_secrets(value: Any) -> Any:
    """Settings, or a value of them, for a comparison in which all secrets are the same."""
    if isinstance(value, BaseModel):
        return {name: without_secrets(item) for name, item in value}
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return Opaque("") if isinstance(value, Opaque) else value


@dataclass(frozen=True, slots=True)
class ExtensionOf:
    """Marks a key whose value is the id of an extension of a type: `Annotated[str, ExtensionOf("file_storage")]`."""

    type: str


def extensions_of(settings: Settings) -> Iterator[tuple[tuple[str, ...], str, ExtensionOf]]:
    """The ids of extensions that settings name, at every depth: its path, the id, and the type that it has to have."""
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(settings, Composed) and value is settings.settings:
            yield from extensions_of(value)
        elif isinstance(value, Settings):
            for below, id_, marker in extensions_of(value):
                yield (name, *below), id_, marker
        for marker in info.metadata:
            if isinstance(marker, ExtensionOf) and value is not None:
                yield (name,), value, marker


class _PathMarker:
    """See `PathText`."""


PathText = Annotated[str, _PathMarker()]
"""A path as a string. Like a `Path` it starts at the directory of the configuration file if it is relative."""


def is_path(annotation: Any) -> bool:
    """Whether a type is a path."""
    return annotation is Path or any(isinstance(one, _PathMarker) for one in get_args(annotation)[1:])


@dataclass(frozen=True, slots=True)
class OrList:
    """Marks a value that may also be written as a list: `Annotated[dict[str, Opaque], OrList(list[Pair], as_dict)]`.

    Attributes:
        items: The type of the list.
        convert: Makes the value from a checked list; raises a `ValueError` where that is impossible.
    """

    items: Any
    convert: Callable[[Any], object]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Choose between the two forms by the value's own type, so that only one form's errors are reported."""
        items = core_schema.no_info_after_validator_function(self.convert, handler.generate_schema(self.items))
        return core_schema.tagged_union_schema(
            {"(list)": items, "(value)": handler(source)},  # no key is called so: the tags stand in errors' paths
            discriminator=lambda value: "(list)" if isinstance(value, list) else "(value)",
        )
