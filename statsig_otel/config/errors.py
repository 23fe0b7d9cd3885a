"""The errors of a configuration, all reported at once and in one form.

    receivers::statsig::signing_secrets[0]: is empty (config.yaml:4)
      hint: ...

A `Fault` says what is wrong and what to do about it. A validator raises it as a `SettingError`. A `Problem` also says
where it is. A `ConfigError` has all problems. No message contains a secret.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

from statsig_otel.config.opaque import REDACTED

Path: TypeAlias = tuple[str | int, ...]
"""The keys and list indexes that lead to a value."""

_SIGNING_SECRET: Final = re.compile(r"(?<![\w/.-])webhook-\w{8,}")
"""As Statsig makes them. The name in an id is behind a slash, and a type has no hyphen."""

_JOINED: Final = re.compile(r"(?![A-Za-z]\w*/\S*\Z).*[:=]", re.DOTALL)
"""A key with its value in it. The name in an id, which is behind a slash, may have these characters."""

_LONGEST: Final = 80
_MOST_WORDS: Final = 100
_FEW_WORDS: Final = 12


class Fault(NamedTuple):
    """A fault of one value or one thing, for use after its name: `is empty`. The hint says what to do."""

    message: str
    hint: str | None = None


NOT_A_NAME: Final = Fault("contains a key that is not a name", "write NAME: VALUE, with a space after the colon")


class SettingError(ValueError):
    """A validator refuses a value, and says what to write instead.

    Attributes:
        message: What is wrong, for use after the value's path: `is empty`.
        hint: What to do about it.

    Example:
        >>> from pydantic import field_validator
        >>> from statsig_otel.config import SettingError, Settings
        >>> class ChatSettings(Settings):
        ...     room: str
        ...     @field_validator("room")
        ...     @classmethod
        ...     def _check_room(cls, room: str) -> str:
        ...         if not room.startswith("#"):
        ...             raise SettingError("is not a room", "write # before its name")
        ...         return room
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message: Final = message
        self.hint: Final = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: Where in the configuration; empty for the whole file.
        message: What is wrong, for use after the path: `is empty`.
        hint: What to do about it.
        file: The file, or another source, such as an environment variable.
        line: The line in the file, from 1.
        unset: The environment variable that is not set, if that is what is wrong.
        of_running: Whether the value is there only while systemd runs the service, which it does not do now.

    Example:
        >>> from statsig_otel.config import Problem
        >>> print(Problem(("receivers", "statsig", "signing_secrets", 0), "is empty", "remove it", "config.yaml", 4))
        receivers::statsig::signing_secrets[0]: is empty (config.yaml:4)
          hint: remove it
    """

    path: Path
    message: str
    hint: str | None = None
    file: str | None = None
    line: int | None = None
    unset: str | None = None
    of_running: bool = False

    def __str__(self) -> str:
        text = _without_secret(f"{render(self.path)}: {self.message}" if self.path else self.message)
        if self.file is not None:
            text += f" ({self.file})" if self.line is None else f" ({self.file}:{self.line})"
        return text if self.hint is None else f"{text}\n  hint: {_without_secret(self.hint)}"


class ConfigError(ValueError):
    """A configuration can't be used, from a file or from code. Its string lists all problems.

    Attributes:
        problems: Each once, sorted by file and line.

    Example:
        >>> from statsig_otel.config import ConfigError, Problem
        >>> str(ConfigError([Problem(("exporters",), "is required")]))
        'exporters: is required'
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: Final = tuple(sorted(dict.fromkeys(problems), key=_order))
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def _without_secret(text: str) -> str:
    """Hide what looks like a signing secret: somebody wrote it where a key belongs, and keys are shown."""
    return _SIGNING_SECRET.sub("webhook-...", text)


def _order(problem: Problem) -> tuple[str, int]:
    return problem.file or "", problem.line or 0


def render(path: Path) -> str:
    """A path as the Collector writes it: `receivers::statsig::signing_secrets[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f"::{_name(part)}" if text else _name(part)
    return text


def _is_joined(key: str) -> bool:
    """Whether a key has its value in it, as in `{password:VALUE}`, where a blank is missing. No message shows it."""
    return bool(_JOINED.match(key))


def _name(text: str) -> str:
    """A name as a message shows it: in quotes only if it is empty, long or unprintable."""
    if _is_joined(text):
        return REDACTED
    return text if text.isprintable() and 0 < len(text) <= _LONGEST else quoted(text)


def quoted(text: str) -> str:
    """The string as a message shows it: on one line, and cut off where it is long."""
    return repr(text if len(text) <= _LONGEST else text[:_LONGEST] + "...")


def quoted_name(text: str) -> str:
    """The same for a name."""
    return REDACTED if _is_joined(text) else quoted(text)


def closest(word: str, words: Iterable[str]) -> str | None:
    """The word that was probably meant. Of many words only the first are compared, since comparing takes time."""
    import difflib  # noqa: PLC0415 - a service whose configuration is right never needs it

    by_lower = {known.lower(): known for known in islice(words, _MOST_WORDS)}
    found = difflib.get_close_matches(word[:_LONGEST].lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


def hint_for(word: str, words: Iterable[str], *, near: str | None = None) -> str | None:
    """`did you mean ...?`, and all words that there are, unless they are many and one of them is near.

    Args:
        word: What was written.
        words: What there is.
        near: What was probably meant, if the closest of the words is not it.
    """
    if _is_joined(word):
        return NOT_A_NAME.hint
    known = list(islice(words, _MOST_WORDS))
    near = near or closest(word, known)
    if near is None:
        return list_of(known)
    question = f"did you mean {_name(near)}?"
    return f"{question} {list_of(known)}" if 1 < len(known) <= _FEW_WORDS else question


def list_of(words: Iterable[str]) -> str | None:
    """`there are: ...`; None without words."""
    known = sorted(words)
    return f"there are: {', '.join(map(_name, known))}" if known else None
