"""The durable queue: accepts a batch once it is on disk, and gives each exporter's sender a cursor to read from."""

import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from statsig_otel import _telemetry
from statsig_otel._process import OwnerProcess
from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError
from statsig_otel.exporters.paths import directory_option
from statsig_otel.exporters.queue import arrivals, dead_letters, queries, slices, store
from statsig_otel.exporters.queue.cursor import ExporterCursor
from statsig_otel.exporters.queue.database import Database
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.errors import NotRunningError, QueueError, StorageError
from statsig_otel.exporters.queue.jobs import Bulk, Work
from statsig_otel.exporters.queue.queries import ExporterState
from statsig_otel.exporters.queue.store import DeadLetterKind, PendingBatch
from statsig_otel.exporters.routing import CurrentRouting, QueuedExporter, Route, Routing
from statsig_otel.exporters.wording import counted

_logger: Final = logging.getLogger(__name__)

_T = TypeVar("_T")

DEFAULT_MIN_FREE: Final = 256 << 20
"""Bytes of the disk that stay free, so that what was accepted can still be delivered and ticked off."""

_BETWEEN_DISK_CHECKS: Final = 0.1
"""Seconds between two checks of the disk's free space."""

_SHARE_UNCHECKED: Final = 8
"""Between two checks at most one eighth of the free space is accepted: with the log, a batch takes several times its
size."""

_RouteIds: TypeAlias = dict[tuple[str, tuple[str, ...]], tuple[int, Sequence[int]]]
"""By receiver and exporters: the ids of their route and of these exporters in the database."""

_COUNTING_SHARE: Final = 30
"""Dead letters are counted for at most one thirtieth of the time."""

_PAGES_AT_ONCE: Final = 256
_PAGES_WORTH_IT: Final = 1024
_MISSING_FILE: Final = {
    "queue.db": "%s: a queue was here before, and its database (queue.db) is gone or empty: what waited in it is lost",
    "queue.db-wal": "%s: the queue was not closed in order and its log (queue.db-wal) is gone: "
    "what was acknowledged last may be lost",
}


class DurableQueue:
    """Takes batches to disk, once, and keeps each record until every exporter of its receiver is done with it.

    Args:
        directory: The directory; this process owns it between `start` and `shutdown`.
        routing: Which exporters the changes of each receiver are for.
        min_free_bytes: Refuse batches while the disk has less.
        clock: Seconds since the epoch.
        failed: Run, in another thread, with the error if the queue can't go on: it has to be started again.

    Attributes:
        directory: The directory.
        recovery_due: Set after a database was set aside or other exporters were configured: there may be something to
            recover, or somebody to recover it for.
        not_recovered: The files that this process has set aside, and that recovery has not finished.
    """

    def __init__(
        self,
        directory: Path,
        routing: CurrentRouting,
        *,
        min_free_bytes: int = DEFAULT_MIN_FREE,
        clock: Callable[[], float] = time.time,
        failed: Callable[[QueueError], None] = lambda _: None,
    ) -> None:
        self._database = Database(
            directory,
            prepare=self._prepare,
            tidy=self._tidy,
            replaces=True,
            min_free=min_free_bytes,
            clock=clock,
            failed=failed,
        )
        self.directory: QueueDirectory = self._database.directory
        self.recovery_due: threading.Event = self._database.recovery_due
        self.not_recovered: set[Path] = self._database.not_recovered
        self._routing = routing
        self._min_free = min_free_bytes
        self._appending = Bulk(self._append, self._count, _answer)
        self._cursors = {name: ExporterCursor(self._database, name) for name in routing.now.exporters}
        self._owner = OwnerProcess()
        self._smallest_left_out: int | None = None  # bytes of a whole body, while there is no room for it
        self._disk_checked_at, self._unchecked = 0.0, 0  # and the bytes that may come before the next check
        self._coming: Routing | None = None  # while `reconfigure` writes it down
        self._route_ids: _RouteIds = {}  # of the configured routes
        self._held: dict[tuple[str, str], int] = {}  # dead letters, and when they are counted again
        self._count_at = 0.0  # by the monotonic clock

    def start(self) -> None:
        """Own the directory and open the database. An unreadable one is set aside, and a new one is begun.

        Raises:
            QueueError: Another process owns the directory, or the file is not for this version.
            OSError: The directory can't be created or written.
            sqlite3.OperationalError: The database can't be opened now.
        """
        self._database.open()
        if (missing := self._database.missing_file) is not None:
            _logger.error(_MISSING_FILE[missing], self.directory.path)
        self._owner.enter()
        self._begin_counts()
        _telemetry.queues.add(self)

    def shutdown(self, patience: float = 0.0) -> bool:
        """Finish what is being written, and leave the directory in order. Safe to call twice.

        Args:
            patience: Seconds to go on trying to keep the content of a file that somebody deleted, if the disk is full.

        Returns:
            Whether everything that was stored is on disk.
        """
        if self._owner.is_current:  # else never started; or a forked child, which owns nothing
            self._owner.leave()
            _telemetry.queues.discard(self)
            self._database.close(patience=patience)
        return not self._database.writer.has_lost

    def reconfigure(self, routing: Routing) -> None:
        """Change to another routing. Stored records keep their exporters.

        A new exporter begins as after a start; one that is gone keeps its cursor.

        Raises:
            StorageError: It could not be stored, and nothing has changed.
            NotRunningError: The queue is not running.
        """

        def work(connection: sqlite3.Connection) -> tuple[_RouteIds, list[ExporterState]]:
            self._route_ids = {}  # some are about to change; batches behind this look them up until it is on disk
            store.forget_routes(connection)
            return _ensure_routing(connection, routing, self.now_ms()), queries.exporter_states(connection)

        def switch(result: tuple[_RouteIds, list[ExporterState]]) -> None:
            self._route_ids, states = result
            self._routing.now, self._coming = routing, None
            before = self._cursors
            self._cursors = {
                name: before.get(name) or ExporterCursor(self._database, name) for name in routing.exporters
            }
            self._update_cursors(states)
            self._begin_counts()

        # In the writer's thread, so that no batch is stored in between.
        self._coming = routing
        try:
            self._database.writer.submit(work, switch).result()
        finally:
            self._coming = None
        self.recovery_due.set()

    @property
    def routing(self) -> Routing:
        """Which exporters the changes of each receiver are for, as configured now."""
        return self._routing.now

    def serves(self, exporter: str) -> bool:
        """Whether an exporter is configured, or is about to be."""
        coming = self._coming
        return exporter in self.routing.exporters or (coming is not None and exporter in coming.exporters)

    def consume(self, batch: Batch, route: Route) -> Future[Receipt]:
        """Store a batch, a large one in slices. Its future has the receipt once all of it is on disk.

        Args:
            batch: The batch.
            route: The receiver's route when the batch arrived, with at least one queued exporter. It counts even if the
                configuration has changed since: synchronous exporters may have used it.

        Raises:
            RuntimeError: In a forked child: the queue belongs to the process that started it.
        """
        self._database.writer.check_process()
        return slices.store(batch, lambda part: self._store(PendingBatch(part, route)))

    def _store(self, pending: PendingBatch) -> Future[Receipt]:
        try:
            self._check(pending)
        except RefusedError as refusal:
            _answer(pending, None, refusal)
        else:
            self._database.writer.submit_in_bulk(self._appending, pending)
        return pending.answer

    def _append(self, connection: sqlite3.Connection, batches: Sequence[PendingBatch]) -> Sequence[PendingBatch]:
        """Store batches, or none of them if one is refused."""
        for pending in batches:
            key = pending.batch.receiver, pending.route.queued
            pending.route_id, pending.exporter_ids = self._route_ids.get(key) or _ensure_route(connection, *key)
        for pending, stored in zip(
            batches, store.append_batches(connection, batches, now_ms=self.now_ms()), strict=True
        ):
            pending.stored = stored
        self._add_waiting(connection, batches)
        return batches

    def _add_waiting(self, connection: sqlite3.Connection, batches: Sequence[PendingBatch]) -> None:
        records: Counter[int] = Counter()
        size: Counter[int] = Counter()

        def waiting(cursor: ExporterCursor) -> tuple[int, int]:
            _, stored, stored_size = store.cursor_and_waiting(connection, cursor.id) or (0, 0, 0)
            return stored + records[cursor.id], stored_size + size[cursor.id]

        for pending in batches:
            if pending.stored.records:
                # Once more, with all earlier ones counted: many can pass the first check at the same time.
                self._check_size(pending, waiting)
            for exporter_id in pending.exporter_ids:
                records[exporter_id] += pending.stored.records
                size[exporter_id] += pending.stored.size
        for exporter_id, count in records.items():
            if count:
                store.add_waiting(connection, [exporter_id], count, size[exporter_id])

    def _count(self, batches: Sequence[PendingBatch]) -> None:
        records: Counter[str] = Counter()
        size: Counter[str] = Counter()
        for pending in batches:
            for name in pending.route.queued:
                records[name] += pending.stored.records
                size[name] += pending.stored.size
            if pending.batch.invalid:
                self._count_invalid(pending.batch, pending.stored.bodies_left_out)
        for name, count in records.items():
            if count and name in self._cursors:  # it may just have left
                self._cursors[name].add(count, size[name])

    @property
    def database(self) -> Path:
        """The database file."""
        return self._database.path

    def cursor(self, exporter: str) -> ExporterCursor:
        """The cursor of a configured exporter."""
        self._database.writer.check_process()
        return self._cursors[exporter]

    def states(self) -> list[ExporterState]:
        """The state of every exporter, also of those that left the configuration."""
        return self.submit(queries.exporter_states).result()

    def sizes(self) -> dict[str, int]:
        """The number of waiting records, by configured exporter."""
        return {name: cursor.waiting for name, cursor in self._cursors.items()}

    def waiting(self) -> dict[str, int]:
        """The number of waiting records, by exporter, also of those that left the configuration while some wait."""
        states: list[ExporterState] = queries.read(self.database, queries.exporter_states, [])
        return {**{one.name: one.waiting for one in states if one.waiting > 0}, **self.sizes()}

    def capacities(self) -> dict[str, int]:
        """The largest number of waiting records, by exporter; without those that the disk or a size in bytes limits."""
        exporters = self.routing.exporters.items()
        return {name: one.queue_size for name, one in exporters if one.queue_size is not None and not one.counts_bytes}

    def ages(self) -> dict[str, float]:
        """Seconds since the first waiting record was observed, by exporter; without those for which none waits."""
        now_ns = self.now_ms() * 1_000_000

        def look(connection: sqlite3.Connection) -> dict[str, float]:
            return {
                state.name: max(now_ns - observed_ns, 0) / 1e9
                for state in queries.exporter_states(connection)
                if (observed_ns := queries.oldest_observed_ns(connection, state)) is not None
            }

        return queries.read(self.database, look, {})

    def dead_letters(self) -> dict[tuple[str, str], int]:
        """The number of dead letters that are kept, by kind and owner.

        To count a million of them takes a second, so the last result stays for thirty times as long as that.
        """
        began = time.monotonic()
        if began >= self._count_at:
            if (found := queries.read(self.database, dead_letters.kept, None)) is None:
                return {}
            none: dict[tuple[str, str], int] = dict.fromkeys(self._owners_of_dead_letters(), 0)
            self._held, ended = {**none, **found}, time.monotonic()
            self._count_at = ended + (ended - began) * _COUNTING_SHARE
        return self._held

    def disk(self) -> dict[str, tuple[int, int]]:
        """By directory the free bytes of its disk, and `min_free_bytes`; none if the system does not tell."""
        try:
            return {str(self.directory.path): (self.directory.reserve.free_bytes(), self._min_free)}
        except OSError:
            return {}

    def _owners_of_dead_letters(self) -> list[tuple[DeadLetterKind, str]]:
        """Each kind with each receiver or exporter that can have one."""
        routing = self.routing
        owners = [(kind, name) for kind in dead_letters.FROM_RECEIVER for name in routing.receivers]
        return owners + [(kind, name) for kind in dead_letters.FROM_EXPORTER for name in routing.exporters]

    def _begin_counts(self) -> None:
        """Let the counts of all receivers and exporters begin at 0."""
        _telemetry.queue_set_aside.add(0)
        for kind, owner in self._owners_of_dead_letters():
            _telemetry.dead_letters.add(0, kind, owner)
        for name in self.routing.exporters:
            _telemetry.exporter_enqueue_failed.add(0, name)
            _telemetry.queue_recovered.add(0, name)

    def unconfigured_exporters(self) -> list[ExporterState]:
        """The exporters that are in the queue and not in the configuration; none while it can't be opened."""
        try:
            return [state for state in self.states() if state.name not in self.routing.exporters]
        except StorageError:
            return []

    def submit(self, work: Work[_T]) -> Future[_T]:
        """Run a function on the writing connection; its future has the result once that is committed.

        It may move cursors, as a command does: the senders see it. For the rest see `Writer.submit`.
        """
        states: list[ExporterState] = []

        def work_and_read(connection: sqlite3.Connection) -> _T:
            result = work(connection)
            states[:] = queries.exporter_states(connection)
            return result

        return self._database.writer.submit(work_and_read, lambda _: self._update_cursors(states))

    def spare_bytes(self) -> int:
        """The free bytes of the disk above `min_free_bytes`; negative if it has less."""
        return self.directory.reserve.free_bytes() - self._min_free

    def now_ms(self) -> int:
        """The time now, in milliseconds since the epoch."""
        return self._database.now_ms()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Give every exporter and route its row in a database that was just opened, and read every exporter's state."""
        self._route_ids = _ensure_routing(connection, self.routing, self.now_ms())
        self._update_cursors(queries.exporter_states(connection))

    def _update_cursors(self, states: Iterable[ExporterState]) -> None:
        for state in states:
            if state.name in self._cursors:
                self._cursors[state.name].update(state)

    def _count_invalid(self, batch: Batch, left_out: int) -> None:
        bodies = [len(invalid.text) for invalid in batch.invalid if invalid.whole_body]
        for kind, number in (("item", len(batch.invalid) - len(bodies)), ("body", len(bodies) - left_out)):
            if number:
                _telemetry.dead_letters.add(number, kind, batch.receiver)
        smallest = self._smallest_left_out
        if not left_out:
            if smallest is not None and any(size >= smallest for size in bodies):
                self._smallest_left_out = None  # somebody has made room
            return
        self._smallest_left_out = min(bodies) if smallest is None else min(smallest, *bodies)
        if smallest is None:
            _logger.error(
                "%s: verified bodies of an unknown format are no longer kept: there are %d of them, or %d bytes, among "
                "the dead letters. Replay or drop them: statsig-otel dead-letters list --kind body %s",
                batch.receiver,
                store.MOST_BODIES,
                store.MOST_BODY_BYTES,
                directory_option(self.directory.path),
            )

    def _check(self, pending: PendingBatch) -> None:
        """Refuse a batch that can't be stored now, as far as that is known without the database."""
        if pending.batch.changes or pending.batch.invalid:
            self._check_size(pending, lambda cursor: (cursor.waiting, cursor.size))
        self._check_disk(pending.batch)

    def _check_size(self, pending: PendingBatch, waiting: Callable[[ExporterCursor], tuple[int, int]]) -> None:
        exporters, cursors = self.routing.exporters, self._cursors
        for name in pending.route.queued:
            limit = exporters.get(name)  # it may just have left
            if limit is None or limit.queue_size is None or name not in cursors:
                continue
            if (message := _too_many(name, limit, *waiting(cursors[name]))) is not None:
                raise RefusedError(message, reason="queue_full")

    def _check_disk(self, batch: Batch) -> None:
        now = time.monotonic()
        self._unchecked -= batch.size
        if self._unchecked > 0 and now < self._disk_checked_at + _BETWEEN_DISK_CHECKS:
            return
        try:
            free = self.directory.reserve.free_bytes()
        except OSError as error:
            raise RefusedError(str(error), reason="storage_failed") from error
        if (message := self._too_little(free)) is not None:
            raise RefusedError(message, reason="disk_full")
        self._disk_checked_at, self._unchecked = now, (free - self._min_free) // _SHARE_UNCHECKED

    def _too_little(self, free: int) -> str | None:
        """Why nothing can be stored with `free` bytes left; None if there is enough."""
        if free >= self._min_free:
            return None
        return f"the disk has {free} bytes left, less than min_free_bytes ({self._min_free})"

    def refusal_reasons(self) -> dict[str, str]:
        """Why batches are refused now: a sentence for each reason. For any thread, while the queue runs."""
        found: dict[str, str] = {}
        for name, cursor in list(self._cursors.items()):
            limit = self.routing.exporters.get(name)
            if limit is not None and (message := _too_many(name, limit, cursor.waiting, cursor.size)) is not None:
                found["queue_full"] = message
        try:
            message = self._too_little(self.directory.reserve.free_bytes())
        except OSError as error:
            found["storage_failed"] = str(error)
        else:
            if message is not None:
                found["disk_full"] = message
        if self._database.writer.failing:
            found.setdefault("storage_failed", "the queue's file can't be written")
        return found

    def _tidy(self, connection: sqlite3.Connection, idle: bool) -> bool:  # noqa: FBT001 - the writer's signature
        deleted = store.delete_done(connection)
        longest = max((route.window for route in self.routing.receivers.values() if route.queued), default=0.0)
        deleted += store.forget_seen(connection, self.now_ms() - int(longest * 1000))
        deleted += arrivals.forget(connection, self.routing.remembered, now_ms=self.now_ms())
        if deleted:
            return True
        # When the disk is nearly full, free every page: the queue might otherwise never get going again.
        is_short = self.spare_bytes() < 0
        if not idle and not is_short:
            return False  # a backlog that is being delivered will soon free the pages that this would move
        enough = 1 if is_short else _PAGES_WORTH_IT
        if connection.execute("PRAGMA freelist_count").fetchone()[0] < enough:
            return False
        for _ in range(_PAGES_AT_ONCE):
            connection.execute("PRAGMA incremental_vacuum(1)")  # of more than one, the standard library does one only
        return True


def _too_many(name: str, limit: QueuedExporter, records: int, size: int) -> str | None:
    """Why no more may wait for an exporter; None if more may."""
    if limit.queue_size is None or (size if limit.counts_bytes else records) < limit.queue_size:
        return None
    what = counted(limit.queue_size, "byte" if limit.counts_bytes else "record")
    return f"{what} or more wait for {name}: that is its queue_size"


def _ensure_routing(connection: sqlite3.Connection, routing: Routing, now_ms: int) -> _RouteIds:
    """Give every exporter and every route a row, if they have none; the ids of all."""
    arrivals.begin(connection, routing.remembered, now_ms=now_ms)
    for name, exporter in routing.exporters.items():
        receivers = [receiver for receiver, route in routing.receivers.items() if name in route.queued]
        exporter_id = store.ensure_exporter(connection, name, from_oldest=exporter.from_oldest, receivers=receivers)
        store.ensure_route(connection, [exporter_id])  # for records that are replayed for it alone
    keys = [(receiver, route.queued) for receiver, route in routing.receivers.items() if route.queued]
    return {key: _ensure_route(connection, *key) for key in keys}


def _ensure_route(connection: sqlite3.Connection, receiver: str, queued: Iterable[str]) -> tuple[int, Sequence[int]]:
    """The ids of a route and of its exporters."""
    exporter_ids = [store.ensure_exporter(connection, name) for name in queued]
    return store.ensure_route(connection, exporter_ids, receiver), exporter_ids


def _answer(pending: PendingBatch, _: PendingBatch | None, error: Exception | None) -> None:
    """Answer a batch that was stored, or refused with an error."""
    if error is None:
        pending.answer.set_result(pending.stored.receipt)
        return
    records = sum(len(change.records) for change in pending.batch.changes)
    for name in pending.route.queued:
        _telemetry.exporter_enqueue_failed.add(records, name)
    pending.answer.set_exception(_refusal(error))


def _refusal(error: Exception) -> RefusedError:
    match error:
        case RefusedError():
            return error
        case NotRunningError():
            return RefusedError(str(error), reason="shutting_down")
        case StorageError():
            return RefusedError(str(error), reason="disk_full" if error.is_disk_full else "storage_failed")
    return RefusedError(f"unexpected: {error!r}", reason="storage_failed")
