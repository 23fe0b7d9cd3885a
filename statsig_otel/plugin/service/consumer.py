"""Takes batches while the service runs, holds them while it waits for its directory, and otherwise refuses them."""

import threading
from concurrent.futures import Future
from typing import Final

from statsig_otel._arguments import check_type
from statsig_otel._futures import pass_on, uncancellable
from statsig_otel._process import OwnerProcess
from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError, refused
from statsig_otel.exporters.delivery.dispatcher import Dispatcher

_MOST_HELD: Final = 64 << 20
"""The most bytes that are held, those of webhooks that were refused meanwhile included."""

_BATCH_BYTES: Final = 1024
"""Bytes that a batch takes beside its records."""


class ServiceConsumer:
    """Passes the batches of all receivers to a dispatcher, in the process that opened it. Safe to use from threads.

    Batches are held in memory, and their webhooks are not answered yet. Each receiver has its `patience` for that; a
    batch that is passed on after its webhook was refused is a duplicate if it comes again.
    """

    def __init__(self) -> None:
        self._owner = OwnerProcess()
        self._dispatcher: Dispatcher | None = None
        self._lock = threading.Lock()  # for the next three
        self._held: list[tuple[Batch, Future[Receipt]]] | None = None  # None unless it holds them
        self._held_bytes = 0
        self._refusal, self._reason = "the service was not started", "not_running"

    def hold(self) -> None:
        """Hold batches from now on, until `open` or `close`."""
        self._owner.enter()
        with self._lock:
            self._held, self._held_bytes = [], 0

    def open(self, dispatcher: Dispatcher) -> None:
        """Pass on what is held, and every batch from now on."""
        self._owner.enter()
        with self._lock:
            held, self._held = self._held or [], None
            self._dispatcher = dispatcher
        for batch, answer in held:
            pass_on(dispatcher.consume(batch), answer)

    def close(self, message: str, *, reason: str) -> None:
        """Refuse what is held, and every batch from now on."""
        with self._lock:
            held, self._held = self._held or [], None
            self._dispatcher = None
            self._refusal, self._reason = message, reason
        for _, answer in held:
            answer.set_exception(RefusedError(message, reason=reason))

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Accept one batch; see `Consumer.consume`.

        Raises:
            TypeError: It is not a `Batch`.
        """
        check_type("batch", batch, Batch)
        if self._owner.is_forked:
            owner = f"the process {self._owner.pid}, and this is a fork of it"
            return refused(f"the service was started by {owner}: start one after the fork", reason="not_running")
        dispatcher = self._dispatcher
        if dispatcher is None:
            with self._lock:
                dispatcher = self._dispatcher
                if dispatcher is None:
                    return self._hold(batch)
        return dispatcher.consume(batch)

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
