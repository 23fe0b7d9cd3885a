"""How the writer starts, and what an interrupted start leaves behind."""

import signal
import sqlite3
import threading
from pathlib import Path

import pytest

from statsig_otel.exporters.queue.errors import DamagedError, NotRunningError
from statsig_otel.exporters.queue.writer import Writer
from tests.exporters.queue.helpers import PATIENCE, insert


def test_nothing_runs_before_the_start(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "queue.db", prepare=lambda _: None, tidy=lambda _connection, _idle: False)
    with pytest.raises(NotRunningError):
        writer.submit(insert("a")).result(PATIENCE)
    writer.stop()
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_opened_at_the_start_is_the_callers_to_know(tmp_path: Path) -> None:
    (tmp_path / "queue.db").write_bytes(b"no database" * 1000)
    writer = Writer(tmp_path / "queue.db", prepare=lambda _: None, tidy=lambda _connection, _idle: False)
    with pytest.raises(DamagedError, match="not a database"):
        writer.start()
    writer.stop()


def writers() -> list[threading.Thread]:
    """The threads of all writers that run."""
    return [thread for thread in threading.enumerate() if thread.name == "queue writer"]


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_start_ends_the_writer_and_a_later_one_works(tmp_path: Path, times: int) -> None:
    """The file is opened well, but only after the wait was interrupted; the second time also the wait for its end."""
    interruptions = threading.Semaphore(0)

    def interrupt(*_: object) -> None:
        interruptions.release()
        raise KeyboardInterrupt

    def prepare(_: sqlite3.Connection) -> None:
        for _time in range(times):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            # A signal just before the main thread begins to wait does not end that wait. The next one does.
            while not interruptions.acquire(timeout=0.2):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    writer = Writer(tmp_path / "queue.db", prepare=prepare, tidy=lambda _connection, _idle: False)
    try:
        with pytest.raises(KeyboardInterrupt):
            writer.start()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert times > 1 or not writers()
    times = 0  # in `prepare`, from now on
    writer.start()
    assert writer.submit(insert("a")).result(PATIENCE) == "a"
    assert len(writers()) == 1
    writer.stop()
    assert not writers()


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_start_that_is_interrupted_before_it_waits_leaves_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_begun: bool
) -> None:
    opening, may_run = threading.Event(), threading.Event()

    class Interrupted(threading.Thread):
        def start(self) -> None:
            super().start()
            if has_begun:
                may_run.set()
                assert opening.wait(PATIENCE)
            raise KeyboardInterrupt

        def run(self) -> None:
            assert may_run.wait(PATIENCE)
            super().run()

    writer = Writer(tmp_path / "queue.db", prepare=lambda _: opening.set(), tidy=lambda _connection, _idle: False)
    with monkeypatch.context() as patched:
        patched.setattr(threading, "Thread", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.start()
    may_run.set()
    for thread in writers():
        thread.join(PATIENCE)
    assert not writers()
    assert opening.is_set() == has_begun
    writer.start()
    assert writer.submit(insert("a")).result(PATIENCE) == "a"
    writer.stop()
