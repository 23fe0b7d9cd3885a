"""The client of the audit log, against a server that plays the published description."""

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.exporters.network.tls import ClientTlsSettings
from statsig_otel.plugin.audit_log.client import AuditLogClient, AuditLogError
from tests.e2e.statsig_client import dead_port
from tests.peers.audit_log import KEY, Anchor, AuditLogServer, answer, audit_entry, cut, failing, hang_up
from tests.peers.certs import Authority
from tests.peers.http_proxy import HttpProxy

BEGIN, END = 1_790_000_000, 1_790_600_000  # a week of September 2026
MIDDLE = (BEGIN + END) // 2


@pytest.fixture
def server() -> Iterator[AuditLogServer]:
    with AuditLogServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Reader:
    """A client that remembers for how long it should have waited, and does not wait."""

    def __init__(self, url: str, key: str = KEY, asked: list[float] | None = None, **tls: object) -> None:
        self.waits: list[float] = []
        self.failures: list[str] = []
        settings = ClientTlsSettings.model_validate(tls)
        self._client = AuditLogClient(
            url, key, tls=settings, timeout=20.0, wait=self.waits.append, failed=self.failures.append, asked=asked
        )

    def ids(self, save: Callable[[bytes], object] = lambda _: None) -> list[str]:
        try:
            return [entry.id for entry in self._client.read(BEGIN, END, save).entries]
        finally:
            self._client.close()


def test_all_pages_of_the_period_are_read(server: AuditLogServer) -> None:
    server.entries = [audit_entry(number, BEGIN + number * 1000) for number in range(130)]
    reader, bodies = Reader(server.url), list[bytes]()
    assert reader.ids(bodies.append) == [entry["id"] for entry in reversed(server.entries)]
    assert reader.waits == []
    assert server.others == []
    newest = server.entries[-1]["id"]
    assert [(one["page"], one["limit"], one.get("latestID")) for one in server.asked] == [
        ("1", "1", None),
        *((str(page), "50", newest) for page in (1, 2, 3, 4)),
    ]
    assert {(one["sortKey"], one["sortOrder"], one["startDate"], one["endDate"]) for one in server.asked} == {
        ("time", "desc", "2026-09-19", "2026-09-30")
    }
    assert len(bodies) == len(server.asked)
    assert KEY.encode() not in b"".join(bodies)


@pytest.mark.parametrize("anchor", ["included", "left out", "ignored"])
def test_nothing_is_missed_when_entries_are_added_between_two_pages(server: AuditLogServer, anchor: Anchor) -> None:
    there = [audit_entry(number, BEGIN + number * 1000) for number in range(120)]
    server.entries, server.anchor = list(there), anchor

    def add() -> None:
        number = len(server.entries)
        server.entries += [audit_entry(number + more, BEGIN + 500_000 + number) for more in range(7)]

    server.after = add
    found = Reader(server.url).ids()
    assert len(found) == len({*found})
    assert {entry["id"] for entry in there} <= {*found}


def test_a_server_that_gives_fewer_entries_than_asked_for_is_read_to_the_end(server: AuditLogServer) -> None:
    server.entries, server.most = [audit_entry(number, MIDDLE + number) for number in range(25)], 10
    assert len(Reader(server.url).ids()) == 25


def test_an_empty_log_is_empty(server: AuditLogServer) -> None:
    assert Reader(server.url).ids() == []
    assert len(server.asked) == 1


@given(st.integers(-14, 14), st.integers(BEGIN, END))
def test_a_server_in_any_time_zone_gives_all_of_the_period(hours: int, second: int) -> None:
    """The dates of the query are without a time zone. Whether the last one is included is not known either."""
    with AuditLogServer() as server:
        reader = Reader(server.url)
        reader.ids()
        begin, end = server.asked[0]["startDate"], server.asked[0]["endDate"]
    date = str(datetime.fromtimestamp(second, timezone(timedelta(hours=hours))).date())
    assert begin < date < end


@pytest.mark.parametrize(
    ("fault", "wait"),
    [
        (failing(429), 10.0),
        (failing(429, Retry_After="33"), 33.0),
        (failing(429, Retry_After="soon"), 10.0),
        (failing(500), 10.0),
        (failing(503, Retry_After="1"), 10.0),
        (cut, 10.0),
        (hang_up, 10.0),
        (lambda handler: answer(handler, 200, {"data": {}}), 10.0),
    ],
    ids=["429", "429 for 33 s", "429 without sense", "500", "503", "cut", "without an answer", "not a page"],
)
def test_what_passes_is_tried_again(
    server: AuditLogServer, fault: Callable[[BaseHTTPRequestHandler], None], wait: float
) -> None:
    server.entries = [audit_entry(number, MIDDLE) for number in range(3)]
    server.faults = [lambda handler: answer(handler, 200, server.page(server.asked[-1])), fault]
    reader = Reader(server.url)
    assert len(reader.ids()) == 3
    assert reader.waits == [wait]


def test_an_answer_that_can_not_be_read_is_kept_and_said_why(server: AuditLogServer) -> None:
    """It is what a report of a fault needs most."""
    server.faults = [lambda handler: answer(handler, 200, {"entries": []})]
    reader = Reader(server.url)
    bodies: list[bytes] = []
    reader.ids(bodies.append)
    assert bodies[0] == b'{"entries": []}'
    assert reader.failures == [f"{server.url}: the answer has no array `data`"]


def test_a_log_in_another_format_is_not_an_empty_one(server: AuditLogServer) -> None:
    server.entries = [audit_entry(number, MIDDLE + number) for number in range(3)]
    page = server.page({})
    for entry in page["data"]:
        entry["date"] = "2026-09-26"
    server.faults = [lambda handler: answer(handler, 200, page)] * 4 + [
        lambda handler: answer(handler, 200, {"data": []})
    ]
    with pytest.raises(AuditLogError, match=r"nothing in the log can be read: the entry id0+ has no date and time"):
        Reader(server.url).ids()


def test_a_page_that_repeats_with_an_entry_that_can_not_be_read_is_not_read_for_ever(server: AuditLogServer) -> None:
    server.entries = [audit_entry(1, MIDDLE), audit_entry(2, MIDDLE, "")]
    page = server.page({})
    server.faults = [lambda handler: answer(handler, 200, page)] * 20
    with pytest.raises(AuditLogError, match="gives the same entries again and again"):
        Reader(server.url).ids()


def test_a_server_that_stays_away_is_given_up(server: AuditLogServer) -> None:
    server.faults = [failing(503)] * 5
    reader = Reader(server.url)
    with pytest.raises(AuditLogError, match=r"HTTP 503 .*not now.*tried 5 times: try again later"):
        reader.ids()
    assert reader.waits == [10.0, 20.0, 40.0, 80.0]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (failing(401), r"HTTP 401 .*use a console key of this project"),
        (failing(403), r"HTTP 403 .*the key may not read the audit log"),
        (failing(404), r"HTTP 404 .*endpoint must be the URL of the audit log"),
        (failing(302, Location="https://example.com/?key=1"), r"HTTP 302 Found to https://example.com/ from"),
        (failing(400), r"HTTP 400 .*not now"),
        (failing(429, Retry_After="3600"), r"HTTP 429 .*asks to wait 3600 s"),
    ],
)
def test_what_does_not_pass_is_told_at_once(
    server: AuditLogServer, fault: Callable[[BaseHTTPRequestHandler], None], message: str
) -> None:
    server.faults = [fault]
    reader = Reader(server.url)
    with pytest.raises(AuditLogError, match=message):
        reader.ids()
    assert reader.waits == []
    assert len(server.asked) == 1, "a redirect is not followed"


def quoting(status: int) -> Callable[[BaseHTTPRequestHandler], None]:
    """A fault: this status, with a message that quotes the key."""
    return lambda handler: answer(handler, status, {"message": f"no {handler.headers['STATSIG-API-KEY']}"})


def test_no_message_shows_the_key(
    server: AuditLogServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor a proxy's password: neither the error, nor those behind it, nor what is logged at debug level."""
    caplog.set_level("DEBUG")
    key, password = "console-of-another-project", "s3cr3t@0123456789abcdef"
    untrusted = Authority().issue("127.0.0.1")
    with (
        AuditLogServer(certificate=untrusted, folder=tmp_path) as encrypted,
        HttpProxy("Basic eDp5", message=f"x:{password} is not Basic eDp5") as proxy,
        dead_port() as port,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://x:{quote(password, safe='')}@127.0.0.1:{proxy.port}")
        proxied = "https://audit.example.com/log"
        cases: list[tuple[str, list[Callable[[BaseHTTPRequestHandler], None]], str]] = [
            (server.url, [], r"HTTP 401 .*Invalid key \[REDACTED\]"),
            (server.url, [failing(401)], r"HTTP 401 .*not now"),
            (server.url, [quoting(500)] * 5, r"HTTP 500 .*no \[REDACTED\].*tried 5 times"),
            (server.url, [failing(500)] * 5, r"HTTP 500 .*not now.*tried 5 times"),
            (server.url, [hang_up] * 5, r"RemoteDisconnected from .*tried 5 times"),
            (server.url, [lambda handler: answer(handler, 200, {"data": key})] * 5, r"the answer has no array"),
            (f"http://127.0.0.1:{port}/log", [], r"ConnectionRefusedError from .*tried 5 times"),
            (encrypted.url, [], r"the server's certificate is not trusted"),
            (proxied, [], r"Tunnel connection failed: 407 x:\[REDACTED\] is not .*tried 5 times"),
        ]
        for url, faults, message in cases:
            server.faults = faults
            reader = Reader(url, key)
            with pytest.raises(AuditLogError, match=message) as caught:
                reader.ids()
            said = [*traceback.format_exception(caught.value), *reader.failures, caplog.text]
            assert not [line for line in said if key in line or password in line]


def test_a_server_that_ignores_the_page_or_the_dates_is_noticed(server: AuditLogServer) -> None:
    server.entries = [audit_entry(number, MIDDLE) for number in range(3)]
    same = server.page({"limit": "50", "page": "1"})
    server.faults = [lambda handler: answer(handler, 200, same)] * 9
    with pytest.raises(AuditLogError, match="gives the same entries again and again"):
        Reader(server.url).ids()
    old = {"data": [audit_entry(number, BEGIN - 90 * 86_400) for number in range(50)]}
    server.faults, server.asked = [lambda handler: answer(handler, 200, old)] * 9, []
    Reader(server.url).ids()
    assert len(server.asked) == 1


def test_it_stays_below_half_of_the_published_rate_limit(server: AuditLogServer) -> None:
    server.entries, server.most = [audit_entry(number, MIDDLE) for number in range(45)], 1
    reader = Reader(server.url)
    assert len(reader.ids()) == 45
    # 47 requests are due without a pause, and the clock has hardly moved: from the 41st on each has to wait.
    assert 0 < len(reader.waits) <= 7
    assert all(0 < wait <= 10 for wait in reader.waits)


def test_several_readers_in_a_row_keep_the_limit_together(server: AuditLogServer) -> None:
    server.entries = [audit_entry(1, MIDDLE)]
    asked = [time.monotonic() + 3600] * 39  # so late that no machine is too slow for this
    reader = Reader(server.url, asked=asked)
    assert len(reader.ids()) == 1
    assert (len(server.asked), len(asked), len(reader.waits)) == (3, 42, 2)


@pytest.mark.slow
def test_entries_with_huge_values_come_in_smaller_pages(server: AuditLogServer) -> None:
    """Seven of 10 MB are too much for one page, and one of 70 MB is for any."""
    values = {"rules": {"old": "x" * 10_000_000}}
    server.entries = [audit_entry(number, MIDDLE, changes=values) for number in range(7)]
    assert len(Reader(server.url).ids()) == 7
    assert {int(query["limit"]) for query in server.asked} == {1, 5, 50}
    server.entries = [audit_entry(1, MIDDLE, changes={"rules": {"old": "x" * 70_000_000}})]
    with pytest.raises(AuditLogError, match="more than 64 MiB"):
        Reader(server.url).ids()


def test_a_certificate_has_to_be_trusted(tmp_path: Path) -> None:
    authority = Authority()
    with AuditLogServer(audit_entry(1, MIDDLE), certificate=authority.issue("127.0.0.1"), folder=tmp_path) as server:
        assert len(Reader(server.url, ca_file=authority.write(tmp_path)).ids()) == 1
        reader = Reader(server.url)
        with pytest.raises(AuditLogError, match=r"not trusted \(name its CA in audit_log::tls::ca_file"):
            reader.ids()
        assert reader.waits == []
    named = authority.issue("audit.example.com")
    with AuditLogServer(audit_entry(1, MIDDLE), certificate=named, folder=tmp_path) as server:
        ca = authority.write(tmp_path)
        assert len(Reader(server.url, ca_file=ca, server_name_override="audit.example.com").ids()) == 1


def test_the_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority()
    certificate = authority.issue("audit.example.com")
    with (
        HttpProxy("Basic dTpw") as proxy,
        AuditLogServer(audit_entry(1, MIDDLE), certificate=certificate, folder=tmp_path) as server,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://u:p@127.0.0.1:{proxy.port}")
        url = server.url.replace("127.0.0.1", "audit.example.com")
        assert len(Reader(url, ca_file=authority.write(tmp_path)).ids()) == 1
        assert {*proxy.asked} == {("CONNECT", f"audit.example.com:{server.port}")}
        proxy.status = 503
        reader = Reader(url, ca_file=authority.write(tmp_path))
        with pytest.raises(AuditLogError, match=r"through the proxy 127.0.0.1:.*Tunnel connection failed: 503"):
            reader.ids()


def test_a_slow_answer_is_given_up_in_time(server: AuditLogServer) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        with contextlib.suppress(OSError):  # the client has left
            for _ in range(5000):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                released.wait(0.02)

    released = threading.Event()
    server.faults = [drip]
    waits: list[float] = []
    client = AuditLogClient(server.url, KEY, tls=ClientTlsSettings(), timeout=0.5, wait=waits.append)
    try:
        assert client.read(BEGIN, END).entries == ()
    finally:
        released.set()
        client.close()
    assert waits[0] == 10.0
