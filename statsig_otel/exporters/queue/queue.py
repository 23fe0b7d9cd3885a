"""The durable queue: a consumer that has a batch once it is on disk, and what each exporter's sender reads from."""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from statsig_otel import _telemetry
from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError
from statsig_otel.exporters.queue import schema, store
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.store import DeadLetter, ExporterState, Stored
from statsig_otel.exporters.queue.writer import NotRunningError, StorageError, Work, Writer

_logger: Final = logging.getLogger(__name__)

_T = TypeVar("_T")

DEFAULT_WINDOW: Final = 24 * 3600.0
"""Seconds for which a change that was seen is a duplicate."""

DEFAULT_MIN_FREE: Final = 256 << 20
"""Bytes of the disk that are left free: what was taken can still be delivered and ticked off."""

_RETRY_AFTER: Final = 10
_PAGES_AT_ONCE: Final = 256
_PAGES_WORTH_IT: Final = 1024


@dataclass(frozen=True, slots=True)
class QueuedReceiver:
    """What the queue has to know of a receiver.

    Attributes:
        exporters: The ids of the exporters that its records are for.
        window: Seconds for which a change that was seen is a duplicate; 0 for never.
    """

    exporters: tuple[str, ...]
    window: float = DEFAULT_WINDOW


@dataclass(frozen=True, slots=True)
class QueuedExporter:
    """What the queue has to know of an exporter.

    Attributes:
        queue_size: How many records may wait for it; None for what the disk holds.
        from_oldest: A new exporter begins at the oldest record that is there, not at the next.
    """

    queue_size: int | None = None
    from_oldest: bool = False


class DurableQueue:
    """Takes batches to disk, once, and keeps each record until every exporter of its receiver is done with it.

    Args:
        directory: The directory; this process owns it between `start` and `shutdown`.
        receivers: The receivers, by id.
        exporters: The exporters, by id.
        min_free_bytes: Refuse batches while the disk has less.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        directory: Path,
        *,
        receivers: Mapping[str, QueuedReceiver],
        exporters: Mapping[str, QueuedExporter],
        min_free_bytes: int = DEFAULT_MIN_FREE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = QueueDirectory(directory)
        self._receivers = dict(receivers)
        self._exporters = dict(exporters)
        self._min_free = min_free_bytes
        self._clock = clock
        self._writer = Writer(
            self._directory.database, prepare=self._prepare, tidy=self._tidy, set_aside=self._set_aside
        )
        self._lanes = {name: Lane(self, name) for name in exporters}
        self._routes: dict[str, int] = {}
        self._pid = 0
        self._generation = 0

    def start(self) -> None:
        """Own the directory, open the database, and know every exporter's place.

        A database that can't be read is set aside, never deleted, and said loudly; the queue starts with a new one.

        Raises:
            DirectoryInUseError: Another process owns the directory.
            NewerSchemaError: The database was written by a newer version.
            ForeignFileError: The file is another program's.
            OSError: The directory can't be made or written.
            sqlite3.OperationalError: The database can't be opened now.
        """
        self._directory.acquire()
        try:
            if self._directory.wal_is_missing():
                _logger.error(
                    "%s: the queue was not closed in order and its log (queue.db-wal) is gone: "
                    "what was acknowledged last may be lost",
                    self._directory.path,
                )
            try:
                self._writer.start()
            except schema.DamagedError as error:
                self._set_aside(error)
                self._writer.start()
            # Not before there is a log again, and before anything can be acknowledged.
            self._directory.mark(clean=False)
            self._directory.make_private()
        except BaseException:
            self._writer.stop()
            self._directory.release()
            raise
        self._pid = os.getpid()

    def shutdown(self) -> None:
        """Finish what is being written, and leave the directory in order. Safe to call twice."""
        if not self._pid or self._pid != os.getpid():
            return  # never started; or a forked child, which owns nothing
        self._pid = 0
        self._writer.stop()
        try:
            self._directory.mark(clean=True)
        except OSError as error:
            _logger.warning("%s: can't write down that the queue was closed in order: %s", self._directory.path, error)
        self._directory.release()

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Store a batch. Its future has the receipt once it is on disk.

        Raises:
            RuntimeError: In a forked child: the queue belongs to the process that started it.
        """
        self._writer.check_process()
        answer: Future[Receipt] = Future()
        answer.set_running_or_notify_cancel()
        receiver = self._receivers[batch.receiver]
        try:
            self._check_size(receiver, lambda lane: lane.waiting)
            self._check_disk()
        except RefusedError as refusal:
            answer.set_exception(refusal)
            return answer
        now_ms, window_ms = self.now_ms(), int(receiver.window * 1000)

        def work(connection: sqlite3.Connection) -> tuple[Receipt, int]:
            route = self._routes[batch.receiver]
            receipt, records, size = store.append_batch(
                connection, batch, route=route, now_ms=now_ms, window_ms=window_ms
            )
            if records:
                # Once more, where all before it are counted: many can pass the first check at the same time.
                self._check_size(receiver, lambda lane: store.waiting_of(connection, lane.id))
                lanes = [self._lanes[name].id for name in receiver.exporters]
                store.add_waiting(connection, lanes, records, size)
            return receipt, records

        def count(stored: tuple[Receipt, int]) -> None:
            if stored[1]:
                for name in receiver.exporters:
                    self._lanes[name].added(stored[1])
            for invalid in batch.invalid:
                kind = "body" if invalid.whole_body else "item"
                _telemetry.dead_letters.add(1, {"kind": kind, "owner": batch.receiver})

        def done(stored: Future[tuple[Receipt, int]]) -> None:
            error = stored.exception()
            if error is None:
                answer.set_result(stored.result()[0])
            else:
                answer.set_exception(_refusal(error))

        self._writer.submit(work, count).add_done_callback(done)
        return answer

    @property
    def database(self) -> Path:
        """The database file."""
        return self._directory.database

    @property
    def generation(self) -> int:
        """How many databases were set aside since the start."""
        return self._generation

    def check_process(self) -> None:
        """Refuse to work in a forked child.

        Raises:
            RuntimeError: This is one.
        """
        self._writer.check_process()

    def lane(self, exporter: str) -> "Lane":
        """What an exporter's sender reads and ticks off."""
        self.check_process()
        return self._lanes[exporter]

    def states(self) -> list[ExporterState]:
        """Every exporter's place, those that left the configuration too."""
        return self.submit(store.exporter_states).result()

    def forgotten_exporters(self) -> list[ExporterState]:
        """The exporters that the queue knows and the configuration does not."""
        return [state for state in self.states() if state.name not in self._exporters]

    def submit(self, work: Work[_T]) -> Future[_T]:
        """Run a function of `store` on the writing connection; its future has the result once that is committed.

        It may move an exporter's place, as a command does: the senders see it. For the rest see `Writer.submit`.
        """
        states: list[ExporterState] = []

        def work_and_look(connection: sqlite3.Connection) -> _T:
            result = work(connection)
            states[:] = store.exporter_states(connection)
            return result

        return self._writer.submit(work_and_look, lambda _: self._found(states))

    def finish(self, work: Work[_T], then: Callable[[_T], None]) -> Future[_T]:
        """For a `Lane`, which counts by itself: see `Writer.submit`."""
        return self._writer.submit(work, then)

    def now_ms(self) -> int:
        """The time now, in milliseconds since the epoch."""
        return int(self._clock() * 1000)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Look at the schema and at both ends, and find every exporter's place."""
        store.look(connection)
        numbers: dict[str, int] = {}
        for name, exporter in self._exporters.items():
            receivers = [one for one, receiver in self._receivers.items() if name in receiver.exporters]
            numbers[name] = store.ensure_exporter(
                connection, name, from_oldest=exporter.from_oldest, receivers=receivers
            )
            store.ensure_route(connection, [numbers[name]])  # for what is replayed for it alone
        self._routes = {
            name: store.ensure_route(connection, [numbers[exporter] for exporter in receiver.exporters], name)
            for name, receiver in self._receivers.items()
        }
        self._found(store.exporter_states(connection))

    def _found(self, states: Iterable[ExporterState]) -> None:
        for state in states:
            if state.name in self._lanes:
                self._lanes[state.name].found(state)

    def _set_aside(self, error: Exception) -> None:
        """Keep a damaged database under another name; senders that still read it can tick nothing off any more."""
        aside = self._directory.set_aside()
        self._generation += 1
        _telemetry.queue_set_aside.add(1)
        _logger.error(
            "The queue's database can't be read (%s). It is kept as %s, and a new one is begun: "
            "what was in it is not delivered",
            error,
            aside,
        )

    def _check_size(self, receiver: QueuedReceiver, waiting: Callable[["Lane"], int]) -> None:
        for name in receiver.exporters:
            most = self._exporters[name].queue_size
            if most is not None and waiting(self._lanes[name]) >= most:
                raise RefusedError(
                    f"the queue of {name} holds {most} records, its queue_size",
                    reason="queue_full",
                    retry_after=_RETRY_AFTER,
                )

    def _check_disk(self) -> None:
        try:
            free = self._directory.free_bytes()
        except OSError as error:
            raise RefusedError(str(error), reason="storage_failed", retry_after=_RETRY_AFTER) from error
        if free < self._min_free:
            message = f"the disk has {free} bytes left, less than min_free_bytes ({self._min_free})"
            raise RefusedError(message, reason="disk_full", retry_after=_RETRY_AFTER)

    def _tidy(self, connection: sqlite3.Connection) -> bool:
        deleted = store.collect(connection)
        longest = max((receiver.window for receiver in self._receivers.values()), default=0.0)
        deleted += store.forget(connection, self.now_ms() - int(longest * 1000))
        if deleted:
            return True
        # On a short disk every page counts: the space that is held back here could be what is missing for ever.
        enough = 1 if self._directory.free_bytes() < self._min_free else _PAGES_WORTH_IT
        if connection.execute("PRAGMA freelist_count").fetchone()[0] < enough:
            return False
        for _ in range(_PAGES_AT_ONCE):
            connection.execute("PRAGMA incremental_vacuum(1)")  # of more than one, the standard library does one only
        return True


class Lane:
    """One exporter's way through the queue. Its sender alone calls `read`, `finish` and `close`, from one thread.

    Attributes:
        name: The exporter's id.
        id: Its number in the database.
        waiting: How many records wait for it.
        cursor: The last seq that is done.
    """

    def __init__(self, queue: DurableQueue, name: str) -> None:
        self.name = name
        self.id = 0
        self.cursor = 0
        self.waiting = 0
        self._queue = queue
        self._more = threading.Event()
        self._lock = threading.Lock()  # over waiting
        self._reading: sqlite3.Connection | None = None
        self._generation = 0  # of the database that was read

    def found(self, state: ExporterState) -> None:
        """Take over what the database says. In the writer's thread."""
        with self._lock:
            self.id, self.cursor, self.waiting = state.id, state.cursor, state.waiting
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

        def look(connection: sqlite3.Connection) -> list[Stored]:
            with store.snapshot(connection):
                routes = store.routes_of(connection, self.id)  # a command can have added one
                return store.read_records(connection, routes, after=self.cursor, count=count, size=size)

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
        return self._queue.submit(
            lambda connection: store.find_records(
                connection, self.id, store.routes_of(connection, self.id), count=count, size=size
            )
        ).result()

    def finish(self, records: Sequence[Stored], letters: Sequence[DeadLetter] = ()) -> None:
        """Tick records off that were read, from the first on, and keep dead letters, in one transaction.

        Raises:
            StorageError: It could not be written down: the records will be read again.
            NotRunningError: The queue is stopped.
            RuntimeError: In a forked child.
        """
        if not records:
            return
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

        def count(done: tuple[int, int] | None) -> None:
            with self._lock:
                self.cursor, fewer = done or (records[-1].seq, len(records))
                self.waiting -= fewer
            for letter in letters if fewer else ():
                _telemetry.dead_letters.add(1, {"kind": letter.kind, "owner": self.name})

        self._queue.finish(work, count).result()

    def close(self) -> None:
        """Close what was opened for reading."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()


def _refusal(error: BaseException) -> RefusedError:
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, NotRunningError):
        return RefusedError(str(error), reason="shutting_down", retry_after=_RETRY_AFTER)
    if isinstance(error, StorageError):
        full = "full" in str(error)
        return RefusedError(str(error), reason="disk_full" if full else "storage_failed", retry_after=_RETRY_AFTER)
    return RefusedError(f"unexpected: {error!r}", reason="storage_failed", retry_after=_RETRY_AFTER)
