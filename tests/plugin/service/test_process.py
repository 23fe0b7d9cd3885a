"""A service in a process: forks, the end of the interpreter, and what it leaves alone."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import Process, wait_until_listening
from tests.e2e.service_process import environment
from tests.peers.otlp_servers import GrpcSink
from tests.peers.ports import free_port
from tests.plugin.http_client import exchange
from tests.plugin.services import names_in, webhook

ROOT = Path(__file__).parents[3]
QUIET = environment(
    {
        "GRPC_VERBOSITY": "NONE",
        "GRPC_ENABLE_FORK_SUPPORT": "0",  # else it ends some children by a signal
        "PYTHONWARNINGS": "ignore:This process:DeprecationWarning",
    }
)
"""Without what grpc, and Python from 3.12 on, say and do at a fork of a process with threads."""


def run(which: str, sink: GrpcSink, directory: Path) -> str:
    command = [sys.executable, "-m", "tests.plugin.service._service_child", which, sink.address, str(directory)]
    ran = subprocess.run(command, cwd=ROOT, env=QUIET, capture_output=True, text=True, timeout=60, check=False)
    # A call that is under way at a fork may end as failed, and is made again.
    said = [line for line in ran.stderr.splitlines() if "can't deliver now: UNAVAILABLE: Stream removed" not in line]
    assert (ran.returncode, said) == (0, [])
    return ran.stdout


@pytest.mark.slow
def test_a_service_belongs_to_the_process_that_starts_it(tmp_path: Path) -> None:
    """Made before a fork it starts in the child; a child of a started one is told so, and leaves its parent alone."""
    with GrpcSink() as sink:
        output = run("forks", sink, tmp_path)
    pid = output.splitlines()[-1].removeprefix("parent ")
    owner = f"the process {pid}"
    in_use = (
        f"{tmp_path} is in use by {owner}: stop that one, or give each service its own queue directory; "
        "if that process is about to end, as a worker at a reload is, use wait_for_directory=True"
    )
    assert output.splitlines() == [
        "child took 200",
        "child drained True True",
        "child ended 0",
        f"consumer the service was started by {owner}, and this is a fork of it: start one after the fork",
        f"start this service was started by {owner}: make it, or start it, after the fork",
        "shutdown True",
        f"second {in_use}",
        "child ended 0",
        "parent took 200",
        "parent drained True",
        "the same port took 200",
        f"parent {pid}",
    ]
    names = [name for received in sink.requests for name in names_in(received.payload)]
    # At least once: a call that is under way at a fork may end as failed, and is made again.
    assert list(dict.fromkeys(names)) == ["in the child", "in the parent", "again"]


def test_a_service_leaves_its_process_alone(tmp_path: Path) -> None:
    """No signal handler, no logging, no hook, no thread that keeps it alive, and no look at the environment.

    But at the variables of a proxy, which each program obeys. The line of an exporter's start names it.
    """
    with GrpcSink() as sink:
        said = json.loads(run("manners", sink, tmp_path))
        assert len(sink.records) == 1
    assert said["as before"]
    assert (said["our handlers"], said["our levels"]) == (0, [0])
    assert said["threads"] == ["MainThread"]
    asked = {(module.partition(".")[0], name) for module, name in said["asked"]}
    assert asked, "the libraries look at theirs, so the watch works"
    ours = {name for module, name in asked if module == "statsig_otel"}
    names = {"grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"}
    assert {name.lower() for name in ours} <= names
    # Of the libraries' own none is about what is sent, or where.
    names = {name for _, name in asked if name.startswith(("OTEL_", "STATSIG_", "STATE_", "XDG_", "*"))}
    assert names <= {"OTEL_PYTHON_CONTEXT", "OTEL_PYTHON_METER_PROVIDER"}


@pytest.mark.slow
def test_a_shutdown_at_the_interpreter_s_end_or_in_a_daemon_thread_sends_what_waits(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        assert run("atexit", sink, tmp_path) == "other drained True\ndrained True 600\n"
        assert len(sink.records) == 1


@pytest.mark.slow
def test_sixty_services_in_a_row_leave_nothing_behind(tmp_path: Path) -> None:
    """Each with a mistaken exporter beside a right one, and some with a fork: no thread, no descriptor, no memory."""
    with GrpcSink() as sink:
        command = [sys.executable, "-m", "tests.plugin.service._service_child", "lives", sink.address, str(tmp_path)]
        ran = subprocess.run(command, cwd=ROOT, env=QUIET, capture_output=True, text=True, timeout=150, check=False)
        assert ran.returncode == 0, ran.stderr
        *children, last = ran.stdout.splitlines()
        assert children == ["in the child True", "child ended 0"] * 10
        assert re.fullmatch(r"threads \{1\} descriptors 1 more MiB [0-7]", last), last
        names = {name for received in sink.requests for name in names_in(received.payload)}
        assert names == {f"flag {number}" for number in range(60) if number % 6}


@pytest.mark.slow
def test_the_second_worker_of_a_real_server_is_told_the_ways_out(tmp_path: Path) -> None:
    """And the first one takes webhooks all the while."""
    (tmp_path / "program.py").write_text(WORKER.format(root=str(ROOT), directory=str(tmp_path / "queue")))
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--workers", "2", "--port", str(port), "--app-dir", str(tmp_path)]
    with Process([*command, "program:app"], environment()) as process:
        line = process.wait_for(r"DirectoryInUseError: (.*)$")[1]
        for way in ("is in use by the process", "--workers 1 --threads 8", "statsig-otel next to", "enabled=False"):
            assert way in line
        # The first worker holds the directory before it listens: the second may be told before that.
        wait_until_listening(process, port)
        assert exchange(("127.0.0.1", port), webhook("a")).status == 200


WORKER = """
import sys
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, {root!r})
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.plugin.services import Keeper, service

running = service(Path({directory!r}), {{"mine": Keeper()}}, listen=False)

@asynccontextmanager
async def lifespan(app):
    async with running:
        yield

app = Starlette(routes=[Mount("/", app=running.asgi_app())], lifespan=lifespan)
"""
