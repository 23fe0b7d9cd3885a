"""From webhooks through replicas, an Apache Kafka and two Collectors of one group to a backend: nothing is lost."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from statsig_otel.plugin.record.record import uid
from tests.e2e.otelcol import UnavailableError as NoCollectorError
from tests.e2e.otelcol import build
from tests.e2e.processes import Process, clean_environment, write_config
from tests.e2e.service_process import ServiceProcess
from tests.e2e.statsig_client import ENV, Client, change, load, post, uids
from tests.peers.apache_kafka import ApacheKafka, UnavailableError, running
from tests.peers.otlp_servers import HttpSink
from tests.waiting import wait_until

_HERE = Path(__file__).parent
_CONFIG = _HERE / "otelcol-kafka-config.yaml"
_PATIENCE = 120.0
"""Seconds for what a loaded machine takes long for: a consumer of a group that was killed is missed after 10 s."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(45 * 60.0), pytest.mark.xdist_group("apache_kafka")]


@pytest.fixture(scope="module")
def collector() -> Path:
    try:
        return build(_HERE / "otelcol-kafka-builder.yaml")
    except NoCollectorError as error:
        pytest.skip(f"!! THERE IS NO COLLECTOR WITH KAFKA: THE TESTS WITH IT DO NOT RUN: {error}")


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory, collector: Path) -> Iterator[ApacheKafka]:
    try:
        with running(tmp_path_factory.mktemp("kafka") / "cluster") as cluster:
            yield cluster
    except UnavailableError as error:
        pytest.skip(f"!! THERE IS NO APACHE KAFKA: THE TESTS WITH A REAL BROKER DO NOT RUN: {error}")


class Consumers:
    """Collectors of one consumer group, which read a topic and send to a backend."""

    def __init__(self, binary: Path, kafka: ApacheKafka, topic: str, backend: HttpSink) -> None:
        self._arguments = [str(binary), "--config", str(_CONFIG)]
        self._environment = clean_environment(
            BROKERS=kafka.addresses()[0], TOPIC=topic, BACKEND=backend.url.removeprefix("http://")
        )
        self.processes: list[Process] = []

    def start(self, stack: ExitStack) -> None:
        """Start one more."""
        process = stack.enter_context(Process(self._arguments, self._environment))
        process.wait_for("Everything is ready")
        self.processes.append(process)

    def kill_one(self) -> None:
        """Kill the oldest."""
        os.kill(self.processes.pop(0).pid, signal.SIGKILL)


def exporter(kafka: ApacheKafka, topic: str) -> dict[str, object]:
    return {"brokers": kafka.addresses(), "logs": {"topic": topic}}


def parts(sink: HttpSink) -> Counter[tuple[bytes, bytes, bytes]]:
    """The resource, the scope and the record of all that a sink got."""
    return Counter(
        (resource.resource.SerializeToString(), scope.scope.SerializeToString(), record.SerializeToString())
        for received in list(sink.requests)
        for resource in received.message.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    )


def test_a_record_arrives_as_it_was_made(tmp_path: Path, kafka: ApacheKafka, collector: Path) -> None:
    """Through the topic, and without it: the same records."""
    with HttpSink() as through, HttpSink() as past, ExitStack() as stack:
        kafka.create_topic("same")
        Consumers(collector, kafka, "same", through).start(stack)
        exporters: dict[str, dict[str, object]] = {
            "kafka": exporter(kafka, "same"),
            "otlp_http": {"endpoint": past.url},
        }
        with ServiceProcess(write_config(tmp_path, exporters), env=ENV) as service:
            assert post(service.url, *(change(number) for number in range(20))).status == 200
        wait_until(lambda: len(through.records) >= 20, "the records", within=_PATIENCE)
        assert parts(through) == parts(past)


def test_nothing_is_lost_and_repetitions_share_a_uid_over_kills_of_replicas_and_consumers(
    tmp_path: Path, kafka: ApacheKafka, collector: Path
) -> None:
    chance = random.Random(1)
    clients = [Client(seed) for seed in range(3)]
    with HttpSink() as sink, ExitStack() as stack:
        kafka.create_topic("kills")
        consumers = Consumers(collector, kafka, "kills", sink)
        consumers.start(stack)
        consumers.start(stack)
        with load(clients):
            for number in range(6):
                config = write_config(tmp_path, {"kafka": exporter(kafka, "kills")})
                killed = stack.enter_context(ServiceProcess(config, env=ENV, exit_code=-signal.SIGKILL))
                before = sum(len(client.acknowledged) for client in clients)
                for client in clients:
                    client.url = killed.url
                wait_until(lambda: sum(len(client.acknowledged) for client in clients) > before, "there is load")  # noqa: B023 - at once
                time.sleep(chance.uniform(0.0, 1.0))
                if number % 2:
                    consumers.kill_one()
                    consumers.start(stack)
                killed.process.send_signal(signal.SIGKILL)
                killed.process.wait(10)
        acknowledged = set[str]().union(*(client.acknowledged for client in clients))
        assert len(acknowledged) >= 6
        wait_until(lambda: acknowledged <= set(uids(sink.requests)), "all that was acknowledged", within=_PATIENCE)
        sent = {uid(change(client.seed * 1_000_000 + number)) for client in clients for number in range(client.sent)}
        assert Counter(uids(sink.requests)).keys() <= sent
