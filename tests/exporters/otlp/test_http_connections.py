"""How the HTTP exporter uses its connections: one that is kept, closed, silent or lost."""

import socket
import threading
from typing import Any

import pytest

from statsig_otel.exporters.exporter import (
    Delivered,
    PartiallyRejected,
    RetryLater,
)
from tests.exporters.otlp.over_http import exporting
from tests.exporters.otlp.requests import LONG, encoded, ended_by_shutdown, trust
from tests.peers.certs import Authority, ServerTls
from tests.peers.otlp_servers import (
    HttpAnswer,
    HttpSink,
    Relay,
    partial_success,
)
from tests.peers.ports import free_port


def test_the_connection_is_kept(sink: HttpSink) -> None:
    with exporting(sink.url) as exporter:
        for status in (200, 503, 401, 200):
            sink.answer = HttpAnswer(status=status, body=b"\xff" * 1000)
            exporter.send(encoded(), 1, LONG)
    assert sink.connections == 1


@pytest.mark.parametrize("close_after", [True, False], ids=["after its answer", "while it was idle"])
def test_a_connection_that_the_server_closed_costs_no_attempt(
    sink: HttpSink,
    close_after: bool,
) -> None:
    with exporting(sink.url) as exporter:
        sink.answer = HttpAnswer(close_after=close_after)
        for count in range(1, 4):
            assert exporter.send(encoded(), 1, LONG) == Delivered()
            assert sink.connections == count
            sink.cut_connections()
            sink.wait_until_closed()
            connection = exporter._connection
            assert connection is not None
            assert connection.sock is not None
            connection.sock.settimeout(LONG)
            connection.sock.recv(1, socket.MSG_PEEK)  # the end has arrived


def test_connection_close_is_respected(sink: HttpSink) -> None:
    sink.answer = HttpAnswer(headers={"Connection": "close"}, close_after=True, body=partial_success(1, "x"))
    with exporting(sink.url) as exporter:
        for _ in range(3):
            assert exporter.send(encoded(), 1, LONG) == PartiallyRejected(1, "x")
    assert sink.connections == 3


def test_a_name_lookup_that_hangs_is_left_after_the_timeout(sink: HttpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's lookup can't be interrupted; and what it brings too late is not sent any more."""
    released, found = threading.Event(), threading.Event()
    lookup = socket.getaddrinfo

    def slow(*args: Any, **keys: Any) -> Any:
        released.wait(LONG)
        found.set()
        return lookup(*args, **keys)

    with exporting(sink.url) as exporter:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", slow)
            assert exporter.send(encoded(), 1, 0.2) == RetryLater(f"no answer within 0.2 s from {sink.url}/v1/logs")
        released.set()
        assert found.wait(LONG)
        for thread in threading.enumerate():
            if thread.name == "otlp_http/test request":
                thread.join(LONG)
        assert exporter.send(encoded("second"), 1, LONG) == Delivered()
    assert [record.body.string_value for record in sink.records] == ["second"]


def test_it_recovers_by_itself_once_somebody_listens() -> None:
    port = free_port()
    with exporting(f"http://127.0.0.1:{port}") as exporter:
        first = exporter.send(encoded(), 1, LONG)
        assert isinstance(first, RetryLater)
        assert "refused" in first.reason
        for _ in range(2):
            with HttpSink(port=port) as sink:
                assert exporter.send(encoded(), 1, LONG) == Delivered()
                assert len(sink.requests) == 1
            assert isinstance(exporter.send(encoded(), 1, LONG), RetryLater)


def test_a_connection_that_died_silently_is_replaced(sink: HttpSink) -> None:
    with Relay(sink.port) as relay, exporting(f"http://{relay.address}") as exporter:
        assert exporter.send(encoded(), 1, LONG) == Delivered()
        relay.go_dead()
        assert isinstance(exporter.send(encoded(), 1, 0.2), RetryLater)
        assert exporter.send(encoded(), 1, LONG) == Delivered()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_shutdown_ends_a_request_that_hangs(authority: Authority, scheme: str) -> None:
    tls = ServerTls(authority.issue("127.0.0.1")) if scheme == "https" else None
    with HttpSink(tls=tls) as sink:
        sink.answer = HttpAnswer(hang=True)
        with exporting(sink.url, tls=trust(authority) if tls else {}) as exporter:
            outcome = ended_by_shutdown(exporter, lambda: sink.wait_for(1))
            assert outcome == RetryLater("the exporter is shutting down")
            assert exporter.send(encoded(), 1, LONG) == RetryLater("the exporter is not running")


def test_no_thread_and_no_connection_outlives_it(sink: HttpSink) -> None:
    before = threading.active_count()
    with exporting(sink.url) as exporter:
        exporter.send(encoded(), 1, LONG)
    sink.wait_until_closed()
    assert not [thread for thread in threading.enumerate() if thread.name == "otlp_http/test request"]
    assert threading.active_count() <= before
