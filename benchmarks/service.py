"""`statsig-otel run` as a process of its own, for as long as a block lasts."""

import contextlib
import http.client
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import backlog, measure
from statsig_otel.plugin import DEFAULT_PATH


@dataclass(frozen=True)
class Running:
    """A peer that runs.

    Attributes:
        pid: Of its process.
        port: Where it takes webhooks.
    """

    pid: int
    port: int


@contextlib.contextmanager
def service(directory: Path, *backends: str, receiver: Mapping[str, object] | None = None) -> Iterator[Running]:
    """The service with its queue, from its first answer on; asked to end at the end of the block.

    Args:
        directory: Where its queue is, and its configuration is written.
        backends: One exporter for each, as host:port.
        receiver: Settings of its receiver beside the defaults.
    """
    port = measure.free_port()
    directory.mkdir(exist_ok=True)
    config = directory / "config.yaml"
    first, *more = backends
    written = backlog.configuration(directory=directory, backend=first, port=port, more=more, receiver=receiver)
    config.write_text(written)
    process = measure.spawn(
        "-m", "statsig_otel", "run", "--config", str(config), "--log-level", "error", stdout=subprocess.DEVNULL
    )
    try:
        latest = time.monotonic() + measure.START_TIMEOUT
        while answer(port) is None:
            if process.poll() is not None or time.monotonic() > latest:
                raise RuntimeError("the service did not start")
            time.sleep(0.002)
        yield Running(process.pid, port)
        process.send_signal(signal.SIGTERM)
        process.wait(measure.START_TIMEOUT)
    finally:
        process.kill()
        process.wait()


def answer(port: int) -> int | None:
    """The status that an unsigned request is answered with; None where nobody listens yet."""
    connection = http.client.HTTPConnection(measure.HOST, port, timeout=measure.START_TIMEOUT)
    try:
        connection.request("POST", DEFAULT_PATH, b"{}")
        return connection.getresponse().status
    except ConnectionError:
        return None
    finally:
        connection.close()
