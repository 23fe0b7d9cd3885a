"""What all commands need: reading their arguments, changing the queue, and counting in words."""

from collections.abc import Collection, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.exporters.queue.writer import Work
from statsig_otel.plugin.control.socket import ControlError

_T = TypeVar("_T")


class ChangeableQueue(Protocol):
    """A queue that can be changed: a running service's, or a stopped one."""

    @property
    def database(self) -> Path:
        """The database file."""

    def submit(self, work: Work[_T]) -> Future[_T]:
        """Run a function on the writing connection, in a transaction."""

    def now_ms(self) -> int:
        """The time now, in milliseconds since the epoch."""


def read_arguments(arguments: dict[str, Any], kind: type[_T]) -> _T:
    """The arguments of a command, checked.

    Raises:
        ControlError: They are wrong.
    """
    try:
        return msgspec.convert(arguments, kind)
    except msgspec.ValidationError as error:
        raise ControlError(f"the arguments are wrong: {error}") from error


def run_on(queue: ChangeableQueue, work: Work[_T]) -> _T:
    """Change the queue, and wait until the change is on disk.

    Raises:
        ControlError: The queue can't be changed now.
    """
    try:
        return queue.submit(work).result()
    except QueueError as error:
        raise ControlError(f"the queue can't be changed now: {error}") from error


def why_no_sender(name: str, synchronous: Collection[str]) -> str:
    """Why a running service has no sender for an exporter."""
    return f"{'has no sending queue' if name in synchronous else 'is not'} in the running configuration"


def counted(count: int, noun: str) -> str:
    """`1 record`, `2 records`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def ranges(ids: Iterable[int]) -> str:
    """Ids in order, for people: `1-3, 7`; `none` where there is none."""
    found: list[tuple[int, int]] = []
    for number in sorted(ids):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found) or "none"
