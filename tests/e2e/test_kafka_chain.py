"""From webhooks through nginx, replicas, Apache Kafka and two Collectors to a backend: nothing is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kafka_chain import Chain
from tests.e2e.kafka_kills import Delivered, Sender, judge, kill_under_load
from tests.e2e.otelcol import UnavailableError
from tests.e2e.processes import write_config
from tests.e2e.service_process import ServiceProcess
from tests.e2e.statsig_client import ENV, change, post
from tests.peers.otlp_servers import HttpSink
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(45 * 60.0), pytest.mark.xdist_group("apache_kafka")]


@pytest.fixture(scope="module")
def backend() -> Iterator[HttpSink]:
    with HttpSink() as sink:
        yield sink


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, backend: HttpSink) -> Iterator[Chain]:
    try:
        made = Chain(tmp_path_factory.mktemp("kafka"), backend.url)
    except UnavailableError as error:
        pytest.skip(f"!! THE CHAIN WITH APACHE KAFKA CAN'T BE RUN: ITS TESTS DO NOT RUN: {error}")
    with made:
        yield made


def test_a_record_arrives_as_it_was_made(tmp_path: Path, chain: Chain) -> None:
    """Through a topic, and without it: the same records."""
    chain.kafka.create_topic("same")
    with HttpSink() as through, HttpSink() as past:
        exporters: dict[str, dict[str, object]] = {
            "kafka": {"brokers": chain.kafka.addresses(), "logs": {"topic": "same"}},
            "otlp_http": {"endpoint": past.url},
        }
        with ServiceProcess(write_config(tmp_path, exporters), env=ENV) as service:
            assert post(service.url, *(change(number) for number in range(20))).status == 200
        expected, found = Delivered(past), Delivered(through)
        expected.look()
        assert expected.records.total() == 20
        consumer = chain.consumer("of another topic", BACKEND=through.url, KAFKA_TOPIC="same", KAFKA_GROUP="same")
        try:
            consumer.start()
            wait_until(lambda: found.has(set(expected.uids)), "the records", within=120)
        finally:
            consumer.stop()
        assert found.records == expected.records


def test_nothing_is_lost_and_repetitions_share_a_uid_over_kills_of_everything(chain: Chain, backend: HttpSink) -> None:
    """Replicas and brokers first: the Collectors then deliver each message once. See proofs/kafka_kills.py for more."""
    delivered = Delivered(backend)
    first = [Sender(seed, chain.url) for seed in (2, 3, 4)]
    kill_under_load(chain, first, replicas=1, brokers=2)
    verdict = judge(chain, first, delivered, read_again=0)
    assert not verdict.faults
    second = [Sender(seed, chain.url) for seed in (5, 6, 7)]
    kill_under_load(chain, second, replicas=1, consumers=2)
    verdict = judge(chain, [*first, *second], delivered, read_again=None)
    assert not verdict.faults
    assert len(first[0].acknowledged | second[0].acknowledged) > 10
