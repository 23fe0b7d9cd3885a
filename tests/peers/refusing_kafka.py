"""A Kafka broker on 127.0.0.1 that takes nobody's password, and quotes it."""

import contextlib
import struct
import threading
from collections.abc import Callable, Mapping
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Final, Self

_API_VERSIONS: Final = 18
_SASL_HANDSHAKE: Final = 17
_SASL_AUTHENTICATE: Final = 36
_KNOWN: Final = ((0, 0, 3), (3, 0, 2), (_SASL_HANDSHAKE, 0, 1), (_API_VERSIONS, 0, 0), (_SASL_AUTHENTICATE, 0, 0))
"""Kinds of requests (produce and metadata come first), each with its lowest and its highest version."""

_UNSUPPORTED_VERSION: Final = 35
_SASL_AUTHENTICATION_FAILED: Final = 58


def _string(text: bytes) -> bytes:
    return struct.pack(">h", len(text)) + text


def _versions(version: int, _: bytes) -> bytes:
    """The kinds of requests that it knows. A client that asks in a newer version is told to ask in the oldest."""
    error = _UNSUPPORTED_VERSION if version else 0
    return struct.pack(">hi", error, len(_KNOWN)) + b"".join(struct.pack(">hhh", *one) for one in _KNOWN)


def _handshake(_: int, __: bytes) -> bytes:
    return struct.pack(">hi", 0, 1) + _string(b"PLAIN")


def _authenticate(_: int, body: bytes) -> bytes:
    """The refusal. Of PLAIN the request is its length, and NUL, the user, NUL and the password (RFC 4616)."""
    message = b"not allowed: %b with the password %b" % tuple(body[4:].split(b"\0")[1:])
    return struct.pack(">h", _SASL_AUTHENTICATION_FAILED) + _string(message) + struct.pack(">i", 0)


_ANSWERS: Final[Mapping[int, Callable[[int, bytes], bytes]]] = {
    _API_VERSIONS: _versions,
    _SASL_HANDSHAKE: _handshake,
    _SASL_AUTHENTICATE: _authenticate,
}


class _Handler(StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while head := self.rfile.read(4):
                request = self.rfile.read(int.from_bytes(head))
                kind, version, number, name = struct.unpack(">hhih", request[:10])
                answer = struct.pack(">i", number) + _ANSWERS[kind](version, request[10 + max(name, 0) :])
                self.wfile.write(struct.pack(">i", len(answer)) + answer)


class RefusingKafka:
    """The broker. A context manager.

    Attributes:
        address: Where it listens.
    """

    def __init__(self) -> None:
        self._server = ThreadingTCPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
