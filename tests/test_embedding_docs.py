"""Every program of docs/embedding.md runs as it stands there, by the command below it; only the port is another."""

import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from statsig_otel.plugin.webhook import DEFAULT_PATH
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink, free_port
from tests.plugin.adapters import CHANGE, SECRET, VERIFICATION, assert_refused, body_of, signed
from tests.plugin.http_client import Address, connect, exchange, request
from tests.waiting import wait_until

PAGE = (Path(__file__).parents[1] / "docs" / "embedding.md").read_text()
BIN = Path(sys.executable).parent
BODY = body_of(CHANGE)


@dataclass(frozen=True)
class Program:
    """A program of the page, with its heading and its command."""

    heading: str
    code: str
    command: str


def programs() -> dict[str, Program]:
    found = {}
    for section in re.split(r"(?m)^## ", PAGE)[1:]:
        blocks = re.findall(r"```python\n(.*?)```\n+```sh\n(.*?)\n```", section, re.DOTALL)
        for code, command in blocks:
            heading = section.partition("\n")[0]
            found[heading] = Program(heading, code, command)
    return found


PROGRAMS = programs()
PURE = "Only the pure part"
MOUNTED, SERVICE, FALCON, STARLETTE, FLASK, SDK, OWN, EXPORTER, THREAD = (
    heading for heading in PROGRAMS if heading != PURE
)


def test_every_block_of_code_is_a_program_with_its_command() -> None:
    assert len(PROGRAMS) == len(re.findall(r"```python\n", PAGE)) == len(re.findall(r"```sh\n", PAGE)) == 10


def arguments(program: Program, port: int) -> list[str]:
    assert ("8080" in program.command) is not ("8080" in program.code)
    command, *rest = shlex.split(program.command.replace("8080", str(port)))
    return [sys.executable if command == "python" else str(BIN / command), *rest]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "STATSIG_"))}
    return {**kept, "STATSIG_SIGNING_SECRET": SECRET, **variables}


@contextmanager
def running(
    program: Program, folder: Path, end: signal.Signals = signal.SIGTERM, /, **variables: str
) -> Iterator[Address]:
    """The program until SIGTERM, which it has to obey; or until what a test ends it with."""
    port = free_port()
    (folder / "program.py").write_text(program.code.replace("8080", str(port)))
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            arguments(program, port), cwd=folder, env=environment(**variables), stdout=output, stderr=output
        )
    try:
        wait_for_port(port, process, folder)
        yield "127.0.0.1", port
    finally:
        process.send_signal(end)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()


def wait_for_port(port: int, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            connect(("127.0.0.1", port)).close()
        except OSError:
            assert process.poll() is None, (folder / "output").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


def assert_takes_webhooks(address: Address, prefix: str) -> None:
    path = prefix + DEFAULT_PATH
    verified = exchange(address, request(VERIFICATION, path=path))
    assert verified.json == {"verification_code": "abc123"}
    forged = signed(BODY, secret="webhook-another")
    assert_refused(exchange(address, request(BODY, path=path, headers=forged)), 401)
    taken = exchange(address, request(BODY, path=path, headers=signed(BODY)))
    assert (taken.status, taken.json["accepted"]) == (200, 1)


@pytest.mark.parametrize(
    ("heading", "prefix", "ends"),
    [
        (FALCON, "", True),
        (STARLETTE, "/statsig", True),
        (FLASK, "/statsig", False),
        (SDK, "", False),
        (THREAD, "", True),
    ],
)
def test_a_program_sends_what_it_takes(heading: str, prefix: str, ends: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter of the test
    """Those that end in order send at their end what the batch processor still holds."""
    delay = "60000" if ends else "50"
    with GrpcSink() as sink:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}", "OTEL_BLRP_SCHEDULE_DELAY": delay}
        with running(PROGRAMS[heading], tmp_path, **variables) as address:
            assert_takes_webhooks(address, prefix)
            assert not (ends and sink.requests)
            if not ends:
                sink.wait_for(1)
        assert [record.event_name for record in sink.records] == ["statsig.config_change"]


@pytest.mark.parametrize(
    ("heading", "prefix"), [(MOUNTED, "/statsig"), pytest.param(SERVICE, "", marks=pytest.mark.slow)]
)
def test_with_the_durable_queue_what_was_acknowledged_survives_a_kill(
    heading: str, prefix: str, tmp_path: Path
) -> None:
    """Also where the backend was away all the time; and an orderly end after it sends what waits."""
    with GrpcSink() as sink:
        sink.answer = GrpcAnswer(grpc.StatusCode.UNAVAILABLE)
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}"}
        with running(PROGRAMS[heading], tmp_path, signal.SIGKILL, **variables) as address:
            assert_takes_webhooks(address, prefix)
            sink.wait_for(1)
        sink.answer = GrpcAnswer()
        sink.requests.clear()
        with running(PROGRAMS[heading], tmp_path, **variables) as address:
            again = exchange(address, request(BODY, path=prefix + DEFAULT_PATH, headers=signed(BODY)))
            assert (again.json["accepted"], again.json["duplicates"]) == (0, 1)
        assert [record.event_name for record in sink.records] == ["statsig.config_change"]


def test_the_consumer_of_ones_own_keeps_each_change_once(tmp_path: Path) -> None:
    with running(PROGRAMS[OWN], tmp_path) as address:
        assert_takes_webhooks(address, "")
        again = exchange(address, request(BODY, path=DEFAULT_PATH, headers=signed(BODY)))
        assert (again.json["accepted"], again.json["duplicates"]) == (0, 1)
        assert exchange(address, request(b"{", path=DEFAULT_PATH, headers=signed(b"{"))).status == 400
        (tmp_path / "changes.db").unlink()
        (tmp_path / "changes.db").mkdir()
        refused = exchange(address, request(BODY, path=DEFAULT_PATH, headers=signed(BODY)))
        assert_refused(refused, 503)
        (tmp_path / "changes.db").rmdir()
        assert_takes_webhooks(address, "")
    connection = sqlite3.connect(tmp_path / "changes.db")
    assert len(connection.execute("SELECT uid FROM changes").fetchall()) == 1
    connection.close()


def test_the_exporter_of_ones_own_writes_what_is_taken(tmp_path: Path) -> None:
    with running(PROGRAMS[EXPORTER], tmp_path) as address:
        assert_takes_webhooks(address, "")
        wait_until(lambda: (tmp_path / "titles.txt").read_text() == "layout_v2 updated\n")


def test_the_pure_part_prints_what_it_mapped(tmp_path: Path) -> None:
    program = PROGRAMS[PURE]
    (tmp_path / "program.py").write_text(program.code)
    command = [sys.executable, *shlex.split(program.command)[1:]]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert re.fullmatch(r"[0-9a-f]{32} 1 record\n0 invalid, 0 ignored\n", ran.stdout)


@pytest.mark.parametrize("heading", PROGRAMS)
def test_a_program_uses_public_names_only(heading: str) -> None:
    imports = re.findall(r"(?m)^from (statsig_otel\S*) import", PROGRAMS[heading].code)
    assert imports
    assert set(imports) <= {"statsig_otel.config", "statsig_otel.exporters", "statsig_otel.plugin"}
