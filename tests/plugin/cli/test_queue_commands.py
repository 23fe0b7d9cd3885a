"""`statsig-otel queue` and `dead-letters`, on a queue that is served as a service serves it, and on a stopped one."""

import base64
import json
import logging
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Self

import click
import pytest
from click.testing import CliRunner, Result
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel import _telemetry
from statsig_otel.exporters.consumer import Batch, Change, Invalid
from statsig_otel.exporters.delivery.sender import DeliverySettings, QueueSender
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer, SynchronousExporter
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, PartiallyRejected, RetryLater
from statsig_otel.exporters.queue import queries, store
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.exporters.queue.open_directory import StoppedQueue
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.routing import CurrentRouting, QueuedExporter, Route, Routing
from statsig_otel.plugin.cli import dead_letters
from statsig_otel.plugin.cli import queue as queue_command
from statsig_otel.plugin.control import dead_letters as dead_letters_handlers
from statsig_otel.plugin.control.handlers import handlers
from statsig_otel.plugin.control.socket import ControlServer, call
from statsig_otel.plugin.control.wording import ranges
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.webhook.payload import parse
from statsig_otel.plugin.webhook.signature import Verifier
from tests.exporters.queue.helpers import failing_disk

WAIT = 20.0
OBSERVED = 1_700_000_000_000_000_000


def item(name: str, **others: object) -> dict[str, object]:
    return {
        "eventName": "statsig::config_change",
        "timestamp": 1739400185198,
        "metadata": {"type": "Gate", "name": name, "action": "updated"},
        **others,
    }


def change(name: str) -> Change:
    """What a receiver makes of an item."""
    payload = parse(json.dumps([item(name)]).encode())
    mapped = Mapper().map(payload, OBSERVED)
    return mapped.changes[0]


def names(payload: bytes) -> list[str]:
    found = []
    for resource_logs in ExportLogsServiceRequest.FromString(payload).resource_logs:
        attributes = resource_logs.scope_logs[0].log_records[0].attributes
        found += [attribute.value.string_value for attribute in attributes if attribute.key == "feature_flag.key"]
    return found


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Backend:
    """An exporter whose answer a test chooses."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.received: list[str] = []
        self._said = threading.Condition()
        self._free = threading.Event()
        self._free.set()
        self.attempts = 0

    def start(self) -> None:
        """Nothing to open."""

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        self._free.wait(WAIT)
        with self._said:
            self.attempts += 1
            if not isinstance(self.outcome, Blocked):
                self.received += names(payload)
            self._said.notify_all()
        return self.outcome

    def shutdown(self) -> None:
        """Nothing to close."""

    @contextmanager
    def hanging(self) -> Iterator[None]:
        self._free.clear()
        yield
        self._free.set()

    def wait(self, until: Callable[[], bool]) -> None:
        with self._said:
            assert self._said.wait_for(until, WAIT), self.received


class Served:
    """A queue with two exporters, `good` and `bad`, and its control socket, as a service has them.

    The receiver `statsig` may have a synchronous exporter beside them, `debug/now`; the receiver `statsig/now` has it
    alone.
    """

    def __init__(
        self, directory: Path, exporters: tuple[str, ...] = ("good", "bad"), *, delivered: tuple[str, ...] = ()
    ) -> None:
        self.directory = directory
        self.good, self.bad = Backend(Delivered()), Backend(Blocked("401: the key has expired"))
        self.now = Backend(Delivered())
        backends = {"good": self.good, "bad": self.bad}
        routing = Routing(
            {"statsig": Route(exporters, synchronous=delivered), "statsig/now": Route(synchronous=("debug/now",))},
            {name: QueuedExporter() for name in exporters},
        )
        self.synchronous = SynchronousConsumer({"debug/now": SynchronousExporter(self.now, WAIT)})
        self.queue = DurableQueue(directory, CurrentRouting(routing), min_free_bytes=0)
        self.senders = {
            name: QueueSender(self.queue.cursor(name), backends[name], DeliverySettings(max_records=1))
            for name in exporters
        }
        self.intakes = {name: Intake(verifier=Verifier(["webhook-secret"]), name=name) for name in routing.receivers}
        commands = handlers(
            self.queue,
            senders=self.senders,
            intakes=self.intakes,
            routing=routing,
            synchronous=self.synchronous,
        )
        self.control = ControlServer(directory / CONTROL, commands)

    def __enter__(self) -> Self:
        self.synchronous.start()
        self.queue.start()
        self.control.start()
        for sender in self.senders.values():
            sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.control.shutdown()
        for sender in self.senders.values():
            sender.shutdown()
        self.synchronous.shutdown()
        self.queue.shutdown()

    def accept(self, *accepted: str, invalid: tuple[Invalid, ...] = ()) -> None:
        batch = Batch("statsig", tuple(map(change, accepted)), invalid)
        self.queue.consume(batch).result(WAIT)

    def wait_until_blocked(self) -> None:
        self.bad.wait(lambda: self.bad.attempts > 0)
        eventually(lambda: self.senders["bad"].state == "blocked")


def run(directory: Path, *arguments: str) -> Result:
    command = {"queue": queue_command.command, "dead-letters": dead_letters.command}[arguments[0]]
    return CliRunner().invoke(command, [*arguments[1:], "--directory", str(directory)])


def ok(directory: Path, *arguments: str) -> str:
    result = run(directory, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(directory: Path, *arguments: str) -> Any:
    return json.loads(ok(directory, *arguments, "--json"))


def bury(directory: Path, *found: DeadLetter) -> None:
    """Put dead letters into a stopped queue with the exporters good and bad."""
    with StoppedQueue(directory) as queue:

        def work(connection: sqlite3.Connection) -> None:
            for name in ("good", "bad"):
                store.ensure_exporter(connection, name)
            for letter in found:
                store.bury(connection, letter, OBSERVED // 1_000_000)

        queue.submit(work).result()


def letter_of_item(name: str | None, owner: str = "statsig") -> DeadLetter:
    text = item(name) if name else item("x", timestamp="soon")
    return DeadLetter("item", owner, "timestamp: is missing", json.dumps(text).encode())


def letter_of_record(name: str, owner: str = "bad", reason: str = "400: no") -> DeadLetter:
    (record,) = change(name).records
    return DeadLetter("record", owner, reason, record, bytes.fromhex(change(name).uid), 3)


def waiting(directory: Path) -> dict[str, int]:
    return {exporter["name"]: exporter["waiting"] for exporter in as_json(directory, "queue")["exporters"]}


def config_file(folder: Path, directory: Path, *, delivered: tuple[str, ...] = (), **receiver: object) -> Path:
    """The configuration of a service with the exporters good and bad, by other names of the debug exporter.

    Those of `delivered` are synchronous ones beside them.
    """
    synchronous = {name: {"sending_queue": {"enabled": False}} for name in delivered}
    exporters = {"debug/good": {}, "debug/bad": {}, **synchronous}
    document = {
        "receivers": {"statsig": {"signing_secrets": [], **receiver}},
        "exporters": exporters,
        "extensions": {"file_storage": {"directory": str(directory)}},
        "service": {
            "extensions": ["file_storage"],
            "pipelines": {"logs": {"receivers": ["statsig"], "exporters": list(exporters)}},
        },
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(document))
    return path


# --- queue ----------------------------------------------------------------------------------------------------------


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


def test_reading_changes_nothing_for_the_next_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Served(tmp_path):
        pass
    ok(tmp_path, "queue")
    ok(tmp_path, "dead-letters", "list")
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())
    with Served(tmp_path):
        pass
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("files", [(), ("other",)])
def test_a_directory_without_a_queue_is_said_and_not_made(tmp_path: Path, files: tuple[str, ...]) -> None:
    directory = tmp_path / "none"
    for name in files:
        directory.mkdir(exist_ok=True)
        (directory / name).touch()
    for arguments in (("queue",), ("queue", "resume", "a"), ("dead-letters", "list"), ("dead-letters", "drop", "1")):
        result = run(directory, *arguments)
        assert result.exit_code == 1
        assert "holds no queue" in result.output
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
    assert "give --config FILE, or say --yes" in unsure.output
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
        eventually(lambda: waiting(tmp_path)["good"] == 0)
        healthy = run(tmp_path, "queue", "skip", "good")
        assert healthy.exit_code == 1
        assert "nothing waits for good" in healthy.output
        served.bad.outcome = Delivered()
        assert "Still waiting: 1 record." in ok(tmp_path, "queue", "skip", "bad")
        served.bad.wait(lambda: served.bad.received == ["y"])
        (letter,) = as_json(tmp_path, "dead-letters", "list")
        assert (letter["kind"], letter["exporter"], letter["reason"]) == ("record", "bad", "skipped by command")
        assert letter["uid"] == uid(item("x"))
        assert "1 dead letter, 1 record to deliver" in ok(tmp_path, "dead-letters", "replay", str(letter["id"]))
        served.bad.wait(lambda: served.bad.received == ["y", "x"])
        assert as_json(tmp_path, "dead-letters", "list") == []
        assert served.good.received == ["x", "y"]
    assert "Command queue skip: the record at the head of bad" in caplog.text


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
    bury(tmp_path)
    with maybe_served(tmp_path, how):
        result = run(tmp_path, "queue", action, "godo", *(["--yes"] if action == "remove" else []))
    assert result.exit_code == 1
    assert "the queue knows no exporter godo; did you mean good?" in result.output


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_of_a_synchronous_exporter_it_is_said_that_it_has_no_queue(tmp_path: Path, how: str) -> None:
    """Also where it had one: what waits there can be given up."""
    directory = tmp_path / "queue"
    directory.mkdir()
    bury(directory, letter_of_record("x", owner="debug/now"))
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


# --- dead letters ---------------------------------------------------------------------------------------------------


@contextmanager
def maybe_served(directory: Path, how: str) -> Iterator[Served | None]:
    """The same queue, running or stopped."""
    if how == "stopped":
        yield None
        return
    with Served(directory) as served:
        yield served


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_letters_are_listed_and_shown(tmp_path: Path, how: str) -> None:
    bury(
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


def test_where_there_are_no_letters_it_is_said(tmp_path: Path) -> None:
    bury(tmp_path)
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
    bury(tmp_path, letter_of_record("x"))
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
    bury(tmp_path, letter_of_record("x"))
    assert run(tmp_path, "dead-letters", *arguments).exit_code == 2
    assert len(as_json(tmp_path, "dead-letters", "list")) == 1


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_letters_are_dropped_only_when_that_was_said(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    bury(tmp_path, *(letter_of_record(name) for name in "vwxyz"), letter_of_item("x"))
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


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_a_record_is_replayed_for_its_exporter_alone(tmp_path: Path, how: str) -> None:
    bury(tmp_path, letter_of_record("x"), letter_of_record("y"))
    with maybe_served(tmp_path, how) as served:
        (done,) = as_json(tmp_path, "dead-letters", "replay", "2")
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
        gone = run(tmp_path, "dead-letters", "replay", "2")
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
        eventually(lambda: len(as_json(tmp_path, "dead-letters", "list")) == 2)
    bury(tmp_path, DeadLetter("batch", "good", "1 of 2", b"".join(change(name).records[0] for name in "vw"), count=2))
    with Served(tmp_path) as served:
        (_, _, batch) = as_json(tmp_path, "dead-letters", "list")
        ok(tmp_path, "dead-letters", "replay", str(batch["id"]))
        served.good.wait(lambda: served.good.received == ["v", "w"])


def test_an_item_is_mapped_anew_by_the_running_service(tmp_path: Path) -> None:
    bury(tmp_path, letter_of_item("x"), letter_of_item(None), letter_of_item("y", owner="statsig/gone"))
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
    bury(tmp_path, letter_of_item("x"))
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
    bury(
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
    bury(directory, letter_of_item("x"), DeadLetter("body", "statsig", "?", body), letter_of_item("y"))
    config = config_file(tmp_path, directory, filter={"exclude": {"names": ["x"]}})
    done = CliRunner().invoke(dead_letters.command, ["--config", str(config), "replay", "--all"])
    assert done.exit_code == 1
    for number in (1, 2):
        assert f"{number} stays: the receiver's filter keeps nothing of it" in done.output
    assert [one["id"] for one in as_json(directory, "dead-letters", "list")] == [1, 2]


def test_an_item_of_a_stopped_service_needs_its_configuration(tmp_path: Path) -> None:
    """And is mapped as the configuration says, for the exporters that it names."""
    directory = tmp_path / "queue"
    directory.mkdir()
    named = DeadLetter("item", "statsig", "?", json.dumps(item("x", user={"email": "a@example.com"})).encode())
    bury(directory, named)
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
    bury(directory, named)
    again = CliRunner().invoke(dead_letters.command, ["--config", str(config), "replay", "2"])
    assert "Accepted before: 1 change." in again.output
    assert waiting(directory)["debug/good"] == 1


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_records_that_can_not_be_sent_stay(tmp_path: Path, how: str) -> None:
    bury(tmp_path, letter_of_record("x", owner="removed"), DeadLetter("record", "bad", "damaged", b"\xff\xff"))
    with maybe_served(tmp_path, how):
        result = run(tmp_path, "dead-letters", "replay", "--all")
    assert result.exit_code == 1
    assert "1 stays: the exporter removed is not in" in result.output or "no exporter removed" in result.output
    assert "2 stays: its content can't be read" in result.output
    assert len(as_json(tmp_path, "dead-letters", "list")) == 2


# Replays for synchronous exporters


def test_an_item_reaches_the_synchronous_exporters_of_its_receiver_before_the_others(tmp_path: Path) -> None:
    bury(tmp_path, letter_of_item("x"), letter_of_item(None), letter_of_item("y"))
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
    """What became of each letter, also where one stays."""
    return json.loads(run(directory, "dead-letters", "replay", *arguments, "--json").stdout)


def test_a_body_reaches_the_synchronous_exporters_and_what_is_invalid_in_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events = [item("x"), item("bad", timestamp="soon"), item("y")]
    bury(tmp_path, DeadLetter("body", "statsig", "?", json.dumps(events).encode()))
    counts = Counts(monkeypatch)
    with Served(tmp_path, delivered=("debug/now",)) as served:
        result = run(tmp_path, "dead-letters", "replay", "1")
        assert "Replayed: 1 dead letter, 2 records to deliver. Delivered at once: to debug/now." in result.output
        assert served.now.received == ["x", "y"]
        served.good.wait(lambda: served.good.received == ["x", "y"])
    (left,) = as_json(tmp_path, "dead-letters", "show", "--all")
    assert (left["kind"], json.loads(left["text"])) == ("item", events[1])
    assert counts.letters == [(1, {"kind": "item", "owner": "statsig"})]
    assert "is stored nowhere but in this log" not in caplog.text


class Counts:
    """Listens to the counter of dead letters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.letters: list[tuple[int, dict[str, str]]] = []
        monkeypatch.setattr(_telemetry, "dead_letters", self)

    def add(self, amount: int, attributes: dict[str, str]) -> None:
        self.letters.append((amount, attributes))


def test_where_a_synchronous_exporter_fails_the_letter_stays_whole(tmp_path: Path) -> None:
    """Nothing of it waits and no uid is remembered, so that the next replay reaches all."""
    bury(tmp_path, letter_of_item("x"), letter_of_record("y", owner="good"))
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
    """Its letters are of a time at which it had a queue. Nothing is put into one that nobody reads."""
    events = [item("y"), item("bad", timestamp="soon")]
    bury(
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


def test_a_page_of_letters_goes_to_a_synchronous_exporter_together(tmp_path: Path) -> None:
    """One send after the other would be a page of timeouts where a backend hangs."""
    bury(tmp_path, *(letter_of_item(f"n{number}") for number in range(100)))
    with Served(tmp_path, delivered=("debug/now",)) as served:
        assert len(as_json(tmp_path, "dead-letters", "replay", "--all")) == 100
        assert served.now.received == [f"n{number}" for number in range(100)]
        assert served.now.attempts < 10


def test_a_synchronous_exporter_that_hangs_holds_no_command_up_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters_handlers, "_DELIVERED_WITHIN", 0.05)
    bury(tmp_path, letter_of_item("x"))
    with Served(tmp_path, delivered=("debug/now",)) as served:
        with served.now.hanging():
            (kept,) = as_replayed(tmp_path, "1")
        assert (kept["outcome"], kept["reason"]) == ("kept", "not delivered: debug/now took more than 0.05 s")
        assert len(as_json(tmp_path, "dead-letters", "list")) == 1


def test_a_stopped_service_keeps_what_a_synchronous_exporter_has_to_get(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    directory.mkdir()
    bury(directory, letter_of_item("x"), DeadLetter("body", "statsig", "?", b"[]"))
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
    """The queue fails behind it: the letter stays, and the exporter gets it twice."""
    bury(tmp_path, letter_of_item("x"))
    with Served(tmp_path, delivered=("debug/now",)) as served:
        with failing_disk():
            result = run(tmp_path, "dead-letters", "replay", "1", "--json")
        assert (result.exit_code, json.loads(result.stdout)) == (1, [])
        assert "the queue can't be changed now" in result.stderr
        assert len(as_json(tmp_path, "dead-letters", "list")) == 1
        ok(tmp_path, "dead-letters", "replay", "1")
        assert served.now.received == ["x", "x"]
        served.good.wait(lambda: served.good.received == ["x"])


# What was damaged on disk


def damaged(content: bytes) -> DeadLetter:
    return DeadLetter("damaged", "bad", "damaged on disk: its checksum is wrong", content)


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_what_was_damaged_on_disk_is_never_sent(tmp_path: Path, how: str) -> None:
    (record,) = change("x").records
    bury(tmp_path, damaged(record))
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
    bury(tmp_path, *map(damaged, contents))
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
        eventually(lambda: waiting(tmp_path)["bad"] == 1)
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


# Many at once


def test_many_letters_go_page_by_page_and_new_ones_are_not_tried(tmp_path: Path) -> None:
    """A record that is refused once more becomes a letter again, which the same command leaves alone."""
    bury(tmp_path, *(letter_of_record(f"n{number}", owner="good") for number in range(250)))
    with Served(tmp_path) as served:
        served.good.outcome = PartiallyRejected(1, "no")
        done = as_json(tmp_path, "dead-letters", "replay", "--all")
        assert [one["id"] for one in done] == list(range(1, 251))
        served.good.wait(lambda: len(served.good.received) == 250)
        eventually(lambda: len(as_json(tmp_path, "dead-letters", "list")) == 250)
        assert sorted(served.good.received) == sorted(f"n{number}" for number in range(250))
        assert as_json(tmp_path, "dead-letters", "drop", "--all", "--yes") == list(range(251, 501))


def test_many_ids_are_taken(tmp_path: Path) -> None:
    bury(tmp_path, *(letter_of_record(f"n{number}") for number in range(1200)))
    ids = [str(number) for number in range(1, 1201)]
    with Served(tmp_path):
        assert len(as_json(tmp_path, "dead-letters", "list", *ids)) == 1200
        assert len(as_json(tmp_path, "dead-letters", "replay", *ids[:1100])) == 1100
        assert as_json(tmp_path, "dead-letters", "drop", *ids[1100:], "--yes") == list(range(1101, 1201))


def test_parallel_replays_of_all_double_nothing(tmp_path: Path) -> None:
    bury(tmp_path, *(letter_of_record(f"n{number}", owner="good") for number in range(150)))
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


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"selection": {"exportr": "bad"}},
        {"selection": {"ids": ["x"]}},
        {"selection": {}, "limit": 7},
        {"selection": {"kind": "letter"}},
        {"selection": 7},
    ],
)
@pytest.mark.parametrize("command", ["dead-letters replay", "dead-letters drop"])
def test_arguments_that_are_not_understood_select_nothing(
    tmp_path: Path, command: str, arguments: dict[str, Any]
) -> None:
    bury(tmp_path, letter_of_record("x"))
    with Served(tmp_path):
        with pytest.raises(Exception, match="the arguments are wrong"):
            call(tmp_path / CONTROL, command, **arguments)
        assert len(as_json(tmp_path, "dead-letters", "list")) == 1


def test_a_directory_in_use_without_a_socket_is_said(tmp_path: Path) -> None:
    bury(tmp_path, letter_of_record("x"))
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


def test_the_default_place_is_that_of_a_service_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    bury(tmp_path, letter_of_record("x"))
    result = CliRunner().invoke(dead_letters.command, ["list", "--json"])
    assert [one["id"] for one in json.loads(result.stdout)] == [1]


@pytest.mark.parametrize(
    ("ids", "text"), [([], "none"), ([7], "7"), ([3, 1, 2], "1-3"), ([1, 2, 4, 6, 7], "1-2, 4, 6-7")]
)
def test_ids_read_as_ranges(ids: list[int], text: str) -> None:
    assert ranges(ids) == text


def test_json_without_the_table_is_refused(tmp_path: Path) -> None:
    """Leaving it out in silence would give a script a sentence where it expects JSON."""
    result = run(tmp_path, "queue", "--json", "resume", "good")
    assert result.exit_code == 2
    assert "--json applies to `statsig-otel queue` without a subcommand" in result.output
