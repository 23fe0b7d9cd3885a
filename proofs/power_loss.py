"""Does a power loss lose what was acknowledged? Records runs of a queue under load, and opens what may be left of each.

Each run is recorded by a preloaded library: writes, syncs, truncations, and names that are made, changed or removed. An
image is what the disk may have after a power loss at a random moment: all that was synced, and any part of the rest,
torn at 512 or 4,096 bytes. A queue is opened on each image. What was acknowledged must wait there, unless it was
sent before, and what was made a dead letter must be one. A queue in use must not look as if it had been stopped in
order. As a control, the same is tried without the syncs of one file.

    python proofs/power_loss.py [--runs N] [--images N] [--quick]
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.exporters.queue.power_loss import try_images

_CONTROLS: Final = {
    "queue.db-wal": "the log",
    "queue.db": "the database",
    "queue": "the directory",
    "state.json": "the mark",
}


def main() -> int:
    """Run the proof, and return 1 if it fails."""
    parser = argparse.ArgumentParser(description="Does a power loss lose what was acknowledged?")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--images", type=int, default=50, help="of each run")
    parser.add_argument("--quick", action="store_true", help="2 runs of 10 images")
    options = parser.parse_args()
    runs, images = (2, 10) if options.quick else (options.runs, options.images)
    lost, said = 0, Counter[str]()
    with TemporaryDirectory() as folder:
        for seed in range(runs):
            for outcome in try_images(Path(folder, str(seed)), seed=seed, images=images):
                if outcome.is_bad:
                    lost += 1
                    looks = ", and it looks as if it had been stopped in order" if outcome.is_misread else ""
                    print(f"run {seed}: missing {outcome.missing}{looks}; the log says {outcome.said}")
                said["a warning or an error" if outcome.said else "nothing"] += 1
        print(f"{runs} runs, {runs * images} images: {lost} without something that was acknowledged, or misread")
        print(f"the log says: {', '.join(f'{what} {number} times' for what, number in said.most_common())}")
        found: dict[str, int] = {}
        for name, what in _CONTROLS.items():
            seed = 1 if name == "state.json" else 0  # it is missed in a run after one that ended in order
            outcomes = try_images(Path(folder, name), seed=seed, images=images, unsynced=name)
            found[name] = sum(outcome.is_bad for outcome in outcomes)
            print(f"control, without the syncs of {what}: {found[name]} of {images} images")
    return 0 if not lost and all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
