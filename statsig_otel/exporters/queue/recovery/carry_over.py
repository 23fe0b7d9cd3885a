"""Carries the content of one damaged file over into the queue: records, dead letters, and the uids that were seen.

Each record keeps the exporters that were not done with it, also one that has left the configuration. It passes the
check for duplicates, since a change that was split has several records of one uid, and `queue_size`, since it was
acknowledged long ago. It stands behind what has come in meanwhile, and is delivered at least once.
"""

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

from statsig_otel import _telemetry
from statsig_otel.exporters.queue import store
from statsig_otel.exporters.queue.records import Stored
from statsig_otel.exporters.queue.recovery import damaged_file
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.queue.writer import Work

_logger: Final = logging.getLogger(__name__)

_T = TypeVar("_T")

_AT_ONCE: Final = 500
_BYTES_AT_ONCE: Final = 4 << 20
"""The most that one transaction carries over: webhooks wait for it."""

_MISSING: Final[Mapping[int | None, str]] = {
    None: "How many records are missing can't be told",
    0: "No record that waited is missing",
}

CarriedOver: TypeAlias = Counter[tuple[Literal["record", "damaged", "letter"], str]]
"""How many records of which exporter, damaged ones apart, and how many dead letters of which owner."""


class NobodyConfiguredError(Exception):
    """A record may be for anybody, and nobody is configured."""


class CarryOver:
    """One file, and what was carried over of it so far.

    Args:
        name: The file's name, under which the queue remembers how far it came.
        connection: A connection to it, for reading.
        exporters_of: The exporters of a receiver, for records of which the file does not tell whom they are for.
        now_ms: The time now, in milliseconds since the epoch.

    Attributes:
        done: What the steps have counted.
    """

    def __init__(
        self,
        name: str,
        connection: sqlite3.Connection,
        *,
        exporters_of: Callable[[str], tuple[str, ...]],
        now_ms: Callable[[], int],
    ) -> None:
        self.done: CarriedOver = Counter()
        self._name = name
        self._connection = connection
        self._exporters_of = exporters_of
        self._now_ms = now_ms
        self._places = damaged_file.places(connection)
        self._routes = damaged_file.routes(connection)
        self._before: dict[str, int] = {}  # how far an earlier attempt came
        self._is_guessed = False  # for whom some records are

    def steps(self) -> Iterator[Work[CarriedOver]]:
        """What is still to be done, in order: functions for the queue's writer, which count what they carry over.

        A step may be done again where its commit is said to have failed: it can have reached the disk.
        """
        yield self._resume
        delivered = min((place.cursor for place in (self._places or {}).values()), default=0)
        records = damaged_file.records(self._connection, max(delivered, self._before.get("records", 0)))
        for rows in _pages(records, lambda row: len(row[1].payload)):
            yield partial(self._add_records, rows)
        letters = damaged_file.dead_letters(self._connection, self._before.get("dead_letters", 0))
        for found in _pages(letters, lambda numbered: len(numbered[2].content)):
            yield partial(self._add_letters, found)
        if self._missing() == 0:  # else a redelivery can mend the loss
            for seen in _pages(damaged_file.seen(self._connection), lambda _: 0):
                yield partial(self._add_seen, seen)

    def forget(self, connection: sqlite3.Connection) -> None:
        """The last step, once the file is renamed."""
        connection.execute("DELETE FROM salvage WHERE file = ?", (self._name,))

    def report(self, kept: Path) -> None:
        """Count and log what became of the file."""
        count: Counter[str] = Counter()
        for (what, owner), number in self.done.items():
            count[what] += number
            if what == "record":
                _telemetry.queue_salvaged.add(number, {"exporter": owner})
            else:
                _telemetry.dead_letters.add(number, {"kind": what, "owner": owner})
        _logger.warning(
            "What could be read of %s is carried over: %d records that wait, %d damaged ones and %d others as dead "
            "letters. %s. The file is kept as %s",
            self._name,
            count["record"],
            count["damaged"],
            count["letter"],
            _MISSING.get(missing := self._missing(), f"{missing} records that waited are missing"),
            kept,
        )

    def _missing(self) -> int | None:
        """How many records that waited could not be carried over; None where that can't be told."""
        places = (self._places or {}).values()
        if self._places is None or self._before or self._is_guessed or not all(place.is_sound for place in places):
            return None
        return sum(
            max(place.waiting - self.done["record", place.name] - self.done["damaged", place.name], 0)
            for place in places
        )

    def _resume(self, connection: sqlite3.Connection) -> CarriedOver:
        self._before = self._progress(connection)
        return Counter()

    def _progress(self, connection: sqlite3.Connection) -> dict[str, int]:
        """The last row of each table that the queue has."""
        return dict(connection.execute("SELECT source, after FROM salvage WHERE file = ?", (self._name,)))

    def _note(self, connection: sqlite3.Connection, source: str, after: int) -> None:
        connection.execute(
            "INSERT INTO salvage (file, source, after) VALUES (?1, ?2, ?3) "
            "ON CONFLICT (file, source) DO UPDATE SET after = ?3",
            (self._name, source, after),
        )

    def _add_records(self, rows: Sequence[tuple[int | None, Stored]], connection: sqlite3.Connection) -> CarriedOver:
        done: CarriedOver = Counter()
        before = self._progress(connection).get("records", 0)
        for route, record in rows:
            receiver, exporters = self._remaining(route, record.seq)
            done.update(("record" if record.intact else "damaged", name) for name in exporters)
            if not exporters or record.seq <= before:
                continue
            if record.intact:
                numbers = [store.ensure_exporter(connection, name) for name in exporters]
                store.append_copies(connection, numbers, [(record.uid, record.payload)], receiver=receiver)
            else:
                for name in exporters:
                    store.bury(connection, store.damaged_record(name, record), self._now_ms())
        self._note(connection, "records", rows[-1][1].seq)
        return done

    def _remaining(self, route: int | None, seq: int) -> tuple[str, tuple[str, ...]]:
        """A record's receiver, and the exporters that are not done with it; rather too many than too few."""
        receiver, numbers = (self._routes or {}).get(route or 0) or ("", None)
        if self._places is None:
            names = self._exporters_of(receiver)
            if not names:
                raise NobodyConfiguredError
            return receiver, names
        self._is_guessed |= numbers is None
        places = self._places.values() if numbers is None else map(self._places.get, numbers)
        return receiver, tuple(place.name for place in places if place and place.cursor < seq)

    def _add_letters(self, found: Sequence[tuple[int, int, DeadLetter]], connection: sqlite3.Connection) -> CarriedOver:
        before = self._progress(connection).get("dead_letters", 0)
        for number, at_ms, letter in found:
            if number > before:
                store.bury(connection, letter, at_ms)
        self._note(connection, "dead_letters", found[-1][0])
        return Counter(("letter", letter.owner) for _, _, letter in found)

    def _add_seen(self, seen: Iterable[tuple[str, bytes, int]], connection: sqlite3.Connection) -> CarriedOver:
        connection.executemany("INSERT INTO seen (receiver, uid, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", seen)
        return Counter()


def _pages(found: Iterable[_T], size_of: Callable[[_T], int]) -> Iterator[list[_T]]:
    """What one transaction takes at a time."""
    page: list[_T] = []
    size = 0
    for one in found:
        page.append(one)
        size += size_of(one)
        if len(page) == _AT_ONCE or size >= _BYTES_AT_ONCE:
            yield page
            page, size = [], 0
    if page:
        yield page
