"""What does a webhook cost compared with an earlier commit?

A is this working tree, or one of several commits, and B a commit. In each round all run as new processes with new
queues, since a process may be dearer than another one of the same code for as long as it runs. They are posted to in
short turns, since the speed of a shared machine changes from one second to the next. The processor time of each is
measured, deliveries included, and how many webhooks it answers.

    python benchmarks/against_commit.py [--commit COMMIT] [--others COMMIT ...] [--clients N ...] [--batch]
        [--rounds N] [--turns N] [--seconds S] [--directory DIR] [--quick]
"""

import argparse
import contextlib
import statistics
from collections import defaultdict

from benchmarks import measure
from benchmarks.load import Posted, post
from benchmarks.service import service
from benchmarks.sink import sink
from benchmarks.webhooks import BATCH, CHANGE

_WARM_UP = 8
"""The clients of the first turn of each process, which is not measured."""


def compare(given: argparse.Namespace) -> None:
    shape = BATCH if given.batch else CHANGE
    costs: dict[tuple[str, int], list[float]] = defaultdict(list)
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    with measure.working_directory(given.directory) as directory, sink() as backend:
        trees = measure.trees(directory, given)
        *names, before = trees
        for number in range(given.rounds):
            with contextlib.ExitStack() as stack:
                running = {}
                for name, tree in trees.items():
                    queue = directory / name / str(number)
                    queue.mkdir(parents=True)
                    program = measure.program(tree, "statsig_otel")
                    running[name] = stack.enter_context(service(queue, backend.address, program=program))
                    backend.settle(post(running[name].port, shape, clients=_WARM_UP, seconds=given.seconds).good)
                for clients in given.clients:
                    began = {name: measure.processor_time(one.pid) for name, one in running.items()}
                    posted: dict[str, list[Posted]] = defaultdict(list)
                    for name in measure.alternating([*trees], given.turns):
                        posted[name].append(post(running[name].port, shape, clients=clients, seconds=given.seconds))
                        backend.settle(posted[name][-1].good)
                    for name in trees:
                        used = measure.processor_time(running[name].pid) - began[name]
                        costs[name, clients].append(used / sum(one.good for one in posted[name]) * 1e6)
                        rates[name, clients].append(statistics.mean(one.rate for one in posted[name]))
    rows = [
        measure.comparison(f"{name}; clients: {clients}; {what}", of[name, clients], of[before, clients])
        for clients in given.clients
        for name in names
        for what, of in (("processor time, us", costs), ("answers per second", rates))
    ]
    measure.publish(
        "against_commit",
        f"A is what the row names, and B the commit {measure.short(before)}. "
        f"A webhook has {'499 exposures and a change' if given.batch else 'one change'}.",
        f"{measure.machine()}.",
        measure.arguments(given, ("rounds", "turns", "seconds")),
        measure.table(measure.COMPARISON, rows),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=8, quick={"rounds": 2, "turns": 3})
    parser.add_argument("--commit", default="HEAD", help="the commit to compare with (default: %(default)s)")
    measure.add_others(parser)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 64], help="default: %(default)s")
    parser.add_argument("--batch", action="store_true", help="webhooks with 499 exposures and a change")
    parser.add_argument("--turns", type=int, default=6, help="turns of each in a round (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="the length of one turn (default: %(default)s)")
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
