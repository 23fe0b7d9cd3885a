"""Do floods lose a change, make one wait, or make the memory grow? Ten minutes of signed exposures, and a mix.

Somebody has left exposures on: signed bodies of 500 come as fast as they are answered, beside one change each second.
After that unsigned requests come too, as fast as they are answered, beside ten changes each second. No change may be
refused or missing at the backend. The 99th percentile of their answers has to be below a second. The second half of the
time may need at most 16 MiB more of memory than the first. Run it on a machine that does nothing else.

    python proofs/floods.py [--seconds N] [--quick]
"""

import argparse
import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import attacks, measure
from benchmarks.load import quantile
from benchmarks.service import service
from benchmarks.sink import sink

_EXPOSURES: Final = "signed exposures, 500 a body, as many as possible"
_UNSIGNED: Final = "unsigned requests, as many as possible"
_MIXED_SHARE: Final = 0.2
"""How long the mix is, compared with the exposures alone."""

_MOST_GROWTH: Final = 16 << 20


@dataclass(frozen=True)
class Flood:
    """Attacks at the same time, beside so many changes per second."""

    names: tuple[str, ...]
    seconds: float
    pace: float


def holds(flood: Flood) -> bool:
    """Run a service in a flood, and print what has happened."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        backend = stack.enter_context(sink())
        running = stack.enter_context(service(folder / "queue", backend.address))
        first, *others = flood.names
        for name in others:
            stack.enter_context(attacks.attacked(name, running.port))
        result = attacks.beside(first, running, seconds=flood.seconds, pace=flood.pace)
        answered = result.answered
        try:
            backend.settle(len(answered.took) - answered.refused)
            missing = "none is missing at the backend"
        except RuntimeError as error:
            missing = str(error)
    half = len(result.memory) // 2
    before, after = max(result.memory[:half]), max(result.memory[half:])
    p50, p99 = (quantile(answered.took, hundredths) for hundredths in (50, 99))
    print(f"{' + '.join(flood.names)}, for {flood.seconds:.0f} s, beside {flood.pace:.0f} changes per second:")
    print(f"  {answered.refused} of {len(answered.took)} changes were refused, and {missing}")
    print(
        f"  answers: p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, the longest {max(answered.took) * 1000:.0f} ms"
    )
    print(f"  memory at most: {before / 2**20:.0f} MiB in the first half of it, {after / 2**20:.0f} MiB in the second")
    is_there = missing.startswith("none")
    return is_there and not answered.refused and p99 < 1.0 and after < before + _MOST_GROWTH


def main() -> int:
    """Run the proof, and return 1 if it fails."""
    parser = argparse.ArgumentParser(description="Do floods lose a change, or make one wait for a second?")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--quick", action="store_true", help="20 s")
    options = parser.parse_args()
    seconds = 20.0 if options.quick else options.seconds
    floods = (
        Flood((_EXPOSURES,), seconds, 1.0),
        Flood((_EXPOSURES, _UNSIGNED), max(seconds * _MIXED_SHARE, 20.0), 10.0),
    )
    print(f"{measure.machine()}; load before: {os.getloadavg()[0]:.1f}")
    results = [holds(flood) for flood in floods]
    print(f"load after: {os.getloadavg()[0]:.1f}")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
