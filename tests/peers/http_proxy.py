"""An HTTP proxy on 127.0.0.1: it tunnels CONNECT requests and passes on others, and may ask for credentials."""

import contextlib
import select
import socket
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.peers.http_server import LocalServer

_LONGEST = 30.0


class HttpProxy(LocalServer):
    """A proxy that resolves every host to 127.0.0.1, so that tests can use names of other machines.

    Attributes:
        asked: The method and target of each request.
        authorization: The Proxy-Authorization that it wants; None for none.
        status: What it answers to CONNECT.
        message: The reason phrase of an answer that refuses; None for the usual one.
    """

    def __init__(self, authorization: str | None = None, status: int = 200, message: str | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self.authorization = authorization
        self.status = status
        self.message = message
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def is_allowed(self) -> bool:
                proxy.asked.append((self.command, self.path))
                status = proxy.status
                if proxy.authorization not in (None, self.headers.get("Proxy-Authorization")):
                    status = 407
                if status != 200:
                    self.send_response(status, proxy.message)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                return status == 200

            def do_CONNECT(self) -> None:
                if not self.is_allowed():
                    return
                with socket.create_connection(("127.0.0.1", int(self.path.rpartition(":")[2]))) as server:
                    self.send_response(200, "Connected")
                    self.end_headers()
                    relay(self.connection, server)
                self.close_connection = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not self.is_allowed():
                    return
                url = urlsplit(self.path)
                client = HTTPConnection("127.0.0.1", url.port, timeout=_LONGEST)
                headers = {key: value for key, value in self.headers.items() if not key.startswith("Proxy-")}
                client.request("POST", url.path, body, headers)
                answer = client.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                client.close()

        super().__init__(Handler)


def relay(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes on in both directions, until one side ends."""
    others = {one: other, other: one}
    with contextlib.suppress(OSError):
        while True:
            readable, _, _ = select.select([one, other], [], [], _LONGEST)
            for source in readable:
                data = source.recv(65536)
                if not data:
                    return
                others[source].sendall(data)
