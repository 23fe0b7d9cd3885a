"""Answers of the HTTP server: streams, answers without a body, and applications that break their own promises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import falcon.asgi
import pytest

from statsig_otel.plugin.server.asgi_types import Receive, Scope, Send
from tests.plugin.server.echo import LONG, POST, echo_server, read_to_end, read_until, serving
from tests.waiting import wait_until

GET = b"GET / HTTP/1.%d\r\nhost: test\r\n\r\n"


class Streaming:
    """Sends parts of an answer as a test lets it, and sees how the request ends."""

    def __init__(self, *headers: tuple[bytes, bytes]) -> None:
        self.headers = list(headers)
        self.parts: asyncio.Queue[bytes] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.left = threading.Event()

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        self.parts, self.loop = asyncio.Queue(), asyncio.get_running_loop()
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        watching = asyncio.create_task(self._watch(receive))
        while part := await self.parts.get():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})
        await watching

    async def _watch(self, receive: Receive) -> None:
        assert (await receive())["type"] == "http.disconnect"
        self.left.set()

    def put(self, part: bytes) -> None:
        wait_until(lambda: self.parts is not None)
        assert self.loop is not None
        assert self.parts is not None
        self.loop.call_soon_threadsafe(self.parts.put_nowait, part)


def test_an_answer_without_a_length_is_streamed_on_a_connection_that_is_kept() -> None:
    app = Streaming((b"content-type", b"text/plain"))
    with serving(echo_server(app)) as running, running.connect() as connection:
        for _ in range(2):
            connection.sendall(GET % 1)
            app.put(b"one")
            head = read_until(connection, b"\r\n\r\n3\r\none\r\n")
            assert b"transfer-encoding: chunked\r\n" in head
            app.put(b"three")
            assert read_until(connection, b"\r\n") == b"5\r\nthree\r\n"
            app.put(b"")
            assert read_until(connection, b"0\r\n\r\n") == b"0\r\n\r\n"
            app.parts = None


def test_a_stream_over_http_1_0_ends_with_the_connection() -> None:
    app = Streaming()
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(GET % 0)
        for part in (b"one", b"two", b""):
            app.put(part)
        head, _, body = read_to_end(connection).partition(b"\r\n\r\n")
        assert body == b"onetwo"
        assert b"connection: close" in head
        assert b"chunked" not in head


def test_an_application_learns_that_the_client_of_its_stream_has_left() -> None:
    app = Streaming()
    with serving(echo_server(app)) as running:
        with running.connect() as connection:
            connection.sendall(GET % 1)
            app.put(b"one")
            read_until(connection, b"one\r\n")
        for _ in range(3):  # the first write after the end may still succeed
            app.put(b"more")
        assert app.left.wait(LONG)
        app.put(b"")


def test_a_stream_waits_for_a_client_that_does_not_read() -> None:
    sent = 0

    async def app(_: Scope, __: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _part in range(1000):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
            sent += 1 << 16

    with serving(echo_server(app, read_header_timeout=0.5)) as running, running.connect() as connection:
        connection.sendall(GET % 1)
        connection.settimeout(LONG)
        assert connection.recv(1)
        threading.Event().wait(0.3)
        assert sent < 1000 << 16


def test_falcons_server_sent_events_are_streamed() -> None:
    class Events:
        async def on_get(self, _: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
            response.sse = self.emit()

        async def emit(self) -> AsyncIterator[falcon.asgi.SSEvent]:
            for number in range(2):
                yield falcon.asgi.SSEvent(json={"number": number})

    app = falcon.asgi.App()
    app.add_route("/", Events())
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(GET % 1)
        answer = read_until(connection, b"0\r\n\r\n")
        assert b"content-type: text/event-stream" in answer
        assert answer.count(b"data: {") == 2


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
def test_an_answer_without_a_body_has_none_and_the_connection_is_kept(method: bytes, status: int) -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})

    with serving(echo_server(app)) as running, running.connect() as connection:
        for _ in range(2):
            connection.sendall(method + b" / HTTP/1.1\r\nhost: test\r\n\r\n")
            assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("body", [b"more than five", b"less", b""])
def test_an_answer_of_another_length_than_declared_is_cut_off(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The client must not take it for a whole one, or its rest for the next answer."""

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": body})

    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(POST % (b"", 0, b""))
        assert read_to_end(connection) == b""
    assert "does not have the length" in caplog.text


def test_an_application_that_stops_in_the_middle_of_its_answer_is_cut_off() -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})

    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(GET % 1)
        assert not read_to_end(connection).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("kinds", [["body"], ["start", "start"], ["start", "body", "body"], ["trailers"]])
def test_parts_of_an_answer_out_of_order_are_errors_of_the_application(
    kinds: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        for kind in kinds:
            await send({"type": f"http.response.{kind}", "status": 200, "headers": []})

    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") % 1)
        answer = read_to_end(connection)
        assert answer[9:12] == {1: b"500", 2: b"", 3: b"200"}[len(kinds)]
    assert "is out of order in an answer" in caplog.text


def test_several_tasks_of_an_application_can_wait_for_the_end_of_a_request() -> None:
    ended: list[str] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()

        async def wait() -> None:
            ended.append((await receive())["type"])

        async with asyncio.TaskGroup() as waiting:
            for _task in range(2):
                waiting.create_task(wait())
            given_up = waiting.create_task(wait())
            await asyncio.sleep(0.05)
            given_up.cancel()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x"})

    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(GET % 1)
        read_until(connection, b"\r\n\r\nx")
        wait_until(lambda: len(ended) == 2)
    assert ended == ["http.disconnect"] * 2
