"""From webhooks through nginx, replicas, Apache Kafka and two Collectors to a backend: nothing is lost."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statsig_otel.exporters import KafkaSettings
from statsig_otel.exporters.kafka.connection import check_brokers
from statsig_otel.exporters.kafka.settings import KafkaLogsSettings
from statsig_otel.plugin.record.record import uid
from tests.e2e.kafka_chain import SCALING, Chain, url
from tests.e2e.kafka_kills import PATIENCE, ReceivedRecords, Sender, judge, kill_under_load
from tests.e2e.otelcol import UnavailableError
from tests.e2e.processes import Restartable, write_config
from tests.e2e.service_process import ServiceProcess
from tests.e2e.statsig_client import ENV, change, load, post
from tests.exporters.kafka.records import uid_of
from tests.peers.kafka_cluster import read_all
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
        expected, found = ReceivedRecords(past), ReceivedRecords(through)
        expected.look()
        assert expected.records.total() == 20
        consumer = chain.consumer("of another topic", BACKEND=through.url, KAFKA_TOPIC="same", KAFKA_GROUP="same")
        try:
            consumer.start()
            wait_until(lambda: found.has(set(expected.uids)), "the records", within=120)
        finally:
            consumer.stop()
        assert found.records == expected.records


@contextmanager
def replica(chain: Chain, topic: str, **settings: str) -> Iterator[Restartable]:
    """One more, with a topic of its own."""
    chain.kafka.create_topic(topic, settings={"min.insync.replicas": "2", **settings})
    made = chain.replica(topic, KAFKA_TOPIC=topic)
    try:
        made.start()
        yield made
    finally:
        made.kill()


def written(chain: Chain, topic: str) -> set[str]:
    return {uid_of(message.value()) for message in read_all(chain.kafka.addresses(), topic)}


def test_a_stop_while_the_brokers_do_not_answer_refuses_what_is_not_written(chain: Chain) -> None:
    """They are stopped, not ended: connections stay open."""
    with replica(chain, "stopped") as made:
        senders = [Sender(seed, url(made), pause=0.0) for seed in (8, 9)]
        with load([*senders]):
            wait_until(lambda: all(sender.acknowledged for sender in senders), "there is load", within=120)
            for broker in chain.kafka.brokers:
                os.kill(broker.pid, signal.SIGSTOP)
            try:
                sent = sum(sender.sent for sender in senders)
                wait_until(lambda: sum(sender.sent for sender in senders) > sent, "a refusal", within=120)
                assert made.stop() == 0
            finally:
                for broker in chain.kafka.brokers:
                    os.kill(broker.pid, signal.SIGCONT)
        assert sum(sender.statuses[503] for sender in senders) > 0
        wait_until(lambda: chain.kafka.are_in_sync("stopped"), "the brokers", within=PATIENCE)
        for sender in senders:
            assert sender.acknowledged <= written(chain, "stopped")


def test_a_topic_that_is_deleted_blocks_until_it_is_there_again(chain: Chain) -> None:
    with replica(chain, "deleted") as made:
        assert post(url(made), change(1)).status == 200
        chain.kafka.delete_topic("deleted")
        wait_until(lambda: post(url(made), change(2)).status == 503, "a refusal", within=120)
        wait_until(lambda: post(url(made), change(2)).status and "create the topic" in made.output, "why", within=120)
        chain.kafka.create_topic("deleted")
        wait_until(lambda: post(url(made), change(3)).status == 200, "the topic", within=120)
        assert uid(change(3)) in written(chain, "deleted")


def test_too_few_replicas_refuse_webhooks_and_the_doctor_sees_it(chain: Chain) -> None:
    with replica(chain, "strict", **{"min.insync.replicas": "3"}) as made:
        settings = KafkaSettings(brokers=chain.kafka.addresses(), logs=KafkaLogsSettings(topic="strict"))
        assert check_brokers(settings, 30)[1] is None
        assert post(url(made), change(1)).status == 200
        chain.kafka.brokers[2].kill()
        try:
            wait_until(lambda: post(url(made), change(2)).status == 503, "a refusal", within=120)

            def said() -> str:
                fault = check_brokers(settings, 30)[1]
                return "" if fault is None else fault.message

            wait_until(lambda: said() == "lacks replicas, since a broker is away or behind", "the doctor", within=120)
        finally:
            chain.kafka.brokers[2].start()
        wait_until(lambda: post(url(made), change(3)).status == 200, "the replica", within=PATIENCE)
        assert {uid(change(1)), uid(change(3))} <= written(chain, "strict")


def test_the_page_s_command_makes_a_topic_with_which_the_doctor_is_content(chain: Chain) -> None:
    (command,) = re.findall(r"kafka-topics\.sh .*?(?=\n```)", SCALING, re.DOTALL)
    chain.kafka.run(command.replace("otlp_logs", "documented"))
    found = chain.kafka.run("kafka-topics.sh --bootstrap-server kafka-1:9092 --describe --topic documented")
    for value in ("PartitionCount: 6", "ReplicationFactor: 3", *re.findall(r"--config (\S+)", command)):
        assert value in found
    settings = KafkaSettings(brokers=chain.kafka.addresses(), logs=KafkaLogsSettings(topic="documented"))
    wait_until(lambda: check_brokers(settings, 30)[1] is None, "its leaders", within=PATIENCE)


def test_the_doctor_warns_of_a_topic_that_can_lose_records(chain: Chain) -> None:
    faults = {
        "min.insync.replicas=1": "one broker acknowledges alone while the others are away",
        "unclean.leader.election.enable=true": "a broker without the last records may lead a partition",
        "cleanup.policy=compact,delete": "of a change's records for several services only one is kept",
    }
    for number, (config, effect) in enumerate(faults.items()):
        key, _, value = config.partition("=")
        settings = KafkaSettings(brokers=chain.kafka.addresses(), logs=KafkaLogsSettings(topic=f"faulty_{number}"))
        chain.kafka.create_topic(settings.logs.topic, settings={"min.insync.replicas": "2", key: value})

        def warns(settings: KafkaSettings = settings, words: str = f"has {config}: {effect}") -> bool:
            fault = check_brokers(settings, 30)[1]
            return fault is not None and fault.message == words

        wait_until(warns, "the doctor", within=120)


def test_nothing_is_lost_and_repetitions_share_a_uid_over_kills_of_everything(chain: Chain, backend: HttpSink) -> None:
    """Replicas first: the Collectors then deliver each message once. See proofs/kafka_kills.py for more."""
    delivered = ReceivedRecords(backend)
    first = [Sender(seed, chain.url) for seed in (2, 3, 4)]
    kill_under_load(chain, first, replicas=2)
    verdict = judge(chain, first, delivered, read_again=0)
    assert not verdict.faults
    second = [Sender(seed, chain.url) for seed in (5, 6, 7)]
    kill_under_load(chain, second, brokers=2, consumers=2)
    verdict = judge(chain, [*first, *second], delivered, read_again=None)
    assert not verdict.faults
    assert verdict.figures["changes acknowledged"] >= 6
