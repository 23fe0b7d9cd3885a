"""A service as a library has it: its one life, from any thread, under any loop, and what a 200 promises at its end."""

import asyncio
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from statsig_otel.config import ConfigError, Opaque
from statsig_otel.exporters import Batch, Delivered, DirectoryInUseError, OtlpGrpcSettings, Outcome, RefusedError
from statsig_otel.exporters.network.tls import GrpcTlsSettings
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.plugin import Destination, RestartNeededError, SendingQueueSettings, Service
from statsig_otel.plugin.control.socket import call
from tests.peers.otlp_servers import GrpcSink
from tests.plugin.http_client import connect, read_response
from tests.plugin.services import SECRET, Keeper, address_of, post_change, service, webhook
from tests.waiting import wait_until

LIMIT = 30.0
"""Seconds in which all ends that is not to hang."""


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def joined(thread: threading.Thread) -> bool:
    thread.join(LIMIT)
    return not thread.is_alive()


@contextmanager
def interrupting(handler: Callable[[], object]) -> Iterator[None]:
    """A handler of SIGUSR1, for a while."""
    before = signal.signal(signal.SIGUSR1, lambda *_: handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_a_webhook_brings_reaches_the_backend(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        settings = OtlpGrpcSettings(endpoint=sink.address, tls=GrpcTlsSettings(insecure=True))
        running = service(tmp_path, {"otlp_grpc": settings}, resource={"team": "flags"})
        running.start()
        answer = post_change(running, "a")
        assert (answer.status, answer.json["accepted"]) == (200, 1)
        assert running.shutdown() is True
        (received,) = sink.requests
    assert [record.event_name for record in received.records] == ["statsig.config_change"]
    resource = received.message.resource_logs[0].resource.attributes
    assert {one.key: one.value.string_value for one in resource} == {"service.name": "statsig", "team": "flags"}


def test_the_environment_counts_only_where_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "unasked")
    with GrpcSink() as sink:
        settings = OtlpGrpcSettings(endpoint=sink.address, tls=GrpcTlsSettings(insecure=True))
        for number, environ in enumerate([None, {"OTEL_SERVICE_NAME": "asked"}]):
            with service(tmp_path, {"otlp_grpc": settings}, environ=environ) as running:
                post_change(running, f"flag {number}")
        names = [
            one.value.string_value
            for received in sink.requests
            for one in received.message.resource_logs[0].resource.attributes
        ]
    assert names == ["statsig", "asked"]


def test_a_destination_says_how_an_exporter_is_fed(tmp_path: Path) -> None:
    """One record may wait for the one; the webhook waits for the other."""
    held, direct = Keeper(hold=True), Keeper()
    exporters = {
        "held": Destination(held, sending_queue=SendingQueueSettings(queue_size=1)),
        "direct": Destination(direct, sending_queue=SendingQueueSettings(enabled=False)),
    }
    with service(tmp_path, exporters) as running:
        assert post_change(running, "a").status == 200
        assert direct.names == ["a"]
        assert post_change(running, "b").status == 503
        held.go_on.set()
    assert held.names == ["a"]


def test_starts_and_shutdowns_from_many_threads_are_one(tmp_path: Path) -> None:
    keeper = Keeper()
    running = service(tmp_path, {"mine": keeper})
    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(running.start) for _ in range(8)]:
            each.result(LIMIT)
        assert post_change(running, "a").status == 200
        assert [each.result(LIMIT) for each in [pool.submit(running.shutdown) for _ in range(8)]] == [True] * 8
    assert running.shutdown() is True
    assert (keeper.started, keeper.stopped, keeper.names) == (1, 1, ["a"])


def test_starts_and_shutdowns_at_the_same_time_end_in_order(tmp_path: Path) -> None:
    for _ in range(20):
        running = service(tmp_path, {"mine": Keeper()})
        with ThreadPoolExecutor(4) as pool:
            starts = [pool.submit(running.start) for _ in range(2)]
            ends = [pool.submit(running.shutdown) for _ in range(2)]
            assert all(end.result(LIMIT) for end in ends)
            errors = [start.exception(LIMIT) for start in starts]
        assert all(error is None or "was shut down" in str(error) for error in errors)
        assert running.ended.done() or all(errors)
    with service(tmp_path, {"mine": Keeper()}):
        pass  # nobody is left that owns the directory


def test_a_service_starts_once(tmp_path: Path) -> None:
    ended, never = service(tmp_path, {"mine": Keeper()}), service(tmp_path, {"mine": Keeper()})
    with ended:
        pass
    assert never.shutdown() is True
    for each in (ended, never):
        with pytest.raises(RuntimeError, match="make another one"):
            each.start()


@pytest.mark.parametrize("listen", [True, False])
def test_a_shutdown_without_a_start_is_an_end_too(tmp_path: Path, listen: bool) -> None:
    never = service(tmp_path, {"mine": Keeper()}, listen=listen)
    assert not never.ended.done()
    assert never.shutdown() is True
    assert never.ended.result(LIMIT) is None


def test_a_shutdown_may_be_given_all_the_time_there_is(tmp_path: Path) -> None:
    running = service(tmp_path, {"mine": Keeper()})
    running.start()
    assert post_change(running, "a").status == 200
    assert running.shutdown(math.inf, drain=math.inf) is True
    again = service(tmp_path, {"mine": Keeper()})
    again.start()  # nobody owns the directory any more
    assert asyncio.run(again.ashutdown(math.inf)) is True


def test_a_relative_directory_is_that_of_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon goes to another directory: what is acknowledged then must not be in a queue that nobody opens again."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with service(Path("q"), {"mine": Keeper()}) as running:
        monkeypatch.chdir(tmp_path / "there")
        assert post_change(running, "a").status == 200
    assert list((tmp_path / "there").iterdir()) == []
    assert (tmp_path / "here" / "q" / "queue.db").exists()


def test_a_port_in_use_closes_all_again_and_the_start_may_be_tried_again(tmp_path: Path) -> None:
    keeper = Keeper()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        failing = service(tmp_path, {"mine": keeper}, receiver={"endpoint": endpoint})
        for _ in range(2):
            with pytest.raises(OSError, match="the port is in use"):
                failing.start()
        assert (keeper.started, keeper.stopped) == (2, 2)
        with service(tmp_path, {"mine": Keeper()}) as another:
            assert post_change(another, "a").status == 200
    keeper.stopped = 0
    with failing:
        assert post_change(failing, "b").status == 200
        assert not failing.ended.done()
    assert keeper.names == ["b"]
    assert failing.ended.done()


def test_a_start_that_failed_may_be_followed_by_a_shutdown(tmp_path: Path) -> None:
    with service(tmp_path, {"mine": Keeper()}):
        failing = service(tmp_path, {"mine": Keeper()})
        with pytest.raises(DirectoryInUseError):
            failing.start()
    assert failing.shutdown() is True
    assert failing.ended.done()
    with pytest.raises(RuntimeError, match="make another one"):
        failing.start()


@pytest.mark.parametrize("name", ["queue writer", "queue recovery", "sender mine", "control", "statsig-otel server"])
def test_a_thread_that_cannot_be_started_closes_all_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    keeper = Keeper()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            service(tmp_path, {"mine": keeper}).start()
    assert keeper.stopped >= keeper.started
    with service(tmp_path, {"mine": Keeper()}):
        pass  # nobody is left that owns the directory


def test_two_services_of_a_process_do_not_share_a_directory(tmp_path: Path) -> None:
    with service(tmp_path, {"mine": Keeper()}) as first:
        with pytest.raises(DirectoryInUseError, match="is in use by another service of this process: "):
            service(tmp_path, {"mine": Keeper()}).start()
        assert post_change(first, "a").status == 200


def test_a_running_loop_is_neither_needed_nor_disturbed(tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        keeper = Keeper()
        running = service(tmp_path, {"mine": keeper})
        running.start()
        assert (await asyncio.to_thread(post_change, running, "a")).status == 200
        assert running.shutdown() is True
        assert asyncio.get_running_loop() is loop
        assert keeper.names == ["a"]

    asyncio.run(main())


def test_the_loop_goes_on_during_an_async_start_and_shutdown(tmp_path: Path) -> None:
    async def main() -> None:
        keeper = Keeper(hold=True)
        async with service(tmp_path, {"mine": keeper}) as running:
            assert (await asyncio.to_thread(post_change, running, "a")).status == 200
            ending = asyncio.gather(*(running.ashutdown() for _ in range(3)))
            await asyncio.sleep(0)
            keeper.go_on.set()  # only a loop that goes on comes here before the drain is over
            assert await ending == [True] * 3
        assert keeper.names == ["a"]

    asyncio.run(main())


def test_a_start_that_is_cancelled_is_undone(tmp_path: Path) -> None:
    class Slow(Keeper):
        def start(self) -> None:
            super().start()
            begun.set()
            self.go_on.wait(LIMIT)

    begun, slow = threading.Event(), Slow(hold=True)
    running = service(tmp_path, {"mine": slow})

    async def main() -> None:
        starting = asyncio.create_task(running.astart())
        await asyncio.to_thread(begun.wait, LIMIT)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(main())
    slow.go_on.set()
    wait_until(lambda: slow.stopped == 1)
    wait_until(lambda: "queue writer" not in {thread.name for thread in threading.enumerate()}, "the queue is closed")


def test_a_start_that_a_ctrl_c_interrupts_is_undone(tmp_path: Path) -> None:
    def interrupt() -> None:
        slow.go_on.set()
        raise KeyboardInterrupt

    class Slow(Keeper):
        def start(self) -> None:
            super().start()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            self.go_on.wait(LIMIT)

    slow = Slow(hold=True)
    with interrupting(interrupt), pytest.raises(KeyboardInterrupt):
        service(tmp_path, {"mine": slow}).start()
    wait_until(lambda: slow.stopped == 1)


def test_a_signal_s_handler_may_shut_down_while_a_start_or_a_shutdown_is_waited_for(tmp_path: Path) -> None:
    class Slow(Keeper):
        def start(self) -> None:
            super().start()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            self.go_on.wait(LIMIT)

    slow, answers = Slow(hold=True), list[bool]()
    starting = service(tmp_path, {"mine": slow})

    def end_the_start() -> None:
        slow.go_on.set()
        answers.append(starting.shutdown(LIMIT))

    with interrupting(end_the_start):
        starting.start()  # in this thread, which the signal interrupts
    assert answers == [True]

    keeper = Keeper(hold=True)
    stopping = service(tmp_path, {"mine": keeper})
    stopping.start()
    assert post_change(stopping, "a").status == 200

    def interrupt() -> None:
        while not stopping.ended.done():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def end_the_shutdown() -> None:
        keeper.go_on.set()
        answers.append(stopping.shutdown(LIMIT))

    with interrupting(end_the_shutdown):
        waiting = in_thread(interrupt)
        assert stopping.shutdown(LIMIT, drain=LIMIT) is True
    assert joined(waiting)
    assert answers == [True, True]


def test_an_exporter_may_shut_its_service_down(tmp_path: Path) -> None:
    class Ending(Keeper):
        def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
            answers.append(running.shutdown(0.0))
            return Delivered()

    answers = list[bool]()
    running = service(tmp_path, {"mine": Ending()})
    running.start()
    assert post_change(running, "a").status == 200
    running.ended.result(LIMIT)
    running.shutdown(LIMIT)
    assert answers == [False]


@pytest.mark.parametrize("listen", [True, False])
def test_a_command_may_shut_its_service_down(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    listen: bool,
) -> None:
    running = service(tmp_path, {"mine": Keeper()}, listen=listen)
    running._assembly.offer("end", lambda _: running.shutdown(LIMIT))
    running.start()
    assert call(tmp_path / CONTROL, "end") is True
    assert not (tmp_path / CONTROL).exists()
    assert "left behind" not in caplog.text  # it has not waited for itself


def test_a_shutdown_ends_a_send_and_the_record_comes_after_the_next_start(tmp_path: Path) -> None:
    slow, after = Keeper(hold=True), Keeper()
    with service(tmp_path, {"mine": slow}) as running:
        assert post_change(running, "a").status == 200
        slow.sending.wait(LIMIT)
        assert running.shutdown(drain=0.1) is False
    with service(tmp_path, {"mine": after}) as again:
        assert post_change(again, "a").json["duplicates"] == 1
    assert (slow.names, after.names) == ([], ["a"])


@pytest.mark.slow
def test_a_send_that_hangs_is_left_behind_and_its_record_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deaf, after = Keeper(hold=True, heed=False), Keeper()
    running = service(tmp_path, {"mine": deaf})
    running.start()
    assert post_change(running, "a").status == 200
    deaf.sending.wait(LIMIT)
    assert running.shutdown(0.5) is False
    assert "The shutdown did not end within 0.5 s" in caplog.text
    assert running.shutdown(LIMIT) is False
    assert "mine: a send or the shutdown hangs; it is left behind" in caplog.text
    with service(tmp_path, {"mine": after}):
        pass
    assert after.names == ["a"]
    deaf.go_on.set()


def test_every_200_is_kept_also_where_the_service_ends_meanwhile(tmp_path: Path) -> None:
    """Of fifty requests one is taken, one has no end and is refused in time, others end meanwhile: 200, 503 or 0."""
    first, second = Keeper(), Keeper()
    running = service(tmp_path, {"mine": first})
    running.start()
    names = [f"flag {number}" for number in range(50)]
    begun = [connect(address_of(running)) for _ in names]
    requests = [webhook(name) for name in names]
    for connection, data in zip(begun, requests, strict=True):
        connection.sendall(data[:-20])
    ends, endless = threading.Event(), 1

    def finish(number: int) -> int:
        if number > 0:
            ends.wait(LIMIT)
            time.sleep(number / 30)  # some within the second for bodies that are still being read, some after it
        try:
            with begun[number] as connection:
                connection.sendall(requests[number][-20:] if number != endless else b"")
                return read_response(connection).status
        except (OSError, IndexError):  # cut off
            return 0

    with ThreadPoolExecutor(len(names)) as pool:
        answers = [pool.submit(finish, number) for number in range(len(names))]
        assert answers[0].result(LIMIT) == 200
        ends.set()
        running.shutdown(4.0, drain=0.0)
        statuses = [answer.result(LIMIT) for answer in answers]
    assert set(statuses) <= {200, 503, 0}
    assert statuses[endless] == 503
    taken = [name for name, status in zip(names, statuses, strict=True) if status == 200]
    with service(tmp_path, {"mine": second}):
        pass
    assert set(taken) <= {*first.names, *second.names}


def test_a_consumer_says_why_it_does_not_take_a_batch(tmp_path: Path) -> None:
    def refusal(batch: Batch) -> str:
        error = running.consumer.consume(batch).exception(LIMIT)
        assert isinstance(error, RefusedError)
        return f"{error.reason}: {error}"

    running: Service = service(tmp_path, {"mine": Keeper()}, listen=False)
    assert refusal(Batch("statsig")) == "not_running: the service was not started"
    with running:
        assert refusal(Batch("statsig/eu")) == "unknown_receiver: there is no receiver 'statsig/eu' in this service"
        assert running.consumer.consume(Batch("statsig")).result(LIMIT).accepted == 0
    assert refusal(Batch("statsig")).startswith("shutting_down")


def test_after_its_shutdown_a_service_takes_no_other_configuration_over(tmp_path: Path) -> None:
    with service(tmp_path, {"mine": Keeper()}) as running:
        assert running._assembly.reconfigure(running._assembly.configuration).changes == []
    with pytest.raises(RestartNeededError, match="shutting down"):
        running._assembly.reconfigure(running._assembly.configuration)


def test_secrets_are_rotated_while_it_runs_and_before(tmp_path: Path) -> None:
    other = "webhook-another-0123456789"
    with service(tmp_path, {"mine": Keeper()}) as running:
        assert post_change(running, "a", secret=other).status == 401
        running.rotate_secrets("statsig", [SECRET, other])
        assert [post_change(running, "a", secret=secret).status for secret in (SECRET, other)] == [200, 200]
        running.rotate_secrets("statsig", [Opaque(other)])
        assert [post_change(running, "a", secret=secret).status for secret in (SECRET, other)] == [401, 200]
        with pytest.raises(ConfigError, match=r"receivers::statsig::signing_secrets\[0\]: is empty"):
            running.rotate_secrets("statsig", [""])
        with pytest.raises(ConfigError, match=r"receivers::statsig::signing_secrets\[0\]: contains \$"):
            running.rotate_secrets("statsig", ["${env:SECRET}"])
        with pytest.raises(ConfigError, match=r"receivers::statsig::signing_secrets\[1\]: .*quotation mark"):
            running.rotate_secrets("statsig", [other, f'"{other}"'])
        with pytest.raises(TypeError):
            running.rotate_secrets("statsig", other)
        with pytest.raises(ConfigError, match="receivers::statsig/eu: there is no such receiver"):
            running.rotate_secrets("statsig/eu", [other])
        assert post_change(running, "a", secret=other).status == 200
        assert other not in repr(running._assembly.configuration)
    early = service(tmp_path / "early", {"mine": Keeper()})
    early.rotate_secrets("statsig", [other])
    with early:
        assert [post_change(early, "a", secret=secret).status for secret in (SECRET, other)] == [401, 200]


def test_rotations_at_the_same_time_do_not_undo_each_other(tmp_path: Path) -> None:
    names = ["statsig", "statsig/eu", "statsig/us"]
    receivers = {name: {"signing_secrets": [SECRET], "path": f"/{name}"} for name in names}
    running = Service(receivers=receivers, exporters={"mine": Keeper()}, directory=tmp_path, listen=False)

    def rotate(name: str) -> None:
        for number in range(100):
            running.rotate_secrets(name, [f"{SECRET}{number}"] if number < 99 else [])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(rotate, names))
    assert running.without_secret == names


def test_only_a_running_service_takes_over_another_configuration(tmp_path: Path) -> None:
    exporter = Keeper()
    made = service(tmp_path, {"mine": Destination(exporter, sending_queue=SendingQueueSettings(enabled=False))})
    with pytest.raises(RestartNeededError, match="has not started"):
        made._assembly.reconfigure(made._assembly.configuration)
    made.start()
    assert made._assembly.reconfigure(made._assembly.configuration).changes == []
    made.shutdown()
    with pytest.raises(RestartNeededError, match="is shutting down"):
        made._assembly.reconfigure(made._assembly.configuration)
