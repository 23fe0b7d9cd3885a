"""An OTLP/gRPC sink in its own process: accepts every export without decoding it, and reports later what it received.

It can also report the records, and when each arrived, by the monotonic clock that all processes of a machine share.

    python benchmarks/sink.py PORT
"""

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from benchmarks.measure import HOST, free_port, running

_SERVICE = "opentelemetry.proto.collector.logs.v1.LogsService"
EXPORT = f"/{_SERVICE}/Export"
"""The method of an export."""

_TAKE = "benchmark.Sink"
_LARGEST = 256 << 20
"""The largest message in bytes."""

_SETTLE = 60.0
"""Seconds until a sink has received everything. Only a loss reaches this."""

Record = dict[str, Any]
"""A record by field, with the attributes of its resource and its own attributes as dictionaries."""


@dataclass(frozen=True)
class Got:
    """What a sink has received.

    Attributes:
        requests: The number of exports.
        records: The number of log records in them.
        uids: The number of different values of `log.record.uid`.
    """

    requests: int
    records: int
    uids: int


class Sink:
    """A client of a running sink."""

    def __init__(self, port: int) -> None:
        self.address = f"{HOST}:{port}"

    def take(self) -> Got:
        """What the sink has received since the last call of any method."""
        return Got(**self._ask("Take"))

    def arrivals(self) -> Mapping[str, float]:
        """When each record arrived since the last call, in seconds of time.monotonic(), by `log.record.uid`."""
        return dict(self._ask("Arrivals"))

    def records(self) -> list[Record]:
        """The records since the last call."""
        return list(self._ask("Records"))

    def settle(self, expected: int, *, copies: int = 1, seconds: float = _SETTLE) -> Got:
        """Wait until the sink has received a number of records, so that deliveries do not disturb what follows.

        Args:
            expected: The number of different records.
            copies: The number of exporters, each of which delivers every record.
            seconds: The longest time to wait.

        Raises:
            RuntimeError: Records are missing after that time.
        """
        requests = records = uids = 0
        deadline = time.monotonic() + seconds
        while True:
            got = self.take()
            requests, records, uids = requests + got.requests, records + got.records, uids + got.uids
            missing = expected - uids if copies == 1 else expected * copies - records
            if missing <= 0:
                return Got(requests, records, uids)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{missing} acknowledged changes did not reach the sink")
            time.sleep(0.1)

    def _ask(self, what: str) -> Any:
        options = [("grpc.max_receive_message_length", _LARGEST)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{_TAKE}/{what}")
            return json.loads(call(b"", timeout=_SETTLE))


@contextlib.contextmanager
def sink() -> Iterator[Sink]:
    """Run a sink during the block."""
    port = free_port()
    with running("-m", "benchmarks.sink", str(port), port=port):
        yield Sink(port)


def serve(port: int) -> None:
    payloads: list[tuple[float, bytes]] = []
    lock = threading.Lock()

    def export(request: bytes, _: Any) -> bytes:
        with lock:
            payloads.append((time.monotonic(), request))
        return b""

    def take_all() -> list[tuple[float, bytes]]:
        with lock:
            got = payloads.copy()
            payloads.clear()
        return got

    def take(_: bytes, __: Any) -> bytes:
        got = take_all()
        uids = [uid for _, payload in got for uid in _uids(payload)]
        return json.dumps({"requests": len(got), "records": len(uids), "uids": len(set(uids))}).encode()

    def arrivals(_: bytes, __: Any) -> bytes:
        return json.dumps([[uid, at] for at, payload in take_all() for uid in _uids(payload)]).encode()

    def records(_: bytes, __: Any) -> bytes:
        return json.dumps([record for _, payload in take_all() for record in _records(payload)]).encode()

    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", _LARGEST)])
    for service, name, method in (
        (_SERVICE, "Export", export),
        (_TAKE, "Take", take),
        (_TAKE, "Arrivals", arrivals),
        (_TAKE, "Records", records),
    ):
        # Without serialisers, methods take and return bytes.
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(method)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    signal.pause()


def _uids(payload: bytes) -> Iterator[str]:
    for resource in ExportLogsServiceRequest.FromString(payload).resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                yield next(pair.value.string_value for pair in record.attributes if pair.key == "log.record.uid")


def _records(payload: bytes) -> Iterator[Record]:
    for resource in ExportLogsServiceRequest.FromString(payload).resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                fields: Record = MessageToDict(record)
                fields["body"] = record.body.string_value
                fields["attributes"] = _attributes(record.attributes)
                yield fields | {"resource": _attributes(resource.resource.attributes), "scope": scope.scope.name}


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, object]:
    """Attributes by name: strings, and arrays of strings."""
    return {
        pair.key: [element.string_value for element in pair.value.array_value.values]
        if pair.value.HasField("array_value")
        else pair.value.string_value
        for pair in pairs
    }


if __name__ == "__main__":
    serve(int(sys.argv[1]))
