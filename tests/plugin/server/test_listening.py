"""Listening sockets of a supervisor: how they are found, and that they outlive the server."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from statsig_otel.plugin.server.listening import inherited_sockets
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.server.thread import ServerThread
from tests.plugin.server.echo import LONG, POST, EchoApp, is_closed, post, read_answer

OURS = str(os.getpid())


@pytest.fixture
def passed() -> Iterator[int]:
    """The first of two descriptors in a row: listening sockets, as a supervisor passes them."""
    with ExitStack() as stack:
        first = 100
        for descriptor in (first, first + 1):
            one = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            os.dup2(one.fileno(), descriptor)
            stack.callback(close, descriptor)
        yield first


def close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        assert descriptor >= 100, "closed by the test already"


def connected(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=LONG)


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({}, []),
        ({"LISTEN_FDS": ""}, []),
        ({"LISTEN_FDS": "0", "LISTEN_PID": OURS}, []),
        ({"LISTEN_FDS": "1", "LISTEN_PID": OURS}, ["unknown"]),
        ({"LISTEN_FDS": "2"}, ["unknown", "unknown"]),
        ({"LISTEN_FDS": "2", "LISTEN_PID": OURS, "LISTEN_FDNAMES": "statsig:statsig/eu"}, ["statsig", "statsig/eu"]),
    ],
)
def test_sockets_are_taken_with_their_names(passed: int, variables: dict[str, str], names: list[str]) -> None:
    taken = inherited_sockets(variables, first=passed)
    assert [one.name for one in taken] == names
    assert [one.socket.fileno() for one in taken] == list(range(passed, passed + len(names)))
    for one in taken:
        assert not one.socket.get_inheritable()
        one.socket.close()


def test_sockets_of_another_process_are_left_alone(passed: int, caplog: pytest.LogCaptureFixture) -> None:
    assert inherited_sockets({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, first=passed) == []
    assert f"LISTEN_PID=1 is another process than this one, {OURS}. A script that starts" in caplog.text
    os.fstat(passed)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LISTEN_FDS": "two"}, "LISTEN_FDS=two: it is not a number of sockets"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS=-1: it is not a number of sockets"),
        ({"LISTEN_FDS": "99999999999"}, "LISTEN_FDS=99999999999: it is not a number of sockets"),
        ({"LISTEN_FDS": "999999"}, r"LISTEN_FDS: descriptor 10[0-9] \(unknown\) is not a socket"),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, "LISTEN_FDNAMES=a: there are 1 names for the 2 sockets"),
        ({"LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c"}, r"LISTEN_FDS: descriptor 102 \(c\) is not a socket"),
    ],
)
def test_what_is_wrong_with_the_variables_is_said(passed: int, variables: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        inherited_sockets(variables, first=passed)


@pytest.mark.parametrize("kind", ["unix", "datagram", "connected", "file"])
def test_only_listening_tcp_sockets_are_taken(passed: int, kind: str) -> None:
    with ExitStack() as stack:
        if kind == "file":
            other = os.open(os.devnull, os.O_RDONLY)
        else:
            family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
            one = stack.enter_context(
                socket.socket(family, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM)
            )
            other = os.dup(one.fileno())
        os.dup2(other, passed)
        os.close(other)
        with pytest.raises(ValueError, match=r"descriptor 100 \(unknown\) is not a "):
            inherited_sockets({"LISTEN_FDS": "1"}, first=passed)
        os.fstat(passed)  # it stays open: it may be somebody else's


def test_a_client_that_connects_between_two_servers_is_served_by_the_second() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        for turn in (b"1", b"2", b"3"):
            with connected(address) as waiting:
                waiting.sendall(POST % (b"", 1, turn))
                server = HttpServer(EchoApp(), host="192.0.2.1", port=1, inherited=listening)
                server.bind()
                assert server.address == address
                thread = ServerThread([server])
                thread.start()
                assert read_answer(waiting) == (200, turn)
                if turn == b"3":  # a second, in which the silent client could still send a request
                    with connected(address) as silent:
                        thread.stop_accepting(LONG)
                        assert is_closed(silent)
                thread.shutdown(LONG)


def test_a_server_that_never_served_leaves_the_socket_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = HttpServer(EchoApp(), host="192.0.2.1", port=1, inherited=listening)
        server.bind()
        server.stop()
        with connected(listening.getsockname()):
            listening.accept()[0].close()


def test_a_request_of_a_client_that_had_connected_is_served_after_the_stop() -> None:
    server = HttpServer(EchoApp(), host="127.0.0.1", port=0)
    server.bind()
    thread = ServerThread([server])
    thread.start()
    with connected(server.address) as first, connected(server.address) as late:
        assert post(first, b"", b"hi") == (200, b"hi")
        assert post(first, b"", b"hi") == (200, b"hi")  # so the second connection was accepted before the stop
        server.stop(LONG)
        assert post(late, b"", b"late") == (200, b"late")
    server.wait_until_quiet(LONG)
    thread.shutdown(LONG)
