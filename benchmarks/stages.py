"""The stages of a durable webhook, and a service that counts what they do, in all of its threads.

A function belongs to the stage that the tables below name for it or its module. All others, such as those of libraries,
belong to the stage of the function that called them. While the service counts, it is some hundred times slower.

    python -m benchmarks.stages {instructions,blocks,clocks} CONFIG
"""

import contextlib
import json
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from benchmarks import backlog, measure
from statsig_otel import Service
from statsig_otel.plugin.cli.run import collect_garbage_rarely

HTTP: Final = "accept and parse HTTP"
FALCON: Final = "Falcon, routing"
RECEIVE: Final = "receive the body"
VERIFY: Final = "verify"
PARSE: Final = "parse"
MAP: Final = "map"
ENCODE: Final = "encode"
HAND_OVER: Final = "hand over"
STORE: Final = "store"
ANSWER: Final = "answer"
READ: Final = "read back"
SEND: Final = "send"
TICK_OFF: Final = "tick off"
DELETE: Final = "delete"
STAGES: Final = (
    HTTP, FALCON, RECEIVE, VERIFY, PARSE, MAP, ENCODE, HAND_OVER, STORE, ANSWER, READ, SEND, TICK_OFF, DELETE
)  # fmt: skip

OTHER: Final = "other"
"""What no stage needs, such as the looks at the files of certificates."""

INSTRUCTIONS, BLOCKS, CLOCKS = KINDS = ("instructions", "blocks", "clocks")
"""What a service can count: bytecode instructions, memory blocks, or the processor time and the waits of threads."""

NOT_PYTHON: Final = "not Python"

MODULES: Final = {
    "_futures.py": HAND_OVER,
    "_journal.py": ANSWER,
    "plugin/server": HTTP,
    "plugin/receiver": RECEIVE,
    "plugin/webhook/signature.py": VERIFY,
    "plugin/webhook": PARSE,
    "plugin/record": MAP,
    "plugin/record/serializer.py": ENCODE,
    "plugin/record/mapping.py": ENCODE,
    "plugin/receiver/handover.py": HAND_OVER,
    "plugin/service/dispatch.py": HAND_OVER,
    "plugin/service": OTHER,
    "exporters/queue/slices.py": HAND_OVER,
    "exporters/arrival.py": MAP,
    "exporters/queue/arrivals.py": STORE,
    "exporters/queue/queue.py": STORE,
    "exporters/queue/store.py": STORE,
    "exporters/queue/jobs.py": STORE,
    "exporters/queue/writer.py": STORE,
    "exporters/queue/open_files.py": STORE,
    "exporters/queue/cursor.py": READ,
    "exporters/delivery": SEND,
    "exporters/network": SEND,
    "exporters/otlp": SEND,
}
"""The stage of a module or a room; the longest match counts."""

FUNCTIONS: Final = {
    ("plugin/receiver/asgi.py", "create_app."): FALCON,
    ("plugin/receiver/asgi.py", "_headers_only"): FALCON,
    ("plugin/receiver/responses.py", "Paths."): FALCON,
    ("plugin/receiver/responses.py", "fill"): ANSWER,
    ("plugin/receiver/asgi.py", "StatsigReceiver._send"): ANSWER,
    ("plugin/receiver/asgi.py", "_LoopWaits.answer"): ANSWER,
    ("plugin/receiver/asgi.py", "_LoopWaits._add"): ANSWER,
    ("plugin/receiver/asgi.py", "_LoopWaits._hand_out"): ANSWER,
    ("plugin/receiver/intake.py", "Intake.report"): ANSWER,
    ("plugin/receiver/intake.py", "Request.taken"): ANSWER,
    ("plugin/receiver/handover.py", "taken"): ANSWER,
    ("plugin/record/record.py", "LogRecordEncoder.encode"): ENCODE,
    ("plugin/record/record.py", "LogRecordEncoder._encode"): ENCODE,
    ("exporters/queue/queue.py", "DurableQueue.consume"): HAND_OVER,
    ("exporters/queue/queue.py", "DurableQueue._check"): HAND_OVER,
    ("exporters/queue/store.py", "PendingBatch."): HAND_OVER,
    ("exporters/queue/writer.py", "Writer.submit_in_bulk"): HAND_OVER,
    ("exporters/queue/writer.py", "Writer._next_jobs"): HAND_OVER,
    ("exporters/queue/queue.py", "_answer"): ANSWER,
    ("exporters/queue/queue.py", "DurableQueue._tidy"): DELETE,
    ("exporters/queue/arrivals.py", "forget"): DELETE,
    ("exporters/queue/store.py", "delete_done"): DELETE,
    ("exporters/queue/store.py", "forget_seen"): DELETE,
    ("exporters/queue/writer.py", "Writer._tidy_up"): DELETE,
    ("exporters/queue/jobs.py", "transact"): DELETE,
    ("exporters/queue/writer.py", "Writer.submit."): TICK_OFF,
    ("exporters/queue/writer.py", "Writer.submit"): TICK_OFF,
    ("exporters/queue/store.py", "advance"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor.finish"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor.flush"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor._begin_tick"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor._end_tick"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor._tick"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor._done_with"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor._forget_set_aside"): TICK_OFF,
    ("exporters/queue/cursor.py", "ExporterCursor.add"): STORE,
    ("exporters/delivery/sender.py", "QueueSender._tick_off"): TICK_OFF,
}
"""The stage of functions that differ from their module, by the beginning of their name; the longest match counts."""

_PACKAGE: Final = f"{Path(sys.modules['statsig_otel'].__file__ or '').parent}/"
_LIBRARY: Final = sysconfig.get_path("stdlib")


def stage_of(code: CodeType) -> str | None:
    """The stage that the tables name for a function, or None."""
    return named(code, MODULES, FUNCTIONS)


def named(code: CodeType, modules: Mapping[str, str], functions: Mapping[tuple[str, str], str]) -> str | None:
    """What tables as those above name for a function of this project, or None."""
    file = code.co_filename
    if not file.startswith(_PACKAGE):
        return None
    module = file.removeprefix(_PACKAGE)
    found = [name for where, name in functions if where == module and code.co_qualname.startswith(name)]
    if found:
        return functions[module, max(found, key=len)]
    rooms = [room for room in modules if module == room or module.startswith(f"{room}/")]
    return modules[max(rooms, key=len)] if rooms else None


class Counter:
    """Counts calls and bytecode instructions, or memory blocks, by stage and function, in threads that start later.

    A block counts for the instruction that added it, unless another thread ran in between. To ask for the number of
    blocks takes the longer the more memory a process has, so that instructions are counted without it.

    Args:
        blocks: Whether to count blocks.
        stage_of: The stage of a function; None for that of its caller.

    Attributes:
        costs: The calls, and the instructions or blocks, by stage and function.
    """

    def __init__(self, *, blocks: bool, stage_of: Callable[[CodeType], str | None] = stage_of) -> None:
        self.costs: dict[tuple[str, str], list[int]] = {}
        self._blocks = blocks
        self._stage_of = stage_of
        self._stages: dict[CodeType, str | None] = {}
        self._last: object = None  # the thread of the last event

    def take(self) -> list[tuple[str, str, int, int]]:
        """Stage, function, calls, and instructions or blocks since the last call."""
        costs, self.costs = self.costs, {}
        return [(stage, function, calls, cost) for (stage, function), (calls, cost) in costs.items()]

    def install(self) -> None:
        if sys.version_info[:2] == (3, 12):
            raise RuntimeError("Python 3.12 can't count what other threads do, and may crash: use another version")
        threading.settrace(self._begin)

    def _begin(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        """The first event of a thread."""
        entered = self._count_blocks() if self._blocks else self._count_instructions
        sys.settrace(entered)
        return entered(frame, event, argument)

    def _count_instructions(self, frame: FrameType, _: str, __: Any) -> Callable[..., Any]:
        costs = self._costs(frame)
        costs[0] += 1

        def within(_: FrameType, event: str, __: Any) -> Callable[..., Any]:
            if event == "opcode":
                costs[1] += 1
            return within

        _trace(frame, within)
        return within

    def _count_blocks(self) -> Callable[..., Any]:
        allocated = sys.getallocatedblocks
        me = object()
        running: list[int] | None = None  # the costs of the function whose instruction is running
        before = 0

        def entered(frame: FrameType, _: str, __: Any) -> Callable[..., Any]:
            nonlocal running, before
            costs = self._costs(frame)
            costs[0] += 1

            def within(_: FrameType, event: str, __: Any) -> Callable[..., Any]:
                nonlocal running, before
                now = allocated()
                if running is not None and event != "exception" and self._last is me:
                    running[1] += max(0, now - before)
                running = costs if event == "opcode" else None
                self._last = me
                del now  # the integer is a block itself, and must be freed before blocks are counted
                before = allocated()
                return within

            _trace(frame, within)
            running = None
            self._last = me
            before = allocated()
            return within

        return entered

    def _costs(self, frame: FrameType) -> list[int]:
        code = frame.f_code
        stage = self._named(code)
        outer = frame.f_back
        while stage is None and outer is not None:
            stage = self._named(outer.f_code)
            outer = outer.f_back
        key = (stage or OTHER, f"{code.co_qualname} ({_shortened(code.co_filename)})")
        costs = self.costs.get(key)
        if costs is None:
            costs = self.costs[key] = [0, 0]
        return costs

    def _named(self, code: CodeType) -> str | None:
        try:
            return self._stages[code]
        except KeyError:
            found = self._stages[code] = self._stage_of(code)
            return found


def _trace(frame: FrameType, within: Callable[..., Any]) -> None:
    frame.f_trace = within  # Python 3.13 traces the instructions of a frame only if it has its function already
    frame.f_trace_opcodes, frame.f_trace_lines = True, False


def _shortened(file: str) -> str:
    for prefix in (_PACKAGE, f"{_LIBRARY}/site-packages/", f"{_LIBRARY}/"):
        file = file.removeprefix(prefix)
    return file.rpartition("site-packages/")[2]


def clocks() -> dict[str, tuple[float, int]]:
    """By thread: its processor time in seconds, and how often it gave its processor away to wait.

    It waits for the network, for the disk, for other threads, and for the interpreter's lock. Threads that run no
    Python, such as gRPC's own, are together `not Python`.
    """
    found: dict[str, tuple[float, int]] = {}
    for thread in threading.enumerate():
        if thread.ident is not None and thread.native_id is not None:
            used = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
            before = found.get(thread.name, (0.0, 0))
            found[thread.name] = before[0] + used, before[1] + _waits(Path(f"/proc/self/task/{thread.native_id}"))
    waits = sum(map(_waits, Path("/proc/self/task").iterdir())) - sum(number for _, number in found.values())
    return found | {NOT_PYTHON: (time.process_time() - sum(used for used, _ in found.values()), waits)}


def _waits(task: Path) -> int:
    """proc_pid_status(5)"""
    try:
        fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
    except OSError:
        return 0  # it has just ended
    return int(fields["voluntary_ctxt_switches"])


class Counting:
    """A service in its own process that counts, as `main` does."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.port = port
        self._process = process

    def read(self) -> Any:
        """What was counted since the last call, or since the start."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def counting(
    kind: str, directory: Path, backend: str, receiver: Mapping[str, object] | None = None
) -> Iterator[Counting]:
    """Run a service during the block that counts one of the `KINDS`, with further settings of its receiver."""
    port = measure.free_port()
    directory.mkdir()
    config = directory / "config.yaml"
    config.write_text(backlog.configuration(directory=directory, backend=backend, port=port, receiver=receiver))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with measure.running("-m", "benchmarks.stages", kind, str(config), port=port, **pipes) as process:
        yield Counting(process, port)


def main() -> None:
    """Serve, and print what was counted for each line of the standard input."""
    kind, config = sys.argv[1:]
    service = Service.from_file(config, environ={})
    counter = Counter(blocks=kind == BLOCKS)
    if kind != CLOCKS:
        counter.install()
    service.start()
    collect_garbage_rarely()
    for _ in sys.stdin:
        print(json.dumps(clocks() if kind == CLOCKS else counter.take()), flush=True)


if __name__ == "__main__":
    main()
