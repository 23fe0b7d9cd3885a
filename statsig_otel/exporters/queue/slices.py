"""Stores a large batch in slices, one transaction each, so that other webhooks don't have to wait for all of it.

A batch is answered once all of its slices are on disk. If one is refused, so is the batch: when it is delivered again,
the changes of the earlier slices are duplicates, and their invalid items become dead letters once more. What is
remembered of a change is stored with it, and what is remembered of others comes last: what is refused has not come.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import chain
from typing import Final

from statsig_otel._futures import uncancellable
from statsig_otel.exporters.consumer import Batch, Change, Invalid, Receipt

MOST_AT_ONCE: Final = 1000
"""Records and invalid items of a slice, and what is remembered of others. A change is never divided."""


def store(batch: Batch, consume: Callable[[Batch], Future[Receipt]]) -> Future[Receipt]:
    """Store a batch by a function that stores one slice in one transaction.

    Args:
        batch: The batch.
        consume: As `Consumer.consume`. It is called for the next slice after the one before is stored.
    """
    rows = sum(len(change.records) for change in batch.changes) + len(batch.invalid)
    if rows <= MOST_AT_ONCE and len(batch.arrivals) <= MOST_AT_ONCE:
        return consume(batch)
    return _Storing(batch, consume).answer


class _Storing:
    """A batch that is being stored in slices."""

    def __init__(self, batch: Batch, consume: Callable[[Batch], Future[Receipt]]) -> None:
        self.answer: Future[Receipt] = uncancellable()
        self._consume = consume
        self._slices = _slices(batch)
        self._receipt = Receipt(accepted=0)
        self._store_next()

    def _store_next(self) -> None:
        for part in self._slices:
            try:
                stored = self._consume(part)
            except Exception as error:  # noqa: BLE001 - given to whoever waits
                self.answer.set_exception(error)
                return
            if not stored.done():
                stored.add_done_callback(self._resume)
                return
            if not self._add(stored):
                return
        self.answer.set_result(self._receipt)

    def _resume(self, stored: Future[Receipt]) -> None:
        if self._add(stored):
            self._store_next()

    def _add(self, stored: Future[Receipt]) -> bool:
        """Add the receipt of a slice; whether there is one."""
        if error := stored.exception():
            self.answer.set_exception(error)
            return False
        more = stored.result()
        self._receipt = Receipt(self._receipt.accepted + more.accepted, self._receipt.duplicates + more.duplicates)
        return True


def _slices(batch: Batch) -> Iterator[Batch]:
    """The slices of a batch, in its order."""
    changes: list[Change] = []
    invalid: list[Invalid] = []
    arrivals = {one.uid: one for one in batch.arrivals}
    rows = 0

    def part() -> Batch:
        own = [arrivals.pop(change.uid) for change in changes if change.uid in arrivals]
        return replace(batch, changes=tuple(changes), invalid=tuple(invalid), arrivals=tuple(own))

    for one in chain(batch.changes, batch.invalid):
        more = len(one.records) if isinstance(one, Change) else 1
        if rows and rows + more > MOST_AT_ONCE:
            yield part()
            changes, invalid, rows = [], [], 0
        rows += more
        if isinstance(one, Change):
            changes.append(one)
        elif isinstance(one, Invalid):
            invalid.append(one)
    if changes or invalid:
        yield part()
    rest = tuple(arrivals.values())
    for begin in range(0, len(rest), MOST_AT_ONCE):
        yield replace(batch, changes=(), invalid=(), arrivals=rest[begin : begin + MOST_AT_ONCE])
