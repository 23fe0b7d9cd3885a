"""What does a webhook cost compared with an earlier commit?

A is this working tree, and B the commit. They take turns, each time as a new process with a new queue, since a process
may be dearer than another one of the same code for as long as it runs. The service's processor time is measured,
deliveries included, and how many webhooks it answers.

    python benchmarks/against_commit.py [--commit COMMIT] [--clients N ...] [--rounds N] [--seconds S]
        [--directory DIR] [--quick]
"""

import argparse
from collections import defaultdict

from benchmarks import measure
from benchmarks.load import post
from benchmarks.service import service
from benchmarks.sink import sink
from benchmarks.webhooks import BATCH, CHANGE

CLIENTS = 8
"""Those that post batches, and that let a process warm up."""


def compare(given: argparse.Namespace) -> None:
    commit = measure.git("rev-parse", "--short", given.commit).decode().strip()
    loads = [(CHANGE, clients) for clients in given.clients] + [(BATCH, CLIENTS)]
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with measure.working_directory(given.directory) as directory, sink() as backend:
        before = directory / "before"
        measure.unpack(commit, before)
        for number, name in enumerate(measure.alternating(("A", "B"), given.rounds)):
            program = measure.program(measure.ROOT if name == "A" else before, "statsig_otel")
            with service(directory / str(number), backend.address, program=program) as running:
                backend.settle(post(running.port, CHANGE, clients=CLIENTS, seconds=given.seconds).good)  # it warms up
                for shape, clients in loads:
                    began = measure.processor_time(running.pid)
                    posted = post(running.port, shape, clients=clients, seconds=given.seconds)
                    backend.settle(posted.good)
                    cost = (measure.processor_time(running.pid) - began) / posted.good * 1e6
                    what = f"{'a batch' if shape == BATCH else 'a change'}, clients: {clients}"
                    found[f"{what}; processor time, us"][name].append(cost)
                    found[f"{what}; answers per second"][name].append(posted.rate)
    rows = [measure.comparison(label, values["A"], values["B"]) for label, values in found.items()]
    measure.publish(
        "against_commit",
        f"A is this working tree, B the commit {commit}. A batch has 499 exposures and a change.",
        f"{measure.machine()}.",
        measure.arguments(given, ("rounds", "seconds")),
        measure.table(measure.COMPARISON, rows),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=12, quick={"rounds": 3, "seconds": 0.3})
    parser.add_argument("--commit", default="HEAD", help="the commit to compare with (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 64], help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=0.7, help="the length of one measurement (default: %(default)s)"
    )
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
