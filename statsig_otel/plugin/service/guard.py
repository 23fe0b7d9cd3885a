"""Refuses batches, with a reason, while the service is not running, in a forked child, and for unknown receivers."""

from collections.abc import Collection
from concurrent.futures import Future

from statsig_otel._process import OwnerProcess
from statsig_otel.exporters.consumer import Batch, Consumer, Receipt, RefusedError


class RunningGuard:
    """Passes batches of the known receivers on to a consumer once it is open, in the process that opened it."""

    def __init__(self, consumer: Consumer, receivers: Collection[str]) -> None:
        self._consumer = consumer
        self._receivers = frozenset(receivers)
        self._owner = OwnerProcess()

    def open(self) -> None:
        """Pass batches on from now on."""
        self._owner.enter()

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Take over one batch; see `Consumer.consume`."""
        if batch.receiver not in self._receivers:
            return _refused(f"there is no receiver {batch.receiver!r} in this service", "unknown_receiver")
        if not self._owner.pid:
            return _refused("the service was not started", "not_running")
        if self._owner.is_forked:
            owner = f"the process {self._owner.pid}, of which this is a fork"
            return _refused(f"the service was started by {owner}: start one after the fork", "not_running")
        return self._consumer.consume(batch)


def _refused(message: str, reason: str) -> Future[Receipt]:
    answer: Future[Receipt] = Future()
    answer.set_exception(RefusedError(message, reason=reason))
    return answer
