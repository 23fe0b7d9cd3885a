"""What reaches a service behind nginx, Caddy and HAProxy, and what clients get while it restarts."""

import json
import re
import signal
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3

from statsig_otel.plugin.record.record import uid
from tests.deploy.proxies import FILES, HEALTH_PATH, HOST, KINDS, PATH, Proxy, is_missing, running
from tests.e2e.processes import Process, signed, write_config
from tests.e2e.service_process import ServiceProcess
from tests.e2e.statsig_client import ENV, SECRET, change
from tests.e2e.test_socket_activation import listening, service
from tests.peers.ports import free_port
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.skipif(is_missing(name), reason=f"LOUD: {name} is missing"))
            for name in KINDS
        ],
    ),
]


def configured(folder: Path, port: int) -> Path:
    """A queued service; its records are lines in `changes.jsonl`."""
    exporters = {"file": {"path": str(folder / "changes.jsonl")}}
    return write_config(folder, exporters, queued=True, endpoint=f"127.0.0.1:{port}", health_path=HEALTH_PATH)


@contextmanager
def behind(name: str, folder: Path) -> Iterator[tuple[Proxy, ServiceProcess]]:
    """A service behind a proxy."""
    port = free_port()
    with ServiceProcess(configured(folder, port), env=ENV) as started, running(name, port, folder) as proxy:
        yield proxy, started


def post(pool: urllib3.HTTPSConnectionPool, body: bytes, *, path: str = PATH) -> urllib3.BaseHTTPResponse:
    headers = {"Host": HOST, **signed(body, secret=SECRET)}
    return pool.request("POST", path, body=body, headers=headers)


def with_exposures(size: int) -> bytes:
    """A webhook with one change and so many bytes of what is ignored."""
    exposure = {"eventName": "statsig::gate_exposure", "value": "x" * 1_000}
    body = json.dumps({"data": [change(size), *[exposure] * (size // 1_100)]})
    return body.encode()


def test_a_body_and_its_signature_arrive_as_they_were_sent(name: str, tmp_path: Path) -> None:
    """The signature covers each byte. Bodies have unusual spaces and escapes, and come with a length or in chunks."""
    odd = (
        b' {\r\n\t"data" : [ '
        + json.dumps(change(1)).encode()
        + b' ]\n,"\\u00e9\xc3\xa9" : "%2f /../ \x7f\\ud800" }\r\n\r\n'
    )
    with behind(name, tmp_path) as (proxy, _), proxy.pool() as pool:
        answer = post(pool, odd)
        assert (answer.status, answer.json()["accepted"]) == (200, 1)
        assert post(pool, odd.replace(b" [ ", b" [")).json()["duplicates"] == 1
        wrong = pool.request("POST", PATH, body=odd + b" ", headers={"Host": HOST, **signed(odd, secret=SECRET)})
        assert wrong.status == 401
        body = json.dumps({"data": [change(2)]}).encode()
        pieces = iter([body[:10], body[10:11], body[11:]])
        chunked = {"Host": HOST, **signed(body, secret=SECRET)}
        answer = pool.request("POST", PATH, body=pieces, headers=chunked, chunked=True)
        assert (answer.status, answer.json()["accepted"]) == (200, 1)
        code = b'{"data": {"event": "url_verification", "verification_code": "abc123"}}'
        assert pool.request("POST", PATH, body=code).json() == {"verification_code": "abc123"}
        assert pool.num_connections <= 2, "the connection of the client is kept, except after a refusal"


def test_bodies_up_to_the_limit_arrive_and_larger_ones_get_413(name: str, tmp_path: Path) -> None:
    with behind(name, tmp_path) as (proxy, _), proxy.pool() as pool:
        for size in (64 << 10, 1 << 20, 19 << 20):
            answer = post(pool, with_exposures(size))
            assert (answer.status, answer.json()["accepted"]) == (200, 1), size
        assert status_of(proxy, 21 << 20) == 413


def status_of(proxy: Proxy, size: int) -> int:
    """The status for a body of such a size, of which a client sends as much as is taken."""
    with tls(proxy) as client:
        lines = [f"{key}: {value}" for key, value in signed(b"", secret=SECRET).items()]
        head = [f"POST {PATH} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {size}", *lines, "", ""]
        client.sendall("\r\n".join(head).encode())
        with suppress(OSError):
            for _ in range(size >> 16):
                client.sendall(b" " * (1 << 16))
        return int(client.recv(4096).split()[1])


def tls(proxy: Proxy) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=proxy.authority)
    return context.wrap_socket(socket.create_connection(("127.0.0.1", proxy.port), 60), server_hostname=HOST)


def test_only_the_webhook_and_the_health_check_are_passed(name: str, tmp_path: Path) -> None:
    with behind(name, tmp_path) as (proxy, started), proxy.pool() as pool:
        health = pool.request("GET", HEALTH_PATH)
        assert (health.status, health.json()) == (200, {"status": "ready"})
        for number, path in enumerate((PATH, f"{PATH}/")):  # as the service takes it
            assert post(pool, json.dumps({"data": [change(number)]}).encode(), path=path).status == 200, path
        others = (
            "/",
            "/metrics",
            "/debug/statsigz",
            f"{PATH}x",
            f"{PATH}//",
            f"{PATH}/x",
            f"/x{PATH}",
            f"{HEALTH_PATH}/../metrics",
        )
        for path in others:
            assert pool.request("POST", path, body=b"{}").status in {400, 404}, path
        started.process.send_signal(signal.SIGTERM)
        started.process.wait(30)
        assert pool.request("GET", HEALTH_PATH).status == KINDS[name].gone


def test_each_request_is_logged(name: str, tmp_path: Path) -> None:
    """The service neither sees what a proxy refuses nor logs a client's address, so only a proxy's log has them."""
    with behind(name, tmp_path) as (proxy, _), proxy.pool() as pool:
        assert post(pool, json.dumps({"data": [change(1)]}).encode()).status == 200
        assert pool.request("POST", PATH + "x", body=b"{}").status == 404
        for path, status in ((PATH, 200), (PATH + "x", 404)):
            line = proxy.process.wait_for(rf"^.*127\.0\.0\.1.*{path}[ \"].*$").group()
            assert re.search(rf"\b{status}\b", line), line


class Service(BaseHTTPRequestHandler):
    """Takes as many requests from a connection as come."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Counting(ThreadingHTTPServer):
    """Counts the connections to it."""

    connections = 0

    def get_request(self) -> tuple[socket.socket, Any]:
        self.connections += 1
        return super().get_request()


def test_a_connection_to_the_service_is_for_one_webhook(name: str, tmp_path: Path) -> None:
    """In nginx also with an upstream block, whose connections newer ones keep by default."""
    text = (FILES / KINDS[name].file).read_text()
    if name == "nginx":
        text = text.replace("proxy_pass http://127.0.0.1:8080;", "proxy_pass http://both;")
        text += "upstream both { server 127.0.0.1:8080; }\n"
    with Counting(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with running(name, server.server_port, tmp_path, text=text) as proxy, proxy.pool() as pool:
            for _ in range(5):
                assert post(pool, b"{}").status == 200
        server.shutdown()
        assert server.connections == 5


def test_slow_clients_do_not_hold_up_others(name: str, tmp_path: Path) -> None:
    """One sends a byte now and then, and one nothing more; the first gets its 200 in the end."""
    body = json.dumps({"data": [change(1)]}).encode()
    lines = [f"{key}: {value}" for key, value in signed(body, secret=SECRET).items()]
    head = [f"POST {PATH} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(body)}", *lines, "", ""]
    with behind(name, tmp_path) as (proxy, _), tls(proxy) as slow, tls(proxy) as stuck, proxy.pool() as pool:
        stuck.sendall("\r\n".join(head).encode())
        slow.sendall("\r\n".join(head).encode())
        for number in range(10):
            slow.sendall(body[number : number + 1])
            assert post(pool, json.dumps({"data": [change(10 + number)]}).encode()).status == 200
        slow.sendall(body[10:])
        assert slow.recv(4096).split()[1] == b"200"


def test_the_proxy_waits_for_a_slow_answer(name: str, tmp_path: Path) -> None:
    """A webhook may wait 10 s for its commit, and a few more for a synchronous exporter. The service sleeps as long."""
    with behind(name, tmp_path) as (proxy, started), proxy.pool() as pool:
        assert post(pool, json.dumps({"data": [change(1)]}).encode()).status == 200
        started.process.send_signal(signal.SIGSTOP)
        waking = threading.Timer(18, started.process.send_signal, [signal.SIGCONT])
        waking.start()
        assert post(pool, json.dumps({"data": [change(2)]}).encode()).status == 200
        waking.join()


class Sender(threading.Thread):
    """Posts one change after the other through a proxy, and keeps what became of each."""

    def __init__(self, proxy: Proxy, number: int) -> None:
        super().__init__()
        self._proxy = proxy
        self._number = number * 1_000_000
        self.answers: Counter[int | str] = Counter()
        self.acknowledged: list[str] = []
        self.is_stopped = False

    def run(self) -> None:
        with self._proxy.pool(size=1) as pool:
            while not self.is_stopped:
                self._number += 1
                one = change(self._number)
                try:
                    status = post(pool, json.dumps({"data": [one]}).encode()).status
                except urllib3.exceptions.HTTPError as error:
                    self.answers[repr(error)] += 1
                    continue
                self.answers[status] += 1
                if status == 200:
                    self.acknowledged.append(uid(one))
                time.sleep(0.005)


@contextmanager
def sending(proxy: Proxy) -> Iterator[list[Sender]]:
    senders = [Sender(proxy, number) for number in range(1, 5)]
    for sender in senders:
        sender.start()
    try:
        yield senders
    finally:
        end(senders)


def end(senders: Sequence[Sender]) -> None:
    for sender in senders:
        sender.is_stopped = True
    for sender in senders:
        sender.join()


def wait_for_answers(senders: Sequence[Sender], count: int = 10) -> None:
    """Until each has had so many more."""
    goals = [(sender, sender.answers[200] + count) for sender in senders]
    wait_until(lambda: all(sender.answers[200] >= goal for sender, goal in goals), "answers", within=60)


def judge(senders: Sequence[Sender], lines: str) -> Mapping[int | str, int]:
    missing = [one for sender in senders for one in sender.acknowledged if one not in lines]
    assert missing == []
    return sum((sender.answers for sender in senders), Counter())


def test_webhooks_wait_for_a_restart_behind_haproxy(name: str, tmp_path: Path) -> None:
    """The service listens by itself. The others answer 502 meanwhile."""
    port = free_port()
    config = configured(tmp_path, port)
    with running(name, port, tmp_path) as proxy, ServiceProcess(config, env=ENV) as first, sending(proxy) as senders:
        wait_for_answers(senders)
        first.process.send_signal(signal.SIGTERM)
        first.process.wait(30)
        with ServiceProcess(config, env=ENV):
            wait_for_answers(senders)
            end(senders)
    answers = judge(senders, (tmp_path / "changes.jsonl").read_text())
    assert set(answers) == {200} if KINDS[name].waits else {200, 502}, answers


def test_behind_a_socket_of_the_supervisor_a_restart_refuses_nobody(name: str, tmp_path: Path) -> None:
    with listening() as sock:
        config = configured(tmp_path, sock.getsockname()[1])
        with running(name, sock.getsockname()[1], tmp_path) as proxy:
            runs: list[Process] = []
            with sending(proxy) as senders:
                for _ in range(4):
                    with service(config, {"statsig": sock}) as process:
                        runs.append(process)
                        wait_for_answers(senders)
                        if len(runs) == 4:
                            end(senders)
                        assert process.stop() == 0, process.output
    assert set(judge(senders, (tmp_path / "changes.jsonl").read_text())) == {200}
