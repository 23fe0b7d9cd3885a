"""Checks whether the queue's database still contains what was written, and corrects counts that do not."""

import logging
import sqlite3
from typing import Final, Literal

from statsig_otel.exporters.queue import arrivals, queries
from statsig_otel.exporters.queue.errors import DamagedError
from statsig_otel.exporters.queue.queries import ExporterState
from statsig_otel.exporters.queue.records import Records
from statsig_otel.exporters.wording import counted

_logger: Final = logging.getLogger(__name__)


def check_database(connection: sqlite3.Connection) -> None:
    """Read both ends of every table, inside the writer's transaction. A whole check takes a second per million rows.

    A count that contradicts itself is corrected and logged, since `queue_size` depends on it; only that takes as long.

    Raises:
        sqlite3.DatabaseError: Something can't be read.
    """
    tables = [("records", "seq"), ("seen", "at"), ("dead_letters", "id"), ("exporters", "id")]
    if arrivals.are_kept(connection):
        tables.append(("arrivals", "receiver"))
    for table, column in tables:
        for order in ("ASC", "DESC"):
            connection.execute(f"SELECT * FROM {table} ORDER BY {column} {order} LIMIT 1").fetchall()  # noqa: S608 - ours
    check_table(connection, "exporters")
    check_table(connection, "routes")
    last, states = queries.last_seq(connection), queries.exporter_states(connection)
    if any(not 0 <= state.cursor <= last for state in states):
        raise DamagedError("an exporter's cursor is out of range")
    for state in states:
        if not state.is_sound:
            _recount(connection, state)


def check_table(connection: sqlite3.Connection, table: Literal["exporters", "routes"]) -> None:
    """Check one of the small tables that say who gets what, with its indexes; everything depends on them.

    Raises:
        DamagedError: It contradicts itself.
    """
    verdict = connection.execute(f"PRAGMA integrity_check('{table}')").fetchone()[0]
    if verdict != "ok":
        raise DamagedError(verdict)


def _recount(connection: sqlite3.Connection, state: ExporterState) -> None:
    """Count the records that wait for an exporter."""
    query = "SELECT count(*), coalesce(sum(length(payload)), 0) FROM records WHERE route = ? AND seq > ?"
    routes = queries.routes_of(connection, state.id)
    counts = [connection.execute(query, (route, state.cursor)).fetchone() for route in routes]
    waiting, size = sum(count[0] for count in counts), sum(count[1] for count in counts)
    connection.execute(
        "UPDATE exporters SET waiting = ?, bytes = ?, both = ? WHERE id = ?", (waiting, size, waiting + size, state.id)
    )
    _logger.error(
        "%s: the count of waiting records was damaged: %s of %s. There are %s of %s",
        state.name,
        counted(state.waiting, "record"),
        counted(state.bytes, "byte"),
        counted(waiting, "record"),
        counted(size, "byte"),
    )


def find_records(connection: sqlite3.Connection, exporter: int, *, count: int, size: int) -> Records:
    """The next records of an exporter for which `read_records` returned none although some are counted.

    If damage makes an index end too early, SQLite reports no error. So the table itself is read, and if it has none
    either, the whole file is checked: that takes seconds for each million records. Inside the writer's transaction.

    Raises:
        DamagedError: The file is damaged, and the records can't be reached.
    """
    state = next((state for state in queries.exporter_states(connection) if state.id == exporter), None)
    if state is None or not state.waiting:
        return Records()
    routes = queries.routes_of(connection, exporter)
    for read in (queries.read_records, queries.read_without_index):  # they can have been stored meanwhile
        if records := read(connection, routes, after=state.cursor, count=count, size=size):
            return records
    verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if verdict != "ok":
        raise DamagedError(f"{counted(state.waiting, 'record')} can't be found: {verdict}")
    _logger.error(
        "%s: %s counted as waiting can't be found in the queue: the count is corrected",
        state.name,
        counted(state.waiting, "record"),
    )
    connection.execute("UPDATE exporters SET waiting = 0, bytes = 0, both = 0 WHERE id = ?", (exporter,))
    return Records()
