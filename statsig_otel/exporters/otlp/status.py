"""From a backend's answer to an outcome: one pure table for OTLP over gRPC and over HTTP.

The rules are those of the OTLP specification, sections "Failures", "Partial Success", "OTLP/gRPC Throttling",
"OTLP/HTTP Response" and "OTLP/HTTP Throttling":

- `Delivered`: gRPC OK; HTTP 2xx.
- `PartiallyRejected`: the same, with `rejected_log_records` above 0.
- `RetryLater`: gRPC CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS, and RESOURCE_EXHAUSTED
  with RetryInfo; HTTP 429, 502, 503, 504.
- `Rejected`: gRPC INVALID_ARGUMENT, and RESOURCE_EXHAUSTED without RetryInfo; HTTP 400, 413, 422.
- `Blocked`: all else, codes that nobody knows too.

The last line leaves the letter of the specification, where whatever is not retryable means "drop the data": an expired
key or a wrong path says nothing about the data, so the data is kept.

Reasons are for a person who reads a log: one line of printable characters, bounded, without our own header values.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, quote_plus

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.rpc import code_pb2  # type: ignore[import-untyped] # the package has stubs, but no py.typed
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # as above
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # as above
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from statsig_otel.exporters.delivery.retry import LONGEST_ASKED
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, PartiallyRejected, Rejected, RetryLater

MAX_RESPONSE_BYTES: Final = (4 << 20) + 1
"""The largest response that is read. One more than the 4 MiB that servers set as their own limit, so that the number in
gRPC's message tells whose limit it was."""

MAX_MESSAGE_CHARS: Final = 300
"""How much of what a server says goes into a reason."""

PROTOBUF: Final = "application/x-protobuf"
"""The content type of binary OTLP over HTTP."""

_GRPC_RETRY_LATER: Final = frozenset({
    code_pb2.CANCELLED, code_pb2.DEADLINE_EXCEEDED, code_pb2.ABORTED,
    code_pb2.OUT_OF_RANGE, code_pb2.UNAVAILABLE, code_pb2.DATA_LOSS,
})  # fmt: skip
_HTTP_RETRY_LATER: Final = frozenset({429, 502, 503, 504})
_HTTP_REJECTED: Final = frozenset({400, 413, 422})

# gRPC reports a failed handshake as UNAVAILABLE; only its wording tells a certificate from a server that is away.
_GRPC_NOT_CONNECTED: Final = re.compile(r"failed to connect to all addresses|connections to all backends failing")
_GRPC_UNTRUSTED: Final = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|Hostname Verification Check failed|is not in peer certificate"
)
_GRPC_RESPONSE_TOO_LARGE: Final = re.compile(
    rf"message larger than max \([0-9]+ vs\. {MAX_RESPONSE_BYTES}\)", re.IGNORECASE
)
# The alerts of RFC 8446, section 6.2, that are about the client's certificate, as OpenSSL and BoringSSL name them.
_CLIENT_CERTIFICATE_ALERT: Final = re.compile(
    r"ALERT_(?:BAD_CERTIFICATE|UNSUPPORTED_CERTIFICATE|CERTIFICATE_(?:REVOKED|EXPIRED|UNKNOWN|REQUIRED)"
    r"|UNKNOWN_CA|ACCESS_DENIED)"
)

UNTRUSTED: Final = (
    "the server's certificate is not trusted (name its CA in tls::ca_file, its name in tls::server_name_override)"
)
"""The reason for a server certificate that does not verify, or is for another host."""

CLIENT_CERTIFICATE_REFUSED: Final = "the server refuses the client certificate (see tls::cert_file)"
"""The reason for an alert about our own certificate."""

_LONG_SECRET: Final = 8  # characters; a shorter text would be found inside ordinary words

_DELAY_SECONDS: Final = re.compile(r"[0-9]+")
# A date of RFC 9110, section 5.6.7, has letters, digits and these few signs.
_DATE_LIKE: Final = re.compile(r"[A-Z][a-z]{2,8},? [A-Za-z0-9 :-]{12,32}")


@dataclass(frozen=True, slots=True)
class Success:
    """What became of a batch that a backend answered with success.

    Attributes:
        outcome: `Delivered` or `PartiallyRejected`.
        warning: What the backend wants to be known about a batch that it took as a whole; mostly empty.
    """

    outcome: Delivered | PartiallyRejected
    warning: str = ""


def success(body: bytes, count: int, *, content_type: str = PROTOBUF, hide: Iterable[str] = ()) -> Success:
    """Read an `ExportLogsServiceResponse`. What can't be read counts as delivered: the status said so.

    Args:
        body: The response's bytes.
        count: How many log records were sent; no more than these can have been refused.
        content_type: `application/x-protobuf` (the default, and what an absent one means) or `application/json`.
        hide: Texts that must not show up in a reason.
    """
    response = ExportLogsServiceResponse()
    kind = _media_type(content_type)
    try:
        if kind in (PROTOBUF, ""):
            response.ParseFromString(body)
        elif kind == "application/json":
            json_format.Parse(body, response, ignore_unknown_fields=True)
    except (DecodeError, json_format.ParseError, ValueError, RecursionError):
        return Success(Delivered())
    rejected = min(response.partial_success.rejected_log_records, count)
    message = printable(response.partial_success.error_message, hide)
    if rejected > 0:
        return Success(PartiallyRejected(rejected, message or "no reason given"))
    return Success(Delivered(), message)


def grpc_failure(code: int, message: str, details: bytes = b"", *, hide: Iterable[str] = ()) -> Outcome:
    """The outcome of a gRPC call that did not end with OK.

    Args:
        code: The status code's number.
        message: The status message.
        details: The value of the trailer `grpc-status-details-bin`, a `google.rpc.Status`.
        hide: Texts that must not show up in a reason.
    """
    reason = _join(_code_name(code), printable(message, hide))
    has_info, after = retry_info(details)
    if code in _GRPC_RETRY_LATER:
        if code == code_pb2.UNAVAILABLE and _GRPC_NOT_CONNECTED.match(message):
            if _GRPC_UNTRUSTED.search(message):
                return Blocked(f"{UNTRUSTED}: {reason}")
            if is_client_certificate_alert(message):
                return Blocked(f"{CLIENT_CERTIFICATE_REFUSED}: {reason}")
        return RetryLater(reason, after)
    if code == code_pb2.RESOURCE_EXHAUSTED:
        if _GRPC_RESPONSE_TOO_LARGE.search(message):
            return Delivered()  # it was our side that did not want to read so long a success
        return RetryLater(reason, after) if has_info else Rejected(reason)
    if code == code_pb2.INVALID_ARGUMENT:
        return Rejected(reason)
    return Blocked(reason)


def http_failure(
    status: int,
    body: bytes = b"",
    *,
    content_type: str = "",
    retry_after: str = "",
    now: float = 0.0,
    hide: Iterable[str] = (),
) -> Outcome:
    """The outcome of an HTTP response whose status is none of the 200s.

    Args:
        status: The status code.
        body: What was read of the body: a `google.rpc.Status` by the specification, in practice any text.
        content_type: The value of Content-Type.
        retry_after: The value of Retry-After.
        now: The time of the response, in seconds since the epoch.
        hide: Texts that must not show up in a reason.
    """
    reason = _join(f"HTTP {status} {_phrase(status)}".rstrip(), printable(_http_message(body, content_type), hide))
    if status in _HTTP_RETRY_LATER:
        return RetryLater(reason, parse_retry_after(retry_after, now))
    if status in _HTTP_REJECTED:
        return Rejected(reason)
    return Blocked(reason)


def retry_info(details: bytes) -> tuple[bool, float | None]:
    """Look for a `google.rpc.RetryInfo` in a serialised `google.rpc.Status`.

    Returns:
        Whether there is one, and the seconds that it asks to wait (None where it names no usable time).
    """
    status, info = Status(), RetryInfo()
    try:
        status.ParseFromString(details)
        for detail in status.details:
            if detail.Is(RetryInfo.DESCRIPTOR):
                detail.Unpack(info)
                delay = info.retry_delay
                return True, _bounded(delay.seconds + delay.nanos / 1e9) if info.HasField("retry_delay") else None
    except DecodeError:
        pass  # bytes that are no Status say nothing
    return False, None


def parse_retry_after(value: str, now: float) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110, section 10.2.3): a number of seconds, or a date.

    Args:
        value: The header's value.
        now: Seconds since the epoch, from which a date counts.

    Returns:
        Seconds, at most `LONGEST_ASKED`; None for a date that has passed and for what is neither.
    """
    value = value.strip(" \t")
    if _DELAY_SECONDS.fullmatch(value):
        return _bounded(float(value))  # float() of very many digits is infinity, no error
    if not _DATE_LIKE.fullmatch(value):
        return None
    try:
        return _bounded(parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def server_time(date: str) -> float | None:
    """Seconds since the epoch by a response's Date header; None for what is no date.

    A date to retry at is the server's: counted from our clock, one that is wrong by a day would wait for a day.
    """
    try:
        return parsedate_to_datetime(date).timestamp() if _DATE_LIKE.fullmatch(date) else None
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def is_client_certificate_alert(text: str) -> bool:
    """Whether a TLS library's message is a server's alert about the client's certificate."""
    return _CLIENT_CERTIFICATE_ALERT.search(text) is not None


def printable(text: str, hide: Iterable[str] = ()) -> str:
    """One bounded line of what a server or a library said.

    Args:
        text: Any text.
        hide: Texts that become `[REDACTED]`, such as header values: servers like to quote a key that they refuse. The
            parts of one that stand between blanks (`Bearer KEY`) are hidden too. Where one is shorter than 8
            characters, only its whole words are.
    """
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    secrets = {
        part
        for value in hide
        for part in (" ".join(value.split()), *(word for word in value.split() if len(word) >= _LONG_SECRET))
    }
    secrets.discard("")
    if secrets:
        longest_first = sorted({form for secret in secrets for form in _spellings(secret)}, key=len, reverse=True)
        line = re.sub("|".join(map(_as_pattern, longest_first)), "[REDACTED]", line, flags=re.IGNORECASE)
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 3] + "..."


def _spellings(secret: str) -> set[str]:
    """How a server may write it: as it is, in JSON, in HTML, in a URL (whose hex digits are of either case)."""
    import html  # noqa: PLC0415 - its table of entities stays in memory, and most services never get here

    return {
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        html.escape(secret),
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
    }


def _as_pattern(secret: str) -> str:
    text = re.escape(secret)
    return text if len(secret) >= _LONG_SECRET else rf"(?<!\w){text}(?!\w)"


def _bounded(seconds: float) -> float | None:
    return min(seconds, LONGEST_ASKED) if seconds >= 0 else None


def _join(status: str, message: str) -> str:
    return f"{status}: {message}" if message else status


def _code_name(code: int) -> str:
    return code_pb2.Code.Name(code_pb2.Code.ValueType(code)) if code in code_pb2.Code.values() else f"gRPC code {code}"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _http_message(body: bytes, content_type: str) -> str:
    """The message of a `google.rpc.Status`, in binary or in JSON, or the text as it is."""
    if _media_type(content_type) == PROTOBUF:
        try:
            return str(Status.FromString(body).message)
        except DecodeError:
            return ""
    text = body.decode("utf-8", "replace")
    if _media_type(content_type) == "application/json":
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(document, dict) and isinstance(document.get("message"), str):
            return str(document["message"])
    return text
