"""Kills with SIGKILL under load: alone, with TLS, and in a program that the service is mounted in. Nothing is lost."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from statsig_otel.plugin.record.record import uid
from tests.e2e.processes import write_config
from tests.e2e.service_process import ServiceProcess, environment
from tests.e2e.statsig_client import ENV, Client, change, grpc_exporter, load, post, uids, waiting
from tests.peers.certs import Authority
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink, HttpSink, Received
from tests.peers.ports import free_port
from tests.waiting import wait_until

_MOUNTED = Path(__file__).with_name("_mounted.py")


class Killable(Protocol):
    """A process that takes webhooks."""

    @property
    def url(self) -> str: ...

    def kill(self) -> None:
        """End it with SIGKILL, and wait for that."""


Start = Callable[[Path], AbstractContextManager[Killable]]
"""Starts a process with a configuration. The block ends after the process."""


@dataclass
class Alone:
    """`statsig-otel run`."""

    service: ServiceProcess

    @property
    def url(self) -> str:
        return self.service.url

    def kill(self) -> None:
        self.service.process.send_signal(signal.SIGKILL)
        self.service.process.wait(10)


@contextmanager
def alone(config: Path) -> Iterator[Killable]:
    with ServiceProcess(config, env=ENV, exit_code=-signal.SIGKILL) as service:
        yield Alone(service)


@dataclass
class Mounted:
    """A program with a server of its own."""

    process: subprocess.Popen[str]
    url: str

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


def mounted(interface: str) -> Start:
    @contextmanager
    def start(config: Path) -> Iterator[Killable]:
        command = [sys.executable, str(_MOUNTED), interface, str(free_port()), str(config)]
        with subprocess.Popen(command, env=environment(ENV), stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield Mounted(process, process.stdout.readline().strip())
            finally:
                process.kill()

    return start


class Killer:
    """Kills at random, or from within a backend: between a delivery and its bookkeeping."""

    def __init__(self) -> None:
        self._chance = random.Random(1)
        self._armed = threading.Event()
        self._killed = threading.Event()
        self._victim: Killable | None = None

    def answer(self, _: Received) -> GrpcAnswer:
        """A backend's answer: it comes too late where the backend has killed the service before."""
        if self._armed.is_set() and self._victim is not None:
            self._armed.clear()
            self._victim.kill()
            self._killed.set()
        return GrpcAnswer()

    def kill(self, victim: Killable, *, on_receipt: bool) -> None:
        self._victim = victim
        time.sleep(self._chance.uniform(0.0, 0.4))
        if on_receipt:
            self._killed.clear()
            self._armed.set()
            assert self._killed.wait(30)
        else:
            victim.kill()


def kill_in_a_loop(folder: Path, kills: int, start: Start, **receiver: object) -> None:
    killer = Killer()
    clients = [Client(seed) for seed in (1, 2, 3)]
    with GrpcSink() as first, GrpcSink() as second:
        first.answer = killer.answer
        exporters = {"otlp_grpc/first": grpc_exporter(first), "otlp_grpc/second": grpc_exporter(second)}
        config = write_config(folder, exporters, queued=True, **receiver)
        with load(clients):
            for number in range(kills):
                with start(config) as victim:
                    for client in clients:
                        client.url = victim.url
                    killer.kill(victim, on_receipt=number % 3 == 0)
        fresh = change(999_999_999)
        with start(config) as last:
            assert post(last.url, fresh).status == 200
            wait_until(lambda: set(waiting(folder).values()) == {0}, "the queue is drained")
            last.kill()
        acknowledged = set[str]().union(*(client.acknowledged for client in clients), {uid(fresh)})
        assert len(acknowledged) > kills
        for sink in (first, second):
            assert acknowledged <= set(uids(sink.requests))


def kill_without_a_queue(folder: Path, kills: int, start: Start) -> None:
    """Without a queue a 200 means that every exporter has the changes, also if the service is killed right after it."""
    killer = Killer()
    clients = [Client(seed) for seed in (1, 2, 3)]
    with GrpcSink() as over_grpc, HttpSink() as over_http:
        over_grpc.answer = killer.answer
        exporters: dict[str, dict[str, object]] = {
            "otlp_grpc": grpc_exporter(over_grpc),
            "otlp_http": {"endpoint": over_http.url},
            "file": {"path": str(folder / "changes.jsonl")},
        }
        config = write_config(folder, exporters)
        with load(clients):
            for number in range(kills):
                with start(config) as victim:
                    before = sum(len(client.acknowledged) for client in clients)
                    for client in clients:
                        client.url = victim.url
                    wait_until(lambda: sum(len(client.acknowledged) for client in clients) > before, "there is load")  # noqa: B023 - at once
                    killer.kill(victim, on_receipt=number % 2 == 0)
        acknowledged = set[str]().union(*(client.acknowledged for client in clients))
        assert len(acknowledged) >= kills
        assert acknowledged <= set(uids(over_grpc.requests))
        assert acknowledged <= set(uids(over_http.requests))
    assert acknowledged <= uids_of_lines(folder / "changes.jsonl")


def uids_of_lines(file: Path) -> set[str]:
    """The uids in a file of OTLP/JSON lines, whose last one may be torn."""
    return set(re.findall(r'"log\.record\.uid","value":\{"stringValue":"([0-9a-f]{32})"', file.read_text()))


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_without_a_queue_over_a_few_kills(tmp_path: Path) -> None:
    kill_without_a_queue(tmp_path, 2, alone)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("start", "kills"), [(alone, 40), (mounted("asgi"), 6), (mounted("wsgi"), 6)], ids=["alone", "asgi", "wsgi"]
)
def test_nothing_acknowledged_is_lost_without_a_queue_over_many_kills(tmp_path: Path, start: Start, kills: int) -> None:
    kill_without_a_queue(tmp_path, kills, start)


def test_nothing_acknowledged_is_lost_over_a_few_kills(tmp_path: Path) -> None:
    kill_in_a_loop(tmp_path, 3, alone)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_acknowledged_is_lost_over_two_hundred_kills(tmp_path: Path) -> None:
    kill_in_a_loop(tmp_path, 200, alone)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_under_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority()
    cert_file, key_file = authority.issue("127.0.0.1").write(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", authority.write(tmp_path))  # whom the clients of this process trust
    kill_in_a_loop(tmp_path, 12, alone, tls={"cert_file": cert_file, "key_file": key_file})


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("interface", ["asgi", "wsgi"])
def test_nothing_acknowledged_is_lost_where_the_service_is_mounted(interface: str, tmp_path: Path) -> None:
    kill_in_a_loop(tmp_path, 12, mounted(interface))
