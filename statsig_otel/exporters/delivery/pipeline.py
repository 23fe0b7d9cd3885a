"""The consumer of a service: for each receiver first its synchronous exporters, all of them, then the durable queue.

With no queued exporter a receiver's batches are taken over once they are delivered; with one, once they are on disk as
well. The queue comes last and alone remembers the uids: a synchronous exporter that fails leaves nothing behind, so the
redelivery reaches all.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from statsig_otel.exporters.consumer import Batch, Receipt
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.routing import Routing


@dataclass(frozen=True, slots=True)
class _Routes:
    """Whom a batch is for, of one moment."""

    delivered: Mapping[str, Sequence[str]]
    plan: Routing


class Pipeline:
    """Hands each batch on, in that order.

    Args:
        synchronous: Takes the batches of receivers with synchronous exporters.
        queue: Takes the batches of receivers with queued ones; None where there is no such exporter.
        delivered: The synchronous exporters of each receiver that has any.
    """

    def __init__(
        self,
        synchronous: SynchronousConsumer,
        queue: DurableQueue | None,
        *,
        delivered: Mapping[str, Sequence[str]],
    ) -> None:
        self._synchronous = synchronous
        self._queue = queue
        self._routes = _Routes(dict(delivered), queue.plan if queue else Routing({}, {}))

    def reconfigure(self, *, delivered: Mapping[str, Sequence[str]]) -> None:
        """Take over other exporters while it runs, and what the queue was told: both at once."""
        self._routes = _Routes(dict(delivered), self._queue.plan if self._queue else Routing({}, {}))

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Take over one batch; see `Consumer.consume`."""
        # Looked up once. While the configuration changes both consumers serve the exporters of before and after.
        routes = self._routes
        exporters = routes.delivered.get(batch.receiver, ())
        queue = self._queue if batch.receiver in routes.plan.receivers else None
        if queue is None:
            return self._synchronous.consume(batch, exporters)
        if not exporters:
            return queue.consume(batch, routes.plan)
        answer: Future[Receipt] = Future()
        answer.set_running_or_notify_cancel()

        def store(delivered: Future[Receipt]) -> None:
            if error := delivered.exception():
                answer.set_exception(error)
                return
            queue.consume(batch, routes.plan).add_done_callback(finish)

        def finish(stored: Future[Receipt]) -> None:
            if error := stored.exception():
                answer.set_exception(error)
            else:
                answer.set_result(stored.result())

        # The invalid items go to the queue's dead letters alone.
        self._synchronous.consume(replace(batch, invalid=()), exporters).add_done_callback(store)
        return answer
