"""The writing thread: shared transactions, answers after the commit, and what a failure undoes."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from statsig_otel.exporters.queue import writer
from statsig_otel.exporters.queue.errors import DamagedError, NotRunningError, QueueError, StorageError
from statsig_otel.exporters.queue.jobs import Bulk
from statsig_otel.exporters.queue.writer import Writer
from tests.exporters.queue.helpers import PATIENCE, errors, insert, reading
from tests.waiting import wait_until


class Watched:
    """A writer of a file, with what it did: commits by their statements, and how often the file was looked at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.statements: list[str] = []
        self.prepared = 0
        self.tidy: Callable[[sqlite3.Connection], bool] = lambda _: False
        self.set_aside: list[Exception] = []
        self.writer = Writer(path, prepare=self._prepare, tidy=self._tidy, set_aside=self._set_aside)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        self.prepared += 1
        connection.set_trace_callback(self.statements.append)

    def _tidy(self, connection: sqlite3.Connection, idle: bool) -> bool:
        return self.tidy(connection)

    def _set_aside(self, error: Exception) -> None:
        self.set_aside.append(error)
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{self.path}.aside{suffix}")

    def transactions(self) -> list[int]:
        """The inserts of each transaction that was committed with some, in order."""
        found, inserts = [], 0
        for statement in self.statements:
            if statement.startswith("INSERT"):
                inserts += 1
            elif statement == "COMMIT":
                found += [inserts] if inserts else []
                inserts = 0
        return found


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path / "queue.db")
    made.writer.start()
    yield made
    made.writer.stop()


def names(path: Path) -> list[str]:
    with reading(path) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM exporters ORDER BY id")]


@contextlib.contextmanager
def held(writer: Writer) -> Iterator[None]:
    """Keep the writer busy, so that what is handed over inside the block waits together."""
    entered, gate = threading.Event(), threading.Event()

    def work(_: sqlite3.Connection) -> None:
        entered.set()
        assert gate.wait(PATIENCE)

    busy = writer.submit(work)
    assert entered.wait(PATIENCE)
    try:
        yield
    finally:
        gate.set()
        busy.result(PATIENCE)


def test_jobs_that_wait_together_share_one_transaction_in_their_order(watched: Watched) -> None:
    with held(watched.writer):
        futures = [watched.writer.submit(insert(str(number))) for number in range(200)]
    assert [future.result(PATIENCE) for future in futures] == [str(number) for number in range(200)]
    assert watched.transactions() == [200]
    assert names(watched.path) == [str(number) for number in range(200)]


def test_a_lone_job_is_committed_without_waiting_for_others(watched: Watched) -> None:
    for number in range(5):
        assert watched.writer.submit(insert(str(number))).result(PATIENCE) == str(number)
    assert watched.transactions() == [1] * 5


def test_a_transaction_is_bounded(watched: Watched) -> None:
    with held(watched.writer):
        futures = [watched.writer.submit(insert(str(number))) for number in range(2500)]
    wait_for(futures, PATIENCE)
    assert watched.transactions() == [1024, 1024, 452]


def test_what_a_job_wrote_is_seen_by_others_only_once_it_is_answered(watched: Watched) -> None:
    entered, gate = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        insert("late")(connection)
        entered.set()
        assert gate.wait(PATIENCE)

    seen_at_answer: list[list[str]] = []
    future = watched.writer.submit(slow)
    future.add_done_callback(lambda _: seen_at_answer.append(names(watched.path)))
    assert entered.wait(PATIENCE)
    assert (names(watched.path), future.done()) == ([], False)
    gate.set()
    future.result(PATIENCE)
    watched.writer.stop()
    assert seen_at_answer == [["late"]]


def test_what_comes_after_the_commit_runs_before_the_answer(watched: Watched) -> None:
    said: list[str] = []
    future = watched.writer.submit(insert("a"), lambda name: said.append(f"then {name} {names(watched.path)}"))
    assert future.result(PATIENCE) == "a"
    assert said == ["then a ['a']"]


def test_what_comes_after_the_commit_and_fails_ends_nothing(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no metrics today")

    assert watched.writer.submit(lambda _: "stored", fail).result(PATIENCE) == "stored"
    assert "What was stored could not be counted" in caplog.text
    assert watched.writer.submit(lambda _: "and on").result(PATIENCE) == "and on"


def test_a_job_that_raises_undoes_itself_alone(watched: Watched) -> None:
    def bad(connection: sqlite3.Connection) -> None:
        insert("bad")(connection)
        raise ValueError("mine")

    with held(watched.writer):
        futures: list[Future[Any]] = [
            watched.writer.submit(work) for work in (insert("a"), bad, insert("b"), insert("a"), insert("c"))
        ]
    assert [type(future.exception(PATIENCE)) for future in futures] == [
        type(None),
        ValueError,
        type(None),
        sqlite3.IntegrityError,
        type(None),
    ]
    assert names(watched.path) == ["a", "b", "c"]
    assert watched.transactions() == [5]
    assert not watched.writer.failing


class Names:
    """Bulk work that stores names, and what became of each."""

    def __init__(self) -> None:
        self.bulk = Bulk(self._work, self._then, self._settle)
        self.at_once: list[list[str]] = []
        self.committed: list[list[str]] = []
        self.answers: dict[str, str | Exception | None] = {}

    def _work(self, connection: sqlite3.Connection, items: Sequence[str]) -> list[str]:
        self.at_once.append(list(items))
        for name in items:
            insert(name)(connection)
            if name.startswith("bad"):
                raise ValueError(name)
        return [name.upper() for name in items]

    def _then(self, results: Sequence[str]) -> None:
        assert not any(self.answers.get(result.lower()) for result in results), "answered too early"
        self.committed.append(list(results))

    def submit(self, writer: Writer, *items: str) -> None:
        for name in items:
            writer.submit_in_bulk(self.bulk, name)

    def _settle(self, name: str, result: str | None, failure: Exception | None) -> None:
        self.answers[name] = failure or result


def test_items_that_wait_together_are_worked_on_at_once_in_the_order_of_all_jobs(watched: Watched) -> None:
    some = Names()
    with held(watched.writer):
        some.submit(watched.writer, "a", "b")
        between = watched.writer.submit(insert("c"))
        some.submit(watched.writer, "d", "e")
    assert between.result(PATIENCE) == "c"
    watched.writer.stop()
    assert some.at_once == [["a", "b"], ["d", "e"]]
    assert some.committed == [["A", "B"], ["D", "E"]]
    assert some.answers == {"a": "A", "b": "B", "d": "D", "e": "E"}
    assert names(watched.path) == ["a", "b", "c", "d", "e"]
    assert watched.transactions() == [5]


def test_a_commit_waits_for_as_many_items_as_the_last_one_had(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that were answered together come again together. Nobody waits for jobs that are not items."""
    some = Names()
    with held(watched.writer):
        some.submit(watched.writer, "a", "b")
        functions = [watched.writer.submit(insert(name)) for name in "cd"]
    wait_for(functions, PATIENCE)
    monkeypatch.setattr(writer, "_GATHERING", PATIENCE)
    some.submit(watched.writer, "e")
    time.sleep(0.05)
    assert some.at_once == [["a", "b"]]
    some.submit(watched.writer, "f")
    wait_until(lambda: len(some.answers) == 4)
    assert some.at_once == [["a", "b"], ["e", "f"]]
    assert watched.transactions() == [4, 2]


def test_a_commit_waits_for_others_a_moment_only(watched: Watched) -> None:
    some = Names()
    with held(watched.writer):
        some.submit(watched.writer, *"abcd")
    wait_until(partial(some.answers.__contains__, "d"))
    for name in "ef":
        some.submit(watched.writer, name)
        wait_until(partial(some.answers.__contains__, name))
    assert some.at_once == [["a", "b", "c", "d"], ["e"], ["f"]]


def test_an_item_that_is_to_blame_is_undone_alone(watched: Watched) -> None:
    some = Names()
    with held(watched.writer):
        some.submit(watched.writer, "a", "bad", "b", "a", "c")
    watched.writer.stop()
    assert some.at_once == [["a", "bad", "b", "a", "c"], ["a"], ["bad"], ["b"], ["a"], ["c"]]
    assert some.committed == [["A"], ["B"], ["C"]]
    assert isinstance(some.answers.pop("bad"), ValueError)
    assert isinstance(some.answers.pop("a"), sqlite3.IntegrityError), "the second one of that name"
    assert some.answers == {"b": "B", "c": "C"}
    assert names(watched.path) == ["a", "b", "c"]


def test_items_are_refused_with_all_else_where_nothing_is_stored_and_after_the_end(watched: Watched) -> None:
    def broken(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    some = Names()
    with held(watched.writer):
        some.submit(watched.writer, "a", "b")
        watched.writer.submit(broken)
    watched.writer.stop()
    some.submit(watched.writer, "c")
    assert {name: type(outcome) for name, outcome in some.answers.items()} == {
        "a": StorageError, "b": StorageError, "c": NotRunningError
    }  # fmt: skip
    assert some.committed == []
    assert names(watched.path) == []


def test_a_database_error_refuses_all_waiting_jobs_and_reopens_the_file(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(connection: sqlite3.Connection) -> None:
        connection.execute("SELECT * FROM missing")

    before = watched.prepared
    for _ in range(3):
        with held(watched.writer):
            futures: list[Future[Any]] = [watched.writer.submit(work) for work in (insert("a"), broken, insert("b"))]
        for future in futures:
            with pytest.raises(StorageError, match="no such table: missing"):
                future.result(PATIENCE)
    assert names(watched.path) == []
    assert watched.writer.submit(insert("c")).result(PATIENCE) == "c"
    assert watched.prepared == before + 3
    assert names(watched.path) == ["c"]


def test_trouble_is_said_once_when_it_begins_and_once_when_it_ends(
    watched: Watched, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_IDLE", PATIENCE)  # else it may find out by itself

    def broken(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    for _ in range(5):
        with pytest.raises(StorageError):
            watched.writer.submit(broken).result(PATIENCE)
        assert watched.writer.failing
    watched.writer.submit(insert("a")).result(PATIENCE)
    assert not watched.writer.failing
    assert errors(caplog) == [
        "The queue can't be written; nothing is acknowledged until it can: disk I/O error",
        "The queue can be written again",
    ]


def test_a_commit_that_fails_acknowledges_nothing(watched: Watched) -> None:
    """The engine refuses the COMMIT itself, after every job went well."""

    def no_commit(connection: sqlite3.Connection) -> None:
        connection.set_authorizer(lambda _, what, *__: sqlite3.SQLITE_DENY if what == "COMMIT" else sqlite3.SQLITE_OK)

    with held(watched.writer):
        futures: list[Future[Any]] = [watched.writer.submit(work) for work in (insert("a"), no_commit, insert("b"))]
    for future in futures:
        with pytest.raises(StorageError, match="not authorized"):
            future.result(PATIENCE)
    assert names(watched.path) == []
    assert watched.writer.submit(insert("c")).result(PATIENCE) == "c"
    assert names(watched.path) == ["c"]


def test_damage_that_is_found_twice_sets_the_file_aside(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.writer.submit(insert("old")).result(PATIENCE)
    runs: list[int] = []

    def finds_damage(connection: sqlite3.Connection) -> int:
        runs.append(1)
        if not watched.set_aside:
            raise DamagedError("a page is torn")
        return len(runs)

    with held(watched.writer):
        futures: list[Future[Any]] = [watched.writer.submit(work) for work in (insert("a"), finds_damage)]
    assert [future.result(PATIENCE) for future in futures] == ["a", 3]
    assert [str(error) for error in watched.set_aside] == ["a page is torn"]
    assert (names(watched.path), names(Path(f"{watched.path}.aside"))) == (["a"], ["old"])
    assert not watched.writer.failing


def test_damage_that_was_only_seen_once_sets_nothing_aside(watched: Watched) -> None:
    runs: list[int] = []

    def once(connection: sqlite3.Connection) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise DamagedError("a page is torn")
        insert("a")(connection)

    watched.writer.submit(once).result(PATIENCE)
    assert (len(runs), watched.set_aside, names(watched.path)) == (2, [], ["a"])


def test_damage_in_the_new_file_too_ends_in_a_refusal(watched: Watched) -> None:
    def always(_: sqlite3.Connection) -> None:
        raise DamagedError("always")

    with pytest.raises(StorageError, match="always"):
        watched.writer.submit(always).result(PATIENCE)
    assert len(watched.set_aside) == 1
    assert watched.writer.submit(insert("a")).result(PATIENCE) == "a"


def test_a_writer_that_may_set_nothing_aside_refuses(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "queue.db", prepare=lambda _: None, tidy=lambda _connection, _idle: False)
    writer.start()

    def always(_: sqlite3.Connection) -> None:
        raise DamagedError("always")

    with pytest.raises(StorageError, match="always"):
        writer.submit(always).result(PATIENCE)
    writer.stop()


def test_tidying_that_fails_is_said_once_refuses_nothing_and_is_tried_again(
    watched: Watched, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_IDLE", 0.1)
    tried, works, done = threading.Semaphore(0), threading.Event(), threading.Event()

    def tidy(_: sqlite3.Connection) -> bool:
        tried.release()
        if not works.is_set():
            raise sqlite3.OperationalError("database or disk is full")
        done.set()
        return False

    watched.tidy = tidy
    for number in range(20):
        watched.writer.submit(insert(str(number))).result(PATIENCE)
    for _ in range(2):
        assert tried.acquire(timeout=PATIENCE)
    assert not watched.writer.failing
    works.set()
    assert done.wait(PATIENCE)
    watched.writer.stop()
    assert errors(caplog) == [
        "The disk space of delivered records can't be freed now: database or disk is full",
        "The disk space of delivered records is freed again",
    ]


def test_tidying_goes_on_at_once_while_there_is_more_and_jobs_come_in_between(watched: Watched) -> None:
    rounds = 0

    def tidy(_: sqlite3.Connection) -> bool:
        nonlocal rounds
        rounds += 1
        return rounds < 5

    watched.tidy = tidy
    for number in range(10):
        watched.writer.submit(insert(str(number))).result(PATIENCE)
    waited = threading.Event()
    for _ in range(int(PATIENCE * 10)):
        if rounds >= 5:
            break
        waited.wait(0.1)
    assert rounds >= 5


def test_what_was_handed_over_before_the_end_is_done_and_what_comes_after_is_refused(watched: Watched) -> None:
    with held(watched.writer):
        futures = [watched.writer.submit(insert(str(number))) for number in range(50)]
        stopping = threading.Thread(target=watched.writer.stop)
        stopping.start()
    stopping.join(PATIENCE)
    assert [future.result(0) for future in futures] == [str(number) for number in range(50)]
    with pytest.raises(NotRunningError):
        watched.writer.submit(insert("late")).result(PATIENCE)
    watched.writer.stop()


def test_nobody_can_cancel_what_is_being_written(watched: Watched) -> None:
    with held(watched.writer):
        future = watched.writer.submit(insert("a"))
        assert not future.cancel()
    assert future.result(PATIENCE) == "a"


def test_it_can_be_started_again(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.writer.stop()
    watched.writer.start()
    assert watched.writer.submit(insert("a")).result(PATIENCE) == "a"
    assert not errors(caplog)


def test_a_thread_that_ends_by_an_unexpected_error_says_so_and_refuses_the_rest(tmp_path: Path) -> None:
    failures: list[QueueError] = []

    def end(_: sqlite3.Connection) -> None:
        raise SystemExit

    failing = Writer(tmp_path / "file", prepare=lambda _: None, tidy=lambda *_: False, failed=failures.append)
    failing.start()
    running, release = threading.Event(), threading.Event()
    connections: list[sqlite3.Connection] = []

    def wait(connection: sqlite3.Connection) -> None:
        connections.append(connection)
        running.set()
        release.wait(PATIENCE)

    first = failing.submit(wait)
    assert running.wait(PATIENCE)
    with_it, behind = failing.submit(end), failing.submit(insert("b"))
    release.set()
    assert first.exception(PATIENCE) is None
    for refused in (with_it, behind):  # in the same transaction, or behind it
        assert isinstance(refused.exception(PATIENCE), StorageError | NotRunningError)
    wait_until(lambda: failures, "it is told")
    assert isinstance(failing.submit(insert("c")).exception(PATIENCE), NotRunningError)
    failing.stop()
    assert failing.has_lost
    assert "SystemExit" in str(failures[0])
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):  # else the file stays open, with its locks
        assert connections[0].total_changes
