"""Damaged files: said loudly, kept under another name, and never a reason to stop taking and delivering."""

import contextlib
import logging
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from statsig_otel.exporters.queue import schema, store, writer
from statsig_otel.exporters.queue.database import StoppedQueue
from statsig_otel.exporters.queue.errors import DamagedError, ForeignFileError, NewerSchemaError
from statsig_otel.exporters.queue.records import Stored
from statsig_otel.exporters.queue.recovery import damaged_file
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.routing import QueuedExporter
from tests.exporters.queue.damage import PAGE, SIZE, STORED, check_that_it_serves, overwrite, pages_of
from tests.exporters.queue.helpers import (
    PATIENCE,
    batch,
    check_counters,
    consume,
    copy_of,
    dead_letters_in,
    delivered,
    errors,
    kept,
    numbers_of,
    put,
    read_all,
    running,
    said,
    settled,
)
from tests.looped import slow_except
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that was left in order, with records that wait and some dead letters."""
    directory = tmp_path_factory.mktemp("stock")
    with running(directory) as queue:
        for start in range(STORED.start, STORED.stop, 50):
            consume(queue, batch(*range(start, start + 50), size=SIZE, invalid=1)).result(PATIENCE)
    return directory


@pytest.fixture
def directory(stock: Path, tmp_path: Path) -> Path:
    """A copy of it to harm."""
    return Path(shutil.copytree(stock, tmp_path / "queue"))


@pytest.fixture(autouse=True)
def _tidied_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be deleted is not tried again, after which the file would be set aside, sooner or later in a test."""
    monkeypatch.setattr(writer, "_IDLE", 600.0)


HARMS: dict[str, Callable[[Path], object]] = {
    "garbage": lambda database: database.write_bytes(b"this is no database\n" * 5000),
    "random bytes": lambda database: database.write_bytes(random.Random(1).randbytes(100_000)),
    "only zeros": lambda database: database.write_bytes(bytes(50_000)),
    "a header of zeros": lambda database: overwrite(database, 0, bytes(100)),
    "no magic": lambda database: overwrite(database, 0, b"SQLITE"),
    "a read-only format": lambda database: overwrite(database, 18, b"\x07"),
    "an unknown format": lambda database: overwrite(database, 19, b"\x07"),
    "another page size": lambda database: overwrite(database, 16, b"\x02\x00"),
    "an unknown schema format": lambda database: overwrite(database, 44, b"\0\0\0\x09"),
    "another application": lambda database: overwrite(database, 68, b"\0\0\0\x07"),
    "a schema of zeros": lambda database: overwrite(database, 100, bytes(PAGE - 100)),
    "a few bytes": lambda database: database.write_bytes(database.read_bytes()[:50]),
    "one page": lambda database: database.write_bytes(database.read_bytes()[:PAGE]),
    "the first half": lambda database: database.write_bytes(database.read_bytes()[: database.stat().st_size // 2]),
    "a schema that is no text": lambda database: overwrite(
        database, database.read_bytes().index(b"CREATE TABLE exporters"), b"\xff\xfe"
    ),
    "a table whose name is no text": lambda database: overwrite(
        database, database.read_bytes().index(b"exportersexporters"), b"\xff\xa2"
    ),
    "a column of another name": lambda database: overwrite(
        database, database.read_bytes().index(b"payload  BLOB"), b"paylord"
    ),
}


NOTHING_LEFT = {"garbage", "random bytes", "only zeros", "a few bytes", "one page"}
SOME_LEFT = {"the first half"}


@pytest.mark.parametrize(
    "harm",
    slow_except(HARMS, "garbage", "a header of zeros", "another page size", "a few bytes", "the first half",
                "a schema that is no text", "a column of another name"),
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_set_aside_and_what_is_left_of_it_delivered(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr(damaged_file, "_MOST_FAILURES", 1000)
    database = directory / "queue.db"
    HARMS[harm](database)
    before = database.read_bytes()
    with running(directory) as queue:
        assert said(caplog, logging.ERROR, "and a new one is begun") == 1
        put(queue, 1000)
        settled(directory)
        (aside,) = kept(directory)
        assert aside.read_bytes() == before, "kept as it was found"
        assert {stat.S_IMODE(file.stat().st_mode) for file in directory.glob("queue.db*")} <= {0o600}
        found = delivered(queue.cursor("otlp"))
        found.remove(1000)
        assert len(found) == len(set(found)), "once"
        if harm in NOTHING_LEFT:
            assert found == []
        elif harm in SOME_LEFT:
            assert found == list(range(1, len(found) + 1))
            assert 200 < len(found) < 600
        else:
            assert found == list(STORED)
            assert len(dead_letters_in(queue.database)) == 12
            assert (
                said(
                    caplog,
                    logging.WARNING,
                    "600 waiting records, 0 damaged records as dead letters, and 12 earlier dead letters",
                )
                == 1
            )
            assert said(caplog, logging.WARNING, "No record that waited is missing") == 1
            assert put(queue, 7).duplicates == 1, "what was seen is known"
        check_counters(queue)
    caplog.clear()
    with running(directory) as queue:
        assert put(queue, 1000).duplicates == 1
    assert not errors(caplog)


LOSSES: dict[str, Callable[[Path], object]] = {
    "empty": lambda database: database.write_bytes(b""),
    "gone": lambda database: database.unlink(),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_file_that_is_empty_or_gone_is_said_loudly_and_begun_anew(
    directory: Path, caplog: pytest.LogCaptureFixture, loss: str
) -> None:
    LOSSES[loss](directory / "queue.db")
    with pytest.raises(sqlite3.DatabaseError, match="gone or empty"), StoppedQueue(directory):
        pass
    with running(directory) as queue:
        check_that_it_serves(queue)
    assert said(caplog, logging.ERROR, "its database (queue.db) is gone or empty: what waited in it is lost") == 1
    caplog.clear()
    with running(directory):
        pass
    assert not errors(caplog)


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 99", "DROP TABLE seen; PRAGMA application_id = 5"])
def test_a_file_that_is_not_ours_to_judge_stays_where_it_is(directory: Path, statement: str) -> None:
    connection = sqlite3.connect(directory / "queue.db")
    connection.executescript(statement)
    connection.close()
    before = (directory / "queue.db").read_bytes()
    for _ in range(2):
        with pytest.raises((NewerSchemaError, ForeignFileError)), running(directory):
            pass
    assert (directory / "queue.db").read_bytes() == before
    assert not kept(directory)


def test_flipped_bytes_of_a_payload_are_told_from_the_record_that_was_stored(directory: Path) -> None:
    database = directory / "queue.db"
    content = database.read_bytes()
    for number in (5, 300, 600):
        overwrite(database, content.index(b"%d.0---" % number) + 50, b"!")
    with running(directory) as queue:
        found = {int.from_bytes(record.uid): record.intact for record in check_that_it_serves(queue)}
        assert [number for number, intact in found.items() if not intact] == [5, 300, 600]
        assert set(STORED) <= set(found)
        check_counters(queue)
    assert not kept(directory)


def test_a_page_of_records_that_cannot_be_read_hides_no_other(directory: Path) -> None:
    """Each of its records is ticked off with a dead letter, and all others are delivered, in order."""
    leaves = pages_of(directory / "queue.db", "records")["leaf"]
    for leaf in (leaves[3], leaves[20]):
        overwrite(directory / "queue.db", (leaf - 1) * PAGE, bytes(PAGE))
    with running(directory) as queue:
        put(queue, 1000)
        cursor = queue.cursor("otlp")
        found: list[Stored] = []
        while records := cursor.read(50, 1 << 20):
            lost = [record for record in records if not record.intact]
            cursor.finish(records, [DeadLetter("record", "otlp", "can't be read", record.payload) for record in lost])
            found += records
        intact = [record for record in found if record.intact]
        assert [record.seq for record in found] == [*range(1, 601), 601]
        assert 2 <= len(found) - len(intact) <= 30
        assert numbers_of(intact) == [record.seq if record.seq <= 600 else 1000 for record in intact]
        check = queue.states()[0]
        assert (check.waiting, check.bytes) == (0, 0)
        assert len(dead_letters_in(queue.database)) == 12 + len(found) - len(intact)
    assert not kept(directory)


def test_what_cannot_be_deleted_is_said_once_and_stops_nothing(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leaf = pages_of(directory / "queue.db", "records")["leaf"][3]
    overwrite(directory / "queue.db", (leaf - 1) * PAGE, bytes(PAGE))
    with running(directory) as queue:
        read_all(queue.cursor("otlp"))
        for number in range(1000, 1100):
            put(queue, number)
        assert len(read_all(queue.cursor("otlp"))) == 100
    assert said(caplog, logging.ERROR, "The disk space of delivered records can't be freed now") == 1
    assert len(errors(caplog)) == 1


def test_a_file_from_which_nothing_can_be_deleted_is_set_aside_and_carried_over(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would grow until the disk is full."""
    leaf = pages_of(directory / "queue.db", "records")["leaf"][3]
    overwrite(directory / "queue.db", (leaf - 1) * PAGE, bytes(PAGE))
    with running(directory) as queue:
        read_all(queue.cursor("otlp"))
        monkeypatch.setattr(writer, "_IDLE", 0.05)
        put(queue, 1000)
        wait_until(lambda: kept(directory), "it is set aside")
        settled(directory)
        wait_until(lambda: said(caplog, logging.WARNING, "The disk space of delivered records is freed again") == 1)
        assert delivered(queue.cursor("otlp")) == [1000]
        assert len(dead_letters_in(queue.database)) == 12
        check_counters(queue)
    assert said(caplog, logging.ERROR, "The disk space of delivered records can't be freed now") == 1
    assert said(caplog, logging.ERROR, "and a new one is begun") == 1


def test_an_index_that_cannot_be_read_hides_nothing(directory: Path) -> None:
    leaf = pages_of(directory / "queue.db", "records_by_route")["leaf"][0]
    overwrite(directory / "queue.db", (leaf - 1) * PAGE, bytes(PAGE))
    with running(directory) as queue:
        assert numbers_of(check_that_it_serves(queue)) == [*STORED, 10_000, 10_001]
    assert not kept(directory)


def test_an_index_that_ends_too_early_is_noticed_by_the_count_of_what_waits(directory: Path) -> None:
    """No error of the engine's says so: the page just has fewer entries."""
    leaf = pages_of(directory / "queue.db", "records_by_route")["leaf"][-1]
    overwrite(directory / "queue.db", (leaf - 1) * PAGE + 3, (5).to_bytes(2))
    with running(directory) as queue:
        assert set(STORED) <= set(delivered(queue.cursor("otlp")))
        assert queue.cursor("otlp").waiting == 0
        check_that_it_serves(queue)


def test_a_count_that_is_wrong_in_a_sound_file_is_set_right_and_said(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(directory) as queue:
        queue.submit(lambda connection: store.add_waiting(connection, [queue.cursor("otlp").id], 3, 7)).result(PATIENCE)
        assert len(read_all(queue.cursor("otlp"))) == len(STORED)
        check_counters(queue)
        assert not kept(directory)
    assert errors(caplog) == ["otlp: 3 records counted as waiting can't be found in the queue: the count is corrected"]


def test_a_count_of_which_a_bit_was_flipped_refuses_nothing_after_the_next_start(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(sqlite3.connect(directory / "queue.db", isolation_level=None)) as connection:
        connection.execute("UPDATE exporters SET waiting = waiting + (1 << 30)")
    with running(directory, exporters={"otlp": QueuedExporter(queue_size=1000)}) as queue:
        check_counters(queue)
        put(queue, 1000)
        assert delivered(queue.cursor("otlp")) == [*STORED, 1000]
        assert not kept(directory)
    with running(directory):
        pass
    assert said(caplog, logging.ERROR, "There are 600 records of 300000 bytes") == 1
    assert len(errors(caplog)) == 1


def test_an_index_that_leads_past_records_is_said_loudly_and_none_is_lost(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An index without some entries in its middle is no error of the engine's either."""
    leaf = pages_of(directory / "queue.db", "records_by_route")["leaf"][0]
    overwrite(directory / "queue.db", (leaf - 1) * PAGE + 3, (5).to_bytes(2))
    with running(directory) as queue:
        assert set(STORED) <= set(numbers_of(check_that_it_serves(queue)))
        assert len(kept(directory)) == 1
    assert said(caplog, logging.ERROR, "omits some of them") == 2, "why it can't be used, and what became of it"
    assert said(caplog, logging.ERROR, "and a new one is begun") == 1
    assert said(caplog, logging.WARNING, "No record that waited is missing") == 1


@pytest.mark.parametrize(
    "name", slow_except(["records", "records_by_route", "seen", "seen_by_time"], "records", "seen_by_time")
)
@pytest.mark.parametrize("kind", ["internal", "leaf"])
def test_damage_that_is_found_while_it_runs_stops_neither_the_door_nor_the_delivery(
    directory: Path, name: str, kind: str
) -> None:
    for page in pages_of(directory / "queue.db", name)[kind]:
        overwrite(directory / "queue.db", (page - 1) * PAGE, bytes(PAGE))
    with running(directory) as queue:
        for number in range(2000, 2040):
            put(queue, number)
        found = numbers_of(check_that_it_serves(queue))
        assert set(range(2000, 2040)) <= set(found)
        assert kept(directory) or name == "records" or set(STORED) <= set(found)
        check_counters(queue)


def test_a_file_that_goes_bad_under_a_running_queue_is_set_aside(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(directory) as queue:
        assert len(queue.cursor("otlp").read(10, 1 << 20)) == 10
        (directory / "queue.db").write_bytes(b"garbage" * 100_000)
        (directory / "queue.db-wal").write_bytes(b"")
        for number in range(1000, 1020):
            put(queue, number)
        found = numbers_of(check_that_it_serves(queue))
        assert found == [*range(1000, 1020), 10_000, 10_001]
        check_counters(queue)
        assert len(kept(directory)) == 1
        wait_until(lambda: all(Path(f"{file}-wal").exists() for file in kept(directory)), "its log goes with it")
        assert {stat.S_IMODE(file.stat().st_mode) for file in directory.glob("queue.db*")} == {0o600}
    assert said(caplog, logging.ERROR, "and a new one is begun") == 1
    assert said(caplog, logging.WARNING, "can be written again") == 1


def crashed(tmp_path: Path, *numbers: int) -> Path:
    """What a crash leaves behind after some changes were taken, none of them folded into the file."""
    with running(tmp_path / "running") as queue:
        for number in numbers:
            put(queue, number)
        return copy_of(tmp_path / "running", tmp_path / "crashed")


def test_after_a_crash_all_is_there_and_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(crashed(tmp_path, 1, 2, 3)) as queue:
        assert put(queue, 3, 4).duplicates == 1
        assert delivered(queue.cursor("otlp")) == [1, 2, 3, 4]
    assert not errors(caplog)


def test_a_log_that_is_missing_after_a_crash_is_said_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = crashed(tmp_path, 1, 2, 3)
    (directory / "queue.db-wal").unlink()
    with running(directory) as queue:
        check_that_it_serves(queue)
    assert said(caplog, logging.ERROR, "its log (queue.db-wal) is gone: what was acknowledged last may be lost") == 1
    caplog.clear()
    with running(directory):
        pass
    assert not errors(caplog)


def test_a_log_that_is_missing_after_a_stop_in_order_is_as_it_should_be(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "queue.db-wal").unlink(missing_ok=True)
    with running(directory):
        pass
    assert not errors(caplog)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_log_whose_database_is_empty_or_gone_is_carried_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loss: str
) -> None:
    directory = crashed(tmp_path, 1, 2, 3)
    LOSSES[loss](directory / "queue.db")
    log = (directory / "queue.db-wal").read_bytes()
    with pytest.raises(DamagedError, match="its log is not"):
        schema.connect_reading(directory / "queue.db")
    with pytest.raises(DamagedError, match="its log is not"), StoppedQueue(directory):
        pass
    assert (directory / "queue.db-wal").read_bytes() == log
    with running(directory) as queue:
        settled(directory)
        assert put(queue, 3, 4).duplicates == 1
        assert sorted(delivered(queue.cursor("otlp"))) == [1, 2, 3, 4]
        check_counters(queue)
    assert said(caplog, logging.ERROR, "it is gone or empty, and its log is not") == 1
    assert (
        said(
            caplog, logging.WARNING, "3 waiting records, 0 damaged records as dead letters, and 0 earlier dead letters"
        )
        == 1
    )
    caplog.clear()
    with running(directory):
        pass
    assert not errors(caplog)


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_log_that_was_cut_short_keeps_what_came_before(tmp_path: Path, part: float) -> None:
    directory = crashed(tmp_path, *range(1001, 1041))
    log = directory / "queue.db-wal"
    log.write_bytes(log.read_bytes()[: int(log.stat().st_size * part)])
    with running(directory) as queue:
        found = numbers_of(check_that_it_serves(queue))[:-2]
        assert found == list(range(1001, 1001 + len(found)))
        assert len(found) < 40
        check_counters(queue)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[]"])
def test_a_state_file_of_garbage_loses_nothing(directory: Path, content: bytes) -> None:
    (directory / "state.json").write_bytes(content)
    with running(directory) as queue:
        assert numbers_of(check_that_it_serves(queue)) == [*STORED, 10_000, 10_001]


def flip(directory: Path, seed: int) -> None:
    """Up to four places with a few bytes of anything; half of them in the headers, where most is decided."""
    chance = random.Random(seed)
    database = directory / "queue.db"
    size = database.stat().st_size
    for _ in range(chance.randint(1, 4)):
        page = chance.randrange(size // PAGE) * PAGE
        place = page + chance.randrange(chance.choice([100, PAGE]))
        overwrite(database, place, chance.choice([b"\0", b"\xff", chance.randbytes(chance.randint(1, 16))]))


def check_flips(stock: Path, to: Path, seed: int) -> None:
    directory = Path(shutil.copytree(stock, to))
    flip(directory, seed)
    try:
        with running(directory) as queue:
            check_that_it_serves(queue)
    except NewerSchemaError:
        assert not kept(directory)
    shutil.rmtree(directory)


@pytest.mark.parametrize("seed", slow_except(range(12), *range(4)))
def test_flipped_bytes_anywhere_never_stop_the_service_nor_change_what_is_delivered(
    stock: Path, tmp_path: Path, seed: int
) -> None:
    check_flips(stock, tmp_path / "queue", seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_flipped_bytes_anywhere_many_times(stock: Path, tmp_path: Path) -> None:
    for seed in range(12, 1500):
        check_flips(stock, tmp_path / f"queue{seed}", seed)


def check_header(stock: Path, to: Path, place: int, bits: int) -> None:
    directory = Path(shutil.copytree(stock, to))
    before = (directory / "queue.db").read_bytes()[place]
    overwrite(directory / "queue.db", place, bytes([before ^ bits]))
    try:
        with running(directory) as queue:
            check_that_it_serves(queue)
    except NewerSchemaError:
        assert 60 <= place < 64, "only where the version stands"
        assert not kept(directory)


@pytest.mark.parametrize("place", slow_except(range(16, 100, 6), 16, 28, 46, 70, 94))
def test_a_flipped_byte_of_the_header_never_stops_the_service(stock: Path, tmp_path: Path, place: int) -> None:
    check_header(stock, tmp_path / "queue", place, 0xFF)


@pytest.mark.slow
def test_no_flipped_byte_of_the_header_stops_the_service(stock: Path, tmp_path: Path) -> None:
    for place in range(100):
        for bits in (0x01, 0x80, 0xFF):
            check_header(stock, tmp_path / f"queue{place}-{bits}", place, bits)
