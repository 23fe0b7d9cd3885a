"""A supervisor that holds the listening sockets, and passes them to each process of the service."""

import http.client
import json
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from statsig_otel.plugin.record.record import uid
from tests.e2e.processes import Process, signed, write_config
from tests.e2e.service_process import environment
from tests.e2e.statsig_client import ENV, SECRET, change, post
from tests.waiting import wait_until

PASS = """
import os, sys
names, descriptors, program = sys.argv[1], [int(word) for word in sys.argv[2].split(",")], sys.argv[3:]
aside = [os.dup2(descriptor, place) for place, descriptor in enumerate(descriptors, 100)]
for place, descriptor in enumerate(aside, 3):
    os.dup2(descriptor, place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(aside)), LISTEN_FDNAMES=names)
os.execv(program[0], program)
"""
"""What systemd does between its fork and the program."""

PATH = "/api/v1/data/events/receiver/statsig"


def service(config: Path, sockets: Mapping[str, socket.socket], *options: str) -> Process:
    """A service with sockets that this process listens on, by name."""
    descriptors = [one.fileno() for one in sockets.values()]
    program = [sys.executable, "-m", "statsig_otel", "run", "--config", str(config), *options]
    passing = [sys.executable, "-c", PASS, ":".join(sockets), ",".join(map(str, descriptors)), *program]
    return Process(passing, environment(ENV), pass_fds=descriptors)


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def url_of(sock: socket.socket, path: str = PATH) -> str:
    return "http://{}:{}{}".format(*sock.getsockname(), path)


def test_sockets_go_to_the_receivers_that_they_are_named_after(tmp_path: Path) -> None:
    """One address is taken, and the other does not exist: only the sockets can be listened on."""
    config = tmp_path / "statsig-otel.yaml"
    with listening() as first, listening() as second, listening() as taken:
        endpoint = "{}:{}".format(*taken.getsockname())
        config.write_text(
            f"""
            receivers:
              statsig/eu: {{endpoint: "{endpoint}", signing_secrets: ["{SECRET}"]}}
              statsig/us: {{endpoint: "192.0.2.1:1", signing_secrets: ["{SECRET}"]}}
              statsig/us2: {{endpoint: "192.0.2.1:1", signing_secrets: ["{SECRET}"], path: /us2}}
            exporters: {{debug: {{sending_queue: {{enabled: false}}}}}}
            service: {{pipelines: {{logs: {{receivers: [statsig/eu, statsig/us, statsig/us2], exporters: [debug]}}}}}}
            """
        )
        with service(config, {"statsig/us2": first, "statsig/eu": second}) as running:
            running.wait_for(" listens$")
            for url in (url_of(second), url_of(first), url_of(first, "/us2")):
                running.wait_for(f"^Webhook URL: {url}$")
                assert post(url, change(1)).status == 200
            assert running.stop() == 0


class Sender:
    """Posts one change after the other, each over a connection of its own, and keeps what became of each."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self._address = urlsplit(url_of(sock)).netloc
        self._number = number * 1_000_000
        self.answers: Counter[int | str] = Counter()
        self.acknowledged: list[str] = []
        self.is_stopped = False

    def run(self) -> None:
        while not self.is_stopped:
            self._number += 1
            one = change(self._number)
            body = json.dumps({"data": [one]}).encode()
            try:
                connection = http.client.HTTPConnection(self._address, timeout=60)
                connection.request("POST", PATH, body, signed(body, secret=SECRET))
                status = connection.getresponse().status
                connection.close()
            except OSError as error:
                self.answers[repr(error)] += 1
                continue
            self.answers[status] += 1
            if status == 200:
                self.acknowledged.append(uid(one))


@contextmanager
def sending(senders: Sequence[Sender]) -> Iterator[None]:
    threads = [threading.Thread(target=sender.run) for sender in senders]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        try:
            yield
        finally:
            for sender in senders:
                sender.is_stopped = True


def wait_for_answers(senders: Sequence[Sender]) -> None:
    """Until each has had ten more."""
    goals = [(sender, sender.answers.total() + 10) for sender in senders]
    wait_until(lambda: all(sender.answers.total() >= goal for sender, goal in goals), "answers", within=60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_webhook_is_refused_or_reset_while_the_service_restarts(tmp_path: Path) -> None:
    lines = tmp_path / "changes.jsonl"
    config = write_config(tmp_path, {"file": {"path": str(lines)}}, queued=True, endpoint="192.0.2.1:1")
    with listening() as sock, ExitStack() as last:
        senders = [Sender(sock, number) for number in range(4)]
        with sending(senders):
            for _ in range(20):
                with service(config, {"whatever": sock}, "--listen", "192.0.2.1:2") as running:
                    running.wait_for("--listen has no effect on receivers whose socket the supervisor passes")
                    wait_for_answers(senders)
                    assert running.stop() == 0, running.output
            last.enter_context(service(config, {"whatever": sock}))
            wait_for_answers(senders)
    answers = sum((sender.answers for sender in senders), Counter())
    assert set(answers) == {200}, answers
    delivered = lines.read_text()
    missing = [one for sender in senders for one in sender.acknowledged if one not in delivered]
    assert missing == []
