"""Exporters that don't keep to their protocol: they raise, hang, or answer with nonsense. No record is lost for it."""

import itertools
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from statsig_otel.exporters.consumer import Batch, Change, Receipt, RefusedError
from statsig_otel.exporters.delivery.guarded import Guarded
from statsig_otel.exporters.delivery.retry import RetrySettings
from statsig_otel.exporters.delivery.sender import QueueSender
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer, SynchronousExporter
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, PartiallyRejected, Rejected, RetryLater
from statsig_otel.exporters.routing import Route
from tests.exporters.delivery.helpers import SLOW, encoded, named, names_in, rig, settings
from tests.waiting import wait_until

BATCH = Batch("statsig", (Change("0" * 32, (encoded("a"),)),))


class Mistaken:
    """Does with each batch what it is told; keeps the names of what it says that it has delivered."""

    def __init__(self, answer: Callable[[list[str]], Any]) -> None:
        self.answer = answer
        self.taken: list[str] = []

    def start(self) -> None:
        """Nothing is to be opened."""

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        names = names_in(payload)
        answered = self.answer(names)
        if answered == Delivered():
            self.taken += names
        return cast("Outcome", answered)

    def shutdown(self) -> None:
        """Nothing is open."""


class Odd(Exception):  # noqa: N818 - its name stands in a message
    pass


def raising(error: BaseException) -> Callable[[list[str]], Any]:
    def fail(names: list[str]) -> Any:
        raise error

    return fail


NONSENSE = [
    pytest.param(lambda names: None, "the exporter answered with None instead of an outcome", id="nothing"),
    pytest.param(lambda names: "ok", "the exporter answered with a str instead of an outcome", id="a text"),
    pytest.param(lambda names: Delivered, "the exporter answered with a type instead of an outcome", id="a class"),
    *(
        pytest.param(lambda names, value=value: value, "with wrong values", id=repr(value))
        for value in (PartiallyRejected(99, "more than there are"), Delivered(only=[99]))
    ),
    pytest.param(lambda names: Delivered(only=[]), "unexpected ValueError", id="made with a wrong value"),
    *(
        pytest.param(raising(error), f"unexpected {type(error).__name__}", id=type(error).__name__)
        for error in (Odd("secret"), SystemExit(1), KeyboardInterrupt(), GeneratorExit())
    ),
]


@pytest.mark.parametrize(("answer", "why"), NONSENSE)
def test_a_mistake_blocks_the_exporter_and_nothing_leaves_the_queue(
    tmp_path: Path, answer: Callable[[list[str]], Any], why: str
) -> None:
    exporter = Mistaken(answer)
    with rig(tmp_path, exporter, settings(blocked=SLOW)) as made:
        made.put(*named(3))
        made.start()
        wait_until(lambda: why in made.sender.last_error)  # which is set last
        assert made.sender.state == "blocked"
        assert (made.waiting(), made.dead_letters()) == (3, [])
        exporter.answer = lambda names: Delivered()
        made.sender.resume()
        made.drained()
        assert exporter.taken == named(3)


@pytest.mark.parametrize(("answer", "why"), NONSENSE)
def test_without_a_queue_the_batch_is_refused(answer: Callable[[list[str]], Any], why: str) -> None:
    exporter = Mistaken(answer)
    made = SynchronousConsumer({"out": SynchronousExporter(exporter, 5.0)})
    made.start()
    try:
        refused = made.consume(BATCH, Route(synchronous=("out",))).exception(10)
        assert isinstance(refused, RefusedError)
        assert why in str(refused)
        exporter.answer = lambda names: Delivered()
        assert made.consume(BATCH, Route(synchronous=("out",))).result(10) == Receipt(1)
    finally:
        made.shutdown()


def test_a_record_that_breaks_an_exporter_delays_none_before_it_and_can_be_skipped(tmp_path: Path) -> None:
    def answer(names: list[str]) -> Any:
        if "r0002" in names:
            raise Odd
        return Delivered()

    exporter = Mistaken(answer)
    with rig(tmp_path, exporter, settings(blocked=SLOW)) as made:
        made.put(*named(5))
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        assert exporter.taken == ["r0000", "r0001"]
        assert made.skip()
        made.drained()
        assert exporter.taken == ["r0000", "r0001", "r0003", "r0004"]
        assert made.dead_letter_names() == ["r0002"]


def too_large(names: list[str]) -> Any:
    if "r0001" in names:
        raise MemoryError
    return Delivered()


def test_a_record_that_takes_too_much_memory_for_a_while_holds_up_no_other(tmp_path: Path) -> None:
    """It may fit later, so it is not a dead letter because others fit."""
    exporter = Mistaken(too_large)
    with rig(tmp_path, exporter) as made:
        made.put(*named(4))
        made.start()
        wait_until(lambda: exporter.taken == ["r0000", "r0002", "r0003"])
        made.put("later")
        wait_until(lambda: "later" in exporter.taken)
        assert made.dead_letters() == []
        exporter.answer = lambda names: Delivered()
        made.drained()
        assert exporter.taken[-1] == "r0001"
        assert made.dead_letters() == []


def test_a_record_that_never_fits_into_memory_is_a_dead_letter(tmp_path: Path) -> None:
    exporter = Mistaken(too_large)
    with rig(tmp_path, exporter, settings(refused_after=0.1)) as made:
        made.put(*named(2))
        made.start()
        later = (f"later{number}" for number in itertools.count())
        while not made.dead_letters():
            name = next(later)
            made.put(name)
            wait_until(partial(exporter.taken.__contains__, name))
        made.drained()
        (dead_letter,) = made.dead_letters()
        assert (dead_letter.reason, dead_letter.count) == ("there is too little memory to send it", 1)


def test_a_record_that_is_given_up_is_a_dead_letter_before_the_wait_that_the_backend_asks_for(tmp_path: Path) -> None:
    """It would be sent again after a reload within that wait."""
    given_up = settings(retry=RetrySettings(enabled=False))
    with rig(tmp_path, Mistaken(lambda names: RetryLater("busy", after=3600.0)), given_up) as made:
        made.put("r0001")
        made.start()
        wait_until(made.dead_letters)
        assert made.waiting() == 0
        made.put("later")
        time.sleep(0.3)
        assert (made.waiting(), len(made.dead_letters())) == (1, 1), "nothing is sent before the wait is over"


@pytest.mark.slow
def test_500_to_all_in_the_middle_of_a_backlog_is_followed_by_waits(tmp_path: Path) -> None:
    """The first wait can end while probes are sent. Then all that waits would be tried without one."""
    sent: list[int] = []
    oops = RetryLater("HTTP 500: oops", may_be_data=True)

    def answer(names: list[str]) -> Any:
        sent.append(len(names))
        time.sleep(0.005)
        return oops if "r0001" in names or sum(sent) > 2000 else Delivered()

    waits = RetrySettings(initial_interval=0.2, max_interval=10.0)
    with rig(tmp_path, Mistaken(answer), settings(max_records=64, retry=waits)) as made:
        made.put(*named(3000))
        made.start()
        wait_until(lambda: sum(sent) > 2000)
        before = len(sent)
        time.sleep(5.0)
        assert len(sent) - before < 500


@pytest.mark.parametrize(
    "outcome", [Rejected("no \udcff\x1b[2J\n\u202e"), PartiallyRejected(1, "no \udcff\x1b[2J\n\u202e")]
)
def test_a_reason_that_can_not_be_shown_is_kept_as_escapes(
    tmp_path: Path, outcome: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    """It may quote a backend, and is one line in the log of an embedding program too."""
    with rig(tmp_path, Mistaken(lambda names: outcome if "a" in names else Delivered())) as made:
        made.put("a", "b")
        made.start()
        made.drained()
        assert [one.reason.endswith("no ?\\x1b[2J\\n\\u202e") for one in made.dead_letters()] == [True]
    assert caplog.messages
    assert all(message.isprintable() for message in caplog.messages)


@pytest.mark.parametrize("after", [1e10, 10**400])
def test_a_wait_that_nobody_lives_to_see_ends_neither_the_sender_nor_the_exporter(tmp_path: Path, after: float) -> None:
    answers = iter([RetryLater("later", after)])
    with rig(tmp_path, exporter := Mistaken(lambda names: next(answers, Delivered()))) as made:
        made.put("a")
        made.start()
        wait_until(lambda: made.sender.state == "retrying")
        made.sender.resume()
        made.drained()
        assert exporter.taken == ["a"]
    answers = iter([RetryLater("later", after)])
    without = SynchronousConsumer({"out": SynchronousExporter(exporter, 5.0)})
    without.start()
    try:
        batch, route = BATCH, Route(synchronous=("out",))
        refused = without.consume(batch, route).exception(10)
        assert isinstance(refused, RefusedError)
        assert refused.retry_after == 3600
        assert without.consume(batch, route).result(10) == Receipt(1)
    finally:
        without.shutdown()


def test_a_mistake_that_repeats_is_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    exporter = Mistaken(raising(Odd("first")))
    guarded = Guarded("out", exporter)
    for _ in range(3):
        assert guarded.send(b"", 0, 1.0) == Blocked("unexpected Odd")
    exporter.answer = lambda names: Delivered()
    assert guarded.send(b"", 0, 1.0) == Delivered()
    exporter.answer = raising(Odd("again"))
    guarded.send(b"", 0, 1.0)
    assert [record.getMessage() for record in caplog.records] == ["out: unexpected Odd of the exporter's send"] * 2
    assert caplog.text.count("Traceback") == 2


def test_a_send_that_ends_at_no_shutdown_is_left_behind_and_ticks_nothing_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service ends; and after a reload another exporter has the cursor, whatever the first one says later."""
    monkeypatch.setattr("statsig_otel.exporters.delivery.sender.HANGING_SEND", 0.05)
    begun, gate = threading.Event(), threading.Event()

    def hang(names: list[str]) -> Outcome:
        begun.set()
        assert gate.wait(30)
        return Delivered()

    with rig(tmp_path, Mistaken(hang)) as made:
        made.put(*named(3))
        made.start()
        assert begun.wait(30)
        made.sender.shutdown()
        assert "out: a send or the shutdown hangs; it is left behind" in caplog.text
        assert (made.sender.state, made.waiting()) == ("stopped", 3)
        left = [thread for thread in threading.enumerate() if thread.name == "sender out"]
        assert [thread.daemon for thread in left] == [True]

        with pytest.raises(RuntimeError, match="still hangs"):
            made.start()
        second = Mistaken(lambda names: RetryLater("not yet"))
        made.senders["out"] = QueueSender(made.queue.cursor("out"), second, settings(retry=SLOW))
        made.start()
        wait_until(lambda: made.sender.attempts)
        gate.set()
        left[0].join(30)
        assert (made.waiting(), made.sender.state) == (3, "retrying")
        second.answer = lambda names: Delivered()
        made.sender.resume()
        made.drained()
        assert second.taken == named(3)


def test_a_shutdown_that_hangs_or_raises_ends_the_sender(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statsig_otel.exporters.delivery.sender.HANGING_SEND", 0.05)
    gate = threading.Event()

    class Hanging(Mistaken):
        def shutdown(self) -> None:
            assert gate.wait(30)

    class Raising(Mistaken):
        def shutdown(self) -> None:
            raise Odd("at the end")

    for number, kind in enumerate((Hanging, Raising)):
        with rig(tmp_path / str(number), kind(lambda names: Delivered())) as made:
            made.put("a")
            made.start()
            made.drained()
            made.sender.shutdown()
            assert made.sender.state == "stopped"
            gate.set()
    assert "out: a send or the shutdown hangs; it is left behind" in caplog.text
    assert "out: unexpected error of the exporter's shutdown" in caplog.text


def test_what_a_start_raises_is_an_error_that_the_service_understands(caplog: pytest.LogCaptureFixture) -> None:
    class Unstartable(Mistaken):
        error: BaseException = OSError("no such file")

        def start(self) -> None:
            raise self.error

    exporter = Unstartable(lambda names: Delivered())
    with pytest.raises(OSError, match="no such file"):
        Guarded("out", exporter).start()
    exporter.error = ValueError("not a file of mine")
    with pytest.raises(ValueError, match="not a file of mine"):
        Guarded("out", exporter).start()
    assert caplog.records == []
    exporter.error = Odd("a mistake")
    with pytest.raises(ValueError, match="unexpected Odd of the exporter's start"):
        Guarded("out", exporter).start()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "a mistake" in caplog.text
    exporter.error = SystemExit(3)  # it would end the host program
    with pytest.raises(ValueError, match="unexpected SystemExit of the exporter's start"):
        Guarded("out", exporter).start()
