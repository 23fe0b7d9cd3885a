"""The exporter against a real Apache Kafka: listeners, users, rights, sizes, and what is said of each mistake."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from statsig_otel.exporters import KafkaSettings
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, Rejected, RetryLater
from statsig_otel.exporters.kafka.connection import check_brokers
from statsig_otel.plugin.record.record import uid
from tests.e2e.otelcol import UnavailableError
from tests.e2e.service_process import ServiceProcess
from tests.e2e.statsig_client import ENV, change, post
from tests.exporters.delivery.helpers import rig, settings
from tests.exporters.kafka.records import exporter, record, uids_of
from tests.exporters.kafka.test_delivery import uid_of, webhook
from tests.peers.apache_kafka import COMPRESSIONS, TEST_TIMEOUT, ApacheKafka, running, sasl
from tests.peers.kafka_cluster import KafkaCluster, read, read_all
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TEST_TIMEOUT), pytest.mark.xdist_group("apache_kafka")]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    try:
        with running(tmp_path_factory.mktemp("kafka") / "cluster") as cluster:
            yield cluster
    except UnavailableError as error:
        pytest.skip(f"!! THERE IS NO APACHE KAFKA: THE TESTS WITH A REAL BROKER DO NOT RUN: {error}")


def send(brokers: list[str], *uids: str, timeout: float = 60.0, size: int = 0, **keys: Any) -> Outcome:
    made = exporter(brokers, **keys)
    made.start()
    try:
        return made.send(b"".join(record(uid, size=size) for uid in uids), len(uids), timeout)
    finally:
        made.shutdown()


def reason_of(outcome: Outcome, kind: type[Blocked | RetryLater | Rejected]) -> str:
    assert isinstance(outcome, kind)
    return outcome.reason


def test_each_compression_is_that_of_the_messages(kafka: ApacheKafka) -> None:
    for name in COMPRESSIONS:
        kafka.create_topic(name)
        sent = send(kafka.addresses(), "a", "b", size=5000, logs={"topic": name}, producer={"compression": name})
        assert sent == Delivered()
        assert kafka.brokers[0].compressions(name) == {name}
        assert sorted(uids_of(one.value() for one in read_all(kafka.addresses(), name))) == ["a", "b"]


def test_each_way_to_connect_arrives(kafka: ApacheKafka, tmp_path: Path) -> None:
    kafka.create_topic("ways")
    logs, trusted = {"topic": "ways"}, {"ca_file": kafka.authority.write(tmp_path)}
    mechanisms = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    for name in mechanisms:
        auth = sasl("writer", mechanism=name)
        assert send(kafka.addresses("SASL"), name, logs=logs, auth=auth) == Delivered()
        assert send(kafka.addresses("SASL_SSL"), f"{name} TLS", logs=logs, auth=auth, tls=trusted) == Delivered()
    tls = kafka.addresses("SSL")
    assert send(tls, "TLS", logs=logs, tls=trusted) == Delivered()
    assert send(tls, "unverified", logs=logs, tls={"insecure_skip_verify": True}) == Delivered()
    found = uids_of(one.value() for one in read_all(kafka.addresses(), "ways"))
    assert sorted(found) == sorted([*mechanisms, *(f"{name} TLS" for name in mechanisms), "TLS", "unverified"])
    settings = KafkaSettings.model_validate({
        "brokers": kafka.addresses("SASL_SSL"), "logs": logs, "auth": sasl("writer"), "tls": trusted,
    })  # fmt: skip
    detail, fault = check_brokers(settings, 30)
    assert detail == "1 broker; the topic ways has 3 partitions"
    assert fault is not None
    assert fault.message == "has only one replica: if its broker loses data, the data is lost"


@pytest.mark.parametrize(
    ("listener", "mechanism"), [("SASL", "PLAIN"), ("SASL", "SCRAM-SHA-256"), ("SASL_SSL", "SCRAM-SHA-512")]
)
def test_a_user_without_the_right_or_the_password_blocks(
    kafka: ApacheKafka, tmp_path: Path, listener: str, mechanism: str
) -> None:
    brokers = kafka.addresses(listener)
    tls = {"ca_file": kafka.authority.write(tmp_path)} if listener == "SASL_SSL" else {"insecure": True}
    denied = send(brokers, "a", auth=sasl("stranger", mechanism=mechanism), tls=tls)
    assert "grant the user WRITE and DESCRIBE on the topic" in reason_of(denied, Blocked)
    auth = sasl("writer", mechanism=mechanism, password="wrong")
    unknown = send(brokers, "a", timeout=8, auth=auth, tls=tls)
    assert "check auth::sasl: mechanism, username and password" in reason_of(unknown, Blocked)
    assert "wrong" not in reason_of(unknown, Blocked)


def test_a_new_password_is_used_for_the_next_batch(kafka: ApacheKafka) -> None:
    brokers = kafka.addresses("SASL")
    made = exporter(brokers, auth=sasl("writer", password="old"))
    new = {"brokers": brokers, "auth": sasl("writer")}
    made.start()
    assert isinstance(made.send(record("a"), 1, 6.0), Blocked)
    assert made.renew(KafkaSettings.model_validate(new))
    assert not made.renew(KafkaSettings.model_validate(new))
    assert made.send(record("a"), 1, 60.0) == Delivered()
    made.shutdown()


def test_the_wrong_listener_is_named(kafka: ApacheKafka, tmp_path: Path) -> None:
    ca = kafka.authority.write(tmp_path)
    plain, password, tls = (kafka.addresses(listener) for listener in ("PLAINTEXT", "SASL", "SSL"))
    hint = "check brokers, and whether their port wants TLS (tls: {}) or a password (auth::sasl)"
    assert hint in reason_of(send(tls, "a", timeout=8), RetryLater)
    assert hint in reason_of(send(password, "a", timeout=8), RetryLater)
    without = send(plain, "a", timeout=8, tls={"ca_file": ca})
    assert "this port seems to speak without TLS: name the port for TLS" in reason_of(without, RetryLater)
    untrusted = send(tls, "a", timeout=8, tls={})
    assert "certificate is not trusted: name its CA in tls::ca_file" in reason_of(untrusted, Blocked)


def test_a_topic_that_is_not_there_blocks_and_is_not_created(kafka: ApacheKafka) -> None:
    """Although these brokers create one for whoever asks. Nor is one that is deleted created again."""
    hint = "create the topic, or correct logs::topic"
    made = exporter(kafka.addresses(), timeout="3s", logs={"topic": "missing"})
    asked = KafkaSettings.model_validate({"brokers": kafka.addresses(), "logs": {"topic": "missing"}})
    made.start()
    for existed in (False, True):
        if existed:
            kafka.create_topic("missing")
            wait_until(lambda: made.send(record("a"), 1, 15.0) == Delivered(), "the topic is there")
            kafka.delete_topic("missing")
            wait_until(lambda: isinstance(made.send(record("a"), 1, 15.0), Blocked), "brokers know that it is deleted")
        for _ in range(2):
            assert hint in reason_of(made.send(record("a"), 1, 15.0), Blocked)
            with pytest.raises(OSError, match=hint):
                check_brokers(asked, 30)
        assert "missing" not in kafka.run("kafka-topics.sh --bootstrap-server - --list").split()
    made.shutdown()


@pytest.mark.parametrize("limit", ["of the exporter", "of the topic"])
def test_all_arrives_but_what_is_too_large_by_itself(
    limit: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """It becomes a dead letter. A request with many messages is over a topic's limit too, though each of them fits."""
    with ExitStack() as stack:
        if limit == "of the exporter":
            brokers = stack.enter_context(KafkaCluster(partitions=3)).brokers
            made = exporter(brokers, producer={"max_message_bytes": 2000})
        else:
            kafka: ApacheKafka = request.getfixturevalue("kafka")
            kafka.create_topic("otlp_logs_small", settings={"max.message.bytes": "2000"})
            brokers = kafka.addresses()
            made = exporter(brokers, logs={"topic": "otlp_logs_small"})
        queued = stack.enter_context(rig(tmp_path, made, settings()))
        route = queued.queue.routing.route("statsig")
        for number in range(40):
            queued.queue.consume(webhook(number, size=5000 if number == 7 else 200), route).result(30)
        queued.start()
        queued.drained()
        (dead_letter,) = queued.dead_letters()
        assert dead_letter.uid == bytes.fromhex(uid_of(7))
        topic = "otlp_logs" if limit == "of the exporter" else "otlp_logs_small"
        assert dead_letter.reason.startswith(f"MSG_SIZE_TOO_LARGE from the topic {topic} at ")
        written = uids_of(one.value() for one in read(brokers, 39, topic, range(3)))
    assert sorted(written) == sorted(uid_of(number) for number in range(40) if number != 7)


PASSWORD_IN_A_FILE = """
receivers: {statsig: {endpoint: "127.0.0.1:0", signing_secrets: ["${env:STATSIG_SIGNING_SECRET}"]}}
exporters:
  kafka:
    brokers: ["${env:BROKER}"]
    timeout: 3s
    logs: {topic: "${env:TOPIC}"}
    auth: {sasl: {mechanism: SCRAM-SHA-512, username: writer, password: "${file:password}"}}
    sending_queue:
      enabled: ${env:QUEUED}
extensions: {file_storage: {directory: queue, min_free_bytes: 0}}
service:
  extensions: [file_storage]
  pipelines: {logs: {receivers: [statsig], exporters: [kafka]}}
"""


@pytest.mark.parametrize("queued", [True, False])
def test_a_new_password_in_the_file_counts_without_a_reload(kafka: ApacheKafka, tmp_path: Path, queued: bool) -> None:
    """The exporter is blocked by the old one, and tries again at once."""
    topic = f"passwords_{queued}"
    kafka.create_topic(topic)
    (tmp_path / "password").write_text("old")
    (tmp_path / "config.yaml").write_text(PASSWORD_IN_A_FILE)
    env = {**ENV, "BROKER": kafka.addresses("SASL")[0], "QUEUED": str(queued).lower(), "TOPIC": topic}
    with ServiceProcess(tmp_path / "config.yaml", env=env) as service:
        assert post(service.url, change(1)).status == (200 if queued else 503)
        wait_until(lambda: service.has_logged("check auth::sasl: mechanism, username and password"), "it is refused")
        (tmp_path / "password").write_text(sasl("writer")["sasl"]["password"])
        wait_until(lambda: service.has_logged("the files of its password have changed"), "the new password")
        if queued:
            wait_until(lambda: service.has_logged("kafka answers again"), "it is delivered", within=60)
        else:
            wait_until(lambda: post(service.url, change(1)).status == 200, "it is delivered", within=60)
    assert set(uids_of(one.value() for one in read_all(kafka.addresses(), topic))) == {uid(change(1))}
