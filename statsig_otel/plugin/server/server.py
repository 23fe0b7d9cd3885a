"""The HTTP server of one ASGI application: listens, serves until it is stopped, and finishes what is in flight."""

import asyncio
import logging
import resource
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Final

from statsig_otel._telemetry import handshakes_failed, server_refused, servers
from statsig_otel._times import REQUEST_DRAIN
from statsig_otel.plugin.server.asgi_types import AsgiApp
from statsig_otel.plugin.server.certificate import expiry
from statsig_otel.plugin.server.connections import Connections
from statsig_otel.plugin.server.listening import close_in_child, host_port, listen
from statsig_otel.plugin.server.reader import REFUSALS
from statsig_otel.plugin.server.tls import ServerTlsSettings, digest, pem_files, server_context

_logger: Final = logging.getLogger(__name__)
OTHER_FILES: Final = 128  # file descriptors reserved for the rest of the process


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
        takes_webhooks: Whether refused requests and failed handshakes count as those of webhooks. If not, they are only
            logged.
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
        takes_webhooks: bool = True,
    ) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._read_header_timeout = read_header_timeout
        self._max_connections = max_connections
        self._tls = tls
        self._drain_timeout = drain_timeout
        self._inherited = inherited
        self._takes_webhooks = takes_webhooks
        self._lock = threading.Lock()  # over what `stop`, from any thread, shares with `bind` and `serve`
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_wanted = asyncio.Event()
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
        # The fingerprint comes first, so that `read_tls_again` notices a change during the next step.
        pem = b"" if self._tls is None else digest(pem_files(self._tls))
        context = None if self._tls is None else server_context(self._tls)
        expires = None if self._tls is None else expiry(self._tls.cert_file)
        with self._lock:
            if self._socket is not None or self._loop is not None:
                raise RuntimeError("the server is bound already")
            self._socket = listening = self._listening()
            close_in_child(listening)
            self._context, self._pem, self._expiry = context, pem, expires
            self._stop_wanted = asyncio.Event()
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

    def read_tls_again(self) -> Callable[[], None] | None:
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
        context, expires = server_context(self._tls), expiry(self._tls.cert_file)

        def use() -> None:
            self._context, self._pem, self._expiry = context, pem, expires

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
            connections = Connections(
                self._app,
                listening,
                head_timeout=self._read_header_timeout,
                max_connections=_within_open_files(self._max_connections),
                context=lambda: self._context,
                release=listening.close,
                takes_webhooks=self._takes_webhooks,
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
        stop = asyncio.ensure_future(self._stop_wanted.wait())
        try:
            await asyncio.wait((stop, failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
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
                self._loop.call_soon_threadsafe(self._stop_wanted.set)
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


def connections_within(limit: int) -> int:
    """The most connections that leave open files to the rest of the process, if it may have `limit` of them."""
    return limit - min(OTHER_FILES, limit // 2)


def _within_open_files(max_connections: int) -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return max_connections
    allowed = connections_within(limit)
    if max_connections > allowed:
        _logger.warning(
            "%d connections exceed the limit of %d open files, so only %d are served at a time; raise the limit "
            "(LimitNOFILE in systemd)",
            max_connections,
            limit,
            allowed,
        )
    return min(max_connections, allowed)
