"""The steps of attacks that take more than one request, or more than bytes."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from statsig_otel.plugin.receiver.bodies import SMALL_BODY, Limits
from statsig_otel.plugin.server.asgi_types import Receive, Scope, Send
from statsig_otel.plugin.server.reader import MAX_HEADER_BYTES
from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER
from tests.attacks.attack import PATIENCE, Serve, Site, awaited, until_closed
from tests.plugin.adapters import CHANGE, SECRET, VERIFICATION, body_of, signed
from tests.plugin.http_client import request
from tests.plugin.server.echo import (
    POST,
    EchoApp,
    echo_server,
    is_closed,
    is_cut_off,
    read_answer,
    read_to_end,
    read_until,
    serving,
)
from tests.plugin.server.stepping import accepting
from tests.waiting import wait_until

BODY: Final = body_of(CHANGE)


LONG: Final = b"a" * MAX_HEADER_BYTES

MOST_KEPT: Final = (64 + 256) << 10
"""Bytes that may wait for an application: above 64 KiB no more are read, and one read takes at most 256 KiB."""


def webhook(**headers: str) -> bytes:
    """A signed webhook, with more headers."""
    return request(BODY, headers={**signed(BODY), **{name.replace("_", "-"): value for name, value in headers.items()}})


def hidden_request() -> bytes:
    """A signed webhook behind the end of a request: what an attacker may want to smuggle past a proxy."""
    return webhook()


def head(*lines: bytes, target: bytes = b"/hook") -> bytes:
    return b"\r\n".join((b"POST %s HTTP/1.1" % target, b"host: test", *lines, b"", b""))


def chunked(*parts: bytes) -> bytes:
    """A request whose headers are signed as for an empty body."""
    fields = [f"{name}: {value}".encode() for name, value in signed(b"").items()]
    return head(b"transfer-encoding: chunked", *fields) + b"".join(parts)


def signed_chunked(body: bytes, framed: bytes) -> bytes:
    """A request whose headers are signed for a body that its chunks may or may not contain."""
    fields = [f"{name}: {value}".encode() for name, value in signed(body).items()]
    return head(b"transfer-encoding: chunked", *fields) + framed


def slow_header(serve: Serve) -> None:
    with serve(read_header_timeout=1.0) as site, site.connect() as silent, site.connect() as slow:
        slow.sendall(b"POST /hook HTTP/1.1\r\nho")
        slow.settimeout(0.1)
        deadline = time.monotonic() + PATIENCE
        while not is_closed_in_time(slow):  # a byte now and then does not move the deadline
            assert time.monotonic() < deadline
            with contextlib.suppress(ConnectionError):
                slow.sendall(b"o")
        assert is_closed_in_time(silent)
        assert site.is_well()


def is_closed_in_time(connection: socket.socket) -> bool:
    try:
        return is_closed(connection)
    except TimeoutError:
        return False


def slow_body(serve: Serve) -> None:
    with serve(limits=Limits(read_timeout=0.3)) as site, site.connect() as slow:
        slow.sendall(webhook()[:-1])
        assert awaited(slow).status == 408
        assert not site.taken.batches
        assert site.is_well()


def idle_connections(serve: Serve) -> None:
    with serve(read_header_timeout=600.0, max_connections=8) as site, contextlib.ExitStack() as stack:
        for number in range(24):
            connection = stack.enter_context(site.connect())
            connection.sendall(
                (b"", b"POST /hook HT", request(VERIFICATION), request(BODY, headers={"Content-Length": "99"}))[
                    number % 4
                ]
            )
        assert site.is_well()


def trickling_connections(serve: Serve) -> None:
    """One sends a byte again, later than a signed webhook whose last byte is late."""
    with serve(max_connections=2) as site, contextlib.ExitStack() as stack:
        trickling, late, whole = stack.enter_context(site.connect()), stack.enter_context(site.connect()), webhook()
        trickling.sendall(chunked(b"ffff\r\nx"))
        wait_for_bodies(site, 1)
        late.sendall(whole[:-1])
        wait_for_bodies(site, len(BODY))
        trickling.sendall(b"x")
        wait_for_bodies(site, len(BODY) + 1)
        time.sleep(0.35)  # both have waited for long enough to make room
        assert site.is_well()
        late.sendall(whole[-1:])
        assert awaited(late).status == 200
        assert is_closed_in_time(trickling)


class BusyApp(EchoApp):
    """`/hold` blocks the loop until `go_on` is set, so that what clients do meanwhile is found all at once."""

    def __init__(self) -> None:
        super().__init__()
        self.holding, self.go_on = threading.Event(), threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/hold":
            self.holding.set()
            self.go_on.wait(PATIENCE)
        await super().__call__(scope, receive, send)


def connections_to_a_busy_server(_: Serve) -> None:
    """The loop stands still, so it is not the client's fault that nothing was heard from it."""
    app = BusyApp()
    with serving(echo_server(app, max_connections=2)) as running, contextlib.ExitStack() as stack:
        webhook = stack.enter_context(running.connect())
        webhook.sendall(POST % (b"", 0, b""))
        assert read_answer(webhook)[0] == 200
        time.sleep(0.15)  # it has waited for long enough
        stack.enter_context(running.connect()).sendall(POST % (b"hold", 0, b""))
        assert app.holding.wait(PATIENCE)
        stack.enter_context(running.connect())  # before the bytes, so that it is accepted before they are read
        webhook.sendall(POST % (b"", 4, b"sent"))
        app.go_on.set()
        answer = awaited(webhook)
        assert (answer.status, answer.body) == (200, b"sent")


def connections_to_a_slow_server(_: Serve) -> None:
    """A round of its loop takes longer than a client may be silent, and the first bytes are read in the third one."""

    async def attacked() -> None:
        connections, address = accepting(EchoApp(), most=1)
        with socket.create_connection(address, PATIENCE) as webhook, socket.create_connection(address, PATIENCE):
            webhook.sendall(POST % (b"", 4, b"sent"))
            for _ in range(6):
                time.sleep(0.12)  # noqa: ASYNC251 - this is the round's other work
                connections.accept()  # as whatever happens to another connection calls it
                await asyncio.sleep(0)
            answer = await asyncio.to_thread(awaited, webhook)
            assert (answer.status, answer.body) == (200, b"sent")
        await connections.cut_off()

    asyncio.run(attacked())


def unread_answers(_: Serve) -> None:
    """The receiver's answers are small, so this one attacks an application with large ones."""
    with serving(echo_server(read_header_timeout=0.3)) as running, running.connect() as connection:
        connection.sendall(POST % (b"", 20 << 20, bytes(20 << 20)))
        assert is_cut_off(connection, PATIENCE), "the whole answer is kept for a client that does not read"


def piled_up_answers(_: Serve) -> None:
    """The second request is not read before the answer to the first one, which is more than the system keeps."""
    app, size = EchoApp(), 20 << 20
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.sendall(POST % (b"", size, bytes(size)))
        wait_until(lambda: app.bodies, "the first request", within=PATIENCE)
        connection.sendall(POST % (b"", 6, b"second"))
        with contextlib.suppress(AssertionError):
            wait_until(lambda: len(app.bodies) > 1, within=1.0)
        assert len(app.bodies) == 1, "the answers are kept for a client that does not read"
        assert read_until(connection, b"second").count(b"HTTP/1.1 200 ") == 2


def endless_body(_: Serve) -> None:
    send_to_nobody(b"content-length: %d" % (1 << 30), bytes(64 << 10))


def endless_chunks(_: Serve) -> None:
    """As above, with more chunks than one turn reads."""
    send_to_nobody(b"transfer-encoding: chunked", (b"40\r\n" + bytes(64) + b"\r\n") * 1000)


def send_to_nobody(framing: bytes, part: bytes) -> None:
    """Send a body until the application, which does not read, is full. The first it gets is what was kept for it."""
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        connection.settimeout(0.5)
        connection.sendall(b"POST /unread HTTP/1.1\r\nhost: test\r\n%s\r\n\r\n" % framing)
        with contextlib.suppress(TimeoutError):
            for _ in range((4 << 20) // len(part)):
                connection.sendall(part)
        app.release.set()
        wait_until(lambda: app.sizes, "the application", within=PATIENCE)
    assert app.sizes[0] <= MOST_KEPT, f"{app.sizes[0]} bytes were read, and nobody had asked for them"


def pipelined(serve: Serve) -> None:
    with serve() as site:
        answer = site.answer(request(VERIFICATION) + hidden_request() * 3000)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert not site.taken.batches
        assert site.is_well()
    app = LateApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(POST % (b"", 0, b""))
        wait_until(lambda: app.bodies, "the first request", within=PATIENCE)
        connection.sendall(POST % (b"", 6, b"second"))
        app.release.set()
        answer = until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1 ") == 1


class LateApp(EchoApp):
    """Answers some rounds of the loop after `release`, in which what clients send meanwhile is read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_late(message: Any) -> None:
            await self._until_released()
            for _ in range(5):
                await asyncio.sleep(0.01)
            await send(message)

        await super().__call__(scope, receive, send_late)


def smuggled(serve: Serve) -> None:
    """Each first request is answered, and the second one, which is hidden, is not taken."""
    with serve() as site:
        hidden = hidden_request()
        for first in (
            request(VERIFICATION) + hidden,
            head(b"connection: upgrade", b"upgrade: h2c", b"content-length: %d" % len(hidden)) + hidden,
            head(b"transfer-encoding: chunked") + b"0\r\n\r\n" + hidden,
            head(b"connection: close") + hidden,
            head(b"expect: 100-continue", b"content-length: 100000") + hidden,
        ):
            answer = site.answer(first)
            assert len(answer.split(b"HTTP/1.1 ")) == 2, answer
            assert not site.taken.batches
        assert site.is_well()


def offered_another_protocol(serve: Serve) -> None:
    """As Java's client does by default: the server goes on with HTTP/1.1, and reads the whole body."""
    with serve() as site, site.connect() as connection:
        connection.sendall(webhook(Connection="Upgrade, HTTP2-Settings", Upgrade="h2c", HTTP2_Settings="AAMAAABkAAQ"))
        assert awaited(connection).status == 200
        assert len(site.taken.batches) == 1


def refused_and_kept(serve: Serve) -> None:
    with serve() as site:
        for refused in (request(), request(BODY), request(method="GET"), request(path="/other")):
            with site.connect() as connection:
                connection.sendall(refused)
                assert awaited(connection).status >= 400
                assert is_closed_in_time(connection)


def answer_under_fire(serve: Serve) -> None:
    """The answer arrives, although the client still sends and reads only later."""
    with serve() as site, site.connect() as connection:
        size = 8 << 20
        connection.sendall(request(headers={"Content-Length": str(size)}))
        try:
            connection.sendall(bytes(size))
        except ConnectionError as error:
            raise AssertionError("the connection is closed before the answer is read") from error
        assert awaited(connection).status == 401


def unfinished_bodies(serve: Serve) -> None:
    """Together they would have all the memory until `read_timeout`, down to the last byte."""
    limits = Limits(max_request_body_size=1000, max_in_flight_bytes=1000)
    with serve(limits=limits) as site, contextlib.ExitStack() as stack:
        unfinished = []
        for size, together in ((600, 600), (398, 998), (1, 999), (1, 1000)):
            unfinished.append(stack.enter_context(site.connect()))
            unfinished[-1].sendall(request(bytes(size + 1), headers=signed(b""))[:-1])
            wait_for_bodies(site, together)
        assert site.is_well()
        for connection, status in zip(unfinished, (408, 401, 401, 401), strict=True):
            connection.sendall(b"x")
            assert awaited(connection).status == status


def large_unfinished_bodies(serve: Serve) -> None:
    """Beside a signed webhook whose last byte is late."""
    whole, large = webhook(), request(bytes(3 * SMALL_BODY), headers=signed(b""))[:-1]
    limits = Limits(max_request_body_size=3 * SMALL_BODY, max_in_flight_bytes=8 * SMALL_BODY)
    with serve(limits=limits) as site, site.connect() as late, contextlib.ExitStack() as stack:
        late.sendall(whole[:-1])
        wait_for_bodies(site, len(BODY) - 1)
        first, second, third = (stack.enter_context(site.connect()) for _ in range(3))
        first.sendall(large)
        second.sendall(large)
        two = len(BODY) - 1 + 2 * (3 * SMALL_BODY - 1)
        wait_for_bodies(site, two)
        third.sendall(large[:-1])
        wait_for_bodies(site, two - 1)
        late.sendall(whole[-1:])
        assert awaited(late).status == 200
        assert len(site.taken.batches) == 1
        for connection, last, status in ((first, b"\0", 408), (second, b"\0", 401), (third, b"\0\0", 401)):
            connection.sendall(last)
            assert awaited(connection).status == status


def wait_for_bodies(site: Site, size: int) -> None:
    wait_until(lambda: site.intake.bodies.size == size, "the bodies", within=PATIENCE)


def cut_short(serve: Serve) -> None:
    """uvicorn gives no answer to a client that has closed its sending side."""
    with serve() as site:
        for whole in (
            webhook(),
            request(BODY, headers=signed(BODY[:-1])),
            signed_chunked(BODY, b"%x\r\n%s" % (len(BODY), BODY)),
        ):
            with site.connect() as connection:
                connection.sendall(whole[:-1])
                connection.shutdown(socket.SHUT_WR)
                answer = read_to_end(connection)[:12]
                assert answer == b"HTTP/1.1 400" or (not answer and not site.ends), whole
        assert not site.taken.batches
        assert site.is_well()


def too_large(*, declared: bool) -> Any:
    def act(serve: Serve) -> None:
        body = bytes(3000)
        with serve(limits=Limits(max_request_body_size=2000)) as site:
            data = (
                request(headers={"Content-Length": "2001", **signed(b"")})
                if declared
                else request(body, headers=signed(body), chunk=500)
            )
            answer = site.answer(data)
            assert answer.startswith(b"HTTP/1.1 413"), answer
            assert not site.taken.batches
            assert site.is_well()

    return act


def unsigned_body(serve: Serve) -> None:
    with serve() as site, site.connect() as declared, site.connect() as chunked:
        declared.sendall(request(headers={"Content-Length": "5000"}))
        assert awaited(declared).status == 401
        chunked.sendall(head(b"transfer-encoding: chunked") + b"1389\r\n" + bytes(4097))
        assert awaited(chunked).status == 401


def without_sniffing(serve: Serve) -> None:
    with serve() as site:
        for data in (b"hello\r\n\r\n", request(method="GET"), request(), webhook()):
            assert (
                b"\r\nx-content-type-options: nosniff\r\n"
                in site.answer(data.replace(b"Host: test", b"Host: test\r\nConnection: close")).lower()
            )


def signed_at(offset_ms: int) -> Any:
    return lambda: request(BODY, headers=signed(BODY, at_ms=time.time_ns() // 1_000_000 + offset_ms))


def forged(**changes: str) -> Any:
    return lambda: request(
        BODY, headers={**signed(BODY), **{name.replace("_", "-"): value for name, value in changes.items()}}
    )


def in_another_form(headers: dict[str, str], change: Callable[[str], str]) -> dict[str, str]:
    """Headers with a changed signature."""
    return {**headers, SIGNATURE_HEADER: change(headers[SIGNATURE_HEADER])}


def changed_digit(headers: dict[str, str]) -> dict[str, str]:
    """A signature whose last digit is another one."""
    return in_another_form(headers, lambda right: right[:-1] + ("1" if right.endswith("0") else "0"))


def signed_with_time(body: bytes, form: str) -> dict[str, str]:
    """A right signature with a timestamp that is written otherwise."""
    timestamp = form % (time.time_ns() // 1_000_000)
    digest = hmac.digest(SECRET.encode(), f"v0:{timestamp}:".encode() + body, "sha256").hex()
    return {SIGNATURE_HEADER: f"v0={digest}", TIMESTAMP_HEADER: timestamp}


def with_part_of_body(headers: dict[str, str]) -> dict[str, str]:
    """The timestamp takes the first byte of the body, as far as a signature can tell."""
    return {**headers, TIMESTAMP_HEADER: f"{headers[TIMESTAMP_HEADER]}:{BODY[:1].decode()}"}
