"""Reads from the queue's database: exporters' places, routes, and the records that wait. Works on any connection."""

import contextlib
import heapq
import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from statsig_otel.exporters.queue import schema
from statsig_otel.exporters.queue.records import Records, Row


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


def exporter_states(connection: sqlite3.Connection) -> list[ExporterState]:
    """Every exporter that the queue knows, in the order in which they came.

    Raises:
        DamagedError: A place contradicts itself.
    """
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


def exporter_state(connection: sqlite3.Connection, name: str) -> ExporterState | None:
    """One exporter; None where the queue knows none of that name."""
    return next((state for state in exporter_states(connection) if state.name == name), None)


def routes(connection: sqlite3.Connection) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Every route's receiver and exporters, by its number.

    Raises:
        DamagedError: A route can't be read.
    """
    rows = connection.execute("SELECT id, receiver, exporters FROM routes").fetchall()
    return {route: (receiver, _numbers(text)) for route, receiver, text in rows}


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(",") if number)
    except (AttributeError, TypeError, ValueError) as error:
        raise schema.DamagedError(f"a route can't be read: {text!r}") from error


def routes_of(connection: sqlite3.Connection, exporter: int) -> list[int]:
    """The routes that an exporter is on."""
    return [route for route, (_, numbers) in routes(connection).items() if exporter in numbers]


def last_seq(connection: sqlite3.Connection) -> int:
    """The last seq that was ever given out; 0 for none."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
    if row is not None and type(row[0]) is not int:
        raise schema.DamagedError("the last seq can't be read")
    return row[0] if row else 0


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
        DamagedError: The index of the records leads to the wrong ones.
        sqlite3.Error: Not even the index can be read.
    """
    with snapshot(connection):
        try:
            found = _taken(_rows(connection, routes, after, count), count, size)
        except sqlite3.DatabaseError as error:
            if not schema.is_damage(error):
                raise
        else:
            if found:
                _check_index(connection, routes, after, found.seqs)
            return found
        try:
            seqs = _seqs(connection, "records", routes, after, count)
        except sqlite3.DatabaseError as error:
            if not schema.is_damage(error):
                raise
            seqs = _seqs(connection, "records NOT INDEXED", routes, after, count)
        if len(set(seqs)) < len(seqs) or (seqs and seqs[0] <= after):
            raise schema.DamagedError("the index of the records leads back")
        return _taken(_one_by_one(connection, seqs), count, size)


def read_without_index(
    connection: sqlite3.Connection, routes: Sequence[int], *, after: int, count: int, size: int
) -> Records:
    """The same, past an index that ends too early. It takes seconds for each million of records."""
    seqs = _seqs(connection, "records NOT INDEXED", routes, after, count)
    return _taken(_one_by_one(connection, seqs), count, size)


def _rows(connection: sqlite3.Connection, routes: Sequence[int], after: int, count: int) -> Iterable[Row]:
    query = "SELECT seq, uid, payload, checksum FROM records WHERE route = ? AND seq > ? ORDER BY seq LIMIT ?"
    found: list[Iterable[Row]] = []
    for route in routes:
        rows = connection.execute(query, (route, after, count))  # row by row: some may be large
        if first := rows.fetchone():
            found.append(itertools.chain((first,), rows))
    return found[0] if len(found) == 1 else heapq.merge(*found)


def _taken(rows: Iterable[Row], count: int, size: int) -> Records:
    """As many of some rows as a read may have."""
    taken: list[Row] = []
    for row in itertools.islice(rows, count):  # row by row: some may be large
        size -= len(row[2]) if type(row[2]) is bytes else 0
        if taken and size < 0:
            break
        taken.append(row)
    return Records.checked(taken)


def _check_index(connection: sqlite3.Connection, routes: Sequence[int], after: int, seqs: Sequence[int]) -> None:
    """See that the index has led to each record once: one that it leads past would be ticked off with the others.

    The table's pages are in memory, since they contain what was just read.
    """
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


def _seqs(connection: sqlite3.Connection, source: str, routes: Sequence[int], after: int, count: int) -> list[int]:
    query = f"SELECT seq FROM {source} WHERE route = ? AND seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - ours
    return sorted(seq for route in routes for (seq,) in connection.execute(query, (route, after, count)))[:count]


def _one_by_one(connection: sqlite3.Connection, seqs: Iterable[int]) -> Iterator[Row]:
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
