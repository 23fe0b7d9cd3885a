"""How fast is a backlog delivered over OTLP/gRPC?

A is the durable queue on disk with its sender and exporter. B is opentelemetry-sdk's BatchLogRecordProcessor with the
OTLPLogExporter of opentelemetry-exporter-otlp-proto-grpc and a queue in memory that contains all records. Both send the
same records, in batches of 512, to the same sink, each from its own process: once without compression, which is the
SDK's default, and once with gzip, which is the service's. Otherwise both have their defaults.
Target: A / B of at least 20.

The clock of A runs from opening the queue until the last record is marked as delivered on disk. B has an advantage: its
records are created and in its queue before the clock starts, so that it does not have to emit while it exports. Its
clock ends with force_flush.

For scale, bare gRPC calls send the same batches of encoded records, one after the other: from the same file, by one
query for each batch, which a thread reads ahead while the one before is sent; and from memory. Nothing is checked or
marked as delivered. A second table has the processor time of all three for each batch, by thread.

With `--commit` the queue drains in turns with those of earlier commits, and with nothing else.

    python benchmarks/drain.py [--commit COMMIT [--others COMMIT ...]] [--rounds N] [--records N] [--directory DIR]
        [--quick]
"""

import argparse
import json
import os
import shutil
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.util.types import AnyValue as Value

from benchmarks import backlog, measure, stages
from benchmarks.sink import EXPORT, Sink, sink
from statsig_otel.config.grammar import check
from statsig_otel.config.source import read
from statsig_otel.exporters.delivery.sender import QueueSender
from statsig_otel.exporters.queue import schema
from statsig_otel.exporters.queue.directory import DATABASE
from statsig_otel.plugin.settings.catalog import COMPONENTS, create_exporter
from statsig_otel.plugin.settings.reading import configured_exporters

QUEUE, SDK, BARE, MEMORY = "queue", "sdk", "bare calls, from the file", "bare calls, from memory"
_BATCH = 512
COMPRESSIONS = {"none": grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip}
TIMEOUT = 600.0
"""Seconds for one drain. Only a drain that hangs reaches this."""


@dataclass(frozen=True)
class Drained:
    """What a drain took.

    Attributes:
        seconds: From its beginning to its end.
        threads: The seconds of processor time, by thread.
    """

    seconds: float
    threads: Mapping[str, float]


def timed(work: Callable[[], object]) -> Drained:
    before, began = stages.clocks(), time.perf_counter()
    work()
    took, after = time.perf_counter() - began, stages.clocks()
    return Drained(took, {name: used - before.get(name, (0.0, 0))[0] for name, (used, _) in after.items()})


# The candidates. Each prints what it took.


def drain_queue(directory: Path, backend: str, compression: str) -> Drained:
    config = directory / "config.yaml"
    config.write_text(backlog.configuration(directory=directory, backend=backend, compression=compression))
    configured = configured_exporters(check(read(config, environ={}), COMPONENTS))[backlog.EXPORTER]
    queue = backlog.open_queue(directory)
    exporter = create_exporter(backlog.EXPORTER, configured.settings)
    sender = QueueSender(queue.cursor(backlog.EXPORTER), exporter, configured.delivery())

    def drain() -> None:
        queue.start()
        sender.start()
        while queue.cursor(backlog.EXPORTER).waiting:
            time.sleep(0.005)

    drained = timed(drain)
    sender.shutdown()
    queue.shutdown()
    return drained


class WaitingExporter(OTLPLogExporter):
    """Exports nothing until `may` is set."""

    def __init__(self, endpoint: str, compression: grpc.Compression) -> None:
        super().__init__(endpoint=endpoint, insecure=True, compression=compression)
        self.may = threading.Event()

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        self.may.wait()
        return super().export(batch)


def drain_sdk(count: int, backend: str, compression: str) -> Drained:
    exporter = WaitingExporter(backend, COMPRESSIONS[compression])
    processor = BatchLogRecordProcessor(exporter, max_queue_size=count)
    _, first = next(backlog.records(1))
    logs = ExportLogsServiceRequest.FromString(first).resource_logs[0]
    provider = LoggerProvider(Resource(attributes_of(logs.resource.attributes)), shutdown_on_exit=False)
    provider.add_log_record_processor(processor)
    scope = logs.scope_logs[0]
    logger = provider.get_logger(scope.scope.name, scope.scope.version, scope.schema_url)
    for _, record in backlog.records(count):
        logger.emit(sdk_record(record))

    def drain() -> None:
        exporter.may.set()
        provider.force_flush()

    drained = timed(drain)
    provider.shutdown()
    return drained


def drain_bare(payloads: Iterable[Sequence[bytes]], backend: str, compression: str) -> Drained:
    """The payloads of each batch, in bare calls."""
    with grpc.insecure_channel(backend, [("grpc.http2.write_buffer_size", 1 << 20)]) as channel:
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(EXPORT)

        def drain() -> None:
            for batch in payloads:
                # The one before exists until then. Otherwise the C library gives the memory of each batch back to the
                # system and takes it anew, which costs as much as the rest of the call. The service is not affected.
                payload = b"".join(batch)
                export(payload, compression=COMPRESSIONS[compression])

        return timed(drain)


def from_memory(count: int) -> list[list[bytes]]:
    payloads = [record for _, record in backlog.records(count)]
    return [payloads[at : at + _BATCH] for at in range(0, count, _BATCH)]


def from_file(directory: Path, reader: Executor) -> Iterator[Sequence[bytes]]:
    """The next batch is read by the reader while the last one is sent, as the queue's cursor does."""
    connection = schema.connect_reading(directory / DATABASE)
    query = f"SELECT seq, payload FROM records WHERE route = ? AND seq > ? ORDER BY seq LIMIT {_BATCH}"
    (route,) = connection.execute("SELECT DISTINCT route FROM records").fetchone()

    def read(after: int) -> list[tuple[int, bytes]]:
        return connection.execute(query, (route, after)).fetchall()

    ahead = reader.submit(read, 0)
    while rows := ahead.result():
        ahead = reader.submit(read, rows[-1][0])
        yield [payload for _, payload in rows]


def sdk_record(encoded: bytes) -> LogRecord:
    """The same record as an object of the SDK."""
    record = ExportLogsServiceRequest.FromString(encoded).resource_logs[0].scope_logs[0].log_records[0]
    return LogRecord(
        timestamp=record.time_unix_nano,
        observed_timestamp=record.observed_time_unix_nano,
        severity_number=SeverityNumber(record.severity_number),
        body=record.body.string_value,
        attributes=attributes_of(record.attributes),
        event_name=record.event_name,
    )


def attributes_of(pairs: Sequence[KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Value:
    if value.HasField("array_value"):
        return [element.string_value for element in value.array_value.values]
    return value.string_value


# The parent.


def drain(
    name: str, compression: str, filled: Path, count: int, backend: Sink, *, tree: Path = measure.ROOT
) -> Drained:
    """One drain, with the package of a tree. Those from a file drain a copy of the backlog."""
    arguments = ["--backend", backend.address, "--compression", compression, "--records", str(count), "--drain", name]
    arguments = [*measure.program(tree, "benchmarks.drain"), *arguments]
    with measure.working_directory(filled.parent) as directory:
        if name in (QUEUE, BARE):
            shutil.copytree(filled, directory, dirs_exist_ok=True)
            os.sync()  # so that writing the copy to disk is not measured
            arguments += ["--directory", str(directory)]
        drained = Drained(**json.loads(measure.output(*arguments, timeout=TIMEOUT)))
    got = backend.take()
    if not got.records == got.uids == count:
        raise RuntimeError(f"{name}: of {count} records the sink received {got.records}, {got.uids} of them different")
    return drained


def by_thread(label: str, drained: Sequence[Drained], batches: int) -> list[str]:
    """Milliseconds of processor time for each batch: of all threads, and of each that takes more than a tenth of it."""
    used: dict[str, list[float]] = defaultdict(list)
    for one in drained:
        for name, seconds in one.threads.items():
            used[name].append(seconds / batches * 1e3)
        used[""].append(sum(one.threads.values()) / batches * 1e3)
    medians = {name: statistics.median(values) for name, values in used.items()}
    whole = medians.pop("")
    large = sorted((name for name in medians if medians[name] > whole / 10), key=lambda name: -medians[name])
    return [label, f"{whole:.2f}", ", ".join(f"{name} {medians[name]:.2f}" for name in large)]


def compare(given: argparse.Namespace) -> None:
    rows, threads = [], []
    with measure.working_directory(given.directory) as directory, sink() as backend:
        filled = directory / "filled"
        backlog.fill(filled, given.records)
        for compression in COMPRESSIONS:
            drained: dict[str, list[Drained]] = {QUEUE: [], SDK: [], BARE: [], MEMORY: []}
            for name in measure.alternating(tuple(drained), given.rounds):
                drained[name].append(drain(name, compression, filled, given.records, backend))
            rates = {name: [given.records / one.seconds for one in some] for name, some in drained.items()}
            label = f"compression: {compression}"
            batches = -(-given.records // _BATCH)
            threads += [by_thread(f"{label}; {name}", drained[name], batches) for name in (QUEUE, BARE, MEMORY)]
            rows.append(measure.comparison(label, rates[QUEUE], rates[SDK]))
            rows += [measure.comparison(f"{label}; A: {name}", rates[name], rates[SDK]) for name in (BARE, MEMORY)]
        file_system = measure.file_system(directory)
    measure.publish(
        "drain",
        "Records per second from a backlog, over OTLP/gRPC. A: from the durable queue, unless the row names bare "
        "calls; B: from the SDK's batch processor, which keeps them in memory. In every round the sink received every "
        "record once.",
        f"{measure.machine(('opentelemetry-sdk', 'grpcio'))}. On {file_system}.",
        measure.arguments(given, ("rounds", "records")),
        measure.table(measure.COMPARISON, rows),
        f"Processor time of a batch of {_BATCH} records, in milliseconds (median of the rounds):",
        measure.table(("what", "all threads", "threads with more than a tenth of it"), threads),
    )


def compare_commits(given: argparse.Namespace) -> None:
    rows = []
    with measure.working_directory(given.directory) as directory, sink() as backend:
        filled = directory / "filled"
        backlog.fill(filled, given.records)
        trees = measure.trees(directory, given)
        *names, before = trees
        for compression in COMPRESSIONS:
            drained: dict[str, list[Drained]] = {name: [] for name in trees}
            for name in measure.alternating(tuple(trees), given.rounds):
                drained[name].append(drain(QUEUE, compression, filled, given.records, backend, tree=trees[name]))
            batches = -(-given.records // _BATCH)
            took = {name: [one.seconds / batches * 1e3 for one in some] for name, some in drained.items()}
            used = {name: [sum(one.threads.values()) / batches * 1e3 for one in some] for name, some in drained.items()}
            rows += [
                measure.comparison(f"{name}; compression: {compression}; {what}", of[name], of[before], ".2f")
                for what, of in (("time", took), ("processor time", used))
                for name in names
            ]
    measure.publish(
        "drain",
        f"Milliseconds for a batch of {_BATCH} records. A is what the row names, and B the commit "
        f"{measure.short(before)}.",
        f"{measure.machine(('grpcio',))}.",
        measure.arguments(given, ("rounds", "records")),
        measure.table(measure.COMPARISON, rows),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=5, quick={"rounds": 3, "records": 20_000})
    parser.add_argument("--commit", help="compare with this commit alone")
    measure.add_others(parser)
    parser.add_argument("--records", type=int, default=100_000, help="waiting records (default: %(default)s)")
    measure.add_directory(parser)
    for hidden in ("--backend", "--compression", "--drain"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.others and not given.commit:
        parser.error("--others needs --commit")
    if given.drain is None:
        compare_commits(given) if given.commit else compare(given)
        return
    if given.drain == QUEUE:
        drained = drain_queue(given.directory, given.backend, given.compression)
    elif given.drain == SDK:
        drained = drain_sdk(given.records, given.backend, given.compression)
    else:
        with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
            payloads = from_file(given.directory, reader) if given.drain == BARE else from_memory(given.records)
            drained = drain_bare(payloads, given.backend, given.compression)
    print(json.dumps(vars(drained)))


if __name__ == "__main__":
    main()
