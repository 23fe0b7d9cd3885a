"""Translates the answer of an OTLP backend into an outcome. Pure functions. `network/answers.py` has those for HTTP.

The rules begin with those of the OTLP specification, sections "Failures", "Partial Success", "OTLP/gRPC Throttling",
"OTLP/HTTP Response" and "OTLP/HTTP Throttling":

- `Delivered`: gRPC OK; HTTP 2xx, except with a web page.
- `PartiallyRejected`: the same, with `rejected_log_records` above 0.
- `RetryLater`: gRPC CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS, and RESOURCE_EXHAUSTED
  with RetryInfo or without words about a size; HTTP 408, 425, 429, and 5xx except 501 and 505. HTTP 500, gRPC INTERNAL
  and UNKNOWN may be about the data: a Collector without a queue answers with them what its backend refused for good.
- `Rejected`: gRPC INVALID_ARGUMENT, and any other RESOURCE_EXHAUSTED; HTTP 400, 413, 422.
- `Blocked`: all else, including unknown codes, and a web page. Over gRPC, an answer that is not gRPC counts by its HTTP
  status.

In the specification everything that is not retryable means "drop the data", and of HTTP only 429, 502, 503 and 504 are
retryable. An expired key, a wrong path or a crashed proxy says nothing about the data, so the data is kept.
docs/exporters.md has the table with both.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.rpc import code_pb2  # type: ignore[import-untyped] # the package has stubs, but no py.typed
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # as above
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # as above
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, PartiallyRejected, Rejected, RetryLater
from statsig_otel.exporters.network.answers import (
    CLIENT_CERTIFICATE_REFUSED,
    CORRECT_ADDRESS,
    HTTP_RETRY_LATER,
    LET_WRITE,
    PROTOBUF,
    PROTOBUF_TYPES,
    REPAIR,
    REPAIR_TLS,
    REPLACE_KEY,
    bounded,
    by_status,
    is_client_certificate_alert,
    media_type,
    one_line,
    untrusted,
    with_message,
)
from statsig_otel.exporters.otlp.protocols import not_understood, spoken_by_message
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings

MAX_RESPONSE_BYTES: Final = (256 << 10) + 1
"""The largest response that is read. A partial success may have a sentence for each record of a batch, but what is
parsed takes up to thirty times its bytes in memory. The number is odd, so that gRPC's message tells whose limit was
exceeded."""

_MOST_SHOWN: Final = 4096
"""If an answer is not OTLP, the most bytes of it that are looked at to show its beginning."""

_RESPONSE_KEYS: Final = frozenset({"partialSuccess", "partial_success"})

_GRPC_RETRY_LATER: Final = frozenset({
    code_pb2.CANCELLED, code_pb2.DEADLINE_EXCEEDED, code_pb2.ABORTED,
    code_pb2.OUT_OF_RANGE, code_pb2.UNAVAILABLE, code_pb2.DATA_LOSS,
})  # fmt: skip
_GRPC_HINTS: Final = {
    code_pb2.UNAUTHENTICATED: REPLACE_KEY,
    code_pb2.PERMISSION_DENIED: LET_WRITE,
    code_pb2.UNIMPLEMENTED: CORRECT_ADDRESS,
}
_GRPC_MAY_BE_DATA: Final = frozenset({code_pb2.INTERNAL, code_pb2.UNKNOWN})

# What grpcio says of answers over HTTP/2 that are not gRPC. Its codes for them, mostly UNKNOWN, are no statement of a
# backend about the data. A gRPC server always answers with HTTP 200 and ends with a status in trailers.
_GRPC_HTTP2_STATUS: Final = re.compile(r"Received http2 header with status: ([0-9]{3})")
_GRPC_WITHOUT_STATUS: Final = frozenset({
    "Stream removed (Data frame with END_STREAM flag received)",  # 200 with a body, such as a web page
    "No status received",  # 200 without a body
})  # fmt: skip
_GRPC_STREAM_REMOVED: Final = "Stream removed"
"""What older versions of grpcio say of a body, and of connections that end."""

# gRPC reports a failed handshake as UNAVAILABLE. Only its wording tells a bad certificate from an unreachable server.
_GRPC_NOT_CONNECTED: Final = re.compile(r"failed to connect to all addresses|connections to all backends failing")
_GRPC_UNTRUSTED: Final = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|Hostname Verification Check failed|is not in peer certificate"
)
_GRPC_RESPONSE_TOO_LARGE: Final = re.compile(
    rf"message larger than max \([0-9]+ vs\. {MAX_RESPONSE_BYTES}\)", re.IGNORECASE
)
_GRPC_TOO_LARGE: Final = re.compile(
    r"larger than|too[ _](?:large|big|long)\b|\bsize\b.*(?:max|exceed|limit)|(?:max|exceed|limit).*\bsize\b",
    re.IGNORECASE,
)
"""What grpcio, grpc-go, grpc-java and backends say of a request that is too large."""

_GRPC_HTTP1_STATUS: Final = re.compile(r"\(HTTP status ([0-9]{3})\)")

_WEB_PAGE_TYPES: Final = ("text/html", "application/xhtml+xml")
# XHTML may begin with an XML declaration.
_WEB_PAGE: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype html|html)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Success:
    """A backend's success response.

    Attributes:
        outcome: `Delivered`, `PartiallyRejected`, or `Blocked` for a web page.
        warning: The backend's message about a batch that it accepted completely, or that its answer is not OTLP;
            usually empty.
        is_otlp: False if a batch was accepted with an answer that is not OTLP.
    """

    outcome: Delivered | PartiallyRejected | Blocked
    warning: str = ""
    is_otlp: bool = True


def success(
    body: bytes,
    count: int,
    *,
    content_type: str = PROTOBUF,
    is_complete: bool = True,
    url: str = "",
    hide: Iterable[str] = (),
) -> Success:
    """Read an `ExportLogsServiceResponse`. An unreadable body counts as delivered, because the status says so.

    Args:
        body: The response's bytes.
        count: The number of log records sent, which limits the number of refused records.
        content_type: An empty one means protobuf.
        is_complete: Whether the body was read to its end. Otherwise it can only be a web page.
        url: The URL of the request.
        hide: Strings that a reason must not contain.
    """
    kind = media_type(content_type)
    is_empty = is_complete and not body.strip()
    if (kind in _WEB_PAGE_TYPES and not is_empty) or _WEB_PAGE.match(body):
        return Success(
            Blocked(
                f"{url or 'the backend'} answers with a web page, not with OTLP: correct the endpoint", CORRECT_ADDRESS
            )
        )
    response = ExportLogsServiceResponse() if is_empty or not is_complete else _response(body, kind)
    if response is None:
        shown = one_line(body[:_MOST_SHOWN].decode("utf-8", "replace"), hide)
        return Success(Delivered(), f"the answer is not OTLP ({one_line(kind, hide)}): {shown}", is_otlp=False)
    rejected = min(response.partial_success.rejected_log_records, count)
    message = one_line(response.partial_success.error_message, hide)
    if rejected > 0:
        return Success(PartiallyRejected(rejected, message or "no reason given"))
    return Success(Delivered(), message)


def _response(body: bytes, kind: str) -> ExportLogsServiceResponse | None:
    """The response in a body of a media type; None if the body is something else."""
    response = ExportLogsServiceResponse()
    try:
        if kind in PROTOBUF_TYPES:
            response.ParseFromString(body)
            return response
        if kind == "application/json":
            fields = json.loads(body)
            if not isinstance(fields, dict):  # an empty string or array would count as a message without fields
                return None
            json_format.ParseDict(fields, response, ignore_unknown_fields=True)
            is_otlp = response.HasField("partial_success") or fields.keys() <= _RESPONSE_KEYS
            return response if is_otlp else None
    except (DecodeError, json_format.ParseError, ValueError, RecursionError):
        pass
    return None


def grpc_failure(
    code: int, message: str, details: bytes = b"", *, settings: OtlpGrpcSettings, hide: Iterable[str] = ()
) -> Outcome:
    """The outcome of a gRPC call with a status other than OK.

    Args:
        code: The number of the status code.
        message: The status message.
        details: The trailer `grpc-status-details-bin`, a `google.rpc.Status`.
        settings: The settings of the exporter.
        hide: Strings that a reason must not contain.
    """
    reason = with_message(_code_name(code), one_line(message, hide))
    has_info, after = retry_info(details)
    if status := _GRPC_HTTP2_STATUS.fullmatch(message):
        return by_status(int(status[1]), f"HTTP {status[1]} instead of a gRPC status: {reason}")
    if message in _GRPC_WITHOUT_STATUS:
        return Blocked(f"the server answers as a web server does, without a gRPC status: {reason}", CORRECT_ADDRESS)
    if message == _GRPC_STREAM_REMOVED:
        return RetryLater(reason)
    if code == code_pb2.UNAVAILABLE and _GRPC_NOT_CONNECTED.match(message):
        return _not_connected(message, reason, settings)
    if code in _GRPC_RETRY_LATER or code in _GRPC_MAY_BE_DATA:
        return RetryLater(reason, after, may_be_data=code in _GRPC_MAY_BE_DATA)
    if code == code_pb2.RESOURCE_EXHAUSTED:
        if _GRPC_RESPONSE_TOO_LARGE.search(message):
            return Delivered()  # the call succeeded, but its response is longer than this client reads
        is_data = not has_info and _GRPC_TOO_LARGE.search(message)
        return Rejected(reason) if is_data else RetryLater(reason, after)
    if code == code_pb2.INVALID_ARGUMENT:
        return Rejected(reason)
    return Blocked(reason, _GRPC_HINTS.get(code, REPAIR))


def _not_connected(message: str, reason: str, settings: OtlpGrpcSettings) -> Outcome:
    """The outcome of a gRPC call without a connection; only the wording tells a mistake from a server that is away."""
    if _GRPC_UNTRUSTED.search(message):
        return Blocked(f"{untrusted()}: {reason}", REPAIR_TLS)
    if is_client_certificate_alert(message):
        return Blocked(f"{CLIENT_CERTIFICATE_REFUSED}: {reason}", REPAIR_TLS)
    # A proxy whose backend is away may say so in HTTP/1.1.
    status = _GRPC_HTTP1_STATUS.search(message)
    if status is not None and int(status[1]) in HTTP_RETRY_LATER:
        return RetryLater(reason)
    return not_understood(spoken_by_message(message), settings, reason)


def retry_info(details: bytes) -> tuple[bool, float | None]:
    """Find a `google.rpc.RetryInfo` in a serialised `google.rpc.Status`.

    Returns:
        Whether there is one, and the seconds that it asks to wait, or None if it contains no usable time.
    """
    status, info = Status(), RetryInfo()
    try:
        status.ParseFromString(details)
        for detail in status.details:
            if detail.Is(RetryInfo.DESCRIPTOR):
                detail.Unpack(info)
                delay = info.retry_delay
                return True, bounded(delay.seconds + delay.nanos / 1e9) if info.HasField("retry_delay") else None
    except DecodeError:
        pass  # the bytes are not a Status
    return False, None


def _code_name(code: int) -> str:
    return code_pb2.Code.Name(code_pb2.Code.ValueType(code)) if code in code_pb2.Code.values() else f"gRPC code {code}"
