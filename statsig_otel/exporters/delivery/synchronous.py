"""Delivers without a queue: a batch is accepted only once every exporter has delivered it.

This is what `sending_queue: {enabled: false}` means. Any outcome but Delivered refuses the batch: there is nowhere to
keep a record, so the client has to keep it. An item that no record can be made of refuses its batch too, once the
rest is delivered. Each exporter has a worker of its own, so that a request waits no longer than for the slowest
backend. Every batch is answered in time, even if a `send` hangs.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from statsig_otel._futures import uncancellable
from statsig_otel._telemetry import StateName, exporters
from statsig_otel._times import SEND_MARGIN, SEND_START_TIMEOUT, SYNCHRONOUS_GRACE
from statsig_otel._tracing import links_of
from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError, log_invalid
from statsig_otel.exporters.delivery.guarded import WORDS, Guarded, StartError, report_sent
from statsig_otel.exporters.delivery.retry import LONGEST_ASKED
from statsig_otel.exporters.delivery.settings import MAX_BYTES, MAX_RECORDS
from statsig_otel.exporters.exporter import (
    Blocked,
    Delivered,
    Exporter,
    Outcome,
    PartiallyRejected,
    Rejected,
    RetryLater,
)
from statsig_otel.exporters.routing import Route
from statsig_otel.exporters.wording import counted

if TYPE_CHECKING:
    from opentelemetry.trace import Link

_logger: Final = logging.getLogger(__name__)

_STATES: Final[dict[type[Outcome], StateName]] = {
    Delivered: "idle",
    RetryLater: "retrying",
    Rejected: "refused",
    PartiallyRejected: "refused",
    Blocked: "blocked",
}
_SHUTTING_DOWN: Final = RetryLater("shutting down")


@dataclass(frozen=True, slots=True)
class SynchronousExporter:
    """An exporter, and its seconds for a batch, however many sends that takes."""

    exporter: Exporter
    timeout: float


class SynchronousConsumer:
    """Delivers each batch to every exporter of its route before it answers.

    Batches that wait for an exporter are joined into one send; a large one goes in parts, in order. If something is
    not delivered, only the batches that were delivered as a whole are accepted. The others come again, with the same
    uids.
    """

    def __init__(self, exporters: Mapping[str, SynchronousExporter]) -> None:
        self._workers = {name: _Worker(name, one.exporter, one.timeout) for name, one in exporters.items()}

    def start(self) -> None:
        """Start the exporters and their threads, once. If one fails, those before it are closed again.

        Raises:
            StartError: An exporter can't be started.
        """
        try:
            for name, worker in self._workers.items():
                try:
                    worker.start()
                except (OSError, ValueError) as error:
                    raise StartError(name, error) from error
        except BaseException:
            self.shutdown()
            raise

    def close(self, grace: float = SYNCHRONOUS_GRACE.longest) -> None:
        """Refuse what waits and what comes; end what is under way after `grace` seconds. From any thread, at once.

        Batches that are not delivered are refused with the reason `shutting_down`.
        """
        for worker in self._workers.values():
            worker.close(grace)

    def shutdown(self, grace: float = SYNCHRONOUS_GRACE.longest) -> bool:
        """Close, and wait until the exporters are shut down. Safe to call twice, after `close` and without a `start`.

        The shortest grace counts. After it nothing more is sent. A `send` that ignores its exporter's shutdown is left
        behind after one more second, in a daemon thread, which is logged.

        Returns:
            Whether all has ended; False if something is left behind.
        """
        self.close(grace)
        ended = [worker.join() for worker in self._workers.values()]
        return all(ended)

    def consume(self, batch: Batch, route: Route) -> Future[Receipt]:
        """Send one batch to all synchronous exporters of a route at once.

        The future fails with `RefusedError` unless all have it. It is answered once all exporters are done: each takes
        at most 10 s until its send begins, then its timeout, and a second. A batch with an invalid item is refused
        after all that: nothing keeps the item, so its webhook must not be acknowledged. A body that can't be read is
        only logged, since its webhook is answered with 400.
        """
        log_invalid(_logger, batch, hidden=route.private)
        records = tuple(record for change in batch.changes for record in change.records)
        exporters = route.synchronous if records else ()
        links = links_of(bytes.fromhex(change.uid) for change in batch.changes)
        unkept = [one.reason for one in batch.invalid if not one.whole_body]
        pending = _SynchronousBatch(records, Receipt(len(batch.changes)), exporters, links, unkept)
        for name in exporters:
            self._workers[name].submit(pending)
        return pending.future

    def states(self) -> dict[str, tuple[StateName, str]]:
        """By exporter its state, and what somebody has to do if it is blocked and says so."""
        return {name: (worker.state, worker.hint) for name, worker in self._workers.items()}

    def longest_answer(self, route: Route) -> float:
        """Seconds within which each batch of a route is answered."""
        return max(
            (SEND_START_TIMEOUT + self._workers[name].timeout + SEND_MARGIN for name in route.synchronous), default=0.0
        )


class _SynchronousBatch:
    """One batch on its way to all its exporters."""

    def __init__(
        self,
        records: tuple[bytes, ...],
        receipt: Receipt,
        exporters: Iterable[str],
        links: "Sequence[Link]",
        unkept: Sequence[str],  # why no record could be made of some items
    ) -> None:
        self.records = records
        self.links = links
        self.size = sum(map(len, records))
        self.latest = time.monotonic() + SEND_START_TIMEOUT  # for a send to begin
        self.future: Future[Receipt] = uncancellable()
        self._receipt = receipt
        self._unkept = unkept
        self._open = set(exporters)
        self._failures: dict[str, RetryLater | Rejected | PartiallyRejected | Blocked] = {}
        self._lock = threading.Lock()
        if not self._open:
            self._accept()

    def done(self, name: str, outcome: Outcome) -> None:
        """One exporter is done with the batch; the last one answers. Only its first outcome counts."""
        with self._lock:
            if name not in self._open:
                return
            self._open.remove(name)
            if not isinstance(outcome, Delivered):
                self._failures[name] = outcome
            if self._open:
                return
        if not self._failures:
            self._accept()
            return
        failures = {f"{name} {WORDS[type(why)].replace('_', ' ')}": why.reason for name, why in self._failures.items()}
        message = "; ".join(f"{subject}: {why}" for subject, why in failures.items())
        asked = [why.after or 0.0 for why in self._failures.values() if isinstance(why, RetryLater)]
        if any(isinstance(why, Rejected | PartiallyRejected) for why in self._failures.values()):
            asked.append(LONGEST_ASKED)  # as below: somebody has to change something first
        reason = "shutting_down" if _SHUTTING_DOWN in self._failures.values() else "exporter_failed"
        refusal = RefusedError(message, reason=reason, subject=next(iter(failures)))
        refusal.retry_after = math.ceil(min(max([refusal.retry_after, *asked]), LONGEST_ASKED))
        self.future.set_exception(refusal)

    def _accept(self) -> None:
        """Answer once all records are delivered: accept the batch, unless there are items that nothing keeps."""
        if not self._unkept:
            self.future.set_result(self._receipt)
            return
        message = (
            f"without a queue nothing keeps {counted(len(self._unkept), 'change')} that no record can be made of; the "
            f"others of this webhook are delivered; the reason for the first: {self._unkept[0]}"
        )
        # The same webhook is refused again until somebody has changed something.
        refusal = RefusedError(message, reason="not_kept", retry_after=int(LONGEST_ASKED))
        self.future.set_exception(refusal)


class _Worker:
    """Sends to one exporter in one thread. Another keeps the time, so that no send can delay an answer."""

    def __init__(self, name: str, exporter: Exporter, timeout: float) -> None:
        self.name = name
        self.timeout = timeout
        self.state: StateName = "stopped"
        self.hint: str = ""
        self._exporter = Guarded(name, exporter)
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()  # of all below
        self._waiting: deque[_SynchronousBatch] = deque()
        self._sending: list[_SynchronousBatch] = []  # under way, until they are answered
        self._answer_by = 0.0  # when these are refused
        self._end_by = 0.0  # when all ends; infinite until it is closed

    def start(self) -> None:
        self._exporter.start()
        self._end_by, self.state = math.inf, "idle"
        exporters.add(self)
        for role, target in (("exporter", self._send_all), ("deadlines of", self._keep_time)):
            # A daemon, so that a send that hangs does not keep the process alive.
            thread = threading.Thread(target=target, name=f"{role} {self.name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def submit(self, batch: _SynchronousBatch) -> None:
        with self._changed:
            if running := self._end_by == math.inf:
                self._waiting.append(batch)
                self._changed.notify_all()
        if not running:
            batch.done(self.name, _SHUTTING_DOWN)

    def close(self, grace: float) -> None:
        with self._changed:
            self._end_by = min(self._end_by, time.monotonic() + grace)
            waiting, self._waiting = self._waiting, deque()
            self._changed.notify_all()
        self._answer(waiting, _SHUTTING_DOWN)

    def join(self) -> bool:
        """Wait for the end; False if something is left behind."""
        if not self._threads:
            self._exporter.shutdown()
        latest = max(self._end_by, time.monotonic()) + SEND_MARGIN
        for thread in self._threads:
            thread.join(max(0.0, latest - time.monotonic()))
        ended = not any(thread.is_alive() for thread in self._threads)
        if not ended:
            _logger.error("%s: a send or the shutdown hangs; it is left behind", self.name)
        return ended

    def _answer(self, batches: Iterable[_SynchronousBatch], outcome: Outcome) -> None:
        for batch in batches:
            batch.done(self.name, outcome)

    def _keep_time(self) -> None:
        while self._refuse_late():
            pass
        self.state = "stopped"
        exporters.discard(self)
        self._exporter.shutdown()  # ends a send under way

    def _refuse_late(self) -> bool:
        """Refuse late batches, or sleep until one may be late; False once it is closed and nothing is under way."""
        unsent: list[_SynchronousBatch] = []
        unanswered: list[_SynchronousBatch] = []
        with self._changed:
            now = time.monotonic()
            ends = now >= self._end_by
            while self._waiting and self._waiting[0].latest <= now:
                unsent.append(self._waiting.popleft())
            if ends or now >= self._answer_by:
                unanswered, self._sending = self._sending, []
                self._changed.notify_all()
            if not unsent and not unanswered:
                if self._end_by < math.inf and not self._sending:
                    return False
                moments = [self._waiting[0].latest] if self._waiting else []
                moments += [self._answer_by, self._end_by] if self._sending else []
                self._changed.wait(min(moments) - now if moments else None)
        too_many = f"no send began within {SEND_START_TIMEOUT:g} s: too many batches wait for this exporter"
        self._answer(unsent, RetryLater(too_many))
        self._answer(unanswered, _SHUTTING_DOWN if ends else RetryLater(f"no answer within {self.timeout:g} s"))
        return True

    def _send_all(self) -> None:
        goes_on = True
        while goes_on:
            try:
                goes_on = self._send_next()
            except Exception as error:  # too little memory, or a bug of ours: without this thread nothing is ever sent
                _logger.exception("%s: unexpected error of the sender", self.name)
                with self._changed:
                    unsent, self._sending = self._sending, []
                self._answer(unsent, RetryLater(f"unexpected {type(error).__name__}"))

    def _send_next(self) -> bool:
        """Wait for batches and send them, joined; False once it is closed."""
        group = self._next_group()
        latest = time.monotonic() + self.timeout
        links = [link for batch in group for link in batch.links]
        records = [record for one in group for record in one.records]
        outcome, left = self._send(records, range(len(records)), latest, links)
        failed: list[tuple[_SynchronousBatch, list[int]]] = []
        undelivered, end = set(left), 0
        for batch in group:
            begin, end = end, end + len(batch.records)
            if missing := [position for position in range(begin, end) if position in undelivered]:
                failed.append((batch, missing))
            else:
                batch.done(self.name, Delivered())
        if len(failed) > 1 and isinstance(outcome, Rejected | PartiallyRejected):
            # One bad batch must not refuse the others.
            for batch, missing in failed:
                batch.done(self.name, self._send(records, missing, latest, batch.links)[0])
        self._answer((batch for batch, _ in failed), outcome)
        return bool(group)

    def _next_group(self) -> list[_SynchronousBatch]:
        """The first waiting batch, and those behind it that fit into the same send. Empty once it is closed."""
        group: list[_SynchronousBatch] = []
        count = size = 0
        with self._changed:
            self._sending = []
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._end_by < math.inf)
            while self._waiting:
                count += len(self._waiting[0].records)
                size += self._waiting[0].size
                if group and (count > MAX_RECORDS or size > MAX_BYTES):
                    break
                group.append(self._waiting.popleft())
            self._sending = group
            self._answer_by = time.monotonic() + self.timeout + SEND_MARGIN
            self._changed.notify_all()
        return group

    def _send(
        self, records: Sequence[bytes], positions: Iterable[int], latest: float, links: "Sequence[Link]"
    ) -> tuple[Outcome, list[int]]:
        """Send the records at some positions, in parts, until one fails; its outcome, and what was not delivered."""
        parts = deque(_parts(records, positions))
        while parts:
            if time.monotonic() >= self._end_by:  # the exporter is shut down
                outcome: Outcome = _SHUTTING_DOWN
            else:
                outcome = self._send_part([records[one] for one in parts[0]], latest - time.monotonic(), links)
            if not isinstance(outcome, Delivered):
                return outcome, [position for part in parts for position in part]
            part, only = parts.popleft(), outcome.only
            if only is not None and len(only) < len(part):
                taken = {part[index] for index in only}
                parts.appendleft([position for position in part if position not in taken])
        return Delivered(), []

    def _send_part(self, part: Sequence[bytes], timeout: float, links: "Sequence[Link]") -> Outcome:
        if timeout <= 0:
            return RetryLater(f"not everything was sent within {self.timeout:g} s")
        began = time.monotonic()
        if self.state == "idle":
            self.state = "sending"
        outcome = self._exporter.send(b"".join(part), len(part), timeout, links)
        if self.state != "stopped":
            self.state, self.hint = _STATES[type(outcome)], outcome.hint if isinstance(outcome, Blocked) else ""
        report_sent(self.name, outcome, len(part), time.monotonic() - began)
        return outcome


def _parts(records: Sequence[bytes], positions: Iterable[int]) -> Iterator[list[int]]:
    """The positions of records, in order, in parts for one send each."""
    part: list[int] = []
    size = 0
    for position in positions:
        if part and (len(part) == MAX_RECORDS or size + len(records[position]) > MAX_BYTES):
            yield part
            part, size = [], 0
        part.append(position)
        size += len(records[position])
    if part:
        yield part
