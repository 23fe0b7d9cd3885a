"""`statsig-otel queue`, on a queue that is served as a service serves it, and on a stopped one."""

import json
import logging
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from statsig_otel.config.errors import ConfigError
from statsig_otel.exporters.consumer import Invalid
from statsig_otel.exporters.exporter import Delivered
from statsig_otel.exporters.queue import store
from statsig_otel.exporters.queue.database import StoppedQueue
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.exporters.wording import ranges
from statsig_otel.plugin.cli import dead_letters
from statsig_otel.plugin.cli import queue as queue_command
from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.control.queue_access import QueueAccess
from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.webhook.signature import Verifier
from tests.plugin.cli.served_queue import (
    Served,
    add_dead_letter,
    as_json,
    change,
    config_file,
    item,
    letter_of_record,
    mapped,
    maybe_served,
    ok,
    run,
    waiting,
)
from tests.waiting import wait_until


def test_a_running_queue_is_shown_with_what_each_sender_does(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        served.accept("x", "y", "z", invalid=(Invalid(b"{}", "no name"),))
        served.good.wait(lambda: len(served.good.received) == 3)
        served.wait_until_blocked()
        found = as_json(tmp_path, "queue")
        table = ok(tmp_path, "queue")
    assert found["running"]
    assert found["pid"] > 0
    assert found["dead_letters"] == 1
    good, bad = found["exporters"]
    assert (good["name"], good["configured"], good["attempts"], good["last_error"]) == ("good", True, 0, None)
    assert (bad["name"], bad["state"], bad["waiting"], bad["attempts"]) == ("bad", "blocked", 3, 1)
    assert bad["bytes"] == sum(len(change(name).records[0]) for name in "xyz")
    assert bad["last_error"] == "401: the key has expired"
    assert bad["oldest_observed_at"] == "2023-11-14T22:13:20Z"
    assert bad["oldest_age_seconds"] > 0
    assert "401: the key has expired" in table
    assert "Dead letters: 1" in table


def test_which_secret_verified_last_is_shown_while_there_are_several(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        assert "Last webhook" not in ok(tmp_path, "queue")
        served.intakes["statsig"].verifier = Verifier(["webhook-old", "", "webhook-new"])
        assert "Last webhook of statsig: none since the last change" in ok(tmp_path, "queue")
        served.intakes["statsig"].verified(3, 0, 1)
        assert "Last webhook of statsig: verified with secret 3 of 3" in ok(tmp_path, "queue")
        assert as_json(tmp_path, "queue")["receivers"]["statsig"] == {"secrets": 3, "last_secret": 3}
    assert as_json(tmp_path, "queue")["receivers"] == {}


def test_two_hundred_silent_clients_do_not_stop_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statsig_otel.plugin.control.socket._GRACE", 0.01)  # else it takes a second
    with ExitStack() as clients, Served(tmp_path):
        for _ in range(200):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(tmp_path / CONTROL))
        assert as_json(tmp_path, "queue")["running"]


def test_a_stopped_queue_is_shown_too(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        served.accept("x", "y")
        served.wait_until_blocked()
    found = as_json(tmp_path, "queue")
    assert not found["running"]
    assert found["pid"] is None
    bad = found["exporters"][1]
    assert (bad["state"], bad["waiting"], bad["configured"], bad["attempts"]) == ("not running", 2, None, None)
    assert bad["oldest_observed_at"] == "2023-11-14T22:13:20Z"
    assert "not running" in ok(tmp_path, "queue")


def test_a_running_queue_whose_index_was_deleted_is_not_read(tmp_path: Path) -> None:
    """What other processes would read could change while they do: they would not see the service's commits."""
    with Served(tmp_path) as served:
        served.accept("x")
        (tmp_path / "queue.db-shm").unlink()
        for command in (("queue",), ("dead-letters", "list"), ("queue", "backup", str(tmp_path / "copy"))):
            result = run(tmp_path, *command)
            assert result.exit_code == 1
            assert "queue.db-shm was deleted while the service uses it" in result.output
            assert "restart the service" in result.output
        assert not (tmp_path / "queue.db-shm").exists()
    assert not as_json(tmp_path, "queue")["running"]
    with Served(tmp_path):
        assert as_json(tmp_path, "queue")["running"]


def test_reading_changes_nothing_for_the_next_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Served(tmp_path):
        pass
    ok(tmp_path, "queue")
    ok(tmp_path, "dead-letters", "list")
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())
    with Served(tmp_path):
        pass
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_directory_that_is_a_mistake_is_not_looked_for() -> None:
    """An empty one would be the working directory."""
    for command in ("queue", "queue resume out", "dead-letters list", "reload"):
        for directory, said in (("", "It is empty. Is a variable not set?"), ("~/queue", "~ is replaced by the shell")):
            result = CliRunner().invoke(main, [*command.split(), "--directory", directory])
            assert (result.exit_code, said in result.output) == (2, True)


def test_a_relative_directory_is_shown_as_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["queue"], ["dead-letters", "list"], ["reload"]):
        result = CliRunner().invoke(main, [*arguments, "--directory", "not/here"])
        assert f"{tmp_path}/not/here" in result.output, arguments


def test_a_directory_that_can_not_be_one_is_said(tmp_path: Path) -> None:
    result = run(tmp_path / ("a" * 300), "queue")
    assert (result.exit_code, "can't be read: File name too long" in result.output) == (1, True)


@pytest.mark.parametrize("files", [(), ("other",)])
def test_a_directory_without_a_queue_is_said_and_not_made(tmp_path: Path, files: tuple[str, ...]) -> None:
    directory = tmp_path / "none"
    for name in files:
        directory.mkdir(exist_ok=True)
        (directory / name).touch()
    for arguments in (("queue",), ("queue", "resume", "a"), ("dead-letters", "list"), ("dead-letters", "drop", "1")):
        result = run(directory, *arguments)
        assert result.exit_code == 1
        assert "contains no queue" in result.output
    assert directory.exists() == bool(files)


def test_an_exporter_that_left_the_configuration_is_marked_and_can_be_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for it alone goes with it, and only when that was said."""
    caplog.set_level(logging.INFO)
    with Served(tmp_path) as served:
        served.accept("x", "y")
        served.wait_until_blocked()
        served.good.wait(lambda: len(served.good.received) == 2)
        refused = run(tmp_path, "queue", "remove", "bad", "--yes")
        assert refused.exit_code == 1
        assert "is in the running configuration" in refused.output
    with Served(tmp_path, ("good",)):
        found = as_json(tmp_path, "queue")["exporters"][1]
        assert (found["name"], found["state"], found["configured"], found["waiting"]) == (
            "bad",
            "not configured",
            False,
            2,
        )
        for action in ("resume", "skip"):
            refused = run(tmp_path, "queue", action, "bad")
            assert refused.exit_code == 1
            assert "not in the running configuration" in refused.output
        refused = run(tmp_path, "queue", "remove", "bad")
        assert refused.exit_code == 1
        assert f"2 records of {found['bytes']} bytes would be given up" in refused.output
        assert waiting(tmp_path) == {"good": 0, "bad": 2}
        assert "2 records" in ok(tmp_path, "queue", "remove", "bad", "--yes")
        assert waiting(tmp_path) == {"good": 0}
        assert "Command queue remove: bad is forgotten, and 2 records" in caplog.text
        again = run(tmp_path, "queue", "remove", "bad")
        assert again.exit_code == 1
        assert "knows no exporter bad" in again.output


def test_an_exporter_of_a_stopped_service_is_removed_where_it_is_not_configured(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    directory.mkdir()
    with StoppedQueue(directory) as queue:
        for name in ("old", "debug/good"):
            queue.submit(lambda connection, name=name: store.ensure_exporter(connection, name)).result()  # type: ignore[misc]  # a default argument
    unsure = run(directory, "queue", "remove", "old")
    assert unsure.exit_code == 1
    assert "give --config FILE, or confirm with --yes" in unsure.output
    config = config_file(tmp_path, directory)
    options = ["--config", str(config)]
    shown = CliRunner().invoke(queue_command.command, [*options, "--json"])
    assert {one["name"]: one["configured"] for one in json.loads(shown.stdout)["exporters"]} == {
        "old": False,
        "debug/good": True,
    }
    assert "not running, not configured" in CliRunner().invoke(queue_command.command, options).output
    kept = CliRunner().invoke(queue_command.command, ["remove", "debug/good", "--yes", *options])
    assert kept.exit_code == 1
    assert "is in the configuration" in kept.output
    done = CliRunner().invoke(queue_command.command, [*options, "remove", "old"])
    assert done.exit_code == 0, done.output
    assert list(waiting(directory)) == ["debug/good"]


def test_resume_tries_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Served(tmp_path) as served:
        served.accept("x", "y")
        served.wait_until_blocked()
        served.bad.outcome = Delivered()
        assert "was blocked" in ok(tmp_path, "queue", "resume", "bad")
        served.bad.wait(lambda: served.bad.received == ["x", "y"])
        assert "nothing to resume" in ok(tmp_path, "queue", "resume", "good")
    assert "Command queue resume: bad, which was blocked" in caplog.text
    stopped = run(tmp_path, "queue", "resume", "bad")
    assert stopped.exit_code == 1
    assert "no service is running" in stopped.output


def test_skip_makes_the_head_a_dead_letter_that_can_be_replayed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Served(tmp_path) as served:
        served.accept("x", "y")
        served.wait_until_blocked()
        wait_until(lambda: waiting(tmp_path)["good"] == 0)
        healthy = run(tmp_path, "queue", "skip", "good")
        assert healthy.exit_code == 1
        assert "nothing waits for good" in healthy.output
        served.bad.outcome = Delivered()
        assert "Still waiting: 1 record." in ok(tmp_path, "queue", "skip", "bad")
        served.bad.wait(lambda: served.bad.received == ["y"])
        (dead_letter,) = as_json(tmp_path, "dead-letters", "list")
        said = "skipped by command: 401: the key has expired"
        assert (dead_letter["kind"], dead_letter["exporter"], dead_letter["reason"]) == ("record", "bad", said)
        assert dead_letter["uid"] == uid(item("x"))
        assert "1 dead letter, 1 record to deliver" in ok(tmp_path, "dead-letters", "replay", str(dead_letter["id"]))
        served.bad.wait(lambda: served.bad.received == ["y", "x"])
        assert as_json(tmp_path, "dead-letters", "list") == []
        assert served.good.received == ["x", "y"]
    assert "Command queue skip: 1 record at the head of bad becomes a dead letter" in caplog.text


def test_skip_works_on_a_stopped_queue(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        served.accept("x", "y")
        served.wait_until_blocked()
    assert "Still waiting: 1 record." in ok(tmp_path, "queue", "skip", "bad")
    assert waiting(tmp_path)["bad"] == 1
    assert [one["uid"] for one in as_json(tmp_path, "dead-letters", "list")] == [uid(item("x"))]
    ok(tmp_path, "queue", "skip", "bad")
    none = run(tmp_path, "queue", "skip", "bad")
    assert none.exit_code == 1
    assert "nothing waits for bad" in none.output


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_skip_takes_a_count_or_an_age_by_the_records_own_time(tmp_path: Path, how: str) -> None:
    """The timestamps of Statsig, 1.7e12 ms, are long ago, and the one of `new` is in the future."""
    with Served(tmp_path) as served:
        served.accept("a", "b", "c")
        future = {**item("new"), "timestamp": int((time.time() + 86_400) * 1000)}
        served.accept(mapped(future), "behind")
        served.wait_until_blocked()
    with maybe_served(tmp_path, how) as running:
        if running is not None:
            running.wait_until_blocked()
        said = ok(tmp_path, "queue", "skip", "bad", "--count", "2")
        assert "Of the first 2 records that wait for bad, all that were not delivered become dead letters." in said
        assert "Still waiting: 3 records." in said
        wait_until(lambda: waiting(tmp_path)["bad"] == 3)
        if running is not None:
            wait_until(lambda: running.senders["bad"].attempts > 0)
        assert "The first record that waits for bad becomes a dead letter. Still waiting: 2 records." in ok(
            tmp_path, "queue", "skip", "bad", "--older-than", "7d12h"
        )
        wait_until(lambda: waiting(tmp_path)["bad"] == 2)
        if running is not None:
            wait_until(lambda: running.senders["bad"].attempts > 0)
        young = run(tmp_path, "queue", "skip", "bad", "--older-than", "7d")
        assert young.exit_code == 1
        assert "the first record that waits for bad is newer" in young.output
        assert len(as_json(tmp_path, "dead-letters", "list")) == 3
    for wrong in (("--older-than", "soon"), ("--older-than", "7"), ("--count", "0")):
        assert run(tmp_path, "queue", "skip", "bad", *wrong).exit_code == 2


@pytest.mark.parametrize(
    ("action", "how"),
    [
        ("skip", "running"),
        ("remove", "running"),
        ("resume", "running"),
        ("skip", "stopped"),
        ("remove", "stopped"),  # `resume` is refused there, for whatever exporter
    ],
)
def test_an_unknown_exporter_is_an_error_with_a_hint(tmp_path: Path, action: str, how: str) -> None:
    add_dead_letter(tmp_path)
    with maybe_served(tmp_path, how):
        result = run(tmp_path, "queue", action, "godo", *(["--yes"] if action == "remove" else []))
    assert result.exit_code == 1
    assert "the queue knows no exporter godo; did you mean good?" in result.output


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_of_a_synchronous_exporter_it_is_said_that_it_has_no_queue(tmp_path: Path, how: str) -> None:
    """Also where it had one: what waits there can be given up."""
    directory = tmp_path / "queue"
    directory.mkdir()
    add_dead_letter(directory, letter_of_record("x", owner="debug/now"))
    config = config_file(tmp_path, directory, delivered=("debug/now",))
    where = ["--config", str(config)] if how == "stopped" else ["--directory", str(directory)]

    def refusal(command: click.Command, *arguments: str) -> str:
        result = CliRunner().invoke(command, [*arguments, *where])
        assert result.exit_code == 1
        return result.stderr

    with maybe_served(directory, how):
        for action in ("skip", "remove"):
            assert "debug/now has no sending queue: nothing waits for it" in refusal(
                queue_command.command, action, "debug/now"
            )
    with StoppedQueue(directory) as queue:
        queue.submit(lambda connection: store.ensure_exporter(connection, "debug/now")).result()
    with maybe_served(directory, how):
        if how == "running":
            for action in ("skip", "resume"):
                assert "debug/now has no sending queue in the running" in refusal(
                    queue_command.command, action, "debug/now"
                )
            assert "1 stays: the exporter debug/now has no sending queue in the running configuration" in refusal(
                dead_letters.command, "replay", "1"
            )
        done = CliRunner().invoke(queue_command.command, ["remove", "debug/now", *where])
        assert done.exit_code == 0, done.output


def test_a_directory_in_use_without_a_socket_is_said(tmp_path: Path) -> None:
    add_dead_letter(tmp_path, letter_of_record("x"))
    with StoppedQueue(tmp_path):
        assert len(as_json(tmp_path, "dead-letters", "list")) == 1
        result = run(tmp_path, "dead-letters", "replay", "1")
    assert result.exit_code == 1
    assert "is it starting, or stopping?" in result.output


def test_a_wrong_configuration_file_is_said_with_a_way_out(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("receivers: {statsig: {signing_secrets: ['${env:NO_SUCH_VARIABLE}']}}")
    result = CliRunner().invoke(queue_command.command, ["--config", str(config)])
    assert result.exit_code == 1
    assert "NO_SUCH_VARIABLE" in result.output
    assert "--directory DIR, without --config, needs no configuration" in result.output


def test_a_running_service_is_found_without_the_variables_of_its_configuration(tmp_path: Path) -> None:
    """In a second terminal, which does not know the secrets. A stopped service's configuration is needed as a whole."""
    directory = tmp_path / "queue"
    add_dead_letter(directory, letter_of_record("x"), letter_of_record("y"))
    config = ("--config", str(config_file(tmp_path, directory, signing_secrets=["${env:NO_SUCH_VARIABLE}"])))
    commands = (["queue", "resume", "good"], ["dead-letters", "list"], ["dead-letters", "drop", "2", "--yes"])
    with Served(directory):
        assert "the queue of the running service" in CliRunner().invoke(main, ["queue", *config]).stdout
        for command in commands:
            done = CliRunner().invoke(main, [*command, *config])
            assert done.exit_code == 0, done.output
        access = QueueAccess(directory=None, locations=config[1:], environ={})
        with pytest.raises(ConfigError, match="NO_SUCH_VARIABLE"):
            assert not access.audit_logs
    for command in commands:
        done = CliRunner().invoke(main, [*command, *config])
        assert (done.exit_code, "the environment variable NO_SUCH_VARIABLE is not set" in done.output) == (1, True)
    with pytest.raises(ConfigError, match="NO_SUCH_VARIABLE"), access.changing():
        pass  # it stopped in the meantime, and nothing may be replayed to an exporter that is not configured


def test_all_is_told_that_is_wrong_if_the_directory_is_not_known_either(tmp_path: Path) -> None:
    config = config_file(tmp_path, Path("${env:NO_DIRECTORY}"), signing_secrets=["${env:NO_SUCH_VARIABLE}"])
    done = CliRunner().invoke(main, ["queue", "--config", str(config)])
    assert done.exit_code == 1
    assert "NO_DIRECTORY" in done.output
    assert "NO_SUCH_VARIABLE" in done.output


def test_the_default_place_is_that_of_a_service_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    add_dead_letter(tmp_path, letter_of_record("x"))
    result = CliRunner().invoke(dead_letters.command, ["list", "--json"])
    assert [one["id"] for one in json.loads(result.stdout)] == [1]


@pytest.mark.parametrize(
    ("ids", "text"), [([], "none"), ([7], "7"), ([3, 1, 2], "1-3"), ([1, 2, 4, 6, 7], "1-2, 4, 6-7")]
)
def test_ids_read_as_ranges(ids: list[int], text: str) -> None:
    assert ranges(ids) == text


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_a_queue_is_copied_to_a_file(tmp_path: Path, how: str) -> None:
    queue, copy = tmp_path / "queue", tmp_path / "copy"
    add_dead_letter(queue, letter_of_record("x"))
    with maybe_served(queue, how):
        size = ok(queue, "queue", "backup", str(copy))
        again = run(queue, "queue", "backup", str(copy))
        nowhere = run(queue, "queue", "backup", str(tmp_path / "nowhere" / "copy"))
        for name in ("queue.db-journal", "queue.db.corrupt-20260101T000000Z-1", "state.json", "reserve"):
            own = run(queue, "queue", "backup", str(queue / name))
            assert "would count as a file of the queue itself" in own.output
    assert size == f"The queue is copied to {copy}: {copy.stat().st_size} bytes.\n"
    assert (again.exit_code, again.output) == (1, f"Error: {copy} exists already: name a new file\n")
    assert nowhere.output == f"Error: {tmp_path}/nowhere/copy can't be written: No such file or directory\n"
    restored = tmp_path / "restored"
    restored.mkdir()
    copy.rename(restored / "queue.db")
    assert [one["id"] for one in as_json(restored, "dead-letters", "list")] == [1]


def test_json_without_the_table_is_refused(tmp_path: Path) -> None:
    """Leaving it out in silence would give a script a sentence where it expects JSON."""
    result = run(tmp_path, "queue", "--json", "resume", "good")
    assert result.exit_code == 2
    assert "--json applies to `statsig-otel queue` without a subcommand" in result.output
