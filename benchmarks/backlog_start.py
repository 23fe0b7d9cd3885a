"""Does a backlog slow down the start of the service, or need memory?

A is `statsig-otel run` with records waiting in its queue, B is the same with an empty queue. The backend is not
reachable, so that nothing is delivered. The start is measured from the creation of the process to its first answer on
the webhook's port; the memory is measured a moment later, when the service has read the first records.
Target: A / B of at most 1.1.

    python benchmarks/backlog_start.py [--rounds N] [--records N] [--directory DIR] [--quick]
"""

import argparse
import http.client
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import backlog, measure
from benchmarks.service import answer

FULL, EMPTY = "full", "empty"
_MOMENT = 2.0
"""Seconds after the first answer, for several attempts to deliver."""


@dataclass(frozen=True)
class Started:
    """One start.

    Attributes:
        seconds: The time until the first answer.
        memory: The memory a moment later.
    """

    seconds: float
    memory: measure.Memory


def start(config: Path, port: int) -> Started:
    """Start a service, send it a request, and stop it."""
    began = time.perf_counter()
    process = measure.spawn(
        "-m", "statsig_otel", "run", "--config", str(config), "--log-level", "error",
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while (status := answer(port)) is None:
            if process.poll() is not None or time.perf_counter() - began > measure.START_TIMEOUT:
                raise RuntimeError("the service did not start")
            time.sleep(0.002)
        seconds = time.perf_counter() - began
        if status != http.client.UNAUTHORIZED:
            raise RuntimeError(f"an unsigned request was answered with {status}")
        time.sleep(_MOMENT)
        found = measure.memory(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(measure.START_TIMEOUT)
    finally:
        process.kill()
        process.wait()
    return Started(seconds, found)


def compare(given: argparse.Namespace) -> None:
    with measure.working_directory(given.directory) as directory:
        port, nobody = measure.free_port(), measure.free_port()
        for name, count in ((FULL, given.records), (EMPTY, 0)):
            backlog.fill(directory / name, count)
            written = backlog.configuration(directory=directory / name, backend=f"{measure.HOST}:{nobody}", port=port)
            (directory / f"{name}.yaml").write_text(written)
        size = sum(file.stat().st_size for file in (directory / FULL).iterdir()) >> 20
        starts: dict[str, list[Started]] = {FULL: [], EMPTY: []}
        for name in measure.alternating((FULL, EMPTY), given.rounds):
            starts[name].append(start(directory / f"{name}.yaml", port))
        file_system = measure.file_system(directory)
    full, empty = starts[FULL], starts[EMPTY]
    mib = 1 << 20
    rows = [
        measure.comparison("start, s", [one.seconds for one in full], [one.seconds for one in empty], ".3f"),
        measure.comparison(
            "resident, MiB", [one.memory.now / mib for one in full], [one.memory.now / mib for one in empty], ".1f"
        ),
        measure.comparison(
            "peak resident, MiB",
            [one.memory.peak / mib for one in full],
            [one.memory.peak / mib for one in empty],
            ".1f",
        ),
    ]
    measure.publish(
        "backlog_start",
        f"A: with {given.records:,} waiting records; B: without.",
        f"{measure.machine()}. On {file_system}. The queue has {size} MiB and is in the system's cache.",
        measure.arguments(given, ("rounds", "records")),
        measure.table(measure.COMPARISON, rows),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=7, quick={"rounds": 3, "records": 100_000})
    parser.add_argument("--records", type=int, default=1_000_000, help="waiting records (default: %(default)s)")
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
