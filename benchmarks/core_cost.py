"""How much processor time does the code itself need?

There are four comparisons, measured in turns:

- A batch of 500 exposures (150 KB) through the core, from headers and bytes to the answer, compared with an HMAC-SHA256
  and one JSON validation of the same bytes. Target: at most 1.3. For scale, the core's own calls of libraries are made
  alone too: hashing, joining the pieces, looking for other characters and for a change, and counting the items.
- The same batch as a whole request to `statsig-otel run`, compared with the same HTTP server and an ASGI application
  that reads the body, discards it and answers 200. Target: at most 2.5. For scale, the request is also compared with a
  Falcon resource that does the same, and with an application that hashes and validates the body. That application is
  also compared with the first one.
- One change of 1 KB in the same way, for scale: a durable answer includes a commit and a delivery.
- A log record from a change event to encoded bytes, compared with `encode_logs` of
  opentelemetry-exporter-otlp-proto-common and its serialisation, for a record that already consists of the SDK's
  objects. Target: at most 0.4.

The processor time of a whole request is that of all threads of the server's process, divided by the answered requests.

    python benchmarks/core_cost.py [--rounds N] [--seconds S] [--directory DIR] [--quick]
"""

import argparse
import contextlib
import hmac
import time
from collections import defaultdict
from collections.abc import Callable
from hashlib import sha256

import msgspec
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from benchmarks import backlog, measure, webhooks
from benchmarks.bare_server import BARE, DROP, FALCON, bare_server
from benchmarks.drain import attributes_of, sdk_record
from benchmarks.load import post
from benchmarks.service import service
from benchmarks.sink import sink
from benchmarks.webhooks import CHANGE, EXPOSURES, Shape
from statsig_otel.plugin.receiver.answer import Answer
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.record import LogRecordEncoder
from statsig_otel.plugin.webhook.body import CONFIG_CHANGE
from statsig_otel.plugin.webhook.signature import Verifier

SERVICE = "service"
_CLIENTS = 4


# Within one process.


def per_call(function: Callable[[], object], seconds: float) -> float:
    """The processor time of one call in microseconds, measured over at least `seconds` of processor time."""
    calls, used = 0, 0.0
    while used < seconds:
        began = time.process_time()
        for _ in range(20):
            function()
        used += time.process_time() - began
        calls += 20
    return used / calls * 1e6


def core() -> tuple[Callable[[], object], Callable[[], object], Callable[[], object]]:
    """The core, its calls of libraries alone, and the hash and validation that both are compared with."""
    body = next(webhooks.bodies(EXPOSURES))
    now_ns = time.time_ns()
    fields, _ = webhooks.headers_and_body(body, "webhook")
    headers = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    headers.append((b"content-length", str(len(body)).encode()))
    intake = Intake(verifier=Verifier([backlog.SECRET]))
    chunks = [body[at : at + (64 << 10)] for at in range(0, len(body), 64 << 10)]  # as a socket delivers it

    def ours() -> object:
        request = intake.begin(headers, now_ns)
        for chunk in chunks:
            request.feed(chunk)
        answer = request.finish(complete=True)
        request.close()
        return answer

    validate = msgspec.json.Decoder(msgspec.Raw)
    key = hmac.new(backlog.SECRET.encode(), digestmod=sha256)
    items = msgspec.json.Decoder(list[msgspec.Raw])

    def calls() -> object:
        digest = key.copy()
        for chunk in chunks:
            digest.update(chunk)
        digest.hexdigest()
        joined = b"".join(chunks)
        assert joined.isascii() and joined.find(b"\\") < 0 and joined.rfind(CONFIG_CHANGE.encode()) < 0  # noqa: PT018
        return items.decode(joined)

    def bare() -> object:
        digest = key.copy()
        digest.update(body)
        digest.hexdigest()
        return validate.decode(body)

    answer = ours()
    assert isinstance(answer, Answer)
    assert answer.body["ignored"] == len(items.decode(body)) == EXPOSURES.exposures
    return ours, calls, bare


def record() -> tuple[Callable[[], object], Callable[[], object]]:
    """The encoders of this project and of the SDK, for the same record."""
    event = ChangeEvent.from_item(backlog.event("A record of a benchmark"))
    encoder, uid = LogRecordEncoder(), "0123456789abcdef" * 2

    def ours() -> bytes:
        return encoder.encode(encoder.default(event, uid=uid, original=""), event, observed_ns=backlog.OBSERVED_NS)

    logs = ExportLogsServiceRequest.FromString(ours()).resource_logs[0]
    scope = logs.scope_logs[0]
    readable = ReadableLogRecord(
        sdk_record(ours()),
        Resource(attributes_of(logs.resource.attributes)),
        InstrumentationScope(scope.scope.name, scope.scope.version, scope.schema_url),
    )

    def sdk() -> bytes:
        return encode_logs([readable]).SerializeToString()

    mine, its = (
        ExportLogsServiceRequest.FromString(encoded).resource_logs[0].scope_logs[0].log_records[0]
        for encoded in (ours(), sdk())
    )
    assert sorted(map(str, mine.attributes)) == sorted(map(str, its.attributes))
    assert (mine.body, mine.event_name, mine.time_unix_nano) == (its.body, its.event_name, its.time_unix_nano)
    return ours, sdk


def within(label: str, ours: Callable[[], object], other: Callable[[], object], given: argparse.Namespace) -> list[str]:
    """The row of two functions that are measured in turns."""
    functions = {"A": ours, "B": other}
    times: dict[str, list[float]] = defaultdict(list)
    for name in measure.alternating(tuple(functions), given.rounds):
        times[name].append(per_call(functions[name], given.seconds / 2))
    return measure.comparison(label, times["A"], times["B"], ".1f")


# Whole requests.


def whole(given: argparse.Namespace) -> dict[tuple[str, Shape], list[float]]:
    """A server's processor time per request in microseconds, by server and kind of request."""
    found: dict[tuple[str, Shape], list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(measure.working_directory(given.directory))
        backend = stack.enter_context(sink())
        ours = stack.enter_context(service(directory / "queue", backend.address))
        peers = {SERVICE: (ours.pid, ours.port)}
        for name in (DROP, FALCON, BARE):
            peer = stack.enter_context(bare_server(name))
            peers[name] = (peer.pid, peer.port)
        for shape in (EXPOSURES, CHANGE):
            for name in measure.alternating(tuple(peers), given.rounds):
                pid, port = peers[name]
                began = measure.processor_time(pid)
                posted = post(port, shape, clients=_CLIENTS, seconds=given.seconds)
                if name == SERVICE:
                    backend.settle(posted.good * shape.changes)
                found[name, shape].append((measure.processor_time(pid) - began) / posted.good * 1e6)
    return found


def compare(given: argparse.Namespace) -> None:
    requests = whole(given)
    ours, calls, bare = core()
    rows = [
        within("core; B: HMAC, validation", ours, bare, given),
        within("core; A: its calls of libraries; B: HMAC, validation", calls, bare, given),
        *(
            measure.comparison(f"{label}; {which}", requests[name, shape], requests[other, shape])
            for shape, label in ((EXPOSURES, "request, 500 exposures"), (CHANGE, "request, one change"))
            for name, other, which in (
                (SERVICE, DROP, "B: body discarded"),
                (SERVICE, FALCON, "B: body discarded, Falcon"),
                (SERVICE, BARE, "B: HMAC, validation"),
                (BARE, DROP, "A: HMAC, validation; B: body discarded"),
            )
        ),
        within("record; B: encode_logs", *record(), given),
    ]
    packages = ("msgspec", "opentelemetry-exporter-otlp-proto-common")
    measure.publish(
        "core_cost",
        "Microseconds of processor time. A: this project, unless the row says otherwise. The core: a batch of 500 "
        f"exposures ({len(next(webhooks.bodies(EXPOSURES))) / 1000:.0f} KB). The record: from a change event to "
        "encoded bytes.",
        f"{measure.machine(packages)}.",
        measure.arguments(given, ("rounds", "seconds")),
        measure.table(measure.COMPARISON, rows),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=7, quick={"rounds": 3, "seconds": 0.5})
    parser.add_argument("--seconds", type=float, default=2.0, help="the length of one measurement")
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
