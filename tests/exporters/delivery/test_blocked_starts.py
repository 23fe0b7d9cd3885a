"""A sender whose exporter can't be started: it is blocked, tries again by itself, and gives nothing up."""

import threading
from pathlib import Path

import pytest

from statsig_otel.exporters.delivery import sender as sender_module
from statsig_otel.exporters.exporter import Delivered, Outcome
from tests.exporters.delivery.helpers import SLOW, Rig, lines, named, names_in, rig, settings, threads
from tests.waiting import wait_until


class Locked:
    """An exporter whose file is locked by somebody else, until it is not."""

    def __init__(self) -> None:
        self.is_locked = True
        self.is_open = False
        self.starts = 0
        self.sent: list[str] = []
        self.free = threading.Event()  # lets a start go on
        self.free.set()

    def start(self) -> None:
        self.starts += 1
        self.free.wait()
        if self.is_locked:
            raise OSError("it is locked")
        self.is_open = True

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        self.sent += names_in(payload)
        return Delivered()

    def shutdown(self) -> None:
        self.is_open = False


def start_blocked(made: Rig) -> None:
    with pytest.raises(OSError, match="it is locked") as caught:
        made.sender.start()
    made.sender.start_blocked(caught.value)


def test_it_is_blocked_even_if_nothing_waits_and_is_tried_again_until_it_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = Locked()
    with rig(tmp_path, exporter) as made:
        start_blocked(made)
        assert (made.sender.state, made.sender.last_error) == ("blocked", "can't be started: it is locked")
        wait_until(lambda: exporter.starts > 3)
        assert made.sender.state == "blocked"
        made.put("a")
        wait_until(lambda: made.sender.attempts > 5)
        assert (exporter.sent, made.waiting()) == ([], 1)
        exporter.is_locked = False
        made.drained()
        wait_until(lambda: made.sender.state == "idle")
        assert (made.sender.attempts, made.sender.last_error, made.sender.outage) == (0, "", None)
    assert (exporter.sent, exporter.is_open) == (["a"], False)
    begin, end = lines(caplog)
    assert begin.startswith("out is blocked until somebody repairs it: can't be started: it is locked.")
    assert end.startswith("out is started after ")


def test_a_resume_tries_at_once_and_a_skip_skips_though_it_is_not_started(tmp_path: Path) -> None:
    exporter = Locked()
    with rig(tmp_path, exporter, settings(blocked=SLOW)) as made:
        made.put(*named(3))
        start_blocked(made)
        for attempts in (2, 3):
            made.sender.resume()
            wait_until(lambda attempts=attempts: made.sender.attempts == attempts)  # type: ignore[misc] # as a default
        assert made.skip()
        wait_until(lambda: made.dead_letter_names() == ["r0000"])
        wait_until(lambda: exporter.starts == 4)
        exporter.is_locked = False
        made.sender.resume()
        made.drained()
        assert exporter.sent == named(3)[1:]


def test_a_replacement_does_not_report_the_start_of_another_exporter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = Locked()
    with rig(tmp_path, exporter, settings(blocked=SLOW)) as made:
        start_blocked(made)
        made.sender.shutdown()
        exporter.is_locked = False
        other = sender_module.QueueSender(made.queue.cursor("out"), exporter, settings())
        other.start(instead_of=made.sender)
        made.put("a")
        made.drained()
        other.shutdown()
    assert len(lines(caplog)) == 1


@pytest.mark.parametrize("is_locked", [True, False])
def test_a_start_that_hangs_is_left_behind_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_locked: bool
) -> None:
    monkeypatch.setattr(sender_module, "HANGING_SEND", 0.2)
    exporter = Locked()
    with rig(tmp_path, exporter, settings(blocked=SLOW)) as made:
        start_blocked(made)
        exporter.free.clear()
        made.sender.resume()
        wait_until(lambda: exporter.starts == 2)
        made.sender.shutdown(drain=30)
        assert made.sender.state == "stopped"
        exporter.is_locked = is_locked
        exporter.free.set()
        wait_until(lambda: threads() == [])
        assert not exporter.is_open
