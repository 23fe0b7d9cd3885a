"""The promise behind a 200 on a machine that fails: disk errors, power loss, full disks, a clock that jumps."""

import json
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import grpc
import pytest

from statsig_otel.exporters.delivery.retry import SHORTEST_WAIT
from statsig_otel.plugin.record.record import uid
from tests.e2e.faulty_machine import FaultyMachine, fill, small_disk
from tests.e2e.processes import write_config
from tests.e2e.service_process import ServiceProcess
from tests.e2e.statsig_client import (
    ENV,
    RETRY,
    Client,
    change,
    dead_port,
    give,
    grpc_exporter,
    load,
    post,
    uids,
    waiting,
)
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink, HttpAnswer, HttpSink, Received
from tests.waiting import wait_until

DOWN = GrpcAnswer(grpc.StatusCode.UNAVAILABLE, "down")
KILLED = -signal.SIGKILL
DELETED = "Somebody deleted or replaced"


@pytest.fixture
def machine(tmp_path: Path) -> FaultyMachine:
    return FaultyMachine(tmp_path / "faults")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", mebibytes=8) as place:
        yield place


class Outage:
    """A backend's answers over gRPC: it is down until it is `over`, and knows what it has taken since."""

    def __init__(self) -> None:
        self.over = False
        self.taken: list[str] = []

    def __call__(self, request: Received) -> GrpcAnswer:
        if not self.over:
            return DOWN
        self.taken += uids([request])
        return GrpcAnswer()


def kill(service: ServiceProcess) -> None:
    """End it at once. Safe to call twice."""
    service.process.send_signal(signal.SIGKILL)
    service.wait()


def http_exporter(sink: HttpSink) -> dict[str, object]:
    return {"endpoint": sink.url, "retry_on_failure": RETRY}


def wait_for_records(sink: GrpcSink | HttpSink, count: int) -> None:
    wait_until(lambda: len(uids(sink.requests)) >= count, f"{count} records are delivered")


def is_drained(folder: Path) -> bool:
    return set(waiting(folder).values()) == {0}


def test_a_disk_that_fails_refuses_every_webhook_and_the_next_one_after_it_is_taken(
    tmp_path: Path, machine: FaultyMachine
) -> None:
    calls: tuple[Literal["sync", "write"], ...] = ("sync", "write")
    with GrpcSink() as sink:
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV | machine.env) as service:
            for call, first in zip(calls, (0, 10), strict=True):
                assert post(service.url, change(first)).status == 200
                wait_until(lambda: is_drained(tmp_path), "the one before the fault is delivered")
                with machine.fault(call):
                    refused = [post(service.url, change(first + number)) for number in range(1, 6)]
                assert [(answer.status, answer.headers.get("Retry-After")) for answer in refused] == [(503, "10")] * 5
                assert post(service.url, change(first + 6)).status == 200
                wait_for_records(sink, first + 2)
                # What was refused may come again.
                assert [post(service.url, change(first + number)).status for number in range(1, 10)] == [200] * 9
                wait_until(lambda: is_drained(tmp_path), "all are delivered")
        assert sorted(uids(sink.requests)) == sorted(uid(change(number)) for number in range(20))
    said = [line for line in service.log if "The queue can't be written; nothing is acknowledged" in line]
    over = [line for line in service.log if "The queue can be written again" in line]
    assert (len(said), len(over)) == (2, 2), service.log


@pytest.mark.slow
def test_what_is_delivered_and_cannot_be_ticked_off_is_not_sent_again(tmp_path: Path, machine: FaultyMachine) -> None:
    with GrpcSink() as sink:
        sink.answer = GrpcAnswer(hang=True)
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV | machine.env) as service:
            assert post(service.url, change(1)).status == 200
            sink.wait_for(1)
            with machine.fault("sync"):
                sink.release()
                wait_until(lambda: any("can't be read or ticked off" in line for line in service.log), "it is said")
            give(tmp_path, "queue", "resume", "otlp_grpc")  # by itself it takes a few seconds
            wait_until(lambda: is_drained(tmp_path), "it is ticked off")
            assert post(service.url, change(2)).status == 200
            wait_until(lambda: is_drained(tmp_path), "the next one is delivered")
        assert uids(sink.requests) == [uid(change(1)), uid(change(2))]


def fail_under_load(folder: Path, machine: FaultyMachine, *, runs: int, faults: int, power_loss: bool = False) -> None:
    """Under load, let the disk fail and work by turns, and kill the service in or right after each run's last fault."""
    chance = random.Random(1)
    clients = [Client(seed) for seed in range(1, 9)]
    with GrpcSink() as first, HttpSink() as second:
        second.answer = HttpAnswer(status=503)  # all stays in the queue until the end
        exporters = {"otlp_grpc": grpc_exporter(first), "otlp_http": http_exporter(second)}
        config = write_config(folder, exporters, queued=True)
        with load(clients):
            for _ in range(runs):
                with ServiceProcess(config, env=ENV | machine.env, exit_code=KILLED) as service:
                    for client in clients:
                        client.url = service.url
                    for left in reversed(range(faults)):
                        wait_for_answers(clients, 200)
                        with machine.fault(chance.choice(("sync", "write"))):
                            wait_for_answers(clients, 503)
                            time.sleep(chance.uniform(0.0, 0.2))
                            if not left and chance.random() < 0.5:
                                kill(service)
                    kill(service)
                if power_loss:
                    machine.lose_power(folder / "queue")
        second.requests.clear()
        second.answer = HttpAnswer()
        with ServiceProcess(config, env=ENV | machine.env):
            wait_until(lambda: is_drained(folder), "the queue is drained")
        acknowledged = set[str]().union(*(client.acknowledged for client in clients))
        sent = {uid(change(client.seed * 1_000_000 + number)) for client in clients for number in range(client.sent)}
        assert {status for client in clients for status in client.statuses} == {200, 503}
        for sink in (first, second):
            assert acknowledged <= set(uids(sink.requests)) <= sent


def wait_for_answers(clients: list[Client], status: int) -> None:
    """Wait until each client got another answer with this status."""
    before = [client.statuses[status] for client in clients]
    wait_until(
        lambda: all(client.statuses[status] > count for client, count in zip(clients, before, strict=True)),
        f"each client gets a {status}",
    )


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_while_the_disk_fails_and_works_by_turns(
    tmp_path: Path, machine: FaultyMachine
) -> None:
    fail_under_load(tmp_path, machine, runs=1, faults=3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("power_loss", [False, True], ids=["kills", "power losses"])
def test_nothing_acknowledged_is_lost_over_many_faults_of_the_disk(
    tmp_path: Path, machine: FaultyMachine, *, power_loss: bool
) -> None:
    if power_loss:
        machine.watch_disk()
    fail_under_load(tmp_path, machine, runs=12, faults=2, power_loss=power_loss)


@pytest.mark.slow
@pytest.mark.parametrize("restarted", [False, True], ids=["in the same process", "after a kill"])
def test_what_was_acknowledged_after_a_failed_sync_outlives_a_power_loss(
    tmp_path: Path, machine: FaultyMachine, *, restarted: bool
) -> None:
    """The kernel takes pages that it could not write for clean: a log may be cut off there, before later changes."""
    machine.watch_disk()
    with GrpcSink() as sink:
        sink.answer = DOWN
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV | machine.env, exit_code=KILLED) as service:
            assert post(service.url, change(1)).status == 200
            with machine.fault("sync"):
                assert post(service.url, change(2)).status == 503
                if restarted:
                    kill(service)
            if not restarted:
                assert post(service.url, change(3)).status == 200
                kill(service)
        if restarted:
            with ServiceProcess(config, env=ENV | machine.env, exit_code=KILLED) as service:
                assert post(service.url, change(3)).status == 200
                kill(service)
        machine.lose_power(tmp_path / "queue")
        sink.requests.clear()
        sink.answer = GrpcAnswer()
        with ServiceProcess(config, env=ENV | machine.env):
            wait_until(lambda: is_drained(tmp_path), "the queue is drained")
        assert {uid(change(1)), uid(change(3))} <= set(uids(sink.requests))


def delete_and_kill(service: ServiceProcess, queue: Path, suffixes: Sequence[str], clients: Sequence[Client]) -> None:
    before = sum(len(client.acknowledged) for client in clients)
    wait_until(lambda: sum(len(client.acknowledged) for client in clients) > before + 50, "there is load")
    for suffix in suffixes:
        (queue / f"queue.db{suffix}").unlink()
    wait_until(lambda: any("The content of" in line or "Nothing is lost" in line for line in service.log), "it is kept")
    kill(service)


@pytest.mark.slow
def test_a_second_service_is_refused_soon_after_the_lock_is_deleted(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            for name in ("lock", "control.sock"):
                (tmp_path / "queue" / name).unlink()
            wait_until(lambda: sum(DELETED in line or "is made again" in line for line in service.log) == 2, "both")
            with pytest.raises(AssertionError, match="in use by the process"), ServiceProcess(config, env=ENV):
                pass
            assert post(service.url, change(1)).status == 200
            wait_until(lambda: is_drained(tmp_path), "it is delivered")
            give(tmp_path, "queue")
        assert uids(sink.requests) == [uid(change(1))]


def delete_under_load(folder: Path, rounds: int) -> None:
    """Delete files of the queue while webhooks come; kill the service as soon as it has noticed."""
    clients = [Client(seed) for seed in (1, 2, 3)]
    harms: list[tuple[str, ...]] = [("-wal",), ("-wal", "-shm"), ("-shm",), ("",), ("", "-wal", "-shm")]
    with GrpcSink() as sink:
        config = write_config(folder, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        with load(clients):
            for number in range(rounds):
                with ServiceProcess(config, env=ENV, exit_code=KILLED) as service:
                    for client in clients:
                        client.url = service.url
                    delete_and_kill(service, folder / "queue", harms[number % len(harms)], clients)
        with ServiceProcess(config, env=ENV):
            wait_until(lambda: not list((folder / "queue").glob("*corrupt*")), "all is carried over")
            wait_until(lambda: is_drained(folder), "the queue is drained")
        acknowledged = set[str]().union(*(client.acknowledged for client in clients))
        assert len(acknowledged) > 50 * rounds
        assert acknowledged <= set(uids(sink.requests))


def test_nothing_is_lost_with_a_log_that_is_deleted_under_load(tmp_path: Path) -> None:
    delete_under_load(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost_with_files_that_are_deleted_under_load(tmp_path: Path) -> None:
    delete_under_load(tmp_path, 25)


def large(number: int) -> dict[str, object]:
    return change(number, description="x" * 20_000)


def post_until_refused(url: str, first: int) -> tuple[set[str], int]:
    """Post until a 503; the uids of what was acknowledged, and the number that was not."""
    acknowledged: set[str] = set()
    for number in range(first, first + 1000):
        answer = post(url, large(number))
        if answer.status != 200:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
            return acknowledged, number
        acknowledged.add(uid(large(number)))
    raise AssertionError("the disk never gets full")


def write_disk_config(disk: Path, exporters: Mapping[str, Mapping[str, object]], *, min_free_bytes: int) -> Path:
    path = write_config(disk, exporters, queued=True)
    config = json.loads(path.read_text())
    config["extensions"]["file_storage"]["min_free_bytes"] = min_free_bytes
    path.write_text(json.dumps(config))
    return path


def test_a_queue_that_fills_the_disk_refuses_webhooks_and_delivers_all(disk: Path) -> None:
    with GrpcSink() as sink:
        sink.answer = DOWN
        config = write_disk_config(disk, {"otlp_grpc": grpc_exporter(sink)}, min_free_bytes=2 << 20)
        with ServiceProcess(config, env=ENV) as service:
            acknowledged, refused = post_until_refused(service.url, 0)
            assert len(acknowledged) > 50
            sink.requests.clear()
            sink.answer = GrpcAnswer()
            wait_until(lambda: post(service.url, large(refused)).status == 200, "it takes webhooks again")
            wait_until(lambda: is_drained(disk), "the queue is drained")
        assert acknowledged | {uid(large(refused))} == set(uids(sink.requests))


@pytest.mark.slow
def test_a_disk_that_somebody_else_filled_costs_no_change_and_repeats_none(disk: Path) -> None:
    with GrpcSink() as works, GrpcSink() as down:
        down.answer = outage = Outage()
        exporters = {"otlp_grpc/works": grpc_exporter(works), "otlp_grpc/down": grpc_exporter(down)}
        config = write_disk_config(disk, exporters, min_free_bytes=0)
        with ServiceProcess(config, env=ENV) as service:
            before = [large(number) for number in range(5)]
            assert [post(service.url, one).status for one in before] == [200] * 5
            wait_until(lambda: waiting(disk)["otlp_grpc/works"] == 0, "one has them")
            ballast = fill(disk)
            acknowledged, refused = post_until_refused(service.url, 5)
            ballast.unlink()
            assert post(service.url, large(refused)).status == 200
            acknowledged |= {uid(one) for one in (*before, large(refused))}
            outage.over = True
            wait_until(lambda: is_drained(disk), "the queue is drained")
        assert sorted(uids(works.requests)) == sorted(outage.taken) == sorted(acknowledged), "each once"
    assert len([line for line in service.log if "The queue can't be written; nothing is acknowledged" in line]) == 1


@pytest.mark.slow
def test_a_service_that_finds_a_full_disk_starts_refuses_delivers_and_recovers(disk: Path) -> None:
    with GrpcSink() as sink:
        sink.answer = DOWN
        config = write_disk_config(disk, {"otlp_grpc": grpc_exporter(sink)}, min_free_bytes=2 << 20)
        with ServiceProcess(config, env=ENV) as service:
            assert [post(service.url, large(number)).status for number in range(20)] == [200] * 20
        sink.requests.clear()
        sink.answer = GrpcAnswer()
        ballast = fill(disk)
        with ServiceProcess(config, env=ENV) as service:
            refused = post(service.url, large(20))
            assert (refused.status, refused.headers["Retry-After"]) == (503, "10")
            wait_until(lambda: is_drained(disk), "the queue is drained")
            ballast.unlink()
            wait_until(lambda: post(service.url, large(20)).status == 200, "it takes webhooks again")
            wait_until(lambda: is_drained(disk), "the queue is drained")
        assert uids(sink.requests) == [uid(large(number)) for number in range(21)], "each once"
    assert any(f"{disk}/queue is on tmpfs, which is in memory: put the queue on a disk" in line for line in service.log)


DAY = 24 * 3600
JUMPS = {"a day ahead": DAY, "a year back": -365 * DAY, "ten years ahead": 3650 * DAY, "right": 0}
"""By how many seconds the clock is wrong, one after another."""


def check_pace(failing: HttpSink) -> None:
    """A dead backend is tried again and again, and not in a hurry."""
    before, start = len(failing.requests), time.monotonic()
    attempts = len(failing.wait_for(before + 5)) - before
    assert attempts <= (time.monotonic() - start) / SHORTEST_WAIT + 2


@pytest.mark.slow
def test_a_clock_that_jumps_neither_stalls_nor_repeats_anything(tmp_path: Path, machine: FaultyMachine) -> None:
    with GrpcSink() as over_grpc, HttpSink() as over_http, HttpSink() as failing, ExitStack() as dead:
        port = dead.enter_context(dead_port())
        failing.answer = HttpAnswer(status=503)
        exporters: dict[str, dict[str, object]] = {
            "otlp_grpc/works": grpc_exporter(over_grpc),
            "otlp_grpc/gone": {"endpoint": f"127.0.0.1:{port}", "tls": {"insecure": True}, "retry_on_failure": RETRY},
            "otlp_http/works": http_exporter(over_http),
            "otlp_http/failing": {**http_exporter(failing), "retry_on_failure": RETRY | {"max_interval": "50ms"}},
        }
        config = write_config(tmp_path, exporters, queued=True)
        with ServiceProcess(config, env=ENV | machine.env) as service:
            for number, (name, error) in enumerate(JUMPS.items()):
                stale = machine.now_ms()
                machine.set_clock(error)
                assert post(service.url, change(number), now_ms=stale).status == 401, "the service sees the jump"
                counts = [post(service.url, change(number), now_ms=machine.now_ms()).json() for _ in range(2)]
                assert [(count["accepted"], count["duplicates"]) for count in counts] == [(1, 0), (0, 1)], name
                for sink in (over_grpc, over_http):
                    wait_for_records(sink, number + 1)
                check_pace(failing)
            failing.requests.clear()
            failing.answer = HttpAnswer()
            dead.close()
            with GrpcSink(port=port) as gone:
                wait_until(lambda: is_drained(tmp_path), "the queue is drained")
        expected = [uid(change(number)) for number in range(len(JUMPS))]
        for live in (over_grpc, over_http, gone):
            assert uids(live.requests) == expected
        assert uids(failing.requests)[-len(expected) :] == expected


@pytest.mark.slow
def test_a_clock_that_jumps_between_two_runs_loses_and_repeats_nothing(tmp_path: Path, machine: FaultyMachine) -> None:
    with GrpcSink() as works, GrpcSink() as down:
        down.answer = outage = Outage()
        exporters = {"otlp_grpc/works": grpc_exporter(works), "otlp_grpc/down": grpc_exporter(down)}
        config = write_config(tmp_path, exporters, queued=True)
        for number, error in enumerate(JUMPS.values()):
            machine.set_clock(error)
            with ServiceProcess(config, env=ENV | machine.env) as service:
                assert post(service.url, change(number), now_ms=machine.now_ms()).json()["accepted"] == 1
                wait_for_records(works, number + 1)
                if number == len(JUMPS) - 1:
                    outage.over = True
                    wait_until(lambda: is_drained(tmp_path), "the queue is drained")
        assert uids(works.requests) == outage.taken == [uid(change(number)) for number in range(len(JUMPS))]
