"""The types of special values in settings: secrets, paths, and values that may also be written as a list."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, get_args

from pydantic import BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from statsig_otel._arguments import check_type
from statsig_otel.config.errors import SettingError

_REDACTED: Final = "[REDACTED]"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


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


class ReadApart:
    """Marks a field that is not a key of its model: another model reads it."""


def _check_path(value: object) -> object:
    """Refuse line breaks and white space, which come along where a file or a variable has more than the path."""
    text = str(value)
    if _CONTROL.search(text):
        raise SettingError("contains a control character, such as a line break", "write the path alone")
    if text != text.rstrip():
        raise SettingError("ends with white space", "write the path alone")
    return value


class _PathMarker:
    """See `PathText`."""


PlainPath = Annotated[Path, BeforeValidator(_check_path)]
"""A path. If it is relative, it starts at the directory of the configuration file."""

PathText = Annotated[str, BeforeValidator(_check_path), _PathMarker()]
"""The same as a string, which may be empty."""


def is_path(annotation: Any, metadata: Iterable[object] = ()) -> bool:
    """Whether a type is a path. `metadata` is what pydantic took out of the annotation of a field."""
    return annotation is Path or any(isinstance(one, _PathMarker) for one in [*get_args(annotation)[1:], *metadata])


def check_home(path: str) -> str:
    """A path that does not begin with a home directory (`~`, `~/...`, `~user/...`), which only shells know.

    Raises:
        SettingError: It begins with one. A directory called `~` can be given by its whole path.
    """
    if path.startswith("~"):
        hint = 'give the whole path, or in code Path("~/...").expanduser()'
        raise SettingError("begins with ~, which is not replaced by a home directory", hint)
    return path


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
