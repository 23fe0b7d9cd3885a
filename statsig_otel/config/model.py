"""The bases of components' settings: `Settings`, and settings with keys that a whole section has."""

from collections import deque
from collections.abc import Callable, Iterator, KeysView, Mapping, Sized, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import GeneratorType
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, TypeVar, cast

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, ValidationError, ValidationInfo, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import from_json

from statsig_otel.config.errors import ConfigError, Path, Problem, SettingError
from statsig_otel.config.opaque import Opaque
from statsig_otel.config.strict_model import StrictModel
from statsig_otel.config.substitution import from_code
from statsig_otel.config.units import AS_WRITTEN
from statsig_otel.config.validation import problems_of
from statsig_otel.config.values import ReadApart

_T = TypeVar("_T")
_S = TypeVar("_S", bound="Settings")

_LISTS: Final = (list, tuple, set, frozenset, deque, KeysView, ValuesView, GeneratorType, map, filter)
"""What pydantic takes for a list."""


class Settings(StrictModel):
    """The base of every component's settings: unknown keys are errors, values don't change once checked.

    The constructor, `model_validate` with its forms for JSON and strings, and `model_copy` raise a `ConfigError` with
    all problems, as a file has them. References such as `${env:NAME}` are resolved in files only, so here `${` is a
    problem, and `$${` is `${`. Any other `$` is itself. The same is true of a model of yours that contains settings,
    but its errors are pydantic's. Only `model_construct` checks nothing.

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

    if not TYPE_CHECKING:  # type checkers know the constructor by the fields, and the others from pydantic

        def __init__(self, /, **values: object) -> None:
            _made(type(self), values, lambda read: super(Settings, self).__init__(**read))

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
            return _made(cls, obj, lambda read: super(Settings, cls).model_validate(read, **options))

        @classmethod
        def model_validate_json(cls, json_data: str | bytes | bytearray, **options: object) -> Self:
            """Check settings that a JSON object contains, as `model_validate` does for a mapping.

            Args:
                json_data: The object.
                options: See `model_validate`.

            Raises:
                ConfigError: It is not JSON, or all that is wrong in it.
            """
            try:
                found = from_json(json_data)
            except ValueError as error:
                raise ConfigError([Problem((cls.__name__,), f"is not JSON: {error}")]) from None
            return cls.model_validate(found, **options)

        model_validate_strings = model_validate

        def model_copy(self, *, update: Mapping[str, object] | None = None, deep: bool = False) -> Self:
            """A copy, with other values for some settings, which are checked as those of the constructor are.

            Args:
                update: The values, by the names of the settings.
                deep: Whether to copy the values too.

            Raises:
                ConfigError: All that is wrong.
            """
            copy = super().model_copy(deep=deep)
            if not update:
                return copy
            rest = {name: getattr(copy, name) for name in copy.model_fields_set - update.keys()}
            names = {"by_alias": True, "by_name": True}
            return _made(
                type(self), update, lambda read: super(Settings, self).model_validate({**rest, **read}, **names)
            )

    @model_validator(mode="wrap")
    @classmethod
    def _resolve(cls, values: object, read: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Look for references where pydantic makes settings by itself, such as in a model of the program's own."""
        problems: list[Problem] = []
        if not (info.context is AS_WRITTEN or _are_resolved.get()):
            values = resolved(values, (), problems)
        if problems:
            raise ConfigError(problems)
        with _resolved_strings():
            return read(values)


def replaced(settings: _S, **values: object) -> _S:
    """A copy of settings with other values that are checked already."""
    return BaseModel.model_copy(settings, update=values)


_are_resolved: Final = ContextVar("_are_resolved", default=False)


@contextmanager
def _resolved_strings() -> Iterator[None]:
    """In this block settings are made of strings that went through `resolved` already."""
    token = _are_resolved.set(True)
    try:
        yield
    finally:
        _are_resolved.reset(token)


def _made(model: type[Settings], values: Any, read: Callable[[Any], _T]) -> _T:
    """What `read` makes of values that a program gave for settings, after `resolved`.

    Raises:
        ConfigError: All that is wrong.
    """
    problems: list[Problem] = []
    values = resolved(values, (), problems)
    try:
        with _resolved_strings():
            made = read(values)
    except ValidationError as error:
        raise ConfigError(_joined(problems, problems_of(model, values, error))) from None
    if problems:
        raise ConfigError(problems)
    return made


def resolved(value: _T, path: Path, problems: list[Problem]) -> _T:
    """Values that a program gave for settings, with each of their strings passed through `from_code`.

    Args:
        value: Strings, paths and secrets, also in mappings and lists. Anything else stays: settings are resolved.
        path: Where it is.
        problems: Where a problem for each reference is added.
    """
    return cast("_T", _resolved(value, path, problems))


def _resolved(value: object, path: Path, problems: list[Problem]) -> object:
    if isinstance(value, bytes | bytearray):  # which pydantic takes for a string
        return _resolved(value.decode(errors="replace"), path, problems) if b"${" in value else value
    if isinstance(value, str | FilePath | Opaque):
        text = value.reveal() if isinstance(value, Opaque) else str(value)
        try:
            read = from_code(text)
        except SettingError as error:
            problems.append(Problem(path, error.message, error.hint))
            return value
        return value if read == text else type(value)(read)
    if isinstance(value, Mapping):
        items = {key: _resolved(item, (*path, key), problems) for key, item in value.items()}
        return value if all(items[key] is item for key, item in value.items()) else items
    if isinstance(value, _LISTS):
        given = list(value)
        found = [_resolved(item, (*path, index), problems) for index, item in enumerate(given)]
        is_same = isinstance(value, Sized) and all(one is item for one, item in zip(found, given, strict=True))
        return value if is_same else found
    return value


def _joined(references: list[Problem], problems: list[Problem]) -> list[Problem]:
    """The problems of references, and those of all other values: each value has one problem."""
    told = {problem.path for problem in references}
    return [*references, *(problem for problem in problems if problem.path not in told)]


class Composed(Settings):
    """The settings of a component's type, with keys that every component of its section has. One mapping contains both.

    Each key is read by the model that has it.
    """

    settings: Annotated[SkipJsonSchema[Settings], ReadApart()] = Field(exclude=True)

    @classmethod
    def shared_keys(cls) -> frozenset[str]:
        """The keys that are not the type's own."""
        return frozenset(cls.model_fields) - {"settings"}


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
