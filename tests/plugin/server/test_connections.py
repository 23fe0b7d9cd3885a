"""The HTTP server's bounds on connections: header timeouts, idle clients, how many there are."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from statsig_otel.plugin.server.asgi_types import Receive, Scope, Send
from tests.plugin.server.echo import (
    LONG,
    POST,
    EchoApp,
    await_refusal,
    echo_server,
    is_closed,
    is_cut_off,
    post,
    read_answer,
    read_to_end,
    serving,
)


def test_silent_slow_and_idle_connections_are_closed_after_the_head_timeout() -> None:
    server = echo_server(read_header_timeout=0.3)
    with serving(server) as running, contextlib.ExitStack() as stack:
        silent, half, idle = (stack.enter_context(running.connect()) for _ in range(3))
        half.sendall(b"POST / HTTP/1.1\r\nho")
        assert post(idle, b"", b"x") == (200, b"x")
        assert [is_closed(connection) for connection in (silent, half, idle)] == [True] * 3


def test_as_many_silent_connections_as_are_allowed_do_not_starve_the_others_for_ever() -> None:
    server = echo_server(read_header_timeout=0.5, max_connections=4)
    with serving(server) as running, contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(running.connect())
        with running.connect() as connection:
            assert post(connection, b"", b"through") == (200, b"through")


def test_an_idle_connection_makes_room_and_one_with_a_whole_request_does_not() -> None:
    app = EchoApp()
    with serving(echo_server(app, max_connections=1)) as running, running.connect() as idle, running.connect() as busy:
        assert post(idle, b"", b"first") == (200, b"first")
        app.entered.clear()
        busy.sendall(POST % (b"slow", 4, b"busy"))
        assert is_closed(idle)
        assert app.entered.wait(LONG)
        with running.connect() as third:
            third.sendall(POST % (b"", 5, b"third"))
            third.settimeout(0.3)
            with pytest.raises(TimeoutError):
                third.recv(1)
            app.release.set()
            assert read_answer(busy) == (200, b"busy")
            third.settimeout(LONG)
            assert read_answer(third) == (200, b"third")


def test_the_connection_that_is_idle_for_longest_makes_room() -> None:
    with serving(echo_server(max_connections=3)) as running, contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(running.connect()) for _ in range(3))
        for connection in (first, second, third):
            assert post(connection, b"", b"") == (200, b"")
        first.sendall(b"POST / HTTP/1.1\r\n")  # this one has begun, even without a whole header
        assert post(second, b"", b"again") == (200, b"again")
        with running.connect() as fourth, running.connect() as fifth:
            assert post(fourth, b"", b"fourth") == (200, b"fourth")
            assert is_closed(third)
            assert post(fifth, b"", b"fifth") == (200, b"fifth")
            assert is_closed(second)
            first.sendall(b"host: test\r\ncontent-length: 5\r\n\r\nfirst")
            assert read_answer(first) == (200, b"first")


def test_the_request_that_is_silent_for_longest_makes_room_if_no_connection_is_idle() -> None:
    with serving(echo_server(max_connections=2)) as running, contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(running.connect()) for _ in range(2))
        first.sendall(POST % (b"", 6, b"fir"))
        second.sendall(POST % (b"", 6, b"se"))
        time.sleep(0.2)
        first.sendall(b"s")  # not enough for the wait to begin again
        with running.connect() as third:
            assert post(third, b"", b"third") == (200, b"third")
            assert is_closed(first)
            second.sendall(b"cond")
            assert read_answer(second) == (200, b"second")


def test_a_connection_with_unread_bytes_does_not_make_room() -> None:
    """As in a loop that other clients keep busy: the silence is the server's own."""
    holding = threading.Event()

    class Holding(EchoApp):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/hold":
                holding.set()
                time.sleep(0.5)  # noqa: ASYNC251 - it blocks the loop on purpose
            await super().__call__(scope, receive, send)

    with serving(echo_server(Holding(), max_connections=2)) as running, contextlib.ExitStack() as stack:
        sending = stack.enter_context(running.connect())
        assert post(sending, b"", b"") == (200, b"")
        time.sleep(0.2)  # it has waited for long enough
        hold = stack.enter_context(running.connect())
        hold.sendall(POST % (b"hold", 0, b""))
        assert holding.wait(LONG)
        third = stack.enter_context(running.connect())  # before the bytes, so that it is accepted before they are read
        sending.sendall(POST % (b"", 4, b"sent"))
        third.sendall(POST % (b"", 5, b"third"))
        assert read_answer(sending) == (200, b"sent")
        assert read_answer(third) == (200, b"third")


@pytest.mark.parametrize(("path", "status"), [(b"early", 413), (b"boom", 500)])
def test_keep_alive_is_not_for_senders_that_were_refused(path: bytes, status: int) -> None:
    with serving(echo_server()) as running, running.connect() as connection:
        connection.sendall(POST % (path, 2, b"hi"))
        answer = read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.count(b"\r\nx-content-type-options: nosniff\r\n") == 1


def test_connections_never_use_up_the_open_files_of_the_process(caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server = echo_server(read_header_timeout=0.5, max_connections=1000)
        with serving(server) as running, contextlib.ExitStack() as stack:
            with running.connect() as connection:
                assert post(connection, b"", b"first") == (200, b"first")
            for _ in range(50):  # these clients count twice: their own ends are of this process too
                stack.enter_context(running.connect())
            with running.connect() as connection:
                assert post(connection, b"", b"through") == (200, b"through")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "1000 connections exceed the limit of 256 open files, so only 128 are served at a time" in caplog.text


@pytest.mark.slow
def test_a_connection_that_makes_room_gives_its_descriptor_back_at_once() -> None:
    """Else many that come at once use them all up, and the server waits for a second."""
    limited = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"]
    command = [*limited, sys.executable, str(Path(__file__).with_name("_server_child.py")), "0"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child,
        contextlib.ExitStack() as stack,
    ):
        assert child.stdout is not None
        address = "127.0.0.1", int(child.stdout.readline())
        for _ in range(120):
            stack.enter_context(socket.create_connection(address, LONG))
        with socket.create_connection(address, LONG) as connection:
            assert post(connection, b"", b"through") == (200, b"through")
        child.kill()
        _, said = child.communicate(timeout=LONG)
    assert "only 32 are served at a time" in said
    assert "can't accept" not in said


def test_a_client_that_does_not_read_its_answer_is_cut_off() -> None:
    size = 20 << 20  # far more than all buffers
    with serving(echo_server(read_header_timeout=0.5)) as running, running.connect() as connection:
        connection.sendall(POST % (b"", size, bytes(size)))
        assert is_cut_off(connection, within=LONG)
        assert len(read_to_end(connection)) < size


@pytest.mark.slow
def test_a_client_that_reads_slowly_is_not_cut_off() -> None:
    size = 20 << 20
    with serving(echo_server(read_header_timeout=2.0)) as running, running.connect() as connection:
        connection.sendall(POST % (b"", size, bytes(size)))
        received = 0
        while received < size and (chunk := connection.recv(256 << 10)):
            received += len(chunk)
            time.sleep(0.06)
        assert received > size


def test_a_request_that_begins_before_the_stop_is_served() -> None:
    with serving(echo_server()) as running, running.connect() as connection:
        request = POST % (b"", 2, b"hi")
        connection.sendall(request[:10])
        with running.connect() as other:  # served only after the first was accepted
            assert post(other, b"", b"x") == (200, b"x")
        running.server.stop()
        await_refusal(running.server.address)
        connection.sendall(request[10:])
        answer = read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"\r\nconnection: close\r\n" in answer
