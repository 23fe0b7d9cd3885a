"""The HTTP server starts, stops and drains: ports, requests in flight, and what it leaves alone in its process."""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from statsig_otel.plugin.server.asgi_types import Receive, Scope, Send
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.server.thread import ServerThread
from tests.plugin.server.echo import (
    LONG,
    POST,
    EchoApp,
    await_refusal,
    echo_server,
    is_closed,
    post,
    read_answer,
    read_to_end,
    read_until,
    serving,
)

T = TypeVar("T")


def _in_main_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(LONG):
            return await coroutine

    return uvloop.run(bounded())


def test_port_0_is_resolved_and_kept_alive_connections_are_served() -> None:
    with serving(echo_server()) as running:
        assert running.server.address[0] == "127.0.0.1"
        assert running.server.address[1] > 0
        with running.connect() as connection:
            for body in (b"one", b"", b"x" * 300_000):
                assert post(connection, b"", body) == (200, body)


def test_localhost_is_the_ipv4_loopback() -> None:
    server = HttpServer(EchoApp(), host="localhost", port=0)
    server.bind()
    assert server.address[0] == "127.0.0.1"
    server.stop()


def test_ipv6_is_served_where_the_machine_has_it() -> None:
    server = HttpServer(EchoApp(), host="::1", port=0)
    try:
        server.bind()
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip("no IPv6 here")
    server.stop()
    with serving(server) as running, running.connect() as connection:
        assert post(connection, b"", b"six") == (200, b"six")


def test_an_address_in_use_is_an_error_that_says_so() -> None:
    first = echo_server()
    first.bind()
    port = first.address[1]
    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: the port is in use; stop") as caught:
        echo_server(port=port).bind()
    assert caught.value.errno == errno.EADDRINUSE
    first.stop()


def test_a_listener_of_another_that_shares_its_port_is_an_error_too() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            echo_server(port=other.getsockname()[1]).bind()


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("host.invalid", 8080, r"cannot listen on host\.invalid:8080: the host is not known"),
        ("192.0.2.1", 8080, r"cannot listen on 192\.0\.2\.1:8080: 192\.0\.2\.1 is not an address of this machine"),
        ("127.0.0.1", 70000, r"cannot listen on 127\.0\.0\.1:70000: "),
    ],
)
def test_an_address_that_cannot_be_had_is_an_error_that_says_why(host: str, port: int, message: str) -> None:
    with pytest.raises(OSError, match=message):
        HttpServer(EchoApp(), host=host, port=port).bind()


def test_before_bind_there_is_no_address_and_nothing_to_serve() -> None:
    server = echo_server()
    with pytest.raises(RuntimeError, match="does not listen yet"):
        _ = server.address
    with pytest.raises(RuntimeError, match="does not listen yet"):
        _in_main_loop(server.serve())


def test_a_stop_before_serve_frees_the_port_and_serve_returns() -> None:
    server = echo_server()
    server.bind()
    server.stop()
    _in_main_loop(server.serve())
    again = echo_server(port=server.address[1])
    again.bind()
    again.stop()


def test_one_server_starts_and_stops_several_times_on_one_port() -> None:
    server = echo_server()
    server.bind()
    port = server.address[1]
    server.stop()
    server = echo_server(port=port)
    for _ in range(5):
        with serving(server) as running, running.connect() as connection:
            assert running.server.address[1] == port
            assert post(connection, b"", b"again") == (200, b"again")


def test_two_servers_run_at_the_same_time_and_stop_apart() -> None:
    with serving(echo_server()) as one:
        with serving(echo_server()) as other, one.connect() as first, other.connect() as second:
            assert post(first, b"", b"one") == (200, b"one")
            assert post(second, b"", b"two") == (200, b"two")
        with one.connect() as connection:
            assert post(connection, b"", b"still") == (200, b"still")


def test_a_request_in_flight_is_answered_after_stop_and_nobody_new_is_let_in() -> None:
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection, running.connect() as idle:
        assert post(idle, b"", b"") == (200, b"")
        app.entered.clear()
        connection.sendall(POST % (b"slow", 4, b"body"))
        assert app.entered.wait(LONG)
        running.server.stop()
        running.server.stop()
        assert is_closed(idle)
        await_refusal(running.server.address)
        app.release.set()
        assert read_answer(connection) == (200, b"body")
        assert is_closed(connection)
        running.join()


def test_a_half_sent_header_does_not_hold_the_stop_up() -> None:
    server = echo_server(read_header_timeout=600.0, drain_timeout=600.0)
    with serving(server) as running, running.connect() as half, running.connect() as silent:
        half.sendall(b"POST / HTTP/1.1\r\nho")
        with running.connect() as connection:  # served only after both others were accepted
            assert post(connection, b"", b"x") == (200, b"x")
        server.stop()
        running.join()
        assert is_closed(half)
        assert is_closed(silent)


def test_a_half_sent_body_is_cut_off_when_the_drain_timeout_is_over() -> None:
    app = EchoApp()
    server = echo_server(app, drain_timeout=0.3)
    with serving(server) as running, running.connect() as connection:
        connection.sendall(POST % (b"", 100, b"part"))
        assert app.entered.wait(LONG)
        server.stop()
        running.join()
        assert is_closed(connection)
        rebound = echo_server(port=server.address[1])
        rebound.bind()
        rebound.stop()


def test_an_application_that_never_answers_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    app = EchoApp()
    server = echo_server(app, drain_timeout=0.3)
    with serving(server) as running, running.connect() as connection:
        connection.sendall(POST % (b"slow", 4, b"body"))
        assert app.entered.wait(LONG)
        server.stop()
        running.join()
        assert is_closed(connection)
    assert [record.getMessage() for record in caplog.records] == [
        "the drain timeout is over: 1 requests in flight were cut off"
    ]


def test_a_cancelled_serve_frees_the_port_at_once() -> None:
    async def cancelled() -> None:
        server = echo_server(app := EchoApp())
        server.bind()
        serving = asyncio.create_task(server.serve())
        connection = await asyncio.to_thread(socket.create_connection, server.address)
        connection.sendall(POST % (b"", 100, b"part"))
        await asyncio.to_thread(app.entered.wait, LONG)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert await asyncio.to_thread(is_closed, connection)
        connection.close()
        rebound = echo_server(port=server.address[1])
        rebound.bind()
        rebound.stop()

    _in_main_loop(cancelled())


def test_a_loop_that_ends_without_a_stop_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    server = echo_server(app := EchoApp())
    connections: list[socket.socket] = []

    def connect(begun: bytes) -> None:
        connections.append(socket.create_connection(server.address, timeout=LONG))
        connections[-1].sendall(begun)

    async def forget_to_stop() -> asyncio.Task[None]:
        server.bind()
        serving = asyncio.create_task(server.serve())
        await asyncio.to_thread(connect, b"POST / HT")
        await asyncio.to_thread(connect, POST % (b"", 100, b"part"))
        await asyncio.to_thread(app.entered.wait, LONG)
        return serving

    for _ in range(2):
        app.entered.clear()
        assert _in_main_loop(forget_to_stop()).cancelled()
        with pytest.raises(ConnectionError):
            socket.create_connection(server.address, timeout=LONG)
        while connections:
            with connections.pop() as connection:
                # A request that the loop's end has cancelled may still be told so, by 500; all come to their end.
                assert read_to_end(connection)[:12] in (b"", b"HTTP/1.1 500")
    assert {record.levelname for record in caplog.records} <= {"WARNING"}


def test_stop_works_from_the_loop_that_serves() -> None:
    async def stopped() -> None:
        server = echo_server()
        server.bind()
        serving = asyncio.create_task(server.serve())
        await asyncio.sleep(0)
        server.stop()
        await serving

    _in_main_loop(stopped())


def test_the_handlers_of_the_process_survive_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.INFO)
    named = logging.getLogger("an application")
    named.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        with serving(echo_server()) as running, running.connect() as connection:
            assert post(connection, b"", b"x") == (200, b"x")
            named.info("while serving")
        named.info("after serving")
    finally:
        logging.getLogger().removeHandler(handler)
    assert stream.getvalue().splitlines() == ["while serving", "after serving"]
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_an_answer_has_a_date_and_does_not_name_the_server() -> None:
    with serving(echo_server()) as running, running.connect() as connection:
        connection.sendall(POST % (b"", 1, b"x"))
        answer = read_until(connection, b"\r\n\r\nx")
    assert b"\r\ndate: " in answer
    assert b"server:" not in answer


def test_an_error_that_escapes_the_application_is_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with serving(echo_server()) as running, running.connect() as connection:
        assert post(connection, b"boom", b"")[0] == 500
    assert any(
        "a mistake of the application" in str(record.exc_info or record.getMessage()) for record in caplog.records
    )


def test_a_client_that_leaves_on_its_answer_is_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    app = EchoApp()
    with serving(echo_server(app)) as running:
        for path in (b"early", b"early-and-close", b"slow"):
            for _ in range(10):
                with running.connect() as connection:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.sendall(POST % (path, 1000, b"part"))
        app.release.set()
        with running.connect() as connection:
            assert post(connection, b"", b"x") == (200, b"x")
    assert [record.getMessage() for record in caplog.records] == []


def test_a_server_that_cannot_accept_any_more_ends_with_an_error() -> None:
    """It must not look alive: somebody has to start it again."""
    server = echo_server()
    server.bind()
    assert server._socket is not None
    with server._socket.dup() as copy, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(lambda: uvloop.run(server.serve()))
        with socket.create_connection(server.address, timeout=LONG) as connection:
            assert post(connection, b"", b"x") == (200, b"x")
        copy.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError, match="Invalid argument"):
            serving.result(LONG)


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()])
def test_a_thread_that_an_application_ends_has_failed(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    async def app(_: Scope, __: Receive, ___: Send) -> None:
        raise error

    server = echo_server(app)
    server.bind()
    thread = ServerThread([server])
    thread.start()
    with socket.create_connection(server.address, timeout=LONG) as connection:
        connection.sendall(POST % (b"", 0, b""))
        with pytest.raises(RuntimeError, match="the server's thread ended with"):
            thread.ended.result(LONG)
    assert "no more webhooks are accepted" in caplog.text


@pytest.mark.slow
def test_a_forked_child_keeps_neither_the_port_nor_a_connection() -> None:
    """Also if its parent is killed, and could not close them."""
    command = [sys.executable, str(Path(__file__).with_name("_server_child.py")), "0", "--fork"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port, child = int(parent.stdout.readline()), 0
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=LONG) as connection:
                assert post(connection, b"", b"x") == (200, b"x")
                parent.send_signal(signal.SIGUSR1)
                child = int(parent.stdout.readline())
                assert post(connection, b"", b"y") == (200, b"y")
                parent.kill()
                assert is_closed(connection)
            await_refusal(("127.0.0.1", port))
        finally:
            parent.kill()
            if child:
                os.kill(child, signal.SIGKILL)
