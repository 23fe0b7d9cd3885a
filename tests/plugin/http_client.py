"""Plain HTTP over a socket, for requests that a library would not send, and a server in a thread to send them to."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from statsig_otel.plugin.server.asgi_types import AsgiApp
from statsig_otel.plugin.server.server import HttpServer

Address = tuple[str, int]


@dataclass(frozen=True)
class Response:
    """One answer, as it was on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


def request(
    body: bytes = b"",
    *,
    method: str = "POST",
    path: str = "/hook",
    headers: dict[str, str] | None = None,
    chunk: int = 0,
) -> bytes:
    """The bytes of one request; chunked in pieces of `chunk` bytes, or with a Content-Length."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    if chunk:
        lines.append("Transfer-Encoding: chunked")
    elif "Content-Length" not in (headers or {}):
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if not chunk:
        return head + body
    pieces = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def connect(address: Address) -> socket.socket:
    """A connection that does not wait for ever."""
    return socket.create_connection(address, timeout=60)


def read_response(connection: socket.socket, *, head: bool = False) -> Response:
    """The next answer on a connection."""
    with connection.makefile("rb") as stream:  # one that stays open keeps the connection open
        status = int(stream.readline().split()[1])
        headers: dict[str, str] = {}
        while line := stream.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        body = b"" if head else stream.read(int(headers.get("content-length", "0")))
    return Response(status, headers, body)


def exchange(address: Address, *pieces: bytes, head: bool = False) -> Response:
    """Send the bytes of one request, and read the answer."""
    with connect(address) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return read_response(connection, head=head)


class ServerThread:
    """One application on the real server, in a loop of its own."""

    def __init__(self, app: AsgiApp) -> None:
        self.server = HttpServer(app, host="127.0.0.1", port=0)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> Address:
        self.server.bind()
        self._thread.start()
        return self.server.address

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self.server.serve())

    def stop(self) -> None:
        self.server.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextmanager
def serving(app: AsgiApp) -> Iterator[Address]:
    """Serve an application on a free port for a while."""
    thread = ServerThread(app)
    address = thread.start()
    try:
        yield address
    finally:
        thread.stop()
