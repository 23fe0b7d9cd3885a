"""What only WSGI has: folded headers, bodies without a size, its environment. The table is in test_contract.py."""

import io
import json
import logging
import threading
from collections.abc import Iterator
from wsgiref.types import WSGIApplication

import pytest

from statsig_otel.exporters.consumer import Batch, Receipt
from statsig_otel.plugin.receiver.bodies import Limits
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.receiver.wsgi import StatsigWsgiReceiver, create_wsgi_app
from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER, Verifier
from tests.plugin.adapters import (
    ADAPTERS,
    CHANGE,
    SECRET,
    Adapter,
    Sink,
    assert_refused,
    body_of,
    post,
    serve_wsgiref,
    signed,
)
from tests.plugin.http_client import connect, exchange, read_response, request

(WSGIREF,) = (adapter for adapter in ADAPTERS if adapter.name == "wsgiref")
BODY = body_of(CHANGE)


@pytest.fixture(params=[adapter for adapter in ADAPTERS if adapter.name in ("wsgiref", "werkzeug", "waitress")])
def adapter(request: pytest.FixtureRequest) -> Adapter:
    found: Adapter = request.param
    return found


@pytest.mark.parametrize("name", [SIGNATURE_HEADER, TIMESTAMP_HEADER])
def test_a_header_repeated_with_underscores_does_not_pass_for_the_signed_one(adapter: Adapter, name: str) -> None:
    """To CGI they are one variable. A server refuses the second, drops it, or joins both: none lets it count."""
    good = signed(BODY)
    folded = {**good, name.replace("-", "_"): good[name][:-1] + "0"}
    sink = Sink()
    with adapter.receiving(sink) as address:
        response = exchange(address, request(BODY, headers=folded))
    assert response.status in (200, 400, 401)
    assert len(sink.batches) == (response.status == 200)
    if adapter is WSGIREF:
        assert_refused(response, 401)


def test_underscores_alone_are_the_same_header() -> None:
    headers = {name.replace("-", "_"): value for name, value in signed(BODY).items()}
    with WSGIREF.receiving() as address:
        assert exchange(address, request(BODY, headers=headers)).status == 200


@pytest.mark.parametrize("repeated", ["signature", "timestamp"])
def test_the_same_header_twice_is_repeated_even_where_both_agree(
    adapter: Adapter, repeated: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = SIGNATURE_HEADER if repeated == "signature" else TIMESTAMP_HEADER
    headers = {**signed(BODY), name.lower(): signed(BODY)[name]}
    with adapter.receiving() as address, caplog.at_level(logging.WARNING):
        assert_refused(exchange(address, request(BODY, headers=headers)), 401)
    assert f"{repeated}_repeated" in caplog.text


def test_a_chunked_body_that_the_server_does_not_decode_is_no_forgery(caplog: pytest.LogCaptureFixture) -> None:
    with WSGIREF.receiving() as address, caplog.at_level(logging.WARNING):
        assert_refused(exchange(address, request(BODY, headers=signed(BODY), chunk=10)), 400)
    assert "truncated" in caplog.text


def test_without_a_size_and_without_chunks_there_is_no_body() -> None:
    lines = [b"POST /hook HTTP/1.1", b"Host: test"]
    lines += [f"{name}: {value}".encode() for name, value in signed(b"").items()]
    with WSGIREF.receiving() as address:
        assert_refused(exchange(address, b"\r\n".join([*lines, b"", b""])), 400)


def test_a_size_that_is_no_number_is_400() -> None:
    with WSGIREF.receiving() as address:
        assert_refused(exchange(address, request(BODY, headers={**signed(BODY), "Content-Length": "+5"})), 400)


def test_a_closed_receiver_refuses_new_requests_and_finishes_those_under_way() -> None:
    taken, release = threading.Event(), threading.Event()

    def answer(batch: Batch) -> Receipt:
        taken.set()
        assert release.wait(10)
        return Receipt(accepted=len(batch.changes))

    receiver = StatsigWsgiReceiver(Intake(verifier=Verifier([SECRET])), Sink(answer))
    with serve_wsgiref(create_wsgi_app({"/hook": receiver})) as address, connect(address) as waiting:
        waiting.sendall(request(BODY, headers=signed(BODY)))
        assert taken.wait(10)
        receiver.close()
        refused = post(address, BODY)
        assert_refused(refused, 503)
        assert refused.headers["retry-after"].isdigit()
        release.set()
        assert read_response(waiting).status == 200


class Failing(io.RawIOBase):
    """A body whose client leaves in the middle, as gunicorn and mod_wsgi tell it."""

    def read(self, size: int = -1) -> bytes:
        raise OSError("the client has left")


@pytest.fixture
def app() -> Iterator[WSGIApplication]:
    intake = Intake(verifier=Verifier([SECRET]), limits=Limits(max_in_flight_bytes=len(BODY)))
    yield create_wsgi_app({"/hook": StatsigWsgiReceiver(intake, Sink())})
    assert intake.bodies.size == 0


def call(app: WSGIApplication, stream: io.IOBase, **more: object) -> tuple[int, dict[str, object]]:
    """One call with the environment of a server that can't be had here."""
    statuses: list[str] = []
    environ: dict[str, object] = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/hook",
        "SERVER_NAME": "test",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": stream,
        "wsgi.errors": io.StringIO(),
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in signed(BODY).items()},
        **more,
    }

    def start_response(status: str, headers: object, exc_info: object = None) -> object:
        statuses.append(status)
        return None

    body = b"".join(app(environ, start_response))  # type: ignore[arg-type] # a loosely typed double of a server
    found = json.loads(body)
    assert isinstance(found, dict)
    return int(statuses[0].split()[0]), found


def test_an_empty_size_is_none(app: WSGIApplication) -> None:
    """PEP 3333: CONTENT_LENGTH may be empty or missing."""
    status, body = call(app, io.BytesIO(BODY), CONTENT_LENGTH="", **{"wsgi.input_terminated": True})
    assert (status, body["accepted"]) == (200, 1)


def test_no_more_is_read_than_the_size_says(app: WSGIApplication) -> None:
    stream = io.BytesIO(BODY + b"the next request")
    assert call(app, stream, CONTENT_LENGTH=str(len(BODY)))[0] == 200
    assert stream.read() == b"the next request"


def test_a_server_that_reports_a_client_that_left_is_400(
    app: WSGIApplication, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert call(app, Failing(), CONTENT_LENGTH=str(len(BODY)))[0] == 400
    assert "truncated" in caplog.text


@pytest.mark.parametrize(("path", "status"), [("", 200), ("/", 200), ("/hook", 404)])
def test_it_can_be_mounted_at_its_own_path(path: str, status: int) -> None:
    app = create_wsgi_app({"/": StatsigWsgiReceiver(Intake(verifier=Verifier([SECRET])), Sink())})
    found, _ = call(app, io.BytesIO(BODY), CONTENT_LENGTH=str(len(BODY)), SCRIPT_NAME="/hook", PATH_INFO=path)
    assert found == status
