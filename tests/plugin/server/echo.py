"""An application that echoes, on the real HTTP server in a thread, and what its tests send to it."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trustme
import uvloop

from statsig_otel.plugin.server.asgi_types import AsgiApp, Receive, Scope, Send
from statsig_otel.plugin.server.server import HttpServer

LONG = 20.0  # seconds: where a test waits this long, something hangs


POST = b"POST /%s HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%s"


class EchoApp:
    """Answers with the body. `/slow` waits for `release` before the answer, `/unread` before the body."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.events: list[str] = []
        self.bodies: list[bytes] = []
        self.sizes: list[int] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in ("/early", "/early-and-close"):
            close = [(b"connection", b"close")] if scope["path"] == "/early-and-close" else []
            await answer(send, 413, b"too large", *close)
            return
        if scope["path"] == "/unread":
            await self._until_released()
        body = b""
        more = True
        while more:
            self.entered.set()
            message = await receive()
            self.events.append(message["type"])
            if message["type"] == "http.disconnect":
                await answer(send, 400, b"truncated")
                return
            body += message["body"]
            self.sizes.append(len(message["body"]))
            more = message["more_body"]
        self.bodies.append(body)
        self.headers.append(scope["headers"])
        if scope["path"] == "/slow":
            await self._until_released()
        if scope["path"] == "/boom":
            raise RuntimeError("a mistake of the application")
        await answer(send, 200, body)

    async def _until_released(self) -> None:
        while not self.release.is_set():  # noqa: ASYNC110  # set by another thread
            await asyncio.sleep(0.01)


async def answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length), *headers]})
    await send({"type": "http.response.body", "body": body})


def echo_server(app: AsgiApp | None = None, **options: Any) -> HttpServer:
    return HttpServer(app or EchoApp(), host="127.0.0.1", **{"port": 0, **options})


class Running:
    """A server in a loop of a background thread, as an embedding application has it."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        server.bind()
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._serving = self._pool.submit(lambda: uvloop.run(server.serve()))

    def join(self) -> None:
        self._serving.result(timeout=LONG)
        self._pool.shutdown()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.server.address, timeout=LONG)


@contextlib.contextmanager
def serving(server: HttpServer) -> Iterator[Running]:
    running = Running(server)
    try:
        yield running
    finally:
        server.stop()
        running.join()


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """One whole answer: its status and as many bytes of body as its Content-Length says.

    Raises:
        EOFError: The connection ended inside of it; with no argument when before its first byte.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(connection, data)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += receive(connection, data)
    return int(lines[0].split()[1]), body


def receive(connection: socket.socket, before: bytes | bytearray) -> bytes:
    chunk = connection.recv(65536)
    if not chunk:
        raise EOFError(before) if before else EOFError
    return chunk


def post(connection: socket.socket, path: bytes, body: bytes) -> tuple[int, bytes]:
    connection.sendall(POST % (path, len(body), body))
    return read_answer(connection)


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes the connection, waiting for it."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def is_cut_off(client: socket.socket, within: float = 0.0) -> bool:
    """Whether the server has reset the connection, or takes nothing more."""
    poll = select.poll()
    poll.register(client, 0)
    return bool(poll.poll(within * 1000))


def read_to_end(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            data += chunk
    return data


def await_refusal(address: tuple[str, int]) -> None:
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address, timeout=LONG).close()
        except ConnectionError:
            return
    pytest.fail("connections are still accepted")


def read_until(connection: socket.socket, end: bytes) -> bytes:
    data = bytearray()
    while not data.endswith(end):
        data += receive(connection, data)
    return bytes(data)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without the system's certificates, which take long to load
    authority.configure_trust(context)
    return context
