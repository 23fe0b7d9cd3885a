"""Which functions take the time of a webhook?

There are three kinds of work: durable answers to one change of 1 KB each; batches of 499 exposures and a change; and
batches of 500 exposures. Each is measured in two ways.

- Counts of the core's work for one webhook, from headers and body to the answer or to the batch for a consumer: calls,
  calls of C functions, executed bytecode instructions, and memory blocks. Neither the clock nor other load affects
  them. Two processes must arrive at the same counts. Only blocks may differ, and the smaller number counts, because the
  interpreter's free lists vary by one. Other versions of Python have other counts.
- A profile of `statsig-otel run` under load, by py-spy: which thread holds the interpreter's lock, and which thread
  runs, with the lock or without it, as SQLite, hashing and gRPC do; and in which module and function. A sample counts
  for the innermost function of this project, and for the library below it. Threads that run no Python, such as gRPC's
  own, are not visible.

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
from benchmarks.against import BATCH_CLIENTS
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
"""The name of each kind, and the number of clients that send it."""

ROWS = 15
"""The most rows of a table; one more row contains the sum of the others."""

TIMEOUT = 60.0
"""Seconds for one count. Only a count that hangs reaches this."""

OURS = "statsig_otel/"

_NOW_NS = backlog.OBSERVED_NS + 123_456_789
"""A constant, because the number of blocks of an integer depends on its size."""


# The counts.


@dataclass
class Cost:
    """The work of one function, without the functions that it called.

    Attributes:
        calls: How often it was called, or resumed as a generator or coroutine.
        c_calls: How often it called a function written in C.
        instructions: The number of its executed bytecode instructions.
        blocks: The sum of the memory blocks that each instruction added, without blocks that the same instruction freed
            or took from a free list. Free lists make this inexact by a block or two.
    """

    calls: int = 0
    c_calls: int = 0
    instructions: int = 0
    blocks: int = 0


def count(function: Callable[[], object]) -> dict[str, Cost]:
    """The work of each Python function during one call of `function`, by name and file.

    `function` is called a few times before, so that work which happens only once is not counted. Garbage is collected
    before that, because a collection makes msgspec forget the object keys that it has cached.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            function()
        costs = _instructions(function)
        _count_c_calls(function, costs)  # separately, because C calls allocate memory under a profiler
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
    running: Cost | None = None  # the function whose instruction is running

    def entered(frame: FrameType, _: str, __: Any) -> Callable[[FrameType, str, Any], Any] | None:
        nonlocal before, running
        if frame.f_code is outside:
            return None
        frame.f_trace = within  # Python 3.13 traces the instructions of a frame only if it has its function already
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        costs[frame.f_code].calls += 1
        running = None  # the frame itself needs blocks only because it is traced
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
        del now  # the integer is a block itself, and must be freed before blocks are counted
        before = allocated()
        return within

    old = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # noqa: SLF001 - Python 3.12 asks at settrace whether any frame needs it
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
    """A file name from the package on, as py-spy shows it."""
    found = [path for path in sys.path if path and file.startswith(path + os.sep)]
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
    """The costs of one webhook, counted by two processes."""
    command = ("-m", "benchmarks.hot_spots", "--count", str(shape))
    printed = (json.loads(measure.output(*command, timeout=TIMEOUT)) for _ in range(2))
    return agreed(*({name: Cost(**cost) for name, cost in costs.items()} for costs in printed))


def agreed(one: Mapping[str, Cost], other: Mapping[str, Cost]) -> dict[str, Cost]:
    """Merge two counts of the same work.

    Raises:
        RuntimeError: The counts differ in more than the blocks.
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
"""The options of py-spy. To find the holder of the lock, py-spy stops the process for each sample, because a stack that
is read while it changes is often incomplete. To find running threads it must not, because a stopped thread that was
waiting looks as if it ran."""

RATE = 200
"""Samples per second."""

PROGRAMS = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
"""Where py-spy is searched for: first in this environment."""

_BEGUN = 0.1
"""Seconds of processor time after which a service is certainly under load."""

Place = tuple[str, str, str, str]
"""The position of a thread: its name, this project's module and function, and the library. "-" means none."""


@dataclass
class Profile:
    """Samples of one view.

    Attributes:
        places: The number of samples at each place.
        failed: The number of stacks that could not be read.
    """

    places: Counter[Place] = field(default_factory=Counter)
    failed: int = 0


def place(stack: str) -> Place:
    """The place of a stack (outermost frame first): this project's innermost function, and the library below it.

    The library is "-" if that function itself is innermost. Module and function are "-" if the stack contains none of
    this project's functions.
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
    """Read the output of `py-spy record --format raw`: one line per stack, with its number of samples.

    The process runs on while it is read, so a name can be torn, and with it the line. Its parts are passed over.
    """
    found: Counter[Place] = Counter()
    for line in text.splitlines():
        stack, _, times = line.rpartition(" ")
        if stack.startswith("thread (") and times.isdecimal():
            found[place(stack)] += int(times)
    return found


def spy(*arguments: str, seconds: float = 0.0) -> subprocess.CompletedProcess[str]:
    """Run py-spy for a number of seconds, and some for its start.

    Raises:
        FileNotFoundError: py-spy is not installed.
    """
    program = shutil.which("py-spy", path=PROGRAMS)
    if program is None:
        raise FileNotFoundError("py-spy is not installed")
    timeout = seconds + measure.START_TIMEOUT
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=timeout)


def hindrance(pid: int) -> str:
    """Why a process can't be profiled, or an empty string if it can."""
    try:
        looked = spy("dump", "--nonblocking", "--pid", str(pid))
    except FileNotFoundError as error:
        return f"LEFT OUT: the profile. {error}."
    if looked.returncode == 0:
        return ""
    said = " ".join(looked.stderr.split())
    return (
        "LEFT OUT: the profile. py-spy can't read the service's process. That may need root, or on Linux "
        f"CAP_SYS_PTRACE or kernel.yama.ptrace_scope=0. Its message: {said}"
    )


class Profiled:
    """Profiles the running service under load."""

    def __init__(self, running: Running, backend: Sink, directory: Path, given: argparse.Namespace) -> None:
        self._running = running
        self._backend = backend
        self._directory = directory
        self._rounds: int = given.rounds
        self._seconds: int = given.seconds
        self.busiest = 0.0

    def profile(self, shape: Shape, clients: int) -> dict[str, Profile]:
        """Record both views in turns."""
        profiles = {view: Profile() for view in VIEWS}
        for view in measure.alternating(tuple(VIEWS), self._rounds):
            pid, port = self._running.pid, self._running.port
            before = measure.processor_time(pid)
            with ThreadPoolExecutor(1) as sender:
                # One second more, for py-spy to start.
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
    """Tables by thread, by module, and by function."""
    looks = "; ".join(
        f"{view}: {profile.places.total()}, and {profile.failed} that could not be read"
        for view, profile in profiles.items()
    )
    names = ("thread", "module", "function", "in")
    tables = [measure.table([*names[:parts], *profiles], _shares(profiles.values(), parts)) for parts in (1, 2, 4)]
    return [f"Samples of the service: {looks}.", *tables]


def _shares(profiles: Iterable[Profile], parts: int) -> list[list[str]]:
    """The shares of each view by the first parts of the places, largest first."""
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
            said = (
                f"On {measure.file_system(directory)}. The load generator used at most {profiled.busiest:.0%} of a CPU."
            )
    parts: list[str] = []
    for shape, (label, clients) in KINDS.items():
        parts += [f"## {label}: the core, one webhook", counts[shape]]
        if shape in profiles:
            parts += [f"## {label}: the service, {clients} clients", *profiles[shape]]
    measure.publish(
        "hot_spots",
        "The work of each function, without what it calls. The core: counts on which two processes agreed; blocks are "
        "inexact by one or two. The service: shares of the samples in which a thread holds the interpreter's lock, and "
        "shares of those in which it runs, with the lock or without it. The latter are taken without stopping the "
        "process, so single stacks can be wrong.",
        f"{measure.machine()}. {said}",
        measure.arguments(given, ("rounds", "seconds")),
        *parts,
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=3, quick={"rounds": 1, "seconds": 2})
    parser.add_argument("--seconds", type=int, default=5, help="the length of each profile (default: %(default)s)")
    measure.add_directory(parser)
    parser.add_argument("--count", type=Shape.read, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.count is not None:
        print(json.dumps({name: vars(cost) for name, cost in count(webhook(given.count)).items()}))
    else:
        report(given)


if __name__ == "__main__":
    main()
