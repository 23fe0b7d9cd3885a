"""Writes to the queue's database, each as one plain function of a connection. Nothing here commits.

The functions run inside a transaction that the writer's thread has begun. What any connection may ask is in `queries`.
"""

import itertools
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypeVar

from statsig_otel.exporters.consumer import Batch, Receipt
from statsig_otel.exporters.queue.queries import ExporterState, exporter_state, last_seq, routes
from statsig_otel.exporters.queue.records import Stored, checksum
from statsig_otel.exporters.routing import Route

DeadLetterKind = Literal["item", "body", "record", "batch", "damaged"]

MOST_BODIES: Final = 1000
"""Whole bodies that are kept as dead letters at most."""

MOST_BODY_BYTES: Final = 256 << 20
"""Bytes of them together at most."""

_COLLECTED_AT_ONCE: Final = 5000
"""Rows that one transaction deletes at most, so that nobody waits long for it."""

_ROWS_AT_ONCE: Final = 32
"""Rows of one statement at most."""

_REMEMBER: Final = (
    "INSERT INTO seen (receiver, uid, at) VALUES {} "
    "ON CONFLICT (receiver, uid) DO UPDATE SET at = excluded.at WHERE at <= excluded.at - ?"
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Something that could not be delivered, or not even be mapped, with the reason.

    Attributes:
        kind: `item` and `body` come from the door, raw; all others from an exporter, encoded; `damaged` is what is left
            of a record that changed on disk.
        owner: The receiver or the exporter.
        reason: What was wrong.
        content: The raw text or the encoded request.
        uid: The record's uid, where there is one.
        attempts: How often it was sent.
        count: Log records in the content.
    """

    kind: DeadLetterKind
    owner: str
    reason: str
    content: bytes
    uid: bytes | None = None
    attempts: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of a batch.

    Attributes:
        receipt: The promise.
        records: How many records were stored.
        size: Their payloads' bytes.
        bodies_left_out: How many whole bodies were not kept, since there are too many already.
    """

    receipt: Receipt
    records: int
    size: int
    bodies_left_out: int


_NOTHING: Final = Appended(Receipt(0), records=0, size=0, bodies_left_out=0)

Numbers: TypeAlias = dict[tuple[str, tuple[str, ...]], tuple[int, Sequence[int]]]
"""By a receiver and its exporters: the number of the route, and those of the exporters."""


class Entry:
    """A batch on its way to the disk.

    Args:
        batch: The batch.
        route: Whom its records are for.
        number: The number of that route in the database, where it is known already.

    Attributes:
        window_ms: For how long a change that was seen is a duplicate; 0 for never.
        exporters: The numbers of the exporters, once they were looked up.
        remember: Where to keep the numbers once they are on disk; None where they are known.
        stored: What became of it.
        answer: The promise, which is given once all is on disk.
    """

    __slots__ = ("answer", "batch", "exporters", "number", "remember", "route", "stored", "window_ms")

    def __init__(self, batch: Batch, route: Route, number: int = 0) -> None:
        self.batch: Batch = batch
        self.route: Route = route
        self.number: int = number
        self.window_ms: int = int(route.window * 1000)
        self.exporters: Sequence[int] = ()
        self.stored: Appended = _NOTHING
        self.remember: Numbers | None = None
        self.answer: Future[Receipt] = Future()
        self.answer.set_running_or_notify_cancel()  # no caller can cancel what is being written


_NewRow: TypeAlias = tuple[int, bytes, bytes, int]
"""route, uid, payload and checksum."""

_Sight: TypeAlias = tuple[str, bytes, int, int]
"""receiver, uid, now and its window, both in milliseconds."""


def ensure_exporter(
    connection: sqlite3.Connection, name: str, *, from_oldest: bool = False, receivers: Collection[str] = ()
) -> int:
    """The number of an exporter; a new one begins at the next record, or at the oldest that is there.

    Args:
        connection: The writer's connection.
        name: Its id in the configuration.
        from_oldest: A new one also gets what is there of its receivers.
        receivers: Its receivers.
    """
    row = connection.execute("SELECT id FROM exporters WHERE name = ?", (name,)).fetchone()
    if row is not None:
        return int(row[0])
    cursor = 0 if from_oldest else last_seq(connection)
    found = connection.execute(
        "INSERT INTO exporters (name, cursor, again) VALUES (?1, ?2, ?2)", (name, cursor)
    ).lastrowid
    if found is None:
        raise sqlite3.DatabaseError("an exporter could not be stored")
    if from_oldest:
        for receiver in receivers:
            _claim(connection, found, receiver)
    return found


def _claim(connection: sqlite3.Connection, exporter: int, receiver: str) -> None:
    """Make what is there of a receiver a new exporter's as well. Reads all of it, once."""
    for route, (owner, numbers) in routes(connection).items():
        if owner != receiver:
            continue
        wider = _text([*numbers, exporter])
        connection.execute("UPDATE routes SET exporters = ? WHERE id = ?", (wider, route))
        records, size = connection.execute(
            "SELECT count(*), coalesce(sum(length(payload)), 0) FROM records WHERE route = ?", (route,)
        ).fetchone()
        add_waiting(connection, [exporter], records, size)


def forget_routes(connection: sqlite3.Connection) -> None:
    """Delete the routes that no record is on: each reload with another set of exporters makes some."""
    connection.execute("DELETE FROM routes WHERE NOT EXISTS (SELECT 1 FROM records WHERE route = routes.id)")


def ensure_route(connection: sqlite3.Connection, exporters: Iterable[int], receiver: str = "") -> int:
    """The number of a receiver's records for a set of exporters; without a receiver, of replayed ones."""
    key = (receiver, _text(exporters))
    connection.execute("INSERT INTO routes (receiver, exporters) VALUES (?, ?) ON CONFLICT DO NOTHING", key)
    return int(connection.execute("SELECT id FROM routes WHERE receiver = ? AND exporters = ?", key).fetchone()[0])


def append_batches(connection: sqlite3.Connection, entries: Sequence[Entry], *, now_ms: int) -> list[Appended]:
    """Store what requests brought: their new changes, and their invalid items as dead letters.

    Args:
        connection: The writer's connection.
        entries: The requests' batches, in order.
        now_ms: The time now, in milliseconds since the epoch.

    Returns:
        What was stored of each.
    """
    uids = [[bytes.fromhex(change.uid) for change in entry.batch.changes] for entry in entries]
    fresh = iter(_first_sights(connection, entries, uids, now_ms))
    rows: list[_NewRow] = []
    stored: list[Appended] = []
    for entry, its_uids in zip(entries, uids, strict=True):
        accepted, before = 0, len(rows)
        for change, uid in zip(entry.batch.changes, its_uids, strict=True):
            if next(fresh):
                accepted += 1
                rows += [(entry.number, uid, payload, checksum(uid, payload)) for payload in change.records]
        receipt = Receipt(accepted, len(its_uids) - accepted)
        left_out = _bury_invalid(connection, entry.batch, now_ms) if entry.batch.invalid else 0
        size = sum(len(row[2]) for row in rows[before:])
        stored.append(Appended(receipt, records=len(rows) - before, size=size, bodies_left_out=left_out))
    for some in _chunks(rows):
        marks = ", ".join(["(?, ?, ?, ?)"] * len(some))
        query = f"INSERT INTO records (route, uid, payload, checksum) VALUES {marks}"  # noqa: S608 - ours
        connection.execute(query, [*itertools.chain.from_iterable(some)])
    return stored


def _first_sights(
    connection: sqlite3.Connection, entries: Sequence[Entry], uids: Sequence[Sequence[bytes]], now_ms: int
) -> list[bool]:
    """Remember uids; for each, in order, whether it was unknown, or known for longer than its window."""
    windows = {entry.window_ms for entry in entries}
    sights = [
        (entry.batch.receiver, uid, now_ms, entry.window_ms)
        for entry, its_uids in zip(entries, uids, strict=True)
        for uid in its_uids
    ]
    if len(sights) > 1 and len(windows) == 1 and all(windows) and _all_first_sights(connection, sights):
        return [True] * len(sights)
    return [not sight[3] or _first_sight(connection, sight) for sight in sights]


def _all_first_sights(connection: sqlite3.Connection, sights: Sequence[_Sight]) -> bool:
    """Remember uids with the same window; where one of them is a duplicate, remember none."""
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


def _first_sight(connection: sqlite3.Connection, sight: _Sight) -> bool:
    """Remember a uid; whether it was unknown, or known for longer than the window."""
    return connection.execute(_REMEMBER.format("(?, ?, ?)"), sight).rowcount > 0


def _chunks(rows: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Rows for one statement each: the interpreter's lock changes hands for every statement.

    Their numbers are powers of two, so that there are few texts of statements, which the connection keeps compiled.
    """
    begin = 0
    while begin < len(rows):
        size = min(1 << (len(rows) - begin).bit_length() - 1, _ROWS_AT_ONCE)
        yield rows[begin : begin + size]
        begin += size


def _bury_invalid(connection: sqlite3.Connection, batch: Batch, now_ms: int) -> int:
    """Keep a batch's invalid items; how many whole bodies there was no room for."""
    left_out = 0
    for invalid in batch.invalid:
        if invalid.whole_body and not _has_room_for(connection, invalid.text):
            left_out += 1
            continue
        kind: DeadLetterKind = "body" if invalid.whole_body else "item"
        bury(connection, DeadLetter(kind, batch.receiver, invalid.reason, invalid.text), now_ms)
    return left_out


def _has_room_for(connection: sqlite3.Connection, body: bytes) -> bool:
    """Whether one more whole body may be kept: where Statsig's format changes, every webhook brings one."""
    row = connection.execute(
        "SELECT count(*), coalesce(sum(length(content)), 0) FROM dead_letters INDEXED BY bodies WHERE kind = 'body'"
    ).fetchone()
    return bool(row[0] < MOST_BODIES and row[1] + len(body) <= MOST_BODY_BYTES)


def add_waiting(connection: sqlite3.Connection, exporters: Iterable[int], records: int, size: int) -> None:
    """Count records that were stored for exporters; negative for those that are done."""
    connection.executemany(
        "UPDATE exporters SET waiting = waiting + ?1, bytes = bytes + ?2, both = both + ?1 + ?2 WHERE id = ?3",
        [(records, size, exporter) for exporter in exporters],
    )


def append_copies(
    connection: sqlite3.Connection,
    exporters: Collection[int],
    records: Sequence[tuple[bytes, bytes]],
    receiver: str = "",
) -> None:
    """Store records, each a uid and a payload, past the check for duplicates and `queue_size`.

    For what was acknowledged before: a replay, or the content of a damaged file.
    """
    route = ensure_route(connection, exporters, receiver)
    rows = [(route, uid, payload, checksum(uid, payload)) for uid, payload in records]
    connection.executemany("INSERT INTO records (route, uid, payload, checksum) VALUES (?, ?, ?, ?)", rows)
    add_waiting(connection, exporters, len(rows), sum(len(payload) for _, payload in records))


def advance(connection: sqlite3.Connection, exporter: int, *, cursor: int, records: int, size: int) -> None:
    """Move an exporter's cursor over records that are done.

    Args:
        connection: The writer's connection.
        exporter: The exporter.
        cursor: The last seq that is done.
        records: How many records of this exporter that passes.
        size: Their payloads' bytes.
    """
    # Of a record that can't be read nobody knows the size: with the last one the sum is right again. `both` changes by
    # as much as the two do, and is not made of them: what contradicts itself goes on to do so until it is looked at.
    left = "CASE WHEN waiting > ?2 THEN max(bytes - ?3, 0) ELSE 0 END"
    connection.execute(
        "UPDATE exporters SET cursor = max(cursor, ?1), again = max(cursor, ?1), waiting = waiting - ?2, "  # noqa: S608 - ours
        f"bytes = {left}, both = both - ?2 - bytes + {left} WHERE id = ?4",
        (cursor, records, size, exporter),
    )


def place_of(connection: sqlite3.Connection, exporter: int) -> tuple[int, int] | None:
    """An exporter's cursor and how many records wait for it; None for one that was removed."""
    row = connection.execute("SELECT cursor, waiting FROM exporters WHERE id = ?", (exporter,)).fetchone()
    return None if row is None else (int(row[0]), int(row[1]))


def waiting_of(connection: sqlite3.Connection, exporter: int) -> int:
    """How many records wait for an exporter."""
    place = place_of(connection, exporter)
    return place[1] if place else 0


def damaged_letter(exporter: str, record: Stored) -> DeadLetter:
    """What is left of a record that changed on disk, as a dead letter of an exporter."""
    return DeadLetter("damaged", exporter, "damaged on disk: its checksum is wrong", record.payload, record.uid)


def bury(connection: sqlite3.Connection, letter: DeadLetter, now_ms: int) -> None:
    """Keep a dead letter."""
    connection.execute(
        "INSERT INTO dead_letters (at, kind, owner, reason, attempts, uid, count, content) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            now_ms,
            letter.kind,
            letter.owner,
            letter.reason,
            letter.attempts,
            letter.uid,
            letter.count,
            letter.content,
        ),
    )


def delete_done(connection: sqlite3.Connection) -> int:
    """Delete some of the records that every exporter of their route is done with; how many it deleted."""
    cursors = dict(connection.execute("SELECT id, cursor FROM exporters"))
    deleted = 0
    for route, (_, numbers) in routes(connection).items():
        # An exporter that was removed by command holds nothing back.
        low = min((cursors[number] for number in numbers if number in cursors), default=None)
        bound, value = ("", ()) if low is None else (" AND seq <= ?", (low,))
        deleted += connection.execute(
            f"DELETE FROM records WHERE seq IN (SELECT seq FROM records WHERE route = ?{bound} LIMIT ?)",  # noqa: S608 - ours
            (route, *value, _COLLECTED_AT_ONCE),
        ).rowcount
    return deleted


def forget_seen(connection: sqlite3.Connection, before_ms: int) -> int:
    """Delete some of the uids that were first seen before a time; how many it deleted."""
    return connection.execute(
        "DELETE FROM seen WHERE (receiver, uid) IN (SELECT receiver, uid FROM seen WHERE at < ? LIMIT ?)",
        (before_ms, _COLLECTED_AT_ONCE),
    ).rowcount


def remove_exporter(connection: sqlite3.Connection, name: str) -> ExporterState | None:
    """Take an exporter out, with its claim on records; what it was, None where there is none of that name."""
    state = exporter_state(connection, name)
    if state is not None:
        connection.execute("DELETE FROM exporters WHERE id = ?", (state.id,))
    return state


def _text(numbers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(set(numbers))))
