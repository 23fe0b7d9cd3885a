"""TLS between a connection and its socket, by OpenSSL in memory.

asyncio's own TLS sets a quarter of a MiB apart for each connection, before its handshake has begun, and reads as much
at a time. So a thousand clients without a signature could make the server take half a GiB. Here a connection takes what
OpenSSL needs for it.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from typing import Final, cast

from statsig_otel._log_throttle import LogThrottle
from statsig_otel._telemetry import handshakes_failed
from statsig_otel.plugin.server.tls import why_handshake_failed

_throttle: Final = LogThrottle(logging.getLogger(__name__))

_RECORD: Final = 16 * 1024  # bytes of the longest TLS record (RFC 8446, 5.1)
_READ: Final = 16 * 1024  # bytes that are read and decrypted at a time: up to 700 records, if they have a byte each


class TlsTransport(asyncio.BufferedProtocol, asyncio.Transport):
    """The protocol of a transport for the socket, and the transport of a protocol for what is decrypted.

    The protocol has its transport from the beginning of the handshake on, so that its deadline limits that too. It may
    write once it has received something.

    Args:
        protocol: Gets what is decrypted.
        context: For servers.
        failed: Called with the error of a handshake that failed.
    """

    def __init__(
        self, protocol: asyncio.Protocol, context: ssl.SSLContext, *, failed: Callable[[ssl.SSLError], None]
    ) -> None:
        super().__init__()
        self._protocol = protocol
        self._context = context
        self._failed = failed
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._socket: asyncio.Transport | None = None  # the transport of what is encrypted
        self._is_established = False
        self._is_paused = False
        self._is_closing = False
        self._buffer = bytearray()  # for the next read; empty between reads

    # Called by the socket's transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Tell the protocol, and wait for the client to begin."""
        self._socket = cast("asyncio.Transport", transport)
        self._protocol.connection_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the protocol."""
        self._is_closing = True
        self._protocol.connection_lost(exc)
        self._protocol = asyncio.Protocol()  # else both wait for the garbage collector, with what OpenSSL has taken

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - asyncio's signature
        """A small one, so that one turn of a connection decrypts little, and OpenSSL's own buffer stays small."""
        self._buffer = bytearray(_READ)
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypt."""
        read, self._buffer = self._buffer, bytearray()
        self._incoming.write(memoryview(read)[:nbytes])
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

    def _resume(self) -> None:
        if not self._is_closing:
            self._decrypt()
        if not self._is_paused and not self._is_closing and self._socket is not None:
            self._socket.resume_reading()

    def _decrypt(self) -> None:
        """Go on with the handshake, or give the protocol what has arrived: once, however many records it came in."""
        decrypted, has_ended, failure = bytearray(), False, None
        try:
            if not self._is_established:
                self._tls.do_handshake()
                self._is_established = True
            while not self._is_paused and not has_ended:
                part = self._tls.read(_RECORD)
                decrypted += part
                has_ended = not part  # the client has said that this is the end
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            failure = error
        if decrypted:
            self._protocol.data_received(bytes(decrypted))
        if has_ended and not self._is_closing and not self._protocol.eof_received():
            self.close()
        if failure is not None:
            self._fail(failure)
        self._send()

    def _fail(self, error: ssl.SSLError) -> None:
        if not self._is_established:
            self._failed(error)
        self._send()  # OpenSSL's alert
        self._is_closing = True
        if self._socket is not None:
            self._socket.close()

    def _send(self) -> None:
        if self._socket is not None and (data := self._outgoing.read()):
            self._socket.write(data)


def log_failed_handshake(error: ssl.SSLError) -> None:
    """Count a TLS handshake that failed, and log why."""
    handshakes_failed.add(1)
    why = why_handshake_failed(error)
    _throttle.log(logging.WARNING, why, "a TLS handshake failed: %s", why)
