"""Merges several documents into one, as the Collector merges the locations of several `--config`.

The rules are those of koanf's `maps.Merge`, which the Collector's confmap uses (`Conf.Merge`, without its feature gate
that appends lists):

- The keys of two mappings are merged, at every depth.
- Everything else is replaced by the later value as a whole: also a list, and a mapping by a null (the Collector's issue
  9931). `exporters: {otlp_grpc: }` after a mapping leaves the exporter with its defaults.
"""

from collections.abc import Collection, Iterable, Mapping

from statsig_otel.config.document import Document, Place
from statsig_otel.config.errors import Path, Problem
from statsig_otel.config.substitution import FileBacked


def merge(documents: Iterable[Document]) -> Document:
    """The documents as one; later ones win. Without documents the result is an empty one.

    Each value keeps its own place; a mapping that several documents have keeps its place in the first. Problems of a
    document stay, but a reference that can't be resolved doesn't matter once its value is replaced.
    """
    values: dict[str, object] = {}
    places: dict[Path, Place] = {}
    problems: list[Problem] = []
    unresolved: list[Problem] = []
    doubts: list[Problem] = []
    file_backed: dict[Path, FileBacked] = {}
    for document in documents:
        replaced: set[Path] = set()
        values = _merged(values, document.values, (), replaced)
        kept = {path: place for path, place in places.items() if not _is_below(path, replaced)}
        places = {**document.places, **kept}
        unresolved = [problem for problem in unresolved if not _is_below(problem.path, replaced)]
        doubts = [problem for problem in doubts if not _is_below(problem.path, replaced)]
        file_backed = {path: string for path, string in file_backed.items() if not _is_below(path, replaced)}
        file_backed |= document.file_backed
        problems += document.problems
        unresolved += document.unresolved
        doubts += document.doubts
    return Document(values, places, tuple(problems), tuple(unresolved), file_backed, tuple(doubts))


def _merged(
    first: Mapping[str, object], second: Mapping[str, object], path: Path, replaced: set[Path]
) -> dict[str, object]:
    """Both mappings in one; the paths whose value was replaced are added to `replaced`."""
    merged = dict(first)
    for key, value in second.items():
        below = (*path, key)
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(old, value, below, replaced)
            continue
        if key in merged:
            replaced.add(below)
        merged[key] = value
    return merged


def _is_below(path: Path, roots: Collection[Path]) -> bool:
    """Whether the path is one of the roots, or leads through one."""
    return any(path[:end] in roots for end in range(1, len(path) + 1))
