"""Writes to the queue's database: plain functions of a connection, called inside the writer's transaction.

Nothing here commits. Reads, which any connection can do, are in `queries`.
"""

import itertools
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, Literal, TypeAlias, TypeVar

from statsig_otel._futures import uncancellable
from statsig_otel.exporters.consumer import Batch, Receipt
from statsig_otel.exporters.queue import arrivals
from statsig_otel.exporters.queue.queries import ExporterState, exporter_state, last_seq, routes
from statsig_otel.exporters.queue.records import Stored, checksum
from statsig_otel.exporters.routing import Route

DeadLetterKind = Literal["item", "body", "record", "batch", "damaged"]

MOST_BODIES: Final = 1000
"""The largest number of whole bodies that are kept as dead letters."""

MOST_BODY_BYTES: Final = 256 << 20
"""The largest number of bytes of them."""

DAMAGED: Final = "damaged on disk: its checksum is wrong"

_ROWS_AT_ONCE: Final = 32
"""The most rows that one statement inserts."""

_REMEMBER: Final = (
    "INSERT INTO seen (receiver, uid, at) VALUES {} "
    "ON CONFLICT (receiver, uid) DO UPDATE SET at = excluded.at WHERE at <= excluded.at - ?"
)

_REMEMBER_ONE: Final = _REMEMBER.format("(?, ?, ?)")

_ADD_DEAD_LETTER: Final = (
    "INSERT INTO dead_letters (at, kind, owner, reason, content, uid, attempts, count) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_columns: Final = attrgetter("kind", "owner", "reason", "content", "uid", "attempts", "count")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Something that could not be delivered or mapped, with the reason.

    The kinds `item` and `body` come from a receiver, as they were sent. All others come from an exporter, encoded;
    `damaged` is the rest of a record that changed on disk.
    """

    kind: DeadLetterKind
    owner: str  # the receiver or the exporter
    reason: str
    content: bytes
    uid: bytes | None = None  # of a single record
    attempts: int = 0  # to send it
    count: int = 1  # log records in the content


@dataclass(frozen=True, slots=True)
class Appended:
    """The stored part of a batch, in counts."""

    receipt: Receipt
    records: int
    size: int  # bytes of their payloads
    bodies_left_out: int  # whole bodies that were not kept, since there are too many already


_NOTHING: Final = Appended(Receipt(0), records=0, size=0, bodies_left_out=0)


@dataclass(slots=True, eq=False)
class PendingBatch:
    """A batch on its way to the disk, with the future that answers it once it is there.

    `route_id` is the route's id in the database, and `exporter_ids` are those of its exporters. Both have to be known
    when the batch is stored.
    """

    batch: Batch
    route: Route
    route_id: int = 0
    exporter_ids: Sequence[int] = ()
    stored: Appended = _NOTHING
    answer: Future[Receipt] = field(default_factory=uncancellable)

    @property
    def window_ms(self) -> int:
        """The time in which a change that was seen is a duplicate, in milliseconds; 0 for never."""
        return int(self.route.window * 1000)


_NewRow: TypeAlias = tuple[int, bytes, bytes, int]
"""route, uid, payload and checksum."""

_Sight: TypeAlias = tuple[str, bytes, int, int]
"""receiver, uid, now and its window, both in milliseconds."""


def ensure_exporter(
    connection: sqlite3.Connection, name: str, *, from_oldest: bool = False, receivers: Collection[str] = ()
) -> int:
    """The id of an exporter. A new one begins at the next record, or at the oldest stored one of its receivers."""
    row = connection.execute("SELECT id FROM exporters WHERE name = ?", (name,)).fetchone()
    if row is not None:
        return int(row[0])
    cursor = 0 if from_oldest else last_seq(connection)
    query = "INSERT INTO exporters (name, cursor, again) VALUES (?, ?, ?)"
    number = connection.execute(query, (name, cursor, cursor)).lastrowid or 0  # an INSERT always has one
    if from_oldest:
        _claim(connection, number, receivers)
    return number


def _claim(connection: sqlite3.Connection, exporter: int, receivers: Collection[str]) -> None:
    """Add a new exporter to the stored records of some receivers. Reads all of them, once."""
    for route, (receiver, numbers) in routes(connection).items():
        if receiver not in receivers:
            continue
        wider = _joined([*numbers, exporter])
        connection.execute("UPDATE routes SET exporters = ? WHERE id = ?", (wider, route))
        records, size = connection.execute(
            "SELECT count(*), coalesce(sum(length(payload)), 0) FROM records WHERE route = ?", (route,)
        ).fetchone()
        add_waiting(connection, [exporter], records, size)


def forget_routes(connection: sqlite3.Connection) -> None:
    """Delete the routes without records: each reload with another set of exporters leaves some."""
    connection.execute("DELETE FROM routes WHERE NOT EXISTS (SELECT 1 FROM records WHERE route = routes.id)")


def ensure_route(connection: sqlite3.Connection, exporters: Iterable[int], receiver: str = "") -> int:
    """The id of the route from a receiver to a set of exporters; without a receiver, for replayed records."""
    key = (receiver, _joined(exporters))
    connection.execute("INSERT INTO routes (receiver, exporters) VALUES (?, ?) ON CONFLICT DO NOTHING", key)
    return int(connection.execute("SELECT id FROM routes WHERE receiver = ? AND exporters = ?", key).fetchone()[0])


def append_batches(connection: sqlite3.Connection, batches: Sequence[PendingBatch], *, now_ms: int) -> list[Appended]:
    """Store the new changes of batches, and their invalid items as dead letters; what was stored of each batch."""
    uids = [[bytes.fromhex(change.uid) for change in pending.batch.changes] for pending in batches]
    fresh = iter(_first_sights(connection, batches, uids, now_ms))
    rows: list[_NewRow] = []
    stored: list[Appended] = []
    for pending, its_uids in zip(batches, uids, strict=True):
        accepted, before = 0, len(rows)
        for change, uid in zip(pending.batch.changes, its_uids, strict=True):
            if next(fresh):
                accepted += 1
                rows += [(pending.route_id, uid, payload, checksum(uid, payload)) for payload in change.records]
        receipt = Receipt(accepted, len(its_uids) - accepted)
        left_out = _keep_invalid(connection, pending.batch, now_ms) if pending.batch.invalid else 0
        if pending.batch.arrivals and pending.route.remembered:
            arrivals.add(connection, pending.batch.receiver, pending.batch.arrivals)
        size = sum(len(row[2]) for row in rows[before:])
        stored.append(Appended(receipt, records=len(rows) - before, size=size, bodies_left_out=left_out))
    for some in _chunks(rows):
        marks = ", ".join(["(?, ?, ?, ?)"] * len(some))
        query = f"INSERT INTO records (route, uid, payload, checksum) VALUES {marks}"  # noqa: S608 - ours
        connection.execute(query, [*itertools.chain.from_iterable(some)])
    return stored


def _first_sights(
    connection: sqlite3.Connection, batches: Sequence[PendingBatch], uids: Sequence[Sequence[bytes]], now_ms: int
) -> list[bool]:
    """Remember uids; for each, in order, whether it was unknown or seen before its window."""
    sights = [
        (pending.batch.receiver, uid, now_ms, pending.window_ms)
        for pending, its_uids in zip(batches, uids, strict=True)
        for uid in its_uids
    ]
    windows = {sight[3] for sight in sights}
    if len(sights) > 1 and len(windows) == 1 and all(windows) and _all_first_sights(connection, sights):
        return [True] * len(sights)
    return [not sight[3] or connection.execute(_REMEMBER_ONE, sight).rowcount > 0 for sight in sights]


def _all_first_sights(connection: sqlite3.Connection, sights: Sequence[_Sight]) -> bool:
    """Remember uids with the same window; none of them if one is a duplicate."""
    connection.execute("SAVEPOINT sights")
    new = 0
    for some in _chunks(sights):
        marks = ", ".join(["(?, ?, ?)"] * len(some))
        values = [value for sight in some for value in sight[:3]]
        new += connection.execute(_REMEMBER.format(marks), (*values, some[0][3])).rowcount
    if new < len(sights):
        connection.execute("ROLLBACK TO sights")
    connection.execute("RELEASE sights")
    return new == len(sights)


def _chunks(rows: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Rows for one statement each: the interpreter's lock changes hands for every statement.

    Their numbers are powers of two, so that there are few different statements, which the connection keeps compiled.
    """
    begin = 0
    while begin < len(rows):
        size = min(1 << (len(rows) - begin).bit_length() - 1, _ROWS_AT_ONCE)
        yield rows[begin : begin + size]
        begin += size


def _keep_invalid(connection: sqlite3.Connection, batch: Batch, now_ms: int) -> int:
    """Keep a batch's invalid items; the number of whole bodies that there was no room for."""
    bodies = [one for one in batch.invalid if one.whole_body]
    items = [one for one in batch.invalid if not one.whole_body]
    dead_letters = [DeadLetter("item", batch.receiver, item.reason, item.text) for item in items]
    connection.executemany(_ADD_DEAD_LETTER, [_columns_of(dead_letter, now_ms) for dead_letter in dead_letters])
    left_out = 0
    for body in bodies:
        if _has_room_for(connection, body.text):
            add_dead_letter(connection, DeadLetter("body", batch.receiver, body.reason, body.text), now_ms)
        else:
            left_out += 1
    return left_out


def _has_room_for(connection: sqlite3.Connection, body: bytes) -> bool:
    """Whether one more whole body may be kept: after a change of Statsig's format, every webhook brings one."""
    row = connection.execute(
        "SELECT count(*), coalesce(sum(length(content)), 0) FROM dead_letters INDEXED BY bodies WHERE kind = 'body'"
    ).fetchone()
    return bool(row[0] < MOST_BODIES and row[1] + len(body) <= MOST_BODY_BYTES)


def add_waiting(connection: sqlite3.Connection, exporters: Iterable[int], records: int, size: int) -> None:
    """Count records that were stored for exporters."""
    connection.executemany(
        "UPDATE exporters SET waiting = waiting + ?, bytes = bytes + ?, both = both + ? WHERE id = ?",
        [(records, size, records + size, exporter) for exporter in exporters],
    )


def append_copies(
    connection: sqlite3.Connection,
    exporters: Collection[int],
    records: Sequence[tuple[bytes, bytes]],
    receiver: str = "",
) -> None:
    """Store records, each a uid and a payload, that were acknowledged before: of a replay or of a damaged file.

    Neither duplicates nor `queue_size` are checked.
    """
    route = ensure_route(connection, exporters, receiver)
    rows = [(route, uid, payload, checksum(uid, payload)) for uid, payload in records]
    connection.executemany("INSERT INTO records (route, uid, payload, checksum) VALUES (?, ?, ?, ?)", rows)
    add_waiting(connection, exporters, len(rows), sum(len(payload) for _, payload in records))


def advance(connection: sqlite3.Connection, exporter: int, *, cursor: int, records: int, size: int) -> None:
    """Move an exporter's cursor to a seq, over `records` records with payloads of `size` bytes that are done."""
    # The size of an unreadable record is unknown; the sum is right again when nothing waits. `both` changes by the same
    # amount and is not computed from the two, so that a contradiction stays until the file is checked.
    left = "CASE WHEN waiting > :records THEN max(bytes - :size, 0) ELSE 0 END"
    connection.execute(
        "UPDATE exporters SET cursor = max(cursor, :cursor), again = max(cursor, :cursor), "  # noqa: S608 - ours
        f"waiting = waiting - :records, bytes = {left}, both = both - :records - bytes + {left} WHERE id = :exporter",
        {"cursor": cursor, "records": records, "size": size, "exporter": exporter},
    )


def cursor_and_waiting(connection: sqlite3.Connection, exporter: int) -> tuple[int, int, int] | None:
    """An exporter's cursor, its number of waiting records, and their bytes; None if it was removed."""
    row: tuple[int, int, int] | None = connection.execute(
        "SELECT cursor, waiting, bytes FROM exporters WHERE id = ?", (exporter,)
    ).fetchone()
    return row


def damaged_record(exporter: str, record: Stored) -> DeadLetter:
    """The rest of a record that changed on disk, as a dead letter of an exporter."""
    return DeadLetter("damaged", exporter, DAMAGED, record.payload, record.uid)


def _columns_of(dead_letter: DeadLetter, now_ms: int) -> tuple[object, ...]:
    return now_ms, *_columns(dead_letter)


def add_dead_letter(connection: sqlite3.Connection, dead_letter: DeadLetter, now_ms: int) -> None:
    """Keep a dead letter."""
    connection.execute(_ADD_DEAD_LETTER, _columns_of(dead_letter, now_ms))


def delete_done(connection: sqlite3.Connection) -> int:
    """Delete some of the records that every exporter of their route is done with; the number of deleted records."""
    cursors = dict(connection.execute("SELECT id, cursor FROM exporters"))
    deleted = 0
    for route, (_, numbers) in routes(connection).items():
        # An exporter that was removed by command holds nothing back.
        low = min((cursors[number] for number in numbers if number in cursors), default=None)
        bound, value = ("", ()) if low is None else (" AND seq <= ?", (low,))
        deleted += connection.execute(
            f"DELETE FROM records WHERE seq IN (SELECT seq FROM records WHERE route = ?{bound} LIMIT ?)",  # noqa: S608 - ours
            (route, *value, arrivals.DELETED_AT_ONCE),
        ).rowcount
    return deleted


def forget_seen(connection: sqlite3.Connection, before_ms: int) -> int:
    """Delete some of the uids that were first seen before a time; the number of deleted uids."""
    return connection.execute(
        "DELETE FROM seen WHERE (receiver, uid) IN (SELECT receiver, uid FROM seen WHERE at < ? LIMIT ?)",
        (before_ms, arrivals.DELETED_AT_ONCE),
    ).rowcount


def remove_exporter(connection: sqlite3.Connection, name: str) -> ExporterState | None:
    """Remove an exporter: nothing waits for it any more. Its last state; None if the name is unknown."""
    state = exporter_state(connection, name)
    if state is not None:
        connection.execute("DELETE FROM exporters WHERE id = ?", (state.id,))
    return state


def note_incomplete(connection: sqlite3.Connection, file: str) -> None:
    """Note of a file that was set aside that its own counts do not tell how much is missing."""
    connection.execute("INSERT INTO salvage (file, source, after) VALUES (?, '', 0) ON CONFLICT DO NOTHING", (file,))


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(set(numbers))))
