"""The steps of attacks with a ClientHello, the first message of a TLS handshake (RFC 8446, 4.1.2)."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias

import trustme

from tests.attacks.attack import PATIENCE, Serve, until_closed
from tests.attacks.tls_steps import tls_server
from tests.plugin.server.echo import EchoApp, Running, trusting

Change: TypeAlias = Callable[[bytes], bytes]
"""Makes records of a ClientHello."""

_HANDSHAKE: Final = b"\x16"
_CHANGE_CIPHER_SPEC: Final = b"\x14"  # a record of 6 bytes before the second ClientHello

_STATUS_REQUEST, _AUTHORITIES, _UNKNOWN = 5, 47, 0x4000
_ANY_STATUS: Final = b"\x01\0\0\0\0"
_AUTHORITY: Final = b"\0\x02\x30\0"  # with an empty name, as the next one
_RESPONDER: Final = b"\0\x04\xa1\x02\x30\0"
_STATUS_EXTENSION: Final = b"\x30\x05\x06\x01\x2a\x04\0"


def long_hellos(_: Serve) -> None:
    """The first one or, after a HelloRetryRequest, the second one."""
    with tls_server(EchoApp()) as running:
        for is_second in (False, True):
            for change in usual():
                assert said(running, change, is_second=is_second).startswith(_HANDSHAKE)
            for change in unwanted():
                assert said(running, change, is_second=is_second) == b""


def usual() -> Iterator[Change]:
    yield lambda message: extended(message, _STATUS_REQUEST, _ANY_STATUS)
    yield lambda message: extended(message, _UNKNOWN, bytes(6000))


def unwanted() -> Iterator[Change]:
    yield lambda message: extended(message, _UNKNOWN, bytes(8000))
    yield lambda message: extended(message, _UNKNOWN, bytes(60_000))
    yield lambda message: records((message[:100], message[100:]))
    yield lambda message: records(message[at : at + 1] for at in range(len(message)))
    yield lambda message: extended(message, _AUTHORITIES, sized(_AUTHORITY * 1500))
    yield lambda message: extended(message, _STATUS_REQUEST, b"\x01" + sized(_RESPONDER * 1000) + sized(b""))
    yield lambda message: extended(
        message, _STATUS_REQUEST, b"\x01" + sized(b"") + sized(b"\x30\x82" + sized(_STATUS_EXTENSION * 1000))
    )


def said(running: Running, change: Change, *, is_second: bool) -> bytes:
    """What the server answers to a ClientHello, or nothing if it closes the connection."""
    context = trusting(trustme.CA())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")

    def hello() -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        return outgoing.read()

    before, record = b"", hello()
    with running.connect() as connection, contextlib.suppress(ConnectionError):
        connection.settimeout(PATIENCE)
        if is_second:
            connection.sendall(record)
            incoming.write(connection.recv(1 << 16))
            record = hello()
            if record.startswith(_CHANGE_CIPHER_SPEC):
                before, record = record[:6], record[6:]
        connection.sendall(before + change(record[5:]))
        return connection.recv(1 << 16)
    return b""


def extended(message: bytes, kind: int, content: bytes) -> bytes:
    """The records of a ClientHello with one more extension."""
    at = 4 + 2 + 32
    for size in (1, 2, 1):
        at += size + int.from_bytes(message[at : at + size], "big")
    extensions = message[at + 2 :] + kind.to_bytes(2, "big") + sized(content)
    body = message[4:at] + sized(extensions)
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return records(message[at : at + (1 << 14)] for at in range(0, len(message), 1 << 14))


def records(parts: Iterable[bytes]) -> bytes:
    return b"".join(b"\x16\x03\x01" + sized(part) for part in parts)


def sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


def hello_of_ssl_2(_: Serve) -> None:
    """OpenSSL answers it with an alert."""
    ciphers, challenge = b"\0\xc0\x2f", bytes(32)
    hello = b"\x01\x03\x03" + b"".join(size.to_bytes(2, "big") for size in (len(ciphers), 0, len(challenge)))
    hello += ciphers + challenge
    with tls_server(EchoApp()) as running, running.connect() as connection:
        connection.settimeout(PATIENCE)
        connection.sendall((0x8000 | len(hello)).to_bytes(2, "big") + hello)
        assert until_closed(connection) == b""
