"""Do floods lose a change, make one wait, or make the memory grow? Ten minutes of each of two floods, and a mix.

Somebody has left exposures on: signed bodies of 500 come as fast as they are answered, beside one change each second.
After that unsigned requests come as fast as they are answered, for as long and beside as many changes. In the end both
come at once for a fifth of the time, beside ten changes each second. No change may be refused or missing at the
backend. The 99th percentile of their answers has to be below a second. The second half of the time may need at most
16 MiB more of memory than the first. All the time somebody looks at the live page, as a browser does: what arrives has
to be shown there within 10 s, on one connection. Run it on a machine that does nothing else.

    python proofs/floods.py [--seconds N] [--only FLOOD ...] [--quick]
"""

import argparse
import contextlib
import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.request import urlopen

from benchmarks import attacks, measure
from benchmarks.load import quantile
from benchmarks.service import service
from benchmarks.sink import sink

_EXPOSURES: Final = "signed exposures, 500 a body, as many as possible"
_UNSIGNED: Final = "unsigned requests, as many as possible"
_MIXED_SHARE: Final = 0.2
"""How long the mix is, compared with each flood alone."""

_MOST_GROWTH: Final = 16 << 20
_SHOWN: Final = 100
"""The most changes that the live page lists."""

_MOST_PAUSE: Final = 10.0
"""Seconds that the live page may say nothing new while changes arrive."""


@dataclass(frozen=True)
class Flood:
    """Attacks at the same time, beside so many changes per second."""

    names: tuple[str, ...]
    seconds: float
    pace: float


@dataclass
class Look:
    """What a browser got that shows the live page.

    Attributes:
        events: The number of events that the page sent.
        size: Their bytes.
        pause: The longest time in seconds between two of them.
        sections: The last content of each section.
        ended: Why the connection ended; empty while it is open.
    """

    events: int = 0
    size: int = 0
    pause: float = 0.0
    sections: dict[str, str] = field(default_factory=dict)
    ended: str = ""

    def read(self, events: http.client.HTTPResponse, is_over: threading.Event) -> None:
        """Read events until there are no more, or nobody wants them. The page sends at least a ping each 15 s."""
        before = time.monotonic()
        try:
            for line in events:
                if is_over.is_set():
                    return
                if line.startswith(b"data:"):
                    self.sections |= json.loads(line.removeprefix(b"data:"))
                    self.events += 1
                    self.size += len(line)
                    self.pause, before = max(self.pause, time.monotonic() - before), time.monotonic()
            self.ended = "the service ended it"
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.ended = repr(error)


@contextlib.contextmanager
def looked_at(port: int) -> Iterator[Look]:
    """Load the live page and read its events during the block, as a browser does."""
    look, is_over = Look(), threading.Event()
    url = f"http://{measure.HOST}:{port}"
    with urlopen(url, timeout=measure.START_TIMEOUT) as whole:
        whole.read()
    with urlopen(f"{url}/events", timeout=measure.START_TIMEOUT) as events:
        reader = threading.Thread(target=look.read, args=(events, is_over))
        reader.start()
        try:
            yield look
        finally:
            is_over.set()
            reader.join()


def holds(flood: Flood) -> bool:
    """Run a service in a flood, and print what has happened."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        backend = stack.enter_context(sink())
        running = stack.enter_context(service(folder / "queue", backend.address, has_page=True))
        look = stack.enter_context(looked_at(running.page))
        first, *others = flood.names
        for name in others:
            stack.enter_context(attacks.attacked(name, running.port))
        result = attacks.beside(first, running, seconds=flood.seconds, pace=flood.pace)
        answered = result.answered
        try:
            backend.settle(answered.count - answered.refused)
            missing = "none is missing at the backend"
        except RuntimeError as error:
            missing = str(error)
        shown = rows(look, min(answered.count, _SHOWN))
    half = len(result.memory) // 2
    before, after = max(result.memory[:half]), max(result.memory[half:])
    print(f"{' + '.join(flood.names)}, for {flood.seconds:.0f} s, beside {flood.pace:.0f} changes per second:")
    print(f"  {answered.refused} of {answered.count} changes were refused, and {missing}")
    for where, took in (("near", answered.took), ("far", answered.far)):
        p50, p99, longest = (
            f"{seconds * 1000:.0f} ms" for seconds in (quantile(took, 50), quantile(took, 99), max(took))
        )
        print(f"  answers to {where} clients: p50 {p50}, p99 {p99}, the longest {longest}")
    print(f"  memory at most: {before / 2**20:.0f} MiB in the first half of it, {after / 2**20:.0f} MiB in the second")
    size = look.size / max(look.events, 1) / 1024
    print(f"  the live page sent {look.events} events of {size:.0f} KiB, at most {look.pause:.1f} s apart;")
    print(f"  at the end it listed {shown} changes; {look.ended or 'the connection stayed open'}")
    is_there = missing.startswith("none") and not answered.refused
    is_shown = shown == min(answered.count, _SHOWN) and not look.ended and look.pause < _MOST_PAUSE
    return is_there and is_shown and answered.in_time and after < before + _MOST_GROWTH


def rows(look: Look, expected: int) -> int:
    """How many changes the page lists, as soon as it lists as many as are expected."""
    latest = time.monotonic() + _MOST_PAUSE
    while (found := look.sections.get("changes", "").count("<tr data-key")) < expected and time.monotonic() < latest:
        time.sleep(0.1)
    return found


def main() -> int:
    """Run the proof, and return 1 if it fails."""
    parser = argparse.ArgumentParser(description="Do floods lose a change, or make one wait for a second?")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--quick", action="store_true", help="20 s")
    parser.add_argument("--only", choices=("exposures", "unsigned", "mix"), nargs="+", help="only these floods")
    options = parser.parse_args()
    seconds = 20.0 if options.quick else options.seconds
    every = {
        "exposures": Flood((_EXPOSURES,), seconds, 1.0),
        "unsigned": Flood((_UNSIGNED,), seconds, 1.0),
        "mix": Flood((_EXPOSURES, _UNSIGNED), max(seconds * _MIXED_SHARE, 20.0), 10.0),
    }
    floods = [flood for name, flood in every.items() if not options.only or name in options.only]
    print(f"{measure.machine()}; load before: {os.getloadavg()[0]:.1f}")
    results = [holds(flood) for flood in floods]
    print(f"load after: {os.getloadavg()[0]:.1f}")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
