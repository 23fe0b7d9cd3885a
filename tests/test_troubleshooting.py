"""docs/troubleshooting.md: each symptom is reproduced, and log, live page, `top` and metrics say what it says."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from statsig_otel._instruments import METRICS
from statsig_otel.plugin import DEFAULT_PATH, Service, sign
from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.watch import recent
from tests.metrics import Collected, collected
from tests.peers.audit_log import KEY, AuditLogServer, audit_entry
from tests.peers.certs import Authority
from tests.peers.otlp_servers import HttpAnswer, HttpSink, Received
from tests.plugin.fresh import fresh_process
from tests.plugin.http_client import Address, connect, exchange, request
from tests.plugin.services import SECRET, Keeper, address_of, change_body, page_config, post_change, signed_request
from tests.waiting import wait_until

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SECTIONS: Final = dict(section.split("\n\n", 1) for section in re.split(r"(?m)^## ", PAGE)[1:])
del SECTIONS["Each sentence at the top"]  # tests/plugin/watch/test_sentences.py has these
PROMETHEUS: Final = {metric.prometheus_name: metric for metric in METRICS.values()}


def pattern(sentence: str) -> re.Pattern[str]:
    """What a sentence of the page stands for: `...` is a part that varies."""
    return re.compile(".*".join(map(re.escape, sentence.split("..."))), re.DOTALL)


def said(heading: str, place: str) -> list[str]:
    """The sentences that a place shows, by the page."""
    line = re.search(rf"^- \*\*{place}\*\*(.*?)(?=\n- |\Z)", SECTIONS[heading], re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`]+)`", line[1].replace("\n  ", " ")) if line else []


def metrics_of(heading: str) -> Iterator[tuple[str, dict[str, str], str]]:
    """The metrics that the page names, with their attributes, and the words behind each."""
    (line,) = re.findall(r"^- \*\*Metrics:\*\* (.*?)(?=\n- )", SECTIONS[heading], re.MULTILINE | re.DOTALL) or [""]
    for name, attributes, words in re.findall(r"`(\w+)(?:\{([^}]*)\})?`([^`]*)", line.replace("\n  ", " ")):
        yield name, dict(re.findall(r'(\w+)="([^"]*)"', attributes)), words.strip(" .,")


@dataclass
class Scene:
    """A running service, and what it says."""

    service: Service
    directory: Path
    log: pytest.LogCaptureFixture
    metrics: Collected

    @property
    def address(self) -> Address:
        return address_of(self.service)

    def send(self, items: object, **options: Any) -> int:
        return exchange(self.address, signed_request(json.dumps(items).encode(), **options)).status

    def top(self) -> str:
        """All that `top` shows, and its sentences by themselves."""
        options = ["top", "--directory", str(self.directory)]
        found = CliRunner().invoke(main, [*options, "--json"])
        assert found.exit_code == 0, found.output
        return f"{json.loads(found.stdout)['status']['words']}\n{CliRunner().invoke(main, options).stdout}"

    def page(self) -> str:
        """The text of the live page."""
        shown = self.service._assembly.zpages
        assert shown is not None
        parts = urlsplit(shown.url)
        asked = request(method="GET", path="/", headers={"Host": "localhost"}).replace(b"Host: test\r\n", b"")
        html = exchange((str(parts.hostname), int(parts.port or 0)), asked).body.decode()
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())

    def check(self, heading: str) -> None:
        """Wait until each place says what the page says."""
        for sentence in said(heading, "Log:"):
            wait_until(lambda: any(pattern(sentence).fullmatch(line) for line in self.log.messages), sentence)  # noqa: B023 - at once
        for sentence in [*said(heading, "top:"), *said(heading, "Page, top:")]:
            wait_until(lambda: pattern(sentence).search(self.top()), sentence)  # noqa: B023 - at once
        for sentence in [*said(heading, "Page, top:"), *said(heading, "What to check")]:
            wait_until(lambda: pattern(sentence).search(self.page()), sentence)  # noqa: B023 - at once
        limit = 0.0  # of the metric behind
        for name, attributes, words in reversed([*metrics_of(heading)]):
            metric = PROMETHEUS[name]
            assert set(attributes) <= set(metric.attributes), name
            wait_until(lambda: self.is_so(metric.name, attributes, words, limit), f"{name} {words}")  # noqa: B023 - at once
            limit = max(self.numbers(metric.name, attributes), default=0)

    def is_so(self, name: str, attributes: dict[str, str], words: str, limit: float) -> bool:
        """Whether a metric has the value that the page's words say."""
        numbers = self.numbers(name, attributes)
        match re.match(r"grows|is (?:1|missing|below|in the past|more than 0)|$", words):
            case None:
                raise AssertionError(f"nobody knows what {words!r} means")
            case found if found[0] == "is missing":
                return not numbers
            case found if found[0] == "is 1":
                return numbers == [1]
            case found if found[0] == "is below":
                return max(numbers) < limit
            case found if found[0] == "is in the past":
                return max(numbers) < time.time()
            case found if found[0]:
                return max(numbers, default=0) > 0
        return bool(numbers)

    def numbers(self, name: str, attributes: dict[str, str]) -> list[float]:
        given = {key: int(value) if value.isdigit() else value for key, value in attributes.items()}
        return list(self.metrics.numbers(name, **given).values())


@pytest.fixture
def scene(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a scene, with one receiver unless others are given."""
    monkeypatch.setattr(recent, "KEPT_FOR", 0.0)

    @contextmanager
    def made(exporters: Any = None, receivers: Any = None, **options: Any) -> Iterator[Scene]:
        chosen = exporters or {"file": {"path": str(tmp_path / "records")}}
        config = page_config(tmp_path, chosen, receivers=receivers, storage=options)
        with (
            fresh_process(),
            collected() as metrics,
            caplog.at_level("INFO"),
            Service.from_file(config, environ={}) as service,
        ):
            yield Scene(service, tmp_path / "queue", caplog, metrics)

    return made


def change(**keys: object) -> dict[str, object]:
    metadata = {"type": "Gate", "name": "a", "action": "updated", "environments": "production"}
    return {"eventName": "statsig::config_change", "timestamp": 1739400185198, "metadata": metadata, **keys}


def test_requests_that_are_refused(scene: Callable[..., Any], tmp_path: Path) -> None:
    cert_file, key_file = Authority().issue("127.0.0.1").write(tmp_path)
    tls = {"cert_file": cert_file, "key_file": key_file}
    own = {"signing_secrets": [SECRET], "max_request_body_size": 4096}
    with scene(receivers={"statsig": {"endpoint": "127.0.0.1:0", "tls": tls, **own}}) as now:
        with connect(now.address) as client:
            client.sendall(request())
            client.recv(1000)
        now.check("The TLS handshake fails")
    with scene(receivers={"statsig": {"endpoint": "127.0.0.1:0", **own}}) as now:
        now.check("No webhook arrives")
        assert exchange(now.address, request(path="/hook")).status == 404
        now.check("The URL has another path")
        with connect(now.address) as client:
            client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n")
            client.recv(1000)
        now.check("The URL is https, and the port is not")
        body = change_body("a")
        assert exchange(now.address, request(body, path=DEFAULT_PATH)).status == 401
        now.check("Webhooks come without a signature")
        assert post_change(now.service, "a", secret="webhook-another").status == 401
        now.check("Webhooks are signed with another secret")
        late = sign(body, secret=SECRET, timestamp_ms=time.time_ns() // 1_000_000 + 420_000)
        assert exchange(now.address, request(body, path=DEFAULT_PATH, headers=late)).status == 401
        now.check("A clock is wrong")
        headers = sign(body, secret=SECRET, timestamp_ms=time.time_ns() // 1_000_000)
        packed = {**headers, "Content-Encoding": "gzip"}
        assert exchange(now.address, request(body, path=DEFAULT_PATH, headers=packed)).status == 415
        now.check("A proxy compresses the body")
        assert exchange(now.address, signed_request(b" " * 5000)).status == 413
        now.check("The body is too large")
        assert post_change(now.service, "a").status == 200
        assert post_change(now.service, "b", secret="webhook-another").status == 401
        assert post_change(now.service, "c").status == 200
        now.check("Some webhooks are refused, and others are accepted")


def test_webhooks_without_a_new_change(scene: Callable[..., Any]) -> None:
    with scene() as now:
        assert now.send([{"eventName": "statsig::gate_exposure"}]) == 200
        now.check("Only exposures arrive")
    filtering = {"endpoint": "127.0.0.1:0", "signing_secrets": [SECRET], "filter": {"include": {"names": ["b"]}}}
    with scene(receivers={"statsig": filtering}) as now:
        assert now.send([change()]) == 200
        now.check("The filter drops the changes")
    with scene() as now:
        assert now.send([change()]) == now.send([change()]) == 200
        now.check("The change came before")
        assert now.send([change(timestamp="soon")]) == 200
        now.check("A change can't be read")


def test_a_receiver_without_a_secret(scene: Callable[..., Any]) -> None:
    with scene(receivers={"statsig": {"endpoint": "127.0.0.1:0", "signing_secrets": []}}) as now:
        assert post_change(now.service, "a").status == 401
        now.check("There is no signing secret yet")


def test_backends_that_do_not_take_anything(scene: Callable[..., Any]) -> None:
    with HttpSink() as away, HttpSink() as key, HttpSink() as bad:
        away.answer, key.answer, bad.answer = HttpAnswer(status=503), HttpAnswer(status=401), HttpAnswer(status=400)
        sinks = {"otlp_http/away": away, "otlp_http/key": key, "otlp_http/bad": bad}
        exporters: dict[str, Any] = {name: {"endpoint": sink.url} for name, sink in sinks.items()}
        exporters["otlp_http/full"] = {"endpoint": away.url, "sending_queue": {"queue_size": 2}}
        with scene(exporters) as now:
            assert post_change(now.service, "a").status == 200
            for heading in ("The backend is away", "The backend refuses the key", "The backend refuses a record"):
                now.check(heading)

            def takes_the_second(received: Received) -> HttpAnswer:
                return HttpAnswer(status=400 if b"a updated" in received.payload else 200)

            bad.answer = takes_the_second
            assert post_change(now.service, "b").status == 200
            assert post_change(now.service, "c").status == 503
            now.check("The queue is full")
            now.check("There are dead letters")


def test_a_disk_that_is_full(scene: Callable[..., Any]) -> None:
    with scene(min_free_bytes=1 << 60) as now:
        assert post_change(now.service, "a").status == 503
        now.check("The disk is full")


def test_a_damaged_queue(scene: Callable[..., Any], tmp_path: Path) -> None:
    with scene({"otlp_http": {"endpoint": "http://127.0.0.1:1"}}) as now:
        for name in ("a", "b", "c"):
            assert post_change(now.service, name).status == 200
    database = tmp_path / "queue" / "queue.db"
    content = database.read_bytes()
    database.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with scene({"otlp_http": {"endpoint": "http://127.0.0.1:1"}}) as now:
        now.check("A file of the queue was set aside")
        wait_until(lambda: [*(tmp_path / "queue").glob("queue.db.[su]*")], "recovery has read it, or could not")
        for file in (tmp_path / "queue").glob("queue.db.[su]*"):
            file.unlink()
        wait_until(lambda: "set aside" not in now.page(), "the page is well again")


def test_a_certificate_that_has_expired(scene: Callable[..., Any], tmp_path: Path) -> None:
    cert_file, key_file = Authority().issue("127.0.0.1", expired=True).write(tmp_path)
    tls = {"cert_file": cert_file, "key_file": key_file}
    with scene(receivers={"statsig": {"endpoint": "127.0.0.1:0", "signing_secrets": [SECRET], "tls": tls}}) as now:
        now.check("The certificate has expired")


@pytest.mark.slow
def test_a_change_that_never_came(scene: Callable[..., Any]) -> None:
    with AuditLogServer() as log:
        audit_log = {"api_key": KEY, "endpoint": log.url, "interval": "1s", "grace": "0s", "tolerance": "0s"}
        own = {"endpoint": "127.0.0.1:0", "signing_secrets": [SECRET], "audit_log": audit_log}
        with scene(receivers={"statsig/log": own}) as now:
            log.entries = [audit_entry(1, int(time.time()) + 1, "a")]
            now.check("A change never came")


def test_a_service_that_does_not_start(scene: Callable[..., Any], tmp_path: Path) -> None:
    heading = "The service does not start"
    with scene():
        second = Service(
            receivers={"statsig": {"signing_secrets": [SECRET], "endpoint": "127.0.0.1:0"}},
            exporters={"mine": Keeper()},
            directory=tmp_path / "queue",
        )
        (sentence,) = said(heading, "Start:")
        with pytest.raises(Exception, match=pattern(sentence).pattern):
            second.start()
    found = CliRunner().invoke(main, ["top", "--once", "--directory", str(tmp_path / "queue")])
    assert found.exit_code == 1
    (sentence,) = said(heading, "top:")
    assert pattern(sentence).search(found.stderr)


def test_each_section_says_what_to_do_and_is_reproduced() -> None:
    source = Path(__file__).read_text()
    assert len(SECTIONS) >= 12
    for heading, section in SECTIONS.items():
        assert "- **What to do:** " in section, heading
        assert said(heading, "top:") or said(heading, "Page, top:"), heading
        assert f'"{heading}"' in source, heading


def test_what_the_page_leads_to_is_there() -> None:
    for page, heading in re.findall(r"\]\((\w+\.md)(?:#([\w-]+))?\)", PAGE):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert not heading or heading in anchors(text)


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}
