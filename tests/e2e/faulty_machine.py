"""A machine whose disk fails, whose clock jumps and whose power goes, for one service: see `faults.c`."""

import atexit
import functools
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest

_SOURCE = Path(__file__).with_name("faults.c")


class FaultyMachine:
    """The switches. They work on a running service at once, and on one that is started later.

    Args:
        folder: Where the switches are kept; it is made.

    Attributes:
        env: What a service needs in its environment to feel the faults.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.env = {"LD_PRELOAD": str(preloaded(_SOURCE)), "FAULTS": str(folder)}
        self._folder = folder
        self._clock_error = 0

    @contextmanager
    def fault(self, call: Literal["sync", "write"]) -> Iterator[None]:
        """Let every call of this kind on the queue's database fail with EIO."""
        switch = self._folder / call
        switch.touch()
        try:
            yield
        finally:
            switch.unlink()

    def set_clock(self, error: int) -> None:
        """Let the wall clock be wrong by so many seconds. The monotonic clock goes on."""
        written = self._folder / "clock.new"
        written.write_text(str(error))
        written.replace(self._folder / "clock")
        self._clock_error = error

    def now_ms(self) -> int:
        """The time by its wall clock, in milliseconds since the epoch."""
        return time.time_ns() // 1_000_000 + self._clock_error * 1000

    def watch_disk(self) -> None:
        """Know from now on what is on the disk. Call it before the queue is made."""
        (self._folder / "disk").mkdir()

    def lose_power(self, directory: Path) -> None:
        """Leave of a queue's database what is on the disk. Its service has to be gone."""
        for name in ("queue.db", "queue.db-wal", "queue.db-shm"):
            (directory / name).unlink(missing_ok=True)
        for name in ("queue.db", "queue.db-wal"):
            shutil.copy(self._folder / "disk" / name, directory)


@contextmanager
def small_disk(place: Path, *, mebibytes: int) -> Iterator[Path]:
    """A disk of its own, mounted there."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("NOT PROVEN HERE: a full disk needs the right to mount a small one")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=30)


def fill(disk: Path) -> Path:
    """Take all that is left of a disk; the file that takes it."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


@functools.cache
def preloaded(source: Path) -> Path:
    """A library to preload, compiled once for each process of the tests."""
    compiler = shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("NOT PROVEN HERE: injecting faults into a service needs Linux and a C compiler (cc)")
    folder = TemporaryDirectory(prefix="statsig-otel-faults-")
    atexit.register(folder.cleanup)
    library = Path(folder.name, source.with_suffix(".so").name)
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", str(library), str(source)], check=True, timeout=60)
    return library
