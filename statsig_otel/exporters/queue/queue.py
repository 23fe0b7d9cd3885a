"""The durable queue: a consumer that has a batch once it is on disk, and what each exporter's sender reads from."""

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from statsig_otel import _telemetry
from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError
from statsig_otel.exporters.queue import schema, store
from statsig_otel.exporters.queue.backlog import oldest_observed_ns
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.salvage import Salvager
from statsig_otel.exporters.queue.session import Session
from statsig_otel.exporters.queue.store import Appended, DeadLetter, ExporterState, Stored
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
            self._directory.database,
            prepare=self._prepare,
            tidy=self._tidy,
            set_aside=self._set_aside,
            rescue=self._rescue,
        )
        self._session = Session(self._directory, self._writer)
        self._salvager = Salvager(
            self._directory,
            self.submit,
            now_ms=self.now_ms,
            receivers={name: receiver.exporters for name, receiver in receivers.items()},
            min_free_bytes=min_free_bytes,
        )
        self._lanes = {name: Lane(self, name) for name in exporters}
        self._routes: dict[str, int] = {}
        self._pid = 0
        self._generation = 0
        self._bodies_full = False

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
        self._session.open(set_aside=self._set_aside)
        if self._session.log_was_missing:
            _logger.error(
                "%s: the queue was not closed in order and its log (queue.db-wal) is gone: "
                "what was acknowledged last may be lost",
                self._directory.path,
            )
        self._pid = os.getpid()
        self._salvager.start()
        _telemetry.queues.add(self)

    def shutdown(self) -> None:
        """Finish what is being written, and leave the directory in order. Safe to call twice."""
        if not self._pid or self._pid != os.getpid():
            return  # never started; or a forked child, which owns nothing
        self._pid = 0
        _telemetry.queues.discard(self)
        self._salvager.stop()
        self._session.close()

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Store a batch. Its future has the receipt once it is on disk.

        Raises:
            RuntimeError: In a forked child: the queue belongs to the process that started it.
        """
        self._writer.check_process()
        answer: Future[Receipt] = Future()
        answer.set_running_or_notify_cancel()
        receiver = self._receivers[batch.receiver]

        def refuse(refusal: RefusedError) -> None:
            records = sum(len(change.records) for change in batch.changes)
            for name in receiver.exporters:
                _telemetry.exporter_enqueue_failed.add(records, {"exporter": name})
            answer.set_exception(refusal)

        def done(stored: Future[Appended]) -> None:
            error = stored.exception()
            if error is None:
                answer.set_result(stored.result().receipt)
            else:
                refuse(_refusal(error))

        try:
            self._check_size(receiver, lambda lane: lane.waiting)
            self._check_disk()
        except RefusedError as refusal:
            refuse(refusal)
        else:
            append = partial(self._append, batch, receiver, self.now_ms())
            self._writer.submit(append, partial(self._count, batch, receiver)).add_done_callback(done)
        return answer

    def _append(self, batch: Batch, receiver: QueuedReceiver, now_ms: int, connection: sqlite3.Connection) -> Appended:
        route, window_ms = self._routes[batch.receiver], int(receiver.window * 1000)
        appended = store.append_batch(connection, batch, route=route, now_ms=now_ms, window_ms=window_ms)
        if appended.records:
            # Once more, where all before it are counted: many can pass the first check at the same time.
            self._check_size(receiver, lambda lane: store.waiting_of(connection, lane.id))
            lanes = [self._lanes[name].id for name in receiver.exporters]
            store.add_waiting(connection, lanes, appended.records, appended.size)
        return appended

    def _count(self, batch: Batch, receiver: QueuedReceiver, appended: Appended) -> None:
        if appended.records:
            for name in receiver.exporters:
                self._lanes[name].added(appended.records)
        if batch.invalid:
            self._count_invalid(batch, appended)

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

    def sizes(self) -> dict[str, int]:
        """How many records wait, by exporter."""
        return {name: lane.waiting for name, lane in self._lanes.items()}

    def capacities(self) -> dict[str, int]:
        """How many records may wait, by exporter; nothing for one that only the disk bounds."""
        return {name: one.queue_size for name, one in self._exporters.items() if one.queue_size is not None}

    def ages(self) -> dict[str, float]:
        """Seconds since the first record that waits was observed, by exporter; nothing where none waits."""
        now_ns = self.now_ms() * 1_000_000
        try:
            with contextlib.closing(schema.connect_reading(self.database)) as connection:
                found = {
                    place.name: oldest_observed_ns(connection, place)
                    for place in store.exporter_states(connection)
                    if place.name in self._lanes
                }
        except sqlite3.Error:
            return {}  # whoever needs the file says so
        return {name: max(now_ns - observed, 0) / 1e9 for name, observed in found.items() if observed is not None}

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
        self._begin_anew()
        _logger.error(
            "The queue's database can't be read (%s). It is kept as %s, and a new one is begun: "
            "what can still be read of it will be carried over",
            error,
            aside,
        )

    def _rescue(self, connection: sqlite3.Connection) -> None:
        """Write a database that is in its place no more, but still open, to a file that is set aside."""
        self._directory.reclaim()
        aside = self._directory.place_aside()
        with contextlib.closing(schema.create(aside)) as copy:
            connection.backup(copy)
        self._begin_anew()
        _logger.error(
            "Somebody deleted or replaced %s while it was in use. What it held is kept as %s, and will be carried over",
            self._directory.database,
            aside,
        )

    def _begin_anew(self) -> None:
        self._generation += 1
        _telemetry.queue_set_aside.add(1)
        self._salvager.look()

    def _count_invalid(self, batch: Batch, appended: Appended) -> None:
        left_out = appended.bodies_left_out
        for kind, number in (
            ("item", sum(not invalid.whole_body for invalid in batch.invalid)),
            ("body", sum(invalid.whole_body for invalid in batch.invalid) - left_out),
        ):
            if number:
                _telemetry.dead_letters.add(number, {"kind": kind, "owner": batch.receiver})
        if left_out and not self._bodies_full:
            _logger.error(
                "%s: verified bodies of an unknown format are no longer kept: there are %d of them, or %d bytes, among "
                "the dead letters. Replay or drop them: statsig-otel dead-letters list --kind body",
                batch.receiver,
                store.MOST_BODIES,
                store.MOST_BODY_BYTES,
            )
        self._bodies_full = bool(left_out)

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
