"""What docs/scaling.md says of the Collectors that read the topic, and of a backend with errors.

Run with one real broker, the example's collector.yaml, and a backend that answers as it is told.
"""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
import urllib3
from confluent_kafka import Producer

from tests.e2e.kafka_chain import EXAMPLE, SCALING, collector
from tests.e2e.otelcol import UnavailableError
from tests.e2e.processes import Restartable
from tests.e2e.statsig_client import uids
from tests.exporters.kafka.records import record
from tests.peers.apache_kafka import ApacheKafka, running
from tests.peers.otlp_servers import HttpAnswer, HttpSink, Received
from tests.peers.ports import free_port
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30 * 60.0), pytest.mark.xdist_group("apache_kafka")]

PATIENCE = 300.0
"""Seconds for what a loaded machine takes long for, and more than two sessions: one after the other may have to end."""

AWAY = (429, 502, 503, 504)
PERMANENT = (400, 401, 403, 500)
PAUSED = "pausing partition due to permanent processing error"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    try:
        collector("", {})
        with running(tmp_path_factory.mktemp("kafka") / "cluster") as cluster:
            yield cluster
    except UnavailableError as error:
        pytest.skip(f"!! COLLECTORS CAN'T READ A REAL KAFKA HERE: THEIR TESTS DO NOT RUN: {error}")


class Backend:
    """A backend that refuses some records.

    Attributes:
        refused: The status for each of these uids.
        asked: The uids of all requests.
        taken: The uids of those that were answered with 200.
    """

    def __init__(self, sink: HttpSink, refused: dict[str, int] | None = None) -> None:
        self.refused = refused or {}
        self.asked: list[str] = []
        self.taken: list[str] = []
        sink.answer = self._answer

    def _answer(self, received: Received) -> HttpAnswer:
        found = uids([received])
        self.asked += found
        status = next((self.refused[uid] for uid in found if uid in self.refused), 200)
        if status == 200:
            self.taken += found
        return HttpAnswer(status)

    def takes(self, *wanted: str) -> None:
        """Wait until it has taken these."""
        wait_until(lambda: set(wanted) <= set(self.taken), f"{wanted} of {self.taken}", within=PATIENCE)


class Topic:
    """A topic with a consumer group of its own, and a Collector that reads it. A context manager: the Collector ends.

    Args:
        kafka: The broker.
        name: The name of both.
        backend: The port of the backend.
        config: The Collector's file.
    """

    def __init__(self, kafka: ApacheKafka, name: str, backend: int, config: Path = EXAMPLE / "collector.yaml") -> None:
        self._kafka = kafka
        self._name = name
        self._metrics_port = free_port()
        self._config = config
        self._variables = {
            "BACKEND": f"http://127.0.0.1:{backend}",
            "KAFKA_GROUP": name,
            "KAFKA_TOPIC": name,
            **{f"KAFKA_{number}": kafka.addresses()[0] for number in (1, 2, 3)},
        }
        self.collector = self.another(METRICS_PORT=str(self._metrics_port))

    def another(self, **variables: str) -> Restartable:
        """One more Collector of the group, which is not started; with these variables for its file."""
        return collector("Collector", {**self._variables, "METRICS_PORT": "0", **variables}, self._config)

    def __enter__(self) -> Self:
        self._kafka.create_topic(self._name, 6)
        return self

    def __exit__(self, *_: object) -> None:
        self.collector.kill()

    def write(self, partition: int, *uids: str) -> None:
        """Write a message with a record for each uid."""
        producer = Producer({"bootstrap.servers": ",".join(self._kafka.addresses()), "log_level": 0})
        for uid in uids:
            producer.produce(self._name, record(uid), key=uid, partition=partition)
        assert producer.flush(60) == 0

    def lags(self) -> dict[int, int]:
        """How many messages of each partition the group has not read, if it has read any, as the brokers see it."""
        return {
            int(columns[2]): int(columns[5])
            for line in self._kafka.run(command("--describe", self._name)).splitlines()
            if (columns := line.split())[:2] == [self._name, self._name] and columns[5] != "-"
        }

    def metric(self, name: str) -> dict[str, float]:
        """The numbers of one of the Collector's metrics, by partition; without one, by an empty string."""
        text = urllib3.request(
            "GET", f"http://localhost:{self._metrics_port}/metrics", timeout=10, retries=False
        ).data.decode()
        lines = re.findall(rf"^{name}(?:_total)?\{{(.*)\}} (\S+)$", text, re.MULTILINE)
        return {"".join(re.findall(r'partition="(\d+)"', labels)): float(number) for labels, number in lines}


def command(option: str, group: str) -> str:
    """The command of docs/scaling.md about the consumer group that has this option, with another group."""
    found: list[str] = re.findall(r"kafka-consumer-groups\.sh [^`]*?(?=\n?`)", SCALING)
    return next(one for one in found if option in one.split()).replace("statsig-changes", group)


def edited(folder: Path, before: str, after: str) -> Path:
    """The example's file with another text at one place."""
    text = (EXAMPLE / "collector.yaml").read_text(encoding="utf-8")
    assert text.count(before) == 1
    (folder / "collector.yaml").write_text(text.replace(before, after))
    return folder / "collector.yaml"


def test_a_backend_that_is_away_gets_everything_later_and_a_new_group_begins_with_what_is_there(
    kafka: ApacheKafka,
) -> None:
    port = free_port()
    with Topic(kafka, "away", port) as topic:
        names = [f"u{status}" for status in AWAY]
        for partition, name in enumerate(names):
            topic.write(partition, name, f"behind {name}")
        topic.collector.start()
        wait_until(lambda: "connection refused" in topic.collector.output, "the Collector tries", within=PATIENCE)
        with HttpSink(port=port) as sink:
            backend = Backend(sink, dict(zip(names, AWAY, strict=True)))
            wait_until(lambda: set(backend.asked) == set(names), "each has got its error", within=PATIENCE)
            backend.refused.clear()
            backend.takes(*names, *(f"behind {name}" for name in names))
            assert PAUSED not in topic.collector.output


@pytest.mark.parametrize("again", ["same", "another"])
def test_a_permanent_error_pauses_a_partition_until_a_collector_is_started(kafka: ApacheKafka, again: str) -> None:
    """Nothing is lost, the other partitions go on, and the brokers see the lag."""
    name = f"permanent-{again}"
    with HttpSink() as sink, Topic(kafka, name, sink.port) as topic, ExitStack() as stack:
        backend = Backend(sink, {f"bad{status}": status for status in PERMANENT})
        topic.collector.start()
        for partition in range(6):
            topic.write(partition, f"first{partition}")
        backend.takes(*(f"first{partition}" for partition in range(6)))
        for partition, status in enumerate(PERMANENT):
            topic.write(partition, f"bad{status}", f"behind{status}")
        wait_until(lambda: topic.collector.output.count(PAUSED) == 4, "they are paused", within=PATIENCE)
        assert "Try enabling sending_queue" in topic.collector.output
        backend.refused.clear()
        for partition in range(6):
            topic.write(partition, f"late{partition}")
        backend.takes("late4", "late5")
        assert len(backend.taken) == 8
        wait_until(lambda: topic.lags() == {0: 3, 1: 3, 2: 3, 3: 3, 4: 0, 5: 0}, "the lag", within=PATIENCE)
        assert topic.metric("otelcol_exporter_send_failed_log_records") == {"": 4}
        assert set(topic.metric("otelcol_kafka_receiver_offset_lag")) == {"4", "5"}
        if again == "same":
            assert topic.collector.stop() == 0
            topic.collector.start()
        else:
            other = topic.another()
            stack.callback(other.kill)
            other.start()
        behind = [f"{kind}{status}" for status in PERMANENT for kind in ("bad", "behind")]
        backend.takes(*behind, *(f"late{partition}" for partition in range(4)))
        assert len(backend.taken) == len(set(backend.taken)) == 6 + 8 + 6


def test_a_record_that_is_always_refused_can_be_passed_over(kafka: ApacheKafka) -> None:
    with HttpSink() as sink, Topic(kafka, "poison", sink.port) as topic:
        backend = Backend(sink, {"poison": 400})
        topic.write(2, "before", "poison", "behind")
        said = ""
        for _ in range(2):
            topic.collector.start()
            wait_until(lambda: PAUSED in topic.collector.output, "it is paused, each time", within=PATIENCE)
            said = next(line for line in topic.collector.output.splitlines() if PAUSED in line)
            assert topic.collector.stop() == 0
        (partition,), (offset,) = (re.findall(rf'"{name}": (\d+)', said) for name in ("partition", "offset"))
        assert (partition, offset) == ("2", "1")
        reset = command("--reset-offsets", "poison").replace("otlp_logs:PARTITION", f"poison:{partition}")
        kafka.run(reset.replace("OFFSET_PLUS_1", str(int(offset) + 1)))
        topic.collector.start()
        backend.takes("behind")
        assert backend.taken == ["before", "behind"]


def test_with_on_permanent_error_every_record_with_such_an_error_is_lost(kafka: ApacheKafka, tmp_path: Path) -> None:
    config = edited(tmp_path, "      after: true\n", "      after: true\n      on_permanent_error: true\n")
    assert "message_marking: {after: true, on_permanent_error: true}" in SCALING
    with HttpSink() as sink, Topic(kafka, "passed_over", sink.port, config) as topic:
        backend = Backend(sink, {f"bad{status}": status for status in PERMANENT})
        topic.write(0, "first", *backend.refused, "last")
        topic.collector.start()
        backend.takes("first", "last")
        assert PAUSED not in topic.collector.output
        wait_until(lambda: topic.lags().get(0) == 0, "all of it counts as read", within=PATIENCE)
        assert backend.taken == ["first", "last"]


def test_nothing_is_read_while_a_group_shares_out_its_partitions_so_that_a_kill_then_repeats_nothing(
    kafka: ApacheKafka, tmp_path: Path
) -> None:
    """The group waits for the member that was killed, and can't commit meanwhile."""
    config = edited(tmp_path, "    initial_offset", "    session_timeout: 60s\n    initial_offset")
    with HttpSink() as sink, ExitStack() as stack:
        backend = Backend(sink)
        topic = stack.enter_context(Topic(kafka, "shared", sink.port, config))
        killed, new = topic.another(), topic.another()
        stack.callback(killed.kill)
        stack.callback(new.kill)
        topic.collector.start()
        killed.start()
        wait_until(lambda: kafka.is_stable("shared", 2), "the group", within=PATIENCE)
        for partition in range(6):
            topic.write(partition, f"before{partition}")
        wait_until(lambda: topic.lags() == dict.fromkeys(range(6), 0), "all of it is read", within=PATIENCE)
        joined = topic.collector.output.count("joining group")
        killed.kill()
        new.start()
        wait_until(lambda: topic.collector.output.count("joining group") > joined, "it joins again", within=PATIENCE)
        for partition in range(6):
            topic.write(partition, f"meanwhile{partition}")
        time.sleep(1.0)
        assert len(backend.taken) == 6
        topic.collector.kill()
        backend.takes(*(f"meanwhile{partition}" for partition in range(6)))
        time.sleep(1.0)
        assert len(backend.taken) == len(set(backend.taken)) == 12


def test_a_collector_with_a_name_of_its_own_comes_back_to_its_partitions(kafka: ApacheKafka, tmp_path: Path) -> None:
    """The group does not share them out anew. Of two with the same name only one can read."""
    config = edited(
        tmp_path,
        "    initial_offset",
        "    group_instance_id: ${env:NAME}\n    session_timeout: 60s\n    initial_offset",
    )
    with HttpSink() as sink, ExitStack() as stack, Topic(kafka, "named", sink.port, config) as topic:
        backend = Backend(sink)
        both = [topic.another(NAME=name) for name in ("one", "two")]
        for one in both:
            stack.callback(one.kill)
            one.start()
        wait_until(lambda: kafka.is_stable("named", 2), "the group", within=PATIENCE)
        joined = both[1].output.count("joining group")
        both[0].kill()
        for partition in range(6):
            topic.write(partition, f"u{partition}")
        both[0].start()
        backend.takes(*(f"u{partition}" for partition in range(6)))
        assert both[1].output.count("joining group") == joined
        same = topic.another(NAME="one")
        stack.callback(same.kill)
        same.start()
        wait_until(lambda: "FENCED_INSTANCE_ID" in both[0].output, "only one of them reads", within=PATIENCE)


def test_with_a_queue_of_the_collector_in_memory_a_kill_loses_records(kafka: ApacheKafka, tmp_path: Path) -> None:
    """What the page warns of, although the Collector's log advises it."""
    before = "enabled: false # with a queue an offset would be committed too early"
    with (
        HttpSink() as sink,
        Topic(kafka, "queue", sink.port, edited(tmp_path, before, "enabled: true")) as topic,
    ):
        backend = Backend(sink, {"lost": 503})
        topic.write(0, "lost")
        topic.collector.start()
        wait_until(lambda: "lost" in backend.asked and topic.lags().get(0) == 0, "the commit", within=PATIENCE)
        topic.collector.kill()
        backend.refused.clear()
        topic.collector.start()
        topic.write(0, "after")
        backend.takes("after")
        time.sleep(1.0)
        assert backend.taken == ["after"]
