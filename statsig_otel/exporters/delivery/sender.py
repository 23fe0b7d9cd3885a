"""One exporter's sender: reads batches from the queue, sends them, and ticks off what is done.

Order is kept, also where a batch is halved to find the record that a backend refuses. Nothing is dropped: a record is
delivered, or it is a dead letter with its reason, or it waits.
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

from statsig_otel import _telemetry
from statsig_otel._times import SEND_TIMEOUT, SENDER_GRACE
from statsig_otel.exporters.delivery.guarded import Guarded
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
from statsig_otel.exporters.queue.store import DeadLetter, DeadLetterKind
from statsig_otel.exporters.queue.writer import NotRunningError, StorageError

_logger: Final = logging.getLogger(__name__)

_IDLE: Final = 60.0
"""Seconds after which an idle sender looks by itself; normally it is woken."""

_GATHERING: Final = 0.5
"""For so many times the length of its last delivery, times its records, a sender leaves what comes in to gather: the
denser a stream, the less does the delay matter, and the more does each delivery cost."""

_LONGEST_GATHERING: Final = 0.05
"""Seconds for which it does so at most."""

BLOCKED: Final = RetrySettings(initial_interval=30.0, multiplier=2.0, max_interval=240.0, randomization_factor=0.25)
"""How the head is tried again while somebody has to mend something: at most five minutes apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """How an exporter's sender works.

    Attributes:
        max_records: Records of a batch at most.
        max_bytes: Bytes of a batch at most; a larger record goes alone. A Collector's gRPC receiver takes 4 MiB.
        timeout: Seconds for one attempt.
        retry: When to try again after a passing fault.
        blocked: When to try again while somebody has to mend something. There is no end to it.
        storage_pause: Seconds before the queue's file is tried again.
    """

    max_records: int = 512
    max_bytes: int = 2 << 20
    timeout: float = SEND_TIMEOUT
    retry: RetrySettings = field(default_factory=RetrySettings)
    blocked: RetrySettings = BLOCKED
    storage_pause: float = 5.0


State = Literal["idle", "sending", "retrying", "blocked", "stopped"]


class QueueSender:
    """Delivers what waits in the queue for one exporter, in a thread of its own.

    Args:
        cursor: The exporter's way through the queue.
        exporter: Where to.
        settings: How.

    Attributes:
        state: What it does now. `idle` where nothing waits, also while the backend is away.
        attempts: How often the head was tried in vain since it is the head.
        last_error: What the backend said last that was no success; empty while all is well.
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
        self._closed = False  # the exporter is shut down: what it answers from now on says nothing
        self._drain_until = 0.0
        self._resumed = threading.Event()
        self._skip_behind: int | None = None  # the cursor of the moment at which somebody wanted the head skipped
        self._backoff = Backoff(self._settings.retry)
        self._blocked = Backoff(self._settings.blocked)
        self._outage: _Outage | None = None
        self._failing_since = 0.0  # of the head's passing faults; 0 for none
        self._head_only = False  # somebody has to mend something: one record tells whether it is done
        self._refused_to = 0  # the last seq of a batch that was refused as a whole; 0 for none
        self._storage_fails = False
        self._pause = 0.0  # seconds to wait after this step

    def start(self) -> None:
        """Start the exporter and the thread.

        Raises:
            OSError: The exporter can't open a file.
            ValueError: A file of the exporter's holds something else than it should.
            RuntimeError: A `send` was left behind by `shutdown`.
        """
        if self._left_behind:
            raise RuntimeError(f"{self._cursor.name}: a send of before hangs still: make another sender")
        self._exporter.start()
        self.state = "idle"
        self._stopping = self._closed = False
        thread = threading.Thread(target=self._run, name=f"sender {self._cursor.name}", daemon=True)
        thread.start()
        self._thread = thread  # not before it runs: `shutdown` waits for its end

    def resume(self) -> None:
        """Try at once, where it is blocked or waits. An attempt that is under way is finished first."""
        self._resumed.set()
        self._cursor.wake()

    def skip(self) -> bool:
        """Make the record that is at the head now a dead letter, and go on behind it.

        Returns:
            False where nothing waits. A head that is delivered by an attempt under way is not skipped, and neither is
            the one behind it.
        """
        position = self._cursor.position  # before the count, so that it belongs to no later head
        if not self._cursor.waiting:
            return False
        self._skip_behind = position
        self.resume()
        return True

    def shutdown(self, drain: float = 0.0, *, finish: float = 0.0) -> None:
        """Stop, and shut the exporter down. Safe to call twice.

        A `send` that ignores its exporter's shutdown is left behind after three seconds, in a daemon thread, and the
        log says so; its batch stays in the queue.

        Args:
            drain: Seconds in which what waits is still sent, unless the backend is away.
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
                thread.join(SENDER_GRACE)  # what it does between two sends is in our hands
        if closing.is_alive() or self._left_behind:
            _logger.error("%s: a send or the shutdown hangs; it is left behind", self._cursor.name)

    def _leave_behind(self) -> bool:
        """Give up a send that does not end; False where none is under way."""
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
            if not self._left_behind:  # else it is somebody else's cursor by now
                self.state = "stopped"
                self._cursor.close()

    def _goes_on(self) -> bool:
        """Whether to do another step; while stopping, only to drain towards a backend that answers."""
        return not self._stopping or (not self._closed and not self._outage and time.monotonic() < self._drain_until)

    def _step(self) -> bool:
        """Do what is next; False where there is an end to it."""
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
            # A mistake of ours must not end delivery for good, nor be tried in a hurry.
            _logger.exception("%s: unexpected error of the sender", self._cursor.name)
            self._failed("blocked", f"unexpected {type(error).__name__}", self._blocked)
            more = True
        pause, self._pause = self._pause, 0.0
        if pause and self._sleep(pause):  # somebody expects it to work now: look often again
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
        elif not batch.intact[0]:  # before a skip, whose letter could be replayed
            self._bury_head(batch[:1], "damaged on disk: its checksum is wrong")
        elif self._skip_behind == self._cursor.position:
            self._bury_head(batch[:1], "skipped by command")
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
            # All of these were refused one by one. Two tell whether the backend was mended meanwhile.
            return batch[:2]
        return batch

    def _deliver(self, batch: Records) -> None:
        """Send a batch, in parts where it is refused, and tick off from its beginning what is decided."""
        began = time.monotonic()
        run = Halving(batch, settled=self._is_judged_alone(batch), attempts=self.attempts)
        buried: list[DeadLetter] = []
        while (segment := run.next_segment()) is not None and self._decide(run, segment):
            records, letters = run.take()
            if not self._tick_off(records, letters):
                break
            buried += letters
        self._say_buried(buried)
        self._let_gather(len(batch), time.monotonic() - began)

    def _let_gather(self, records: int, took: float) -> None:
        """Leave a stream some time to become a batch: each costs the same, and whoever answers webhooks pays for it.

        What comes alone never waits, and neither does a full batch, nor what is left of a backlog behind one.
        """
        most = self._settings.max_records
        if not self._outage and not self._stopping and records < most and 0 < self._cursor.waiting < most:
            time.sleep(min(took * records * _GATHERING, _LONGEST_GATHERING))

    def _decide(self, run: Halving, segment: Records) -> bool:
        """Send a segment and do what its outcome asks for; False where the rest of the batch has to wait."""
        match self._send(segment):
            case Delivered():
                run.finish()
                self._answers_again()
            case PartiallyRejected(count, reason):
                said = f"{count} of {len(segment)} were refused: {reason}"
                run.finish(self._letter("batch", segment, said, run.attempts))
                self._answers_again()
            case _ if self._closed:
                return False  # said by an exporter that was shut down in the middle
            case Rejected() if len(segment) > 1:
                run.split(len(segment) // 2)
            case Rejected(reason):
                run.refuse(self._letter("record", segment, reason, run.attempts))
                self._look_behind(run, reason)
            case RetryLater(reason, after) if self._may_retry():
                self._failed("retrying", reason, self._backoff, after)
                return False
            case RetryLater(reason):
                said = f"not sent again, as configured: {reason}"
                run.finish(*(self._letter("record", record, said, run.attempts) for record in segment.one_by_one()))
                self.last_error = reason
            case Blocked() if len(segment) > 1:
                # It may still be about one record. The head alone tells; once something passed, halves find it.
                run.split(len(segment) // 2 if run.settled else 1)
            case Blocked(reason):
                self._head_only = True
                self._failed("blocked", reason, self._blocked)
                return False
        return True

    def _is_judged_alone(self, batch: Records) -> bool:
        """Whether a refusal decides on this one record: no other one can tell, or it is larger than any batch."""
        if len(batch) > 1 or self._refused_to:
            return False
        return self._cursor.waiting <= 1 or batch.size > self._settings.max_bytes

    def _look_behind(self, run: Halving, reason: str) -> None:
        """After one record was refused: is it the data? Where that is open at the end, ask with the next record."""
        self.last_error = reason
        if run.settled:
            self._answers_again()
            return
        if run.next_segment() is not None:
            return
        if len(run.records) == 1 and self._cursor.waiting > 1:
            found = self._cursor.read(2, sys.maxsize)
            if found[:1] != run.records:
                raise StorageError("the database was set aside since the head was read")
            if len(found) > 1 and found.intact[1]:
                run.extend(found[1:])
            else:
                run.settle()  # nothing can tell
            return
        self._refused_to = max(self._refused_to, run.records.seqs[-1])
        self._head_only = False
        self._failed("blocked", f"every record is refused, so it is not the data: {reason}", self._blocked)

    def _bury_head(self, head: Records, reason: str) -> None:
        letter = self._letter("record" if head.intact[0] else "damaged", head, reason, self.attempts)
        if self._tick_off(head, [letter]):
            self._say_buried([letter])

    def _tick_off(self, records: Records, letters: Sequence[DeadLetter]) -> bool:
        """Tick records off, with the dead letters among them; False where they are not at the head any more.

        While the storage fails it is tried again, instead of sending a second time what the backend has.
        """
        while records:
            try:
                # All of them: in a new file something else can stand behind a head that is the same.
                if self._storage_fails and self._cursor.read(len(records), sys.maxsize) != records:
                    return False  # the failed commit reached the disk after all, or the file was set aside
                if letters or len(records) >= self._cursor.waiting:
                    self._cursor.finish(records, letters)
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

    def _say_buried(self, letters: Sequence[DeadLetter]) -> None:
        """One line for a batch: half of a backlog may be refused."""
        if letters:
            count = sum(letter.count for letter in letters)
            message = "%s: %d records went to the dead letters; the first: %s"
            _logger.warning(message, self._cursor.name, count, letters[0].reason)

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
        match outcome:
            case Delivered():
                failed = 0
            case PartiallyRejected(count, _):
                failed = count
            case _:
                failed = len(segment)
        attributes = {"exporter": self._cursor.name}
        if failed < len(segment):
            _telemetry.exporter_sent.add(len(segment) - failed, attributes)
        if failed:
            _telemetry.exporter_send_failed.add(failed, attributes)
        return outcome

    def _letter(self, kind: DeadLetterKind, records: Records, reason: str, attempts: int) -> DeadLetter:
        uid = records.uids[0] if len(records) == 1 else None
        return DeadLetter(kind, self._cursor.name, reason, records.content, uid, attempts, len(records))

    def _may_retry(self) -> bool:
        """Whether the head is sent again after a passing fault; `max_elapsed_time` counts from the first of them."""
        retry, now = self._settings.retry, time.monotonic()
        self._failing_since = self._failing_since or now
        return retry.enabled and not 0 < retry.max_elapsed_time <= now - self._failing_since

    def _failed(self, state: State, reason: str, backoff: Backoff, asked: float | None = None) -> None:
        """An attempt was in vain: there will be a pause before the next one. Each kind of an outage is said once."""
        self._outage = outage = self._outage or _Outage()
        outage.attempts += 1
        self.attempts += 1
        self.last_error = reason
        self.state = state
        if state == "blocked":
            self._failing_since = 0.0
        if state not in outage.said:
            outage.said.add(state)
            waiting = self._cursor.waiting
            if state == "blocked":
                message = "%s is blocked until somebody mends it: %s. %d records wait; nothing is given up"
                _logger.error(message, self._cursor.name, reason, waiting)
            else:
                _logger.warning("%s can't deliver now: %s. %d records wait", self._cursor.name, reason, waiting)
        chance = random.random()  # noqa: S311 - it spreads attempts; nobody has to be unable to guess it
        self._pause = backoff.next(chance, asked)

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
        self._resumed.clear()  # it was for this outage, not for the next one
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
    """The send has ended after all, and nobody waits for it any more."""


@dataclass(slots=True)
class _Outage:
    """A stretch of time in which the backend takes nothing.

    Attributes:
        since: Its beginning, by the monotonic clock.
        attempts: How many there were in vain.
        said: The kinds that were told the log: a backend may change between them.
    """

    since: float = field(default_factory=time.monotonic)
    attempts: int = 0
    said: set[State] = field(default_factory=set)
