"""examples/grafana: each change is posted once, across a failure, a refusal, a restart and a kill in the middle."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from examples.grafana.annotations import Annotations
from statsig_otel.exporters import Blocked, Delivered, Outcome, Rejected, RetryLater
from statsig_otel.plugin import Destination, RetryOnFailureSettings
from tests.e2e.processes import Process, clean_environment, post, signed
from tests.peers.http_server import LocalServer
from tests.peers.ports import free_port
from tests.plugin.http_client import exchange
from tests.plugin.services import service, signed_request
from tests.test_exporter_example import changed, records
from tests.waiting import wait_until


class Grafana:
    """A Grafana that takes one annotation at a time.

    Attributes:
        faults: What it answers to each text, one after the other, before it takes it.
        taken: The annotations that it took.
        before_answering: Is called with the text of each annotation that it took.
    """

    def __init__(self, faults: dict[str, list[int]]) -> None:
        self.faults = faults
        self.taken: list[dict[str, Any]] = []
        self.url = ""
        self.before_answering: Callable[[str], object] = lambda _text: None
        self.tokens: set[str] = set()

    def answer(self, annotation: dict[str, Any]) -> int:
        if faults := self.faults.get(annotation["text"]):
            return faults[0] if faults[0] == 400 else faults.pop(0)
        self.taken.append(annotation)
        self.before_answering(annotation["text"])
        return 200


@contextmanager
def grafana(**faults: list[int]) -> Iterator[Grafana]:
    there = Grafana({f"{name} updated": statuses for name, statuses in faults.items()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            there.tokens.add(str(self.headers["Authorization"]))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(there.answer(body) if self.path == "/api/annotations" else 404)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

    with LocalServer(Handler) as server:
        there.url = server.origin
        yield there


def changes(*names: str) -> bytes:
    metadata = {"type": "Gate", "action": "updated", "environments": "production"}
    events = [
        {"eventName": "statsig::config_change", "timestamp": 1739400185198 + at, "metadata": {**metadata, "name": name}}
        for at, name in enumerate(names)
    ]
    return json.dumps({"data": events}).encode()


def test_each_change_is_posted_once_across_a_503_and_a_400_in_the_middle(tmp_path: Path) -> None:
    names = [f"flag{number:02}" for number in range(20)]
    with grafana(flag05=[503, 503], flag11=[400], flag12=[500]) as there:
        quick = RetryOnFailureSettings(initial_interval=0.05, max_interval=0.1)
        exporter = Destination(Annotations(there.url, "glsa_token"), retry_on_failure=quick)
        with service(tmp_path, {"grafana": exporter}) as running:
            port = int(running.urls["statsig"].split(":")[2].partition("/")[0])
            assert exchange(("127.0.0.1", port), signed_request(changes(*names))).status == 200
            wait_until(lambda: len(there.taken) == 19, "all but the one that is refused")
            assert running.shutdown(), "nothing waits any more"
    assert sorted(one["text"] for one in there.taken) == [f"{name} updated" for name in names if name != "flag11"]
    assert there.taken[0] == {
        "time": 1739400185198, "text": "flag00 updated", "tags": ["statsig", "flag00", "production"]
    }  # fmt: skip
    assert there.tokens == {"Bearer glsa_token"}


def test_each_change_is_posted_once_across_a_restart_in_the_middle(tmp_path: Path) -> None:
    go_on = threading.Event()

    class Stopped(Annotations):
        def shutdown(self) -> None:
            super().shutdown()
            go_on.set()

    names = [f"flag{number:02}" for number in range(20)]
    with grafana() as there:
        there.before_answering = lambda text: text != "flag05 updated" or go_on.wait(60)
        with service(tmp_path, {"grafana": Stopped(there.url, "token")}) as running:
            port = int(running.urls["statsig"].split(":")[2].partition("/")[0])
            assert exchange(("127.0.0.1", port), signed_request(changes(*names))).status == 200
            wait_until(lambda: len(there.taken) == 6)
            assert not running.shutdown(drain=0)
        assert len(there.taken) == 6
        with service(tmp_path, {"grafana": Stopped(there.url, "token")}) as running:
            wait_until(lambda: len(there.taken) >= 20)
            assert running.shutdown(), "nothing waits any more"
    assert [one["text"] for one in there.taken] == [f"{name} updated" for name in names]


@pytest.mark.slow
def test_a_kill_repeats_the_annotation_that_is_under_way(tmp_path: Path) -> None:
    """And nothing else, once the progress before it is on disk. The commands are those of the README."""
    names = [f"flag{number:02}" for number in range(30)]
    killed_at = (5, 15, 16)
    example = Path(__file__).parents[1] / "examples" / "grafana"
    run, send = re.findall(r"```sh\n(.*?)```", (example / "README.md").read_text(), re.DOTALL)
    port = str(free_port())
    (tmp_path / "annotations.py").write_text((example / "annotations.py").read_text().replace("8080", port))
    environment = clean_environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def waiting() -> int:
        with closing(sqlite3.connect(f"file:{tmp_path}/statsig-queue/queue.db?mode=ro", uri=True)) as connection:
            (count,) = connection.execute("SELECT waiting FROM exporters WHERE name = 'grafana'").fetchone()
        return int(count)

    def killed_while_posting(at: int) -> None:
        there.before_answering = lambda text: text != f"{names[at]} updated" or go_on.wait(120)
        with Process(program, environment) as running:
            url = running.wait_for(r"^Webhook URL: (\S+)$")[1]
            if not there.taken:
                body = changes(*names)
                assert post(url, body, signed(body)).status == 200
            wait_until(lambda: there.taken and there.taken[-1]["text"] == f"{names[at]} updated")
            wait_until(lambda: waiting() == len(names) - at, "the progress on disk")
            os.kill(running.pid, signal.SIGKILL)

    with grafana() as there:
        go_on = threading.Event()
        run = run.replace("https://grafana.example.com", there.url).replace("\npython ", "\nexec python ")
        program = ["sh", "-c", f"cd {tmp_path}\n{run}"]
        for at in killed_at:
            killed_while_posting(at)
        there.before_answering = lambda _text: None
        with Process(program, environment) as running:
            running.wait_for(r"^Webhook URL: ")
            wait_until(lambda: len(there.taken) >= len(names) + len(killed_at))
            subprocess.run(["sh", "-c", send.replace("8080", port)], env=environment, check=True)
            wait_until(lambda: len(there.taken) > len(names) + len(killed_at), "the change that the README sends")
            assert running.stop() == 0
        go_on.set()
    posted = [one["text"].removesuffix(" updated") for one in there.taken]
    assert posted[:-1] == sorted([*names, *(names[at] for at in killed_at)])


def test_one_record_of_a_batch_is_posted_at_a_time() -> None:
    """Each has the whole timeout, and what is posted is reported at once."""
    with grafana() as there:
        exporter = Annotations(there.url, "token")
        assert exporter.send(records(changed("first"), changed("second")), 2, 30) == Delivered(only=[0])
        assert exporter.send(records(changed("second")), 1, 30) == Delivered()
    assert [one["text"] for one in there.taken] == ["first updated", "second updated"]
    exporter.shutdown()


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, Rejected("400 {}")),
        (401, Blocked("401 {}")),
        (429, RetryLater("429 {}")),
        (500, RetryLater("500 {}", may_be_data=True)),
        (503, RetryLater("503 {}")),
    ],
)
def test_the_outcome_of_each_answer(status: int, outcome: Outcome) -> None:
    with grafana(first=[status]) as there:
        exporter = Annotations(there.url, "token")
        assert exporter.send(records(changed("first")), 1, 30) == outcome
    exporter.shutdown()
