"""How fast are durable answers, compared with what a team would write instead, which stores nothing?

A is `statsig-otel run`: it answers 200 once a change is on disk. B is benchmarks/peers/hand_written.py: a FastAPI
application under uvicorn (uvloop, httptools) that hands each change to the OpenTelemetry SDK's batch processor and
answers while the change is only in memory. Both verify the signature, make the same records, and deliver them to the
same sink over OTLP/gRPC. Both are one process. What B has not delivered at the end of a measurement is delivered after
it, before the next one begins.
Target: A / B of at least 1 for single changes at 8 clients, 1.5 at 64 clients, and 2.5 for batches.

For scale, all cases include the least program that keeps the promise (benchmarks/peers/least.py). Some include the
`bare` server of benchmarks/bare_server.py, which hashes and validates a body and answers without storing or delivering
anything.

In the end both get changes for a while and are then killed and started again: which of the changes that they answered
with 200 are never delivered?

    python benchmarks/against_hand_written.py [--rounds N] [--seconds S] [--directory DIR] [--quick]
"""

import argparse
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from benchmarks import against, measure
from benchmarks.against import BATCH_CLIENTS, Compared
from benchmarks.load import post
from benchmarks.service import Running, service
from benchmarks.sink import Sink, sink
from benchmarks.webhooks import CHANGE, Wire

_QUIET = 8.0
"""Seconds without a record after which no more are expected: the batch processor waits for five."""


class HandWritten:
    """The application, as a peer of the service."""

    wire: Wire = "webhook"

    @contextlib.contextmanager
    def running(self, directory: Path, backend: str) -> Iterator[Running]:  # noqa: ARG002 - it writes nothing
        port = measure.free_port()
        with measure.running("-m", "benchmarks.peers.hand_written", str(port), backend, port=port) as process:
            yield Running(process.pid, port)


def killed(start: Callable[[], AbstractContextManager[Running]], backend: Sink, seconds: float) -> str:
    """Kill a process after some seconds of load, and start it again: how many changes are lost."""
    with start() as running:
        posted = post(running.port, CHANGE, clients=BATCH_CLIENTS, seconds=seconds)
        os.kill(running.pid, signal.SIGKILL)
    delivered = set(backend.arrivals())
    with start():
        latest = time.monotonic() + _QUIET
        while len(delivered) < posted.good and time.monotonic() < latest:
            time.sleep(0.1)
            if more := backend.arrivals():
                delivered |= more.keys()
                latest = time.monotonic() + _QUIET
    return f"{posted.good - len(delivered)} of {posted.good}"


def compare(given: argparse.Namespace) -> None:
    peer = HandWritten()
    against.check_records(peer, given.directory)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(measure.working_directory(given.directory))
        disk = measure.file_system(directory)
        backend = stack.enter_context(sink())
        with contextlib.ExitStack() as running:
            compared = Compared(directory, backend, peer, running)
            rows = list(compared.rows(given))
        starts = (
            partial(service, directory / "killed", backend.address),
            partial(peer.running, directory, backend.address),
        )
        lost = [killed(start, backend, given.seconds) for start in starts]
    measure.publish(
        "against_hand_written",
        "B LOSES WHAT IT HOLDS IN MEMORY: killed after some seconds of changes and started again, A never delivered "
        f"{lost[0]} changes that it had answered with 200, and B {lost[1]}.",
        "Events per second whose request was answered with 200. A: statsig-otel, unless the row names the least "
        "program that keeps the promise, or the bare server, which only hashes and validates; B: a FastAPI application "
        "with the SDK's batch processor.",
        f"{measure.machine(('fastapi', 'uvicorn', 'uvloop', 'opentelemetry-sdk'))}. On {disk}. "
        f"The load generator used at most {compared.busiest:.0%} of a CPU.",
        measure.arguments(given, ("rounds", "seconds")),
        measure.table(against.ROW, rows),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=5, quick={"rounds": 2, "seconds": 1.0})
    parser.add_argument("--seconds", type=float, default=3.0, help="the length of one measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="for single changes")
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
