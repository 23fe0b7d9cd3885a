"""How much of a durable webhook's cost would any such program have, and how much is this one's?

The least program that keeps the promise (benchmarks/peers/least.py) is built up in rungs, from a Falcon resource that
discards the body to a durable and delivered record. Each rung is a server of its own. They take turns with servers that
do the first stages as the service does them (benchmarks/prefixes.py), and with `statsig-otel run`. The unit is the
Falcon resource that discards the body. The webhook has one change of 1 KB, or with `--batch` 499 exposures too.

Mapping and encoding are measured once more with clients that pause after each answer: what the same steps cost if the
server waits in between, as it does for the disk.

What is between the two programs is counted in bytecode instructions, promise by promise (benchmarks/promises.py), with
one change.

    python benchmarks/ladder.py [--rounds N] [--seconds S] [--clients N ...] [--batch] [--counted N] [--directory DIR]
        [--quick]
"""

import argparse
import contextlib
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Final

from benchmarks import against, measure, prefixes, promises
from benchmarks.bare_server import FALCON, bare_server
from benchmarks.load import post
from benchmarks.peers import least
from benchmarks.service import Running, service
from benchmarks.sink import Sink, sink
from benchmarks.webhooks import BATCH, CHANGE, Shape

_UNIT: Final = "unit"
_SERVICE: Final = "service"

OURS: Final = {
    least.DROP: prefixes.FALCON,
    least.PARSE: prefixes.PARSED,
    least.MAP: prefixes.MAPPED,
    least.STORE: prefixes.STORED,
    least.DELIVER: _SERVICE,
}
"""The server of this project that does as much as a rung."""

_DELIVERING: Final = (least.DELIVER, _SERVICE)
_PAUSE: Final = 0.003
_PAUSED: Final = {f"{name}, with pauses": name for name in (least.MAP, OURS[least.MAP])}
"""What is measured with pauses (in seconds), too."""


class Ladder:
    """The running servers."""

    def __init__(self, directory: Path, backend: Sink, stack: contextlib.ExitStack) -> None:
        self._backend = backend
        self._servers: dict[str, Running] = {_UNIT: stack.enter_context(bare_server(FALCON))}
        for number, rung in enumerate(least.RUNGS):
            program = least.Least(rung).running(directory / f"rung-{number}", backend.address)
            self._servers[rung] = stack.enter_context(program)
        for name in OURS.values():
            queue = directory / "prefix"
            if name != _SERVICE:
                self._servers[name] = stack.enter_context(prefixes.serving(name, queue))
        self._servers[_SERVICE] = stack.enter_context(service(directory / "queue", backend.address))

    def rows(self, clients: int, given: argparse.Namespace) -> list[list[str]]:
        """The rungs, measured from so many clients."""
        costs: dict[str, list[float]] = defaultdict(list)
        for name in measure.alternating((*self._servers, *_PAUSED), given.rounds):
            costs[name].append(self._measure(name, BATCH if given.batch else CHANGE, clients, given.seconds))
        rows = []
        for rung in least.RUNGS:
            rows.append(_row(rung, costs[_UNIT], costs[rung], costs[OURS[rung]] if rung in OURS else None))
            if rung == least.MAP:
                name = f"{rung}, with pauses of {_PAUSE * 1000:.0f} ms"
                rows.append(_row(name, costs[_UNIT], *(costs[paused] for paused in _PAUSED)))
        return rows

    def threads(self, clients: int, given: argparse.Namespace) -> list[list[str]]:
        """The threads of the whole least program and of the service. They are known by how busy they are."""
        shape, found = BATCH if given.batch else CHANGE, defaultdict[str, list[list[float]]](list)
        for name in measure.alternating(_DELIVERING, given.rounds):
            server = self._servers[name]
            before = measure.thread_times(server.pid)
            posted = post(server.port, shape, clients=clients, seconds=given.seconds)
            self._backend.settle(posted.good)
            after = measure.thread_times(server.pid)
            busiest, second, *others = sorted((after[one] - before.get(one, 0.0) for one in after), reverse=True)
            found[name].append([used / posted.good * 1e6 for used in (busiest, second, sum(others))])
        rows = []
        for number, thread in enumerate(("the server's", "the writer's", "all others")):
            theirs, ours = ([used[number] for used in found[name]] for name in _DELIVERING)
            ratio = statistics.median(measure.ratios(ours, theirs))
            rows.append([thread, f"{statistics.median(theirs):.0f}", f"{statistics.median(ours):.0f}", f"{ratio:.2f}"])
        return rows

    def _measure(self, name: str, shape: Shape, clients: int, seconds: float) -> float:
        """The microseconds of processor time for each webhook."""
        server = self._servers[_PAUSED.get(name, name)]
        began = measure.processor_time(server.pid)
        posted = post(server.port, shape, clients=clients, seconds=seconds, pause=_PAUSE if name in _PAUSED else 0.0)
        if name in _DELIVERING:
            self._backend.settle(posted.good)
        return (measure.processor_time(server.pid) - began) / posted.good * 1e6


HEAD: Final = (
    "the rungs, each with all before it", "the least, us", "x Falcon", "the service, us", "x Falcon", "service / least"
)  # fmt: skip

THREADS: Final = ("the thread", "the least, us", "the service, us", "service / least")


def _against(times: list[float], unit: list[float]) -> list[str]:
    return [f"{statistics.median(times):.0f}", " / ".join(measure.spread(measure.ratios(times, unit), ".2f"))]


def _row(name: str, unit: list[float], theirs: list[float], ours: list[float] | None) -> list[str]:
    """What the least program takes for a rung, and the service, if it has a server for that."""
    row = [name, *_against(theirs, unit)]
    if ours is not None:
        row += [*_against(ours, unit), f"{statistics.median(measure.ratios(ours, theirs)):.2f}"]
    return row + [""] * (len(HEAD) - len(row))


def compare(given: argparse.Namespace) -> None:
    against.check_records(least.Least(), given.directory)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(measure.working_directory(given.directory))
        disk = measure.file_system(directory)
        ladder = Ladder(directory, stack.enter_context(sink()), stack)
        tables = [
            part
            for clients in given.clients
            for part in (
                f"Clients: {clients}. Below, the threads of the programs that deliver.",
                measure.table(HEAD, ladder.rows(clients, given)),
                measure.table(THREADS, ladder.threads(clients, given)),
            )
        ]
    for clients in () if given.batch else given.clients:
        tables += [
            f"Bytecode instructions of one webhook with one change, from one of {clients} clients.",
            measure.table(promises.HEAD, promises.rows(clients, given.counted, given.directory)),
        ]
    measure.publish(
        "ladder",
        f"Processor time of one webhook with one change{' and 499 exposures' if given.batch else ''}, in microseconds "
        "(median), and divided by that of a Falcon resource that discards the body (minimum / median / maximum).",
        f"{measure.machine()}. On {disk}.",
        measure.arguments(given, ("rounds", "seconds")),
        *tables,
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=7, quick={"rounds": 2, "seconds": 0.5, "counted": 320})
    parser.add_argument("--seconds", type=float, default=1.0, help="the length of one measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 8, 64])
    parser.add_argument("--batch", action="store_true", help="webhooks with 499 exposures and a change")
    parser.add_argument("--counted", type=int, default=1280, help="the webhooks whose instructions are counted")
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
