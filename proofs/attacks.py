"""Does a signed webhook wait for a second while the service is attacked, is one lost, or does the memory grow too far?

Each attack of `benchmarks/attacks.py` in turn, on a service of its own with the default limits. Beside it ten signed
webhooks a second, every second one from far away. All have to be answered with 200 and to reach the backend, and 99 of
100 of those from nearby within a second. The service's resident memory may grow by what the default limits allow. Run
it on a machine that does nothing else.

    python proofs/attacks.py [--seconds N] [--only NAME ...] [--quick]
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import attacks, measure
from benchmarks.load import quantile
from statsig_otel.plugin import Limits

_MISSED: Final = frozenset({
    "recorded TLS ClientHellos, 5,000 connections at a time",
    "signed changes with 4 million strings",
    "signed changes with 9 million numbers",
})  # fmt: skip
"""Beside these, webhooks may wait for longer; docs/performance.md says why."""

_MOST_GROWTH: Final = 2 * Limits().max_in_flight_bytes
"""Bytes by which the memory may grow: by all bodies that may be in flight, and by as much again for what is not a body:
connections with their buffers, and what one body is decoded to."""

_GROWTH_WITHOUT_BODIES: Final = 96 << 20
"""The same for attacks without bodies: by the connections, which take most with TLS."""

_OF_STRINGS: Final = 512 << 20
"""The bound for an array of millions of strings. Each string becomes an object, so the array takes some 440 MiB. Only
a sender with the signing secret can send it."""


def holds(name: str, seconds: float) -> bool:
    """Attack a service, and print how long webhooks waited beside that."""
    with TemporaryDirectory() as folder:
        try:
            result = attacks.survived(name, Path(folder), seconds=seconds, pace=10.0)
        except RuntimeError as error:
            print(f"{name}: {error}")
            return False
    answered, at_rest, most = result.answered, result.memory[0], max(result.memory)
    near, far = (f"{quantile(took, 99) * 1000:.0f} ms" for took in (answered.took, answered.far))
    print(
        f"{name}: p99 {near}, from far away {far}; {answered.refused} of {answered.count} refused; "
        f"memory {at_rest >> 20} MiB at rest, at most {most >> 20}",
        flush=True,
    )
    return most < at_rest + _most_growth(name) and (answered.in_time or (name in _MISSED and not answered.refused))


def _most_growth(name: str) -> int:
    if "strings" in name:
        return _OF_STRINGS
    has_bodies = name.startswith("signed") or "bodies" in name or "content" in name
    return _MOST_GROWTH if has_bodies else _GROWTH_WITHOUT_BODIES


def main() -> int:
    """Run the proof, and return 1 if it fails."""
    parser = argparse.ArgumentParser(description="Does a signed webhook wait for a second beside an attack?")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each attack")
    parser.add_argument("--quick", action="store_true", help="5 s each")
    parser.add_argument("--only", nargs="+", help="only the attacks whose names contain one of these words")
    options = parser.parse_args()
    print(f"{measure.machine()}; load before: {os.getloadavg()[0]:.1f}")
    seconds = 5.0 if options.quick else options.seconds
    every = (attacks.NOTHING, *attacks.ATTACKS)
    names = [name for name in every if not options.only or any(word in name for word in options.only)]
    if not names:
        parser.error("no attack has such a name")
    results = [holds(name, seconds) for name in names]
    print(f"load after: {os.getloadavg()[0]:.1f}")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
