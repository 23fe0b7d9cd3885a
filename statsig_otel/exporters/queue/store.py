"""What the queue's database is told and asked, each as one plain function of a connection. Nothing here commits.

The writer's functions run inside a transaction that the writer thread has begun. The reader's run on any connection.
"""

import contextlib
import heapq
import itertools
import logging
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from operator import eq
from typing import Any, Final, Literal, TypeAlias, TypeVar
from zlib import crc32

from statsig_otel.exporters.consumer import Batch, Receipt
from statsig_otel.exporters.queue import schema
from statsig_otel.exporters.queue.records import Records, Stored
from statsig_otel.exporters.routing import Route

try:
    from isal.isal_zlib import crc32 as _quick_crc32
except ImportError:  # there is no wheel for this machine
    from zlib import crc32 as _quick_crc32

_logger: Final = logging.getLogger(__name__)

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


quick_crc32: Final = _quick_crc32
"""zlib's CRC-32 by instructions made for it, where there are any: each record of a backlog costs one."""


@dataclass(frozen=True, slots=True)
class ExporterState:
    """An exporter's place in the log.

    Attributes:
        id: Its number in the database.
        name: Its id in the configuration.
        cursor: The last seq that is done.
        waiting: How many records wait for it.
        bytes: The size of their payloads together.
        is_sound: Whether these two can be what was counted.
    """

    id: int
    name: str
    cursor: int
    waiting: int
    bytes: int
    is_sound: bool


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
        self.batch = batch
        self.route = route
        self.number = number
        self.window_ms = int(route.window * 1000)
        self.exporters: Sequence[int] = ()
        self.stored = _NOTHING
        self.remember: Numbers | None = None
        self.answer: Future[Receipt] = Future()
        self.answer.set_running_or_notify_cancel()  # no caller can cancel what is being written


_NewRow: TypeAlias = tuple[int, bytes, bytes, int]
"""route, uid, payload and checksum."""

_Sight: TypeAlias = tuple[str, bytes, int, int]
"""receiver, uid, now and its window, both in milliseconds."""


# --- for the writer, inside a transaction ---------------------------------------------------------------------------


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
                rows += [(entry.number, uid, payload, _checksum(uid, payload)) for payload in change.records]
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


def append_copy(connection: sqlite3.Connection, *, route: int, uid: bytes, payload: bytes) -> None:
    """Store a record past the duplicates' check: a replay."""
    connection.execute(
        "INSERT INTO records (route, uid, payload, checksum) VALUES (?, ?, ?, ?)",
        (route, uid, payload, _checksum(uid, payload)),
    )


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


def collect(connection: sqlite3.Connection) -> int:
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


def forget(connection: sqlite3.Connection, before_ms: int) -> int:
    """Delete some of the uids that were first seen before a time; how many it deleted."""
    return connection.execute(
        "DELETE FROM seen WHERE (receiver, uid) IN (SELECT receiver, uid FROM seen WHERE at < ? LIMIT ?)",
        (before_ms, _COLLECTED_AT_ONCE),
    ).rowcount


def remove_exporter(connection: sqlite3.Connection, name: str) -> ExporterState | None:
    """Take an exporter out, with its claim on records; what it was, None where there is none of that name."""
    state = next((state for state in exporter_states(connection) if state.name == name), None)
    if state is not None:
        connection.execute("DELETE FROM exporters WHERE id = ?", (state.id,))
    return state


def look(connection: sqlite3.Connection) -> None:
    """Read both ends of every table, as a first sign of damage; a whole check would take a second per million rows.

    A count that contradicts itself is set right, and said: it decides on what `queue_size` refuses. That alone takes
    such a second.

    Raises:
        sqlite3.DatabaseError: Something can't be read.
    """
    for table, column in (("records", "seq"), ("seen", "at"), ("dead_letters", "id"), ("exporters", "id")):
        for order in ("ASC", "DESC"):
            connection.execute(f"SELECT * FROM {table} ORDER BY {column} {order} LIMIT 1").fetchall()  # noqa: S608 - ours
    check(connection, "exporters")
    check(connection, "routes")
    last, states = last_seq(connection), exporter_states(connection)
    if any(not 0 <= state.cursor <= last for state in states):
        raise schema.DamagedError("an exporter's place can't be")
    for state in states:
        if not state.is_sound:
            _recount(connection, state)


def _recount(connection: sqlite3.Connection, state: ExporterState) -> None:
    """Count what waits for an exporter from the records themselves."""
    query = "SELECT count(*), coalesce(sum(length(payload)), 0) FROM records WHERE route = ? AND seq > ?"
    counts = [connection.execute(query, (route, state.cursor)).fetchone() for route in routes_of(connection, state.id)]
    waiting, size = sum(count[0] for count in counts), sum(count[1] for count in counts)
    connection.execute(
        "UPDATE exporters SET waiting = ?1, bytes = ?2, both = ?1 + ?2 WHERE id = ?3", (waiting, size, state.id)
    )
    _logger.error(
        "%s: the count of what waits was damaged: %d records of %d bytes. Counted anew, it is %d records of %d bytes",
        state.name,
        state.waiting,
        state.bytes,
        waiting,
        size,
    )


def check(connection: sqlite3.Connection, table: Literal["exporters", "routes"]) -> None:
    """Check one of the small tables that say who gets what, with its indexes, whole: all else hangs on them.

    Raises:
        DamagedError: It contradicts itself.
    """
    verdict = connection.execute(f"PRAGMA integrity_check('{table}')").fetchone()[0]
    if verdict != "ok":
        raise schema.DamagedError(verdict)


# --- for anybody ----------------------------------------------------------------------------------------------------


def exporter_states(connection: sqlite3.Connection) -> list[ExporterState]:
    """Every exporter that the queue knows, in the order in which they came."""
    query = "SELECT id, name, cursor, waiting, bytes, again, both FROM exporters ORDER BY id"
    states: list[ExporterState] = []
    for number, name, cursor, waiting, size, again, both in connection.execute(query).fetchall():
        if cursor != again:
            raise schema.DamagedError("an exporter's place contradicts itself")
        if any(type(value) is not int for value in (cursor, waiting, size)):
            raise schema.DamagedError("an exporter's place can't be read")
        is_sound = min(waiting, size) >= 0 and waiting + size == both
        states.append(ExporterState(number, name, cursor, waiting, size, is_sound))
    return states


def routes(connection: sqlite3.Connection) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Every route's receiver and exporters, by its number."""
    rows = connection.execute("SELECT id, receiver, exporters FROM routes").fetchall()
    return {route: (receiver, _numbers(text)) for route, receiver, text in rows}


def routes_of(connection: sqlite3.Connection, exporter: int) -> list[int]:
    """The routes that an exporter is on."""
    return [route for route, (_, numbers) in routes(connection).items() if exporter in numbers]


def read_records(
    connection: sqlite3.Connection, routes: Sequence[int], *, after: int, count: int, size: int
) -> Records:
    """The next records of some routes, in order; those that can't be read are among them, not intact.

    Args:
        connection: Any connection.
        routes: The routes.
        after: The seq behind which to begin.
        count: How many at most.
        size: Bytes of payload at most; a larger record comes alone.

    Raises:
        sqlite3.Error: Not even the index can be read.
    """
    with snapshot(connection):
        try:
            found = _fill(_rows(connection, routes, after, count), count, size)
        except sqlite3.DatabaseError as error:
            if not schema.is_damage(error):
                raise
        else:
            if found:
                _check_index(connection, routes, after, found)
            return found
        try:
            seqs = _seqs(connection, "records", routes, after, count)
        except sqlite3.DatabaseError as error:
            if not schema.is_damage(error):
                raise
            seqs = _seqs(connection, "records NOT INDEXED", routes, after, count)
        if len(set(seqs)) < len(seqs) or (seqs and seqs[0] <= after):
            raise schema.DamagedError("the index of the records leads back")
        return _fill(_one_by_one(connection, seqs), count, size)


def _check_index(connection: sqlite3.Connection, routes: Sequence[int], after: int, found: Records) -> None:
    """See that the index has led to each record once: one that it leads past would be ticked off with the others.

    The table's pages are in memory, since they hold what was just read.

    Raises:
        DamagedError: It has not.
    """
    seqs = found.seqs
    if seqs == tuple(range(after + 1, after + 1 + len(seqs))):
        return  # there is none in between that it could have led past
    if any(first >= second for first, second in itertools.pairwise(seqs)):
        raise schema.DamagedError("the index of the records leads back")
    marks = ", ".join("?" * len(routes))
    # In one row: the interpreter's lock changes hands for each.
    query = f"SELECT count(*), sum(seq) FROM records NOT INDEXED WHERE seq > ? AND seq <= ? AND route IN ({marks})"  # noqa: S608 - ours
    try:
        there = connection.execute(query, (after, seqs[-1], *routes)).fetchone()
    except sqlite3.DatabaseError as error:
        if not schema.is_damage(error):
            raise
        return  # a page in between can't be read: its records may be anybody's
    if there != (len(seqs), sum(seqs)):
        raise schema.DamagedError("the index of the records leads past some of them")


def find_records(
    connection: sqlite3.Connection, exporter: int, routes: Sequence[int], *, count: int, size: int
) -> Records:
    """The next records of an exporter for whom `read_records` found none although some are counted.

    Damage that makes an index end too early is no error of the engine's. The table itself is read, and where that has
    none either the whole file is checked: this takes seconds for each million of records.

    Args:
        connection: The writer's connection.
        exporter: The exporter.
        routes: Its routes.
        count: How many at most.
        size: Bytes of payload at most; a larger record comes alone.

    Raises:
        DamagedError: The file is damaged, and the records can't be reached.
    """
    place = place_of(connection, exporter)
    if place is None or not place[1]:
        return Records()
    found = read_records(connection, routes, after=place[0], count=count, size=size)
    if found:
        return found  # they were stored in the meantime
    seqs = _seqs(connection, "records NOT INDEXED", routes, place[0], count)
    if seqs:
        return _fill(_one_by_one(connection, seqs), count, size)
    verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if verdict != "ok":
        raise schema.DamagedError(f"{place[1]} records can't be found: {verdict}")
    _logger.error("%d records are counted as waiting, and are not in the queue: the count is set right", place[1])
    connection.execute("UPDATE exporters SET waiting = 0, bytes = 0, both = 0 WHERE id = ?", (exporter,))
    return Records()


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is read in the block is of one moment; for a connection that may be in a transaction already.

    With a snapshot for each statement, a commit between two routes' could show a record of the second and not the one
    before it of the first, which the cursor would then pass over.
    """
    own = not connection.in_transaction
    if own:
        connection.execute("BEGIN")
    try:
        yield
    finally:
        if own and connection.in_transaction:  # some errors end it
            connection.execute("ROLLBACK")


_Row: TypeAlias = tuple[int, Any, Any, Any]
"""seq, uid, payload and checksum; damage can change the type of all but the first."""


def _fill(rows: Iterable[_Row], count: int, size: int) -> Records:
    taken: list[_Row] = []
    for row in itertools.islice(rows, count):  # row by row: some may be large
        size -= len(row[2]) if type(row[2]) is bytes else 0
        if taken and size < 0:
            break
        taken.append(row)
    if not taken:
        return Records()
    # Column by column, with no step of the interpreter for each: a backlog is delivered as fast as this is.
    seqs, uids, payloads, checksums = zip(*taken, strict=True)
    with contextlib.suppress(TypeError):  # damage can change a value's type
        if all(map(eq, map(quick_crc32, payloads, map(quick_crc32, uids)), checksums)):
            return Records(seqs, uids, payloads, (True,) * len(seqs))
    return Records.of(as_stored(*row) for row in taken)  # zlib has the last word on what is damaged


def _rows(connection: sqlite3.Connection, routes: Sequence[int], after: int, count: int) -> Iterable[_Row]:
    query = "SELECT seq, uid, payload, checksum FROM records WHERE route = ? AND seq > ? ORDER BY seq LIMIT ?"
    found: list[Iterable[_Row]] = []
    for route in routes:
        rows = connection.execute(query, (route, after, count))  # row by row: some may be large
        if first := rows.fetchone():
            found.append(itertools.chain((first,), rows))
    return found[0] if len(found) == 1 else heapq.merge(*found)


def _seqs(connection: sqlite3.Connection, source: str, routes: Sequence[int], after: int, count: int) -> list[int]:
    query = f"SELECT seq FROM {source} WHERE route = ? AND seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - ours
    return sorted(seq for route in routes for (seq,) in connection.execute(query, (route, after, count)))[:count]


def _one_by_one(connection: sqlite3.Connection, seqs: Iterable[int]) -> Iterator[_Row]:
    """Each looked up by itself, so that one that can't be read hides no other."""
    for seq in seqs:
        row = None
        try:
            row = connection.execute(
                "SELECT CAST(uid AS BLOB), CAST(payload AS BLOB), checksum FROM records WHERE seq = ?", (seq,)
            ).fetchone()
        except sqlite3.DatabaseError as error:
            if not schema.is_damage(error):
                raise
        yield seq, *(row or (None, None, None))


def as_stored(seq: int, uid: object, payload: object, checksum: object) -> Stored:
    """A record as it was read, whatever the types of its values have become."""
    if not isinstance(uid, bytes) or not isinstance(payload, bytes):  # damage can change a value's type
        return Stored(
            seq, uid if isinstance(uid, bytes) else b"", payload if isinstance(payload, bytes) else b"", False
        )
    return Stored(seq, uid, payload, _checksum(uid, payload) == checksum)


def _checksum(uid: bytes, payload: bytes) -> int:
    return crc32(payload, crc32(uid))


def last_seq(connection: sqlite3.Connection) -> int:
    """The last seq that was ever given out; 0 for none."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
    if row is not None and type(row[0]) is not int:
        raise schema.DamagedError("the last seq can't be read")
    return row[0] if row else 0


def oldest_seq(connection: sqlite3.Connection) -> int | None:
    """The first seq that is still there."""
    row = connection.execute("SELECT min(seq) FROM records").fetchone()
    return None if row[0] is None else int(row[0])


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(",") if number)
    except (AttributeError, TypeError, ValueError) as error:
        raise schema.DamagedError(f"a route can't be read: {text!r}") from error


def _text(numbers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(set(numbers))))
