"""A short run of a service whose webhooks wait for a file: `python -m tests.e2e.file_load DIRECTORY SEED PART`.

Meanwhile the file is rotated. It says which numbers were answered with 200, and which are in a file that is deleted. It
ends in order, or all at once.
"""

import contextlib
import itertools
import json
import os
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from statsig_otel.plugin import Service
from tests.e2e.statsig_client import SECRET, change, post

NAME: Final = "changes.jsonl"
_ROTATED: Final = (f"{NAME}.1", f"{NAME}.2")


def numbers_in(path: Path) -> set[int]:
    """The numbers in the lines of a file that are whole requests."""
    found = set[int]()
    for line in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            json.loads(line)
            found |= set(map(int, re.findall(rb'"gate_(\d+)"', line)))
    return found


def say(word: str, numbers: Iterable[int]) -> None:
    os.write(1, "".join(f"{word} {number}\n" for number in numbers).encode())


def send(url: str, numbers: Iterator[int], chance: random.Random, end: float) -> None:
    """Be Statsig."""
    while time.monotonic() < end:
        made = list(itertools.islice(numbers, chance.randint(1, 3)))
        sizes = [chance.choice((20, 500, 5000, 50_000)) for _ in made]
        changes = [change(number, description="x" * size) for number, size in zip(made, sizes, strict=True)]
        if post(url, *changes).status == 200:
            say("acknowledged", made)


def rotate(path: Path, chance: random.Random, end: float) -> None:
    """Be logrotate, with `create` or without, which keeps two files."""
    newer, older = map(path.with_name, _ROTATED)
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.02, 0.1))
        if older.exists():
            say("deleted", numbers_in(older))
            older.unlink()
        if newer.exists():
            newer.rename(older)
        if path.exists():
            path.rename(newer)
        if chance.random() < 0.5:
            with contextlib.suppress(FileExistsError):
                path.touch(0o600, exist_ok=False)


def main(directory: str, seed: str, part: str) -> None:
    chance = random.Random(f"{seed} {part}")
    path = Path(directory, NAME)
    unsynced = os.environ.pop("UNSYNCED", None)
    numbers = itertools.count(1_000_000 * int(part))
    service = Service(
        receivers={"statsig": {"endpoint": "127.0.0.1:0", "signing_secrets": [SECRET]}},
        exporters={"file": {"path": str(path), "sending_queue": {"enabled": False}}},
    )
    with service, ThreadPoolExecutor() as threads:
        if unsynced:  # only now: the control of the directory is about the files that come after the first one
            os.environ["UNSYNCED"] = unsynced
        url = service.urls["statsig"]
        end = time.monotonic() + chance.uniform(0.3, 0.8)
        work = [
            *(threads.submit(send, url, numbers, random.Random(chance.random()), end) for _ in range(3)),
            threads.submit(rotate, path, random.Random(chance.random()), end),
        ]
        for one in work:
            one.result()
        if chance.random() < 0.5:
            os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
