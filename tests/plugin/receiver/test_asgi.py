"""What only the ASGI adapter has: large bodies finished in a thread, a close with grace, connections that are kept.

The contract's table is in test_contract.py.
"""

import asyncio
import gc
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import falcon.asgi
import falcon.testing
import pytest

from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError
from statsig_otel.plugin.receiver.asgi import _TINY_BODY, StatsigReceiver, create_app
from statsig_otel.plugin.receiver.bodies import SMALL_BODY
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.record.mapper import Mapped, Mapper
from statsig_otel.plugin.webhook.body import ParsedBody
from statsig_otel.plugin.webhook.lenient_json import _Numbers
from statsig_otel.plugin.webhook.signature import Verification, Verifier
from tests.plugin.adapters import (
    ADAPTERS,
    CHANGE,
    SECRET,
    Adapter,
    Sink,
    assert_refused,
    body_of,
    post,
    signed,
)
from tests.plugin.http_client import Address, Response, ServerThread, connect, read_response, request
from tests.waiting import wait_until

ASGI = ADAPTERS[0]
(BARE,) = (adapter for adapter in ADAPTERS if adapter.name == "falcon.asgi")

TINY = b'{"eventName":"statsig::config_change","timestamp":1,"metadata":{"name":"a","type":"b"}}'


def finishing() -> bool:
    """Whether a receiver of this process has begun to finish a large body."""
    return any(thread.name.startswith("statsig-otel-large-bodies") for thread in threading.enumerate())


@pytest.mark.parametrize("is_mounted", [False, True])
def test_falcon_s_test_client_can_send_a_webhook(*, is_mounted: bool) -> None:
    sink, body = Sink(), body_of(CHANGE)
    receiver = StatsigReceiver(Intake(verifier=Verifier([SECRET])), sink)
    app: Any = create_app({"/hook": receiver})
    if not is_mounted:
        app = falcon.asgi.App()
        app.add_route("/hook", receiver)
    client = falcon.testing.TestClient(app)
    assert client.simulate_post("/hook", body=body, headers=signed(body)).json["accepted"] == 1
    assert client.simulate_post("/hook", body=body, headers=signed(body, secret="another")).status_code == 401
    assert (
        client.simulate_post("/hook", body=body, headers={**signed(body), "Content-Encoding": "br"}).status_code == 415
    )


def test_headers_may_be_any_iterable_of_pairs() -> None:
    """Below a Falcon application too, which reads each of them once."""
    body = body_of(CHANGE)
    forms: dict[str, Callable[[list[tuple[bytes, bytes]]], Any]] = {
        "lists": lambda pairs: [list(pair) for pair in pairs],
        "an iterator of pairs": iter,
        "a list of iterators": lambda pairs: [iter(pair) for pair in pairs],
        "an iterator of iterators": lambda pairs: map(iter, pairs),
    }
    for form, change in forms.items():
        for is_mounted in (False, True):
            receiver = StatsigReceiver(Intake(verifier=Verifier([SECRET])), Sink())
            app: Any = create_app({"/hook": receiver})
            if not is_mounted:
                app = falcon.asgi.App()
                app.add_route("/hook", receiver)

            async def changed(
                scope: dict[str, Any], receive: Any, send: Any, *, app: Any = app, change: Any = change
            ) -> None:
                if scope["type"] == "http":
                    scope = {**scope, "headers": change([tuple(pair) for pair in scope["headers"]])}
                await app(scope, receive, send)

            client = falcon.testing.TestClient(changed)
            answer = client.simulate_post("/hook", body=body, headers=signed(body))
            assert answer.status_code == 200, form
            assert answer.json["accepted"] == 1
            assert client.simulate_post("/hook", body=body).status_code == 401, form


@pytest.mark.slow
def test_small_webhooks_are_answered_while_a_large_one_is_finished() -> None:
    many = (2 << 20) // (len(TINY) + 1)
    large = b"[" + b",".join([TINY] * many) + b"]"
    small = body_of(CHANGE)
    sink = Sink()
    answers: list[Response] = []
    meanwhile = 0
    with ASGI.receiving(sink) as address:
        sending = threading.Thread(target=lambda: answers.append(post_patiently(address, large)))
        sending.start()
        deadline = time.monotonic() + 60
        while not finishing() and not answers and time.monotonic() < deadline:
            time.sleep(0.001)
        while not any(len(batch.changes) > 1 for batch in list(sink.batches)) and time.monotonic() < deadline:
            assert post_patiently(address, small).status == 200
            meanwhile += 1
        sending.join(60)
    assert [(answer.status, answer.json["accepted"]) for answer in answers] == [(200, many)]
    assert meanwhile > 1  # the last one may have been answered after the large body
    wait_until(lambda: not finishing())


def post_patiently(address: Address, body: bytes) -> Response:
    with connect(address) as connection:
        connection.settimeout(60)
        connection.sendall(request(body, headers=signed(body)))
        return read_response(connection)


@pytest.mark.parametrize("chunk", [0, 10])
def test_below_an_application_of_falcon_alone_a_body_cut_short_is_no_forgery(
    chunk: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Falcon has taken the first event, and its stream ends alike for a whole body and for one that was cut short."""
    body = body_of(CHANGE)
    sink = Sink()
    with BARE.receiving(sink) as address, connect(address) as connection:
        connection.sendall(request(body, headers=signed(body), chunk=chunk)[:-30])
        connection.shutdown(socket.SHUT_WR)
        assert_refused(read_response(connection), 400)
    assert "truncated" in caplog.text
    assert not sink.batches


@dataclass
class Closing:
    """A receiver that is told to close while requests are under way."""

    receiver: StatsigReceiver
    thread: ServerThread
    address: Address

    def close(self, grace: float) -> None:
        done = threading.Event()
        self.thread.loop.call_soon_threadsafe(self.receiver.close, grace)
        self.thread.loop.call_soon_threadsafe(done.set)
        assert done.wait(10)


@pytest.fixture
def closing() -> Iterator[tuple[Closing, threading.Event]]:
    release = threading.Event()

    def answer(batch: Batch) -> Receipt:
        assert release.wait(10)
        return Receipt(accepted=len(batch.changes))

    receiver = StatsigReceiver(Intake(verifier=Verifier([SECRET])), Sink(answer))
    thread = ServerThread(create_app({"/hook": receiver}))
    try:
        yield Closing(receiver, thread, thread.start()), release
    finally:
        release.set()
        thread.stop()


def test_closing_refuses_new_requests_and_finishes_what_was_handed_over(
    closing: tuple[Closing, threading.Event],
) -> None:
    service, release = closing
    body = body_of(CHANGE)
    with connect(service.address) as waiting, connect(service.address) as half:
        waiting.sendall(request(body, headers=signed(body)))
        half.sendall(request(body, headers=signed(body))[:-1])
        time.sleep(0.2)
        service.close(grace=0.2)
        response = post(service.address, body)
        assert_refused(response, 503)
        assert response.headers["retry-after"].isdigit()
        assert_refused(read_response(half), 503)
        release.set()
        assert read_response(waiting).status == 200


def test_a_body_that_arrives_within_the_grace_is_still_taken(closing: tuple[Closing, threading.Event]) -> None:
    service, release = closing
    release.set()
    body = body_of(CHANGE)
    with connect(service.address) as half:
        half.sendall(request(body, headers=signed(body))[:-1])
        time.sleep(0.2)
        service.close(grace=5)
        half.sendall(body[-1:])
        assert read_response(half).status == 200


def test_a_large_body_that_arrives_within_the_grace_is_still_taken(closing: tuple[Closing, threading.Event]) -> None:
    service, release = closing
    release.set()
    body = body_of(CHANGE).ljust(300_000)
    assert post(service.address, body).status == 200  # the thread for large bodies is there, and ends with the close
    with connect(service.address) as half:
        half.sendall(request(body, headers=signed(body))[:-1])
        time.sleep(0.2)
        service.close(grace=5)
        half.sendall(body[-1:])
        assert read_response(half).status == 200


def test_several_requests_share_a_connection() -> None:
    body = body_of(CHANGE)
    with ASGI.receiving() as address, connect(address) as connection:
        for _ in range(3):
            connection.sendall(request(body, headers=signed(body)))
            assert read_response(connection).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (body_of(CHANGE), 200),
        (body_of({"eventName": "statsig::gate_exposure"}), 200),
        (b'[{"eventName":"statsig::config_change","timestamp":1,"timestamp":NaN,"metadata":{}}]', 200),
        (b'{"data":[', 400),
        (b"", 401),
        (body_of({**CHANGE, "userID": "refused"}), 503),
    ],
)
def test_a_request_leaves_next_to_nothing_to_the_garbage_collector(body: bytes, status: int) -> None:
    """`statsig-otel run` looks for cycles rarely: one with a body in it would hold that for long."""

    def answer(batch: Batch) -> Receipt:
        if status == 503:
            raise RefusedError("full", reason="queue_full", retry_after=1)
        return Receipt(len(batch.changes))

    data = request(body, headers=signed(body) if body else {})
    with ASGI.receiving(Sink(answer)) as address:
        left = left_behind(address, data, status)
    of_ours = {kind for kind in left if kind.__module__.startswith("statsig_otel")}
    assert not (of_ours - {_Numbers}) | (left & {bytes, FrameType})


@pytest.mark.parametrize("size", [0, SMALL_BODY + 1], ids=["small", "large"])
def test_neither_does_a_request_for_which_the_memory_is_missing(size: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # else pytest keeps the errors

    class Failing(Mapper):
        def map(self, payload: ParsedBody, observed_ns: int) -> Mapped:
            raise MemoryError

    body = body_of(CHANGE).ljust(size)
    with ASGI.receiving(intake=Intake(verifier=Verifier([SECRET]), mapper=Failing())) as address:
        assert FrameType not in left_behind(address, request(body, headers=signed(body)), 500)


@pytest.mark.parametrize("adapter", [adapter for adapter in ADAPTERS if adapter.name in ("asgi", "wsgiref")])
@pytest.mark.parametrize(("error", "status"), [(ValueError, 500), (partial(RefusedError, reason="queue_full"), 503)])
def test_neither_does_a_request_whose_consumer_fails(
    adapter: Adapter, error: Callable[[str], Exception], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    class Failing:
        def consume(self, batch: Batch) -> Future[Receipt]:
            future: Future[Receipt] = Future()
            future.set_exception(error("full"))
            return future

    body = body_of(CHANGE)
    with adapter.receiving(Failing()) as address:
        assert Batch not in left_behind(address, request(body, headers=signed(body)), status)


def left_behind(address: Address, data: bytes, status: int) -> set[type]:
    """The types of what ten requests leave to the garbage collector."""
    assert exchange(address, data) == status  # what is made once is made
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(10):
            exchange(address, data)
        gc.collect()
        return {type(thing) for thing in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def exchange(address: Address, data: bytes) -> int:
    with connect(address) as connection:
        connection.sendall(data)
        return read_response(connection).status


def test_an_answer_that_its_consumer_cancels_is_an_error_and_others_are_not() -> None:
    class Cancelling(Sink):
        def consume(self, batch: Batch) -> Future[Receipt]:
            future: Future[Receipt] = Future()
            if not self.batches:
                future.cancel()
            else:
                future.set_result(Receipt(accepted=1))
            self.batches.append(batch)
            return future

    data = request(body_of(CHANGE), headers=signed(body_of(CHANGE)))
    with ASGI.receiving(Cancelling()) as address:
        assert [exchange(address, data) for _ in range(2)] == [500, 200]


def test_requests_of_the_same_turn_are_finished_together_and_none_of_them_disturbs_another() -> None:
    """One has an error that nobody expects, one a wrong signature, and one is cancelled before its turn comes.

    One is not tiny, and does not wait for the others.
    """
    steps: list[str] = []
    named: ContextVar[str] = ContextVar("named")

    class Noting(Mapper):
        def map(self, payload: ParsedBody, observed_ns: int) -> Mapped:
            item: Any = payload.changes[0].value
            name = item["metadata"]["name"]
            assert named.get() == name  # in the context of its own request
            steps.append(f"map {name}")
            if name == "failing":
                raise StopIteration  # the one error that a future refuses
            return super().map(payload, observed_ns)

    class NotingVerifier(Verifier):
        def begin(self, signatures: Sequence[bytes], timestamps: Sequence[bytes], now_ms: int) -> Verification:
            verification = super().begin(signatures, timestamps, now_ms)
            finish = verification.finish

            def noted() -> int:
                steps.append("verify")
                return finish()

            verification.finish = noted  # type: ignore[method-assign]
            return verification

    sink = Sink()
    app = create_app({"/hook": StatsigReceiver(Intake(verifier=NotingVerifier([SECRET]), mapper=Noting()), sink)})

    async def status(name: str, *, secret: str = SECRET, size: int = 0) -> int:
        body = body_of({**CHANGE, "metadata": {"type": "Gate", "name": name}}).ljust(size)
        headers = [(key.lower().encode(), value.encode()) for key, value in signed(body, secret=secret).items()]
        scope = {"type": "http", "method": "POST", "path": "/hook", "headers": headers}
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        named.set(name)
        await app({**scope, "asgi": {"version": "3.0"}, "http_version": "1.1"}, receive, send)
        return int(sent[0]["status"])

    async def main() -> list[int | BaseException]:
        calls = [
            asyncio.create_task(call)
            for call in (
                status("first"),
                status("failing"),
                status("forged", secret="wrong"),
                status("left"),
                status("long", size=_TINY_BODY + 1),
                status("last"),
            )
        ]
        asyncio.get_running_loop().call_soon(calls[3].cancel)  # once all have begun, and before their turn
        return await asyncio.gather(*calls, return_exceptions=True)

    first, failing, forged, left, long, last = asyncio.run(main())
    assert (first, failing, forged, long, last) == (200, 500, 401, 200, 200)
    assert isinstance(left, asyncio.CancelledError)
    together = ["verify"] * 4 + ["map first", "map failing", "map last"]  # without the one that was cancelled
    assert steps == ["verify", "map long", *together]
    assert len(sink.batches) == 3
