"""Remembers which changes came, where that is configured, and which ones are missed.

What came is written in the commit that stores it.

Each function is called inside a transaction. Where nothing is remembered the file has no tables for it, so an older
version of this package can open it. A redelivery is not a second arrival.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.queue import schema

_NEVER: Final = 1 << 62
"""A second that is later than that of any change."""

DELETED_AT_ONCE: Final = 5000
"""The most rows that one transaction deletes, so that nobody waits long for it."""


class Remembered(NamedTuple):
    """What came for a receiver.

    Attributes:
        since: The second from which on everything that came is remembered.
        compared: The second up to which the audit log was compared with it.
        oldest_missed: The second of the oldest missed entry; None if none is missed.
        arrivals: What came.
    """

    since: int
    compared: int
    oldest_missed: int | None
    arrivals: list[Arrival]


class Noted(NamedTuple):
    """What a comparison has changed.

    Attributes:
        new: The ids of the entries that were not known to be missed.
        found: The ids of those whose change has come after all.
        missed: How many are missed now, those of earlier comparisons included.
    """

    new: set[str]
    found: set[str]
    missed: int


def begin(connection: sqlite3.Connection, receivers: Iterable[str], *, now_ms: int) -> None:
    """Begin to remember what comes for some receivers, if that has not begun, and end it for others.

    What came for these is not remembered any more; `forget` deletes it bit by bit.
    """
    wanted = set(receivers)
    if wanted:
        schema.upgrade(connection, schema.REMEMBERING)
    elif not are_kept(connection):
        return
    for receiver in {str(row[0]) for row in connection.execute("SELECT receiver FROM remembered")} - wanted:
        connection.execute("DELETE FROM remembered WHERE receiver = ?", (receiver,))
        connection.execute("DELETE FROM missed WHERE receiver = ?", (receiver,))
    now = now_ms // 1000
    query = "INSERT INTO remembered (receiver, since, compared) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
    connection.executemany(query, [(receiver, now, now) for receiver in wanted])


def are_kept(connection: sqlite3.Connection) -> bool:
    """Whether the file has the tables for what came."""
    return schema.pragma(connection, "user_version") >= schema.REMEMBERING


def add(connection: sqlite3.Connection, receiver: str, arrivals: Iterable[Arrival]) -> None:
    """Remember what came."""
    connection.executemany(
        "INSERT INTO arrivals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            (
                receiver,
                bytes.fromhex(one.uid),
                one.second,
                one.name,
                one.user_id,
                one.user_name,
                one.user_email,
                one.type,
                one.action,
                one.text,
                one.filtered,
                one.from_log,
            )
            for one in arrivals
        ],
    )


def forget(connection: sqlite3.Connection, kept: Mapping[str, float], *, now_ms: int) -> int:
    """Delete some of the changes that are older than a receiver keeps them, in seconds, and of receivers without that.

    What was deleted does not count as missed, also if it was the clock that was wrong.

    Returns:
        The number of deleted rows.
    """
    if not are_kept(connection):
        return 0
    query = (
        "DELETE FROM arrivals WHERE (receiver, uid) IN "
        "(SELECT receiver, uid FROM arrivals WHERE receiver = ? AND second < ? LIMIT ?)"
    )
    deleted, receiver = 0, _next_receiver(connection, "")
    while receiver is not None:
        before = now_ms // 1000 - int(kept[receiver]) if receiver in kept else _NEVER
        if rows := connection.execute(query, (receiver, before, DELETED_AT_ONCE)).rowcount:
            connection.execute("UPDATE remembered SET since = max(since, ?) WHERE receiver = ?", (before, receiver))
            deleted += rows
        receiver = _next_receiver(connection, receiver)
    return deleted


def _next_receiver(connection: sqlite3.Connection, after: str) -> str | None:
    """The next receiver, by name, that has changes."""
    row = connection.execute("SELECT min(receiver) FROM arrivals WHERE receiver > ?", (after,)).fetchone()
    return None if row[0] is None else str(row[0])


def note(
    connection: sqlite3.Connection, receiver: str, missed: Mapping[str, int], *, begin: int, end: int, kept: int
) -> Noted:
    """Note which entries of a period are missed, and that it was compared.

    Args:
        connection: The writing one.
        receiver: The receiver's id.
        missed: The seconds of the missed entries, by their id.
        begin: The first second of the period.
        end: The last one.
        kept: What was missed before this second is forgotten.
    """
    connection.execute("DELETE FROM missed WHERE receiver = ? AND second < ?", (receiver, kept))
    known = {
        str(row[0])
        for row in connection.execute(
            "SELECT entry FROM missed WHERE receiver = ? AND second BETWEEN ? AND ?", (receiver, begin, end)
        )
    }
    new, found = missed.keys() - known, known - missed.keys()
    connection.executemany("DELETE FROM missed WHERE receiver = ? AND entry = ?", [(receiver, one) for one in found])
    connection.executemany("INSERT INTO missed VALUES (?, ?, ?)", [(receiver, one, missed[one]) for one in new])
    connection.execute("UPDATE remembered SET compared = ? WHERE receiver = ?", (end, receiver))
    total = connection.execute("SELECT count(*) FROM missed WHERE receiver = ?", (receiver,)).fetchone()[0]
    return Noted(new, found, int(total))


def read(connection: sqlite3.Connection, receiver: str, first: float, last: float) -> Remembered | None:
    """What is remembered for a receiver of changes made between two seconds; None if nothing is.

    Args:
        connection: Any connection.
        receiver: The receiver's id.
        first: The first second.
        last: The last one.
    """
    if not are_kept(connection):
        return None
    # First what came: what is deleted in between is then in `since`, and does not look missed.
    rows: Iterable[list[Any]] = connection.execute(
        "SELECT uid, second, name, user_id, user_name, user_email, type, action, text, filtered, from_log "
        "FROM arrivals WHERE receiver = ? AND second BETWEEN ? AND ?",
        (receiver, first, last),
    )
    found = [Arrival(*(uid.hex(), *columns, bool(filtered), bool(log))) for uid, *columns, filtered, log in rows]
    state = connection.execute("SELECT since, compared FROM remembered WHERE receiver = ?", (receiver,)).fetchone()
    if state is None:
        return None
    oldest = connection.execute("SELECT min(second) FROM missed WHERE receiver = ?", (receiver,)).fetchone()[0]
    return Remembered(int(state[0]), int(state[1]), None if oldest is None else int(oldest), found)
