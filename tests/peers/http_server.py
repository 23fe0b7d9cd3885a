"""The standard library's HTTP servers on 127.0.0.1, each in a thread for the time of a block."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Self


@contextmanager
def in_thread(server: HTTPServer) -> Iterator[tuple[str, int]]:
    """A server that listens on this machine, at work for the time of the block, and closed after it."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.shutdown()
            thread.join()


class LocalServer:
    """A server with threads on a free port, which writes no lines about its requests. A context manager.

    Args:
        handler: Handles the requests.
        tls: Encrypt with this.

    Attributes:
        port: Where it listens.
        origin: The URL without a path.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> None:
        silent = type("Handler", (handler,), {"log_message": lambda *_: None})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), silent)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._block = ExitStack()
        self.port = self._server.server_port
        self.origin = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._block.enter_context(in_thread(self._server))
        return self

    def __exit__(self, *_: object) -> None:
        self._block.close()
