"""The consumer of a service as its receivers and its embedder have it: what can't be taken is refused, and says why."""

import os
from collections.abc import Collection
from concurrent.futures import Future

from statsig_otel.exporters.consumer import Batch, Consumer, Receipt, RefusedError

_RETRY_AFTER = 10


class RunningGuard:
    """Hands batches on once it is open, in the process that opened it.

    Args:
        consumer: Where the batches go.
        receivers: The ids of those whose batches it takes: nobody would get any other's.
    """

    def __init__(self, consumer: Consumer, receivers: Collection[str]) -> None:
        self._consumer = consumer
        self._receivers = frozenset(receivers)
        self._pid = 0

    def open(self) -> None:
        """Take batches from now on."""
        self._pid = os.getpid()

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Take over one batch; see `Consumer.consume`."""
        if batch.receiver not in self._receivers:
            return _refused(f"there is no receiver {batch.receiver!r} in this service", "unknown_receiver")
        if self._pid != os.getpid():
            if not self._pid:
                return _refused("the service was not started", "not_running")
            owner = f"the process {self._pid}, of which this is a fork"
            return _refused(f"the service was started by {owner}: start one after the fork", "not_running")
        return self._consumer.consume(batch)


def _refused(message: str, reason: str) -> Future[Receipt]:
    answer: Future[Receipt] = Future()
    answer.set_exception(RefusedError(message, reason=reason, retry_after=_RETRY_AFTER))
    return answer
