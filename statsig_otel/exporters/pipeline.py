"""The consumer of a service: for each receiver first its synchronous exporters, all of them, then the durable queue.

With no queued exporter a receiver's batches are taken over once they are delivered; with one, once they are on disk as
well. The queue comes last and alone remembers the uids: a synchronous exporter that fails leaves nothing behind, so the
redelivery reaches all.
"""

from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import replace

from statsig_otel.exporters.consumer import Batch, Receipt
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.synchronous import SynchronousConsumer


class Pipeline:
    """Hands each batch on, in that order.

    Args:
        synchronous: Takes the batches of receivers with synchronous exporters.
        queue: Takes the batches of receivers with queued ones; None where there is no such exporter.
        delivered: The receivers with a synchronous exporter.
        queued: The receivers with a queued one.
    """

    def __init__(
        self,
        synchronous: SynchronousConsumer,
        queue: DurableQueue | None,
        *,
        delivered: Collection[str],
        queued: Collection[str],
    ) -> None:
        self._synchronous = synchronous
        self._queue = queue
        self._routes = (frozenset(delivered), frozenset(queued))

    def reconfigure(self, *, delivered: Collection[str], queued: Collection[str]) -> None:
        """Take over other receivers, as in the constructor, while it runs."""
        self._routes = (frozenset(delivered), frozenset(queued))

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Take over one batch; see `Consumer.consume`."""
        delivered, queued = self._routes
        queue = self._queue if batch.receiver in queued else None
        if queue is None:
            return self._synchronous.consume(batch)
        if batch.receiver not in delivered:
            return queue.consume(batch)
        answer: Future[Receipt] = Future()
        answer.set_running_or_notify_cancel()

        def store(delivered: Future[Receipt]) -> None:
            if error := delivered.exception():
                answer.set_exception(error)
                return
            queue.consume(batch).add_done_callback(finish)

        def finish(stored: Future[Receipt]) -> None:
            if error := stored.exception():
                answer.set_exception(error)
            else:
                answer.set_result(stored.result())

        # The invalid items go to the queue's dead letters alone.
        self._synchronous.consume(replace(batch, invalid=())).add_done_callback(store)
        return answer
