"""Numbers in words, for the answers and log lines of commands: `2 records`, `1-3, 7`."""

from collections.abc import Iterable


def counted(count: int, noun: str) -> str:
    """`1 record`, `2 records`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def ranges(ids: Iterable[int]) -> str:
    """Ids in order, with ranges where they follow each other: `1-3, 7`; `none` if there are none."""
    found: list[tuple[int, int]] = []
    for number in sorted(ids):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found) or "none"
