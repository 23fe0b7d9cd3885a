"""The thread in which the servers run."""

from __future__ import annotations

import socket
import threading

from statsig_otel.plugin.server.asgi_types import Receive, Scope, Send
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.server.thread import ServerThread
from tests.plugin.server.echo import LONG, POST, EchoApp


def test_a_ping_is_answered_once_the_loop_hangs_no_more() -> None:
    hangs, leave = threading.Event(), threading.Event()
    echo = EchoApp()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hangs.set()
        leave.wait(LONG)  # in the loop, which does nothing else meanwhile
        await echo(scope, receive, send)

    server = HttpServer(app, host="127.0.0.1", port=0)
    server.bind()
    thread = ServerThread([server])
    assert not thread.ping().done()
    thread.start()
    try:
        with socket.create_connection(server.address, timeout=LONG) as client:
            client.sendall(POST % (b"", 2, b"hi"))
            assert hangs.wait(LONG)
            pong, given_up = thread.ping(), thread.ping()
            assert given_up.cancel()
            assert not pong.done()
            leave.set()
            pong.result(LONG)
            assert client.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        leave.set()
        thread.shutdown(LONG)
    assert not thread.ping().done()
