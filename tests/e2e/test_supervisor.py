"""A supervisor: its signals, and what sd_notify(3) tells it over a real datagram socket, with or without a file."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.forks import start
from tests.e2e.processes import write_config
from tests.e2e.reloading import reload
from tests.e2e.service_process import ServiceProcess, environment
from tests.e2e.statsig_client import ENV
from tests.peers.ports import free_port
from tests.waiting import wait_until

ALIVE = "WATCHDOG=1"


@contextmanager
def listening_at(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(address)
        notified.settimeout(30)
        yield notified


def told(notified: socket.socket) -> dict[str, str]:
    """The next message that is not of the watchdog."""
    while (message := notified.recv(4096).decode()) == ALIVE:
        pass
    return dict(line.split("=", 1) for line in message.split("\n"))


def is_open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(params=["file", "abstract"])
def names(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The supervisor's address, and its name in the environment."""
    if request.param == "file":
        return str(tmp_path / "notify"), str(tmp_path / "notify")
    name = f"statsig-otel-test-{os.getpid()}"
    return f"\0{name}", f"@{name}"


def test_a_supervisor_is_told_of_the_start_each_reload_and_the_stop(tmp_path: Path, names: tuple[str, str]) -> None:
    address, name = names
    config = write_config(tmp_path, {"file": {"path": str(tmp_path / "changes.jsonl")}}, queued=True)
    good = config.read_text()
    with listening_at(address) as notified:
        with ServiceProcess(config, env={**ENV, "NOTIFY_SOCKET": name}) as service:
            assert told(notified) == {"READY": "1", "STATUS": "Listening"}

            began = time.monotonic_ns() // 1000
            service.process.send_signal(signal.SIGHUP)
            message = told(notified)
            assert message.pop("MONOTONIC_USEC").isdecimal()
            assert message == {"RELOADING": "1", "STATUS": "Reloading"}
            assert told(notified) == {"READY": "1", "STATUS": "Listening"}

            reload(service, tmp_path)
            assert began < int(told(notified)["MONOTONIC_USEC"]) < time.monotonic_ns() // 1000
            assert told(notified) == {"READY": "1", "STATUS": "Listening"}

            config.write_text("receivers: 1")
            service.process.send_signal(signal.SIGHUP)
            assert told(notified)["RELOADING"] == "1"
            assert told(notified) == {"READY": "1", "STATUS": "Listening. The last reload failed: see the log"}

            config.write_text(good)
            service.process.send_signal(signal.SIGHUP)
            assert told(notified)["RELOADING"] == "1"
            assert told(notified) == {"READY": "1", "STATUS": "Listening"}
        assert told(notified) == {"STOPPING": "1", "STATUS": "Finishing the work in flight"}


def test_a_watchdog_is_told_again_and_again_that_the_service_works(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"file": {"path": str(tmp_path / "changes.jsonl")}})
    address = str(tmp_path / "notify")
    variables = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}
    with listening_at(address) as notified, ServiceProcess(config, env={**ENV, **variables}):
        assert told(notified)["READY"] == "1"
        for _ in range(3):
            assert notified.recv(4096).decode() == ALIVE


def test_a_watchdog_of_another_process_is_not_told(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"file": {"path": str(tmp_path / "changes.jsonl")}})
    address = str(tmp_path / "notify")
    variables = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getpid())}
    with listening_at(address) as notified:
        with ServiceProcess(config, env={**ENV, **variables}):
            assert told(notified)["READY"] == "1"
        assert notified.recv(4096).decode().startswith("STOPPING=1")


def test_a_supervisor_that_is_not_there_is_a_warning(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"file": {"path": str(tmp_path / "changes.jsonl")}})
    with ServiceProcess(config, env={**ENV, "NOTIFY_SOCKET": "@statsig-otel-nobody"}) as service:
        pass
    said = [line for line in service.log if "The supervisor can't be told" in line]
    assert len(said) == 2
    assert said[0].endswith("can't be told READY=1 at NOTIFY_SOCKET=@statsig-otel-nobody: Connection refused")


def test_sigterm_right_after_the_port_is_open_stops_it_in_order(tmp_path: Path) -> None:
    """It comes while the service is still busy with its start."""
    errors = tmp_path / "errors"
    port = free_port()
    with errors.open("w") as log:
        service = start(
            ["run", "--listen", f"127.0.0.1:{port}"],
            environment(ENV),
            None,
            output=log.fileno(),
            errors=log.fileno(),
        )
        wait_until(lambda: is_open(port))
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0, errors.read_text()
    assert "Stopped" in errors.read_text()
