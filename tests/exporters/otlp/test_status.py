"""The table from a backend's answer to an outcome: complete, and deaf to nonsense."""

from dataclasses import replace
from email.utils import formatdate
from functools import partial
from http import HTTPStatus

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2  # type: ignore[import-untyped] # it has no py.typed
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo  # type: ignore[import-untyped] # it has no py.typed
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # as above
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.exporters.delivery.retry import LONGEST_ASKED
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, PartiallyRejected, Rejected, RetryLater
from statsig_otel.exporters.network import answers
from statsig_otel.exporters.otlp import status as table
from statsig_otel.exporters.otlp.protocols import NOT_HTTP2, SPEAKS_HTTP1, Spoken, not_understood
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings
from tests.looped import looped
from tests.peers.otlp_servers import partial_success, retry_info

grpc_failure = partial(table.grpc_failure, settings=OtlpGrpcSettings(endpoint="localhost:4317"))

NOW = 1_700_000_000.0

GRPC = {
    "CANCELLED": RetryLater,
    "UNKNOWN": RetryLater,
    "INVALID_ARGUMENT": Rejected,
    "DEADLINE_EXCEEDED": RetryLater,
    "NOT_FOUND": Blocked,
    "ALREADY_EXISTS": Blocked,
    "PERMISSION_DENIED": Blocked,
    "RESOURCE_EXHAUSTED": RetryLater,
    "FAILED_PRECONDITION": Blocked,
    "ABORTED": RetryLater,
    "OUT_OF_RANGE": RetryLater,
    "UNIMPLEMENTED": Blocked,
    "INTERNAL": RetryLater,
    "UNAVAILABLE": RetryLater,
    "DATA_LOSS": RetryLater,
    "UNAUTHENTICATED": Blocked,
}
GRPC_MAY_BE_DATA = {"INTERNAL", "UNKNOWN"}
HTTP_RETRY_LATER = {408, 425, 429, *range(500, 600)} - {501, 505}
HTTP_REJECTED = {400, 413, 422}


def http_expected(status: int) -> type[Outcome]:
    if status in HTTP_RETRY_LATER:
        return RetryLater
    return Rejected if status in HTTP_REJECTED else Blocked


def reason(outcome: Outcome) -> str:
    assert not isinstance(outcome, Delivered)
    return outcome.reason


def may_be_data(outcome: Outcome) -> bool:
    return isinstance(outcome, RetryLater) and outcome.may_be_data


def test_the_expectation_names_every_grpc_code_but_ok() -> None:
    assert {code.name for code in grpc.StatusCode} - {"OK"} == set(GRPC)


@looped("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_grpc_code_has_its_outcome(code: grpc.StatusCode) -> None:
    outcome = grpc_failure(code.value[0], "so it is")
    assert type(outcome) is GRPC[code.name]
    assert reason(outcome) == f"{code.name}: so it is"
    assert may_be_data(outcome) == (code.name in GRPC_MAY_BE_DATA)


@pytest.mark.parametrize("code", [-1, 17, 99, 2**31])
def test_a_grpc_code_outside_the_enumeration_is_blocked(code: int) -> None:
    assert grpc_failure(code, "") == Blocked(f"gRPC code {code}")


@looped("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_retry_info_makes_only_resource_exhausted_retryable(code: grpc.StatusCode) -> None:
    outcome = grpc_failure(code.value[0], "message larger than max", retry_info(3, code=code.value[0]))
    expected = RetryLater if code is grpc.StatusCode.RESOURCE_EXHAUSTED else GRPC[code.name]
    assert type(outcome) is expected
    if isinstance(outcome, RetryLater):
        assert outcome.after == 3.0


def test_every_http_status_has_its_outcome() -> None:
    for status in (*range(100, 200), *range(300, 600)):
        outcome = answers.http_failure(status, b"so it is")
        assert type(outcome) is http_expected(status), status
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
        assert reason(outcome) == " ".join(f"HTTP {status} {phrase}".split()) + ": so it is"
        assert may_be_data(outcome) == (status == 500)


@pytest.mark.parametrize("status", [0, 600, 999])
def test_an_http_status_outside_all_classes_is_blocked(status: int) -> None:
    assert answers.http_failure(status) == Blocked(f"HTTP {status}")


def test_retry_after_is_honoured_by_every_retryable_http_status() -> None:
    for status in HTTP_RETRY_LATER:
        outcome = answers.http_failure(status, retry_after="7", now=NOW)
        assert isinstance(outcome, RetryLater), status
        assert outcome.after == 7.0


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        pytest.param(b"", (False, None), id="no details"),
        pytest.param(b"\xff\xfe garbage", (False, None), id="no Status"),
        pytest.param(Status(code=8).SerializeToString(), (False, None), id="a Status without details"),
        pytest.param(retry_info(5), (True, 5.0), id="seconds"),
        pytest.param(retry_info(0, 250_000_000), (True, 0.25), id="nanoseconds"),
        pytest.param(retry_info(0), (True, 0.0), id="no wait"),
        pytest.param(retry_info(None), (True, None), id="without a delay"),
        pytest.param(retry_info(-5), (True, None), id="negative"),
        pytest.param(retry_info(10**11), (True, 3600.0), id="absurd"),
    ],
)
def test_retry_info(details: bytes, expected: tuple[bool, float | None]) -> None:
    assert table.retry_info(details) == expected


def test_retry_info_is_found_among_other_details() -> None:
    status = Status(code=14)
    status.details.add().Pack(ErrorInfo(reason="QUOTA"))
    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=2)))
    assert table.retry_info(status.SerializeToString()) == (True, 2.0)


def test_retry_info_whose_own_bytes_are_broken_says_nothing() -> None:
    status = Status(code=14)
    status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\x0a\xff")
    assert table.retry_info(status.SerializeToString()) == (False, None)


@looped(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7\t", 7.0),
        ("007", 7.0),
        ("99999999999", 3600.0),
        ("9" * 5000, 3600.0),
        ("-1", None),
        ("+7", None),
        ("1.5", None),
        ("7s", None),
        ("1_0", None),
        ("٧", None),
        ("", None),
        ("soon", None),
        ("7, 8", None),
        (formatdate(NOW + 42, usegmt=True), 42.0),
        ("Tuesday, 14-Nov-23 22:14:02 GMT", 42.0),  # RFC 850, which RFC 9110 still wants to be read
        ("Tue Nov 14 22:14:02 2023", 42.0),  # asctime, the same
        (formatdate(NOW, usegmt=True), 0.0),
        (formatdate(NOW - 1, usegmt=True), None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("Fri, 31 Feb 2023 23:59:59 GMT", None),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("Mon, 00 Xyz 0000 99:99:99 GMT", None),
    ],
)
def test_retry_after(value: str, expected: float | None) -> None:
    assert answers.parse_retry_after(value, NOW) == expected


DATE_LIKE = st.from_regex(r"[A-Z][a-z]{2,8},? [A-Za-z0-9 :-]{12,32}", fullmatch=True)


@given(value=st.text() | DATE_LIKE, now=st.floats(0, 4e9))
def test_any_retry_after_is_nothing_or_a_bounded_wait(value: str, now: float) -> None:
    after = answers.parse_retry_after(value, now)
    assert after is None or 0 <= after <= LONGEST_ASKED


PROTOBUF_LIKE = st.builds(
    lambda value, tail: (
        Status(details=[{"type_url": "type.googleapis.com/google.rpc.RetryInfo", "value": value}]).SerializeToString()
        + tail
    ),
    st.binary() | st.builds(retry_info, st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1)),
    st.binary(max_size=3),
)


@given(details=st.binary() | PROTOBUF_LIKE, code=st.integers(0, 20), message=st.text())
def test_any_status_details_give_an_outcome(details: bytes, code: int, message: str) -> None:
    """Whatever a trailer holds, nothing is raised, and the code alone decides where it says nothing."""
    found, after = table.retry_info(details)
    assert after is None or (found and 0 <= after <= LONGEST_ASKED)
    assert isinstance(grpc_failure(code, message, details), Outcome)


@given(
    body=st.binary(),
    content_type=st.sampled_from(["", "application/x-protobuf", "application/json", "text/plain; charset=x"]),
    count=st.integers(1, 1000),
    status=st.integers(100, 599),
)
def test_any_body_gives_an_outcome(body: bytes, content_type: str, count: int, status: int) -> None:
    outcome = table.success(body, count, content_type=content_type).outcome
    assert outcome == Delivered() or (isinstance(outcome, PartiallyRejected) and 1 <= outcome.count <= count)
    assert isinstance(answers.http_failure(status, body, content_type=content_type), Outcome)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"", table.Success(Delivered()), id="empty"),
        pytest.param(
            b"\xff",
            table.Success(Delivered(), f"the answer is not OTLP ({answers.PROTOBUF}): \ufffd", is_otlp=False),
            id="else",
        ),
        pytest.param(partial_success(0), table.Success(Delivered()), id="nothing refused"),
        pytest.param(partial_success(0, "old\nclient"), table.Success(Delivered(), "old client"), id="only a warning"),
        pytest.param(partial_success(-3, "odd"), table.Success(Delivered(), "odd"), id="negative"),
        pytest.param(partial_success(3, "too old"), table.Success(PartiallyRejected(3, "too old")), id="some refused"),
        pytest.param(partial_success(1), table.Success(PartiallyRejected(1, "no reason given")), id="without a reason"),
        pytest.param(partial_success(99, "x"), table.Success(PartiallyRejected(5, "x")), id="more than were sent"),
    ],
)
def test_success(body: bytes, expected: table.Success) -> None:
    assert table.success(body, 5) == expected


@looped(
    ("body", "content_type", "expected"),
    [
        (b'{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"m"}}', "application/json", 2),
        (b'{"partialSuccess":{"rejectedLogRecords":2}, "new": 1}', "Application/JSON; charset=utf-8", 2),
        (b'{"partialSuccess":{"rejectedLogRecords":1e400}}', "application/json", 0),
        (b"[" * 100_000, "application/json", 0),
        (partial_success(2), "", 2),
        (partial_success(2), "application/protobuf", 2),
        (partial_success(2), "application/octet-stream", 2),
        (partial_success(2), "text/plain", 0),
        (b"ok", "text/plain", 0),
    ],
)
def test_success_of_other_content_types(body: bytes, content_type: str, expected: int) -> None:
    outcome = table.success(body, 5, content_type=content_type).outcome
    assert (outcome.count if isinstance(outcome, PartiallyRejected) else 0) == expected


@looped(
    ("body", "content_type"),
    [
        (b"Welcome", "text/html"),
        (b"Welcome", "Text/HTML; charset=utf-8"),
        (b"<!DOCTYPE html><title>Home</title>", ""),
        (b"\xef\xbb\xbf\r\n <HTML lang=en>", answers.PROTOBUF),
        (b"<html>", "application/json"),
        (b"Welcome", "application/xhtml+xml"),
        (
            b'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">',
            "text/xml",
        ),
    ],
)
def test_a_web_page_is_not_a_delivery(body: bytes, content_type: str) -> None:
    answer = table.success(body, 5, content_type=content_type, url="https://example.com/v1/logs")
    assert isinstance(answer.outcome, Blocked)
    assert "https://example.com/v1/logs answers with a web page" in answer.outcome.reason


@looped(
    ("body", "content_type", "warns"),
    [
        (b"", "text/plain", False),
        (b"", "text/html", False),  # as a web framework answers by default
        (b"\r\n", "text/html", False),
        (b"", "application/json", False),
        (b"{}", "application/json", False),
        (b"{\n}\n", "application/json", False),
        (b'{"partialSuccess": null}', "application/json", False),
        (b'{"partial_success": {}}', "application/json", False),
        (b' {"partialSuccess": {}}', "application/json", False),
        (b'{"code":0,"text":"Success"}', "application/json", True),
        (b"nonsense", "application/json", True),
        *((body, "application/json", True) for body in (b'""', b"[]", b"0", b"null", b"true", b'"partialSuccess"')),
        (b"ok", "text/plain", True),
        (b"<title>no page", "", True),
        (b'<?xml version="1.0"?><answer/>', "text/xml", True),
    ],
)
def test_an_answer_that_is_not_otlp_is_a_warning(body: bytes, content_type: str, warns: bool) -> None:
    answer = table.success(body, 5, content_type=content_type)
    assert answer.outcome == Delivered()
    assert answer.warning.startswith("the answer is not OTLP") == warns


def test_of_a_body_that_was_not_read_to_its_end_only_a_web_page_counts() -> None:
    refused = partial_success(2)
    assert table.success(refused, 5, is_complete=False) == table.Success(Delivered())
    assert table.success(b"{", 5, content_type="application/json", is_complete=False) == table.Success(Delivered())
    for body, content_type in ((b"", "text/html"), (b"<html>", "")):
        answer = table.success(body, 5, content_type=content_type, is_complete=False)
        assert isinstance(answer.outcome, Blocked)


def test_grpc_s_words_about_an_answer_that_is_not_grpc_do_not_blame_the_data() -> None:
    """By grpcio's code for them, most are UNKNOWN, which may be about the data."""
    for status in range(201, 600):
        over_http = answers.http_failure(status)
        outcome = grpc_failure(2, f"Received http2 header with status: {status}")
        assert not isinstance(over_http, Delivered)
        assert outcome == replace(over_http, reason=reason(outcome))
    for code in (2, 13, 14):
        assert isinstance(grpc_failure(code, "No status received"), Blocked)
    assert grpc_failure(2, "Stream removed") == RetryLater("UNKNOWN: Stream removed")
    assert grpc_failure(2, "upstream: No status received") == RetryLater(
        "UNKNOWN: upstream: No status received", may_be_data=True
    )


def test_http_failures_name_the_url_and_where_a_redirect_leads() -> None:
    url, key = "http://backend:4318/v1/logs", "secret-key"
    assert reason(answers.http_failure(404, url=url)) == f"HTTP 404 Not Found from {url}"
    location = f"https://backend/login/{key}?next={key}"
    moved = reason(answers.http_failure(302, location=location, url=url, hide=[key]))
    assert moved == f"HTTP 302 Found to https://backend/login/[REDACTED] from {url}"
    assert reason(answers.http_failure(302, url=url)) == f"HTTP 302 Found from {url}"
    assert "elsewhere" not in reason(answers.http_failure(400, location="elsewhere"))


@looped(
    ("message", "expected"),
    [
        ("(Expected SETTINGS frame as the first frame, got frame type 79)", Blocked),
        (
            "(Expected SETTINGS frame as the first frame, got frame type 80) (Trying to connect an http1.x server)",
            Blocked,
        ),
        ("(... got frame type 80) (Trying to connect an http1.x server (HTTP status 404))", Blocked),
        ("(... got frame type 80) (Trying to connect an http1.x server (HTTP status 503))", RetryLater),
        ("Trying to connect an http1.x server (HTTP status 400)", Blocked),  # up to grpcio 1.84
        ("(Expected SETTINGS frame as the first frame, got frame type 45)", RetryLater),
        ("", RetryLater),  # up to grpcio 1.84, of all that is not HTTP/2 and has no status line
    ],
)
def test_a_port_for_http_is_named(message: str, expected: type[Outcome]) -> None:
    outcome = grpc_failure(14, f"failed to connect to all addresses; last error: Failed parsing HTTP/2 {message}")
    assert type(outcome) is expected
    names_another = reason(outcome).startswith(f"this port {NOT_HTTP2.message}")
    assert names_another == (expected is RetryLater and "HTTP status" not in message)
    assert reason(outcome).startswith(f"this port {SPEAKS_HTTP1.message}") == (expected is Blocked)


@looped(
    ("message", "expected"),
    [
        ("failed to connect to all addresses; last error: UNKNOWN: x: CERTIFICATE_VERIFY_FAILED: expired", Blocked),
        ("failed to connect to all addresses; last error: x: Hostname Verification Check failed.", Blocked),
        ("failed to connect to all addresses; last error: Peer name a is not in peer certificate", Blocked),
        ("failed to connect to all addresses; last error: x: TLSV1_ALERT_UNKNOWN_CA: OK", Blocked),
        ("failed to connect to all addresses; last error: x: SSLV3_ALERT_BAD_CERTIFICATE: OK", Blocked),
        ("failed to connect to all addresses; last error: x: SSLV3_ALERT_HANDSHAKE_FAILURE: OK", RetryLater),
        ("failed to connect to all addresses; last error: x: WRONG_VERSION_NUMBER", RetryLater),
        ("failed to connect to all addresses; last error: x: Connection refused", RetryLater),
        # A gateway telling of its own trouble is up, and may come right by itself.
        ("no backend: CERTIFICATE_VERIFY_FAILED", RetryLater),
    ],
)
def test_unavailable_for_a_certificate_is_blocked(message: str, expected: type[Outcome]) -> None:
    assert type(grpc_failure(14, message)) is expected


def test_a_response_too_large_for_us_is_delivered() -> None:
    """A limit of ours says nothing about the data; the server's own limit does."""
    ours = f"CLIENT: Received message larger than max (5242880 vs. {table.MAX_RESPONSE_BYTES})"
    theirs = "grpc: received message larger than max (5242880 vs. 4194304)"
    assert grpc_failure(8, ours) == Delivered()
    assert isinstance(grpc_failure(8, theirs), Rejected)


@looped(
    ("message", "expected"),
    [
        ("grpc: received message larger than max (5242880 vs. 4194304)", Rejected),
        ("grpc: received message after decompression larger than max 4194304", Rejected),
        ("gRPC message exceeds maximum size 4194304: 5242880", Rejected),
        ("received metadata size exceeds hard limit", Rejected),
        ("max message size exceeded", Rejected),
        ("Request too large", Rejected),
        ("TRACE_TOO_LARGE: max size of trace (5000000) exceeded", Rejected),
        ("", RetryLater),
        ("rate limit exceeded", RetryLater),
        ("too many requests", RetryLater),
        ("Bandwidth exhausted or memory limit exceeded", RetryLater),
        ("Memory quota exhausted", RetryLater),
        ("Ingestion rate limit exceeded (limit: 4194304 bytes/sec) while attempting to ingest 9 lines", RetryLater),
        ("RATE_LIMITED: ingestion rate limit (15000000 bytes) exceeded while adding 4096 bytes", RetryLater),
    ],
)
def test_resource_exhausted_is_about_the_data_only_if_something_is_too_large(
    message: str, expected: type[Outcome]
) -> None:
    assert type(grpc_failure(8, message)) is expected


def test_the_message_of_a_status_body_is_read() -> None:
    status = Status(code=3, message="bad\x00data")
    binary, text = status.SerializeToString(), b'{"code": 3, "message": "bad data"}'
    assert answers.http_failure(400, binary, content_type=answers.PROTOBUF) == Rejected(
        "HTTP 400 Bad Request: bad data"
    )
    assert answers.http_failure(400, text, content_type="application/json") == Rejected(
        "HTTP 400 Bad Request: bad data"
    )


@given(text=st.text())
def test_a_reason_is_one_bounded_printable_line(text: str) -> None:
    line = answers.one_line(text)
    assert len(line) <= answers.MAX_MESSAGE_CHARS
    assert line.isprintable()
    assert line == line.strip()


def test_a_long_message_is_cut_with_dots() -> None:
    assert answers.one_line("ab" * 1000) == ("ab" * 1000)[:297] + "..."


@looped(
    ("text", "hide", "expected"),
    [
        ("no key abcdefgh here", ["abcdefgh"], "no key [REDACTED] here"),
        ("got Bearer  abcdefgh!", ["Bearer abcdefgh"], "got [REDACTED]!"),
        ("key abcdefgh is old", ["Bearer abcdefgh"], "key [REDACTED] is old"),
        ("xabcdefghx", ["abcdefgh"], "x[REDACTED]x"),
        ("tenant a is away", ["a"], "tenant [REDACTED] is away"),
        ("a.*.*.*.*b", [".*.*.*.*"], "a[REDACTED]b"),
        ("abcdefgh12", ["abcdefgh", "abcdefgh12"], "[REDACTED]"),
        ("nothing", ["", " "], "nothing"),
    ],
)
def test_a_reason_hides_header_values(text: str, hide: list[str], expected: str) -> None:
    assert answers.one_line(text, hide) == expected


SECRETS = st.text(st.characters(codec="latin-1", exclude_categories=["Cc", "Cf", "Zs"]), min_size=8, max_size=40)


@given(secret=SECRETS, before=st.text(), after=st.text())
def test_no_long_header_value_is_ever_seen(secret: str, before: str, after: str) -> None:
    """Neither cut in half by the bound nor glued to other text."""
    for outcome in (
        grpc_failure(16, before + secret + after, hide=[secret]),
        answers.http_failure(401, (secret * 40 + after).encode("utf-8", "replace"), hide=[secret]),
    ):
        assert secret not in reason(outcome).replace("[REDACTED]", "\n")


def test_a_blocked_exporter_says_what_to_do() -> None:
    settings = OtlpGrpcSettings(endpoint="http://127.0.0.1:4317")

    def hint(outcome: object) -> str:
        assert isinstance(outcome, Blocked)
        return outcome.hint

    for status, code, said in (
        (401, code_pb2.UNAUTHENTICATED, "replace the key (headers)"),
        (403, code_pb2.PERMISSION_DENIED, "let the key (headers) write logs, or replace it"),
        (404, code_pb2.UNIMPLEMENTED, "correct the address (endpoint)"),
        (301, code_pb2.NOT_FOUND, "repair the key (headers), the address (endpoint) or the certificate (tls)"),
    ):
        assert hint(answers.http_failure(status)) == said
        assert hint(table.grpc_failure(code, "no", settings=settings)) == said
    assert hint(table.success(b"<html>", 1).outcome) == "correct the address (endpoint)"
    assert hint(not_understood(Spoken.HTTP1, settings, "x")) == SPEAKS_HTTP1.hint
