"""One exporter's sender: reads batches from the queue, sends them, and ticks off what is done.

`Decisions` says what is sent next and what becomes of it; the sender does what it says, in a thread of its own. Nothing
is dropped: a record is delivered, or becomes a dead letter with its reason, or waits.
"""

import logging
import random
import sqlite3
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from statsig_otel._log_throttle import LogThrottle
from statsig_otel._telemetry import FailedState, StateName, exporters
from statsig_otel._times import HANGING_SEND
from statsig_otel._tracing import links_of
from statsig_otel.exporters.delivery.answers import is_taken
from statsig_otel.exporters.delivery.calls import AbandonedCall, ExporterCalls
from statsig_otel.exporters.delivery.decisions import Decided, Decisions
from statsig_otel.exporters.delivery.guarded import Guarded, report_sent
from statsig_otel.exporters.delivery.outage import Outage
from statsig_otel.exporters.delivery.retry import Backoff
from statsig_otel.exporters.delivery.settings import DeliverySettings
from statsig_otel.exporters.delivery.skip import Skip
from statsig_otel.exporters.exporter import Delivered, Exporter, Outcome, PartiallyRejected, Rejected
from statsig_otel.exporters.queue.cursor import ExporterCursor
from statsig_otel.exporters.queue.errors import NotRunningError, StorageError
from statsig_otel.exporters.queue.records import Records
from statsig_otel.exporters.queue.store import DeadLetter

_logger: Final = logging.getLogger(__name__)

_IDLE: Final = 60.0
"""Seconds after which an idle sender reads by itself; normally it is woken."""

_GATHERING: Final = 0.5
"""After sending n records in t seconds, a sender waits 0.5 n t seconds, so that a busy stream forms batches."""

_LONGEST_GATHERING: Final = 0.05
"""The longest such wait, in seconds."""

_DISK: Final = "look at the disk of the queue's directory, and at the log"


class QueueSender:
    """Delivers what waits in the queue for one exporter, in a thread of its own.

    Attributes:
        name: The exporter's id.
        state: What it does now. `idle` if nothing waits; `blocked` also if the exporter can't be started.
        attempts: The failed attempts to send the head.
        last_error: The last failure, of the backend or of the queue's file; empty while all is well.
        hint: What somebody has to do about it; empty if the exporter does not say.
        outage: The current outage: the head was sent and not taken, though others may be. None without one.
        is_started: Whether the exporter is started.
        has_abandoned: Whether the shutdown has abandoned a call of the exporter, since it hangs.
    """

    def __init__(self, cursor: ExporterCursor, exporter: Exporter, settings: DeliverySettings | None = None) -> None:
        self.name: Final = cursor.name
        self.state: StateName = "stopped"
        self.attempts: int = 0
        self.last_error: str = ""
        self.hint: str = ""
        self.outage: Outage | None = None
        self.is_started: bool = False
        self.has_abandoned: bool = False
        self._cursor = cursor
        self._exporter = Guarded(cursor.name, exporter)
        self._settings = settings or DeliverySettings()
        self._is_away = False  # the backend takes nothing, as far as is known
        self._thread: threading.Thread | None = None
        self._calls = ExporterCalls()
        self._throttle = LogThrottle(_logger)
        self._stopping = False
        self._closed = False  # the exporter is shut down: its answers mean nothing from now on
        self._drain_until = 0.0
        self._resumed = threading.Event()
        self._is_repaired = False  # somebody expects that since the last send
        self._renewed = False  # the exporter has other secrets since then
        self._skip: Skip | None = None
        self._decisions = Decisions(cursor.name, self._settings)
        self._generation = cursor.generation  # of the database that the decisions are about
        self._backoff = Backoff(self._settings.retry)
        self._blocked = Backoff(self._settings.blocked)
        self._storage_fails = False
        self._pause = 0.0  # seconds to wait after this step
        self._chosen_at = 0.0  # when the decisions chose last what to send
        self._refused_until = 0.0  # when the head is tried again, while every record is refused
        exporters.add(self)

    def start(self, *, instead_of: "QueueSender | None" = None) -> None:
        """Start the exporter and the thread.

        Args:
            instead_of: The stopped sender that this one replaces. If its backend was away, this one says when the
                backend answers again, or that it still does not.

        Raises:
            OSError: The exporter can't open a file. `start_blocked` may follow.
            ValueError: The content of a file of the exporter is wrong. As above.
            RuntimeError: `shutdown` has abandoned a `send`.
        """
        if self._calls.is_abandoned:
            raise RuntimeError(f"{self._cursor.name}: an earlier send still hangs: make another sender")
        self.is_started = False
        self._exporter.start()
        if instead_of is not None and instead_of.is_started:
            self.outage = instead_of.outage
            if self.outage:
                self.outage.log_next()
        self.is_started, self.state = True, "idle"
        self._start_thread()

    def start_blocked(self, error: Exception) -> None:
        """Start the thread alone, since `start` has raised an error: it starts the exporter as soon as that works.

        Until then the sender is blocked, and everything waits.
        """
        self._failed("blocked", f"can't be started: {error}")
        self._start_thread()

    def _start_thread(self) -> None:
        self._stopping = self._closed = False
        thread = threading.Thread(target=self._run, name=f"sender {self._cursor.name}", daemon=True)
        thread.start()
        self._thread = thread  # not before it runs: `shutdown` waits for its end

    def resume(self, *, renewed: bool = False) -> None:
        """Try all that waits at once, since it may work now. An attempt that is under way is finished first.

        Args:
            renewed: Whether the exporter has other secrets now. Earlier deliveries are not evidence then.
        """
        self._renewed = self._renewed or renewed
        self._is_repaired = True
        self._end_wait()

    def _end_wait(self) -> None:
        self._resumed.set()
        self._cursor.wake()

    def skip(self, behind: int, up_to: int) -> bool:
        """Make the records behind a seq, up to another, dead letters; False if nothing waits.

        Args:
            behind: The cursor's position when somebody decided it. If an attempt under way delivers the head, nothing
                is skipped.
            up_to: The seq of the last record to skip.
        """
        if not self._cursor.waiting:
            return False
        self._skip = Skip(behind, up_to)
        self._end_wait()
        return True

    def shutdown(self, drain: float = 0.0, *, finish: float = 0.0) -> None:
        """Stop, and shut the exporter down. Safe to call twice.

        A `send` that ignores its exporter's shutdown is abandoned after HANGING_SEND seconds, in a daemon thread, which
        is logged; its batch stays in the queue.

        Args:
            drain: Seconds in which waiting records are still sent, unless the backend is away.
            finish: Seconds for the batch that is under way.
        """
        self._drain_until = time.monotonic() + drain
        self._stopping = True
        self._end_wait()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(max(finish, 0.0 if self._is_away else drain))
        self._closed = True
        latest = time.monotonic() + HANGING_SEND
        closing = threading.Thread(target=self._exporter.shutdown, name=f"shutdown {self._cursor.name}", daemon=True)
        try:
            closing.start()  # ends a send that is under way
        except RuntimeError:  # the interpreter ends, and starts no thread any more
            self._exporter.shutdown()
        else:
            closing.join(HANGING_SEND)
        if thread is not None:
            thread.join(max(0.0, latest - time.monotonic()))
            while thread.is_alive() and not self._abandon_call():
                thread.join(HANGING_SEND)  # between two sends it ends by itself
        self.has_abandoned = closing.is_alive() or self._calls.is_abandoned
        if self.has_abandoned:
            _logger.error("%s: a send or the shutdown hangs; it is left behind", self._cursor.name)

    def _abandon_call(self) -> bool:
        """Abandon a call of the exporter that does not end; False if none is under way."""
        if is_abandoned := self._calls.abandon():
            self.state = "stopped"
            self._cursor.close()
        return is_abandoned

    def _run(self) -> None:
        try:
            self._rest()
            while self._goes_on() and self._step():
                pass
        except AbandonedCall:
            return
        finally:
            if not self._calls.is_abandoned:  # else another sender may have the cursor by now
                self.state = "stopped"
                self._cursor.close()

    def _goes_on(self) -> bool:
        """Whether to do another step; while stopping, only to drain towards a backend that answers."""
        return not self._stopping or (not self._closed and not self._is_away and time.monotonic() < self._drain_until)

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
        self._rest()
        return more

    def _rest(self) -> None:
        """Wait as long as the last failure asks for."""
        pause, self._pause = self._pause, 0.0
        if pause:
            self._try_again(resumed=self._sleep(pause))

    def _work(self) -> bool:
        batch = self._read()
        if batch and self._decisions.decided(batch) is None and not batch.intact[0]:
            # Before a skip, whose dead letter could be replayed.
            self._tick_off_unsent(Decided(batch[:1], [self._decisions.damaged(batch[:1])]))
        elif batch and self._skip is not None and self._skip.behind == self._cursor.position:
            skipped = self._skip.part_of(batch)
            self._tick_off_unsent(self._decisions.decided(batch) or self._decisions.skip(skipped))
        elif not self.is_started:
            self._start_exporter()
        elif batch:
            self._deliver(batch)
        elif self._stopping:
            return False
        else:
            if self.outage:  # what failed was skipped or became a dead letter
                self._end_outage("has nothing to send any more")
            self.state = "idle"
            self._skip = None
            self._resumed.clear()  # there was nothing to try
            self._cursor.flush()
            self._cursor.wait(_IDLE)
        return True

    def _start_exporter(self) -> None:
        """Try once more to start an exporter that could not be started."""
        try:
            with self._calls:
                self._exporter.start()
                if self._closed:
                    self._exporter.shutdown()  # the shutdown came before there was something to shut down
        except (OSError, ValueError) as error:
            self._failed("blocked", f"can't be started: {error}")
            return
        self.is_started, self.attempts, self.state = True, 0, "idle"
        self._end_outage("is started")

    def _read(self) -> Records:
        count, size = self._settings.max_records, self._settings.max_bytes
        batch = self._cursor.read(count, size)
        self._storage_works()
        if self._generation != self._cursor.generation:  # other records have these seqs
            self._generation = self._cursor.generation
            self._decisions, self._skip = Decisions(self._cursor.name, self._settings), None
        if batch and len(batch) < self._cursor.waiting and not self.outage:
            self._cursor.read_ahead(batch.seqs[-1], count, size)
        return batch

    def _deliver(self, batch: Records) -> None:
        """Send a batch, in parts if it is refused, and tick off from its beginning what is decided."""
        began, count, is_held_back, goes_on = time.monotonic(), len(batch), False, True
        dead_letters: list[DeadLetter] = []
        while batch and not is_held_back:
            decided = self._decisions.decided(batch)
            if decided is not None:
                if not self._tick_off(*decided):
                    break
                dead_letters += decided.dead_letters
                batch = batch[bisect_right(batch.seqs, self._cursor.position) :]
            elif not goes_on or self._closed or not batch.intact[0] or not self._leave_pause():
                break
            elif not (part := self._next(batch)):
                is_held_back = True
            else:  # after a failure only what is decided is ticked off
                goes_on = self._attempt(part, batch.seqs[0])
        self._log_dead_letters(dead_letters)
        self._gather(count, time.monotonic() - began)
        if is_held_back:
            self._wait_refused(batch.seqs[0])

    def _gather(self, records: int, took: float) -> None:
        """Wait while a stream forms a batch: each batch costs the same, and the threads that answer webhooks pay it.

        The first record of a quiet time does not wait, and neither does a full batch or the rest of a backlog.
        """
        most = self._settings.max_records
        if not self.outage and not self._stopping and records < most and 0 < self._cursor.waiting < most:
            time.sleep(min(took * records * _GATHERING, _LONGEST_GATHERING))

    def _leave_pause(self) -> bool:
        """Leave the pause that the backend needs between two sends; False if somebody has ended the wait."""
        pause = self._decisions.send_pause(time.monotonic())
        if pause <= 0 or self._is_repaired:
            return True
        self._cursor.flush()
        resumed = self._sleep(pause)
        if resumed:
            self._try_again(resumed=True)
        return not resumed

    def _next(self, batch: Records) -> Records:
        """The next part of a batch to send, or of other records; empty if the head was refused and none may be sent."""
        if self._is_repaired:
            self._is_repaired = False
            self._decisions.count_as_untried()
        if self._renewed:
            self._renewed = False
            self._decisions.forget_evidence()
        self._chosen_at = time.monotonic()
        return self._decisions.next(batch, self._cursor, self._chosen_at)

    def _attempt(self, part: Records, head: int) -> bool:
        """Send a part of a batch, or of other records; False if the rest of the batch has to wait."""
        outcome = self._send(part)
        if self._closed and not isinstance(outcome, Delivered | PartiallyRejected):
            return False  # said by an exporter that was shut down in the middle
        failure = self._decisions.record_outcome(part, outcome, time.monotonic())
        taken = is_taken(part, outcome)
        if taken or (isinstance(outcome, Rejected) and self._decisions.answers):
            self._backoff.reset()  # it is there: what fails now and then does not make the waits longer and longer
        if taken:
            self._blocked.reset()
            self._is_away = False
        if failure is not None:
            self._failed(*failure)
        elif taken and not self._decisions.is_held_back(head):
            self._end_outage("answers again")
            self.state, self._refused_until = "sending", 0.0
        return failure is None

    def _wait_refused(self, head: int) -> None:
        """Wait until the head, the record with this seq, is tried again, a probe can be sent, or somebody resumes."""
        now, pause = time.monotonic(), self._decisions.probe_pause(self._chosen_at)
        if self._stopping:
            time.sleep(max(0.0, min(pause, self._drain_until - now)))
            self._drain_until = self._drain_until if pause > 0 else now  # each record was tried
            return
        if 0.0 < self._refused_until <= now:  # the wait ended while probes were sent
            self._try_again(resumed=False)
            return
        failure = self._decisions.failure_of_head(head)
        if now >= self._refused_until:
            self._failed(*failure)
            self._refused_until, self._pause, self._is_away = now + self._pause, 0.0, failure.state == "blocked"
        elif failure.state != self.state:
            self._say(failure.state, failure.reason, failure.hint)
        self._cursor.flush()
        rest = self._refused_until - now
        if pause > 0:
            resumed = self._sleep(min(pause, rest))
        else:
            self._cursor.wait(rest)
            resumed = self._resumed.is_set()
        if resumed or time.monotonic() >= self._refused_until:
            self._try_again(resumed=resumed)

    def _try_again(self, *, resumed: bool) -> None:
        """A wait is over."""
        self._decisions.try_again()
        self._refused_until = 0.0
        if resumed:  # somebody expects it to work now: begin with short waits again
            self._resumed.clear()
            self._backoff.reset()
            self._blocked.reset()
            if self.outage:
                self.outage.log_next()

    def _tick_off_unsent(self, decided: Decided) -> None:
        """Tick off records that are not sent."""
        behind = self._cursor.position
        if self._tick_off(*decided):
            self._log_dead_letters(decided.dead_letters)
            if self._skip is not None and self._skip.ticked_off(behind, self._cursor.position):
                self._skip = None

    def _tick_off(self, records: Records, dead_letters: Sequence[DeadLetter]) -> bool:
        """Tick off records, with the dead letters among them; False if the file was set aside, and they come again.

        While the storage fails it is tried again, so that the backend does not get them twice.
        """
        while True:
            try:
                if dead_letters or len(records) >= self._cursor.waiting:
                    self._cursor.finish(records, dead_letters)
                else:
                    self._cursor.finish_soon(records)
            except (sqlite3.Error, StorageError) as error:
                if self._stopping:
                    raise
                if self._cursor.is_set_aside:
                    return False
                self._storage_failed(error)
                continue
            self._storage_works()
            self._decisions.ticked_off(records)
            self.attempts = 0
            return True

    def _log_dead_letters(self, dead_letters: Sequence[DeadLetter]) -> None:
        """Log one line for a batch, and at most one in ten seconds: all of a backlog may be damaged or refused."""
        if dead_letters:
            count = sum(one.count for one in dead_letters)
            is_damage = any(one.kind == "damaged" for one in dead_letters)
            level, kind = (logging.ERROR, "damaged") if is_damage else (logging.WARNING, "refused")
            name, reason = self._cursor.name, dead_letters[0].reason
            self._throttle.log(level, kind, "%s: new dead letters: %d; the first: %s", name, count, reason)

    def _send(self, part: Records) -> Outcome:
        if self.state == "idle":
            self.state = "sending"
        began = time.monotonic()
        with self._calls:
            outcome = self._exporter.send(part.content, len(part), self._settings.timeout, links_of(part.uids))
        report_sent(self._cursor.name, outcome, len(part), time.monotonic() - began)
        return outcome

    def _failed(self, state: FailedState, reason: str, asked: float | None = None, hint: str = "") -> None:
        """Pause before the next attempt."""
        self.attempts += 1
        backoff = self._backoff if state == "retrying" else self._blocked
        self._pause = backoff.next(random.random(), asked)  # noqa: S311 - it only spreads attempts
        self._refused_until, self._is_away = 0.0, True
        self._say(state, reason, hint).attempts += 1

    def _say(self, state: FailedState, reason: str, hint: str) -> Outage:
        """Show and log the state of an outage."""
        self.state, self.last_error, self.hint = state, reason, hint
        self.outage = outage = self.outage or Outage(self._cursor.name, self._cursor.directory)
        outage.log(state, reason, waiting=self._cursor.waiting, reminder=self._settings.reminder)
        return outage

    def _sleep(self, seconds: float) -> bool:
        """Sleep; whether `resume` ended it."""
        if self._stopping:
            return False
        resumed = self._resumed.wait(seconds)
        self._resumed.clear()
        return resumed

    def _end_outage(self, message: str) -> None:
        outage, self.outage, self._is_away = self.outage, None, False
        if outage:
            outage.log_end(message, waiting=self._cursor.waiting)
        self.last_error = self.hint = ""
        self._backoff.reset()
        self._blocked.reset()
        self._resumed.clear()  # it was for this outage

    def _storage_failed(self, error: Exception) -> None:
        self.state, self.last_error, self.hint = "retrying", f"the queue's file: {error}", _DISK
        if not self._storage_fails:
            self._storage_fails = True
            _logger.error("%s: the queue can't be read or ticked off; delivery waits: %s", self._cursor.name, error)
        self._sleep(self._settings.storage_pause)

    def _storage_works(self) -> None:
        if self._storage_fails:
            self._storage_fails, self.state = False, "sending"
            self.last_error = self.hint = ""
            _logger.warning("%s: the queue can be read and ticked off again", self._cursor.name)
