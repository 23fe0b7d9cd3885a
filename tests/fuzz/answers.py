"""What backends answer: an outcome with a short, printable reason, whatever it is, and no secret that they quote.

The first byte of an input says which answer it is, the second one is a status or the length of the headers.
"""

import html
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import quote, quote_plus

from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # the package has no py.typed
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from statsig_otel.exporters.delivery.retry import LONGEST_ASKED
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, PartiallyRejected, Rejected, RetryLater
from statsig_otel.exporters.network.answers import MAX_MESSAGE_CHARS, http_failure
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings
from statsig_otel.exporters.otlp.status import grpc_failure, success
from tests.fuzz.targets import Check

LONGEST: Final = 1024
ENOUGH: Final = 10_000_000
SECRET: Final = 's3cr3t "with" <signs> & +/='
TOKEN: Final = "t0ken/of+a=bearer"
HIDDEN: Final = (SECRET, f"Bearer {TOKEN}", "short", "")


def spellings(secret: str) -> set[str]:
    """As servers quote it."""
    in_url = {quote(secret), quote(secret, safe=""), quote_plus(secret)}
    return {secret, json.dumps(secret)[1:-1], html.escape(secret), *in_url}


SPELLINGS: Final = spellings(SECRET) | spellings(TOKEN)
COUNT: Final = 100
TYPES: Final = ("", "application/x-protobuf", "application/json", "text/html; charset=utf-8")

TOKENS: Final = (
    *(spelling.encode() for spelling in SPELLINGS), b'{"message": "', b'"}', b'{"partialSuccess": {', b"Bearer ",
    b'"errorMessage": "', b'"rejectedLogRecords": "', b"[REDACTED]", b"\x0a", b"\x12", b"\x08", b"\xff" * 8 + b"\x7f",
    b"type.googleapis.com/google.rpc.RetryInfo", b"failed to connect to all addresses", b"9" * 40, b"-1", b"\x1b[2J",
    b"Fri, 28 Nov 2026 00:00:00 GMT", b"\xe2\x80\xae",
)  # fmt: skip


def seeds() -> Iterator[bytes]:
    quoted = f"not allowed: {SECRET}"
    partial = ExportLogsServiceResponse()
    partial.partial_success.rejected_log_records = 3
    partial.partial_success.error_message = quoted
    yield b"\0\1" + partial.SerializeToString()
    yield b"\0\2" + json.dumps({"partialSuccess": {"rejectedLogRecords": "3", "errorMessage": quoted}}).encode()
    for status in (0, 1, 3, 14, 103):
        yield bytes((2, status)) + quoted.encode()
        yield bytes((3, status)) + Status(code=16, message=quoted).SerializeToString()
    for kind in (1, 4):
        yield bytes((kind, len(SECRET))) + SECRET.encode() + b"text"
        yield bytes((kind, 24)) + b"text/plain; charset=utf-8" + quoted.encode()


_SETTINGS = OtlpGrpcSettings(endpoint="localhost:4317")


@contextmanager
def checking() -> Iterator[Check]:
    def check(data: bytes) -> None:
        kind, number, rest = (data[:1] or b"\0")[0] % 5, (data[1:2] or b"\0")[0], data[2:]
        content_type = TYPES[number % len(TYPES)]
        header, body = rest[: number % 64].decode("latin-1"), rest[number % 64 :]
        match kind:
            case 0 | 1:
                taken = success(
                    body if kind else rest, COUNT, content_type=header if kind else content_type, hide=HIDDEN
                )
                check_text(taken.warning)
                check_outcome(taken.outcome)
            case 2:
                message = rest.decode("utf-8", "replace")
                check_outcome(grpc_failure(number % 20, message, rest, settings=_SETTINGS, hide=HIDDEN))
            case 3:
                check_outcome(http_failure(400 + number, rest, content_type=content_type, hide=HIDDEN))
            case _:
                check_outcome(http_failure(503, body, retry_after=header, now=1.7e9, hide=HIDDEN))
                check_outcome(http_failure(302, body, location=header, content_type=header, hide=HIDDEN))

    yield check


def check_outcome(outcome: Outcome) -> None:
    match outcome:
        case Delivered():
            return
        case PartiallyRejected(count, _):
            assert 0 < count <= COUNT
        case RetryLater(_, after):
            assert after is None or 0 <= after <= LONGEST_ASKED
        case Rejected() | Blocked():
            pass
    assert outcome.reason
    check_text(outcome.reason)


def check_text(text: str) -> None:
    text.encode()
    assert text.isprintable()
    assert len(text) <= MAX_MESSAGE_CHARS + 500  # with what stands before a backend's own words
    assert not [spelling for spelling in SPELLINGS if spelling in text]
