"""The HTTP server's contract, over real sockets; at the end the soak of its shutdown, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import logging
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import falcon.asgi
import pytest
import trustme

from statsig_otel.plugin.server.server import MAX_HEADER_BYTES, AsgiApp, HttpServer, Receive, Scope, Send
from statsig_otel.plugin.server.tls import ServerTls

T = TypeVar("T")

_LONG = 20.0  # seconds: where a test waits this long, something hangs
_POST = b"POST /%s HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%s"


class EchoApp:
    """Answers with the body; `/slow` only after `release` was set. Keeps what it saw."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.events: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in ("/early", "/early-and-close"):
            close = [(b"connection", b"close")] if scope["path"] == "/early-and-close" else []
            await _answer(send, 413, b"too large", *close)
            return
        body = b""
        more = True
        while more:
            self.entered.set()
            message = await receive()
            self.events.append(message["type"])
            if message["type"] == "http.disconnect":
                await _answer(send, 400, b"truncated")
                return
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)
        self.headers.append(scope["headers"])
        if scope["path"] == "/slow":
            while not self.release.is_set():  # noqa: ASYNC110  # set by another thread
                await asyncio.sleep(0.01)
        if scope["path"] == "/boom":
            raise RuntimeError("a mistake of the application")
        await _answer(send, 200, body)


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length), *headers]})
    await send({"type": "http.response.body", "body": body})


def _server(app: AsgiApp | None = None, **options: Any) -> HttpServer:
    return HttpServer(app or EchoApp(), host="127.0.0.1", **{"port": 0, **options})


class Running:
    """A server in a loop of a background thread, as an embedding application has it."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        server.bind()
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._serving = self._pool.submit(lambda: asyncio.run(server.serve()))

    def join(self) -> None:
        self._serving.result(timeout=_LONG)
        self._pool.shutdown()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.server.address, timeout=_LONG)


@contextlib.contextmanager
def _running(server: HttpServer) -> Iterator[Running]:
    running = Running(server)
    try:
        yield running
    finally:
        server.stop()
        running.join()


def _read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """One whole answer: its status and as many bytes of body as its Content-Length says.

    Raises:
        EOFError: The connection ended inside of it; with no argument when before its first byte.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(connection, data)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += _receive(connection, data)
    return int(lines[0].split()[1]), body


def _receive(connection: socket.socket, before: bytes) -> bytes:
    chunk = connection.recv(65536)
    if not chunk:
        raise EOFError(before) if before else EOFError
    return chunk


def _post(connection: socket.socket, path: bytes, body: bytes) -> tuple[int, bytes]:
    connection.sendall(_POST % (path, len(body), body))
    return _read_answer(connection)


def _is_closed(connection: socket.socket) -> bool:
    """Whether the server closes the connection, waiting for it."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def _read_to_end(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            data += chunk
    return data


def _in_main_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(_LONG):
            return await coroutine

    return asyncio.run(bounded())


# Listening.


def test_port_0_is_resolved_and_kept_alive_connections_are_served() -> None:
    with _running(_server()) as running:
        assert running.server.address[0] == "127.0.0.1"
        assert running.server.address[1] > 0
        with running.connect() as connection:
            for body in (b"one", b"", b"x" * 300_000):
                assert _post(connection, b"", body) == (200, body)


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
        assert error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # noqa: PT017
        pytest.skip("no IPv6 here")
    server.stop()
    with _running(server) as running, running.connect() as connection:
        assert _post(connection, b"", b"six") == (200, b"six")


def test_an_address_in_use_is_an_error_that_says_so() -> None:
    first = _server()
    first.bind()
    port = first.address[1]
    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: the port is in use; stop") as caught:
        _server(port=port).bind()
    assert caught.value.errno == errno.EADDRINUSE
    first.stop()


def test_a_listener_of_another_that_shares_its_port_is_an_error_too() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            _server(port=other.getsockname()[1]).bind()


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
    server = _server()
    with pytest.raises(RuntimeError, match="bind"):
        _ = server.address
    with pytest.raises(RuntimeError, match="bind"):
        _in_main_loop(server.serve())


def test_a_stop_before_serve_frees_the_port_and_serve_returns() -> None:
    server = _server()
    server.bind()
    server.stop()
    _in_main_loop(server.serve())
    again = _server(port=server.address[1])
    again.bind()
    again.stop()


# Several of them, one after another and side by side.


def test_one_server_starts_and_stops_several_times_on_one_port() -> None:
    server = _server()
    server.bind()
    port = server.address[1]
    server.stop()
    server = _server(port=port)
    for _ in range(5):
        with _running(server) as running, running.connect() as connection:
            assert running.server.address[1] == port
            assert _post(connection, b"", b"again") == (200, b"again")


def test_two_servers_run_at_the_same_time_and_stop_apart() -> None:
    with _running(_server()) as one:
        with _running(_server()) as other, one.connect() as first, other.connect() as second:
            assert _post(first, b"", b"one") == (200, b"one")
            assert _post(second, b"", b"two") == (200, b"two")
        with one.connect() as connection:
            assert _post(connection, b"", b"still") == (200, b"still")


# Stopping.


def test_a_request_in_flight_is_answered_after_stop_and_nobody_new_is_let_in() -> None:
    app = EchoApp()
    with _running(_server(app)) as running, running.connect() as connection, running.connect() as idle:
        assert _post(idle, b"", b"") == (200, b"")
        app.entered.clear()
        connection.sendall(_POST % (b"slow", 4, b"body"))
        assert app.entered.wait(_LONG)
        running.server.stop()
        running.server.stop()
        assert _is_closed(idle)
        _await_refusal(running.server.address)
        app.release.set()
        assert _read_answer(connection) == (200, b"body")
        assert _is_closed(connection)
        running.join()


def _await_refusal(address: tuple[str, int]) -> None:
    deadline = time.monotonic() + _LONG
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address, timeout=_LONG).close()
        except ConnectionError:
            return
    pytest.fail("connections are still accepted")


def test_a_half_sent_header_does_not_hold_the_stop_up() -> None:
    server = _server(read_header_timeout=600.0, drain_timeout=600.0)
    with _running(server) as running, running.connect() as half, running.connect() as silent:
        half.sendall(b"POST / HTTP/1.1\r\nho")
        with running.connect() as connection:  # served only after both others were accepted
            assert _post(connection, b"", b"x") == (200, b"x")
        server.stop()
        running.join()
        assert _is_closed(half)
        assert _is_closed(silent)


def test_a_half_sent_body_is_cut_off_when_the_drain_timeout_is_over() -> None:
    app = EchoApp()
    server = _server(app, drain_timeout=0.3)
    with _running(server) as running, running.connect() as connection:
        connection.sendall(_POST % (b"", 100, b"part"))
        assert app.entered.wait(_LONG)
        server.stop()
        running.join()
        assert _is_closed(connection)
        rebound = _server(port=server.address[1])
        rebound.bind()
        rebound.stop()


def test_an_application_that_never_answers_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    app = EchoApp()
    server = _server(app, drain_timeout=0.3)
    with _running(server) as running, running.connect() as connection:
        connection.sendall(_POST % (b"slow", 4, b"body"))
        assert app.entered.wait(_LONG)
        server.stop()
        running.join()
        assert _is_closed(connection)
    assert [record.getMessage() for record in caplog.records] == [
        "the drain timeout is over: 1 requests in flight were cut off"
    ]


def test_a_cancelled_serve_frees_the_port_at_once() -> None:
    async def cancelled() -> None:
        server = _server(app := EchoApp())
        server.bind()
        serving = asyncio.create_task(server.serve())
        connection = await asyncio.to_thread(socket.create_connection, server.address)
        connection.sendall(_POST % (b"", 100, b"part"))
        await asyncio.to_thread(app.entered.wait, _LONG)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert await asyncio.to_thread(_is_closed, connection)
        connection.close()
        rebound = _server(port=server.address[1])
        rebound.bind()
        rebound.stop()

    _in_main_loop(cancelled())


def test_a_loop_that_ends_without_a_stop_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    server = _server(app := EchoApp())
    connections: list[socket.socket] = []

    def connect(begun: bytes) -> None:
        connections.append(socket.create_connection(server.address, timeout=_LONG))
        connections[-1].sendall(begun)

    async def forget_to_stop() -> asyncio.Task[None]:
        server.bind()
        serving = asyncio.create_task(server.serve())
        await asyncio.to_thread(connect, b"POST / HT")
        await asyncio.to_thread(connect, _POST % (b"", 100, b"part"))
        await asyncio.to_thread(app.entered.wait, _LONG)
        return serving

    for _ in range(2):
        app.entered.clear()
        assert _in_main_loop(forget_to_stop()).cancelled()
        with pytest.raises(ConnectionError):
            socket.create_connection(server.address, timeout=_LONG)
        while connections:
            with connections.pop() as connection:
                # A request that the loop's end has cancelled may still be told so, by 500; all come to their end.
                assert _read_to_end(connection)[:12] in (b"", b"HTTP/1.1 500")
    assert {record.levelname for record in caplog.records} <= {"WARNING"}


def test_stop_works_from_the_loop_that_serves() -> None:
    async def stopped() -> None:
        server = _server()
        server.bind()
        serving = asyncio.create_task(server.serve())
        await asyncio.sleep(0)
        server.stop()
        await serving

    _in_main_loop(stopped())


# Clients that keep it waiting.


def test_silent_slow_and_idle_connections_are_closed_after_the_header_timeout() -> None:
    server = _server(read_header_timeout=0.3)
    with _running(server) as running, contextlib.ExitStack() as stack:
        silent, half, idle = (stack.enter_context(running.connect()) for _ in range(3))
        half.sendall(b"POST / HTTP/1.1\r\nho")
        assert _post(idle, b"", b"x") == (200, b"x")
        assert [_is_closed(connection) for connection in (silent, half, idle)] == [True] * 3


def test_as_many_silent_connections_as_are_allowed_do_not_starve_the_others_for_ever() -> None:
    server = _server(read_header_timeout=0.5, max_connections=4)
    with _running(server) as running, contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(running.connect())
        with running.connect() as connection:
            assert _post(connection, b"", b"through") == (200, b"through")


def test_more_connections_than_are_allowed_wait_their_turn() -> None:
    with _running(_server(max_connections=1)) as running, running.connect() as first, running.connect() as second:
        assert _post(first, b"", b"first") == (200, b"first")
        second.sendall(_POST % (b"", 6, b"second"))
        second.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.recv(1)
        first.close()
        second.settimeout(_LONG)
        assert _read_answer(second) == (200, b"second")


def test_connections_never_use_up_the_open_files_of_the_process(caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server = _server(read_header_timeout=0.5, max_connections=1000)
        with _running(server) as running, contextlib.ExitStack() as stack:
            with running.connect() as connection:
                assert _post(connection, b"", b"first") == (200, b"first")
            for _ in range(50):  # these clients count twice: their own ends are of this process too
                stack.enter_context(running.connect())
            with running.connect() as connection:
                assert _post(connection, b"", b"through") == (200, b"through")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "1000 connections exceed the limit of 256 open files, so only 128 are served at a time" in caplog.text


def test_a_client_that_does_not_read_its_answers_is_cut_off() -> None:
    app = EchoApp()
    with _running(_server(app, read_header_timeout=0.3)) as running, running.connect() as connection:
        request = _POST % (b"", 300_000, bytes(300_000))
        with pytest.raises(ConnectionError):
            connection.sendall(request * 200)  # far more than all buffers hold


def test_a_header_that_is_begun_before_the_stop_is_served_and_then_the_connection_ends() -> None:
    with _running(_server()) as running, running.connect() as connection:
        request = _POST % (b"", 2, b"hi")
        connection.sendall(request[:10])
        with running.connect() as other:  # served only after the first was accepted
            assert _post(other, b"", b"x") == (200, b"x")
        running.server.stop()
        _await_refusal(running.server.address)
        connection.sendall(request[10:])
        answer = _read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"\r\nconnection: close\r\n" in answer


def test_a_header_may_come_in_single_bytes_and_up_to_the_bound() -> None:
    with _running(_server()) as running, running.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in _POST % (b"", 2, b"hi"):
            connection.sendall(bytes([byte]))
        assert _read_answer(connection) == (200, b"hi")
        field = b"x: " + b"a" * (MAX_HEADER_BYTES - 100) + b"\r\n"
        connection.sendall(b"POST / HTTP/1.1\r\n" + field + b"content-length: 2\r\n\r\nhi")
        assert _read_answer(connection) == (200, b"hi")


@pytest.mark.parametrize("fields", [b"x: " + b"a" * MAX_HEADER_BYTES + b"\r\n", b"x: 1\r\n" * 101])
def test_whole_headers_past_the_bound_are_431(fields: bytes) -> None:
    app = EchoApp()
    with _running(_server(app)) as running, running.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\n" + fields + b"\r\n")
        assert _read_answer(connection)[0] == 431
        assert _is_closed(connection)
    assert not app.entered.is_set()


def test_headers_past_the_bound_are_431() -> None:
    with _running(_server()) as running, running.connect() as connection:
        with contextlib.suppress(ConnectionError):  # the answer comes before the end of them
            connection.sendall(b"POST / HTTP/1.1\r\nx: " + b"a" * 4 * MAX_HEADER_BYTES + b"\r\n\r\n")
        assert _read_answer(connection)[0] == 431


@pytest.mark.parametrize(
    "request_",
    [
        b"hello\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + bytes(64),
        b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi",
        b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length : 2\r\n\r\nhi",
        b"POST / HTTP/1.1\nhost: test\ncontent-length: 2\n\nhi",
        b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
        b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: +2\r\n\r\nhi",
        b"POST / HTTP/1.1\r\nhost: test\r\nx: a\r\n folded\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400_and_never_reaches_the_application(request_: bytes) -> None:
    app = EchoApp()
    with _running(_server(app)) as running, running.connect() as connection:
        connection.sendall(request_)
        assert _read_answer(connection)[0] == 400
        assert _is_closed(connection)
    assert app.events == []


@pytest.mark.parametrize(
    "begun",
    [
        _POST % (b"", 100, b"part"),
        b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
def test_the_application_sees_a_body_that_ends_too_early_and_its_answer_reaches_the_client(begun: bytes) -> None:
    app = EchoApp()
    with _running(_server(app)) as running, running.connect() as connection:
        connection.sendall(begun)
        assert app.entered.wait(_LONG)
        connection.shutdown(socket.SHUT_WR)
        assert _read_answer(connection) == (400, b"truncated")
    assert app.events == ["http.request", "http.disconnect"]


def test_a_client_that_ends_its_side_after_a_whole_request_gets_its_answer() -> None:
    app = EchoApp()
    with _running(_server(app)) as running, running.connect() as connection:
        connection.sendall(_POST % (b"slow", 4, b"body"))
        connection.shutdown(socket.SHUT_WR)
        assert app.entered.wait(_LONG)
        app.release.set()
        assert _read_answer(connection) == (200, b"body")
        assert _is_closed(connection)


def test_what_is_no_http_behind_a_request_does_not_touch_its_answer() -> None:
    app = EchoApp()
    with _running(_server(app)) as running, running.connect() as connection:
        connection.sendall(_POST % (b"slow", 4, b"body") + b"\0garbage\r\n\r\n")
        assert app.entered.wait(_LONG)
        app.release.set()
        assert _read_answer(connection) == (200, b"body")
        assert _is_closed(connection)


def test_pipelined_requests_are_answered_in_order() -> None:
    with _running(_server()) as running, running.connect() as connection:
        bodies = [b"%d" % number for number in range(50)]
        connection.sendall(b"".join(_POST % (b"", len(body), body) for body in bodies))
        answers = _read_until(connection, b"\r\n\r\n49")
        assert [int(part.split(b"HTTP/1.1")[0]) for part in answers.split(b"\r\n\r\n")[1:]] == list(range(50))


def test_nothing_is_parsed_behind_a_request_that_closes_the_connection() -> None:
    app = EchoApp()
    with _running(_server(app)) as running, running.connect() as connection:
        connection.sendall(b"POST /slow HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n" + _POST % (b"", 2, b"no"))
        app.release.set()
        assert _read_answer(connection) == (200, b"")
        assert _is_closed(connection)
    assert app.bodies == [b""]


def _read_until(connection: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        data += _receive(connection, data)
    return data


_MANY = 20 * 1024 * 1024


@pytest.mark.parametrize(
    ("path", "header"), [(b"early", b""), (b"early-and-close", b""), (b"early", b"connection: close\r\n")]
)
@pytest.mark.parametrize("secure", [False, True])
def test_an_answer_before_the_body_reaches_a_client_that_still_sends_and_nothing_is_kept(
    path: bytes, header: bytes, *, secure: bool, authority: trustme.CA, tls: ServerTls
) -> None:
    with _running(_server(tls=tls if secure else None)) as running, contextlib.ExitStack() as stack:
        connection = stack.enter_context(running.connect())
        if secure:
            connection = _context(authority).wrap_socket(connection, server_hostname="127.0.0.1")
            stack.enter_context(connection)
        body = bytes(_MANY)
        connection.sendall(b"POST /%s HTTP/1.1\r\nhost: test\r\n%scontent-length: %d\r\n\r\n" % (path, header, _MANY))
        tracemalloc.start()
        try:
            connection.sendall(body)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert _read_answer(connection) == (413, b"too large")
        assert peak < _MANY / 4
        if path == b"early" and not header:
            assert _post(connection, b"", b"again") == (200, b"again")


def test_an_answer_instead_of_100_continue_ends_the_connection() -> None:
    expecting = b"POST /%s HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    with _running(_server()) as running, running.connect() as patient, running.connect() as refused:
        patient.sendall(expecting % b"")
        assert _read_answer(patient) == (100, b"")
        patient.sendall(b"hi")
        assert _read_answer(patient) == (200, b"hi")
        refused.sendall(expecting % b"early")
        assert _read_answer(refused) == (413, b"too large")
        assert _is_closed(refused)


def test_an_offer_to_switch_the_protocol_never_changes_where_a_body_ends() -> None:
    app = EchoApp()
    inner = b"POST /smuggled HTTP/1.1\r\nhost: test\r\n\r\n"
    offering = b"POST / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n"
    with _running(_server(app)) as running, running.connect() as connection:
        connection.sendall(offering % len(inner))
        assert app.entered.wait(_LONG)
        connection.sendall(inner)
        assert _read_answer(connection) == (200, inner)
        connection.sendall((offering % 2 + b"hi") * 3)
        assert [_read_answers(connection, 3)] == [[(200, b"hi")] * 3]
    assert app.bodies == [inner, b"hi", b"hi", b"hi"]


def _read_answers(connection: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """Several answers with bodies of two bytes, however they are cut."""
    data = b""
    while data.count(b"\r\n\r\n") < count or not re.search(rb"\r\n\r\n..$", data):
        data += _receive(connection, data)
    return [(int(status), body) for status, body in re.findall(rb"HTTP/1\.1 (\d+).*?\r\n\r\n(..)", data, re.DOTALL)]


@pytest.mark.parametrize("version", [b"0.9", b"2.0"])
def test_another_version_of_http_is_505(version: bytes) -> None:
    with _running(_server()) as running, running.connect() as connection:
        connection.sendall(b"POST / HTTP/%s\r\nhost: test\r\n\r\n" % version)
        assert _read_answer(connection)[0] == 505
        assert _is_closed(connection)


def test_trailers_are_no_headers() -> None:
    app = EchoApp()
    chunked = b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n%s\r\n"
    with _running(_server(app)) as running, running.connect() as connection:
        connection.sendall(chunked % b"2\r\nhi\r\n0\r\nx-signature: forged")
        connection.sendall(b"\r\n")
        assert _read_answer(connection) == (200, b"hi")
    assert [name for name, _ in app.headers[0]] == [b"host", b"transfer-encoding"]


@pytest.mark.parametrize("begun", [b"2;", b"2\r\nhi\r\n0\r\nx: "])
def test_trailers_and_chunk_extensions_without_an_end_are_a_body_cut_short(begun: bytes) -> None:
    app = EchoApp()
    with _running(_server(app)) as running, running.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n" + begun)
        connection.sendall(b"a" * 16 * MAX_HEADER_BYTES)
        assert _read_answer(connection) == (400, b"truncated")


def test_falcon_serves_http_1_0_as_proxies_speak_it() -> None:
    class Resource:
        async def on_post(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
            response.media = {"bytes": len(await request.stream.read())}

    app = falcon.asgi.App()
    app.add_route("/", Resource())
    with _running(_server(app)) as running, running.connect() as connection:
        connection.sendall(b"POST / HTTP/1.0\r\nhost: test\r\ncontent-length: 2\r\n\r\nhi")
        assert _read_answer(connection) == (200, b'{"bytes": 2}')
        assert _is_closed(connection)


# Logging.


def test_the_handlers_of_the_process_survive_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.INFO)
    named = logging.getLogger("an application")
    named.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        with _running(_server()) as running, running.connect() as connection:
            assert _post(connection, b"", b"x") == (200, b"x")
            named.info("while serving")
        named.info("after serving")
    finally:
        logging.getLogger().removeHandler(handler)
    assert stream.getvalue().splitlines() == ["while serving", "after serving"]
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_environment_and_the_loggers_of_the_http_library_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "no number")
    before = [(log.level, log.propagate, list(log.handlers)) for log in map(logging.getLogger, _UVICORN_LOGGERS)]
    with _running(_server()) as running, running.connect() as connection:
        connection.sendall(_POST % (b"", 1, b"x"))
        answer = _read_until(connection, b"\r\n\r\nx")
    assert before == [
        (log.level, log.propagate, list(log.handlers)) for log in map(logging.getLogger, _UVICORN_LOGGERS)
    ]
    assert b"\r\ndate: " in answer
    assert b"server:" not in answer


_UVICORN_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


def test_an_error_that_escapes_the_application_is_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with _running(_server()) as running, running.connect() as connection:
        assert _post(connection, b"boom", b"")[0] == 500
        assert _post(connection, b"", b"next") == (200, b"next")
    assert any(
        "a mistake of the application" in str(record.exc_info or record.getMessage()) for record in caplog.records
    )


# TLS.


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def tls(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> ServerTls:
    directory = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key_file.write_bytes(certificate.private_key_pem.bytes())
    return ServerTls(cert_file=cert_file, key_file=key_file)


@pytest.fixture(scope="session")
def mutual_tls(authority: trustme.CA, tls: ServerTls) -> ServerTls:
    ca_file = tls.cert_file.with_name("ca.pem")
    authority.cert_pem.write_to_path(str(ca_file))
    return ServerTls(cert_file=tls.cert_file, key_file=tls.key_file, client_ca_file=ca_file, min_version="1.3")


def _context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_tls_is_served(authority: trustme.CA, tls: ServerTls) -> None:
    context = _context(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        _running(_server(tls=tls)) as running,
        context.wrap_socket(running.connect(), server_hostname="127.0.0.1") as connection,
    ):
        assert _post(connection, b"", b"secret") == (200, b"secret")
        assert connection.version() == "TLSv1.2"


def test_an_older_version_than_the_least_is_refused(authority: trustme.CA, tls: ServerTls) -> None:
    context = _context(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    least = ServerTls(cert_file=tls.cert_file, key_file=tls.key_file, min_version="1.3")
    with _running(_server(tls=least)) as running, running.connect() as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_client_with_a_certificate_of_the_authority_is_served(authority: trustme.CA, mutual_tls: ServerTls) -> None:
    context = _context(authority)
    authority.issue_cert("client.test").configure_cert(context)
    with (
        _running(_server(tls=mutual_tls)) as running,
        context.wrap_socket(running.connect(), server_hostname="127.0.0.1") as connection,
    ):
        assert _post(connection, b"", b"mutual") == (200, b"mutual")


def test_a_client_without_a_certificate_or_with_a_foreign_one_is_refused(
    authority: trustme.CA, mutual_tls: ServerTls
) -> None:
    app = EchoApp()
    foreign = _context(authority)
    trustme.CA().issue_cert("client.test").configure_cert(foreign)
    with _running(_server(app, tls=mutual_tls)) as running:
        for context in (_context(authority), foreign):
            # In TLS 1.3 the refusal comes after the client's side of the handshake.
            with (
                running.connect() as plain,
                pytest.raises((ssl.SSLError, ConnectionError, EOFError)),
                context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
            ):
                _post(connection, b"", b"x")
    assert not app.entered.is_set()


def _renew(tls: ServerTls, authority: trustme.CA) -> None:
    """Write another certificate and its key under the same names."""
    certificate = authority.issue_cert("127.0.0.1")
    tls.cert_file.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    tls.key_file.write_bytes(certificate.private_key_pem.bytes())


def test_renewed_tls_files_count_for_new_connections_alone(authority: trustme.CA, tmp_path: Path) -> None:
    """As certbot renews them. A connection that is open goes on; a pair that does not fit changes nothing."""
    tls = ServerTls(cert_file=tmp_path / "cert.pem", key_file=tmp_path / "key.pem")
    _renew(tls, authority)
    server = _server(tls=tls)
    with _running(server) as running:

        def connect() -> ssl.SSLSocket:
            return _context(authority).wrap_socket(running.connect(), server_hostname="127.0.0.1")

        with connect() as first:
            before = first.getpeercert(binary_form=True)
            assert server.renewed_tls() is None, "nothing has changed"
            _renew(tls, authority)
            take_over = server.renewed_tls()
            assert take_over is not None
            with connect() as second:
                assert second.getpeercert(binary_form=True) == before, "it is not taken over yet"
            take_over()
            assert server.renewed_tls() is None
            with connect() as third:
                after = third.getpeercert(binary_form=True)
                assert after != before
                assert _post(third, b"", b"new") == (200, b"new")
            tls.key_file.write_bytes(authority.issue_cert("127.0.0.1").private_key_pem.bytes())
            with pytest.raises(ValueError, match="is not that of the certificate"):
                server.renewed_tls()
            tls.key_file.unlink()
            with pytest.raises(OSError, match="key_file: cannot read"):
                server.renewed_tls()
            with connect() as fourth:
                assert fourth.getpeercert(binary_form=True) == after
            assert _post(first, b"", b"old") == (200, b"old")


def test_a_server_without_tls_has_none_to_renew() -> None:
    server = _server()
    server.bind()
    assert server.renewed_tls() is None
    server.stop()


def test_a_handshake_that_never_ends_holds_neither_others_nor_the_stop_up(
    authority: trustme.CA, tls: ServerTls
) -> None:
    server = _server(tls=tls, read_header_timeout=0.5, max_connections=2, drain_timeout=600.0)
    with _running(server) as running, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(running.connect()) for _ in range(4)]
        plain = running.connect()
        with _context(authority).wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            assert _post(connection, b"", b"through") == (200, b"through")
        server.stop()
        running.join()
        assert all(_is_closed(connection) for connection in silent)


def test_tls_files_are_checked_before_anything_is_opened(tls: ServerTls, tmp_path: Path) -> None:
    other = trustme.CA().issue_cert("other.test")
    other_key = tmp_path / "other.pem"
    other.private_key_pem.write_to_path(str(other_key))
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    absent = tmp_path / "absent.pem"
    cases: list[tuple[ServerTls, type[Exception], str]] = [
        (
            ServerTls(cert_file=absent, key_file=tls.key_file),
            OSError,
            r"tls\.cert_file: cannot read .*absent\.pem: No such",
        ),
        (
            ServerTls(cert_file=tls.cert_file, key_file=other_key),
            ValueError,
            r"other\.pem is not that of the certificate",
        ),
        (ServerTls(cert_file=garbage, key_file=tls.key_file), ValueError, r"garbage\.pem .*not a PEM certificate"),
        (
            ServerTls(cert_file=tls.cert_file, key_file=tls.key_file, client_ca_file=garbage),
            ValueError,
            r"garbage\.pem holds no PEM certificates",
        ),
    ]
    for settings, kind, message in cases:
        server = _server(tls=settings)
        with pytest.raises(kind, match=message):
            server.bind()
        with pytest.raises(RuntimeError, match="not bound"):
            _ = server.address


# The soak: real processes, loaded, ended by SIGTERM.

_CHILD = Path(__file__).with_name("_server_child.py")


class Load:
    """Clients of one round: some that post without a pause, and some that never finish what they send."""

    def __init__(self, port: int, number: int) -> None:
        self._address = ("127.0.0.1", port)
        self._stack = contextlib.ExitStack()
        self.answers = 0
        self._lock = threading.Lock()
        self.broken: list[str] = []
        self._threads = [threading.Thread(target=self._post_on, args=(index,)) for index in range(6)]
        for thread in self._threads:
            thread.start()
        # Each round leaves other things unfinished.
        unfinished = [b"", b"POST / HT", b"POST / HTTP/1.1\r\nhost: t", _POST % (b"", 99, b"part")]
        for index in range(1 + number % 4):
            connection = self._stack.enter_context(socket.create_connection(self._address, timeout=_LONG))
            connection.sendall(unfinished[(number + index) % 4])

    def _post_on(self, index: int) -> None:
        body = bytes([65 + index]) * (1000 * (index + 1))
        """Converse until nobody listens any more. A reset is no fault, where no answer had begun."""
        while True:
            try:
                connection = socket.create_connection(self._address, timeout=_LONG)
            except ConnectionError:
                return
            with connection, contextlib.suppress(ConnectionError):
                self._converse(connection, body)

    def _converse(self, connection: socket.socket, body: bytes) -> None:
        while True:
            try:
                answer = _post(connection, b"", body)
            except EOFError as error:
                if error.args:
                    self.broken.append(f"cut off after {error.args[0]!r}")
                return
            with self._lock:
                self.answers += 1
                if answer != (200, body):
                    self.broken.append(f"{answer[0]} and {len(answer[1])} bytes")

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(timeout=_LONG)
        assert not any(thread.is_alive() for thread in self._threads)
        self._stack.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_services_under_load_end_by_sigterm_and_each_answer_arrives() -> None:
    """Exit code 0, no panic, no hang, the port free at once, and each 200 that was given reaches its client whole."""
    port = 0
    answers = 0
    for number in range(100):
        with subprocess.Popen(
            [sys.executable, str(_CHILD), str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            try:
                assert child.stdout is not None
                line = child.stdout.readline()
                assert line, f"round {number}: did not start: {child.communicate(timeout=_LONG)[1]}"
                port = int(line)  # each later round takes the same one
                load = Load(port, number)
                time.sleep(0.02 + 0.003 * (number % 50))
                child.send_signal(signal.SIGTERM)
                out, err = child.communicate(timeout=_LONG)
                load.finish()
            finally:
                child.kill()  # of no effect on one that has ended
        assert child.returncode == 0, f"round {number}: {err}"
        assert err == "", f"round {number}"
        assert load.broken == [], f"round {number}"
        assert load.answers == int(out), f"round {number}: answers arrived, answers given"
        answers += load.answers
    assert answers > 100
