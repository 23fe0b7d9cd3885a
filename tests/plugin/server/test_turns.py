"""Whose turn it is to read: one connection in a millisecond, and those that only discard come last."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

import uvloop

from statsig_otel.plugin.server.connection import HttpConnection
from statsig_otel.plugin.server.reader import BadRequestError
from statsig_otel.plugin.server.turns import PAUSE, NextTurn, Turns
from tests.plugin.server.echo import LONG, EchoApp
from tests.plugin.server.stepping import Clock


def test_one_has_its_turn_in_a_millisecond_and_those_that_discard_come_last() -> None:
    """Nobody waits behind one that wants turn after turn. Whoever has left has none."""
    clock, rounds = Clock(), list[list[str]]()

    async def take_turns() -> None:
        turns = Turns()

        def waits(name: str, *, wanted: int = 1, discards: bool = False) -> NextTurn:
            left = wanted

            def next_turn() -> None:
                nonlocal left
                left -= 1
                rounds[-1].append(name)
                if left:
                    turns.add(next_turn, discards=discards)

            turns.add(next_turn, discards=discards)
            return next_turn

        waits("refused", wanted=2, discards=True)
        waits("also refused", discards=True)
        waits("many chunks", wanted=3)
        waits("two parts", wanted=2)
        turns.drop(waits("left"))
        turns.drop(waits("refused and left", discards=True))
        for _ in range(10):
            rounds.append([])
            await clock.pass_time(PAUSE)

    clock.run(take_turns())
    order = [
        "many chunks",
        "two parts",
        "many chunks",
        "two parts",
        "many chunks",
        "refused",
        "also refused",
        "refused",
    ]
    assert rounds[: len(order)] == [[name] for name in order]
    assert rounds[len(order) :] == [[], []]


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
            return await asyncio.wait_for(self._wanted.get(), LONG)
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


def test_what_a_refused_client_sends_is_read_in_turns() -> None:
    """What is discarded is read once, and again only in a turn that the server gives. One that left needs none."""

    async def refused() -> None:
        server = Recorder()
        accepted, client = socket.socketpair()
        client.setblocking(False)
        connection = HttpConnection(EchoApp(), accepted, head_timeout=LONG, server=server)
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
        async with asyncio.timeout(5 * LONG):
            await refused()

    uvloop.run(bounded())
