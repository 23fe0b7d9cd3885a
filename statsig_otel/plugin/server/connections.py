"""Accepts the connections of a listening socket within a limit, and closes them.

asyncio's server lacks two things. At the limit, a connection that waits for its client makes room for a new one. And
each connection is known from its acceptance on, so that one in its TLS handshake counts towards the limit and is closed
by a stop.
"""

import asyncio
import contextlib
import errno
import logging
import select
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from statsig_otel._journal import journal
from statsig_otel._log_throttle import LogThrottle
from statsig_otel._telemetry import handshakes_failed, server_refused
from statsig_otel._times import LAST_HEADS
from statsig_otel.plugin.server.asgi_types import AsgiApp
from statsig_otel.plugin.server.connection import HttpConnection
from statsig_otel.plugin.server.listening import close_in_child
from statsig_otel.plugin.server.reader import BadRequestError
from statsig_otel.plugin.server.tls_transport import READ, TlsTransport, log_failed_handshake
from statsig_otel.plugin.server.turns import Turns

_logger: Final = logging.getLogger(__name__)
_throttle: Final = LogThrottle(_logger)
_ACCEPTED_AT_ONCE: Final = 64  # connections, before those that are open have their turn
_MOST_MAKE_ROOM: Final = 16  # of these, at most an eighth of all; their descriptors are free in the next round only
_MIN_IDLE: Final = 0.1  # seconds in which a client can begin a request before its connection may make room
_MIN_BEGUN: Final = 0.3  # as above, to go on with a request or a handshake: the longest round trips between continents
_ROUNDS: Final = 4  # of the loop, after which it has read what had arrived: a new connection is read from in the third
_ACCEPT_RETRY: Final = 1.0  # seconds until the next attempt when the system has no descriptor or memory left
_BROKEN: Final = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)  # errors of a listening socket that never accepts again


class Connections:
    """Accepts the connections of one listening socket in the running loop, and closes them.

    At the limit, a connection that waits for its client makes room for a new one. The first is the one that is idle for
    longest, and for 0.1 s at least: its client has sent nothing, or nothing since its last answer. Without one, it is
    the one that waits for longest in the middle of a handshake or a request, and for 0.3 s at least, so that a client
    far away can go on. This wait begins with each answer in a TLS handshake, with the first bytes of a request, and
    with each 16 KiB of it. Without such a connection new ones wait in the system's backlog.

    With TLS, clients that have left while they waited there are not served. The server takes much longer for a
    handshake than a client for its first bytes, so a flood of these would keep the backlog full.

    Attributes:
        failed: The error that ends the server: it can't accept connections any more.
        turns: The connections that have more to read than one turn may take.
    """

    def __init__(
        self,
        app: AsgiApp,
        listening: socket.socket,
        *,
        head_timeout: float,
        max_connections: int,
        context: Callable[[], ssl.SSLContext | None],
        release: Callable[[], None],
        takes_webhooks: bool = True,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self.turns: Turns = Turns()
        self._app = app
        self._listening = listening
        self._port: int = listening.getsockname()[1]
        self._head_timeout = head_timeout
        self._max_connections = max_connections
        self._context = context
        self._release = release
        self._takes_webhooks = takes_webhooks
        self._open: dict[HttpConnection, socket.socket] = {}
        # Those that wait for their clients, the longest wait first: since when, and until which round it is prolonged.
        self._idle: OrderedDict[HttpConnection, tuple[float, int]] = OrderedDict()
        self._begun: OrderedDict[HttpConnection, tuple[float, int]] = OrderedDict()
        self._round = 0  # of the loop, counted up to the last one until which a wait is prolonged
        self._last_round = 0
        self._beginning: dict[HttpConnection, asyncio.Task[None]] = {}
        self._calls: set[asyncio.Task[None]] = set()  # of the application
        self._tls_buffer = bytearray(READ)
        self._accepting = False
        self._next_try: asyncio.TimerHandle | None = None
        self._stopping = False
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    # Called by connections.

    def connection_waits(self, connection: HttpConnection, *, has_begun: bool) -> None:
        """The connection waits for its client, which has begun a request or a handshake, or not."""
        self.connection_works(connection)
        if connection in self._open:  # not one that has made room already
            (self._begun if has_begun else self._idle)[connection] = self._loop.time(), 0
        self.accept()

    def connection_works(self, connection: HttpConnection) -> None:
        """The connection does not wait for its client: it has a whole request, or is closed."""
        self._idle.pop(connection, None)
        self._begun.pop(connection, None)

    def application_called(self, task: asyncio.Task[None]) -> None:
        """A task calls the application."""
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def refused(self, error: BadRequestError) -> None:
        """Count a request that was refused, unless it was not for webhooks."""
        if self._takes_webhooks:
            server_refused.add(1, int(error.status), error.kind)
            journal.add_request("", error.status, error.kind, error.explanation, port=self._port)

    def _handshake_answered(self, protocol: asyncio.BaseProtocol) -> None:
        if isinstance(protocol, HttpConnection):
            self.connection_waits(protocol, has_begun=True)

    def _handshake_failed(self, error: ssl.SSLError) -> None:
        why = log_failed_handshake(error)
        if self._takes_webhooks:
            handshakes_failed.add(1)
            journal.add_request("", 0, "tls_handshake", why, port=self._port)

    def connection_closed(self, connection: HttpConnection) -> None:
        """The connection is closed, or about to be."""
        self._open.pop(connection, None)
        self.connection_works(connection)
        if not self._open:
            self._all_closed.set()
        self.accept()

    # Called by the server.

    def accept(self) -> None:
        """Accept connections. Called at the start, and whenever there may be room again."""
        if self._accepting or self._stopping:
            return
        if not self._is_full() or self._removable() is not None:
            self._accepting = True
            self._loop.add_reader(self._listening, self._accept_waiting)
        elif (self._idle or self._begun) and self._next_try is None:
            self._next_try = self._loop.call_later(_MIN_IDLE, self._try_again)

    def _try_again(self) -> None:
        self._next_try = None
        self.accept()

    async def drain(self, seconds: float, *, quiet: Callable[[], None]) -> None:
        """Stop accepting, and wait for requests in flight. Half-sent heads get a second at most; then it is quiet."""
        deadline = self._loop.time() + seconds
        self._stop_accepting()
        for connection in tuple(self._open):
            connection.shutdown()
        await self._wait_until_all_closed(LAST_HEADS.of(seconds))
        for connection in tuple(self._open):
            if connection.has_no_request:
                connection.abort()
        quiet()
        while calls := set(self._calls):
            if (left := deadline - self._loop.time()) <= 0:
                _logger.warning("the drain timeout is over: %d requests in flight were cut off", len(calls))
                return
            await asyncio.wait(calls, timeout=left)
        await self._wait_until_all_closed(LAST_HEADS.of(seconds))

    async def cut_off(self) -> None:
        """Close all connections at once."""
        self._stop_accepting()
        for connection in tuple(self._open):
            self._abort(connection)
        await self._all_closed.wait()

    async def _wait_until_all_closed(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._all_closed.wait()

    def _stop_accepting(self) -> None:
        self._stopping = True
        self._pause()
        self._release()

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._listening)

    def _accept_waiting(self) -> None:
        may_make_room = min(_MOST_MAKE_ROOM, max(self._max_connections // 8, 1))
        for _ in range(_ACCEPTED_AT_ONCE):
            removable = None
            if self._is_full():
                removable = self._removable()
                if removable is None:
                    self._pause()
                    self.accept()
                    return
                if not may_make_room:
                    return
            try:
                accepted, _address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._accept_later(error)
                return
            if self._context() is not None and _has_left(accepted):
                accepted.close()
                continue
            if removable is not None:
                self._abort(removable)
                may_make_room -= 1
            self._connect(accepted)

    def _accept_later(self, error: OSError) -> None:
        """Try again in a while, unless the listening socket is broken."""
        self._pause()
        if error.errno in _BROKEN:
            if not self.failed.done():
                self.failed.set_exception(error)
            return
        message = "can't accept connections, trying again every %g s: %s"
        _throttle.log(logging.WARNING, "accept", message, _ACCEPT_RETRY, error.strerror)
        self._next_try = self._next_try or self._loop.call_later(_ACCEPT_RETRY, self._try_again)

    def _is_full(self) -> bool:
        return len(self._open) >= self._max_connections

    def _removable(self) -> HttpConnection | None:
        """The connection that makes room for the next one.

        If its client has sent what is not yet read, its wait begins again, and lasts at least until the loop has read
        that: one round of a busy server can take longer than the wait. This happens only once, since a client that
        sends single bytes has almost always sent one.
        """
        now = self._loop.time()  # once, so that this ends even if it takes longer than the wait
        for waiting, least in ((self._idle, _MIN_IDLE), (self._begun, _MIN_BEGUN)):
            while waiting:
                connection, (since, prolonged_until) = next(iter(waiting.items()))
                if since + least > now:
                    break
                if not prolonged_until and _has_unread(self._open[connection]):
                    prolonged_until = self._round_after_reading()
                elif prolonged_until <= self._round:
                    return connection
                waiting[connection] = now, prolonged_until
                waiting.move_to_end(connection)  # those behind it may have had their time
        return None

    def _round_after_reading(self) -> int:
        """The round before which the loop reads what the sockets have now. Rounds are counted until then."""
        if self._round == self._last_round:
            self._loop.call_soon(self._count_round)
        self._last_round = self._round + _ROUNDS
        return self._last_round

    def _count_round(self) -> None:
        self._round += 1
        if self._round < self._last_round:
            self._loop.call_soon(self._count_round)

    def _abort(self, connection: HttpConnection) -> None:
        """Close a connection. From now on it does not count. Its descriptor is free in the next round."""
        if (beginning := self._beginning.get(connection)) is not None:
            beginning.cancel()
        connection.abort()
        self._open.pop(connection, None)
        self.connection_works(connection)

    def _connect(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        close_in_child(accepted)
        connection = HttpConnection(self._app, accepted, head_timeout=self._head_timeout, server=self)
        self._open[connection] = accepted
        self._idle[connection] = self._loop.time(), 0
        self._all_closed.clear()
        beginning = self._loop.create_task(self._begin(connection, accepted))
        self._beginning[connection] = beginning

        def done(task: asyncio.Task[None]) -> None:
            del self._beginning[connection]
            error = None if task.cancelled() else task.exception()
            if task.cancelled() or error is not None:
                accepted.close()
                connection.abort()
                self.connection_closed(connection)
            if error is not None and not isinstance(error, OSError):  # the client has left
                _logger.error("a connection could not be served", exc_info=error)

        beginning.add_done_callback(done)

    async def _begin(self, connection: HttpConnection, accepted: socket.socket) -> None:
        context = self._context()
        protocol: asyncio.BaseProtocol = connection
        if context is not None:
            protocol = TlsTransport(
                connection,
                context,
                turns=self.turns,
                buffer=self._tls_buffer,
                answered=self._handshake_answered,
                failed=self._handshake_failed,
            )
        await self._loop.connect_accepted_socket(lambda: protocol, accepted)
        if self._stopping:
            connection.shutdown()


def _has_left(accepted: socket.socket) -> bool:
    """Whether a client has closed its sending side, so that its handshake can't end. Only Linux tells."""
    state = select.poll()
    state.register(accepted, getattr(select, "POLLRDHUP", 0))
    return bool(state.poll(0))


def _has_unread(accepted: socket.socket) -> bool:
    """Whether a client has sent something that nobody has read yet."""
    try:
        return bool(accepted.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False
