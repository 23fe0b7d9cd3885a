"""The queue's files with anything done to them: they are opened, set aside or refused, and no readable record is lost.

An input is a list of edits. The first byte chooses whether the service that left the files was stopped or killed. Each
is read by the functions with which a start and a recovery read files, and one in `SHARE` by a running queue.
"""

import contextlib
import os
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Final, TypeAlias
from unittest.mock import patch

from statsig_otel.exporters.queue import checks, queries, schema, write_ahead_log, writer
from statsig_otel.exporters.queue.errors import DamagedError, ForeignFileError, NewerSchemaError, StorageError
from statsig_otel.exporters.queue.queries import ExporterState
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.records import Stored
from statsig_otel.exporters.queue.recovery import damaged_file
from statsig_otel.exporters.queue.recovery.carry_over import CarryOver
from tests.exporters.queue.helpers import PATIENCE, batch, change, consume, reading, running
from tests.fuzz.targets import Check, is_chosen

LONGEST: Final = 512
ENOUGH: Final = 1_000_000
SHARE: Final = 64
"""Of so many inputs one is opened by a queue with its threads, which takes thirty times as long as reading it."""

TOKENS: Final = (b"SQLite format 3\0", b"\x37\x7f\x06\x82", b"\x0d", b"\x05", b"\x0a", b"\x02", b"\xff" * 8, b"\0" * 8)

PAGE: Final = 4096
LOG_HEADER: Final = 32
LOG_FRAME: Final = 24 + PAGE
"""Bytes of the log: section 4 of https://www.sqlite.org/fileformat2.html."""

MOST_PAGES: Final = 100
EXPORTERS: Final = ("otlp", "file")
STORED: Final = range(1, 31)
DONE: Final = {"otlp": 0, "file": 4}
"""How many of the records each exporter is done with."""

SIZE: Final = 500
FRESH: Final = 1000
DAMAGED: Final = 0  # in the place of the number of a record that is not intact
ASIDE: Final = "queue.db.corrupt-*-[0-9]"
MOST_LETTERS: Final = 200
"""More dead letters than there can be: those of the stock, and one for each damaged record and exporter."""

FILES: Final = ("queue.db", "queue.db-wal", "queue.db-shm", "state.json", "lock")

MOST_FAILURES: Final = 60
"""Rows in a row that can't be read, before a table is given up: here no table has more than a few dozen rows."""

IDLE: Final = 0.005
"""Seconds without a job after which the writer tidies up."""

WITHIN: Final = 60.0
"""Seconds for what takes milliseconds, also under the fuzzer and beside other work."""

Rows: TypeAlias = list[tuple[object, ...]]


@dataclass(frozen=True)
class Stock:
    """Files as a service left them, and what its tables say."""

    files: Mapping[str, bytes]
    exporters: Rows
    routes: Rows
    records: Rows
    dead_letters: Rows


@dataclass(frozen=True)
class Readable:
    """What SQLite itself still finds: the records as they were stored, and the contents of dead letters."""

    records: Sequence[int] = ()
    dead_letters: Sequence[bytes] = ()


def seeds() -> Iterator[bytes]:
    """One edit of each kind, to the files of a stopped and of a killed service."""
    for crashed in (b"\0", b"\1"):
        yield crashed
        yield from (
            crashed + bytes((operation, file, 0, page * 16, 64)) + b"\xff" * 8
            for operation in range(6)
            for file in range(len(FILES))
            for page in (0, 1, 3, 5)
        )
    for page in range(20):  # with another number of cells
        yield from (b"\0\5\0" + (page * PAGE // 4 + 1).to_bytes(2) + bytes((bit,)) for bit in range(2))
    for where in (b"\0\2", b"\0\x10", b"\4\x10", b"\x20\x10"):  # in the log, and its index is gone
        yield b"\1\5\1" + where + b"\0" + bytes((3, FILES.index("queue.db-shm"), 0, 0, 0))


REFUSALS: Final = (ForeignFileError, NewerSchemaError)
"""What a start may refuse, and leave where it is."""
UNREADABLE: Final = (sqlite3.Error, UnicodeDecodeError, MemoryError)
"""What the standard library raises for damage."""


@contextmanager
def checking() -> Iterator[Check]:
    with (
        tempfile.TemporaryDirectory() as made,
        patch.object(schema, "in_memory", copied(schema.in_memory)),
        patch.object(write_ahead_log, "_sum_up", remembered(write_ahead_log._sum_up)),
        patch.object(damaged_file, "_MOST_FAILURES", MOST_FAILURES),
        patch.object(writer, "_IDLE", IDLE),
    ):
        directory = Path(made, "queue")
        stocks = [stock(Path(made, "stopped"), crashed=False), stock(Path(made, "killed"), crashed=True)]

        def check(data: bytes) -> None:
            left = stocks[data[0] & 1 if data else 0]
            files = edited(left.files, data[1:])
            found = readable(left, written(files, directory))
            if image := folded(left, files):
                found = both(found, readable(left, written({"queue.db": image}, directory)))
            check_read(written(files, directory) / "queue.db", found)
            if is_chosen(data, SHARE):
                check_queue(written(files, directory), files, found)

        yield check


InMemory: TypeAlias = Callable[[int], AbstractContextManager[sqlite3.Connection]]
SumUp: TypeAlias = Callable[[bytes, str, list[int]], list[int]]


def copied(in_memory: InMemory) -> InMemory:
    """The same empty queue, which is made once: its schema takes as long as all that is read."""

    @cache
    def image(version: int) -> bytes:
        with in_memory(version) as connection:
            return connection.serialize()

    @contextmanager
    def copy(version: int = schema.PLAIN) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            connection.deserialize(image(version))
            yield connection

    return copy


def remembered(sum_up: SumUp) -> SumUp:
    """The same checksums, each computed once: nearly all frames of a log are those of the log that was edited."""

    @lru_cache(maxsize=4096)
    def once(data: bytes, order: str, first: int, second: int) -> list[int]:
        return sum_up(data, order, [first, second])

    return lambda data, order, sums: once(data, order, *sums)


def written(files: Mapping[str, bytes], directory: Path) -> Path:
    """The directory, with these files and no others."""
    directory.mkdir(exist_ok=True)
    for entry in list(os.scandir(directory)):
        if entry.name not in files:
            os.unlink(entry.path)  # noqa: PTH108 - a million times
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def stock(directory: Path, *, crashed: bool) -> Stock:
    """Records and dead letters, and nothing else in the log. One exporter is done with some of the records."""
    half = len(STORED) // 2
    with running(directory, exporters=EXPORTERS) as queue:  # it folds the log in
        consume(queue, batch(*STORED[:half], size=SIZE, invalid=2)).result(PATIENCE)
    with running(directory, exporters=EXPORTERS) as queue:
        consume(queue, batch(*STORED[half:], size=SIZE, invalid=2)).result(PATIENCE)
        cursor = queue.cursor("file")
        cursor.finish(cursor.read(DONE["file"], 1 << 20))
        files = contents(directory)
    if not crashed:
        files = contents(directory)
    with contextlib.closing(sqlite3.connect(directory / "queue.db")) as connection:
        rows = (connection.execute(query).fetchall() for query in (_RECORDS, _LETTERS))
        return Stock(files, *tables(connection), *rows)


_RECORDS: Final = "SELECT seq, route, uid, payload, checksum FROM records"
_LETTERS: Final = "SELECT id, kind, owner, reason, content FROM dead_letters"


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in FILES if (directory / name).exists()}


def tables(connection: sqlite3.Connection) -> tuple[Rows, Rows]:
    exporters = connection.execute("SELECT id, name, cursor, again FROM exporters ORDER BY id").fetchall()
    return exporters, connection.execute("SELECT id, receiver, exporters FROM routes ORDER BY id").fetchall()


def edited(files: Mapping[str, bytes], edits: bytes) -> dict[str, bytes]:
    """The files after the edits, each of at least five bytes: what is done, to which file, where, and with how much."""
    found = dict(files)
    while len(edits) >= 5:
        operation, name, where, amount = edits[0], FILES[edits[1] % len(FILES)], edits[2:4], edits[4]
        edits = edits[5:]
        content = found.get(name, b"")
        place = int.from_bytes(where) * 4 % (len(content) + 1)
        match operation % 6:
            case 0:  # overwrite
                new, edits = edits[: amount % 65], edits[amount % 65 :]
                found[name] = content[:place] + new + content[place + len(new) :]
            case 1:  # cut off
                found[name] = content[:place]
            case 2:  # a page of zeros
                page = place // PAGE * PAGE
                found[name] = content[:page] + bytes(min(PAGE, len(content) - page)) + content[page + PAGE :]
            case 3:  # delete
                found.pop(name, None)
            case 4:  # one page in the place of another
                page, other = place // PAGE * PAGE, amount * PAGE
                found[name] = content[:page] + content[other : other + PAGE].ljust(PAGE, b"\0") + content[page + PAGE :]
            case _:  # flip a bit
                if place < len(content):
                    place = min(len(content) - 1, place + amount // 8)
                    flipped = content[place] ^ 1 << amount % 8
                    found[name] = content[:place] + bytes((flipped,)) + content[place + 1 :]
    return found


def readable(left: Stock, directory: Path) -> Readable:
    """What is there as it was; nothing if SQLite can't say for whom it is."""
    try:
        with contextlib.closing(sqlite3.connect(directory / "queue.db")) as connection:
            if tables(connection) != (left.exporters, left.routes):
                return Readable()
            records = rows_of(connection, f"{_RECORDS} WHERE seq", left.records)
            found = rows_of(connection, f"{_LETTERS} WHERE id", left.dead_letters)
            return Readable([int(str(row[0])) for row in records], [content_of(row) for row in found])
    except UNREADABLE:
        return Readable()


def folded(left: Stock, files: Mapping[str, bytes]) -> bytes:
    """The database with all commits of its log, if SQLite would drop several of them; else empty.

    It drops what is behind the first changed byte. The last commit alone can be one that was never acknowledged.
    """
    log, before = files.get("queue.db-wal", b""), left.files.get("queue.db-wal", b"")
    salts = before[16:24]
    is_read = log[:LOG_HEADER] == before[:LOG_HEADER]
    if not is_read and log[LOG_HEADER + 8 : LOG_HEADER + 16] != salts:
        return b""  # nothing tells which frames are of this log
    unread = 0
    image = bytearray(files.get("queue.db", b""))
    transaction: list[tuple[int, bytes]] = []
    for at in range(LOG_HEADER, len(log) - LOG_FRAME + 1, LOG_FRAME):
        frame = log[at : at + LOG_FRAME]
        is_read = is_read and frame == before[at : at + LOG_FRAME]
        if frame[8:16] != salts:
            continue
        transaction.append((int.from_bytes(frame[:4]), frame[-PAGE:]))
        if any(frame[4:8]):
            unread += not is_read
            for number, content in transaction:
                if 0 < number <= MOST_PAGES:
                    image.extend(bytes(max(number * PAGE - len(image), 0)))
                    image[(number - 1) * PAGE : number * PAGE] = content
            transaction.clear()
    return bytes(image) if unread > 1 else b""


def both(one: Readable, other: Readable) -> Readable:
    letters = Counter(one.dead_letters) | Counter(other.dead_letters)
    return Readable([*{*one.records, *other.records}], [*letters.elements()])


def rows_of(connection: sqlite3.Connection, query: str, rows: Rows) -> Rows:
    """Those of the rows that are found by their keys, each by a search of its own, and have not changed."""
    keys = [row[0] for row in rows]
    with contextlib.suppress(*UNREADABLE):
        found = {*connection.execute(" UNION ALL ".join([f"{query} = ?"] * len(keys)), keys)}
        return [row for row in rows if row in found]
    return [row for row in rows if row == one_row(connection, f"{query} = ?", row[0])]


def one_row(connection: sqlite3.Connection, query: str, key: object) -> tuple[object, ...] | None:
    """A row by its key; None if it can't be read."""
    with contextlib.suppress(*UNREADABLE):
        row: tuple[object, ...] | None = connection.execute(query, (key,)).fetchone()
        return row
    return None


def content_of(dead_letter: tuple[object, ...]) -> bytes:
    assert isinstance(dead_letter[-1], bytes)
    return dead_letter[-1]


def check_read(database: Path, found: Readable) -> None:
    """All that can be read is read, as a start reads the database, or as a recovery does if it is damaged."""
    try:
        numbers, contents_left = read_by_a_start(database)
    except sqlite3.DatabaseError:
        numbers, contents_left = read_by_a_recovery(database)
    except REFUSALS:
        return
    check_found(numbers, found.records)
    assert Counter(found.dead_letters) <= Counter(contents_left), "a dead letter is lost"


def read_by_a_start(database: Path) -> tuple[dict[str, set[int]], list[bytes]]:
    """The records for each exporter, and the dead letters.

    Raises:
        sqlite3.DatabaseError: It is damaged.
    """
    if write_ahead_log.check(database).is_damaged:
        raise DamagedError
    with contextlib.closing(schema.connect(database)) as connection:
        connection.execute("BEGIN")
        checks.check_database(connection)
        connection.execute("COMMIT")
        return in_tables(connection)


def read_by_a_recovery(database: Path) -> tuple[dict[str, set[int]], list[bytes]]:
    """The same, from what is carried over."""
    database.touch()  # as if it was set aside
    with schema.in_memory() as fresh:
        try:
            with damaged_file.opened(database, spare_bytes=1 << 30) as connection:
                carry_over = CarryOver("queue.db", connection, exporters_of=lambda _: EXPORTERS, now_ms=lambda: 0)
                for step in carry_over.steps():
                    carry_over.done += step(fresh)
        except damaged_file.UnreadableError:
            pass
        return in_tables(fresh)


def in_tables(connection: sqlite3.Connection) -> tuple[dict[str, set[int]], list[bytes]]:
    states = {state.name: state for state in queries.exporter_states(connection)}
    numbers = {name: {*numbers_for(connection, states[name])} if name in states else set() for name in EXPORTERS}
    return numbers, dead_letters_in(connection)


def numbers_for(connection: sqlite3.Connection, exporter: ExporterState) -> Iterator[int]:
    """The numbers of the intact records that wait for an exporter, as its sender reads them."""
    routes, after = queries.routes_of(connection, exporter.id), exporter.cursor
    while True:
        for read_next in (queries.read_records, queries.read_without_index):
            if records := read_next(connection, routes, after=after, count=100, size=1 << 20):
                break
        else:
            return
        yield from (number_of(record) for record in records if record.intact)
        assert records.seqs[-1] > after, "records come again"
        after = records.seqs[-1]


def number_of(record: Stored) -> int:
    number = int.from_bytes(record.uid)
    assert number >= FRESH or (record.payload,) == records_of(number)
    return number


@cache
def records_of(number: int) -> tuple[bytes, ...]:
    return change(number, size=SIZE).records


def check_queue(directory: Path, files: Mapping[str, bytes], found: Readable) -> None:
    try:
        with running(directory, exporters=EXPORTERS) as queue:
            delivered = everything(queue)
            # A file from which nothing can be deleted may only now be set aside.
            wait_for(partial(has_dead_letters, queue, found.dead_letters), "its dead letters can be read")
    except REFUSALS:
        kept = [path.read_bytes() for path in directory.glob("queue.db*")]
        assert not files.get("queue.db") or files["queue.db"] in kept, "refused, and the database is gone"
        return
    check_delivered(delivered, found.records)


def has_dead_letters(queue: DurableQueue, contents: Iterable[bytes]) -> bool:
    try:
        with reading(queue.database) as connection:
            return Counter(contents) <= Counter(dead_letters_in(connection))
    except (sqlite3.Error, OSError):
        return False


def dead_letters_in(connection: sqlite3.Connection) -> list[bytes]:
    """The contents of the dead letters; each is looked up by itself if they can't all be read."""
    with contextlib.suppress(*UNREADABLE):
        return [content_of(row) for row in connection.execute(_LETTERS) if isinstance(row[-1], bytes)]
    rows = (one_row(connection, f"{_LETTERS} WHERE id = ?", number) for number in range(1, MOST_LETTERS))
    return [content_of(row) for row in rows if row is not None and isinstance(row[-1], bytes)]


def check_delivered(delivered: Mapping[str, set[int]], found: Iterable[int]) -> None:
    """Each exporter has what is acknowledged now, or a damaged record in its place, and what was found for it.

    SQLite may write a new record to a damaged page, and spoil it there when it deletes others.
    """
    for name in EXPORTERS:
        assert {FRESH, DAMAGED} & delivered[name], f"{name} has not got a change that was acknowledged"
    check_found(delivered, found)


def check_found(delivered: Mapping[str, set[int]], found: Iterable[int]) -> None:
    for name in EXPORTERS:
        missing = [seq for seq in found if seq > DONE[name] and seq not in delivered[name]]
        assert not missing, f"{name} has not got {missing}, which can be read"


def everything(queue: DurableQueue) -> dict[str, set[int]]:
    """What each exporter gets, with a change that is acknowledged now; as its sender does, again after an error."""
    delivered: dict[str, set[int]] = {name: set() for name in EXPORTERS}
    # The first change may be in a file that only the reading of it shows to be damaged.
    for fresh in (FRESH + 1, FRESH):
        wait_for(partial(takes, queue, fresh), "it takes a change")
        read_by_all(queue, delivered)
    wait_for(lambda: not list(queue.database.parent.glob(ASIDE)), "it is carried over")
    read_by_all(queue, delivered)
    return delivered


def wait_for(condition: Callable[[], object], what: str) -> None:
    """As `wait_until`, and with shorter pauses: it waits for what takes a millisecond, a million times."""
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.0005)


def takes(queue: DurableQueue, number: int) -> bool:
    return consume(queue, batch(number)).exception(PATIENCE) is None


def read_by_all(queue: DurableQueue, delivered: Mapping[str, set[int]]) -> None:
    for name, numbers in delivered.items():
        wait_for(partial(read, queue, name, numbers), f"{name} reads all")


def read(queue: DurableQueue, name: str, delivered: set[int]) -> bool:
    """Read what waits for an exporter, and add the intact records; False if it can't be read now."""
    try:
        cursor = queue.cursor(name)
        while records := cursor.read(100, 1 << 20):
            cursor.finish(records)
            delivered |= {number_of(record) if record.intact else DAMAGED for record in records}
    except (sqlite3.Error, StorageError):
        return False
    return True
