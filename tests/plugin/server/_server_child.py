"""A service in small: serve until SIGTERM, then say how many requests were answered with 200.

With --fork it forks on SIGUSR1, and says the id of the child, which does nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import uvloop

from statsig_otel.plugin.server.asgi_types import Receive, Scope, Send
from statsig_otel.plugin.server.server import HttpServer

_answered = 0


async def _answer(send: Send, status: int, body: bytes) -> None:
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes | None:
    """The whole body, or None where the client left before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Echo the body after a moment's work; give a slow one up after half a second, as the receiver does later."""
    global _answered  # noqa: PLW0603  # one counter for a program of one purpose
    try:
        async with asyncio.timeout(0.5):
            body = await _body(receive)
    except TimeoutError:
        await _answer(send, 408, b"")
        return
    if body is None:
        await _answer(send, 400, b"")
        return
    await asyncio.sleep(0.002)
    _answered += 1
    await _answer(send, 200, body)


def fork() -> None:
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    print(child, flush=True)


async def main() -> None:
    server = HttpServer(app, host="127.0.0.1", port=int(sys.argv[1]), read_header_timeout=5.0, drain_timeout=10.0)
    server.bind()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    if "--fork" in sys.argv:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, fork)
    print(server.address[1], flush=True)  # what the test reads
    await server.serve()
    print(_answered, flush=True)


if __name__ == "__main__":
    uvloop.run(main())
