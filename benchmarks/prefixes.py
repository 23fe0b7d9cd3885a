"""Serves the first stages of a webhook: each server does what the one before it does, and one thing more.

python -m benchmarks.prefixes NAME PORT [DIRECTORY]
"""

import argparse
import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, cast

import httptools
import uvloop
from falcon.asgi import Request, Response

from benchmarks import backlog, measure
from benchmarks.bare_server import ANSWER, dropping
from benchmarks.durable_answers import AtOnce
from benchmarks.service import Running
from statsig_otel.exporters.consumer import Batch, Receipt
from statsig_otel.exporters.routing import Route
from statsig_otel.plugin import DEFAULT_PATH
from statsig_otel.plugin.cli.run import collect_garbage_rarely
from statsig_otel.plugin.receiver.asgi import StatsigReceiver, create_app
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.record.mapper import Mapped, Mapper
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.webhook.body import ParsedBody
from statsig_otel.plugin.webhook.signature import Verifier

FLOOR: Final = "httptools in an asyncio protocol"
HTTP: Final = "the HTTP server"
FALCON: Final = "and Falcon"
PARSED: Final = "and the body, verified and parsed"
MAPPED: Final = "and mapped and encoded"
STORED: Final = "and stored, but never delivered"
PREFIXES: Final = (FLOOR, HTTP, FALCON, PARSED, MAPPED)

_PATIENCE: Final = 10.0


class Bare(asyncio.Protocol):
    """Parses requests and answers each with the same bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Headers are passed on, as every server needs them."""

    def on_body(self, body: bytes) -> None:
        """So is the body."""

    def on_message_complete(self) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))


class Dropping(StatsigReceiver):
    """Discards the body and answers."""

    async def on_post(self, req: Request, resp: Response) -> None:
        _, receive = req.scope["statsig_otel.sent"]  # past Falcon, as a receiver reads it
        while (await receive()).get("more_body"):
            pass
        resp.data = ANSWER
        resp.content_type = "application/json"


class Storing:
    """A consumer that stores in a queue which nobody reads."""

    def __init__(self, directory: Path) -> None:
        self._queue = backlog.open_queue(directory)
        self._queue.start()

    def consume(self, batch: Batch) -> Future[Receipt]:
        return self._queue.consume(batch, Route((backlog.EXPORTER,)))


class MappingNothing(Mapper):
    def map(self, payload: ParsedBody, observed_ns: int) -> Mapped:  # noqa: ARG002 - its signature
        return Mapped((), (), payload.ignored, ())


@contextlib.contextmanager
def serving(name: str, directory: Path | None = None) -> Iterator[Running]:
    """Run one of these servers during the block. The one that stores needs a directory."""
    port = measure.free_port()
    command = ["-m", "benchmarks.prefixes", name, str(port), *([] if directory is None else [str(directory)])]
    with measure.running(*command, port=port) as process:
        yield Running(process.pid, port)


def receiver_of(name: str, directory: Path) -> StatsigReceiver:
    verifier = Verifier([backlog.SECRET])
    if name == FALCON:
        return Dropping(Intake(verifier=verifier), AtOnce())
    mapper = MappingNothing() if name == PARSED else None
    consumer = Storing(directory) if name == STORED else AtOnce()
    return StatsigReceiver(Intake(verifier=verifier, mapper=mapper), consumer, patience=_PATIENCE)


async def serve_floor(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Bare, measure.HOST, port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=(*PREFIXES, STORED))
    parser.add_argument("port", type=int)
    parser.add_argument("directory", type=Path, nargs="?", default=Path())
    given = parser.parse_args()
    collect_garbage_rarely()
    if given.name == FLOOR:
        uvloop.run(serve_floor(given.port))
        return
    app: Any = dropping
    if given.name != HTTP:
        app = create_app({DEFAULT_PATH: receiver_of(given.name, given.directory)})
    server = HttpServer(app, host=measure.HOST, port=given.port)
    server.bind()
    uvloop.run(server.serve())


if __name__ == "__main__":
    main()
