"""Which connection makes room on an event loop that takes longer for a round, or for a look, than a client may wait."""

from __future__ import annotations

import asyncio
import socket

from statsig_otel.plugin.server.asgi_types import Receive, Scope, Send
from tests.plugin.server.echo import LONG, POST, EchoApp, is_closed, read_answer
from tests.plugin.server.stepping import Clock, accepting, pass_rounds


def test_a_look_at_many_connections_that_takes_longer_than_they_may_wait_ends() -> None:
    async def crowded() -> None:
        connections, address = accepting(EchoApp(), most=2)
        with socket.create_connection(address, LONG) as one, socket.create_connection(address, LONG) as other:
            for client in (one, other):
                client.sendall(POST % (b"", 4, b"sent"))
            await pass_rounds(2)  # both are accepted, and nothing is read yet
            connections.accept()
            for client in (one, other):
                assert (await asyncio.to_thread(read_answer, client))[0] == 200
        await connections.cut_off()

    Clock(look=1.0).run(crowded())


def test_a_connection_that_is_about_to_be_read_does_not_shield_idle_ones_from_making_room() -> None:
    """Else one in the middle of a request would go first."""
    clock, go_on = Clock(), asyncio.Event()

    class Held(EchoApp):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await go_on.wait()
            await super().__call__(scope, receive, send)

    async def slow() -> None:
        connections, address = accepting(Held(), most=3)
        begun, idle, late, new = (socket.socket() for _ in range(4))
        with begun, idle, late, new:
            for client in (begun, idle, late, new):
                client.settimeout(LONG)
            begun.connect(address)
            idle.connect(address)
            begun.sendall(b"POST / HTTP/1.1\r\n")
            idle.sendall(POST % (b"", 0, b""))
            await pass_rounds(10)
            late.connect(address)
            late.sendall(POST % (b"", 0, b""))
            await pass_rounds(2)  # it is accepted, and nothing of it is read yet
            clock.now += 0.12
            new.connect(address)
            connections.accept()  # the late one has sent something, so its wait begins again
            go_on.set()
            await pass_rounds(1)  # the idle one is answered
            clock.now += 0.2  # all have waited for long enough
            connections.accept()
            assert (await asyncio.to_thread(read_answer, idle))[0] == 200
            assert await asyncio.to_thread(is_closed, idle)
            begun.sendall(b"host: test\r\n\r\n")
            for client in (begun, late):
                assert (await asyncio.to_thread(read_answer, client))[0] == 200
        await connections.cut_off()

    clock.run(slow())
