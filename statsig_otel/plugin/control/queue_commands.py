"""Carries out `queue resume`, `queue skip` and `queue remove`, on a running service or on a stopped queue."""

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from statsig_otel._telemetry import FAILED_STATES
from statsig_otel.config.errors import hint_for
from statsig_otel.exporters.delivery.decisions import SKIPPED
from statsig_otel.exporters.delivery.sender import QueueSender
from statsig_otel.exporters.queue import dead_letters, queries, schema, store
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.wording import counted
from statsig_otel.plugin.control.command import ChangeableQueue, read_arguments, submit_and_wait
from statsig_otel.plugin.control.socket import ControlError
from statsig_otel.plugin.receiver.intake import Intake

_logger: Final = logging.getLogger(__name__)

_SKIPPED_AT_ONCE: Final = 500
_OLDEST: Final = 1e10
"""Seconds: more than the time since the epoch. In nanoseconds much more would not be a number."""


class _Exporter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of the commands about one exporter."""

    exporter: str
    yes: bool = False


class _Skip(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of `queue skip`: how many records from the head on, and the seconds by which they are old."""

    exporter: str
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    older_than: Annotated[float, msgspec.Meta(ge=0, le=_OLDEST)] | None = None

    def find(self, connection: sqlite3.Connection, exporter: int, after: int) -> tuple[int, int]:
        """The number of records to skip, and the seq of the last one.

        Raises:
            ControlError: There are none.
        """
        before_ns = None if self.older_than is None else time.time_ns() - int(self.older_than * 1e9)
        count = 1 if self.count is None and before_ns is None else self.count
        found, last = queries.first_waiting(connection, exporter, after=after, count=count, before_ns=before_ns)
        if (
            not found
            and before_ns is not None
            and queries.first_waiting(connection, exporter, after=after, count=1, before_ns=None)[0]
        ):
            raise ControlError(f"the first record that waits for {self.exporter} is newer, so nothing was skipped")
        if not found:
            raise ControlError(f"nothing waits for {self.exporter}")
        return found, last


@dataclass(frozen=True, slots=True)
class RunningExporters:
    """The commands `queue ...` on a running service."""

    queue: DurableQueue
    senders: Mapping[str, QueueSender]
    synchronous: Collection[str]
    intakes: Mapping[str, Intake]
    before_resume: Callable[[], None] = lambda: None

    def status(self, _: dict[str, Any]) -> dict[str, Any]:
        """The state of each sender, and the secret that each receiver used last. All else is in the queue's file."""
        exporters = {
            name: {"state": sender.state, "attempts": sender.attempts, "last_error": sender.last_error}
            for name, sender in self.senders.items()
        }
        receivers = {
            name: {"secrets": intake.verifier.secret_count, "last_secret": intake.last_secret}
            for name, intake in self.intakes.items()
        }
        return {"pid": os.getpid(), "exporters": exporters, "receivers": receivers}

    def resume(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Send again at once."""
        name, sender = self._sender(arguments)
        state = sender.state
        self.before_resume()
        sender.resume()
        _logger.info("Command queue resume: %s, which was %s, tries again at once", name, state)
        return {"state": state}

    def skip(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Make the head record, and others behind it, dead letters, while the backend does not take it."""
        given = read_arguments(arguments, _Skip)
        name, sender = self._sender({"exporter": given.exporter})
        cursor = self.queue.cursor(name)
        waiting, position = cursor.waiting, cursor.position
        if waiting > 0 and sender.state not in FAILED_STATES:
            raise ControlError(f"{name} is {sender.state}, not blocked, refused or retrying, so nothing was skipped")
        with closing(schema.connect_reading(self.queue.database)) as reading:
            skipped, last = given.find(reading, cursor.id, position)
        if not sender.skip(position, last):
            raise ControlError(f"nothing waits for {name}")
        become = "becomes a dead letter" if skipped == 1 else "become dead letters, unless delivered already"
        _logger.warning("Command queue skip: %s at the head of %s %s", counted(skipped, "record"), name, become)
        return {"skipped": skipped, "waiting": waiting - skipped}

    def remove(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Forget an exporter that is not in the running configuration."""
        given = read_arguments(arguments, _Exporter)
        if given.exporter in self.senders or self.queue.serves(given.exporter):
            raise ControlError(f"{given.exporter} is in the running configuration: remove it there and restart first")
        removed = _remove(self.queue, given, self.synchronous)
        records, size = counted(removed["records"], "record"), counted(removed["bytes"], "byte")
        _logger.warning("Command queue remove: %s is forgotten, and %s of %s given up", given.exporter, records, size)
        return removed

    def _sender(self, arguments: dict[str, Any]) -> tuple[str, QueueSender]:
        name = read_arguments(arguments, _Exporter).exporter
        if name in self.senders:
            return name, self.senders[name]
        if name in (state.name for state in submit_and_wait(self.queue, queries.exporter_states)):
            raise ControlError(f"{name} {why_no_sender(name, self.synchronous)}, so what waits for it is not sent")
        raise _unknown(name, self.senders, self.synchronous)


@dataclass(frozen=True, slots=True)
class StoppedExporters:
    """The commands `queue ...` on the queue of a stopped service."""

    queue: ChangeableQueue
    configured: Collection[str] | None  # the queued exporters of the configuration; None without one
    synchronous: Collection[str]

    def resume(self, _: dict[str, Any]) -> dict[str, Any]:
        """Refuse: there is no sender."""
        raise ControlError("no service is running, so there is nothing to resume: it tries at once when it starts")

    def skip(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Make the head record, and others behind it, dead letters."""
        given = read_arguments(arguments, _Skip)

        def find(connection: sqlite3.Connection) -> tuple[int, int]:
            state = _find(connection, given.exporter, self.synchronous)
            return given.find(connection, state.id, state.cursor)[0], state.waiting

        skipped, waiting = submit_and_wait(self.queue, find)
        left = skipped

        def add_dead_letter(connection: sqlite3.Connection) -> int:
            count, now_ms = min(left, _SKIPPED_AT_ONCE), self.queue.now_ms()
            return dead_letters.make_dead_letters(connection, given.exporter, SKIPPED, count=count, now_ms=now_ms)

        while left:
            left -= submit_and_wait(self.queue, add_dead_letter)
        return {"skipped": skipped, "waiting": waiting - skipped}

    def remove(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Forget an exporter that is not in the configuration."""
        given = read_arguments(arguments, _Exporter)
        if self.configured is None and not given.yes:
            raise ControlError(
                f"no service is running, so it is unknown whether {given.exporter} is still configured: "
                "give --config FILE, or confirm with --yes"
            )
        if given.exporter in (self.configured or ()):
            raise ControlError(f"{given.exporter} is in the configuration: remove it there first")
        return _remove(self.queue, given, self.synchronous)


def why_no_sender(name: str, synchronous: Collection[str], where: str = "running configuration") -> str:
    """Why a service has no sender for an exporter."""
    return f"{'has no sending queue' if name in synchronous else 'is not'} in the {where}"


def _remove(queue: ChangeableQueue, given: _Exporter, synchronous: Collection[str]) -> dict[str, Any]:
    def work(connection: sqlite3.Connection) -> queries.ExporterState:
        state = _find(connection, given.exporter, synchronous)
        if state.waiting and not given.yes:
            raise ControlError(
                f"{counted(state.waiting, 'record')} of {counted(state.bytes, 'byte')} would be given up: they would "
                f"never be sent to {state.name}, and those that wait for no other exporter would be deleted. Confirm "
                "with --yes"
            )
        store.remove_exporter(connection, state.name)
        return state

    state = submit_and_wait(queue, work)
    return {"records": state.waiting, "bytes": state.bytes}


def _find(connection: sqlite3.Connection, name: str, synchronous: Collection[str]) -> queries.ExporterState:
    states = {state.name: state for state in queries.exporter_states(connection)}
    if name not in states:
        raise _unknown(name, states, synchronous)
    return states[name]


def _unknown(name: str, known: Iterable[str], synchronous: Collection[str]) -> ControlError:
    if name in synchronous:
        return ControlError(f"{name} has no sending queue: nothing waits for it")
    return ControlError(f"the queue knows no exporter {name}; {hint_for(name, known) or 'there are none'}")
