"""Resolves references: `${env:NAME}` and `${file:/path}` within a string.

The grammar is a part of the Collector's (its document "confmap", section "Environment variable expansion"):

- `${env:NAME}`, or `${NAME}`: the environment variable. If it is not set, that is an error. It may be empty.
- `${env:NAME:-default}`: the default if the variable is not set.
- `${file:PATH}`: the file's content without one newline at its end. A relative path starts at the
  configuration's directory.
- `${file:/run/credentials/UNIT/NAME}`: a credential that systemd makes while the unit's service runs.
- `$$`: a `$`. A `$` before any other character than `{` and `$` stands for itself.

The result is a string: it is not read as YAML, and references in it are not resolved.

A string that a program gives is the value itself, so `${` in it is an error, and `$${` is `${`: see `from_code`.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from statsig_otel.config.errors import SettingError, quoted
from statsig_otel.config.files import read_regular

MAX_FILE: Final = 1 << 20
"""The most bytes of a file that `${file:...}` reads."""

MAX_TEXT: Final = 8 << 20
"""The most characters that all references of one configuration may stand for together."""

_REFERENCE: Final = re.compile(r"\$(?:\$|\{([^}]*)(\}?))")
_OLD_REFERENCE: Final = re.compile(r"\$\$|\$\{[^}]*\}?|\$([A-Z_][A-Z0-9_]+)")
_DOLLARS: Final = re.compile(r"(\$+)\{")
_VARIABLE: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_FILE_HINT: Final = "the service reads it as its own user; a relative path starts at the configuration's directory"
_CREDENTIALS: Final = Path("/run/credentials")
"""Below it systemd makes a directory of credentials for each service that runs: systemd.exec(5)."""

_CREDENTIAL_HINT: Final = (
    "systemd makes it while the service runs, if the unit has a LoadCredential= for it; while the service is stopped, "
    "use validate --no-machine"
)
_ESCAPE_HINT: Final = "write $$ where a $ is meant"
_FORMS_HINT: Final = f"there are ${{env:NAME}}, ${{env:NAME:-default}} and ${{file:/path}}; {_ESCAPE_HINT}"


class Unresolved(NamedTuple):
    """A fault of a reference.

    Attributes:
        unset: The environment variable that is not set, if that is wrong.
        of_running: Whether the value is there only while systemd runs the service, which it does not do now.
    """

    message: str
    hint: str | None = None
    unset: str | None = None
    of_running: bool = False


class _UnsetError(SettingError):
    def __init__(self, variable: str) -> None:
        shown = quoted(variable)[1:-1]
        message = f"the environment variable {shown} is not set"
        super().__init__(message, f"set it, or write a default: ${{env:{shown}:-default}}")
        self.variable: Final = variable


class _OfRunningError(SettingError):
    pass


def has_old_reference(text: str) -> bool:
    """Whether a string contains `$NAME`, which the Collector replaced until version 0.104."""
    return any(match[1] for match in _OLD_REFERENCE.finditer(text))


def from_code(text: str) -> str:
    """A string that a program gives: `$${` is `${`, as in a file, and every other `$` stands for itself.

    `$$` alone stays, since a program takes its values from variables and stores of secrets, where no `$` is escaped.

    Raises:
        SettingError: It contains a `${`, which would be a reference in a file, or an error.
    """
    if "${" not in text:
        return text
    if any(len(dollars) % 2 for dollars in _DOLLARS.findall(text)):
        message = "contains ${, with which a reference begins: references are resolved in files only"
        raise SettingError(message, "give the value itself, or use Service.from_file; write $${ where ${ is meant")
    return _DOLLARS.sub(lambda found: found[1][::2] + "{", text)


class Substitution:
    """Resolves the references of one configuration. Each file is read once; relative paths start at `directory`."""

    def __init__(self, environ: Mapping[str, str], directory: Path) -> None:
        self._environ = environ
        self._directory = directory
        self._files: dict[str, str] = {}
        self._room = MAX_TEXT  # characters that references may still stand for

    def expand(self, text: str) -> tuple[str, list[Unresolved]]:
        """The string with its references resolved, and what was wrong with them. Messages contain only names.

        A random string stands for a credential of a service that does not run, so that the rest can be checked.
        """
        faults: list[Unresolved] = []

        def replace(match: re.Match[str]) -> str:
            try:
                return self._value(match)
            except SettingError as error:
                unset = error.variable if isinstance(error, _UnsetError) else None
                of_running = isinstance(error, _OfRunningError)
                faults.append(Unresolved(error.message, error.hint, unset, of_running))
                return secrets.token_hex() if of_running else ""

        return _REFERENCE.sub(replace, text), faults

    def file_backed(self, text: str) -> "FileBacked | None":
        """The string, if it refers to a file; None for any other."""
        names_file = any(match[1] and match[1].startswith("file:") for match in _REFERENCE.finditer(text))
        return FileBacked(text, self._environ, self._directory) if names_file else None

    def _value(self, match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if not match[2]:
            raise SettingError("contains a ${ without its }", _ESCAPE_HINT)
        value = self._resolve(match[1])
        self._room -= len(value)
        if self._room < 0:
            raise SettingError(f"the substitutions put in more than {MAX_TEXT >> 20} MiB in all")
        return value

    def _resolve(self, reference: str) -> str:
        if "${" in reference:
            hint = f"close the first with a }}; a default can't contain another reference; {_ESCAPE_HINT}"
            raise SettingError("contains a ${ within a ${...}", hint)
        if reference.startswith("file:"):
            return self._file(reference.removeprefix("file:"))
        if reference.startswith(("yaml:", "http:", "https:")):
            scheme = reference.partition(":")[0]
            raise SettingError(f"${{{scheme}:...}} is not supported", _FORMS_HINT)
        if not reference.startswith("env:") and _SCHEME.match(reference) and not _VARIABLE.fullmatch(reference):
            raise SettingError("contains a ${...} with an unknown scheme", _FORMS_HINT)
        match = _VARIABLE.fullmatch(reference.removeprefix("env:"))
        if match is None:
            hint = f"a name has letters, digits and _ only, and does not begin with a digit; {_ESCAPE_HINT}"
            raise SettingError("contains a ${...} that names no environment variable", hint)
        return self._variable(match[1], match[2])

    def _variable(self, name: str, default: str | None) -> str:
        value, shown = self._environ.get(name, default), quoted(name)[1:-1]
        if value is None:
            raise _UnsetError(name)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise SettingError(f"the environment variable {shown} is not UTF-8") from None
        return value

    def _file(self, name: str) -> str:
        if name not in self._files:
            self._files[name] = self._read(name)
        return self._files[name]

    def _read(self, name: str) -> str:
        shown = quoted(name)[1:-1]
        if not name:
            raise SettingError("contains a ${file:} without a path", _FORMS_HINT)
        try:
            content = read_regular(self._directory / name, MAX_FILE)
        except OSError as error:
            reason = error.strerror or "it can't be opened"
            message = f"the file {shown} can't be read: {reason}"
            if isinstance(error, FileNotFoundError) and Path(name).is_relative_to(_CREDENTIALS):
                kind = SettingError if Path(name).parent.exists() else _OfRunningError
                raise kind(message, _CREDENTIAL_HINT) from None
            hint = _FILE_HINT if isinstance(error, FileNotFoundError | PermissionError) else None
            raise SettingError(message, hint) from None
        except ValueError:  # a NUL in the path, or a surrogate
            raise SettingError("contains a ${file:...} whose path has a NUL byte or is not valid Unicode") from None
        if len(content) > MAX_FILE:
            raise SettingError(f"the file {shown} is larger than {MAX_FILE >> 20} MiB")
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise SettingError(f"the file {shown} is not UTF-8") from None
        return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


@dataclass(frozen=True, slots=True)
class FileBacked:
    """A string of the configuration that refers to files, whose content may change while a service runs."""

    text: str
    environ: Mapping[str, str]
    directory: Path

    def expand(self) -> tuple[str, list[Unresolved]]:
        """Read the files again and resolve the references; see `Substitution.expand`."""
        return Substitution(self.environ, self.directory).expand(self.text)
