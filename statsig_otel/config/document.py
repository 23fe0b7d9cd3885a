"""A configuration as plain values, each with the file and the line where it was written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Final

from statsig_otel.config.errors import Path, Problem
from statsig_otel.config.substitution import FileBacked


class Unknown:
    """Stands for a value that could not be read. The document's problems say why; it causes no others."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written.

    Attributes:
        file: The file, or another source, such as an environment variable.
        line: The line in the file, from 1.
        text: A number or a boolean as it was written.
        directory: Where a relative path starts; None if the value was not read.
    """

    file: str
    line: int | None = None
    text: str | None = None
    directory: FilePath | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A configuration as plain values: mappings with strings as keys, lists, strings, numbers, booleans and None.

    Attributes:
        values: The values. `UNKNOWN` stands for one that could not be read.
        places: Where each was written, by its path. The empty path is the whole document.
        problems: What was wrong with the YAML.
        unresolved: What was wrong with references (`${...}`) in single values. They don't matter if another document
            replaces the value.
        file_backed: The values that contain a file's content, by their path.
        doubts: What is valid in single values and probably not meant.
    """

    values: Mapping[str, object]
    places: Mapping[Path, Place]
    problems: tuple[Problem, ...] = ()
    unresolved: tuple[Problem, ...] = ()
    file_backed: Mapping[Path, FileBacked] = field(default_factory=dict)
    doubts: tuple[Problem, ...] = ()

    @classmethod
    def from_values(
        cls, values: Mapping[str, object], origin: str, origins: Mapping[Path, str] | None = None
    ) -> "Document":
        """A document without a file.

        Args:
            values: The values.
            origin: Where they come from, for messages: `the environment`.
            origins: The same for single values and all below them, by their path.
        """
        places = {path: Place(text) for path, text in (origins or {}).items()}
        return cls(values, {(): Place(origin)} | places)

    def place(self, path: Path) -> Place | None:
        """Where the value was written; if it is missing, the place of the nearest value around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path)

    def problem(self, path: Path, message: str, hint: str | None = None) -> Problem:
        """A problem of a value, with its place."""
        place = self.place(path)
        return Problem(path, message, hint, place.file if place else None, place.line if place else None)


NOWHERE: Final = Document({}, {})
"""Where values that were made in code come from."""
