"""The commands to a sender: try again at once, or skip the record at the head of the queue."""

import threading
import time
from pathlib import Path

import pytest

from statsig_otel.exporters.delivery.retry import RetrySettings
from tests.exporters.delivery.helpers import (
    SLOW,
    Backend,
    Kind,
    lines,
    named,
    names_in,
    refusing,
    rig,
    settings,
)
from tests.waiting import wait_until


def test_resume_tries_at_once(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "blocked"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put(*named(5))
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        calls = len(http.calls)
        made.sender.resume()
        wait_until(lambda: len(http.calls) == calls + 1)
        wait_until(lambda: made.sender.attempts == 2)
        http.rule = lambda names: "delivered"
        made.sender.resume()
        made.drained()
        assert http.taken == named(5)


def test_resume_ends_a_wait_after_a_passing_fault_too(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "later"
    with rig(tmp_path, http.exporter(), settings(retry=SLOW)) as made:
        made.put("a")
        made.start()
        wait_until(lambda: made.sender.state == "retrying")
        http.rule = lambda names: "delivered"
        made.sender.resume()
        made.drained()


def test_resume_during_an_attempt_counts_for_the_next_one(tmp_path: Path, http: Backend) -> None:
    """The key may have been mended while the attempt with the old one was under way."""
    http.rule = lambda names: "delivered" if http.calls else "hang"
    with rig(tmp_path, http.exporter(), settings(retry=SLOW)) as made:
        made.put("a")
        made.start()
        http.sink.wait_for(1)
        made.sender.resume()
        http.sink.release()
        made.drained()


def test_resume_with_nothing_to_do_saves_no_later_wait(tmp_path: Path, http: Backend) -> None:
    with rig(tmp_path, http.exporter(), settings(retry=SLOW)) as made:
        made.start()
        wait_until(lambda: made.sender.state == "idle")
        for _ in range(3):
            made.sender.resume()
        made.put("a")
        made.drained()
        wait_until(lambda: made.sender.state == "idle")
        http.rule = lambda names: "later"
        made.put("b")
        wait_until(lambda: made.sender.state == "retrying")
        time.sleep(0.2)
        assert http.count("later") == 1


def test_skip_makes_the_head_alone_a_dead_letter_and_goes_on(tmp_path: Path, http: Backend) -> None:
    http.rule = refusing(["r0000"], "missing")
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put(*named(5))
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        assert made.skip()
        made.drained()
        (dead_letter,) = made.dead_letters()
        said = f"skipped by command: HTTP 404 Not Found from {http.exporter_url}: no such thing"
        assert (dead_letter.kind, dead_letter.reason) == ("record", said)
        assert names_in(dead_letter.content) == ["r0000"]
        assert http.taken == named(5)[1:]


def test_a_record_that_blocks_the_backend_comes_to_the_head_by_itself(tmp_path: Path, http: Backend) -> None:
    """404 for one record in the middle: those before it are delivered, and skip hits the right one."""
    names = named(100)
    http.rule = refusing(["r0057"], "missing")
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        assert http.taken == names[:57]
        assert (made.waiting(), made.dead_letters()) == (43, [])
        made.skip()
        made.drained()
        assert made.dead_letter_names() == ["r0057"]
        assert http.taken == names[:57] + names[58:]


def test_skip_while_all_is_blocked_takes_one_record_each(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "blocked"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put(*named(5))
        made.start()
        for gone in (1, 2):
            wait_until(lambda: made.sender.state == "blocked" and made.sender.attempts == 1)
            made.skip()
            wait_until(lambda gone=gone: made.waiting() == 5 - gone)  # type: ignore[misc] # mypy can't see the default
        assert made.dead_letter_names() == named(2)
        http.rule = lambda names: "delivered"
        made.sender.resume()
        made.drained()
        assert http.taken == named(5)[2:]


def test_skip_of_an_empty_queue_takes_no_later_record(tmp_path: Path, http: Backend) -> None:
    with rig(tmp_path, http.exporter()) as made:
        made.start()
        wait_until(lambda: made.sender.state == "idle")
        assert not made.skip()
        made.put("a")
        made.drained()
        assert made.dead_letters() == []
        assert http.taken == ["a"]


def test_skip_is_void_where_the_head_is_delivered_meanwhile(tmp_path: Path, http: Backend) -> None:
    gate = threading.Event()

    def rule(names: list[str]) -> Kind:
        assert gate.wait(30)
        return "delivered"

    http.rule = rule
    with rig(tmp_path, http.exporter(), settings(max_records=1)) as made:
        made.put("a", "b")
        made.start()
        http.sink.wait_for(1)
        assert made.skip()
        gate.set()
        made.drained()
        assert http.taken == ["a", "b"]
        assert made.dead_letters() == []


def test_skip_takes_as_many_as_were_asked_for_and_not_what_was_delivered(tmp_path: Path, http: Backend) -> None:
    names = named(1100)
    http.rule = lambda sent: "blocked"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        assert made.skip(1050)
        http.rule = lambda sent: "delivered"
        made.drained()
        assert made.dead_letter_names() == names[:1050]
        assert http.taken == names[1050:]
        reasons = [dead_letter.reason for dead_letter in made.dead_letters()]
        assert reasons[0].startswith("skipped by command: HTTP 401"), "with what the backend said"
        assert reasons[-1] == "skipped by command"


def test_after_a_skip_the_last_of_those_refused_is_not_given_up_by_itself(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "rejected"
    with rig(tmp_path, http.exporter()) as made:
        made.put("a", "b")
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        made.skip()
        wait_until(lambda: made.waiting() == 1)
        wait_until(lambda: made.sender.attempts >= 2)
        assert made.dead_letter_names() == ["a"]
        http.rule = lambda names: "delivered"
        made.drained()
        assert http.taken == ["b"]


@pytest.mark.parametrize("kind", ["later", "rejected", "blocked"])
def test_an_outage_whose_records_are_all_skipped_is_over_and_the_next_one_is_logged(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture, kind: Kind
) -> None:
    http.rule = lambda names: kind
    with rig(tmp_path, http.exporter(), settings(retry=SLOW, blocked=SLOW)) as made:
        made.start()
        for name in ("a", "b"):
            made.put(name)
            wait_until(lambda: made.sender.outage is not None)
            assert made.skip()
            wait_until(lambda: made.sender.state == "idle")
            assert (made.sender.outage, made.sender.last_error) == (None, "")
        http.rule = lambda names: "delivered"
        made.put("c", "d")
        made.sender.shutdown(drain=30)
        assert http.taken == ["c", "d"], "a stop drains unless the backend is known to fail"
    begins = [line for line in lines(caplog) if "HTTP " in line and "dead letters" not in line]
    ends = [line for line in lines(caplog) if line.startswith("out has nothing to send any more after ")]
    assert (len(begins), len(ends)) == (2, 2)


def test_an_outage_whose_records_are_given_up_is_over(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    bounded = RetrySettings(initial_interval=0.05, max_interval=0.05, max_elapsed_time=0.1)
    http.rule = lambda names: "later"
    with rig(tmp_path, http.exporter(), settings(retry=bounded)) as made:
        made.start()
        for name in ("a", "b"):
            made.put(name)
            made.drained()
            wait_until(lambda: made.sender.state == "idle")
            assert (made.sender.outage, made.sender.last_error) == (None, "")
    assert sum(line.startswith("out can't deliver now") for line in lines(caplog)) == 2


def test_a_skip_is_void_once_the_database_was_set_aside(tmp_path: Path, http: Backend) -> None:
    """Its numbers are about other records. Another number of the generation stands for another database."""
    http.rule = lambda names: "blocked"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put(*named(2))
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        calls = len(http.calls)
        made.sender._generation = -1
        assert made.skip()
        wait_until(lambda: len(http.calls) > calls, "it tries again")
        assert (made.waiting(), made.dead_letters()) == (2, [])
