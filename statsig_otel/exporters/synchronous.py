"""A consumer without a queue: a batch is taken over only once every exporter has delivered it.

What a `sending_queue` with `enabled: false` means. One thread for each exporter, so that a slow backend costs a
request no more than its own time. An outcome other than Delivered refuses the batch, whatever it is: there is no place
to keep a record in, so the sender has to keep it.
"""

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from statsig_otel import _telemetry
from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError
from statsig_otel.exporters.exporter import Exporter
from statsig_otel.exporters.outcome import Blocked, Delivered, Outcome, PartiallyRejected, Rejected, RetryLater

_logger: Final = logging.getLogger(__name__)

_MAX_WAIT: Final = 10.0
"""Seconds that a batch waits for its turn. A sender rather hears "later" than nothing."""

_RETRY_AFTER: Final = 10
_MAX_RETRY_AFTER: Final = 3600

_MAX_LOGGED: Final = 8192
"""Bytes of an invalid item that go into the log: without a queue it is the only place that keeps them."""


@dataclass(frozen=True, slots=True)
class Route:
    """One exporter of a pipeline.

    Attributes:
        exporter: The exporter.
        timeout: Seconds for one `send`.
    """

    exporter: Exporter
    timeout: float


class SynchronousConsumer:
    """Delivers each batch to every exporter before it answers.

    Args:
        routes: The exporters, by id.
        receivers: For each receiver the ids of the exporters that its batches are for.
    """

    def __init__(self, routes: Mapping[str, Route], receivers: Mapping[str, Sequence[str]]) -> None:
        self._routes = dict(routes)
        self._receivers = dict(receivers)
        self._threads: dict[str, ThreadPoolExecutor] = {}

    def start(self) -> None:
        """Start the exporters, and a thread for each. Where one fails, those before it are closed again."""
        try:
            for name, route in self._routes.items():
                route.exporter.start()
                self._threads[name] = ThreadPoolExecutor(1, thread_name_prefix=f"exporter {name}")
        except BaseException:
            self.shutdown()
            raise

    def shutdown(self) -> None:
        """Finish what has begun, refuse what waits, close the exporters. Safe to call twice."""
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=True)
        self._threads.clear()
        for route in self._routes.values():
            route.exporter.shutdown()

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Send one batch to all exporters at once; the future fails with `RefusedError` unless all have it."""
        for invalid in batch.invalid:
            text = invalid.text[:_MAX_LOGGED].decode(errors="replace")
            kind = "body" if invalid.whole_body else "item"
            _logger.warning("%s: an invalid %s is kept here alone: %s: %s", batch.receiver, kind, invalid.reason, text)
        records = [record for change in batch.changes for record in change.records]
        exporters = self._receivers[batch.receiver] if records else ()
        delivery = _Delivery(b"".join(records), len(records), Receipt(len(batch.changes)), waiting=len(exporters))
        for name in exporters:
            self._submit(name, self._routes[name], delivery)
        return delivery.future

    def _submit(self, name: str, route: Route, delivery: "_Delivery") -> None:
        def send() -> Outcome:
            if time.monotonic() > delivery.latest:
                return RetryLater("too many batches wait for it")
            return route.exporter.send(delivery.payload, delivery.count, route.timeout)

        def done(sent: Future[Outcome]) -> None:
            outcome = RetryLater("shutting down") if sent.cancelled() else sent.result()
            counter = _telemetry.exporter_sent if isinstance(outcome, Delivered) else _telemetry.exporter_send_failed
            counter.add(delivery.count, {"exporter": name})
            delivery.done(name, outcome)

        try:
            self._threads[name].submit(send).add_done_callback(done)
        except (KeyError, RuntimeError):  # not started, or shut down in the meantime
            delivery.done(name, RetryLater("not running"))


class _Delivery:
    """One batch on its way to all its exporters."""

    def __init__(self, payload: bytes, count: int, receipt: Receipt, *, waiting: int) -> None:
        self.payload = payload
        self.count = count
        self.latest = time.monotonic() + _MAX_WAIT
        self.future: Future[Receipt] = Future()
        self.future.set_running_or_notify_cancel()  # no caller can cancel what is under way
        self._receipt = receipt
        self._waiting = waiting
        self._failures: dict[str, RetryLater | Rejected | PartiallyRejected | Blocked] = {}
        self._lock = threading.Lock()
        if not waiting:
            self.future.set_result(receipt)

    def done(self, name: str, outcome: Outcome) -> None:
        """One exporter is through with the batch; the last one answers."""
        with self._lock:
            self._waiting -= 1
            if not isinstance(outcome, Delivered):
                self._failures[name] = outcome
            if self._waiting:
                return
        if not self._failures:
            self.future.set_result(self._receipt)
            return
        message = "; ".join(f"{name}: {outcome.reason}" for name, outcome in self._failures.items())
        asked = [outcome.after or 0.0 for outcome in self._failures.values() if isinstance(outcome, RetryLater)]
        retry_after = min(max([_RETRY_AFTER, *map(math.ceil, asked)]), _MAX_RETRY_AFTER)
        self.future.set_exception(RefusedError(message, reason="exporter_failed", retry_after=retry_after))
