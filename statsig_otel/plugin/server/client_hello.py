"""What may be in a ClientHello, the first message of a TLS handshake (RFC 8446, 4.1.2; RFC 5246, 7.4.1.2).

OpenSSL makes objects of what it lists, and keeps them with the connection, before anything is known about the client:
785 KiB for 3,900 empty names of authorities, which take 16 KB. So a ClientHello has to be short, and must not have the
lists from which OpenSSL makes objects. Ordinary clients do not send them.
"""

import ssl
from collections.abc import Iterator
from hashlib import sha256
from typing import Final

_MAJOR_VERSION: Final = 3  # of a record, in TLS 1.2 and 1.3, too
_HANDSHAKE: Final = 22  # the type of a record (RFC 8446, 5.1)
_SSL_2: Final = 0x80  # in the first byte of a ClientHello as in SSL 2.0, which OpenSSL still reads (RFC 5246, E.2)
_RECORD_HEADER: Final = 5
_CLIENT_HELLO: Final = 1  # the type of a message (RFC 8446, 4)
_MESSAGE_HEADER: Final = 4
_VERSION_AND_RANDOM: Final = 2 + 32

_STATUS_REQUEST: Final = 5  # types of extensions (RFC 6066, 8; RFC 8446, 4.2.4)
_CERTIFICATE_AUTHORITIES: Final = 47
_ANY_STATUS: Final = b"\x01\0\0\0\0"  # OCSP, of any responder, without extensions

_LONGEST: Final = 8 * 1024
"""The most bytes of a ClientHello. OpenSSL's own with a post-quantum key has 1.6 KB, and 3 KB more if it resumes a
session in which it had presented a certificate."""

_RETRY: Final = sha256(b"HelloRetryRequest").digest()
"""The random of a ServerHello that asks for another ClientHello (RFC 8446, 4.1.3)."""


class UnwantedHelloError(ssl.SSLError):
    """A ClientHello that OpenSSL does not get."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_hello(record: bytes, *, is_first: bool) -> None:
    """Check a record where a ClientHello has to come.

    Args:
        record: The record. The first bytes of a connection may also be no record: OpenSSL refuses these, and says what
            they are. Later it does not: OpenSSL 3.5 then reads a record of any version.
        is_first: Whether these are the first bytes of the connection.

    Raises:
        UnwantedHelloError: It is a ClientHello, or a part of one, that OpenSSL should not read.
    """
    if record[0] & _SSL_2:
        raise UnwantedHelloError("a client does not speak TLS to this port, or says hello as in SSL 2.0")
    if record[1] != _MAJOR_VERSION and not is_first:
        raise UnwantedHelloError("a client sends records of another version in its TLS handshake")
    message = record[_RECORD_HEADER:]
    if record[0] != _HANDSHAKE or not message or message[0] != _CLIENT_HELLO:
        return
    if len(message) > _LONGEST:
        raise UnwantedHelloError("a ClientHello has more than 8 KiB")
    if len(message) != _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big"):
        raise UnwantedHelloError("a ClientHello does not come in one record")
    for kind, content in _extensions(message):
        if kind == _CERTIFICATE_AUTHORITIES or (kind == _STATUS_REQUEST and content != _ANY_STATUS):
            raise UnwantedHelloError("a ClientHello lists authorities or OCSP responders, which takes much memory")


def asks_for_another(answer: bytes) -> bool:
    """Whether an answer to a ClientHello is a HelloRetryRequest."""
    begin = _RECORD_HEADER + _MESSAGE_HEADER + 2
    return answer[begin : begin + len(_RETRY)] == _RETRY


def _extensions(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The types and contents of a ClientHello's extensions. OpenSSL reads none if the lengths do not fit."""
    rest = memoryview(message)[_MESSAGE_HEADER + _VERSION_AND_RANDOM :]
    for size in (1, 2, 1):  # bytes of the lengths of the session's id, the cipher suites and the compression methods
        rest = rest[size + int.from_bytes(rest[:size], "big") :]
    rest = rest[2:]
    while rest:
        end = 4 + int.from_bytes(rest[2:4], "big")
        yield int.from_bytes(rest[:2], "big"), bytes(rest[4:end])
        rest = rest[end:]
