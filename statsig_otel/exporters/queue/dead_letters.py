"""The dead letters: found, dropped and replayed, each by a plain function of a connection. Nothing here commits.

A letter's content never changes, and its id is never used again. So a replay can be prepared beside the writer, and is
carried out in one transaction with the letter's removal: whoever removes it first has replayed it, and nobody else.
What synchronous exporters are to get they have before that, so they may get it twice.
"""

import sqlite3
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final, Literal, TypeAlias

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters.consumer import Batch
from statsig_otel.exporters.queue import queries, store
from statsig_otel.exporters.queue.store import DeadLetter, DeadLetterKind
from statsig_otel.exporters.routing import Route, Routing

FROM_RECEIVER: Final[tuple[DeadLetterKind, ...]] = ("item", "body")
"""The kinds that come from the door, raw; all others come from an exporter, encoded."""

"""A receiver that has synchronous exporters alone."""

_UID: Final = "log.record.uid"
_UID_SIZE: Final = 16
_COLUMNS: Final = "id, at, kind, owner, reason, attempts, uid, count, length(content)"


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter without its content.

    Attributes:
        id: Its number.
        at_ms: When it was kept, in milliseconds since the epoch.
        kind: What it is.
        owner: The receiver of an item or body, the exporter of any other kind.
        reason: What was wrong.
        attempts: How often it was sent.
        uid: The record's uid, where there is one.
        count: Log records in the content.
        size: Bytes of the content.
    """

    id: int
    at_ms: int
    kind: DeadLetterKind
    owner: str
    reason: str
    attempts: int
    uid: bytes | None
    count: int
    size: int


class Selection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which dead letters: those for which all that is given holds. With nothing given, all.

    A field that this version does not know is an error where it is read: leaving it out would select more.

    Attributes:
        ids: One of these numbers.
        exporter: Of this exporter.
        receiver: Of this receiver.
        kind: Of this kind.
    """

    ids: tuple[int, ...] | None = None
    exporter: str | None = None
    receiver: str | None = None
    kind: DeadLetterKind | None = None

    def where(self) -> tuple[str, list[str | int]]:
        """The condition in SQL, and its values."""
        parts: list[str] = ["1"]
        values: list[str | int] = []
        doors = ", ".join(f"'{kind}'" for kind in FROM_RECEIVER)
        if self.ids is not None:
            parts.append(f"id IN ({', '.join('?' * len(self.ids))})")
            values += self.ids
        if self.exporter is not None:
            parts.append(f"owner = ? AND kind NOT IN ({doors})")
            values.append(self.exporter)
        if self.receiver is not None:
            parts.append(f"owner = ? AND kind IN ({doors})")
            values.append(self.receiver)
        if self.kind is not None:
            parts.append("kind = ?")
            values.append(self.kind)
        return " AND ".join(parts), values


# --- for anybody ----------------------------------------------------------------------------------------------------


def select(
    connection: sqlite3.Connection,
    selection: Selection,
    *,
    after: int = 0,
    upto: int | None = None,
    limit: int = 100,
    size: int | None = None,
) -> list[Letter]:
    """One page of letters, the oldest first.

    Args:
        connection: Any connection.
        selection: Which.
        after: The id behind which to begin.
        upto: The last id; None for no end.
        limit: How many at most.
        size: Bytes of content at most; a larger letter comes alone.
    """
    condition, values = selection.where()
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM dead_letters WHERE id > ? AND id <= ? AND {condition} ORDER BY id LIMIT ?",  # noqa: S608 - ours
        (after, last_id(connection) if upto is None else upto, *values, limit),
    )
    found: list[Letter] = []
    for row in rows:
        letter = Letter(*row)
        if found and size is not None and sum(one.size for one in found) + letter.size > size:
            break
        found.append(letter)
    return found


def count(connection: sqlite3.Connection, selection: Selection) -> tuple[int, int]:
    """How many letters there are, and the bytes of their contents."""
    condition, values = selection.where()
    row = connection.execute(
        f"SELECT count(*), coalesce(sum(length(content)), 0) FROM dead_letters WHERE {condition}",  # noqa: S608 - ours
        values,
    ).fetchone()
    return int(row[0]), int(row[1])


def last_id(connection: sqlite3.Connection) -> int:
    """The last id that was ever given out; 0 for none."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'dead_letters'").fetchone()
    return int(row[0]) if row else 0


def content(connection: sqlite3.Connection, letter: int) -> bytes | None:
    """The content of a letter; None where there is none of that id."""
    row = connection.execute("SELECT content FROM dead_letters WHERE id = ?", (letter,)).fetchone()
    return None if row is None else bytes(row[0])


# --- a replay: prepared anywhere, carried out by the writer ---------------------------------------------------------


class UnreadableError(Exception):
    """A letter's content is no encoded request."""


@dataclass(frozen=True, slots=True)
class Resend:
    """Deliver the records of a letter once more, to its exporter alone, past the duplicates' check.

    Attributes:
        letter: The letter's id.
        exporter: The exporter.
        records: Each record's uid and payload.
    """

    letter: int
    exporter: str
    records: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class MapAgain:
    """Take over what has been made of a letter now, as if its request had just come in.

    Attributes:
        letter: The letter's id.
        batch: Its changes, and what is still invalid.
        delivered: The synchronous exporters of its receiver, which all have the changes by now.
    """

    letter: int
    batch: Batch
    delivered: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Keep:
    """Nothing could be made of a letter: it stays.

    Attributes:
        letter: The letter's id.
        reason: Why.
        new_reason: Whether the letter itself is to bear this reason from now on.
    """

    letter: int
    reason: str
    new_reason: bool = False


Replay: TypeAlias = Resend | MapAgain | Keep


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a letter.

    Attributes:
        id: The letter's id.
        outcome: `replayed`: it is gone, its records wait or are delivered. `kept`: it stays, with the reason. `gone`:
            somebody else replayed or dropped it before.
        reason: Why it was kept.
        records: How many records wait now.
        exporters: For whom.
        delivered: The synchronous exporters that have its records already.
        duplicates: How many changes had been delivered otherwise.
        invalid: How many items of a body are letters of their own now.
    """

    id: int
    outcome: Literal["replayed", "kept", "gone"]
    reason: str = ""
    records: int = 0
    exporters: tuple[str, ...] = ()
    delivered: tuple[str, ...] = ()
    duplicates: int = 0
    invalid: int = 0


def split(request: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The records of a joined request, each with its uid and as the request that was stored for it.

    Raises:
        UnreadableError: It can't be read.
    """
    try:
        message = ExportLogsServiceRequest.FromString(request)
    except (DecodeError, RecursionError) as error:
        raise UnreadableError(f"its content can't be read: {error}") from error
    # The queue joins requests of one record each, so each has its own resource.
    payloads = [ExportLogsServiceRequest(resource_logs=[resource_logs]) for resource_logs in message.resource_logs]
    return tuple((_uid(payload), payload.SerializeToString()) for payload in payloads)


def replay(connection: sqlite3.Connection, plan: Replay, *, routing: Routing, now_ms: int) -> Replayed:
    """Carry out one plan, inside the writer's transaction.

    Args:
        connection: The writer's connection.
        plan: The plan.
        routing: Whose records are for whom.
        now_ms: The time now, in milliseconds since the epoch.
    """
    match plan:
        case Keep(letter, reason, new_reason):
            return _keep(connection, letter, reason, new_reason=new_reason)
        case Resend(letter, exporter):
            state = queries.exporter_state(connection, exporter)
            if state is None:
                return _keep(connection, letter, f"the queue knows no exporter {exporter}")
            if not _take(connection, letter):
                return Replayed(letter, "gone")
            store.append_copies(connection, [state.id], plan.records)
            return Replayed(letter, "replayed", records=len(plan.records), exporters=(exporter,))
        case MapAgain(letter, batch, delivered):
            route = routing.route(batch.receiver)
            if batch.changes and not route.queued and not delivered:
                return _keep(connection, letter, f"no exporter is configured for the receiver {batch.receiver}")
            if not _take(connection, letter):
                return Replayed(letter, "gone")
            return _accept(connection, plan, route, now_ms)


def _accept(connection: sqlite3.Connection, plan: MapAgain, route: Route, now_ms: int) -> Replayed:
    cursors = [store.ensure_exporter(connection, name) for name in route.queued]
    entry = store.Entry(
        plan.batch if cursors else replace(plan.batch, changes=()),  # all have it, and nobody remembers a uid
        route,
        number=store.ensure_route(connection, cursors, plan.batch.receiver) if cursors else 0,
    )
    (appended,) = store.append_batches(connection, [entry], now_ms=now_ms)
    store.add_waiting(connection, cursors, appended.records, appended.size)
    return Replayed(
        plan.letter,
        "replayed",
        records=appended.records,
        exporters=route.queued if appended.records else (),
        delivered=plan.delivered,
        duplicates=appended.receipt.duplicates,
        invalid=len(plan.batch.invalid),
    )


# --- for the writer, inside a transaction ---------------------------------------------------------------------------


def drop(connection: sqlite3.Connection, selection: Selection, *, after: int, upto: int, limit: int) -> list[Letter]:
    """Delete one page of letters for good; which they were."""
    dropped = select(connection, selection, after=after, upto=upto, limit=limit)
    connection.executemany("DELETE FROM dead_letters WHERE id = ?", [(letter.id,) for letter in dropped])
    return dropped


def bury_head(connection: sqlite3.Connection, exporter: str, reason: str, now_ms: int) -> bool:
    """Make the first record that waits for an exporter a dead letter; False where none waits.

    One that is damaged on disk becomes a letter that says so, as the sender would have found it.

    For a stopped service alone: a running one's sender keeps its own place.
    """
    state = queries.exporter_state(connection, exporter)
    if state is None:
        return False
    routes = queries.routes_of(connection, state.id)
    for record in queries.read_records(connection, routes, after=state.cursor, count=1, size=0):
        letter = store.damaged_letter(exporter, record)
        if record.intact:
            letter = DeadLetter("record", exporter, reason, record.payload, record.uid)
        store.bury(connection, letter, now_ms)
        store.advance(connection, state.id, cursor=record.seq, records=1, size=len(record.payload))
        return True
    return False


def _take(connection: sqlite3.Connection, letter: int) -> bool:
    return connection.execute("DELETE FROM dead_letters WHERE id = ?", (letter,)).rowcount == 1


def _keep(connection: sqlite3.Connection, letter: int, reason: str, *, new_reason: bool = False) -> Replayed:
    if new_reason:
        connection.execute("UPDATE dead_letters SET reason = ? WHERE id = ?", (reason, letter))
    there = connection.execute("SELECT 1 FROM dead_letters WHERE id = ?", (letter,)).fetchone()
    return Replayed(letter, "kept", reason) if there else Replayed(letter, "gone")


def _uid(payload: ExportLogsServiceRequest) -> bytes:
    """The uid that the record bears; where it bears none, one that its bytes give."""
    for resource_logs in payload.resource_logs:
        for scope_logs in resource_logs.scope_logs:
            for record in scope_logs.log_records:
                for attribute in record.attributes:
                    if attribute.key == _UID:
                        try:
                            return bytes.fromhex(attribute.value.string_value)
                        except ValueError:
                            break
    return sha256(payload.SerializeToString()).digest()[:_UID_SIZE]
