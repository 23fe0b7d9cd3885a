"""What the queue's tests share: batches, queues, a count of their own, and processes."""

import contextlib
import logging
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from statsig_otel.exporters.consumer import Batch, Change, Invalid, Receipt, RefusedError
from statsig_otel.exporters.queue import schema
from statsig_otel.exporters.queue.cursor import ExporterCursor
from statsig_otel.exporters.queue.errors import DamagedError, StorageError
from statsig_otel.exporters.queue.queries import ExporterState
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.records import Stored
from statsig_otel.exporters.queue.recovery.recovery import Recovery
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.routing import CurrentRouting, QueuedExporter, Route, Routing
from tests.waiting import wait_until

if TYPE_CHECKING:
    import pytest  # the processes of `child` begin a third sooner without it

PATIENCE = 30.0
"""Seconds after which something counts as hanging."""

ROOT = Path(__file__).resolve().parents[3]


def uid(number: int) -> str:
    return f"{number:032x}"


def change(number: int, *, records: int = 1, size: int = 20) -> Change:
    """A change whose payloads tell its number and their own place."""
    return Change(uid(number), tuple(f"{number}.{place}".encode().ljust(size, b"-") for place in range(records)))


def batch(*numbers: int, receiver: str = "statsig", records: int = 1, size: int = 20, invalid: int = 0) -> Batch:
    return Batch(
        receiver,
        tuple(change(number, records=records, size=size) for number in numbers),
        tuple(Invalid(f"bad {number}".encode(), "no name") for number in range(invalid)),
    )


@contextlib.contextmanager
def running(
    directory: Path,
    *,
    receivers: Mapping[str, Route] | None = None,
    exporters: Mapping[str, QueuedExporter] | Sequence[str] = ("otlp",),
    min_free_bytes: int = 0,
    clock: Callable[[], float] = lambda: 1_700_000_000.0,
    recovers: bool = True,
) -> Iterator[DurableQueue]:
    """A started queue with its recovery; by default one receiver, `statsig`, whose records are for all exporters."""
    known = exporters if isinstance(exporters, Mapping) else {name: QueuedExporter() for name in exporters}
    routes = {"statsig": Route(tuple(known))} if receivers is None else receivers
    queue = DurableQueue(
        directory,
        CurrentRouting(Routing(routes, known)),
        min_free_bytes=min_free_bytes,
        clock=clock,
    )
    queue.start()
    try:
        with recovering(queue) if recovers else contextlib.nullcontext():
            yield queue
    finally:
        for name in known:
            queue.cursor(name).close()
        queue.shutdown()


@contextlib.contextmanager
def recovering(queue: DurableQueue) -> Iterator[Recovery]:
    """What was set aside is carried over beside the block."""
    recovery = Recovery(queue)
    recovery.start()
    try:
        yield recovery
    finally:
        recovery.stop()


def consume(queue: DurableQueue, made: Batch) -> Future[Receipt]:
    """Hand a batch over with its receiver's current route."""
    return queue.consume(made, queue.routing.route(made.receiver))


def put(queue: DurableQueue, *numbers: int, receiver: str = "statsig", records: int = 1, size: int = 20) -> Receipt:
    return consume(queue, batch(*numbers, receiver=receiver, records=records, size=size)).result(PATIENCE)


def numbers_of(records: Sequence[Stored]) -> list[int]:
    return [int.from_bytes(record.uid) for record in records]


def read_all(cursor: ExporterCursor, *, at_once: int = 7) -> list[Stored]:
    """All that waits, ticked off in small batches."""
    found: list[Stored] = []
    while records := cursor.read(at_once, 1 << 20):
        cursor.finish(records)
        found += records
    return found


def delivered(cursor: ExporterCursor) -> list[int]:
    return numbers_of(read_all(cursor))


@contextlib.contextmanager
def reading(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(schema.connect_reading(database)) as connection:
        yield connection


def count(database: Path, table: str = "records") -> int:
    with reading(database) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def dead_letters_in(database: Path) -> list[DeadLetter]:
    with reading(database) as connection:
        rows = connection.execute(
            "SELECT kind, owner, reason, content, uid, attempts, count FROM dead_letters ORDER BY id"
        )
        return [DeadLetter(*row) for row in rows]


def check_counters(queue: DurableQueue, ahead: Mapping[str, int] | None = None) -> None:
    """What is counted as it changes is what a count from the beginning finds.

    Args:
        queue: The queue.
        ahead: By how many records an exporter's cursor is ahead of the disk.
    """
    states = {state.id: state for state in queue.states()}
    with reading(queue.database) as connection:
        counted = {number: [0, 0] for number in states}
        routes = dict(connection.execute("SELECT id, exporters FROM routes"))
        for seq, route, size in connection.execute("SELECT seq, route, length(payload) FROM records"):
            for number in map(int, filter(None, routes[route].split(","))):
                if number in states and seq > states[number].cursor:
                    counted[number][0] += 1
                    counted[number][1] += size
    assert {number: [state.waiting, state.bytes] for number, state in states.items()} == counted
    for state in states.values():
        with contextlib.suppress(KeyError):
            cursor = queue.cursor(state.name)
            soon = (ahead or {}).get(state.name, 0)
            assert (cursor.waiting, cursor.position > state.cursor) == (state.waiting - soon, soon > 0)
            assert cursor.position >= state.cursor
            if not soon:
                assert cursor.size == state.bytes


def state_of(queue: DurableQueue, name: str) -> ExporterState:
    return next(state for state in queue.states() if state.name == name)


def tidied(queue: DurableQueue, rounds: int = 400) -> None:
    """Let the writer tidy up until there is nothing more to delete."""
    for _ in range(rounds):
        if not queue.submit(lambda connection: queue._tidy(connection, True)).result(PATIENCE):
            return
    raise AssertionError("it never ends")


def kept(directory: Path) -> list[Path]:
    """The databases that were set aside, whatever became of them."""
    return sorted(directory.glob("queue.db.*-*-[0-9]"))


@contextlib.contextmanager
def blocked(queue: DurableQueue) -> Iterator[None]:
    """The writer is busy for as long as the block, unless it can't write at all."""
    running, release = threading.Event(), threading.Event()

    def work(_: sqlite3.Connection) -> None:
        running.set()
        release.wait(PATIENCE)

    future = queue.submit(work)
    future.add_done_callback(lambda _: running.set())
    assert running.wait(PATIENCE)
    assert not future.done() or isinstance(future.exception(), StorageError)
    try:
        yield
    finally:
        release.set()


def failing_disk() -> contextlib.AbstractContextManager[None]:
    """Every write to a file of this process fails, by the operating system; reading goes on."""
    return _limited(resource.RLIMIT_FSIZE, 1)


def no_more_files() -> contextlib.AbstractContextManager[None]:
    """This process opens no file, by the operating system; what is open stays so."""
    return _limited(resource.RLIMIT_NOFILE, 3)


@contextlib.contextmanager
def _limited(what: int, most: int) -> Iterator[None]:
    before = resource.getrlimit(what)
    resource.setrlimit(what, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def settled(directory: Path) -> None:
    """Wait until all that was set aside is carried over, as far as it can be."""
    wait_until(lambda: not list(directory.glob("queue.db.corrupt-*-[0-9]")), "it is carried over")


def copy_of(directory: Path, to: Path) -> Path:
    """What a crash at this moment would leave behind: no file may get another name while they are copied."""

    def files() -> dict[str, int]:
        kept = (entry for entry in os.scandir(directory) if entry.name.startswith(("queue.db", "state.json")))
        return {entry.name: entry.inode() for entry in kept}

    before = None
    while before != files():
        before = files()
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        with contextlib.suppress(FileNotFoundError):
            for name in before:
                shutil.copyfile(directory / name, to / name)
    return to


def said(caplog: "pytest.LogCaptureFixture", level: int, text: str) -> int:
    """How many lines of a level hold a text."""
    return sum(1 for record in caplog.records if record.levelno == level and text in record.getMessage())


def errors(caplog: "pytest.LogCaptureFixture") -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@contextlib.contextmanager
def child(mode: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """One of the programs of `child.py`; it is gone after the block."""
    command = [sys.executable, "-m", "tests.exporters.queue.child", mode, *map(str, arguments)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def ask(process: subprocess.Popen[str], number: int) -> str:
    """Have the program `answer` store a number; what it says."""
    assert process.stdin is not None
    process.stdin.write(f"{number}\n")
    process.stdin.flush()
    return line_of(process)


def refusal(queue: DurableQueue, made: Batch) -> RefusedError:
    error = consume(queue, made).exception(PATIENCE)
    assert isinstance(error, RefusedError)
    return error


def submit_damage(queue: DurableQueue) -> Future[None]:
    before = queue._database.generation

    def finds_it(_: sqlite3.Connection) -> None:
        if queue._database.generation == before:
            raise DamagedError("found by a test")

    return queue.submit(finds_it)


def insert(name: str) -> Callable[[sqlite3.Connection], str]:
    """A job of the writer that adds an exporter."""

    def work(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO exporters (name, cursor) VALUES (?, 0)", (name,))
        return name

    return work
