"""`statsig-otel dead-letters`: list, show and drop, also of what was damaged on disk."""

import base64
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from statsig_otel.exporters.exporter import Delivered
from statsig_otel.exporters.queue.store import DeadLetter
from tests.plugin.cli.served_queue import (
    WAIT,
    Served,
    add_dead_letter,
    as_json,
    change,
    item,
    letter_of_item,
    letter_of_record,
    maybe_served,
    ok,
    run,
    waiting,
)
from tests.waiting import wait_until


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_dead_letters_are_listed_and_shown(tmp_path: Path, how: str) -> None:
    add_dead_letter(
        tmp_path,
        letter_of_item("x"),
        DeadLetter("body", "statsig", "the body is not JSON", b'{"data": \x1b[31m'),
        letter_of_record("y", reason="400:\x1b[31m no"),
        DeadLetter("batch", "bad", "1 of 2 were refused", b"".join(change(n).records[0] for n in "vw"), count=2),
        DeadLetter("record", "bad", "damaged", b"\xff\xff"),
        DeadLetter("body", "statsig", "no UTF-8", b"\xff"),
    )
    with maybe_served(tmp_path, how):
        found = as_json(tmp_path, "dead-letters", "list")
        table = ok(tmp_path, "dead-letters", "list")
        shown = as_json(tmp_path, "dead-letters", "show", "--all")
        text = ok(tmp_path, "dead-letters", "show", "--all")
        only = as_json(tmp_path, "dead-letters", "list", "--exporter", "bad", "--kind", "record")
    assert [one["kind"] for one in found] == ["item", "body", "record", "batch", "record", "body"]
    assert found[0]["receiver"] == "statsig"
    assert found[2]["exporter"] == "bad"
    assert found[2]["attempts"] == 3
    assert found[2]["kept_at"] == "2023-11-14T22:13:20Z"
    assert [one["id"] for one in only] == [3, 5]
    assert json.loads(shown[0]["text"]) == item("x")
    assert shown[1]["text"] == '{"data": \x1b[31m'
    assert shown[2]["request"]["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["body"] == {
        "stringValue": "y updated"
    }
    assert len(shown[3]["request"]["resourceLogs"]) == 2
    assert shown[4]["base64"] == "//8="
    assert shown[5]["base64"] == "/w=="
    for output in (table, text):
        assert "\x1b" not in output
        assert "400:\\x1b[31m no" in output
    assert "Reason: the body is not JSON" in text
    assert "y updated" in text
    assert "LogRecord #0" in text
    assert "ffff" in text


def test_that_there_are_no_dead_letters_is_said(tmp_path: Path) -> None:
    add_dead_letter(tmp_path)
    assert as_json(tmp_path, "dead-letters", "list") == []
    assert "There are no dead letters." in run(tmp_path, "dead-letters", "list").output
    for arguments in (
        ("list", "--kind", "item"),
        ("show", "--all"),
        ("replay", "--exporter", "bad"),
        ("drop", "--all", "--yes"),
    ):
        result = run(tmp_path, "dead-letters", *arguments)
        assert result.exit_code == 1
        assert "No dead letter matches." in result.output
        result = run(tmp_path, "dead-letters", *arguments, "--json")
        assert json.loads(result.stdout) == []


@pytest.mark.parametrize("command", [("list",), ("show",), ("replay",), ("drop", "--yes")])
def test_an_id_that_is_none_is_said(tmp_path: Path, command: tuple[str, ...]) -> None:
    add_dead_letter(tmp_path, letter_of_record("x"))
    result = run(tmp_path, "dead-letters", *command, "77")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "There is no dead letter 77." in result.stderr
    both = run(tmp_path, "dead-letters", *command, "1", "77", "--json")
    assert both.exit_code == 1
    assert 1 in [one if isinstance(one, int) else one["id"] for one in json.loads(both.stdout)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay",),
        ("drop", "--yes"),
        ("show",),
        ("show", "0"),
        ("show", "x"),
        ("show", str(1 << 63)),
        ("replay", "1", "--all"),
        ("replay", "1", "--exporter", "bad"),
        ("drop", "--all", "--kind", "item"),
        ("list", "--exporter", "a", "--receiver", "b"),
        ("list", "--kind", "letter"),
    ],
)
def test_wrong_options_are_usage_errors(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    add_dead_letter(tmp_path, letter_of_record("x"))
    assert run(tmp_path, "dead-letters", *arguments).exit_code == 2
    assert len(as_json(tmp_path, "dead-letters", "list")) == 1


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_dead_letters_are_dropped_only_on_confirmation(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    add_dead_letter(tmp_path, *(letter_of_record(name) for name in "vwxyz"), letter_of_item("x"))
    with maybe_served(tmp_path, how):
        refused = run(tmp_path, "dead-letters", "drop", "--exporter", "bad")
        assert refused.exit_code == 1
        assert "5 dead letters of" in refused.output
        assert len(as_json(tmp_path, "dead-letters", "list")) == 6
        partly = run(tmp_path, "dead-letters", "drop", "2", "99", "--yes")
        assert partly.exit_code == 1
        assert "There is no dead letter 99." in partly.output
        assert as_json(tmp_path, "dead-letters", "drop", "--exporter", "bad", "--yes") == [1, 3, 4, 5]
        assert [one["id"] for one in as_json(tmp_path, "dead-letters", "list")] == [6]
        assert "Dropped: 1 dead letter." in ok(tmp_path, "dead-letters", "drop", "--all", "--yes")
    said = [line for line in caplog.messages if line.startswith("Command dead-letters drop: deleted 4 dead letters of")]
    assert [line.endswith(": 1, 3-5") for line in said] == ([True] if how == "running" else [])


def damaged(content: bytes) -> DeadLetter:
    return DeadLetter("damaged", "bad", "damaged on disk: its checksum is wrong", content)


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_what_was_damaged_on_disk_is_never_sent(tmp_path: Path, how: str) -> None:
    (record,) = change("x").records
    add_dead_letter(tmp_path, damaged(record))
    with maybe_served(tmp_path, how):
        result = run(tmp_path, "dead-letters", "replay", "--kind", "damaged")
        assert result.exit_code == 1
        assert "1 stays: it was damaged on disk, so its content can't be trusted and is not sent" in result.output
        assert "`dead-letters show 1`" in result.output
        assert "`dead-letters drop 1`" in result.output
        assert waiting(tmp_path) == {"good": 0, "bad": 0}
        (left,) = as_json(tmp_path, "dead-letters", "list", "--exporter", "bad")
        assert (left["kind"], left["reason"]) == ("damaged", "damaged on disk: its checksum is wrong")
        assert as_json(tmp_path, "dead-letters", "drop", "1", "--yes") == [1]


def test_what_is_left_of_a_damaged_record_is_shown_whatever_it_is(tmp_path: Path) -> None:
    (record,) = change("x\x1b[31m").records
    flipped = [record[:at] + bytes([record[at] ^ (1 << at % 8)]) + record[at + 1 :] for at in range(len(record))]
    cut = [record[:length] for length in range(len(record))]
    contents = [*flipped, *cut, b"\xff" * 9]
    add_dead_letter(tmp_path, *map(damaged, contents))
    shown = as_json(tmp_path, "dead-letters", "show", "--all")
    assert [base64.b64decode(one["base64"]) for one in shown] == contents
    readable = ["request" in one for one in shown]
    assert any(readable)
    assert not all(readable)
    text = ok(tmp_path, "dead-letters", "show", "--all")
    assert "\x1b" not in text
    assert text.count("Nothing is left of it.") == 1
    assert text.count("The rest of it, which may be wrong:") == len(contents) - 1
    assert cut[-1].hex() in text


def damage(database: Path) -> None:
    """Change the first record behind the queue's back."""
    with closing(sqlite3.connect(database, timeout=WAIT)) as connection, connection:
        assert connection.execute("UPDATE records SET checksum = checksum + 1 WHERE seq = 1").rowcount == 1


def test_a_damaged_record_that_is_skipped_is_known_as_damaged(tmp_path: Path) -> None:
    """It is the head that was meant, so nothing behind it is skipped."""
    with Served(tmp_path, ("bad",)) as served:
        served.accept("x", "y")
        served.wait_until_blocked()
        damage(served.queue.database)
        ok(tmp_path, "queue", "skip", "bad")
        wait_until(lambda: waiting(tmp_path)["bad"] == 1)
        served.bad.outcome = Delivered()
        ok(tmp_path, "queue", "resume", "bad")
        served.bad.wait(lambda: served.bad.received == ["y"])
        (found,) = as_json(tmp_path, "dead-letters", "list")
        assert (found["kind"], found["reason"]) == ("damaged", "damaged on disk: its checksum is wrong")


def test_a_damaged_record_that_is_skipped_on_a_stopped_queue_is_known_as_damaged(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        served.accept("x", "y")
        served.wait_until_blocked()
        database = served.queue.database
    damage(database)
    for _ in "xy":
        ok(tmp_path, "queue", "skip", "bad")
    found = as_json(tmp_path, "dead-letters", "list")
    assert [(one["kind"], one["reason"]) for one in found] == [
        ("damaged", "damaged on disk: its checksum is wrong"),
        ("record", "skipped by command"),
    ]
