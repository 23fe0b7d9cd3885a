"""Checks the arguments of a command, and changes the queue for it."""

from typing import Any, TypeAlias, TypeVar

import msgspec

from statsig_otel.exporters.queue.database import StoppedQueue
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.exporters.queue.jobs import Work
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.plugin.control.socket import ControlError

_T = TypeVar("_T")


ChangeableQueue: TypeAlias = DurableQueue | StoppedQueue
"""A queue that commands can change: of a running or of a stopped service."""


def read_arguments(arguments: dict[str, Any], kind: type[_T]) -> _T:
    """Check the arguments of a command.

    Raises:
        ControlError: They are wrong.
    """
    try:
        # By way of JSON, since that refuses what no database takes: strings that are not Unicode, and huge numbers.
        return msgspec.json.decode(msgspec.json.encode(arguments), type=kind)
    except UnicodeEncodeError as error:
        raise ControlError(f"the arguments are wrong: {error.object!r} is not valid Unicode") from error
    except (msgspec.MsgspecError, OverflowError, RecursionError) as error:
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
