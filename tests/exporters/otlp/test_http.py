"""The OTLP/HTTP exporter against real servers."""

import gzip
import threading
import time
import tracemalloc
from email.utils import formatdate

import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # the package has no py.typed
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel import __version__
from statsig_otel.config.opaque import Opaque
from statsig_otel.exporters.delivery.guarded import TOO_LITTLE_MEMORY
from statsig_otel.exporters.exporter import (
    Blocked,
    Delivered,
    Exporter,
    Outcome,
    PartiallyRejected,
    Rejected,
    RetryLater,
)
from statsig_otel.exporters.otlp.http import OtlpHttpExporter
from statsig_otel.exporters.otlp.protocols import NOT_HTTP1, SEE_ITS_LOG, SPEAKS_HTTP2
from statsig_otel.exporters.otlp.settings import OtlpHttpSettings
from statsig_otel.exporters.otlp.status import MAX_RESPONSE_BYTES
from tests.exporters.otlp.over_http import exporting, send_to
from tests.exporters.otlp.requests import LONG, encoded, trust
from tests.exporters.otlp.test_status import http_expected
from tests.looped import slow_except
from tests.peers.certs import Authority, ServerTls
from tests.peers.otlp_servers import (
    GrpcSink,
    HttpAnswer,
    HttpSink,
    RawServer,
    partial_success,
)


def test_it_keeps_the_contract_of_an_exporter() -> None:
    exporter: Exporter = OtlpHttpExporter("otlp_http", OtlpHttpSettings(endpoint="http://localhost:4318"))
    assert isinstance(exporter.send(b"", 0, 1.0), RetryLater), "not started"
    exporter.shutdown()
    exporter.shutdown()


def test_concatenated_requests_arrive_as_one(sink: HttpSink) -> None:
    """Two stored records, joined as bytes, are one request with two records."""
    with exporting(sink.url) as exporter:
        assert exporter.send(encoded("one") + encoded("two"), 2, LONG) == Delivered()
    (request,) = sink.requests
    assert [record.body.string_value for record in request.records] == ["one", "two"]


def test_the_request_is_what_the_specification_asks_for(sink: HttpSink) -> None:
    assert send_to(sink.url, headers={"Authorization": "Bearer hush", "x-scope-orgid": "7"}) == Delivered()
    (request,) = sink.requests
    assert request.path == "/v1/logs"
    assert request.headers == {
        "host": sink.address,
        "accept-encoding": "identity",
        "content-length": str(len(request.body)),
        "content-type": "application/x-protobuf",
        "content-encoding": "gzip",
        "user-agent": f"statsig-otel/{__version__}",
        "authorization": "Bearer hush",
        "x-scope-orgid": "7",
    }


def test_the_logs_endpoint_is_used_as_it_is(sink: HttpSink) -> None:
    for path in ("/in?key=1", "/", ""):
        assert send_to(logs_endpoint=sink.url + path) == Delivered()
    assert [request.path for request in sink.requests] == ["/in?key=1", "/", "/"]


def test_json_is_what_a_receiver_of_json_reads(sink: HttpSink) -> None:
    """The same records as in protobuf, and its answer may be JSON too."""
    payload = encoded("one") + encoded("zwei \u20ac")
    as_json = {"Content-Type": "application/json"}
    sink.answer = HttpAnswer(
        body=b'{"partialSuccess": {"rejectedLogRecords": "1", "errorMessage": "no"}}', headers=as_json
    )
    for compression in ("gzip", "none"):
        with exporting(sink.url, encoding="json", compression=compression) as exporter:
            assert exporter.send(payload, 2, LONG) == PartiallyRejected(1, "no")
    for request in sink.requests:
        assert request.headers["content-type"] == "application/json"
        read = json_format.Parse(request.payload, ExportLogsServiceRequest())
        assert read == ExportLogsServiceRequest.FromString(payload)


def test_what_is_not_a_request_can_t_become_json(sink: HttpSink) -> None:
    with exporting(sink.url, encoding="json") as exporter:
        assert isinstance(exporter.send(b"\xff", 1, LONG), Rejected)
    assert not sink.requests


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_compression(sink: HttpSink, compression: str) -> None:
    payload = encoded("z" * 200_000)
    with exporting(sink.url, compression=compression) as exporter:
        assert exporter.send(payload, 1, LONG) == Delivered()
    (request,) = sink.requests
    assert request.payload == payload
    assert request.headers.get("content-encoding") == ("gzip" if compression == "gzip" else None)
    assert (request.body == payload) is (compression == "none")


@pytest.mark.parametrize("step", slow_except([11, 1], 11))
def test_every_status_over_the_wire(sink: HttpSink, step: int) -> None:
    """100 is left out, since it announces another status and is none by itself."""
    with exporting(sink.url) as exporter:
        for status in range(101, 600, step):
            sink.answer = HttpAnswer(status=status, close_after=status < 200)
            outcome = exporter.send(encoded(), 1, LONG)
            assert type(outcome) is (Delivered if 200 <= status < 300 else http_expected(status)), status
        assert len(sink.requests) == len(range(101, 600, step)), "nothing is sent twice, nor to another place"


def test_a_redirect_is_not_followed(sink: HttpSink) -> None:
    sink.answer = HttpAnswer(status=307, headers={"Location": f"{sink.url}/other"})
    place = f"to {sink.url}/other from {sink.url}/v1/logs"
    assert send_to(sink.url) == Blocked(f"HTTP 307 Temporary Redirect {place}")
    assert len(sink.requests) == 1


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("http://user:s3cr3t@login.example/a@b?token=s3cr3t", "http://login.example/a@b"),
        ("//user@login.example#s3cr3t", "//login.example"),
        ("/login?next=http://a@b/", "/login"),
    ],
)
def test_a_redirect_is_shown_without_credentials_and_query(sink: HttpSink, location: str, shown: str) -> None:
    sink.answer = HttpAnswer(status=302, headers={"Location": location})
    assert send_to(sink.url) == Blocked(f"HTTP 302 Found to {shown} from {sink.url}/v1/logs")


def test_retry_after_over_the_wire(sink: HttpSink) -> None:
    sink.answer = HttpAnswer(status=503, headers={"Retry-After": "17"}, body=Status(message="busy").SerializeToString())
    assert send_to(sink.url) == RetryLater(f"HTTP 503 Service Unavailable from {sink.url}/v1/logs: busy", 17.0)
    sink.answer = HttpAnswer(status=429, headers={"Retry-After": formatdate(time.time() + 600, usegmt=True)})
    outcome = send_to(sink.url)
    assert isinstance(outcome, RetryLater)
    assert outcome.after is not None
    assert 500 < outcome.after <= 600
    sink.answer = HttpAnswer(status=502, headers={"Retry-After": "soon"})
    assert send_to(sink.url) == RetryLater(f"HTTP 502 Bad Gateway from {sink.url}/v1/logs")


def test_a_date_to_retry_at_counts_from_the_server_s_clock(sink: HttpSink) -> None:
    """Ours may be wrong by years: the wait must not be."""
    then = time.time() - 400 * 86400
    dates = {"Date": formatdate(then, usegmt=True), "Retry-After": formatdate(then + 30, usegmt=True)}
    sink.answer = HttpAnswer(status=503, headers=dates)
    assert send_to(sink.url) == RetryLater(f"HTTP 503 Service Unavailable from {sink.url}/v1/logs", 30.0)
    sink.answer = HttpAnswer(status=503, headers={**dates, "Date": "Mon, 99 Foo 2026 25:00:00 GMT"})
    assert send_to(sink.url) == RetryLater(f"HTTP 503 Service Unavailable from {sink.url}/v1/logs")


def test_a_quoted_header_value_is_hidden(sink: HttpSink) -> None:
    sink.answer = HttpAnswer(status=401, headers={"Content-Type": "text/plain"}, body=b"bad key\r\nhush-hush-hush")
    outcome = send_to(sink.url, headers={"authorization": "Bearer hush-hush-hush"})
    assert outcome == Blocked(f"HTTP 401 Unauthorized from {sink.url}/v1/logs: bad key [REDACTED]")
    outcome = send_to(logs_endpoint=f"{sink.url}/in?hush-hush-hush")
    assert outcome == Blocked(f"HTTP 401 Unauthorized from {sink.url}/in: bad key [REDACTED]")


def test_partial_success(sink: HttpSink) -> None:
    sink.answer = HttpAnswer(body=partial_success(2, "too old"))
    with exporting(sink.url) as exporter:
        assert exporter.send(encoded() * 3, 3, LONG) == PartiallyRejected(2, "too old")


def test_a_partial_success_without_refusals_warns_once(sink: HttpSink, caplog: pytest.LogCaptureFixture) -> None:
    sink.answer = HttpAnswer(body=partial_success(0, "please update"))
    with exporting(sink.url) as exporter:
        assert [exporter.send(encoded(), 1, LONG) for _ in range(3)] == [Delivered()] * 3
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == "otlp_http/test: the backend accepted the records with a warning: please update"


@pytest.mark.parametrize(
    "answer",
    [
        HttpAnswer(body=b"\xff\xff"),
        HttpAnswer(body=b"x" * (MAX_RESPONSE_BYTES + 1)),
        HttpAnswer(body=b"not gzip", headers={"Content-Encoding": "gzip"}),
        HttpAnswer(body=partial_success(1, "half of it"), cut="half"),
        HttpAnswer(body=b"zz\r\n", headers={"Transfer-Encoding": "chunked"}, close_after=True),
    ],
    ids=["unreadable", "too large", "not what it says", "cut", "broken chunks"],
)
def test_success_with_a_useless_body_is_delivered(sink: HttpSink, answer: HttpAnswer) -> None:
    """And the next request is not harmed by what was left of it."""
    with exporting(sink.url) as exporter:
        sink.answer = answer
        assert exporter.send(encoded(), 1, LONG) == Delivered()
        sink.answer = HttpAnswer()
        assert exporter.send(encoded(), 1, LONG) == Delivered()


def test_a_partial_success_with_a_sentence_for_each_record_counts(sink: HttpSink) -> None:
    sink.answer = HttpAnswer(body=partial_success(1, "this one is refused too. " * 10_000))
    assert isinstance(send_to(sink.url), PartiallyRejected)


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"[" + b"{}," * (1 << 20), {"Content-Type": "application/json"}),
        (gzip.compress(bytes(16 << 20), 1), {"Content-Type": "text/plain", "Content-Encoding": "gzip"}),
        (b"\xff" * (1 << 20), {"Content-Type": "text/plain"}),
    ],
    ids=["values", "compressed", "not UTF-8"],
)
def test_no_answer_takes_much_memory(sink: HttpSink, status: int, body: bytes, headers: dict[str, str]) -> None:
    sink.answer = HttpAnswer(status, headers, body)
    with exporting(sink.url) as exporter:
        tracemalloc.start()
        try:
            outcome = exporter.send(encoded(), 1, LONG)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert isinstance(outcome, Delivered if status == 200 else RetryLater)
    assert peak < 12 << 20, f"{peak >> 20} MiB"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_early_refusal_of_a_large_body_is_read(authority: Authority, scheme: str) -> None:
    """A server may answer 413 and close before it has read all: that is an answer, no broken connection."""
    tls = ServerTls(authority.issue("127.0.0.1")) if scheme == "https" else None
    with HttpSink(tls=tls) as sink:
        sink.answer = HttpAnswer(status=413, read_body=False)
        with exporting(sink.url, compression="none", tls=trust(authority) if tls else {}) as exporter:
            outcome = exporter.send(encoded("z" * (32 << 20)), 1, LONG)
    assert isinstance(outcome, Rejected)
    assert outcome.reason.startswith("HTTP 413 ")


def test_a_compressed_or_chunked_response_is_read(sink: HttpSink) -> None:
    body = partial_success(1, "too old")
    chunks = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (3, body[:3], len(body) - 3, body[3:])
    with exporting(sink.url) as exporter:
        for answer in (
            HttpAnswer(body=gzip.compress(body), headers={"Content-Encoding": "gzip"}),
            HttpAnswer(body=chunks, headers={"Transfer-Encoding": "chunked"}),
        ):
            sink.answer = answer
            assert exporter.send(encoded(), 1, LONG) == PartiallyRejected(1, "too old")
    assert sink.connections == 1


@pytest.mark.parametrize(
    "answer",
    [HttpAnswer(hang=True), HttpAnswer(drip="head")],
    ids=["silence", "a head byte by byte"],
)
def test_a_server_that_does_not_answer_is_left_after_the_timeout(sink: HttpSink, answer: HttpAnswer) -> None:
    sink.answer = answer
    with exporting(sink.url) as exporter:
        assert exporter.send(encoded(), 1, 0.3) == RetryLater(f"no answer within 0.3 s from {sink.url}/v1/logs")
        sink.answer = HttpAnswer()
        assert exporter.send(encoded(), 1, LONG) == Delivered()


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, Delivered()), (503, RetryLater("HTTP 503 Service Unavailable from here: zzz", 7.0))],
)
def test_a_status_decides_also_where_the_body_drips(sink: HttpSink, status: int, expected: Outcome) -> None:
    headers = {"Retry-After": "7", "Content-Type": "text/plain"}
    sink.answer = HttpAnswer(status=status, headers=headers, drip="body", body=b"z" * 10_000)
    outcome = send_to(sink.url, timeout=0.5)
    if isinstance(outcome, RetryLater):
        assert set(outcome.reason.rpartition(" ")[2]) == {"z"}, "what had come by then"
        said = outcome.reason.rpartition(" ")[0].replace(f"{sink.url}/v1/logs", "here")
        outcome = RetryLater(f"{said} zzz", outcome.after)
    assert outcome == expected


@pytest.mark.parametrize("cut", ["reset", "close"])
def test_a_connection_that_ends_without_an_answer_is_a_passing_fault(sink: HttpSink, cut: str) -> None:
    with exporting(sink.url) as exporter:
        sink.answer = HttpAnswer(cut=cut)
        for _ in range(2):
            assert isinstance(exporter.send(encoded(), 1, LONG), RetryLater)
        sink.answer = HttpAnswer()
        assert exporter.send(encoded(), 1, LONG) == Delivered()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00" * 5000,
        b"HTTP/1.1 2OO OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 500,
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,
        b"z" * 100_000,
    ],
    ids=["closes", "another protocol", "zeros", "bad status", "many headers", "long header", "long line"],
)
def test_a_server_of_another_kind_is_a_passing_fault(reply: bytes) -> None:
    with RawServer(reply) as server:
        assert isinstance(send_to(f"http://{server.address}"), RetryLater)


def test_a_port_for_grpc_is_named() -> None:
    with GrpcSink() as sink:
        outcome = send_to(f"http://{sink.address}")
    assert isinstance(outcome, Blocked)
    place = f"http://{sink.address}/v1/logs"
    assert outcome.reason.startswith(
        f"this port {SPEAKS_HTTP2.message}: {SPEAKS_HTTP2.hint}: BadStatusLine from {place}"
    )


def test_a_port_for_another_protocol_is_named() -> None:
    for reply in (b"SSH-2.0-OpenSSH_9.6\r\n", b"-ERR unknown command\r\n", b"z" * 100_000, b"HTTP/3 200 OK\r\n\r\n"):
        with RawServer(reply) as server:
            outcome = send_to(f"http://{server.address}")
        assert isinstance(outcome, RetryLater)
        assert outcome.reason.startswith(f"this port {NOT_HTTP1.message}: {NOT_HTTP1.hint}: ")


def test_a_connection_that_ends_gets_a_hint_if_it_is_new(authority: Authority) -> None:
    """A server may close a connection that was kept just when the next request comes."""
    tls = ServerTls(authority.issue("127.0.0.1"))
    with GrpcSink(tls=tls) as rpc:
        plain = send_to(f"http://{rpc.address}")
        encrypted = send_to(f"https://{rpc.address}", tls=trust(authority))
    for outcome, hint in (
        (plain, "if it expects TLS, write https:// instead of http://: "),
        (encrypted, f"{SEE_ITS_LOG}; if the port is for OTLP/gRPC, use otlp_grpc: "),
    ):
        assert isinstance(outcome, RetryLater)
        assert outcome.reason.startswith(f"this port ends the connection without an answer: {hint}")
    with HttpSink() as sink, exporting(sink.url) as exporter:
        assert exporter.send(encoded(), 1, LONG) == Delivered()
        sink.answer = HttpAnswer(cut="close")
        outcome = exporter.send(encoded(), 1, LONG)
    assert isinstance(outcome, RetryLater)
    assert outcome.reason.startswith("RemoteDisconnected from ")


def test_a_port_for_https_is_named() -> None:
    """By its alert. Others end the connection, or answer with 400 and a text that says so."""
    with RawServer(b"\x15\x03\x03\x00\x02\x02F") as server:
        outcome = send_to(f"http://{server.address}")
    place = f"http://{server.address}/v1/logs"
    assert isinstance(outcome, Blocked)
    assert outcome.reason.startswith(
        f"this port speaks TLS: write https:// instead of http://: BadStatusLine from {place}"
    )


def test_a_web_page_is_not_a_delivery_and_any_other_answer_is_a_warning_once(
    sink: HttpSink, caplog: pytest.LogCaptureFixture
) -> None:
    sink.answer = HttpAnswer(headers={"Content-Type": "text/html"}, body=b"<h1>Welcome</h1>")
    page = send_to(sink.url)
    assert isinstance(page, Blocked)
    assert page.reason.startswith(f"{sink.url}/v1/logs answers with a web page")
    with exporting(sink.url) as exporter:
        for body in (b"ok", b"ok", b"ok 17", b"{}", b"ok 18"):
            sink.answer = HttpAnswer(headers={"Content-Type": "text/plain"}, body=body)
            assert exporter.send(encoded(), 1, LONG) == Delivered()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [warning.partition(": ")[2] for warning in warnings] == [
        "the backend accepted the records with a warning: the answer is not OTLP (text/plain): ok"
    ]


def test_a_server_without_tls_is_named_with_what_has_an_effect(sink: HttpSink) -> None:
    outcome = send_to(sink.url.replace("http://", "https://"))
    assert isinstance(outcome, RetryLater)
    assert outcome.reason.startswith(
        "this port speaks without TLS: if that is meant, write http:// instead of https://: SSLError"
    )


def test_a_name_that_does_not_resolve_is_a_passing_fault() -> None:
    outcome = send_to("http://does-not-exist.invalid:4318")
    assert isinstance(outcome, RetryLater)
    assert "NameResolutionError" in outcome.reason


def test_what_the_library_raises_unexpectedly_is_blocked_and_logged(
    sink: HttpSink, caplog: pytest.LogCaptureFixture
) -> None:
    """`send` never raises; here the caller breaks the contract by a number in place of bytes."""
    caplog.set_level("DEBUG")
    with exporting(sink.url) as exporter:
        outcome = exporter.send(7, 1, LONG)  # type: ignore[arg-type] # what is tried here
        assert isinstance(outcome, Blocked)
        assert outcome.reason.startswith("unexpected TypeError of the HTTP library")
        assert exporter.send(encoded(), 1, LONG) == Delivered()
    assert "http.py" in caplog.text


def test_a_request_for_which_no_thread_starts_is_tried_later(sink: HttpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user or a container has as many threads as it may have: that passes without anybody's help."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith(" request"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with exporting(sink.url) as exporter:
        assert exporter.send(encoded(), 1, LONG) == Delivered()  # the next request has its connection
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            outcome = exporter.send(encoded(), 1, LONG)
        assert outcome == RetryLater("no thread can be started for the request: can't start new thread")
        assert exporter.send(encoded(), 1, LONG) == Delivered()


def test_a_batch_for_which_there_is_too_little_memory_may_be_the_cause(
    sink: HttpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So its parts are tried, and it is a dead letter only if it never fits."""

    def no_memory(data: bytes, mtime: int) -> bytes:
        raise MemoryError

    with exporting(sink.url, compression="gzip") as exporter:
        with monkeypatch.context() as patched:
            patched.setattr(gzip, "compress", no_memory)
            assert exporter.send(encoded(), 1, LONG) == RetryLater(TOO_LITTLE_MEMORY, may_be_data=True)
        assert exporter.send(encoded(), 1, LONG) == Delivered()


def test_an_error_of_the_library_that_quotes_a_header_is_told_without_it(
    sink: HttpSink, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a header is refused when it is configured; a settings object that nobody has checked gets past that."""
    caplog.set_level("DEBUG")
    headers = {"authorization": Opaque("Bearer s3cr3t-0123456789\nx")}
    exporter = OtlpHttpExporter("otlp_http", OtlpHttpSettings.model_construct(endpoint=sink.url, headers=headers))
    exporter.start()
    try:
        outcome = exporter.send(b"", 1, LONG)
    finally:
        exporter.shutdown()
    assert isinstance(outcome, Blocked)
    assert "ValueError" in outcome.reason
    assert "s3cr3t" not in outcome.reason + caplog.text
