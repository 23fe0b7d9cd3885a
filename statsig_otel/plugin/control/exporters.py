"""What the commands of the control socket do: on a running service, and on the queue of one that does not run.

Each is a handler that takes its arguments as JSON has them, and answers with what JSON can hold. Letters are replayed
and dropped by the page: an answer has `next`, to be given back as `after`, until it is null.
"""

import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import asdict, replace
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import msgspec

from statsig_otel import _telemetry
from statsig_otel.exporters.consumer import Batch, Consumer, Receipt, RefusedError
from statsig_otel.exporters.delivery.sender import Sender
from statsig_otel.exporters.queue import dead_letters, schema, store
from statsig_otel.exporters.queue.dead_letters import Keep, Letter, Plan, Remap, Replayed, Resend, Selection
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.routing import QueuedReceiver
from statsig_otel.exporters.queue.writer import Work
from statsig_otel.plugin.control.socket import ControlError, Handler
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.webhook import lenient_json
from statsig_otel.plugin.webhook.payload import MalformedBodyError, Payload, UrlVerification, parse

_logger: Final = logging.getLogger(__name__)

_T = TypeVar("_T")

_REPLAYED_AT_ONCE: Final = 100
_REPLAYED_BYTES: Final = 8 << 20
"""What one transaction replays at most: others wait for it, and it is in memory."""

_DELIVERED_WITHIN: Final = 45.0
"""Seconds that synchronous exporters have for a page; the command waits 60 s for its answer."""

_DROPPED_AT_ONCE: Final = 500

_DAMAGED: Final = (
    "it was damaged on disk, so its content can't be trusted and is not sent: `dead-letters show {id}` gives what is "
    "left of it, `dead-letters drop {id}` removes it"
)

_Deliver: TypeAlias = Callable[[Batch], Future[Receipt]]


class _Queue(Protocol):
    """A queue that can be changed: a running service's, or a stopped one."""

    @property
    def database(self) -> Path:
        """The database file."""

    def submit(self, work: Work[_T]) -> Future[_T]:
        """Run a function on the writing connection, in a transaction."""

    def now_ms(self) -> int:
        """The time now, in milliseconds since the epoch."""


def handlers(
    queue: DurableQueue,
    *,
    senders: Mapping[str, Sender],
    intakes: Mapping[str, Intake],
    receivers: Mapping[str, QueuedReceiver],
    synchronous: Consumer,
    delivered: Mapping[str, Sequence[str]],
) -> dict[str, Handler]:
    """The commands that a running service offers.

    Args:
        queue: Its queue.
        senders: The sender of each queued exporter, by the exporter's id.
        intakes: Every receiver, by its id. Its mapper is looked up anew each time.
        receivers: What the queue was told of the receivers.
        synchronous: Delivers a batch to the synchronous exporters of its receiver.
        delivered: The synchronous exporters of each receiver that has any.
    """

    def mapper_of(receiver: str) -> Mapper:
        if receiver not in intakes:
            raise ControlError(f"the receiver {receiver} is not in the running configuration")
        return intakes[receiver].mapper

    exporters = _RunningExporters(queue, senders, _names(delivered))
    dead = _DeadLetters(
        queue,
        receivers=receivers,
        mapper_of=mapper_of,
        deliver=synchronous.consume,
        delivered=delivered,
        exporters=senders,
    )
    return {
        "queue": exporters.status,
        "queue resume": exporters.resume,
        "queue skip": exporters.skip,
        "queue remove": exporters.remove,
        "dead-letters replay": dead.replay,
        "dead-letters drop": dead.drop,
    }


def stopped_handlers(
    queue: _Queue,
    *,
    mappers: Mapping[str, Mapper],
    receivers: Mapping[str, QueuedReceiver],
    delivered: Mapping[str, Sequence[str]],
    configured: Collection[str] | None,
) -> dict[str, Handler]:
    """The same commands on the queue of a service that does not run.

    Args:
        queue: Its queue.
        mappers: The mapper of each receiver, by the receiver's id; empty without a configuration.
        receivers: The receivers with a queued exporter; empty without a configuration.
        delivered: The synchronous exporters of each receiver that has any; empty without a configuration.
        configured: The queued exporters of the configuration; None without one.
    """

    def mapper_of(receiver: str) -> Mapper:
        if not mappers:
            raise ControlError("no service is running: to map it anew, start it, or give --config FILE")
        if receiver not in mappers:
            raise ControlError(f"the receiver {receiver} is not in the configuration")
        return mappers[receiver]

    def deliver(batch: Batch) -> Future[Receipt]:
        names = ", ".join(delivered[batch.receiver])
        why = f"{names} has no sending queue, so nothing can wait for it: replay it while the service runs"
        refused: Future[Receipt] = Future()
        refused.set_exception(RefusedError(why, reason="not_running"))
        return refused

    exporters = _StoppedExporters(queue, configured, _names(delivered))
    dead = _DeadLetters(
        queue, receivers=receivers, mapper_of=mapper_of, deliver=deliver, delivered=delivered, exporters=None
    )
    return {
        "queue resume": exporters.resume,
        "queue skip": exporters.skip,
        "queue remove": exporters.remove,
        "dead-letters replay": dead.replay,
        "dead-letters drop": dead.drop,
    }


class _Exporter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of the commands that are about one exporter."""

    exporter: str
    yes: bool = False


class _RunningExporters:
    """`queue ...` on a running service."""

    def __init__(self, queue: DurableQueue, senders: Mapping[str, Sender], synchronous: Collection[str]) -> None:
        self._queue = queue
        self._senders = senders
        self._synchronous = synchronous

    def status(self, _: dict[str, Any]) -> dict[str, Any]:
        """What each sender does now. All else about the queue is in its file."""
        exporters = {
            name: {"state": sender.state, "attempts": sender.attempts, "last_error": sender.last_error}
            for name, sender in self._senders.items()
        }
        return {"pid": os.getpid(), "exporters": exporters}

    def resume(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Try at once."""
        name, sender = self._sender(arguments)
        state = sender.state
        sender.resume()
        _logger.info("Command queue resume: %s, which was %s, tries again at once", name, state)
        return {"state": state}

    def skip(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Have the head record made a dead letter, where there is an outage."""
        name, sender = self._sender(arguments)
        waiting = self._queue.lane(name).waiting
        if waiting > 0 and sender.state not in ("blocked", "retrying"):
            raise ControlError(f"{name} is {sender.state}, neither blocked nor retrying: there is nothing to skip")
        if not sender.skip():
            raise ControlError(f"nothing waits for {name}")
        _logger.warning("Command queue skip: the record at the head of %s becomes a dead letter", name)
        return {"waiting": waiting}

    def remove(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Forget an exporter that is not in the running configuration."""
        given = _read(arguments, _Exporter)
        if given.exporter in self._senders or self._queue.serves(given.exporter):
            raise ControlError(
                f"{given.exporter} is in the running configuration: take it out there and restart, then remove it"
            )
        removed = _remove(self._queue, given, self._synchronous)
        records, size = counted(removed["records"], "record"), counted(removed["bytes"], "byte")
        _logger.warning("Command queue remove: %s is forgotten, and %s of %s given up", given.exporter, records, size)
        return removed

    def _sender(self, arguments: dict[str, Any]) -> tuple[str, Sender]:
        name = _read(arguments, _Exporter).exporter
        if name in self._senders:
            return name, self._senders[name]
        known = {state.name for state in _run(self._queue, store.exporter_states)}
        if name in known:
            raise ControlError(f"{name} {_no_sender(name, self._synchronous)}, so what waits for it is not sent")
        raise _unknown(name, self._senders, self._synchronous)


class _StoppedExporters:
    """`queue ...` where no service runs."""

    def __init__(self, queue: _Queue, configured: Collection[str] | None, synchronous: Collection[str]) -> None:
        self._queue = queue
        self._configured = configured
        self._synchronous = synchronous

    def resume(self, _: dict[str, Any]) -> dict[str, Any]:
        """There is no sender."""
        raise ControlError("no service is running, so there is nothing to resume: it tries at once when it starts")

    def skip(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Make the head record a dead letter."""
        name = _read(arguments, _Exporter).exporter

        def work(connection: sqlite3.Connection) -> int:
            state = _find(connection, name, self._synchronous)
            if not dead_letters.bury_head(connection, name, "skipped by command", self._queue.now_ms()):
                raise ControlError(f"nothing waits for {name}")
            return state.waiting

        return {"waiting": _run(self._queue, work)}

    def remove(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Forget an exporter, unless the configuration has it."""
        given = _read(arguments, _Exporter)
        if self._configured is None:
            if not given.yes:
                raise ControlError(
                    f"no service is running, so it can't be told whether {given.exporter} is still configured: "
                    "give --config FILE, or say --yes"
                )
        elif given.exporter in self._configured:
            raise ControlError(f"{given.exporter} is in the configuration: take it out there, then remove it")
        return _remove(self._queue, given, self._synchronous)


class _DeadLetters:
    """`dead-letters ...`, wherever the queue is.

    Args:
        queue: The queue.
        receivers: The receivers with a queued exporter.
        mapper_of: The mapper of a receiver; raises `ControlError` where there is none.
        deliver: Delivers a batch to the synchronous exporters of its receiver.
        delivered: The synchronous exporters of each receiver that has any.
        exporters: To whom a running service sends, and so can send again; None where none runs. Then whomever the queue
            knows will do, and there is no log to leave a line in.
    """

    def __init__(
        self,
        queue: _Queue,
        *,
        receivers: Mapping[str, QueuedReceiver],
        mapper_of: Callable[[str], Mapper],
        deliver: _Deliver,
        delivered: Mapping[str, Sequence[str]],
        exporters: Collection[str] | None,
    ) -> None:
        self._queue = queue
        self._receivers = receivers
        self._mapper_of = mapper_of
        self._deliver = deliver
        self._delivered = delivered
        self._exporters = exporters
        self._is_running = exporters is not None

    def replay(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Replay one page of letters, each in one piece with its removal.

        Synchronous exporters come first, as in a request. Whoever ends the service between the two, or makes the queue
        fail, has them get the same records at the next replay once more: nothing is lost, and the uids are the same.
        """
        page = _read(arguments, _Page)
        try:
            with closing(schema.connect_reading(self._queue.database)) as reading:
                upto = dead_letters.last_id(reading) if page.upto is None else page.upto
                found = dead_letters.select(
                    reading,
                    page.selection,
                    after=page.after,
                    upto=upto,
                    limit=_REPLAYED_AT_ONCE,
                    size=_REPLAYED_BYTES,
                )
                plans = [self._plan(letter, dead_letters.content(reading, letter.id)) for letter in found]
        except sqlite3.Error as error:
            raise ControlError(f"the queue can't be read: {error}") from error
        plans = self._deliver_at_once(plans)

        def work(connection: sqlite3.Connection) -> list[Replayed]:
            now_ms = self._queue.now_ms()
            return [dead_letters.replay(connection, plan, receivers=self._receivers, now_ms=now_ms) for plan in plans]

        done = _run(self._queue, work) if plans else []
        if done and self._is_running:
            _count_invalid(plans, done)
            _log_replay(done)
        return {"letters": [asdict(one) for one in done], "next": found[-1].id if found else None, "upto": upto}

    def drop(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Delete one page of letters."""
        page = _read(arguments, _Page)

        def work(connection: sqlite3.Connection) -> tuple[list[Letter], int]:
            upto = dead_letters.last_id(connection) if page.upto is None else page.upto
            return dead_letters.drop(
                connection, page.selection, after=page.after, upto=upto, limit=_DROPPED_AT_ONCE
            ), upto

        dropped, upto = _run(self._queue, work)
        ids = [letter.id for letter in dropped]
        if dropped and self._is_running:
            size = sum(letter.size for letter in dropped)
            message = "Command dead-letters drop: deleted %s of %s: %s"
            _logger.warning(message, counted(len(ids), "dead letter"), counted(size, "byte"), ranges(ids))
        return {"ids": ids, "next": ids[-1] if ids else None, "upto": upto}

    def _deliver_at_once(self, plans: Sequence[Plan]) -> list[Plan]:
        """Have the synchronous exporters take their share, all of a page together; what they don't take is kept."""
        answers = {
            plan.letter: self._deliver(replace(plan.batch, invalid=()))
            for plan in plans
            if isinstance(plan, Remap) and plan.batch.changes and self._delivered.get(plan.batch.receiver)
        }
        wait(answers.values(), timeout=_DELIVERED_WITHIN)
        return [
            self._after(plan, answers[plan.letter]) if isinstance(plan, Remap) and plan.letter in answers else plan
            for plan in plans
        ]

    def _after(self, plan: Remap, answer: Future[Receipt]) -> Plan:
        """What is left to do once the synchronous exporters were asked."""
        names = self._delivered[plan.batch.receiver]
        try:
            answer.result(timeout=0)
        except TimeoutError:
            return Keep(plan.letter, f"not delivered: {', '.join(names)} took more than {_DELIVERED_WITHIN:g} s")
        except RefusedError as error:
            return Keep(plan.letter, f"not delivered: {error}")
        return replace(plan, delivered=tuple(names))

    def _plan(self, letter: Letter, content: bytes | None) -> Plan:
        if content is None:  # replayed or dropped while this page was read
            return Keep(letter.id, letter.reason)
        if letter.kind == "damaged":
            return Keep(letter.id, _DAMAGED.format(id=letter.id))
        try:
            if letter.kind in dead_letters.FROM_RECEIVER:
                return _map_anew(letter, content, self._mapper_of(letter.owner))
            if self._exporters is not None and letter.owner not in self._exporters:
                why = _no_sender(letter.owner, _names(self._delivered))
                return Keep(letter.id, f"the exporter {letter.owner} {why}")
            records = dead_letters.split(content)
        except (ControlError, dead_letters.UnreadableError) as error:
            return Keep(letter.id, str(error))
        if letter.kind == "record" and letter.uid is not None:
            records = ((letter.uid, content),)  # byte for byte what was stored
        return Resend(letter.id, letter.owner, records)


def _map_anew(letter: Letter, content: bytes, mapper: Mapper) -> Plan:
    """An item or a body as if its request had come in anew, at the time at which it did."""
    observed_ns = letter.at_ms * 1_000_000
    try:
        if letter.kind == "item":
            payload: Payload | UrlVerification = Payload(1, (lenient_json.read(content.decode()),))
        else:
            payload = parse(content)
    except (MalformedBodyError, JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return Keep(letter.id, str(error), new_reason=True)
    if isinstance(payload, UrlVerification):
        return Keep(letter.id, "is a URL verification: there is nothing to deliver", new_reason=True)
    mapped = mapper.map(payload, observed_ns)
    if letter.kind == "item" and mapped.invalid:
        return Keep(letter.id, mapped.invalid[0].reason, new_reason=True)
    if not mapped.changes and not mapped.invalid and mapped.ignored > payload.ignored:  # it may be the only copy
        return Keep(letter.id, "the receiver's filter keeps nothing of it: change the filter, or drop it")
    return Remap(letter.id, Batch(letter.owner, mapped.changes, mapped.invalid))


class _Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of the commands that are about dead letters."""

    selection: Selection
    after: int = 0
    upto: int | None = None


def _read(arguments: dict[str, Any], kind: type[_T]) -> _T:
    try:
        return msgspec.convert(arguments, kind)
    except msgspec.ValidationError as error:
        raise ControlError(f"the arguments are wrong: {error}") from error


def _run(queue: _Queue, work: Work[_T]) -> _T:
    try:
        return queue.submit(work).result()
    except QueueError as error:
        raise ControlError(f"the queue can't be changed now: {error}") from error


def _remove(queue: _Queue, given: _Exporter, synchronous: Collection[str]) -> dict[str, Any]:
    def work(connection: sqlite3.Connection) -> store.ExporterState:
        state = _find(connection, given.exporter, synchronous)
        if state.waiting and not given.yes:
            raise ControlError(
                f"{counted(state.waiting, 'record')} of {counted(state.bytes, 'byte')} would be given up: what waits "
                f"for {state.name} is never sent to it, and is deleted where it waits for no other exporter. Say --yes "
                "for that"
            )
        store.remove_exporter(connection, state.name)
        return state

    state = _run(queue, work)
    return {"records": state.waiting, "bytes": state.bytes}


def _find(connection: sqlite3.Connection, name: str, synchronous: Collection[str]) -> store.ExporterState:
    states = {state.name: state for state in store.exporter_states(connection)}
    if name not in states:
        raise _unknown(name, states, synchronous)
    return states[name]


def _names(delivered: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The synchronous exporters of all receivers."""
    return frozenset(name for names in delivered.values() for name in names)


def _no_sender(name: str, synchronous: Collection[str]) -> str:
    """Why a running service has no sender for an exporter."""
    return f"{'has no sending queue' if name in synchronous else 'is not'} in the running configuration"


def _unknown(name: str, known: Iterable[str], synchronous: Collection[str]) -> ControlError:
    if name in synchronous:
        return ControlError(f"{name} has no sending queue: nothing waits for it")
    import difflib  # noqa: PLC0415 - only for a mistake at the command line

    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names) or 'none'}"
    return ControlError(f"the queue knows no exporter {name}; {hint}")


def _count_invalid(plans: Sequence[Plan], done: Sequence[Replayed]) -> None:
    for plan, one in zip(plans, done, strict=True):
        if isinstance(plan, Remap) and one.invalid:
            _telemetry.dead_letters.add(one.invalid, {"kind": "item", "owner": plan.batch.receiver})


def _log_replay(done: Sequence[Replayed]) -> None:
    replayed = [one.id for one in done if one.outcome == "replayed"]
    kept = [one.id for one in done if one.outcome == "kept"]
    message = "Command dead-letters replay: replayed %s, %s: %s; kept %d: %s"
    records = counted(sum(one.records for one in done), "record")
    _logger.info(message, counted(len(replayed), "dead letter"), records, ranges(replayed), len(kept), ranges(kept))


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
