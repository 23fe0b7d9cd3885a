"""What a power loss can leave of a file whose exporter has no queue, and of the files that it was rotated to.

The renames of a rotation are not the exporter's. So here a name is taken over only once it was given up, as file
systems with a journal and those that copy on writing do it. Elsewhere a rotation can lose a file, whatever the exporter
does.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from statsig_otel.exporters.exporter import Delivered
from statsig_otel.exporters.local.file import FileExporter, FileSettings
from tests.e2e.file_load import NAME, numbers_in
from tests.exporters.local.files import payload
from tests.exporters.queue.power_loss import Event, Outcome, images_of, said, warnings

_NEXT = 999_999_999


def check(image: Path, events: Sequence[Event]) -> Outcome:
    """Read an image, start an exporter on it as a service does after a power loss, let it write, and read it again."""
    promised = said(events)
    wanted = promised.get("acknowledged", set()) - promised.get("deleted", set())
    missing = {"before the start": wanted - _numbers_below(image)}
    exporter = FileExporter("file", FileSettings(path=image / NAME))
    with warnings() as lines:
        try:
            exporter.start()
            outcome = exporter.send(payload(f"gate_{_NEXT}"), 1, 5)
            if outcome != Delivered():
                lines.append(str(outcome))
        except (OSError, ValueError) as error:
            lines.append(str(error))
        exporter.shutdown()
    missing["after it"] = {*wanted, _NEXT} - _numbers_below(image)
    return Outcome({when: numbers for when, numbers in missing.items() if numbers}, lines)


def _numbers_below(image: Path) -> set[int]:
    return set[int]().union(*map(numbers_in, image.glob(f"{NAME}*")))


def try_images(folder: Path, *, seed: int, images: int, unsynced: str = "") -> Iterator[Outcome]:
    """Record a run of a service in a folder, which is made, and check images of random moments of it."""
    load = "tests.e2e.file_load"
    for image, events in images_of(folder, load, seed=seed, images=images, unsynced=unsynced, names_in_order=True):
        yield check(image, events)
