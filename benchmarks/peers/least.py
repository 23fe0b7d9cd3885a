"""The least program that keeps the promise: no change that was answered with 200 is lost.

It uses the service's HTTP server and libraries, and does only what a durable receiver in Python has to do: verify the
body, parse it, make the same record as the service, hand it to a thread that commits all that wait together, answer
after the commit, deliver over OTLP/gRPC, and delete what is delivered. It has no limits and no checks: it believes
every field of a change, its own files and its backend, it can't be stopped in order, and it reports nothing. It forgets
the uid of a change that it has delivered.

It is built up in rungs: each does what the one before it does, and one thing more.

    python -m benchmarks.peers.least RUNG PORT BACKEND DIRECTORY
"""

import asyncio
import contextlib
import hmac
import itertools
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

import falcon.asgi
import grpc
import msgspec
import uvloop
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope

from benchmarks import measure
from benchmarks.backlog import SECRET
from benchmarks.bare_server import ANSWER
from benchmarks.peers.mapping import attributes_of, title_of, uid_of
from benchmarks.service import Running
from benchmarks.sink import EXPORT
from benchmarks.webhooks import Wire
from statsig_otel import __version__
from statsig_otel.plugin import DEFAULT_PATH
from statsig_otel.plugin.cli.run import collect_garbage_rarely
from statsig_otel.plugin.record.record import DEFAULT_RESOURCE, EVENT_NAME, SCHEMA_URL, SCOPE_NAME
from statsig_otel.plugin.record.serializer import LogSerializer
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER

DROP: Final = "read the body"
VERIFY: Final = "verify"
PARSE: Final = "parse"
MAP: Final = "map, encode"
HAND_OVER: Final = "hand over to a thread and back"
STORE: Final = "store"
DELIVER: Final = "deliver, delete"
RUNGS: Final = (DROP, VERIFY, PARSE, MAP, HAND_OVER, STORE, DELIVER)

_CHANGE: Final = b"statsig::config_change"
_TOLERANCE: Final = 300.0
_GATHERING: Final = 0.002
"""The most seconds for which a commit waits until as many wait as in the last one. The service does the same."""

_DENSE: Final = 0.05
"""Seconds for which a delivery waits for more, likewise."""

_BATCH: Final = 512

_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS records (seq INTEGER PRIMARY KEY AUTOINCREMENT, uid BLOB UNIQUE, payload BLOB)"
)


class _Envelope(msgspec.Struct):
    data: list[msgspec.Raw]


class Waiting(NamedTuple):
    """A record that waits for its commit, and the request that waits with it."""

    answer: asyncio.Future[None]
    uid: bytes
    payload: bytes


class Receiver:
    """A Falcon resource that climbs up to a rung."""

    def __init__(self, rung: str, writer: "Writer | None") -> None:
        self._height = RUNGS.index(rung)
        self._key = hmac.new(SECRET.encode(), digestmod=sha256)
        self._items = msgspec.json.Decoder(list[msgspec.Raw])
        self._envelope = msgspec.json.Decoder(_Envelope)
        self._change: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder()
        scope = InstrumentationScope(name=SCOPE_NAME, version=__version__)
        self._serializer = LogSerializer(DEFAULT_RESOURCE, scope=scope, schema_url=SCHEMA_URL)
        self._writer = writer

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        body, height = await req.stream.read(), self._height
        if height >= RUNGS.index(VERIFY):
            self._verify(req, body)
        if height >= RUNGS.index(PARSE):
            items = self._items.decode(body) if body.startswith(b"[") else self._envelope.decode(body).data
            changes = [self._change.decode(item) for item in items if _CHANGE in bytes(item)]
            changes = [change for change in changes if change["eventName"] == _CHANGE.decode()]
            if height >= RUNGS.index(MAP):
                records = [self._record(change) for change in changes]
                if self._writer is not None:
                    for uid, record in records:
                        await self._writer.write(uid, record)
        resp.data = ANSWER
        resp.content_type = "application/json"

    def _verify(self, req: falcon.asgi.Request, body: bytes) -> None:
        timestamp = req.get_header(TIMESTAMP_HEADER, required=True)
        signature = req.get_header(SIGNATURE_HEADER, required=True)
        digest = self._key.copy()
        digest.update(f"v0:{timestamp}:".encode() + body)
        is_signed = hmac.compare_digest("v0=" + digest.hexdigest(), signature)
        if not is_signed or abs(time.time() - int(timestamp) / 1000) > _TOLERANCE:
            raise falcon.HTTPUnauthorized

    def _record(self, change: dict[str, Any]) -> tuple[bytes, bytes]:
        uid = uid_of(change)
        record = self._serializer.serialize(
            time_ns=change["timestamp"] * 1_000_000,
            observed_ns=time.time_ns(),
            event_name=EVENT_NAME,
            body=title_of(change),
            attributes=attributes_of(change, uid),
        )
        return bytes.fromhex(uid), record


class Writer(threading.Thread):
    """Commits all records that wait together, and deletes those that are delivered."""

    def __init__(self, loop: asyncio.AbstractEventLoop, database: Path | None) -> None:
        super().__init__(daemon=True)
        self.stored = threading.Event()
        self._loop = loop
        self._database = database
        self._waiting: SimpleQueue[Waiting | int] = SimpleQueue()

    async def write(self, uid: bytes, payload: bytes) -> None:
        answer = self._loop.create_future()
        self._waiting.put(Waiting(answer, uid, payload))
        await answer

    def delivered(self, seq: int) -> None:
        self._waiting.put(seq)

    def run(self) -> None:
        connection = None if self._database is None else connect(self._database)
        expected = 0
        while True:
            group = list(self._next(expected))
            records = [each for each in group if isinstance(each, Waiting)]
            if connection is not None:
                connection.execute("BEGIN IMMEDIATE")
                if seqs := [each for each in group if isinstance(each, int)]:
                    connection.execute("DELETE FROM records WHERE seq <= ?", (max(seqs),))
                if records:
                    self._insert(connection, records)
                connection.execute("COMMIT")
                self.stored.set()
            if records:
                expected = len(records)
                self._loop.call_soon_threadsafe(_answer, records)

    def _next(self, expected: int) -> Iterator[Waiting | int]:
        yield self._waiting.get()
        latest = time.monotonic() + _GATHERING
        with contextlib.suppress(Empty):
            for number in itertools.count(1):
                yield self._waiting.get(timeout=max(0.0, latest - time.monotonic()) if number < expected else 0.0)

    def _insert(self, connection: sqlite3.Connection, records: Sequence[Waiting]) -> None:
        places = ", ".join(["(?, ?)"] * len(records))
        values = [value for record in records for value in record[1:]]
        connection.execute(f"INSERT INTO records (uid, payload) VALUES {places} ON CONFLICT DO NOTHING", values)


def _answer(records: Sequence[Waiting]) -> None:
    for record in records:
        record.answer.set_result(None)


class Sender(threading.Thread):
    """Delivers records in batches, in order."""

    def __init__(self, writer: Writer, database: Path, backend: str) -> None:
        super().__init__(daemon=True)
        self._writer = writer
        self._database = database
        self._backend = backend

    def run(self) -> None:
        connection, seq = connect(self._database), 0
        channel = grpc.insecure_channel(self._backend)
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(EXPORT)
        query = "SELECT seq, payload FROM records WHERE seq > ? ORDER BY seq LIMIT ?"
        while True:
            self._writer.stored.wait()
            self._writer.stored.clear()
            time.sleep(_DENSE)
            while rows := connection.execute(query, (seq, _BATCH)).fetchall():
                export(b"".join([payload for _, payload in rows]), compression=grpc.Compression.Gzip)
                seq = rows[-1][0]
                self._writer.delivered(seq)


def connect(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


async def serve(rung: str, port: int, backend: str, directory: Path) -> None:
    writer = None
    if RUNGS.index(rung) >= RUNGS.index(HAND_OVER):
        database = None if rung == HAND_OVER else directory / "least.db"
        if database is not None:
            with contextlib.closing(connect(database)) as connection:
                connection.execute(_TABLE)
        writer = Writer(asyncio.get_running_loop(), database)
        writer.start()
        if rung == DELIVER and database is not None:
            Sender(writer, database, backend).start()
    app = falcon.asgi.App()
    app.add_route(DEFAULT_PATH, Receiver(rung, writer))
    server = HttpServer(app, host=measure.HOST, port=port)
    server.bind()
    collect_garbage_rarely()
    await server.serve()


class Least:
    """The whole program, as a peer of the service."""

    wire: Wire = "webhook"

    def __init__(self, rung: str = DELIVER) -> None:
        self._rung = rung

    @contextlib.contextmanager
    def running(self, directory: Path, backend: str) -> Iterator[Running]:
        directory.mkdir()
        port = measure.free_port()
        command = ("-m", "benchmarks.peers.least", self._rung, str(port), backend, str(directory))
        with measure.running(*command, port=port) as process:
            yield Running(process.pid, port)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))
