"""What does each stage of one durable webhook cost, and what is the least that it could cost?

The webhook has one change of 1 KB and comes from one of 64 clients. Three things are measured:

- Processor time by stage. Servers that each do one thing more than the one before (benchmarks/prefixes.py) take turns
  with `statsig-otel run`; a stage is the difference between two of them. What a server can't tell apart is measured in
  one thread (benchmarks/floors.py), in groups and batches of the size that the service had. The floor of a stage is the
  same library calls with nothing around them. What is left over is in "hand over": it includes what the threads of the
  service cost each other.
- Bytecode instructions and memory blocks by stage (benchmarks/stages.py), in all threads of a service that counts them
  for every function. No other load on the machine affects the instructions, but how many changes share a commit does.
- Instructions with `audit_log`, which lets the queue remember what came, and without it.
- Processor time and waits of each thread of the service: for the network, the disk, and the interpreter's lock.

With `--pythons` the stages are measured in turns with other interpreters, each from an environment of this project.

    python benchmarks/budget.py [--rounds N] [--seconds S] [--pythons PATH ...] [--directory DIR] [--quick]
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from benchmarks import measure, prefixes, stages
from benchmarks.bare_server import FALCON, bare_server
from benchmarks.load import post
from benchmarks.service import commits, service
from benchmarks.sink import Sink, sink
from benchmarks.stages import (
    ANSWER,
    DELETE,
    ENCODE,
    HAND_OVER,
    HTTP,
    MAP,
    PARSE,
    READ,
    RECEIVE,
    SEND,
    STORE,
    TICK_OFF,
    VERIFY,
)
from benchmarks.webhooks import CHANGE

CLIENTS: Final = 64
WHOLE: Final = "all of it"
_SERVICE, _BARE_FALCON = "service", "bare Falcon"
_TIMEOUT: Final = 600.0
_COUNTED: Final = {stages.INSTRUCTIONS: (1280, CLIENTS), stages.BLOCKS: (24, 8)}
"""The webhooks that are counted, and from how many clients. To count blocks takes a second for each."""

_PARTS: Final = {
    "the journal of the live page and `top`": ("_journal.py",),
    "metrics that nobody reads": ("_telemetry.py", "_instruments.py", "counting.py", "opentelemetry"),
}
"""What a webhook pays for watching, by the files that do it."""

_ARRIVALS: Final = ("arrival.py", "arrivals.py", "_arrival ")
_AUDIT_LOG: Final = {"audit_log": {"api_key": "console-0123456789", "interval": "0s"}}
_TIDY: Final = 2.5
"""Seconds after which a service has ticked off and deleted what it delivered."""

Round: TypeAlias = dict[str, dict[str, Any]]
"""Microseconds of processor time for each webhook: of the servers, and of the stages alone, with their floors."""

Costs: TypeAlias = dict[str, tuple[float, float | None]]
"""The same and the floor, by stage."""


# One round, in one interpreter.


def measure_once(given: argparse.Namespace) -> Round:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(measure.working_directory(given.directory))
        backend = stack.enter_context(sink())
        queue = directory / "queue"
        servers = {name: stack.enter_context(prefixes.serving(name)) for name in prefixes.PREFIXES}
        servers[_BARE_FALCON] = stack.enter_context(bare_server(FALCON))
        servers[_SERVICE] = stack.enter_context(service(queue, backend.address))
        cost: dict[str, float] = {}
        group = batch = 1.0
        for name, server in servers.items():
            began, before = measure.processor_time(server.pid), commits(queue)
            posted = post(server.port, CHANGE, clients=CLIENTS, seconds=given.seconds)
            if name == _SERVICE:
                group = posted.good / (commits(queue) - before)
                batch = posted.good / backend.settle(posted.good).requests
            cost[name] = (measure.processor_time(server.pid) - began) / posted.good * 1e6
        sizes = str(max(1, round(group))), str(round(batch))
        floors = ("-m", "benchmarks.floors", str(given.seconds / 4), *sizes, backend.address, str(directory))
        alone = json.loads(measure.output(*floors, timeout=_TIMEOUT / 2))
    return {"servers": cost, "alone": alone}


def by_stage(once: Round, instructions: Mapping[str, float]) -> Costs:
    """The cost and the floor of each stage.

    Stages that only one server tells apart share the difference between two servers. Each gets as much of it as it cost
    alone, in relation to the others: alone, in a loop, everything costs about a half. What can't run alone counts by
    its instructions, as if they cost what the others' do.
    """
    servers, alone = once["servers"], once["alone"]
    costs: Costs = {
        HTTP: (servers[prefixes.HTTP], servers[prefixes.FLOOR]),
        stages.FALCON: (
            servers[prefixes.FALCON] - servers[prefixes.HTTP],
            servers[_BARE_FALCON] - servers[prefixes.HTTP],
        ),
    }
    for before, after, rest, others in (
        (prefixes.FALCON, prefixes.PARSED, RECEIVE, (VERIFY, PARSE)),
        (prefixes.PARSED, prefixes.MAPPED, ANSWER, (MAP, ENCODE)),
    ):
        known = sum(alone[name][0] for name in others)
        unknown = known * instructions[rest] / sum(instructions[name] for name in others)
        scale = (servers[after] - servers[before]) / (known + unknown)
        costs |= {rest: (unknown * scale, None)}
        costs |= {name: (alone[name][0] * scale, alone[name][1] * scale) for name in others}
    queued = {name: (alone[name][0], alone[name][1]) for name in (STORE, READ, SEND, TICK_OFF, DELETE)}
    rest_of_it = servers[_SERVICE] - servers[prefixes.MAPPED] - sum(used for used, _ in queued.values())
    return {**costs, HAND_OVER: (rest_of_it, None), **queued, WHOLE: (servers[_SERVICE], None)}


# The counts.


@contextlib.contextmanager
def running(
    kind: str, given: argparse.Namespace, receiver: Mapping[str, object] | None = None
) -> Iterator[tuple[stages.Counting, Sink]]:
    """Run a service that counts, and its sink, during the block."""
    with (
        measure.working_directory(given.directory) as directory,
        sink() as backend,
        stages.counting(kind, directory / "queue", backend.address, receiver) as counting,
    ):
        yield counting, backend


def counted(given: argparse.Namespace) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Instructions and blocks of one webhook, by kind and stage, and the share of what watches, in words."""
    found: dict[str, dict[str, float]] = {}
    watching = dict.fromkeys(_PARTS, 0.0)
    for kind in _COUNTED:
        costs: dict[str, float] = defaultdict(float)
        for (stage, function), cost in counts(kind, given).items():
            costs[stage] += cost
            for part, files in _PARTS.items() if kind == stages.INSTRUCTIONS else ():
                watching[part] += cost if any(name in function for name in files) else 0.0
        found[kind] = costs
    whole = sum(found[stages.INSTRUCTIONS].values())
    return found, [f"{part}, {cost / whole:.2%}" for part, cost in watching.items()]


def counts(
    kind: str, given: argparse.Namespace, receiver: Mapping[str, object] | None = None
) -> dict[tuple[str, str], float]:
    """Instructions or blocks of one webhook, by stage and function."""
    webhooks, clients = _COUNTED[kind]
    with running(kind, given, receiver) as (counting, backend):
        for number in (clients, webhooks):  # the first ones only warm it up
            counting.read()
            post(counting.port, CHANGE, clients=clients, number=number)
            backend.settle(number)
            time.sleep(_TIDY)
        return {(stage, function): cost / webhooks for stage, function, _, cost in counting.read()}


def remembering(given: argparse.Namespace) -> str:
    """What it costs to remember what came, and what it costs not to."""
    told: list[str] = []
    for words, receiver in (("Without `audit_log`", None), ("With it", _AUDIT_LOG)):
        found = counts(stages.INSTRUCTIONS, given, receiver)
        own = sum(cost for (_, function), cost in found.items() if any(name in function for name in _ARRIVALS))
        told.append(f"{words} what came takes {own:.0f} of {sum(found.values()):.0f} instructions for a webhook.")
    return " ".join(told)


def threads(given: argparse.Namespace) -> list[list[str]]:
    """The share of each thread in the processor time, and its waits for each webhook."""
    with running(stages.CLOCKS, given) as (counting, backend):
        before = counting.read()
        posted = post(counting.port, CHANGE, clients=CLIENTS, seconds=given.seconds)
        after = counting.read()
        backend.settle(posted.good)
    used = {name: seconds - before.get(name, (0.0, 0))[0] for name, (seconds, _) in after.items()}
    whole = sum(used.values())
    rows = [
        [name, f"{used[name] / whole:.1%}", f"{(waits - before.get(name, (0.0, 0))[1]) / posted.good:.2f}"]
        for name, (_, waits) in after.items()
    ]
    return sorted(rows, key=lambda row: -float(row[1].rstrip("%")))


# The report.


def compare(given: argparse.Namespace) -> None:
    pythons = [sys.executable, *given.pythons]
    rounds: dict[str, list[Round]] = defaultdict(list)
    for python in measure.alternating(pythons, given.rounds):
        command = [python, __file__, "--once", "--seconds", str(given.seconds), "--directory", str(given.directory)]
        printed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
        if printed.returncode:
            raise RuntimeError(f"{python}: {printed.stderr}")
        rounds[python].append(json.loads(printed.stdout))
    versions = {python: measure.version_of(python) for python in pythons}
    counts, watching = counted(given)
    measure.publish(
        "budget",
        "Processor time of one durable webhook with one change, from one of 64 clients. Share: of all of it; median of "
        "the rounds. The floor: the same library calls with nothing around them. Instructions: of bytecode, in all "
        "threads. Blocks: of memory, with one change to a commit.",
        f"{measure.machine()}.",
        measure.arguments(given, ("rounds", "seconds")),
        stage_table(rounds, versions, counts),
        f"Shares of the instructions: {'; '.join(watching)}.",
        remembering(given),
        measure.table(["thread", "share", "waits for each webhook"], threads(given)),
    )


def stage_table(
    rounds: Mapping[str, Sequence[Round]], versions: Mapping[str, str], counts: Mapping[str, Mapping[str, float]]
) -> str:
    own, *others = ([by_stage(once, counts[stages.INSTRUCTIONS]) for once in rows] for rows in rounds.values())
    names = list(own[0])
    head = ["stage", "microseconds", "share", "floor's share", "times the floor", "instructions", "blocks"]
    head += [f"{version} / {next(iter(versions.values()))}" for version in list(versions.values())[1:]]
    rows = []
    for name in names:
        whole = [costs[WHOLE][0] for costs in own]
        times = [costs[name][0] for costs in own]
        floors = [costs[name][1] or 0.0 for costs in own]
        row = [name, f"{statistics.median(times):.1f}", f"{_median_ratio(times, whole):.1%}"]
        has_floor = any(floors)
        row += [f"{_median_ratio(floors, whole):.1%}", f"{_median_ratio(times, floors):.1f}"] if has_floor else ["", ""]
        for kind in _COUNTED:
            count = sum(counts[kind].values()) if name == WHOLE else counts[kind].get(name)
            row.append("" if count is None else f"{count:.0f}")
        row += [f"{_median_ratio([costs[name][0] for costs in other], times):.2f}" for other in others]
        rows.append(row)
    return measure.table(head, rows)


def _median_ratio(values: Sequence[float], against: Sequence[float]) -> float:
    return statistics.median(measure.ratios(values, against))


def main() -> None:
    parser = measure.parser(__doc__, rounds=5, quick={"rounds": 2, "seconds": 1.0})
    parser.add_argument("--seconds", type=float, default=2.0, help="the length of one measurement")
    parser.add_argument("--pythons", nargs="*", default=[], help="other interpreters, such as .venv-3.13/bin/python")
    measure.add_directory(parser)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(measure_once(given)))
    else:
        compare(given)


if __name__ == "__main__":
    main()
