"""Runs the fuzzer: `python -m tests.fuzz.run --seconds 20`, or for hours, one target at a time.

What it finds out about the code stays in `.fuzz/TARGET`, from which the next run begins. An input for which a check
fails is written to `.fuzz/findings`, its target stops, and the exit code is 1. `--enough` stops a target earlier: once
it has tried its number of inputs (`ENOUGH`) and has reached nothing new for half an hour of a processor's time, all
runs on the same code together. `--minimise` writes the smallest set of inputs with the same coverage to `corpus/`.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.fuzz.targets import ROOT, TARGETS, fingerprint, keep, kept, target

FOUND: Final = ROOT / ".fuzz"
FINDINGS: Final = FOUND / "findings"
MEMORY: Final = Path("/dev/shm")

QUIET: Final = 1800
"""Seconds of a processor without a new place in the code after which a target has been searched for long enough."""

SLICE: Final = 600
"""Seconds after which it is another target's turn. A new process also has a new process's memory."""

_SLOWEST: Final = 120
"""Seconds for one input at most, also beside other work."""

_MEMORY: Final = 2048
"""MiB of a fuzzing process at most."""

_COVERAGE: Final = re.compile(r"#(?P<runs>\d+)\t(?P<event>[A-Za-z]+).*? cov: (?P<covered>\d+)")
_DONE: Final = re.compile(r"stat::number_of_executed_units: (\d+)")


@dataclass(slots=True)
class Report:
    """What became of one target in one turn.

    Attributes:
        target: The target.
        date: When it began.
        code: The fingerprint of the code.
        seconds: How long it ran.
        executions: How many inputs were tried.
        all_executions: The same, since the code has changed.
        covered: How many places of the code are reached, at most.
        quiet_seconds: How long it ran, since the code has changed, after the last input that reached a new place. Of
            a turn beside other work only the processor's time counts, and of several processes that of one.
        failed: Whether a check failed.
    """

    target: str
    date: str
    code: str
    seconds: int = 0
    executions: int = 0
    all_executions: int = 0
    covered: int = 0
    quiet_seconds: int = 0
    failed: bool = False

    @property
    def is_enough(self) -> bool:
        """Whether the target has been searched for long enough."""
        return self.all_executions >= target(self.target).ENOUGH and self.quiet_seconds >= QUIET


def begin(name: str) -> Report:
    """A report that continues the last one on the same code."""
    report = Report(name, datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"), fingerprint(name))
    if _last(name).exists():
        last = Report(**json.loads(_last(name).read_text()))
        if last.code == report.code:
            report.all_executions, report.covered, report.quiet_seconds = (
                last.all_executions, last.covered, last.quiet_seconds,
            )  # fmt: skip
    return report


def fuzz(name: str, seconds: int, seed: int = 0, jobs: int = 1) -> Report:
    """Fuzz one target for so long, in as many processes; with a seed other than 0 one process tries the same each time.

    The processes share the directory of inputs: each looks there once a second for what the others have found.
    """
    corpus = prepare(name)
    report = begin(name)
    begun, begun_cpu = time.monotonic(), _cpu_seconds()
    quiet_since = begun

    def reached(covered: int) -> None:
        nonlocal quiet_since
        if covered > report.covered:
            report.covered, report.quiet_seconds, quiet_since = covered, 0, time.monotonic()

    arguments = [f"-max_total_time={seconds}", f"-artifact_prefix={FINDINGS}/{name}-", *_arguments(name)]
    commands = [_command(name, [*arguments, f"-seed={seed and seed + job}", str(corpus)]) for job in range(jobs)]
    with _environment() as environ, ThreadPoolExecutor(jobs) as pool:
        processes = [*pool.map(lambda command: _process(command, environ, reached), commands)]
    report.executions = sum(executions for executions, _ in processes)
    failures = [failure for _, failure in processes if failure is not None]
    report.failed = bool(failures)
    ended = time.monotonic()
    share = min((_cpu_seconds() - begun_cpu) / (ended - begun) / jobs, 1.0)
    report.seconds = round(ended - begun)
    report.quiet_seconds += round((ended - quiet_since) * share)
    report.all_executions += report.executions
    _last(name).write_text(json.dumps(asdict(report)))
    for failure in failures:
        print(failure)
    return report


def _process(
    command: Sequence[str], environ: Mapping[str, str], reached: Callable[[int], None]
) -> tuple[int, str | None]:
    """Run one process; how many inputs it has tried, and its last lines if it has failed, else None."""
    executions = 0
    tail: list[str] = []
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        for line in process.stderr or ():
            tail = [*tail[-60:], line]
            if found := _COVERAGE.match(line):
                reached(int(found["covered"]))
                executions = int(found["runs"])
            if found := _DONE.match(line):
                executions = int(found[1])
    failure = "".join(line for line in tail if not line.startswith("INFO: Instrumenting"))
    return executions, failure if process.returncode else None


def _cpu_seconds() -> float:
    """The processor time of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def prepare(name: str) -> Path:
    """The directory of a target's inputs, with all that are kept, and its dictionary."""
    corpus = FOUND / name
    corpus.mkdir(parents=True, exist_ok=True)
    FINDINGS.mkdir(exist_ok=True)
    for one in (*target(name).seeds(), *kept(name)):
        (corpus / sha256(one).hexdigest()[:40]).write_bytes(one)
    tokens = "".join('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in target(name).TOKENS)
    _dictionary(name).write_text(tokens)
    return corpus


def minimise(name: str) -> int:
    """Keep the smallest set of inputs with the coverage of all that were found; their number."""
    corpus, smallest = prepare(name), FOUND / f"{name}.smallest"
    smallest.mkdir(exist_ok=True)
    for file in smallest.iterdir():
        file.unlink()
    arguments = ["-merge=1", *_arguments(name), str(smallest), str(corpus)]
    with _environment() as environ:
        subprocess.run(_command(name, arguments), cwd=ROOT, env=environ, check=True, stderr=subprocess.DEVNULL)
    inputs = [file.read_bytes() for file in smallest.iterdir()]
    keep(name, inputs)
    return len(inputs)


def add_result(file: Path, report: Report) -> None:
    """Add a row to a table in Markdown, which is begun if it is missing."""
    columns = [field.name for field in fields(report)]
    if not file.exists():
        names = [name.replace("_", " ") for name in columns]
        file.write_text(f"# Fuzzing\n\n| {' | '.join(names)} |\n{'|---' * len(names)}|\n")
    with file.open("a") as table:
        table.write(f"| {' | '.join(str(getattr(report, name)) for name in columns)} |\n")


@contextmanager
def _environment() -> Iterator[dict[str, str]]:
    """The environment of a fuzzing process. Its files are in memory if possible, and are gone after the block."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as files:
        yield {**os.environ, "TMPDIR": files}


def _command(name: str, arguments: Iterable[str]) -> Sequence[str]:
    return [sys.executable, "-m", "tests.fuzz.fuzzer", name, *arguments]


def _arguments(name: str) -> list[str]:
    return [
        f"-dict={_dictionary(name)}",
        f"-max_len={target(name).LONGEST}",
        f"-timeout={_SLOWEST}",
        f"-report_slow_units={_SLOWEST}",
        f"-rss_limit_mb={_MEMORY}",
        "-entropic_scale_per_exec_time=1",
        "-print_final_stats=1",
    ]


def _last(name: str) -> Path:
    return FOUND / f"{name}.json"


def _dictionary(name: str) -> Path:
    return FOUND / f"{name}.dict"


def main() -> int:
    """Fuzz the targets, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"by default all: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=20, help="for each target at most (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the random changes; a new one each time without it")
    parser.add_argument("--jobs", type=int, default=1, help="processes for each target (1)")
    parser.add_argument("--enough", action="store_true", help="end a target earlier, once it has been searched enough")
    parser.add_argument("--minimise", action="store_true", help="write corpus/ anew from what was found")
    parser.add_argument("--results", type=Path, metavar="FILE", help="add a row for each turn to a table in this file")
    options = parser.parse_args()
    if find_spec("atheris") is None:
        sys.exit("atheris is not installed: it has wheels for Linux on x86-64 only, and comes with pip install .[fuzz]")
    os.nice(5)
    names = options.targets or [*TARGETS]
    if options.minimise:
        for name in names:
            print(f"{name}: {minimise(name)} inputs are kept")
        return False
    left = dict.fromkeys(names, options.seconds)
    failed = False
    while left:
        for name, seconds in [*left.items()]:
            if options.enough and begin(name).is_enough:
                print(f"{name}: enough inputs were tried on this code")
                del left[name]
                continue
            report = fuzz(name, min(seconds, SLICE), options.seed, options.jobs)
            failed = failed or report.failed
            left[name] -= SLICE
            if left[name] <= 0 or report.failed:
                del left[name]
            print(in_words(report), flush=True)
            if options.results:
                add_result(options.results, report)
    return failed


def in_words(report: Report) -> str:
    """One line about a report."""
    return (
        f"{report.target}: {report.executions} inputs in {report.seconds} s, {report.all_executions} on this code; "
        f"{report.covered} places covered, the last new one {report.quiet_seconds} s ago"
        f"{'; A CHECK FAILED' if report.failed else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
