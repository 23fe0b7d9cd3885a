"""A TLS 1.3 client in memory that sends records as no library does: empty ones, of one byte, changes of the key.

The handshake is OpenSSL's. What follows is encrypted here, with the secret that OpenSSL writes to a key log
(RFC 8446, sections 4.6.3, 5.2, 7.2 and 7.3).
"""

from __future__ import annotations

import atexit
import hmac
import os
import ssl
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkstemp

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_SECRET = b"CLIENT_TRAFFIC_SECRET_0"
_LAST = 2000  # bytes of the log, which has five lines of less than 200 for each handshake
_HANDSHAKE, _CONTENT = b"\x16", b"\x17"
_NONCE_SIZE = 12


@cache
def _context() -> ssl.SSLContext:
    descriptor, name = mkstemp()
    os.close(descriptor)
    atexit.register(Path(name).unlink, missing_ok=True)  # a forked child may have ended before
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.keylog_filename = name
    return context


def _last_secret() -> bytes:
    """That of the handshake that has just ended."""
    with Path(_context().keylog_filename).open("rb") as log:
        log.seek(-min(log.seek(0, os.SEEK_END), _LAST), os.SEEK_END)
        lines = [line.split() for line in log.read().splitlines()]
    return bytes.fromhex([line[2] for line in lines if line[0] == _SECRET][-1].decode())


class TlsClient:
    """One connection of a client. It trusts any certificate.

    Example:
        >>> client = TlsClient()
        >>> hello = client.handshake()  # the bytes to send first
        >>> # more = client.handshake(received), until `client.is_ready`
        >>> # client.record(b"GET"), client.key_update(), client.record(b"")
    """

    def __init__(self) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _context().wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self.is_ready = False

    def handshake(self, received: bytes = b"") -> bytes:
        """Go on with the handshake; what to send next."""
        self._incoming.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._outgoing.read()
        self.is_ready = True
        cipher = self._tls.cipher()
        self._hash, self._key_size = ("sha384", 32) if cipher and "256_GCM" in cipher[0] else ("sha256", 16)
        self._use(_last_secret())
        return self._outgoing.read()

    def record(self, content: bytes, *, kind: bytes = _CONTENT) -> bytes:
        """One record."""
        nonce = (int.from_bytes(self._iv, "big") ^ self._number).to_bytes(_NONCE_SIZE, "big")
        self._number += 1
        header = b"\x17\x03\x03" + (len(content) + 17).to_bytes(2, "big")
        return header + self._cipher.encrypt(nonce, content + kind, header)

    def key_update(self, *, requested: bool = False) -> bytes:
        """A record without content, after which other keys are used."""
        record = self.record(b"\x18\0\0\x01" + bytes([requested]), kind=_HANDSHAKE)
        self._use(self._expanded(self._secret, b"traffic upd", len(self._secret)))
        return record

    def received(self, encrypted: bytes) -> bytes:
        """What the server has sent, decrypted."""
        self._incoming.write(encrypted)
        content = b""
        try:
            while part := self._tls.read(1 << 16):
                content += part
        except ssl.SSLWantReadError:
            pass
        return content

    def _use(self, secret: bytes) -> None:
        self._secret, self._number = secret, 0
        self._cipher = AESGCM(self._expanded(secret, b"key", self._key_size))
        self._iv = self._expanded(secret, b"iv", _NONCE_SIZE)

    def _expanded(self, secret: bytes, label: bytes, length: int) -> bytes:
        """HKDF-Expand-Label, for no more than one block."""
        label = b"tls13 " + label
        info = length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return hmac.digest(secret, info + b"\x01", self._hash)[:length]


def connected(send: Callable[[bytes], object], receive: Callable[[], bytes]) -> TlsClient:
    """A client after its handshake.

    Raises:
        ConnectionError: The server ended it.
    """
    client = TlsClient()
    send(client.handshake())
    while not client.is_ready:
        if not (received := receive()):
            raise ConnectionError("the server has ended the handshake")
        send(client.handshake(received))
    return client


def extended(hello: bytes, kind: int, content: bytes) -> bytes:
    """A ClientHello with one more extension (RFC 8446, 4.1.2)."""
    at = 4 + 2 + 32
    for size in (1, 2, 1):  # bytes of the lengths of the session's id, the cipher suites and the compression methods
        at += size + int.from_bytes(hello[at : at + size], "big")
    body = hello[4:at] + sized(hello[at + 2 :] + kind.to_bytes(2, "big") + sized(content))
    return b"\x01" + len(body).to_bytes(3, "big") + body


def handshake_records(message: bytes, size: int = 1 << 14) -> bytes:
    """The records of a message, each with so many bytes of it at most."""
    parts = (message[at : at + size] for at in range(0, len(message), size))
    return b"".join(_HANDSHAKE + b"\x03\x01" + sized(part) for part in parts)


def sized(content: bytes) -> bytes:
    """Bytes behind their number."""
    return len(content).to_bytes(2, "big") + content
