"""The exporter against librdkafka's own cluster: what is reported is delivered, and nothing else."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, Rejected, RetryLater
from statsig_otel.exporters.kafka.exporter import KafkaExporter
from tests.exporters.kafka.records import exporter, record, uid_of, uids_of
from tests.peers.kafka_cluster import INIT_PRODUCER_ID, PRODUCE, KafkaCluster
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
LONG = 60.0
"""Seconds for a send that ends by itself."""


@pytest.fixture
def cluster() -> Iterator[KafkaCluster]:
    with KafkaCluster(brokers=3) as running:
        yield running


@pytest.fixture
def kafka(cluster: KafkaCluster) -> Iterator[KafkaExporter]:
    made = exporter(cluster.brokers)
    made.start()
    yield made
    made.shutdown()


def send(made: KafkaExporter, uids: list[str], timeout: float = LONG) -> Outcome:
    return made.send(b"".join(map(record, uids)), len(uids), timeout)


def numbered(count: int, prefix: str = "u") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_each_record_is_a_message_with_its_uid_as_key(cluster: KafkaCluster, kafka: KafkaExporter) -> None:
    """The partition is that of Kafka's own producer, by murmur2, here of keys from its UtilsTest: all clients agree."""
    hashes = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
    assert send(kafka, [*numbered(300), *hashes]) == Delivered()
    assert kafka.send(record("s1", change="c") + record("s2", change="c"), 2, LONG) == Delivered()
    found = cluster.read(305)
    assert sorted(uids_of(one.value() for one in found)) == sorted([*numbered(300), *hashes, "s1", "s2"])
    messages = {uid_of(one.value()): one for one in found}
    assert all(one.key() == uid.encode() for uid, one in messages.items() if uid not in ("s1", "s2"))
    assert messages["s1"].key() == messages["s2"].key() == b"c"
    assert messages["s1"].partition() == messages["s2"].partition()
    assert {uid: messages[uid].partition() for uid in hashes} == {
        uid: (number & 0x7FFFFFFF) % 4 for uid, number in hashes.items()
    }


def test_a_request_to_a_broker_has_at_most_so_many_messages(cluster: KafkaCluster) -> None:
    made = exporter(cluster.brokers, producer={"flush_max_messages": 1})
    made.start()
    assert made.send(b"".join(record(uid, change="c") for uid in numbered(9)), 9, LONG) == Delivered()
    assert cluster.count(PRODUCE) == 9
    made.shutdown()


def test_an_error_of_the_broker_is_an_outcome_and_the_next_send_works(
    cluster: KafkaCluster, kafka: KafkaExporter, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Also after a fatal error, with which the producer can't go on. The library writes nothing by itself."""
    caplog.set_level(logging.DEBUG)
    cluster.fail(KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND)
    assert send(kafka, numbered(20)) == Delivered()  # the library has sent some of them again
    errors: dict[int, type[Rejected | RetryLater]] = {
        KafkaError.MSG_SIZE_TOO_LARGE: Rejected,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER: RetryLater,
    }
    for code, kind in errors.items():
        cluster.fail(code)
        outcome = send(kafka, [f"after {code}"])
        assert isinstance(outcome, kind)
        assert "otlp_logs" in outcome.reason
        assert send(kafka, [f"after {code}"]) == Delivered()
    assert sorted(uids_of(one.value() for one in cluster.read(22))) == sorted(
        [*numbered(20), *(f"after {code}" for code in errors)]
    )
    assert capfd.readouterr().err == ""
    assert [line.levelname for line in caplog.records if "Fatal error" in line.getMessage()] == ["DEBUG"]


def test_a_record_that_is_too_large_for_a_message_is_refused_alone(cluster: KafkaCluster) -> None:
    made = exporter(cluster.brokers, producer={"max_message_bytes": 2000})
    made.start()
    payload = record("a") + record("large", size=3000) + record("b")
    assert made.send(payload, 3, LONG) == Delivered(only=[0, 2])
    outcome = made.send(record("large", size=3000), 1, LONG)
    assert isinstance(outcome, Rejected)
    assert outcome.reason.startswith("MSG_SIZE_TOO_LARGE from the topic otlp_logs at 127.0.0.1")
    assert sorted(uids_of(one.value() for one in cluster.read(2))) == ["a", "b"]
    made.shutdown()


@pytest.mark.slow
def test_a_broker_that_is_away_costs_only_its_own_records(
    cluster: KafkaCluster, kafka: KafkaExporter, caplog: pytest.LogCaptureFixture
) -> None:
    for partition, broker in enumerate([1, 2, 3, 1]):
        cluster.lead(broker, partition)
    assert send(kafka, numbered(40, "a")) == Delivered()
    cluster.stop(2)
    uids = numbered(40, "b")
    outcome = send(kafka, uids, timeout=1.5)
    assert isinstance(outcome, Delivered)
    assert outcome.only is not None
    assert 0 < len(outcome.only) < 40
    assert f"{40 - len(outcome.only)} of 40 records were not written: " in caplog.text
    left = [uid for position, uid in enumerate(uids) if position not in outcome.only]
    cluster.resume()
    assert send(kafka, left) == Delivered()
    found = uids_of(one.value() for one in cluster.read(80))
    assert sorted(found) == sorted([*numbered(40, "a"), *uids])


@pytest.mark.slow
def test_a_cluster_that_is_away_is_tried_again_and_nothing_is_written_later(
    cluster: KafkaCluster, kafka: KafkaExporter
) -> None:
    assert send(kafka, ["first"]) == Delivered()
    cluster.stop()
    for _ in range(2):
        outcome = send(kafka, ["second"], timeout=0.7)
        assert isinstance(outcome, RetryLater)
        assert outcome.reason.startswith(("TRANSPORT from the topic", "ALL_BROKERS_DOWN from the topic"))
    cluster.resume()
    assert send(kafka, ["third"]) == Delivered()
    assert sorted(uids_of(one.value() for one in cluster.read(2))) == ["first", "third"]


@pytest.mark.slow
def test_a_batch_may_have_more_messages_than_the_library_keeps_by_default(kafka: KafkaExporter) -> None:
    assert kafka.send(record("a") * 100_001, 100_001, 10 * LONG) == Delivered()


@pytest.mark.slow
def test_what_a_send_has_left_is_not_written_while_the_end_of_its_producer_takes_time(
    cluster: KafkaCluster, kafka: KafkaExporter
) -> None:
    """As it does while a name service does not answer."""
    assert send(kafka, ["first"]) == Delivered()
    cluster.stop()
    producer = kafka._producer
    assert producer is not None
    assert isinstance(send(kafka, ["second"], timeout=0.7), RetryLater)
    cluster.resume()
    assert producer.flush(LONG) == 0
    assert send(kafka, ["third"]) == Delivered()
    assert sorted(uids_of(one.value() for one in cluster.read(2))) == ["first", "third"]


@pytest.mark.slow
def test_an_answer_that_does_not_come_in_time_is_no_success(cluster: KafkaCluster, kafka: KafkaExporter) -> None:
    """What has passed, as an error of a connection before a success, is not given as the reason."""
    assert send(kafka, ["first"]) == Delivered()
    cluster.stop()
    wait_until(lambda: bool(kafka._producer and (kafka._producer.poll(0), kafka._errors)[1]), "an error")
    cluster.resume()
    assert send(kafka, ["while nothing is wrong"]) == Delivered()
    cluster.delay(30)
    outcome = send(kafka, ["second"], timeout=0.5)
    assert isinstance(outcome, RetryLater)
    assert outcome.reason.startswith("no answer within 0.5 s from the topic otlp_logs at ")


def test_a_shutdown_ends_a_send_and_calls_nothing_a_success(cluster: KafkaCluster, kafka: KafkaExporter) -> None:
    assert send(kafka, ["first"]) == Delivered()
    cluster.delay(30)
    outcomes: list[Outcome] = []
    many = record("second") * 30_000  # so that not all are handed to the library when the shutdown comes
    sending = threading.Thread(target=lambda: outcomes.append(kafka.send(many, 30_000, LONG)))
    sending.start()
    wait_until(lambda: kafka._producer is not None and len(kafka._producer), "messages are on their way")
    began = time.monotonic()
    kafka.shutdown()
    sending.join(30)
    assert time.monotonic() - began < 20
    assert outcomes == [RetryLater("the exporter is shutting down")]
    kafka.shutdown()
    assert send(kafka, ["third"]) == RetryLater("the exporter is not running")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "TOPIC_AUTHORIZATION_FAILED from the topic otlp_logs at"),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, "UNKNOWN_TOPIC_OR_PART from the topic otlp_logs at"),
    ],
)
def test_a_topic_that_can_not_be_used_blocks(cluster: KafkaCluster, code: int, reason: str) -> None:
    cluster.deny_topic(code)
    made = exporter(cluster.brokers, timeout="1s")
    made.start()
    outcome = send(made, ["first"])
    assert isinstance(outcome, Blocked)
    assert outcome.reason.startswith(reason)
    cluster.deny_topic(0)
    assert send(made, ["first"]) == Delivered()
    made.shutdown()


@pytest.mark.slow
def test_a_missing_topic_blocks_and_is_not_created(cluster: KafkaCluster) -> None:
    """Although these brokers create one for whoever asks."""
    made = exporter(cluster.brokers, timeout="1s", logs={"topic": "missing"})
    made.start()
    for _ in range(2):
        outcome = send(made, ["first"])
        assert isinstance(outcome, Blocked)
        assert "create the topic, or correct logs::topic" in outcome.reason
    made.shutdown()


@pytest.mark.slow
def test_a_user_who_may_not_write_idempotently_blocks(cluster: KafkaCluster) -> None:
    cluster.fail(*[KafkaError.CLUSTER_AUTHORIZATION_FAILED] * 3, request=INIT_PRODUCER_ID)
    made = exporter(cluster.brokers)
    made.start()
    outcome = send(made, ["first"])
    assert isinstance(outcome, Blocked)
    assert "grant the user WRITE and DESCRIBE on the topic, and before Kafka 2.8 IDEMPOTENT_WRITE" in outcome.reason
    made.shutdown()


FORK = """
import os, sys
from tests.exporters.kafka.records import exporter, record
made = exporter(sys.argv[1:])
made.start()
print(made.send(record("before"), 1, 60.0), flush=True)
references = sys.getrefcount(made._producer)
if child := os.fork():
    _, status = os.waitpid(child, 0)
    print("child", os.waitstatus_to_exitcode(status), made.send(record("after"), 1, 60.0), flush=True)
else:
    print(made.send(record("in the child"), 1, 60.0), flush=True)
    print("kept", sys.getrefcount(made._producer) > references, flush=True)
    made.shutdown()
"""


@pytest.mark.slow
def test_a_forked_child_sends_nothing_and_ends(cluster: KafkaCluster) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, *cluster.brokers]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True, cwd=ROOT)
    assert ran.stdout.splitlines() == [
        str(Delivered()),
        str(RetryLater("the exporter was started in another process")),
        "kept True",  # to free a producer is to wait for a lock that one of its threads may have had at the fork
        f"child 0 {Delivered()}",
    ]
    assert sorted(uids_of(one.value() for one in cluster.read(2))) == ["after", "before"]


def test_a_timeout_beyond_what_the_library_takes_for_a_missing_topic_is_used(cluster: KafkaCluster) -> None:
    made = exporter(cluster.brokers, timeout="2h")
    assert send(made, ["a"]) == RetryLater("the exporter is not running")
    made.start()
    assert send(made, ["a"]) == Delivered()
    made.shutdown()


def test_a_payload_that_is_no_request_is_refused(kafka: KafkaExporter) -> None:
    outcome = kafka.send(b"\xff", 1, LONG)
    assert isinstance(outcome, Rejected)
    assert "can't be read as an ExportLogsServiceRequest" in outcome.reason
