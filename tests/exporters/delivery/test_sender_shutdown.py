"""How a sender ends: what it still sends, and what it waits for."""

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from statsig_otel.exporters.exporter import Delivered, Outcome
from tests.exporters.delivery.helpers import (
    QUICK,
    SLOW,
    Backend,
    Kind,
    named,
    names_in,
    rig,
    settings,
    threads,
)
from tests.waiting import wait_until


class OneByOne:
    """An exporter that takes one record of each batch. From some record on, a send ends only with the shutdown.

    Attributes:
        taken: The names of the records that it took.
        is_waiting: Set while a send waits for the shutdown.
        sent_late: How many sends began after a shutdown.
    """

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.is_waiting = threading.Event()
        self.sent_late = 0
        self._wait_at = 3
        self._closed = threading.Event()

    def start(self) -> None:
        self._wait_at = len(self.taken) + 3
        self.is_waiting.clear()
        self._closed.clear()

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        self.sent_late += self._closed.is_set()
        if len(self.taken) == self._wait_at:
            self.is_waiting.set()
            assert self._closed.wait(60)
        self.taken.append(names_in(payload)[0])
        return Delivered(only=[0])

    def shutdown(self) -> None:
        self._closed.set()


def test_shutdown_sends_what_waits_while_the_backend_answers(tmp_path: Path, http: Backend) -> None:
    names = named(300)
    with rig(tmp_path, http.exporter(), settings(max_records=10)) as made:
        made.put(*names)
        made.start()
        made.sender.shutdown(drain=30)
        assert http.taken == names
        assert made.waiting() == 0
        assert made.sender.state == "stopped"
        made.sender.shutdown(drain=30)
        wait_until(lambda: threads() == [])


def test_shutdown_drains_in_its_time_and_the_next_start_delivers_the_rest(tmp_path: Path, http: Backend) -> None:
    """What is sent twice is the one batch that shutdown cut off."""
    names = named(40)

    def slow(sent: list[str]) -> Kind:
        time.sleep(0.03)
        return "delivered"

    http.rule = slow
    with rig(tmp_path, http.exporter(), settings(max_records=2)) as made:
        made.put(*names)
        made.start()
        made.sender.shutdown(drain=0.3)
        left = made.waiting()
        assert 0 < left < 40
        wait_until(lambda: threads() == [])
    with rig(tmp_path, http.exporter(), settings(max_records=2)) as again:
        again.start()
        again.drained()
    seen = Counter(http.taken)
    assert sorted(seen) == names
    assert sum(count - 1 for count in seen.values()) <= 2
    assert again.dead_letters() == []


@pytest.mark.parametrize("kind", ["broken", "rejected"])
def test_shutdown_sends_what_waits_behind_a_record_that_is_not_taken(tmp_path: Path, http: Backend, kind: Kind) -> None:
    http.rule = lambda names: kind if {"bad", "bad again"}.intersection(names) else "delivered"
    with rig(tmp_path, http.exporter(), settings(max_records=10, between_probes=0.05)) as made:
        made.put("bad")
        made.start()
        wait_until(lambda: made.sender.state in ("retrying", "refused"))
        if kind == "broken":
            made.put("first")
            wait_until(lambda: made.sender.last_error.startswith("a record fails while others are delivered"))
        made.put(*named(50), "bad again", *named(50, "further"))
        made.sender.shutdown(drain=30)
        assert {*named(50), *named(50, "further")} <= {*http.taken}


def test_shutdown_drains_no_longer_than_it_may_when_a_probe_has_to_wait(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "rejected"
    with rig(tmp_path, http.exporter(), settings(between_probes=40.0, retry=SLOW, blocked=SLOW)) as made:
        made.put("bad")
        made.start()
        wait_until(lambda: made.sender.state == "refused")
        made.put("first")
        wait_until(lambda: len(http.calls) > 1)
        made.put("next")
        began = time.monotonic()
        made.sender.shutdown(drain=0.3)
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("drain", [0, 0.05])
def test_shutdown_stops_between_two_sends_of_a_batch(tmp_path: Path, drain: float) -> None:
    """The send under way counts, so that no record is sent again after the next start."""
    exporter, names = OneByOne(), named(40)
    for run in range(3):
        with rig(tmp_path, exporter, settings(max_records=40)) as made:
            if not run:
                made.put(*names)
            made.start()
            assert exporter.is_waiting.wait(30)
            made.sender.shutdown(drain)
            assert made.sender.state == "stopped"
            assert made.waiting() == 40 - len(exporter.taken)
    assert exporter.taken == names[:12]
    assert exporter.sent_late == 0


@pytest.mark.parametrize("kind", ["later", "blocked", "hang"])
def test_shutdown_waits_for_no_dead_backend(tmp_path: Path, http: Backend, kind: Kind) -> None:
    http.rule = lambda names: "later" if kind == "hang" and not http.calls else kind
    with rig(tmp_path, http.exporter(), settings(retry=QUICK, blocked=SLOW)) as made:
        made.put(*named(3))
        made.start()
        if kind == "hang":
            http.sink.wait_for(2)
        else:
            wait_until(lambda: made.sender.attempts)
        began = time.monotonic()
        made.sender.shutdown(drain=60)
        assert time.monotonic() - began < 20
        assert (made.waiting(), made.dead_letters()) == (3, [])
        wait_until(lambda: threads() == [])


def test_shutdown_interrupts_a_send_that_hangs(tmp_path: Path, backend: Backend) -> None:
    backend.rule = lambda names: "hang"
    with rig(tmp_path, backend.exporter()) as made:
        made.put(*named(3))
        made.start()
        backend.sink.wait_for(1)
        began = time.monotonic()
        made.sender.shutdown(drain=0.2)
        assert time.monotonic() - began < 15
        wait_until(lambda: threads() == [])
        assert (made.waiting(), made.dead_letters(), made.sender.state) == (3, [], "stopped")


def test_a_sender_can_be_shut_down_before_and_without_work(tmp_path: Path, http: Backend) -> None:
    with rig(tmp_path, http.exporter()) as made:
        made.sender.shutdown(drain=60)
        made.sender.shutdown()
    with rig(tmp_path / "other", http.exporter()) as idle:
        idle.start()
        wait_until(lambda: idle.sender.state == "idle")
        idle.sender.shutdown(drain=60)
        wait_until(lambda: threads() == [])


def test_a_queue_that_stops_first_ends_its_sender(tmp_path: Path, http: Backend) -> None:
    gate = threading.Event()

    def rule(names: list[str]) -> Kind:
        assert gate.wait(30)
        return "delivered"

    http.rule = rule
    with rig(tmp_path, http.exporter()) as made:
        made.put("a")
        made.start()
        http.sink.wait_for(1)
        made.queue.shutdown()
        gate.set()
        wait_until(lambda: made.sender.state == "stopped")
