"""The connections of a server in a loop whose time and rounds the test decides on."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Coroutine
from typing import Any

from statsig_otel.plugin.server.asgi_types import AsgiApp
from statsig_otel.plugin.server.connections import Connections


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time goes on when the test says so, and by `look` seconds at each look at it."""

    def __init__(self, look: float = 0.0) -> None:
        super().__init__()
        self.now = 0.0
        self._look = look

    def run(self, steps: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=lambda: self) as runner:
            runner.run(steps)

    def time(self) -> float:
        self.now += self._look
        assert self.now < 10_000, "this does not end"
        return self.now

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, and what is due then be done."""
        self.now += seconds
        await pass_rounds(10)


async def pass_rounds(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def accepting(
    app: AsgiApp, *, most: int = 10, head_timeout: float = 1e9, tls: ssl.SSLContext | None = None
) -> tuple[Connections, tuple[str, int]]:
    """Connections of a server in this loop, whose rounds the test decides on, and its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    connections = Connections(
        app, listening, head_timeout=head_timeout, max_connections=most, context=lambda: tls, release=listening.close
    )
    connections.accept()
    return connections, listening.getsockname()
