"""A queue with its senders, and backends that answer by what they are sent."""

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters.consumer import Batch, Change
from statsig_otel.exporters.delivery.retry import RetrySettings
from statsig_otel.exporters.delivery.sender import QueueSender
from statsig_otel.exporters.delivery.settings import DeliverySettings
from statsig_otel.exporters.exporter import Exporter
from statsig_otel.exporters.otlp.grpc import OtlpGrpcExporter
from statsig_otel.exporters.otlp.http import OtlpHttpExporter
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.exporters.queue import queries, schema
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.records import Records
from statsig_otel.exporters.queue.recovery.recovery import Recovery
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.routing import CurrentRouting, QueuedExporter, Route, Routing
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink, HttpAnswer, HttpSink, Received, partial_success, retry_info
from tests.waiting import wait_until

Kind = Literal[
    "delivered", "later", "later in 1 s", "rejected", "too large", "partial", "blocked", "missing", "broken", "hang"
]
Rule = Callable[[list[str]], Kind]

QUICK = RetrySettings(initial_interval=0.05, max_interval=0.1)
SLOW = RetrySettings(initial_interval=600.0, max_interval=600.0)
"""No test waits for it."""

_TEXT = {"Content-Type": "text/plain"}
HTTP: Mapping[Kind, HttpAnswer] = {
    "delivered": HttpAnswer(),
    "later": HttpAnswer(503, _TEXT, b"out for lunch"),
    "later in 1 s": HttpAnswer(429, headers={"Retry-After": "1"}),
    "rejected": HttpAnswer(400, _TEXT, b"no good"),
    "too large": HttpAnswer(413),
    "partial": HttpAnswer(body=partial_success(1, "one of them")),
    "blocked": HttpAnswer(401, _TEXT, b"who are you"),
    "missing": HttpAnswer(404, _TEXT, b"no such thing"),
    "broken": HttpAnswer(500, _TEXT, b"oops"),
    "hang": HttpAnswer(503, hang=True),
}
GRPC: Mapping[Kind, GrpcAnswer] = {
    "delivered": GrpcAnswer(),
    "later": GrpcAnswer(grpc.StatusCode.UNAVAILABLE, "out for lunch"),
    "later in 1 s": GrpcAnswer(
        grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=(("grpc-status-details-bin", retry_info(1, code=8)),)
    ),
    "rejected": GrpcAnswer(grpc.StatusCode.INVALID_ARGUMENT, "no good"),
    "too large": GrpcAnswer(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large"),
    "partial": GrpcAnswer(body=partial_success(1, "one of them")),
    "blocked": GrpcAnswer(grpc.StatusCode.UNAUTHENTICATED, "who are you"),
    "missing": GrpcAnswer(grpc.StatusCode.UNIMPLEMENTED, "no such thing"),
    "broken": GrpcAnswer(grpc.StatusCode.INTERNAL, "oops"),
    "hang": GrpcAnswer(grpc.StatusCode.UNAVAILABLE, hang=True),
}


def settings(**keys: Any) -> DeliverySettings:
    """Short waits, unless others are asked for."""
    short = {"retry": QUICK, "blocked": QUICK, "storage_pause": 0.05, "between_probes": 0.01, "timeout": 30.0}
    return DeliverySettings(**{**short, **keys})


def encoded(name: str, size: int = 0) -> bytes:
    """A record with a name, at least so many bytes long."""
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add()
    record.body.string_value = name
    if size:
        record.attributes.add(key="padding").value.string_value = "x" * size
    return request.SerializeToString()


def records(seqs: Iterable[int]) -> Records:
    """Records as a queue reads them, with these seqs."""
    seqs = tuple(seqs)
    payloads = tuple(b"%d" % seq for seq in seqs)
    return Records(seqs, tuple(bytes(16) for _ in seqs), payloads, (True,) * len(seqs))


def names_in(payload: bytes) -> list[str]:
    """The names of the records of a batch, in order."""
    return [record.body.string_value for record in Received(payload, {}, "").records]


class Backend:
    """A real OTLP receiver whose answers follow a rule over the names that it is sent.

    Attributes:
        rule: From the names to what is answered.
        calls: The names of each request, and what was answered.
        times: When each request came in, by the monotonic clock.
    """

    def __init__(self, transport: str = "http", rule: Rule | None = None, *, port: int = 0) -> None:
        self.transport = transport
        self.rule: Rule = rule or (lambda names: "delivered")
        self.calls: list[tuple[list[str], Kind]] = []
        self.times: list[float] = []
        self.sink: HttpSink | GrpcSink = HttpSink(port=port) if transport == "http" else GrpcSink(port=port)
        if isinstance(self.sink, HttpSink):
            self.sink.answer = lambda received: HTTP[self._judge(received)]
        else:
            self.sink.answer = lambda received: GRPC[self._judge(received)]

    def __enter__(self) -> Self:
        self.sink.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.sink.close()

    def exporter(self, **keys: Any) -> Exporter:
        return exporter_to(self.transport, self.sink.address, **keys)

    @property
    def exporter_url(self) -> str:
        return f"http://{self.sink.address}/v1/logs"

    @property
    def taken(self) -> list[str]:
        """The names of all records that it answered with success, in order."""
        return [name for names, kind in list(self.calls) if kind in ("delivered", "partial") for name in names]

    def count(self, kind: Kind) -> int:
        return sum(answered == kind for _, answered in list(self.calls))

    def _judge(self, received: Received) -> Kind:
        names = names_in(received.payload)
        kind = self.rule(names)
        self.times.append(time.monotonic())
        self.calls.append((names, kind))
        return kind


def exporter_to(transport: str, address: str, **keys: Any) -> Exporter:
    if transport == "http":
        return OtlpHttpExporter("out", OtlpHttpSettings.model_validate({"endpoint": f"http://{address}", **keys}))
    plain = {"endpoint": address, "tls": {"insecure": True}, **keys}
    return OtlpGrpcExporter("out", OtlpGrpcSettings.model_validate(plain))


class Rig:
    """A queue in a directory, with one sender for each exporter. The senders are started by `start`."""

    def __init__(self, path: Path, exporters: Mapping[str, tuple[Exporter, DeliverySettings]]) -> None:
        self.path = path
        self.queue = DurableQueue(
            path,
            CurrentRouting(
                Routing({"statsig": Route(tuple(exporters))}, {name: QueuedExporter() for name in exporters})
            ),
            min_free_bytes=0,
        )
        self.queue.start()
        self.recovery = Recovery(self.queue)
        self.recovery.start()
        self.senders = {
            name: QueueSender(self.queue.cursor(name), exporter, wanted)
            for name, (exporter, wanted) in exporters.items()
        }

    def put(self, *names: str, size: int = 0) -> None:
        """Store records; acknowledged when this returns."""
        changes = tuple(
            Change(hashlib.sha256(name.encode()).hexdigest()[:32], (encoded(name, size),)) for name in names
        )
        self.queue.consume(Batch("statsig", changes), self.queue.routing.route("statsig")).result(30)

    def start(self) -> None:
        for sender in self.senders.values():
            sender.start()

    @property
    def sender(self) -> QueueSender:
        return self.senders["out"]

    def waiting(self, name: str = "out") -> int:
        return self.queue.cursor(name).waiting

    def drained(self, name: str = "out") -> None:
        """Wait until nothing waits for an exporter."""
        wait_until(lambda: self.waiting(name) == 0, f"{self.waiting(name)} records to leave")

    def skip(self, count: int = 1) -> bool:
        """Skip records from the head on, as the command does."""
        cursor = self.queue.cursor("out")
        position = cursor.position
        with closing(schema.connect_reading(self.queue.database)) as connection:
            found, last = queries.first_waiting(connection, cursor.id, after=position, count=count, before_ns=None)
        return found > 0 and self.sender.skip(position, last)

    def dead_letters(self) -> list[DeadLetter]:
        """All dead letters, in order."""
        with sqlite3.connect(f"{self.queue.database.as_uri()}?mode=ro", uri=True) as connection:
            rows = connection.execute(
                "SELECT kind, owner, reason, content, uid, attempts, count FROM dead_letters ORDER BY id"
            ).fetchall()
        connection.close()
        return [DeadLetter(*row) for row in rows]

    def dead_letter_names(self) -> list[str]:
        """The names of all records in the dead letters, in order."""
        return [name for dead_letter in self.dead_letters() for name in names_in(dead_letter.content)]

    def close(self, drain: float = 0.0) -> None:
        for sender in self.senders.values():
            sender.shutdown(drain)
        self.recovery.stop()
        self.queue.shutdown()


@contextmanager
def rig(path: Path, exporter: Exporter, wanted: DeliverySettings | None = None) -> Iterator[Rig]:
    """A queue with one sender, named `out`."""
    made = Rig(path, {"out": (exporter, wanted or settings())})
    try:
        yield made
    finally:
        made.close()


def named(count: int, prefix: str = "r") -> list[str]:
    return [f"{prefix}{number:04}" for number in range(count)]


def refusing(bad: Iterable[str], kind: Kind = "rejected") -> Rule:
    """Whatever holds one of these is refused."""
    refused = frozenset(bad)
    return lambda names: kind if refused.intersection(names) else "delivered"


LOGGERS = ("statsig_otel.exporters.delivery.sender", "statsig_otel.exporters.delivery.outage")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name in LOGGERS]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "out" in thread.name]
