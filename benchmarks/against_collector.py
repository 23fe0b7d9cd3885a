"""How fast are webhooks stored and delivered, compared with an OpenTelemetry Collector that makes the same records?

A is `statsig-otel run`, B is the Collector of benchmarks/collector.py. Both answer 200 once a change is on disk, and
deliver it to the same sink over OTLP/gRPC. The load generator is a separate process. After each measurement, everything
that was acknowledged must reach the sink before the next one begins. B verifies no signatures.
Target: A / B of at least 2 for single changes at 64 clients, and of at least 10 for batches of exposures with a change.

For scale, both cases include the `bare` server of benchmarks/bare_server.py, which hashes and validates a body and
answers without storing or delivering anything.

    python benchmarks/against_collector.py [--rounds N] [--seconds S] [--collector PATH] [--directory DIR] [--quick]
"""

import argparse
import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import collector, measure
from benchmarks.bare_server import BARE, bare_server
from benchmarks.collector import Collector
from benchmarks.load import Posted, post
from benchmarks.service import Running, service
from benchmarks.sink import Sink, sink
from benchmarks.webhooks import BATCH, CHANGE, Shape, Wire

OURS, THEIRS = "statsig-otel", "Collector"
SCALE_CLIENTS = 64
BATCH_CLIENTS = 8


class Peers:
    """The running service, Collector and bare server, with one sink."""

    def __init__(self, directory: Path, backend: Sink, found: Collector, stack: contextlib.ExitStack) -> None:
        self._backend = backend
        self._wires: dict[str, Wire] = {OURS: "webhook", THEIRS: found.wire, BARE: "webhook"}
        self._running: dict[str, Running] = {
            OURS: stack.enter_context(service(directory / "ours", backend.address)),
            THEIRS: stack.enter_context(found.running(directory / "theirs", backend.address)),
            BARE: stack.enter_context(bare_server(BARE)),
        }
        self.busiest = 0.0

    def measure(self, name: str, shape: Shape, clients: int, seconds: float) -> Posted:
        """Post for some seconds, and wait until the sink has received everything."""
        wire = self._wires[name]
        posted = post(self._running[name].port, shape, clients=clients, seconds=seconds, wire=wire)
        self.busiest = max(self.busiest, posted.busy)
        if name != BARE:
            self._backend.settle(posted.good * shape.changes)
        return posted

    def rows(
        self, label: str, shape: Shape, clients: int, given: argparse.Namespace, *, scale: bool
    ) -> Iterator[list[str]]:
        """Events per second and the latency of answers: one row, or two with the bare server."""
        names = (OURS, THEIRS, BARE) if scale else (OURS, THEIRS)
        events = shape.exposures + shape.changes
        rates: dict[str, list[float]] = defaultdict(list)
        slowest: dict[str, list[float]] = defaultdict(list)
        for name in measure.alternating(names, given.rounds):
            posted = self.measure(name, shape, clients, given.seconds)
            rates[name].append(posted.rate * events)
            slowest[name].append(posted.p99 * 1000)
        for name in names:
            if name != THEIRS:
                p99 = " / ".join(measure.spread(slowest[which], ".1f")[1] for which in (name, THEIRS))
                marked = label if name == OURS else f"{label}; A: the bare server"
                yield [*measure.comparison(marked, rates[name], rates[THEIRS]), p99]


def compare(given: argparse.Namespace) -> None:
    found, said = collector.find(given.collector, given.directory)
    rows: list[Sequence[str]] = []
    busiest, disk = 0.0, ""
    if found is not None:
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(measure.working_directory(given.directory))
            disk = f" On {measure.file_system(directory)}."
            peers = Peers(directory, stack.enter_context(sink()), found, stack)
            for clients in given.clients:
                label = f"one change, 1 KB; clients: {clients}"
                rows += peers.rows(label, CHANGE, clients, given, scale=clients == SCALE_CLIENTS)
            label = f"{BATCH.exposures} exposures and 1 change; clients: {BATCH_CLIENTS}"
            rows += peers.rows(label, BATCH, BATCH_CLIENTS, given, scale=True)
            busiest = peers.busiest
    measure.publish(
        "against_collector",
        "Events per second whose request was answered with 200. All of them are on disk, and are delivered to the sink "
        "later. A: statsig-otel, unless the row names the bare server, which only hashes and validates; B: the "
        "Collector.",
        said,
        f"{measure.machine()}.{disk} The load generator used at most {busiest:.0%} of a CPU.",
        measure.arguments(given, ("rounds", "seconds")),
        *([measure.table([*measure.COMPARISON, "p99 of an answer, ms, A / B"], rows)] if rows else []),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=5, quick={"rounds": 2, "seconds": 1.0})
    parser.add_argument("--seconds", type=float, default=3.0, help="the length of one measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64, 256], help="for single changes")
    collector.add_option(parser)
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
