"""`statsig-otel demo` as a process, with all that it starts: the service, a real collector, a backend."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Final

import pytest

from statsig_otel.plugin.demo.day import sample_day
from statsig_otel.plugin.demo.table import Row, Table
from statsig_otel.plugin.demo.tally import Tally
from statsig_otel.plugin.demo.webhook_client import Answer
from statsig_otel.plugin.record.change_event import ChangeEvent
from tests.e2e.processes import find_rotel
from tests.peers.otlp_servers import GrpcSink, HttpSink

NOW_MS: Final = 1_750_000_000_000
DAY: Final = sample_day(NOW_MS)
CHANGES: Final = sum(len(delivery.rows) for delivery in DAY if not delivery.forged and not delivery.redelivery)
LISTENING: Final = "Ctrl-C ends the demo."

needs_rotel = pytest.mark.skipif(
    find_rotel() is None, reason="LOUD: rotel is not installed or does not run here: the demo runs without a collector"
)


class Running:
    """A demo that runs, its output read all the time."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "statsig_otel", "demo", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            process_group=0,
        )
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()

    @property
    def output(self) -> str:
        with self._changed:
            return "\n".join(self._lines)

    def wait_for(self, text: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(text in line for line in self._lines), 60), "\n".join(self._lines)

    def end(self, number: int | None = None) -> int:
        """Send a signal, to the whole group as a terminal's Ctrl-C goes; the exit code."""
        if number is not None:
            os.killpg(self.process.pid, number)
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def children(self) -> list[int]:
        pid = self.process.pid
        linux = Path(f"/proc/{pid}/task/{pid}/children")  # not every Linux has `pgrep`
        words = ["cat", str(linux)] if linux.exists() else ["pgrep", "-P", str(pid)]
        return [*map(int, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the demo makes its temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@contextmanager
def demo(folder: Path, *arguments: str, path: Path | None = None) -> Iterator[Running]:
    """A running demo that leaves nothing behind, whatever a test does to it.

    Args:
        folder: For its temporary files.
        arguments: Its options.
        path: A directory whose packages hide the installed ones.
    """
    environment = {**os.environ, "TMPDIR": str(folder), "PATH": os.pathsep.join([_bin(), os.environ["PATH"]])}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    running = Running(arguments, environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)


def _bin() -> str:
    return str(Path(sys.executable).parent)


@pytest.fixture
def no_rotel(tmp_path: Path) -> Path:
    """A package `rotel` without its binary, in front of the installed one."""
    package = tmp_path / "hidden" / "rotel"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('hidden by a test')\n")
    return package.parent


def with_binary(no_rotel: Path, content: str) -> Path:
    binary = no_rotel / "rotel" / "rotel-agent"
    binary.write_text(content)
    binary.chmod(0o755)
    return no_rotel


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def check_nothing_is_left(folder: Path, pids: Sequence[int]) -> None:
    assert all(map(is_gone, pids))
    assert list(folder.iterdir()) == []


def rows(output: str) -> list[str]:
    """The table's lines, without their times."""
    return [line[10:] for line in output.splitlines() if re.match(r"\d\d:\d\d:\d\d  \w", line)]


def check_day(output: str) -> None:
    shown = rows(output)
    assert len(shown) == CHANGES
    assert [row.split()[0] for row in shown[:3]] == ["gate_created", "gate_updated", "experiment_created"]
    assert any(
        re.fullmatch(r"gate_updated +new_checkout updated +development, staging +Platform Engineer", row)
        for row in shown
    )
    # The queue knows the redelivery: it is answered, and not sent on.
    assert not any(row.endswith("redelivery") for row in shown)
    sent = f"14 of 14 webhooks, with {CHANGES + 2} changes (1 sent twice, 1 forged) and 18 exposures"
    assert f"sent       {sent}\nanswered   13 with 200, 1 with 401\n" in output
    assert f"accepted   {CHANGES} changes, 1 duplicate, 0 invalid" in output
    assert "payments_kill_switch" not in output
    assert f"arrived    {CHANGES} of {CHANGES} changes, each once\n" in output
    assert "1 of 1 forged webhook (401)" in output
    assert "18 exposures" in output
    assert "Every change arrived." in output
    assert "\x1b" not in output


@needs_rotel
def test_once_shows_the_day_behind_a_collector_and_ends(folder: Path) -> None:
    with demo(folder, "--once") as running:
        running.wait_for("receiver   http://127.0.0.1:")
        children = running.children()
        code = running.end()
    assert code == 0, running.output
    assert "collector  rotel, OTLP over gRPC at 127.0.0.1:" in running.output
    assert re.search(r"^live page  http://127\.0\.0\.1:[1-9]\d*/$", running.output, re.MULTILINE)
    assert "Config changes that reach the backend through the collector:" in running.output
    check_day(running.output)
    assert LISTENING not in running.output
    check_nothing_is_left(folder, children)


@pytest.mark.slow
def test_without_rotel_it_says_so_and_goes_straight_to_the_backend(folder: Path, no_rotel: Path) -> None:
    with demo(folder, "--once", path=no_rotel) as running:
        assert running.end() == 0, running.output
    assert "NO COLLECTOR: rotel is not installed" in running.output
    assert "Config changes that reach the backend:" in running.output
    assert "through the collector" not in running.output
    check_day(running.output)
    check_nothing_is_left(folder, [])


@pytest.mark.slow
def test_a_rotel_for_another_machine_counts_as_none(folder: Path, no_rotel: Path) -> None:
    with demo(folder, "--once", path=with_binary(no_rotel, "\x7fnot a program of this machine")) as running:
        assert running.end() == 0, running.output
    assert "NO COLLECTOR: rotel does not run on this machine" in running.output
    check_day(running.output)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("script", "reason", "last_line"),
    [
        (
            "echo no libpython3.so; exit 127",
            "rotel does not start: the collector (rotel) ended with exit code 127",
            "no libpython3.so",
        ),
        (
            "echo waiting; exec sleep 300",
            "rotel does not listen after 30 s: the collector (rotel) is running",
            "waiting",
        ),
    ],
    ids=["ends", "hangs"],
)
def test_a_collector_that_does_not_start_counts_as_none(
    folder: Path, no_rotel: Path, script: str, reason: str, last_line: str
) -> None:
    with demo(folder, "--once", path=with_binary(no_rotel, f"#!/bin/sh\n{script}\n")) as running:
        assert running.end() == 0, running.output
    assert f"NO COLLECTOR: {reason}" in running.output
    assert f"    {last_line}" in running.output
    check_day(running.output)
    check_nothing_is_left(folder, [])


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_the_listening_demo_ends_on_a_signal_and_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    with demo(folder) as running:
        running.wait_for(LISTENING)
        children = running.children()
        assert children
        assert running.end(number) == 0, running.output
    assert "Traceback" not in running.output
    check_day(running.output)
    check_nothing_is_left(folder, children)


def test_a_signal_before_the_end_of_the_day_leaves_nothing(folder: Path) -> None:
    with demo(folder, "--once") as running:
        running.wait_for("backend  ")
        code = running.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, running.output
    assert "Traceback" not in running.output
    check_nothing_is_left(folder, [])


@pytest.mark.slow
def test_a_service_that_dies_ends_the_demo(folder: Path, no_rotel: Path) -> None:
    with demo(folder, path=no_rotel) as running:
        running.wait_for(LISTENING)
        (service,) = running.children()
        os.kill(service, signal.SIGKILL)
        assert running.end() == 1
    assert "the service ended with exit code -9; its last lines:" in running.output
    assert "listens" in running.output
    check_nothing_is_left(folder, [service])


def printed_commands(output: str) -> str:
    return "\n".join(line for line in output.partition("Still listening.")[2].splitlines() if line.startswith("  "))


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("openssl")),
    reason="LOUD: curl or openssl is missing, the printed command line is not tried",
)
@pytest.mark.slow
def test_what_it_prints_to_try_works_as_it_is_printed(folder: Path) -> None:
    with demo(folder) as running:
        running.wait_for(LISTENING)
        commands = printed_commands(running.output)
        assert all(word in commands for word in ("openssl dgst", "curl -sS", "send --url", "--verify-url"))
        environment = {**os.environ, "PATH": os.pathsep.join([_bin(), os.environ["PATH"]])}
        tried = subprocess.run(
            ["sh", "-eu", "-c", commands], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert tried.returncode == 0, tried.stderr
        assert tried.stdout.count('"accepted"') == 2
        assert '"verification_code"' in tried.stdout
        running.wait_for("sample_experiment updated")
        running.wait_for("made_by_hand updated")
        children = running.children()
        assert running.end(signal.SIGINT) == 0
    check_nothing_is_left(folder, children)
    assert rows(running.output)[-1].split() == [
        "gate_updated",
        "made_by_hand",
        "updated",
        "staging",
        "Release",
        "Manager",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_of_the_users_own_gets_the_day(folder: Path, protocol: str) -> None:
    with GrpcSink() if protocol == "grpc" else HttpSink() as collector:
        endpoint = f"http://{collector.address}"
        with demo(folder, "--once", "--otlp-endpoint", endpoint, "--otlp-protocol", protocol) as running:
            assert running.end() == 0, running.output
        titles = [record.body.string_value for record in collector.records]
    assert len(titles) == CHANGES + 1
    assert len(rows(running.output)) == CHANGES + 1
    assert "Your collector accepted every change." in running.output
    assert "statsig.config_change" in running.output
    assert "backend" not in running.output
    check_nothing_is_left(folder, [])


@pytest.mark.slow
def test_a_collector_that_is_not_there_is_exit_code_1_with_the_reason(folder: Path) -> None:
    with GrpcSink() as collector:
        endpoint = f"http://{collector.address}"
    with demo(folder, "--once", "--otlp-endpoint", endpoint) as running:
        assert running.end() == 1
    assert "was answered with 503 Service Unavailable, not 200" in running.output
    assert "UNAVAILABLE" in running.output
    check_nothing_is_left(folder, [])


def test_the_help_tells_the_exit_codes(folder: Path) -> None:
    with demo(folder, "--help") as running:
        assert running.end() == 0
    assert "\n    0  every change arrived" in running.output


def test_an_endpoint_without_a_scheme_is_refused(folder: Path) -> None:
    with demo(folder, "--otlp-endpoint", "localhost:4317") as running:
        assert running.end() == 2
    assert "http://HOST:PORT" in running.output


# What decides over the exit code, without processes.


def good(accepted: int, ignored: int, duplicates: int = 0) -> Answer:
    text = f'{{"accepted": {accepted}, "duplicates": {duplicates}, "ignored": {ignored}, "invalid": 0}}'
    return Answer(200, text.encode())


def played() -> Tally:
    """A day that was sent and answered as it had to be."""
    tally = Tally(DAY)
    for delivery in DAY:
        assert tally.answered(
            delivery, Answer(401, b"") if delivery.forged else good(len(delivery.rows), delivery.ignored)
        )
    return tally


ARRIVING: Final = [row for delivery in DAY if not delivery.forged for row in delivery.rows]


def test_the_day_holds_what_it_promises() -> None:
    types = {row.type for _, row in ARRIVING}
    assert {"gate_created", "gate_updated", "gate_archived", "experiment_created", "experiment_updated",
            "experiment_archived", "dynamicconfig_updated", "dynamic_config_created"} <= types  # fmt: skip
    assert len({environment for _, row in ARRIVING for environment in row.environments}) == 3
    assert len({row.who for _, row in ARRIVING}) >= 4
    assert sum(delivery.ignored > 0 for delivery in DAY) >= 3
    assert sum(delivery.forged for delivery in DAY) == 1
    (redelivery,) = [delivery for delivery in DAY if delivery.redelivery]
    assert [delivery.body for delivery in DAY].count(redelivery.body) == 2
    assert all(NOW_MS - 36_000_000 <= row.happened_at_ms < NOW_MS for _, row in ARRIVING)


def test_a_good_day_has_no_problems() -> None:
    tally = played()
    for number, (uid, row) in enumerate(ARRIVING):
        assert not tally.is_complete, number
        tally.arrived(uid, row)
    assert tally.is_complete
    assert tally.problems(sees_arrivals=True) == []
    arrived = f"{CHANGES} of {CHANGES} changes, 1 record again, with the same log.record.uid"
    assert tally.summary(sees_arrivals=True)["arrived"] == arrived


def test_a_service_that_knows_duplicates_has_a_good_day_too() -> None:
    tally = Tally(DAY)
    for delivery in DAY:
        answer = good(0, 0, duplicates=1) if delivery.redelivery else good(len(delivery.rows), delivery.ignored)
        assert tally.answered(delivery, Answer(401, b"") if delivery.forged else answer)
    for uid, row in dict(ARRIVING).items():
        assert not tally.arrived(uid, row)
    assert tally.is_complete
    assert "1 duplicate," in tally.summary(sees_arrivals=True)["accepted"]
    assert tally.summary(sees_arrivals=True)["arrived"] == f"{CHANGES} of {CHANGES} changes, each once"


def test_a_change_that_is_missing_is_a_problem() -> None:
    tally = played()
    for uid, row in ARRIVING[:-1]:
        tally.arrived(uid, row)
    assert not tally.is_complete
    assert tally.problems(sees_arrivals=True) == ["'search_ranking updated' did not arrive"]
    assert tally.problems(sees_arrivals=False) == []


def test_a_forged_change_that_arrives_is_a_problem() -> None:
    tally = played()
    (forged,) = [delivery for delivery in DAY if delivery.forged]
    for uid, row in (*ARRIVING, *forged.rows):
        tally.arrived(uid, row)
    assert tally.problems(sees_arrivals=True) == ["'payments_kill_switch updated' arrived, but must not arrive"]


def test_a_change_that_arrives_altered_is_a_problem() -> None:
    tally = played()
    for uid, row in ARRIVING:
        tally.arrived(uid, row)
    tally.arrived(ARRIVING[0][0], ARRIVING[1][1])
    assert len(tally.problems(sees_arrivals=True)) == 1


@pytest.mark.parametrize(
    "answer",
    [Answer(200, b"{}"), Answer(200, b"no JSON"), Answer(200, b"[]"), Answer(503, b""), good(0, 0), good(1, 1)],
)
def test_an_answer_that_does_not_fit_is_a_problem(answer: Answer) -> None:
    tally = Tally(DAY)
    assert not tally.answered(DAY[0], answer)
    assert len(tally.problems(sees_arrivals=False)) == 1


@pytest.mark.parametrize("status", [200, 400, 503])
def test_a_forged_delivery_that_is_not_answered_401_is_a_problem(status: int) -> None:
    tally = Tally(DAY)
    (forged,) = [delivery for delivery in DAY if delivery.forged]
    assert not tally.answered(forged, Answer(status, b""))


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


ROW: Final = Row.of(
    ChangeEvent(
        happened_at=NOW_MS, entity_type="Gate", name="caf\u00e9\x1b[2J\u65e5\u672c", environments=("production",) * 3
    )
)


@pytest.mark.parametrize(
    ("stream", "environment", "is_colored"),
    [
        (Terminal, {}, True),
        (Terminal, {"NO_COLOR": "1"}, False),
        (Terminal, {"TERM": "dumb"}, False),
        (StringIO, {}, False),
        (StringIO, {"FORCE_COLOR": "1"}, True),
        (StringIO, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_the_table_is_coloured_where_the_terminal_can(
    stream: type[StringIO], environment: dict[str, str], *, is_colored: bool
) -> None:
    out = stream()
    table = Table(out, [ROW], environment)
    table.heading()
    table.row(ROW, redelivery=True)
    assert ("\x1b[" in out.getvalue()) == is_colored
    assert "\x1b[2J" not in out.getvalue()


def test_a_row_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal()
    table = Table(out, [row for _, row in ARRIVING], {"NO_COLOR": "1"})
    table.heading()
    for _, row in ARRIVING:
        table.row(row)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) < 80
    assert len({line.index("production") for line in lines if "production" in line}) == 1


def test_nothing_is_cut_in_a_pipe() -> None:
    out = StringIO()
    long = Row(happened_at_ms=NOW_MS, type="x" * 70, title="y" * 200, who="z")
    Table(out, [ROW], {}).row(long)
    assert out.getvalue().split() == ["15:06:40", long.type, long.title, "-", "z"]
