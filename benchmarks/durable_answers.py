"""What does it cost to answer a webhook only once its change is on disk?

A is `statsig-otel run` with an OTLP/gRPC exporter. It commits a change to its durable queue before it answers 200, and
delivers it to a sink. B is the same HTTP server, receiver, verification, mapping and encoding with a consumer that
stores nothing. Another process sends signed, new config changes of about 1 KB over keep-alive connections.
Target: A / B of at least 0.60 at 64 clients.

The last row is for scale. It compares A at 64 clients with a loop that only appends the same bytes to a file and calls
fsync for groups of the size that A reached.

    python benchmarks/durable_answers.py [--rounds N] [--seconds S] [--directory DIR] [--quick]
"""

import argparse
import contextlib
import json
import os
import time
from collections import defaultdict
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import backlog, measure
from benchmarks.load import post
from benchmarks.service import commits
from benchmarks.sink import Sink, sink
from benchmarks.webhooks import CHANGE
from statsig_otel.exporters.consumer import Batch, Receipt
from statsig_otel.plugin import DEFAULT_PATH
from statsig_otel.plugin.cli.run import collect_garbage_rarely
from statsig_otel.plugin.receiver.asgi import StatsigReceiver, create_app
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.webhook.signature import Verifier

CLIENTS = (1, 8, 64)
DURABLE, AT_ONCE, LOOP = "durable", "at once", "loop"
_PATIENCE = 10.0
"""The seconds that a service waits for its queue. B has the same timer for every request."""


# The candidates.


class AtOnce:
    """A consumer that accepts everything and stores nothing."""

    def consume(self, batch: Batch) -> Future[Receipt]:
        taken: Future[Receipt] = Future()
        taken.set_result(Receipt(len(batch.changes)))
        return taken


def serve_at_once(port: int) -> None:
    receiver = StatsigReceiver(Intake(verifier=Verifier([backlog.SECRET])), AtOnce(), patience=_PATIENCE)
    server = HttpServer(create_app({DEFAULT_PATH: receiver}), host=measure.HOST, port=port)
    server.bind()
    collect_garbage_rarely()
    uvloop.run(server.serve())


def append(file: Path, group: int, seconds: float) -> None:
    """Append records to a file, with an fsync for each group. Print the rate per second."""
    _, record = next(backlog.records(1))
    written = 0
    with file.open("wb", buffering=0) as out:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            out.write(b"".join([record] * group))
            os.fsync(out.fileno())
            written += group
        took = time.perf_counter() - began
    file.unlink()
    print(json.dumps({"rate": written / took}))


# The parent.


class Peers:
    """The compared processes, and the measurement of one round."""

    def __init__(self, seconds: float, directory: Path, ports: dict[str, int], backend: Sink) -> None:
        self._seconds = seconds
        self._directory = directory
        self._ports = ports
        self._backend = backend
        self.group = 1.0
        self.busiest = 0.0

    def measure(self, name: str, clients: int) -> float:
        """The answers per second."""
        if name == LOOP:
            group = str(max(1, round(self.group)))
            return float(self._child("--append", str(self._directory / "appended"), "--group", group)["rate"])
        before = commits(self._directory)
        posted = post(self._ports[name], CHANGE, clients=clients, seconds=self._seconds)
        self.busiest = max(self.busiest, posted.busy)
        if name == DURABLE:
            self.group = posted.good / (commits(self._directory) - before)
            # Wait, so that A's remaining deliveries do not slow down B.
            self._backend.settle(posted.good)
        return posted.rate

    def _child(self, *arguments: str) -> dict[str, Any]:
        printed = measure.output(
            "-m", "benchmarks.durable_answers", "--seconds", str(self._seconds), *arguments,
            timeout=self._seconds * 3 + measure.START_TIMEOUT,
        )  # fmt: skip
        return dict(json.loads(printed))


def compare(given: argparse.Namespace) -> None:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(measure.working_directory(given.directory))
        backend = stack.enter_context(sink())
        ports = {DURABLE: measure.free_port(), AT_ONCE: measure.free_port()}
        config = directory / "config.yaml"
        config.write_text(backlog.configuration(directory=directory, backend=backend.address, port=ports[DURABLE]))
        service = ("-m", "statsig_otel", "run", "--config", str(config), "--log-level", "error")
        stack.enter_context(measure.running(*service, port=ports[DURABLE]))
        at_once = ("-m", "benchmarks.durable_answers", "--at-once", str(ports[AT_ONCE]))
        stack.enter_context(measure.running(*at_once, port=ports[AT_ONCE]))
        peers = Peers(given.seconds, directory, ports, backend)
        rows = []
        for clients in CLIENTS:
            rates: dict[str, list[float]] = defaultdict(list)
            groups = []
            names = (DURABLE, AT_ONCE, LOOP) if clients == CLIENTS[-1] else (DURABLE, AT_ONCE)
            for name in measure.alternating(names, given.rounds):
                rates[name].append(peers.measure(name, clients))
                if name == DURABLE:
                    groups.append(peers.group)
            label = f"clients: {clients} ({measure.spread(groups, '.1f')[1]} changes per commit)"
            rows.append(measure.comparison(label, rates[DURABLE], rates[AT_ONCE]))
            if rates[LOOP]:
                rows.append(measure.comparison(f"clients: {clients}, B: append, fsync", rates[DURABLE], rates[LOOP]))
        disk = f"On {measure.file_system(directory)}. The load generator used at most {peers.busiest:.0%} of a CPU."
    measure.publish(
        "durable_answers",
        "Answers per second. A: once the change is on disk; B: without storing it. In the last row, B is a loop that "
        "appends and syncs records in groups of the same size as A's.",
        f"{measure.machine()}. {disk}",
        measure.arguments(given, ("rounds", "seconds")),
        measure.table(measure.COMPARISON, rows),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=5, quick={"rounds": 3, "seconds": 1.0})
    parser.add_argument("--seconds", type=float, default=3.0, help="the length of one measurement")
    measure.add_directory(parser)
    for hidden in ("--at-once", "--group"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--append", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.at_once is not None:
        serve_at_once(given.at_once)
    elif given.append is not None:
        append(given.append, given.group, given.seconds)
    else:
        compare(given)


if __name__ == "__main__":
    main()
