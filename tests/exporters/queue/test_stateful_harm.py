"""Somebody deletes, replaces and cuts the files of a queue that is in use: what was acknowledged is found or was sent.

What is lost nevertheless is what docs/queue.md names: the content of a database or log that is cut, as far as it was
stored before. A crash comes after the service has noticed what was done, which takes it a second, or until the next
webhook.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from statsig_otel.exporters.consumer import RefusedError
from statsig_otel.exporters.queue import writer
from statsig_otel.exporters.queue.errors import QueueError, StorageError
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.recovery import damaged_file
from statsig_otel.exporters.routing import CurrentRouting, QueuedExporter, Route, Routing
from tests.exporters.queue.helpers import (
    PATIENCE,
    ask,
    batch,
    blocked,
    child,
    consume,
    copy_of,
    delivered,
    numbers_of,
    recovering,
    settled,
    tidied,
)

FILES = ("lock", "state.json", "queue.db", "queue.db-wal", "queue.db-shm")
CUT = ("lock", "state.json", "queue.db", "queue.db-wal")  # a cut index may end this process (SIGBUS)

sizes = st.sampled_from([20, 3000])


def delete(directory: Path, name: str) -> None:
    (directory / name).unlink(missing_ok=True)


def replace(directory: Path, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(directory / name, directory / "other")
        (directory / "other").rename(directory / name)


def cut(directory: Path, name: str, share: float) -> None:
    with contextlib.suppress(FileNotFoundError):
        size = (directory / name).stat().st_size
        os.truncate(directory / name, int(size * share))


def started(directory: Path) -> DurableQueue:
    routing = Routing({"statsig": Route(("otlp",))}, {"otlp": QueuedExporter()})
    queue = DurableQueue(directory, CurrentRouting(routing), min_free_bytes=0)
    queue.start()
    return queue


def ended(queue: DurableQueue) -> None:
    queue.cursor("otlp").close()
    queue.shutdown()


class HarmMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(writer, "_IDLE", PATIENCE)  # what it does depends on the steps, not on the time
        self.patch.setattr(damaged_file, "_MOST_FAILURES", 500)  # else it takes seconds
        self.base = Path(tempfile.mkdtemp())
        self.directory = self.base / "0"
        self.copies = 0
        self.number = 0
        self.acknowledged: set[int] = set()
        self.sent: set[int] = set()
        self.at_risk: set[int] = set()
        self.queue = started(self.directory)
        self.second: DurableQueue | None = None

    def teardown(self) -> None:
        try:
            self.find_all()
        finally:
            self.end_second()
            ended(self.queue)
            self.patch.undo()
            shutil.rmtree(self.base)

    def find_all(self) -> None:
        self.end_second()
        assert self.put(self.queue, 20), "nobody else uses the directory, and all files can be made"
        self.restart()
        self.recover()
        found = set(delivered(self.queue.cursor("otlp")))
        assert self.acknowledged - self.at_risk <= self.sent | found

    def put(
        self, queue: DurableQueue, size: int, beforehand: Callable[[sqlite3.Connection], object] = lambda _: None
    ) -> bool:
        """Whether a change is acknowledged, with something else at the beginning of its commit."""
        self.number += 1
        todo = [beforehand]  # the commit may be tried again
        with blocked(queue):
            queue.submit(lambda connection: todo.pop()(connection) if todo else None)
            answer = consume(queue, batch(self.number, size=size))
        error = answer.exception(PATIENCE)
        assert isinstance(error, RefusedError | None)
        if error is None:
            self.acknowledged.add(self.number)
        return error is None

    @rule(size=sizes, count=st.integers(1, 8))
    def put_some(self, size: int, count: int) -> None:
        for _ in range(count):
            self.put(self.queue, size)

    @rule()
    def fold_often(self) -> None:
        """The log begins again after a few commits."""
        self.put(self.queue, 20, lambda connection: connection.execute("PRAGMA wal_autocheckpoint = 12"))

    @rule(count=st.integers(1, 20))
    def deliver(self, count: int) -> None:
        """As a sender does, which tries again after an error."""
        cursor = self.queue.cursor("otlp")
        with contextlib.suppress(StorageError, sqlite3.Error):
            records = cursor.read(count, 1 << 20)
            self.sent.update(numbers_of([one for one in records if one.intact]))
            cursor.finish(records)

    @rule()
    def read(self) -> None:
        """So that this process has the files open for reading, too."""
        with contextlib.suppress(StorageError, sqlite3.Error):
            self.queue.cursor("otlp").read(1, 1 << 20)

    @rule()
    def tidy(self) -> None:
        with contextlib.suppress(StorageError):
            tidied(self.queue)

    @rule(
        names=st.sets(st.sampled_from(FILES), min_size=1, max_size=3), is_replaced=st.booleans(), within=st.booleans()
    )
    def harm(self, names: set[str], *, is_replaced: bool, within: bool) -> None:
        """Delete or replace some files, now or within a commit."""
        directory, one = self.directory, replace if is_replaced else delete

        def work(_: object = None) -> None:
            for name in sorted(names):
                one(directory, name)

        if within:
            self.put(self.queue, 20, work)
        else:
            work()

    @rule(name=st.sampled_from(CUT), share=st.sampled_from([0.0, 0.3, 0.6, 0.95]), within=st.booleans())
    def cut(self, name: str, share: float, *, within: bool) -> None:
        if name.startswith("queue.db"):
            self.at_risk |= self.acknowledged
        if within:
            self.put(self.queue, 20, lambda _: cut(self.directory, name, share))
        else:
            cut(self.directory, name, share)

    @precondition(lambda self: self.second is None)
    @rule()
    def begin_second(self) -> None:
        """As another process does. It owns the queue if the lock was deleted, and nobody has noticed that yet."""
        with contextlib.suppress(QueueError, sqlite3.Error, OSError):
            self.second = started(self.directory)

    @precondition(lambda self: self.second is not None)
    @rule(size=sizes)
    def put_into_second(self, size: int) -> None:
        if self.second is not None:
            self.put(self.second, size)

    @rule(is_killed=st.just(value=False))
    def end_second(self, *, is_killed: bool = False) -> None:
        """This process can't kill it without itself."""
        assert not is_killed
        if self.second is not None:
            ended(self.second)
            self.second = None

    @rule()
    def recover(self) -> None:
        self.end_second()
        with recovering(self.queue):
            settled(self.directory)

    @rule()
    def restart(self) -> None:
        """In order. What nobody has noticed until then is noticed at the end."""
        self.end_second()
        ended(self.queue)
        self.queue = started(self.directory)

    @rule(size=sizes)
    def crash(self, size: int) -> None:
        """Go on from what a crash leaves behind, after all that was done is noticed."""
        self.end_second()
        assert self.put(self.queue, size)
        self.copies += 1
        with blocked(self.queue):
            left = copy_of(self.directory, self.base / str(self.copies))
        ended(self.queue)
        self.directory = left
        self.queue = started(self.directory)


class HarmBesideProcessMachine(HarmMachine):
    """The other owner is a process, which shares no index with this one, and which may be killed."""

    def __init__(self) -> None:
        super().__init__()
        self.process: subprocess.Popen[str] | None = None
        self.until_it_ends = contextlib.ExitStack()

    @precondition(lambda self: self.process is None)
    @rule()
    def begin_second(self) -> None:
        self.process = self.until_it_ends.enter_context(child("answer", self.directory))

    @precondition(lambda self: self.process is not None)
    @rule(count=st.integers(1, 5))
    def put_into_second(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            with contextlib.suppress(BrokenPipeError):  # it does not own the queue, and has ended
                if self.process is not None and ask(self.process, self.number) == str(self.number):
                    self.acknowledged.add(self.number)

    @rule(is_killed=st.booleans())
    def end_second(self, *, is_killed: bool = True) -> None:
        process, self.process = self.process, None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.kill() if is_killed else process.stdin.close()
            process.wait(PATIENCE)
            with contextlib.suppress(BrokenPipeError):  # it had ended before, with an unread line
                self.until_it_ends.close()


TestHarm = HarmMachine.TestCase
TestHarm.settings = settings(
    max_examples=settings().max_examples // 4,
    stateful_step_count=20,
    # As in test_stateful.py: what fails is said at once.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestHarmBesideProcess(HarmBesideProcessMachine.TestCase):  # type: ignore[valid-type,misc]  # it is made at run time
    settings = settings(TestHarm.settings, max_examples=settings().max_examples // 4)
