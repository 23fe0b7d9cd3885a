"""The HTTP server's bounds on connections: header timeouts, idle clients, how many there are."""

from __future__ import annotations

import contextlib
import resource

import pytest

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
    serving,
)


def test_silent_slow_and_idle_connections_are_closed_after_the_header_timeout() -> None:
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


def test_more_connections_than_are_allowed_wait_their_turn() -> None:
    with serving(echo_server(max_connections=1)) as running, running.connect() as first, running.connect() as second:
        assert post(first, b"", b"first") == (200, b"first")
        second.sendall(POST % (b"", 6, b"second"))
        second.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.recv(1)
        first.close()
        second.settimeout(LONG)
        assert read_answer(second) == (200, b"second")


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


def test_a_client_that_does_not_read_its_answers_is_cut_off() -> None:
    app = EchoApp()
    with serving(echo_server(app, read_header_timeout=0.3)) as running, running.connect() as connection:
        request = POST % (b"", 300_000, bytes(300_000))
        with pytest.raises(ConnectionError):
            connection.sendall(request * 200)  # far more than all buffers hold


def test_a_header_that_is_begun_before_the_stop_is_served_and_then_the_connection_ends() -> None:
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
