"""One HTTP/1.1 connection: uvicorn's httptools protocol with the limits that a public receiver needs.

uvicorn parses requests, calls the application and controls the flow. This module adds what uvicorn lacks:

- A deadline for a whole header, which also closes idle connections, and a deadline for a client that does not read
  its answers.
- A limit for consecutive bytes that are not body: headers, trailers and chunk extensions.
- An answer for a client that has closed its sending side, and an application that notices a truncated body.
- A close that does not destroy the answer: closing a socket on which data still arrives resets it (RFC 9112, 9.6).
- Strict framing: bytes after an error or after the last request are never parsed, an Upgrade header never changes where
  a body ends, trailers do not become headers, and pipelined requests are not read ahead without limit.
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
"""The limit for a request line and headers, and for trailers and chunk extensions. Above it the answer is 431."""

_MAX_FIELDS: Final = 100  # header fields of a request; above it the answer is 431 too
_LINGER: Final = 5.0  # seconds in which a closing connection reads and discards what the client still sends
_DISCONNECT: Final[Message] = {"type": "http.disconnect"}


class HttpConnection(HttpToolsProtocol):
    """One accepted connection.

    Args:
        config: uvicorn's configuration, of which only a few switches are used.
        state: The state that all connections of a server share.
        app: Called for each request.
        header_timeout: Seconds for a whole header, from the connection or from the end of the previous answer.
        on_lost: Called when the connection is closed.
    """

    def __init__(
        self, config: Config, state: ServerState, *, app: AsgiApp, header_timeout: float, on_lost: Callable[[], None]
    ) -> None:
        super().__init__(config, state, {})
        # uvicorn's own parser accepts bytes after a request with "Connection: close".
        self.parser: httptools.HttpRequestParser = httptools.HttpRequestParser(self)
        self.access_log = False
        self.timeout_keep_alive = header_timeout  # type: ignore[assignment]  # fractions work too
        self._application = app
        self._on_lost = on_lost
        self._request: _Request | None = None
        self._raw: asyncio.Transport | None = None
        self._overhead = 0  # bytes received since the last body byte, end of a header or end of a message
        self._in_message = False
        self._refusal_status = HTTPStatus.BAD_REQUEST
        self._discarding = False  # further bytes are discarded
        self._client_ended = False  # the client has closed its sending side
        self._closing = False
        self._shutting_down = False  # the next answer is the last one
        self._unsent = math.inf  # bytes of answers that were still unsent at the previous deadline

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the deadline for the first header."""
        self._raw = transport = cast("asyncio.Transport", transport)
        super().connection_made(_LingeringTransport(transport, self))
        self.flow: _PipelineFlowControl = _PipelineFlowControl(transport, self.pipeline)
        self._expire_after(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """Notify the application and the owner."""
        self._closing = True
        super().connection_lost(exc)
        if self._request is not None:
            self.cycle.body = bytearray()  # free it now: the garbage collector may run late
        self._cancel_timer()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, and refuse them if they are not HTTP or if a header is too long."""
        if self._discarding or self._closing:
            return
        self._overhead += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal_status)
        else:
            if self._overhead > MAX_HEADER_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn says None, asyncio says bool
        """Keep the connection open if an answer is pending. Under TLS, asyncio can't close one direction only."""
        self._client_ended = True
        if self._closing or not self._is_pending():
            return False
        self._end_after_answer()
        return self.scheme == "http"

    def pause_writing(self) -> None:
        """Start the deadline of a client that does not read. It is as long as that for a header."""
        super().pause_writing()
        if not self._closing:
            self._expire_after(self.timeout_keep_alive)

    def resume_writing(self) -> None:
        """Cancel that deadline. The deadline of an idle connection stays."""
        super().resume_writing()
        self._unsent = math.inf
        if not self._closing and self._is_pending():
            self._cancel_timer()

    # Called by the parser.

    def on_message_begin(self) -> None:
        """Remember that a request has begun."""
        self._in_message = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check the header, and start the application."""
        self._overhead = 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        version = self.parser.get_http_version()
        if size > MAX_HEADER_BYTES or len(self.headers) > _MAX_FIELDS:
            self._refusal_status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        elif version not in ("1.0", "1.1"):
            self._refusal_status = HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
        elif self.parser.get_method() == b"CONNECT":
            self._refusal_status = HTTPStatus.NOT_IMPLEMENTED
        if self._refusal_status != HTTPStatus.BAD_REQUEST:
            raise ValueError(self._refusal_status)
        if self.parser.should_upgrade():
            return
        if not self.flow.write_paused:
            self._cancel_timer()
        if version == "1.0":
            self.expect_100_continue = False
        self.server_state.default_headers = _date_header(int(time.time()))
        request = _Request(self._application)
        self.app = request  # one object per request, because it needs uvicorn's cycle
        super().on_headers_complete()
        request.cycle = self.cycle
        self._request = request
        # A client that waits for "100 Continue" and gets another answer may or may not send its body.
        if self.expect_100_continue or self._shutting_down:
            self.cycle.keep_alive = False
        self.headers: list[tuple[bytes, bytes]] = []  # collects trailers: the scope keeps the list of headers

    def on_body(self, body: bytes) -> None:
        """Pass on a piece of the body."""
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Remember that a request has ended."""
        if self.parser.should_upgrade():
            return
        self._overhead = 0
        self._in_message = False
        super().on_message_complete()

    # Called by uvicorn, the owner and the timer.

    def on_response_complete(self) -> None:
        """Continue with the next request. Renew the deadline if the client does not read."""
        super().on_response_complete()
        if self.flow.write_paused:
            self.pause_writing()

    def shutdown(self) -> None:
        """Close after the current request. A new connection, or one in the middle of a header, may still send one."""
        self._shutting_down = True
        if self._is_pending():
            self.cycle.keep_alive = False
        elif self._request is not None and not self._in_message:
            self.transport.close()

    def is_unused(self) -> bool:
        """Whether the connection is open and no answer is pending."""
        return not (self._closing or self._is_pending())

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        if self._raw is not None:
            self._raw.abort()

    def close(self) -> None:
        """Close after everything written so far is sent, in a way that lets it arrive."""
        if self._closing or self._raw is None:
            return
        self._closing = True
        self.pipeline.clear()
        if self._client_ended or not self._in_message:
            self._raw.close()
        else:
            if self._raw.can_write_eof():
                self._raw.write_eof()
            self.flow.resume_reading()
        self._expire_after(_LINGER)

    def timeout_keep_alive_handler(self) -> None:
        """Close, unless the client has read a part of its answer since the previous deadline."""
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
            except httptools.HttpParserUpgrade as upgrade:
                # The server ignores Upgrade, as RFC 9110, 7.8 allows. But this parser ends the request here and would
                # read its body as the next request. So a new parser reads the header again, without Upgrade.
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.feed_data(head)
                rest = rest[upgrade.args[0] :]
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        return line + b"".join(fields) + b"\r\n"

    def _refuse(self, status: HTTPStatus) -> None:
        """Stop reading, and answer with a status.

        A pending request is answered first. If the error is in its body, the application decides on the answer.
        """
        self._discarding = True
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
    """Calls the application for one request. If the body is truncated, the application is told and can still answer."""

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
            # Only the end of the event loop cancels a request. uvicorn would log that as the application's error.
            self.cycle.disconnected = True
            self.cycle.transport.abort()
        except Exception:
            if self.cycle.response_started:
                raise  # uvicorn logs the error and closes the connection
            _log.exception("the application failed")
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
    """Stops reading while pipelined requests wait for earlier ones."""

    def __init__(self, transport: asyncio.Transport, pipeline: deque[Any]) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


class _LingeringTransport(asyncio.Transport):
    """The transport that uvicorn writes to. It leaves closing to the connection."""

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
