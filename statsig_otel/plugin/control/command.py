"""Checks the arguments of a command, and changes the queue for it."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.exporters.queue.writer import Work
from statsig_otel.plugin.control.socket import ControlError

_T = TypeVar("_T")


class ChangeableQueue(Protocol):
    """A queue that commands can change: of a running or of a stopped service."""

    @property
    def database(self) -> Path:
        """The database file."""

    def submit(self, work: Work[_T]) -> Future[_T]:
        """Run a function on the writing connection, in a transaction."""

    def now_ms(self) -> int:
        """The time now, in milliseconds since the epoch."""


def read_arguments(arguments: dict[str, Any], kind: type[_T]) -> _T:
    """Check the arguments of a command.

    Raises:
        ControlError: They are wrong.
    """
    try:
        return msgspec.convert(arguments, kind)
    except msgspec.ValidationError as error:
        raise ControlError(f"the arguments are wrong: {error}") from error


def submit_and_wait(queue: ChangeableQueue, work: Work[_T]) -> _T:
    """Run a function on the queue's writing connection, and wait until its changes are on disk.

    Raises:
        ControlError: The queue can't be changed now.
    """
    try:
        return queue.submit(work).result()
    except QueueError as error:
        raise ControlError(f"the queue can't be changed now: {error}") from error
