"""Measures what stages of a webhook cost in one thread, and the same library calls with nothing around them: the floor.

Each function below makes the two functions of one stage, for one change of 1 KB. They run in one thread, so nothing
waits for the interpreter's lock.

    python -m benchmarks.floors SECONDS GROUP BATCH BACKEND DIRECTORY
"""

import contextlib
import hmac
import itertools
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeAlias

import grpc
import msgspec

from benchmarks import backlog, stages, webhooks
from benchmarks.sink import EXPORT
from benchmarks.webhooks import CHANGE
from statsig_otel.config.grammar import check
from statsig_otel.config.source import read
from statsig_otel.exporters.consumer import Batch, Change
from statsig_otel.exporters.exporter import Delivered
from statsig_otel.exporters.queue import queries, schema, store
from statsig_otel.exporters.queue.store import PendingBatch
from statsig_otel.exporters.routing import Route
from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.record.record import LogRecordEncoder, RecordFields
from statsig_otel.plugin.settings.catalog import COMPONENTS, create_exporter
from statsig_otel.plugin.settings.reading import configured_exporters
from statsig_otel.plugin.webhook.body import parse
from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER, Verifier, sign

Function: TypeAlias = Callable[[], object]

_TIMEOUT: Final = 10.0
_AT_ONCE: Final = 10
"""Calls between two looks at the clock."""

_ONE: Final = ChangeEvent.from_item(backlog.event("A change of a benchmark"))


@dataclass(frozen=True)
class Pair:
    """One stage's own function and its floor, for so many webhooks at once.

    Attributes:
        ours: The stage.
        floor: The library calls.
        webhooks: How many webhooks one call is for.
        clock: Gives the processor time in seconds.
        before: Called before each call, and not measured.
    """

    ours: Function
    floor: Function
    webhooks: int = 1
    clock: Callable[[], float] = time.thread_time
    before: Function | None = None

    def measure(self, seconds: float) -> tuple[float, float]:
        """The microseconds of each for one webhook, measured in turns for so many seconds of processor time."""
        used, calls = [0.0, 0.0], 0
        at_once = 1 if self.before else _AT_ONCE
        while sum(used) < seconds:
            for which, function in enumerate((self.ours, self.floor)):
                if self.before:
                    self.before()
                began = self.clock()
                for _ in range(at_once):
                    function()
                used[which] += self.clock() - began
            calls += at_once * self.webhooks
        return used[0] / calls * 1e6, used[1] / calls * 1e6


def verifying(body: bytes) -> Pair:
    now_ms = backlog.OBSERVED_NS // 1_000_000
    signed = sign(body, secret=backlog.SECRET, timestamp_ms=now_ms)
    signature, timestamp = signed[SIGNATURE_HEADER].encode(), signed[TIMESTAMP_HEADER].encode()
    verifier, key = Verifier([backlog.SECRET]), hmac.new(backlog.SECRET.encode(), digestmod=sha256)

    def ours() -> None:
        verification = verifier.begin([signature], [timestamp], now_ms)
        verification.update(body)
        verification.finish()

    def floor() -> bool:
        digest = key.copy()
        digest.update(b"v0:%b:" % timestamp)
        digest.update(body)
        return hmac.compare_digest(digest.hexdigest().encode(), signature[3:])

    return Pair(ours, floor)


def parsing(body: bytes) -> Pair:
    return Pair(lambda: parse(body), lambda: msgspec.json.decode(body))


class _NotEncoding(LogRecordEncoder):
    def encode(self, default: RecordFields, event: ChangeEvent, **_: object) -> bytes:  # noqa: ARG002 - its signature
        return b"\n"


def mapping(body: bytes) -> Pair:
    """The floor computes the uid, and makes a dictionary of the attributes."""
    payload, mapper = parse(body), Mapper(_NotEncoding())
    item = payload.changes[0].value
    attributes = LogRecordEncoder().default(_ONE, uid="", original="").attributes

    def floor() -> object:
        canonical = json.dumps(item, sort_keys=True, separators=(",", ":"))
        return sha256(canonical.encode()).hexdigest(), dict(attributes)

    return Pair(lambda: mapper.map(payload, backlog.OBSERVED_NS), floor)


def encoding() -> Pair:
    """The floor encodes every string, and joins them with four bytes before each."""
    encoder = LogRecordEncoder()
    default = encoder.default(_ONE, uid="0" * 32, original="")
    texts = [str(value) for value in default.attributes.values()]

    def floor() -> bytes:
        return b"".join([b"\x0a\x10\x0b\x40%b" % text.encode() for text in texts])

    return Pair(lambda: encoder.encode(default, _ONE, observed_ns=backlog.OBSERVED_NS), floor)


class _Queue:
    """A queue's file with one exporter, without a queue's threads."""

    def __init__(self, directory: Path) -> None:
        self.connection = schema.connect(directory / "stages.db")
        self.exporter = store.ensure_exporter(self.connection, backlog.EXPORTER)
        self.route = store.ensure_route(self.connection, [self.exporter], backlog.RECEIVER)
        self._uids = (f"{number:032x}" for number in itertools.count())
        _, self._record = next(backlog.records(1))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        self.connection.execute("BEGIN IMMEDIATE")
        yield self.connection
        self.connection.execute("COMMIT")

    def append(self, entries: int) -> None:
        route = Route((backlog.EXPORTER,))
        made = [
            PendingBatch(
                Batch(backlog.RECEIVER, (Change(next(self._uids), (self._record,)),)),
                route,
                self.route,
                [self.exporter],
            )
            for _ in range(entries)
        ]
        with self.transaction():
            stored = store.append_batches(self.connection, made, now_ms=time.time_ns() // 1_000_000)
            size = sum(one.size for one in stored)
            store.add_waiting(self.connection, [self.exporter], entries, size)

    def append_rows(self, rows: int) -> None:
        made = [(self.route, bytes.fromhex(next(self._uids)), self._record, 1) for _ in range(rows)]
        seen = [(backlog.RECEIVER, row[1], 1) for row in made]
        with self.transaction():
            self.connection.executemany("INSERT INTO seen VALUES (?, ?, ?)", seen)
            query = "INSERT INTO records (route, uid, payload, checksum) VALUES (?, ?, ?, ?)"
            self.connection.executemany(query, made)


def storing(directory: Path, group: int) -> Pair:
    queue = _Queue(directory)
    return Pair(lambda: queue.append(group), lambda: queue.append_rows(group), group)


def reading(directory: Path, batch: int) -> Pair:
    queue = _Queue(directory)
    queue.append(batch)
    query = "SELECT seq, uid, payload, checksum FROM records WHERE route = ? AND seq > 0 ORDER BY seq LIMIT ?"

    def ours() -> object:
        routes = queries.routes_of(queue.connection, queue.exporter)
        return queries.read_records(queue.connection, routes, after=0, count=batch, size=64 << 20).content

    return Pair(ours, lambda: queue.connection.execute(query, (queue.route, batch)).fetchall(), batch)


def sending(directory: Path, batch: int, backend: str) -> Pair:
    config = directory / "config.yaml"
    config.write_text(backlog.configuration(directory=directory, backend=backend))
    configured = configured_exporters(check(read(config, environ={}), COMPONENTS))[backlog.EXPORTER]
    exporter = create_exporter(backlog.EXPORTER, configured.settings)
    exporter.start()
    payload = b"".join(record for _, record in backlog.records(batch))
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = grpc.insecure_channel(backend).unary_unary(EXPORT)

    def ours() -> None:
        assert exporter.send(payload, batch, _TIMEOUT) == Delivered()

    def floor() -> None:
        call(payload, timeout=_TIMEOUT, compression=grpc.Compression.Gzip)

    return Pair(ours, floor, batch, time.process_time)


def ticking(directory: Path, batch: int) -> Pair:
    queue = _Queue(directory)

    def ours() -> None:
        with queue.transaction():
            store.cursor_and_waiting(queue.connection, queue.exporter)
            store.advance(queue.connection, queue.exporter, cursor=0, records=0, size=0)

    def floor() -> None:
        with queue.transaction():
            queue.connection.execute("UPDATE exporters SET cursor = cursor + 0 WHERE id = ?", (queue.exporter,))

    return Pair(ours, floor, batch)


def deleting(directory: Path, batch: int) -> Pair:
    """The records, and the uids once their window is over."""
    queue = _Queue(directory)

    def before() -> None:
        queue.append(batch)
        queue.connection.execute("UPDATE exporters SET cursor = (SELECT max(seq) FROM records)")

    def ours() -> None:
        with queue.transaction():
            store.delete_done(queue.connection)
            store.forget_seen(queue.connection, time.time_ns())

    def floor() -> None:
        with queue.transaction():
            queue.connection.execute("DELETE FROM records WHERE seq > 0")
            queue.connection.execute("DELETE FROM seen WHERE at > 0")

    return Pair(ours, floor, batch, before=before)


def main() -> None:
    seconds, group, batch = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    backend, directory = sys.argv[4], Path(sys.argv[5])
    body = next(webhooks.bodies(CHANGE))
    pairs = {
        stages.VERIFY: verifying(body),
        stages.PARSE: parsing(body),
        stages.MAP: mapping(body),
        stages.ENCODE: encoding(),
    }
    found = {name: pair.measure(seconds) for name, pair in pairs.items()}
    makes: dict[str, Callable[[Path], Pair]] = {
        stages.STORE: lambda where: storing(where, group),
        stages.READ: lambda where: reading(where, batch),
        stages.SEND: lambda where: sending(where, batch, backend),
        stages.TICK_OFF: lambda where: ticking(where, batch),
        stages.DELETE: lambda where: deleting(where, batch),
    }
    for name, make in makes.items():
        with TemporaryDirectory(dir=directory) as where:
            found[name] = make(Path(where)).measure(seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
