"""Shared by the benchmarks: options, alternating rounds, measured processes, and reports.

Every result is a ratio of things that were measured in turns, in the same run on the same machine. A rate alone says
more about the machine and its other load than about the code.
"""

import argparse
import contextlib
import io
import os
import platform
import shlex
import socket
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

HOST = "127.0.0.1"
START_TIMEOUT = 30.0
"""Seconds until a process listens. Only a process that hangs reaches this."""

ROOT = Path(__file__).parent.parent
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS") or Path(__file__).parent / "results")


# The command line.


def parser(
    description: str | None, *, rounds: int, quick: Mapping[str, object] | None = None
) -> argparse.ArgumentParser:
    """The parser with the options that every benchmark has.

    Args:
        description: The module's docstring.
        rounds: The default number of measurements of each candidate.
        quick: The options that `--quick` sets. Options after `--quick` override it.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help="measurements of each (default: %(default)s)")
    made.add_argument("--quick", action=_Quick, const=quick or {}, help="use smaller sizes, for a rough result")
    return made


class _Quick(argparse.Action):
    """Sets other options, in the order of the command line."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: Mapping[str, object], **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, const=const, default=False, **options)

    def __call__(self, _: Any, namespace: argparse.Namespace, *__: Any) -> None:
        setattr(namespace, self.dest, True)
        for name, value in self.const.items():
            setattr(namespace, name, value)


def add_directory(to: argparse.ArgumentParser) -> None:
    """Add the option of benchmarks that write to a disk."""
    help_ = "where to write temporary files (default: the current directory)"
    to.add_argument("--directory", type=Path, default=Path.cwd(), help=help_)


# Rounds.


def alternating(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Every name once per round, in alternating order (A B, B A, ...), so that a drift of the machine affects all."""
    for number in range(rounds):
        yield from names if number % 2 == 0 else reversed(names)


def ratios(values: Sequence[float], against: Sequence[float]) -> list[float]:
    """The ratio of each round, so that neighbouring measurements are compared."""
    return [value / other for value, other in zip(values, against, strict=True)]


def spread(values: Sequence[float], form: str = ".0f") -> list[str]:
    """Minimum, median and maximum, as cells of a table."""
    return [format(value, form) for value in (min(values), statistics.median(values), max(values))]


# Earlier commits.


def git(*arguments: str) -> bytes:
    """The output of a git command. The commands used here change nothing."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def unpack(commit: str, directory: Path) -> None:
    """Unpack the package of a commit into a directory."""
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit, "statsig_otel"))) as archive:
        archive.extractall(directory, filter="data")


def trees(directory: Path, given: argparse.Namespace) -> Mapping[str, Path]:
    """This working tree, and the commits to compare, unpacked below a directory. All are compared with the last."""
    unpacked = {commit: directory / commit / "tree" for commit in (*given.others, given.commit)}
    for commit, tree in unpacked.items():
        unpack(commit, tree)
    return {"this working tree": ROOT, **unpacked}


def short(commit: str) -> str:
    """The short name of a commit."""
    return git("rev-parse", "--short", commit).decode().strip()


def add_others(to: argparse.ArgumentParser) -> None:
    """Add the option for further commits."""
    to.add_argument("--others", nargs="+", default=[], help="further commits that are compared with it")


def program(tree: Path, module: str) -> tuple[str, str]:
    """What Python runs for a module, such as one of the benchmarks, with the package of a tree."""
    return "-c", _PROGRAM.format(tree=str(tree.resolve()), root=str(ROOT.resolve()), module=module)


_PROGRAM: Final = """
import runpy, sys
sys.path[:0] = {tree!r}, {root!r}
import statsig_otel
assert statsig_otel.__file__.startswith({tree!r}), statsig_otel.__file__
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


# Processes.


def spawn(*command: str, **options: Any) -> subprocess.Popen[str]:
    """Start a Python process with `-m` and a module, without variables that would configure a service or an SDK."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "STATSIG_"))}
    return subprocess.Popen([sys.executable, *command], text=True, env=environment, **options)


def output(*command: str, timeout: float) -> str:
    """The output of a Python process. Its standard error is shown, and a failure ends the benchmark."""
    with spawn(*command, stdout=subprocess.PIPE) as process:
        try:
            printed, _ = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with {process.returncode}")
    return printed


def free_port() -> int:
    """A port on which no process listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(*command: str, port: int, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a process during the block, which begins once the process listens."""
    process = spawn(*command, **{"stdout": subprocess.DEVNULL, **options})
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            with contextlib.suppress(ConnectionError), socket.create_connection((HOST, port), timeout=START_TIMEOUT):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{shlex.join(command)} did not start")
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Memory:
    """The resident memory of a process, in bytes.

    Attributes:
        now: VmRSS.
        peak: VmHWM, the largest value so far.
        anonymous: RssAnon, the part that is not mapped from files.
    """

    now: int
    peak: int
    anonymous: int


def memory(pid: int) -> Memory:
    """Read a process's resident memory (Linux, proc_pid_status(5))."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Memory(*(int(fields[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM", "RssAnon")))


def processor_time(pid: int) -> float:
    """The processor time of all threads of a process in seconds (Linux, clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | _SCHEDULED)


_SCHEDULED: Final = 2
"""The kind of a process's clock, in the lowest bits of its number: CPUCLOCK_SCHED in Linux's posix-timers.h."""


def thread_times(pid: int) -> dict[str, float]:
    """The processor time of each running thread of a process in seconds, by its number (Linux, proc(5), schedstat)."""
    tasks = Path(f"/proc/{pid}/task")
    return {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks.iterdir()}


# Disks.


@contextlib.contextmanager
def working_directory(parent: Path) -> Iterator[Path]:
    """A temporary directory for the files of a benchmark."""
    with TemporaryDirectory(prefix="benchmark-", dir=parent) as name:
        yield Path(name)


def file_system(path: Path) -> str:
    """The file system of a directory, with a warning if it is in memory."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except FileNotFoundError:
        return "an unknown file system"
    resolved = path.resolve()
    found = [(len(point), kind) for point, kind in mounts if resolved.is_relative_to(point)]
    kind = max(found)[1]
    return f"{kind}: IN MEMORY, NOT ON DISK" if kind in ("tmpfs", "ramfs") else kind


# The report.


def machine(packages: Iterable[str] = ()) -> str:
    """The versions and the hardware that a result may depend on."""
    others = "".join(f", {package} {version(package)}" for package in packages)
    is_optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    built = "" if is_optimised else " (configured without --enable-optimizations)"
    return f"Python {platform.python_version()}{built}, {os.cpu_count()} CPUs, {platform.machine()}{others}"


def version_of(python: str) -> str:
    """The version of an interpreter."""
    command = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=START_TIMEOUT).stdout.strip()


def arguments(given: argparse.Namespace, names: Iterable[str]) -> str:
    """The options of this run."""
    values: Mapping[str, Any] = vars(given)
    return "Options: " + ", ".join(f"{name} {values[name]}" for name in names)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is also readable as plain text."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


COMPARISON = ("min / median / max", "A", "B", "A / B")
"""The head of a table of comparisons."""


def comparison(label: str, a: Sequence[float], b: Sequence[float], form: str = ".0f") -> list[str]:
    """One row of a table of comparisons."""
    return [label, *(" / ".join(cells) for cells in (spread(a, form), spread(b, form), spread(ratios(a, b), ".2f")))]


def publish(name: str, *parts: str) -> None:
    """Print a report, and write it to results/NAME.md."""
    text = "\n\n".join(parts)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(f"# {name}\n\n{text}\n")
