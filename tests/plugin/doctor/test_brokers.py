"""How the doctor checks whether a Kafka exporter's brokers answer, and have its topic."""

from typing import Any

import pytest
from confluent_kafka import KafkaError

from statsig_otel.exporters import KafkaSettings
from statsig_otel.plugin.doctor.endpoints import check_backends
from statsig_otel.plugin.doctor.finding import Finding
from tests.peers.kafka_cluster import KafkaCluster
from tests.peers.ports import free_port


def look(brokers: list[str], **keys: Any) -> Finding:
    settings = KafkaSettings.model_validate({"brokers": brokers, **keys})
    (found,), offsets = check_backends({"kafka": settings})
    assert found.check == "exporters::kafka"
    assert offsets == []
    return found


def test_the_topic_is_looked_at() -> None:
    with KafkaCluster(brokers=2) as cluster:
        found = look(cluster.brokers)
        assert (found.status, found.detail) == ("ok", "2 brokers; the topic otlp_logs has 4 partitions")
        cluster.deny_topic(KafkaError.TOPIC_AUTHORIZATION_FAILED)
        found = look(cluster.brokers)
        assert found.status == "failed"
        assert found.detail.startswith("TOPIC_AUTHORIZATION_FAILED from the topic otlp_logs at 127.0.0.1:")
        assert "grant the user WRITE and DESCRIBE on the topic" in found.detail
        cluster.deny_topic(0)
        cluster.lead(-1, 3)
        found = look(cluster.brokers)
        assert found.status == "failed"
        assert found.detail.startswith("of 4 partitions of the topic otlp_logs 1 without a leader: nothing is written")
        cluster.lead(1, 3)
        assert cluster.read(0) == []


def test_a_single_replica_is_a_warning() -> None:
    with KafkaCluster() as cluster:
        found = look(cluster.brokers)
        assert found.status == "warning"
        assert found.detail.endswith("and has only one replica: if its broker loses data, the data is lost")


def test_a_missing_topic_is_a_failure_and_is_not_created() -> None:
    """Although these brokers create one for whoever asks."""
    with KafkaCluster() as cluster:
        for _ in range(2):
            found = look(cluster.brokers, logs={"topic": "missing"})
            assert found.status == "failed"
            assert "create the topic, or correct logs::topic" in found.detail


@pytest.mark.slow
def test_brokers_that_do_not_answer_are_a_failure() -> None:
    found = look([f"127.0.0.1:{free_port()}"])
    assert found.status == "failed"
    assert found.detail.startswith(("TRANSPORT from the topic", "ALL_BROKERS_DOWN from the topic"))
    assert found.hint == "check brokers, and the firewalls"


def test_files_of_tls_that_can_not_be_used_are_said() -> None:
    found = look(["127.0.0.1:9"], tls={"ca_file": "/nothing.pem"})
    assert (found.status, "ca_file can't be read" in found.detail) == ("failed", True)
