"""How much memory does the service need, at rest and after many requests?

A is `statsig-otel run`, B is the Collector of benchmarks/collector.py. Each is started again in every round, with one
sink. Of ten requests, six are single changes, one is the same change every time, two are batches of 50 exposures, and
one is a batch of 49 exposures and a change. Memory is measured a moment after everything has been delivered.
Target: A below B, and A after all requests not above A after the first tenth of them.

    python benchmarks/memory.py [--rounds N] [--requests N] [--collector PATH] [--directory DIR] [--quick]
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks import collector, measure
from benchmarks.collector import Collector
from benchmarks.load import post
from benchmarks.measure import Memory
from benchmarks.service import Running, service
from benchmarks.sink import Sink, sink
from benchmarks.webhooks import CHANGE, Shape, Wire

OURS, THEIRS = "statsig-otel", "Collector"
MIXED = (*[CHANGE] * 6, Shape(resent=True), *[Shape(exposures=50, changes=0)] * 2, Shape(exposures=49))
_NEW = sum(shape.changes for shape in MIXED if not shape.resent)
_CLIENTS = 16
_AT_ONCE = 20_000
_MOMENT = 2.0
"""Seconds of rest before memory is measured."""

_SETTLE = 600.0


def memories(running: Running, backend: Sink, wire: Wire, marks: list[int]) -> list[Memory]:
    """The memory of a process at rest, and after each of the given numbers of requests."""
    time.sleep(_MOMENT)
    found = [measure.memory(running.pid)]
    done = 0
    for mark in marks:
        while done < mark:
            number = min(_AT_ONCE, mark - done)
            post(running.port, *MIXED, clients=_CLIENTS, number=number, wire=wire)
            backend.settle(number // len(MIXED) * _NEW, seconds=_SETTLE)
            done += number
        time.sleep(_MOMENT)
        found.append(measure.memory(running.pid))
    return found


def compare(given: argparse.Namespace) -> None:
    marks = [given.requests // 10, given.requests]
    whens = ["at rest", *(f"after {mark:,}" for mark in marks)]
    peer, said = collector.find(given.collector, given.directory)
    found: dict[str, list[list[Memory]]] = defaultdict(list)
    with measure.working_directory(given.directory) as directory, sink() as backend:
        peers = _peers(peer, directory, backend)
        for number, name in enumerate(measure.alternating(tuple(peers), given.rounds)):
            start, wire = peers[name]
            with start(directory / f"{number}") as running:
                found[name].append(memories(running, backend, wire, marks))
            backend.take()
    rows = [
        [f"{name}, {when}", *(" / ".join(measure.spread(_mib(found[name], index, of), ".1f")) for of in _FIELDS)]
        for name in peers
        for index, when in enumerate(whens)
    ]
    ratios = [
        [f"{name}: {whens[2]} / {whens[1]}", *_ratios(_mib(found[name], 2, "now"), _mib(found[name], 1, "now"))]
        for name in peers
    ]
    if peer is not None:
        ratios += [
            [f"A / B, {when}", *_ratios(_mib(found[OURS], index, "now"), _mib(found[THEIRS], index, "now"))]
            for index, when in enumerate(whens)
        ]
    measure.publish(
        "memory",
        f"Resident memory in MiB. A: {OURS}; B: {THEIRS}, which maps its queue's file into memory.",
        said,
        f"{measure.machine()}.",
        measure.arguments(given, ("rounds", "requests")),
        measure.table(["min / median / max", "resident", "without mapped files", "peak"], rows),
        measure.table(["resident", "min", "median", "max"], ratios),
    )


_FIELDS = ("now", "anonymous", "peak")
_Start = Callable[[Path], AbstractContextManager[Running]]


def _peers(peer: Collector | None, directory: Path, backend: Sink) -> dict[str, tuple[_Start, Wire]]:
    directory.mkdir(exist_ok=True)
    peers: dict[str, tuple[_Start, Wire]] = {OURS: (lambda path: service(path, backend.address), "webhook")}
    if peer is not None:
        peers[THEIRS] = (lambda path: peer.running(path, backend.address), peer.wire)
    return peers


def _mib(found: list[list[Memory]], index: int, field: str) -> list[float]:
    return [getattr(memories[index], field) / (1 << 20) for memories in found]


def _ratios(values: list[float], against: list[float]) -> list[str]:
    return measure.spread(measure.ratios(values, against), ".2f")


def main() -> None:
    parser = measure.parser(__doc__, rounds=2, quick={"rounds": 1, "requests": 10_000})
    parser.add_argument("--requests", type=int, default=200_000, help="the number of requests (default: %(default)s)")
    collector.add_option(parser)
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
