"""Starts `statsig-otel` in a fork of a process that has imported it already, in a tenth of the time.

It is a process like any other: it has its own id, environment, directory and output, takes signals, and ends as an
interpreter ends. Only what its imports would have done is done before.
"""

import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TextIO

_IMPORTED = ("statsig_otel.plugin.cli.run", "statsig_otel.exporters.otlp.grpc", "statsig_otel.exporters.otlp.http")


class Fork:
    """What the tests need of `subprocess.Popen`, for a process whose parent is another one.

    Attributes:
        pid: Its id.
        returncode: Its exit code, or the negative number of the signal that ended it. None while it runs.
    """

    def __init__(self, status: int) -> None:
        told = os.fdopen(status)
        self.pid = int(told.readline())
        self.returncode: int | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._wait, args=(told,), daemon=True).start()

    def _wait(self, told: TextIO) -> None:
        with told:
            self.returncode = int(told.readline())
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout) or self.returncode is None:
            raise subprocess.TimeoutExpired("statsig-otel", timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Started = Fork | subprocess.Popen[bytes]


def start(
    arguments: Sequence[str], env: Mapping[str, str], folder: Path | None, *, output: int, errors: int
) -> Started:
    """`statsig-otel` with these arguments.

    Args:
        arguments: What follows the program's name.
        env: Its whole environment. What is to be loaded before the interpreter needs a start from the beginning.
        folder: Its directory, if it is not this process's.
        output: The descriptor of its standard output.
        errors: The descriptor of its standard error.
    """
    if "LD_PRELOAD" in env or env.get("PYTHONPATH") != os.environ.get("PYTHONPATH") or sys.platform != "linux":
        command = [sys.executable, "-m", "statsig_otel", *arguments]
        return subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
    orders, orders_end = os.pipe()
    status, status_end = os.pipe()
    try:
        socket.send_fds(_server(), [b"!"], [orders, output, errors, status_end])
    finally:
        os.close(orders)
        os.close(status_end)
    with os.fdopen(orders_end, "w") as file:
        json.dump({"arguments": list(arguments), "env": dict(env), "folder": str(folder or Path.cwd())}, file)
    return Fork(status)


@cache
def _server() -> socket.socket:
    """Where this process asks for forks. The server ends when this is closed, or this process is gone."""
    ours, theirs = socket.socketpair()
    with theirs:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "STATSIG_"))}
        command = [sys.executable, "-m", "tests.e2e.forks", str(theirs.fileno())]
        root = Path(__file__).parents[2]
        server = subprocess.Popen(command, cwd=root, env={**env, "GRPC_VERBOSITY": "NONE"}, pass_fds=[theirs.fileno()])
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


def _serve(requests: socket.socket) -> list[str]:
    """Make a fork for each request. Returns in each of them, with its arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end this process by ending
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, 4)
        if not message:
            os._exit(0)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    requests.close()
    orders, output, errors, status = descriptors
    if pid := os.fork():  # between the server and the program, to tell its end
        for descriptor in (orders, output, errors):
            os.close(descriptor)
        os.write(status, f"{pid}\n".encode())
        os.write(status, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
        os._exit(0)
    os.close(status)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with os.fdopen(orders) as file:
        asked = json.load(file)
    for descriptor, place in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (errors, 2)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["env"])
    return list(asked["arguments"])


if __name__ == "__main__":
    for name in _IMPORTED:
        import_module(name)
    gc.freeze()
    from statsig_otel.plugin.cli.main import main

    main(_serve(socket.socket(fileno=int(sys.argv[1]))), prog_name="python -m statsig_otel")
