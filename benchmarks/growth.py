"""How does the cost of a request grow with the work? Measures `statsig-otel run` with real requests.

There is one table for each of these:

- body: a batch of exposures and one change, from 1 KB to the largest accepted body
- changes: a batch of 1 to 1,000 changes, stored and delivered
- secrets: 1 to 8 signing secrets, the last of which matches, for a batch of 500 exposures
- exporters: 1 to 8 exporters, until each has delivered
- waiting: records waiting in the queue for an unreachable backend
- window: delivered changes that are remembered as duplicates
- clients: keep-alive connections that post without pause
- beside: changes of 1 KB, alone and during consecutive 20 MiB batches of exposures

The cost is the processor time of the service's whole process per request, including deliveries. "grows" is its growth
since the previous row, divided by the growth of the work: 1 is proportional, and below 1 is better. If the work is the
same in all rows, "grows" is the cost relative to the first row. A value above 1, beyond the noise, is a fault.
In `beside`, the p99 may grow by at most the time of one such batch.

    python benchmarks/growth.py [--tables NAME ...] [--rounds N] [--seconds S] [--directory DIR] [--quick]
"""

import argparse
import shutil
import statistics
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import backlog, measure, webhooks
from benchmarks.load import Posted, post
from benchmarks.service import Running, service
from benchmarks.sink import Sink, sink
from benchmarks.webhooks import CHANGE, EXPOSURES, Shape

LARGEST = 20 << 20
SIZES = (1 << 10, 10 << 10, 100 << 10, 1 << 20, 5 << 20, LARGEST)
_POSTED = 48 << 20
"""The bytes of one measurement of `body`, unless that is too many or too few requests."""

_CHANGES_POSTED = 2000
_FEW = 12
"""The fewest requests of one measurement."""

_OTHERS = tuple(f"webhook-another-{number}" for number in range(7))


@dataclass(frozen=True)
class Cost:
    """One measurement.

    Attributes:
        processor: The service's processor time per request, in microseconds.
        posted: The results of the load generator.
        resident: The resident memory afterwards, in bytes.
    """

    processor: float
    posted: Posted
    resident: int


def cost(running: Running, load: Callable[[], Posted], backend: Sink | None, changes: int, copies: int = 1) -> Cost:
    """The cost of one load, including deliveries if there is a backend."""
    began = measure.processor_time(running.pid)
    posted = load()
    if backend is not None and changes:
        backend.settle(posted.good * changes, copies=copies)
    used = measure.processor_time(running.pid) - began
    return Cost(used / posted.good * 1e6, posted, measure.memory(running.pid).now)


@dataclass(frozen=True)
class Step:
    """One row of a table.

    Attributes:
        label: The first cell.
        work: The amount of work, with which the cost may grow; 1 in all rows if the cost must not grow.
        measure: Makes one measurement.
    """

    label: str
    work: float
    measure: Callable[[], Cost]


def rows(steps: Sequence[Step], rounds: int) -> list[list[str]]:
    """Measure all steps in turns, and return a row for each."""
    found: dict[str, list[Cost]] = defaultdict(list)
    by_label = {step.label: step for step in steps}
    for label in measure.alternating(tuple(by_label), rounds):
        found[label].append(by_label[label].measure())
    written, previous = [], None
    for step in steps:
        costs = found[step.label]
        median = statistics.median(each.processor for each in costs)
        grows = ""
        if previous is not None:
            grows = f"{median / previous[1] / (step.work / previous[0]):.2f}"
        if previous is None or step.work != 1:
            previous = (step.work, median)
        posted = [each.posted for each in costs]
        written.append(
            [
                step.label,
                " / ".join(measure.spread([each.processor for each in costs])),
                grows,
                *(f"{statistics.median(values):.1f}" for values in (
                    [each.rate for each in posted],
                    [each.p50 * 1000 for each in posted],
                    [each.p99 * 1000 for each in posted],
                    [each.resident / (1 << 20) for each in costs],
                )),
            ]
        )  # fmt: skip
    return written


HEAD = ("us per request, min / median / max", "grows", "answers/s", "p50, ms", "p99, ms", "resident, MiB")


class Tables:
    """Creates each table: the first cell of its head, and its steps."""

    def __init__(self, given: argparse.Namespace, directory: Path, backend: Sink) -> None:
        self._given = given
        self._directory = directory
        self._backend = backend

    def body(self) -> tuple[str, list[Step]]:
        steps = []
        for size in (each for each in SIZES if each <= self._given.largest_body):
            shape = webhooks.filling(size)
            length = len(next(webhooks.bodies(shape)))
            number = max(_FEW, min(_CHANGES_POSTED, round(_POSTED * self._given.seconds / 2) // length))
            steps.append(Step(f"{length / 1000:,.1f} KB", length, self._numbered("body", shape, number)))
        return "body", steps

    def changes(self) -> tuple[str, list[Step]]:
        return "changes in a batch", [
            Step(f"{each:,}", each, self._numbered("changes", Shape(changes=each), max(_FEW, self._number() // each)))
            for each in (1, 10, 100, 1000)
        ]

    def secrets(self) -> tuple[str, list[Step]]:
        def step(count: int) -> Callable[[], Cost]:
            secrets = [*_OTHERS[: count - 1], backlog.SECRET]
            return self._numbered("secrets", EXPOSURES, self._number(), receiver={"signing_secrets": secrets})

        return "signing secrets", [Step(str(each), each, step(each)) for each in (1, 2, 4, 8)]

    def exporters(self) -> tuple[str, list[Step]]:
        def step(count: int) -> Callable[[], Cost]:
            return self._numbered(f"exporters-{count}", CHANGE, self._number(), clients=16, exporters=count)

        return "exporters", [Step(str(each), each, step(each)) for each in (1, 2, 4, 8)]

    def waiting(self) -> tuple[str, list[Step]]:
        return "waiting records", list(self._on_filled("waiting", delivered=False))

    def window(self) -> tuple[str, list[Step]]:
        return "remembered changes", list(self._on_filled("window", delivered=True))

    def clients(self) -> tuple[str, list[Step]]:
        def step(clients: int) -> Callable[[], Cost]:
            def once() -> Cost:
                with self._service("clients", receiver={"max_connections": 2000}) as running:
                    load = self._load(running, CHANGE, clients=clients)
                    return cost(running, load, self._backend, 1)

            return once

        return "clients", [Step(f"{each:,}", 1, step(each)) for each in (1, 10, 100, 1000)]

    def beside(self) -> list[list[str]]:
        """The rows of the table without a cost: the latency of answers, alone and during large batches."""
        huge = Shape(exposures=webhooks.filling(LARGEST).exposures, changes=0)
        alone, beside, own = [], [], []
        with self._service("beside") as running:
            seconds = self._given.seconds
            small = self._load(running, CHANGE, clients=4, seconds=seconds)
            for name in measure.alternating(("alone", "beside"), self._given.rounds):
                if name == "alone":
                    own.append(post(running.port, huge, clients=1, number=3).p50 * 1000)
                    alone.append(small().p99 * 1000)
                    continue
                stop = threading.Event()
                loading = threading.Thread(target=self._again_and_again, args=(running, huge, stop))
                loading.start()
                try:
                    beside.append(small().p99 * 1000)
                finally:
                    stop.set()
                    loading.join()
        moved = [one - other for one, other in zip(beside, alone, strict=True)]
        size = len(next(webhooks.bodies(huge))) / (1 << 20)
        return [
            ["p99 of small changes, alone", *measure.spread(alone, ".1f")],
            [f"p99 during batches of {size:.1f} MiB", *measure.spread(beside, ".1f")],
            ["difference", *measure.spread(moved, ".1f")],
            ["one such batch, alone", *measure.spread(own, ".1f")],
        ]

    def _again_and_again(self, running: Running, shape: Shape, stop: threading.Event) -> None:
        while not stop.is_set():
            post(running.port, shape, clients=1, seconds=self._given.seconds * 1.5)

    def _number(self) -> int:
        seconds: float = self._given.seconds
        return max(20, round(_CHANGES_POSTED * seconds / 2))

    def _load(
        self, running: Running, shape: Shape, *, clients: int, seconds: float | None = None
    ) -> Callable[[], Posted]:
        return lambda: post(running.port, shape, clients=clients, seconds=seconds or self._given.seconds)

    @contextmanager
    def _service(
        self, name: str, *, exporters: int = 1, receiver: Mapping[str, object] | None = None
    ) -> Iterator[Running]:
        """A service with an empty queue."""
        directory = self._directory / name
        shutil.rmtree(directory, ignore_errors=True)
        with service(directory, *[self._backend.address] * exporters, receiver=receiver) as running:
            yield running
        self._backend.take()

    def _numbered(
        self,
        name: str,
        shape: Shape,
        number: int,
        *,
        clients: int = 1,
        exporters: int = 1,
        receiver: Mapping[str, object] | None = None,
    ) -> Callable[[], Cost]:
        """Measures a number of requests of one kind, with a new service that has answered a few before."""

        def once() -> Cost:
            with self._service(name, exporters=exporters, receiver=receiver) as running:
                post(running.port, shape, clients=1, number=2)
                self._backend.settle(2 * shape.changes, copies=exporters)
                load = partial(post, running.port, shape, clients=clients, number=number)
                return cost(running, load, self._backend, shape.changes, exporters)

        return once

    def _on_filled(self, name: str, *, delivered: bool) -> Iterator[Step]:
        """Steps of a service that can't deliver, and whose queue has received a number of changes before."""
        nobody = f"{measure.HOST}:{measure.free_port()}"
        for count in (each for each in (0, 10_000, 100_000, 1_000_000) if each <= self._given.largest_queue):
            directory = self._directory / f"{name}-{count}"
            backlog.fill(directory, count, delivered=delivered)
            yield Step(f"{count:,}", 1, self._by_filled(directory, nobody))

    def _by_filled(self, directory: Path, nobody: str) -> Callable[[], Cost]:
        def once() -> Cost:
            with service(directory, nobody) as running:
                return cost(running, self._load(running, CHANGE, clients=64), None, 1)

        return once


TABLES = ("body", "changes", "secrets", "exporters", "waiting", "window", "clients", "beside")


def compare(given: argparse.Namespace) -> None:
    parts = []
    with measure.working_directory(given.directory) as directory, sink() as backend:
        tables = Tables(given, directory, backend)
        for name in given.tables:
            if name == "beside":
                rounds = tables.beside()
                parts += [f"## {name}", measure.table(["ms", "min", "median", "max"], rounds)]
                continue
            head, steps = getattr(tables, name)()
            parts += [f"## {name}", measure.table([head, *HEAD], rows(steps, given.rounds))]
        file_system = measure.file_system(directory)
    measure.publish(
        "growth",
        "The service's processor time per request in microseconds, including deliveries; and its growth divided by the "
        "growth of the work, since the previous row, or since the first row if the work is the same.",
        f"{measure.machine()}. On {file_system}.",
        measure.arguments(given, ("rounds", "seconds")),
        *parts,
    )


def main() -> None:
    quick = {"rounds": 1, "seconds": 0.5, "largest_queue": 10_000}
    parser = measure.parser(__doc__, rounds=3, quick=quick)
    parser.add_argument("--seconds", type=float, default=3.0, help="about the length of one measurement")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="which (default: all)")
    parser.add_argument("--largest-body", type=int, default=LARGEST, help="bytes (default: %(default)s)")
    parser.add_argument("--largest-queue", type=int, default=1_000_000, help="records (default: %(default)s)")
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
