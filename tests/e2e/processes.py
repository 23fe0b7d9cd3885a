"""What stands around the service in the tests with collectors: its configuration, its webhooks, and rotel.

Each process ends with its `with` block, by its own id.
"""

import hmac
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from statsig_otel.plugin.demo.collector import find_binary, with_libpython
from tests.peers.ports import free_port
from tests.plugin.http_client import Response, exchange, request

SECRET = "webhook-a-made-up-secret"
Protocol = Literal["grpc", "http"]

_PATIENCE = 30.0
"""Seconds after which a process counts as hanging."""

_STARTING = 120.0
"""Seconds for a start beside others that start too."""


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment without what would configure the processes of a test, and with `variables`."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OTEL_", "STATSIG_", "ROTEL_")) and not key.lower().endswith("_proxy")
    }
    return {**kept, **variables}


class Process:
    """A process whose output is read all the time: standard output and standard error, as one.

    Args:
        arguments: The program and its arguments.
        environment: The whole environment.
        pass_fds: Descriptors that stay open in it.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], *, pass_fds: Sequence[int] = ()
    ) -> None:
        self._arguments = arguments
        self._environment = environment
        self._pass_fds = pass_fds
        self._lines: list[str] = []
        self._said = threading.Condition()
        self._ended = False

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._arguments,
            env=self._environment,
            pass_fds=self._pass_fds,
            process_group=0,  # Ctrl-C is for the tests, which end it
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it, by force where it does not go when asked."""
        try:
            self.stop()
        finally:
            self.kill()

    @property
    def output(self) -> str:
        """What it has said so far."""
        with self._said:
            return "".join(self._lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, pattern: str, *, within: float = _PATIENCE) -> re.Match[str]:
        """Wait until its output holds the pattern; `^` and `$` are the ends of a line."""
        compiled = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + within
        with self._said:
            while (match := compiled.search("".join(self._lines))) is None:
                left = deadline - time.monotonic()
                assert not self._ended, f"ended before it said {pattern!r}:\n{''.join(self._lines)}"
                assert left > 0, f"did not say {pattern!r} in time:\n{''.join(self._lines)}"
                self._said.wait(left)
        return match

    def stop(self) -> int:
        """Ask it to end with SIGTERM, and wait for its exit code. Safe to call twice."""
        self._process.terminate()
        return self._process.wait(_PATIENCE)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        with stream:
            for line in stream:
                with self._said:
                    self._lines.append(line)
                    self._said.notify_all()
        with self._said:
            self._ended = True
            self._said.notify_all()


class Restartable:
    """A process that can be killed and started again.

    Args:
        name: Its name.
        command: Its program and arguments.
        environment: What it gets in addition to a clean environment.
        ready: What it says once it is ready; a pattern.
        port: Where it listens then.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], ready: str = "", port: int = 0
    ) -> None:
        self.name = name
        self.port = port
        self._command = command
        self._environment = environment
        self._ready = ready
        self._process: Process | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        process = Process(self._command, clean_environment(**self._environment)).__enter__()
        self._process = process
        if self._ready:
            process.wait_for(self._ready, within=_STARTING)
        if self.port:
            wait_until_listening(process, self.port)

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()

    def stop(self) -> int:
        """Ask it to end, if it runs, and wait for that. Its exit code; 0 if it does not run."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        try:
            return process.stop()
        finally:
            process.kill()

    @property
    def output(self) -> str:
        """What it has said since its last start."""
        return "" if self._process is None else self._process.output

    @property
    def pid(self) -> int:
        """The id of its process, which runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running


def write_config(
    folder: Path, exporters: Mapping[str, Mapping[str, object]], *, queued: bool = False, **receiver: object
) -> Path:
    """A configuration file for the service: one receiver on a free port, and one pipeline to all exporters.

    It is JSON, which YAML 1.2 contains.

    Args:
        folder: Where to write it; the queue, if any, is there too.
        exporters: The exporters' settings, by id.
        queued: Whether they stand behind the durable queue. Otherwise the webhook waits for them.
        receiver: Settings of the receiver.
    """
    settings = {"endpoint": "127.0.0.1:0", "signing_secrets": ["${env:STATSIG_SIGNING_SECRET}"], **receiver}
    pipeline = {"receivers": ["statsig"], "exporters": list(exporters)}
    config: dict[str, object] = {
        "receivers": {"statsig": settings},
        "exporters": {name: {"sending_queue": {"enabled": queued}, **keys} for name, keys in exporters.items()},
        "service": {"pipelines": {"logs": pipeline}},
    }
    if queued:
        storage = {"directory": str(folder / "queue"), "min_free_bytes": 0}
        config["extensions"] = {"file_storage": storage}
        config["service"] = {"extensions": ["file_storage"], "pipelines": {"logs": pipeline}}
    path = folder / "statsig-otel.yaml"
    path.write_text(json.dumps(config, indent=2))
    return path


def signed(body: bytes, *, secret: str = SECRET) -> dict[str, str]:
    """The headers that Statsig sends with a body, made as its documentation says and by none of the product's code."""
    timestamp = f"{time.time_ns() // 1_000_000:013d}"
    digest = hmac.new(secret.encode(), f"v0:{timestamp}:".encode() + body, sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "X-Statsig-Request-Timestamp": timestamp,
        "X-Statsig-Signature": f"v0={digest}",
    }


def post(url: str, body: bytes, headers: Mapping[str, str]) -> Response:
    """Send one webhook, and read the answer."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return exchange((parts.hostname, parts.port), request(body, path=parts.path, headers=dict(headers)))


@dataclass(frozen=True)
class Ports:
    """Where a collector takes OTLP, on 127.0.0.1."""

    grpc: int
    http: int


@dataclass(frozen=True)
class Collector:
    """A running collector."""

    process: Process
    ports: Ports

    def exporter(self, protocol: Protocol, **settings: object) -> dict[str, dict[str, object]]:
        """The `exporters:` section of a service in front of it."""
        if protocol == "http":
            return {"otlp_http": {"endpoint": f"http://127.0.0.1:{self.ports.http}", **settings}}
        return {"otlp_grpc": {"endpoint": f"127.0.0.1:{self.ports.grpc}", "tls": {"insecure": True}, **settings}}


@cache
def find_rotel() -> Path | None:
    """The binary in the Python package `rotel`; None where that is not installed, or does not run."""
    binary = find_binary()
    try:
        runs = binary and subprocess.run(
            [binary, "--version"], env=with_libpython(os.environ), capture_output=True, check=False
        )
    except OSError:
        return None
    return binary if runs and runs.returncode == 0 else None


@contextmanager
def rotel(
    binary: Path, *, protocol: Protocol, backend: str, folder: Path, ports: Ports | None = None
) -> Iterator[Collector]:
    """Run rotel: OTLP over gRPC and HTTP in, OTLP out.

    Args:
        binary: Of `find_rotel`.
        protocol: What it exports over.
        backend: Where it exports to, as host:port.
        folder: Where it may leave its files.
        ports: Where it listens; free ones by default, since it takes port 0 but does not say what it got.
    """
    ports = ports or Ports(free_port(), free_port())
    options = {
        "--otlp-grpc-endpoint": f"127.0.0.1:{ports.grpc}",
        "--otlp-http-endpoint": f"127.0.0.1:{ports.http}",
        "--exporter": "otlp",
        "--otlp-exporter-protocol": protocol,
        "--otlp-exporter-endpoint": f"http://{backend}",
        "--batch-timeout": "20ms",
        "--pid-file": str(folder / "rotel.pid"),
        "--log-file": str(folder / "rotel.log"),
    }
    arguments = [str(binary), "start", *(word for option in options.items() for word in option)]
    with Process(arguments, with_libpython(clean_environment(NO_COLOR="1"))) as process:
        for port in (ports.grpc, ports.http):
            wait_until_listening(process, port)
        yield Collector(process, ports)


def wait_until_listening(process: Process, port: int) -> None:
    """Wait until somebody takes connections on a port of 127.0.0.1; `process` is who should."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        assert process.is_running, f"ended before it listened:\n{process.output}"
        assert time.monotonic() < deadline, f"does not listen on port {port}:\n{process.output}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
