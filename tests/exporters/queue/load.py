"""A short run with all that a queue does to its disk: `python -m tests.exporters.queue.load DIRECTORY SEED PART`.

It says what it promised: a number that was acknowledged, that an exporter was sent, or that was kept as a dead letter.
It ends in order, or all at once.
"""

import contextlib
import itertools
import os
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from unittest import mock

from statsig_otel.exporters.queue import writer
from statsig_otel.exporters.queue.errors import StorageError
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.store import DeadLetter
from tests.exporters.queue.helpers import PATIENCE, batch, consume, numbers_of, running, submit_damage

EXPORTERS: Final = ("otlp", "slow")
"""One delivers, the other does not."""


def say(word: str, *numbers: int) -> None:
    os.write(1, "".join(f"{word} {number}\n" for number in numbers).encode())


def send(queue: DurableQueue, numbers: "itertools.count[int]", chance: random.Random, end: float) -> None:
    """Be a client."""
    while time.monotonic() < end:
        number = next(numbers)
        made = batch(number, size=chance.choice((20, 500, 5000, 50_000)), invalid=chance.random() < 0.1)
        consume(queue, made).result(PATIENCE)
        say("acknowledged", number)
        if chance.random() < 0.1:
            time.sleep(chance.uniform(0.0, 0.2))  # long enough for what is done when nothing comes in


def deliver(queue: DurableQueue, chance: random.Random, end: float) -> None:
    """Be the sender of the first exporter."""
    cursor = queue.cursor(EXPORTERS[0])
    while time.monotonic() < end:
        with contextlib.suppress(sqlite3.Error, StorageError):  # the database is being set aside: they come again
            records = cursor.read(chance.choice((1, 5)), 1 << 20)
            if not records:
                cursor.wait(0.01)
            elif chance.random() < 0.1:
                cursor.finish(
                    records, [DeadLetter("record", cursor.name, "why", one.payload, one.uid) for one in records]
                )
                say("kept", *numbers_of(records))
            else:
                say(cursor.name, *numbers_of(records))
                (cursor.finish_soon if chance.random() < 0.7 else cursor.finish)(records)


def main(directory: str, seed: str, part: str) -> None:
    chance = random.Random(f"{seed} {part}")
    numbers = itertools.count(1_000_000 * int(part))
    end = time.monotonic() + chance.uniform(0.3, 0.8)
    with mock.patch.object(writer, "_IDLE", 0.05), running(Path(directory, "queue"), exporters=EXPORTERS) as queue:
        work: list[Callable[[random.Random], None]] = [lambda own: send(queue, numbers, own, end)] * 3
        work.append(lambda own: deliver(queue, own, end))
        threads = [threading.Thread(target=one, args=(random.Random(chance.random()),)) for one in work]
        for thread in threads:
            thread.start()
        if chance.random() < 0.3:
            time.sleep(0.2)
            submit_damage(queue)
        for thread in threads:
            thread.join()
        if chance.random() < 0.5:
            os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
