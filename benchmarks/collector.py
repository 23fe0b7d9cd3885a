"""Builds, checks and runs an OpenTelemetry Collector for comparison.

Its configuration is in peers/collector. webhook_event receives; transform, unroll and filter turn a change into the
same record as the service does; file_storage with `fsync: true` stores the exporter's queue, without a buffer in front
of it. So its 200 is durable: the receiver answers once the queue has written the batch. The Collector is tuned as far
as its documentation allows: a body without a change is dropped before it is parsed, and exposures before the batch is
unrolled; the queue counts requests, and its consumers send batches of 512 records like the service; its own metrics are
off. Two things favour it: it verifies no signatures and recognises no duplicates.

Not every Go module proxy has webhook_event and unroll. If they are not available, the Collector is built with its OTLP
receiver: the body is sent as the body of a log record, over OTLP/HTTP, and the one change of a benchmark's batch is
extracted without unroll. That is less work, so a ratio is a lower bound; the report says so.

To use an existing Collector, such as otelcol-contrib, pass `--collector PATH`.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import against, measure
from benchmarks.service import Running
from benchmarks.webhooks import Wire
from statsig_otel.plugin import DEFAULT_PATH
from tests.e2e import otelcol

_FILES = Path(__file__).parent / "peers" / "collector"
_FEATURE_GATES = "ottl.functions.enableLambda"


@dataclass(frozen=True)
class Collector:
    """A Collector that can be run.

    Attributes:
        binary: The program.
        config: The configuration file in addition to the common one.
        wire: How a webhook's body is sent to it.
    """

    binary: Path
    config: Path
    wire: Wire

    @contextlib.contextmanager
    def running(self, directory: Path, backend: str) -> Iterator[Running]:
        """Run the Collector during the block, which begins once it listens.

        Args:
            directory: The queue's directory.
            backend: Where the Collector exports to, as host:port.
        """
        port = measure.free_port()
        arguments = [str(self.binary), f"--feature-gates={_FEATURE_GATES}"]
        for file in (_FILES / "common.yaml", self.config):
            arguments += ["--config", str(file)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        variables = {"PORT": str(port), "WEBHOOK_PATH": DEFAULT_PATH, "DIRECTORY": str(directory), "BACKEND": backend}
        process = subprocess.Popen(arguments, env=kept | variables, stdin=subprocess.DEVNULL)
        try:
            latest = time.monotonic() + measure.START_TIMEOUT
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > latest:
                    raise RuntimeError("the Collector did not start")
                time.sleep(0.02)
            yield Running(process.pid, port)
            process.terminate()
            process.wait(measure.START_TIMEOUT)
        finally:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(ConnectionError), socket.create_connection((measure.HOST, port), timeout=1):
        return True
    return False


def add_option(to: argparse.ArgumentParser) -> None:
    """Add the option of benchmarks that compare with the Collector."""
    text = "a Collector with the components of peers/collector/builder.yaml; otherwise one is built"
    to.add_argument("--collector", type=Path, help=text)


def find(given: Path | None, directory: Path) -> tuple[Collector | None, str]:
    """The Collector to compare with, or None if it can't be built, and a sentence about it for the report.

    Args:
        given: An existing Collector.
        directory: Where the service and the Collector may write while their records are compared.

    Raises:
        AssertionError: The Collector's modules are available, but do not compile.
        RuntimeError: The Collector does not deliver the same records as the service.
    """
    found, said = _find(given)
    if found is not None:
        against.check_records(found, directory)
    return found, said


def _find(given: Path | None) -> tuple[Collector | None, str]:
    config = _FILES / "webhook_event.yaml"
    if given is not None:
        return Collector(given, config, "webhook"), f"The Collector is {given.name}."
    version = "The Collector is built from benchmarks/peers/collector"
    try:
        binary = otelcol.build(_FILES / "builder.yaml")
    except otelcol.UnavailableError as error:
        reason = _short(error)
    else:
        return Collector(binary, config, "webhook"), f"{version}."
    try:
        binary = otelcol.build(_FILES / "otlp-builder.yaml")
    except otelcol.UnavailableError as error:
        return None, f"LEFT OUT: the Collector can't be built here: {_short(error)}."
    instead = f"WITH ITS OTLP RECEIVER INSTEAD OF webhook_event and unroll, which are not available here ({reason})"
    return Collector(binary, _FILES / "otlp.yaml", "otlp"), f"{version}, {instead}. So it does less work."


def _short(error: Exception) -> str:
    return str(error).splitlines()[0].removesuffix(":")
