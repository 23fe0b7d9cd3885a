"""The steps of attacks with a ClientHello, the first message of a TLS handshake (RFC 8446, 4.1.2)."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from typing import Final, TypeAlias

import trustme

from benchmarks.tls_records import extended, handshake_records, sized
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
            for change in USUAL:
                assert said(running, change, is_second=is_second).startswith(_HANDSHAKE)
            for change in UNWANTED:
                assert said(running, change, is_second=is_second) == b""
        assert said(running, behind_another_version, is_second=True) == b""


def with_extension(kind: int, content: bytes) -> Change:
    return lambda hello: handshake_records(extended(hello, kind, content))


def in_parts(size: int) -> Change:
    return lambda hello: handshake_records(hello, size)


def behind_another_version(hello: bytes) -> bytes:
    """Where OpenSSL 3.5 does not look at a record's version any more, though this server does."""
    return b"\x14\x02\0\0\x01\x01" + handshake_records(extended(hello, _AUTHORITIES, sized(_AUTHORITY * 1500)))


USUAL: Final = (with_extension(_STATUS_REQUEST, _ANY_STATUS), with_extension(_UNKNOWN, bytes(6000)))
UNWANTED: Final = (
    with_extension(_UNKNOWN, bytes(8000)),
    with_extension(_UNKNOWN, bytes(60_000)),
    in_parts(100),
    in_parts(1),
    with_extension(_AUTHORITIES, sized(_AUTHORITY * 1500)),
    with_extension(_STATUS_REQUEST, b"\x01" + sized(_RESPONDER * 1000) + sized(b"")),
    with_extension(_STATUS_REQUEST, b"\x01" + sized(b"") + sized(b"\x30\x82" + sized(_STATUS_EXTENSION * 1000))),
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


def hello_of_ssl_2(_: Serve) -> None:
    """OpenSSL answers it with an alert."""
    ciphers, challenge = b"\0\xc0\x2f", bytes(32)
    hello = b"\x01\x03\x03" + b"".join(size.to_bytes(2, "big") for size in (len(ciphers), 0, len(challenge)))
    hello += ciphers + challenge
    with tls_server(EchoApp()) as running, running.connect() as connection:
        connection.settimeout(PATIENCE)
        connection.sendall((0x8000 | len(hello)).to_bytes(2, "big") + hello)
        assert until_closed(connection) == b""
