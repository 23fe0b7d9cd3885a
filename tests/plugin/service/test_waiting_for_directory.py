"""A service that waits for its directory: what it does with webhooks meanwhile, and how the wait ends."""

import asyncio
import fcntl
import logging
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from statsig_otel.exporters import Batch, Change, DirectoryInUseError, RefusedError
from statsig_otel.exporters.queue.directory import LOCK
from statsig_otel.plugin import Service
from statsig_otel.plugin.service import assembly
from tests.plugin.adapters import serve_werkzeug
from tests.plugin.http_client import Address, Response, exchange, serving
from tests.plugin.services import Keeper, post_change, service, webhook
from tests.waiting import wait_until

LIMIT = 30.0


@contextmanager
def owned(directory: Path) -> Iterator[threading.Event]:
    """A directory with another owner, until the event is set."""
    directory.mkdir(exist_ok=True)
    given_up = threading.Event()
    with (directory / LOCK).open("w") as lock:  # not by the queue, so it counts as another process's
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)

        def give_up() -> None:
            given_up.wait(LIMIT)
            fcntl.flock(lock, fcntl.LOCK_UN)

        thread = threading.Thread(target=give_up)
        thread.start()
        try:
            yield given_up
        finally:
            given_up.set()
            thread.join()


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def mounted(directory: Path, keeper: Keeper) -> Service:
    return service(directory, {"mine": keeper}, listen=False, wait_for_directory=True)


def held(running: Service) -> int:
    return len(running._assembly.consumer._held or [])


def posting(clients: ThreadPoolExecutor, address: Address, *names: str) -> list[Future[Response]]:
    return [clients.submit(exchange, address, webhook(name)) for name in names]


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_webhooks_wait_until_the_other_has_gone(tmp_path: Path, clients: ThreadPoolExecutor, kind: str) -> None:
    keeper = Keeper()
    running = mounted(tmp_path, keeper)
    server = serving(running.asgi_app()) if kind == "asgi" else serve_werkzeug(running.wsgi_app())
    with server as address, owned(tmp_path) as given_up, running:  # which started while the other was there
        answers = posting(clients, address, *"abc")
        wait_until(lambda: held(running) == 3)
        assert keeper.started == 0
        running.start()  # it has, as far as its callers are concerned
        given_up.set()
        assert [answer.result(LIMIT).status for answer in answers] == [200] * 3
        assert exchange(address, webhook("d")).status == 200
    assert sorted(keeper.names) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_what_is_refused_meanwhile_is_not_thrown_away(tmp_path: Path, clients: ThreadPoolExecutor, kind: str) -> None:
    """Statsig may never send it again."""
    keeper = Keeper()
    running = mounted(tmp_path, keeper)
    running.receiver().patience = running.wsgi_receiver().patience = 0.1
    server = serving(running.asgi_app()) if kind == "asgi" else serve_werkzeug(running.wsgi_app())
    with server as address, owned(tmp_path) as given_up, running:
        (answer,) = posting(clients, address, "a")
        assert (answer.result(LIMIT).status, answer.result().headers["retry-after"]) == (503, "10")
        given_up.set()
        wait_until(lambda: keeper.names == ["a"])
        running.receiver().patience = running.wsgi_receiver().patience = LIMIT
        assert exchange(address, webhook("a")).json["duplicates"] == 1
    assert keeper.names == ["a"]


def test_a_shutdown_ends_the_wait(
    tmp_path: Path, clients: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper()
    running = mounted(tmp_path, keeper)
    with serving(running.asgi_app()) as address, owned(tmp_path):
        running.start()
        answers = posting(clients, address, *"ab")
        wait_until(lambda: held(running) == 2)
        assert running.shutdown(LIMIT) is True
        assert [answer.result(LIMIT).status for answer in answers] == [503, 503]
        assert exchange(address, webhook("c")).status == 503
        assert (tmp_path / LOCK).read_text() == "4711\n"
    refusal = running.consumer.consume(Batch("statsig")).exception(LIMIT)
    assert isinstance(refusal, RefusedError)
    assert (refusal.reason, str(refusal)) == ("shutting_down", "the service was shut down")
    assert "could not be started" not in caplog.text  # nothing is wrong
    assert (running.ended.done(), keeper.started, keeper.names) == (True, 0, [])


def test_a_service_with_servers_of_its_own_listens_after_the_wait(tmp_path: Path) -> None:
    running = service(tmp_path, {"mine": Keeper()}, wait_for_directory=True)
    with owned(tmp_path) as given_up:
        starting = threading.Thread(target=running.start)
        starting.start()
        starting.join(0.2)
        assert starting.is_alive()
        given_up.set()
        starting.join(LIMIT)
    assert post_change(running, "a").status == 200
    assert running.shutdown() is True


def test_a_shutdown_ends_the_wait_of_a_service_with_servers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program of the docs for signals that are blocked; and nobody tells a service alone to run one worker."""
    monkeypatch.setattr(assembly, "_LONG_WAIT", 0.01)
    running, ends = service(tmp_path, {"mine": Keeper()}, wait_for_directory=True), {signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        waiting = threading.Thread(target=lambda: (signal.sigwait(ends), running.shutdown()), daemon=True)
        waiting.start()
        with owned(tmp_path), ThreadPoolExecutor(1) as pool:
            starting = pool.submit(running.start)
            wait_until(lambda: "this service does not listen" in caplog.text)
            signal.pthread_kill(waiting.ident or 0, signal.SIGUSR1)  # other threads of the tests have not blocked it
            with pytest.raises(RuntimeError, match="was shut down before its directory was free"):
                starting.result(LIMIT)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    running.ended.result(LIMIT)
    assert "Run one worker" not in caplog.text


def test_an_async_start_does_not_block_meanwhile(tmp_path: Path) -> None:
    async def main() -> None:
        with owned(tmp_path) as given_up:
            async with running:
                consuming = running.consumer.consume(Batch("statsig"))
                assert not consuming.done()
                given_up.set()
                assert (await asyncio.wrap_future(consuming)).accepted == 0

    running = mounted(tmp_path, Keeper())
    asyncio.run(main())


def test_a_caller_may_stop_waiting_and_its_batch_is_stored_nevertheless(tmp_path: Path) -> None:
    async def main() -> None:
        with owned(tmp_path) as given_up:
            async with running:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.wrap_future(running.consumer.consume(batch)), 0.01)
                given_up.set()
                receipt = await asyncio.wait_for(asyncio.wrap_future(running.consumer.consume(batch)), LIMIT)
                assert receipt.duplicates == 1

    running = mounted(tmp_path, Keeper())
    batch = Batch("statsig", (Change("0" * 32, (b"record",)),))
    asyncio.run(main())


def test_what_fails_after_the_wait_is_logged_and_may_be_tried_again(
    tmp_path: Path, clients: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    running = mounted(tmp_path, Keeper())
    with serving(running.asgi_app()) as address, owned(tmp_path) as given_up:
        running.start()
        answers = posting(clients, address, "a")
        wait_until(lambda: held(running) == 1)
        (tmp_path / "queue.db").mkdir()
        given_up.set()
        assert [answer.result(LIMIT).status for answer in answers] == [503]
        wait_until(lambda: "The service could not be started: " in caplog.text)
        assert not running.ended.done()
        (tmp_path / "queue.db").rmdir()
        with running:
            assert exchange(address, webhook("a")).status == 200


def test_the_wait_is_logged_with_the_owner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with owned(tmp_path) as given_up, mounted(tmp_path, Keeper()) as running:
        (warning,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
        assert warning.startswith("Waiting for the queue's directory: ")
        assert warning.endswith(f"{tmp_path} is in use by the process 4711")  # no advice: it may be about to end
        given_up.set()
        wait_until(lambda: running.consumer.consume(Batch("statsig")).result(LIMIT))


def test_a_long_wait_is_an_error_with_the_ways_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most likely there are several workers."""
    monkeypatch.setattr(assembly, "_LONG_WAIT", 0.01)
    with owned(tmp_path) as given_up, mounted(tmp_path, Keeper()) as running:
        said = "Until the queue's directory is free, this process refuses all webhooks: "
        wait_until(lambda: said in caplog.text)
        (error,) = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
        assert "is in use by the process 4711" in error
        assert "Run one worker in your server (gunicorn: --workers 1 --threads 8)" in error
        assert "wait_for_directory" not in error  # it does
        given_up.set()
        wait_until(lambda: running.consumer.consume(Batch("statsig")).result(LIMIT))


def test_what_is_held_is_limited(tmp_path: Path) -> None:
    """A second worker may wait for as long as the server runs."""
    batch = Batch("statsig", (Change("0" * 32, (b" " * (20 << 20),)),))
    with owned(tmp_path) as given_up, mounted(tmp_path, Keeper()) as running:
        held = [running.consumer.consume(batch) for _ in range(3)]
        refusal = running.consumer.consume(batch).exception(LIMIT)
        assert isinstance(refusal, RefusedError)
        assert (refusal.reason, [one.done() for one in held]) == ("not_running", [False] * 3)
        given_up.set()
        assert [one.result(LIMIT).accepted for one in held] == [1, 0, 0]


def test_an_exporter_is_not_touched_before_the_directory_is_free(tmp_path: Path) -> None:
    """One that was made in code, and was shut down, might not start any more."""
    keeper = Keeper()
    waiting = service(tmp_path, {"mine": keeper}, listen=False)
    with owned(tmp_path), pytest.raises(DirectoryInUseError):
        waiting.start()
    assert (keeper.started, keeper.stopped) == (0, 0)
    with waiting:
        assert keeper.started == 1


def test_another_service_of_the_same_process_is_not_waited_for(tmp_path: Path) -> None:
    """It may be what the caller would have to end."""
    with (
        service(tmp_path, {"mine": Keeper()}),
        pytest.raises(DirectoryInUseError, match="another service of this process"),
    ):
        mounted(tmp_path, Keeper()).start()
