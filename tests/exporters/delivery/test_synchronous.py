"""The consumer without a queue: nothing is accepted that an exporter does not have."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from statsig_otel.exporters.consumer import Batch, Change, Invalid, Receipt, RefusedError
from statsig_otel.exporters.delivery import synchronous
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer, SynchronousExporter
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, PartiallyRejected, Rejected, RetryLater
from statsig_otel.exporters.local.debug import DebugExporter, DebugSettings
from statsig_otel.exporters.routing import Route
from tests.exporters.delivery.helpers import encoded


class Backend:
    """An exporter that keeps what it is sent, and answers as told: the same to all, or as a function says."""

    def __init__(
        self,
        outcome: Outcome | Callable[[bytes], Outcome] | None = None,
        *,
        gate: threading.Event | None = None,
        stoppable: bool = True,
    ) -> None:
        self.outcome = outcome or Delivered()
        self.gate = gate
        self.stoppable = stoppable
        self.begun = threading.Semaphore(0)
        self.sent: list[tuple[bytes, int]] = []
        self.timeouts: list[float] = []
        self.log: list[str] = []
        self.closed = threading.Event()
        self.sending = 0

    def start(self) -> None:
        self.log.append("start")

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        self.sending += 1
        assert self.sending == 1, "one send at a time"
        self.begun.release()
        if self.gate is not None:
            assert self.gate.wait(10)
        self.sent.append((payload, count))
        self.timeouts.append(timeout)
        self.sending -= 1
        return self.outcome(payload) if callable(self.outcome) else self.outcome

    def shutdown(self) -> None:
        self.log.append("shutdown")
        self.closed.set()
        if self.gate is not None and self.stoppable:
            self.outcome = RetryLater("cancelled")
            self.gate.set()


class BrokenBackend(Backend):
    def start(self) -> None:
        raise OSError("no such file")


def batch(*names: str, receiver: str = "statsig") -> Batch:
    return Batch(receiver, tuple(Change("0" * 32, (name.encode(),)) for name in names))


def consumer(timeout: float = 5.0, **backends: Backend) -> SynchronousConsumer:
    made = SynchronousConsumer({name: SynchronousExporter(backend, timeout) for name, backend in backends.items()})
    made.start()
    return made


def consume(made: SynchronousConsumer, batch: Batch, *exporters: str) -> Future[Receipt]:
    """Hand over a batch for some exporters, or for all."""
    route = Route(synchronous=exporters or tuple(made._workers), private=batch.receiver == "statsig/private")
    return made.consume(batch, route)


def refusal(future: Future[Receipt]) -> RefusedError:
    """What the batch is refused with, within 10 s."""
    error = future.exception(10)
    assert isinstance(error, RefusedError)
    return error


@contextmanager
def held(made: SynchronousConsumer, backend: Backend, gate: threading.Event) -> Iterator[Future[Receipt]]:
    """What is consumed within it waits behind a send under way, and is in the queue when that one ends."""
    future = consume(made, batch("first"))
    assert backend.begun.acquire(timeout=10)
    yield future
    gate.set()


def fill(pipe: int) -> int:
    """Write until the pipe takes no more; how many bytes that is."""
    os.set_blocking(pipe, False)
    filled = 0
    try:
        while True:
            filled += os.write(pipe, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(pipe, True)
    return filled


def test_a_batch_is_taken_once_all_exporters_have_it() -> None:
    gate = threading.Event()
    fast, slow = Backend(), Backend(gate=gate)
    made = consumer(fast=fast, slow=slow)
    future = consume(made, batch("a", "b"))
    with pytest.raises(TimeoutError):
        future.result(0.2)
    gate.set()
    assert future.result(10) == Receipt(accepted=2)
    assert fast.sent == slow.sent == [(b"ab", 2)]
    assert 0 < fast.timeouts[0] <= 5.0
    made.shutdown()


def test_several_records_of_a_change_count_as_one_item_and_go_as_all_records() -> None:
    backend = Backend()
    made = consumer(one=backend)
    receipt = consume(made, Batch("statsig", (Change("0" * 32, (b"1", b"2")),))).result(10)
    assert (receipt, backend.sent) == (Receipt(accepted=1), [(b"12", 2)])
    made.shutdown()


@pytest.mark.parametrize(
    ("outcome", "message", "retry_after"),
    [
        (RetryLater("down"), "bad retry later: down", 10),
        (RetryLater("down", 42.1), "bad retry later: down", 43),
        (RetryLater("down", 1e9), "bad retry later: down", 3600),
        (Rejected("data"), "bad rejected: data", 3600),
        (PartiallyRejected(1, "data"), "bad partially rejected: data", 3600),
        (Blocked("key"), "bad blocked: key", 10),
    ],
)
def test_any_outcome_but_delivered_refuses_the_batch(outcome: Outcome, message: str, retry_after: int) -> None:
    good, bad = Backend(), Backend(outcome)
    made = consumer(good=good, bad=bad)
    refused = refusal(consume(made, batch("a")))
    assert (str(refused), refused.reason, refused.retry_after) == (message, "exporter_failed", retry_after)
    assert refused.subject == message.partition(":")[0]
    assert len(good.sent) == 1
    made.shutdown()


def test_the_refusal_names_every_exporter_that_failed() -> None:
    made = consumer(one=Backend(Blocked("key")), two=Backend(), three=Backend(RetryLater("down")))
    parts = str(refusal(consume(made, batch("a")))).split("; ")
    assert sorted(parts) == ["one blocked: key", "three retry later: down"]
    made.shutdown()


def test_an_exporter_that_raises_refuses_the_batch_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """An exporter must not raise. If one does, the request gets its answer, and the log the traceback."""

    def fail(payload: bytes) -> Outcome:
        if payload == b"a":
            raise ZeroDivisionError("a mistake")
        return Delivered()

    made = consumer(one=Backend(fail))
    refused = refusal(consume(made, batch("a")))
    assert (str(refused), refused.reason) == ("one blocked: unexpected ZeroDivisionError", "exporter_failed")
    assert "Traceback" in caplog.text
    assert "a mistake" in caplog.text
    assert consume(made, batch("b")).result(10) == Receipt(accepted=1)
    made.shutdown()


def test_too_little_memory_to_join_a_batch_refuses_it_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the exporter's thread all later batches would be refused."""

    def too_little(*_: object) -> Iterator[list[int]]:
        raise MemoryError

    made = consumer(one=Backend())
    with monkeypatch.context() as short:
        short.setattr(synchronous, "_parts", too_little)
        assert str(refusal(consume(made, batch("a")))) == "one retry later: unexpected MemoryError"
    assert consume(made, batch("b")).result(10) == Receipt(accepted=1)
    assert "one: unexpected error of the sender" in caplog.text
    made.shutdown()


def test_each_receiver_reaches_its_own_exporters() -> None:
    one, two = Backend(), Backend()
    made = consumer(one=one, two=two)
    consume(made, batch("a"), "one").result(10)
    consume(made, batch("b", receiver="statsig/eu"), "one", "two").result(10)
    assert [sent[0] for sent in one.sent] == [b"a", b"b"]
    assert [sent[0] for sent in two.sent] == [b"b"]
    made.shutdown()


def test_an_item_that_nothing_keeps_refuses_its_webhook_once_the_rest_is_delivered() -> None:
    """A 200 would acknowledge a change that is then lost. The answer to an unreadable body is 400 in any case."""
    unmade = tuple(Invalid(b"{}", reason) for reason in ("is too large", "no name"))
    unreadable = (Invalid(b"{", "no JSON", whole_body=True),)
    why = (
        "without a queue nothing keeps 2 changes that no record can be made of; the others of this webhook are "
        "delivered; the reason for the first: is too large"
    )
    good, bad = Backend(), Backend(RetryLater("down"))
    made = consumer(good=good, bad=bad)
    for changes in (batch("a").changes, ()):
        refused = refusal(consume(made, Batch("statsig", changes, unmade), "good"))
        assert (str(refused), refused.reason, refused.retry_after) == (why, "not_kept", 3600)
    assert [payload for payload, _ in good.sent] == [b"a"]
    assert refusal(consume(made, Batch("statsig", batch("b").changes, unmade), "bad")).reason == "exporter_failed"
    assert consume(made, Batch("statsig", invalid=unreadable), "good").result(10) == Receipt(accepted=0)
    made.shutdown()


def warnings_for(batch: Batch, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of a batch that holds nothing to send."""
    backend = Backend()
    made = consumer(one=backend)
    with caplog.at_level(logging.WARNING):
        consume(made, batch).exception(10)
    assert not backend.sent
    made.shutdown()
    return [record.getMessage() for record in caplog.records]


def test_invalid_items_are_logged_as_one_harmless_line_each(caplog: pytest.LogCaptureFixture) -> None:
    invalid = (Invalid(b'{"x":\n\x1b[1m \xff}', "no name"), Invalid("é".encode() * 9000, "no JSON", whole_body=True))
    item, body = warnings_for(Batch("statsig", invalid=invalid), caplog)
    assert item.startswith("statsig: an invalid item of 13 bytes ")
    assert item.endswith(r': no name: {"x":\n\x1b[1m \xff}')
    assert body.startswith("statsig: an invalid body of 18000 bytes ")
    assert body.endswith(": no JSON: " + "é" * 1024)


def test_of_many_invalid_items_the_log_shows_the_first_and_counts_the_others(caplog: pytest.LogCaptureFixture) -> None:
    many = tuple(Invalid(b"\0" * 3000, f"number {number}") for number in range(1000))
    lines = warnings_for(Batch("statsig", invalid=many), caplog)
    assert len(lines) == 11
    assert "number 9" in lines[9]
    assert max(map(len, lines)) < 2200
    assert lines[10] == "statsig: and 990 more invalid items in the same request"


def test_the_text_of_a_private_receiver_stays_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = warnings_for(Batch("statsig/private", invalid=(Invalid(b"somebody", "no name"),)), caplog)
    assert "of 8 bytes" in line
    assert "no name" in line
    assert "somebody" not in line


def test_what_waits_is_joined_into_one_send() -> None:
    gate = threading.Event()
    backend = Backend(gate=gate)
    made = consumer(one=backend)
    with held(made, backend, gate) as first:
        futures = [consume(made, batch(str(number))) for number in range(30)]
    assert all(future.result(10) == Receipt(accepted=1) for future in [first, *futures])
    assert backend.sent == [(b"first", 1), ("".join(map(str, range(30))).encode(), 30)]
    made.shutdown()


def test_a_joined_send_keeps_to_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synchronous, "MAX_RECORDS", 4)
    monkeypatch.setattr(synchronous, "MAX_BYTES", 10)
    gate = threading.Event()
    backend = Backend(gate=gate)
    made = consumer(one=backend)
    with held(made, backend, gate):
        futures = [consume(made, batch(*names)) for names in ("abc", "d", "ef", ["g" * 9], "h", "i", "jklmn")]
    assert all(future.result(10) for future in futures)
    sent = [payload for payload, _ in backend.sent]
    assert sent == [b"first", b"abcd", b"ef", b"gggggggggh", b"i", b"jklm", b"n"]
    made.shutdown()


@pytest.mark.parametrize("refused", [Rejected("bad data"), PartiallyRejected(1, "bad data")])
def test_one_bad_batch_does_not_refuse_those_it_was_joined_with(refused: Outcome) -> None:
    gate = threading.Event()
    backend = Backend(lambda payload: refused if b"bad" in payload else Delivered(), gate=gate)
    made = consumer(one=backend)
    with held(made, backend, gate):
        before, bad, behind = (consume(made, batch(name)) for name in ("before", "bad", "behind"))
    assert before.result(10) == behind.result(10) == Receipt(accepted=1)
    assert "bad data" in str(refusal(bad))
    assert [payload for payload, _ in backend.sent] == [b"first", b"beforebadbehind", b"before", b"bad", b"behind"]
    made.shutdown()


@pytest.mark.parametrize("failure", [RetryLater("503"), Rejected("400"), Blocked("401")])
def test_if_only_the_first_records_were_taken_only_the_other_batches_are_refused(failure: Outcome) -> None:
    def answer(sent: bytes) -> Outcome:
        taken = sent.partition(b"!")[0]
        return Delivered() if taken == sent else Delivered(range(len(taken))) if taken else failure

    gate = threading.Event()
    backend = Backend(answer, gate=gate)
    made = consumer(out=backend)
    with held(made, backend, gate):
        taken, refused = consume(made, batch("a", "b")), consume(made, batch("c", "!"))
    assert taken.result(10) == Receipt(2)
    assert refusal(refused).reason == "exporter_failed"
    assert backend.sent[1:] == [(b"abc!", 4), (b"!", 1)]
    made.shutdown()


@pytest.mark.parametrize("failure", [RetryLater("503"), Rejected("400"), Blocked("401")])
def test_if_some_records_were_taken_the_others_are_sent_alone(failure: Outcome) -> None:
    """Even those behind a record that fails, and never again with one that was taken."""

    def answer(sent: bytes) -> Outcome:
        taken = [index for index, name in enumerate(sent.decode()) if name.islower()]
        return Delivered() if len(taken) == len(sent) else Delivered(taken) if taken else failure

    gate = threading.Event()
    backend = Backend(answer, gate=gate)
    made = consumer(out=backend)
    with held(made, backend, gate):
        futures = [consume(made, batch(*names)) for names in ("ab", "cXd", "e", "Y", "f")]
    assert [future.result(10) for future in futures[::2]] == [Receipt(2), Receipt(1), Receipt(1)]
    assert {refusal(future).reason for future in (futures[1], futures[3])} == {"exporter_failed"}
    alone = [(b"X", 1), (b"Y", 1)] if isinstance(failure, Rejected) else []
    assert backend.sent[1:] == [(b"abcXdeYf", 8), (b"XY", 2), *alone]
    made.shutdown()


@pytest.mark.parametrize("outcome", [RetryLater("down"), Blocked("key")])
def test_a_backend_that_is_away_refuses_all_that_was_joined(outcome: Outcome) -> None:
    gate = threading.Event()
    backend = Backend(outcome, gate=gate)
    made = consumer(one=backend)
    with held(made, backend, gate):
        futures = [consume(made, batch(name)) for name in "abc"]
    assert {refusal(future).reason for future in futures} == {"exporter_failed"}
    assert backend.sent == [(b"first", 1), (b"abc", 3)]
    made.shutdown()


def test_a_large_batch_goes_in_parts_in_order() -> None:
    backend = Backend()
    made = consumer(one=backend)
    names = [f"{number:04}" for number in range(1100)]
    assert consume(made, batch(*names)).result(10) == Receipt(accepted=1100)
    assert [count for _, count in backend.sent] == [512, 512, 76]
    assert b"".join(payload for payload, _ in backend.sent) == "".join(names).encode()
    made.shutdown()


def test_a_part_holds_two_mebibytes_and_a_larger_record_goes_alone() -> None:
    backend = Backend()
    made = consumer(one=backend)
    half, large = "h" * (1 << 20), "l" * (3 << 20)
    assert consume(made, batch(half, half, "a", large, "b")).result(10) == Receipt(accepted=5)
    assert [(len(payload), count) for payload, count in backend.sent] == [(2 << 20, 2), (1, 1), (3 << 20, 1), (1, 1)]
    made.shutdown()


def test_a_part_that_fails_refuses_the_batch_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synchronous, "MAX_RECORDS", 1)
    backend = Backend(lambda payload: RetryLater("down") if payload == b"b" else Delivered())
    made = consumer(one=backend)
    assert refusal(consume(made, batch("a", "b", "c"))).reason == "exporter_failed"
    assert [payload for payload, _ in backend.sent] == [b"a", b"b"]
    made.shutdown()


def test_all_parts_share_one_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synchronous, "MAX_RECORDS", 1)

    def take_time(payload: bytes) -> Outcome:
        time.sleep(0.05)
        return Delivered()

    backend = Backend(take_time)
    made = consumer(one=backend, timeout=0.2)
    refused = refusal(consume(made, batch(*map(str, range(100)))))
    assert str(refused) == "one retry later: not everything was sent within 0.2 s"
    assert refused.reason == "exporter_failed"
    assert backend.timeouts == sorted(backend.timeouts, reverse=True)
    assert len(backend.sent) < 100
    made.shutdown()


def test_a_send_that_hangs_holds_up_neither_an_answer_nor_the_shutdown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(synchronous, "SEND_MARGIN", 0.1)
    gate = threading.Event()
    hanging, good = Backend(gate=gate, stoppable=False), Backend()
    made = consumer(timeout=0.2, hanging=hanging, good=good)
    first = consume(made, batch("a"), "hanging", "good")
    refused = refusal(first)
    assert (str(refused), refused.reason) == ("hanging retry later: no answer within 0.2 s", "exporter_failed")
    assert consume(made, batch("b", receiver="statsig/eu"), "good").result(10) == Receipt(accepted=1)
    assert not made.shutdown(grace=0.1)
    assert hanging.closed.wait(10)
    assert good.closed.wait(10)
    assert "hanging: a send or the shutdown hangs; it is left behind" in caplog.text
    assert not gate.is_set()
    gate.set()


def test_a_batch_that_waits_too_long_for_its_turn_is_refused_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    backend = Backend(gate=gate)
    made = consumer(timeout=60, one=backend)
    with held(made, backend, gate) as first, monkeypatch.context() as patched:
        patched.setattr(synchronous, "SEND_START_TIMEOUT", 0.1)
        refused = refusal(consume(made, batch("b")))
        assert (str(refused), refused.reason) == (
            "one retry later: no send began within 0.1 s: too many batches wait for this exporter",
            "exporter_failed",
        )
    assert first.result(10) == consume(made, batch("c")).result(10) == Receipt(accepted=1)
    assert [payload for payload, _ in backend.sent] == [b"first", b"c"]
    made.shutdown()


def test_many_callers_at_a_time_are_all_served_and_nothing_is_sent_twice() -> None:
    one, two = Backend(), Backend()
    made = consumer(one=one, two=two)

    def deliver(number: int) -> None:
        for turn in range(50):
            assert consume(made, batch(f"<{number}.{turn}>")).result(10) == Receipt(accepted=1)

    with ThreadPoolExecutor(8) as callers:
        list(callers.map(deliver, range(8)))
    wanted = sorted(f"{number}.{turn}" for number in range(8) for turn in range(50))
    for backend in (one, two):
        assert sorted(re.findall("<(.*?)>", b"".join(payload for payload, _ in backend.sent).decode())) == wanted
        assert sum(count for _, count in backend.sent) == 400
    made.shutdown()


def test_a_terminal_that_nobody_reads_refuses_until_somebody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synchronous, "SEND_MARGIN", 0.1)
    reader, writer = os.pipe()
    filled = fill(writer)
    with os.fdopen(reader, "rb", buffering=0) as read_end, os.fdopen(writer, "w", encoding="utf-8") as stream:
        exporter = DebugExporter("debug", DebugSettings(verbosity="basic"), stream)
        made = SynchronousConsumer({"debug": SynchronousExporter(exporter, 0.5)})
        made.start()
        one = Batch("statsig", (Change("0" * 32, (encoded("a"),)),))
        assert str(refusal(consume(made, one))) == "debug retry later: no answer within 0.5 s"
        while filled > 0:
            filled -= len(read_end.read(filled))
        assert consume(made, one).result(10) == Receipt(accepted=1)
        made.shutdown()


def test_an_exporter_that_can_not_start_closes_those_before_it() -> None:
    good = Backend()
    made = SynchronousConsumer({"good": SynchronousExporter(good, 1), "bad": SynchronousExporter(BrokenBackend(), 1)})
    with pytest.raises(OSError, match="no such file"):
        made.start()
    assert good.log == ["start", "shutdown"]


def test_the_future_can_not_be_cancelled_by_who_waits() -> None:
    gate = threading.Event()
    made = consumer(one=Backend(gate=gate))
    future: Future[Receipt] = consume(made, batch("a"))
    assert not future.cancel()
    gate.set()
    assert future.result(10) == Receipt(accepted=1)
    made.shutdown()
