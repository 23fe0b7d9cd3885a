"""Carries over into the queue what can still be read of databases that were set aside.

It works in the background and in small transactions, each of which remembers how far it came: after a crash it goes on
from there. A file that is done with is renamed; what waited in it and could be read is delivered like anything else, at
least once, behind what has come in meanwhile.
"""

import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

from statsig_otel import _telemetry
from statsig_otel.exporters.queue import store
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.records import Stored
from statsig_otel.exporters.queue.recovery import damaged_file
from statsig_otel.exporters.queue.recovery.damaged_file import Row
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.queue.writer import NotRunningError, StorageError, Work

_logger: Final = logging.getLogger(__name__)

_T = TypeVar("_T")

_AT_ONCE: Final = 500
_BYTES_AT_ONCE: Final = 4 << 20
"""What one transaction carries over at most: webhooks wait for it."""

_PAUSE: Final = 5.0
"""Seconds before storage that fails, or a disk that is short, is tried again."""

_PASSING: Final = (sqlite3.Error, OSError, StorageError)
"""Errors that end once the machine is mended."""

_DAMAGED: Final = "damaged on disk: its checksum is wrong"

_MISSING: Final[Mapping[int | None, str]] = {
    None: "How many records are missing can't be told",
    0: "No record that waited is missing",
}

_NOBODY: Final = (
    "%s holds records, and does not tell whom they are for: so for every exporter with a sending queue, and none is "
    "configured. They stay in the file, and are carried over once one is"
)

Taken: TypeAlias = Counter[tuple[Literal["record", "damaged", "letter"], str]]
"""How many records of which exporter, damaged ones apart, and how many dead letters of which owner."""


class _NobodyError(Exception):
    """A record may be for anybody, and nobody is configured."""


class Salvager:
    """Empties databases that were set aside, one after the other, in a thread of its own.

    Args:
        directory: The queue's directory.
        submit: Runs a function on the writing connection; see `DurableQueue.submit`.
        now_ms: The time now, in milliseconds since the epoch.
        exporters_of: The exporters of a receiver as configured now, or all: for where a file does not tell. Where there
            is none at all, the file waits for the next `look`.
        min_free_bytes: Wait while the disk has less: what comes in goes first.
    """

    def __init__(
        self,
        directory: QueueDirectory,
        submit: Callable[[Work[Taken]], Future[Taken]],
        *,
        now_ms: Callable[[], int],
        exporters_of: Callable[[str], tuple[str, ...]],
        min_free_bytes: int,
    ) -> None:
        self._directory = directory
        self._submit = submit
        self._now_ms = now_ms
        self._exporters_of = exporters_of
        self._min_free = min_free_bytes
        self._more = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin with what is there."""
        self._stopping.clear()
        thread = threading.Thread(target=self._run, name="queue salvage", daemon=True)
        thread.start()
        self._thread = thread  # not before it runs: `stop` waits for its end

    def look(self) -> None:
        """There is something more, or somebody whom it may be for."""
        self._more.set()

    def stop(self) -> None:
        """Finish the transaction that is under way; the rest is done after the next start. Safe to call twice."""
        self._stopping.set()
        self._more.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        failing = False
        while True:
            self._more.clear()  # before the look at what `stop` sets first: else its call could be lost
            if self._stopping.is_set():
                return
            try:
                for file in self._directory.set_aside_files():
                    self._empty(file)
                failing = False
                self._more.wait()
            except NotRunningError:
                return
            except _PASSING as error:
                if not failing:
                    _logger.error("What was set aside can't be carried over now: %s", error)  # noqa: TRY400 - the message says it all
                failing = True
                self._stopping.wait(_PAUSE)

    def _empty(self, file: Path) -> None:
        try:
            room = self._directory.free_bytes() - self._min_free
            with damaged_file.opened(file, room=room) as connection:
                salvage = _Salvage(file.name, connection, exporters_of=self._exporters_of, now_ms=self._now_ms)
                for work in salvage.steps():
                    salvage.taken += self._do(work)
                    if self._stopping.is_set():
                        return
        except damaged_file.UnreadableError as error:
            kept = self._directory.rename_aside(file, "unreadable")
            _logger.error("%s, and what waited in it is lost. It is kept as %s", error, kept)  # noqa: TRY400 - the message says it all
        except _NobodyError:
            _logger.error(_NOBODY, file)  # noqa: TRY400 - as above
        except (NotRunningError, *_PASSING):
            raise
        except Exception:  # a mistake of ours: neither the files behind it nor those to come must wait for its end
            _logger.exception("%s can't be carried over; it stays as it is, and is tried again at the next start", file)
        else:
            kept = self._directory.rename_aside(file, "salvaged")
            salvage.say(kept)
            self._submit(salvage.forget).result()

    def _do(self, work: Work[Taken]) -> Taken:
        """Carry out one step, once there is room and the storage works, which others speak of."""
        while not self._stopping.is_set():
            try:
                if self._directory.free_bytes() >= self._min_free:
                    return self._submit(work).result()
            except StorageError:
                pass
            self._stopping.wait(_PAUSE)
        return Counter()


class _Salvage:
    """One file, and what was taken of it so far.

    Each step is one function for the writing connection, and counts what it has taken.
    """

    def __init__(
        self,
        name: str,
        connection: sqlite3.Connection,
        *,
        exporters_of: Callable[[str], tuple[str, ...]],
        now_ms: Callable[[], int],
    ) -> None:
        self.taken: Taken = Counter()
        self._name = name
        self._connection = connection
        self._exporters_of = exporters_of
        self._now_ms = now_ms
        self._places = damaged_file.places(connection)
        self._routes = damaged_file.routes(connection)
        self._after: dict[str, int] = {}
        self._is_guessed = False  # for whom some records are

    def steps(self) -> Iterator[Work[Taken]]:
        """All steps that are still to be done, in order."""
        yield self._resume
        done = min((place.cursor for place in self._places.values()), default=0) if self._places else 0
        records = damaged_file.records(self._connection, max(done, self._after.get("records", 0)))
        for rows in _pages(records, lambda row: len(row.record.payload)):
            yield partial(self._take_records, rows)
        letters = damaged_file.dead_letters(self._connection, self._after.get("dead_letters", 0))
        for found in _pages(letters, lambda numbered: len(numbered[2].content)):
            yield partial(self._take_letters, found)
        if self._missing() == 0:  # else a redelivery can mend the loss
            for seen in _pages(damaged_file.seen(self._connection), lambda _: 0):
                yield partial(self._take_seen, seen)

    def forget(self, connection: sqlite3.Connection) -> Taken:
        """The last step, once the file is renamed."""
        connection.execute("DELETE FROM salvage WHERE file = ?", (self._name,))
        return Counter()

    def say(self, kept: Path) -> None:
        """Count and log what became of the file."""
        count: Counter[str] = Counter()
        for (what, owner), number in self.taken.items():
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
        """How many records that waited could not be taken; None where that can't be told."""
        if self._places is None or self._after or self._is_guessed:
            return None
        if not all(place.is_sound for place in self._places.values()):
            return None
        return sum(
            max(place.waiting - self.taken["record", place.name] - self.taken["damaged", place.name], 0)
            for place in self._places.values()
        )

    def _resume(self, connection: sqlite3.Connection) -> Taken:
        """Where it was left off."""
        self._after = self._places_of(connection)
        return Counter()

    def _places_of(self, connection: sqlite3.Connection) -> dict[str, int]:
        """How far it came, by what is carried over."""
        query = "SELECT source, after FROM salvage WHERE file = ?"
        return dict(connection.execute(query, (self._name,)))

    def _take_seen(self, seen: Iterable[tuple[str, bytes, int]], connection: sqlite3.Connection) -> Taken:
        connection.executemany("INSERT INTO seen (receiver, uid, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", seen)
        return Counter()

    def _take_records(self, rows: Sequence[Row], connection: sqlite3.Connection) -> Taken:
        taken: Taken = Counter()
        place = self._places_of(connection).get("records", 0)
        for row in rows:
            receiver, exporters = self._wanted(row)
            taken.update(("record" if row.record.intact else "damaged", name) for name in exporters)
            # A commit that was said to have failed can have reached the disk.
            if exporters and row.record.seq > place:
                self._take_record(connection, row.record, receiver, exporters)
        self._note(connection, "records", rows[-1].record.seq)
        return taken

    def _take_record(
        self, connection: sqlite3.Connection, record: Stored, receiver: str, exporters: Sequence[str]
    ) -> None:
        if not record.intact:
            for name in exporters:
                letter = DeadLetter("damaged", name, _DAMAGED, record.payload, record.uid)
                store.bury(connection, letter, self._now_ms())
            return
        numbers = [store.ensure_exporter(connection, name) for name in exporters]
        route = store.ensure_route(connection, numbers, receiver)
        store.append_copy(connection, route=route, uid=record.uid, payload=record.payload)
        store.add_waiting(connection, numbers, 1, len(record.payload))

    def _take_letters(self, found: Sequence[tuple[int, int, DeadLetter]], connection: sqlite3.Connection) -> Taken:
        place = self._places_of(connection).get("dead_letters", 0)
        for number, at_ms, letter in found:
            if number > place:  # as above
                store.bury(connection, letter, at_ms)
        self._note(connection, "dead_letters", found[-1][0])
        return Counter(("letter", letter.owner) for _, _, letter in found)

    def _note(self, connection: sqlite3.Connection, source: str, after: int) -> None:
        connection.execute(
            "INSERT INTO salvage (file, source, after) VALUES (?1, ?2, ?3) "
            "ON CONFLICT (file, source) DO UPDATE SET after = ?3",
            (self._name, source, after),
        )

    def _wanted(self, row: Row) -> tuple[str, tuple[str, ...]]:
        """A record's receiver, and the exporters that are not done with it; rather too many than too few."""
        route = None if self._routes is None or row.route is None else self._routes.get(row.route)
        receiver, numbers = route or ("", None)
        if self._places is None:
            names = self._exporters_of(receiver)
            if not names:
                raise _NobodyError
            return receiver, names
        self._is_guessed |= numbers is None
        places = self._places.values() if numbers is None else map(self._places.get, numbers)
        return receiver, tuple(place.name for place in places if place and place.cursor < row.record.seq)


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
