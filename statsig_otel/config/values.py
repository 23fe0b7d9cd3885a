"""The types of special values in settings: secrets, paths, and values that may also be written as a list."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, get_args

from pydantic import BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from statsig_otel.config.errors import SettingError
from statsig_otel.config.opaque import REDACTED, Opaque

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class ReadAs:
    """Marks a value that code may also give as other types, which are turned into this one."""

    type: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read it as the type."""
        return handler.generate_schema(self.type)


Secret = Annotated[str | Opaque, ReadAs(Opaque)]
"""A secret as a person writes it, a plain string. Settings keep it as an `Opaque`."""


def without_these(secrets: Iterable[str], text: str) -> str:
    """A message without secrets, which a model's own check may have put into it."""
    for secret in filter(None, secrets):
        for shown in (secret, repr(secret)[1:-1]):
            text = text.replace(shown, REDACTED)
    return text


def without_credentials(host: str) -> str:
    """What was written in the place of a host, without the user and the password or the query of a URL."""
    shown = host.rpartition("@")[2].partition("?")[0]
    return REDACTED if "=" in shown else shown


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
"""A path. If it is relative, it starts at the configuration file's directory, or in code at the working directory."""

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
