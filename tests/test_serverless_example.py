"""examples/serverless: run as it stands, and behind a real HTTP server that plays the platform."""

import base64
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER
from tests.peers.http_server import LocalServer
from tests.plugin.adapters import CHANGE, EXPOSURE, SECRET, VERIFICATION, body_of, post, signed
from tests.plugin.http_client import Address, exchange, request

FILE = Path(__file__).parents[1] / "examples" / "serverless" / "handler.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("serverless_handler", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Queue:
    def __init__(self, failure: Exception | None = None) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self._failure = failure

    def put(self, kind: str, message: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        self.messages.append((kind, message))


@contextmanager
def platform(example: Any, queue: Queue, *, base64_bodies: bool = False) -> Iterator[Address]:
    """Turns requests into events and answers into responses, as function URLs do."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers: dict[str, str] = {}
            for name, value in self.headers.items():
                key = name.lower()
                headers[key] = f"{headers[key]},{value}" if key in headers else value
            event = {
                "requestContext": {"http": {"method": self.command}},
                "headers": headers,
                "body": base64.b64encode(body).decode() if base64_bodies else body.decode(),
                "isBase64Encoded": base64_bodies,
            }
            answer = example.handle(event, secrets=[SECRET], put=queue.put, now_ns=time.time_ns())
            self.send_response(answer["statusCode"])
            for name, value in {**answer["headers"], "Content-Length": str(len(answer["body"]))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer["body"].encode())

        do_GET = do_POST  # noqa: N815 - the base class's name

    with LocalServer(Handler) as server:
        yield "127.0.0.1", server.port


@pytest.mark.parametrize("base64_bodies", [False, True])
def test_changes_reach_the_queue_before_the_answer(example: Any, base64_bodies: bool) -> None:
    queue = Queue()
    body = body_of(CHANGE, EXPOSURE, {**CHANGE, "timestamp": None})
    with platform(example, queue, base64_bodies=base64_bodies) as address:
        response = post(address, body)
    assert (response.status, response.json) == (200, {"accepted": 1, "duplicates": 0, "ignored": 1, "invalid": 1})
    (kind, record), (other, dead_letter) = queue.messages
    assert (kind, other) == ("record", "dead-letter")
    logs = ExportLogsServiceRequest.FromString(record).resource_logs[0].scope_logs[0].log_records
    assert [log.body.string_value for log in logs] == ["layout_v2 updated"]
    assert json.loads(dead_letter)["timestamp"] is None


def test_what_is_not_statsigs_never_reaches_it(example: Any, caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue()
    body = body_of(CHANGE)
    twice = {**signed(body), SIGNATURE_HEADER.lower(): signed(body)[SIGNATURE_HEADER]}
    with platform(example, queue) as address:
        for headers in ({}, twice, signed(body, secret="webhook-another"), signed(body, at_ms=1_700_000_000_000)):
            assert post(address, body, headers).status == 401
        assert caplog.text.count("statsig: answered 401 (") == 4
        assert exchange(address, request(method="GET")).status == 405
    assert queue.messages == []


@pytest.mark.parametrize("headers", [{}, signed(VERIFICATION)])
def test_the_url_is_verified(example: Any, headers: dict[str, str]) -> None:
    with platform(example, Queue()) as address:
        response = post(address, VERIFICATION, headers)
    assert (response.status, response.json) == (200, {"verification_code": "abc123"})


def test_a_body_that_is_not_understood_is_kept(example: Any) -> None:
    queue = Queue()
    with platform(example, queue) as address:
        assert post(address, b'{"data": 1}').status == 400
    assert queue.messages == [("dead-letter", b'{"data": 1}')]


@pytest.mark.parametrize("body", [body_of(CHANGE), b'{"data": 1}'])
def test_a_queue_that_does_not_take_it_is_503(example: Any, body: bytes) -> None:
    with platform(example, Queue(OSError("full"))) as address:
        response = post(address, body)
    assert response.status == 503
    assert response.headers["retry-after"] == "10"


def test_it_runs_as_it_stands() -> None:
    ran = subprocess.run([sys.executable, str(FILE)], capture_output=True, text=True, check=True, timeout=60)
    queued, answered, returned = ran.stdout.splitlines()
    assert queued.startswith("queued: record ")
    assert answered.startswith("answered: 200 accepted")
    assert "'statusCode': 200" in returned
    assert '"accepted": 1' in returned
