"""Does a power loss lose what was acknowledged? Records runs under load, and opens what may be left of each.

Each run is recorded by a preloaded library: writes, syncs, truncations, and names that are made, changed or removed. An
image is what the disk may have after a power loss at a random moment: all that was synced, and any part of the rest,
torn at 512 or 4,096 bytes.

A queue is opened on each image of its runs. What was acknowledged must wait there, unless it was sent before, and what
was made a dead letter must be one. A queue in use must not look as if it had been stopped in order.

A service with a `file` exporter and no queue answers webhooks while the file is rotated: by renames, with a new file
or without, and the oldest one is deleted. What was answered with 200 must be a line of the file or of a rotated one,
unless that was deleted. An exporter must start on the image and write another line.

As a control, the same is tried without the syncs of one file, or of the directory.

    python proofs/power_loss.py [--runs N] [--images N] [--quick]
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.e2e import power_loss as of_a_file
from tests.exporters.queue import power_loss as of_a_queue
from tests.exporters.queue.power_loss import Outcome


@dataclass(frozen=True)
class _Scenario:
    """What is run, and the names of the files without whose syncs it is tried as a control."""

    name: str
    try_images: Callable[..., Iterator[Outcome]]
    controls: Mapping[str, str]


_SCENARIOS: Final = (
    _Scenario(
        "queue",
        of_a_queue.try_images,
        {"queue.db-wal": "the log", "queue.db": "the database", "queue": "the directory", "state.json": "the mark"},
    ),
    _Scenario("file", of_a_file.try_images, {"changes.jsonl": "the file", "disk": "the directory after a rotation"}),
)


def main() -> int:
    """Run the proof, and return 1 if it fails."""
    parser = argparse.ArgumentParser(description="Does a power loss lose what was acknowledged?")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--images", type=int, default=50, help="of each run")
    parser.add_argument("--quick", action="store_true", help="2 runs of 10 images")
    options = parser.parse_args()
    runs, images = (2, 10) if options.quick else (options.runs, options.images)
    with TemporaryDirectory() as folder:
        passed = [_try(one, Path(folder, one.name), runs, images) for one in _SCENARIOS]
    return 0 if all(passed) else 1


def _try(scenario: _Scenario, folder: Path, runs: int, images: int) -> bool:
    """Whether nothing is lost in any run, and something in each control."""
    lost, said = 0, Counter[str]()
    print(f"{scenario.name}:")
    for seed in range(runs):
        for outcome in scenario.try_images(folder / str(seed), seed=seed, images=images):
            if outcome.is_bad:
                lost += 1
                looks = ", and it looks as if it had been stopped in order" if outcome.is_misread else ""
                print(f"run {seed}: missing {outcome.missing}{looks}; the log says {outcome.said}")
            said["a warning or an error" if outcome.said else "nothing"] += 1
    print(f"{runs} runs, {runs * images} images: {lost} without something that was acknowledged, or misread")
    print(f"the log says: {', '.join(f'{what} {number} times' for what, number in said.most_common())}")
    found: dict[str, int] = {}
    for name, what in scenario.controls.items():
        seed = 1 if name == "state.json" else 0  # it is missed in a run after one that ended in order
        outcomes = scenario.try_images(folder / name, seed=seed, images=images, unsynced=name)
        found[name] = sum(outcome.is_bad for outcome in outcomes)
        print(f"control, without the syncs of {what}: {found[name]} of {images} images")
    return not lost and all(found.values())


if __name__ == "__main__":
    sys.exit(main())
