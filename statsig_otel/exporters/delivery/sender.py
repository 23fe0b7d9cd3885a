"""One exporter's sender: reads batches from the queue, sends them, and ticks off what is done.

It keeps the order, also when it halves a batch to find the record that a backend refuses. Nothing is dropped: a record
is delivered, or becomes a dead letter with its reason, or waits.
"""

import logging
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from statsig_otel._times import SEND_TIMEOUT, SENDER_GRACE
from statsig_otel.exporters.delivery.guarded import Guarded, count_sent
from statsig_otel.exporters.delivery.halving import Halving
from statsig_otel.exporters.delivery.retry import Backoff, RetrySettings
from statsig_otel.exporters.exporter import (
    Blocked,
    Delivered,
    Exporter,
    Outcome,
    PartiallyRejected,
    Rejected,
    RetryLater,
)
from statsig_otel.exporters.queue.cursor import ExporterCursor
from statsig_otel.exporters.queue.records import Records
from statsig_otel.exporters.queue.store import DAMAGED, DeadLetter, DeadLetterKind
from statsig_otel.exporters.queue.writer import NotRunningError, StorageError

_logger: Final = logging.getLogger(__name__)

_IDLE: Final = 60.0
"""Seconds after which an idle sender reads by itself; normally it is woken."""

_GATHERING: Final = 0.5
"""After sending n records in t seconds, a sender waits 0.5 n t seconds, so that a busy stream forms batches."""

_LONGEST_GATHERING: Final = 0.05
"""The longest such wait, in seconds."""

BLOCKED: Final = RetrySettings(initial_interval=30.0, multiplier=2.0, max_interval=240.0, randomization_factor=0.25)
"""When the head is tried again while somebody has to repair something: at least every five minutes."""


MAX_RECORDS: Final = 512
MAX_BYTES: Final = 2 << 20
"""The limits of one `send`; a larger record goes alone. A Collector's gRPC receiver takes 4 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """How an exporter's sender works."""

    max_records: int = MAX_RECORDS  # of a batch
    max_bytes: int = MAX_BYTES  # of a batch
    timeout: float = SEND_TIMEOUT  # seconds for one attempt
    retry: RetrySettings = field(default_factory=RetrySettings)  # after a passing fault
    blocked: RetrySettings = BLOCKED  # while somebody has to repair something; it never ends
    storage_pause: float = 5.0  # seconds before the queue's file is tried again


State = Literal["idle", "sending", "retrying", "blocked", "stopped"]


class QueueSender:
    """Delivers what waits in the queue for one exporter, in a thread of its own.

    Attributes:
        state: What it does now. `idle` if nothing waits, even while the backend is away.
        attempts: The failed attempts to send the head.
        last_error: The backend's last failure; empty while all is well.
    """

    def __init__(self, cursor: ExporterCursor, exporter: Exporter, settings: DeliverySettings | None = None) -> None:
        self.state: State = "stopped"
        self.attempts: int = 0
        self.last_error: str = ""
        self._cursor = cursor
        self._exporter = Guarded(cursor.name, exporter)
        self._settings = settings or DeliverySettings()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # over the next two
        self._in_send = False
        self._left_behind = False  # by a shutdown: the thread touches the cursor no more
        self._stopping = False
        self._closed = False  # the exporter is shut down: its answers mean nothing from now on
        self._drain_until = 0.0
        self._resumed = threading.Event()
        self._skip_behind: int | None = None  # the cursor's position when somebody wanted the head skipped
        self._backoff = Backoff(self._settings.retry)
        self._blocked = Backoff(self._settings.blocked)
        self._outage: _Outage | None = None
        self._failing_since = 0.0  # the first of the head's passing faults; 0 for none
        self._head_only = False  # somebody has to repair something: one record tells whether it is done
        self._refused_to = 0  # the last seq of a batch that was refused as a whole; 0 for none
        self._storage_fails = False
        self._pause = 0.0  # seconds to wait after this step

    def start(self) -> None:
        """Start the exporter and the thread.

        Raises:
            OSError: The exporter can't open a file.
            ValueError: The content of a file of the exporter is wrong.
            RuntimeError: A `send` was left behind by `shutdown`.
        """
        if self._left_behind:
            raise RuntimeError(f"{self._cursor.name}: an earlier send still hangs: make another sender")
        self._exporter.start()
        self.state = "idle"
        self._stopping = self._closed = False
        thread = threading.Thread(target=self._run, name=f"sender {self._cursor.name}", daemon=True)
        thread.start()
        self._thread = thread  # not before it runs: `shutdown` waits for its end

    def resume(self) -> None:
        """Try at once if it is blocked or waits. An attempt that is under way is finished first."""
        self._resumed.set()
        self._cursor.wake()

    def skip(self) -> bool:
        """Make the current head a dead letter, and go on behind it; False if nothing waits.

        A head that an attempt under way delivers is not skipped, and neither is the one behind it.
        """
        position = self._cursor.position  # before the count, so that it belongs to no later head
        if not self._cursor.waiting:
            return False
        self._skip_behind = position
        self.resume()
        return True

    def shutdown(self, drain: float = 0.0, *, finish: float = 0.0) -> None:
        """Stop, and shut the exporter down. Safe to call twice.

        A `send` that ignores its exporter's shutdown is left behind after SENDER_GRACE, in a daemon thread, which is
        logged; its batch stays in the queue.

        Args:
            drain: Seconds in which waiting records are still sent, unless the backend is away.
            finish: Seconds for the batch that is under way.
        """
        self._drain_until = time.monotonic() + drain
        self._stopping = True
        self.resume()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(max(finish, 0.0 if self._outage else drain))
        self._closed = True
        latest = time.monotonic() + SENDER_GRACE
        closing = threading.Thread(target=self._exporter.shutdown, name=f"shutdown {self._cursor.name}", daemon=True)
        try:
            closing.start()  # ends a send that is under way
        except RuntimeError:  # the interpreter ends, and starts no thread any more
            self._exporter.shutdown()
        else:
            closing.join(SENDER_GRACE)
        if thread is not None:
            thread.join(max(0.0, latest - time.monotonic()))
            while thread.is_alive() and not self._leave_behind():
                thread.join(SENDER_GRACE)  # between two sends it ends by itself
        if closing.is_alive() or self._left_behind:
            _logger.error("%s: a send or the shutdown hangs; it is left behind", self._cursor.name)

    def _leave_behind(self) -> bool:
        """Give up a send that does not end; False if none is under way."""
        with self._lock:
            self._left_behind = self._in_send
        if self._left_behind:
            self.state = "stopped"
            self._cursor.close()
        return self._left_behind

    def _run(self) -> None:
        try:
            while self._goes_on() and self._step():
                pass
        except _LeftBehind:
            return
        finally:
            if not self._left_behind:  # else the cursor is somebody else's by now
                self.state = "stopped"
                self._cursor.close()

    def _goes_on(self) -> bool:
        """Whether to do another step; while stopping, only to drain towards a backend that answers."""
        return not self._stopping or (not self._closed and not self._outage and time.monotonic() < self._drain_until)

    def _step(self) -> bool:
        """Do what is next; False at the end."""
        try:
            more = self._work()
            if self._pause:
                self._cursor.flush()
        except NotRunningError:
            return False
        except (sqlite3.Error, StorageError) as error:
            if self._stopping:
                return False
            self._storage_failed(error)
            return True
        except Exception as error:
            # A bug of ours must neither end delivery nor spin.
            _logger.exception("%s: unexpected error of the sender", self._cursor.name)
            self._failed("blocked", f"unexpected {type(error).__name__}")
            more = True
        pause, self._pause = self._pause, 0.0
        if pause and self._sleep(pause):  # somebody expects it to work now: begin with short waits again
            self._backoff.reset()
            self._blocked.reset()
        return more

    def _work(self) -> bool:
        batch = self._read()
        if not batch:
            if self._stopping:
                return False
            self.state = "idle"
            self._skip_behind = None
            self._resumed.clear()  # there was nothing to try
            self._cursor.flush()
            self._cursor.wait(_IDLE)
        elif not batch.intact[0]:  # before a skip, whose dead letter could be replayed
            self._bury(self._dead_letter("damaged", batch[:1], DAMAGED, self.attempts), batch[:1])
        elif self._skip_behind == self._cursor.position:
            self._bury(self._dead_letter("record", batch[:1], "skipped by command", self.attempts), batch[:1])
        else:
            self._deliver(batch.until_damage())
        return True

    def _read(self) -> Records:
        count, size = 1 if self._head_only else self._settings.max_records, self._settings.max_bytes
        batch = self._cursor.read(count, size)
        self._storage_works()
        if batch and len(batch) < self._cursor.waiting and not self._outage:
            self._cursor.read_ahead(batch.seqs[-1], count, size)
        if batch and batch.seqs[-1] <= self._refused_to:
            # All of these were refused one by one. Two tell whether the backend was repaired meanwhile.
            return batch[:2]
        return batch

    def _deliver(self, batch: Records) -> None:
        """Send a batch, in parts if it is refused, and tick off from its beginning what is decided."""
        began = time.monotonic()
        run = Halving(batch, confirmed=self._is_judged_alone(batch), attempts=self.attempts)
        dead_letters: list[DeadLetter] = []
        while (segment := run.next_segment()) is not None and self._decide(run, segment):
            records, new = run.pop_decided()
            if not self._tick_off(records, new):
                break
            dead_letters += new
        self._log_dead_letters(dead_letters)
        self._gather(len(batch), time.monotonic() - began)

    def _gather(self, records: int, took: float) -> None:
        """Wait while a stream forms a batch: each batch costs the same, and the threads that answer webhooks pay it.

        The first record of a quiet time does not wait, and neither does a full batch or the rest of a backlog.
        """
        most = self._settings.max_records
        if not self._outage and not self._stopping and records < most and 0 < self._cursor.waiting < most:
            time.sleep(min(took * records * _GATHERING, _LONGEST_GATHERING))

    def _decide(self, run: Halving, segment: Records) -> bool:
        """Send a segment and do what its outcome requires; False if the rest of the batch has to wait."""
        match self._send(segment):
            case Delivered():
                run.finish()
                self._answers_again()
            case PartiallyRejected(count, reason):
                said = f"{count} of {len(segment)} were refused: {reason}"
                run.finish(self._dead_letter("batch", segment, said, run.attempts))
                self._answers_again()
            case _ if self._closed:
                return False  # said by an exporter that was shut down in the middle
            case Rejected() if len(segment) > 1:
                run.split(len(segment) // 2)
            case Rejected(reason):
                run.refuse(self._dead_letter("record", segment, reason, run.attempts))
                self._try_next(run, reason)
            case RetryLater(reason, after) if self._may_retry():
                self._failed("retrying", reason, after)
                return False
            case RetryLater(reason):
                said = f"not sent again, as configured: {reason}"
                run.finish(
                    *(self._dead_letter("record", record, said, run.attempts) for record in segment.one_by_one())
                )
                self.last_error = reason
            case Blocked() if len(segment) > 1:
                # It may be about one record. The head alone tells; once something passed, halves find it.
                run.split(len(segment) // 2 if run.confirmed else 1)
            case Blocked(reason):
                self._head_only = True
                self._failed("blocked", reason)
                return False
        return True

    def _is_judged_alone(self, batch: Records) -> bool:
        """Whether a refusal of this lone record is final: no other one can tell, or it is larger than any batch."""
        if len(batch) > 1 or self._refused_to:
            return False
        return self._cursor.waiting <= 1 or batch.size > self._settings.max_bytes

    def _try_next(self, run: Halving, reason: str) -> None:
        """One record was refused. If nothing in the batch confirms that it is about the data, add the next record."""
        self.last_error = reason
        if run.confirmed:
            self._answers_again()
            return
        if run.next_segment() is not None:
            return
        if len(run.records) == 1 and self._cursor.waiting > 1:
            head = self._cursor.read(2, sys.maxsize)
            if head[:1] != run.records:
                raise StorageError("the database was set aside since the head was read")
            if len(head) > 1 and head.intact[1]:
                run.extend(head[1:])
            else:
                run.confirm()  # nothing can tell
            return
        self._refused_to = max(self._refused_to, run.records.seqs[-1])
        self._head_only = False
        self._failed("blocked", f"every record is refused, so it is not the data: {reason}")

    def _bury(self, dead_letter: DeadLetter, head: Records) -> None:
        if self._tick_off(head, [dead_letter]):
            self._log_dead_letters([dead_letter])

    def _tick_off(self, records: Records, dead_letters: Sequence[DeadLetter]) -> bool:
        """Tick off records, with the dead letters among them; False if they are not at the head any more.

        While the storage fails it is tried again, so that the backend does not get them twice.
        """
        while records:
            try:
                # All of them: in a new file other records can follow the same head.
                if self._storage_fails and self._cursor.read(len(records), sys.maxsize) != records:
                    return False  # the failed commit reached the disk after all, or the file was set aside
                if dead_letters or len(records) >= self._cursor.waiting:
                    self._cursor.finish(records, dead_letters)
                else:
                    self._cursor.finish_soon(records)
            except (sqlite3.Error, StorageError) as error:
                if self._stopping:
                    raise
                self._storage_failed(error)
                continue
            self._storage_works()
            self.attempts = 0
            self._failing_since = 0.0
            break
        return True

    def _log_dead_letters(self, dead_letters: Sequence[DeadLetter]) -> None:
        """Log one line for a batch: half of a backlog may be refused."""
        if dead_letters:
            count = sum(dead_letter.count for dead_letter in dead_letters)
            message = "%s: %d records went to the dead letters; the first: %s"
            _logger.warning(message, self._cursor.name, count, dead_letters[0].reason)

    def _send(self, segment: Records) -> Outcome:
        if self.state == "idle":
            self.state = "sending"
        with self._lock:
            self._in_send = True
        outcome = self._exporter.send(segment.content, len(segment), self._settings.timeout)
        with self._lock:
            self._in_send = False
            if self._left_behind:
                raise _LeftBehind
        count_sent(self._cursor.name, outcome, len(segment))
        return outcome

    def _dead_letter(self, kind: DeadLetterKind, records: Records, reason: str, attempts: int) -> DeadLetter:
        uid = records.uids[0] if len(records) == 1 else None
        return DeadLetter(kind, self._cursor.name, reason, records.content, uid, attempts, len(records))

    def _may_retry(self) -> bool:
        """Whether the head is sent again after a passing fault; `max_elapsed_time` begins with the first one."""
        retry, now = self._settings.retry, time.monotonic()
        self._failing_since = self._failing_since or now
        return retry.enabled and not 0 < retry.max_elapsed_time <= now - self._failing_since

    def _failed(self, state: Literal["retrying", "blocked"], reason: str, asked: float | None = None) -> None:
        """Pause before the next attempt. Each state of an outage is logged once."""
        self._outage = outage = self._outage or _Outage()
        outage.attempts += 1
        self.attempts += 1
        self.last_error = reason
        self.state = state
        level, message, backoff = logging.WARNING, "%s can't deliver now: %s. %d records wait", self._backoff
        if state == "blocked":
            self._failing_since = 0.0
            level, backoff = logging.ERROR, self._blocked
            message = "%s is blocked until somebody repairs it: %s. %d records wait; nothing is given up"
        if state not in outage.logged:
            outage.logged.add(state)
            _logger.log(level, message, self._cursor.name, reason, self._cursor.waiting)
        self._pause = backoff.next(random.random(), asked)  # noqa: S311 - it only spreads attempts

    def _sleep(self, seconds: float) -> bool:
        """Whether somebody ended it."""
        if self._stopping:
            return False
        resumed = self._resumed.wait(seconds)
        self._resumed.clear()
        return resumed

    def _answers_again(self) -> None:
        outage, self._outage = self._outage, None
        if outage:
            away = time.monotonic() - outage.since
            message = "%s answers again after %.0f s and %d attempts; %d records to catch up"
            _logger.warning(message, self._cursor.name, away, outage.attempts, self._cursor.waiting)
        self.last_error = ""
        self.state = "sending"
        self._backoff.reset()
        self._blocked.reset()
        self._resumed.clear()  # it was for this outage
        self._head_only = False
        self._refused_to = 0

    def _storage_failed(self, error: Exception) -> None:
        self.last_error = f"the queue's file: {error}"
        self.state = "retrying"
        if not self._storage_fails:
            self._storage_fails = True
            _logger.error("%s: the queue can't be read or ticked off; delivery waits: %s", self._cursor.name, error)
        self._sleep(self._settings.storage_pause)

    def _storage_works(self) -> None:
        if self._storage_fails:
            self._storage_fails = False
            self.last_error = ""
            self.state = "sending"
            _logger.warning("%s: the queue can be read and ticked off again", self._cursor.name)


class _LeftBehind(BaseException):
    """The send has ended after all, but nobody waits for it any more."""


@dataclass(slots=True)
class _Outage:
    """A time in which the backend takes nothing, since a time of the monotonic clock.

    `logged` are the sender's states in it that were logged: a backend may change between them.
    """

    since: float = field(default_factory=time.monotonic)
    attempts: int = 0
    logged: set[State] = field(default_factory=set)
