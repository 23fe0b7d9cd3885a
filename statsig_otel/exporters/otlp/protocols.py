"""Recognises a port that does not speak the exporter's protocol, and says what to write: in outcomes and doctor."""

import re
from collections.abc import Mapping
from enum import Enum, auto
from http.client import BadStatusLine, LineTooLong, UnknownProtocol
from ssl import SSLEOFError, SSLError, SSLZeroReturnError
from typing import Final

from statsig_otel.config.errors import Fault
from statsig_otel.exporters.exporter import Blocked, Outcome, RetryLater
from statsig_otel.exporters.otlp.hints import encrypted_hint, plain_hint
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings

SPEAKS_HTTP1: Final = Fault(
    "speaks HTTP/1.1, and gRPC needs HTTP/2", "use otlp_http, or the port for OTLP/gRPC, usually 4317"
)
SPEAKS_HTTP2: Final = Fault(
    "speaks HTTP/2 only, as gRPC does", "use otlp_grpc, or the port for OTLP/HTTP, usually 4318"
)
NOT_HTTP2: Final = Fault(
    "does not speak HTTP/2, as gRPC does",
    "use the port for OTLP/gRPC, usually 4317, or otlp_http if this one speaks HTTP/1.1",
)
NOT_HTTP1: Final = Fault("does not speak HTTP", "use the port for OTLP/HTTP, usually 4318")
"""The faults of the wrong one of a Collector's two ports, and of another port. Each is read after the port's name."""

SEE_ITS_LOG: Final = "see the server's log; it may refuse the client certificate, or want one (tls::cert_file)"
"""The hint for a handshake or a connection with TLS that fails for an unknown reason."""

_HTTP2_SETTINGS: Final = re.compile(r"\x00\x00.\x04", re.DOTALL)  # RFC 9113, sections 4.1 and 6.5


class Spoken(Enum):
    """What a server speaks, as far as its first answer shows."""

    HTTP1 = auto()
    HTTP2 = auto()
    TLS = auto()
    """TLS, although it was addressed without."""
    NO_TLS = auto()
    """Something without TLS, although it was addressed with TLS."""
    BAD_REQUEST = auto()
    """HTTP/1.1, and 400 for a request without TLS, as servers for https answer."""
    NO_COMMON = auto()
    """TLS, without the protocol that was offered in the handshake (RFC 7301)."""
    NOTHING = auto()
    """The connection ends without an answer."""
    OTHER = auto()


# The words of grpcio, and of the TLS libraries below it and below Python. "Frame type 80" is the P of HTTP/1.1, 79 the
# O of <!DOCTYPE. Before 1.85 grpcio names no frame type.
_MESSAGES: Final = {
    Spoken.HTTP1: re.compile(r"connect an http1\.x server|as the first frame, got frame type (?:79|80)\b"),
    Spoken.OTHER: re.compile(r"Failed parsing HTTP/2"),
    Spoken.NO_TLS: re.compile(r"WRONG_VERSION_NUMBER|HTTP_REQUEST|RECORD_LAYER_FAILURE"),
    Spoken.NO_COMMON: re.compile(r"missing selected ALPN property|NO_APPLICATION_PROTOCOL"),
    Spoken.NOTHING: re.compile(r"Socket closed|Connection reset by peer|UNEXPECTED_EOF|without response"),
}

_FOR_GRPC: Final[Mapping[Spoken | None, Fault]] = {
    Spoken.HTTP1: SPEAKS_HTTP1,
    Spoken.NO_COMMON: NOT_HTTP2,
    Spoken.OTHER: NOT_HTTP2,
}
_FOR_HTTP: Final[Mapping[Spoken | None, Fault]] = {
    Spoken.HTTP2: SPEAKS_HTTP2,
    Spoken.NO_COMMON: SPEAKS_HTTP2,
    Spoken.OTHER: NOT_HTTP1,
}

_MAY_PASS: Final = frozenset({Spoken.BAD_REQUEST, Spoken.NO_TLS, Spoken.NOTHING, Spoken.OTHER})


def spoken(beginning: str) -> Spoken:
    """The protocol of an answer, by its first characters, read as ISO 8859-1."""
    if not beginning:
        return Spoken.NOTHING
    if beginning.startswith("\x15\x03"):  # an alert: RFC 8446, section 5.1
        return Spoken.TLS
    if _HTTP2_SETTINGS.match(beginning):
        return Spoken.HTTP2
    return Spoken.HTTP1 if beginning.startswith(("HTTP/1", "<")) else Spoken.OTHER


def spoken_by_message(message: str) -> Spoken | None:
    """The protocol that a library's message about a new connection tells of; None if it is about something else."""
    return next((found for found, words in _MESSAGES.items() if words.search(message)), None)


def spoken_by_error(error: Exception) -> Spoken | None:
    """The protocol of a server whose answer on a new connection can't be read by Python; None if it is not known."""
    if isinstance(error, ConnectionError | SSLEOFError | SSLZeroReturnError):
        return Spoken.NOTHING
    if isinstance(error, BadStatusLine):
        return spoken(str(error))
    if isinstance(error, UnknownProtocol) or (isinstance(error, LineTooLong) and "status line" in str(error)):
        return Spoken.OTHER
    return spoken_by_message(str(error)) if isinstance(error, SSLError) else None


def wrong_port(found: Spoken | None, settings: OtlpGrpcSettings | OtlpHttpSettings) -> Fault | None:
    """The fault of an exporter's port, for use after the port's name.

    Args:
        found: What the server speaks.
        settings: The settings of the exporter.

    Returns:
        None if the server speaks the exporter's protocol, or nobody knows what it speaks.
    """
    is_grpc = isinstance(settings, OtlpGrpcSettings)
    match found:
        case Spoken.TLS:
            return Fault("speaks TLS", encrypted_hint(settings))
        case Spoken.BAD_REQUEST:
            return Fault("answers every request with 400", f"if it expects TLS, {encrypted_hint(settings)}")
        case Spoken.NO_TLS:
            return Fault("speaks without TLS", f"if that is meant, write {plain_hint(settings)}")
        case Spoken.NOTHING:
            hint = SEE_ITS_LOG
            if not settings.uses_tls:
                hint = f"if it expects TLS, {encrypted_hint(settings)}"
            elif not is_grpc:
                hint = f"{hint}; if the port is for OTLP/gRPC, use otlp_grpc"
            return Fault("ends the connection without an answer", hint)
    return (_FOR_GRPC if is_grpc else _FOR_HTTP).get(found)


def not_understood(found: Spoken | None, settings: OtlpGrpcSettings | OtlpHttpSettings, reason: str) -> Outcome:
    """The outcome of an attempt whose answer could not be read: the reason, after the fault of the port and its hint.

    Blocked if the server's protocol is known to be another. A server that starts, or a broken proxy, may also end a
    connection, speak without TLS or send nonsense, but only for a while.
    """
    fault = wrong_port(found, settings)
    if fault is None:
        return RetryLater(reason)
    reason = f"this port {fault.message}: {fault.hint}: {reason}"
    return RetryLater(reason) if found in _MAY_PASS else Blocked(reason, fault.hint or "")
