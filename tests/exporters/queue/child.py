"""Programs that the tests run in processes of their own: `python -m tests.exporters.queue.child PROGRAM ARGUMENT`."""

import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs

from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.consumer import Batch, Change, RefusedError
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.recovery import carry_over
from statsig_otel.exporters.queue.recovery.carry_over import CarriedOver, CarryOver
from statsig_otel.exporters.routing import CurrentRouting, QueuedExporter, Route, Routing
from tests.exporters.queue.helpers import PATIENCE, batch, consume, delivered, put, running, uid

NOBODY = 65534
LATER = 4_000_000_000
"""The second in which the first change of `remember` was made: in many years, so that none is forgotten."""

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # the SDK is for one of the programs alone


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def hold(directory: str) -> None:
    """Own a directory until the end."""
    QueueDirectory(Path(directory)).acquire()
    say("held")
    time.sleep(PATIENCE)


def fork_and_hold(directory: str) -> None:
    """Own a directory, with a forked child that lives longer."""
    QueueDirectory(Path(directory)).acquire()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"forked")  # and so it has let go
        time.sleep(PATIENCE)
        os._exit(0)
    os.read(reading, 6)
    say(f"held\n{pid}")
    time.sleep(PATIENCE)


def start(directory: str) -> None:
    """Run a queue until the end."""
    with running(Path(directory)):
        say("started")
        time.sleep(PATIENCE)


def recover_and_crash(directory: str, steps: str) -> None:
    """Carry over what was set aside, ten records at a time; kill this process at the end of such a transaction."""
    from unittest import mock  # with asyncio: for this program alone

    add_records, left = CarryOver._add_records, int(steps)

    def add_and_crash(*arguments: Any) -> CarriedOver:
        nonlocal left
        done, left = add_records(*arguments), left - 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    with (
        mock.patch.object(carry_over, "_AT_ONCE", 10),
        mock.patch.object(CarryOver, "_add_records", add_and_crash),
        running(Path(directory), exporters=("otlp", "done")),
    ):
        time.sleep(PATIENCE)


def start_as_nobody(directory: str) -> None:
    """Start a queue as another user, with the same group; say what a check finds, what is logged and what happens."""
    Path(directory).as_uri()  # loads a module on Python 3.13, which may not be readable for another user
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    if fault := QueueDirectory(Path(directory)).check():
        say(f"check: {fault.message}")
    try:
        with running(Path(directory)) as queue:
            say("delivered", *delivered(queue.cursor("otlp")))
            put(queue, 100)
    except OSError as error:
        say(f"{type(error).__name__}: {error}")
    say("end")


def acknowledge(directory: str, threads: str) -> None:
    """Print each number once it is acknowledged, until somebody kills this."""
    with running(Path(directory)) as queue:

        def send(first: int) -> None:
            number = first
            while True:
                put(queue, number)
                os.write(1, b"%d\n" % number)
                number += int(threads)

        for first in range(int(threads)):
            threading.Thread(target=send, args=(first,), daemon=True).start()
        time.sleep(PATIENCE)


def answer(directory: str, min_free_bytes: str = "0") -> None:
    """Store each number that is written to this process, and print it once it is acknowledged."""
    with running(Path(directory), min_free_bytes=int(min_free_bytes)) as queue:
        for line in sys.stdin:
            put(queue, int(line))
            say(int(line))


def deliver(directory: str) -> None:
    """Tick off one at a time, and print each number before that; until somebody kills this."""
    with running(Path(directory)) as queue:
        cursor = queue.cursor("otlp")
        while records := cursor.read(1, 1 << 20):
            os.write(1, b"%d\n" % int.from_bytes(records[0].uid))
            cursor.finish(records)
        time.sleep(PATIENCE)


def limited(directory: str, size: str) -> None:
    """Take batches until the file can't grow, then lift the limit; print what became of each."""
    path = Path(directory)
    with running(path) as queue:
        put(queue, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.RLIM_INFINITY))
        number, refused = 1, 0
        while refused < 3:
            try:
                consume(queue, batch(number, size=5000)).result(PATIENCE)
                say(f"taken {number}")
            except RefusedError as error:
                refused += 1
                say(f"refused {number} {error.reason} {queue._database.writer.failing}")
            number += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        consume(queue, batch(number, size=5000)).result(PATIENCE)
        say(f"taken {number}")
        say(f"failing {queue._database.writer.failing}")
        say("delivered", *delivered(queue.cursor("otlp")))
    say("end")


def metrics(directory: str) -> None:
    """Collect what a queue with a MeterProvider tells of itself, before and after its shutdown."""
    from opentelemetry.metrics import set_meter_provider
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    set_meter_provider(MeterProvider([reader]))
    observed_ns = 1_700_000_000 * 10**9
    record = LogRecord(observed_time_unix_nano=observed_ns)
    request = ExportLogsServiceRequest(resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=[record])])])
    changes = [Change(f"{number:032x}", (request.SerializeToString(),)) for number in range(4)]
    exporters = {"bounded": QueuedExporter(queue_size=2), "free": QueuedExporter()}
    with running(Path(directory), exporters=exporters, clock=lambda: 1_700_000_090.0) as queue:
        for change in changes:
            consume(queue, Batch("statsig", (change,))).exception(PATIENCE)
        cursor = queue.cursor("free")
        cursor.finish(cursor.read(10, 1 << 20))
        say(_points(reader))
    say(_points(reader))


def _points(reader: "InMemoryMetricReader") -> str:
    """Each metric's values by exporter, as JSON."""
    from opentelemetry.sdk.metrics.export import NumberDataPoint

    found: dict[str, dict[str, float]] = {}
    data = reader.get_metrics_data()
    for metrics_of_resource in data.resource_metrics if data else ():
        for metric in metrics_of_resource.scope_metrics[0].metrics:
            for point in metric.data.data_points:
                name = " ".join(str(value) for value in (point.attributes or {}).values())
                found.setdefault(metric.name, {})[name] = point.value if isinstance(point, NumberDataPoint) else 0
    return json.dumps(found)


def fork_and_use(directory: str) -> None:
    """Use a queue in a forked child, then in the parent."""
    queue = DurableQueue(
        Path(directory),
        CurrentRouting(Routing({"statsig": Route(("otlp",))}, {"otlp": QueuedExporter()})),
        min_free_bytes=0,
    )
    queue.start()
    put(queue, 1)
    cursor = queue.cursor("otlp")
    records = cursor.read(10, 1 << 20)
    attempts: dict[str, Callable[[], object]] = {
        "consume": lambda: consume(queue, batch(2)),
        "cursor": lambda: queue.cursor("otlp"),
        "read": lambda: cursor.read(10, 1 << 20),
        "finish": lambda: cursor.finish(records),
        "states": queue.states,
        "shutdown": queue.shutdown,
    }
    for name, attempt in attempts.items():
        pid = os.fork()
        if pid == 0:
            signal.alarm(int(PATIENCE))
            try:
                attempt()
                say(f"{name}: nothing raised")
            except RuntimeError as error:
                say(f"{name}: {error}".replace(str(os.getppid()), "PARENT"))
            sys.exit(0)  # the whole way out, with all that this process thinks is its own
        _, status = os.waitpid(pid, 0)
        say(f"exit {status}")
    put(queue, 3)
    say("delivered", *delivered(cursor))
    cursor.close()
    queue.shutdown()
    say("end")


def remember(directory: str) -> None:
    """Store changes one after the other, begin to remember them while that goes on, and say what was acknowledged."""
    with running(Path(directory), clock=time.time) as queue:
        for number in range(1_000_000):
            if number == 20:
                receivers = {"statsig": Route(("otlp",), remembered=3600.0)}
                queue.reconfigure(Routing(receivers, {"otlp": QueuedExporter()}))
            made = batch(number)
            arrivals = (
                Arrival(uid(number), LATER + number, "gate"),
                Arrival(uid(number + (1 << 40)), LATER + number, "gate", filtered=True),
            )
            consume(queue, Batch("statsig", made.changes, arrivals=arrivals)).result(PATIENCE)
            say(number)


PROGRAMS: dict[str, Callable[..., None]] = {
    "hold": hold,
    "start": start,
    "fork and hold": fork_and_hold,
    "recover and crash": recover_and_crash,
    "start as nobody": start_as_nobody,
    "acknowledge": acknowledge,
    "answer": answer,
    "deliver": deliver,
    "limited": limited,
    "metrics": metrics,
    "remember": remember,
    "fork and use": fork_and_use,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
