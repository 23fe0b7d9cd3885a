"""The live page of a real service over HTTP: who may read it, what it shows, and what its buttons do."""

import base64
import json
import re
import socket
import ssl
import threading
import uuid
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from statsig_otel import _journal
from statsig_otel.exporters.delivery.facts import ExporterFacts
from statsig_otel.plugin import Service
from statsig_otel.plugin.settings.reading import configured_pem_files
from statsig_otel.plugin.settings.zpages import ZpagesSettings
from statsig_otel.plugin.watch import recent, routes, zpages
from statsig_otel.plugin.watch.facts import Facts
from tests.looped import looped
from tests.peers.certs import Authority
from tests.peers.otlp_servers import HttpAnswer, HttpSink
from tests.plugin.fresh import fresh_process
from tests.plugin.http_client import Address, Response, connect, exchange, read_response
from tests.plugin.services import SECRET, address_of, page_config, post_change, signed_request
from tests.waiting import wait_until

LIMIT = 30.0
TOKEN = "a-token-of-a-page-0123456789"


def basic(credentials: str) -> str:
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    with fresh_process():
        yield


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at a service is a new one, so that no test has to wait. No entry is shared with an earlier test."""
    monkeypatch.setattr(_journal, "_TOGETHER", 0.0)
    monkeypatch.setattr(recent, "KEPT_FOR", 0.0)
    monkeypatch.setattr(routes, "_BETWEEN_EVENTS", 0.05)


@contextmanager
def running(
    tmp_path: Path, *, exporter: dict[str, Any] | None = None, **zpages: Any
) -> Iterator[tuple[Service, Address]]:
    """A service with a page on a free port, which writes to a file unless another exporter is given."""
    exporters = {"file": {"path": str(tmp_path / "records")}} if exporter is None else {"otlp_http": exporter}
    path = page_config(tmp_path, exporters, **zpages)
    with Service.from_file(path, environ={}) as service:
        found = service._assembly.zpages
        assert found is not None
        parts = urlsplit(found.url)
        assert parts.hostname is not None
        assert parts.port is not None
        yield service, (parts.hostname, parts.port)


def ask(
    address: Address,
    path: str = "/",
    *,
    host: str = "localhost",
    method: str = "GET",
    form: dict[str, str] | None = None,
    **headers: str,
) -> Response:
    body = urlencode(form or {}).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return exchange(address, "\r\n".join([*lines, "", ""]).encode() + body, head=method == "HEAD")


def text_of(address: Address, path: str = "/") -> str:
    answer = ask(address, path)
    assert answer.status == 200, answer
    return answer.body.decode().replace("<wbr>", "")


def token_of(page: str) -> str:
    found = re.search(r'name="token" value="([^"]+)"', page)
    assert found is not None
    return found[1]


def test_a_request_whose_body_does_not_arrive_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger is refused before that, too."""
    monkeypatch.setattr(routes, "_BODY_TIMEOUT", 0.1)
    with running(tmp_path) as (_, address):
        for begin, status in (
            ("GET / HTTP/1.1\r\nHost: localhost", 200),
            ("GET / HTTP/1.1\r\nHost: stranger.example", 403),
            ("POST /dead-letters HTTP/1.1\r\nHost: stranger.example", 403),
            ("POST /dead-letters HTTP/1.1\r\nHost: localhost", 408),
        ):
            with connect(address) as connection:
                connection.sendall(f"{begin}\r\nContent-Length: 5\r\n\r\n".encode())
                assert read_response(connection).status == status, begin


def test_the_page_shows_what_arrives_and_what_is_refused(tmp_path: Path) -> None:
    flag = f"flag_{uuid.uuid4().hex}"
    with running(tmp_path) as (service, address):
        assert post_change(service, flag).status == 200
        assert post_change(service, "forged", secret=f"{SECRET}0").status == 401
        wait_until(lambda: ">delivered<" in text_of(address))
        page = text_of(address)
        assert f">{flag}</b>" in page
        for number, name in ((1, "Requests accepted"), (1, "Requests refused"), (1, "Config changes")):
            assert f"<figcaption>{name} <b>{number}</b>" in page
        assert "the signature does not match" in page
        assert "Accepted: 1 config change." in page
        assert SECRET not in page
        link = re.search(r'href="(/change\?uid=[0-9a-f]+)"', page[page.index(f"{flag}</b>") :])
        assert link is not None
        assert flag in text_of(address, link[1])
        assert flag not in text_of(address, "/?text=elsewhere")
        assert flag in text_of(address, f"/?text={flag}&type=gate_updated")
        assert ask(address, "/change?uid=0").status == 404
        assert ask(address, "/elsewhere").status == 404
        assert ask(address, "/", method="HEAD").body == b""
        assert ask(address, "/", method="POST").status == 405


def test_every_answer_has_strict_headers(tmp_path: Path) -> None:
    with running(tmp_path) as (_, address):
        answers = {
            path: ask(address, path)
            for path in (
                "/",
                "/page.css",
                "/page.js",
                "/elsewhere",
                "/change",
                "/dead-letter?id=x",
                "/dead-letter?id=1",
            )
        }
        answers["another host"] = ask(address, host="evil.example")
    for path, answer in answers.items():
        assert "default-src 'none'" in answer.headers["content-security-policy"], path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-frame-options"] == "DENY"
    assert [answer.status for answer in answers.values()] == [200, 200, 200, 404, 404, 400, 404, 403]


@looped(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:55679", 200),
        ("127.0.0.1:1234", 200),
        ("[::1]:55679", 200),
        ("[::1]", 200),
        ("flags.example.com", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("evil.example:127.0.0.1", 403),
        ("", 403),
    ],
)
def test_a_host_that_is_not_the_pages_own_is_refused(shared: Address, host: str, status: int) -> None:
    assert ask(shared, host=host, Authorization=f"Bearer {TOKEN}").status == status


@looped(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (basic(f"anybody:{TOKEN}"), 200),
        (basic(f":{TOKEN}"), 200),
        (basic(TOKEN), 401),
        ("Basic %%%", 401),
        ("Basic //79/A==", 401),
        (f"Bearer {TOKEN}0", 401),
        ("Bearer", 401),
        (f"Digest {TOKEN}", 401),
        ("", 401),
    ],
)
def test_a_page_with_a_token_is_for_those_who_have_it(shared: Address, authorization: str, status: int) -> None:
    for path in ("/", "/page.js"):
        answer = ask(shared, path, Authorization=authorization)
        assert answer.status == status
        assert TOKEN.encode() not in answer.body
        if status == 401:
            assert answer.headers["www-authenticate"].startswith("Basic realm=")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    with running(tmp_path_factory.mktemp("shared"), hosts=["Flags.example.com"], token=TOKEN) as (_, address):
        yield address


def events(address: Address, **headers: str) -> Generator[dict[str, str], None, None]:
    """The events of the page, each the sections that have changed."""
    with connect(address) as connection:
        lines = ["GET /events HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        file = connection.makefile("rb")
        for line in file:
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


def test_changes_are_told_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_PING", 0.1)  # by which a reader that left is noticed
    flag = f"flag_{uuid.uuid4().hex}"
    with running(tmp_path) as (service, address):
        told = events(address)
        first = next(told)
        assert {"state", "changes", "requests", "exporters", "chart"} <= set(first)
        assert flag not in first["changes"]
        assert post_change(service, flag).status == 200
        assert any(flag in event.get("changes", "") for event in told)
        told.close()
        # The reader has left, so nothing is looked at any more.
        page = service._assembly.zpages
        assert page is not None
        wait_until(lambda: page._page.streams == 0)


def test_only_so_many_readers_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_MOST_STREAMS", 2)
    with running(tmp_path) as (_, address):
        readers = [events(address) for _ in range(2)]
        for reader in readers:
            next(reader)
        assert ask(address, "/events").status == 503
        assert ask(address).status == 200
        for reader in readers:
            reader.close()


def test_a_dead_letter_is_shown_replayed_and_dropped(tmp_path: Path) -> None:
    invalid = json.dumps([{"eventName": "statsig::config_change", "timestamp": 1, "metadata": {"type": "<Gate>"}}])
    with running(tmp_path) as (service, address):
        assert exchange(address_of(service), signed_request(invalid.encode())).status == 200
        page = text_of(address)
        assert "metadata.name" in page
        (number,) = re.findall(r'href="/dead-letter\?id=(\d+)"', page)
        assert "&lt;Gate&gt;" in text_of(address, f"/dead-letter?id={number}")
        token = token_of(page)

        def act(action: str, **others: str) -> Response:
            form = {"id": number, "action": action, "token": token, **others}
            return ask(address, "/dead-letters", method="POST", form=form)

        kept = act("replay")
        assert kept.status == 200
        assert b"stays: metadata.name" in kept.body
        for wrong in ("", "x", token[:-1]):
            assert act("drop", token=wrong, sure="yes").status == 403
        assert act("drop", id="1; DROP", sure="yes").status == 400
        assert act("drop", id="9" * 30, sure="yes").status == 400
        assert act("explode").status == 400
        sure = act("drop")
        assert b"Drop it for good" in sure.body
        assert "metadata.name" in text_of(address)
        assert b"was deleted" in act("drop", sure="yes").body
        assert "metadata.name" not in text_of(address)
        assert b"There is no dead letter" in act("drop", sure="yes").body
        assert b"There is no dead letter" in act("replay").body
        assert ask(address, "/dead-letters", method="POST", form={"token": "x" * 5000}).status == 413


def test_an_exporter_tries_again_by_a_button(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with running(tmp_path, exporter={"endpoint": f"http://127.0.0.1:{port}"}) as (service, address):
        assert post_change(service, "a").status == 200
        wait_until(lambda: "Try now" in text_of(address))
        form = {"exporter": "otlp_http", "action": "resume", "token": token_of(text_of(address))}
        answer = ask(address, "/exporters", method="POST", form=form)
        assert b"otlp_http, which was retrying, tries again at once." in answer.body
        refused = ask(address, "/exporters", method="POST", form={**form, "exporter": "<other>"})
        assert refused.status == 409
        assert b"the queue knows no exporter &lt;other&gt;" in refused.body


@pytest.mark.parametrize("queued", [True, False])
def test_a_blocked_exporter_says_what_to_do(tmp_path: Path, queued: bool) -> None:
    with HttpSink() as sink:
        sink.answer = HttpAnswer(status=401)
        exporter = {"endpoint": sink.url, "sending_queue": {"enabled": queued}}
        with running(tmp_path, exporter=exporter) as (service, address):
            post_change(service, "a")
            wait_until(
                lambda: "Replace the key (headers). After an edit run `statsig-otel reload`." in text_of(address)
            )


@contextmanager
def pressed(address: Address) -> Iterator[Future[Response]]:
    """Somebody presses "Try now", and waits for the answer."""
    wait_until(lambda: "Try now" in text_of(address))
    form = {"exporter": "otlp_http", "action": "resume", "token": token_of(text_of(address))}
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(ask, address, "/exporters", method="POST", form=form)


def test_a_command_that_hangs_delays_no_shutdown(tmp_path: Path) -> None:
    """No more webhooks are accepted at once. The page shows that, and answers once its command has ended."""
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go_on.wait(LIMIT)

    with running(tmp_path, exporter={"endpoint": "http://127.0.0.1:1"}) as (service, address):
        service._assembly.before_resume = hold
        service._assembly._renew_handlers()
        assert post_change(service, "a").status == 200
        with pressed(address) as answer, ThreadPoolExecutor(1) as pool:
            assert begun.wait(LIMIT)
            assert all(one.daemon for one in threading.enumerate() if one.name == "statsig-otel page command")
            ending = pool.submit(service.shutdown, LIMIT, drain=0.0)
            wait_until(lambda: is_refused(address_of(service)))
            assert "the service is stopping" in text_of(address)
            assert not answer.done()
            go_on.set()
            assert b"tries again at once" in answer.result(LIMIT).body
            ending.result(LIMIT)
            assert is_refused(address)


def is_refused(address: Address) -> bool:
    try:
        connect(address).close()
    except OSError:
        return True
    return False


def test_a_command_that_never_ends_keeps_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zpages, "PAGE_DRAIN", 0.01)
    begun, go_on = threading.Event(), threading.Event()

    class Hanging:
        database = None

        def facts(self) -> Facts:
            return Facts(now=0.0, exporters=[ExporterFacts(name="otlp_http", state="blocked")])

        def command(self, name: str, arguments: dict[str, Any]) -> Any:
            begun.set()
            return go_on.wait(LIMIT)

    page = zpages.Zpages(ZpagesSettings(endpoint="127.0.0.1:0"), Hanging())
    page.start()
    with pressed(page.server.address) as answer:
        assert begun.wait(LIMIT)
        page.stop()
        page.join(LIMIT)
        assert page._thread is not None
        assert page._thread.ended.done()
        assert not go_on.is_set()
        assert answer.exception(LIMIT) is not None
    go_on.set()


def test_the_page_goes_with_its_service(tmp_path: Path) -> None:
    with running(tmp_path) as (_, address):
        told = events(address)
        next(told)
    with pytest.raises(ConnectionError):
        ask(address)
    told.close()


def test_tls_with_client_certificates_is_for_those_who_have_one(tmp_path: Path) -> None:
    authority = Authority()
    cert_file, key_file = authority.issue("127.0.0.1").write(tmp_path)
    own = tmp_path / "client"
    own.mkdir()
    client = authority.issue("reader").write(own)
    authorities = authority.write(tmp_path)
    tls = {"cert_file": cert_file, "key_file": key_file, "client_ca_file": authorities}
    with running(tmp_path, endpoint="0.0.0.0:0", tls=tls) as (service, (_host, port)):
        context = ssl.create_default_context(cafile=authorities)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            read(context, port)
        context.load_cert_chain(*client)
        assert b" 200 OK" in read(context, port)
        assert {Path(cert_file), Path(authorities)} <= {*configured_pem_files(service._assembly.configuration)}
        other = Authority()
        other.issue("127.0.0.1").write(tmp_path)
        assert service._assembly.renew_certificates().changes == ["extensions::zpages::tls: its files have changed"]
        with pytest.raises(ssl.SSLCertVerificationError):
            read(context, port)


def read(context: ssl.SSLContext, port: int) -> bytes:
    with connect(("127.0.0.1", port)) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
        secure.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        return secure.recv(1000)
