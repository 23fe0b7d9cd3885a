"""What a sender logs, counts and shows of itself."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from statsig_otel.exporters.delivery.outage import Outage
from statsig_otel.exporters.delivery.sender import QueueSender
from statsig_otel.exporters.delivery.settings import BLOCKED, DeliverySettings
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.routing import CurrentRouting, Routing
from tests.exporters.delivery.helpers import (
    SLOW,
    Backend,
    Kind,
    Rig,
    exporter_to,
    lines,
    named,
    refusing,
    rig,
    settings,
    threads,
)
from tests.peers.otlp_servers import HttpAnswer, HttpSink
from tests.waiting import wait_until

Counts = Callable[[], dict[str, float]]


@pytest.fixture(scope="session")
def counts() -> Counts:
    """The counts of log records by the exporter `out`. A process has one MeterProvider, for good."""
    reader = InMemoryMetricReader()
    set_meter_provider(MeterProvider([reader]))

    def read() -> dict[str, float]:
        found = {"sent": 0.0, "send_failed": 0.0}
        data = reader.get_metrics_data()
        for of_resource in data.resource_metrics if data else ():
            for metric in (metric for scope in of_resource.scope_metrics for metric in scope.metrics):
                name = metric.name.removeprefix("otelcol_exporter_").removesuffix("_log_records")
                for point in metric.data.data_points:
                    if name in found and isinstance(point, NumberDataPoint) and point.attributes == {"exporter": "out"}:
                        found[name] += point.value
        return found

    return read


def test_a_long_outage_is_one_line_at_its_beginning_and_one_at_its_end(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    http.rule = lambda names: "later"
    secret = "hush-hush-hush"
    with rig(tmp_path, http.exporter(headers={"api-key": secret})) as made:
        made.put(*named(7))
        made.start()
        wait_until(lambda: made.sender.attempts >= 8)
        assert len(lines(caplog)) == 1
        http.rule = lambda names: "delivered"
        made.drained()
        begin, end = lines(caplog)
        assert begin.startswith("out can't deliver now: ")
        assert begin.endswith("(waiting: 7)")
        assert end.startswith("out answers again after ")
        assert end.endswith("waiting: 7)")
        made.put("more")
        made.drained()
        assert len(lines(caplog)) == 2
    assert secret not in caplog.text


def test_each_kind_of_an_outage_is_said_once(tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """Also where a backend changes between them with each attempt."""
    http.rule = lambda names: "later" if len(http.calls) % 2 else "blocked"
    with rig(tmp_path, http.exporter()) as made:
        made.put("a")
        made.start()
        wait_until(lambda: len(http.calls) >= 8)
        http.rule = lambda names: "delivered"
        made.drained()
    assert [line.split(" ", 1)[1][:10] for line in lines(caplog)] == ["is blocked", "can't deli", "answers ag"]
    blocked = next(record for record in caplog.records if "is blocked" in record.getMessage())
    assert blocked.levelno == logging.ERROR


def test_another_failure_of_the_same_state_is_said_and_other_words_of_the_backend_are_not(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    sink = http.sink
    assert isinstance(sink, HttpSink)
    text = {"Content-Type": "text/plain"}
    sink.answer = lambda received: HttpAnswer(
        401 if len(sink.requests) < 4 else 404, text, b"request %d" % len(sink.requests)
    )
    with rig(tmp_path, http.exporter()) as made:
        made.put("a")
        made.start()
        wait_until(lambda: len(sink.requests) >= 8)
    assert [line.partition("HTTP ")[2][:3] for line in lines(caplog)] == ["401", "404"]
    assert "request 1" in caplog.text


def test_an_exporter_whose_reasons_all_differ_does_not_fill_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outage = Outage("out", tmp_path)
    for number in range(30):
        outage.log("retrying", f"request {number} failed", waiting=1, reminder=3600)
    assert len(lines(caplog)) == 10
    outage.log("retrying", "request 30 failed", waiting=1, reminder=0)
    assert "request 30 failed" in lines(caplog)[-1], "a reminder says how it fails now"


@pytest.mark.parametrize("kind", ["blocked", "rejected", "later"])
def test_the_first_failure_after_a_resume_or_a_reload_is_said(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture, kind: Kind
) -> None:
    """Somebody has tried to repair it, and it is the same failure."""
    http.rule = lambda names: kind
    slow = settings(retry=SLOW, blocked=SLOW)
    with rig(tmp_path, http.exporter(), slow) as made:
        made.put("a")
        made.start()
        wait_until(lambda: len(lines(caplog)) == 1)
        made.sender.resume()
        wait_until(lambda: len(lines(caplog)) == 2)
        made.sender.shutdown()
        renewed = QueueSender(made.queue.cursor("out"), http.exporter(), slow)
        renewed.start(instead_of=made.sender)
        made.senders["out"] = renewed
        wait_until(lambda: len(lines(caplog)) == 3)
        assert len(set(lines(caplog))) == 1
        since = renewed.outage
        http.rule = lambda names: "delivered"
        renewed.resume()
        made.drained()
        wait_until(lambda: len(lines(caplog)) == 4)
        assert since is not None
        assert since.attempts == 3, "it is one outage"


def test_the_next_outage_is_said_again(tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture) -> None:
    with rig(tmp_path, http.exporter()) as made:
        made.start()
        for round_, name in enumerate(named(2), 1):
            http.rule = lambda names: "later"
            made.put(name)
            wait_until(lambda: made.sender.state == "retrying")
            http.rule = lambda names: "delivered"
            made.drained()
            wait_until(lambda round_=round_: len(lines(caplog)) == 2 * round_)  # type: ignore[misc] # as above


def test_an_outage_ends_with_a_refusal_of_the_data_as_well(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    http.rule = lambda names: "later" if len(http.calls) < 2 else "rejected" if "bad" in names else "delivered"
    with rig(tmp_path, http.exporter()) as made:
        made.put("bad", "good")
        made.start()
        made.drained()
        wait_until(lambda: made.sender.state == "idle")
        assert (made.sender.attempts, made.sender.last_error) == (0, "")
        assert made.dead_letters()[0].attempts == 2 + 3
    assert sum("answers again" in line for line in lines(caplog)) == 1


def test_half_of_a_batch_refused_is_one_line(tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture) -> None:
    names = named(100)
    http.rule = refusing(names[::2])
    with rig(tmp_path, http.exporter()) as made:
        made.put(*names)
        made.start()
        made.drained()
        assert made.dead_letter_names() == names[::2]
        assert http.taken == names[1::2]
        wait_until(lambda: lines(caplog))
    (line,) = lines(caplog)
    assert line.startswith("out: new dead letters: 50; the first: HTTP 400")


def test_shutdown_in_an_attempt_says_nothing_of_an_outage(
    tmp_path: Path, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.rule = lambda names: "hang"
    with rig(tmp_path, backend.exporter()) as made:
        made.put("a")
        made.start()
        backend.sink.wait_for(1)
        made.sender.shutdown()
    assert lines(caplog) == []


def test_states_are_those_that_the_queue_command_shows(tmp_path: Path, http: Backend) -> None:
    gate = threading.Event()

    def rule(names: list[str]) -> Kind:
        assert gate.wait(30)
        return "delivered"

    http.rule = rule
    states: list[str] = []
    with rig(tmp_path, http.exporter()) as made:
        states.append(made.sender.state)
        made.start()
        wait_until(lambda: made.sender.state == "idle")
        made.put("a")
        http.sink.wait_for(1)
        states.append(made.sender.state)
        gate.set()
        wait_until(lambda: made.sender.state == "idle")
        made.sender.shutdown()
        states.append(made.sender.state)
    assert states == ["stopped", "sending", "stopped"]


def test_records_sent_and_failed_are_counted(tmp_path: Path, http: Backend, counts: Counts) -> None:
    answers: Iterator[Kind] = iter(["later", "partial", "delivered"])
    http.rule = lambda names: next(answers)
    before = counts()
    with rig(tmp_path, http.exporter(), settings(max_records=3)) as made:
        made.put(*named(5))
        made.start()
        made.drained()
        wait_until(lambda: made.sender.state == "idle")
    after = counts()
    assert after["sent"] - before["sent"] == 2 + 2
    assert after["send_failed"] - before["send_failed"] == 3 + 1


def test_by_default_a_blocked_exporter_is_tried_every_five_minutes_at_least() -> None:
    assert BLOCKED.max_interval * (1 + BLOCKED.randomization_factor) == 300
    assert BLOCKED.max_elapsed_time == 0
    assert BLOCKED.enabled
    assert DeliverySettings().blocked is BLOCKED


def test_a_sender_opens_nothing_before_its_start(tmp_path: Path) -> None:
    queue = DurableQueue(tmp_path / "queue", CurrentRouting(Routing()))
    assert queue is not None
    made = Rig(tmp_path, {"out": (exporter_to("http", "127.0.0.1:9"), settings())})
    try:
        assert threads() == []
        assert isinstance(made.sender, QueueSender)
    finally:
        made.close()
