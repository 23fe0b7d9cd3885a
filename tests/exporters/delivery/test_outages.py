"""Backends that are dead, hang or flap, exporters with mistakes, and senders that are configured to give up."""

import time
from collections import Counter
from pathlib import Path

import pytest

from statsig_otel.exporters.delivery.retry import RetrySettings
from statsig_otel.exporters.exporter import Delivered, Outcome
from tests.exporters.delivery.helpers import (
    SLOW,
    Backend,
    Kind,
    Rig,
    encoded,
    exporter_to,
    lines,
    named,
    refusing,
    rig,
    settings,
)
from tests.peers.ports import free_port
from tests.waiting import wait_until


@pytest.mark.parametrize("trouble", ["later", "blocked", "hang", None])
def test_a_dead_backend_holds_up_no_other(tmp_path: Path, trouble: Kind | None) -> None:
    with Backend("grpc") as good, Backend() as bad:
        bad.rule = lambda names: trouble or "delivered"
        dead = bad.exporter() if trouble else exporter_to("http", f"127.0.0.1:{free_port()}")
        made = Rig(tmp_path, {"good": (good.exporter(), settings()), "bad": (dead, settings(retry=SLOW))})
        made.start()
        try:
            for name in named(20):
                made.put(name)
            made.drained("good")
            assert good.taken == named(20)
            assert made.waiting("bad") == 20
        finally:
            made.close()


def test_a_backend_that_flaps_gets_everything_in_order(tmp_path: Path, http: Backend) -> None:
    names = named(60)
    http.rule = lambda sent: "later" if len(http.calls) % 2 else "delivered"
    with rig(tmp_path, http.exporter(), settings(max_records=10)) as made:
        made.put(*names)
        made.start()
        made.drained()
        assert http.taken == names


def test_a_backend_that_hangs_is_given_up_and_tried_again(tmp_path: Path, backend: Backend) -> None:
    backend.rule = lambda names: "delivered" if len(backend.calls) >= 2 else "hang"
    with rig(tmp_path, backend.exporter(), settings(timeout=0.3)) as made:
        made.put("a")
        made.start()
        made.drained()
        assert backend.taken == ["a"]


def test_failures_among_many_refusals_do_not_make_the_waits_longer(tmp_path: Path, http: Backend) -> None:
    """The third of them would take nine seconds, and each one after it minutes."""
    growing = RetrySettings(initial_interval=0.01, multiplier=30.0, max_interval=600.0)
    http.rule = lambda names: "later" if len(http.calls) % 5 == 4 else refusing([*named(40), *named(20, "last")])(names)
    with rig(tmp_path, http.exporter(), settings(retry=growing, max_records=8)) as made:
        made.put(*named(40), "good", *named(20, "last"))
        made.start()
        wait_until(lambda: http.taken == ["good"])
        assert http.count("later") > 4


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_backend_that_comes_back_on_its_port_is_found(tmp_path: Path, transport: str) -> None:
    port = free_port()
    exporter = exporter_to(transport, f"127.0.0.1:{port}")
    with rig(tmp_path, exporter) as made:
        made.put(*named(3))
        made.start()
        wait_until(lambda: made.sender.attempts >= 3)
        assert made.sender.state == "retrying"
        with Backend(transport, port=port) as first:
            made.drained()
            assert first.taken == named(3)
        made.put("again")
        wait_until(lambda: made.sender.state == "retrying")
        with Backend(transport, port=port) as second:
            made.drained()
            assert second.taken == ["again"]


def test_an_outage_costs_no_busy_loop(tmp_path: Path, http: Backend) -> None:
    """At intervals of a fifth of a second, a second holds a handful of attempts."""
    http.rule = lambda names: "later"
    steady = RetrySettings(initial_interval=0.2, max_interval=0.2, randomization_factor=0)
    with rig(tmp_path, http.exporter(), settings(retry=steady)) as made:
        made.put("a")
        made.start()
        http.sink.wait_for(1)
        for name in named(50):
            made.put(name)  # what comes in ends no wait
        time.sleep(0.8)
        assert (http.times[-1] - http.times[0]) / 0.2 >= len(http.calls) - 1.05
        assert all(later - earlier >= 0.19 for earlier, later in zip(http.times, http.times[1:], strict=False))


def test_a_mistake_in_an_exporter_ends_no_sender(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`send` never raises; should it once do so, delivery goes on after a pause."""

    class Mistaken:
        sent: list[bytes]

        def start(self) -> None:
            self.sent = []

        def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
            self.sent.append(payload)
            if len(self.sent) < 3:
                raise AssertionError("a mistake")
            return Delivered()

        def shutdown(self) -> None:
            """Nothing is open."""

    exporter = Mistaken()
    with rig(tmp_path, exporter) as made:
        made.put("a")
        made.start()
        made.drained()
        assert exporter.sent == [encoded("a")] * 3
    assert "unexpected AssertionError" in "\n".join(lines(caplog))


def test_without_retries_a_passing_fault_makes_dead_letters_and_drops_nothing(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "delivered" if "r0004" in names else "later"
    with rig(tmp_path, http.exporter(), settings(retry=RetrySettings(enabled=False), max_records=2)) as made:
        made.put(*named(6))
        made.start()
        made.drained()
        assert made.dead_letter_names() == named(4)
        assert all(
            (dead_letter.kind, dead_letter.attempts, dead_letter.reason.partition(":")[0])
            == ("record", 1, "not sent again, as configured")
            for dead_letter in made.dead_letters()
        )
        assert http.taken == ["r0004", "r0005"]


def test_without_retries_a_wrong_key_still_gives_nothing_up(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "blocked"
    with rig(tmp_path, http.exporter(), settings(retry=RetrySettings(enabled=False))) as made:
        made.put(*named(6))
        made.start()
        wait_until(lambda: made.sender.attempts >= 3)
        assert (made.waiting(), made.dead_letters()) == (6, [])


def test_max_elapsed_time_counts_anew_for_each_batch(tmp_path: Path, http: Backend) -> None:
    """A backlog is not given up in one go because its head was tried for long."""
    http.rule = lambda names: "later"
    bounded = RetrySettings(initial_interval=0.05, max_interval=0.05, max_elapsed_time=0.3)
    with rig(tmp_path, http.exporter(), settings(retry=bounded, max_records=2)) as made:
        made.put(*named(4))
        made.start()
        made.drained()
        assert made.dead_letter_names() == named(4)
        tries = Counter(names[0] for names, _ in http.calls)
        assert tries["r0000"] >= 3
        assert tries["r0002"] >= 3
        assert [dead_letter.attempts for dead_letter in made.dead_letters()] == [tries["r0000"]] * 2 + [
            tries["r0002"]
        ] * 2


def test_an_attempt_that_shutdown_cuts_off_gives_nothing_up(tmp_path: Path, backend: Backend) -> None:
    """With retries off, too: it was us who ended it."""
    backend.rule = lambda names: "hang"
    with rig(tmp_path, backend.exporter(), settings(retry=RetrySettings(enabled=False))) as made:
        made.put(*named(3))
        made.start()
        backend.sink.wait_for(1)
        made.sender.shutdown()
        assert (made.waiting(), made.dead_letters()) == (3, [])


def test_a_backend_that_is_repaired_badly_buries_no_good_record(tmp_path: Path, backend: Backend) -> None:
    """It answers 500 to some and takes others, and then has a wrong path that answers 400 to all."""
    some = named(3)
    backend.rule = refusing(some, "broken")
    with rig(tmp_path, backend.exporter()) as made:
        made.put(*some)
        made.start()
        wait_until(lambda: backend.count("broken") > 5)
        made.put("other")
        wait_until(lambda: backend.taken == ["other"])
        backend.rule = lambda names: "rejected"
        made.put("later")
        wait_until(lambda: backend.count("rejected") > 20)
        assert (made.dead_letters(), made.waiting()) == ([], 5)
        backend.rule = lambda names: "delivered"
        made.drained()
        assert made.dead_letters() == []
        assert sorted(backend.taken) == sorted([*some, "other", "later"])


def test_a_blocked_sender_says_what_refused_the_head_and_not_how_a_probe_failed(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "rejected" if "head" in names else "broken"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put("head")
        made.start()
        wait_until(lambda: made.sender.state == "refused")
        made.put("first")
        wait_until(lambda: made.sender.state == "blocked")
        made.put("second")
        wait_until(lambda: http.count("broken") >= 2)
        made.put("third")
        wait_until(lambda: http.count("broken") >= 3)
        assert "HTTP 400" in made.sender.last_error
        assert "HTTP 500" not in made.sender.last_error


def test_nothing_of_a_record_that_became_a_dead_letter_is_left_in_the_state(tmp_path: Path, http: Backend) -> None:
    http.rule = refusing(["bad"], "broken")
    with rig(tmp_path, http.exporter(), settings(refused_after=0.0)) as made:
        made.put("bad", "good")
        made.start()
        for number, name in enumerate(["good", *named(2)], 1):
            wait_until(lambda number=number: len(http.taken) == number)  # type: ignore[misc]
            made.put(name + " later")
        made.drained()
        wait_until(lambda: made.sender.state == "idle")
        assert made.dead_letter_names() == ["bad"]
        assert (made.sender.last_error, made.sender.outage) == ("", None)


def test_a_backend_that_takes_something_now_and_then_is_not_waited_for_longer_and_longer(
    tmp_path: Path, http: Backend
) -> None:
    """One of two servers behind a load balancer has a wrong configuration, and a bad record waits."""
    asked = Counter[str]()

    def rule(names: list[str]) -> Kind:
        asked.update(names)
        return "broken" if "bad" in names else "delivered" if asked[names[0]] % 2 == 0 else "missing"

    http.rule = rule
    growing = RetrySettings(initial_interval=0.02, multiplier=4.0, max_interval=1000.0, randomization_factor=0.0)
    with rig(tmp_path, http.exporter(), settings(blocked=growing)) as made:
        made.put("bad")
        made.start()
        for number, name in enumerate(named(10)):
            made.put(name)
            wait_until(lambda number=number: len(http.taken) > number)  # type: ignore[misc]
