"""What does it cost to remember many changes, as `audit_log` does? No webhook is sent: see `budget` for its share.

A database remembers N changes of 30 days, and one with a tenth of them. For both there are the bytes on disk for each
change, the time to read the last day, as the running service does at each look, and the time of one transaction that
deletes the oldest changes, 5,000 at most. Target: a deletion takes at most 2 times as long as with a tenth.

    python benchmarks/remembered.py [--rounds N] [--changes N] [--directory DIR] [--quick]
"""

import argparse
import contextlib
import sqlite3
import statistics
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from benchmarks import measure
from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.queue import arrivals, schema

_RECEIVER = "statsig"
_DAY = 86_400
_KEPT = 30 * _DAY
_NOW = 1_790_000_000
_AT_ONCE = 10_000


def _change(number: int, second: int) -> Arrival:
    uid = sha256(str(number).encode()).hexdigest()[:32]
    name, who = f"checkout_experiment_{number % 5000}", f"user{number % 200}"
    text = "Updated Config Conditions"
    return Arrival(uid, second, name, who, who, f"{who}@example.com", "Gate", "updated", text)


def fill(path: Path, count: int) -> None:
    """Make a database that remembers a number of changes, evenly spread over the time that it keeps them."""
    with contextlib.closing(schema.connect(path)) as connection:
        for pragma in ("journal_mode = DELETE", "journal_mode = OFF", "synchronous = OFF", "cache_size = -3000000"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN IMMEDIATE")
        arrivals.begin(connection, [_RECEIVER], now_ms=(_NOW - _KEPT) * 1000)
        for begin in range(0, count, _AT_ONCE):
            some = range(begin, min(begin + _AT_ONCE, count))
            made = [_change(number, _NOW - _KEPT + number * _KEPT // count) for number in some]
            arrivals.add(connection, _RECEIVER, made)
        connection.execute("COMMIT")


def _milliseconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1000


def _delete(connection: sqlite3.Connection, now: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    if not arrivals.forget(connection, {_RECEIVER: _KEPT}, now_ms=now * 1000):
        raise RuntimeError("there was nothing to delete")
    connection.execute("COMMIT")


def compare(given: argparse.Namespace) -> None:
    counts = {"few": given.changes // 10, "many": given.changes}
    looks: dict[str, list[float]] = {name: [] for name in counts}
    deletions: dict[str, list[float]] = {name: [] for name in counts}
    size: dict[str, int] = {}
    with measure.working_directory(given.directory) as directory, contextlib.ExitStack() as stack:
        connections: dict[str, sqlite3.Connection] = {}
        for name, count in counts.items():
            path = directory / f"{name}.db"
            fill(path, count)
            size[name] = path.stat().st_size
            connections[name] = stack.enter_context(contextlib.closing(schema.connect(path)))
        for name in measure.alternating(tuple(counts), given.rounds):
            connection = connections[name]
            looks[name].append(
                _milliseconds(lambda: arrivals.read(connection, _RECEIVER, _NOW - _DAY, _NOW))  # noqa: B023 - at once
            )
            deletions[name].append(_milliseconds(lambda: _delete(connection, _NOW + _KEPT // 2)))  # noqa: B023 - at once
        file_system = measure.file_system(directory)
    rows = [
        [
            f"{count:,}",
            f"{size[name] / count:.0f}",
            f"{size[name] >> 20:,}",
            " / ".join(measure.spread(looks[name])),
            " / ".join(measure.spread(deletions[name])),
        ]
        for name, count in counts.items()
    ]
    growth = statistics.median(deletions["many"]) / statistics.median(deletions["few"])
    measure.publish(
        "remembered",
        "What remembering changes of 30 days costs: on disk, to read the last day, and to delete 5,000 of them.",
        f"{measure.machine()}. On {file_system}.",
        measure.arguments(given, ("rounds", "changes")),
        measure.table(["changes", "bytes each", "MiB", "last day, ms", "one deletion, ms"], rows),
        f"One deletion takes {growth:.2f} times as long in the second row as in the first.",
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=5, quick={"rounds": 1, "changes": 20_000})
    parser.add_argument("--changes", type=int, default=1_000_000, help="how many (default: %(default)s)")
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
