"""The consumer without a queue: nothing is taken over that an exporter does not have."""

import logging
import threading
from concurrent.futures import Future

import pytest

from statsig_otel.exporters import synchronous
from statsig_otel.exporters.consumer import Batch, Change, Invalid, Receipt, RefusedError
from statsig_otel.exporters.outcome import Blocked, Delivered, Outcome, PartiallyRejected, Rejected, RetryLater
from statsig_otel.exporters.synchronous import Route, SynchronousConsumer


class Backend:
    """An exporter that keeps what it is sent, and answers as told."""

    def __init__(self, outcome: Outcome | None = None, *, gate: threading.Event | None = None) -> None:
        self.outcome = outcome or Delivered()
        self.gate = gate
        self.sent: list[tuple[bytes, int, float]] = []
        self.log: list[str] = []
        self.sending = 0

    def start(self) -> None:
        self.log.append("start")

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        self.sending += 1
        assert self.sending == 1, "one send at a time"
        if self.gate is not None:
            assert self.gate.wait(10)
        self.sent.append((payload, count, timeout))
        self.sending -= 1
        return self.outcome

    def shutdown(self) -> None:
        self.log.append("shutdown")


class BrokenBackend(Backend):
    def start(self) -> None:
        raise OSError("no such file")


def batch(*names: str, receiver: str = "statsig") -> Batch:
    return Batch(receiver, tuple(Change(name, (name.encode(),)) for name in names))


def consumer(receivers: dict[str, list[str]] | None = None, /, **backends: Backend) -> SynchronousConsumer:
    routes = {name: Route(backend, 1.5) for name, backend in backends.items()}
    made = SynchronousConsumer(routes, receivers or {"statsig": list(backends)})
    made.start()
    return made


def test_a_batch_is_taken_once_all_exporters_have_it() -> None:
    gate = threading.Event()
    fast, slow = Backend(), Backend(gate=gate)
    made = consumer(fast=fast, slow=slow)
    future = made.consume(batch("a", "b"))
    with pytest.raises(TimeoutError):
        future.result(0.2)
    gate.set()
    assert future.result(10) == Receipt(accepted=2)
    assert fast.sent == slow.sent == [(b"ab", 2, 1.5)]
    made.shutdown()


def test_several_records_of_a_change_count_as_one_item_and_go_as_all_records() -> None:
    backend = Backend()
    made = consumer(one=backend)
    receipt = made.consume(Batch("statsig", (Change("a", (b"1", b"2")),))).result(10)
    assert (receipt, backend.sent) == (Receipt(accepted=1), [(b"12", 2, 1.5)])
    made.shutdown()


@pytest.mark.parametrize(
    ("outcome", "retry_after"),
    [
        (RetryLater("down"), 10),
        (RetryLater("down", 42.1), 43),
        (RetryLater("down", 1e9), 3600),
        (Rejected("bad"), 10),
        (PartiallyRejected(1, "bad"), 10),
        (Blocked("key"), 10),
    ],
)
def test_any_outcome_but_delivered_refuses_the_batch(outcome: Outcome, retry_after: int) -> None:
    good, bad = Backend(), Backend(outcome)
    made = consumer(good=good, bad=bad)
    with pytest.raises(RefusedError, match=r"^bad: ") as refused:
        made.consume(batch("a")).result(10)
    assert (refused.value.reason, refused.value.retry_after) == ("exporter_failed", retry_after)
    assert len(good.sent) == 1
    made.shutdown()


def test_each_receiver_reaches_its_own_exporters() -> None:
    one, two = Backend(), Backend()
    made = consumer({"statsig": ["one"], "statsig/eu": ["one", "two"]}, one=one, two=two)
    made.consume(batch("a")).result(10)
    made.consume(batch("b", receiver="statsig/eu")).result(10)
    assert [sent[0] for sent in one.sent] == [b"a", b"b"]
    assert [sent[0] for sent in two.sent] == [b"b"]
    made.shutdown()


def test_invalid_items_alone_are_kept_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    made = consumer(one=backend)
    with caplog.at_level(logging.WARNING):
        receipt = made.consume(Batch("statsig", invalid=(Invalid(b'{"x": 1}', "no name"),))).result(10)
    assert receipt == Receipt(accepted=0)
    assert not backend.sent
    assert "no name" in caplog.text
    assert '{"x": 1}' in caplog.text
    made.shutdown()


def test_many_callers_at_a_time_are_served_one_by_one() -> None:
    backend = Backend()
    made = consumer(one=backend)
    futures = [made.consume(batch(str(number))) for number in range(50)]
    assert all(future.result(10) == Receipt(accepted=1) for future in futures)
    assert len(backend.sent) == 50
    made.shutdown()


def test_a_batch_that_waits_too_long_for_its_turn_is_refused_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synchronous, "_MAX_WAIT", 0.1)
    gate = threading.Event()
    backend = Backend(gate=gate)
    made = consumer(one=backend)
    first, second = made.consume(batch("a")), made.consume(batch("b"))
    with pytest.raises(TimeoutError):
        first.result(0.3)
    gate.set()
    assert first.result(10) == Receipt(accepted=1)
    with pytest.raises(RefusedError, match="too many"):
        second.result(10)
    assert [sent[0] for sent in backend.sent] == [b"a"]
    made.shutdown()


def test_shutdown_finishes_what_has_begun_and_refuses_the_rest() -> None:
    gate = threading.Event()
    backend = Backend(gate=gate)
    made = consumer(one=backend)
    first, second = made.consume(batch("a")), made.consume(batch("b"))
    threading.Timer(0.2, gate.set).start()
    made.shutdown()
    assert first.result(0) == Receipt(accepted=1)
    with pytest.raises(RefusedError):
        second.result(0)
    with pytest.raises(RefusedError):
        made.consume(batch("c")).result(0)
    assert backend.log == ["start", "shutdown"]


def test_shutdown_is_safe_twice_and_without_a_start() -> None:
    backend = Backend()
    made = SynchronousConsumer({"one": Route(backend, 1)}, {"statsig": ["one"]})
    made.shutdown()
    made.shutdown()
    assert isinstance(made.consume(batch("a")).exception(0), RefusedError)


def test_an_exporter_that_can_not_start_closes_those_before_it() -> None:
    good = Backend()
    made = SynchronousConsumer({"good": Route(good, 1), "bad": Route(BrokenBackend(), 1)}, {"statsig": ["good"]})
    with pytest.raises(OSError, match="no such file"):
        made.start()
    assert good.log == ["start", "shutdown"]


def test_the_future_can_not_be_cancelled_by_who_waits() -> None:
    gate = threading.Event()
    made = consumer(one=Backend(gate=gate))
    future: Future[Receipt] = made.consume(batch("a"))
    assert not future.cancel()
    gate.set()
    assert future.result(10) == Receipt(accepted=1)
    made.shutdown()
