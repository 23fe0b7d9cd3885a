"""Generates signed requests like Statsig's without end, each with new changes."""

import hmac
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import count, cycle
from secrets import token_hex
from typing import Literal

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from benchmarks import backlog
from statsig_otel.plugin import DEFAULT_PATH
from statsig_otel.plugin.demo.samples import bare, enveloped, exposure
from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER, sign

Wire = Literal["webhook", "otlp"]
"""How a body is sent: as Statsig sends it, or as the body of a log record over OTLP/HTTP."""

_NUMBER = b"NUMBER.."
_FRESH = 60.0
"""Seconds for which a signature's timestamp is used. A receiver accepts it for five minutes."""

_EXPOSURES_MADE = 1000
"""The number of different exposures; a longer batch repeats them."""


@dataclass(frozen=True)
class Shape:
    """One kind of request.

    Attributes:
        exposures: The number of exposures, which a receiver counts and ignores. They come first in the batch.
        changes: The number of config changes of about 1 KB after them.
        resent: Whether every request repeats the changes of the first one, as duplicates.
    """

    exposures: int = 0
    changes: int = 1
    resent: bool = False

    def __str__(self) -> str:
        return f"{self.exposures}:{self.changes}" + (":resent" if self.resent else "")

    @classmethod
    def read(cls, text: str) -> "Shape":
        """The shape from its `str`."""
        exposures, changes, *resent = text.split(":")
        return cls(int(exposures), int(changes), bool(resent))


CHANGE = Shape()
BATCH = Shape(exposures=499)
EXPOSURES = Shape(exposures=500, changes=0)


def exposures(number: int) -> list[str]:
    """A number of exposures as JSON, of about 300 bytes each."""
    kinds = ("gate", "config", "experiment", "layer")
    made = [
        json.dumps(
            exposure(
                backlog.OBSERVED_NS // 1_000_000 + index,
                kinds[index % len(kinds)],
                f"shown_{index % 40}",
                user_id=f"u{index}",
            ),
            separators=(",", ":"),
        )
        for index in range(min(number, _EXPOSURES_MADE))
    ]
    return [made[index % len(made)] for index in range(number)]


def filling(size: int) -> Shape:
    """A batch of exposures and one change with slightly less than `size` bytes, or only the change if it is small."""
    made = exposures(_EXPOSURES_MADE)
    average = sum(len(text) + 1 for text in made) / len(made)
    rest = size - len(next(bodies(CHANGE)))
    return Shape(exposures=max(0, int(rest / average) - 1))


class _Parts:
    """A body in two parts: a beginning that is always the same, and an end that is new each time."""

    def __init__(self, shape: Shape) -> None:
        events = [json.loads(text) for text in exposures(shape.exposures)]
        run = token_hex(8)
        changes = [backlog.event(f"{run}-{index}-{_NUMBER.decode()}") for index in range(shape.changes)]
        body = bare([*events, *changes]) if events else enveloped(changes)
        cut = body.find(_NUMBER) if changes else len(body)
        self.same, self._end = body[:cut], body[cut:]
        self._resent = shape.resent

    def end(self, number: int) -> bytes:
        return self._end.replace(_NUMBER, b"%08d" % (0 if self._resent else number))


def bodies(shape: Shape) -> Iterator[bytes]:
    """Bodies of one shape, each with new changes."""
    parts = _Parts(shape)
    for number in count():
        yield parts.same + parts.end(number)


def requests(shape: Shape, *, wire: Wire = "webhook", secret: str = backlog.SECRET) -> Iterator[bytes]:
    """Requests of one shape, each with new changes. The common beginning is hashed only once per minute."""
    return _otlp_requests(shape) if wire == "otlp" else _signed_requests(shape, secret)


def mixed(shapes: list[Shape], *, wire: Wire = "webhook") -> Iterator[bytes]:
    """Requests of several shapes, in turns."""
    for each in cycle([requests(shape, wire=wire) for shape in shapes]):
        yield next(each)


def _signed_requests(shape: Shape, secret: str) -> Iterator[bytes]:
    parts = _Parts(shape)
    signed_at = -_FRESH
    timestamp, begun = b"", hmac.new(secret.encode(), digestmod=sha256)
    for number in count():
        if time.monotonic() - signed_at >= _FRESH:
            signed_at = time.monotonic()
            timestamp = b"%013d" % (time.time_ns() // 1_000_000)
            begun = hmac.new(secret.encode(), b"v0:%s:%s" % (timestamp, parts.same), sha256)
        end, digest = parts.end(number), begun.copy()
        digest.update(end)
        fields = f"{SIGNATURE_HEADER}: v0={digest.hexdigest()}\r\n{TIMESTAMP_HEADER}: {timestamp.decode()}\r\n"
        yield _request(fields + "content-type: application/json\r\n", parts.same, end)


def _otlp_requests(shape: Shape) -> Iterator[bytes]:
    for body in bodies(shape):
        yield request(body, "otlp")


def headers_and_body(body: bytes, wire: Wire) -> tuple[dict[str, str], bytes]:
    """The headers and the body to post for one webhook body."""
    if wire == "webhook":
        signed = sign(body, secret=backlog.SECRET, timestamp_ms=time.time_ns() // 1_000_000)
        return {"content-type": "application/json", **signed}, body
    export = ExportLogsServiceRequest()
    record = export.resource_logs.add().scope_logs.add().log_records.add()
    record.body.string_value = body.decode()
    return {"content-type": "application/x-protobuf"}, export.SerializeToString()


def request(body: bytes, wire: Wire = "webhook") -> bytes:
    """A request with a given body, as a webhook with a signature."""
    headers, sent = headers_and_body(body, wire)
    return _request("".join(f"{name}: {value}\r\n" for name, value in headers.items()), sent)


def _request(fields: str, *body: bytes) -> bytes:
    length = sum(map(len, body))
    head = f"POST {DEFAULT_PATH} HTTP/1.1\r\nhost: bench\r\n{fields}content-length: {length}\r\n\r\n"
    return b"".join((head.encode(), *body))
