"""Every error of the library and of a broker has an outcome."""

from typing import Final

import pytest
from confluent_kafka import KafkaError

from statsig_otel.exporters.exporter import Blocked, Outcome, Rejected, RetryLater
from statsig_otel.exporters.kafka.outcomes import HINTS, REJECTED, RETRY_LATER, UNANSWERED, decisive, outcome_of
from tests.looped import looped

CODES: Final = {
    getattr(KafkaError, name): name
    for name in dir(KafkaError)
    if name.lstrip("_").isupper() and not name.startswith("__")
}


def test_each_error_has_one_outcome_and_its_own_name_and_place() -> None:
    assert len(CODES) > 100
    for code, name in CODES.items():
        outcome = outcome_of(KafkaError(code, "the broker's words"), "the topic t", ())
        expected = Rejected if code in REJECTED else RetryLater if code in RETRY_LATER else Blocked
        assert type(outcome) is expected, name
        assert outcome.reason.startswith(f"{name.lstrip('_')} from the topic t: ")
        assert outcome.reason.endswith("the broker's words")


def test_the_tables_have_no_code_twice_and_hints_only_where_somebody_acts() -> None:
    assert not REJECTED & RETRY_LATER
    assert not HINTS.keys() & (REJECTED | RETRY_LATER)
    assert UNANSWERED < RETRY_LATER


# The errors that librdkafka and Kafka's own producer retry, and those about rights, names and passwords.
@looped(
    ("names", "kind"),
    [
        ("NOT_LEADER_FOR_PARTITION NOT_ENOUGH_REPLICAS REQUEST_TIMED_OUT KAFKA_STORAGE_ERROR", RetryLater),
        ("OUT_OF_ORDER_SEQUENCE_NUMBER INVALID_PRODUCER_EPOCH UNKNOWN_PRODUCER_ID _FATAL", RetryLater),
        ("_TRANSPORT _ALL_BROKERS_DOWN _RESOLVE _MSG_TIMED_OUT _PURGE_INFLIGHT _PURGE_QUEUE", RetryLater),
        ("THROTTLING_QUOTA_EXCEEDED INVALID_MSG UNKNOWN", RetryLater),
        ("MSG_SIZE_TOO_LARGE RECORD_LIST_TOO_LARGE INVALID_RECORD INVALID_TIMESTAMP", Rejected),
        ("TOPIC_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED SASL_AUTHENTICATION_FAILED", Blocked),
        ("UNKNOWN_TOPIC_OR_PART _UNKNOWN_TOPIC TOPIC_EXCEPTION _AUTHENTICATION _SSL POLICY_VIOLATION", Blocked),
        ("INVALID_REQUIRED_ACKS UNSUPPORTED_VERSION UNSUPPORTED_FOR_MESSAGE_FORMAT _INVALID_ARG", Blocked),
    ],
)
def test_what_kafka_retries_is_retried(names: str, kind: type[Outcome]) -> None:
    for name in names.split():
        assert type(outcome_of(KafkaError(getattr(KafkaError, name)), "t", ())) is kind, name


def test_only_an_unknown_error_of_the_broker_may_be_about_the_data() -> None:
    retried = {code: outcome_of(KafkaError(code), "t", ()) for code in RETRY_LATER}
    assert [code for code, one in retried.items() if isinstance(one, RetryLater) and one.may_be_data] == [
        KafkaError.UNKNOWN
    ]


def test_a_port_that_ends_connections_gets_a_hint() -> None:
    words = "Disconnected: might be caused by incorrect security.protocol configuration"
    hint = "check brokers, and whether their port wants TLS (tls: {}) or a password (auth::sasl)"
    outcome = outcome_of(KafkaError(KafkaError._TRANSPORT, words), "t", ())
    assert outcome == RetryLater(f"TRANSPORT from t: {hint}: {words}")


# All are said at a port for TLS. Which one is said of TLS at a port without it depends on when the broker ends the
# connection; the last two are of brokers that do speak TLS.
@looped(
    ("words", "named"),
    [
        (
            "SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener? (in state SSL_HANDSHAKE)",
            True,
        ),
        ("Disconnected: SSL connection closed by peer (after 1ms in state SSL_HANDSHAKE)", True),
        ("Disconnected: SSL connection closed by peer (after 29227ms in state UP)", False),
        ("SSL handshake failed: certificate verify failed (after 2ms in state SSL_HANDSHAKE)", False),
    ],
)
def test_tls_at_a_port_without_it_gets_a_hint(words: str, named: bool) -> None:
    hint = "this port seems to speak without TLS: name the port for TLS, or leave tls out (not encrypted)"
    for code in (KafkaError._SSL, KafkaError._TRANSPORT):
        assert (hint in outcome_of(KafkaError(code, words), "t", ()).reason) is named, words


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            "MSG_SIZE_TOO_LARGE _PURGE_QUEUE NOT_ENOUGH_REPLICAS TOPIC_AUTHORIZATION_FAILED",
            "TOPIC_AUTHORIZATION_FAILED",
        ),
        ("MSG_SIZE_TOO_LARGE _PURGE_QUEUE UNKNOWN NOT_ENOUGH_REPLICAS", "NOT_ENOUGH_REPLICAS"),
        ("MSG_SIZE_TOO_LARGE UNKNOWN _PURGE_QUEUE", "_PURGE_QUEUE"),
        ("MSG_SIZE_TOO_LARGE UNKNOWN", "UNKNOWN"),
        ("_ALL_BROKERS_DOWN _TRANSPORT", "_TRANSPORT"),
    ],
)
def test_what_decides_about_messages_that_failed_in_different_ways(names: str, expected: str) -> None:
    errors = [KafkaError(getattr(KafkaError, name)) for name in names.split()]
    assert decisive(errors).code() == decisive(errors[::-1]).code() == getattr(KafkaError, expected)
