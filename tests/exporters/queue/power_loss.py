"""What a power loss can leave of a queue, or of other files: a recorded run, and disk images of any of its moments.

A run is recorded by `trace.c`. At the moment of the power loss, all that was synced is on the disk. What was written
since then is there or not, in any combination: each block of a file is in one of the states that it has had since the
last sync, a file's size too, and of the names that were made, changed or removed in a directory, any may be as before.
A truncation is there as a whole or not at all: file systems with a journal, and those that copy on writing, change a
file's size and give its blocks back in one step.
"""

import logging
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.errors import QueueError
from tests.e2e.faulty_machine import preloaded
from tests.exporters.queue.helpers import PATIENCE, ROOT, dead_letters_in, delivered, running, settled
from tests.exporters.queue.load import EXPORTERS

_PARTS: Final = 3
"""How often a program is started in one run."""

_HEADER: Final = struct.Struct("=IIQQQ")
_T = TypeVar("_T")

_BLOCKS: Final = (512, 4096)
"""Bytes that a disk writes as a whole."""


class Kind(IntEnum):
    """As in `trace.c`."""

    BEGIN = 1
    WRITE = 2
    SYNC = 3
    TRUNCATE = 4
    CREATE = 5
    UNLINK = 6
    RENAME = 7
    MKDIR = 8
    RMDIR = 9
    SAID = 10
    SHARED_INDEX = 11
    LINK = 12


class Event(NamedTuple):
    kind: Kind
    inode: int
    offset: int
    path: str
    data: bytes


def record(root: Path, load: str, seed: int, *, unsynced: str = "") -> list[Event]:
    """Run a program a few times over, and return what it did to a directory.

    Args:
        root: The directory, which exists.
        load: The module with the program. Its arguments are the directory, the seed and how often it ran before.
        seed: Determines the load.
        unsynced: The name of a file whose syncs are left out.
    """
    trace = root.with_name(f"{root.name}.trace")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(preloaded(Path(__file__).with_name("trace.c"))),
        "TRACE": str(trace),
        "TRACE_ROOT": str(root),
        **({"UNSYNCED": unsynced} if unsynced else {}),
    }
    for part in range(_PARTS):
        command = [sys.executable, "-m", load, str(root), str(seed), str(part)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=4 * PATIENCE)
    events = list(_parse(trace.read_bytes()))
    trace.unlink()
    return events


def _parse(content: bytes) -> Iterator[Event]:
    place = number = begun = 0
    while place < len(content):
        kind, path_length, inode, offset, size = _HEADER.unpack_from(content, place)
        place += _HEADER.size
        path = content[place : place + path_length].decode()
        place += path_length
        data = content[place : place + size]
        place += size
        if kind == Kind.BEGIN:
            begun = number
        yield Event(Kind(kind), inode, begun + offset if kind == Kind.SYNC else offset, path, data)
        number += 1


@dataclass(eq=False)
class _File:
    """A file or a directory: what was done to it, by the number of the event."""

    is_directory: bool
    changes: list[tuple[int, Event]] = field(default_factory=list)  # writes and truncations
    names: list[tuple[int, str, "_File | None"]] = field(default_factory=list)  # of a directory; None: removed
    syncs: list[tuple[int, int]] = field(default_factory=list)  # when it ended, and the events before it


class _Paths:
    """The files of a recorded run, by the path that each one has by now."""

    def __init__(self, root: _File) -> None:
        self._files: dict[str, _File] = {"": root}

    def add(self, number: int, path: str, file: _File) -> None:
        self._name(number, path, file)
        self._files[path] = file

    def remove(self, number: int, path: str) -> None:
        self._name(number, path, None)
        del self._files[path]

    def link(self, number: int, old: str, new: str) -> None:
        self.add(number, new, self._files[old])

    def rename(self, number: int, old: str, new: str) -> None:
        """Move a file, or a directory with all that is in it."""
        self.link(number, old, new)
        self.remove(number, old)
        for path in [path for path in self._files if path.startswith(f"{old}/")]:
            self._files[new + path.removeprefix(old)] = self._files.pop(path)

    def _name(self, number: int, path: str, file: _File | None) -> None:
        parent, _, last = path.rpartition("/")
        self._files[parent].names.append((number, last, file))


class Disk:
    """The disk of a recorded run.

    Args:
        events: What was recorded.
        names_in_order: Whether a change of a name is there only if the earlier changes of this name are, too.
    """

    def __init__(self, events: Sequence[Event], *, names_in_order: bool = False) -> None:
        self.events = events
        self._names_in_order = names_in_order
        self._root = _File(is_directory=True)
        self._indexes = [(number, one.data) for number, one in enumerate(events) if one.kind == Kind.SHARED_INDEX]
        self._follow()

    def _follow(self) -> None:
        """Find out which file each event is about."""
        by_inode: dict[int, _File] = {}
        paths = _Paths(self._root)
        for number, one in enumerate(self.events):
            match one.kind:
                case Kind.BEGIN:
                    by_inode[one.inode] = self._root
                case Kind.CREATE | Kind.MKDIR:
                    by_inode[one.inode] = _File(one.kind is Kind.MKDIR)
                    paths.add(number, one.path, by_inode[one.inode])
                case Kind.UNLINK | Kind.RMDIR:
                    paths.remove(number, one.path)
                case Kind.RENAME:
                    paths.rename(number, *one.path.split("\0"))
                case Kind.LINK:
                    paths.link(number, *one.path.split("\0"))
                case Kind.WRITE | Kind.TRUNCATE:
                    by_inode[one.inode].changes.append((number, one))
                case Kind.SYNC:
                    by_inode[one.inode].syncs.append((number, one.offset))

    def image(self, to: Path, moment: int, chance: random.Random, *, luck: float | None = None) -> None:
        """Make what a power loss after `moment` events may leave. With a luck of 1 that is all."""
        self._make(self._root, to, _Loss(moment, chance, luck))

    def _make(self, file: _File, to: Path, loss: "_Loss") -> None:
        moment = loss.moment
        durable = max((before for ended, before in file.syncs if ended < moment), default=0)
        if not file.is_directory:
            if file in loss.made:  # it has two names
                to.hardlink_to(loss.made[file])
                return
            loss.made[file] = to
            to.write_bytes(_content([one for one in file.changes if one[0] < moment], durable, loss))
            return
        to.mkdir()
        there, as_before = dict[int, bool](), set[str]()
        # By the event: a rename is there as a whole or not at all.
        for number, changed in groupby(file.names, lambda one: one[0]):
            names = {name for _, name, _ in changed}
            is_held_up = self._names_in_order and names & as_before
            there[number] = number < moment and (number < durable or (not is_held_up and loss.is_lucky()))
            if not there[number]:
                as_before |= names
        entries: dict[str, _File | None] = {name: entry for number, name, entry in file.names if there[number]}
        for name, entry in entries.items():
            if entry is None or name == "reserve":
                continue
            if name.endswith("-shm"):
                (to / name).write_bytes(self._index(loss))
            else:
                self._make(entry, to / name, loss)

    def _index(self, loss: "_Loss") -> bytes:
        """The log's index. It is never synced: its blocks are of any earlier moments, or were never written."""
        found = [data for number, data in self._indexes if number < loss.moment][-5:]
        if not found or loss.chance.random() < 0.3:
            return b""
        blocks = range(0, len(found[-1]), loss.block)
        return b"".join(loss.pick(found)[start : start + loss.block] for start in blocks)


class _Loss:
    """A power loss after `moment` events."""

    def __init__(self, moment: int, chance: random.Random, luck: float | None) -> None:
        self.moment = moment
        self.chance = chance
        self.block = chance.choice(_BLOCKS)
        # How likely the last state is.
        self._luck = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0)) if luck is None else luck
        self.made: dict[_File, Path] = {}

    def is_lucky(self) -> bool:
        return self.chance.random() < self._luck

    def pick(self, states: Sequence[_T]) -> _T:
        """One of some states, the oldest first."""
        return states[-1] if self.is_lucky() else self.chance.choice(states)


def _content(changes: Sequence[tuple[int, Event]], durable: int, loss: _Loss) -> bytes:
    """A file's content: its size and each of its blocks are as after some change since the last sync."""
    content = bytearray()
    pending: list[Event] = []
    for number, change in changes:
        if number < durable:
            _apply(content, change)
        else:
            pending.append(change)
    block = loss.block
    sizes, states = [len(content)], dict[int, list[bytes]]()
    for change in pending:
        if change.kind is Kind.TRUNCATE:
            if loss.is_lucky():
                _apply(content, change)
                sizes = [len(content)]
                states = {
                    index: [one[: len(content) - index * block] for one in found]
                    for index, found in states.items()
                    if index * block < len(content)
                }
            continue
        touched = range(change.offset // block, -(-(change.offset + len(change.data)) // block))
        for index in touched:
            states.setdefault(index, [bytes(content[index * block : (index + 1) * block])])
        _apply(content, change)
        sizes.append(len(content))
        for index in touched:
            states[index].append(bytes(content[index * block : (index + 1) * block]))
    result = content.ljust(max(sizes), b"\0")
    for index, found in states.items():
        result[index * block : (index + 1) * block] = loss.pick(found).ljust(block, b"\0")
    return bytes(result[: loss.pick(sizes)])


def _apply(content: bytearray, change: Event) -> None:
    if change.kind is Kind.TRUNCATE:
        content.extend(bytes(max(change.offset - len(content), 0)))
        del content[change.offset :]
        return
    content.extend(bytes(max(change.offset + len(change.data) - len(content), 0)))
    content[change.offset : change.offset + len(change.data)] = change.data


def said(events: Sequence[Event]) -> dict[str, set[int]]:
    """The numbers that a program has said, by the word before them."""
    found: dict[str, set[int]] = {}
    for one in events:
        for line in one.data.decode().splitlines() if one.kind is Kind.SAID else ():
            word, number = line.split()
            found.setdefault(word, set()).add(int(number))
    return found


def images_of(
    folder: Path, load: str, *, seed: int, images: int, unsynced: str = "", names_in_order: bool = False
) -> Iterator[tuple[Path, Sequence[Event]]]:
    """Record a run in a folder, which is made; images of random moments of it, each with the events before it."""
    root, image = folder / "disk", folder / "image"
    root.mkdir(parents=True)
    events = record(root, load, seed, unsynced=unsynced)
    disk = Disk(events, names_in_order=names_in_order)
    disk.image(image, len(events), random.Random(seed), luck=1.0)
    assert _contents(image) == _contents(root), "something that was done to the files is not recorded"
    shutil.rmtree(image)
    shutil.rmtree(root)
    begun = next(number for number, one in enumerate(events) if one.kind is Kind.SAID)
    for number in range(images):
        chance = random.Random(f"{seed} {number}")
        moment = chance.randrange(begun, len(events) + 1)
        disk.image(image, moment, chance)
        yield image, events[:moment]
        shutil.rmtree(image)


def _contents(root: Path) -> dict[Path, bytes]:
    """All files, without those that an image does not have as they were."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "reserve")
    return {path.relative_to(root): path.read_bytes() for path in files if not path.name.endswith("-shm")}


def is_in_use(events: Sequence[Event]) -> bool:
    """Whether something was promised since the queue was last marked, as being in use."""
    marks = [
        (number, one.data)
        for number, one in enumerate(events)
        if one.kind is Kind.WRITE and one.data.startswith(b'{"clean": ')
    ]
    if not marks or b"false" not in marks[-1][1]:
        return False
    return any(one.kind is Kind.SAID for one in events[marks[-1][0] :])


@dataclass(frozen=True)
class Outcome:
    """What became of an image."""

    missing: Mapping[str, set[int]]  # what was promised and is not there, by exporter
    said: Sequence[str]  # what was logged as a warning or error
    is_misread: bool = False  # it was in use, and looks as if its owner had stopped in order

    @property
    def is_bad(self) -> bool:
        return bool(self.missing) or self.is_misread


@contextmanager
def warnings() -> Iterator[list[str]]:
    """What the package logs as a warning or an error within the block."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("statsig_otel")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


def check(image: Path, events: Sequence[Event]) -> Outcome:
    """Open an image as a service does after a power loss, and look for what was promised."""
    promised = said(events)
    acknowledged, kept = promised.get("acknowledged", set()), promised.get("kept", set())
    with warnings() as lines:
        try:
            with running(image / "queue", exporters=EXPORTERS) as queue:
                settled(image / "queue")
                found = {name: set(delivered(queue.cursor(name))) for name in EXPORTERS}
                dead_letters = {
                    int.from_bytes(one.uid) for one in dead_letters_in(queue.database) if one.uid is not None
                }
        except (OSError, sqlite3.Error, QueueError, AssertionError) as error:
            return Outcome({"all": acknowledged}, [*lines, str(error)])
    there = {name: numbers | promised.get(name, set()) for name, numbers in found.items()}
    there["otlp"] |= dead_letters
    missing = {name: acknowledged - numbers for name, numbers in there.items()}
    missing["dead letters"] = kept - dead_letters - found["otlp"]
    return Outcome({name: numbers for name, numbers in missing.items() if numbers}, lines)


def try_images(folder: Path, *, seed: int, images: int, unsynced: str = "") -> Iterator[Outcome]:
    """Record a run of a queue in a folder, which is made, and check images of random moments of it."""
    load = "tests.exporters.queue.load"
    for image, events in images_of(folder, load, seed=seed, images=images, unsynced=unsynced):
        was_left_clean = QueueDirectory(image / "queue").was_left_clean()
        outcome = check(image, events)
        yield replace(outcome, is_misread=was_left_clean and is_in_use(events))
