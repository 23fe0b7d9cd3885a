"""How fast are webhooks stored and delivered, compared with an OpenTelemetry Collector that makes the same records?

A is `statsig-otel run`, B is the Collector of benchmarks/collector.py. Both answer 200 once a change is on disk, and
deliver it to the same sink over OTLP/gRPC. The load generator is a separate process. After each measurement, everything
that was acknowledged must reach the sink before the next one begins. B verifies no signatures.
Target: A / B of at least 2.2 for single changes at 64 clients, and of at least 5 for batches of exposures with a
change.

For scale, all cases include the least program that keeps the promise (benchmarks/peers/least.py). Some include the
`bare` server of benchmarks/bare_server.py, which hashes and validates a body and answers without storing or delivering
anything.

    python benchmarks/against_collector.py [--rounds N] [--seconds S] [--collector PATH] [--directory DIR] [--quick]
"""

import argparse
import contextlib
from collections.abc import Sequence

from benchmarks import against, collector, measure
from benchmarks.against import Compared
from benchmarks.sink import sink


def compare(given: argparse.Namespace) -> None:
    found, said = collector.find(given.collector, given.directory)
    rows: list[Sequence[str]] = []
    busiest, disk = 0.0, ""
    if found is not None:
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(measure.working_directory(given.directory))
            disk = f" On {measure.file_system(directory)}."
            compared = Compared(directory, stack.enter_context(sink()), found, stack)
            rows += compared.rows(given)
            busiest = compared.busiest
    measure.publish(
        "against_collector",
        "Events per second whose request was answered with 200. All of them are on disk, and are delivered to the sink "
        "later. A: statsig-otel, unless the row names the least program that keeps the promise, or the bare server, "
        "which only hashes and validates; B: the Collector.",
        said,
        f"{measure.machine()}.{disk} The load generator used at most {busiest:.0%} of a CPU.",
        measure.arguments(given, ("rounds", "seconds")),
        *([measure.table(against.ROW, rows)] if rows else []),
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
