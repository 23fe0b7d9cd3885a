"""A service in the worker of a real gunicorn: its start, its end, and reloads under load."""

import json
import os
import signal
import socket
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Self

import pytest

from statsig_otel.plugin import DEFAULT_PATH
from tests.e2e.processes import Process, wait_until_listening
from tests.e2e.service_process import environment
from tests.peers.ports import free_port
from tests.plugin.http_client import Address, read_response, request
from tests.plugin.services import webhook
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
LIMIT = 60.0

PROGRAM = """
import sys
import time
from pathlib import Path

sys.path.insert(0, {root!r})
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from statsig_otel.exporters import FileSettings
from tests.plugin.services import service

running = service(
    Path({directory!r}), {{"file": FileSettings(path=Path({kept!r}))}}, listen=False, wait_for_directory=True
)

app = Flask(__name__)

@app.get("/page")
def page():
    return "here"

@app.get("/slow/<int:number>")
def slow(number):
    Path(f"begun {{number}}").touch()
    while not Path(f"ended {{number}}").exists():
        time.sleep(0.05)
    return "slow"

app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {{"/statsig": running.wsgi_app()}})
"""

HOOKS = """
workers = 1
threads = 8

def post_worker_init(worker):
    import program
    program.running.start()

def worker_exit(server, worker):
    import program
    program.running.shutdown({shutdown})
"""


def gunicorn(tmp_path: Path, port: int, *, preload: bool = False, graceful: int = 30, shutdown: int = 10) -> Process:
    directory, kept = str(tmp_path / "queue"), str(tmp_path / "kept.jsonl")
    (tmp_path / "program.py").write_text(PROGRAM.format(root=str(ROOT), directory=directory, kept=kept))
    (tmp_path / "gunicorn.conf.py").write_text(
        f"preload_app = {preload}\ngraceful_timeout = {graceful}\n{HOOKS.format(shutdown=shutdown)}"
    )
    where = ["--bind", f"127.0.0.1:{port}", "--chdir", str(tmp_path)]
    command = [sys.executable, "-m", "gunicorn", "--config", str(tmp_path / "gunicorn.conf.py"), *where, "program:app"]
    return Process(command, environment())


def delivered(tmp_path: Path) -> list[str]:
    """The flags of the records that the exporter has written."""
    lines = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    return [
        record["body"]["stringValue"].removesuffix(" updated")
        for line in lines
        for resource in line["resourceLogs"]
        for scope in resource["scopeLogs"]
        for record in scope["logRecords"]
    ]


def asked(address: Address, data: bytes) -> str:
    """The status of the answer to a request, or why there was none."""
    try:
        with socket.create_connection(address, timeout=LIMIT) as connection:
            connection.sendall(data)
            return str(read_response(connection).status)
    except (OSError, IndexError) as error:
        return repr(error)


class Load:
    """Posts webhooks and asks for pages until it is told to stop, or its block ends, and counts the answers."""

    def __init__(self, address: Address) -> None:
        self.acknowledged: list[str] = []
        self.webhooks: Counter[str] = Counter()
        self.pages: Counter[str] = Counter()
        self._address = address
        self._numbers = count()
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def post(self) -> None:
        while not self._stopping.is_set():
            name = f"flag {next(self._numbers)}"
            answer = asked(self._address, webhook(name, f"/statsig{DEFAULT_PATH}"))
            self.webhooks[answer] += 1
            if answer == "200":
                self.acknowledged.append(name)

    def browse(self) -> None:
        while not self._stopping.wait(0.02):
            self.pages[asked(self._address, request(path="/page", method="GET"))] += 1

    def wait_for_more(self) -> None:
        before = self.webhooks.total()
        wait_until(lambda: self.webhooks.total() > before + 20, within=LIMIT)

    def stop(self) -> None:
        self._stopping.set()


@pytest.mark.parametrize("preload", [False, True])
def test_a_reload_under_load_refuses_nothing_and_loses_nothing(tmp_path: Path, *, preload: bool) -> None:
    """Also with a slow request in flight, for which the old worker keeps the directory. Webhooks wait 10 s at most."""
    port = free_port()
    address = ("127.0.0.1", port)
    with gunicorn(tmp_path, port, preload=preload) as process, ThreadPoolExecutor(4) as pool, Load(address) as load:
        wait_until_listening(process, port)
        running = [pool.submit(work) for work in (load.post, load.post, load.browse)]
        for reload in (1, 2):
            load.wait_for_more()
            slow = pool.submit(asked, address, request(path=f"/slow/{reload}", method="GET"))
            wait_until((tmp_path / f"begun {reload}").exists)
            os.kill(process.pid, signal.SIGHUP)
            process.wait_for(rf"(?s)(Waiting for the queue's directory.*){{{reload}}}")
            (tmp_path / f"ended {reload}").touch()
            process.wait_for(rf"(?s)(Worker exiting.*){{{reload}}}")
            assert slow.result(LIMIT) == "200"
        load.wait_for_more()
        load.stop()
        for one in running:
            one.result(LIMIT)
        assert set(load.webhooks) == {"200"}
        assert set(load.pages) == {"200"}
        assert process.stop() == 0
    assert set(load.acknowledged) <= set(delivered(tmp_path))
    assert len(delivered(tmp_path)) == len(set(delivered(tmp_path)))


def test_a_half_sent_body_holds_the_old_worker_no_longer_than_both_limits(tmp_path: Path) -> None:
    """As docs/embedding.md has it, with shorter times. By default webhooks would be refused after 10 s."""
    port = free_port()
    address = ("127.0.0.1", port)
    started = gunicorn(tmp_path, port, graceful=5, shutdown=2)  # the new worker has to begin within that
    with started as process, ThreadPoolExecutor(2) as pool, Load(address) as load:
        wait_until_listening(process, port)
        running = [pool.submit(load.post) for _ in range(2)]
        load.wait_for_more()
        with socket.create_connection(address, timeout=LIMIT) as half_sent:
            half_sent.sendall(webhook("half", f"/statsig{DEFAULT_PATH}")[:-3])
            load.wait_for_more()  # in the meantime the worker has begun to read it
            os.kill(process.pid, signal.SIGHUP)
            process.wait_for("Waiting for the queue's directory")
            process.wait_for("Worker exiting")
            load.wait_for_more()
        load.stop()
        for one in running:
            one.result(LIMIT)
        assert set(load.webhooks) == {"200"}
        assert process.stop() == 0
    assert set(load.acknowledged) <= set(delivered(tmp_path))
