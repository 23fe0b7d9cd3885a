"""One exporter's way through the queue: what its sender reads, and ticks off."""

import contextlib
import sqlite3
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from statsig_otel import _telemetry
from statsig_otel.exporters.queue import checks, queries, schema, store
from statsig_otel.exporters.queue.queries import ExporterState
from statsig_otel.exporters.queue.records import Records
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.queue.writer import NotRunningError, StorageError

if TYPE_CHECKING:  # a queue has cursors
    from statsig_otel.exporters.queue.queue import DurableQueue

_BETWEEN_TICKS: Final = 0.02
"""Seconds from one commit of what was delivered ahead to the next: each costs about as much as reading a batch does."""

_MOST_DONE: Final = 16
"""Batches that wait for such a commit at most, where the disk is slow."""

_SET_ASIDE: Final = "the database was set aside since these records were read"


@dataclass(frozen=True, slots=True)
class _ReadKey:
    """What a read depends on: what was read ahead counts only where nothing of it has changed."""

    after: int
    count: int
    size: int
    generation: int


@dataclass(slots=True)
class _Done:
    """Records that count as done, and are not yet known to be ticked off on disk.

    Attributes:
        last: The last one's seq.
        count: How many they are.
        size: Their payloads' bytes.
        generation: Of the database that they were read from.
        ahead: Whether the cursor's count is ahead of the database's by them.
    """

    last: int
    count: int
    size: int
    generation: int
    ahead: bool = True


class ExporterCursor:
    """One exporter's way through the queue. Its sender alone reads, ticks off and closes, from one thread.

    Attributes:
        name: The exporter's id.
        id: Its number in the database.
        waiting: How many records wait for it.
        position: The seq of the last record that is done.
    """

    def __init__(self, queue: "DurableQueue", name: str) -> None:
        self.name = name
        self.id: int = 0
        self.position: int = 0
        self.waiting: int = 0
        self._queue = queue
        self._more = threading.Event()
        self._lock = threading.Lock()  # over what the writer's thread changes too
        self._done: list[_Done] = []
        self._ticking: tuple[Future[int | None], int] | None = None  # so many of them, from the first on
        self._tick_at = 0.0  # by the monotonic clock
        self._tick_failed = False
        self._reading: sqlite3.Connection | None = None  # used by one thread at a time
        self._generation = 0  # of the database that was read
        self._reader: ThreadPoolExecutor | None = None
        self._ahead: tuple[_ReadKey, Future[Records]] | None = None

    def found(self, state: ExporterState) -> None:
        """Take over what the database says. In the writer's thread."""
        with self._lock:
            self.id, self.position, self.waiting = state.id, state.cursor, state.waiting
            for done in self._done:
                if done.generation == self._queue.generation:
                    done.ahead = state.cursor < done.last
                    self.position, self.waiting = max(self.position, done.last), self.waiting - done.ahead * done.count
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

    def read(self, count: int, size: int) -> Records:
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
        place = _ReadKey(self.position, count, size, self._queue.generation)
        if records := self._read_before(place):
            return records
        read = partial(self._read_at, place)
        if self._generation != self._queue.generation:
            self.close()
        try:
            if self._reading is None:
                self._generation = self._queue.generation
                self._reading = schema.connect_reading(self._queue.database)
            records = read(self._reading)
        except sqlite3.Error as error:
            self.close()
            if schema.is_damage(error):
                self._queue.submit(read).result()  # where the writer finds the same, it begins a new file
            raise
        if records or not self.waiting:
            return records
        self.flush()
        return self._queue.submit(
            lambda connection: checks.find_records(connection, self.id, count=count, size=size)
        ).result()

    def read_ahead(self, after: int, count: int, size: int) -> None:
        """Begin to read what comes behind a record, for the next `read` with these limits.

        For while a batch is sent: both take about as long.
        """
        if self._reading is None or self._ahead is not None:
            return
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix=f"reader {self.name}")
        place = _ReadKey(after, count, size, self._generation)
        with contextlib.suppress(RuntimeError):  # the interpreter is about to end, and starts nothing more
            self._ahead = place, self._reader.submit(self._read_at, place, self._reading)

    def _read_before(self, place: _ReadKey) -> Records:
        """What was read ahead for this place; nothing where it can't be used. The connection is free afterwards."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return Records()
        try:
            records = ahead[1].result()
        except sqlite3.Error:
            return Records()  # whoever reads it now finds the same
        return records if ahead[0] == place else Records()

    def _read_at(self, place: _ReadKey, connection: sqlite3.Connection) -> Records:
        with queries.snapshot(connection):
            routes = queries.routes_of(connection, self.id)  # a command can have added one
            return queries.read_records(connection, routes, after=place.after, count=place.count, size=place.size)

    def finish(self, records: Records, letters: Sequence[DeadLetter] = ()) -> None:
        """Tick records off that were read, from the first on, and keep dead letters, in one transaction.

        Raises:
            StorageError: It could not be written down: the records will be read again.
            NotRunningError: The queue is stopped.
            RuntimeError: In a forked child.
        """
        if not records:
            return
        self.flush()

        now_ms, generation = self._queue.now_ms(), self._generation

        def work(connection: sqlite3.Connection) -> tuple[int, int] | None:
            place = self._place_in(connection, generation)
            if place is None:
                return None  # removed by command
            # A commit that was said to have failed can have reached the disk, and these were read once more.
            fresh = records[bisect_right(records.seqs, place) :]
            if fresh:
                for letter in letters:
                    store.bury(connection, letter, now_ms)
                store.advance(connection, self.id, cursor=fresh.seqs[-1], records=len(fresh), size=fresh.size)
            return max(place, records.seqs[-1]), len(fresh)

        def count(done: tuple[int, int] | None) -> None:
            with self._lock:
                self.position, fewer = done or (records.seqs[-1], len(records))
                self.waiting -= fewer
            for letter in letters if fewer else ():
                _telemetry.dead_letters.add(1, {"kind": letter.kind, "owner": self.name})

        self._queue.finish(work, count).result()

    def finish_soon(self, records: Records) -> None:
        """Tick records off without waiting for the disk, so that the next batch can be sent meanwhile.

        They count as done at once, and are not read again. Several calls in a row share a commit. A crash before they
        are on disk repeats them.

        Raises:
            StorageError: Those of the calls before could not be written down. They still count as done, and the next
                call, or `flush`, tries again. Or the database was set aside, and these will come again.
            NotRunningError: The queue is stopped.
            RuntimeError: In a forked child.
        """
        self._forget_set_aside()
        if self._tick_failed or len(self._done) >= _MOST_DONE:
            self.flush()
        elif self._ticking is not None and self._ticking[0].done():
            self._end_tick()
        done = _Done(records.seqs[-1], len(records), records.size, self._generation)
        with self._lock:
            if done.generation != self._queue.generation:
                raise StorageError(_SET_ASIDE)  # the cursor is one of another file by now, or is about to be
            self._done.append(done)
            self.position, self.waiting = done.last, self.waiting - done.count
        if self._ticking is None and time.monotonic() >= self._tick_at:
            self._begin_tick()

    def flush(self) -> None:
        """Wait until all that counts as done is on disk.

        Raises:
            StorageError: It could not be written down; the next call tries again.
            NotRunningError: The queue is stopped.
        """
        self._forget_set_aside()
        while self._done:
            if self._ticking is None:
                self._begin_tick()
            self._end_tick()
            self._forget_set_aside()

    def _forget_set_aside(self) -> None:
        """Forget what was read from a database that was set aside: its records went with it, and come again."""
        if self._done and self._done[0].generation != self._queue.generation:
            self._ticking, self._tick_failed = None, False
            with self._lock:
                self._done = [done for done in self._done if done.generation == self._queue.generation]

    def _begin_tick(self) -> None:
        """Hand over all that counts as done."""
        group = [*self._done]

        def work(connection: sqlite3.Connection) -> int | None:
            place = self._place_in(connection, group[0].generation)
            if place is None:
                return None  # removed by command
            # As in `finish`.
            fresh = [done for done in group if done.last > place]
            count = sum(done.count for done in fresh)
            if fresh:
                size = sum(done.size for done in fresh)
                store.advance(connection, self.id, cursor=fresh[-1].last, records=count, size=size)
            return count

        def count(fewer: int | None) -> None:
            with self._lock:
                ahead = sum(done.count for done in group if done.ahead)
                self.waiting += ahead - (ahead if fewer is None else fewer)
                for done in group:
                    done.ahead = False

        self._ticking = self._queue.finish(work, count), len(group)
        self._tick_at = time.monotonic() + _BETWEEN_TICKS

    def _end_tick(self) -> None:
        """Wait for what was handed over."""
        if self._ticking is None:
            return
        (ticking, number), self._ticking, self._tick_failed = self._ticking, None, True
        ticking.result()
        self._tick_failed = False
        with self._lock:
            del self._done[:number]

    def _place_in(self, connection: sqlite3.Connection, generation: int) -> int | None:
        """The cursor on disk; None for an exporter that was removed."""
        if generation != self._queue.generation:
            raise StorageError(_SET_ASIDE)
        place = store.place_of(connection, self.id)
        return None if place is None else place[0]

    def close(self) -> None:
        """Finish what is under way, and close what was opened for reading."""
        with contextlib.suppress(StorageError, NotRunningError):  # what was not ticked off comes again
            self.flush()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.shutdown()
        self._ahead = None
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()
