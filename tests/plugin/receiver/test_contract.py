"""Every row of the webhook's contract, over a real socket, under each way to serve a receiver."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from statsig_otel._journal import journal
from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError
from statsig_otel.plugin.receiver.bodies import Limits
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER, Verifier
from tests.plugin.adapters import (
    ADAPTERS,
    CHANGE,
    EXPOSURE,
    SECRET,
    VERIFICATION,
    Adapter,
    Sink,
    adapters,
    assert_refused,
    body_of,
    chunks,
    post,
    signed,
)
from tests.plugin.fresh import fresh_process
from tests.plugin.http_client import Address, Response, connect, exchange, read_response, request
from tests.waiting import wait_until

early = adapters(lambda adapter: adapter.early)
whole = adapters(lambda adapter: adapter.whole)


@pytest.fixture(scope="module", params=[pytest.param(adapter, id=adapter.name) for adapter in ADAPTERS])
def adapter(request: pytest.FixtureRequest) -> Adapter:
    found: Adapter = request.param
    return found


@pytest.fixture(scope="module")
def address(adapter: Adapter) -> Iterator[Address]:
    with adapter.receiving() as found:
        yield found


@whole
def test_wrong_path_is_404(address: Address) -> None:
    for path in ("/", "/hook//", "/hook%2F%2F", "/hook/x", "/other", "/HOOK"):
        for method in ("POST", "GET"):
            assert_refused(exchange(address, request(b"{}", path=path, method=method)), 404, (method, path))


@whole
def test_only_a_post_to_a_wrong_path_may_be_a_webhook(address: Address) -> None:
    with fresh_process():
        journal.keep()
        for method in ("POST", "GET", "HEAD", "PUT"):
            with connect(address) as client:
                client.sendall(request(path=f"/{method}", method=method))
                client.recv(1000)
        found = {one.path.rpartition("/")[2]: one.reason for one in journal.last_requests()}
    assert found.pop("POST") == "not_found"
    assert set(found.values()) == {"method"}


@adapters(lambda adapter: adapter.whole and adapter.tells)
def test_a_path_that_is_nearly_right_is_named_in_the_log(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("//hook", "/hook//", "/%2fhook", "/hook%2F"):
        caplog.clear()
        with adapter.receiving() as address:
            assert exchange(address, request(path=path)).status == 404
        assert "is answered with 404: the receiver's path is /hook" in caplog.text, path


@whole
def test_one_slash_at_the_end_of_the_path_is_accepted(address: Address) -> None:
    body = body_of(CHANGE)
    assert exchange(address, request(body, path="/hook/", headers=signed(body))).status == 200


def test_no_answer_is_to_be_taken_for_something_else_than_its_media_type(address: Address) -> None:
    answers = [exchange(address, request()), exchange(address, request(method="GET")), post(address, body_of(CHANGE))]
    assert [answer.headers["x-content-type-options"] for answer in answers] == ["nosniff"] * 3


def test_wrong_method_is_405(address: Address) -> None:
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"):
        response = exchange(address, request(method=method), head=method == "HEAD")
        assert (response.status, response.headers["allow"]) == (405, "POST"), method
        if method != "HEAD":
            assert_refused(response, 405, method)


@whole
def test_a_method_that_nobody_expects_is_405(address: Address) -> None:
    for method in ("TRACE", "PROPFIND"):
        response = exchange(address, request(method=method))
        assert_refused(response, 405, method)
        assert response.headers["allow"] == "POST", method


def test_a_query_changes_nothing(address: Address) -> None:
    body = body_of(CHANGE)
    assert exchange(address, request(body, path="/hook?x=1", headers=signed(body))).status == 200


@early
def test_content_encoding_is_415_before_all_later_checks(address: Address) -> None:
    for encoding in ("gzip", "br", "identity, gzip", "x", "gzip,"):
        headers = {"Content-Encoding": encoding, "Content-Length": str(1 << 30)}
        assert_refused(exchange(address, request(headers=headers)), 415, encoding)


def test_identity_is_not_an_encoding_and_neither_is_an_empty_value(address: Address) -> None:
    body = body_of(CHANGE)
    for value in ("Identity", "", " "):
        assert post(address, body, {**signed(body), "Content-Encoding": value}).status == 200, value


@early
def test_a_declared_size_over_the_limit_is_413_before_the_signature_and_the_body(address: Address) -> None:
    assert_refused(exchange(address, request(headers={"Content-Length": str((20 << 20) + 1)})), 413)


@chunks(0, 700)
def test_a_body_of_the_limit_passes_and_one_byte_more_is_413(adapter: Adapter, chunk: int) -> None:
    body = body_of(CHANGE).ljust(2000)
    with adapter.receiving(limits=Limits(max_request_body_size=2000)) as address:
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


@early
def test_faulty_signature_headers_are_401_without_the_body(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    """The answer comes while the client has sent no byte of its body; the log says why, the answer does not."""
    with adapter.receiving() as address:
        for reason, headers in HEADER_FAULTS.items():
            caplog.clear()
            response = exchange(address, request(headers={**headers, "Content-Length": "100000"}))
            assert_refused(response, 401, reason)
            assert reason in caplog.text
            assert reason not in response.body.decode()


def test_faulty_signature_headers_are_401_with_a_short_body(address: Address) -> None:
    for reason, headers in HEADER_FAULTS.items():
        assert_refused(exchange(address, request(body_of(CHANGE), headers=headers)), 401, reason)


@adapters(lambda adapter: adapter.early and adapter.chunked)
def test_an_unsigned_chunked_body_is_read_to_4_kib_and_no_further(address: Address) -> None:
    with connect(address) as connection:
        connection.sendall(request(b"a" * 5000, chunk=1000).removesuffix(b"0\r\n\r\n"))
        assert_refused(read_response(connection), 401)


@pytest.mark.parametrize("secrets", [(), (SECRET,)])
def test_url_verification_is_answered_whatever_its_signature(adapter: Adapter, secrets: tuple[str, ...]) -> None:
    with adapter.receiving(secrets=secrets) as address:
        for headers in ({}, *HEADER_FAULTS.values(), signed(b"another body"), signed(VERIFICATION)):
            for chunk in (0, 7) if adapter.chunked else (0,):
                response = exchange(address, request(VERIFICATION, headers=headers, chunk=chunk))
                assert (response.status, response.json) == (200, {"verification_code": "abc123"}), (headers, chunk)


def test_what_is_not_exactly_a_url_verification_is_401(address: Address) -> None:
    """test_intake.py has more bodies."""
    body = b'{"data": {"event": "url_verification", "verification_code": "abc123"}, "more": 1}'
    assert_refused(post(address, body, {}), 401)


def test_set_up_mode_refuses_signed_events_and_says_what_to_do(
    adapter: Adapter, caplog: pytest.LogCaptureFixture
) -> None:
    with adapter.receiving(secrets=()) as address, caplog.at_level(logging.INFO):
        assert_refused(post(address, body_of(CHANGE)), 401)
        assert "no_secret" in caplog.text
        post(address, VERIFICATION, {})
    assert "a URL verification was answered" in caplog.text
    assert "Copy its signing secret" in caplog.text


@chunks(0, 10, condition=lambda adapter: adapter.early)
def test_a_slow_body_is_408(adapter: Adapter, chunk: int) -> None:
    body = body_of(CHANGE)
    whole = request(body, headers=signed(body), chunk=chunk)
    limits = Limits(read_timeout=0.3)
    with adapter.receiving(limits=limits) as address, connect(address) as half, connect(address) as nothing:
        half.sendall(whole[:-20])
        nothing.sendall(whole[: whole.index(b"\r\n\r\n") + 4])
        for connection in (half, nothing):
            assert_refused(read_response(connection), 408)


@chunks(0, 10, condition=lambda adapter: adapter.early)
def test_a_body_cut_short_is_400_and_no_forgery(adapter: Adapter, chunk: int, caplog: pytest.LogCaptureFixture) -> None:
    body = body_of(CHANGE)
    sink = Sink()
    with adapter.receiving(sink) as address, caplog.at_level(logging.WARNING), connect(address) as connection:
        connection.sendall(request(body, headers=signed(body), chunk=chunk)[:-30])
        connection.shutdown(1)
        assert_refused(read_response(connection), 400)
    assert "truncated" in caplog.text
    assert "signature" not in caplog.text
    assert not sink.batches


def test_a_wrong_signature_is_401_and_nothing_is_stored(adapter: Adapter) -> None:
    body = body_of(CHANGE)
    wrong = {
        "secret": signed(body, secret="webhook-another"),
        "body": signed(body + b" "),
        "timestamp": {**signed(body), TIMESTAMP_HEADER: str(time.time_ns() // 1_000_000 + 7)},
    }
    sink = Sink()
    with adapter.receiving(sink) as address:
        for part, headers in wrong.items():
            assert_refused(post(address, body, headers), 401, f"signed with another {part}")
    assert not sink.batches


def test_any_of_several_secrets_passes(adapter: Adapter) -> None:
    body = body_of(CHANGE)
    with adapter.receiving(secrets=("webhook-old", "webhook-new")) as address:
        for secret in ("webhook-old", "webhook-new"):
            assert post(address, body, signed(body, secret=secret)).status == 200
        assert_refused(post(address, body, signed(body, secret="webhook-third")), 401)


def test_a_verified_body_of_no_known_shape_is_400_and_is_kept(adapter: Adapter) -> None:
    """test_intake.py has more bodies; here are an empty one, one that is not UTF-8, and a long one."""
    bodies = [b"", b"\xff", b"[" * 100_000]
    sink = Sink()
    with adapter.receiving(sink) as address:
        for body in bodies:
            assert_refused(post(address, body), 400, body[:10])
    assert [batch.changes for batch in sink.batches] == [(), (), ()]
    kept = [[(invalid.text, invalid.whole_body) for invalid in batch.invalid] for batch in sink.batches]
    assert kept == [[(body, True)] for body in bodies]


def test_an_empty_batch_is_200_with_zeros(address: Address) -> None:
    for body in (b"[]", b'{"data": []}'):
        response = post(address, body)
        zeros = {"accepted": 0, "duplicates": 0, "ignored": 0, "invalid": 0}
        assert (response.status, response.json) == (200, zeros), body


@chunks(0, 1, 4096)
def test_each_item_is_counted_once(adapter: Adapter, chunk: int) -> None:
    invalid = {**CHANGE, "timestamp": None}
    body = body_of(CHANGE, EXPOSURE, invalid, 7, None, {**CHANGE, "timestamp": 1})
    sink = Sink(lambda _: Receipt(accepted=1, duplicates=1))
    with adapter.receiving(sink) as address:
        response = exchange(address, request(body, headers=signed(body), chunk=chunk))
    assert (response.status, response.json) == (200, {"accepted": 1, "duplicates": 1, "ignored": 3, "invalid": 1})
    (batch,) = sink.batches
    assert (len(batch.changes), len(batch.invalid), batch.receiver) == (2, 1, "statsig")


def test_the_answer_waits_for_the_consumer(adapter: Adapter) -> None:
    release = threading.Event()

    def answer(batch: Batch) -> Receipt:
        assert release.wait(10)
        return Receipt(accepted=len(batch.changes))

    body = body_of(CHANGE)
    with adapter.receiving(Sink(answer)) as address, connect(address) as connection:
        connection.sendall(request(body, headers=signed(body)))
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        release.set()
        connection.settimeout(10)
        assert read_response(connection).status == 200


def test_what_the_consumer_refuses_is_503_with_retry_after(adapter: Adapter) -> None:
    def answer(_: Batch) -> Receipt:
        raise RefusedError("the disk is full", reason="disk_full", retry_after=17)

    with adapter.receiving(Sink(answer)) as address:
        response = post(address, body_of(CHANGE))
        assert_refused(response, 503)
        assert response.headers["retry-after"] == "17"
        assert b"disk" not in response.body
        assert post(address, body_of(EXPOSURE)).status == 200  # nothing to store


def test_a_malformed_body_that_can_not_be_kept_is_503(adapter: Adapter) -> None:
    def answer(_: Batch) -> Receipt:
        raise RefusedError("the disk is full", reason="disk_full")

    with adapter.receiving(Sink(answer)) as address:
        assert_refused(post(address, b"{"), 503)


@whole
@pytest.mark.parametrize("fault", [ZeroDivisionError, TimeoutError])
def test_a_fault_of_the_consumer_is_500_and_never_200(adapter: Adapter, fault: type[Exception]) -> None:
    def answer(_: Batch) -> Receipt:
        raise fault

    with adapter.receiving(Sink(answer)) as address:
        response = post(address, body_of(CHANGE))
    assert_refused(response, 500)
    assert response.headers["retry-after"].isdigit()


@early
def test_all_bodies_together_are_bounded_and_given_back(adapter: Adapter) -> None:
    body = body_of(CHANGE).ljust(130_000)  # WSGI's are read in pieces of 64 KiB, each counted once it is there
    intake = Intake(verifier=Verifier([SECRET]), limits=Limits(max_in_flight_bytes=150_000))
    with adapter.receiving(intake=intake) as address:
        for _ in range(3):
            with connect(address) as holding:
                holding.sendall(request(body, headers=signed(body))[:-1])
                wait_until(lambda: intake.bodies.size > 64 << 10)
                assert post(address, body).status == 200
                holding.sendall(b" ")
                assert_refused(read_response(holding), 408)
            assert post(address, body).status == 200


@adapters(lambda adapter: adapter.early and adapter.drains)
def test_large_forgeries_do_not_shut_out_small_webhooks(adapter: Adapter) -> None:
    """Bodies over 256 KiB, read before their signature is known, leave an eighth of the memory to the others.

    Unfinished ones give way to each other.
    """
    limits = Limits(max_request_body_size=1 << 20, max_in_flight_bytes=4 << 20)
    intake = Intake(verifier=Verifier([SECRET]), limits=limits)
    large = body_of(CHANGE).ljust(1 << 20)
    forged = signed(large, secret="webhook-another")
    small = body_of(CHANGE).ljust(100_000)
    with adapter.receiving(intake=intake) as address:
        with ExitStack() as stack:
            for _ in range(3):
                connection = stack.enter_context(connect(address))
                connection.sendall(request(large, headers=forged)[:-1])
            wait_until(lambda: intake.bodies.size > 3 * (len(large) - (64 << 10) - 1))
            assert post(address, large).status == 200
            assert [post(address, small).status for _ in range(3)] == [200, 200, 200]
            assert exchange(address, request(small, headers=signed(small), chunk=5000)).status == 200
        wait_until(lambda: intake.bodies.size == 0)
        assert post(address, large).status == 200


@chunks(0, 50_000)
def test_a_large_body_is_answered_as_a_small_one_is(adapter: Adapter, chunk: int) -> None:
    """Each answer that is found once the body is there."""
    size = (256 << 10) + 1
    sink = Sink()
    with adapter.receiving(sink) as address:

        def answer_to(body: bytes, headers: dict[str, str]) -> Response:
            return exchange(address, request(body.ljust(size), headers=headers, chunk=chunk))

        for body, status in ((body_of(CHANGE), 200), (body_of(EXPOSURE), 200), (b"{", 400), (b"\xff", 400)):
            assert answer_to(body, signed(body.ljust(size))).status == status
        assert_refused(answer_to(body_of(CHANGE), signed(b"another")), 401)
    assert [(len(batch.changes), len(batch.invalid)) for batch in sink.batches] == [(1, 0), (0, 1), (0, 1)]


def test_a_client_that_leaves_before_the_answer_takes_nothing_back(adapter: Adapter) -> None:
    started, release, finished = threading.Event(), threading.Event(), threading.Event()

    def answer(batch: Batch) -> Receipt:
        started.set()
        assert release.wait(10)
        finished.set()
        return Receipt(accepted=len(batch.changes))

    body = body_of(CHANGE)
    with adapter.receiving(Sink(answer)) as address:
        with connect(address) as connection:
            connection.sendall(request(body, headers=signed(body)))
            assert started.wait(10)
        release.set()
        assert finished.wait(10)
        release.set()
        assert post(address, body).status == 200


def test_a_consumer_that_does_not_answer_is_503_and_the_body_counts_until_it_does(
    adapter: Adapter,
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
    with adapter.receiving(sink, intake=intake, patience=0.05) as address:
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


def test_the_clock_is_read_once_a_request(adapter: Adapter) -> None:
    readings: list[int] = []

    def clock() -> int:
        readings.append(1_700_000_000_000_000_000)
        return readings[-1]

    body = body_of(CHANGE)
    with adapter.receiving(clock=clock) as address:
        assert post(address, body, signed(body, at_ms=1_700_000_000_000)).status == 200
    assert len(readings) == 1


def test_refusals_never_echo_the_request(address: Address) -> None:
    marker = "zzmarkerzz"
    body = json.dumps({"data": marker}).encode()
    answers = [
        exchange(address, request(body, path=f"/{marker}", headers={"X-Marker": marker})),
        exchange(address, request(body, headers={"Content-Encoding": marker})),
        exchange(address, request(body, headers={SIGNATURE_HEADER: marker})),
        post(address, body),
    ]
    assert [answer.status for answer in answers] == [404, 415, 401, 400]
    assert all(marker.encode() not in answer.body for answer in answers)
