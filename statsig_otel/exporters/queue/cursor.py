"""One exporter's cursor: the queue's records that its sender reads, in order, and ticks off."""

import contextlib
import sqlite3
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from statsig_otel import _telemetry
from statsig_otel.exporters.queue import checks, queries, schema, store
from statsig_otel.exporters.queue.database import Database
from statsig_otel.exporters.queue.errors import NotRunningError, StorageError
from statsig_otel.exporters.queue.queries import ExporterState
from statsig_otel.exporters.queue.records import Records
from statsig_otel.exporters.queue.store import DeadLetter

_BETWEEN_TICKS: Final = 0.02
"""Seconds between two commits of `finish_soon`: each costs about as much as reading a batch does."""

_MOST_DONE: Final = 16
"""The largest number of batches that wait for such a commit, if the disk is slow."""

_SET_ASIDE: Final = "the database was set aside, or opened again, since these records were read"


@dataclass(frozen=True, slots=True)
class _ReadKey:
    """The arguments of a read. Records that were read ahead are used only if these are still the same."""

    after: int
    count: int
    size: int
    generation: int


@dataclass(slots=True)
class _Done:
    """`count` records up to the seq `last`, with payloads of `size` bytes, that are not known to be ticked off on disk.

    `ahead` says whether the cursor has counted them already, and the database has not.
    """

    last: int
    count: int
    size: int
    generation: int
    ahead: bool


class ExporterCursor:
    """One exporter's cursor. Only its sender reads, ticks off and closes, from one thread.

    Attributes:
        name: The exporter's id.
        directory: The queue's directory.
        id: Its number in the database.
        waiting: The number of records that wait for it.
        size: The bytes of their payloads.
        position: The seq of the last record that is done.
    """

    def __init__(self, database: Database, name: str) -> None:
        self.name = name
        self.directory: Path = database.directory.path
        self.id: int = 0
        self.position: int = 0
        self.waiting: int = 0
        self.size: int = 0
        self._database = database
        self._more = threading.Event()
        self._lock = threading.Lock()  # over what the writer's thread changes too
        self._done: list[_Done] = []
        # A commit under way, and how many of `_done` it is for.
        self._ticking: tuple[Future[tuple[int, int]], int] | None = None
        self._tick_at = 0.0  # by the monotonic clock
        self._tick_failed = False
        self._reading: sqlite3.Connection | None = None  # used by one thread at a time
        self._generation = 0  # of the database that was read
        self._reader: ThreadPoolExecutor | None = None
        self._ahead: tuple[_ReadKey, Future[Records]] | None = None

    def update(self, state: ExporterState) -> None:
        """Adopt the database's state. Called in the writer's thread."""
        with self._lock:
            self.id, self.position, self.waiting, self.size = state.id, state.cursor, state.waiting, state.bytes
            for done in self._done:
                if done.generation == self._database.generation:
                    done.ahead = state.cursor < done.last
                    self.position, self.waiting = max(self.position, done.last), self.waiting - done.ahead * done.count
                    self.size -= done.ahead * done.size
        self._more.set()

    def add(self, records: int, size: int) -> None:
        """Count records that are on disk now, and the bytes of their payloads, and wake the sender."""
        with self._lock:
            self.waiting += records
            self.size += size
        self._more.set()

    def wait(self, timeout: float | None) -> None:
        """Wait until there may be something to read, or `wake` is called."""
        self._more.wait(timeout)
        self._more.clear()

    def wake(self) -> None:
        """End a wait."""
        self._more.set()

    def read(self, count: int, size: int) -> Records:
        """The next records behind the cursor, in order: at most `count`, and `size` bytes of payload or one record.

        Raises:
            sqlite3.Error: The file can't be read. If no part of it can, it was set aside, and the next call reads a new
                one.
            StorageError: As above, and no new one can be written.
            RuntimeError: In a forked child.
        """
        self._database.writer.check_process()
        key = _ReadKey(self.position, count, size, self._database.generation)
        if records := self._records_ahead(key):
            return records
        if self._generation != self._database.generation:
            self.close()
        if self._reading is None:
            self._generation = self._database.generation
        records = self._read_checked(key)
        if records or not self.waiting:
            return records
        self.flush()
        return self._find(key)

    def read_behind(self, after: int, count: int, size: int) -> Records:
        """As `read`, behind a seq. Empty if the database is not the one of `read`."""
        self._records_ahead(None)
        if self._reading is None or self._generation != self._database.generation:
            return Records()
        return self._read_checked(_ReadKey(max(after, self.position), count, size, self._generation))

    def _read_checked(self, key: _ReadKey) -> Records:
        read = partial(self._read, key)
        try:
            if self._reading is None:
                self._reading = self._database.connect_reading()
            return read(self._reading)
        except sqlite3.Error as error:
            self.close()
            if schema.is_damage(error):
                self._database.writer.submit(read).result()  # if the writer finds the same, it begins a new file
            raise

    def _find(self, key: _ReadKey) -> Records:
        """Records that are counted and were not found; none if the count was wrong, which is then corrected."""

        def work(connection: sqlite3.Connection) -> tuple[Records, ExporterState | None]:
            records = checks.find_records(connection, self.id, count=key.count, size=key.size)
            return records, queries.exporter_state(connection, self.name)

        def update(found: tuple[Records, ExporterState | None]) -> None:
            if found[1] is not None:
                self.update(found[1])

        return self._database.writer.submit(work, update).result()[0]

    def newest(self, up_to: int, passed_over: Callable[[int], bool]) -> Records:
        """The newest record that waits and is intact. None if the database is not the one of `read`.

        Args:
            up_to: The largest seq that it may have.
            passed_over: Whether the record with a seq is not meant. It is asked from the newest record on.

        Raises:
            sqlite3.Error: The file can't be read.
        """
        self._records_ahead(None)
        if self._reading is None or self._generation != self._database.generation:
            return Records()
        with queries.snapshot(self._reading):
            routes = queries.routes_of(self._reading, self.id)
            return queries.newest_record(
                self._reading, routes, after=self.position, up_to=up_to, passed_over=passed_over
            )

    @property
    def generation(self) -> int:
        """The generation of the database that was last read. Each generation has numbers of its own."""
        return self._generation

    @property
    def is_set_aside(self) -> bool:
        """Whether the database that was last read is not the queue's any more."""
        return self._generation != self._database.generation

    def read_ahead(self, after: int, count: int, size: int) -> None:
        """Begin to read behind a record, for the next `read` with these limits, while a batch is sent."""
        if self._reading is None or self._ahead is not None:
            return
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix=f"reader {self.name}")
        key = _ReadKey(after, count, size, self._generation)
        with contextlib.suppress(RuntimeError):  # the interpreter is about to end, and starts nothing more
            self._ahead = key, self._reader.submit(self._read, key, self._reading)

    def _records_ahead(self, key: _ReadKey | None) -> Records:
        """The records that were read ahead, if they are those of `key`. Afterwards nothing uses the connection."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return Records()
        try:
            records = ahead[1].result()
        except sqlite3.Error:
            return Records()  # whoever reads it now gets the same error
        return records if ahead[0] == key else Records()

    def _read(self, key: _ReadKey, connection: sqlite3.Connection) -> Records:
        with queries.snapshot(connection):
            routes = queries.routes_of(connection, self.id)  # a command can have added one
            return queries.read_records(connection, routes, after=key.after, count=key.count, size=key.size)

    def finish(self, records: Records, dead_letters: Sequence[DeadLetter] = ()) -> None:
        """Tick off records that were read, from the first on, and keep dead letters, in one transaction.

        Raises:
            StorageError: It could not be stored: the records will be read again.
            NotRunningError: The queue is stopped.
            RuntimeError: In a forked child.
        """
        if not records:
            return
        self.flush()

        def remaining(cursor: int) -> list[_Done]:
            rest = records[bisect_right(records.seqs, cursor) :]
            return [self._done_with(rest, ahead=False)] if rest else []

        self._tick([self._done_with(records, ahead=False)], remaining, dead_letters).result()

    def finish_soon(self, records: Records) -> None:
        """Tick off records without waiting for the disk, so that the next batch can be sent meanwhile.

        They count as done at once, and are not read again. Several calls in a row share a commit. After a crash before
        that commit they are sent again.

        Raises:
            StorageError: The records of earlier calls could not be ticked off. They still count as done, and the next
                call, or `flush`, tries again. Or the database was set aside, and these records will come again.
            NotRunningError: The queue is stopped.
            RuntimeError: In a forked child.
        """
        self._forget_set_aside()
        if self._tick_failed or len(self._done) >= _MOST_DONE:
            self.flush()
        elif self._ticking is not None and self._ticking[0].done():
            self._end_tick()
        done = self._done_with(records, ahead=True)
        with self._lock:
            if done.generation != self._database.generation:
                raise StorageError(_SET_ASIDE)  # the cursor belongs to another file by now, or is about to
            self._done.append(done)
            self.position, self.waiting = done.last, self.waiting - done.count
            self.size -= done.size
        if self._ticking is None and time.monotonic() >= self._tick_at:
            self._begin_tick()

    def flush(self) -> None:
        """Wait until all that counts as done is on disk.

        Raises:
            StorageError: It could not be stored; the next call tries again.
            NotRunningError: The queue is stopped.
        """
        self._forget_set_aside()
        while self._done:
            if self._ticking is None:
                self._begin_tick()
            self._end_tick()
            self._forget_set_aside()

    def _done_with(self, records: Records, *, ahead: bool) -> _Done:
        return _Done(records.seqs[-1], len(records), records.size, self._generation, ahead)

    def _forget_set_aside(self) -> None:
        """Forget records of a database that was set aside: they will come again."""
        if self._done and self._done[0].generation != self._database.generation:
            self._ticking, self._tick_failed = None, False
            with self._lock:
                self._done = [done for done in self._done if done.generation == self._database.generation]

    def _begin_tick(self) -> None:
        """Hand over all that counts as done to the writer."""
        group = [*self._done]
        self._ticking = self._tick(group, lambda cursor: [done for done in group if done.last > cursor]), len(group)
        self._tick_at = time.monotonic() + _BETWEEN_TICKS

    def _end_tick(self) -> None:
        """Wait until what was handed over is on disk."""
        if self._ticking is None:
            return
        (ticking, number), self._ticking, self._tick_failed = self._ticking, None, True
        ticking.result()
        self._tick_failed = False
        with self._lock:
            del self._done[:number]

    def _tick(
        self,
        group: Sequence[_Done],
        remaining: Callable[[int], Sequence[_Done]],
        dead_letters: Sequence[DeadLetter] = (),
    ) -> Future[tuple[int, int]]:
        """Tick off records on disk, and keep their dead letters.

        Args:
            group: The records, in order.
            remaining: Returns those of them behind the cursor on disk. A commit that was reported as failed may have
                reached the disk, and then some of these were read once more.
            dead_letters: Are not kept if no record remains.
        """

        def work(connection: sqlite3.Connection) -> tuple[int, int]:
            if group[0].generation != self._database.generation:
                raise StorageError(_SET_ASIDE)
            stored = store.cursor_and_waiting(connection, self.id)
            rest = group if stored is None else remaining(stored[0])  # None: removed by command
            records, size = sum(done.count for done in rest), sum(done.size for done in rest)
            if rest and stored is not None:
                for dead_letter in dead_letters:
                    store.add_dead_letter(connection, dead_letter, self._database.now_ms())
                store.advance(connection, self.id, cursor=rest[-1].last, records=records, size=size)
            return records, size

        def count(ticked_off: tuple[int, int]) -> None:
            records, size = ticked_off
            with self._lock:
                self.waiting, self.size = self.waiting - records, self.size - size
                for done in group:
                    self.waiting += done.ahead * done.count
                    self.size += done.ahead * done.size
                    done.ahead = False
                self.position = max(self.position, group[-1].last)
            for dead_letter in dead_letters if records else ():
                _telemetry.dead_letters.add(1, dead_letter.kind, self.name)

        return self._database.writer.submit(work, count)

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
