"""The HTTP server under the receiver: listens, accepts connections within a limit, and drains them on stop.

It accepts connections itself because asyncio's server lacks two things. At the limit, a connection that waits for its
client makes room for a new one. And each connection is known from its acceptance on, so that one in its TLS handshake
counts towards the limit and is closed by a stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from statsig_otel._log_throttle import LogThrottle
from statsig_otel._telemetry import handshakes_failed, server_refused, servers
from statsig_otel._times import LAST_HEADS, REQUEST_DRAIN
from statsig_otel.plugin.server.asgi_types import AsgiApp
from statsig_otel.plugin.server.certificate import expiry
from statsig_otel.plugin.server.connection import HttpConnection
from statsig_otel.plugin.server.listening import close_in_child, host_port, listen
from statsig_otel.plugin.server.reader import REFUSALS
from statsig_otel.plugin.server.tls import ServerTlsSettings, digest, pem_files, server_context
from statsig_otel.plugin.server.tls_transport import TlsTransport, log_failed_handshake

_log = logging.getLogger(__name__)
_throttle: Final = LogThrottle(_log)
OTHER_FILES: Final = 128  # file descriptors reserved for the rest of the process
_ACCEPTED_AT_ONCE: Final = 64  # connections, before those that are open have their turn
_MIN_WAIT: Final = 0.1  # seconds in which a client can send something before its connection may make room
_ACCEPT_RETRY: Final = 1.0  # seconds until the next attempt when the system has no descriptor or memory left
_BROKEN: Final = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)  # errors of a listening socket that never accepts again


class HttpServer:
    """An HTTP/1.1 server for one ASGI application on one address.

    The server opens nothing before `bind`, installs no signal handlers and has no global state. So several servers can
    run in one process, in the same event loop or in several. After `serve` has returned, `bind` may be called again.

    Args:
        app: Called for each request, in the loop that runs `serve`. It has to limit the time of bodies.
        host: A host name or an address. For a name, the server listens on its first IPv4 address, as Go's net.Listen
            does. An empty string means all addresses, IPv6 and IPv4.
        port: With 0 the system chooses a port; see `address`.
        read_header_timeout: Seconds for a client to send a whole request header, counted from the connection or from
            the end of the previous answer. A TLS handshake is a part of that time. So it also closes idle connections.
            Behind a proxy that keeps connections open, set it above the proxy's idle timeout; otherwise the proxy may
            use a connection that is being closed.
        max_connections: The most connections at a time, including those in a TLS handshake. For one more, the
            server closes the one that has waited for its client for longest; without one it waits in the system's
            backlog. The process's limit of open files may lower the number, which logs a warning.
        tls: To serve HTTPS.
        drain_timeout: Seconds that `serve` grants to requests in flight after a stop before it closes their
            connections.
        inherited: A socket of a supervisor to accept from, instead of one for `host` and `port`. It goes on listening
            after a stop: clients wait until the next server accepts them.
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        host: str,
        port: int,
        read_header_timeout: float = 10.0,
        max_connections: int = 1000,
        tls: ServerTlsSettings | None = None,
        drain_timeout: float = REQUEST_DRAIN.longest,
        inherited: socket.socket | None = None,
    ) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._read_header_timeout = read_header_timeout
        self._max_connections = max_connections
        self._tls = tls
        self._drain_timeout = drain_timeout
        self._inherited = inherited
        self._lock = threading.Lock()  # for the next four attributes: stop() is called from any thread
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._stopping = False
        self._quiet = threading.Event()  # no more requests can come
        self._address: tuple[str, int] | None = None
        self._context: ssl.SSLContext | None = None
        self._pem = b""  # the fingerprint of the TLS files when they were read
        self._expiry: float | None = None  # of the certificate, in seconds since the epoch

    @property
    def address(self) -> tuple[str, int]:
        """The numeric host and the port that `bind` opened.

        Raises:
            RuntimeError: `bind` was not called.
        """
        if self._address is None:
            raise RuntimeError("the server does not listen yet")
        return self._address

    def bind(self) -> None:
        """Check the TLS files and open the listening socket. Clients that connect from now on wait for `serve`.

        Raises:
            ListenError: The address cannot be listened on; the message says which and why.
            OSError: A TLS file cannot be read; the message says which and why.
            ValueError: The TLS files do not fit.
            RuntimeError: The server is bound already.
        """
        # The fingerprint comes first, so that `renewed_tls` notices a change during the next step.
        pem = b"" if self._tls is None else digest(pem_files(self._tls))
        context = None if self._tls is None else server_context(self._tls)
        ends = None if self._tls is None else expiry(self._tls.cert_file)
        with self._lock:
            if self._socket is not None or self._loop is not None:
                raise RuntimeError("the server is bound already")
            self._socket = listening = self._listening()
            close_in_child(listening)
            self._context, self._pem, self._expiry = context, pem, ends
            self._stopped = asyncio.Event()
            self._stopping = False
            self._quiet.clear()
        name = listening.getsockname()
        self._address = (name[0], name[1])
        for refusal in REFUSALS:
            server_refused.add(0, *refusal)
        handshakes_failed.add(0)
        servers.add(self)

    def expiries(self) -> dict[str, float]:
        """By address the end of the certificate, in seconds since the epoch; none without TLS."""
        return {} if self._expiry is None or self._address is None else {host_port(*self._address): self._expiry}

    def renewed_tls(self) -> Callable[[], None] | None:
        """Read the TLS files again, without using them yet.

        Returns:
            A function that makes new connections use the files; open connections do not change. None if the files have
            not changed.

        Raises:
            OSError: A file cannot be read.
            ValueError: The files are not valid.
        """
        if self._tls is None or (pem := digest(pem_files(self._tls))) == self._pem:
            return None
        context, ends = server_context(self._tls), expiry(self._tls.cert_file)

        def use() -> None:
            self._context, self._pem, self._expiry = context, pem, ends

        return use

    async def serve(self) -> None:
        """Serve until `stop`, then finish the requests in flight. When this returns, the port is free.

        A cancellation also ends the server, but closes connections with requests in flight at once.

        Raises:
            RuntimeError: The server is not bound.
        """
        with self._lock:
            if self._stopping:
                return
            if self._socket is None:
                raise RuntimeError("the server does not listen yet")
            listening, self._socket = self._socket, None
            self._loop = asyncio.get_running_loop()
        try:
            connections = _Connections(
                self._app,
                listening,
                header_timeout=self._read_header_timeout,
                max_connections=_within_open_files(self._max_connections),
                context=lambda: self._context,
                release=listening.close,
            )
            try:
                connections.accept()
                await self._until_stopped(connections.failed)
                await connections.drain(self._drain_timeout, quiet=self._quiet.set)
            finally:
                await connections.cut_off()
        finally:
            servers.discard(self)
            self._quiet.set()
            listening.close()
            with self._lock:
                self._loop = None

    async def _until_stopped(self, failed: asyncio.Future[None]) -> None:
        """Wait for `stop`.

        Raises:
            OSError: The server can't accept connections any more.
        """
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if failed.done():
            failed.result()

    def stop(self, drain_timeout: float | None = None) -> None:
        """Stop accepting, and make `serve` return. May be called from any thread, and repeatedly.

        Args:
            drain_timeout: Seconds for the requests in flight, instead of the constructor's. Only the first call counts.
        """
        with self._lock:
            if drain_timeout is not None and not self._stopping:
                self._drain_timeout = drain_timeout
            self._stopping = True
            listening, self._socket = self._socket, None
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._stopped.set)
        if listening is not None:  # bound, but never served
            self._quiet.set()
            listening.close()

    def wait_until_quiet(self, timeout: float) -> None:
        """Wait after `stop` until no more requests can come: a client that had connected may still send its first one.

        That takes at most a second, unless the loop hangs.
        """
        self._quiet.wait(timeout)

    def _listening(self) -> socket.socket:
        if self._inherited is None:
            return listen(self._host, self._port)
        listening = self._inherited.dup()
        listening.setblocking(False)
        return listening


class _Connections:
    """Accepts the connections of one listening socket in the running loop, and closes them.

    At the limit, a connection that waits for its client makes room for a new one: the one that has waited for longest,
    and for a tenth of a second at least. The wait begins with the connection, with an answer, with the first bytes of
    a request, and with each 16 KiB of it. Without such a connection new ones wait in the system's backlog.

    Attributes:
        failed: The error that ends the server: it can't accept connections any more.
    """

    def __init__(
        self,
        app: AsgiApp,
        listening: socket.socket,
        *,
        header_timeout: float,
        max_connections: int,
        context: Callable[[], ssl.SSLContext | None],
        release: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self._app = app
        self._listening = listening
        self._header_timeout = header_timeout
        self._max_connections = max_connections
        self._context = context
        self._release = release
        self._open: dict[HttpConnection, socket.socket] = {}
        # Those that wait for their clients, the longest wait first: since when, and whether it was prolonged.
        self._waiting: dict[HttpConnection, tuple[float, bool]] = {}
        self._beginning: dict[HttpConnection, asyncio.Task[None]] = {}
        self._calls: set[asyncio.Task[None]] = set()  # of the application
        self._turns: deque[HttpConnection] = deque()  # of connections that have more to read
        self._accepting = False
        self._next_try: asyncio.TimerHandle | None = None
        self._stopping = False
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    # Called by connections.

    def waits(self, connection: HttpConnection) -> None:
        """The connection waits for its client."""
        self._waiting.pop(connection, None)
        if connection in self._open:  # not one that has made room already
            self._waiting[connection] = self._loop.time(), False
        self.accept()

    def works(self, connection: HttpConnection) -> None:
        """The connection has a whole request."""
        self._waiting.pop(connection, None)

    def wants_turn(self, connection: HttpConnection) -> None:
        """Let the connection read on later. One has its turn at a time, so that many can't hold up the others."""
        self._turns.append(connection)
        if len(self._turns) == 1:
            self._loop.call_soon(self._give_turn)

    def _give_turn(self) -> None:
        connection = self._turns.popleft()
        if self._turns:
            self._loop.call_soon(self._give_turn)
        connection.next_turn()

    def calls(self, task: asyncio.Task[None]) -> None:
        """A task calls the application."""
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def lost(self, connection: HttpConnection) -> None:
        """The connection is closed, or about to be."""
        self._open.pop(connection, None)
        self._waiting.pop(connection, None)
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
        elif self._waiting and self._next_try is None:
            self._next_try = self._loop.call_later(_MIN_WAIT, self._try_again)

    def _try_again(self) -> None:
        self._next_try = None
        self.accept()

    async def drain(self, seconds: float, *, quiet: Callable[[], None]) -> None:
        """Stop accepting, and wait for requests in flight. Half-sent headers get a second at most; then it is quiet."""
        deadline = self._loop.time() + seconds
        self._stop_accepting()
        for connection in tuple(self._open):
            connection.shutdown()
        await self._wait_until_all_closed(LAST_HEADS.of(seconds))
        for connection in tuple(self._open):
            if connection.is_unused:
                connection.abort()
        quiet()
        while calls := set(self._calls):
            if (left := deadline - self._loop.time()) <= 0:
                _log.warning("the drain timeout is over: %d requests in flight were cut off", len(calls))
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
        for _ in range(_ACCEPTED_AT_ONCE):
            removable = self._removable() if self._is_full() else None
            if self._is_full() and removable is None:
                self._pause()
                self.accept()
                return
            try:
                accepted, _address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause()
                if error.errno in _BROKEN:
                    if not self.failed.done():
                        self.failed.set_exception(error)
                    return
                message = "can't accept connections, trying again every %g s: %s"
                _throttle.log(logging.WARNING, "accept", message, _ACCEPT_RETRY, error.strerror)
                self._next_try = self._next_try or self._loop.call_later(_ACCEPT_RETRY, self._try_again)
                return
            if removable is not None:
                self._abort(removable)
            self._connect(accepted)

    def _is_full(self) -> bool:
        return len(self._open) >= self._max_connections

    def _removable(self) -> HttpConnection | None:
        """The connection that makes room for the next one.

        If its client has sent what is not yet read, its wait is prolonged, but only once: a client that sends single
        bytes has almost always sent one.
        """
        while self._waiting:
            connection, (since, is_prolonged) = next(iter(self._waiting.items()))
            if since + _MIN_WAIT > self._loop.time():
                return None
            if is_prolonged or not _has_unread(self._open[connection]):
                return connection
            del self._waiting[connection]
            self._waiting[connection] = self._loop.time(), True
        return None

    def _abort(self, connection: HttpConnection) -> None:
        """Close a connection at once. From now on it does not count."""
        beginning = self._beginning.get(connection)
        if beginning is not None:
            beginning.cancel()
        connection.abort()
        accepted = self._open.pop(connection, None)
        if accepted is not None and beginning is None:
            accepted.close()  # its transport would do so in the next turn, and until then it takes a descriptor
        self._waiting.pop(connection, None)

    def _connect(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        close_in_child(accepted)
        connection = HttpConnection(self._app, header_timeout=self._header_timeout, server=self)
        self._open[connection] = accepted
        self._waiting[connection] = self._loop.time(), False
        self._all_closed.clear()
        beginning = self._loop.create_task(self._begin(connection, accepted))
        self._beginning[connection] = beginning

        def done(task: asyncio.Task[None]) -> None:
            del self._beginning[connection]
            error = None if task.cancelled() else task.exception()
            if task.cancelled() or error is not None:
                accepted.close()
                connection.abort()
                self.lost(connection)
            if error is not None and not isinstance(error, OSError):  # the client has left
                _log.error("a connection could not be served", exc_info=error)

        beginning.add_done_callback(done)

    async def _begin(self, connection: HttpConnection, accepted: socket.socket) -> None:
        context = self._context()
        protocol = connection if context is None else TlsTransport(connection, context, failed=log_failed_handshake)
        await self._loop.connect_accepted_socket(lambda: protocol, accepted)
        if self._stopping:
            connection.shutdown()


def _has_unread(accepted: socket.socket) -> bool:
    """Whether a client has sent something that nobody has read yet."""
    try:
        return bool(accepted.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _within_open_files(max_connections: int) -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return max_connections
    allowed = limit - min(OTHER_FILES, limit // 2)
    if max_connections > allowed:
        _log.warning(
            "%d connections exceed the limit of %d open files, so only %d are served at a time; raise the limit "
            "(LimitNOFILE in systemd)",
            max_connections,
            limit,
            allowed,
        )
    return min(max_connections, allowed)
