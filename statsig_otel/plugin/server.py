"""The HTTP server under the receiver: granian's embedded one, on a socket of ours, with an end that is certain.

Granian brings what a public receiver needs: a timeout and a bound for request headers, a bound for connections, TLS.
Four things about it do not fit a service, or an application that embeds one, and are settled here.

- It binds with SO_REUSEPORT: a second service on the same port starts silently and takes half of the requests.
  So `HttpServer.bind` opens the listening socket, and granian is given its descriptor.
- It configures the process's logging, which closes the handlers that an application has installed.
  So it gets an incremental configuration, which sets one level and touches nothing else.
- A stop waits for each client that has sent half of a request. So what is left after the drain is cut off: while a
  connection lives, so do threads of granian's, and those must be gone before the interpreter shuts down.
- A cancelled serve leaves its worker behind, listening. So it is kept from cancellation and always waited for.
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
import stat
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server as GranianServer

_log = logging.getLogger(__name__)

Scope = dict[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]  # messages: each framework types them in its own way
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI 3 application. It is called for HTTP requests only: no lifespan, no websockets."""

MAX_HEADER_BYTES: Final = 64 * 1024
"""The bound for what is read of a request line and headers before they are complete; past it the answer is 431.

What arrives in one piece may be up to twice as long. More than 100 header fields are 431 too.
"""

_BACKLOG: Final = 1024
_OTHER_FILES: Final = 128  # descriptors that are left to the rest of the process
_LINGER: Final = 1.0  # seconds after a stop in which the rest of a half-sent header may still arrive
_CUT_OFF: Final = 5.0  # seconds in which granian must have noticed that its connections are gone
_SETTLE: Final = 0.1  # seconds for granian's threads to end after their work has
_POLL: Final = 0.05  # seconds between two looks during a stop


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """What a TLS server needs, named as in the Collector's configtls. Keys must not be encrypted.

    With `client_ca_file` a client must present a certificate that one of its authorities has signed (mTLS).
    """

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    min_version: Literal["1.2", "1.3"] = "1.2"

    def check(self) -> None:
        """Read the files once, as the server will.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file holds no usable PEM, or the key is not the certificate's.
        """
        files = {"cert_file": self.cert_file, "key_file": self.key_file, "client_ca_file": self.client_ca_file}
        for name, path in files.items():
            if path is not None:
                _require_readable(name, path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # An empty password: an encrypted key is an error here, never a prompt on the terminal.
            context.load_cert_chain(self.cert_file, self.key_file, password="")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                message = f"tls: the key in {self.key_file} is not that of the certificate in {self.cert_file}"
            else:
                message = (
                    f"tls: {self.cert_file} and {self.key_file} are not a PEM certificate chain"
                    f" and its unencrypted key: {error}"
                )
            raise ValueError(message) from error
        if self.client_ca_file is not None:
            try:
                context.load_verify_locations(self.client_ca_file)
            except ssl.SSLError as error:
                raise ValueError(f"tls: {self.client_ca_file} holds no PEM certificates: {error}") from error


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
            connections open, set it above the proxy's idle timeout, or the proxy may send into a closing one.
        max_connections: Connections that are served at a time; more wait in the system's backlog. Bounded further,
            with a warning, by the process's limit of open files: at that limit granian would spin.
        tls: Serve HTTPS.
        drain_timeout: Seconds that `serve` gives requests in flight after a stop, before it cuts them off.
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
        self._in_flight = 0

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
            OSError: The address cannot be listened on, or a TLS file cannot be read; the message says which and why.
            ValueError: The TLS files do not fit.
            RuntimeError: The server is bound already.
        """
        if self._tls is not None:
            self._tls.check()
        with self._lock:
            if self._socket is not None or self._loop is not None:
                raise RuntimeError("the server is bound already")
            self._socket = listening = _listen(self._host, self._port)
            self._stopped = asyncio.Event()
            self._stopping = False
        name = listening.getsockname()
        self._address = (name[0], name[1])

    async def serve(self) -> None:
        """Serve until `stop`, then let the requests in flight finish; the port is free when this returns.

        A cancellation stops too, at once: requests in flight are cut off.

        Raises:
            RuntimeError: The server is not bound, or granian has failed.
        """
        with self._lock:
            if self._stopping:
                return
            if self._socket is None:
                raise RuntimeError("the server is not bound: call bind() first")
            listening, self._socket = self._socket, None
            try:
                granian = self._granian(listening)
            except BaseException:
                listening.close()
                raise
            self._loop = asyncio.get_running_loop()
        worker = asyncio.create_task(granian.serve(), name="granian")
        _keep_from_cancellation(worker)
        stopped = asyncio.create_task(self._stopped.wait())
        drain_timeout = self._drain_timeout
        try:
            await asyncio.wait({worker, stopped}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            drain_timeout = 0.0
            raise
        finally:
            self._stopping = True
            stopped.cancel()
            try:
                await self._drain(granian, worker, drain_timeout)
            finally:
                with self._lock:
                    self._loop = None
        if (error := worker.exception()) is not None:
            raise RuntimeError(f"the HTTP server has failed: {error}") from error

    def stop(self) -> None:
        """Stop accepting and let `serve` come to its end. From any thread, any number of times."""
        with self._lock:
            self._stopping = True
            listening, self._socket = self._socket, None
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._stopped.set)
        if listening is not None:  # bound and never served
            listening.close()

    async def _drain(self, granian: _GranianOnOurSocket, worker: asyncio.Task[None], drain_timeout: float) -> None:
        """Wait for the worker's end; cut connections off when nothing is worth waiting for, or the time is over."""
        granian.stop()
        clock = asyncio.get_running_loop().time
        began = clock()
        while not worker.done():
            waited = clock() - began
            if waited >= drain_timeout or (self._in_flight == 0 and waited >= _LINGER):
                break
            await asyncio.wait({worker}, timeout=_POLL)
        if self._in_flight and not worker.done():
            _log.warning("%d requests in flight were cut off: the drain timeout is over", self._in_flight)
        began = clock()
        while not worker.done():
            if clock() - began >= _CUT_OFF:
                raise RuntimeError("the HTTP server did not stop")
            _cut_off_connections(self.address)
            await asyncio.wait({worker}, timeout=_POLL)
        # The worker's threads say that they are done while they still hold on to the interpreter. They need the
        # GIL once more: a process that ends before they had it ends with a panic on stderr.
        await asyncio.sleep(_SETTLE)

    async def _serve_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["http_version"] == "1":  # ASGI says 1.0; Falcon answers all else with 500, and nginx proxies with 1.0
            scope["http_version"] = "1.0"
        self._in_flight += 1
        try:
            await self._app(scope, receive, self._closing(send))
        except asyncio.CancelledError:
            # Only the end of the loop cancels a request. It is no error of the application: granian would log it.
            pass
        finally:
            self._in_flight -= 1

    def _closing(self, send: Send) -> Send:
        """Mark answers during a stop as the last of their connection.

        Granian tells its idle connections of the stop; one that is just being opened can miss it.
        """

        def send_closing(message: Message) -> Awaitable[None]:
            if self._stopping and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            return send(message)

        return send_closing

    def _granian(self, listening: socket.socket) -> _GranianOnOurSocket:
        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {
                "ssl_cert": self._tls.cert_file,
                "ssl_key": self._tls.key_file,
                "ssl_protocol_min": SSLProtocols(f"tls{self._tls.min_version}"),
                "ssl_ca": self._tls.client_ca_file,
                "ssl_client_verify": self._tls.client_ca_file is not None,
            }
        return _GranianOnOurSocket(
            self._serve_request,
            listening,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(
                header_read_timeout=max(1, round(self._read_header_timeout * 1000)), max_buffer_size=MAX_HEADER_BYTES
            ),
            websockets=False,
            backlog=_BACKLOG,
            backpressure=_within_open_files(self._max_connections),
            # Above the warning that the embedded server is experimental. Errors reach the handlers of the process.
            log_level=LogLevels.error,
            # Incremental: the handlers and loggers of the process stay as they are.
            log_dictconfig={"version": 1, "incremental": True, "formatters": {}, "handlers": {}, "loggers": {}},
            **tls,
        )


class _GranianOnOurSocket(GranianServer):
    """Granian's server, which takes over a listening socket instead of opening its own."""

    def __init__(self, app: AsgiApp, listening: socket.socket, **options: Any) -> None:
        super().__init__(app, **options)
        self._listening = listening

    def stop(self) -> None:
        super().stop()  # type: ignore[no-untyped-call]  # granian types its methods only in part

    def _spawn_workers(self, *arguments: Any) -> None:
        super()._spawn_workers(*arguments)  # type: ignore[no-untyped-call]  # as above
        for worker in self.wrks:
            tasks: tuple[Any, ...] = (worker._task, worker._wtask)  # noqa: SLF001  # nobody else hands them out
            for task in tasks:
                _keep_from_cancellation(task)

    def _init_shared_socket(self) -> None:
        # The worker closes the descriptor when it stops to listen.
        descriptor = self._listening.detach()
        holder: Any = SocketHolder  # its type stub knows no arguments
        # On Linux it calls listen() once more, with the backlog.
        self._shd = holder(descriptor, False, self.backlog) if sys.platform == "linux" else holder(descriptor, False)


def _keep_from_cancellation(task: asyncio.Task[None]) -> None:
    """Hide a task from the end of asyncio.run, which cancels all at once.

    Only granian's own tasks see the end of its worker; `HttpServer.serve`, which is cancelled, waits for them. The
    function is documented, under "Extending" asyncio.
    """
    asyncio.tasks._unregister_task(task)  # noqa: SLF001


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


def _require_readable(name: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise OSError(error.errno, f"tls.{name}: cannot read {path}: {error.strerror}") from error


def _listen(host: str, port: int) -> socket.socket:
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, address = _resolve(host, port)
    except (socket.gaierror, UnicodeError) as error:
        raise OSError(errno.EADDRNOTAVAIL, f"cannot listen on {shown}: the host is not known: {error}") from error
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Only for connections of an earlier run that linger in TIME_WAIT; without SO_REUSEPORT a second listener fails.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host in ("", "::") else 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        number = error.errno if isinstance(error, OSError) else errno.EINVAL
        raise OSError(number, f"cannot listen on {shown}: {_cause(error, address[0])}") from error
    return listening


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    if not host and socket.has_dualstack_ipv6():
        return socket.AF_INET6, ("::", port)
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # stable: IPv4 first, else as the system orders them
    family, _, _, _, address = found[0]
    return family, (str(address[0]), port)


def _cause(error: OSError | OverflowError, address: str) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return "the port is in use; stop the process that listens there, or choose another port"
    if number in (errno.EACCES, errno.EPERM):
        return "no permission; ports below 1024 need a privilege, so choose a higher one"
    if number == errno.EADDRNOTAVAIL:
        return f"{address} is not an address of this machine"
    return str(error.strerror if isinstance(error, OSError) else error)


def _cut_off_connections(local: tuple[str, int]) -> None:
    """Shut down every accepted connection of the address.

    Granian can close none by itself. A duplicate of each descriptor is looked at, so that one that is closed and
    reused meanwhile is never mistaken for another.
    """
    for descriptor in _socket_descriptors():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            # Never the listening one: granian would try to accept from it for ever, and not see that it must stop.
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                continue
            host, port = connection.getsockname()[:2]
            if port == local[1] and (host == local[0] or ip_address(local[0]).is_unspecified):
                connection.shutdown(socket.SHUT_RDWR)


def _socket_descriptors() -> Iterator[int]:
    for entry in Path("/dev/fd").iterdir():
        descriptor = int(entry.name)
        with contextlib.suppress(OSError):  # closed since it was listed
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                yield descriptor
