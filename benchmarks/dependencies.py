"""What do the libraries gain that are there for their speed alone?

Each is compared with the standard library, in processor time, measured in turns:

- isal (A) computes the checksums of a backlog, zlib (B) does: the processor time of a whole drain over OTLP/gRPC, with
  all threads of the service's process, for each record.
- msgspec (A) reads bodies, the standard library's json (B) does: a body of 500 exposures, one of 499 exposures and a
  change, and a single change; from bytes to the changes among the items.
- uvloop (A) runs the server, asyncio's own loop (B) does: the processor time of the service's process for one durable
  webhook with one change.

docs/dependencies.md says what is made of it.

    python benchmarks/dependencies.py [--rounds N] [--records N] [--seconds S] [--directory DIR] [--quick]
"""

import argparse
import contextlib
import itertools
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import backlog, measure, webhooks
from benchmarks.drain import drain_queue
from benchmarks.load import post
from benchmarks.service import service
from benchmarks.sink import Sink, sink
from statsig_otel.exporters.queue.records import quick_crc32
from statsig_otel.plugin.webhook import lenient_json
from statsig_otel.plugin.webhook.body import is_config_change, parse

ISAL, ZLIB = "isal", "zlib"
UVLOOP, ASYNCIO = "uvloop", "asyncio"
_ON_ASYNCIO: Final = (
    "import asyncio, runpy, uvloop; uvloop.run = asyncio.run; runpy.run_module('statsig_otel', run_name='__main__')"
)
PROGRAMS: Final = {UVLOOP: ("-m", "statsig_otel"), ASYNCIO: ("-c", _ON_ASYNCIO)}
CLIENTS: Final = (8, 64)
SHAPES: Final = {
    "500 exposures": webhooks.EXPOSURES,
    "499 exposures and a change": webhooks.BATCH,
    "a change": webhooks.CHANGE,
}
BODIES: Final = 20
TIMEOUT: Final = 600.0
"""Seconds for one drain. Only a drain that hangs reaches this."""


def drain(checksum: str, filled: Path, count: int, backend: Sink) -> float:
    """The processor time of one drain of a copy of the backlog, in microseconds for each record."""
    with measure.working_directory(filled.parent) as directory:
        shutil.copytree(filled, directory, dirs_exist_ok=True)
        os.sync()  # so that writing the copy to disk is not measured
        # Whether isal is there is decided at the first import.
        hide = "import sys; sys.modules['isal'] = None; " if checksum == ZLIB else ""
        given = repr((checksum, str(directory), backend.address))
        code = f"{hide}from benchmarks.dependencies import drain_here; drain_here(*{given})"
        seconds = float(measure.output("-c", code, timeout=TIMEOUT))
    got = backend.take()
    if not got.records == got.uids == count:
        raise RuntimeError(
            f"{checksum}: of {count} records the sink received {got.records}, {got.uids} of them different"
        )
    return seconds / count * 1e6


def drain_here(checksum: str, directory: str, backend: str) -> None:
    """Print the processor time of a drain in this process, in seconds."""
    if quick_crc32.__module__.partition(".")[0] != checksum:
        raise RuntimeError(f"{quick_crc32.__module__} computes the checksums, not {checksum}")
    began = time.process_time()
    drain_queue(Path(directory), backend, "none")
    print(time.process_time() - began)


def readers(shape: webhooks.Shape) -> dict[str, Callable[[], object]]:
    """Both ways to read bodies, each of them the next one of a few."""
    bodies = itertools.cycle(list(itertools.islice(webhooks.bodies(shape), BODIES)))

    def quick() -> object:
        return parse(next(bodies))

    def standard() -> object:
        return lenient_json.split(next(bodies).decode(), is_config_change, names=("data", "eventName"))

    return {"msgspec": quick, "json": standard}


def per_call(function: Callable[[], object], seconds: float) -> float:
    """The processor time of one call in microseconds, measured over at least `seconds` of processor time."""
    calls, used = 0, 0.0
    while used < seconds:
        began = time.process_time()
        for _ in range(BODIES):
            function()
        used += time.process_time() - began
        calls += BODIES
    return used / calls * 1e6


def webhooks_on_loops(given: argparse.Namespace, directory: Path, backend: Sink) -> dict[tuple[str, int], list[float]]:
    """The service's processor time for a durable webhook in microseconds, by its loop and the number of clients."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        services = {
            name: stack.enter_context(service(directory / name, backend.address, program=program))
            for name, program in PROGRAMS.items()
        }
        for clients in CLIENTS:
            for name in measure.alternating(tuple(services), given.rounds):
                began = measure.processor_time(services[name].pid)
                posted = post(services[name].port, webhooks.CHANGE, clients=clients, seconds=given.seconds)
                backend.settle(posted.good)
                found[name, clients].append((measure.processor_time(services[name].pid) - began) / posted.good * 1e6)
    return found


def compare(given: argparse.Namespace) -> None:
    rows = []
    with measure.working_directory(given.directory) as directory, sink() as backend:
        filled = directory / "filled"
        backlog.fill(filled, given.records)
        costs: dict[str, list[float]] = {ISAL: [], ZLIB: []}
        for name in measure.alternating((ISAL, ZLIB), given.rounds):
            costs[name].append(drain(name, filled, given.records, backend))
        rows.append(measure.comparison("isal / zlib: a drained record", costs[ISAL], costs[ZLIB], ".2f"))
        loops = webhooks_on_loops(given, directory, backend)
        rows += [
            measure.comparison(
                f"uvloop / asyncio: a webhook, {clients} clients", loops[UVLOOP, clients], loops[ASYNCIO, clients]
            )
            for clients in CLIENTS
        ]
    for label, shape in SHAPES.items():
        both = readers(shape)
        times: dict[str, list[float]] = {name: [] for name in both}
        for name in measure.alternating(list(both), given.rounds):
            times[name].append(per_call(both[name], given.seconds))
        quick, standard = times.values()
        rows.append(measure.comparison(f"msgspec / json: a body of {label}", quick, standard, ".1f"))
    measure.publish(
        "dependencies",
        "Processor time in microseconds, with a library (A) and with the standard library (B).",
        f"{measure.machine((ISAL, 'msgspec', UVLOOP))}.",
        measure.arguments(given, ("rounds", "records", "seconds")),
        measure.table(measure.COMPARISON, rows),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=7, quick={"rounds": 3, "records": 20_000, "seconds": 0.2})
    parser.add_argument("--records", type=int, default=100_000, help="waiting records (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="the length of one other measurement")
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
