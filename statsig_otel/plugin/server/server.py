"""The HTTP server under the receiver: a listening socket of ours, connections of `connection`, an end that is certain.

It accepts by itself, for what asyncio's own server has not: connections past the bound wait in the system's backlog,
and each one is known from its acceptance on, so that a TLS handshake counts, and a stop finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Final

from uvicorn.config import Config
from uvicorn.server import ServerState

from statsig_otel.config.errors import Fault
from statsig_otel.plugin.server.asgi_types import AsgiApp, Receive, Scope, Send
from statsig_otel.plugin.server.connection import MAX_HEADER_BYTES, HttpConnection
from statsig_otel.plugin.server.tls import ServerTls, digest

__all__ = ["MAX_HEADER_BYTES", "AsgiApp", "HttpServer", "Receive", "Scope", "Send", "ServerTls"]


_log = logging.getLogger(__name__)


_BACKLOG: Final = 1024


_OTHER_FILES: Final = 128  # descriptors that are left to the rest of the process


_ACCEPT_RETRY: Final = 1.0  # seconds until the next attempt when the system has no descriptor or memory left


_LINGER: Final = 1.0  # seconds of a stop for half-sent headers, and for the last answers to leave


_TLS_SHUTDOWN: Final = 5.0  # seconds for the other side to confirm the end of a TLS connection


class ListenError(OSError):
    """An address cannot be listened on.

    Attributes:
        address: The host and the port that were asked for.
        fault: The address with what is wrong with it, and what to do.
    """

    def __init__(self, number: int | None, address: tuple[str, int], cause: Fault) -> None:
        host, port = address
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.address: Final = address
        self.fault: Final = Fault(f"cannot listen on {shown}: {cause.message}", cause.hint)
        super().__init__(number, "; ".join(filter(None, self.fault)))


class HttpServer:
    """One listening address that serves one ASGI application over HTTP/1.1.

    Nothing is opened before `bind`. It installs no signal handlers and keeps nothing outside itself, so several can
    run in one process, each in a loop of its own or not; after `serve` has returned, `bind` may be called anew.

    Args:
        app: Called for each request, in the loop that runs `serve`. Bodies have no timeout here: that is the app's.
        host: A name or an address. A name is listened on at its first IPv4 address, as Go's net.Listen does; empty
            means all addresses, IPv6 and IPv4.
        port: 0 lets the system choose one; see `address`.
        read_header_timeout: Seconds a client has to send a whole request header, counted from the connection or from
            the end of the answer before: so an idle connection is closed after it too. Behind a proxy that keeps
            connections open, set it above the proxy's idle timeout, or the proxy may send into a closing one. A TLS
            handshake has as much time before it.
        max_connections: Connections that are served at a time, TLS handshakes among them; more wait in the system's
            backlog. Bounded further, with a warning, by the process's limit of open files.
        tls: Serve HTTPS.
        drain_timeout: Seconds that `serve` gives requests in flight after a stop, before it cuts them off.

    Example:
        >>> from statsig_otel.plugin import HttpServer
        >>> async def app(scope, receive, send):
        ...     await send({"type": "http.response.start", "status": 204, "headers": []})
        ...     await send({"type": "http.response.body"})
        >>> server = HttpServer(app, host="127.0.0.1", port=0)
        >>> server.bind()
        >>> server.address[0]
        '127.0.0.1'
        >>> import asyncio
        >>> server.stop()  # from any thread; `serve` finishes what is in flight
        >>> asyncio.run(server.serve())
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        host: str,
        port: int,
        read_header_timeout: float = 10.0,
        max_connections: int = 1000,
        tls: ServerTls | None = None,
        drain_timeout: float = 15.0,
    ) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._read_header_timeout = read_header_timeout
        self._max_connections = max_connections
        self._tls = tls
        self._drain_timeout = drain_timeout
        self._lock = threading.Lock()  # of the four below: stop() comes from any thread
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._stopping = False
        self._address: tuple[str, int] | None = None
        self._pid = 0  # of the process that has bound it
        self._context: ssl.SSLContext | None = None
        self._pem = b""  # what the TLS files held when they were read

    @property
    def address(self) -> tuple[str, int]:
        """The numeric host and the port that `bind` has opened.

        Raises:
            RuntimeError: `bind` was not called.
        """
        if self._address is None:
            raise RuntimeError("the server is not bound: call bind() first")
        return self._address

    def bind(self) -> None:
        """Check the TLS files and open the listening socket. Clients that connect now wait until `serve` runs.

        Raises:
            ListenError: The address cannot be listened on; the message says which and why.
            OSError: A TLS file cannot be read; the message says which and why.
            ValueError: The TLS files do not fit.
            RuntimeError: The server is bound already.
        """
        pem = b"" if self._tls is None else digest(self._tls.files)  # first: a later change is seen by `renewed_tls`
        context = None if self._tls is None else self._tls.context()
        with self._lock:
            if self._socket is not None or self._loop is not None:
                raise RuntimeError("the server is bound already")
            self._socket = listening = _listen(self._host, self._port)
            self._context, self._pem = context, pem
            self._stopped = asyncio.Event()
            self._stopping = False
        self._pid = os.getpid()
        name = listening.getsockname()
        self._address = (name[0], name[1])

    def renewed_tls(self) -> Callable[[], None] | None:
        """Read the TLS files again. What takes them over for new connections; None where they hold what they held.

        Connections that are open stay as they are.

        Raises:
            OSError: A file cannot be read.
            ValueError: The files do not fit.
        """
        if self._tls is None or (pem := digest(self._tls.files)) == self._pem:
            return None
        context = self._tls.context()

        def take_over() -> None:
            self._context, self._pem = context, pem

        return take_over

    async def serve(self) -> None:
        """Serve until `stop`, then let the requests in flight finish; the port is free when this returns.

        A cancellation stops too, at once: requests in flight are cut off.

        Raises:
            RuntimeError: The server is not bound.
        """
        with self._lock:
            if self._stopping:
                return
            if self._socket is None:
                raise RuntimeError("the server is not bound: call bind() first")
            listening, self._socket = self._socket, None
            self._loop = asyncio.get_running_loop()
        try:
            connections = _Connections(
                self._app,
                listening,
                header_timeout=self._read_header_timeout,
                max_connections=_within_open_files(self._max_connections),
                context=lambda: self._context,
                release=lambda: self._release(listening),
            )
            try:
                connections.accept()
                await self._stopped.wait()
                await connections.drain(self._drain_timeout)
            finally:
                await connections.cut_off()
        finally:
            self._release(listening)
            with self._lock:
                self._loop = None

    def stop(self, drain_timeout: float | None = None) -> None:
        """Stop accepting and let `serve` come to its end. From any thread, any number of times.

        Args:
            drain_timeout: Seconds for the requests in flight, if not those of the constructor; the first stop's count.
        """
        with self._lock:
            if drain_timeout is not None and not self._stopping:
                self._drain_timeout = drain_timeout
            self._stopping = True
            listening, self._socket = self._socket, None
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._stopped.set)
        if listening is not None:  # bound and never served
            self._release(listening)

    def _release(self, listening: socket.socket) -> None:
        """Close it; also in children that were forked since, where it would take connections that nobody serves."""
        if self._pid == os.getpid():
            with contextlib.suppress(OSError):  # closed already; or a system that does not do it
                listening.shutdown(socket.SHUT_RDWR)
        listening.close()


class _Connections:
    """The accepted connections of one listening socket, in the running loop."""

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
        self._app = app
        self._listening = listening
        self._header_timeout = header_timeout
        self._max_connections = max_connections
        self._context = context
        self._release = release
        self._config = Config(
            _unused,
            interface="asgi3",
            http=HttpConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            workers=1,  # else an environment variable is read
            proxy_headers=False,
            server_header=False,
            date_header=False,
            reset_contextvars=True,
        )
        self._state = ServerState()
        self._open: set[HttpConnection] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = False
        self._stopping = False
        self._none_left = asyncio.Event()
        self._none_left.set()

    def accept(self) -> None:
        """Begin to accept, and whenever a connection has left, go on."""
        if not (self._accepting or self._stopping) and len(self._open) < self._max_connections:
            self._accepting = True
            self._loop.add_reader(self._listening, self._accept_waiting)

    async def drain(self, seconds: float) -> None:
        """Accept no more; wait for the requests in flight, and a moment for those that have only begun."""
        deadline = self._loop.time() + seconds
        self._stop_accepting()
        for connection in tuple(self._open):
            connection.shutdown()
        await self._wait_until_none_left(min(_LINGER, seconds))
        for connection in tuple(self._open):
            if connection.is_unused():
                connection.abort()
        while tasks := set(self._state.tasks):
            if (left := deadline - self._loop.time()) <= 0:
                _log.warning("%d requests in flight were cut off: the drain timeout is over", len(tasks))
                return
            await asyncio.wait(tasks, timeout=left)
        await self._wait_until_none_left(min(_LINGER, seconds))

    async def cut_off(self) -> None:
        """Close whatever is open, at once."""
        self._stop_accepting()
        for handshake in self._handshakes:
            handshake.cancel()
        for connection in tuple(self._open):
            connection.abort()
        await self._none_left.wait()

    async def _wait_until_none_left(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._none_left.wait()

    def _stop_accepting(self) -> None:
        self._stopping = True
        self._pause()
        self._release()

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._listening)

    def _accept_waiting(self) -> None:
        while len(self._open) < self._max_connections:
            try:
                accepted, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.warning("no connection can be accepted for now: %s", error.strerror)
                self._pause()
                self._loop.call_later(_ACCEPT_RETRY, self.accept)
                return
            self._connect(accepted)
        self._pause()

    def _connect(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        connection = HttpConnection(
            self._config,
            self._state,
            app=self._app,
            header_timeout=self._header_timeout,
            on_lost=lambda: self._leave(connection),
        )
        self._open.add(connection)
        self._none_left.clear()
        handshake = self._loop.create_task(self._handshake(connection, accepted))
        self._handshakes.add(handshake)

        def done(task: asyncio.Task[None]) -> None:
            self._handshakes.discard(task)
            error = None if task.cancelled() else task.exception()
            if task.cancelled() or error is not None:
                accepted.close()
                connection.abort()
                self._leave(connection)
            if error is not None and not isinstance(error, OSError):  # a failed handshake is one
                _log.error("a connection could not be served", exc_info=error)

        handshake.add_done_callback(done)

    async def _handshake(self, connection: HttpConnection, accepted: socket.socket) -> None:
        context = self._context()
        tls = context is not None
        await self._loop.connect_accepted_socket(
            lambda: connection,
            accepted,
            ssl=context,
            ssl_handshake_timeout=self._header_timeout if tls else None,
            ssl_shutdown_timeout=_TLS_SHUTDOWN if tls else None,
        )
        if self._stopping:
            connection.shutdown()

    def _leave(self, connection: HttpConnection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._none_left.set()
        self.accept()


async def _unused(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand where uvicorn's configuration wants an application: each connection has its own."""
    raise NotImplementedError


def _within_open_files(max_connections: int) -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return max_connections
    allowed = limit - min(_OTHER_FILES, limit // 2)
    if max_connections > allowed:
        _log.warning(
            "%d connections do not fit into a limit of %d open files: %d are served at a time; raise it (LimitNOFILE)",
            max_connections,
            limit,
            allowed,
        )
    return min(max_connections, allowed)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, address = _resolve(host, port)
    except (socket.gaierror, UnicodeError) as error:
        words = error.strerror if isinstance(error, socket.gaierror) else error
        cause = Fault(f"the host is not known: {words}")
        raise ListenError(errno.EADDRNOTAVAIL, (host, port), cause) from error
    listening: socket.socket | None = None
    try:
        listening = socket.socket(family, socket.SOCK_STREAM)
        # Only for connections of an earlier run that linger in TIME_WAIT; without SO_REUSEPORT a second listener fails.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host in ("", "::") else 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except (OSError, OverflowError) as error:
        if listening is not None:
            listening.close()
        number = error.errno if isinstance(error, OSError) else errno.EINVAL
        raise ListenError(number, (host, port), _cause(error, address[0])) from error
    return listening


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    if not host and socket.has_dualstack_ipv6():
        return socket.AF_INET6, ("::", port)
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # stable: IPv4 first, else as the system orders them
    family, _, _, _, address = found[0]
    return family, (str(address[0]), port)


def _cause(error: OSError | OverflowError, address: str) -> Fault:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return Fault("the port is in use", "stop the process that listens there, or choose another port")
    if number in (errno.EACCES, errno.EPERM):
        return Fault("no permission", "ports below 1024 need a privilege, so choose a higher one")
    if number == errno.EADDRNOTAVAIL:
        return Fault(f"{address} is not an address of this machine")
    return Fault(str(error.strerror if isinstance(error, OSError) else error))
