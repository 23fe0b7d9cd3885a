"""TLS between a connection and its socket, by OpenSSL in memory.

asyncio's own TLS sets a quarter of a MiB apart for each connection, before its handshake has begun, and reads as much
at a time. So a thousand clients without a signature could make the server take half a GiB. Here a connection takes what
OpenSSL needs for it.

OpenSSL takes as long for a record of one byte as for one of a KiB, and twenty times as long for a KeyUpdate, which has
no content at all. So it gets one record at a time:

- A turn of one connection handles a number of records. The rest has to wait for a turn, and one connection of all has
  one at a time.
- The content of all records has to be worth their number, or the connection is closed.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from typing import Final, cast

from statsig_otel._log_throttle import LogThrottle
from statsig_otel.plugin.server.client_hello import asks_for_another, check_hello
from statsig_otel.plugin.server.tls import why_handshake_failed
from statsig_otel.plugin.server.turns import Turns

_throttle: Final = LogThrottle(logging.getLogger(__name__))

_RECORD: Final = 16 * 1024  # bytes of the longest TLS record (RFC 8446, 5.1)
READ: Final = 16 * 1024  # bytes that are read at a time
_HEADER: Final = 5  # bytes of a record's header: its type, its version (3.x), and the length of the rest
_MAJOR_VERSION: Final = 3
_LONGEST: Final = _HEADER + _RECORD + 2048  # bytes of an encrypted record (RFC 5246, 6.2.3)

RECORDS_A_TURN: Final = 16
"""The most records that a connection has decrypted before the others have their turn."""

CREDIT: Final = 64 * 1024
"""The bytes by which the costs of all records of a connection may exceed their content."""

RECORD_COSTS: Final = 64
"""The bytes of content that are worth a record."""

EMPTY_RECORD_COSTS: Final = 1024
"""As above, for one without content: of a handshake, a KeyUpdate. To change the keys takes longer than to decrypt."""

EMPTY_BYTE_COSTS: Final = 4
"""As above, for each byte of such a record, if that is more: a handshake has at most 16 KiB. To read a longer one, such
as a chain of hundreds of certificates, takes longer than the whole rest of it."""


class TlsTransport(asyncio.BufferedProtocol, asyncio.Transport):
    """The protocol of a transport for the socket, and the transport of a protocol for what is decrypted.

    The protocol has its transport from the beginning of the handshake on, so that its deadline limits that too. It may
    write once it has received something.

    Args:
        protocol: Gets what is decrypted.
        context: For servers.
        turns: The connections that have more to read than one turn may take.
        buffer: `READ` bytes, which all transports of a loop share. They are in use only while the socket is read.
        answered: Called with the protocol when OpenSSL answers a part of the handshake, as it does two or three times.
        failed: Called with the error of a handshake that failed.
    """

    def __init__(
        self,
        protocol: asyncio.Protocol,
        context: ssl.SSLContext,
        *,
        turns: Turns,
        buffer: bytearray,
        answered: Callable[[asyncio.BaseProtocol], None],
        failed: Callable[[ssl.SSLError], None],
    ) -> None:
        super().__init__()
        self._protocol = protocol
        self._context = context
        self._turns = turns
        self._buffer = buffer
        self._answered = answered
        self._failed = failed
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._socket: asyncio.Transport | None = None  # the transport of what is encrypted
        self._is_established = False
        self._has_begun = False  # something was read
        self._expects_hello = True
        self._is_paused = False
        self._waits_for_turn = False
        self._is_closing = False
        self._unread = bytearray()  # encrypted records that OpenSSL does not have yet
        self._credit = CREDIT

    # Called by the socket's transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell the protocol, and wait for the client to begin."""
        self._socket = cast("asyncio.Transport", transport)
        self._protocol.connection_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the protocol."""
        self._is_closing = True
        self._turns.drop(self._next_turn)
        self._protocol.connection_lost(exc)
        self._protocol = asyncio.Protocol()  # else both wait for the garbage collector, with what OpenSSL has taken

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - asyncio's signature
        """That of all connections. It is small, since many may wait for their turn with what they have read."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypt."""
        self._unread += memoryview(self._buffer)[:nbytes]
        self._decrypt()

    def eof_received(self) -> bool | None:
        """Tell the protocol. Requests say how long they are, so one without TLS's own end is not a part of one."""
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Tell the protocol."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Tell the protocol."""
        self._protocol.resume_writing()

    # Called by the protocol.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        left = memoryview(data)
        try:
            while left and not self._is_closing:
                left = left[self._tls.write(left) :]
        except ssl.SSLError:
            self.abort()
        self._send()

    def pause_reading(self) -> None:
        """Decrypt nothing more for now."""
        self._is_paused = True
        if self._socket is not None:
            self._socket.pause_reading()

    def resume_reading(self) -> None:
        """Go on with what has arrived, and then with the socket; not before the caller is ready."""
        self._is_paused = False
        asyncio.get_running_loop().call_soon(self._resume)

    def close(self) -> None:
        """Say that this is the end, and close the socket after all is sent."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._is_established:
            with contextlib.suppress(ssl.SSLError):  # it waits for the client to say the same, which nobody needs
                self._tls.unwrap()
        self._send()
        if self._socket is not None:
            self._socket.close()

    def abort(self) -> None:
        """Close the socket at once."""
        self._is_closing = True
        if self._socket is not None:
            self._socket.abort()

    def is_closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._is_closing

    def get_write_buffer_size(self) -> int:
        """The bytes that are encrypted and not yet sent."""
        return 0 if self._socket is None else self._socket.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set those of the socket's transport."""
        if self._socket is not None:
            self._socket.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: object = None) -> object:
        """As asyncio's own transports for TLS: `sslcontext` is the context."""
        if name == "sslcontext":
            return self._context
        return default if self._socket is None else self._socket.get_extra_info(name, default)

    def _next_turn(self) -> None:
        self._waits_for_turn = False
        self._resume()

    def _resume(self) -> None:
        if self._may_read():
            self._decrypt()
        if self._may_read() and self._socket is not None:
            self._socket.resume_reading()

    def _may_read(self) -> bool:
        return not (self._is_closing or self._is_paused or self._waits_for_turn)

    def _decrypt(self) -> None:
        """Go on with the handshake, or give the protocol what has arrived: once, however many records it came in."""
        decrypted, has_ended, failure = bytearray(), False, None
        try:
            for _ in range(RECORDS_A_TURN):
                if has_ended or self._credit < 0 or not (record := self._next_record()):
                    break
                content = self._handle(record)
                decrypted += content or b""
                has_ended = content == b""
        except ssl.SSLError as error:
            failure = error
        if decrypted:
            self._protocol.data_received(bytes(decrypted))
        if has_ended and not self._is_closing and not self._protocol.eof_received():
            self.close()
        if failure is not None:
            self._fail(failure)
        self._send()
        if self._credit < 0:
            _throttle.log(logging.WARNING, "records", "a client was cut off: %s", self._excess())
            self.abort()
        if self._may_read() and self._has_record() and self._socket is not None:
            self._waits_for_turn = True
            self._socket.pause_reading()
            self._turns.add(self._next_turn)

    def _excess(self) -> str:
        if self._is_established:
            return "it sends TLS records with hardly any content"
        return "its TLS handshake has more than 16 KiB; how long is the chain of its certificate?"

    def _handle(self, record: bytes) -> bytes | None:
        """Give OpenSSL a record.

        Returns:
            Its content; None if it has none, and nothing if the client has said that this is the end.
        """
        if not self._is_established:
            self._go_on_with_handshake(record)
            return None
        content: bytes | None = None
        self._incoming.write(record)
        with contextlib.suppress(ssl.SSLWantReadError):
            content = self._tls.read(_RECORD)
        self._credit += len(content) - RECORD_COSTS if content else -_cost_without_content(record)
        return content

    def _go_on_with_handshake(self, record: bytes) -> None:
        self._credit -= _cost_without_content(record)
        if self._credit < 0:  # before OpenSSL reads it, since it has no limit for the time that this takes
            return
        if self._expects_hello:
            check_hello(record, is_first=not self._has_begun)
        self._has_begun = True
        self._incoming.write(record)
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
            self._is_established = True
        if answer := self._send():
            self._expects_hello = asks_for_another(answer)
            self._answered(self._protocol)

    def _next_record(self) -> bytes:
        """Take the next whole record; nothing if it has not arrived yet. OpenSSL refuses what is not a record."""
        if not (size := self._has_record()):
            return b""
        record = bytes(memoryview(self._unread)[:size])
        del self._unread[:size]
        return record

    def _has_record(self) -> int:
        """The size of the next record if it has arrived as a whole, and of all there is if it is not a record."""
        unread = self._unread
        if len(unread) < _HEADER:
            return 0
        size = _HEADER + int.from_bytes(unread[3:_HEADER], "big")
        if unread[1] != _MAJOR_VERSION or size > _LONGEST:
            return len(unread)
        return size if len(unread) >= size else 0

    def _fail(self, error: ssl.SSLError) -> None:
        if not self._is_established:
            self._failed(error)
        self._send()  # OpenSSL's alert
        self._is_closing = True
        if self._socket is not None:
            self._socket.close()

    def _send(self) -> bytes:
        data = self._outgoing.read()
        if self._socket is not None and data:
            self._socket.write(data)
        return data


def _cost_without_content(record: bytes) -> int:
    return max(EMPTY_RECORD_COSTS, EMPTY_BYTE_COSTS * len(record))


def log_failed_handshake(error: ssl.SSLError) -> str:
    """Log why a TLS handshake failed, and return it."""
    why = why_handshake_failed(error)
    _throttle.log(logging.WARNING, why, "a TLS handshake failed: %s", why)
    return why
