"""How large must a machine be? Disk and memory for records that wait, and webhooks per second.

The service runs with a backend that is not reachable, with an empty queue and with records that wait. Each change has
about 1 KB in Statsig's form. Each webhook has one new change, and is answered once it is on disk. There is no target.

    python benchmarks/capacity.py [--rounds N] [--seconds S] [--records N] [--directory DIR] [--quick]
"""

import argparse
import contextlib
import time
from collections import defaultdict
from pathlib import Path

from benchmarks import backlog, measure
from benchmarks.load import post
from benchmarks.service import service
from benchmarks.webhooks import CHANGE
from statsig_otel.exporters.queue import schema

_CLIENTS = (1, 8, 64)
_MOMENT = 2.0
"""Seconds of rest before memory is measured."""


def _size(directory: Path) -> int:
    """The bytes of the queue's file that are in use. It does not shrink when records are deleted."""
    with contextlib.closing(schema.connect_reading(directory / "queue.db")) as connection:
        pages, free, size = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
    return (pages - free) * size


def _wait_until_deleted(directory: Path) -> None:
    """Until the service has deleted what was delivered, which it does when it has nothing else to do."""
    before = 0
    while before != (before := _size(directory)):
        time.sleep(_MOMENT)


def compare(given: argparse.Namespace) -> None:
    rates: dict[int, list[float]] = defaultdict(list)
    memory: dict[str, list[float]] = {"none waits": [], "they wait": []}
    with measure.working_directory(given.directory) as directory:
        backlog.fill(directory / "waiting", given.records)
        backlog.fill(directory / "delivered", given.records, delivered=True)
        nobody = f"{measure.HOST}:{measure.free_port()}"
        with service(directory / "delivered", nobody):
            _wait_until_deleted(directory / "delivered")
        bytes_each = [f"{_size(directory / name) / given.records:,.0f}" for name in ("waiting", "delivered")]
        for number in range(given.rounds):
            for place, name in ((directory / f"empty-{number}", "none waits"), (directory / "waiting", "they wait")):
                with service(place, nobody) as running:
                    time.sleep(_MOMENT)
                    memory[name].append(measure.memory(running.pid).now / (1 << 20))
                    for clients in _CLIENTS if name == "none waits" else ():
                        rates[clients].append(post(running.port, CHANGE, clients=clients, seconds=given.seconds).rate)
        file_system = measure.file_system(directory)
    measure.publish(
        "capacity",
        f"What a machine needs, with {given.records:,} records. Those that wait, and those that are only remembered.",
        f"{measure.machine()}. On {file_system}.",
        measure.arguments(given, ("rounds", "seconds", "records")),
        measure.table(["bytes on disk", "each record that waits", "each that was delivered"], [["", *bytes_each]]),
        measure.table(
            ["resident memory, MiB", "min", "median", "max"],
            [[name, *measure.spread(found)] for name, found in memory.items()],
        ),
        measure.table(
            ["clients", "webhooks per second: min", "median", "max"],
            [[str(clients), *measure.spread(found)] for clients, found in rates.items()],
        ),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=3, quick={"rounds": 1, "seconds": 1.0, "records": 20_000})
    parser.add_argument("--seconds", type=float, default=3.0, help="the length of one measurement")
    parser.add_argument("--records", type=int, default=200_000, help="how many (default: %(default)s)")
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
