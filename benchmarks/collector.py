"""The OpenTelemetry Collector as a peer: built once by its own builder, tuned, and checked before anything is timed.

Its configuration is in peers/collector: webhook_event receives, transform, unroll and filter make the same record of a
change as the service does, and file_storage with `fsync: true` holds the exporter's queue, without any buffer before
it. So its 200 is durable: the receiver answers when the queue has written the batch. It is tuned as far as its
documentation goes: a body without a change is dropped before it is parsed, exposures before the batch is unrolled;
the queue counts requests, and its consumers send batches of 512 records like ours; its own metrics are off. Two things
favour it: it verifies no signature, and remembers no change that it has seen.

Not every Go module proxy has webhook_event and unroll. Where they can't be had, the same Collector is built with its
OTLP receiver: the body comes as the body of a log record, over OTLP/HTTP, and the one change of a benchmark's batch is
taken out of it without unroll. It does less, so that a figure against it is a lower bound; the report says so.

A Collector that is there already, such as the distribution otelcol-contrib, is used with `--collector PATH`.
"""

import argparse
import contextlib
import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks import measure, webhooks
from benchmarks.service import Running, service
from benchmarks.sink import Record, Sink, sink
from benchmarks.webhooks import CHANGE, EXPOSURES, Shape, Wire
from statsig_otel.plugin import DEFAULT_PATH
from tests.e2e import otelcol

_FILES = Path(__file__).parent / "peers" / "collector"
_FEATURE_GATES = "ottl.functions.enableLambda"
_SAMPLE = 5
"""Requests of each kind that both have to make the same records of."""

_MOMENT = 0.5
"""Seconds in which a record that should not be there would come."""

_OWN = ("observedTimeUnixNano",)
"""What differs between two deliveries of the same change."""


@dataclass(frozen=True)
class Collector:
    """A Collector that can be run.

    Attributes:
        binary: The program.
        config: Its configuration beside what both share.
        wire: How a webhook's body gets to it.
    """

    binary: Path
    config: Path
    wire: Wire

    @contextlib.contextmanager
    def running(self, directory: Path, backend: str) -> Iterator[Running]:
        """Run it, from the moment at which it listens.

        Args:
            directory: Where its queue is.
            backend: Where it exports to, as host:port.
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
    """The option of a benchmark that has the Collector as a peer."""
    text = "a Collector with the components of peers/collector/builder.yaml; otherwise one is built"
    to.add_argument("--collector", type=Path, help=text)


def find(given: Path | None, directory: Path) -> tuple[Collector | None, str]:
    """The Collector to compare with, and what a report has to say about it. None where it can't be had.

    Args:
        given: A Collector that is there already.
        directory: Where both may write while what they deliver is compared.

    Raises:
        AssertionError: Its modules are there, but don't compile.
        RuntimeError: It does not deliver the same records as the service.
    """
    found, said = _find(given)
    if found is not None:
        _check(found, directory)
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
    instead = f"WITH ITS OTLP RECEIVER IN PLACE OF webhook_event and unroll, which can't be had here ({reason})"
    return Collector(binary, _FILES / "otlp.yaml", "otlp"), f"{version}, {instead}. It has less to do."


def _short(error: Exception) -> str:
    return str(error).splitlines()[0].removesuffix(":")


def _check(collector: Collector, parent: Path) -> None:
    """Let the service and the Collector deliver the same requests, and compare what comes out, field by field."""
    with measure.working_directory(parent) as directory, sink() as backend:
        for shape in (CHANGE, Shape(exposures=20), EXPOSURES):
            bodies = list(islice(webhooks.bodies(shape), _SAMPLE))
            expected = _SAMPLE * shape.changes
            with service(directory / f"service-{shape}", backend.address) as running:
                ours = _delivered(running, bodies, "webhook", backend, expected)
            with collector.running(directory / f"collector-{shape}", backend.address) as running:
                theirs = _delivered(running, bodies, collector.wire, backend, expected)
            for mine, other in zip(ours, theirs, strict=True):
                if different := _differences(mine, other):
                    raise RuntimeError(f"the Collector makes other records (ours, its): {different}")


def _delivered(running: Running, bodies: list[bytes], wire: Wire, backend: Sink, expected: int) -> list[Record]:
    for body in bodies:
        connection = http.client.HTTPConnection(measure.HOST, running.port, timeout=measure.START_TIMEOUT)
        with contextlib.closing(connection):
            headers, sent = webhooks.headers_and_body(body, wire)
            connection.request("POST", DEFAULT_PATH, sent, headers)
            if (status := connection.getresponse().status) != http.client.OK:
                raise RuntimeError(f"a body of {len(body)} bytes was answered with {status}")
    records: list[Record] = []
    latest = time.monotonic() + measure.START_TIMEOUT
    while len(records) < expected and time.monotonic() < latest:
        time.sleep(0.05)
        records += backend.records()
    if not expected:
        time.sleep(_MOMENT)  # for what should not come
        records += backend.records()
    if len(records) != expected:
        raise RuntimeError(f"{len(records)} records were delivered in place of {expected}")
    return sorted(records, key=lambda record: str(record["attributes"]["change_event.label.description"]))


def _differences(one: Record, other: Record) -> dict[str, tuple[object, object]]:
    """The fields and attributes in which two records differ."""
    flat = [
        {name: value for name, value in record.items() if name not in (*_OWN, "attributes")} | record["attributes"]
        for record in (one, other)
    ]
    pairs = {name: (flat[0].get(name), flat[1].get(name)) for name in flat[0].keys() | flat[1].keys()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
