"""One exporter's way through the queue: what its sender reads, and ticks off."""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from statsig_otel import _telemetry
from statsig_otel.exporters.queue import schema, store
from statsig_otel.exporters.queue.store import DeadLetter, ExporterState, Stored
from statsig_otel.exporters.queue.writer import NotRunningError, StorageError, Work

_T = TypeVar("_T")


class LaneOwner(Protocol):
    """The queue that a lane belongs to."""

    @property
    def database(self) -> Path:
        """The database file."""

    @property
    def generation(self) -> int:
        """How many databases were set aside since the start."""

    def check_process(self) -> None:
        """Refuse to work in a forked child."""

    def now_ms(self) -> int:
        """The time now, in milliseconds since the epoch."""

    def submit(self, work: Work[_T]) -> Future[_T]:
        """Run a function on the writing connection; all lanes see what it moved."""

    def finish(self, work: Work[_T], then: Callable[[_T], None]) -> Future[_T]:
        """Run a function on the writing connection, for a lane that counts by itself."""


@dataclass(frozen=True, slots=True)
class _Place:
    """What a read depends on: what was read ahead counts only where nothing of it has changed."""

    after: int
    count: int
    size: int
    generation: int


@dataclass(slots=True)
class _Tick:
    """Records that count as done, and are not yet known to be ticked off on disk.

    Attributes:
        work: What ticks them off.
        last: The last one's seq.
        count: How many they are.
        generation: Of the database that they were read from.
        ahead: By how many the lane's count is ahead of the database's.
        written: Has the outcome; None where it has to be handed over once more.
    """

    work: Callable[[sqlite3.Connection], tuple[int, int] | None]
    last: int
    count: int
    generation: int
    ahead: int = field(init=False)
    written: "Future[tuple[int, int] | None] | None" = None

    def __post_init__(self) -> None:
        self.ahead = self.count


class Lane:
    """One exporter's way through the queue. Its sender alone reads, ticks off and closes, from one thread.

    Attributes:
        name: The exporter's id.
        id: Its number in the database.
        waiting: How many records wait for it.
        cursor: The last seq that is done.
    """

    def __init__(self, queue: LaneOwner, name: str) -> None:
        self.name = name
        self.id: int = 0
        self.cursor: int = 0
        self.waiting: int = 0
        self._queue = queue
        self._more = threading.Event()
        self._lock = threading.Lock()  # over what the writer's thread changes too
        self._unsettled: _Tick | None = None
        self._reading: sqlite3.Connection | None = None  # used by one thread at a time
        self._generation = 0  # of the database that was read
        self._reader: ThreadPoolExecutor | None = None
        self._ahead: tuple[_Place, Future[list[Stored]]] | None = None

    def found(self, state: ExporterState) -> None:
        """Take over what the database says. In the writer's thread."""
        with self._lock:
            self.id, self.cursor, self.waiting = state.id, state.cursor, state.waiting
            tick = self._unsettled
            if tick is not None and tick.generation == self._queue.generation:
                tick.ahead = tick.count if state.cursor < tick.last else 0
                self.cursor, self.waiting = max(self.cursor, tick.last), self.waiting - tick.ahead
        self._more.set()

    def added(self, records: int) -> None:
        """Count records that are on disk now, and wake the sender."""
        with self._lock:
            self.waiting += records
        self._more.set()

    def wait(self, timeout: float | None) -> None:
        """Wait until there may be something to read, or somebody wakes the sender."""
        self._more.wait(timeout)
        self._more.clear()

    def wake(self) -> None:
        """End a wait."""
        self._more.set()

    def read(self, count: int, size: int) -> list[Stored]:
        """The next records behind the cursor, in order; empty where there is none.

        Args:
            count: How many at most.
            size: Bytes of payload at most; a larger record comes alone.

        Raises:
            sqlite3.Error: The file can't be read. Where it is so damaged that not even a part of it can be, it has been
                set aside, and the next call reads a new one.
            StorageError: As above, and no new one can be written.
            RuntimeError: In a forked child.
        """
        self._queue.check_process()
        place = _Place(self.cursor, count, size, self._queue.generation)
        if records := self._read_before(place):
            return records
        look = partial(self._look, place)
        if self._generation != self._queue.generation:
            self.close()
        try:
            if self._reading is None:
                self._generation = self._queue.generation
                self._reading = schema.connect_reading(self._queue.database)
            records = look(self._reading)
        except sqlite3.Error as error:
            self.close()
            if schema.is_damage(error):
                self._queue.submit(look).result()  # where the writer finds the same, it begins a new file
            raise
        if records or not self.waiting:
            return records
        self.settle()
        return self._queue.submit(
            lambda connection: store.find_records(
                connection, self.id, store.routes_of(connection, self.id), count=count, size=size
            )
        ).result()

    def read_ahead(self, after: int, count: int, size: int) -> None:
        """Begin to read what comes behind a record, for the next `read` with these limits.

        For while a batch is sent: both take about as long.
        """
        if self._reading is None or self._ahead is not None:
            return
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix=f"reader {self.name}")
        place = _Place(after, count, size, self._generation)
        with contextlib.suppress(RuntimeError):  # the interpreter is about to end, and starts nothing more
            self._ahead = place, self._reader.submit(self._look, place, self._reading)

    def _read_before(self, place: _Place) -> list[Stored]:
        """What was read ahead for this place; nothing where it can't be used. The connection is free afterwards."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return []
        try:
            records = ahead[1].result()
        except sqlite3.Error:
            return []  # whoever reads it now finds the same
        return records if ahead[0] == place else []

    def _look(self, place: _Place, connection: sqlite3.Connection) -> list[Stored]:
        with store.snapshot(connection):
            routes = store.routes_of(connection, self.id)  # a command can have added one
            return store.read_records(connection, routes, after=place.after, count=place.count, size=place.size)

    def finish(self, records: Sequence[Stored], letters: Sequence[DeadLetter] = ()) -> None:
        """Tick records off that were read, from the first on, and keep dead letters, in one transaction.

        Raises:
            StorageError: It could not be written down: the records will be read again.
            NotRunningError: The queue is stopped.
            RuntimeError: In a forked child.
        """
        if not records:
            return
        self.settle()

        def count(done: tuple[int, int] | None) -> None:
            with self._lock:
                self.cursor, fewer = done or (records[-1].seq, len(records))
                self.waiting -= fewer
            for letter in letters if fewer else ():
                _telemetry.dead_letters.add(1, {"kind": letter.kind, "owner": self.name})

        self._queue.finish(self._ticking(records, letters), count).result()

    def finish_soon(self, records: Sequence[Stored]) -> None:
        """Tick records off without waiting for the disk, so that the next batch can be sent meanwhile.

        They count as done at once, and are not read again. A crash before they are on disk repeats them.

        Raises:
            StorageError: Those of the call before could not be written down. They still count as done, and the next
                call, or `settle`, tries again.
            NotRunningError: The queue is stopped.
            RuntimeError: In a forked child.
        """
        self.settle()
        tick = _Tick(self._ticking(records, ()), records[-1].seq, len(records), self._generation)
        with self._lock:
            self._unsettled = tick
            self.cursor, self.waiting = tick.last, self.waiting - tick.count
        tick.written = self._submit(tick)

    def settle(self) -> None:
        """Wait until all that counts as done is on disk.

        Raises:
            StorageError: It could not be written down; the next call tries again.
            NotRunningError: The queue is stopped.
        """
        tick = self._unsettled
        if tick is None:
            return
        if tick.generation == self._queue.generation:  # else its records went with the database, and come again
            written, tick.written = tick.written or self._submit(tick), None
            written.result()
        with self._lock:
            self._unsettled = None

    def _submit(self, tick: "_Tick") -> "Future[tuple[int, int] | None]":
        def count(done: tuple[int, int] | None) -> None:
            with self._lock:
                self.waiting += tick.ahead - (done[1] if done else tick.ahead)
                tick.ahead = 0

        return self._queue.finish(tick.work, count)

    def _ticking(
        self, records: Sequence[Stored], letters: Sequence[DeadLetter]
    ) -> Callable[[sqlite3.Connection], tuple[int, int] | None]:
        """What ticks records off: the cursor, and how many that were; None for an exporter that was removed."""
        now_ms, generation = self._queue.now_ms(), self._generation

        def work(connection: sqlite3.Connection) -> tuple[int, int] | None:
            if generation != self._queue.generation:
                raise StorageError("the database was set aside since these records were read")
            place = store.place_of(connection, self.id)
            if place is None:
                return None  # removed by command
            # A commit that was said to have failed can have reached the disk, and these were read once more.
            fresh = [record for record in records if record.seq > place[0]]
            if fresh:
                for letter in letters:
                    store.bury(connection, letter, now_ms)
                size = sum(len(record.payload) for record in fresh)
                store.advance(connection, self.id, cursor=fresh[-1].seq, records=len(fresh), size=size)
            return max(place[0], records[-1].seq), len(fresh)

        return work

    def close(self) -> None:
        """Finish what is under way, and close what was opened for reading."""
        with contextlib.suppress(StorageError, NotRunningError):  # what was not ticked off comes again
            self.settle()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.shutdown()
        self._ahead = None
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()
