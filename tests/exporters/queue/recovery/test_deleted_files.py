"""A database that somebody deletes or replaces while the queue runs is rescued."""

import contextlib
import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from statsig_otel.exporters.consumer import Receipt
from statsig_otel.exporters.queue import open_files, store
from statsig_otel.exporters.queue.errors import DirectoryInUseError
from statsig_otel.exporters.queue.jobs import Work
from statsig_otel.exporters.queue.open_files import OpenFiles
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.recovery import recovery
from statsig_otel.exporters.queue.recovery.carry_over import CarriedOver
from statsig_otel.exporters.queue.recovery.recovery import Recovery
from tests.exporters.queue.helpers import (
    PATIENCE,
    batch,
    blocked,
    check_counters,
    consume,
    delivered,
    failing_disk,
    kept,
    put,
    reading,
    recovering,
    running,
    said,
    settled,
)
from tests.exporters.queue.recovery.damage import PAGE, delete_all, spoil
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("soon_idle")


def delete_file(directory: Path) -> None:
    (directory / "queue.db").unlink()


def delete_directory(directory: Path) -> None:
    gone = directory.rename(directory.with_name("gone"))  # at once: the queue would make files in it again meanwhile
    shutil.rmtree(gone)


def replace_file(directory: Path) -> None:
    shutil.copyfile(directory / "queue.db", directory / "other")
    (directory / "other").rename(directory / "queue.db")


def sent_again(queue: DurableQueue, number: int) -> Receipt:
    """What is answered in the end: until the directory is there again all is refused."""
    wait_until(queue.database.parent.is_dir, "it is made again")
    return put(queue, number)


def test_a_link_in_its_place_is_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_PAUSE", 0.01)  # where it begins while nothing can be written
    directory, elsewhere = tmp_path / "queue", tmp_path / "elsewhere"
    with running(directory) as queue:
        put(queue, 1)
        with blocked(queue):
            (directory / "queue.db").unlink()
            (directory / "queue.db").symlink_to(elsewhere)
        refused = consume(queue, batch(2)).exception(PATIENCE)
        assert "is a symbolic link, where the queue has a file of its own" in str(refused)
        assert list(tmp_path.glob("elsewhere*")) == []
        (directory / "queue.db").unlink()
        assert put(queue, 3) == Receipt(1)
        settled(directory)
        assert set(delivered(queue.cursor("otlp"))) == {1, 3}
    assert said(caplog, logging.ERROR, "is a symbolic link") == 1


def test_one_in_its_place_that_a_sender_reads_first_is_taken_into_use(tmp_path: Path) -> None:
    """The sender's connection would have the index of another log in common with the writer's."""
    directory = tmp_path / "queue"
    with running(directory) as queue, ThreadPoolExecutor(1) as pool:
        cursor = queue.cursor("otlp")
        put(queue, 1, 2, 3)
        with blocked(queue):
            replace_file(directory)
            reading = pool.submit(cursor.read, 1, 1 << 20)
            wait_until(lambda: queue._database.writer._jobs.qsize() or reading.done(), "it has found out")
        with contextlib.suppress(sqlite3.Error):
            reading.result(PATIENCE)
        assert put(queue, 4) == Receipt(1)
        settled(directory)
        assert set(delivered(cursor)) == {1, 2, 3, 4}


HARMS = [delete_file, delete_all, delete_directory, replace_file]


@pytest.mark.parametrize("harm", HARMS)
def test_a_file_that_is_deleted_in_use_is_copied_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    directory = tmp_path / "queue"
    with running(directory) as queue:
        cursor = queue.cursor("otlp")
        put(queue, 1, 2, 3)
        cursor.finish(cursor.read(1, 1000))
        harm(directory)
        assert sent_again(queue, 4) == Receipt(1)
        assert put(queue, 5) == Receipt(1)
        settled(directory)
        with pytest.raises(DirectoryInUseError), running(directory):
            pass
    assert said(caplog, logging.ERROR, "Somebody deleted or replaced") == 1
    with running(directory) as queue:
        assert set(delivered(queue.cursor("otlp"))) == {2, 3, 4, 5}
        check_counters(queue)
        assert put(queue, 2, 4).duplicates == 2
    assert len(kept(directory)) == 1


def test_an_index_that_was_left_is_not_shared_with_the_next_database(tmp_path: Path) -> None:
    """Else the next one would change it, and what the first one still has open could not be read any more."""
    with running(tmp_path) as queue:
        put(queue, 1, 2)
        with blocked(queue):
            for name in ("lock", "queue.db", "queue.db-wal"):
                (tmp_path / name).unlink()
            with running(tmp_path) as second:
                put(second, 3)
        assert put(queue, 4) == Receipt(1)
        settled(tmp_path)
        assert set(delivered(queue.cursor("otlp"))) == {1, 2, 3, 4}


def test_a_lock_and_a_state_that_are_deleted_are_not_another_process(tmp_path: Path) -> None:
    """As `rm -r` begins: what has the database open must not be closed for it."""
    with running(tmp_path) as queue:
        put(queue, 1, 2)
        with blocked(queue):
            for name in ("lock", "state.json", "queue.db-shm"):
                (tmp_path / name).unlink()
        assert put(queue, 3) == Receipt(1)
        assert kept(tmp_path) == []
        assert delivered(queue.cursor("otlp")) == [1, 2, 3]


def test_a_file_that_is_deleted_while_its_log_is_kept_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = open_files._fold_all

    def fold_and_delete(connection: sqlite3.Connection) -> None:
        monkeypatch.undo()
        fold(connection)
        delete_file(tmp_path)

    with running(tmp_path) as queue:
        put(queue, 1, 2)
        with blocked(queue):
            monkeypatch.setattr(open_files, "_fold_all", fold_and_delete)
            (tmp_path / "queue.db-wal").unlink()
        assert put(queue, 3) == Receipt(1)
        settled(tmp_path)
        assert set(delivered(queue.cursor("otlp"))) == {1, 2, 3}


@pytest.mark.parametrize("names", [("queue.db",), ("queue.db", "queue.db-wal"), ("queue.db-wal",)], ids=", ".join)
def test_files_that_are_deleted_while_they_are_closed_for_a_moment_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, names: tuple[str, ...]
) -> None:
    """A failed commit closes them, and nothing else has them open."""

    def fail(_: sqlite3.Connection) -> None:
        monkeypatch.setattr(OpenFiles, "opening", delete_before_opening)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    opening = OpenFiles.opening

    def delete_before_opening(files: OpenFiles) -> None:
        monkeypatch.undo()
        for name in names:
            (tmp_path / name).unlink(missing_ok=True)
        opening(files)

    with running(tmp_path) as queue:
        put(queue, 1, 2)
        assert queue.submit(fail).exception(PATIENCE) is not None
        assert put(queue, 3) == Receipt(1)
        settled(tmp_path)
        assert set(delivered(queue.cursor("otlp"))) == {1, 2, 3}
        assert list(tmp_path.glob("queue.db.held*")) == []
    assert said(caplog, logging.ERROR, "closed for a moment") == ("queue.db" in names)


def test_a_second_name_that_a_crash_left_is_used_if_the_first_is_gone(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, 1, 2)
    (tmp_path / "queue.db").rename(tmp_path / "queue.db.held")
    with running(tmp_path) as queue:
        settled(tmp_path)
        assert delivered(queue.cursor("otlp")) == [1, 2]
        put(queue, 3)
    (tmp_path / "queue.db.held").hardlink_to(tmp_path / "queue.db")
    with running(tmp_path) as queue:
        assert not (tmp_path / "queue.db.held").exists()
        assert delivered(queue.cursor("otlp")) == [3]


def test_what_a_deleted_file_was_given_last_is_not_counted_in_the_new_one(tmp_path: Path) -> None:
    """What its commit adds and ticks off is carried over with all else, and that may take until there is room."""
    with running(tmp_path, recovers=False) as queue:
        cursor = queue.cursor("otlp")
        put(queue, 1, 2, 3)
        records = cursor.read(2, 1000)
        with ThreadPoolExecutor(1) as sender:
            with blocked(queue):  # so that they share a commit, after which the file is missed
                adding = consume(queue, batch(4))
                deleting = queue.submit(lambda _: delete_all(tmp_path))
                ticking = sender.submit(cursor.finish, records)
                wait_until(lambda: queue._database.writer._jobs.qsize() == 3, "all wait for the writer")
            assert adding.result(PATIENCE) == Receipt(1)
            ticking.result(PATIENCE)
            deleting.result(PATIENCE)
        assert (queue._database.generation, cursor.waiting, cursor.position) == (1, 0, 0)
        put(queue, 5)
        assert delivered(cursor) == [5]
        with recovering(queue):
            settled(tmp_path)
        assert delivered(cursor) == [3, 4]
        check_counters(queue)


def test_all_files_that_are_deleted_during_a_recovery_are_rescued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same second: the copy of the second database must not have the path that recovery renames in the end."""
    monkeypatch.setattr("statsig_otel.exporters.queue.directory.time.gmtime", lambda: (2026, 1, 1, 0, 0, 0, 3, 1, 0))
    carries_over, goes_on = threading.Event(), threading.Event()
    carry_out = Recovery._do

    def wait_and_do(recovery: Recovery, step: Work[CarriedOver]) -> CarriedOver:
        carries_over.set()
        assert goes_on.wait(PATIENCE)
        return carry_out(recovery, step)

    monkeypatch.setattr(Recovery, "_do", wait_and_do)
    with running(tmp_path) as queue:
        put(queue, 1, 2)
        delete_all(tmp_path)
        assert put(queue, 3) == Receipt(1)
        assert carries_over.wait(PATIENCE)
        delete_all(tmp_path)  # with the copy, which recovery has open
        assert put(queue, 4) == Receipt(1)
        goes_on.set()
        settled(tmp_path)
        assert set(delivered(queue.cursor("otlp"))) == {1, 2, 3, 4}


def test_a_copy_that_is_deleted_before_it_is_carried_over_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path, recovers=False) as queue:
        put(queue, 1, 2)
        delete_all(tmp_path)
        assert put(queue, 3) == Receipt(1)
        (copy,) = kept(tmp_path)
        copy.unlink()
        with recovering(queue):
            wait_until(lambda: said(caplog, logging.ERROR, f"{copy} before it was carried over"), "it is said")
            queue.recovery_due.set()
            wait_until(lambda: not queue.recovery_due.is_set(), "it looks again")
        assert said(caplog, logging.ERROR, "what waited in it is lost") == 1
        assert delivered(queue.cursor("otlp")) == [3]


def test_a_file_that_is_deleted_while_idle_is_copied(tmp_path: Path) -> None:
    with running(tmp_path) as queue:
        put(queue, 1, 2)
        delete_all(tmp_path)
        wait_until(lambda: bool(kept(tmp_path)), "it is noticed")
        settled(tmp_path)
        assert delivered(queue.cursor("otlp")) == [1, 2]


def test_a_file_that_is_deleted_while_tidying_fails_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def delete_and_fail(_: sqlite3.Connection) -> int:
        monkeypatch.undo()
        delete_all(tmp_path)
        raise sqlite3.OperationalError("disk I/O error")

    with running(tmp_path) as queue:
        put(queue, 1, 2)
        monkeypatch.setattr(store, "delete_done", delete_and_fail)
        wait_until(lambda: bool(kept(tmp_path)), "it is noticed")
        settled(tmp_path)
        assert delivered(queue.cursor("otlp")) == [1, 2]


def test_a_deleted_file_that_can_not_be_copied_now_is_copied_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "queue"
    with running(directory) as queue:
        put(queue, 1, 2)
        with blocked(queue):  # else it makes the directory again first
            delete_directory(directory)
            directory.write_text("in the way")
        refused = consume(queue, batch(3)).exception(PATIENCE)
        assert refused is not None
        directory.unlink()
        assert sent_again(queue, 4) == Receipt(1)
        settled(directory)
        assert {1, 2, 4} <= set(delivered(queue.cursor("otlp")))


def test_without_room_for_a_copy_the_deleted_file_stays_open_and_leaves_no_parts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as queue:
        put(queue, *range(1, 201), size=500)
        with failing_disk():
            delete_all(tmp_path)
            for number in range(300, 304):
                assert consume(queue, batch(number)).exception(PATIENCE) is not None
            assert kept(tmp_path) == []
            assert (
                said(caplog, logging.ERROR, f"{tmp_path / 'queue.db'} while it was in use. Its content is still") == 1
            )
        wait_until(lambda: consume(queue, batch(400)).exception(PATIENCE) is None, "it is rescued in the end")
        settled(tmp_path)
        assert set(range(1, 201)) <= set(delivered(queue.cursor("otlp")))
        assert len(kept(tmp_path)) == 1
    assert said(caplog, logging.WARNING, "No record that waited is missing") == 1


def test_a_copy_during_which_the_process_ended_is_put_away_with_its_journal(tmp_path: Path) -> None:
    aside = tmp_path / "queue.db.corrupt-20260101T000000Z-1"
    aside.touch()
    Path(f"{aside}-journal").write_bytes(bytes(512))
    with running(tmp_path) as queue:
        assert put(queue, 1) == Receipt(1)
        settled(tmp_path)
        wait_until(lambda: not list(tmp_path.glob("queue.db.corrupt-*")), "nothing is left of it")
        assert delivered(queue.cursor("otlp")) == [1]


def test_a_place_of_which_a_bit_was_flipped_passes_nothing_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as queue:
        put(queue, *range(1, 11))
        cursor = queue.cursor("otlp")
        cursor.finish(cursor.read(2, 1000))
    with sqlite3.connect(tmp_path / "queue.db") as connection:
        connection.execute("UPDATE exporters SET cursor = cursor | 4")
    connection.close()
    with running(tmp_path) as queue:
        settled(tmp_path)
        assert set(delivered(queue.cursor("otlp"))) >= set(range(3, 11))
    assert said(caplog, logging.ERROR, "an exporter's cursor contradicts itself") == 1


def test_after_a_loss_a_redelivery_is_no_duplicate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(tmp_path) as queue:
        put(queue, *range(1, 101), size=500)
    with reading(tmp_path / "queue.db") as connection:
        leaves = [page for (page,) in connection.execute("SELECT pageno FROM dbstat WHERE name = 'records'")]
    with (tmp_path / "queue.db").open("r+b") as file:
        file.seek((leaves[5] - 1) * PAGE)
        file.write(bytes(PAGE))
    spoil(tmp_path)
    with running(tmp_path) as queue:
        settled(tmp_path)
        missing = set(range(1, 101)) - set(delivered(queue.cursor("otlp")))
        assert missing
        assert put(queue, *missing, size=500) == Receipt(len(missing))
