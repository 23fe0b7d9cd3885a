"""Databases that are damaged on purpose."""

from pathlib import Path

PAGE = 4096


def spoil(directory: Path) -> None:
    """Make a database unusable, without harm to what it holds."""
    with (directory / "queue.db").open("r+b") as file:
        file.write(bytes(PAGE))


def delete_all(directory: Path) -> None:
    for file in list(directory.glob("queue.db*")):  # as a shell does: not what the service copies meanwhile
        file.unlink(missing_ok=True)
