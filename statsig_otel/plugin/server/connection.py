"""One HTTP/1.1 connection: reads a request, calls the application, sends its answer, and closes in good order.

- One request at a time. Bytes behind a request are never handled: its answer is the connection's last one. So a client
  can't make the server collect requests, and nothing can hide behind a request.
- A deadline for a whole head, which also closes idle connections, and one for a client that does not read its answer.
  The application limits the time of bodies.
- A turn of one connection is short: it handles what one read has brought, and of a chunked body a number of chunks. The
  rest has to wait for a turn, and one connection of all has one at a time. With TLS the same is true of records. When
  more arrives, what was read before is not read again. What a refused client still sends is read in such turns, too.
- An answer for a client that still sends, or that has closed its sending side.
- A close that does not destroy the answer: closing a socket on which data still arrives resets it (RFC 9112, 9.6).
"""

import asyncio
import contextlib
import contextvars
import logging
import math
import socket
import struct
from collections.abc import Callable
from typing import Final, Protocol, cast
from urllib.parse import unquote_to_bytes

from statsig_otel._log_throttle import LogThrottle
from statsig_otel.plugin.server.asgi_types import AsgiApp, Scope
from statsig_otel.plugin.server.exchange import Exchange, answer_head
from statsig_otel.plugin.server.reader import BadRequestError, Head, RequestReader
from statsig_otel.plugin.server.turns import Turns

_throttle: Final = LogThrottle(logging.getLogger(__name__))

_LINGER: Final = 5.0  # seconds in which a closing connection reads and discards what the client still sends
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: on, for no time
_PROGRESS: Final = 16 * 1024  # bytes of a request after which its client has been heard from again
_MOST_AT_ONCE: Final = 64 * 1024  # bytes that a refused client may still send before it has to wait for turns
_TICK: Final = 0.001  # seconds; a timer of the loop may be early by as much
_MOST_UNTAKEN: Final = 64 * 1024  # bytes of a body that may wait for the application; above it the client has to wait


class Server(Protocol):
    """The server, as a connection knows it."""

    @property
    def turns(self) -> Turns:
        """The connections that have more to read than one turn may take."""

    def connection_waits(self, connection: "HttpConnection", *, has_begun: bool) -> None:
        """The connection waits for its client, which has begun a request or not. It may be closed to make room."""

    def connection_works(self, connection: "HttpConnection") -> None:
        """The connection has a whole request, and must not be closed to make room."""

    def application_called(self, task: asyncio.Task[None]) -> None:
        """A task calls the application."""

    def refused(self, error: BadRequestError) -> None:
        """A request was refused before it reached the application."""

    def connection_closed(self, connection: "HttpConnection") -> None:
        """The connection is closed."""


class HttpConnection(asyncio.Protocol):
    """One accepted connection.

    Args:
        app: Called for each request.
        accepted: Its socket.
        head_timeout: Seconds for a whole head, from the connection or from the end of the previous answer; and for
            a client to read a part of its answer.
        server: Is told what the connection waits for.
    """

    def __init__(self, app: AsgiApp, accepted: socket.socket, *, head_timeout: float, server: Server) -> None:
        self._app = app
        self._accepted = accepted
        self._head_timeout = head_timeout
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._addresses: dict[str, object] = {}  # the parts of a scope that all requests share
        self._reader = RequestReader()
        self._exchange: Exchange | None = None  # the request that is not yet answered
        self._until_heard = 0  # bytes until the client has been heard from; the first of a request are enough
        self._unread = b""  # a part of the body, for the next turn
        self._waits_for_turn = False
        self._is_paused = False  # nothing is read: the application, a turn, or the sending of an answer comes first
        self._is_discarding = False  # further bytes are discarded
        self._has_answered = False
        self._client_ended = False  # the client has closed its sending side
        self._is_shutting_down = False  # the next answer is the last one
        self._is_closing = False
        self._is_lingering = False  # it is closed once the client has stopped sending
        self._discarded = 0  # bytes since then
        self._unsent: int | None = None  # bytes of answers at the beginning of the deadline for a client to read them
        self._all_sent: asyncio.Future[None] | None = None  # the application waits until no such bytes are left
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the deadline for the first head."""
        self._transport = transport = cast("asyncio.Transport", transport)
        if self._is_closing:  # to make room, right after it was accepted
            transport.abort()
            return
        # The smallest buffer, so that `pause_writing` and `resume_writing` say whether everything is sent.
        transport.set_write_buffer_limits(high=1, low=0)
        self._addresses = {
            "server": _address(self._accepted.getsockname),
            "client": _address(self._accepted.getpeername),
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
        }
        self._expire_after(self._head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Tell the application and the server."""
        self._is_closing = True
        if self._exchange is not None:
            self._reader.body.clear()  # free it now
            self._exchange.end()
            self._exchange = None
        self._let_go_on()
        if self._timer is not None:
            self._timer.cancel()
        self._server.turns.drop(self._next_turn)
        self._server.connection_closed(self)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self._is_lingering:
            self._discarded += len(data)
            if self._discarded > _MOST_AT_ONCE:  # before that a client that leaves is noticed at once
                self._pause_reading()
                self._wait_for_turn()
        if self._is_closing:
            return
        if self._exchange is not None and self._reader.is_complete:
            self._discard()
        if self._is_discarding:
            return
        if self._unread:
            self._unread += data
        else:
            self._read(data)

    def eof_received(self) -> bool:
        """Keep the connection open if an answer is pending."""
        self._client_ended = True
        if self._is_closing or self._exchange is None:
            return False
        if not self._unread and not self._reader.is_complete:
            self._exchange.end()
        return True

    def pause_writing(self) -> None:
        """Start the deadline of a client that does not read."""
        if self._transport is not None and self._unsent is None:
            self._unsent = self._transport.get_write_buffer_size()
            self._expire_after(self._head_timeout)

    def resume_writing(self) -> None:
        """Everything is sent: end that deadline, and go on."""
        self._let_go_on()
        if self._exchange is not None:
            self._deadline = math.inf
        elif self._is_lingering:
            self._end_writing()
            self._expire_after(_LINGER)
        elif not self._is_closing:
            self._await_request()

    # Called by the exchange.

    def write(self, data: bytes | bytearray) -> None:
        """Send bytes; nothing if the connection is closed."""
        if self._transport is not None and not self._is_closing and not self._transport.is_closing():
            self._transport.write(data)

    def read_on(self) -> None:
        """Read on: the application has taken the part of the body that had arrived."""
        if self._unread:
            self._wait_for_turn()
        elif self._is_paused:
            self._resume_reading()

    async def until_sent(self) -> None:
        """Wait while the client does not read."""
        while self._unsent is not None:
            self._all_sent = self._loop.create_future()
            await self._all_sent

    def is_last(self) -> bool:
        """Whether the connection can't be used for another request."""
        head = self._reader.head
        return (
            self._is_shutting_down or self._is_discarding or self._client_ended
            or not self._reader.is_complete or head is None or not head.keep_alive
        )  # fmt: skip

    def answered(self, *, last: bool) -> None:
        """Continue with the next request, or close."""
        if self._exchange is None:  # the client has left
            return
        self._exchange = None
        self._has_answered = True
        if last or self._is_discarding:
            self._close()
            return
        self._reader = RequestReader()
        self._until_heard = 0
        self._server.connection_waits(self, has_begun=False)
        if self._unsent is None:
            self._await_request()
        else:  # answers must not pile up for a client that does not read them
            self._pause_reading()

    def abort(self) -> None:
        """Close at once."""
        self._is_closing = True
        if self._transport is not None:
            self._transport.abort()

    # Called by the server.

    def shutdown(self) -> None:
        """Close after the current request. A new connection, or one in the middle of a head, may still send one."""
        self._is_shutting_down = True
        idle = self._exchange is None and self._has_answered and not self._reader.has_begun
        if idle and not self._is_closing and self._transport is not None:
            self._is_closing = True
            self._transport.close()
            self._expire_after(_LINGER)

    @property
    def has_no_request(self) -> bool:
        """Whether the connection is open, and no request has a whole head and still needs its answer."""
        return self._exchange is None and not self._is_closing

    # Reading.

    def _await_request(self) -> None:
        self._expire_after(self._head_timeout)
        if self._is_paused:
            self._resume_reading()

    def _read(self, data: bytes) -> None:
        reader = self._reader
        try:
            rest = reader.feed(data)
        except BadRequestError as error:
            self._refuse(error)
            return
        if self._exchange is not None:
            self._exchange.arrived()
        elif reader.head is not None:
            self._call(reader.head)
        if reader.is_complete:
            if rest:
                self._discard()
            self._server.connection_works(self)
            return
        self._until_heard -= len(data) - len(rest)
        if self._until_heard <= 0:  # not with each byte, or clients that send one now and then would never make room
            self._until_heard = _PROGRESS
            self._server.connection_waits(self, has_begun=True)
        if rest or len(reader.body) > _MOST_UNTAKEN:
            self._unread = rest
            self._pause_reading()
            if rest:
                self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        if not self._waits_for_turn:
            self._waits_for_turn = True
            self._server.turns.add(self._next_turn, discards=self._is_lingering)

    def _next_turn(self) -> None:
        """Read what one turn has left, if the application has taken what was read before, or discard more."""
        self._waits_for_turn = False
        if self._is_lingering:
            self._resume_reading()
        if self._is_closing or self._is_discarding or len(self._reader.body) > _MOST_UNTAKEN:
            return
        data, self._unread = self._unread, b""
        if data:
            self._read(data)
        if not self._unread and self._exchange is not None:
            if self._client_ended and not self._reader.is_complete:
                self._exchange.end()
            self._resume_reading()

    def _call(self, head: Head) -> None:
        """Call the application for a request, whose body may still be on its way."""
        self._deadline = math.inf
        path, _, query = head.target.partition(b"?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "method": head.method,
            "path": (unquote_to_bytes(path) if b"%" in path else path).decode(errors="replace"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": head.fields,
            **self._addresses,
        }
        self._exchange = Exchange(head, self._reader, self)
        # In a context of its own, so that requests don't see each other's variables.
        call = self._exchange.run(self._app, scope)
        self._server.application_called(self._loop.create_task(call, context=contextvars.Context()))

    def _refuse(self, error: BadRequestError) -> None:
        """Stop reading, and answer. If the error is in a body, the application decides on the answer."""
        self._discard()
        client = self._addresses["client"]
        host = client[0] if isinstance(client, tuple) else "?"
        message = "a request from %s was refused with %d: %s"
        _throttle.log(logging.WARNING, error.kind, message, host, error.status, error.explanation)
        if self._exchange is None and self._reader.head is not None:
            self._call(self._reader.head)
        if self._exchange is not None:
            self._exchange.end()
            return
        self._server.refused(error)
        self.write(answer_head(error.status) + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self._close()

    def _discard(self) -> None:
        """Read no more requests. What still arrives is read after the answer, and discarded."""
        self._is_discarding = True
        self._unread = b""
        self._pause_reading()

    def _pause_reading(self) -> None:
        self._is_paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self._is_paused = False
        if self._transport is not None:
            self._transport.resume_reading()

    # Closing.

    def _close(self) -> None:
        """Close after everything written so far is sent, in a way that lets it arrive."""
        if self._is_closing or self._transport is None:
            return
        self._is_closing = True
        self._unread = b""
        if self._unsent is None:
            self._expire_after(_LINGER)
        if self._client_ended or (self._reader.is_complete and not self._is_discarding):
            self._transport.close()
            return
        self._is_lingering = True
        self._server.connection_waits(self, has_begun=False)
        self._resume_reading()
        if self._unsent is None:
            self._end_writing()

    def _let_go_on(self) -> None:
        """Let the application go on: everything is sent, or the client has left."""
        self._unsent = None
        if self._all_sent is not None and not self._all_sent.done():
            self._all_sent.set_result(None)

    def _end_writing(self) -> None:
        """Close the sending side. A transport's `write_eof` fails in the loop if the client has left."""
        if self._addresses["scheme"] == "http":
            with contextlib.suppress(OSError):
                self._accepted.shutdown(socket.SHUT_WR)

    def _expire_after(self, seconds: float) -> None:
        """Set the deadline. The timer is only moved when it fires: most deadlines are replaced before."""
        self._deadline = self._loop.time() + seconds
        if self._timer is None or self._timer_at > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer()

    def _set_timer(self) -> None:
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer = None
        if self._deadline - self._loop.time() < _TICK:
            self._expire()
        elif self._deadline != math.inf:
            self._set_timer()

    def _expire(self) -> None:
        """Close, unless the client has read a part of its answer since the beginning of the deadline."""
        if self._transport is None:
            return
        unsent = self._transport.get_write_buffer_size()
        if self._unsent is not None and 0 < unsent < self._unsent:
            self._unsent = unsent
            self._expire_after(self._head_timeout)
        elif unsent:
            # A reset, so that the system does not keep the rest of the answer for this client.
            self._accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.abort()
        elif self._is_closing:
            self.abort()
        else:
            self._is_closing = True
            self._transport.close()
            self._expire_after(_LINGER)


def _address(name: Callable[[], object]) -> tuple[str, int] | None:
    """Host and port of one end; None if the client has left already."""
    try:
        found = name()
    except OSError:
        return None
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None
