"""How a consumer without a queue ends: what it still sends, and what it refuses."""

import threading

import pytest

from statsig_otel.exporters.consumer import Receipt, RefusedError
from statsig_otel.exporters.delivery import synchronous
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer, SynchronousExporter
from statsig_otel.exporters.exporter import Delivered, Outcome
from tests.exporters.delivery.test_synchronous import Backend, batch, consume, consumer, held, refusal


def test_close_refuses_at_once_what_waits_and_what_comes() -> None:
    gate = threading.Event()
    backend = Backend(gate=gate)
    made = consumer(one=backend)
    with held(made, backend, gate) as first:
        second = consume(made, batch("b"))
        made.close(grace=10)
        for future in (second, consume(made, batch("c"))):
            refused = future.exception(0)
            assert isinstance(refused, RefusedError)
            assert (str(refused), refused.reason) == ("one retry later: shutting down", "shutting_down")
        assert not backend.closed.is_set()
    assert first.result(10) == Receipt(accepted=1)
    assert backend.closed.wait(10)
    made.shutdown()
    assert backend.log == ["start", "shutdown"]


def test_close_ends_a_send_after_the_grace() -> None:
    gate = threading.Event()
    backend = Backend(gate=gate)
    made = consumer(timeout=60, one=backend)
    future = consume(made, batch("a"))
    assert backend.begun.acquire(timeout=10)
    made.close(grace=0.1)
    refused = refusal(future)
    assert (str(refused), refused.reason) == ("one retry later: shutting down", "shutting_down")
    assert backend.closed.wait(10)
    assert gate.is_set()
    made.shutdown()


def test_a_shutdown_stops_between_two_sends_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synchronous, "SEND_MARGIN", 30)  # nothing is left behind on a slow machine

    def take_the_first(payload: bytes) -> Outcome:
        sent.append(payload)
        late.append(backend.closed.is_set())
        if payload.startswith(b"e"):
            middle.set()
            assert backend.closed.wait(60)
        return Delivered(only=[0])

    sent: list[bytes] = []
    late: list[bool] = []
    middle = threading.Event()
    backend = Backend(take_the_first)
    made = consumer(timeout=60, one=backend)
    future = consume(made, batch(*"abcdefgh"))
    assert middle.wait(10)
    assert made.shutdown(grace=0)
    assert refusal(future).reason == "shutting_down"
    assert [payload[:1] for payload in sent] == [b"a", b"b", b"c", b"d", b"e"]
    assert not any(late)


def test_shutdown_shortens_the_grace_of_an_earlier_close() -> None:
    gate = threading.Event()
    backend = Backend(gate=gate)
    made = consumer(timeout=60, one=backend)
    future = consume(made, batch("a"))
    assert backend.begun.acquire(timeout=10)
    made.close(grace=60)
    made.shutdown(grace=0)
    assert refusal(future).reason == "shutting_down"
    assert backend.closed.wait(10)


def test_shutdown_finishes_what_has_begun_and_refuses_the_rest() -> None:
    gate = threading.Event()
    backend = Backend(gate=gate)
    made = consumer(one=backend)
    first = consume(made, batch("a"))
    assert backend.begun.acquire(timeout=10)
    second = consume(made, batch("b"))
    second.add_done_callback(lambda _: gate.set())
    assert made.shutdown(grace=10)
    assert first.result(0) == Receipt(accepted=1)
    with pytest.raises(RefusedError):
        second.result(0)
    with pytest.raises(RefusedError):
        consume(made, batch("c")).result(0)
    assert backend.log == ["start", "shutdown"]


def test_shutdown_is_safe_twice_and_without_a_start() -> None:
    backend = Backend()
    made = SynchronousConsumer({"one": SynchronousExporter(backend, 1)})
    made.shutdown()
    made.shutdown()
    assert isinstance(consume(made, batch("a")).exception(0), RefusedError)
