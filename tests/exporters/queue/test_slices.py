"""A large batch is stored in slices: all of it, in order, and others come between."""

from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.consumer import Batch, Change, Invalid, Receipt, RefusedError, refused
from statsig_otel.exporters.queue import slices
from statsig_otel.exporters.queue.slices import MOST_AT_ONCE, store
from tests.exporters.queue.helpers import PATIENCE, batch, consume, delivered, running

RECORDS = st.lists(st.integers(1, 700), max_size=8)


@given(RECORDS, st.integers(0, 2500), st.integers(0, 2500), st.booleans())
@example(records=[1, 2], bad=998, dropped=0, later=False)  # one row too many
@example(records=[1], bad=0, dropped=1000, later=True)
def test_every_item_is_in_one_slice(records: list[int], bad: int, dropped: int, later: bool) -> None:
    """Whether a slice is stored at once or after a while."""
    changes = tuple(Change(f"{place:032x}", (b"r",) * number) for place, number in enumerate(records))
    invalid = tuple(Invalid(str(number).encode(), "?") for number in range(bad))
    parts: list[Batch] = []
    waiting: list[tuple[Future[Receipt], Receipt]] = []

    def store_part(part: Batch) -> Future[Receipt]:
        parts.append(part)
        receipt = Receipt(len(part.changes), duplicates=len(part.invalid))
        future: Future[Receipt] = Future()
        waiting.append((future, receipt))
        if not later:
            future.set_result(receipt)
        return future

    arrivals = tuple(Arrival(f"{number:032x}", number, "gate") for number in range(len(changes) + dropped))
    answer = store(Batch("statsig", changes, invalid, arrivals), store_part)
    if later:
        while waiting:
            assert not answer.done()
            future, receipt = waiting.pop()
            assert not waiting, "a slice is stored after the one before"
            future.set_result(receipt)
    assert answer.result(0) == Receipt(len(changes), duplicates=len(invalid))
    assert sum((part.changes for part in parts), ()) == changes
    assert sum((part.invalid for part in parts), ()) == invalid
    assert sorted((one for part in parts for one in part.arrivals), key=lambda one: one.second) == [*arrivals]
    if len(parts) > 1:  # what is remembered of a change is not stored before or after it
        for part in parts:
            assert {one.uid for one in part.changes} <= {one.uid for one in part.arrivals}
            assert len(part.arrivals) <= MOST_AT_ONCE
    for part in parts:
        rows = sum(len(change.records) for change in part.changes) + len(part.invalid)
        assert rows <= MOST_AT_ONCE or (len(part.changes), len(part.invalid)) == (1, 0)
        assert part.receiver == "statsig"


@pytest.mark.parametrize("error", [RefusedError("full", reason="queue_full"), RuntimeError("forked")])
def test_a_slice_that_is_refused_refuses_the_batch(error: Exception) -> None:
    calls: list[Batch] = []

    def store_part(part: Batch) -> Future[Receipt]:
        calls.append(part)
        if len(calls) == 3:
            if isinstance(error, RefusedError):
                return refused(str(error), reason=error.reason)
            raise error
        future: Future[Receipt] = Future()
        future.set_result(Receipt(0))
        return future

    answer = store(batch(invalid=5 * MOST_AT_ONCE), store_part)
    assert str(answer.exception(0)) == str(error)
    assert len(calls) == 3


def test_another_webhook_does_not_wait_for_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "MOST_AT_ONCE", 10)
    answered: list[str] = []
    with running(tmp_path) as queue:
        small: list[Future[Receipt]] = []

        def store_part(part: Batch) -> Future[Receipt]:
            stored = consume(queue, part)
            if not small:  # it comes when the large one has just begun
                small.append(consume(queue, batch(1)))
                small[0].add_done_callback(lambda _: answered.append("small"))
            return stored

        large = store(batch(*range(100, 150), 100, invalid=50), store_part)
        large.add_done_callback(lambda _: answered.append("large"))
        assert large.result(PATIENCE) == Receipt(50, duplicates=1)
        assert answered == ["small", "large"]
        assert sorted(delivered(queue.cursor("otlp"))) == [1, *range(100, 150)]
