"""Group commit: one thread runs all writes to the database, in shared transactions on one connection.

Whoever has something to write hands over a function and waits for its future. Functions that wait together share one
transaction, and so one fsync. A lone one does not wait for others, but after a commit of several the next one waits a
moment for as many. A future is answered after the commit, never before.

After an error the connection is closed and all of the transaction is refused, since nobody can know whether a failed
commit has reached the disk. The file is opened and checked again before anything else is acknowledged. A file that is
found damaged twice is set aside, and what waits is written to a new one.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from statsig_otel._futures import uncancellable
from statsig_otel._instruments import collecting
from statsig_otel._process import OwnerProcess
from statsig_otel._telemetry import commit_duration, commit_size
from statsig_otel.exporters.queue import open_files, schema
from statsig_otel.exporters.queue.errors import DamagedError, NotRunningError, QueueError, StorageError
from statsig_otel.exporters.queue.jobs import Bulk, BulkResult, Job, Work, attempt_all, transact
from statsig_otel.exporters.queue.open_files import OpenFiles

_logger: Final = logging.getLogger(__name__)

_T = TypeVar("_T")
_I = TypeVar("_I")

_MOST_AT_ONCE: Final = 1024
"""The largest number of jobs that share a transaction. It limits how long the first of them waits."""

_IDLE: Final = 1.0
"""Seconds after which an idle writer tidies up, and tries again what has failed."""

_SURE: Final = 2
"""Consecutive findings of damage after which the file is set aside. It is reopened between them."""

_GATHERING: Final = 0.002
"""The most seconds for which a commit waits until there are as many items as in the last one."""

_QUIET: Final = 0.05
"""As `_IDLE`, while there is more to tidy up: a sender that delivers a backlog submits a job every few milliseconds."""

_BETWEEN_LAST_TRIES: Final = 0.1
"""Seconds between attempts to keep the content of a deleted file at the end, when it would be lost."""

_TIDYING_SHARE: Final = 30
"""A busy writer tidies up for one thirtieth of its time: deleting costs an fsync, and all jobs wait for it."""


def _write_again(connection: sqlite3.Connection, items: Sequence[None]) -> Sequence[None]:
    """Write what is on the first page already. SQLite writes this number also if it is the same."""
    connection.execute(f"PRAGMA user_version = {schema.pragma(connection, 'user_version')}")
    return items


_TRY: Final = Job(Bulk(_write_again, lambda _: None, lambda *_: None), None)


class Writer:
    """Runs functions on the writing connection, in order, in shared transactions.

    Args:
        path: The database file.
        prepare: Run on every connection that is opened, before anything else: checks the content.
        tidy: Deletes what is delivered, in a transaction of its own, after others and when idle, which it is told.
            Returns whether there is more to delete at once.
        set_aside: Run with the error when the file is damaged and closed; then another one is begun. Without it nothing
            more is written.
        files: Keeps what is committed when somebody deletes, replaces or shortens the file or its log.
        free_space: Run when the disk is full; whether there is more space now, so that it is worth another attempt.
        failed: Run if the thread ends by an error that nothing here expects.

    Attributes:
        failing: Whether the last attempt to write failed.
        has_lost: Whether it ended without the content of a file that somebody had deleted, or by an unexpected error.
    """

    def __init__(
        self,
        path: Path,
        *,
        prepare: Work[None],
        tidy: Callable[[sqlite3.Connection, bool], bool],
        set_aside: Callable[[Exception], object] | None = None,
        files: OpenFiles | None = None,
        free_space: Callable[[], bool] = lambda: False,
        failed: Callable[[QueueError], None] = lambda _: None,
    ) -> None:
        self.failing: bool = False
        self.has_lost: bool = False
        self._path = path
        self._prepare = prepare
        self._tidy = tidy
        self._set_aside = set_aside
        self._files = files
        self._free_space = free_space
        self._failed = failed
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()  # after an interrupted `join`, Python 3.11 considers a running thread ended
        self._lock = threading.Lock()  # so that a job is queued before the end, or refused
        self._accepting = False
        self._connection: sqlite3.Connection | None = None
        self._untidy = False
        self._untidy_damage: list[Exception] = []  # found while tidying up, in a row
        self._unfolded = True
        self._tidy_at = 0.0  # by the monotonic clock
        self._keep_until = 0.0  # by the monotonic clock
        self._owner = OwnerProcess()

    def start(self, *, later: Callable[[Exception], bool] = lambda _: False) -> None:
        """Open the file, in the writer's thread. Whatever ends the wait for it also ends the writer.

        Args:
            later: Whether an error will pass while the writer runs: it tries again once a second, and for each job.

        Raises:
            DamagedError: The file is damaged.
            sqlite3.Error: The file can't be opened now.
            OSError: The file can't be created.
            QueueError: The file is not for this version.
            RuntimeError: No thread can be started.
        """
        self.stop()  # a second Ctrl-C can have left a thread behind that was told to end
        self._jobs, self._ended = SimpleQueue(), threading.Event()  # what ended that thread would end this one
        self._owner.enter()
        opened: Future[None] = Future()
        thread = threading.Thread(target=self._run, args=(opened, self._ended, later), name="queue writer", daemon=True)
        try:
            thread.start()
            self._thread = thread  # not before it runs: `stop` waits for its end
            opened.result()
            with self._lock:
                self._accepting = True
        except BaseException:  # also a Ctrl-C or a test's timeout
            if not opened.cancel():  # it has begun, and would wait for jobs for ever
                self._thread = thread
                self.stop()
            raise

    def submit(self, work: Work[_T], then: Callable[[_T], None] | None = None) -> Future[_T]:
        """Hand over a function; its future has the returned value once that is committed.

        The future fails with `StorageError` if nothing was stored, with `NotRunningError` after the end, and with what
        the function itself raised; then only this function is undone. A function may run again if the file turns out to
        be damaged.

        Args:
            work: The function.
            then: Run with the result after the commit and before the future is answered, in the writer's thread.

        Raises:
            RuntimeError: In a forked child.
        """
        future: Future[_T] = uncancellable()

        def answer(_: None, result: Any, failure: Exception | None) -> None:
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

        alone: Bulk[None, _T] = Bulk(
            lambda connection, _: [work(connection)],
            lambda results: then(results[0]) if then is not None else None,
            answer,
        )
        self.submit_in_bulk(alone, None)
        return future

    def submit_in_bulk(self, bulk: Bulk[_I, _T], item: _I) -> None:
        """Hand over an item; `bulk` works at once on all of its items that wait together.

        Then it answers the item in the writer's thread: with the result once that is committed, or with one of the
        errors of `submit`. If the writer does not run, it answers at once.

        Raises:
            RuntimeError: In a forked child.
        """
        self.check_process()
        with self._lock:
            accepting = self._accepting
            if accepting:
                self._jobs.put(Job(bulk, item))
        if not accepting:
            bulk.answer(item, None, NotRunningError("the queue is not running"))

    def check_process(self) -> None:
        """Raise a RuntimeError in a forked child, which does not have the writer's thread."""
        if self._owner.is_forked:
            raise RuntimeError(f"this queue was started by the process {self._owner.pid}: start one after the fork")

    def stop(self, patience: float = 0.0) -> None:
        """Finish what was handed over, and close the file. Safe to call twice.

        Args:
            patience: Seconds to go on trying to keep the content of a file that somebody deleted: it ends with this.
        """
        if not self._owner.is_current:
            return  # never started, or a forked child
        self._keep_until = time.monotonic() + patience
        with self._lock:
            self._accepting = False
            self._jobs.put(None)  # also if it does not accept jobs yet: else the thread never ends
        thread = self._thread
        if thread is not None:
            self._ended.wait()
            thread.join()
            self._thread = None

    def _run(self, opened: Future[None], ended: threading.Event, later: Callable[[Exception], bool]) -> None:
        try:
            if opened.set_running_or_notify_cancel() and self._start(opened, later):  # else it was interrupted
                self._work()
        except BaseException as error:
            _logger.exception("The queue's writer has failed: nothing more is acknowledged or delivered")
            self._end_by(QueueError(f"the queue's writer ended by an unexpected error: {error!r}"))
        finally:
            self._close()
            ended.set()

    def _end_by(self, error: QueueError) -> None:
        """Refuse everything from now on, and let others end what is of no use any more."""
        self.has_lost = True
        with self._lock:
            self._accepting = False
        with contextlib.suppress(Empty):
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    job.bulk.answer(job.item, None, NotRunningError("the queue has failed"))
        self._failed(error)

    def _start(self, opened: Future[None], later: Callable[[Exception], bool]) -> bool:
        try:
            self._open()
        except BaseException as error:  # noqa: BLE001 - given to the thread that waits
            if not isinstance(error, Exception) or not later(error):
                opened.set_exception(error)
                return False
            self._say_failing(error)
        opened.set_result(None)
        return True

    def _work(self) -> None:
        running, more, expected = True, False, 0
        while running:
            jobs, running = self._next_jobs(wait=_QUIET if more else _IDLE, expected=expected)
            # Whoever is told that nothing can be written sends nothing any more that would show when it can be again.
            self._write(jobs or ([_TRY] if running and self.failing else []))
            expected = sum(job.item is not None for job in jobs)
            if not jobs or time.monotonic() >= self._tidy_at:
                more = self._tidy_up(idle=not jobs)
        self._keep_files_at_the_end()

    def _next_jobs(self, wait: float, expected: int) -> tuple[list[Job], bool]:
        """The jobs that wait, and whether to go on after them.

        Args:
            wait: Seconds to wait for the first one.
            expected: How many the next commit should have. Clients that were answered together come again together, and
                to store them together costs less than a commit for each.
        """
        jobs: list[Job] = []
        try:
            job = self._jobs.get(timeout=wait)
            latest = time.monotonic() + _GATHERING
            while job is not None:
                jobs.append(job)
                if len(jobs) == _MOST_AT_ONCE:
                    return jobs, True
                rest = latest - time.monotonic() if len(jobs) < expected else 0.0
                job = self._jobs.get(timeout=max(0.0, rest))
        except Empty:
            return jobs, True
        return jobs, False

    def _write(self, jobs: list[Job]) -> None:
        """Run jobs in one transaction, and answer them."""
        if not jobs:
            return
        began = time.perf_counter() if collecting.has_begun else 0.0
        try:
            outcome = self._commit(jobs)
        except BaseException as unexpected:  # it ends this thread
            for job in jobs:
                job.bulk.answer(job.item, None, StorageError(str(unexpected)))
            raise
        if isinstance(outcome, Exception):
            for job in jobs:
                error = StorageError(schema.reason(outcome), is_disk_full=schema.is_disk_full(outcome))
                job.bulk.answer(job.item, None, error)
            return
        if began:
            commit_duration.record(time.perf_counter() - began, {})
            commit_size.record(len(jobs), {})
        self._count(outcome)
        for done in outcome:
            for job, result in zip(done.jobs, done.results, strict=True):
                job.bulk.answer(job.item, result, done.failure)

    def _count(self, outcome: Iterable[BulkResult]) -> None:
        """Run `then` of the jobs. If they wrote to a file that is gone, the counts of the new one follow."""
        for done in outcome:
            if done.failure is None:
                try:
                    done.jobs[0].bulk.then(done.results)
                except Exception:  # it is on disk, and without this thread nobody would ever be answered again
                    _logger.exception("What was stored could not be counted")
        if self._connection is None:
            try:
                self._open()
            except Exception as error:  # noqa: BLE001 - logged; the next job opens it again
                self._fail(error)

    def _commit(self, jobs: list[Job]) -> list[BulkResult] | Exception:
        """The jobs' results and errors, once all is on disk; or the one error if nothing is."""
        damage: list[Exception] = []
        while True:
            try:
                if (not_kept := self._keep_files(after_writing=False)) is not None:
                    return not_kept
                if len(damage) == _SURE and self._set_aside is not None:
                    self._close()
                    self._set_aside(damage[-1])
                connection = self._open()
                connection.execute("BEGIN IMMEDIATE")
                outcome = list(attempt_all(connection, jobs))
                connection.execute("COMMIT")
                self._unfolded = True
                not_kept = self._keep_files(after_writing=True)
            except Exception as error:  # noqa: BLE001 - given to all who wait
                self._give_up_connection()
                if schema.is_disk_full(error) and self._free_space():
                    continue
                self._say_failing(error)
                if not schema.is_damage(error) or len(damage) == _SURE:
                    return error
                damage.append(error)
            else:
                if not_kept is not None:
                    return not_kept
                self._succeed()
                return outcome

    def _keep_files(self, *, after_writing: bool) -> Exception | None:
        """Keep what is committed if somebody has changed the files; the error if that fails.

        After a restart nobody could find it. Then another connection has to be opened.

        Raises:
            DamagedError: What was just written may be lost. The file is set aside, and another one has to be begun.
        """
        if self._files is None:
            return None
        while True:
            try:
                while self._files.keep(self._connection, after_writing=after_writing):
                    self._connection = None
            except DamagedError:
                self._connection = None
                raise
            except (QueueError, sqlite3.Error, OSError) as error:
                if schema.is_disk_full(error) and self._free_space():
                    continue
                self._say_failing(error)  # the connection stays open: its content would end with it
                return error
            return None

    def _keep_files_at_the_end(self) -> None:
        if self._files is None or self._connection is None:
            return
        try:
            while self._keep_files(after_writing=False) is not None:
                if not self._holds_changed_file():
                    return
                if time.monotonic() >= self._keep_until:
                    self.has_lost = True
                    return
                time.sleep(_BETWEEN_LAST_TRIES)
            self._open()  # a start expects a database where one was closed in order
        except Exception as error:  # noqa: BLE001 - logged; the next start finds what is kept
            self._fail(error)

    def _tidy_up(self, *, idle: bool) -> bool:
        if self._keep_files(after_writing=False) is not None:
            self._tidy_at = time.monotonic() + _IDLE
            return False
        began = time.monotonic()
        try:
            if len(self._untidy_damage) == _SURE and self._set_aside is not None:
                self._close()
                self._set_aside(self._untidy_damage[-1])
            more = transact(self._open(), lambda connection: self._tidy(connection, idle))
            if self._keep_files(after_writing=True) is None and idle and not more and self._unfolded:
                connection = self._open()
                if open_files.fold(connection) and self._files is not None:
                    self._files.folded(connection)
                self._unfolded = False
        except Exception as error:  # noqa: BLE001 - logged, and tried again later
            self._give_up_connection()
            if schema.is_disk_full(error) and self._free_space():
                return True
            self._untidy_damage = [*self._untidy_damage, error][-_SURE:] if schema.is_damage(error) else []
            # What is delivered stays on the disk for longer. That is not a reason to refuse anything.
            if not self._untidy and not self.failing:
                self._untidy = True
                _logger.error("The disk space of delivered records can't be freed now: %s", error)
            self._tidy_at = time.monotonic() + _IDLE
            return False
        self._untidy_damage = []
        if self._untidy:
            self._untidy = False
            _logger.warning("The disk space of delivered records is freed again")
        ended = time.monotonic()
        self._tidy_at = ended + (ended - began) * (_TIDYING_SHARE - 1)
        self._unfolded |= more
        return more

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._files is not None:
                self._files.opening()
            connection = schema.connect(self._path)
            with schema.opening(self._path, connection):
                if self._files is not None:
                    self._files.opened(connection)
                transact(connection, self._prepare)
            self._connection = connection
            if self._files is not None:
                self._files.written(connection)
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            open_files.close(connection)

    def _fail(self, error: Exception) -> None:
        self._give_up_connection()
        self._say_failing(error)

    def _holds_changed_file(self) -> bool:
        """Whether somebody changed a file that the connection has open: its content could end with it."""
        connection = self._connection
        return self._files is not None and connection is not None and not self._files.are_whole(connection)

    def _give_up_connection(self) -> None:
        """Close the connection after an error, unless it holds a file that somebody changed."""
        connection = self._connection
        if connection is not None and self._holds_changed_file():
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except sqlite3.Error:
                _logger.exception("The queue's file can't be rolled back")
        else:
            if connection is not None and self._files is not None:
                self._files.hold()
            self._close()

    def _say_failing(self, error: Exception) -> None:
        if not self.failing:
            self.failing = True
            _logger.error("The queue can't be written; nothing is acknowledged until it can: %s", schema.reason(error))

    def _succeed(self) -> None:
        if self.failing:
            self.failing = False
            _logger.warning("The queue can be written again")
