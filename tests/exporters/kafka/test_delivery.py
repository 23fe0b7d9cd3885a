"""The exporter behind the queue, and with webhooks that wait for it, against librdkafka's own cluster."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from statsig_otel.exporters.consumer import Batch, Change, Receipt, RefusedError
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer, SynchronousExporter
from statsig_otel.exporters.routing import Route
from tests.exporters.delivery.helpers import rig, settings
from tests.exporters.kafka.records import exporter, record, uids_of
from tests.peers.kafka_cluster import KafkaCluster
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[KafkaCluster]:
    with KafkaCluster(brokers=3, partitions=3) as running:
        for broker in (1, 2, 3):
            running.lead(broker, broker - 1)
        yield running


def webhook(*numbers: int, size: int = 0) -> Batch:
    """A webhook with a change for each number, by which its uid is made."""
    uids = [uid_of(number) for number in numbers]
    return Batch("statsig", tuple(Change(uid, (record(uid, size=size),)) for uid in uids))


def uid_of(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()[:32]


def test_while_a_broker_is_away_the_others_get_their_records_and_it_gets_its_own_later(
    tmp_path: Path, cluster: KafkaCluster
) -> None:
    """Each record once: what was written is not sent again with what was not."""
    with rig(tmp_path, exporter(cluster.brokers), settings(timeout=2.0)) as made:
        for number in range(100):
            made.queue.consume(webhook(number), made.queue.routing.route("statsig")).result(30)
        cluster.stop(2)
        made.start()
        wait_until(lambda: made.sender.last_error, "a failure", within=60)
        written = uids_of(one.value() for one in cluster.read(20, partitions=[0, 2]))
        assert 0 < len(written) < 100
        cluster.resume()
        made.drained()
    assert sorted(uids_of(one.value() for one in cluster.read(100))) == sorted(map(uid_of, range(100)))


def test_a_webhook_that_waits_is_refused_only_for_its_own_records(cluster: KafkaCluster) -> None:
    """While a broker is away, and each record is in the topic once all the same."""
    consumer = SynchronousConsumer({"kafka": SynchronousExporter(exporter(cluster.brokers), 4.0)})
    consumer.start()
    route = Route((), synchronous=("kafka",))
    assert consumer.consume(webhook(0), route).result(60) == Receipt(1)
    cluster.stop(2)
    answers = {number: consumer.consume(webhook(number), route) for number in range(1, 61)}
    taken = {number for number, answer in answers.items() if is_accepted(answer)}
    assert 0 < len(taken) < 60
    cluster.resume()
    for number in answers.keys() - taken:
        assert consumer.consume(webhook(number), route).result(60) == Receipt(1)
    consumer.shutdown()
    assert sorted(uids_of(one.value() for one in cluster.read(61))) == sorted(map(uid_of, range(61)))


def is_accepted(answer: Future[Receipt]) -> bool:
    error = answer.exception(60)
    assert error is None or (isinstance(error, RefusedError) and error.reason == "exporter_failed")
    return error is None
