"""How the HTTP server reads requests and ends answers: sizes, malformed requests, pipelining, bodies cut short."""

from __future__ import annotations

import contextlib
import logging
import socket
import tracemalloc

import falcon.asgi
import pytest
import trustme

from statsig_otel._log_throttle import LogThrottle
from statsig_otel.plugin.server import connection as connection_module
from statsig_otel.plugin.server.reader import MAX_HEADER_BYTES
from statsig_otel.plugin.server.tls import ServerTlsSettings
from tests.looped import looped
from tests.plugin.server.echo import (
    LONG,
    POST,
    EchoApp,
    echo_server,
    is_closed,
    read_answer,
    serving,
    trusting,
)


def test_a_header_may_come_in_single_bytes_and_up_to_the_bound() -> None:
    with serving(echo_server()) as running, running.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in POST % (b"", 2, b"hi"):
            connection.sendall(bytes([byte]))
        assert read_answer(connection) == (200, b"hi")
        field = b"x: " + b"a" * (MAX_HEADER_BYTES - 100) + b"\r\n"
        connection.sendall(b"POST / HTTP/1.1\r\nhost: test\r\n" + field + b"content-length: 2\r\n\r\nhi")
        assert read_answer(connection) == (200, b"hi")


@pytest.mark.parametrize("fields", [b"x: " + b"a" * MAX_HEADER_BYTES + b"\r\n", b"x: 1\r\n" * 101])
def test_whole_headers_past_the_bound_are_431(fields: bytes) -> None:
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\n" + fields + b"\r\n")
        assert read_answer(connection)[0] == 431
        assert is_closed(connection)
    assert not app.entered.is_set()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", "a client speaks TLS to this port"),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", "a load balancer sends the PROXY protocol"),
        (b"POST / HTTP/1.1\r\n" + b"x: 1\r\n" * 101 + b"\r\n", "look at what a proxy adds to them"),
        (b"POST / HTTP/1.1\r\nx: " + b"a" * MAX_HEADER_BYTES, "look at what a proxy adds to them"),
    ],
    ids=["TLS", "PROXY", "many fields", "large fields"],
)
def test_what_looks_like_another_mistake_is_logged_once_with_what_to_do(
    sent: bytes, said: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_throttle", LogThrottle(logging.getLogger("test")))
    with serving(echo_server()) as running:
        for _ in range(3):
            with running.connect() as connection:
                connection.sendall(sent)
                assert read_answer(connection)[0] in (400, 431)
    assert caplog.text.count(said) == 1


def test_headers_past_the_bound_are_431() -> None:
    with serving(echo_server()) as running, running.connect() as connection:
        with contextlib.suppress(ConnectionError):  # the answer comes before the end of them
            connection.sendall(b"POST / HTTP/1.1\r\nx: " + b"a" * 4 * MAX_HEADER_BYTES + b"\r\n\r\n")
        assert read_answer(connection)[0] == 431


@looped(
    "request_",
    [
        b"hello\r\n\r\n",
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
        b"POST / HTTP/1.1\r\nhost: test\r\nx: a\r\n \r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi",
        b"POST / HTTP/1.1\r\nhost: one\r\nhost: two\r\n\r\n",
        b"OPTIONS / RTSP/1.0\r\nhost: test\r\n\r\n",
        b"POST  / HTTP/1.1\r\nhost: test\r\n\r\n",
        b"GET /\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"POST / HTTP/1.1\r\nhost: te\0st\r\n",
    ],
)
def test_what_is_no_http_is_400_and_never_reaches_the_application(request_: bytes) -> None:
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(request_)
        assert read_answer(connection)[0] == 400
        assert is_closed(connection)
    assert app.events == []


@pytest.mark.parametrize(
    "begun",
    [
        POST % (b"", 100, b"part"),
        b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
def test_a_body_that_ends_too_early_is_seen_and_answered_by_the_application(begun: bytes) -> None:
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(begun)
        assert app.entered.wait(LONG)
        connection.shutdown(socket.SHUT_WR)
        assert read_answer(connection) == (400, b"truncated")
    assert app.events == ["http.request", "http.disconnect"]


def test_a_client_that_ends_its_side_after_a_whole_request_gets_its_answer() -> None:
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(POST % (b"slow", 4, b"body"))
        connection.shutdown(socket.SHUT_WR)
        assert app.entered.wait(LONG)
        app.release.set()
        assert read_answer(connection) == (200, b"body")
        assert is_closed(connection)


def test_what_is_no_http_behind_a_request_does_not_touch_its_answer() -> None:
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(POST % (b"slow", 4, b"body") + b"\0garbage\r\n\r\n")
        assert app.entered.wait(LONG)
        app.release.set()
        assert read_answer(connection) == (200, b"body")
        assert is_closed(connection)


def test_a_request_behind_another_is_not_read() -> None:
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall((POST % (b"", 5, b"first")) + (POST % (b"", 6, b"second")) * 5000)
        assert read_answer(connection) == (200, b"first")
        assert is_closed(connection)
    assert app.bodies == [b"first"]


def test_a_chunked_body_ends_where_it_says_and_nothing_is_read_behind_it() -> None:
    app = EchoApp()
    chunked = b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n"
    with serving(echo_server(app)) as running, running.connect() as connection:
        for _ in range(2):
            connection.sendall(chunked)
            assert read_answer(connection) == (200, b"one")
        connection.sendall(chunked + chunked)
        assert read_answer(connection) == (200, b"one")
        assert is_closed(connection)
    assert app.bodies == [b"one"] * 3


def test_nothing_is_parsed_behind_a_request_that_closes_the_connection() -> None:
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(b"POST /slow HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n" + POST % (b"", 2, b"no"))
        app.release.set()
        assert read_answer(connection) == (200, b"")
        assert is_closed(connection)
    assert app.bodies == [b""]


_MANY = 20 * 1024 * 1024


@pytest.mark.parametrize(
    ("path", "header"),
    [
        (b"early", b""),
        (b"early-and-close", b""),
        pytest.param(b"early", b"connection: close\r\n", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("secure", [False, True])
def test_an_answer_before_the_body_reaches_a_client_that_still_sends(
    path: bytes, header: bytes, *, secure: bool, authority: trustme.CA, tls: ServerTlsSettings
) -> None:
    with serving(echo_server(tls=tls if secure else None)) as running, contextlib.ExitStack() as stack:
        connection = stack.enter_context(running.connect())
        if secure:
            connection = trusting(authority).wrap_socket(connection, server_hostname="127.0.0.1")
            stack.enter_context(connection)
        body = bytes(_MANY)
        connection.sendall(b"POST /%s HTTP/1.1\r\nhost: test\r\n%scontent-length: %d\r\n\r\n" % (path, header, _MANY))
        tracemalloc.start()
        try:
            connection.sendall(body)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert read_answer(connection) == (413, b"too large")
        assert peak < _MANY / 4
        if not secure:
            assert is_closed(connection)


def test_an_answer_instead_of_100_continue_ends_the_connection() -> None:
    expecting = b"POST /%s HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    with serving(echo_server()) as running, running.connect() as patient, running.connect() as refused:
        patient.sendall(expecting % b"")
        assert read_answer(patient) == (100, b"")
        patient.sendall(b"hi")
        assert read_answer(patient) == (200, b"hi")
        refused.sendall(expecting % b"early")
        assert read_answer(refused) == (413, b"too large")
        assert is_closed(refused)


def test_an_offer_to_switch_the_protocol_never_changes_where_a_body_ends() -> None:
    app = EchoApp()
    inner = b"POST /smuggled HTTP/1.1\r\nhost: test\r\n\r\n"
    offering = b"POST / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n"
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(offering % len(inner))
        assert app.entered.wait(LONG)
        connection.sendall(inner)
        assert read_answer(connection) == (200, inner)
        connection.sendall(offering % 2 + b"hi")
        assert read_answer(connection) == (200, b"hi")
    assert app.bodies == [inner, b"hi"]


@pytest.mark.parametrize("version", [b"0.9", b"1.2", b"2.0"])
def test_another_version_of_http_is_505(version: bytes) -> None:
    with serving(echo_server()) as running, running.connect() as connection:
        connection.sendall(b"POST / HTTP/%s\r\nhost: test\r\n\r\n" % version)
        assert read_answer(connection)[0] == 505
        assert is_closed(connection)


@pytest.mark.parametrize("behind", [b" ", b"\t", b" \t", b"\t ", b"\t \t "])
def test_whitespace_behind_a_value_is_not_a_part_of_it(behind: bytes) -> None:
    app = EchoApp()
    fields = b"host: test%s\r\ntransfer-encoding: chunked%s\r\nx: a b%s\r\n" % (behind, behind, behind)
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\n" + fields + b"\r\n2\r\nhi\r\n0\r\n\r\n")
        assert read_answer(connection) == (200, b"hi")
    assert app.headers == [[(b"host", b"test"), (b"transfer-encoding", b"chunked"), (b"x", b"a b")]]


def test_http_1_0_needs_no_host_and_ends_the_connection() -> None:
    with serving(echo_server()) as running, running.connect() as connection:
        connection.sendall(b"POST / HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi")
        assert read_answer(connection) == (200, b"hi")
        assert is_closed(connection)


def test_trailers_are_no_headers() -> None:
    app = EchoApp()
    chunked = b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n%s\r\n"
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(chunked % b"2\r\nhi\r\n0\r\nx-signature: forged")
        connection.sendall(b"\r\n")
        assert read_answer(connection) == (200, b"hi")
    assert [name for name, _ in app.headers[0]] == [b"host", b"transfer-encoding"]


@pytest.mark.parametrize("begun", [b"2;", b"2\r\nhi\r\n0\r\nx: "])
def test_trailers_and_chunk_extensions_without_an_end_are_a_body_cut_short(begun: bytes) -> None:
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n" + begun)
        connection.sendall(b"a" * 16 * MAX_HEADER_BYTES)
        assert read_answer(connection) == (400, b"truncated")


def test_falcon_serves_http_1_0_as_proxies_speak_it() -> None:
    class Resource:
        async def on_post(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
            response.media = {"bytes": len(await request.stream.read())}

    app = falcon.asgi.App()
    app.add_route("/", Resource())
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(b"POST / HTTP/1.0\r\nhost: test\r\ncontent-length: 2\r\n\r\nhi")
        assert read_answer(connection) == (200, b'{"bytes": 2}')
        assert is_closed(connection)
