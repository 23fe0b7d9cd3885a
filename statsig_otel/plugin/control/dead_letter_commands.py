"""Replays and drops dead letters, on a running service or on the queue of a stopped one.

Both commands handle one page at a time. The next page's `after` is the answer's `next`, until that is null.
"""

import logging
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from json import JSONDecodeError
from typing import Any, Final

import msgspec

from statsig_otel import _telemetry
from statsig_otel._times import REPLAY_TIMEOUT
from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError
from statsig_otel.exporters.queue import dead_letters, schema
from statsig_otel.exporters.queue.dead_letters import (
    Id,
    Keep,
    MapAgain,
    Replay,
    Replayed,
    Resend,
    Selection,
    StoredDeadLetter,
)
from statsig_otel.exporters.routing import Routing
from statsig_otel.exporters.wording import counted, ranges
from statsig_otel.plugin.control.command import ChangeableQueue, read_arguments, submit_and_wait
from statsig_otel.plugin.control.queue_commands import why_no_sender
from statsig_otel.plugin.control.socket import ControlError
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.webhook import lenient_json
from statsig_otel.plugin.webhook.body import ParsedBody, parse
from statsig_otel.plugin.webhook.errors import MalformedBodyError

_logger: Final = logging.getLogger(__name__)

_REPLAYED_AT_ONCE: Final = 100

_REPLAYED_BYTES: Final = 8 << 20
"""The most bytes that one transaction replays: other writes wait for it, and all of it is in memory."""

_DROPPED_AT_ONCE: Final = 500
_DAMAGED: Final = (
    "it was damaged on disk, so its content can't be trusted and is not sent: `dead-letters show {id}` gives what is "
    "left of it, `dead-letters drop {id}` removes it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetters:
    """The commands `dead-letters ...`.

    If no service runs, nothing is logged.
    """

    queue: ChangeableQueue
    routing: Routing
    mappers: Mapping[str, Mapper]  # of each receiver; empty without a configuration
    deliver: Callable[[Batch], Future[Receipt]]  # to the synchronous exporters of the batch's receiver
    exporters: Collection[str] | None  # that records can be replayed to; None if that is unknown
    is_running: bool

    def replay(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Replay one page of dead letters. Each is replayed and removed in one transaction.

        Synchronous exporters get the records first, as in a request. If the service ends or the queue fails after that,
        they get the same records with the same uids again at the next replay.
        """
        page = read_arguments(arguments, _Page)
        try:
            with closing(schema.connect_reading(self.queue.database)) as reading:
                upto = dead_letters.last_id(reading) if page.upto is None else page.upto
                limits = {"limit": _REPLAYED_AT_ONCE, "size": _REPLAYED_BYTES}
                found = dead_letters.select(reading, page.selection, after=page.after, upto=upto, **limits)
                replays = [self._prepare(one, dead_letters.content(reading, one.id), page.to) for one in found]
        except sqlite3.Error as error:
            raise ControlError(f"the queue can't be read: {error}") from error
        replays = self._deliver_synchronously(replays)

        def work(connection: sqlite3.Connection) -> list[Replayed]:
            now_ms = self.queue.now_ms()
            return [dead_letters.replay(connection, one, routing=self.routing, now_ms=now_ms) for one in replays]

        done = submit_and_wait(self.queue, work) if replays else []
        if done and self.is_running:
            _count_invalid(replays, done)
            _log_replay(done)
        return {"dead_letters": [asdict(one) for one in done], "next": found[-1].id if found else None, "upto": upto}

    def drop(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Delete one page of dead letters."""
        page = read_arguments(arguments, _Page)

        def work(connection: sqlite3.Connection) -> tuple[list[StoredDeadLetter], int]:
            upto = dead_letters.last_id(connection) if page.upto is None else page.upto
            limit = _DROPPED_AT_ONCE
            return dead_letters.drop(connection, page.selection, after=page.after, upto=upto, limit=limit), upto

        dropped, upto = submit_and_wait(self.queue, work)
        ids = [dead_letter.id for dead_letter in dropped]
        if dropped and self.is_running:
            size = sum(dead_letter.size for dead_letter in dropped)
            message = "Command dead-letters drop: deleted %s of %s: %s"
            _logger.warning(message, counted(len(ids), "dead letter"), counted(size, "byte"), ranges(ids))
        return {"ids": ids, "next": ids[-1] if ids else None, "upto": upto}

    def _deliver_synchronously(self, replays: Sequence[Replay]) -> list[Replay]:
        """Send the records of a page to the synchronous exporters, all together. What they refuse is kept."""
        answers = {
            one.dead_letter: self.deliver(replace(one.batch, invalid=()))
            for one in replays
            if isinstance(one, MapAgain) and one.batch.changes and self.routing.route(one.batch.receiver).synchronous
        }
        wait(answers.values(), timeout=REPLAY_TIMEOUT)
        return [
            self._after_delivery(one, answers[one.dead_letter])
            if isinstance(one, MapAgain) and one.dead_letter in answers
            else one
            for one in replays
        ]

    def _after_delivery(self, replay: MapAgain, answer: Future[Receipt]) -> Replay:
        """What is left to do for a replay after the synchronous exporters have answered."""
        names = self.routing.route(replay.batch.receiver).synchronous
        try:
            answer.result(timeout=0)
        except TimeoutError:
            return Keep(replay.dead_letter, f"not delivered: {', '.join(names)} took more than {REPLAY_TIMEOUT:g} s")
        except RefusedError as error:
            return Keep(replay.dead_letter, f"not delivered: {error}")
        return replace(replay, delivered=names)

    def _prepare(self, dead_letter: StoredDeadLetter, content: bytes | None, to: str | None) -> Replay:
        if content is None:  # replayed or dropped while this page was read
            return Keep(dead_letter.id, dead_letter.reason)
        if dead_letter.kind == "damaged":
            return Keep(dead_letter.id, _DAMAGED.format(id=dead_letter.id))
        try:
            if dead_letter.kind in dead_letters.FROM_RECEIVER:
                if to is not None:
                    return Keep(dead_letter.id, "it goes to all exporters of its receiver: replay it without --to")
                return _map_anew(dead_letter, content, self._mapper(dead_letter.owner))
            exporter = to or dead_letter.owner
            if (why := self._why_not_replayable(exporter, is_named=to is not None)) is not None:
                return Keep(dead_letter.id, why)
            records = dead_letters.split(content)
        except (ControlError, dead_letters.UnreadableError) as error:
            return Keep(dead_letter.id, str(error))
        if dead_letter.kind == "record" and dead_letter.uid is not None:
            records = ((dead_letter.uid, content),)  # byte for byte what was stored
        return Resend(dead_letter.id, exporter, records)

    def _why_not_replayable(self, exporter: str, *, is_named: bool) -> str | None:
        """Why a record can't be replayed to an exporter, which somebody has named or not; None if it can."""
        if self.exporters is None:
            if is_named:
                return None  # the caller says so; if the queue knows no such exporter, nothing is done
            return (
                f"no service is running, so it is unknown whether {exporter} is still configured: give --config FILE, "
                f"or confirm with --to {exporter}"
            )
        if exporter in self.exporters:
            return None
        where = "running configuration" if self.is_running else "configuration"
        return f"the exporter {exporter} {why_no_sender(exporter, self.routing.synchronous, where)}" + (
            "" if is_named else "; `statsig-otel dead-letters replay --to NAME` replays it to another one"
        )

    def _mapper(self, receiver: str) -> Mapper:
        if receiver in self.mappers:
            return self.mappers[receiver]
        if self.is_running:
            raise ControlError(f"the receiver {receiver} is not in the running configuration")
        if self.mappers:
            raise ControlError(f"the receiver {receiver} is not in the configuration")
        raise ControlError("no service is running: to map it again, start it, or give --config FILE")


def _map_anew(dead_letter: StoredDeadLetter, content: bytes, mapper: Mapper) -> Replay:
    """Map an item or a body as if its webhook arrived again at the time of the first one."""
    observed_ns = dead_letter.at_ms * 1_000_000
    try:
        parsed = _item_of(content) if dead_letter.kind == "item" else parse(content)
    except (MalformedBodyError, JSONDecodeError, UnicodeDecodeError) as error:
        return Keep(dead_letter.id, str(error), new_reason=True)
    mapped = mapper.map(parsed, observed_ns)
    if dead_letter.kind == "item" and mapped.invalid:
        return Keep(dead_letter.id, mapped.invalid[0].reason, new_reason=True)
    is_filtered = mapped.ignored > parsed.ignored
    if is_filtered and not mapped.changes and not mapped.invalid:  # it may be the only copy
        return Keep(dead_letter.id, "the receiver's filter keeps nothing of it: change the filter, or drop it")
    return MapAgain(dead_letter.id, Batch(dead_letter.owner, mapped.changes, mapped.invalid))


def _item_of(content: bytes) -> ParsedBody:
    text = content.decode()
    lenient_json.read(text)
    return ParsedBody(1, (lenient_json.Item(text),))


class _Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of both commands."""

    selection: Selection
    to: str | None = None  # the exporter that records are replayed to, instead of their own
    after: Id = 0
    upto: Id | None = None


def _count_invalid(replays: Sequence[Replay], done: Sequence[Replayed]) -> None:
    for replay, one in zip(replays, done, strict=True):
        if isinstance(replay, MapAgain) and one.invalid:
            _telemetry.dead_letters.add(one.invalid, "item", replay.batch.receiver)


def _log_replay(done: Sequence[Replayed]) -> None:
    replayed = [one.id for one in done if one.outcome == "replayed"]
    kept = [one.id for one in done if one.outcome == "kept"]
    message = "Command dead-letters replay: replayed %s, %s: %s; kept %d: %s"
    records = counted(sum(one.records for one in done), "record")
    _logger.info(message, counted(len(replayed), "dead letter"), records, ranges(replayed), len(kept), ranges(kept))
