"""Passes batches on to the exporters; before the service runs, keeps them for a moment or refuses them."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Final

from statsig_otel._arguments import check_type
from statsig_otel._futures import pass_on, uncancellable
from statsig_otel._process import OwnerProcess
from statsig_otel._tracing import remember, tracing
from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError, refused
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.routing import CurrentRouting

_MOST_HELD: Final = 64 << 20
"""The most bytes that are held, those of webhooks that were refused meanwhile included."""

_BATCH_BYTES: Final = 1024
"""Bytes that a batch takes in addition to its records."""


class ServiceConsumer:
    """Passes batches to the synchronous exporters of their receiver, and then to the queue. Safe to use from threads.

    Without a queued exporter a batch is accepted once it is delivered; with one, once it is on disk as well. The queue
    comes last and alone remembers the uids: a synchronous exporter that fails leaves nothing behind, so the redelivery
    reaches all exporters.

    Until the service runs, batches are refused or held. Those that are held are in memory, and their webhooks are not
    answered yet. Each receiver has its `patience` for that; a batch that is passed on after its webhook was refused is
    a duplicate if it comes again.
    """

    def __init__(self) -> None:
        self._owner = OwnerProcess()
        self._pass_on: Callable[[Batch], Future[Receipt]] | None = None
        self._lock = threading.Lock()  # over all below
        self._held: list[tuple[Batch, Future[Receipt]]] | None = None  # None unless it holds them
        self._held_bytes = 0
        self._refusal, self._reason = "the service was not started", "not_running"

    def hold(self) -> None:
        """Hold batches from now on, until `open` or `close`."""
        self._owner.enter()
        with self._lock:
            self._held, self._held_bytes = [], 0

    def open(self, synchronous: SynchronousConsumer, queue: DurableQueue | None, routing: CurrentRouting) -> None:
        """Pass on what is held, and every batch from now on, in this process.

        Args:
            synchronous: Takes the batches of receivers with synchronous exporters.
            queue: Takes the batches of receivers with queued exporters; None if no exporter is queued.
            routing: Which exporters the batches of each receiver are for.
        """
        self._owner.enter()
        consume = partial(_consume, synchronous, queue, routing)
        with self._lock:
            held, self._held = self._held or [], None
            self._pass_on = consume
        for batch, answer in held:
            pass_on(consume(batch), answer)

    def close(self, message: str, *, reason: str) -> None:
        """Refuse what is held, and every batch from now on."""
        with self._lock:
            held, self._held = self._held or [], None
            self._pass_on = None
            self._refusal, self._reason = message, reason
        for _, answer in held:
            answer.set_exception(RefusedError(message, reason=reason))

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Accept one batch; see `Consumer.consume`.

        Raises:
            TypeError: It is not a `Batch`.
        """
        check_type("batch", batch, Batch)
        if tracing.tracer is not None:
            remember(change.uid for change in batch.changes)
        if self._owner.is_forked:
            owner = f"the process {self._owner.pid}, and this is a fork of it"
            return refused(f"the service was started by {owner}: start one after the fork", reason="not_running")
        consume = self._pass_on
        if consume is None:
            with self._lock:
                consume = self._pass_on
                if consume is None:
                    return self._hold(batch)
        return consume(batch)

    def _hold(self, batch: Batch) -> Future[Receipt]:
        if self._held is None:
            return refused(self._refusal, reason=self._reason)
        size = batch.size + _BATCH_BYTES
        if self._held_bytes + size > _MOST_HELD:
            return refused("too much is held until the queue's directory is free", reason="not_running")
        self._held_bytes += size
        answer: Future[Receipt] = uncancellable()
        self._held.append((batch, answer))
        return answer


def _consume(
    synchronous: SynchronousConsumer, queue: DurableQueue | None, routing: CurrentRouting, batch: Batch
) -> Future[Receipt]:
    """Pass on one batch."""
    current = routing.now  # once: it may change before the batch is in the queue
    if batch.receiver not in current.receivers:
        return refused(f"there is no receiver {batch.receiver!r} in this service", reason="unknown_receiver")
    route = current.route(batch.receiver)
    if queue is None or not route.queued:
        return synchronous.consume(batch, route)
    if not route.synchronous:
        return queue.consume(batch, route)
    answer: Future[Receipt] = uncancellable()

    def store(delivered: Future[Receipt]) -> None:
        if error := delivered.exception():
            answer.set_exception(error)
        else:
            pass_on(queue.consume(batch, route), answer)

    # The invalid items go only to the queue's dead letters.
    synchronous.consume(replace(batch, invalid=()), route).add_done_callback(store)
    return answer
