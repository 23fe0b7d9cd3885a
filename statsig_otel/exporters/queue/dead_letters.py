"""Selects, drops and replays dead letters: plain functions of a connection. Nothing here commits.

A dead letter's content never changes, and its id is never used again. So a replay can be prepared while the writer
works. It is carried out in the transaction that removes the dead letter, so it happens at most once. Synchronous
exporters get their records before that, so they may get them twice.
"""

import contextlib
import sqlite3
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel import _attributes
from statsig_otel.exporters.consumer import Batch
from statsig_otel.exporters.decoding import records_in
from statsig_otel.exporters.queue import queries, schema, store
from statsig_otel.exporters.queue.store import DeadLetter, DeadLetterKind
from statsig_otel.exporters.routing import Route, Routing

FROM_RECEIVER: Final[tuple[DeadLetterKind, ...]] = ("item", "body")
"""The kinds that come from a receiver, as they were sent. All others come from an exporter, encoded."""

FROM_EXPORTER: Final[tuple[DeadLetterKind, ...]] = ("record", "batch", "damaged")

_UID_SIZE: Final = 16
_BURIED_BYTES: Final = 8 << 20
"""The most bytes of records that one transaction makes dead letters."""

_COLUMNS: Final = "id, at, kind, owner, reason, attempts, uid, count, length(content)"


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """A stored dead letter without its content; see `store.DeadLetter`.

    `at_ms` is when it was kept, in milliseconds since the epoch, and `size` the bytes of its content.
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


Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A dead letter's id, or 0 for before the first; a larger number fits into no database."""


class Selection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The dead letters that match every given field; all of them if none is given.

    An unknown field is an error when it is read: to ignore it would select more.
    """

    ids: tuple[Id, ...] | None = None
    exporter: str | None = None
    receiver: str | None = None
    kind: DeadLetterKind | None = None

    def where(self) -> tuple[str, list[str | int]]:
        """The condition in SQL, and its values."""
        parts: list[str] = ["1"]
        values: list[str | int] = []
        from_receiver = ", ".join(f"'{kind}'" for kind in FROM_RECEIVER)
        if self.ids is not None:
            parts.append(f"id IN ({', '.join('?' * len(self.ids))})")
            values += self.ids
        if self.exporter is not None:
            parts.append(f"owner = ? AND kind NOT IN ({from_receiver})")
            values.append(self.exporter)
        if self.receiver is not None:
            parts.append(f"owner = ? AND kind IN ({from_receiver})")
            values.append(self.receiver)
        if self.kind is not None:
            parts.append("kind = ?")
            values.append(self.kind)
        return " AND ".join(parts), values


def select(
    connection: sqlite3.Connection,
    selection: Selection,
    *,
    after: int = 0,
    upto: int | None = None,
    limit: int = 100,
    size: int | None = None,
) -> list[StoredDeadLetter]:
    """One page of dead letters, the oldest first, with ids behind `after` and up to `upto`.

    They are at most `limit`, and at most `size` bytes of content; a larger one comes alone.
    """
    condition, values = selection.where()
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM dead_letters WHERE id > ? AND id <= ? AND {condition} ORDER BY id LIMIT ?",  # noqa: S608 - ours
        (after, last_id(connection) if upto is None else upto, *values, limit),
    )
    page: list[StoredDeadLetter] = []
    for row in rows:
        dead_letter = StoredDeadLetter(*row)
        if page and size is not None and sum(one.size for one in page) + dead_letter.size > size:
            break
        page.append(dead_letter)
    return page


def count(connection: sqlite3.Connection, selection: Selection) -> tuple[int, int]:
    """The number of dead letters, and the bytes of their contents."""
    condition, values = selection.where()
    row = connection.execute(
        f"SELECT count(*), coalesce(sum(length(content)), 0) FROM dead_letters WHERE {condition}",  # noqa: S608 - ours
        values,
    ).fetchone()
    return int(row[0]), int(row[1])


def kept(connection: sqlite3.Connection) -> dict[tuple[str, str], int]:
    """The number of dead letters, by kind and owner."""
    rows = connection.execute("SELECT kind, owner, COUNT(*) FROM dead_letters GROUP BY kind, owner")
    return {(kind, owner): number for kind, owner, number in rows}


def last_id(connection: sqlite3.Connection) -> int:
    """The last id that was ever assigned; 0 if none was."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'dead_letters'").fetchone()
    return int(row[0]) if row else 0


def content(connection: sqlite3.Connection, dead_letter: int) -> bytes | None:
    """The content of a dead letter; None if there is none with that id."""
    row = connection.execute("SELECT content FROM dead_letters WHERE id = ?", (dead_letter,)).fetchone()
    return None if row is None else bytes(row[0])


class UnreadableError(Exception):
    """A dead letter's content is not an encoded request."""


@dataclass(frozen=True, slots=True)
class Resend:
    """Deliver the records of a dead letter, each a uid and a payload, to its exporter again, duplicate or not."""

    dead_letter: int
    exporter: str
    records: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class MapAgain:
    """Store what a dead letter was mapped to this time, as if its request had just come in.

    The synchronous exporters `delivered` have the changes already.
    """

    dead_letter: int
    batch: Batch
    delivered: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Keep:
    """Leave a dead letter where it is, for a reason; with `new_reason`, the reason becomes its own."""

    dead_letter: int
    reason: str
    new_reason: bool = False


Replay: TypeAlias = Resend | MapAgain | Keep


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result of replaying a dead letter."""

    id: int
    outcome: Literal["replayed", "kept", "gone"]  # `gone`: somebody else replayed or dropped it before
    reason: str = ""  # why it was kept
    records: int = 0  # that wait now
    exporters: tuple[str, ...] = ()  # that these wait for
    delivered: tuple[str, ...] = ()  # the synchronous exporters that have its records already
    duplicates: int = 0  # changes that had been delivered otherwise
    invalid: int = 0  # items of a body that are dead letters of their own now


def split(request: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The records of a joined request: each one's uid, and the request that was stored for it.

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


def replay(connection: sqlite3.Connection, wanted: Replay, *, routing: Routing, now_ms: int) -> Replayed:
    """Carry out one replay, inside the writer's transaction."""
    match wanted:
        case Keep():
            return _keep(connection, wanted)
        case Resend(dead_letter, exporter):
            state = queries.exporter_state(connection, exporter)
            if state is None:
                return _keep(
                    connection,
                    Keep(dead_letter, f"the queue knows no exporter {exporter}: a service with it has to run first"),
                )
            if not _delete(connection, dead_letter):
                return Replayed(dead_letter, "gone")
            store.append_copies(connection, [state.id], wanted.records)
            return Replayed(dead_letter, "replayed", records=len(wanted.records), exporters=(exporter,))
        case MapAgain(dead_letter, batch, delivered):
            route = routing.route(batch.receiver)
            if batch.changes and not route.queued and not delivered:
                why = f"no exporter is configured for the receiver {batch.receiver}"
                return _keep(connection, Keep(dead_letter, why))
            if not _delete(connection, dead_letter):
                return Replayed(dead_letter, "gone")
            return _accept(connection, wanted, route, now_ms)


def _keep(connection: sqlite3.Connection, wanted: Keep) -> Replayed:
    if wanted.new_reason:
        connection.execute("UPDATE dead_letters SET reason = ? WHERE id = ?", (wanted.reason, wanted.dead_letter))
    exists = connection.execute("SELECT 1 FROM dead_letters WHERE id = ?", (wanted.dead_letter,)).fetchone()
    return Replayed(wanted.dead_letter, "kept", wanted.reason) if exists else Replayed(wanted.dead_letter, "gone")


def _accept(connection: sqlite3.Connection, wanted: MapAgain, route: Route, now_ms: int) -> Replayed:
    exporters = [store.ensure_exporter(connection, name) for name in route.queued]
    pending = store.PendingBatch(
        wanted.batch if exporters else replace(wanted.batch, changes=()),  # all have it, and nobody remembers a uid
        route,
        route_id=store.ensure_route(connection, exporters, wanted.batch.receiver) if exporters else 0,
    )
    (appended,) = store.append_batches(connection, [pending], now_ms=now_ms)
    store.add_waiting(connection, exporters, appended.records, appended.size)
    return Replayed(
        wanted.dead_letter,
        "replayed",
        records=appended.records,
        exporters=route.queued if appended.records else (),
        delivered=wanted.delivered,
        duplicates=appended.receipt.duplicates,
        invalid=len(wanted.batch.invalid),
    )


def drop(
    connection: sqlite3.Connection, selection: Selection, *, after: int, upto: int, limit: int
) -> list[StoredDeadLetter]:
    """Delete one page of dead letters for good, and overwrite what they contain; the deleted ones."""
    dropped = select(connection, selection, after=after, upto=upto, limit=limit)
    with schema.overwriting(connection):
        connection.executemany("DELETE FROM dead_letters WHERE id = ?", [(dead_letter.id,) for dead_letter in dropped])
    return dropped


def make_dead_letters(connection: sqlite3.Connection, exporter: str, reason: str, *, count: int, now_ms: int) -> int:
    """Make the first records that wait for an exporter dead letters, `damaged` if they are; how many waited.

    Only for a stopped service: the senders of a running one have cursors of their own.
    """
    state = queries.exporter_state(connection, exporter)
    if state is None:
        return 0
    routes = queries.routes_of(connection, state.id)
    records = queries.read_records(connection, routes, after=state.cursor, count=count, size=_BURIED_BYTES)
    for record in records:
        dead_letter = DeadLetter("record", exporter, reason, record.payload, record.uid)
        store.add_dead_letter(
            connection, dead_letter if record.intact else store.damaged_record(exporter, record), now_ms
        )
    if records:
        store.advance(connection, state.id, cursor=records.seqs[-1], records=len(records), size=records.size)
    return len(records)


def _delete(connection: sqlite3.Connection, dead_letter: int) -> bool:
    return connection.execute("DELETE FROM dead_letters WHERE id = ?", (dead_letter,)).rowcount == 1


def _uid(payload: ExportLogsServiceRequest) -> bytes:
    """The uid in the record's attributes; without one, a hash of its bytes."""
    for record in records_in(payload):
        for attribute in record.attributes:
            if attribute.key == _attributes.UID:
                with contextlib.suppress(ValueError):
                    return bytes.fromhex(attribute.value.string_value)
    return sha256(payload.SerializeToString()).digest()[:_UID_SIZE]
