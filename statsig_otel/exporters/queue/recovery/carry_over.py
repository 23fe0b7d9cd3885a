"""Carries the content of one damaged file over into the queue: records, dead letters, and the uids that were seen.

Each record keeps the exporters that were not done with it, also those that have left the configuration. Duplicates are
not checked, since the records of a change that was split have the same uid; nor is `queue_size`, since they were
acknowledged long ago. They come behind what was stored meanwhile, and are delivered at least once.
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
from statsig_otel.exporters.queue.jobs import Work
from statsig_otel.exporters.queue.records import Stored
from statsig_otel.exporters.queue.recovery import damaged_file
from statsig_otel.exporters.queue.store import DeadLetter, DeadLetterKind
from statsig_otel.exporters.wording import counted

_logger: Final = logging.getLogger(__name__)

_T = TypeVar("_T")

_AT_ONCE: Final = 500
_BYTES_AT_ONCE: Final = 4 << 20
"""The most bytes of one transaction: webhooks wait for it."""

_MISSING: Final[Mapping[int | None, str]] = {
    None: "How many records are missing is unknown",
    0: "No record that waited is missing",
}

CarriedOver: TypeAlias = Counter[tuple[Literal["record", "damaged", "dead letter"], str, DeadLetterKind | None]]
"""The numbers of intact and of damaged records, by exporter, and of dead letters, by owner and kind."""


class NobodyConfiguredError(Exception):
    """The file does not tell whom a record is for, and no exporter is configured."""


class CarryOver:
    """Carries over one file. The caller adds what each step returns to `done`.

    Args:
        name: The file's name, under which the queue notes the progress.
        connection: A connection to it, for reading.
        exporters_of: The exporters of a receiver, for records if the file does not tell whom they are for.
        now_ms: The time now, in milliseconds since the epoch.
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
        self._exporters = damaged_file.exporter_states(connection)
        self._routes = damaged_file.routes(connection)
        self._before: dict[str, int] = {}  # the progress of an earlier attempt, or the note that it is incomplete
        self._is_guessed = False  # the exporters of some records

    def steps(self) -> Iterator[Work[CarriedOver]]:
        """Functions for the queue's writer, in order, which return what they carry over.

        A step may be run again if its commit is reported as failed, although it may have reached the disk.
        """
        yield self._resume
        delivered = min((exporter.cursor for exporter in (self._exporters or {}).values()), default=0)
        records = damaged_file.records(self._connection, max(delivered, self._before.get("records", 0)))
        for rows in _pages(records, lambda row: len(row[1].payload)):
            yield partial(self._add_records, rows)
        dead_letters = damaged_file.dead_letters(self._connection, self._before.get("dead_letters", 0))
        for page in _pages(dead_letters, lambda row: len(row[2].content)):
            yield partial(self._add_dead_letters, page)
        if self._missing() == 0:  # else a redelivery can replace what is missing
            for seen in _pages(damaged_file.seen(self._connection), lambda _: 0):
                yield partial(self._add_seen, seen)

    def forget(self, connection: sqlite3.Connection) -> None:
        """The last step, once the file is renamed."""
        connection.execute("DELETE FROM salvage WHERE file = ?", (self._name,))

    def report(self, kept: Path) -> None:
        """Count and log what became of the file."""
        count: Counter[str] = Counter()
        for (what, owner, kind), number in self.done.items():
            count[what] += number
            if kind is None:
                _telemetry.queue_recovered.add(number, owner)
            else:
                _telemetry.dead_letters.add(number, kind, owner)
        missing = self._missing()
        _logger.log(
            logging.WARNING if missing == 0 and not count["damaged"] else logging.ERROR,
            "What could be read of %s is carried over: %s, %s as dead letters, and %s. %s. The file is kept as %s",
            self._name,
            counted(count["record"], "waiting record"),
            counted(count["damaged"], "damaged record"),
            counted(count["dead letter"], "earlier dead letter"),
            _MISSING.get(missing, f"Missing: {counted(missing or 0, 'waiting record')}"),
            kept,
        )

    def _missing(self) -> int | None:
        """The number of waiting records that could not be carried over; None if that is unknown."""
        exporters = (self._exporters or {}).values()
        if self._exporters is None or self._before or self._is_guessed or not all(one.is_sound for one in exporters):
            return None
        return sum(
            max(one.waiting - self.done["record", one.name, None] - self.done["damaged", one.name, "damaged"], 0)
            for one in exporters
        )

    def _resume(self, connection: sqlite3.Connection) -> CarriedOver:
        self._before = self._progress(connection)
        return Counter()

    def _progress(self, connection: sqlite3.Connection) -> dict[str, int]:
        """For each table of the file, the last row that was carried over."""
        return dict(connection.execute("SELECT source, after FROM salvage WHERE file = ?", (self._name,)))

    def _note(self, connection: sqlite3.Connection, source: str, after: int) -> None:
        connection.execute(
            "INSERT INTO salvage (file, source, after) VALUES (?, ?, ?) "
            "ON CONFLICT (file, source) DO UPDATE SET after = excluded.after",
            (self._name, source, after),
        )

    def _add_records(self, rows: Sequence[tuple[int | None, Stored]], connection: sqlite3.Connection) -> CarriedOver:
        done: CarriedOver = Counter()
        before = self._progress(connection).get("records", 0)
        for route, record in rows:
            receiver, exporters = self._remaining(route, record.seq)
            for name in exporters:
                done["record", name, None] += record.intact
                done["damaged", name, "damaged"] += not record.intact
            if not exporters or record.seq <= before:
                continue
            if record.intact:
                numbers = [store.ensure_exporter(connection, name) for name in exporters]
                store.append_copies(connection, numbers, [(record.uid, record.payload)], receiver=receiver)
            else:
                for name in exporters:
                    store.add_dead_letter(connection, store.damaged_record(name, record), self._now_ms())
        self._note(connection, "records", rows[-1][1].seq)
        return done

    def _remaining(self, route: int | None, seq: int) -> tuple[str, tuple[str, ...]]:
        """A record's receiver, and the exporters that are not done with it; in doubt all of them."""
        receiver, numbers = (self._routes or {}).get(route or 0) or ("", None)
        if self._exporters is None:
            names = self._exporters_of(receiver)
            if not names:
                raise NobodyConfiguredError
            return receiver, names
        self._is_guessed |= numbers is None
        exporters = self._exporters.values() if numbers is None else map(self._exporters.get, numbers)
        return receiver, tuple(one.name for one in exporters if one and one.cursor < seq)

    def _add_dead_letters(
        self, rows: Sequence[tuple[int, int, DeadLetter]], connection: sqlite3.Connection
    ) -> CarriedOver:
        before = self._progress(connection).get("dead_letters", 0)
        for number, at_ms, dead_letter in rows:
            if number > before:
                store.add_dead_letter(connection, dead_letter, at_ms)
        self._note(connection, "dead_letters", rows[-1][0])
        return Counter(("dead letter", dead_letter.owner, dead_letter.kind) for _, _, dead_letter in rows)

    def _add_seen(self, seen: Iterable[tuple[str, bytes, int]], connection: sqlite3.Connection) -> CarriedOver:
        connection.executemany("INSERT INTO seen (receiver, uid, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", seen)
        return Counter()


def _pages(rows: Iterable[_T], size_of: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Rows for one transaction each."""
    page: list[_T] = []
    size = 0
    for row in rows:
        page.append(row)
        size += size_of(row)
        if len(page) == _AT_ONCE or size >= _BYTES_AT_ONCE:
            yield page
            page, size = [], 0
    if page:
        yield page
