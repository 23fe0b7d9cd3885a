"""Reads what `--config` names: files, environment variables or YAML itself, with the Collector's schemes.

- `PATH` or `file:PATH`: a file.
- `env:NAME`: the value of an environment variable.
- `yaml:TEXT`: YAML. In its outermost keys `::` separates nested keys, as in
  `yaml:exporters::otlp_grpc::endpoint: collector:4317`.

Relative paths in `${file:...}` start at the directory of the file, or at the working directory if there is no file.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Final

from statsig_otel.config.document import Document, Place
from statsig_otel.config.errors import ConfigError, Path, Problem, quoted
from statsig_otel.config.files import absolute
from statsig_otel.config.merging import merge
from statsig_otel.config.source import parse, read

# The Collector's confmap, resolver.go: schemePattern.
_LOCATION: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)
# The first key of `yaml:TEXT`, which messages may show.
_SHOWN: Final = re.compile(r"([A-Za-z0-9_/.-]|::)+(?=:\s)")
_DELIMITER: Final = "::"
_HINT: Final = "there are PATH, file:PATH, env:NAME and yaml:TEXT"


def read_all(
    locations: Iterable[FilePath | str], *, environ: Mapping[str, str], directory: FilePath = FilePath()
) -> Document:
    """Read all locations and merge them in their order. A `Path` is a file, whatever its name.

    `directory` takes the place of the working directory.

    Raises:
        ConfigError: Locations can't be read; it names all of them.
    """
    documents: list[Document] = []
    problems: list[Problem] = []
    for location in locations:
        try:
            documents.append(_read(location, environ, directory))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return merge(documents)


def _read(location: FilePath | str, environ: Mapping[str, str], directory: FilePath) -> Document:
    if isinstance(location, FilePath):
        return read(directory / location, environ=environ)
    if location in ("", "-"):
        what = "standard input (-) can't be read" if location else "an empty string is not a location"
        raise _error(what, "name a file: it is read again at a reload")
    match = _LOCATION.fullmatch(location)
    if match is None:
        return read(directory / location, environ=environ)
    scheme, value = match.groups()
    if scheme == "file":
        return read(directory / value, environ=environ)
    if scheme == "env":
        return _variable(value, environ, directory)
    if scheme == "yaml":
        return _text(value, environ, directory)
    if scheme in ("http", "https"):
        raise _error(
            f"a configuration can't be read over {scheme}", "fetch it first: what a service starts with is its file"
        )
    raise _error(f"there is no scheme {quoted(scheme)}", f"{_HINT}; a path with a colon needs file: before it")


def _variable(name: str, environ: Mapping[str, str], directory: FilePath) -> Document:
    shown = quoted(name)[1:-1]
    text = environ.get(name)
    if text is None:
        raise _error(f"the environment variable {shown} is not set", f"set it to YAML, or remove --config env:{shown}")
    return _parse(text, f"env:{shown}", environ, directory)


def _text(text: str, environ: Mapping[str, str], directory: FilePath) -> Document:
    begin = _SHOWN.match(text)  # the value after it may be a secret
    return _unfolded(_parse(text, f"yaml:{quoted(begin[0])[1:-1] if begin else '...'}", environ, directory))


def _parse(text: str, name: str, environ: Mapping[str, str], directory: FilePath) -> Document:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ConfigError([Problem((), "it is not UTF-8", file=name)]) from None
    return parse(data, file=name, directory=absolute(directory), environ=environ)


def _unfolded(document: Document) -> Document:
    """The document with `a::b: x` written out, as the Collector's confmap does."""

    def unfolded(path: Path) -> Path:
        return (*str(path[0]).split(_DELIMITER), *path[1:]) if path else path

    def moved(problems: Iterable[Problem]) -> tuple[Problem, ...]:
        return tuple(replace(problem, path=unfolded(problem.path)) for problem in problems)

    parts: list[Document] = [Document({}, {(): document.places[()]})]
    for key, value in document.values.items():
        keys = key.split(_DELIMITER)
        places: dict[Path, Place] = {tuple(keys[:end]): document.places[(key,)] for end in range(len(keys))}
        places |= {unfolded(path): place for path, place in document.places.items() if path[:1] == (key,)}
        file_backed = {unfolded(path): found for path, found in document.file_backed.items() if path[:1] == (key,)}
        for outer in reversed(keys[1:]):
            value = {outer: value}  # noqa: PLW2901 - folded from the inside out
        parts.append(Document({keys[0]: value}, places, file_backed=file_backed))
    return replace(
        merge(parts),
        problems=moved(document.problems),
        unresolved=moved(document.unresolved),
        doubts=moved(document.doubts),
    )


def _error(message: str, hint: str) -> ConfigError:
    return ConfigError([Problem((), message, hint, "--config")])
