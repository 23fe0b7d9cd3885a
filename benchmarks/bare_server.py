"""Runs the service's HTTP server with applications that do less than the service, for comparison.

- `drop` reads the body, discards it and answers 200.
- `falcon` does the same in a Falcon resource.
- `bare` computes the body's HMAC-SHA256 and validates the body as JSON, each once. No receiver of signed JSON can do
  less. It maps and stores nothing, so its cost is that of Python's HTTP server and two library calls.

    python -m benchmarks.bare_server {drop,falcon,bare} PORT
"""

import argparse
import contextlib
import hmac
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, Final

import falcon.asgi
import msgspec
import uvloop

from benchmarks import backlog, measure
from benchmarks.service import Running
from statsig_otel.plugin import DEFAULT_PATH
from statsig_otel.plugin.cli.run import collect_garbage_rarely
from statsig_otel.plugin.server.server import HttpServer

DROP, FALCON, BARE = "drop", "falcon", "bare"
ANSWER: Final = b'{"accepted": 0, "duplicates": 0, "ignored": 500, "invalid": 0}'

_key: Final = hmac.new(backlog.SECRET.encode(), digestmod=sha256)
_validate: Final = msgspec.json.Decoder(msgspec.Raw)


async def dropping(_: Any, receive: Any, send: Any) -> None:
    """An ASGI application that discards the body."""
    while (await receive()).get("more_body"):
        pass
    await _answer(send)


async def verifying(_: Any, receive: Any, send: Any) -> None:
    """An ASGI application that hashes the body as it arrives, and validates it."""
    digest, pieces, more = _key.copy(), [], True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        pieces.append(message.get("body", b""))
        digest.update(pieces[-1])
    digest.hexdigest()
    _validate.decode(b"".join(pieces))
    await _answer(send)


async def _answer(send: Any) -> None:
    length = str(len(ANSWER)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


class Dropping:
    """A Falcon resource that discards the body."""

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        async for _ in req.stream:
            pass
        resp.data = ANSWER
        resp.content_type = "application/json"


@contextlib.contextmanager
def bare_server(name: str) -> Iterator[Running]:
    """Run one of these servers during the block."""
    port = measure.free_port()
    with measure.running("-m", "benchmarks.bare_server", name, str(port), port=port) as process:
        yield Running(process.pid, port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=(DROP, FALCON, BARE))
    parser.add_argument("port", type=int)
    given = parser.parse_args()
    application: Any = {DROP: dropping, BARE: verifying}.get(given.name)
    if application is None:
        application = falcon.asgi.App()
        application.add_route(DEFAULT_PATH, Dropping())
    server = HttpServer(application, host=measure.HOST, port=given.port)
    server.bind()
    collect_garbage_rarely()
    uvloop.run(server.serve())


if __name__ == "__main__":
    main()
