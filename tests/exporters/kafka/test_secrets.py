"""What the exporter says of connections that fail, at debug level and with the errors behind each: no secret."""

import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from statsig_otel.exporters.exporter import Blocked, RetryLater
from statsig_otel.exporters.kafka.connection import check_brokers
from statsig_otel.exporters.kafka.settings import KafkaSettings
from tests.e2e.canaries import identity, inline_tls, lines_of, spellings
from tests.e2e.statsig_client import dead_port
from tests.exporters.kafka.records import exporter, record
from tests.peers.certs import Authority, ServerTls
from tests.peers.kafka_cluster import KafkaCluster
from tests.peers.otlp_servers import HttpSink
from tests.peers.refusing_kafka import RefusingKafka

PASSWORD = 's3cr3t-0123456789abcdef "with" <signs>'
AUTH = {"sasl": {"mechanism": "PLAIN", "username": "writer", "password": PASSWORD}}


def hidden() -> set[str]:
    return spellings(PASSWORD) | lines_of(identity("kafka").key.decode())


@pytest.fixture
def nobody() -> Iterator[str]:
    with dead_port() as port:
        yield f"127.0.0.1:{port}"


def said_of(broker: str, caplog: pytest.LogCaptureFixture, **keys: Any) -> str:
    """What a broker that can't be used leads to: of an attempt to send, and of the doctor's check."""
    caplog.set_level("DEBUG")
    settings: Mapping[str, Any] = {"brokers": [broker], "auth": AUTH, **keys}
    made = exporter(**settings)
    made.start()
    outcome = made.send(record("a"), 1, 1.0)
    made.shutdown()
    assert isinstance(outcome, Blocked | RetryLater)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - any: what it says is compared
        check_brokers(KafkaSettings.model_validate(settings), 1.0)
    return "\n".join([repr(outcome), *traceback.format_exception(caught.value), caplog.text])


def leaks(said: str) -> list[str]:
    return [one for one in hidden() if one in said]


@pytest.mark.slow
def test_a_broker_that_nobody_is(nobody: str, caplog: pytest.LogCaptureFixture) -> None:
    said = said_of(nobody, caplog)
    assert "Connection refused" in said
    assert leaks(said) == []


@pytest.mark.slow
def test_a_broker_without_a_certificate_that_is_trusted(caplog: pytest.LogCaptureFixture) -> None:
    with HttpSink(tls=ServerTls(Authority().issue("127.0.0.1"))) as server:
        said = said_of(server.address, caplog, tls=inline_tls("kafka"))
    assert "certificate is not trusted" in said
    assert leaks(said) == []


@pytest.mark.slow
def test_a_broker_that_quotes_the_password(caplog: pytest.LogCaptureFixture) -> None:
    with RefusingKafka() as broker:
        said = said_of(broker.address, caplog)
    assert "not allowed: writer" in said
    assert leaks(said) == []


@pytest.mark.slow
def test_a_broker_that_knows_no_passwords(caplog: pytest.LogCaptureFixture) -> None:
    """It answers each request but the login."""
    with KafkaCluster() as cluster:
        said = said_of(cluster.brokers[0], caplog)
    assert leaks(said) == []


def test_a_key_that_is_not_one(nobody: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    key = identity("kafka").key.decode()
    broken = f"{key.splitlines()[0]}\n{key.splitlines()[1]}\n{key.splitlines()[-1]}\n"
    for text in (key[:-40], broken, f"{key}\u00e9"):
        made = exporter([nobody], auth=AUTH, tls={**inline_tls("kafka"), "key_pem": text})
        try:
            made.start()
        except ValueError as error:
            said = "\n".join([*traceback.format_exception(error), caplog.text])
        else:
            made.shutdown()
            said = caplog.text
        assert leaks(said) == [], text


def test_a_key_may_have_comments_in_any_encoding(nobody: str) -> None:
    """As openssl writes them from a PKCS #12 file."""
    pem = inline_tls("kafka")
    made = exporter([nobody], auth=AUTH, tls={**pem, "key_pem": f"friendlyName: Schlüssel\n{pem['key_pem']}"})
    made.start()
    made.shutdown()
