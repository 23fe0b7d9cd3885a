"""Every benchmark runs, at sizes too small to say anything, and writes its report. No figure is looked at.

And what they share counts right: the requests, the load, the options, the quantiles.
"""

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from types import CodeType

import falcon.asgi
import pytest

from benchmarks import backlog, budget, hot_spots, measure, prefixes, promises, stages, webhooks
from benchmarks.hot_spots import Cost, Profile
from benchmarks.load import Load, quantile
from benchmarks.peers import least
from benchmarks.webhooks import Shape
from statsig_otel.exporters import Batch
from statsig_otel.plugin import Intake, Verifier, parse
from statsig_otel.plugin.receiver.answer import Answer
from tests.e2e import otelcol
from tests.e2e.processes import clean_environment

ROOT = Path(__file__).parent.parent

TINY = {
    "against_collector": ["--clients", "1", "8", "--seconds", "0.2"],
    "against_commit": ["--others", "HEAD^0", "--clients", "2", "--seconds", "0.2"],
    "against_hand_written": ["--clients", "1", "8", "--seconds", "0.2"],
    "attacks": ["--seconds", "0.5", "--only", "unsigned", "after a TLS", "records", "signed changes with 6"],
    "budget": ["--seconds", "0.2"],
    "backlog_start": ["--records", "1000"],
    "capacity": ["--seconds", "0.2", "--records", "1000"],
    "core_cost": ["--seconds", "0.1"],
    "dependencies": ["--records", "2000", "--seconds", "0.05"],
    "drain": ["--records", "2000"],
    "durable_answers": ["--seconds", "0.2"],
    "growth": ["--seconds", "0.1", "--largest-body", "10240", "--largest-queue", "10000"],
    "hot_spots": ["--seconds", "1"],
    "http_servers": ["--seconds", "0.1", "--clients", "2"],
    "ladder": ["--seconds", "0.1", "--clients", "2", "--counted", "64"],
    "latency": ["--seconds", "1"],
    "lock_waits": ["--seconds", "0.5"],
    "mapping_cost": ["--seconds", "0.1"],
    "request_cost": ["--size", "1000", "--only", "chunks"],
    "memory": ["--requests", "200"],
    "remembered": [],
    "replicas": ["--seconds", "0.5"],
    "startup": [],
}
"""The options, after --quick, that make each as short as it gets."""


def test_make_bench_runs_every_benchmark() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    named = re.search(r"^BENCHMARKS \?=(.*)$", makefile, re.MULTILINE)
    assert named is not None
    publishing = {file.stem for file in (ROOT / "benchmarks").glob("*.py") if "measure.publish(" in file.read_text()}
    assert set(named[1].split()) == publishing == set(TINY)


@pytest.mark.slow
@pytest.mark.timeout(otelcol.TEST_TIMEOUT)
@pytest.mark.parametrize("name", sorted(TINY))
def test_a_benchmark_writes_its_report(name: str, tmp_path: Path) -> None:
    """A Collector that can't be built, or a tool that is missing, is a test that says so."""
    written = report(name, TINY[name], tmp_path)
    left_out = re.search(r"LEFT OUT.*", written)
    has_figures = re.search(r"^\| .*[0-9]", written, re.MULTILINE) is not None
    assert has_figures is not (left_out is not None and name in ("against_collector", "lock_waits", "replicas")), (
        written
    )
    if left_out:
        pytest.skip(left_out[0])


@pytest.mark.slow
def test_a_drain_is_compared_with_commits(tmp_path: Path) -> None:
    written = report("drain", [*TINY["drain"], "--commit", "HEAD", "--others", "HEAD^0"], tmp_path)
    assert "B the commit" in written
    for name in ("this working tree", "HEAD^0"):
        assert f"| {name}; compression: none; time " in written


def report(name: str, options: Sequence[str], tmp_path: Path) -> str:
    """What a benchmark writes. It leaves nothing else behind."""
    results, directory = tmp_path / "results", tmp_path / "directory"
    directory.mkdir()
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--rounds", "1", *options]
    if name != "http_servers":
        command += ["--directory", str(directory)]
    environment = clean_environment(BENCHMARK_RESULTS=str(results))
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert list(directory.iterdir()) == []
    return (results / f"{name}.md").read_text(encoding="utf-8")


def test_requests_are_signed_and_new() -> None:
    """A receiver takes them, and finds as many changes as the shape names, none of them twice."""
    intake, seen = Intake(verifier=Verifier([backlog.SECRET])), set()
    for request in islice(webhooks.requests(Shape(exposures=3, changes=2)), 5):
        outcome = handed_to(intake, request)
        assert isinstance(outcome, Batch)
        assert len(outcome.changes) == 2
        seen |= {change.uid for change in outcome.changes}
    assert len(seen) == 10


def test_a_change_that_is_sent_again_is_the_same() -> None:
    intake = Intake(verifier=Verifier([backlog.SECRET]))
    outcomes = [handed_to(intake, request) for request in islice(webhooks.requests(Shape(resent=True)), 3)]
    assert len({outcome.changes[0].uid for outcome in outcomes if isinstance(outcome, Batch)}) == 1


def test_a_batch_without_a_change_is_ignored() -> None:
    intake = Intake(verifier=Verifier([backlog.SECRET]))
    outcome = handed_to(intake, next(webhooks.requests(webhooks.EXPOSURES)))
    assert isinstance(outcome, Answer)
    assert outcome.body["ignored"] == 500


def handed_to(intake: Intake, request: bytes) -> Answer | Batch:
    head, _, body = request.partition(b"\r\n\r\n")
    fields = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
    begun = intake.begin([(name, value) for name, value in fields], time.time_ns())
    begun.feed(body)
    return begun.finish(complete=True)


@pytest.mark.parametrize("shape", [Shape(), Shape(exposures=499), Shape(changes=0), Shape(resent=True)])
def test_a_shape_survives_the_command_line(shape: Shape) -> None:
    assert Shape.read(str(shape)) == shape


@pytest.mark.parametrize("size", [10_000, 1 << 20])
def test_a_body_fills_what_it_should_and_no_more(size: int) -> None:
    length = len(next(webhooks.bodies(webhooks.filling(size))))
    assert 0.9 * size < length <= size


def test_a_load_counts_good_and_bad_answers() -> None:
    """It stops where there are no more requests, and times every answer."""
    answers = iter([b"200 OK", b"503 Service Unavailable", b"200 OK"])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(100):
            writer.write(b"HTTP/1.1 %s\r\ncontent-length: 2\r\n\r\nok" % next(answers))
        writer.close()

    async def main() -> Load:
        server = await asyncio.start_server(answer, measure.HOST, 0)
        load = Load(islice(repeat(b"request"), 3), lambda head, body: b" 200 " in head and body == b"ok")
        async with server:
            await load.run(server.sockets[0].getsockname()[1], clients=1, seconds=None)
        return load

    load = asyncio.run(main())
    assert (load.good, load.failures, len(load.took)) == (2, 1, 3)
    assert min(load.took) > 0


@pytest.mark.parametrize(
    ("values", "hundredths", "expected"),
    [([3.0], 99, 3.0), ([4.0, 1.0, 3.0, 2.0], 50, 2.0), (list(map(float, range(1, 201))), 99, 198.0)],
)
def test_quantile(values: list[float], hundredths: int, expected: float) -> None:
    assert quantile(values, hundredths) == expected


def test_options_after_quick_count() -> None:
    parser = measure.parser("", rounds=5, quick={"rounds": 2, "records": 10})
    parser.add_argument("--records", type=int, default=100)
    found = [parser.parse_args(line.split()) for line in ("", "--quick", "--quick --records 1")]
    assert [(given.rounds, given.records) for given in found] == [(5, 100), (2, 10), (2, 1)]


@pytest.mark.parametrize("work", [lambda: sum(range(100_000)), lambda: os.urandom(1 << 20)], ids=["user", "system"])
def test_the_processor_time_of_a_process_is_what_it_says_itself(work: Callable[[], object]) -> None:
    """It is asked in between."""
    began, own = measure.processor_time(os.getpid()), time.process_time()
    while time.process_time() - own < 0.1:
        work()
    least = time.process_time() - own
    assert least - 0.01 < measure.processor_time(os.getpid()) - began < time.process_time() - own + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("shape", hot_spots.KINDS, ids=str)
def test_the_same_work_has_the_same_counts(shape: Shape) -> None:
    """Whatever the process did before. The table has a row for the sum of those before."""
    one = hot_spots.agreed(*(hot_spots.count(hot_spots.webhook(shape)) for _ in range(2)))
    assert one["Request.finish (plugin/receiver/intake.py)"].calls == 1
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in hot_spots.count_table(one).splitlines()[2:]]
    assert len(rows) == hot_spots.ROWS + 2
    *figures, last = ([int(cell) for cell in row[1:]] for row in rows)
    assert last == [sum(column) for column in zip(*figures, strict=True)]
    assert min(last) > 0


def test_the_tables_of_stages_and_promises_name_what_exists() -> None:
    """After a function or a module has another name, its stage must not be its caller's."""
    package = ROOT / "statsig_otel"
    for room in {**stages.MODULES, **promises.MODULES}:
        assert (package / room).exists(), room
    names: dict[Path, list[str]] = defaultdict(list)
    for module, name in {**stages.FUNCTIONS, **promises.FUNCTIONS}:
        names[package / module].append(name)
    for file, found in names.items():
        _check_names([file], found)
    peers = ROOT / "benchmarks" / "peers"
    _check_names([peers / "least.py", peers / "mapping.py"], list(promises.OF_THE_LEAST))


def _check_names(files: Sequence[Path], names: Sequence[str]) -> None:
    code = [compile(file.read_text(encoding="utf-8"), str(file), "exec") for file in files]
    there = [found for one in code for found in _functions_in(one)]
    for name in names:
        assert any(found.startswith(name) for found in there), f"{files[0].name}: {name}"


def test_what_a_function_is_needed_for() -> None:
    """Its own entry in the tables, else that of its module; a library's function what its caller is needed for."""
    assert promises.promise_of(Intake.begin.__code__) == promises.HEADERS
    assert promises.promise_of(Intake.report.__code__) == promises.METRICS
    assert promises.promise_of(parse.__code__) == promises.PARSE
    assert promises.promise_of(least.Writer.write.__code__) == promises.HAND_OVER
    assert promises.promise_of(least.Writer.run.__code__) == promises.STORE
    assert promises.promise_of(falcon.asgi.App.__call__.__code__) == promises.FALCON
    assert promises.promise_of(asyncio.timeout.__code__) is None
    named = {*promises.MODULES.values(), *promises.FUNCTIONS.values(), *promises.OF_THE_LEAST.values()}
    assert named | {promises.FALCON} == {*promises.PROMISES}


def _functions_in(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant.co_qualname
            yield from _functions_in(constant)


@pytest.mark.parametrize("blocks", [False, True], ids=["instructions", "blocks"])
def test_a_library_counts_for_the_stage_that_calls_it(*, blocks: bool) -> None:
    """In the threads that start after the counter is installed."""
    counter = stages.Counter(blocks=blocks)
    body = next(webhooks.bodies(webhooks.CHANGE))
    if sys.version_info[:2] == (3, 12):
        with pytest.raises(RuntimeError, match="use another version"):
            counter.install()
        return
    counter.install()
    try:
        thread = threading.Thread(target=parse, args=(body,))
        thread.start()
        thread.join()
    finally:
        threading.settrace(None)
    costs = {(stage, function): (calls, cost) for stage, function, calls, cost in counter.take()}
    assert {stage for stage, _ in costs} == {stages.PARSE, stages.OTHER}
    calls, cost = costs[stages.PARSE, "JSONDecoder.raw_decode (json/decoder.py)"]
    assert 0 < calls < cost
    assert counter.take() == []


def test_the_stages_add_up() -> None:
    """Stages that only one server tells apart share the difference between two servers, by what they cost alone."""
    servers = dict.fromkeys([*prefixes.PREFIXES, "bare Falcon"], 10.0) | {
        prefixes.FALCON: 20.0, prefixes.PARSED: 60.0, prefixes.MAPPED: 100.0, "service": 200.0
    }  # fmt: skip
    alone = dict.fromkeys(stages.STAGES, (5.0, 1.0)) | {stages.PARSE: (10.0, 5.0)}
    instructions = dict.fromkeys(stages.STAGES, 100.0)
    costs = budget.by_stage({"servers": servers, "alone": alone}, instructions)
    assert costs[stages.PARSE] == (40 * 10 / 22.5, 40 * 5 / 22.5)
    assert sum(used for name, (used, _) in costs.items() if name != budget.WHOLE) == pytest.approx(200)
    assert costs[budget.WHOLE][0] == 200


@pytest.mark.parametrize("other", [{"f": Cost(1, 2, 4, 5)}, {"f": Cost(1, 2, 3, 4), "g": Cost(1)}, {}])
def test_counts_that_differ_are_none(other: dict[str, Cost]) -> None:
    """But for the blocks."""
    one = {"f": Cost(1, 2, 3, 5)}
    with pytest.raises(RuntimeError, match=r"differ in [fg]$"):
        hot_spots.agreed(one, other)
    assert hot_spots.agreed(one, {"f": Cost(1, 2, 3, 4)}) == {"f": Cost(1, 2, 3, 4)}


def test_each_function_is_counted_by_itself() -> None:
    """Not with what it calls; and what it allocates is counted though it is freed again, or something else is."""

    def inner(items: tuple[None, ...]) -> None:
        for _ in items:
            object()

    def outer(items: tuple[None, ...]) -> bool:
        inner(items)
        return callable(items)

    def costs(number: int) -> list[Cost]:
        items = (None,) * number
        found = hot_spots.count(lambda: outer(items))
        return [
            next(cost for name, cost in found.items() if f".{function} (" in name) for function in ("outer", "inner")
        ]

    (outer_10, inner_10), (outer_110, inner_110) = costs(10), costs(110)
    assert outer_10.instructions == outer_110.instructions
    assert (outer_10.calls, outer_10.c_calls, inner_10.calls, inner_10.c_calls) == (1, 1, 1, 0)
    assert max(outer_10.blocks, outer_110.blocks) < 5
    assert inner_110.blocks - inner_10.blocks == pytest.approx(100, abs=5)
    executed = inner_110.instructions - inner_10.instructions
    assert executed > 0
    assert executed % 100 == 0


def test_a_sample_belongs_to_the_innermost_function_of_ours() -> None:
    """And to the library that runs below it."""
    server = "thread (7): statsig-otel server"
    sampled = [
        f"{server};run (threading.py);A.f (statsig_otel/plugin/a.py);B.g (statsig_otel/b.py);h (falcon/asgi/app.py) 3",
        f"{server};A.f (statsig_otel/plugin/a.py);B.g (statsig_otel/b.py);k (falcon/http.py) 2",
        f"{server};A.f (statsig_otel/plugin/a.py);<listcomp> (statsig_otel/b.py) 1",
        "thread (0x7F): reader otlp_grpc_0;_worker (concurrent/futures/thread.py) 4",
        "thread (8);wait (threading.py) 5",
        f"{server} 6",
        f"{server};se\x0bt (falcon/response.py);run (threading.py) 7",  # a torn name, which ends a line
    ]
    assert hot_spots.fold("\n".join(sampled) + "\n") == {
        ("statsig-otel server", "b.py", "B.g", "falcon"): 5,
        ("statsig-otel server", "b.py", "<listcomp>", "-"): 1,
        ("reader otlp_grpc_0", "-", "-", "concurrent"): 4,
        ("-", "-", "-", "threading"): 5,
        ("statsig-otel server", "-", "-", "-"): 6,
    }


def test_shares_are_of_each_view_and_nothing_is_left_out() -> None:
    """A place that only one view has seen is in the table too, and those that find no room are one row."""
    one = Profile(Counter({("server", "m.py", f"f{number:02}", "-"): 1 for number in range(20)}))
    other = Profile(Counter({("writer", "n.py", "commit", "-"): 8, ("server", "m.py", "f19", "json"): 2}), failed=3)
    samples, threads, modules, functions = hot_spots.profile_tables({"lock": one, "runs": other})
    assert (
        samples
        == "Samples of the service: lock: 20, and 0 that could not be read; runs: 10, and 3 that could not be read."
    )
    cells = [
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        for table in (threads, modules, functions)
    ]
    assert cells[0][2:] == [["server", "100.0%", "20.0%"], ["writer", "0.0%", "80.0%"]]
    assert cells[1][2:] == [["server", "m.py", "100.0%", "20.0%"], ["writer", "n.py", "0.0%", "80.0%"]]
    assert cells[2][2] == ["writer", "n.py", "commit", "-", "0.0%", "80.0%"]
    assert cells[2][3] == ["server", "m.py", "f19", "json", "0.0%", "20.0%"]
    assert cells[2][-1] == ["7 others", "", "", "", "35.0%", "0.0%"]
    assert len(cells[2]) == 2 + hot_spots.ROWS + 1


def test_a_profile_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has ended can't be looked into by anybody; and a machine may not have py-spy."""
    ended = measure.spawn("-c", "")
    ended.wait()
    said = hot_spots.hindrance(ended.pid)
    assert said.startswith("LEFT OUT: the profile.")
    monkeypatch.setattr(hot_spots, "PROGRAMS", str(tmp_path))
    assert hot_spots.hindrance(os.getpid()) == "LEFT OUT: the profile. py-spy is not installed."
