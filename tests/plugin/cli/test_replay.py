"""`statsig-otel dead-letters replay`: who gets what, and that nothing is lost or doubled."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from statsig_otel import _telemetry
from statsig_otel.exporters.exporter import Delivered, PartiallyRejected, RetryLater
from statsig_otel.exporters.queue import queries
from statsig_otel.exporters.queue.database import StoppedQueue
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.plugin.cli import dead_letters
from statsig_otel.plugin.control import dead_letter_commands as dead_letters_handlers
from statsig_otel.plugin.control.socket import call
from tests.exporters.queue.helpers import failing_disk
from tests.plugin.cli.served_queue import (
    WAIT,
    Served,
    add_dead_letter,
    as_json,
    change,
    config_file,
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
def test_a_record_is_replayed_for_its_exporter_alone(tmp_path: Path, how: str) -> None:
    add_dead_letter(tmp_path, letter_of_record("x"), letter_of_record("y"))
    with maybe_served(tmp_path, how) as served:
        (done,) = as_json(tmp_path, "dead-letters", "replay", "2", "--to", "bad")
        assert done == {
            "id": 2,
            "outcome": "replayed",
            "reason": "",
            "records": 1,
            "exporters": ["bad"],
            "delivered": [],
            "duplicates": 0,
            "invalid": 0,
        }
        assert waiting(tmp_path) == {"good": 0, "bad": 1}
        gone = run(tmp_path, "dead-letters", "replay", "2", "--to", "bad")
        assert gone.exit_code == 1
        assert "There is no dead letter 2." in gone.output
        if served:
            served.bad.outcome = Delivered()
            ok(tmp_path, "queue", "resume", "bad")
            served.bad.wait(lambda: served.bad.received == ["y"])
            assert served.good.received == []
    assert [one["id"] for one in as_json(tmp_path, "dead-letters", "list")] == [1]


def test_a_batch_is_replayed_record_by_record(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        served.good.outcome = PartiallyRejected(1, "too old")
        served.accept("x", "y")
        served.good.wait(lambda: len(served.good.received) == 2)
        wait_until(lambda: len(as_json(tmp_path, "dead-letters", "list")) == 2)
    add_dead_letter(
        tmp_path, DeadLetter("batch", "good", "1 of 2", b"".join(change(name).records[0] for name in "vw"), count=2)
    )
    with Served(tmp_path) as served:
        (_, _, batch) = as_json(tmp_path, "dead-letters", "list")
        ok(tmp_path, "dead-letters", "replay", str(batch["id"]))
        served.good.wait(lambda: served.good.received == ["v", "w"])


def test_an_item_is_mapped_anew_by_the_running_service(tmp_path: Path) -> None:
    add_dead_letter(tmp_path, letter_of_item("x"), letter_of_item(None), letter_of_item("y", owner="statsig/gone"))
    with Served(tmp_path) as served:
        result = run(tmp_path, "dead-letters", "replay", "--kind", "item")
        assert result.exit_code == 1
        assert "Replayed: 1 dead letter, 1 record to deliver." in result.output
        assert "2 stays: timestamp" in result.output
        assert "3 stays: the receiver statsig/gone is not in the running configuration" in result.output
        served.good.wait(lambda: served.good.received == ["x"])
        served.accept("x")  # a redelivery of it is a duplicate now
        served.accept("z")
        served.good.wait(lambda: served.good.received == ["x", "z"])
    left = as_json(tmp_path, "dead-letters", "list")
    assert [one["id"] for one in left] == [2, 3]
    assert left[0]["reason"] != "timestamp: is missing"
    assert left[1]["reason"] == "timestamp: is missing"


def test_the_request_time_of_an_item_is_kept(tmp_path: Path) -> None:
    add_dead_letter(tmp_path, letter_of_item("x"))
    with Served(tmp_path) as served:
        ok(tmp_path, "dead-letters", "replay", "1")
        served.wait_until_blocked()
        assert as_json(tmp_path, "queue")["exporters"][1]["oldest_observed_at"] == "2023-11-14T22:13:20Z"


def test_a_body_is_read_anew_and_what_is_invalid_in_it_stays(tmp_path: Path) -> None:
    events: list[Mapping[str, object]] = [
        item("x"),
        item("bad", timestamp="soon"),
        {"eventName": "other"},
        item("y"),
    ]
    add_dead_letter(
        tmp_path,
        DeadLetter("body", "statsig", "unknown shape", json.dumps({"data": events}).encode()),
        DeadLetter("body", "statsig", "unknown shape", b'{"events": []}'),
        DeadLetter("body", "statsig", "unknown shape", b"\xff"),
        DeadLetter("body", "statsig", "?", b'{"data": {"event": "url_verification", "verification_code": "abc"}}'),
        DeadLetter("body", "statsig", "unknown shape", b"[]"),
    )
    with Served(tmp_path) as served:
        result = run(tmp_path, "dead-letters", "replay", "--all")
        assert result.exit_code == 1
        assert "Replayed: 2 dead letters, 2 records to deliver." in result.output
        assert "now dead letters of their own: 1 item." in result.output
        for number in (2, 3, 4):
            assert f"{number} stays: " in result.output
        served.good.wait(lambda: served.good.received == ["x", "y"])
    left = as_json(tmp_path, "dead-letters", "show", "--all")
    assert [(one["id"], one["kind"]) for one in left] == [(2, "body"), (3, "body"), (4, "body"), (6, "item")]
    assert json.loads(left[3]["text"]) == events[1]
    assert "timestamp" in left[3]["reason"]


def test_what_the_filter_drops_now_stays(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    directory.mkdir()
    body = json.dumps([item("x"), {"eventName": "other"}]).encode()
    add_dead_letter(directory, letter_of_item("x"), DeadLetter("body", "statsig", "?", body), letter_of_item("y"))
    config = config_file(tmp_path, directory, filter={"exclude": {"names": ["x"]}})
    done = CliRunner().invoke(dead_letters.command, ["--config", str(config), "replay", "--all"])
    assert done.exit_code == 1
    for number in (1, 2):
        assert f"{number} stays: the receiver's filter keeps nothing of it" in done.output
    assert [one["id"] for one in as_json(directory, "dead-letters", "list")] == [1, 2]


def test_a_change_that_was_too_large_is_replayed_under_a_higher_limit(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    directory.mkdir()
    text = json.dumps(item("x", metadata={"type": "Gate", "name": "x", "description": "d" * 1_000_000}))
    add_dead_letter(directory, DeadLetter("item", "statsig", "is too large", text.encode()))
    with Served(directory):
        low = run(directory, "dead-letters", "replay", "--all")
    assert low.exit_code == 1
    assert "1 stays: is too large: a record of it has 10" in low.output
    config = config_file(tmp_path, directory, max_record_bytes="2MB")
    high = CliRunner().invoke(dead_letters.command, ["--config", str(config), "replay", "--all"])
    assert high.exit_code == 0, high.output
    assert waiting(directory)["debug/good"] == 1
    assert as_json(directory, "dead-letters", "list") == []


def test_an_item_of_a_stopped_service_needs_its_configuration(tmp_path: Path) -> None:
    """And is mapped as the configuration says, for the exporters that it names."""
    directory = tmp_path / "queue"
    directory.mkdir()
    named = DeadLetter("item", "statsig", "?", json.dumps(item("x", user={"email": "a@example.com"})).encode())
    add_dead_letter(directory, named)
    without = run(directory, "dead-letters", "replay", "1")
    assert without.exit_code == 1
    assert "start it, or give --config FILE" in without.output
    config = config_file(tmp_path, directory, user="drop", resource={"team": "flags"})
    done = CliRunner().invoke(dead_letters.command, ["--config", str(config), "replay", "1"])
    assert done.exit_code == 0, done.output
    assert waiting(directory) == {"good": 0, "bad": 0, "debug/good": 1, "debug/bad": 1}
    with StoppedQueue(directory) as queue:
        ok_ = queue.submit(lambda connection: queries.read_records(connection, [1], after=0, count=1, size=1)).result()
    assert b"flags" in ok_[0].payload
    assert b"example.com" not in ok_[0].payload
    add_dead_letter(directory, named)
    again = CliRunner().invoke(dead_letters.command, ["--config", str(config), "replay", "2"])
    assert "Accepted before: 1 change." in again.output
    assert waiting(directory)["debug/good"] == 1


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_records_that_can_not_be_sent_stay(tmp_path: Path, how: str) -> None:
    add_dead_letter(
        tmp_path, letter_of_record("x", owner="removed"), DeadLetter("record", "bad", "damaged", b"\xff\xff")
    )
    with maybe_served(tmp_path, how):
        left = run(tmp_path, "dead-letters", "replay", "1", "--to", "removed")
        damaged = run(tmp_path, "dead-letters", "replay", "2", "--to", "bad")
    assert left.exit_code == damaged.exit_code == 1
    assert "1 stays: the exporter removed is not in" in left.output or "no exporter removed" in left.output
    assert "2 stays: its content can't be read" in damaged.output
    assert len(as_json(tmp_path, "dead-letters", "list")) == 2


def test_an_item_reaches_the_synchronous_exporters_of_its_receiver_before_the_others(tmp_path: Path) -> None:
    add_dead_letter(tmp_path, letter_of_item("x"), letter_of_item(None), letter_of_item("y"))
    with Served(tmp_path, delivered=("debug/now",)) as served:
        first, invalid, last = as_replayed(tmp_path, "--all")
        assert served.now.received == ["x", "y"]
        served.good.wait(lambda: served.good.received == ["x", "y"])
        served.accept("x")  # a redelivery of it is a duplicate now
        served.accept("z")
        served.good.wait(lambda: served.good.received == ["x", "y", "z"])
    assert (first["outcome"], first["exporters"], first["delivered"]) == ("replayed", ["good", "bad"], ["debug/now"])
    assert (last["outcome"], last["exporters"], last["delivered"]) == ("replayed", ["good", "bad"], ["debug/now"])
    assert (invalid["outcome"], invalid["delivered"]) == ("kept", [])
    assert [one["id"] for one in as_json(tmp_path, "dead-letters", "list")] == [2]


def as_replayed(directory: Path, *arguments: str) -> Any:
    """What became of each dead letter, also where one stays."""
    return json.loads(run(directory, "dead-letters", "replay", *arguments, "--json").stdout)


def test_a_body_reaches_the_synchronous_exporters_and_what_is_invalid_in_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events = [item("x"), item("bad", timestamp="soon"), item("y")]
    add_dead_letter(tmp_path, DeadLetter("body", "statsig", "?", json.dumps(events).encode()))
    counts = Counts(monkeypatch)
    with Served(tmp_path, delivered=("debug/now",)) as served:
        result = run(tmp_path, "dead-letters", "replay", "1")
        assert "Replayed: 1 dead letter, 2 records to deliver. Delivered at once: to debug/now." in result.output
        assert served.now.received == ["x", "y"]
        served.good.wait(lambda: served.good.received == ["x", "y"])
    (left,) = as_json(tmp_path, "dead-letters", "show", "--all")
    assert (left["kind"], json.loads(left["text"])) == ("item", events[1])
    assert counts.dead_letters == [(1, "item", "statsig")]
    assert "is stored nowhere but in this log" not in caplog.text


class Counts:
    """Listens to the counter of dead letters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dead_letters: list[tuple[int, str, str]] = []
        monkeypatch.setattr(_telemetry, "dead_letters", self)

    def add(self, amount: int, kind: str, owner: str) -> None:
        if amount:
            self.dead_letters.append((amount, kind, owner))


def test_where_a_synchronous_exporter_fails_the_letter_stays_whole(tmp_path: Path) -> None:
    """Nothing of it waits and no uid is remembered, so that the next replay reaches all."""
    add_dead_letter(tmp_path, letter_of_item("x"), letter_of_record("y", owner="good"))
    with Served(tmp_path, delivered=("debug/now",)) as served:
        served.now.outcome = RetryLater("connection refused")
        result = run(tmp_path, "dead-letters", "replay", "--all")
        assert result.exit_code == 1
        assert "1 stays: not delivered: debug/now retry later: connection refused" in result.output
        assert "Replayed: 1 dead letter, 1 record to deliver." in result.output
        served.good.wait(lambda: served.good.received == ["y"])
        (left,) = as_json(tmp_path, "dead-letters", "list")
        assert (left["id"], left["reason"]) == (1, "timestamp: is missing")
        assert waiting(tmp_path)["bad"] == 0
        served.now.received.clear()
        served.now.outcome = Delivered()
        (done,) = as_json(tmp_path, "dead-letters", "replay", "1")
        assert (done["outcome"], done["duplicates"], done["delivered"]) == ("replayed", 0, ["debug/now"])
        assert served.now.received == ["x"]
        served.good.wait(lambda: served.good.received == ["y", "x"])


def test_a_receiver_without_a_queued_exporter_is_replayed_to_its_synchronous_ones(tmp_path: Path) -> None:
    """Its dead letters are of a time at which it had a queue. Nothing is put into one that nobody reads."""
    events = [item("y"), item("bad", timestamp="soon")]
    add_dead_letter(
        tmp_path,
        letter_of_item("x", owner="statsig/now"),
        DeadLetter("body", "statsig/now", "?", json.dumps(events).encode()),
        DeadLetter("body", "statsig/now", "?", b"[]"),
    )
    with Served(tmp_path) as served:
        done = as_replayed(tmp_path, "--receiver", "statsig/now")
        assert [one["outcome"] for one in done] == ["replayed"] * 3
        assert [one["delivered"] for one in done] == [["debug/now"], ["debug/now"], []]
        assert [one["records"] for one in done] == [0, 0, 0]
        assert served.now.received == ["x", "y"]
        assert waiting(tmp_path) == {"good": 0, "bad": 0}
        (left,) = as_json(tmp_path, "dead-letters", "show", "--all")
        assert (left["kind"], left["receiver"], json.loads(left["text"])) == ("item", "statsig/now", events[1])
    with StoppedQueue(tmp_path) as queue:
        stored = queue.submit(lambda connection: connection.execute("SELECT count(*) FROM records").fetchone())
        assert stored.result() == (0,)


def test_a_page_of_dead_letters_goes_to_a_synchronous_exporter_together(tmp_path: Path) -> None:
    """One send after the other would be a page of timeouts where a backend hangs."""
    add_dead_letter(tmp_path, *(letter_of_item(f"n{number}") for number in range(100)))
    with Served(tmp_path, delivered=("debug/now",)) as served:
        assert len(as_json(tmp_path, "dead-letters", "replay", "--all")) == 100
        assert served.now.received == [f"n{number}" for number in range(100)]
        assert served.now.attempts < 10


def test_a_synchronous_exporter_that_hangs_holds_no_command_up_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters_handlers, "REPLAY_TIMEOUT", 0.05)
    add_dead_letter(tmp_path, letter_of_item("x"))
    with Served(tmp_path, delivered=("debug/now",)) as served:
        with served.now.hanging():
            (kept,) = as_replayed(tmp_path, "1")
        assert (kept["outcome"], kept["reason"]) == ("kept", "not delivered: debug/now took more than 0.05 s")
        assert len(as_json(tmp_path, "dead-letters", "list")) == 1


def test_a_stopped_service_keeps_what_a_synchronous_exporter_has_to_get(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    directory.mkdir()
    add_dead_letter(directory, letter_of_item("x"), DeadLetter("body", "statsig", "?", b"[]"))
    config = config_file(tmp_path, directory, delivered=("debug/now",))
    result = CliRunner().invoke(dead_letters.command, ["--config", str(config), "replay", "--all"])
    assert result.exit_code == 1
    assert "1 stays: not delivered: debug/now has no sending queue" in result.output
    assert "replay it while the service runs" in result.output
    assert "Replayed: 1 dead letter, 0 records to deliver." in result.output  # nothing in it is for anybody
    (left,) = as_json(directory, "dead-letters", "list")
    assert (left["id"], left["reason"]) == (1, "timestamp: is missing")
    assert set(waiting(directory).values()) == {0}


def test_what_reached_a_synchronous_exporter_alone_comes_again_with_the_same_uid(tmp_path: Path) -> None:
    """The queue fails behind it: the dead letter stays, and the exporter gets it twice."""
    add_dead_letter(tmp_path, letter_of_item("x"))
    with Served(tmp_path, delivered=("debug/now",)) as served:
        with failing_disk():
            result = run(tmp_path, "dead-letters", "replay", "1", "--json")
        assert (result.exit_code, json.loads(result.stdout)) == (1, [])
        assert "the queue can't be changed now" in result.stderr
        assert len(as_json(tmp_path, "dead-letters", "list")) == 1
        ok(tmp_path, "dead-letters", "replay", "1")
        assert served.now.received == ["x", "x"]
        served.good.wait(lambda: served.good.received == ["x"])


def test_many_dead_letters_go_page_by_page_and_new_ones_are_not_tried(tmp_path: Path) -> None:
    """A record that is refused once more becomes a dead letter again, which the same command leaves alone."""
    add_dead_letter(tmp_path, *(letter_of_record(f"n{number}", owner="good") for number in range(250)))
    with Served(tmp_path) as served:
        served.good.outcome = PartiallyRejected(1, "no")
        done = as_json(tmp_path, "dead-letters", "replay", "--all")
        assert [one["id"] for one in done] == list(range(1, 251))
        served.good.wait(lambda: len(served.good.received) == 250)
        wait_until(lambda: len(as_json(tmp_path, "dead-letters", "list")) == 250)
        assert sorted(served.good.received) == sorted(f"n{number}" for number in range(250))
        assert as_json(tmp_path, "dead-letters", "drop", "--all", "--yes") == list(range(251, 501))


def test_many_ids_are_taken(tmp_path: Path) -> None:
    add_dead_letter(tmp_path, *(letter_of_record(f"n{number}") for number in range(1200)))
    ids = [str(number) for number in range(1, 1201)]
    with Served(tmp_path):
        assert len(as_json(tmp_path, "dead-letters", "list", *ids)) == 1200
        assert len(as_json(tmp_path, "dead-letters", "replay", *ids[:1100])) == 1100
        assert as_json(tmp_path, "dead-letters", "drop", *ids[1100:], "--yes") == list(range(1101, 1201))


def test_parallel_replays_of_all_double_nothing(tmp_path: Path) -> None:
    add_dead_letter(tmp_path, *(letter_of_record(f"n{number}", owner="good") for number in range(150)))
    with Served(tmp_path) as served:
        threads = [threading.Thread(target=replay_all, args=(tmp_path,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        served.good.wait(lambda: len(served.good.received) >= 150)
    assert sorted(served.good.received) == sorted(f"n{number}" for number in range(150))


def replay_all(directory: Path) -> None:
    """What the command does, without its output, which is the process's."""
    after: int | None = 0
    upto = None
    while after is not None:
        page = call(directory / CONTROL, "dead-letters replay", selection={}, after=after, upto=upto)
        after, upto = page["next"], page["upto"]


@pytest.mark.parametrize("command", ["dead-letters replay", "dead-letters drop"])
def test_arguments_that_are_not_understood_select_nothing(tmp_path: Path, command: str) -> None:
    add_dead_letter(tmp_path, letter_of_record("x"))
    wrong: list[dict[str, Any]] = [
        {},
        {"selection": {"exportr": "bad"}},
        {"selection": {"ids": ["x"]}},
        {"selection": {}, "limit": 7},
        {"selection": {"kind": "letter"}},
        {"selection": 7},
    ]
    with Served(tmp_path):
        for arguments in wrong:
            with pytest.raises(Exception, match="the arguments are wrong"):
                call(tmp_path / CONTROL, command, **arguments)
        assert len(as_json(tmp_path, "dead-letters", "list")) == 1
