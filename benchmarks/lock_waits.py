"""How long does each thread of the service wait for the interpreter's lock?

`perf` records when a thread asks for the lock and when it has it (uprobes on CPython's `take_gil`), while clients post
webhooks: single changes from 4, 8 and 64 clients, and batches of 499 exposures and a change from 8. The probes slow the
service down, so the report has its answers per second with them, divided by those without them. It needs root, perf,
and a Python whose symbols were not removed. Without them it says so, and measures nothing.

    python benchmarks/lock_waits.py [--rounds N] [--seconds S] [--directory DIR] [--quick]
"""

import argparse
import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks import measure
from benchmarks.load import Posted, post
from benchmarks.service import Running, service
from benchmarks.sink import Sink, sink
from benchmarks.webhooks import BATCH, CHANGE, Shape

LOADS: Final[tuple[tuple[Shape, int], ...]] = ((CHANGE, 4), (CHANGE, 8), (CHANGE, 64), (BATCH, 8))
FUNCTION: Final = "take_gil"
LONG: Final = 20e-6
"""Seconds. Who takes a free lock has it sooner."""

_GROUP: Final = "benchmark"
_EVENT: Final = re.compile(rf"\s*(\d+)\s+([\d.]+):\s+{_GROUP}:{FUNCTION}(__return)?")


@dataclass
class Waits:
    """What one thread waited for the lock: the seconds of each wait."""

    seconds: list[float] = field(default_factory=list)
    began: float | None = None

    def see(self, at: float, *, has_it: bool) -> None:
        """The thread asked for the lock, or got it, at this second."""
        if has_it and self.began is not None:
            self.seconds.append(at - self.began)
        self.began = None if has_it else at


@contextlib.contextmanager
def probes() -> Iterator[str | None]:
    """Probes on the interpreter of this process during the block, or why there can be none."""
    if shutil.which("perf") is None:
        yield "perf is not installed"
        return
    mapped = re.search(r"/\S*libpython3\S*", Path("/proc/self/maps").read_text())
    interpreter = mapped[0] if mapped else str(Path(sys.executable).resolve())
    added = [
        subprocess.run(
            ["perf", "probe", "--quiet", "--exec", interpreter, "--add", f"{_GROUP}:{FUNCTION}={FUNCTION}{kind}"],
            capture_output=True,
            text=True,
            check=False,
        )
        for kind in ("", "%return")  # perf itself adds __return to the name of the second
    ]
    try:
        failed = [one.stderr.strip() for one in added if one.returncode]
        yield failed[0] or "perf probe failed" if failed else None
    finally:
        subprocess.run(["perf", "probe", "--quiet", "--del", f"{_GROUP}:*"], capture_output=True, check=False)


def record(pid: int, seconds: float, file: Path) -> tuple[dict[int, Waits], float]:
    """The waits of each thread of a process, by its number, and the seconds that were recorded."""
    events = ["--event", f"{_GROUP}:{FUNCTION},{_GROUP}:{FUNCTION}__return"]
    command = ["perf", "record", "--quiet", "--mmap-pages", "4096", "--output", str(file), *events, "--pid", str(pid)]
    subprocess.run([*command, "sleep", str(seconds)], capture_output=True, check=True)
    printed = subprocess.run(
        ["perf", "script", "--input", str(file), "--fields", "tid,time,event"],
        capture_output=True,
        text=True,
        check=True,
    )
    waits: dict[int, Waits] = defaultdict(Waits)
    times: list[float] = []
    for line in printed.stdout.splitlines():
        if found := _EVENT.match(line):
            times.append(float(found[2]))
            waits[int(found[1])].see(times[-1], has_it=found[3] is not None)
    return waits, times[-1] - times[0]


def rows(shape: Shape, clients: int, running: Running, backend: Sink, given: argparse.Namespace) -> list[list[str]]:
    """The waits of the server's thread, of the writer's, and of all others. They are known by how busy they are."""
    found: dict[str, list[float]] = {"the server's": [], "the writer's": [], "all others": []}
    webhooks, slowed = 0.0, []
    for _ in range(given.rounds):
        plain = post(running.port, shape, clients=clients, seconds=given.seconds)
        backend.settle(plain.good)
        posts: list[Posted] = []
        load = threading.Thread(target=_post, args=(running, shape, clients, given.seconds * 2, posts))
        load.start()
        time.sleep(given.seconds * 0.8)  # the load generator has started, and its measured time has begun
        before = measure.thread_times(running.pid)
        waits, recorded = record(running.pid, given.seconds, given.directory / "perf.data")
        after = measure.thread_times(running.pid)
        load.join()
        backend.settle(posts[0].good)
        busiest = sorted(after, key=lambda thread: before.get(thread, 0.0) - after[thread])
        for name, threads in zip(found, (busiest[:1], busiest[1:2], busiest[2:]), strict=True):
            found[name] += [
                seconds for thread in threads if int(thread) in waits for seconds in waits[int(thread)].seconds
            ]
        webhooks += posts[0].rate * recorded
        slowed.append(posts[0].rate / plain.rate)
    what = f"{'a batch' if shape == BATCH else 'a change'}, {clients} clients"
    return [[what, f"{statistics.median(slowed):.2f}", name, *summary(each, webhooks)] for name, each in found.items()]


def _post(running: Running, shape: Shape, clients: int, seconds: float, posts: list[Posted]) -> None:
    posts.append(post(running.port, shape, clients=clients, seconds=seconds))


def summary(seconds: Sequence[float], webhooks: float) -> list[str]:
    long = sum(one > LONG for one in seconds)
    times = (len(seconds) / webhooks, long / webhooks)
    waited = (sum(seconds) / webhooks * 1e6, max(seconds, default=0.0) * 1e3)
    return [*(f"{one:.2f}" for one in times), *(f"{one:.1f}" for one in waited)]


HEAD: Final = (
    "load", "answers, with probes to without", "the thread", "takes it for each webhook", "of these after over 20 us",
    "waits for each webhook, us", "the longest wait, ms",
)  # fmt: skip


def main() -> None:
    parser = measure.parser(__doc__, rounds=2, quick={"rounds": 1, "seconds": 0.5})
    parser.add_argument("--seconds", type=float, default=1.5, help="the recorded time of each load")
    measure.add_directory(parser)
    given = parser.parse_args()
    table: list[list[str]] = []
    with probes() as problem, measure.working_directory(given.directory) as directory, sink() as backend:
        given.directory = directory
        for shape, clients in () if problem else LOADS:
            with service(directory / f"{clients} {shape.exposures}", backend.address) as running:
                backend.settle(post(running.port, shape, clients=clients, seconds=given.seconds).good)  # it warms up
                table += rows(shape, clients, running, backend, given)
    measure.publish(
        "lock_waits",
        "How often each thread takes the interpreter's lock, and how long it waits for it."
        if problem is None
        else f"LEFT OUT: {problem}",
        f"{measure.machine()}.",
        measure.arguments(given, ("rounds", "seconds")),
        *([] if problem else [measure.table(HEAD, table)]),
    )


if __name__ == "__main__":
    main()
