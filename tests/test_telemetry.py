"""The metrics of a running service are those that are declared, and docs/metrics.md says so."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics.export import Gauge, Histogram, Metric, Sum

import statsig_otel
from statsig_otel._instruments import METRICS
from statsig_otel._telemetry import EXPORTER_STATES, ReceiverCounts, counts_of, exporter_sent
from statsig_otel.config.grammar import check
from statsig_otel.config.merging import merge
from statsig_otel.config.source import parse
from statsig_otel.exporters import Blocked, RetryLater
from statsig_otel.plugin import Destination, SendingQueueSettings, Service
from statsig_otel.plugin.cli.metrics_docs import fill, main
from statsig_otel.plugin.receiver.counting import STATUS_OF
from statsig_otel.plugin.settings.catalog import COMPONENTS
from tests.metrics import Collected, collected
from tests.peers.certs import Authority
from tests.plugin.http_client import Address, connect, exchange, read_response, request
from tests.plugin.services import SECRET, Keeper, signed_request
from tests.waiting import wait_until

ROOT = Path(statsig_otel.__file__).parent
PAGE = ROOT.parent / "docs" / "metrics.md"
PAGES = (PAGE, PAGE.parent / "supervisors.md", PAGE.parent / "traces.md")
RECEIVER = "statsig/watched"
KINDS = {"counter": Sum, "gauge": Gauge, "histogram": Histogram}
CHANGE = {"eventName": "statsig::config_change", "timestamp": 1739400185198, "metadata": {"type": "Gate", "name": "a"}}
BODY = json.dumps(
    [
        CHANGE,
        {**CHANGE, "timestamp": 1739400185, "metadata": {"type": "Gate", "name": "b", "description": [1]}},
        {**CHANGE, "timestamp": "soon"},
        {"eventName": "statsig::gate_exposure"},
        {"eventName": "checkout"},
        {"eventName": "checkout"},
    ]
).encode()


class Away(Keeper):
    """An exporter whose backend does not take anything."""

    def send(self, payload: bytes, count: int, timeout: float) -> RetryLater | Blocked:
        return RetryLater("away") if self.go_on.is_set() else Blocked("401")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collected]:
    """What a service tells that has seen a bit of everything."""
    directory = tmp_path_factory.mktemp("watched")
    cert_file, key_file = Authority().issue("127.0.0.1").write(directory)
    receiver = {"endpoint": "127.0.0.1:0", "signing_secrets": ["webhook-another", SECRET]}
    tls = {"cert_file": cert_file, "key_file": key_file}
    secure = {"endpoint": "localhost:0", "signing_secrets": [SECRET], "path": "/secure", "tls": tls}
    service = Service(
        receivers={RECEIVER: receiver, "statsig/secure": secure},
        exporters={
            "taking": Keeper(),
            "away": Destination(Away(), sending_queue=SendingQueueSettings(queue_size=100)),
            "refusing": Away(hold=True),
            "at_once": Destination(Keeper(), sending_queue=SendingQueueSettings(enabled=False)),
        },
        directory=directory / "queue",
        min_free_bytes=0,
    )
    with collected() as collecting, service:
        address = address_of(service, RECEIVER)
        for _ in range(2):
            assert exchange(address, signed_request(BODY)).status == 200
        assert exchange(address, signed_request(BODY, secret="webhook-wrong")).status == 401
        assert exchange(address, request(b"", path="/nowhere")).status == 404
        assert exchange(address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n").status == 400
        with connect(address_of(service, "statsig/secure")) as plain:
            plain.sendall(request(b""))
            plain.recv(100)
        audited = counts_of(RECEIVER)  # its audit log is read in tests/plugin/service/test_audit_log_check.py
        audited.missed, audited.compared = 0, 1
        wait_until(lambda: collecting.numbers("otelcol_exporter_sent_log_records", exporter="taking") == {(): 2})
        wait_until(lambda: state(collecting, "refusing") == "blocked" and state(collecting, "away") == "retrying")
        yield collecting


def address_of(service: Service, name: str) -> Address:
    host, port = service.urls[name].split("/")[2].rsplit(":", 1)
    return host, int(port)


def state(collecting: Collected, exporter: str) -> object:
    """The one state of an exporter."""
    found = collecting.numbers("statsig_otel_exporter_state", exporter=exporter)
    assert {name for (name,) in found} == set(EXPORTER_STATES)
    ((name,),) = (values for values, number in found.items() if number)
    return name


def test_all_metrics_are_those_that_are_declared(seen: Collected) -> None:
    """With their names, units, descriptions and attributes."""

    def told(metric: Metric) -> tuple[str, str, str, set[str]]:
        (kind,) = (kind for kind, type_ in KINDS.items() if isinstance(metric.data, type_))
        points = [set(point.attributes or {}) for point in metric.data.data_points]
        assert points, metric.name
        assert all(point == points[0] for point in points), metric.name
        return kind, metric.unit or "", metric.description or "", points[0]

    assert {name: told(metric) for name, metric in seen.all().items()} == {
        name: (metric.kind, metric.unit, metric.description, set(metric.attributes)) for name, metric in METRICS.items()
    }
    for metric in seen.all().values():
        assert not isinstance(metric.data, Sum) or metric.data.is_monotonic, metric.name


def test_what_receivers_count(seen: Collected) -> None:
    def of_receiver(name: str, **attributes: str) -> dict[tuple[object, ...], float]:
        numbers = seen.numbers(f"statsig_otel_receiver_{name}", receiver=RECEIVER, **attributes)
        return {values: number for values, number in numbers.items() if number}

    assert of_receiver("requests") == {(200, "accepted"): 2, (401, "signature_wrong"): 1}
    assert of_receiver("verified_requests") == {(2,): 2}
    assert of_receiver("ignored_items") == {("statsig::gate_exposure",): 2, ("checkout",): 4}
    assert of_receiver("invalid_items") == {(): 2}
    assert of_receiver("duplicate_items") == {(): 2}
    assert of_receiver("fields_left_out") == {("metadata.description",): 2}
    assert of_receiver("timestamps_in_seconds") == {(): 2}
    assert abs(of_receiver("clock_difference").get((), 0.0)) < 60
    now = time.time()
    assert now - 300 < of_receiver("last_change_timestamp")[()] <= of_receiver("last_verified_webhook_timestamp")[()]
    assert of_receiver("last_verified_webhook_timestamp")[()] < now + 1
    assert seen.numbers("otelcol_receiver_accepted_log_records", receiver=RECEIVER, transport="http") == {(): 2}
    for name, total in (("request_duration", None), ("request_body_size", 3 * len(BODY))):
        data = seen.all()[f"statsig_otel_receiver_{name}"].data
        (point,) = (point for point in data.data_points if point.attributes == {"receiver": RECEIVER})
        assert isinstance(data, Histogram)
        assert (point.count, point.sum) == (3, total or point.sum)  # type: ignore[union-attr] # as just said


def test_what_never_reached_a_receiver_is_counted_too(seen: Collected) -> None:
    found = seen.numbers("statsig_otel_server_refused_requests")
    assert found[404, "not_found"] >= 1
    assert found[400, "tls"] >= 1
    assert seen.numbers("statsig_otel_server_failed_handshakes")[()] >= 1


def test_the_state_of_each_exporter_is_one_of_five(seen: Collected) -> None:
    assert [state(seen, name) for name in ("at_once", "taking", "away", "refusing")] == [
        "idle", "idle", "retrying", "blocked"
    ]  # fmt: skip
    assert seen.numbers("statsig_otel_exporter_attempts", exporter="refusing", outcome="blocked")[()] >= 1
    assert seen.numbers("statsig_otel_exporter_attempts", exporter="refusing", outcome="delivered") == {(): 0}


def test_what_the_queue_holds(seen: Collected) -> None:
    waiting = {name: seen.numbers("otelcol_exporter_queue_size", exporter=name) for name in ("away", "refusing")}
    assert waiting == {name: {("logs",): 2} for name in waiting}
    assert seen.numbers("otelcol_exporter_queue_capacity", exporter="away") == {("logs",): 100}
    held = seen.numbers("statsig_otel_dead_letters_held")
    assert (held["item", RECEIVER], held["body", RECEIVER], held["record", "away"]) == (2, 0, 0)
    assert seen.numbers("statsig_otel_dead_letters", owner=RECEIVER)["item",] == 2
    assert next(iter(seen.numbers("statsig_otel_queue_disk_free").values())) > 0


def test_a_stopped_service_has_no_state_any_more(tmp_path: Path) -> None:
    """Its counts stay: they are the process's."""
    exporters = {"short_lived": Keeper()}
    receivers = {"statsig/short": {"signing_secrets": [SECRET]}}
    with collected() as collecting:
        with Service(receivers=receivers, exporters=exporters, directory=tmp_path, listen=False):
            assert state(collecting, "short_lived") == "idle"
            assert collecting.numbers("statsig_otel_dead_letters_held", owner="statsig/short")["item",] == 0
        assert collecting.numbers("statsig_otel_exporter_state", exporter="short_lived") == {}
        assert collecting.numbers("statsig_otel_dead_letters_held", owner="statsig/short") == {}
        assert collecting.numbers("otelcol_exporter_sent_log_records", exporter="short_lived") == {(): 0}


def test_the_names_of_events_from_outside_are_few_and_short() -> None:
    counts = ReceiverCounts()
    for number in range(200):
        counts.ignore({f"event {number}": 1, "x" * 1000: 1})
    counts.ignore({"event 0": 5})
    assert len(counts.ignored) == 50
    assert counts.ignored["event 0"] == 6
    assert counts.ignored["other"] == 200 + 151
    assert sum(counts.ignored.values()) == 405


def test_no_count_is_lost_between_threads() -> None:
    counts, name = counts_of("statsig/threads"), "in threads"

    def count() -> None:
        for _ in range(5000):
            exporter_sent.add(1, name)
            with counts.lock:
                counts.accepted += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert counts.accepted == dict(exporter_sent.read())[(name,)] == 20_000


def test_every_reason_of_a_refusal_begins_at_zero() -> None:
    """A reason that is in the code and not in the table would have no rate before its second request."""
    written = set()
    for path in (*(ROOT / "plugin" / "receiver").glob("*.py"), *(ROOT / "plugin" / "webhook").glob("*.py")):
        text = path.read_text()
        written |= set(re.findall(r'(?:_refuse|refusal)\(\s*HTTPStatus\.\w+,\s*"(\w+)"', text))
        written |= set(re.findall(r'(?:Unauthorized|MalformedBody)Error\(\s*"(\w+)"', text))
    for path in (ROOT / "exporters" / "queue" / "queue.py", *(ROOT / "plugin" / "service").glob("*.py")):
        written |= set(re.findall(r'reason="(\w+)"', path.read_text()))
    written -= {"framework", "unknown_receiver"}  # by a mistake in an embedding program alone
    assert len(written) > 20
    assert written <= set(STATUS_OF)


def test_names_in_prometheus_are_one_each_and_have_their_unit() -> None:
    names = [metric.prometheus_name for metric in METRICS.values()]
    assert len(set(names)) == len(names)
    for metric in METRICS.values():
        assert re.fullmatch(r"(statsig_otel|otelcol)_[a-z_]+", metric.prometheus_name)
        assert metric.prometheus_name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.unit != "s" or "_seconds" in metric.prometheus_name, metric.name
        assert metric.description.endswith("."), metric.name
        assert "`" not in metric.description, metric.name


def test_the_page_has_a_row_for_each_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert fill(page) == page, "python -m statsig_otel.plugin.cli.metrics_docs docs"
    for name in METRICS:
        assert page.count(f"| `{name}` |") == 1
    (tmp_path / "metrics.md").write_text(page.replace("| counter |", "| meter |"))
    monkeypatch.setattr("sys.argv", ["metrics_docs", str(tmp_path)])
    main()
    assert (tmp_path / "metrics.md").read_text() == page


def test_the_configurations_of_the_pages_are_valid() -> None:
    least = "receivers: {statsig: {signing_secrets: []}}\nexporters: {debug: {}}\n"
    least += "extensions: {file_storage: {directory: q}}\n"
    least += "service: {extensions: [file_storage], pipelines: {logs: {receivers: [statsig], exporters: [debug]}}}\n"
    shown = [
        block
        for page in PAGES
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    assert len(shown) >= 3
    for block in shown:
        texts = (text.encode() for text in (least, block))
        documents = [parse(text, file="c", directory=ROOT, environ={"METRICS_KEY": "k"}) for text in texts]
        check(merge(documents), COMPONENTS)


@pytest.mark.slow
def test_promtool_finds_nothing_wrong_with_what_prometheus_reads(seen: Collected) -> None:
    """With all metrics in it."""
    from statsig_otel.plugin.watch.prometheus import Scrapes

    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("NOT PROVEN HERE: checking the format of Prometheus needs promtool, of Debian's package prometheus")
    _, text = Scrapes(seen.reader).answer("")
    assert {metric.prometheus_name for metric in METRICS.values()} == set(
        re.findall(r"^# TYPE ((?!target_info)\w+)", text.decode(), re.MULTILINE)
    )
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False, timeout=60)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_requests_on_one_connection_are_counted_one_by_one(tmp_path: Path) -> None:
    """The body of each, and no more."""
    receivers = {"statsig/kept": {"signing_secrets": [SECRET], "endpoint": "127.0.0.1:0"}}
    body = json.dumps([{"eventName": "checkout"}]).encode()
    with (
        Service(receivers=receivers, exporters={"kept": Keeper()}, directory=tmp_path, min_free_bytes=0) as service,
        collected() as collecting,
        connect(address_of(service, "statsig/kept")) as connection,
    ):
        for _ in range(3):
            connection.sendall(signed_request(body))
            assert read_response(connection).status == 200
        assert collecting.numbers("statsig_otel_receiver_requests", reason="accepted", receiver="statsig/kept") == {
            (200,): 3
        }
        data = collecting.all()["statsig_otel_receiver_request_body_size"].data
        (point,) = (point for point in data.data_points if point.attributes == {"receiver": "statsig/kept"})
        assert (point.count, point.sum) == (3, 3 * len(body))  # type: ignore[union-attr] # a histogram's


def test_after_the_clock_was_put_back_no_time_is_in_the_future(seen: Collected) -> None:
    """It would keep the alert on missing webhooks from firing until then."""
    counts = counts_of("statsig/from_the_future")
    counts.last_verified_ns = counts.last_change_ns = time.time_ns() + 86_400_000_000_000
    for name in ("last_verified_webhook_timestamp", "last_change_timestamp"):
        ((told,),) = [seen.numbers(f"statsig_otel_receiver_{name}", receiver="statsig/from_the_future").values()]
        assert told <= time.time()
    before = counts.last_verified_ns
    seen.all()
    assert counts.last_verified_ns == before, "it does not go on with the clock"
