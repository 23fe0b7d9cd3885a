"""What does the mapping cost, and is the default mapping slower since mappings can be configured?

The first row compares with an earlier commit, by default the last one before mappings could be configured. The other
rows compare a configured mapping and impacted services with the default. A and B map the same batch of changes in
turns, each in its own process. Processor time is measured, so that other work on the machine matters little.
Target: A / B of at most 1.05 in the first row.

    python benchmarks/mapping_cost.py [--rounds N] [--seconds S] [--against COMMIT] [--quick]
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks import measure

TIMEOUT = 600.0
"""Seconds for one process. Only a process that hangs reaches this."""

CHANGES = 100
MAPPING = {
    "mapping": {
        "body": "{name} {action:-changed} in {environments}",
        "attributes": {"team": "web", "ticket": "{metadata.ticket}", "tags": ["{tags}", "statsig"]},
        "rename": {"user.email": "enduser.id"},
        "drop": ["change_event.*"],
    }
}
SERVICES = {
    "impacted_services": {
        "namespace": "shop",
        "rules": [{"match": {"names": ["checkout_*"]}, "name": "checkout"}, {"name": "{tags}"}],
    }
}
"""These rules find three services for each change, and so make three records."""

MEASURE = """
import gc, json, sys, time
tree, file, keys, seconds = sys.argv[1:]
sys.path.insert(0, tree)
import statsig_otel
assert statsig_otel.__file__.startswith(tree), statsig_otel.__file__
from statsig_otel.plugin import Mapper, parse
mapper = Mapper()
if keys != "{}":
    from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
    mapper = StatsigReceiverSettings.model_validate({"signing_secrets": [], **json.loads(keys)}).mapper()
payload = parse(open(file, "rb").read())
assert len(mapper.map(payload, 1).changes) == payload.count
best, end = float("inf"), time.monotonic() + float(seconds)
while time.monotonic() < end:
    gc.collect()
    began = time.process_time_ns()
    for _ in range(10):
        mapper.map(payload, 1_739_400_185_400_000_000)
    best = min(best, time.process_time_ns() - began)
print(best / 10 / payload.count / 1000)
"""
"""Runs with the code of either commit, so it uses only what both have. Prints microseconds."""


def batch() -> bytes:
    """Changes as Statsig sends them, of different lengths."""
    changes = [
        {
            "eventName": "statsig::config_change",
            "timestamp": 1739400185198 + number,
            "user": {"name": "Test User", "email": "test.user@example.com", "userID": f"user_{number % 7}"},
            "metadata": {
                "type": "Gate" if number % 3 else "Dynamic Config",
                "name": f"checkout_{number}",
                "action": "updated",
                "description": "\n".join(["Updated Config Conditions"] * (1 + number % 5)),
                "environments": "production,staging" if number % 2 else "production",
                "projectName": "Web",
                "projectID": "project_1",
                "tags": ["core", "payments"],
                "targetApps": [],
                "ticket": f"FLAG-{number}",
            },
        }
        for number in range(CHANGES)
    ]
    return json.dumps({"data": changes}).encode()


def before_mapping() -> str:
    """The commit before the first one with configurable mappings."""
    added = measure.git("log", "--diff-filter=A", "--format=%H", "--", "statsig_otel/plugin/mapping.py").split()
    return f"{added[-1].decode()}^"


def compare(given: argparse.Namespace) -> None:
    commit = measure.git("rev-parse", "--short", given.against or before_mapping()).decode().strip()
    rows = []
    with measure.working_directory(given.directory) as directory:
        before, body = directory / "before", directory / "body.json"
        measure.unpack(commit, before)
        body.write_bytes(batch())

        def cost(tree: Path, keys: Mapping[str, object]) -> float:
            arguments = (str(tree.resolve()), str(body), json.dumps(keys), str(given.seconds))
            return float(measure.output("-c", MEASURE, *arguments, timeout=TIMEOUT))

        for label, one, other in (
            (f"default mapping: now, {commit}", (measure.ROOT, {}), (before, {})),
            ("now: a mapping, none", (measure.ROOT, MAPPING), (measure.ROOT, {})),
            ("now: 3 services, none", (measure.ROOT, SERVICES), (measure.ROOT, {})),
        ):
            costs: dict[str, list[float]] = {"A": [], "B": []}
            for name in measure.alternating(("A", "B"), given.rounds):
                costs[name].append(cost(*(one if name == "A" else other)))
            rows.append(measure.comparison(label, costs["A"], costs["B"], ".1f"))
    measure.publish(
        "mapping_cost",
        f"Processor time for mapping one change, in microseconds, in batches of {CHANGES}. The first row compares this "
        f"working tree with the commit {commit}; the others compare settings.",
        f"{measure.machine(('protobuf',))}.",
        measure.arguments(given, ("rounds", "seconds")),
        measure.table(measure.COMPARISON, rows),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=15, quick={"rounds": 3, "seconds": 0.5})
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="the length of one measurement (default: %(default)s)"
    )
    parser.add_argument("--against", metavar="COMMIT", help="the commit to compare with (default: before mappings)")
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
