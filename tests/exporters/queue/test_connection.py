"""A row that claims more bytes than there is memory for is damage; too little memory for a sound row is not."""

import gc
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from statsig_otel.exporters.queue import schema
from tests.exporters.queue.damage import PAGE, overwrite, pages_of
from tests.exporters.queue.helpers import numbers_of, put, read_all, running, settled

NUMBERS = range(1, 31)
SIZE_BYTES = 2
"""The bytes before the key of a row: its size."""

CLAIM = bytes([*[0xFF] * 8, 0x7E])
"""The largest size (sqlite.org/fileformat.html, "varint")."""

MANY_VALUES = b"\x92\x00"
"""Behind the key: that a list of 2,304 bytes says which values the row has, more than there are on the page."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A queue that was left in order, with records that wait."""
    directory = tmp_path / "queue"
    with running(directory) as queue:
        put(queue, *NUMBERS, size=500)
    return directory


def cells_of(database: Path) -> list[int]:
    """Where the rows of the table of records begin, in their order."""
    content, cells = database.read_bytes(), []
    for page in sorted(pages_of(database, "records")["leaf"]):
        begin = (page - 1) * PAGE
        count = int.from_bytes(content[begin + 3 : begin + 5])
        pointers = (content[begin + 8 + 2 * at : begin + 10 + 2 * at] for at in range(count))
        cells += [begin + int.from_bytes(pointer) for pointer in pointers]
    return cells


def harm(database: Path, place: int) -> None:
    """Make one of the rows claim more than all memory."""
    cells = cells_of(database)
    assert len(cells) == len(NUMBERS)
    key = database.read_bytes()[cells[place] + SIZE_BYTES :][:1]
    overwrite(database, cells[place], CLAIM + key + MANY_VALUES)


@pytest.mark.parametrize("place", [0, 12, -1])
def test_a_row_that_claims_more_than_all_memory_hides_no_other(directory: Path, place: int) -> None:
    """SQLite says that it has too little memory, for which Python has a `MemoryError`."""
    database, damaged = directory / "queue.db", NUMBERS[place]
    harm(database, place)
    with closing(sqlite3.connect(database)) as plain, pytest.raises((MemoryError, sqlite3.DatabaseError)):
        plain.execute("SELECT payload FROM records WHERE seq = ?", (damaged,)).fetchone()
    with running(directory) as queue:
        put(queue, 100)
        found = [record for record in read_all(queue.cursor("otlp")) if record.intact]
        settled(directory)
        found += [record for record in read_all(queue.cursor("otlp")) if record.intact]
        assert sorted(numbers_of(found)) == [*(number for number in NUMBERS if number != damaged), 100]


def test_a_row_that_claims_more_than_all_memory_is_damage_also_if_memory_is_short(directory: Path) -> None:
    database = directory / "queue.db"
    harm(database, 0)
    ran = subprocess.run([sys.executable, "-c", DAMAGED_AND_SHORT, str(database)], check=False, timeout=60)
    assert ran.returncode == 0


DAMAGED_AND_SHORT = """
import resource, sqlite3, sys
from pathlib import Path
from statsig_otel.exporters.queue import schema

connection = schema.open_read_only(Path(sys.argv[1]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    connection.execute("SELECT payload FROM records WHERE seq = 1").fetchone()
except sqlite3.DatabaseError as error:
    assert schema.is_damage(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < resident + 10_000, "it takes no memory to find that out"
else:
    raise AssertionError("it was read")
"""


def test_an_iteration_that_is_given_up_after_the_connection_is_closed_says_nothing(directory: Path) -> None:
    """What is raised while an object is removed is an error of the test, by the configuration of pytest."""
    with closing(schema.open_read_only(directory / "queue.db")) as connection:
        rows = iter(connection.execute("SELECT seq FROM records"))
        assert next(rows) == (1,)
    del rows
    gc.collect()


def test_too_little_memory_for_a_sound_row_is_an_error_that_passes(tmp_path: Path) -> None:
    """It must never count as damage: the record would become a dead letter without content."""
    ran = subprocess.run([sys.executable, "-c", WITHOUT_MEMORY, str(tmp_path / "large.db")], check=False, timeout=60)
    assert ran.returncode == 0


WITHOUT_MEMORY = """
import resource, sqlite3, sys
from pathlib import Path

from statsig_otel.exporters.queue import schema

connection = schema.create(Path(sys.argv[1]))
connection.execute("CREATE TABLE rows (content BLOB)")
connection.execute("INSERT INTO rows VALUES (zeroblob(100000000))")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = resource.getrlimit(resource.RLIMIT_AS)
for read in (
    lambda: connection.execute("SELECT content FROM rows").fetchone(),
    lambda: connection.execute("SELECT content FROM rows").fetchall(),
    lambda: list(connection.execute("SELECT content FROM rows")),
    lambda: connection.execute("SELECT 1 UNION ALL SELECT content FROM rows").fetchall(),
    lambda: list(connection.execute("SELECT 1 UNION ALL SELECT content FROM rows")),
):
    resource.setrlimit(resource.RLIMIT_AS, (used + (50 << 20), limit[1]))
    try:
        read()
    except sqlite3.Error as error:
        assert schema.will_pass(error) and not schema.is_damage(error), error
    else:
        raise AssertionError("there was memory")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    read()
"""
