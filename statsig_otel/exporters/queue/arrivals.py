"""Remembers which changes came, where that is configured: written in the commit that stores them.

Each function is called inside a transaction. Where nothing is remembered the file has no tables for it, so an older
version of this package can open it. A redelivery is not a second arrival.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.queue import schema

_DELETED_AT_ONCE: Final = 5000
"""The most rows that one transaction deletes, so that nobody waits long for it."""


class Remembered(NamedTuple):
    """What came for a receiver.

    Attributes:
        since: The second from which on everything that came is remembered.
        arrivals: What came.
    """

    since: int
    arrivals: list[Arrival]


def begin(connection: sqlite3.Connection, receivers: Iterable[str], *, now_ms: int) -> None:
    """Begin to remember what comes for some receivers, if that has not begun, and forget what came for others."""
    wanted = set(receivers)
    if wanted:
        schema.upgrade(connection, schema.REMEMBERING)
    elif not are_kept(connection):
        return
    for receiver in {str(row[0]) for row in connection.execute("SELECT receiver FROM remembered")} - wanted:
        connection.execute("DELETE FROM remembered WHERE receiver = ?", (receiver,))
        connection.execute("DELETE FROM arrivals WHERE receiver = ?", (receiver,))
    now = now_ms // 1000
    query = "INSERT INTO remembered (receiver, since) VALUES (?, ?) ON CONFLICT DO NOTHING"
    connection.executemany(query, [(receiver, now) for receiver in wanted])


def are_kept(connection: sqlite3.Connection) -> bool:
    """Whether the file has the tables for what came."""
    return schema.pragma(connection, "user_version") >= schema.REMEMBERING


def add(connection: sqlite3.Connection, receiver: str, arrivals: Iterable[Arrival], *, now_ms: int) -> None:
    """Remember what came."""
    connection.executemany(
        "INSERT INTO arrivals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            (
                receiver,
                bytes.fromhex(one.uid),
                now_ms // 1000,
                one.second,
                one.name,
                one.user_id,
                one.user_name,
                one.user_email,
                one.type,
                one.action,
                one.text,
                one.filtered,
            )
            for one in arrivals
        ],
    )


def forget(connection: sqlite3.Connection, kept: Mapping[str, float], *, now_ms: int) -> int:
    """Delete some of what came longer ago than a receiver keeps it, in seconds; the number of deleted rows."""
    query = (
        "DELETE FROM arrivals WHERE (receiver, uid) IN "
        "(SELECT receiver, uid FROM arrivals WHERE at < ? AND receiver = ? LIMIT ?)"
    )
    rows = [(now_ms // 1000 - int(seconds), receiver, _DELETED_AT_ONCE) for receiver, seconds in kept.items()]
    return sum(connection.execute(query, row).rowcount for row in rows)


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
    since = connection.execute("SELECT since FROM remembered WHERE receiver = ?", (receiver,)).fetchone()
    if since is None:
        return None
    rows: Iterable[list[Any]] = connection.execute(
        "SELECT uid, second, name, user_id, user_name, user_email, type, action, text, filtered FROM arrivals "
        "WHERE receiver = ? AND second BETWEEN ? AND ?",
        (receiver, first, last),
    )
    found = [Arrival(*(uid.hex(), *columns, bool(filtered))) for uid, *columns, filtered in rows]
    return Remembered(int(since[0]), found)
