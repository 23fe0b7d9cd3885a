"""Runs `statsig-otel run` in its own process."""

import contextlib
import http.client
import signal
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import backlog, measure
from statsig_otel.plugin import DEFAULT_PATH


@dataclass(frozen=True)
class Running:
    """A running service or peer.

    Attributes:
        pid: The id of its process.
        port: The port for webhooks.
        page: The port of the live page; 0 if there is none.
    """

    pid: int
    port: int
    page: int = 0


@contextlib.contextmanager
def service(
    directory: Path,
    *backends: str,
    receiver: Mapping[str, object] | None = None,
    has_page: bool = False,
    tls: ssl.SSLContext | None = None,
    program: Sequence[str] = ("-m", "statsig_otel"),
) -> Iterator[Running]:
    """Run the service during the block, which begins with the service's first answer.

    Args:
        directory: The directory of the queue and the configuration.
        backends: The backends, as host:port; each gets an exporter.
        receiver: Further settings of the receiver.
        has_page: Whether it has the live page.
        tls: Trusts the certificate of a receiver that has one.
        program: What Python runs.
    """
    port = measure.free_port()
    page = measure.free_port() if has_page else 0
    directory.mkdir(exist_ok=True)
    config = directory / "config.yaml"
    first, *more = backends
    written = backlog.configuration(
        directory=directory, backend=first, port=port, more=more, receiver=receiver, page=page
    )
    config.write_text(written)
    process = measure.spawn(*program, "run", "--config", str(config), "--log-level", "error", stdout=subprocess.DEVNULL)
    try:
        latest = time.monotonic() + measure.START_TIMEOUT
        while answer(port, tls) is None:
            if process.poll() is not None or time.monotonic() > latest:
                raise RuntimeError("the service did not start")
            time.sleep(0.002)
        yield Running(process.pid, port, page)
        process.send_signal(signal.SIGTERM)
        process.wait(measure.START_TIMEOUT)
    finally:
        process.kill()
        process.wait()


def answer(port: int, tls: ssl.SSLContext | None = None) -> int | None:
    """The status of the answer to an unsigned request, or None if the port is not open yet."""
    connection = (
        http.client.HTTPConnection(measure.HOST, port, timeout=measure.START_TIMEOUT)
        if tls is None
        else http.client.HTTPSConnection(measure.HOST, port, timeout=measure.START_TIMEOUT, context=tls)
    )
    try:
        connection.request("POST", DEFAULT_PATH, b"{}")
        return connection.getresponse().status
    except ConnectionError:
        return None
    finally:
        connection.close()


def commits(directory: Path) -> int:
    """The number of commits of a queue: `iChange` of the WAL index (sqlite.org/walformat.html)."""
    with (directory / "queue.db-shm").open("rb") as index:
        return int(struct.unpack_from("=I", index.read(12), 8)[0])
