"""The steps of attacks that would take more than one turn of the event loop for one connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Final
from unittest.mock import patch

from benchmarks import tls_records
from statsig_otel.plugin.server.asgi_types import Receive, Scope, Send
from statsig_otel.plugin.server.connection import HttpConnection
from statsig_otel.plugin.server.reader import CHUNKS_A_TURN, RequestReader
from statsig_otel.plugin.server.tls_transport import RECORDS_A_TURN
from tests.attacks.attack import PATIENCE, Serve, awaited
from tests.attacks.tls_steps import answered, tls_server
from tests.plugin.server.echo import POST, EchoApp, answer, echo_server, is_cut_off, read_answer, serving
from tests.plugin.server.stepping import Clock, accepting

_CHUNKS: Final = b"POST /%s HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n%s0\r\n\r\n"
_CHUNK: Final = b"8\r\n01234567\r\n"

_CLIENTS: Final = 4
_SECONDS: Final = 0.3
"""In which the loop makes its rounds."""
_SETTLED: Final = 50
"""Rounds after which all refused clients have to wait for turns: a little is read of each at once."""


@contextmanager
def watching(owner: type, method: str, seen: Callable[..., object]) -> Iterator[None]:
    """Call `seen` after each call of a method, with what it was called with."""
    original = getattr(owner, method)

    def watched(*arguments: Any) -> Any:
        result = original(*arguments)
        seen(*arguments)
        return result

    with patch.object(owner, method, watched):
        yield


def tiny_chunks(_: Serve) -> None:
    """What one turn has read is what the application gets at once."""
    app, feed, grown = EchoApp(), RequestReader.feed, list[int]()

    def fed(reader: RequestReader, data: bytes) -> bytes:
        before, rest = len(reader.body), feed(reader, data)
        grown.append(len(reader.body) - before)
        return rest

    with (
        patch.object(RequestReader, "feed", fed),
        serving(echo_server(app)) as running,
        running.connect() as connection,
    ):
        connection.sendall(_CHUNKS % (b"", _CHUNK * 20 * CHUNKS_A_TURN))
        assert read_answer(connection)[0] == 200
    assert max(grown) <= 8 * CHUNKS_A_TURN
    assert max(app.sizes) <= 4 * 8 * CHUNKS_A_TURN, "it may be asked for only after some turns"


def tiny_records(_: Serve) -> None:
    """What one turn has decrypted is what the connection, and then the application, gets at once."""
    app, size, sizes = EchoApp(), 800, list[int]()
    with (
        watching(HttpConnection, "data_received", lambda _, data: sizes.append(len(data))),
        tls_server(app) as running,
        running.connect() as connection,
    ):
        client = tls_records.connected(connection.sendall, lambda: connection.recv(1 << 16))
        connection.sendall(
            client.record(POST % (b"", size, b"")) + b"".join(client.record(b"%d" % (at % 10)) for at in range(size))
        )
        assert answered(client, connection)
    assert len(app.bodies[0]) == size
    assert max(sizes[1:]) <= RECORDS_A_TURN  # the first one has the header
    assert max(app.sizes) <= 4 * RECORDS_A_TURN, "it may be asked for only after some turns"


class RoundsApp(EchoApp):
    """Counts the rounds of its event loop while it answers `/rounds`, and before each does what a test wants."""

    def __init__(self, act: Callable[[int], object]) -> None:
        super().__init__()
        self.round = -1
        self._act = act

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/rounds":
            await super().__call__(scope, receive, send)
            return
        end = time.monotonic() + _SECONDS
        for self.round in count():
            if time.monotonic() > end:
                break
            self._act(self.round)
            await asyncio.sleep(0)
        await answer(send, 200, b"")


def sent_after_a_refusal(_: Serve) -> None:
    """In each round of the loop all clients have sent as much as the system takes, and one of them is read from."""
    clients: list[socket.socket] = []
    read = defaultdict[int, set[HttpConnection]](set)

    def send(_: int) -> None:
        for client in clients:
            with contextlib.suppress(OSError):  # nothing more fits
                while client.send(bytes(1 << 16)):
                    pass

    app = RoundsApp(send)
    with (
        watching(HttpConnection, "data_received", lambda connection, _: read[app.round].add(connection)),
        serving(echo_server(app)) as running,
        contextlib.ExitStack() as stack,
    ):
        for _client in range(_CLIENTS):
            client = stack.enter_context(running.connect())
            client.sendall(b"nonsense\r\n\r\n")
            assert awaited(client).status == 400
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
            client.setblocking(False)
            clients.append(client)
        _let_rounds_pass(stack.enter_context(running.connect()))
    settled = [connections for number, connections in read.items() if _SETTLED < number < app.round]
    assert max(map(len, settled)) == 1
    assert len(set.union(*settled)) == _CLIENTS


def many_chunked_bodies(_: Serve) -> None:
    """They arrive together. The first part of each is read at once, and the others in turns, one in a round."""
    clients: dict[bytes, socket.socket] = {}
    body = _CHUNK * 10 * CHUNKS_A_TURN

    def send(number: int) -> None:
        if number == 0:
            for name, client in clients.items():
                client.sendall(_CHUNKS % (name, body))

    parts: dict[RequestReader, list[int]] = {}

    def fed(reader: RequestReader, _: bytes) -> None:
        if app.round >= 0:
            parts.setdefault(reader, []).append(app.round)

    app = RoundsApp(send)
    with (
        watching(RequestReader, "feed", fed),
        serving(echo_server(app)) as running,
        contextlib.ExitStack() as stack,
    ):
        for number in range(_CLIENTS):
            client = stack.enter_context(running.connect())
            client.sendall(POST % (b"", 0, b""))
            assert awaited(client).status == 200  # so that all are accepted before the first one sends
            clients[b"%d" % number] = client
        _let_rounds_pass(stack.enter_context(running.connect()))
        for client in clients.values():
            assert awaited(client).status == 200
    assert len(parts) == _CLIENTS
    turns = [at for rounds in parts.values() for at in rounds[1:]]
    assert len(turns) >= 5 * _CLIENTS
    assert len(set(turns)) == len(turns), "two were read from in one round"


def _let_rounds_pass(connection: socket.socket) -> None:
    connection.settimeout(PATIENCE)
    connection.sendall(POST % (b"rounds", 0, b""))
    assert awaited(connection).status == 200


def sent_without_end(_: Serve) -> None:
    """Of a client that sends little, and of one that has to wait for turns, on a clock that is set."""
    for size in (1, 10_000):
        clock = Clock()
        clock.run(_sent_without_end(clock, bytes(size)))


async def _sent_without_end(clock: Clock, data: bytes) -> None:
    connections, address = accepting(EchoApp())
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(b"GET / HTTP/9\r\n\r\n")
        assert (await asyncio.to_thread(awaited, client)).status == 400
        for _ in range(49):
            client.sendall(data)
            await clock.pass_time(0.1)
            assert not is_cut_off(client), "before the answer has had the time to arrive"
        await clock.pass_time(0.2)
        client.sendall(data)
        assert is_cut_off(client, PATIENCE)
    await connections.cut_off()
