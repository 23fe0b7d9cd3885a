"""An OTLP/gRPC sink, a process of its own: takes every export without decoding it, and tells afterwards what it got.

python benchmarks/sink.py PORT
"""

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from benchmarks.measure import HOST, free_port, running

_SERVICE = "opentelemetry.proto.collector.logs.v1.LogsService"
_TAKE = "benchmark.Sink"


@dataclass(frozen=True)
class Got:
    """What a sink got.

    Attributes:
        requests: How many exports.
        records: How many log records they held.
        uids: How many different `log.record.uid`s those had.
    """

    requests: int
    records: int
    uids: int


class Sink:
    """A running sink, seen from the benchmark."""

    def __init__(self, port: int) -> None:
        self.address = f"{HOST}:{port}"

    def take(self) -> Got:
        """What it got since this was asked last."""
        with grpc.insecure_channel(self.address) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{_TAKE}/Take")
            return Got(**json.loads(call(b"")))


@contextlib.contextmanager
def sink() -> Iterator[Sink]:
    """A sink for the time of the block."""
    port = free_port()
    with running("-m", "benchmarks.sink", str(port), port=port):
        yield Sink(port)


def serve(port: int) -> None:
    payloads: list[bytes] = []
    lock = threading.Lock()

    def export(request: bytes, _: Any) -> bytes:
        with lock:
            payloads.append(request)
        return b""

    def take(_: bytes, __: Any) -> bytes:
        with lock:
            taken = payloads.copy()
            payloads.clear()
        uids = [uid for payload in taken for uid in _uids(payload)]
        return json.dumps({"requests": len(taken), "records": len(uids), "uids": len(set(uids))}).encode()

    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", 64 << 20)])
    for service, name, method in ((_SERVICE, "Export", export), (_TAKE, "Take", take)):
        # Without serialisers: bytes in, bytes out.
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


if __name__ == "__main__":
    serve(int(sys.argv[1]))
