"""The consumer of a service: gives each batch to all synchronous exporters of its receiver, then to the durable queue.

A batch is accepted once it is delivered and, if the receiver has queued exporters, on disk. The queue comes last and is
the only one to remember uids: after a synchronous exporter fails, a redelivery reaches all.
"""

from concurrent.futures import Future
from dataclasses import replace

from statsig_otel.exporters.consumer import Batch, Receipt
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.routing import CurrentRouting


class Pipeline:
    """Hands each batch on, in that order. The queue is None if there is no queued exporter."""

    def __init__(self, synchronous: SynchronousConsumer, queue: DurableQueue | None, routing: CurrentRouting) -> None:
        self._synchronous = synchronous
        self._queue = queue
        self._routing = routing

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Accept one batch; see `Consumer.consume`."""
        route = self._routing.now.route(batch.receiver)  # once, since it may change before the batch is in the queue
        queue = self._queue if route.queued else None
        if queue is None:
            return self._synchronous.consume(batch, route)
        if not route.synchronous:
            return queue.consume(batch, route)
        answer: Future[Receipt] = Future()
        answer.set_running_or_notify_cancel()

        def store(delivered: Future[Receipt]) -> None:
            if error := delivered.exception():
                answer.set_exception(error)
                return
            queue.consume(batch, route).add_done_callback(finish)

        def finish(stored: Future[Receipt]) -> None:
            if error := stored.exception():
                answer.set_exception(error)
            else:
                answer.set_result(stored.result())

        # The invalid items go only to the queue's dead letters.
        self._synchronous.consume(replace(batch, invalid=()), route).add_done_callback(store)
        return answer
