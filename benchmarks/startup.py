"""How long does it take to import the pure part, to show the help, and to start the service?

Whole processes are measured in turns, from their creation to their end. The service is measured from its creation to
its first answer on the webhook's port, with an empty queue. The pure part is what an embedder imports to verify, parse
and map.
Target: at most 0.3 s more than `python -c pass` for the pure part and the help; the others have no target.

    python benchmarks/startup.py [--rounds N] [--directory DIR] [--quick]
"""

import argparse
import statistics
import subprocess
import time
from collections import defaultdict
from pathlib import Path

from benchmarks import measure
from benchmarks.service import service

BASE, RUN = "python -c pass", "statsig-otel run, until it answers"
PURE = "from statsig_otel.plugin import Intake, LogRecordEncoder, Mapper, Verifier, parse, verify"
COMMANDS = {
    BASE: ("-c", "pass"),
    "import falcon": ("-c", "import falcon"),
    "import falcon.asgi": ("-c", "import falcon.asgi"),
    "verify, parse and ChangeEvent": ("-c", "from statsig_otel.plugin import ChangeEvent, parse, verify"),
    "the pure part": ("-c", PURE),
    "statsig-otel --help": ("-m", "statsig_otel", "--help"),
}


def seconds(name: str, directory: Path) -> float:
    """The seconds that one command takes."""
    began = time.perf_counter()
    if name == RUN:
        with service(directory / "queue", f"{measure.HOST}:{measure.free_port()}"):
            return time.perf_counter() - began
    process = measure.spawn(*COMMANDS[name], stdout=subprocess.DEVNULL)
    if process.wait():  # with a timeout, `wait` would poll only every 50 ms
        raise RuntimeError(f"{name} ended with {process.returncode}")
    return time.perf_counter() - began


def compare(given: argparse.Namespace) -> None:
    times: dict[str, list[float]] = defaultdict(list)
    with measure.working_directory(given.directory) as directory:
        for name in (*COMMANDS, RUN):  # the first start writes bytecode and warms up the system's cache
            seconds(name, directory)
        for name in measure.alternating((*COMMANDS, RUN), given.rounds):
            times[name].append(seconds(name, directory))
    base = times[BASE]
    rows = []
    for name, found in times.items():
        over = [one - other for one, other in zip(found, base, strict=True)]
        rows.append([name, " / ".join(measure.spread(found, ".3f")), f"{statistics.median(over):.3f}"])
    measure.publish(
        "startup",
        "Seconds of whole processes, with compiled modules in the system's cache.",
        f"{measure.machine(('falcon', 'grpcio'))}.",
        measure.arguments(given, ("rounds",)),
        measure.table(["min / median / max", "seconds", f"more than {BASE}"], rows),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=15, quick={"rounds": 3})
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
