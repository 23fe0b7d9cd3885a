"""One request and its answer, as the ASGI application sees them."""

import asyncio
import logging
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, Protocol

from statsig_otel.exporters.wording import phrase_of
from statsig_otel.plugin.server.asgi_types import AsgiApp, Message, Receive, Scope, Send
from statsig_otel.plugin.server.reader import Head, RequestReader

_logger: Final = logging.getLogger(__name__)

_DISCONNECT: Final[Message] = {"type": "http.disconnect"}
_BODY_BEGINS: Final[Message] = {"type": "http.request", "body": b"", "more_body": True}
_NO_BODY: Final[Message] = {"type": "http.request", "body": b"", "more_body": False}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


def without_body(app: AsgiApp) -> AsgiApp:
    """An application that has no use for the bodies of its requests, and so does not wait for one that never arrives.

    Falcon waits for the first part of a body before it looks for the route.
    """

    async def serve(scope: Scope, _: Receive, send: Send) -> None:
        await app(scope, _no_body, send)

    return serve


async def _no_body() -> Message:
    return _NO_BODY


def late_body(app: AsgiApp) -> AsgiApp:
    """An application that waits for the body of a request only where it reads it, and limits the time for that.

    It first gets an empty part of each body.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        parts = iter([_BODY_BEGINS])

        async def receive_late() -> Message:
            return next(parts, None) or await receive()

        await app(scope, receive_late, send)

    return serve


class Channel(Protocol):
    """The connection of an exchange."""

    def write(self, data: bytes | bytearray) -> None:
        """Send bytes; nothing if the connection is closed."""

    def read_on(self) -> None:
        """Read on: the application has taken the part of the body that had arrived."""

    async def until_sent(self) -> None:
        """Wait while the client does not read."""

    def is_last(self) -> bool:
        """Whether the connection can't be used for another request."""

    def answered(self, *, last: bool) -> None:
        """The answer is complete. The last one closes the connection."""

    def abort(self) -> None:
        """Close at once: the client must not take a part of an answer for all of it."""


class Exchange:
    """Gives the application the body of one request as it arrives, and sends its answer.

    The head of an answer is sent with the first part of its body, in one write. An answer without a Content-Length is
    sent in chunks. An answer of 400 or more closes the connection: keep-alive is not for clients that were refused.
    """

    def __init__(self, head: Head, reader: RequestReader, channel: Channel) -> None:
        self._head = head
        self._reader = reader
        self._channel = channel
        self._arrival: asyncio.Event | None = None  # the application waits for more of the body
        self._ended = False  # no more of the body comes, or the answer is complete
        self._all_taken = False  # the application has the whole body
        self._continue = head.expects_continue
        self._start: bytearray | None = None  # the head of the answer, until it is sent
        self._begun = False
        self._last = False
        self._bodiless = False
        self._left: int | None = None  # bytes of the answer's body that are still to come; None if it has no length
        self._complete = False

    def arrived(self) -> None:
        """More of the body has arrived."""
        if self._arrival is not None:
            self._arrival.set()

    def end(self) -> None:
        """No more of the body comes: it was cut short, or the client has left."""
        self._ended = True
        self.arrived()

    async def run(self, app: AsgiApp, scope: Scope) -> None:
        """Call the application. If it fails before it begins to answer, the answer is 500."""
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:  # only the end of the event loop cancels a request
            self._channel.abort()
            return
        except Exception:  # whatever it is, the client gets an answer
            _logger.exception("the application failed")
        if not self._complete:
            if self._begun:
                self._channel.abort()
            else:
                await self.send({"type": "http.response.start", "status": HTTPStatus.INTERNAL_SERVER_ERROR})
                await self.send({"type": "http.response.body"})

    async def receive(self) -> Message:
        """The next ASGI event: a part of the body, or a disconnect."""
        while True:
            reader = self._reader
            if reader.body or (reader.is_complete and not self._all_taken):
                body = bytes(reader.body)
                reader.body.clear()
                self._all_taken = reader.is_complete
                if not self._all_taken:
                    self._channel.read_on()
                return {"type": "http.request", "body": body, "more_body": not self._all_taken}
            if self._ended:
                return _DISCONNECT
            if self._continue and not self._begun:
                self._continue = False
                self._channel.write(_CONTINUE)
            self._arrival = self._arrival or asyncio.Event()
            self._arrival.clear()
            await self._arrival.wait()

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a part of the answer.

        Raises:
            RuntimeError: The application does not keep to ASGI, or to its own Content-Length.
        """
        if message["type"] == "http.response.start" and not self._begun:
            self._begin(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body" and self._begun and not self._complete:
            more = bool(message.get("more_body"))
            self._channel.write(self._encode(message.get("body", b""), more=more))
            if more:
                await self._channel.until_sent()
            else:
                self._complete = True
                self.end()
                self._channel.answered(last=self._last)
        else:
            raise RuntimeError(f"{message['type']} is out of order in an answer")

    def _begin(self, status: int, headers: Any) -> None:
        self._begun = True
        self._last = status >= HTTPStatus.BAD_REQUEST or self._channel.is_last()
        self._bodiless = self._head.method == "HEAD" or status in _BODILESS
        start = answer_head(status)
        for name, value in headers:
            if name == b"connection":
                self._last = self._last or b"close" in value.lower()
            elif name != b"x-content-type-options":  # every answer has it already
                if name == b"content-length":
                    self._left = int(value)
                start += b"%s: %s\r\n" % (name, value)
        self._start = start

    def _encode(self, body: bytes, *, more: bool) -> bytearray:
        """The next bytes to send.

        Raises:
            RuntimeError: The body is longer or shorter than its Content-Length.
        """
        start, self._start = self._start, None
        if start is not None:
            self._decide_framing(start, None if more else len(body))
        out = start or bytearray()
        if self._bodiless:
            return out
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the answer does not have the length that its Content-Length says")
            out += body
        elif self._head.version == "1.0":
            out += body
        else:
            if body:
                out += b"%x\r\n%s\r\n" % (len(body), body)
            if not more:
                out += b"0\r\n\r\n"
        return out

    def _decide_framing(self, start: bytearray, length: int | None) -> None:
        """Finish the answer's head. `length` is that of a body that is given as a whole."""
        if self._left is None and not self._bodiless:
            if length is not None:
                self._left = length
                start += b"content-length: %d\r\n" % length
            elif self._head.version == "1.0":
                self._last = True  # the end of the connection is the end of the body
            else:
                start += b"transfer-encoding: chunked\r\n"
        start += b"connection: close\r\n\r\n" if self._last else b"\r\n"


def answer_head(status: int) -> bytearray:
    """The status line, and the headers that every answer has. Others may follow, and an empty line ends them."""
    return bytearray(_status_and_date(status, int(time.time())))


@lru_cache(maxsize=8)
def _status_and_date(status: int, second: int) -> bytes:
    date = formatdate(second, usegmt=True)
    return f"HTTP/1.1 {status:d} {phrase_of(status)}\r\ndate: {date}\r\nx-content-type-options: nosniff\r\n".encode()
