"""A stand-in for Grafana Loki: its OTLP endpoint with what it refuses, and a little of its queries.

It is made after Loki's source of August 2026 (github.com/grafana/loki at 65e30f8488), not after a running Loki:

- pkg/distributor/validator.go, ValidateEntry: an entry older than `reject_old_samples_max_age`, a week by default, is
  refused. pkg/distributor/distributor.go leaves it out, stores the other entries of the push, and then answers 400.
- pkg/ingester/stream.go, validateEntries: an entry more than half of `max_chunk_age` (1 of 2 hours) older than the
  newest one of its stream is refused in the same way. With `shard_streams.time_sharding_enabled` streams are divided
  by time, so that it never is. pkg/chunkenc/unordered.go, Append: an entry with the time, the line and, since March
  2026 (pull request 21039), the metadata of one that is there adds nothing.
- pkg/loghttp/push/push.go, OTLPError: the body is a `google.rpc.Status` with nothing but the message. Its media type is
  Go's guess, since the header is set too late. pkg/distributor/http.go: success is 204.
- pkg/loghttp/push/otlplabels/labels.go: what becomes an index label, and what structured metadata.

Of the resource's 17 attributes that become labels it knows those three that a resource of ours may have.
"""

import gzip
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # the package has no py.typed
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ScopeLogs

from tests.e2e.stores import texts
from tests.peers.http_server import LocalServer

HOUR: Final = 3600
WEEK: Final = 7 * 24 * HOUR
_NANOS: Final = 10**9
_INDEXED: Final = ("service.name", "service.namespace", "deployment.environment.name")
_SELECTOR: Final = re.compile(r'\{((?:\w+="[^"]*"(?:, ?)?)+)\}((?: \| \w+="[^"]*")*)')


class Entry(NamedTuple):
    """What Loki keeps of a record."""

    labels: dict[str, str]
    time: int
    line: str
    metadata: dict[str, str]


class Loki(LocalServer):
    """The stand-in. A context manager; its URL is `origin`.

    Attributes:
        max_age: `limits_config::reject_old_samples_max_age`, in seconds.
        time_sharding: `limits_config::shard_streams::time_sharding_enabled`.
        is_away: Answer 503 to everything.
        entries: What it has kept, in the order in which it came.
        pushes: How many it has answered.
    """

    def __init__(self, *, max_age: float = WEEK, time_sharding: bool = False) -> None:
        self.max_age = max_age
        self.time_sharding = time_sharding
        self.is_away = False
        self.entries: list[Entry] = []
        self.pushes = 0
        self._lock = threading.Lock()
        loki = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with loki._lock:
                    status, answer = loki._pushed(self.path, self.headers, body)
                    loki.pushes += 1
                self._answer(status, answer, "application/octet-stream")

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                parameters = {name: value for name, (value,) in parse_qs(url.query).items()}
                with loki._lock:
                    found = list(loki._found(parameters)) if url.path == "/loki/api/v1/query_range" else None
                if found is None:
                    self._answer(404, b"404 page not found\n", "text/plain")
                    return
                data = {"resultType": "streams", "result": found}
                self._answer(200, json.dumps({"status": "success", "data": data}).encode(), "application/json")

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                if body:
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(Handler)

    def _pushed(self, path: str, headers: Message, body: bytes) -> tuple[int, bytes]:
        """The answer to a push, whose good records are kept."""
        if self.is_away:
            return 503, b""
        if path != "/otlp/v1/logs":
            return 404, b"404 page not found\n"
        if (kind := headers["Content-Type"]) != "application/x-protobuf":
            return _refused(f"content type: {kind} is not supported")
        content = gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body
        oldest = time.time_ns() - int(self.max_age * _NANOS)
        young: dict[str, list[Entry]] = {}
        too_old: Counter[str] = Counter()
        for entry in _entries(ExportLogsServiceRequest.FromString(content)):
            stream = _shown(entry.labels)
            if entry.time < oldest:
                when = f"{_moment(entry.time)}, oldest acceptable timestamp is: {_moment(oldest)}"
                too_old[f"entry for stream '{stream}' has timestamp too old: {when}"] += 1
            else:
                young.setdefault(stream, []).append(entry)
        behind = [self._behind(stream, entries) for stream, entries in young.items()]
        for error in behind:
            if error:  # what an ingester says goes before what the distributor has to say
                return _refused(error)
        if not too_old:
            return 204, b""
        several = too_old.total() > 1
        return _refused("; ".join(f"{count} errors like: {one}" if several else one for one, count in too_old.items()))

    def _behind(self, stream: str, entries: list[Entry]) -> str:
        """Keep what is not too far behind the newest entry of its stream. What to say about the rest, if any."""
        newest = max((one.time for one in self.entries if _shown(one.labels) == stream), default=0)
        errors = []
        for entry in entries:
            oldest = newest - HOUR * _NANOS
            if entry.time < oldest and not self.time_sharding:
                when = datetime.fromtimestamp(entry.time / _NANOS, UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
                errors.append(
                    f"entry with timestamp {when} ignored, reason: 'entry too far behind, entry timestamp is: "
                    f"{_moment(entry.time)}, oldest acceptable timestamp is: {_moment(oldest)}',\n"
                )
            elif entry not in self.entries:
                self.entries.append(entry)
                newest = max(newest, entry.time)
        ignored = f"user 'fake', total ignored: {len(errors)} out of {len(entries)} for stream: {stream}"
        return "".join(errors) + ignored if errors else ""

    def _found(self, parameters: dict[str, str]) -> Iterator[dict[str, object]]:
        """What a query of labels and of metadata finds in the time `since`, in Loki's form."""
        wanted = _SELECTOR.fullmatch(parameters["query"])
        assert wanted is not None, f"the stand-in does not know such queries: {parameters['query']}"
        selected, filtered = (dict(re.findall(r'(\w+)="([^"]*)"', part)) for part in wanted.groups())
        begin = time.time_ns() - int(parameters.get("since", "1h").removesuffix("h")) * HOUR * _NANOS
        for entry in self.entries:
            everything = entry.labels | entry.metadata
            if (
                entry.time >= begin
                and selected.items() <= entry.labels.items()
                and filtered.items() <= everything.items()
            ):
                yield {"stream": everything, "values": [[str(entry.time), entry.line]]}


def _entries(request: ExportLogsServiceRequest) -> Iterator[Entry]:
    for of_resource in request.resource_logs:
        resource = texts(of_resource.resource.attributes)
        labels = {_name(name): value for name, value in resource.items() if name in _INDEXED}
        rest = {_name(name): value for name, value in resource.items() if name not in _INDEXED}
        for of_scope in of_resource.scope_logs:
            for record in of_scope.log_records:
                time_ = record.time_unix_nano or record.observed_time_unix_nano
                yield Entry(labels, time_, record.body.string_value, _metadata(record) | rest | _scope(of_scope))


def _metadata(record: LogRecord) -> dict[str, str]:
    fields = {
        "observed_timestamp": record.time_unix_nano and record.observed_time_unix_nano,
        "severity_number": record.severity_number,
        "severity_text": record.severity_text,
        "event_name": record.event_name,
    }
    attributes = {_name(name): value for name, value in texts(record.attributes).items()}
    return attributes | {name: str(value) for name, value in fields.items() if value}


def _scope(of_scope: ScopeLogs) -> dict[str, str]:
    return {"scope_name": of_scope.scope.name, "scope_version": of_scope.scope.version}


def _name(attribute: str) -> str:
    return re.sub(r"\W", "_", attribute)


def _shown(labels: dict[str, str]) -> str:
    return "{" + ", ".join(f"{name}={json.dumps(labels[name])}" for name in sorted(labels)) + "}"


def _moment(nanos: int) -> str:
    return datetime.fromtimestamp(nanos // _NANOS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _refused(message: str) -> tuple[int, bytes]:
    body: bytes = Status(message=message).SerializeToString()
    return 400, body
