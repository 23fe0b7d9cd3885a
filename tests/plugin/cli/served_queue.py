"""A queue with its senders and its control socket, as a service serves it, and the commands about it."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from click.testing import CliRunner, Result
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters.consumer import Batch, Change, Invalid
from statsig_otel.exporters.delivery.sender import QueueSender
from statsig_otel.exporters.delivery.settings import DeliverySettings
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer, SynchronousExporter
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome
from statsig_otel.exporters.queue import store
from statsig_otel.exporters.queue.database import StoppedQueue
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.routing import CurrentRouting, QueuedExporter, Route, Routing
from statsig_otel.plugin.cli import dead_letters
from statsig_otel.plugin.cli import queue as queue_command
from statsig_otel.plugin.control.handlers import handlers
from statsig_otel.plugin.control.socket import ControlServer
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.webhook.body import parse
from statsig_otel.plugin.webhook.signature import Verifier
from tests.waiting import wait_until

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
    """What a receiver makes of an item with a name."""
    return mapped(item(name))


def mapped(one: dict[str, object]) -> Change:
    """What a receiver makes of an item."""
    return Mapper().map(parse(json.dumps([one]).encode()), OBSERVED).changes[0]


def names(payload: bytes) -> list[str]:
    found = []
    for resource_logs in ExportLogsServiceRequest.FromString(payload).resource_logs:
        attributes = resource_logs.scope_logs[0].log_records[0].attributes
        found += [attribute.value.string_value for attribute in attributes if attribute.key == "feature_flag.key"]
    return found


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

    def accept(self, *accepted: str | Change, invalid: tuple[Invalid, ...] = ()) -> None:
        changes = tuple(one if isinstance(one, Change) else change(one) for one in accepted)
        batch = Batch("statsig", changes, invalid)
        self.queue.consume(batch, self.queue.routing.route(batch.receiver)).result(WAIT)

    def wait_until_blocked(self) -> None:
        self.bad.wait(lambda: self.bad.attempts > 0)
        wait_until(lambda: self.senders["bad"].state == "blocked")


def run(directory: Path, *arguments: str) -> Result:
    command = {"queue": queue_command.command, "dead-letters": dead_letters.command}[arguments[0]]
    return CliRunner().invoke(command, [*arguments[1:], "--directory", str(directory)])


def ok(directory: Path, *arguments: str) -> str:
    """What a command prints. `queue` has an exit code of its own beside a blocked exporter."""
    result = run(directory, *arguments)
    is_blocked = {*arguments} <= {"queue", "--json"} and "blocked" in result.output
    assert result.exit_code == (3 if is_blocked else 0), result.output
    return result.stdout


def as_json(directory: Path, *arguments: str) -> Any:
    return json.loads(ok(directory, *arguments, "--json"))


def add_dead_letter(directory: Path, *found: DeadLetter) -> None:
    """Put dead letters into a stopped queue with the exporters good and bad."""
    with StoppedQueue(directory) as queue:

        def work(connection: sqlite3.Connection) -> None:
            for name in ("good", "bad"):
                store.ensure_exporter(connection, name)
            for dead_letter in found:
                store.add_dead_letter(connection, dead_letter, OBSERVED // 1_000_000)

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


@contextmanager
def maybe_served(directory: Path, how: str) -> Iterator[Served | None]:
    """The same queue, running or stopped."""
    if how == "stopped":
        yield None
        return
    with Served(directory) as served:
        yield served
