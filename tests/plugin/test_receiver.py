"""Every row of the webhook's contract, over a real socket."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError
from statsig_otel.plugin.intake import Intake, Limits
from statsig_otel.plugin.receiver import StatsigReceiver, create_app
from statsig_otel.plugin.webhook import SIGNATURE_HEADER, TIMESTAMP_HEADER, Verifier, sign

from .http_client import Address, Response, ServerThread, connect, exchange, read_response, request, serving

SECRET = "webhook-0123456789abcdef"
CHANGE: dict[str, object] = {
    "eventName": "statsig::config_change",
    "timestamp": 1739400185198,
    "metadata": {"type": "Gate", "name": "layout_v2", "action": "updated"},
}
EXPOSURE: dict[str, object] = {"eventName": "statsig::gate_exposure", "timestamp": "1655231253265"}
VERIFICATION = b'{"data": {"event": "url_verification", "verification_code": "abc123"}}'


class Sink:
    """A consumer that keeps what it gets, and answers as told."""

    def __init__(self, answer: Callable[[Batch], Receipt] | None = None) -> None:
        self.batches: list[Batch] = []
        self._answer = answer or (lambda batch: Receipt(accepted=len(batch.changes)))

    def consume(self, batch: Batch) -> Future[Receipt]:
        self.batches.append(batch)
        future: Future[Receipt] = Future()

        def work() -> None:
            try:
                future.set_result(self._answer(batch))
            except Exception as error:  # noqa: BLE001 - handed on through the future
                future.set_exception(error)

        threading.Thread(target=work).start()
        return future


def body_of(*items: object) -> bytes:
    return json.dumps({"data": items}).encode()


def signed(body: bytes, *, secret: str = SECRET, at_ms: int | None = None) -> dict[str, str]:
    return sign(body, secret=secret, timestamp_ms=time.time_ns() // 1_000_000 if at_ms is None else at_ms)


@contextmanager
def receiving(
    sink: Sink | None = None,
    *,
    secrets: tuple[str, ...] = (SECRET,),
    limits: Limits | None = None,
    intake: Intake | None = None,
) -> Iterator[Address]:
    intake = intake or Intake(verifier=Verifier(secrets), limits=limits)
    receiver = StatsigReceiver(intake, sink or Sink())
    thread = ServerThread(create_app({"/hook": receiver}))
    address = thread.start()
    try:
        yield address
    finally:
        thread.loop.call_soon_threadsafe(receiver.close)
        thread.stop()


def post(address: Address, body: bytes, headers: dict[str, str] | None = None) -> Response:
    return exchange(address, request(body, headers=signed(body) if headers is None else headers))


def assert_refused(response: Response, status: int) -> None:
    """A refusal is JSON with a title and a description, and nothing else."""
    assert response.status == status
    assert response.headers["content-type"].startswith("application/json")
    assert set(response.json) == {"title", "description"}
    assert str(status) in str(response.json["title"])


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    with receiving() as found:
        yield found


@pytest.mark.parametrize("path", ["/", "/hook/", "/hook/x", "/other", "/HOOK"])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_wrong_path_is_404(address: Address, path: str, method: str) -> None:
    assert_refused(exchange(address, request(b"{}", path=path, method=method)), 404)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_wrong_method_is_405(address: Address, method: str) -> None:
    response = exchange(address, request(method=method), head=method == "HEAD")
    assert response.status == 405
    assert response.headers["allow"] == "POST"
    if method != "HEAD":
        assert_refused(response, 405)


def test_a_query_changes_nothing(address: Address) -> None:
    body = body_of(CHANGE)
    assert exchange(address, request(body, path="/hook?x=1", headers=signed(body))).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "x", ""])
def test_content_encoding_is_415_before_all_later_checks(address: Address, encoding: str) -> None:
    headers = {"Content-Encoding": encoding, "Content-Length": str(1 << 30)}
    assert_refused(exchange(address, request(headers=headers)), 415)


def test_identity_is_no_encoding(address: Address) -> None:
    body = body_of(CHANGE)
    assert post(address, body, {**signed(body), "Content-Encoding": "Identity"}).status == 200


def test_a_declared_size_over_the_limit_is_413_before_the_signature_and_the_body(address: Address) -> None:
    assert_refused(exchange(address, request(headers={"Content-Length": str((20 << 20) + 1)})), 413)


@pytest.mark.parametrize("chunk", [0, 700])
def test_a_body_of_the_limit_passes_and_one_byte_more_is_413(chunk: int) -> None:
    body = body_of(CHANGE).ljust(2000)
    with receiving(limits=Limits(max_request_body_size=2000)) as address:
        assert exchange(address, request(body, headers=signed(body), chunk=chunk)).status == 200
        larger = body + b" "
        assert_refused(exchange(address, request(larger, headers=signed(larger), chunk=chunk)), 413)


GOOD = signed(b"x", at_ms=1_700_000_000_000)
HEADER_FAULTS = {
    "signature_missing": {TIMESTAMP_HEADER: GOOD[TIMESTAMP_HEADER]},
    "timestamp_missing": {SIGNATURE_HEADER: GOOD[SIGNATURE_HEADER]},
    "signature_malformed": {**GOOD, SIGNATURE_HEADER: GOOD[SIGNATURE_HEADER].upper()},
    "timestamp_malformed": {**GOOD, TIMESTAMP_HEADER: "+170000000000"},
    "signature_repeated": {**GOOD, "x-statsig-signature": GOOD[SIGNATURE_HEADER]},
    "timestamp_repeated": {**GOOD, "x-statsig-request-timestamp": GOOD[TIMESTAMP_HEADER]},
    "timestamp_outside_tolerance": GOOD,
}


@pytest.mark.parametrize("reason", HEADER_FAULTS)
def test_faulty_signature_headers_are_401_without_the_body(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """The answer comes while the client has sent no byte of its body; the log says why, the answer does not."""
    with receiving() as address, caplog.at_level(logging.WARNING):
        response = exchange(address, request(headers={**HEADER_FAULTS[reason], "Content-Length": "100000"}))
    assert_refused(response, 401)
    assert reason in caplog.text
    assert reason not in response.body.decode()


@pytest.mark.parametrize("reason", HEADER_FAULTS)
def test_faulty_signature_headers_are_401_with_a_short_body(address: Address, reason: str) -> None:
    assert_refused(exchange(address, request(body_of(CHANGE), headers=HEADER_FAULTS[reason])), 401)


def test_an_unsigned_chunked_body_is_read_to_4_kib_and_no_further(address: Address) -> None:
    with connect(address) as connection:
        connection.sendall(request(b"a" * 5000, chunk=1000).removesuffix(b"0\r\n\r\n"))
        assert_refused(read_response(connection), 401)


@pytest.mark.parametrize("headers", [{}, *HEADER_FAULTS.values(), signed(b"another body"), signed(VERIFICATION)])
@pytest.mark.parametrize("secrets", [(), (SECRET,)])
def test_url_verification_is_answered_whatever_its_signature(headers: dict[str, str], secrets: tuple[str, ...]) -> None:
    with receiving(secrets=secrets) as address:
        for chunk in (0, 7):
            response = exchange(address, request(VERIFICATION, headers=headers, chunk=chunk))
            assert (response.status, response.json) == (200, {"verification_code": "abc123"})


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": {"event": "url_verification", "verification_code": "abc123", "more": 1}}',
        b'{"data": {"event": "url_verification", "verification_code": "abc123"}, "more": 1}',
        b'{"data": {"event": "url_verification", "verification_code": 1}}',
        b'{"data": {"event": "url_verification", "verification_code": ""}}',
        b'{"data": {"event": "url_verification", "verification_code": "a\\nb"}}',
        b'{"data": {"event": "other", "verification_code": "abc123"}}',
        b'{"data": [{"event": "url_verification", "verification_code": "abc123"}]}',
        json.dumps({"data": {"event": "url_verification", "verification_code": "a" * 257}}).encode(),
    ],
)
def test_what_is_not_exactly_a_url_verification_is_401(address: Address, body: bytes) -> None:
    assert_refused(post(address, body, {}), 401)


def test_set_up_mode_refuses_signed_events_and_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    with receiving(secrets=()) as address, caplog.at_level(logging.INFO):
        assert_refused(post(address, body_of(CHANGE)), 401)
        assert "no_secret" in caplog.text
        post(address, VERIFICATION, {})
    assert "a URL verification was answered" in caplog.text
    assert "Copy its signing secret" in caplog.text


@pytest.mark.parametrize("chunk", [0, 10])
def test_a_slow_body_is_408(chunk: int) -> None:
    body = body_of(CHANGE)
    whole = request(body, headers=signed(body), chunk=chunk)
    with receiving(limits=Limits(read_timeout=0.3)) as address:
        for sent in (whole[:-20], whole[: whole.index(b"\r\n\r\n") + 4]):
            assert_refused(exchange(address, sent), 408)


@pytest.mark.parametrize("chunk", [0, 10])
def test_a_body_cut_short_is_400_and_no_forgery(chunk: int, caplog: pytest.LogCaptureFixture) -> None:
    body = body_of(CHANGE)
    sink = Sink()
    with receiving(sink) as address, caplog.at_level(logging.WARNING), connect(address) as connection:
        connection.sendall(request(body, headers=signed(body), chunk=chunk)[:-30])
        connection.shutdown(1)
        assert_refused(read_response(connection), 400)
    assert "truncated" in caplog.text
    assert "signature" not in caplog.text
    assert not sink.batches


@pytest.mark.parametrize(
    "headers",
    [
        signed(body_of(CHANGE), secret="webhook-another"),
        signed(body_of(CHANGE) + b" "),
        {**signed(body_of(CHANGE)), TIMESTAMP_HEADER: str(time.time_ns() // 1_000_000 + 7)},
    ],
)
def test_a_wrong_signature_is_401_and_nothing_is_stored(headers: dict[str, str]) -> None:
    sink = Sink()
    with receiving(sink) as address:
        assert_refused(post(address, body_of(CHANGE), headers), 401)
    assert not sink.batches


def test_any_of_several_secrets_passes() -> None:
    body = body_of(CHANGE)
    with receiving(secrets=("webhook-old", "webhook-new")) as address:
        for secret in ("webhook-old", "webhook-new"):
            assert post(address, body, signed(body, secret=secret)).status == 200
        assert_refused(post(address, body, signed(body, secret="webhook-third")), 401)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"{}", b'{"data": 1}', b"1", b'"x"', b"[" * 100_000])
def test_a_verified_body_of_no_known_shape_is_400_and_is_kept(body: bytes) -> None:
    sink = Sink()
    with receiving(sink) as address:
        assert_refused(post(address, body), 400)
    (batch,) = sink.batches
    assert batch.changes == ()
    assert [(invalid.text, invalid.whole_body) for invalid in batch.invalid] == [(body, True)]


@pytest.mark.parametrize("body", [b"[]", b'{"data": []}'])
def test_an_empty_batch_is_200_with_zeros(address: Address, body: bytes) -> None:
    response = post(address, body)
    assert (response.status, response.json) == (200, {"accepted": 0, "duplicates": 0, "ignored": 0, "invalid": 0})


@pytest.mark.parametrize("chunk", [0, 1, 4096])
def test_each_item_is_counted_once(chunk: int) -> None:
    invalid = {**CHANGE, "timestamp": None}
    body = body_of(CHANGE, EXPOSURE, invalid, 7, None, {**CHANGE, "timestamp": 1})
    sink = Sink(lambda _: Receipt(accepted=1, duplicates=1))
    with receiving(sink) as address:
        response = exchange(address, request(body, headers=signed(body), chunk=chunk))
    assert (response.status, response.json) == (200, {"accepted": 1, "duplicates": 1, "ignored": 3, "invalid": 1})
    (batch,) = sink.batches
    assert (len(batch.changes), len(batch.invalid), batch.receiver) == (2, 1, "statsig")


def test_the_answer_waits_for_the_consumer() -> None:
    release = threading.Event()

    def answer(batch: Batch) -> Receipt:
        assert release.wait(10)
        return Receipt(accepted=len(batch.changes))

    body = body_of(CHANGE)
    with receiving(Sink(answer)) as address, connect(address) as connection:
        connection.sendall(request(body, headers=signed(body)))
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        release.set()
        connection.settimeout(10)
        assert read_response(connection).status == 200


def test_what_the_consumer_refuses_is_503_with_retry_after() -> None:
    def answer(_: Batch) -> Receipt:
        raise RefusedError("the disk is full", reason="disk_full", retry_after=17)

    with receiving(Sink(answer)) as address:
        response = post(address, body_of(CHANGE))
        assert_refused(response, 503)
        assert response.headers["retry-after"] == "17"
        assert b"disk" not in response.body
        assert post(address, body_of(EXPOSURE)).status == 200  # nothing to store


def test_a_malformed_body_that_can_not_be_kept_is_503() -> None:
    def answer(_: Batch) -> Receipt:
        raise RefusedError("the disk is full", reason="disk_full")

    with receiving(Sink(answer)) as address:
        assert_refused(post(address, b"{"), 503)


def test_a_fault_of_the_consumer_is_500_and_never_200() -> None:
    def answer(_: Batch) -> Receipt:
        raise ZeroDivisionError

    with receiving(Sink(answer)) as address:
        assert_refused(post(address, body_of(CHANGE)), 500)


def test_all_bodies_together_are_bounded_and_given_back() -> None:
    body = body_of(CHANGE).ljust(3000)
    with receiving(limits=Limits(max_in_flight_bytes=4000)) as address:
        for _ in range(3):
            with connect(address) as holding:
                holding.sendall(request(body, headers=signed(body))[:-1])
                deadline = time.monotonic() + 10
                while (response := post(address, body)).status == 200 and time.monotonic() < deadline:
                    pass
                assert_refused(response, 503)
                assert response.headers["retry-after"].isdigit()
                holding.sendall(b" ")
                assert read_response(holding).status == 200
            assert post(address, body).status == 200


def test_large_forgeries_do_not_shut_out_small_webhooks() -> None:
    """Bodies over 256 KiB, read before their signature is known, leave an eighth of the memory to the others."""
    limits = Limits(max_request_body_size=1 << 20, max_in_flight_bytes=4 << 20)
    intake = Intake(verifier=Verifier([SECRET]), limits=limits)
    large = body_of(CHANGE).ljust(1 << 20)
    forged = signed(large, secret="webhook-another")
    small = body_of(CHANGE).ljust(100_000)
    with receiving(intake=intake) as address:
        with ExitStack() as stack:
            for _ in range(3):
                connection = stack.enter_context(connect(address))
                connection.sendall(request(large, headers=forged)[:-1])
            wait_until(lambda: intake._in_flight == 3 * (len(large) - 1))
            assert_refused(post(address, large), 503)
            assert [post(address, small).status for _ in range(3)] == [200, 200, 200]
            assert exchange(address, request(small, headers=signed(small), chunk=5000)).status == 200
        wait_until(lambda: intake._in_flight == 0)
        assert post(address, large).status == 200


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


TINY = b'{"eventName":"statsig::config_change","timestamp":1,"metadata":{"name":"a","type":"b"}}'


def judging() -> bool:
    """Whether a receiver of this process has begun to judge a large body."""
    return any(thread.name.startswith("statsig-otel-judge") for thread in threading.enumerate())


def test_small_webhooks_are_answered_while_a_large_one_is_judged() -> None:
    many = (2 << 20) // (len(TINY) + 1)
    large = b"[" + b",".join([TINY] * many) + b"]"
    small = body_of(CHANGE)
    sink = Sink()
    answers: list[Response] = []
    meanwhile = 0
    with receiving(sink) as address:
        sending = threading.Thread(target=lambda: answers.append(post_patiently(address, large)))
        sending.start()
        deadline = time.monotonic() + 60
        while not judging() and not answers and time.monotonic() < deadline:
            time.sleep(0.001)
        while not any(len(batch.changes) > 1 for batch in list(sink.batches)) and time.monotonic() < deadline:
            assert post_patiently(address, small).status == 200
            meanwhile += 1
        sending.join(60)
    assert [(answer.status, answer.json["accepted"]) for answer in answers] == [(200, many)]
    assert meanwhile > 1  # the last one may have been answered after the large body
    wait_until(lambda: not judging())


def post_patiently(address: Address, body: bytes) -> Response:
    with connect(address) as connection:
        connection.settimeout(60)
        connection.sendall(request(body, headers=signed(body)))
        return read_response(connection)


@pytest.mark.parametrize("chunk", [0, 50_000])
def test_a_large_body_is_answered_as_a_small_one_is(chunk: int) -> None:
    """Each answer that is found once the body is there."""
    size = (256 << 10) + 1
    sink = Sink()
    with receiving(sink) as address:

        def answer_to(body: bytes, headers: dict[str, str]) -> Response:
            return exchange(address, request(body.ljust(size), headers=headers, chunk=chunk))

        for body, status in ((body_of(CHANGE), 200), (body_of(EXPOSURE), 200), (b"{", 400), (b"\xff", 400)):
            assert answer_to(body, signed(body.ljust(size))).status == status
        assert_refused(answer_to(body_of(CHANGE), signed(b"another")), 401)
    assert [(len(batch.changes), len(batch.invalid)) for batch in sink.batches] == [(1, 0), (0, 1), (0, 1)]


def test_a_client_that_leaves_before_the_answer_takes_nothing_back() -> None:
    started, release, finished = threading.Event(), threading.Event(), threading.Event()

    def answer(batch: Batch) -> Receipt:
        started.set()
        assert release.wait(10)
        finished.set()
        return Receipt(accepted=len(batch.changes))

    body = body_of(CHANGE)
    with receiving(Sink(answer)) as address:
        with connect(address) as connection:
            connection.sendall(request(body, headers=signed(body)))
            assert started.wait(10)
        release.set()
        assert finished.wait(10)
        release.set()
        assert post(address, body).status == 200


def test_a_consumer_that_does_not_answer_is_503_and_the_body_counts_until_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The append goes on, and holds its body in memory: so many of them can't pile up without bound."""
    release = threading.Event()

    def answer(batch: Batch) -> Receipt:
        assert release.wait(10)
        return Receipt(accepted=len(batch.changes))

    body = body_of(CHANGE)
    sink = Sink(answer)
    intake = Intake(verifier=Verifier([SECRET]), limits=Limits(max_in_flight_bytes=len(body)))
    receiver = StatsigReceiver(intake, sink, patience=0.05)
    with serving(create_app({"/hook": receiver})) as address:
        refused = post(address, body)
        assert_refused(refused, 503)
        assert refused.headers["retry-after"] == "10"
        assert "has not answered within 0.05 s" in caplog.text
        assert post(address, body).status == 503
        assert len(sink.batches) == 1, "there is no room for a second"
        release.set()
        deadline = time.monotonic() + 10
        while post(address, body).status != 200:
            assert time.monotonic() < deadline, "the room is never given back"


def test_the_clock_is_read_once_a_request() -> None:
    readings: list[int] = []

    def clock() -> int:
        readings.append(1_700_000_000_000_000_000)
        return readings[-1]

    receiver = StatsigReceiver(Intake(verifier=Verifier([SECRET])), Sink(), clock=clock)
    body = body_of(CHANGE)
    with serving(create_app({"/hook": receiver})) as address:
        assert post(address, body, signed(body, at_ms=1_700_000_000_000)).status == 200
    assert len(readings) == 1


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
    assert post(service.address, body).status == 200  # the thread that judges is there, and ends with the close
    with connect(service.address) as half:
        half.sendall(request(body, headers=signed(body))[:-1])
        time.sleep(0.2)
        service.close(grace=5)
        half.sendall(body[-1:])
        assert read_response(half).status == 200


def test_several_requests_share_a_connection(address: Address) -> None:
    body = body_of(CHANGE)
    with connect(address) as connection:
        for _ in range(3):
            connection.sendall(request(body, headers=signed(body)))
            assert read_response(connection).status == 200


@pytest.mark.parametrize("marker", ["zzmarkerzz"])
def test_refusals_never_echo_the_request(address: Address, marker: str) -> None:
    body = json.dumps({"data": marker}).encode()
    answers = [
        exchange(address, request(body, path=f"/{marker}", headers={"X-Marker": marker})),
        exchange(address, request(body, headers={"Content-Encoding": marker})),
        exchange(address, request(body, headers={SIGNATURE_HEADER: marker})),
        post(address, body),
    ]
    assert [answer.status for answer in answers] == [404, 415, 401, 400]
    assert all(marker.encode() not in answer.body for answer in answers)
