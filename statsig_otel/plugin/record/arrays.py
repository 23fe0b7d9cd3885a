"""Cuts the arrays of a record: the first 1,000 elements are kept, and the others are counted.

A body of 14 MB can name 7 million environments. Elements behind the bound are never collected, so that such a body
takes little more memory than its text.
"""

import re
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Final, TypeVar

_T = TypeVar("_T")
_U = TypeVar("_U")

MAX_ELEMENTS: Final = 1000

_PARTS: Final = re.compile("[^,]+")


class Cut(tuple[_T, ...]):  # noqa: SLOT001 - a tuple of its own can't have a slot
    """The first elements of an array that has more of them.

    Attributes:
        total: The number of all elements. A record has it as an attribute: the array's name and `_count` behind it.
    """

    total: int


def first(elements: Iterable[_T]) -> tuple[_T, ...]:
    """The first 1,000 elements; a `Cut` if there are more."""
    rest = iter(elements)
    kept = tuple(islice(rest, MAX_ELEMENTS))
    return kept if len(kept) < MAX_ELEMENTS else cut(kept, sum(1 for _ in rest))


def converted(array: tuple[_T, ...], convert: Callable[[_T], _U]) -> tuple[_U, ...]:
    """The array with each of its elements converted; still a `Cut` if it was one."""
    return cut(tuple(map(convert, array)), hidden(array))


def joined(arrays: Iterable[tuple[_T, ...]], *, distinct: bool = False) -> tuple[_T, ...]:
    """The elements of several arrays in one.

    Args:
        arrays: The arrays.
        distinct: Whether each element is kept only once. In the total of a `Cut` it may count several times.
    """
    several = list(arrays)
    elements = chain.from_iterable(several)
    together = first(dict.fromkeys(elements) if distinct else elements)
    return cut(tuple(together), sum(map(hidden, (together, *several))))


def split(text: str) -> tuple[str, ...]:
    """The parts of a string between its commas, without the space around them; blank ones are left out."""
    if len(text) <= MAX_ELEMENTS:  # it can't have more parts
        return tuple(part for part in map(str.strip, text.split(",")) if part)
    return first(part for match in _PARTS.finditer(text) if (part := match[0].strip()))


def hidden(array: Iterable[object]) -> int:
    """The number of elements that were not kept."""
    return array.total - len(array) if isinstance(array, Cut) else 0


def cut(kept: tuple[_T, ...], more: int) -> tuple[_T, ...]:
    """An array whose other elements were not kept; it is a `Cut` if there are any."""
    if not more:
        return kept
    made = Cut(kept)
    made.total = len(kept) + more
    return made
