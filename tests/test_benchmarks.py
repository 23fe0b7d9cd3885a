"""Every benchmark runs, at sizes too small to say anything, and writes its report. No figure is looked at.

And what they share counts right: the requests, the load, the options, the quantiles.
"""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice, repeat
from pathlib import Path

import pytest

from benchmarks import backlog, measure, webhooks
from benchmarks.load import Load, quantile
from benchmarks.webhooks import Shape
from statsig_otel.exporters import Batch
from statsig_otel.plugin import Intake, Verifier
from statsig_otel.plugin.intake import Answer
from tests.e2e import otelcol
from tests.e2e.processes import clean_environment

ROOT = Path(__file__).parent.parent

TINY = {
    "against_collector": ["--clients", "1", "8", "--seconds", "0.2"],
    "backlog_start": ["--records", "1000"],
    "core_cost": ["--seconds", "0.1"],
    "drain": ["--records", "2000"],
    "durable_answers": ["--seconds", "0.2"],
    "growth": ["--seconds", "0.1", "--largest-body", "10240", "--largest-queue", "10000"],
    "http_servers": ["--seconds", "0.1", "--clients", "2"],
    "latency": ["--seconds", "1"],
    "mapping_cost": ["--seconds", "0.1"],
    "memory": ["--requests", "200"],
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
    """It leaves nothing else behind. A Collector that can't be built is a test that says so."""
    results, directory = tmp_path / "results", tmp_path / "directory"
    directory.mkdir()
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--rounds", "1", *TINY[name]]
    if name != "http_servers":
        command += ["--directory", str(directory)]
    environment = clean_environment(BENCHMARK_RESULTS=str(results))
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    written = (results / f"{name}.md").read_text(encoding="utf-8")
    assert list(directory.iterdir()) == []
    left_out = re.search(r"LEFT OUT.*", written)
    has_figures = re.search(r"^\| .*[0-9]", written, re.MULTILINE) is not None
    assert has_figures is not (left_out is not None and name == "against_collector"), written
    if left_out:
        pytest.skip(left_out[0])


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
    """In steps of 10 ms."""
    began, own = measure.processor_time(os.getpid()), time.process_time()
    while time.process_time() - own < 0.1:
        work()
    assert measure.processor_time(os.getpid()) - began == pytest.approx(time.process_time() - own, abs=0.04)
