"""When a connection is closed whose client does not read, on a clock that the test sets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time

import pytest
import trustme

from statsig_otel.plugin.server.asgi_types import Receive, Scope, Send
from statsig_otel.plugin.server.tls import ServerTlsSettings, server_context
from tests.plugin.server.echo import LONG, POST, answer, is_cut_off, trusting
from tests.plugin.server.stepping import Clock, accepting

DEADLINE = 10.0
SETTLING = 0.2  # seconds of real time in which the systems of both ends fill their buffers


async def large(_: Scope, __: Receive, send: Send) -> None:
    await answer(send, 200, bytes(20 << 20))  # far more than all buffers


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_client_that_does_not_read_is_cut_off_after_one_deadline(
    encrypted: bool, tls: ServerTlsSettings, authority: trustme.CA
) -> None:
    """What its system takes at the beginning, without it, begins no second one."""
    clock = Clock()

    async def unread() -> None:
        context = server_context(tls) if encrypted else None
        connections, address = accepting(large, head_timeout=DEADLINE, tls=context)
        with socket.create_connection(address, LONG) as plain:
            client = await asyncio.to_thread(encrypted_by, authority, plain) if encrypted else plain
            with client:
                client.sendall(POST % (b"", 0, b""))
                await asyncio.to_thread(time.sleep, SETTLING)
                await clock.pass_time(DEADLINE - 0.1)
                assert not is_cut_off(client)
                await clock.pass_time(0.2)
                assert is_cut_off(client, within=LONG)
        await connections.cut_off()

    clock.run(unread())


def test_a_client_that_reads_a_part_has_another_deadline() -> None:
    clock = Clock()

    async def slow() -> None:
        connections, address = accepting(large, head_timeout=DEADLINE)
        with socket.create_connection(address, LONG) as client:
            client.sendall(POST % (b"", 0, b""))
            for _ in range(3):
                await asyncio.to_thread(read, client, 5 << 20)
                await clock.pass_time(DEADLINE - 0.1)
                assert not is_cut_off(client)
        await connections.cut_off()

    clock.run(slow())


def encrypted_by(authority: trustme.CA, plain: socket.socket) -> ssl.SSLSocket:
    return trusting(authority).wrap_socket(plain, server_hostname="127.0.0.1")


def read(client: socket.socket, size: int) -> None:
    while size > 0:
        size -= len(client.recv(size))
