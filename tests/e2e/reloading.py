"""Load on a service that is reloaded, and the command."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3

from statsig_otel.plugin.record.record import uid
from tests.e2e.processes import signed
from tests.e2e.service_process import ServiceProcess, run_to_end
from tests.e2e.statsig_client import ENV, SECRET, change
from tests.waiting import wait_until

OTHER_SECRET = "webhook-ffffffffffffffffffffffffffffffff"


http = urllib3.PoolManager(retries=False, timeout=20, maxsize=8)


class Senders:
    """Post one change after the other, each signed with the secret of the moment, and count the answers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.secret = SECRET
        self.statuses: Counter[int] = Counter()
        self.acknowledged: list[str] = []
        self._stopping = False
        self._lock = threading.Lock()
        self._numbers = iter(range(1_000_000))

    def run(self) -> None:
        while not self._stopping:
            with self._lock:
                one = change(next(self._numbers))
            body = json.dumps({"data": [one]}).encode()
            status = http.request("POST", self.url, body=body, headers=signed(body, secret=self.secret)).status
            with self._lock:
                self.statuses[status] += 1
                if status == 200:
                    self.acknowledged.append(uid(one))

    @contextmanager
    def sending(self, threads: int = 4) -> Iterator[None]:
        running = [threading.Thread(target=self.run) for _ in range(threads)]
        for thread in running:
            thread.start()
        try:
            yield
        finally:
            self._stopping = True
            for thread in running:
                thread.join()

    def wait_for_more(self, count: int = 20) -> None:
        """So many more answers, so that what was done in between was done under load."""
        goal = self.statuses.total() + count
        wait_until(lambda: self.statuses.total() >= goal, "answers go on")


def reload(service: ServiceProcess, folder: Path) -> str:
    """By command; what it says."""
    done = run_to_end("reload", "--directory", str(folder / "queue"), env=ENV)
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_taken(url: str, secret: str) -> bool:
    """Whether a webhook with this secret is accepted."""
    return status_with(url, secret) == 200


def status_with(url: str, secret: str) -> int:
    body = b'{"data": []}'
    return http.request("POST", url, body=body, headers=signed(body, secret=secret)).status
