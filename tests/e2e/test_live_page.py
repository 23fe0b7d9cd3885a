"""The live page alone says why no change arrives: six broken set-ups of a real process, listed in docs/zpages.md."""

import html
import json
import re
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from statsig_otel.plugin import sign
from tests.e2e.service_process import ServiceProcess
from tests.peers.otlp_servers import HttpAnswer, HttpSink
from tests.plugin.http_client import Address, exchange, request
from tests.plugin.services import SECRET, change_body, page_config
from tests.waiting import wait_until

PAGE: Final = Path(__file__).parents[2] / "docs" / "zpages.md"
EXPOSURES: Final = json.dumps({"data": [{"eventName": "statsig::gate_exposure"}] * 30}).encode()


class Client:
    """Sends webhooks to a service."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.address: Address = (parts.hostname, parts.port)
        self._path = parts.path

    def send(self, body: bytes, *, secret: str = SECRET, path: str = "", late: float = 0) -> int:
        headers = sign(body, secret=secret, timestamp_ms=int((time.time() + late) * 1000))
        return exchange(self.address, request(body, path=path or self._path, headers=headers)).status

    def speak_tls(self) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with socket.create_connection(self.address, timeout=60) as plain, suppress(OSError):
            context.wrap_socket(plain, server_hostname="localhost")
        return 400


SET_UPS: Final[dict[str, tuple[Callable[[Client], int], int]]] = {
    "wrong secret": (lambda client: client.send(change_body("a"), secret="webhook-another-secret-0"), 401),
    "wrong path": (lambda client: client.send(change_body("a"), path="/statsig"), 404),
    "TLS to a plain port": (lambda client: client.speak_tls(), 400),
    "wrong clock": (lambda client: client.send(change_body("a"), late=420), 401),
    "exposures only": (lambda client: client.send(EXPOSURES), 200),
    "backend refuses": (lambda client: client.send(change_body("a")), 200),
}


def documented() -> dict[str, str]:
    """What the page says, by set-up, as the table in the docs has it."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: said for name, said in rows if name in SET_UPS}


def test_the_docs_have_a_row_for_each_set_up() -> None:
    assert list(documented()) == list(SET_UPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SET_UPS)
def test_the_page_alone_says_why_no_change_arrives(name: str, tmp_path: Path) -> None:
    send, status = SET_UPS[name]
    with HttpSink() as sink:
        if name == "backend refuses":
            sink.answer = HttpAnswer(status=401)
        config = page_config(tmp_path, {"otlp_http": {"endpoint": sink.url}})
        with ServiceProcess(config) as service:
            page = Client(service.page)
            assert send(Client(service.url)) == status
            wait_until(lambda: "<article" in read(page.address), "the page says what to check")
            told = text(read(page.address), sink.address)
    assert told == documented()[name]


def read(address: Address) -> str:
    head = f"GET / HTTP/1.1\r\nHost: {address[0]}\r\n\r\n".encode()
    answer = exchange(address, head)
    assert answer.status == 200
    return answer.body.decode()


def text(page: str, backend: str) -> str:
    """What the page says to check, with its heading in bold, and what differs from run to run as `...`."""
    (article, *_) = re.findall(r"<article[^>]*><h3>(.*?)</h3><p>(.*?)</p>", page)
    heading, check = (html.unescape(part) for part in article)
    told = re.sub(r"is [\d :-]+, this machine's [\d :-]+ UTC", "is ..., this machine's ... UTC", check)
    return f"**{heading}** {told}".replace(backend, "...")
