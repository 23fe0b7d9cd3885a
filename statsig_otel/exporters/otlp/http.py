"""The OTLP/HTTP exporter: posts batches over one kept urllib3 connection, without redirects or retries."""

import contextlib
import gzip
import logging
import re
import ssl
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from http.client import HTTPException
from socket import SHUT_RDWR, socket
from threading import Event, Thread
from typing import ClassVar, Final
from urllib.parse import parse_qsl

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from statsig_otel import __version__
from statsig_otel.config.opaque import reveal
from statsig_otel.exporters.decoding import unreadable
from statsig_otel.exporters.exporter import Blocked, Outcome, Rejected, RetryLater
from statsig_otel.exporters.json_lines import to_json_line
from statsig_otel.exporters.network.answers import (
    CLIENT_CERTIFICATE_REFUSED,
    PROTOBUF,
    REPAIR_TLS,
    http_failure,
    is_client_certificate_alert,
    one_line,
    server_time,
    untrusted,
)
from statsig_otel.exporters.network.proxy import Proxy, proxy_for
from statsig_otel.exporters.otlp.exporter import OtlpExporter
from statsig_otel.exporters.otlp.protocols import not_understood, spoken_by_error
from statsig_otel.exporters.otlp.settings import OtlpHttpSettings
from statsig_otel.exporters.otlp.status import MAX_RESPONSE_BYTES

_logger: Final = logging.getLogger(__name__)

_JSON: Final = "application/json"
_CHUNK: Final = 64 << 10
_CONNECTION: Final = re.compile(r"^HTTPS?Connection\(host=.*?, port=\d+\): ")
"""With what urllib3 begins its messages, after which it says what happened. The place is said anyway."""

_TUNNEL_FAILED: Final = re.compile(r"Tunnel connection failed: ([0-9]{3})(.*)", re.DOTALL)
_FINAL: Final = 200  # lower status codes are interim
_OK: Final = range(_FINAL, 300)


def _as_json(payload: bytes) -> bytes:
    """The request as JSON.

    Raises:
        DecodeError: It is not an `ExportLogsServiceRequest`.
        RecursionError: It is nested too deeply.
    """
    return to_json_line(ExportLogsServiceRequest.FromString(payload))


class _Request:
    """One request and its answer, in its own thread, so that the exporter can abandon it at any point.

    A name lookup can't be interrupted, and a server may send its answer byte by byte without end. Only another thread
    can limit the time of both.
    """

    def __init__(
        self,
        connection: HTTPConnection,
        path: str,
        body: bytes,
        headers: dict[str, str],
        tunnel: Callable[[HTTPConnection], None],
    ) -> None:
        self.connection = connection
        self.status: int | None = None
        self.content_type = ""
        self.retry_after = ""
        self.location = ""
        self.date = ""
        self.body = bytearray()
        self.is_new = False  # the connection was opened for this request
        self.complete = False  # the connection can be used for the next request
        self.error: Exception | None = None
        self._request = (path, body, headers)
        self._tunnel = tunnel  # names the server to a proxy, for each connection anew
        self._socket: socket | None = None
        self._ended = Event()
        self._abandoned = False

    def run(self) -> None:
        """Send the request and store the answer or the error. Runs in the request's thread."""
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - handed to the waiting thread
            self.error = error
        finally:
            if self._abandoned or not self.complete:
                self.connection.close()
            self._ended.set()

    def wait(self, timeout: float) -> bool:
        """Wait for the end. Return False if the time is over or the request was abandoned."""
        return self._ended.wait(timeout) and not self._abandoned

    def abandon(self) -> None:
        """Release the waiting thread and close the connection. May be called from any thread."""
        self._abandoned = True
        self._ended.set()
        if self._socket is not None:
            # socket.shutdown, because SSLSocket.shutdown would discard the TLS state while the other thread reads.
            with contextlib.suppress(OSError):  # the connection may already be closed
                socket.shutdown(self._socket, SHUT_RDWR)
        if self.complete:
            self.connection.close()

    def _run(self) -> None:
        path, body, headers = self._request
        if not self.connection.is_connected:  # never opened, or closed by the server while idle
            self.is_new = True
            self.connection.close()
            self._tunnel(self.connection)
            self.connection.connect()
        self._socket = self.connection.sock
        if self._abandoned:
            return
        # A server may refuse a request before it has read all of it, for example with 413, and then close. Its answer
        # counts. If there is none, reading the answer raises.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            self.connection.request("POST", path, body=body, headers=headers, preload_content=False)
        response = self.connection.getresponse()
        self.content_type = response.headers.get("Content-Type", "")
        self.retry_after = response.headers.get("Retry-After", "")
        self.location = response.headers.get("Location", "")
        self.date = response.headers.get("Date", "")
        self.status = response.status
        while chunk := response.read1(_CHUNK):
            self.body += chunk
            if len(self.body) > MAX_RESPONSE_BYTES:
                return
        self.complete = response.status >= _FINAL  # after an interim answer another one follows


class OtlpHttpExporter(OtlpExporter[OtlpHttpSettings]):
    """Sends log records to an OTLP/HTTP receiver as binary protobuf or as JSON. Implements `Exporter`.

    The exporter keeps one connection between batches. If the server has closed it, the exporter opens a new one. If the
    server closes it just as the next request is sent, the outcome is `RetryLater`, as for any broken connection.
    The exporter follows no redirects. It uses the environment's proxies: see `proxy_for`.
    """

    _protocol: ClassVar[str] = "HTTP"

    def __init__(self, name: str, settings: OtlpHttpSettings) -> None:
        super().__init__(name, settings)
        self._url = settings.url
        self._path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        self._shown_url = f"{self._url.scheme}://{self._url.netloc}{self._url.path}"  # for messages
        self._proxy: Proxy | None = None
        self._headers: dict[str, str] = {}
        self._context: ssl.SSLContext | None = None
        self._running = False
        self._connection: HTTPConnection | None = None
        self._request: _Request | None = None

    def start(self) -> None:
        """Read the TLS files. The first request opens the connection.

        Raises:
            OSError: A file of `tls` can't be read.
            ValueError: A file of `tls` does not contain what its key requires, or the environment names a proxy that
                can't be used.
        """
        self._read_material()
        self._proxy = proxy_for(self._url)
        if self._settings.uses_tls and self._settings.tls.insecure_skip_verify:
            _logger.warning(
                "%s: tls::insecure_skip_verify is on, so any server that answers at %s receives the records",
                self._name,
                self._url.hostname,
            )
        with self._lock:
            self._prepare()
            self._running = True
        self._say_where(self._place)

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        """Post one batch. For the parameters and outcomes see `Exporter.send`."""
        deadline = time.monotonic() + timeout
        request, in_time = None, False
        try:
            body = payload if self._settings.encoding == "proto" else _as_json(payload)
            if self._settings.compression == "gzip":
                body = gzip.compress(body, mtime=0)
            request = self._begin(body, timeout)
            if request is None:
                return RetryLater("the exporter is not running")
            run = partial(copy_context().run, request.run)  # the sender's: it says that nobody makes spans of this
            try:
                Thread(target=run, name=f"{self._name} request", daemon=True).start()
            except RuntimeError as error:
                return self._without_thread(request, error)
            in_time = request.wait(deadline - time.monotonic())
            if not in_time:
                request.abandon()
            outcome = self._outcome(request, count, timeout, in_time=in_time)
        except (DecodeError, RecursionError) as error:
            outcome = Rejected(unreadable(error))
        except Exception as error:  # noqa: BLE001 - the contract: send never raises
            outcome = self._unexpected(error)
        self._end(request if in_time else None)
        return outcome

    def shutdown(self) -> None:
        """Close the connection. A request in progress is abandoned at once."""
        with self._lock:
            self._running = False
            request, self._request = self._request, None
            connection, self._connection = self._connection, None
        if request is not None:
            request.abandon()
        if connection is not None:
            connection.close()

    @property
    def _place(self) -> str:
        """Where requests go, for messages."""
        return f"{self._shown_url} through the proxy {self._proxy}" if self._proxy else self._shown_url

    def _prepare(self) -> None:
        """Make what each request needs of the settings and of the certificates."""
        configured = {key: reveal(value) for key, value in self._settings.headers.items()}
        query = parse_qsl(self._url.query, keep_blank_values=True)  # may contain a key too
        self._hide = (*configured.values(), self._url.query, *(value for _, value in query))
        media_type = PROTOBUF if self._settings.encoding == "proto" else _JSON
        self._headers = {"Content-Type": media_type, "User-Agent": f"statsig-otel/{__version__}", **configured}
        if self._proxy is not None:
            self._hide += (self._proxy.authorization, self._proxy.password)
            if self._url.scheme == "http":  # otherwise only the tunnel needs them
                self._headers |= self._proxy.headers
        if self._settings.compression == "gzip":
            self._headers["Content-Encoding"] = "gzip"
        self._context = self._settings.tls.context(self._material) if self._settings.uses_tls else None

    def _begin(self, body: bytes, timeout: float) -> _Request | None:
        with self._lock:
            if not self._running:
                return None
            if self._renewed:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                self._prepare()
                self._renewed = False
            connection, self._connection = self._connection or self._connect(), None
            # This limits each socket operation, so that the thread of an abandoned request ends too.
            connection.timeout = timeout
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
            self._request = _Request(connection, self._target(), body, self._headers, self._tunnel)
            return self._request

    def _without_thread(self, request: _Request, error: RuntimeError) -> Outcome:
        """The outcome while the system has no thread for the request: the limit of a user, or of a container."""
        request.connection.close()
        self._end(None)
        return RetryLater(f"no thread can be started for the request: {error}")

    def _end(self, request: _Request | None) -> None:
        """Keep the connection of a request that was not abandoned."""
        with self._lock:
            self._request = None
            if request is not None and request.complete and self._running:
                self._connection = request.connection

    def _connect(self) -> HTTPConnection:
        """Create a connection without opening it."""
        host, port = self._url.hostname or "", self._url.port
        if self._proxy is not None:
            host, port = self._proxy.host, self._proxy.port
        if self._context is None:
            return HTTPConnection(host, port)
        name = self._settings.tls.server_name_override
        return HTTPSConnection(host, port, ssl_context=self._context, server_hostname=name or None)

    def _target(self) -> str:
        """The target of the request: a path; for a proxy without a tunnel the whole URL (RFC 9112, section 3.2)."""
        if self._proxy is None or self._url.scheme == "https":
            return self._path
        return f"http://{self._url.netloc}{self._path}"

    def _tunnel(self, connection: HTTPConnection) -> None:
        """Name the server to the proxy."""
        if self._proxy is not None and self._url.scheme == "https":
            connection.set_tunnel(self._url.hostname or "", self._url.port or 443, self._proxy.headers)

    def _outcome(self, request: _Request, count: int, timeout: float, *, in_time: bool) -> Outcome:
        """The outcome of a request. A received status decides, even if the body is incomplete."""
        status, body = request.status, bytes(request.body)
        if status is None:
            # The socket has the same timeout, and may be the first to notice.
            if in_time and request.error is not None and not isinstance(request.error, TimeoutError):
                return self._failure(request.error, is_new=request.is_new)
            return RetryLater(
                f"no answer within {timeout:g} s from {self._place}"
                if self._running
                else "the exporter is shutting down"
            )
        if status not in _OK:
            return http_failure(
                status,
                body,
                content_type=request.content_type,
                retry_after=request.retry_after,
                location=request.location,
                now=server_time(request.date) or time.time(),
                url=self._place,
                hide=self._hide,
            )
        return self._success(
            body,
            count,
            content_type=request.content_type,
            is_complete=in_time and request.complete,
            url=self._place,
        )

    def _failure(self, error: Exception, *, is_new: bool) -> Outcome:
        """The outcome of a request without an answer, over a new connection or over one that was kept."""
        message = str(error)
        reason = f"{type(error).__name__} from {self._place}: {one_line(_CONNECTION.sub('', message), self._hide)}"
        if isinstance(error, ssl.SSLCertVerificationError):
            return Blocked(f"{untrusted()}: {reason}", REPAIR_TLS)
        if isinstance(error, ssl.SSLError) and is_client_certificate_alert(message):
            return Blocked(f"{CLIENT_CERTIFICATE_REFUSED}: {reason}", REPAIR_TLS)
        if found := _TUNNEL_FAILED.match(message):
            said = one_line(found[2], self._hide)
            reason = f"the proxy {self._proxy} refuses a tunnel to {self._shown_url}: HTTP {found[1]} {said}"
            return RetryLater(reason) if isinstance(http_failure(int(found[1])), RetryLater) else Blocked(reason)
        if isinstance(error, OSError | HTTPException | HTTPError):
            is_the_server = is_new and self._proxy is None  # otherwise the proxy may have answered
            return not_understood(spoken_by_error(error) if is_the_server else None, self._settings, reason)
        return self._unexpected(error)
