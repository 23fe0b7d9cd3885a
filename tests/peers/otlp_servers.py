"""OTLP receivers that do as they are told, over gRPC and over HTTP, each on a port of its own on 127.0.0.1.

    with HttpSink() as sink:
        sink.answer = HttpAnswer(status=503, headers={"Retry-After": "7"})
        ...  # send to sink.url
        assert sink.requests[0].records

Set `answer` to one answer for all requests, or to a function from the request to its answer.
"""

import contextlib
import gzip
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # the package has no py.typed
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # as above
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from tests.peers.certs import ServerTls

_LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
_LONGEST_HANG = 60.0


@dataclass(frozen=True)
class Received:
    """One request, as it came in.

    Attributes:
        payload: The message's bytes, decompressed.
        headers: Its headers or metadata, names in lower case.
        path: The URL's path and query, or the gRPC method.
        body: The bytes of an HTTP body as they came over the wire; empty for gRPC.
    """

    payload: bytes
    headers: dict[str, str]
    path: str
    body: bytes = b""

    @property
    def message(self) -> ExportLogsServiceRequest:
        return ExportLogsServiceRequest.FromString(self.payload)

    @property
    def records(self) -> list[LogRecord]:
        """All log records, in order."""
        return [
            record
            for resource in self.message.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


def partial_success(rejected: int, message: str = "") -> bytes:
    """A serialised response that reports refused records."""
    return ExportLogsServiceResponse(
        partial_success=ExportLogsPartialSuccess(rejected_log_records=rejected, error_message=message)
    ).SerializeToString()


def retry_info(seconds: int | None, nanos: int = 0, *, code: int = 14) -> bytes:
    """A serialised `google.rpc.Status` with a RetryInfo; without a delay for None."""
    status = Status(code=code)
    status.details.add().Pack(
        RetryInfo() if seconds is None else RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos))
    )
    data: bytes = status.SerializeToString()
    return data


class _Sink:
    """What both servers share: recording, and an end to every wait."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self._released = threading.Event()
        self._arrived = threading.Condition()

    def record(self, received: Received) -> None:
        with self._arrived:
            self.requests.append(received)
            self._arrived.notify_all()

    def wait_for(self, count: int, timeout: float = 30.0) -> list[Received]:
        """Wait until so many requests have come in."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) >= count, timeout), (
                f"{len(self.requests)} of {count} requests"
            )
        return self.requests

    @property
    def records(self) -> list[LogRecord]:
        """The log records of all requests, in order; refused ones too."""
        return [record for request in list(self.requests) for record in request.records]

    def release(self) -> None:
        """Let hanging answers go on."""
        self._released.set()


@dataclass(frozen=True)
class GrpcAnswer:
    """One answer over gRPC.

    Attributes:
        code: The status.
        message: The status message.
        trailers: Trailing metadata, such as `grpc-status-details-bin`.
        body: The response's bytes, sent with OK only.
        hang: Answer only after `release`.
    """

    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    trailers: tuple[tuple[str, str | bytes], ...] = ()
    body: bytes = b""
    hang: bool = False


class GrpcSink(_Sink):
    """An OTLP/gRPC receiver for logs.

    Args:
        port: 0 for a free one.
        tls: For TLS.
        address: Something else than a port of 127.0.0.1, such as `unix:/path`.
        method: The method that it has, of another signal than logs.
    """

    def __init__(self, *, port: int = 0, tls: ServerTls | None = None, address: str = "", method: str = _LOGS) -> None:
        super().__init__()
        self._method = method
        self.answer: GrpcAnswer | Callable[[Received], GrpcAnswer] = GrpcAnswer()
        self._threads = ThreadPoolExecutor(4)
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 << 20)]
        self._server = grpc.server(self._threads, options=options)
        # Without serialisers: bytes in, bytes out.
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self._export)
        service, _, name = method[1:].partition("/")
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
        wanted = address or f"127.0.0.1:{port}"
        if tls is None:
            self.port = self._server.add_insecure_port(wanted)
        else:
            credentials = grpc.ssl_server_credentials(
                [(tls.certificate.key, tls.certificate.chain)], tls.client_ca, tls.client_ca is not None
            )
            self.port = self._server.add_secure_port(wanted, credentials)
        self.address = address or f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, cutting all connections."""
        self.release()
        self._server.stop(grace=0).wait(10)
        self._threads.shutdown()

    def _export(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        headers = {key: _text(value) for key, value in context.invocation_metadata()}
        received = Received(request, headers, self._method)
        self.record(received)
        answer = self.answer(received) if callable(self.answer) else self.answer
        if answer.hang:
            self._released.wait(_LONGEST_HANG)
        context.set_trailing_metadata(answer.trailers)
        if answer.code is not grpc.StatusCode.OK:
            context.abort(answer.code, answer.message)
        return answer.body


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()


@dataclass(frozen=True)
class HttpAnswer:
    """One answer over HTTP.

    Attributes:
        status: The status code.
        headers: Besides Content-Length; protobuf is the default Content-Type. With a Transfer-Encoding, `body` holds
            the chunks as they are sent.
        body: The body.
        hang: Answer only after `release`.
        drip: Send the head, the body or nothing byte by byte, slowly.
        cut: End the connection in place of an answer: `close` in order, `reset` with a TCP reset, `half` after half of
            the body.
        read_body: False for an answer before the request's body has been read, after which the connection is closed.
        close_after: Close the connection after the answer, without having said so.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    hang: bool = False
    drip: str = ""
    cut: str = ""
    read_body: bool = True
    close_after: bool = False

    def head(self, *, last: bool = False) -> bytes:
        headers = {"Content-Type": "application/x-protobuf", **self.headers}
        if last:
            headers["Connection"] = "close"
        if "Transfer-Encoding" not in headers:
            headers["Content-Length"] = str(len(self.body))
        lines = [f"HTTP/1.1 {self.status} status", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1")


class HttpSink(_Sink):
    """An OTLP/HTTP receiver for logs, at any path.

    Attributes:
        connections: How many connections have been opened so far.

    Args:
        port: 0 for a free one.
        tls: For TLS.
    """

    def __init__(self, *, port: int = 0, tls: ServerTls | None = None) -> None:
        super().__init__()
        self.answer: HttpAnswer | Callable[[Received], HttpAnswer] = HttpAnswer()
        self.connections = 0
        self._context = None if tls is None else server_context(tls)
        self._open: set[socket.socket] = set()
        self._server = _HttpServer(("127.0.0.1", port), self)
        self.port = int(self._server.server_address[1])
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"{'http' if tls is None else 'https'}://{self.address}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, cutting all connections."""
        self.release()
        self._server.shutdown()
        self._thread.join()
        self.cut_connections()
        self._server.server_close()

    def cut_connections(self) -> None:
        """Close all connections that are open now, as a server does with idle ones."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def wait_until_closed(self, timeout: float = 30.0) -> None:
        """Wait until no connection is open any more."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: not self._open, timeout), f"{len(self._open)} connections are open"

    @contextlib.contextmanager
    def handling(self, connection: socket.socket) -> Iterator[socket.socket | None]:
        """One connection, encrypted where it should be; None where the handshake fails."""
        self.connections += 1
        encrypted = connection
        try:
            if self._context is not None:
                encrypted = self._context.wrap_socket(connection, server_side=True)
        except OSError:
            connection.close()
            yield None
            return
        self._open.add(encrypted)
        try:
            yield encrypted
        finally:
            encrypted.close()
            with self._arrived:
                self._open.discard(encrypted)
                self._arrived.notify_all()

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        """Record one request and answer it."""
        headers = {name.lower(): value for name, value in handler.headers.items()}
        length = int(headers.get("content-length", "0"))
        if not callable(self.answer) and not self.answer.read_body:
            self.record(Received(b"", headers, handler.path))
            self._write(handler, self.answer)
            handler.close_connection = True
            return
        body = handler.rfile.read(length)
        if len(body) < length:
            handler.close_connection = True
            return
        payload = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
        received = Received(payload, headers, handler.path, body)
        self.record(received)
        self._write(handler, self.answer(received) if callable(self.answer) else self.answer)

    def _write(self, handler: BaseHTTPRequestHandler, answer: HttpAnswer) -> None:
        if answer.hang:
            self._released.wait(_LONGEST_HANG)
        last = self._released.is_set()  # and says so: a client that is not told may send the next request into the end
        handler.close_connection = bool(answer.cut) or answer.close_after or last
        if answer.cut == "reset":
            # Closed with a lingering time of zero, a connection ends with a reset.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if answer.cut in ("reset", "close"):
            return
        body = answer.body[: len(answer.body) // 2] if answer.cut == "half" else answer.body
        with contextlib.suppress(OSError):  # the client may have gone
            for part, data in (("head", answer.head(last=last)), ("body", body)):
                for piece in [data] if answer.drip != part else [data[i : i + 1] for i in range(len(data))]:
                    handler.wfile.write(piece)
                    if answer.drip == part and self._released.wait(0.05):
                        return


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, address: tuple[str, int], sink: HttpSink) -> None:
        self.sink = sink
        super().__init__(address, _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.sink.handling(request) as connection:
            if connection is not None:
                with contextlib.suppress(OSError):
                    _Handler(connection, client_address, self)

    def shutdown_request(self, request: Any) -> None:
        request.close()  # `handling` has ended it; a shutdown here would soften a reset


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, _HttpServer)
        server.sink.respond(self)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
        """Say nothing."""


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """The server's side of TLS for Python's own servers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as folder:
        context.load_cert_chain(*tls.certificate.write(Path(folder)))
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=tls.client_ca.decode())
    return context


class RawServer:
    """A TCP server that answers each connection with the same bytes, and ends it.

    Args:
        reply: What it says once something has been said to it.
        tls: Encrypt with this; a handshake that fails ends the connection.
    """

    def __init__(self, reply: bytes = b"", *, tls: ssl.SSLContext | None = None) -> None:
        self._reply = reply
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), contextlib.closing(connection):
                connection.settimeout(5)
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                with contextlib.closing(connection):
                    connection.recv(65536)
                    connection.sendall(self._reply)
                    # To close with unread bytes would reset the connection, and the client might not see the answer.
                    socket.socket.shutdown(connection, socket.SHUT_WR)
                    while socket.socket.recv(connection, 65536):
                        pass


class Relay:
    """A TCP relay to a server that counts the client's bytes, and can go dead as a network does.

    Attributes:
        sent: How many bytes clients have sent through it.
        connections: How many connections have been opened so far.
        pass_nothing: Set it, and new connections are dead from the start.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self.sent = 0
        self.connections = 0
        self.pass_nothing = False
        self._dead: set[socket.socket] = set()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.address = f"127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        for one in self._open:
            one.close()

    def go_dead(self) -> None:
        """From now on nothing passes on the connections that are open; new ones work."""
        self._dead |= self._open

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self.connections += 1
            self._open |= {client, server}
            if self.pass_nothing:
                self._dead |= {client, server}
            for source, sink in ((client, server), (server, client)):
                thread = threading.Thread(target=self._pump, args=(source, sink, source is client))
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if from_client:
                    self.sent += len(data)
                if source not in self._dead:
                    sink.sendall(data)
            if source not in self._dead:
                sink.shutdown(socket.SHUT_WR)
