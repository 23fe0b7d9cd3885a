"""Reads from the queue's database: exporters' states, routes, and the records that wait. Works on any connection."""

import contextlib
import heapq
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel.exporters.queue import schema
from statsig_otel.exporters.queue.errors import DamagedError
from statsig_otel.exporters.queue.records import Records, Row

_T = TypeVar("_T")

_PAGE: Final = 512
_PAGE_BYTES: Final = 4 << 20
"""The most records, and bytes of them, that are read at once where all that waits is read."""

_MOST_SEARCHED: Final = 10_000
"""The most seqs that an index does not lead to and that are searched for: some hundredths of a second."""

_OMITS: Final = "the index of the records omits some of them"


def read(database: Path, look: Callable[[sqlite3.Connection], _T], default: _T) -> _T:
    """What a function reads of a database; the default if it can't be read. Whoever needs the file will report that."""
    try:
        with contextlib.closing(schema.connect_reading(database)) as connection:
            return look(connection)
    except sqlite3.Error:
        return default


@dataclass(frozen=True, slots=True)
class ExporterState:
    """An exporter's row: its cursor is the last seq that is done; `waiting` records of `bytes` bytes are behind it.

    `is_sound` is false if these two counts contradict their checksum.
    """

    id: int
    name: str
    cursor: int
    waiting: int
    bytes: int
    is_sound: bool


def exporter_states(connection: sqlite3.Connection) -> list[ExporterState]:
    """Every exporter that the queue knows, in the order in which they came.

    Raises:
        DamagedError: A cursor contradicts itself.
    """
    query = "SELECT id, name, cursor, waiting, bytes, again, both FROM exporters ORDER BY id"
    states: list[ExporterState] = []
    for id_, name, cursor, waiting, size, again, both in connection.execute(query).fetchall():
        if cursor != again:
            raise DamagedError("an exporter's cursor contradicts itself")
        if any(type(value) is not int for value in (cursor, waiting, size)):
            raise DamagedError("an exporter's cursor or counts can't be read")
        is_sound = min(waiting, size) >= 0 and waiting + size == both
        states.append(ExporterState(id_, name, cursor, waiting, size, is_sound))
    return states


def exporter_state(connection: sqlite3.Connection, name: str) -> ExporterState | None:
    """One exporter; None if the queue does not know the name."""
    return next((state for state in exporter_states(connection) if state.name == name), None)


def oldest_observed_ns(connection: sqlite3.Connection, exporter: ExporterState) -> int | None:
    """When the first record that waits for an exporter was observed, in nanoseconds; None if that is unknown."""
    if exporter.waiting <= 0:
        return None
    head = read_records(connection, routes_of(connection, exporter.id), after=exporter.cursor, count=1, size=0)
    if not head or not head.intact[0]:
        return None
    record = _log_record(head.payloads[0])
    return record.observed_time_unix_nano or None if record else None


def first_waiting(
    connection: sqlite3.Connection, exporter: int, *, after: int, count: int | None, before_ns: int | None
) -> tuple[int, int]:
    """How many records, from the first one on, wait for an exporter behind the seq `after`; and the last one's seq.

    Args:
        connection: A connection.
        exporter: The exporter's id.
        after: The exporter's cursor.
        count: The most that are counted; None for all.
        before_ns: A time in nanoseconds; the first record with a timestamp that is not before it ends the count.
    """
    found, last = 0, after
    with snapshot(connection):
        its_routes = routes_of(connection, exporter)
        while count is None or found < count:
            wanted = _PAGE if count is None else min(count - found, _PAGE)
            page = read_records(connection, its_routes, after=last, count=wanted, size=_PAGE_BYTES)
            for record in page:
                if before_ns is not None and record.intact and _timestamp_ns(record.payload) >= before_ns:
                    return found, last
                found, last = found + 1, record.seq
            if not page:
                break
    return found, last


def _timestamp_ns(payload: bytes) -> int:
    record = _log_record(payload)
    return (record.time_unix_nano or record.observed_time_unix_nano) if record else 0


def _log_record(payload: bytes) -> LogRecord | None:
    """The first record of an encoded request; None if it can't be read."""
    try:
        return ExportLogsServiceRequest.FromString(payload).resource_logs[0].scope_logs[0].log_records[0]
    except (DecodeError, IndexError):
        return None


def routes(connection: sqlite3.Connection) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Every route's receiver and exporters, by the route's id.

    Raises:
        DamagedError: A route can't be read.
    """
    rows = connection.execute("SELECT id, receiver, exporters FROM routes").fetchall()
    try:
        return {
            route: (receiver, tuple(int(id_) for id_ in exporters.split(",") if id_))
            for route, receiver, exporters in rows
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise DamagedError(f"the exporters of a route can't be read: {error}") from error


def routes_of(connection: sqlite3.Connection, exporter: int) -> list[int]:
    """The routes that an exporter is on."""
    return [route for route, (_, exporters) in routes(connection).items() if exporter in exporters]


def last_seq(connection: sqlite3.Connection) -> int:
    """The last seq that was ever assigned; 0 if none was."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
    if row is not None and type(row[0]) is not int:
        raise DamagedError("the last seq can't be read")
    return row[0] if row else 0


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """All reads in the block see the database at one moment. The connection may be in a transaction already.

    Otherwise a commit between the reads of two routes could show a record of the second route without an earlier one
    of the first, which the cursor would then pass over.
    """
    own = not connection.in_transaction
    if own:
        connection.execute("BEGIN")
    try:
        yield
    finally:
        if own and connection.in_transaction:  # some errors end it
            connection.execute("ROLLBACK")


def read_records(
    connection: sqlite3.Connection, routes: Sequence[int], *, after: int, count: int, size: int
) -> Records:
    """The next records of some routes behind the seq `after`, in order. Unreadable ones are included, not intact.

    They are at most `count` records and `size` bytes of payload; a larger record comes alone.

    Raises:
        DamagedError: The index of the records leads to the wrong ones.
        sqlite3.Error: Not even the index can be read.
    """
    with snapshot(connection):
        try:
            records = _limited(_rows(connection, routes, after, count), count, size)
        except sqlite3.DatabaseError as error:
            if not schema.is_damage(error):
                raise
        else:
            if records:
                _check_index(connection, routes, after, records.seqs)
            if all(records.intact):
                return records
            # A search from where the last one ended can find a row of a page that a changed number leads to.
            return _limited(_one_by_one(connection, records.seqs), count, size)
        try:
            seqs = _seqs(connection, "records", routes, after, count)
        except sqlite3.DatabaseError as error:
            if not schema.is_damage(error):
                raise
            seqs = _seqs(connection, "records NOT INDEXED", routes, after, count)
        else:
            _check_omitted(connection, routes, after, seqs)
        _check_order(seqs, after)
        return _limited(_one_by_one(connection, seqs), count, size)


def newest_record(
    connection: sqlite3.Connection,
    routes: Sequence[int],
    *,
    after: int,
    up_to: int,
    passed_over: Callable[[int], bool],
) -> Records:
    """The newest intact record of some routes behind the seq `after`, up to another, that is not passed over.

    Only the index is read of records that are passed over, and nothing of those before the one that is found.
    """
    query = "SELECT seq FROM records WHERE route = ? AND seq > ? AND seq <= ? ORDER BY seq DESC"
    by_route = [connection.execute(query, (route, after, up_to)) for route in routes]
    for (seq,) in heapq.merge(*by_route, reverse=True):
        if not passed_over(seq):
            record = Records.checked([*_one_by_one(connection, [seq])])
            if record.intact[0]:
                return record
    return Records()


def read_without_index(
    connection: sqlite3.Connection, routes: Sequence[int], *, after: int, count: int, size: int
) -> Records:
    """As `read_records`, by a scan of the table, since the index may end too early: seconds for a million records."""
    seqs = _seqs(connection, "records NOT INDEXED", routes, after, count)
    _check_order(seqs, after)
    return _limited(_one_by_one(connection, seqs), count, size)


def _rows(connection: sqlite3.Connection, routes: Sequence[int], after: int, count: int) -> Iterable[Row]:
    query = "SELECT seq, uid, payload, checksum FROM records WHERE route = ? AND seq > ? ORDER BY seq LIMIT ?"
    by_route: list[Iterable[Row]] = []
    for route in routes:
        rows = connection.execute(query, (route, after, count))
        if first := rows.fetchone():
            by_route.append(itertools.chain((first,), rows))
    return by_route[0] if len(by_route) == 1 else heapq.merge(*by_route)


def _limited(rows: Iterable[Row], count: int, size: int) -> Records:
    taken: list[Row] = []
    for row in itertools.islice(rows, count):  # row by row: some may be large
        size -= len(row[2]) if type(row[2]) is bytes else 0
        if taken and size < 0:
            break
        taken.append(row)
    return Records.checked(taken)


def _check_index(connection: sqlite3.Connection, routes: Sequence[int], after: int, seqs: Sequence[int]) -> None:
    """Check that the index led to each record once: a record that it omits would be ticked off with the others.

    The table's pages are in memory already, since these records were just read from them.
    """
    if seqs == tuple(range(after + 1, after + 1 + len(seqs))):
        return  # there is no other record in between
    if any(first >= second for first, second in itertools.pairwise(seqs)):
        raise DamagedError("the index of the records is not in order")
    # One row only: the interpreter's lock changes hands for each.
    there = next(_in_table(connection, "count(*), sum(seq)", routes, after, seqs[-1]), None)
    if there is None:
        _search_omitted(connection, routes, after, seqs)
    elif there != (len(seqs), sum(seqs)):
        raise DamagedError(_OMITS)


def _check_omitted(connection: sqlite3.Connection, routes: Sequence[int], after: int, seqs: Sequence[int]) -> None:
    """Check the same of an index that leads to records that are not there: one of its seqs can be a changed one."""
    led_to = set(seqs)
    if any(seq not in led_to for (seq,) in _in_table(connection, "seq", routes, after, max(seqs, default=0))):
        raise DamagedError(_OMITS)
    _search_omitted(connection, routes, after, seqs)


def _search_omitted(connection: sqlite3.Connection, routes: Sequence[int], after: int, seqs: Sequence[int]) -> None:
    """Check the same behind a page that can't be read. The error of such a page takes the row before it along."""
    led_to = set(seqs)
    others = (seq for seq in range(after + 1, max(seqs, default=0)) if seq not in led_to)
    for seq in itertools.islice(others, _MOST_SEARCHED):
        if (found := search(connection, "SELECT route FROM records WHERE seq = ?", seq)) and found[0] in routes:
            raise DamagedError(_OMITS)


def _in_table(
    connection: sqlite3.Connection, columns: str, routes: Sequence[int], after: int, last: int
) -> Iterator[tuple[int, ...]]:
    """What the table says, without its index, of the records between two seqs.

    It ends at a page that can't be read, since nobody knows whose records that has. After an error it begins again, for
    the reason that `search` has.
    """
    marks = ", ".join("?" * len(routes))
    query = f"SELECT {columns} FROM records NOT INDEXED WHERE seq > ? AND seq <= ? AND route IN ({marks})"  # noqa: S608 - ours
    for _ in range(2):
        try:
            yield from connection.execute(query, (after, last, *routes))
        except sqlite3.DatabaseError as error:
            if not schema.is_damage(error):
                raise
        else:
            return


def _check_order(seqs: Sequence[int], after: int) -> None:
    """Check that no record comes twice, or was passed before: others would be ticked off in its place."""
    if len(set(seqs)) < len(seqs) or (seqs and seqs[0] <= after):
        raise DamagedError("the records are not in order")


def _seqs(connection: sqlite3.Connection, source: str, routes: Sequence[int], after: int, count: int) -> list[int]:
    query = f"SELECT seq FROM {source} WHERE route = ? AND seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - ours
    return sorted(seq for route in routes for (seq,) in connection.execute(query, (route, after, count)))[:count]


def _one_by_one(connection: sqlite3.Connection, seqs: Iterable[int]) -> Iterator[Row]:
    """Each record is looked up by itself, so that an unreadable one hides no other."""
    query = "SELECT CAST(uid AS BLOB), CAST(payload AS BLOB), checksum FROM records WHERE seq = ?"
    for seq in seqs:
        yield seq, *(search(connection, query, seq) or (None, None, None))


def search(
    connection: sqlite3.Connection,
    query: str,
    key: int,
    *,
    is_damage: Callable[[sqlite3.Error], bool] = schema.is_damage,
) -> tuple[Any, ...] | None:
    """The row that a search by its key finds; None if there is none, or damage hides it.

    SQLite checks a page when it reads it for the first time, and what is wrong with one of its rows is an error for
    whichever is wanted. So there is a second try.

    Raises:
        sqlite3.Error: It is not damage.
    """
    for _ in range(2):
        try:
            row: tuple[Any, ...] | None = connection.execute(query, (key,)).fetchone()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
        else:
            return row
    return None
