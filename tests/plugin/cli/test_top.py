"""`statsig-otel top` in front of a running service: what it prints once, and what a terminal shows each second."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from statsig_otel.exporters import Blocked, Outcome, RetryLater
from statsig_otel.exporters.terminal import width
from statsig_otel.plugin import Service
from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.cli.top import _screen
from tests.plugin.cli.served_queue import config_file
from tests.plugin.fresh import fresh_process
from tests.plugin.services import Keeper, post_change, service
from tests.waiting import wait_until

HOSTILE = "flag\x1b[2J\x1b]0;t\x07\u202e\u200b\n<b>"
SEQUENCES = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")


class Away(Keeper):
    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        return RetryLater("UNAVAILABLE: \x1b[31mno\nroute")


class Refusing(Keeper):
    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        return Blocked("401 Unauthorized: the key is wrong")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    with fresh_process():
        yield


@contextmanager
def served(directory: Path) -> Iterator[Service]:
    with service(directory, {"mine": Keeper(), "away": Away(), "refusing": Refusing()}) as running:
        assert post_change(running, "a", secret="webhook-another").status == 401
        for name in ("first", HOSTILE):
            assert post_change(running, name).status == 200
        wait_until(lambda: {"retrying", "blocked"} <= {one["state"] for one in seen(directory)["exporters"].values()})
        wait_until(lambda: at_rest(directory, "mine"))
        yield running


def top(directory: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["top", "--directory", str(directory), *options])


def seen(directory: Path) -> Any:
    found = top(directory, "--json")
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)["status"]


def test_a_snapshot_says_all_at_a_glance(tmp_path: Path) -> None:
    with served(tmp_path):
        found = top(tmp_path, "--once")
        told = json.loads(top(tmp_path, "--json").stdout)
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert re.match(r"statsig-otel \S+, process \d+, up [0-9ms]+$", lines[0])
    words = " ".join(lines[1 : lines.index("")])
    assert re.search(r"Receiving\. Last config change (just now|\d+ \w+ ago)\.", words)
    assert words.startswith("Not delivering to refusing, which is blocked: 2 records wait. Receiving. ")
    assert words.endswith("away is retrying: 2 records wait. 1 of 3 exporters is well.")
    for row in (
        r"^away +retrying +2 +[0-9ms]+ +0 +0  UNAVAILABLE",
        r"^refusing +blocked +2 +[0-9ms]+ +0 +0  401 Unauthorized",
        r"^mine +idle +0 +- +\d +2$",
        r"^ *[0-9ms]+ +1  401 +statsig +signature_wrong +the client has",
        r"^ *[0-9ms]+ +[12]  200 +statsig +accepted +[12] accepted",  # in one entry, if they came within a second
        r"^ *[0-9ms]+  first updated$",
    ):
        assert re.search(row, found.stdout, re.MULTILINE), row
    assert r"flag\x1b[2J\x1b]0;t\x07\u202e" in found.stdout
    assert all(line.isprintable() for line in lines)
    assert [one["title"] for one in told["journal"]["changes"]] == [f"{HOSTILE} updated", "first updated"]


def test_a_service_that_does_not_run_is_said(tmp_path: Path) -> None:
    with service(tmp_path, {"mine": Keeper()}):
        pass
    found = top(tmp_path, "--once")
    assert (found.exit_code, found.stdout) == (1, "")
    assert (
        f"no service runs on the queue in {tmp_path}\nhint: If it runs on another queue, pass its --config FILE"
        in found.stderr
    )
    assert top(tmp_path / "elsewhere").exit_code == 1


def test_a_running_service_is_shown_without_the_variables_of_its_configuration(tmp_path: Path) -> None:
    config = config_file(tmp_path, tmp_path / "queue", signing_secrets=["${env:NO_SUCH_VARIABLE}"])
    with service(tmp_path / "queue", {"mine": Keeper()}):
        found = CliRunner().invoke(main, ["top", "--once", "--config", str(config)])
    assert (found.exit_code, found.stderr) == (0, "")


def at_rest(directory: Path, exporter: str) -> bool:
    one = seen(directory)["exporters"][exporter]
    return (one["state"], one["waiting"]) == ("idle", 0)


def full() -> dict[str, Any]:
    """What a busy service says."""
    at, wide = "2026-11-28T14:00:00.000Z", "変更" * 100
    exporter = {"state": "blocked", "waiting": 10**9, "oldest_age_seconds": 1e7, "delivered": 10**9, "last_error": wide}
    change = {"at": at, "uid": "0" * 32, "title": wide, "environments": [wide], "who": wide, "description": wide}
    request = {
        "at": at, "count": 10**6, "status": 401, "receiver": wide, "reason": "timestamp_outside_tolerance",
        "detail": wide, "items": {},
    }  # fmt: skip
    exporters = {f"exporter{number}": {**exporter, "delivered_last_minute": 10**6} for number in range(40)}
    status = {"words": wide, "pid": 1, "version": "1", "since": at, "exporters": exporters}
    return {"status": status, "journal": {"requests": [request] * 50, "changes": [change] * 50}}


def test_everything_fits_whatever_it_is() -> None:
    for columns, lines in ((80, 24), (40, 10), (200, 60)):
        for colored in (False, True):
            screen = _screen(full(), columns, lines, colored=colored)
            assert len(screen) == lines - 1
            assert all(width(SEQUENCES.sub("", line)) <= columns for line in screen)
    screen = _screen(full(), 80, 24, colored=False)
    assert sum("timestamp_outside" in line for line in screen) >= 2
    assert screen[-1].endswith("…")


def test_what_no_webhook_brought_says_so() -> None:
    seen = full()
    seen["journal"]["changes"] = [{"at": seen["status"]["since"], "uid": "0", "title": "a changed", "note": "missed"}]
    assert any("missed: a changed" in line for line in _screen(seen, 80, 24, colored=False))


class Terminal:
    """A terminal of 80 columns and 24 lines with `statsig-otel top` in it."""

    def __init__(self, directory: Path) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.master)
        self.written = ""
        command = [sys.executable, "-m", "statsig_otel", "top", "--directory", str(directory)]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": "", "NO_COLOR": "", "FORCE_COLOR": ""}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)

    def read_until(self, condition: Callable[[], bool], what: str) -> None:
        latest = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < latest, f"waited in vain for {what}: {self.written[-3000:]!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.written += os.read(self.master, 65536).decode()
                except OSError:  # nobody has its other end open any more
                    assert condition(), what
                    return

    @property
    def frames(self) -> list[list[str]]:
        """What it has shown so far, without sequences of the terminal."""
        return [SEQUENCES.sub("", frame).split("\r\n")[:-1] for frame in self.written.split("\x1b[H")[1:]]

    def shows(self, text: str) -> Callable[[], bool]:
        return lambda: bool(self.frames) and text in " ".join(self.frames[-1])


@pytest.mark.slow
def test_a_terminal_shows_it_again_each_second(tmp_path: Path) -> None:
    with served(tmp_path) as running:
        terminal = Terminal(tmp_path)
        try:
            terminal.read_until(terminal.shows("first updated"), "the first look")
            assert terminal.written.startswith("\x1b[?1049h\x1b[?25l")
            assert post_change(running, "later").status == 200
            terminal.read_until(terminal.shows("later updated"), "a change that came meanwhile")
            running.shutdown()
            terminal.read_until(terminal.shows("No service runs on the queue in"), "the end of the service")
            os.write(terminal.master, b"xq")
            ended = terminal.process.wait(60)
            terminal.read_until(lambda: terminal.written.endswith("\x1b[?25h\x1b[?1049l"), "the old screen")
            assert ended == 0
            assert termios.tcgetattr(terminal.master) == terminal.before
        finally:
            terminal.process.kill()
            terminal.process.wait()
            os.close(terminal.master)
    for frame in terminal.frames:
        assert len(frame) <= 23
        assert all(width(line) <= 80 for line in frame)
        assert all(line.isprintable() for line in frame)
    assert "\x1b[1;31mrefusing" in terminal.written


@pytest.mark.slow
def test_ctrl_c_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    with service(tmp_path, {"mine": Keeper()}):
        terminal = Terminal(tmp_path)
        try:
            terminal.read_until(terminal.shows("No request yet."), "the first look")
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.process.wait(60) == 0
            terminal.read_until(lambda: terminal.written.endswith("\x1b[?25h\x1b[?1049l"), "the old screen")
            assert termios.tcgetattr(terminal.master) == terminal.before
        finally:
            terminal.process.kill()
            terminal.process.wait()
            os.close(terminal.master)
