"""What does the service do for a webhook that the least program does not, and how much is each of these things?

Both count their bytecode instructions, in all threads, while they take webhooks with one change of 1 KB
(benchmarks/stages.py). Each function counts for what it is needed for, by the tables below. A function of a library is
needed for the same as its caller. No other load on the machine affects the instructions, but how many changes share a
commit does.

    python -m benchmarks.promises {service|least} PORT BACKEND DIRECTORY
"""

import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Final

import uvloop

from benchmarks import backlog, measure, stages
from benchmarks.load import post
from benchmarks.peers import least
from benchmarks.sink import sink
from benchmarks.webhooks import CHANGE
from statsig_otel import Service
from statsig_otel.plugin.cli.run import collect_garbage_rarely

SERVICE: Final = "service"
LEAST: Final = "least"

_TIDY: Final = 2.5
"""Seconds after which a service has ticked off and deleted what it delivered."""

# What both programs do.
HTTP: Final = "HTTP, and the event loop"
FALCON: Final = "Falcon"
VERIFY: Final = "verify, with one of several secrets"
PARSE: Final = "find the changes in the body, and lose none in an odd one"
UID: Final = "the uid"
RECORD: Final = "the record's fields; filter, services and mapping, if there are any"
ENCODE: Final = "encode"
HAND_OVER: Final = "hand over to the writer's thread, which waits for more"
STORE: Final = "store all that wait together; checksums"
ANSWERS: Final = "wake the request after the commit; its patience"
ANSWER: Final = "make the answer"
SEND: Final = "read back, check and send"
TICK_OFF: Final = "tick off and delete"
# What the least program does not do.
PATHS: Final = "other paths and methods, below any prefix"
HEADERS: Final = "read four headers; refuse repeated and wrong ones"
DEADLINE: Final = "a deadline for the body; a stop that lets requests end; an answer to each error"
MEMORY: Final = "a limit for the memory of all bodies"
TOGETHER: Final = "verify and map the webhooks of a turn together"
PROBE: Final = "recognise the URL verification"
FIELDS: Final = "check each field of a change; take any type, and name what is wrong"
CONSUMER: Final = "any consumer, and what embedders pass is checked"
ROUTES: Final = "several receivers, exporters and synchronous exporters; large batches in slices"
LIMITS: Final = "queue_size and min_free_bytes, for each exporter"
DUPLICATES: Final = "duplicates within a window"
SAVEPOINTS: Final = "a batch that fails undoes no other"
FILES: Final = "files that somebody deletes, replaces or cuts"
RETRIES: Final = "outcomes, retries, dead letters, an order"
METRICS: Final = "numbers for the metrics, and the log"
JOURNAL: Final = "the journal"

PROMISES: Final = (
    HTTP, FALCON, PATHS, HEADERS, DEADLINE, MEMORY, TOGETHER, PROBE, VERIFY, PARSE, UID, FIELDS, RECORD, ENCODE,
    CONSUMER, ROUTES, LIMITS, HAND_OVER, STORE, DUPLICATES, SAVEPOINTS, FILES, ANSWERS, ANSWER, METRICS, JOURNAL, SEND,
    RETRIES, TICK_OFF,
)  # fmt: skip
"""In the order of the way of a webhook."""

MODULES: Final = {
    "_arguments.py": CONSUMER,
    "_futures.py": HAND_OVER,
    "_journal.py": JOURNAL,
    "_process.py": ROUTES,
    "_telemetry.py": METRICS,
    "plugin/server": HTTP,
    "plugin/receiver/asgi.py": DEADLINE,
    "plugin/receiver/responses.py": PATHS,
    "plugin/receiver/intake.py": HEADERS,
    "plugin/receiver/bodies.py": MEMORY,
    "plugin/receiver/handover.py": CONSUMER,
    "plugin/receiver/answer.py": ANSWER,
    "plugin/receiver/counting.py": METRICS,
    "plugin/webhook": PARSE,
    "plugin/webhook/signature.py": VERIFY,
    "plugin/record": RECORD,
    "plugin/record/arrays.py": FIELDS,
    "plugin/record/change_event.py": FIELDS,
    "plugin/record/serializer.py": ENCODE,
    "plugin/service/dispatch.py": ROUTES,
    "exporters/consumer.py": CONSUMER,
    "exporters/routing.py": ROUTES,
    "exporters/queue/slices.py": ROUTES,
    "exporters/queue/queue.py": STORE,
    "exporters/queue/store.py": STORE,
    "exporters/queue/records.py": SEND,
    "exporters/queue/writer.py": STORE,
    "exporters/queue/jobs.py": SAVEPOINTS,
    "exporters/queue/open_files.py": FILES,
    "exporters/queue/write_ahead_log.py": FILES,
    "exporters/queue/directory.py": FILES,
    "exporters/queue/reserve.py": LIMITS,
    "exporters/queue/cursor.py": SEND,
    "exporters/queue/queries.py": SEND,
    "exporters/delivery": RETRIES,
    "exporters/otlp": SEND,
}
"""What a module or a room is needed for; the longest match counts."""

FUNCTIONS: Final = {
    ("plugin/receiver/asgi.py", "create_app."): PATHS,
    ("plugin/receiver/asgi.py", "_headers_only"): PATHS,
    ("plugin/receiver/asgi.py", "_below"): PATHS,
    ("plugin/receiver/asgi.py", "StatsigReceiver._send"): ANSWER,
    ("plugin/receiver/asgi.py", "_LoopWaits.finish"): TOGETHER,
    ("plugin/receiver/asgi.py", "_LoopWaits._finish_all"): TOGETHER,
    ("plugin/receiver/asgi.py", "_Arrived"): TOGETHER,
    ("plugin/receiver/asgi.py", "_LoopWaits.answer"): ANSWERS,
    ("plugin/receiver/asgi.py", "_LoopWaits._add"): ANSWERS,
    ("plugin/receiver/asgi.py", "_LoopWaits._hand_out"): ANSWERS,
    ("plugin/receiver/responses.py", "fill"): ANSWER,
    ("plugin/receiver/intake.py", "Intake.count"): DEADLINE,
    ("plugin/receiver/intake.py", "Intake.report"): METRICS,
    ("plugin/receiver/intake.py", "Intake.verified"): METRICS,
    ("plugin/receiver/intake.py", "Request.feed"): MEMORY,
    ("plugin/receiver/intake.py", "Request.arrived"): MEMORY,
    ("plugin/receiver/intake.py", "Request.size"): MEMORY,
    ("plugin/receiver/intake.py", "Request.is_large"): MEMORY,
    ("plugin/receiver/intake.py", "Request.close"): DEADLINE,
    ("plugin/receiver/intake.py", "Request.verify"): VERIFY,
    ("plugin/receiver/intake.py", "Request.map"): RECORD,
    ("plugin/receiver/intake.py", "Request.taken"): METRICS,
    ("plugin/receiver/intake.py", "Request._new_record_count"): METRICS,
    ("plugin/webhook/body.py", "parse_url_verification"): PROBE,
    ("plugin/webhook/errors.py", "check_body"): CONSUMER,
    ("plugin/record/record.py", "uid"): UID,
    ("exporters/queue/queue.py", "DurableQueue.consume"): ROUTES,
    ("exporters/queue/queue.py", "DurableQueue._store"): HAND_OVER,
    ("exporters/queue/queue.py", "DurableQueue._check"): LIMITS,
    ("exporters/queue/queue.py", "DurableQueue._add_waiting"): LIMITS,
    ("exporters/queue/queue.py", "DurableQueue._count"): LIMITS,
    ("exporters/queue/queue.py", "_answer"): ANSWERS,
    ("exporters/queue/queue.py", "DurableQueue._tidy"): TICK_OFF,
    ("exporters/queue/arrivals.py", "forget"): TICK_OFF,
    ("exporters/queue/store.py", "PendingBatch."): HAND_OVER,
    ("exporters/queue/store.py", "_first_sights"): DUPLICATES,
    ("exporters/queue/store.py", "_all_first_sights"): DUPLICATES,
    ("exporters/queue/store.py", "add_waiting"): LIMITS,
    ("exporters/queue/store.py", "cursor_and_waiting"): LIMITS,
    ("exporters/queue/store.py", "advance"): TICK_OFF,
    ("exporters/queue/store.py", "delete_done"): TICK_OFF,
    ("exporters/queue/store.py", "forget_seen"): TICK_OFF,
    ("exporters/queue/records.py", "checksum"): STORE,
    ("exporters/queue/writer.py", "Writer.submit_in_bulk"): HAND_OVER,
    ("exporters/queue/writer.py", "Writer.check_process"): ROUTES,
    ("exporters/queue/writer.py", "Writer._next_jobs"): HAND_OVER,
    ("exporters/queue/writer.py", "Writer._keep_files"): FILES,
    ("exporters/queue/writer.py", "Writer._tidy_up"): TICK_OFF,
    ("exporters/queue/writer.py", "Writer.submit"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor.add"): LIMITS,
    ("exporters/queue/cursor.py", "ExporterCursor.finish"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor.flush"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor._begin_tick"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor._end_tick"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor._tick"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor._done_with"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor._forget_set_aside"): TICK_OFF,
    ("exporters/delivery/sender.py", "QueueSender._tick_off"): TICK_OFF,
    ("exporters/delivery/sender.py", "QueueSender._read"): SEND,
}
"""The same for functions that differ from their module, by the beginning of their name; the longest match counts."""

OF_THE_LEAST: Final = {
    "Receiver.on_post": PARSE,
    "Receiver._verify": VERIFY,
    "Receiver._record": RECORD,
    "uid_of": UID,
    "title_of": RECORD,
    "attributes_of": RECORD,
    "Writer.write": HAND_OVER,
    "Writer._next": HAND_OVER,
    "_answer": ANSWERS,
    "Writer.delivered": TICK_OFF,
    "Writer": STORE,
    "Sender": SEND,
}
"""The same for the functions of the least program."""


def promise_of(code: CodeType) -> str | None:
    """What a function is needed for; None if it is needed for the same as its caller."""
    if "/falcon/" in code.co_filename:
        return FALCON
    if code.co_qualname == "BaseEventLoop.run_forever":
        return HTTP
    if "/benchmarks/peers/" in code.co_filename:
        found = [name for name in OF_THE_LEAST if code.co_qualname.startswith(name)]
        return OF_THE_LEAST[max(found, key=len)] if found else None
    return stages.named(code, MODULES, FUNCTIONS)


def instructions(program: str, clients: int, webhooks: int, directory: Path) -> Mapping[str, float]:
    """The instructions of a program for one webhook, by what they are needed for.

    Args:
        program: The service or the least program.
        clients: From how many clients they come.
        webhooks: How many are counted, after one of each client.
        directory: Where to write temporary files.
    """
    port = measure.free_port()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with measure.working_directory(directory) as queue, sink() as backend:
        command = ("-m", "benchmarks.promises", program, str(port), backend.address, str(queue))
        with measure.running(*command, port=port, **pipes) as process:
            counting = stages.Counting(process, port)
            for number in (clients, webhooks):  # the first ones only warm it up
                counting.read()
                post(port, CHANGE, clients=clients, number=number)
                backend.settle(number)
                time.sleep(_TIDY)
            costs: dict[str, float] = defaultdict(float)
            for promise, _, _, cost in counting.read():
                costs[promise] += cost / webhooks
    return costs


def rows(clients: int, webhooks: int, directory: Path) -> list[list[str]]:
    """A row for each promise, and one for all: the instructions of both programs, and what is between them.

    Args:
        clients: As for `instructions`.
        webhooks: Likewise.
        directory: Likewise.
    """
    least_costs, costs = (instructions(program, clients, webhooks, directory) for program in (LEAST, SERVICE))
    whole, least_whole = sum(costs.values()), sum(least_costs.values())

    def row(name: str, one: float, other: float) -> list[str]:
        more = other - one
        return [name, f"{one:.0f}", f"{other:.0f}", f"{more:+.0f}", f"{more / whole:+.1%}"]

    made = [row(name, least_costs.get(name, 0.0), costs.get(name, 0.0)) for name in (*PROMISES, stages.OTHER)]
    return [*made, row("all of it", least_whole, whole)]


HEAD: Final = ("what it is needed for", "the least", "the service", "more", "of the service's")


def main() -> None:
    """Serve, and print what was counted for each line of the standard input."""
    program, port, backend, directory = sys.argv[1:]
    counter = stages.Counter(blocks=False, stage_of=promise_of)
    counter.install()
    if program == SERVICE:
        config = Path(directory, "config.yaml")
        config.write_text(backlog.configuration(directory=Path(directory), backend=backend, port=int(port)))
        Service.from_file(config, environ={}).start()
        collect_garbage_rarely()
    else:
        serve = least.serve(least.DELIVER, int(port), backend, Path(directory))
        threading.Thread(target=uvloop.run, args=(serve,), daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps(counter.take()), flush=True)


if __name__ == "__main__":
    main()
