"""The decisions without a server: bodies that are refused, what is kept in memory, and what is logged how often."""

import json
import logging
import tracemalloc
from typing import Any

import pytest

from statsig_otel._log_throttle import LogThrottle
from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError
from statsig_otel.plugin.receiver.answer import Answer, AnsweredError
from statsig_otel.plugin.receiver.bodies import SMALL_BODY, Limits
from statsig_otel.plugin.receiver.intake import Intake, Request
from statsig_otel.plugin.webhook.signature import Verifier, sign

SECRET = "webhook-0123456789abcdef"
NOW_NS = 1_700_000_000_000_000_000
VERIFICATION = b'{"data": {"event": "url_verification", "verification_code": "abc123"}}'
CHANGE = json.dumps(
    {"eventName": "statsig::config_change", "timestamp": 5, "metadata": {"type": "Gate", "name": "layout_v2"}}
).encode()


def intake(**limits: int) -> Intake:
    return Intake(verifier=Verifier([SECRET]), limits=Limits(**limits))


def begin(receiver: Intake, body: bytes, *, declared: int | None = None) -> Request:
    headers = [
        (name.encode(), value.encode())
        for name, value in sign(body, secret=SECRET, timestamp_ms=NOW_NS // 1_000_000).items()
    ]
    if declared is not None:
        headers.append((b"Content-Length", str(declared).encode()))
    return receiver.begin(headers, NOW_NS)


NOT_EXACTLY_URL_VERIFICATIONS = [
    b'{"data": {"event": "url_verification", "verification_code": "abc123", "more": 1}}',
    b'{"data": {"event": "url_verification", "verification_code": "abc123"}, "more": 1}',
    b'{"data": {"event": "url_verification", "verification_code": 1}}',
    b'{"data": {"event": "url_verification", "verification_code": ""}}',
    b'{"data": {"event": "url_verification", "verification_code": "a\\nb"}}',
    b'{"data": {"event": "other", "verification_code": "abc123"}}',
    b'{"data": [{"event": "url_verification", "verification_code": "abc123"}]}',
    json.dumps({"data": {"event": "url_verification", "verification_code": "a" * 257}}).encode(),
]


def test_what_is_not_exactly_a_url_verification_is_401() -> None:
    for body in NOT_EXACTLY_URL_VERIFICATIONS:
        request = intake().begin([], NOW_NS)
        request.feed(body)
        answer = request.finish(complete=True)
        assert isinstance(answer, Answer), body
        assert (answer.status, answer.reason) == (401, "signature_missing"), body


@pytest.mark.parametrize(
    "headers", [[("content-length", "3")], [(b"content-length", 3)], {b"content-length": b"3"}, [b"content-length: 3"]]
)
def test_headers_are_pairs_of_bytes(headers: Any) -> None:
    """A string would equal no header's name, and each webhook would be refused for a missing signature."""
    with pytest.raises(TypeError, match="headers must be pairs of a name and a value in bytes"):
        Intake(verifier=Verifier([SECRET])).begin(headers, NOW_NS)


def test_a_verified_body_of_no_known_shape_is_400_and_is_kept() -> None:
    for body in (b"", b"{", b"\xff", b"{}", b'{"data": 1}', b"1", b'"x"', b"[" * 100_000):
        request = begin(intake(), body)
        request.feed(body)
        batch = request.finish(complete=True)
        assert isinstance(batch, Batch), body[:10]
        assert batch.changes == (), body[:10]
        assert [(invalid.text, invalid.whole_body) for invalid in batch.invalid] == [(body, True)], body[:10]
        assert request.taken(Receipt(accepted=0)).status == 400, body[:10]


def refused_at(receiver: Intake, size: int, *, chunk: int, declared: bool) -> int | None:
    """After how many bytes a new body is refused for want of memory; it is closed then."""
    request = begin(receiver, b"", declared=size if declared else None)
    read = 0
    try:
        for start in range(0, size, chunk):
            request.feed(bytes(min(chunk, size - start)))
            read = start + chunk
    except AnsweredError as error:
        refused = error.answer
    else:
        return None
    finally:
        request.close()
    assert (refused.status, refused.reason) == (503, "in_flight_bytes")
    return read


def test_a_body_is_held_once_and_reserved_until_the_end() -> None:
    receiver = intake(max_in_flight_bytes=1000, max_request_body_size=1000)
    body = CHANGE.ljust(600)
    request = begin(receiver, body)
    for start in range(0, 600, 100):
        request.feed(body[start : start + 100])
    assert isinstance(request.finish(complete=True), Batch)
    assert not request._body.chunks
    assert refused_at(receiver, 401, chunk=401, declared=True) == 0
    request.close()
    assert refused_at(receiver, 1000, chunk=1000, declared=True) is None
    request.close()  # a second time gives nothing back
    assert refused_at(receiver, 1000, chunk=1000, declared=True) is None


def test_a_forged_body_is_not_copied() -> None:
    """Several receivers finish their large bodies at the same time, and no limit would count the copies."""
    request = begin(intake(), b"another")
    for _ in range(4):
        request.feed(bytes(SMALL_BODY))
    tracemalloc.start()
    try:
        answer = request.finish(complete=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        request.close()
    assert isinstance(answer, Answer)
    assert answer.reason == "signature_wrong"
    assert peak < SMALL_BODY


@pytest.mark.parametrize("declared", [True, False])
def test_large_bodies_leave_an_eighth_to_small_ones(*, declared: bool) -> None:
    receiver = intake(max_in_flight_bytes=8 * SMALL_BODY, max_request_body_size=4 * SMALL_BODY)
    held = [begin(receiver, b"", declared=size if declared else None) for size in (4 * SMALL_BODY, 3 * SMALL_BODY)]
    held[0].feed(bytes(4 * SMALL_BODY))
    for _ in range(3):
        held[1].feed(bytes(SMALL_BODY))
    for request in held:
        request.arrived()
    # Seven eighths are taken: the declared size tells at once, the read one as it passes 256 KiB.
    assert refused_at(receiver, SMALL_BODY + 1, chunk=1024, declared=True) == 0
    assert refused_at(receiver, SMALL_BODY + 1, chunk=1024, declared=False) == SMALL_BODY
    assert refused_at(receiver, SMALL_BODY, chunk=1024, declared=declared) is None
    for request in held:
        request.close()
    assert refused_at(receiver, 4 * SMALL_BODY, chunk=1024, declared=declared) is None


def test_small_bodies_may_take_it_all() -> None:
    receiver = intake(max_in_flight_bytes=2 * SMALL_BODY, max_request_body_size=SMALL_BODY)
    held = [begin(receiver, b"") for _ in range(2)]
    for request in held:
        request.feed(bytes(SMALL_BODY))
        request.arrived()
        assert not request.is_large
    assert refused_at(receiver, 1, chunk=1, declared=True) == 0
    for request in held:
        request.close()


def gave_way(request: Request) -> bool:
    """Whether the memory of a body was taken, by what its client is told: with the next bytes and at the end."""
    answer = request.finish(complete=True)
    assert isinstance(answer, Answer)
    told = (answer.status, answer.reason) == (408, "gave_way")
    if told:
        with pytest.raises(AnsweredError) as caught:
            request.feed(b" ")
        assert caught.value.answer == answer
    request.close()
    return told


@pytest.mark.parametrize("size", [1, 1000, SMALL_BODY])
def test_the_oldest_unfinished_body_gives_way(size: int) -> None:
    """Bytes that arrive now and then make nobody younger, and a body that has arrived stays."""
    receiver = intake(max_in_flight_bytes=4 * size + 3, max_request_body_size=4 * size + 3)
    whole, *unfinished = [begin(receiver, b"", declared=size + 1) for _ in range(4)]
    for request in (whole, *unfinished):
        request.feed(bytes(size))
    whole.arrived()
    unfinished[0].feed(b"x")
    newer = begin(receiver, b"")
    newer.feed(bytes(size))
    newer.feed(bytes(3))
    assert receiver.bodies.size == 4 * size + 3
    assert [gave_way(request) for request in (whole, *unfinished, newer)] == [False, True, False, False, False]
    assert receiver.bodies.size == 0


def test_the_oldest_unfinished_body_is_refused_itself() -> None:
    receiver = intake(max_in_flight_bytes=1000, max_request_body_size=1000)
    oldest, newer = begin(receiver, b""), begin(receiver, b"")
    oldest.feed(bytes(500))
    newer.feed(bytes(500))
    with pytest.raises(AnsweredError) as caught:
        oldest.feed(b"x")
    assert caught.value.answer.status == 503
    oldest.close()
    assert not gave_way(newer)


@pytest.mark.parametrize("declared", [True, False])
def test_large_bodies_give_way_to_each_other_before_small_ones(*, declared: bool) -> None:
    receiver = intake(max_in_flight_bytes=8 * SMALL_BODY, max_request_body_size=4 * SMALL_BODY)
    small, first, second, third = (
        begin(receiver, b"", declared=size if declared else None) for size in (2, *[4 * SMALL_BODY] * 3)
    )
    small.feed(b"x")
    for request in (first, second, third):
        for _ in range(3):
            request.feed(bytes(SMALL_BODY))
    assert receiver.bodies.size == 6 * SMALL_BODY + 1
    assert [gave_way(request) for request in (small, first, second, third)] == [False, True, False, False]
    assert receiver.bodies.size == receiver.bodies._large_size == 0


def test_one_body_of_the_largest_size_always_fits() -> None:
    receiver = intake(max_in_flight_bytes=4 * SMALL_BODY, max_request_body_size=4 * SMALL_BODY)
    for declared in (True, False):
        assert refused_at(receiver, 4 * SMALL_BODY, chunk=5000, declared=declared) is None


@pytest.mark.parametrize(("size", "large"), [(SMALL_BODY, False), (SMALL_BODY + 1, True)])
def test_which_bodies_are_large(size: int, *, large: bool) -> None:
    assert begin(intake(), b"", declared=size).is_large == large
    read = begin(intake(), b"")
    read.feed(bytes(size))
    assert read.is_large == large


def answer_to_verification(receiver: Intake) -> Answer:
    request = receiver.begin([], NOW_NS)
    request.feed(VERIFICATION)
    answer = request.finish(complete=True)
    request.close()
    assert isinstance(answer, Answer)
    return answer


def test_url_verifications_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Anybody can send one, unsigned: the line claims no more than that it was answered."""
    receiver = intake()
    with caplog.at_level(logging.INFO):
        for _ in range(300):
            receiver.report(answer_to_verification(receiver))
    assert caplog.messages == ["statsig: a URL verification was answered. Signed events are accepted."]


def test_one_failed_exporter_does_not_hide_another(caplog: pytest.LogCaptureFixture) -> None:
    receiver = intake()
    for message in ("otlp_grpc: refused", "otlp_grpc: timeout", "file: disk full", "file: disk full"):
        error = RefusedError(message, reason="exporter_failed", subject=message.partition(":")[0])
        receiver.report(begin(receiver, b"").refused(error))
    for message in ("a: x", "b: y"):
        receiver.report(begin(receiver, b"").refused(RefusedError(message, reason="disk_full")))
    assert caplog.messages == [
        "statsig: answered 503 (exporter_failed): otlp_grpc: refused",
        "statsig: answered 503 (exporter_failed): file: disk full",
        "statsig: answered 503 (disk_full): a: x",
    ]


def test_past_a_hundred_kinds_the_rest_is_one(caplog: pytest.LogCaptureFixture) -> None:
    throttle = LogThrottle(logging.getLogger("test"))
    for number in range(150):
        for _ in range(2):
            throttle.log(logging.WARNING, f"kind {number}", "%d", number)
    assert caplog.messages == [str(number) for number in range(101)]


def test_timestamps_in_seconds_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """The records have the right time, and somebody can look for the sender of the wrong one."""
    changes = [json.loads(CHANGE) | {"timestamp": time} for time in (1_739_400_185, "1739400186", 1_739_400_185_000)]
    body = json.dumps(changes).encode()
    receiver = intake()
    before = receiver.counts.in_seconds
    for _ in range(2):
        request = begin(receiver, body)
        request.feed(body)
        assert isinstance(request.finish(complete=True), Batch)
        request.taken(Receipt(3))
    assert receiver.counts.in_seconds - before == 4
    said = "config changes with a timestamp of ten digits, read as seconds, not milliseconds: 2"
    assert caplog.text.count(said) == 1  # once in ten seconds


def test_only_records_of_new_changes_count_as_accepted() -> None:
    """A receipt does not say which changes are new, so of a batch with both kinds their share counts."""
    body = json.dumps([json.loads(CHANGE) | {"timestamp": time} for time in (5, 6, 7)]).encode()
    for receipt in (Receipt(3), Receipt(2, 1), Receipt(1, 2), Receipt(0, 3)):
        receiver = intake()
        counts = receiver.counts
        before = counts.accepted, counts.changes, counts.duplicates
        request = begin(receiver, body)
        request.feed(body)
        assert isinstance(request.finish(complete=True), Batch)
        request.taken(receipt)
        after = counts.accepted, counts.changes, counts.duplicates
        added = tuple(now - then for now, then in zip(after, before, strict=True))
        assert added == (receipt.accepted, receipt.accepted, receipt.duplicates), receipt


def answered(receiver: Intake, *items: object) -> None:
    body = json.dumps({"data": items}).encode()
    request = begin(receiver, body)
    request.feed(body)
    batch = request.finish(complete=True)
    assert isinstance(batch, Batch)
    receiver.report(request.taken(Receipt(len(batch.changes))))
    request.close()


def test_invalid_changes_are_a_warning_with_the_first_reason(caplog: pytest.LogCaptureFixture) -> None:
    receiver, broken = intake(), {"eventName": "statsig::config_change"}
    for _ in range(3):
        answered(receiver, broken, json.loads(CHANGE), broken | {"timestamp": 1})
    (line,) = caplog.messages  # once in ten seconds
    said, _, reason = line.partition("; the reason for the first: ")
    assert said == "statsig: config changes that no record could be made of: 2"
    assert reason == "metadata: must be an object, is missing or null"


def test_an_item_that_nothing_keeps_is_counted_though_its_webhook_is_refused() -> None:
    """Each time it comes. Of another refusal no item counts: the same webhook may be accepted later."""
    receiver, body = intake(), json.dumps({"data": [json.loads(CHANGE), {"eventName": "statsig::config_change"}]})
    before = receiver.counts.invalid, receiver.counts.refused
    for reason in ("not_kept", "exporter_failed", "not_kept"):
        request = begin(receiver, body.encode())
        request.feed(body.encode())
        assert isinstance(request.finish(complete=True), Batch)
        request.refused(RefusedError("nothing keeps it", reason=reason))
        request.close()
    assert (receiver.counts.invalid - before[0], receiver.counts.refused - before[1]) == (2, 3)


def test_a_refusal_is_logged_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    receiver = intake(max_request_body_size=10)
    for headers in ([(b"content-encoding", b"gzip")], [(b"content-length", b"11")], [(b"content-length", b"x")]):
        with pytest.raises(AnsweredError) as caught:
            receiver.begin(headers, NOW_NS)
        receiver.report(caught.value.answer)
    assert [line.removeprefix("statsig: answered ") for line in caplog.messages] == [
        "415 (content_encoding): the body is compressed: Statsig does not compress, so look at what a proxy does",
        "413 (too_large): the body is larger than max_request_body_size: raise it if Statsig sent this",
        "400 (content_length): Content-Length is repeated or malformed: look at what a proxy does",
    ]


def test_an_accepted_webhook_is_told_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    receiver = intake()
    with caplog.at_level(logging.DEBUG):
        answered(receiver, json.loads(CHANGE), {"eventName": "statsig::gate_exposure"})
    assert caplog.messages == ["statsig: answered 200: 1 accepted, 0 duplicates, 1 ignored, 0 invalid"]


def test_a_webhook_with_a_wrong_time_is_refused_with_both_clocks_times() -> None:
    """Who sees both knows which clock is wrong."""
    for ahead, shown in (
        (-47 * 60, "the webhook's time is 21:26:20, this machine's 22:13:20 UTC"),
        (86_400, "the webhook's time is 2023-11-15 22:13:20, this machine's 2023-11-14 22:13:20 UTC"),
        (8_299_999_999, "the webhook's time is 2286-11-20 17:46:39, this machine's 2023-11-14 22:13:20 UTC"),
    ):
        signed = sign(CHANGE, secret=SECRET, timestamp_ms=NOW_NS // 1_000_000 + ahead * 1000)
        request = intake().begin([(name.encode(), value.encode()) for name, value in signed.items()], NOW_NS)
        request.feed(CHANGE)
        answer = request.finish(complete=True)
        assert isinstance(answer, Answer)
        assert answer.reason == "timestamp_outside_tolerance"
        assert answer.detail.endswith(f"; {shown}")
        assert "UTC" not in json.dumps(answer.body), "that is for the log alone"


def test_a_difference_of_whole_or_half_hours_names_the_time_zone() -> None:
    def zone(ahead: float) -> str:
        signed = sign(CHANGE, secret=SECRET, timestamp_ms=NOW_NS // 1_000_000 + int(ahead * 1000))
        request = intake().begin([(name.encode(), value.encode()) for name, value in signed.items()], NOW_NS)
        answer = request.finish(complete=True)
        assert isinstance(answer, Answer)
        return answer.detail.partition(" UTC")[2]

    for hours in (0.5, 1, 5.5, 9, 14):
        for sign_of in (1, -1):
            for off in (-120, 0, 40, 120):
                said = f". About {hours:g} h apart: most likely one of the clocks is set by another time zone"
                assert zone(sign_of * (hours * 3600 + off)) == said
    for ahead in (420, 1679, 1921, 9 * 3600 + 121, 14.5 * 3600, 24 * 3600):
        assert zone(ahead) == zone(-ahead) == ""
