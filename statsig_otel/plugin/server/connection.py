"""One HTTP/1.1 connection: uvicorn's protocol on httptools, with the bounds that a public receiver needs.

uvicorn parses, calls the application, and has flow control. Added here, because it has none of it:

- a deadline for a whole header, which an idle connection has too; one for a client that does not read its answers;
- a bound for the bytes in a row that are no body: headers, trailers, chunk extensions;
- an answer for a client that has ended its side, and an application that sees a body cut short;
- an end that does not destroy the answer: closing a socket on which data still arrives resets it (RFC 9112, 9.6);
- one reader of a request's framing: what follows an error or a last request is never parsed, an offer to switch the
  protocol never changes where a body ends, trailers are no headers, and pipelined requests are not piled up.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from statsig_otel.plugin.server.asgi_types import AsgiApp, Message, Scope, Send

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

_log = logging.getLogger(__name__)

MAX_HEADER_BYTES: Final = 64 * 1024
"""The bound for a request line and headers; past it the answer is 431. For trailers and chunk extensions too."""

_MAX_FIELDS: Final = 100  # header fields of a request; past it the answer is 431 too
_LINGER: Final = 5.0  # seconds in which a closing connection takes and drops what the client still sends
_DISCONNECT: Final[Message] = {"type": "http.disconnect"}


class HttpConnection(HttpToolsProtocol):
    """One accepted connection.

    Args:
        config: uvicorn's; of it the application and few switches are used.
        state: Shared by the connections of one server. The owner adds this connection to it; it leaves by itself.
        app: Called for each request.
        header_timeout: Seconds for a whole header, from the connection or from the end of the answer before.
        on_lost: Called when the connection is gone.
    """

    def __init__(
        self, config: Config, state: ServerState, *, app: AsgiApp, header_timeout: float, on_lost: Callable[[], None]
    ) -> None:
        super().__init__(config, state, {})
        # uvicorn's own parses on behind a request that said "close".
        self.parser: httptools.HttpRequestParser = httptools.HttpRequestParser(self)
        self.access_log = False
        self.timeout_keep_alive = header_timeout  # type: ignore[assignment]  # fractions are as good
        self._application = app
        self._on_lost = on_lost
        self._request: _Request | None = None
        self._raw: asyncio.Transport | None = None
        self._unbroken = 0  # bytes since the last that were body, or ended a header or a message
        self._in_message = False
        self._status = HTTPStatus.BAD_REQUEST  # of a refusal
        self._deaf = False  # what still comes is dropped
        self._ended = False  # by the client
        self._closing = False
        self._last = False  # the next answer is the last one
        self._unsent = math.inf  # bytes of answers that were not sent at the deadline before

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, with the deadline for the first header."""
        self._raw = transport = cast("asyncio.Transport", transport)
        super().connection_made(_LingeringTransport(transport, self))
        self.flow: _PipelineFlowControl = _PipelineFlowControl(transport, self.pipeline)
        self._expire_after(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application, and the owner."""
        self._closing = True
        super().connection_lost(exc)
        if self._request is not None:
            self.cycle.body = bytearray()  # nobody reads it any more, and the garbage collector may look late
        self._cancel_timer()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Parse; refuse what is no HTTP, or too long."""
        if self._deaf or self._closing:
            return
        self._unbroken += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(self._status)
        else:
            if self._unbroken > MAX_HEADER_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn says None, asyncio says bool
        """Whether an answer is still to come: then the connection stays. TLS can not be ended on one side here."""
        self._ended = True
        if self._closing or not self._is_pending():
            return False
        self._end_after_answer()
        return self.scheme == "http"

    def pause_writing(self) -> None:
        """Give a client that does not read as much time as one that does not write."""
        super().pause_writing()
        if not self._closing:
            self._expire_after(self.timeout_keep_alive)

    def resume_writing(self) -> None:
        """Take that deadline back. The one of an idle connection stays."""
        super().resume_writing()
        self._unsent = math.inf
        if not self._closing and self._is_pending():
            self._cancel_timer()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Note that a request has begun."""
        self._in_message = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check the header, and start the application."""
        self._unbroken = 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        version = self.parser.get_http_version()
        if size > MAX_HEADER_BYTES or len(self.headers) > _MAX_FIELDS:
            self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        elif version not in ("1.0", "1.1"):
            self._status = HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
        elif self.parser.get_method() == b"CONNECT":
            self._status = HTTPStatus.NOT_IMPLEMENTED
        if self._status != HTTPStatus.BAD_REQUEST:
            raise ValueError(self._status)
        if self.parser.should_upgrade():
            return
        if not self.flow.write_paused:
            self._cancel_timer()
        if version == "1.0":
            self.expect_100_continue = False
        self.server_state.default_headers = _date_header(int(time.time()))
        request = _Request(self._application)
        self.app = request  # for this one request: uvicorn's cycle must be known to it
        super().on_headers_complete()
        request.cycle = self.cycle
        self._request = request
        # A client that waits for "100 Continue" may send its body or not, when it gets another answer.
        if self.expect_100_continue or self._last:
            self.cycle.keep_alive = False
        self.headers: list[tuple[bytes, bytes]] = []  # trailers go here: the scope has its own

    def on_body(self, body: bytes) -> None:
        """Hand a piece of the body on."""
        self._unbroken = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that a request has ended."""
        if self.parser.should_upgrade():
            return
        self._unbroken = 0
        self._in_message = False
        super().on_message_complete()

    # What uvicorn, the owner and the timer call.

    def on_response_complete(self) -> None:
        """Go on with the next request. The deadline of a client that does not read goes on too."""
        super().on_response_complete()
        if self.flow.write_paused:
            self.pause_writing()

    def shutdown(self) -> None:
        """Let this be the last request. A connection that was never used, or has begun a header, may still send it."""
        self._last = True
        if self._is_pending():
            self.cycle.keep_alive = False
        elif self._request is not None and not self._in_message:
            self.transport.close()

    def is_unused(self) -> bool:
        """Whether no request is waiting for its answer, and no answer for its end."""
        return not (self._closing or self._is_pending())

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        if self._raw is not None:
            self._raw.abort()

    def close(self) -> None:
        """Close, after what was written, and so that it arrives."""
        if self._closing or self._raw is None:
            return
        self._closing = True
        self.pipeline.clear()
        if self._ended or not self._in_message:
            self._raw.close()
        else:
            if self._raw.can_write_eof():
                self._raw.write_eof()
            self.flow.resume_reading()
        self._expire_after(_LINGER)

    def timeout_keep_alive_handler(self) -> None:
        """Give up, where the client has not taken a part of its answer since the deadline before."""
        if self._raw is None:
            return
        unsent = self._raw.get_write_buffer_size()
        if 0 < unsent < self._unsent:
            self._unsent = unsent
            self._expire_after(self.timeout_keep_alive)
        elif unsent or self._closing:
            self.abort()
        else:
            self._closing = True
            self._raw.close()
            self._expire_after(_LINGER)

    def _expire_after(self, seconds: float) -> None:
        self._cancel_timer()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _cancel_timer(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def _is_pending(self) -> bool:
        return self._request is not None and not self.cycle.response_complete

    def _parse(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as offer:
                # No offer is taken (RFC 9110, 7.8). But the parser has ended the request there, and would read its
                # body as the next one: so it reads the header anew, without the offer.
                head = self._head_without_offer()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.feed_data(head)
                rest = rest[offer.args[0] :]
            else:
                return

    def _head_without_offer(self) -> bytes:
        line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        return line + b"".join(fields) + b"\r\n"

    def _refuse(self, status: HTTPStatus) -> None:
        """Take no more. What came before is answered first; a body that has gone wrong is the application's affair."""
        self._deaf = True
        self._in_message = True
        if self._is_pending():
            self._end_after_answer()
            return
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
        date = b"date: %s\r\n" % _date_header(int(time.time()))[0][1]
        self.transport.write(head + date + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()

    def _end_after_answer(self) -> None:
        self.cycle.keep_alive = False
        if self.cycle.more_body and self._request is not None:
            self._request.cut_short()


class _Request:
    """The application for one request. It is told of a body that was cut short, and can answer nevertheless."""

    cycle: RequestResponseCycle

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self._cut_short = False

    def cut_short(self) -> None:
        self._cut_short = True
        self.cycle.message_event.set()

    async def __call__(self, scope: Scope, _: object, send: Send) -> None:
        try:
            await self._app(scope, self._receive, send)
        except asyncio.CancelledError:
            # Only the end of the loop cancels a request. It is no error of the application: uvicorn would log it.
            self.cycle.disconnected = True
            self.cycle.transport.abort()
        except Exception:
            if self.cycle.response_started:
                raise  # uvicorn logs it, and closes the connection
            _log.exception("the application has failed")
            await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

    async def _receive(self) -> Message:
        if self._cut_short and not self.cycle.body:
            return _DISCONNECT
        message: Message = await self.cycle.receive()
        if self._cut_short and message["type"] == "http.request" and message["more_body"] and not message["body"]:
            return _DISCONNECT
        return message


class _PipelineFlowControl(FlowControl):
    """Reads no further while requests wait for those before them."""

    def __init__(self, transport: asyncio.Transport, pipeline: deque[Any]) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


class _LingeringTransport(asyncio.Transport):
    """What uvicorn writes to. To close is the connection's affair."""

    def __init__(self, transport: asyncio.Transport, connection: HttpConnection) -> None:
        super().__init__()
        self._transport = transport
        self._connection = connection
        self._closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._closing:
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        self._closing = True
        self._connection.close()

    def abort(self) -> None:
        self._closing = True
        self._connection.abort()


@lru_cache(maxsize=1)
def _date_header(second: int) -> list[tuple[bytes, bytes]]:
    return [(b"date", formatdate(second, usegmt=True).encode())]
