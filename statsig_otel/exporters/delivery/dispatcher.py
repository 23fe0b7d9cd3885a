"""The consumer of a service: passes a batch to the synchronous exporters of its receiver, and then to the queue.

Without a queued exporter a batch is accepted once it is delivered; with one, once it is on disk as well. The queue
comes last and alone remembers the uids: a synchronous exporter that fails leaves nothing behind, so the redelivery
reaches all exporters.
"""

from concurrent.futures import Future
from dataclasses import replace

from statsig_otel._futures import pass_on, uncancellable
from statsig_otel.exporters.consumer import Batch, Receipt, refused
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.routing import CurrentRouting


class Dispatcher:
    """Takes batches for the receivers that it knows.

    Args:
        synchronous: Takes the batches of receivers with synchronous exporters.
        queue: Takes the batches of receivers with queued exporters; None if there is no such exporter.
        routing: Which exporters the batches of each receiver are for.
    """

    def __init__(self, synchronous: SynchronousConsumer, queue: DurableQueue | None, routing: CurrentRouting) -> None:
        self._synchronous = synchronous
        self._queue = queue
        self._routing = routing

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Accept one batch; see `Consumer.consume`."""
        routing = self._routing.now  # once: it may change before the batch is in the queue
        if batch.receiver not in routing.receivers:
            return refused(f"there is no receiver {batch.receiver!r} in this service", reason="unknown_receiver")
        route = routing.route(batch.receiver)
        queue = self._queue if route.queued else None
        if queue is None:
            return self._synchronous.consume(batch, route)
        if not route.synchronous:
            return queue.consume(batch, route)
        answer: Future[Receipt] = uncancellable()

        def store(delivered: Future[Receipt]) -> None:
            if error := delivered.exception():
                answer.set_exception(error)
            else:
                pass_on(queue.consume(batch, route), answer)

        # The invalid items go only to the queue's dead letters.
        self._synchronous.consume(replace(batch, invalid=()), route).add_done_callback(store)
        return answer
