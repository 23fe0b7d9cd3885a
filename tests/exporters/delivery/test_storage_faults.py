"""A sender whose queue is damaged or can't be written."""

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from statsig_otel.exporters.queue import queries
from statsig_otel.exporters.queue.cursor import ExporterCursor
from statsig_otel.exporters.queue.errors import StorageError
from statsig_otel.exporters.queue.records import Records
from statsig_otel.exporters.queue.store import DeadLetter
from tests.exporters.delivery.helpers import (
    SLOW,
    Backend,
    Rig,
    encoded,
    lines,
    named,
    refusing,
    rig,
    settings,
)
from tests.exporters.queue.helpers import failing_disk, no_more_files
from tests.waiting import wait_until


def database(made: Rig, statement: str, *values: object) -> None:
    connection = sqlite3.connect(made.queue.database, timeout=30)
    with connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_damaged_record_is_a_dead_letter_and_its_neighbours_are_delivered(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    names = named(5)
    with rig(tmp_path, http.exporter()) as made:
        made.put(*names)
        damaged = bytearray(encoded(names[place]))
        damaged[-1] ^= 1
        database(made, "UPDATE records SET payload = ? WHERE seq = ?", bytes(damaged), place + 1)
        made.start()
        made.drained()
        (dead_letter,) = made.dead_letters()
        assert (dead_letter.kind, dead_letter.content, dead_letter.attempts) == ("damaged", bytes(damaged), 0)
        assert "checksum" in dead_letter.reason
        assert http.taken == [name for name in names if name != names[place]]
    assert [one.levelname for one in caplog.records if "new dead letters" in one.getMessage()] == ["ERROR"]


def test_many_damaged_records_are_one_line(tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture) -> None:
    names = named(9)
    with rig(tmp_path, http.exporter()) as made:
        made.put(*names)
        for seq in range(1, 10, 2):
            database(made, "UPDATE records SET payload = ? WHERE seq = ?", b"", seq)
        made.start()
        made.drained()
        assert [one.kind for one in made.dead_letters()] == ["damaged"] * 5
        assert http.taken == names[1::2]
    assert sum("new dead letters" in line for line in lines(caplog)) == 1


def test_damaged_records_leave_a_blocked_queue_as_well(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "blocked"
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(3))
        database(made, "UPDATE records SET checksum = checksum - 1 WHERE seq = ?", 1)
        made.start()
        wait_until(lambda: made.sender.attempts >= 2)
        assert made.dead_letter_names() == ["r0000"]
        http.rule = lambda names: "delivered"
        made.drained()
        assert http.taken == named(3)[1:]


def test_while_nothing_can_be_ticked_off_nothing_is_sent_again_and_nothing_is_lost(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    with rig(tmp_path, http.exporter(), settings(max_records=2)) as made:
        made.put(*named(4))
        with failing_disk():
            made.start()
            http.sink.wait_for(1)
            wait_until(lambda: made.sender.state == "retrying")
            time.sleep(0.4)
            assert made.queue.submit(queries.exporter_states).exception(10) is not None
            assert "the queue's file" in made.sender.last_error
            assert made.sender.hint.startswith("look at the disk")
            assert len(http.calls) == 2, "one batch ahead of the disk, and no further"
        made.drained()
        wait_until(lambda: made.sender.state == "idle")
        assert (made.sender.last_error, made.sender.hint) == ("", "")
        assert http.taken == named(4)
        assert made.dead_letters() == []
    said = lines(caplog)
    assert sum("ticked off; delivery waits" in line for line in said) == 1
    assert sum("ticked off again" in line for line in said) == 1


def test_a_dead_letter_that_can_not_be_written_is_written_once_later(tmp_path: Path, http: Backend) -> None:
    http.rule = refusing(["r0001"])
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(3))
        with failing_disk():
            made.start()
            wait_until(lambda: made.sender.state == "retrying")
            time.sleep(0.3)
        made.drained()
        assert made.dead_letter_names() == ["r0001"]
        assert http.taken == ["r0000", "r0002"]


def test_shutdown_while_storage_fails_is_quick_and_sends_nothing_in_a_hurry(tmp_path: Path, http: Backend) -> None:
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(3))
        with failing_disk():
            made.start()
            wait_until(lambda: made.sender.state == "retrying")
            began = time.monotonic()
            made.sender.shutdown(drain=20)
            assert time.monotonic() - began < 10
            assert len(http.calls) == 1
    with Backend() as fresh, rig(tmp_path, fresh.exporter()) as again:
        assert again.waiting() == 3
        again.start()
        again.drained()
        assert fresh.taken == named(3)


def test_a_file_that_can_not_be_read_is_tried_again_and_said_once(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(3))
        with no_more_files():
            made.start()
            wait_until(lambda: "the queue's file" in made.sender.last_error)
            time.sleep(0.2)  # in which it is tried again
        made.drained()
        assert http.taken == named(3)
    assert sum("can't be read" in line for line in lines(caplog)) == 1


def test_a_skip_goes_on_if_a_commit_that_was_said_to_have_failed_reached_the_disk(
    tmp_path: Path, http: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    http.rule = refusing(named(6)[:4], "blocked")
    with rig(tmp_path, http.exporter(), settings(max_records=2, blocked=SLOW)) as made:
        made.put(*named(6))
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        cursor, failed = made.queue.cursor("out"), list[int]()

        def finish(records: Records, dead_letters: Sequence[DeadLetter] = ()) -> None:
            ExporterCursor.finish(cursor, records, dead_letters)
            if not failed:
                failed.append(len(records))
                raise StorageError("the answer of the disk was lost")

        monkeypatch.setattr(cursor, "finish", finish)
        assert made.skip(4)
        made.drained()
        assert failed
        assert made.dead_letter_names() == named(6)[:4]
        assert http.taken == named(6)[4:]
    assert any("new dead letters: 2" in line for line in lines(caplog))
