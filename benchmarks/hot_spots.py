"""Where does the time of a webhook go, function by function?

Three kinds of work: durable answers to one change of 1 KB each; batches of 499 exposures and a change; batches of 500
exposures. Each is looked at twice.

- A count of what the core does for one webhook, from headers and body to the answer or to the batch for a consumer:
  calls, calls of C functions, executed bytecode instructions, and memory blocks. No clock and no other load can blur
  it. Two processes have to come to the same figures, but for the blocks, of which the fewer count: the interpreter's
  lists of free objects are now and then one longer. Another version of Python has other figures.
- A profile of `statsig-otel run` under load, by py-spy: which thread holds the interpreter's lock, and which runs,
  with the lock or without it, as SQLite, hashing and gRPC do; and in which module and function. Own time goes to the
  innermost function of ours, and to the library that it was in at that moment. Threads that run no Python, such as
  gRPC's own, are not seen.

    python benchmarks/hot_spots.py [--rounds N] [--seconds S] [--directory DIR] [--quick]
"""

import argparse
import contextlib
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from benchmarks import backlog, measure, webhooks
from benchmarks.against_collector import BATCH_CLIENTS
from benchmarks.load import post
from benchmarks.service import Running, service
from benchmarks.sink import Sink, sink
from benchmarks.webhooks import BATCH, CHANGE, EXPOSURES, Shape
from statsig_otel.exporters.consumer import Batch, Receipt
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.webhook.signature import Verifier, sign

KINDS = {
    CHANGE: ("one change of 1 KB", 64),
    BATCH: (f"{BATCH.exposures} exposures and one change", BATCH_CLIENTS),
    EXPOSURES: (f"{EXPOSURES.exposures} exposures, no change", BATCH_CLIENTS),
}
"""What each is called, and how many clients send it."""

ROWS = 15
"""Of a table; what else there is, is one row more."""

TIMEOUT = 60.0
"""Seconds for one count; reached only where it hangs."""

OURS = "statsig_otel/"

_NOW_NS = backlog.OBSERVED_NS + 123_456_789
"""Always the same: how many blocks a number takes depends on its size."""


# The counts.


@dataclass
class Cost:
    """What one function did itself, without what it called.

    Attributes:
        calls: How often it was called, or a generator or coroutine was resumed.
        c_calls: How often it called a function that is written in C.
        instructions: How many bytecode instructions of it were executed.
        blocks: By how many blocks each instruction left more memory allocated than it found, in sum. What is freed, or
            taken from a list of free objects, by the same instruction is not in it. Exact to a block or two, as those
            lists are.
    """

    calls: int = 0
    c_calls: int = 0
    instructions: int = 0
    blocks: int = 0


def count(function: Callable[[], object]) -> dict[str, Cost]:
    """What each Python function that is called by a function does in one call, by its name and file.

    It has been called before, so that what happens once is over. Garbage is collected before that: msgspec forgets the
    keys of objects that it knows when it is.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            function()
        costs = _instructions(function)
        _count_c_calls(function, costs)  # apart: under a profiler each of them allocates a little
    finally:
        if was_enabled:
            gc.enable()
    named: dict[str, Cost] = defaultdict(Cost)
    for code, cost in costs.items():
        total = named[f"{code.co_qualname} ({_shortened(code.co_filename).removeprefix(OURS)})"]
        for name, value in vars(cost).items():
            setattr(total, name, getattr(total, name) + value)
    return dict(named)


def _instructions(function: Callable[[], object]) -> dict[CodeType, Cost]:
    costs: dict[CodeType, Cost] = defaultdict(Cost)
    allocated, outside = sys.getallocatedblocks, function.__code__ if hasattr(function, "__code__") else None
    before = 0
    running: Cost | None = None  # whose instruction was begun

    def entered(frame: FrameType, _: str, __: Any) -> Callable[[FrameType, str, Any], Any] | None:
        nonlocal before, running
        if frame.f_code is outside:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        costs[frame.f_code].calls += 1
        running = None  # the frame's own blocks are there because it is traced
        before = allocated()
        return within

    def within(frame: FrameType, event: str, _: Any) -> Callable[[FrameType, str, Any], Any]:
        nonlocal before, running
        now = allocated()
        if running is not None and event != "exception":
            running.blocks += max(0, now - before)
        running = None
        if event == "opcode":
            running = costs[frame.f_code]
            running.instructions += 1
        del now  # a block by itself, which must be gone when they are counted
        before = allocated()
        return within

    old = sys.gettrace()
    sys.settrace(entered)
    try:
        function()
    finally:
        sys.settrace(old)
    return costs


def _count_c_calls(function: Callable[[], object], costs: dict[CodeType, Cost]) -> None:
    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "c_call" and frame.f_code in costs:
            costs[frame.f_code].c_calls += 1

    old = sys.getprofile()
    sys.setprofile(called)
    try:
        function()
    finally:
        sys.setprofile(old)


def _shortened(file: str) -> str:
    """A file as py-spy names it: from the package on."""
    found = [place for place in sys.path if place and file.startswith(place + os.sep)]
    return file[len(max(found, key=len)) + 1 :] if found else file


def webhook(shape: Shape) -> Callable[[], object]:
    """The core's work for one webhook."""
    intake, body = Intake(verifier=Verifier([backlog.SECRET])), next(webhooks.bodies(shape))
    signed = sign(body, secret=backlog.SECRET, timestamp_ms=_NOW_NS // 1_000_000)
    fields = {"content-type": "application/json", "content-length": str(len(body)), **signed}
    headers = [(name.lower().encode(), value.encode()) for name, value in fields.items()]

    def handle() -> None:
        request = intake.begin(headers, _NOW_NS)
        request.feed(body)
        outcome = request.finish(complete=True)
        if isinstance(outcome, Batch):
            request.taken(Receipt(len(outcome.changes)))
        request.close()

    return handle


def counted(shape: Shape) -> dict[str, Cost]:
    """The costs of one webhook, which two processes have counted."""
    command = ("-m", "benchmarks.hot_spots", "--count", str(shape))
    printed = (json.loads(measure.output(*command, timeout=TIMEOUT)) for _ in range(2))
    return agreed(*({name: Cost(**cost) for name, cost in costs.items()} for costs in printed))


def agreed(one: Mapping[str, Cost], other: Mapping[str, Cost]) -> dict[str, Cost]:
    """Two counts of the same work as one.

    Raises:
        RuntimeError: They differ in more than the blocks.
    """
    none = Cost()
    both = {name: (one.get(name, none), other.get(name, none)) for name in one.keys() | other.keys()}
    differing = sorted(name for name, (a, b) in both.items() if replace(a, blocks=0) != replace(b, blocks=0))
    if differing:
        raise RuntimeError(f"two counts of the same work differ in {', '.join(differing)}")
    return {name: replace(a, blocks=min(a.blocks, b.blocks)) for name, (a, b) in both.items()}


def count_table(costs: Mapping[str, Cost]) -> str:
    """The functions with the largest shares of instructions and blocks, all others, and the sum."""
    *_, instructions, blocks = totals = _added(costs.values())

    def weight(item: tuple[str, Cost]) -> tuple[float, str]:
        name, cost = item
        return -cost.instructions / max(1, instructions) - cost.blocks / max(1, blocks), name

    ordered = sorted(costs.items(), key=weight)
    lines = [(name, list(astuple(cost))) for name, cost in ordered[:ROWS]]
    if rest := ordered[ROWS:]:
        lines.append((f"{len(rest)} others", _added(cost for _, cost in rest)))
    lines.append(("all", totals))
    rows = [[name, *map(str, cost)] for name, cost in lines]
    return measure.table(["function", "calls", "C calls", "instructions", "blocks"], rows)


def _added(costs: Iterable[Cost]) -> list[int]:
    return [sum(column) for column in zip(*map(astuple, costs), strict=True)]


# The profile.

HOLDS, RUNS = "holds the lock", "runs"
VIEWS = {HOLDS: ("--gil",), RUNS: ("--nonblocking",)}
"""What py-spy looks for. The process is stopped for each look at the lock: a stack that is read while it changes is
often not whole. Not so for threads that run: one that was stopped seems to, also where it waited."""

RATE = 200
"""Looks a second."""

PROGRAMS = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
"""Where py-spy is: in this environment first."""

_BEGUN = 0.1
"""Seconds of processor time after which a service is surely under load."""

Place = tuple[str, str, str, str]
"""Where a thread was: its name, the module and the function of ours, and the library. "-" stands for none of them."""


@dataclass
class Profile:
    """Samples of one view.

    Attributes:
        places: How many there are of each place.
        failed: How many looks found a stack that could not be read.
    """

    places: Counter[Place] = field(default_factory=Counter)
    failed: int = 0


def place(stack: str) -> Place:
    """The place of a stack, outermost frame first: the innermost function of ours, and where below it the thread was.

    The library is "-" where that is our function itself; module and function are, where none of ours is in the stack.
    """
    thread, *frames = stack.split(";")
    named = re.fullmatch(r"thread \(\w+\)(?:: (.*))?", thread)
    name = (named[1] if named else "") or "-"
    found = [(function, file.removesuffix(")")) for function, _, file in (frame.rpartition(" (") for frame in frames)]
    function, module = next((each for each in reversed(found) if each[1].startswith(OURS)), ("-", "-"))
    inner = found[-1][1] if found else "-"
    library = "-" if inner.startswith(OURS) else inner.partition("/")[0].removesuffix(".py")
    return name, module.removeprefix(OURS), function, library


def fold(text: str) -> Counter[Place]:
    """Samples as `py-spy record --format raw` writes them: a line for each stack, and how often it was seen."""
    found: Counter[Place] = Counter()
    for line in text.splitlines():
        stack, _, times = line.rpartition(" ")
        found[place(stack)] += int(times)
    return found


def spy(*arguments: str, seconds: float = 0.0) -> subprocess.CompletedProcess[str]:
    """Run py-spy, which needs so many seconds and some.

    Raises:
        FileNotFoundError: There is none.
    """
    program = shutil.which("py-spy", path=PROGRAMS)
    if program is None:
        raise FileNotFoundError("py-spy is not installed")
    timeout = seconds + measure.START_TIMEOUT
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=timeout)


def hindrance(pid: int) -> str:
    """Why there can be no profile of a process; empty where there can."""
    try:
        looked = spy("dump", "--nonblocking", "--pid", str(pid))
    except FileNotFoundError as error:
        return f"LEFT OUT: the profile. {error}."
    if looked.returncode == 0:
        return ""
    said = " ".join(looked.stderr.split())
    return (
        "LEFT OUT: the profile. py-spy can't look into the service, which may need root, or on Linux CAP_SYS_PTRACE or "
        f"kernel.yama.ptrace_scope=0. It says: {said}"
    )


class Profiled:
    """The service, its sink, and what is seen of them under load."""

    def __init__(self, running: Running, backend: Sink, directory: Path, given: argparse.Namespace) -> None:
        self._running = running
        self._backend = backend
        self._directory = directory
        self._rounds: int = given.rounds
        self._seconds: int = given.seconds
        self.busiest = 0.0

    def profile(self, shape: Shape, clients: int) -> dict[str, Profile]:
        """Both views, by turns."""
        profiles = {view: Profile() for view in VIEWS}
        for view in measure.alternating(tuple(VIEWS), self._rounds):
            pid, port = self._running.pid, self._running.port
            before = measure.processor_time(pid)
            with ThreadPoolExecutor(1) as sender:
                # A second more: py-spy has to begin.
                posting = sender.submit(post, port, shape, clients=clients, seconds=self._seconds + 1.0)
                while measure.processor_time(pid) < before + _BEGUN and not posting.done():
                    time.sleep(0.02)
                self._record(view, profiles[view])
                posted = posting.result()
            self.busiest = max(self.busiest, posted.busy)
            self._backend.settle(posted.good * shape.changes)
        return profiles

    def _record(self, view: str, profile: Profile) -> None:
        file = self._directory / "stacks"
        recorded = spy(
            "record", *VIEWS[view], "--threads", "--nolineno", "--format", "raw", "--output", str(file),
            "--rate", str(RATE), "--duration", str(self._seconds), "--pid", str(self._running.pid),
            seconds=self._seconds,
        )  # fmt: skip
        if recorded.returncode:
            raise RuntimeError(f"py-spy failed: {recorded.stderr}")
        profile.places += fold(file.read_text())
        failed = re.search(r"Errors: (\d+)", recorded.stdout + recorded.stderr)
        profile.failed += int(failed[1]) if failed else 0
        file.unlink()


def profile_tables(profiles: Mapping[str, Profile]) -> list[str]:
    """By thread, by module, and by function."""
    looks = "; ".join(
        f"{view}: {profile.places.total()}, and {profile.failed} that could not be read"
        for view, profile in profiles.items()
    )
    names = ("thread", "module", "function", "in")
    tables = [measure.table([*names[:parts], *profiles], _shares(profiles.values(), parts)) for parts in (1, 2, 4)]
    return [f"Samples of the service: {looks}.", *tables]


def _shares(profiles: Iterable[Profile], parts: int) -> list[list[str]]:
    """The shares of each view by the first parts of the places; those first that have most in all views."""
    views: list[dict[tuple[str, ...], float]] = []
    for profile in profiles:
        shares: dict[tuple[str, ...], float] = defaultdict(float)
        for found, samples in profile.places.items():
            shares[found[:parts]] += samples / profile.places.total()
        views.append(shares)
    ordered = sorted({each for view in views for each in view}, key=lambda each: (-sum(v[each] for v in views), each))
    rows = [[*each, *(f"{view[each]:.1%}" for view in views)] for each in ordered[:ROWS]]
    if rest := ordered[ROWS:]:
        others = [f"{len(rest)} others", *[""] * (parts - 1)]
        rows.append([*others, *(f"{sum(view[each] for each in rest):.1%}" for view in views)])
    return rows


# The report.


def report(given: argparse.Namespace) -> None:
    counts = {shape: count_table(counted(shape)) for shape in KINDS}
    profiles: dict[Shape, list[str]] = {}
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(measure.working_directory(given.directory))
        backend = stack.enter_context(sink())
        running = stack.enter_context(service(directory / "queue", backend.address))
        said = hindrance(running.pid)
        if not said:
            profiled = Profiled(running, backend, directory, given)
            for shape, (_, clients) in KINDS.items():
                profiles[shape] = profile_tables(profiled.profile(shape, clients))
            said = f"On {measure.file_system(directory)}. The load used {profiled.busiest:.0%} of a CPU at most."
    parts: list[str] = []
    for shape, (label, clients) in KINDS.items():
        parts += [f"## {label}: the core, one webhook", counts[shape]]
        if shape in profiles:
            parts += [f"## {label}: the service, {clients} clients", *profiles[shape]]
    measure.publish(
        "hot_spots",
        "What each function does itself. The core: counts, on which two processes agreed; blocks to one or two. The "
        "service: shares of the samples in which a thread holds the interpreter's lock, and of those in which it runs, "
        "with it or without. The latter are taken without a halt, so that single stacks are wrong.",
        f"{measure.machine()}. {said}",
        measure.arguments(given, ("rounds", "seconds")),
        *parts,
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=3, quick={"rounds": 1, "seconds": 2})
    parser.add_argument("--seconds", type=int, default=5, help="of each profile (default: %(default)s)")
    measure.add_directory(parser)
    parser.add_argument("--count", type=Shape.read, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.count is not None:
        print(json.dumps({name: vars(cost) for name, cost in count(webhook(given.count)).items()}))
    else:
        report(given)


if __name__ == "__main__":
    main()
