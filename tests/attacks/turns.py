"""The steps of attacks that would take more than one turn of the event loop for one connection."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

import uvloop

from benchmarks import tls_records
from statsig_otel.plugin.server.connection import HttpConnection
from statsig_otel.plugin.server.reader import CHUNKS_A_TURN, BadRequestError
from statsig_otel.plugin.server.tls_transport import RECORDS_A_TURN
from statsig_otel.plugin.server.turns import NextTurn, Turns
from tests.attacks.attack import PATIENCE, Serve
from tests.attacks.tls_steps import answered, tls_server
from tests.plugin.server.echo import POST, EchoApp, echo_server, read_answer, serving


def tiny_chunks(_: Serve) -> None:
    """What one turn has read is what the application gets at once."""
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        chunks = b"8\r\n01234567\r\n" * 20 * CHUNKS_A_TURN
        connection.sendall(
            b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        )
        assert read_answer(connection)[0] == 200
    assert max(app.sizes) <= 4 * 8 * CHUNKS_A_TURN, "it may be asked for only after some turns"


def tiny_records(_: Serve) -> None:
    """What one turn has decrypted is what the application gets at once."""
    app, size = EchoApp(), 800
    with tls_server(app) as running, running.connect() as connection:
        client = tls_records.connected(connection.sendall, lambda: connection.recv(1 << 16))
        connection.sendall(
            client.record(POST % (b"", size, b"")) + b"".join(client.record(b"%d" % (at % 10)) for at in range(size))
        )
        assert answered(client, connection)
    assert len(app.bodies[0]) == size
    assert max(app.sizes) <= 4 * RECORDS_A_TURN, "it may be asked for only after some turns"


def sent_after_a_refusal(_: Serve) -> None:
    """What is discarded is read once, and again only in a turn that the server gives. One that left needs none."""

    async def refused() -> None:
        server = Recorder()
        accepted, client = socket.socketpair()
        client.setblocking(False)
        connection = HttpConnection(EchoApp(), accepted, head_timeout=PATIENCE, server=server)
        loop = asyncio.get_running_loop()
        transport, _connection = await loop.connect_accepted_socket(lambda: connection, accepted)
        await loop.sock_sendall(client, b"nonsense\r\n")
        assert (await loop.sock_recv(client, 1 << 16)).startswith(b"HTTP/1.1 400 ")
        for _ in range(4):
            await loop.sock_sendall(client, bytes(16 << 10))
            await asyncio.sleep(0.01)
        assert transport.is_reading(), "a little more is read at once, so that the end is noticed"
        next_turn: NextTurn | None = None
        for _ in range(3):
            await loop.sock_sendall(client, b"x")
            next_turn = await server.turns.next()
            assert not transport.is_reading(), "it is read without a turn"
            next_turn()
            assert transport.is_reading()
        await loop.sock_sendall(client, b"x")
        await server.turns.next()
        transport.abort()
        assert await server.turns.dropped.get() == next_turn
        client.close()

    async def bounded() -> None:
        async with asyncio.timeout(5 * PATIENCE):
            await refused()

    uvloop.run(bounded())


class RecordedTurns(Turns):
    """Turns that are given by a test."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted: Final = asyncio.Queue[NextTurn]()
        self.dropped: Final = asyncio.Queue[NextTurn]()

    def add(self, next_turn: NextTurn, *, discards: bool = False) -> None:
        assert discards
        self._wanted.put_nowait(next_turn)

    async def next(self) -> NextTurn:
        try:
            return await asyncio.wait_for(self._wanted.get(), PATIENCE)
        except TimeoutError as error:
            raise AssertionError("nobody asks for a turn") from error

    def drop(self, next_turn: NextTurn) -> None:
        self.dropped.put_nowait(next_turn)


class Recorder:
    """A server of one connection."""

    def __init__(self) -> None:
        self.turns: RecordedTurns = RecordedTurns()

    def connection_waits(self, connection: HttpConnection, *, has_begun: bool) -> None: ...

    def connection_works(self, connection: HttpConnection) -> None: ...

    def application_called(self, task: asyncio.Task[None]) -> None: ...

    def refused(self, error: BadRequestError) -> None: ...

    def connection_closed(self, connection: HttpConnection) -> None: ...
