"""What Statsig and an operator do to a service in the tests of its queue, and what is looked at afterwards."""

import json
import random
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import urllib3
from click.testing import CliRunner

from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.webhook.signature import sign
from tests.peers.otlp_servers import GrpcSink, Received

SECRET = "webhook-0123456789abcdef0123456789abcdef"
ENV = {"STATSIG_SIGNING_SECRET": SECRET}
RETRY = {"initial_interval": "50ms", "max_interval": "200ms"}

http = urllib3.PoolManager(retries=False, timeout=20, maxsize=8)


def change(number: int, **metadata: object) -> dict[str, object]:
    metadata = {"type": "Gate", "name": f"gate_{number}", "action": "updated", **metadata}
    return {"eventName": "statsig::config_change", "timestamp": 1739400185198 + number, "metadata": metadata}


def post(
    url: str, *changes: dict[str, object], now_ms: int | None = None, secret: str = SECRET
) -> urllib3.BaseHTTPResponse:
    """Send one webhook; signed at another time than now where one is given."""
    body = json.dumps({"data": changes}).encode()
    headers = sign(body, secret=secret, timestamp_ms=time.time_ns() // 1_000_000 if now_ms is None else now_ms)
    return http.request("POST", url, body=body, headers=headers)


def grpc_exporter(sink: GrpcSink, **keys: object) -> dict[str, object]:
    return {"endpoint": sink.address, "tls": {"insecure": True}, "retry_on_failure": RETRY, **keys}


def uids(requests: list[Received]) -> list[str]:
    """The uids of all records that a sink got, in order."""
    return [
        attribute.value.string_value
        for request in list(requests)
        for record in request.records
        for attribute in record.attributes
        if attribute.key == "log.record.uid"
    ]


@contextmanager
def dead_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def waiting(folder: Path) -> dict[str, int]:
    """How many records wait for each exporter, as the database says."""
    connection = sqlite3.connect(f"file:{folder / 'queue' / 'queue.db'}?mode=ro", uri=True)
    try:
        return dict(connection.execute("SELECT name, waiting FROM exporters"))
    finally:
        connection.close()


def give(folder: Path, *arguments: str) -> str:
    """What a command about the queue prints, in this process: that is quicker. A blocked exporter is exit code 3."""
    done = CliRunner(env=ENV).invoke(main, [*arguments, "--directory", str(folder / "queue")])
    assert done.exit_code in (0, 3), done.output
    assert (done.exit_code == 3) == ('"state": "blocked"' in done.output), done.output
    return done.stdout


@dataclass
class Client:
    """Posts changes in a loop, whatever becomes of the service, and remembers what was acknowledged."""

    seed: int
    url: str = ""
    acknowledged: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    stopped: bool = False
    sent: int = 0

    def run(self) -> None:
        chance = random.Random(self.seed)
        while not self.stopped:
            if not self.url:
                time.sleep(0.01)
                continue
            changes = [change(self.seed * 1_000_000 + self.sent + index) for index in range(chance.randint(1, 5))]
            self.sent += len(changes)
            try:
                answer = post(self.url, *changes)
            except urllib3.exceptions.HTTPError:
                time.sleep(0.01)
                continue
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.acknowledged.update(map(uid, changes))


@contextmanager
def load(clients: list[Client]) -> Iterator[None]:
    """Let clients post for a while."""
    with ThreadPoolExecutor(len(clients)) as threads:
        running = [threads.submit(client.run) for client in clients]
        try:
            yield
        finally:
            for client in clients:
                client.stopped = True
    for one in running:
        one.result()
