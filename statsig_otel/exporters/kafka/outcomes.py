"""Translates what a broker or the library says of a message into an outcome. Pure functions over error codes.

- `Rejected`: about the data. A message or a request is too large, or the broker does not accept a record.
- `RetryLater`: the cluster is away, has no leader, lacks replicas, or is overloaded; a send has ended before the answer
  came; or the producer has lost its place in the sequence, so that a new one is needed. An unknown error of the broker
  may be about the data.
- `Blocked`: all else, including unknown codes. Somebody has to grant a right, make a topic or fix a password.

A message without an answer may have been written. It is sent again, with the same uid.
"""

import re
from collections.abc import Iterable
from typing import Final

from confluent_kafka import KafkaError

from statsig_otel.exporters.exporter import Blocked, Rejected, RetryLater
from statsig_otel.exporters.network.answers import one_line

TOO_LARGE: Final = frozenset({
    KafkaError.INVALID_MSG_SIZE, KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE,
})  # fmt: skip
"""Of a message, or of a request with several of them."""

REJECTED: Final = TOO_LARGE | {KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP}

RETRY_LATER: Final = frozenset({
    # The library: connections, names, time, a purge by us, and a lost place in the sequence.
    KafkaError._ALL_BROKERS_DOWN, KafkaError._DESTROY, KafkaError._DESTROY_BROKER, KafkaError._FATAL,
    KafkaError._FENCED, KafkaError._GAPLESS_GUARANTEE, KafkaError._INCONSISTENT, KafkaError._ISR_INSUFF,
    KafkaError._MSG_TIMED_OUT, KafkaError._PURGE_INFLIGHT, KafkaError._PURGE_QUEUE, KafkaError._QUEUE_FULL,
    KafkaError._RESOLVE, KafkaError._RETRY, KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE, KafkaError._TRANSPORT,
    # The cluster: leaders, replicas, storage, load.
    KafkaError.BROKER_NOT_AVAILABLE, KafkaError.ELIGIBLE_LEADERS_NOT_AVAILABLE, KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.INVALID_MSG, KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.LOG_DIR_NOT_FOUND, KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_CONTROLLER, KafkaError.NOT_ENOUGH_REPLICAS, KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.OPERATION_NOT_ATTEMPTED,
    KafkaError.PREFERRED_LEADER_NOT_AVAILABLE, KafkaError.REASSIGNMENT_IN_PROGRESS,
    KafkaError.REBOOTSTRAP_REQUIRED, KafkaError.REPLICA_NOT_AVAILABLE, KafkaError.REQUEST_TIMED_OUT,
    KafkaError.STALE_BROKER_EPOCH, KafkaError.STALE_CTRL_EPOCH, KafkaError.THROTTLING_QUOTA_EXCEEDED,
    KafkaError.UNKNOWN, KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.UNKNOWN_TOPIC_ID,
    # The producer has lost its place in the sequence.
    KafkaError.CONCURRENT_TRANSACTIONS, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.INVALID_PRODUCER_ID_MAPPING, KafkaError.NOT_COORDINATOR,
    KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, KafkaError.PRODUCER_FENCED, KafkaError.UNKNOWN_PRODUCER_ID,
})  # fmt: skip

_DENIED: Final = "grant the user WRITE and DESCRIBE on the topic"
_LOGIN: Final = "check auth::sasl: mechanism, username and password"
_MAKE_IT: Final = "create the topic, or correct logs::topic"
HINTS: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: _DENIED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: f"{_DENIED}, and before Kafka 2.8 IDEMPOTENT_WRITE on the cluster",
    KafkaError.UNKNOWN_TOPIC_OR_PART: _MAKE_IT,
    KafkaError._UNKNOWN_TOPIC: _MAKE_IT,
    KafkaError.TOPIC_EXCEPTION: _MAKE_IT,
    KafkaError._AUTHENTICATION: _LOGIN,
    KafkaError.SASL_AUTHENTICATION_FAILED: _LOGIN,
    KafkaError.UNSUPPORTED_SASL_MECHANISM: _LOGIN,
    KafkaError._SSL: "check tls",
    KafkaError.UNSUPPORTED_COMPRESSION_TYPE: "choose another producer::compression",
}
"""What to do, for the errors that somebody has to repair."""

_LISTENER: Final = "check brokers, and whether their port wants TLS (tls: {}) or a password (auth::sasl)"
_WITHOUT_TLS: Final = "this port seems to speak without TLS: name the port for TLS, or leave tls out (not encrypted)"
_WORDS: Final = {
    "PLAINTEXT broker listener": _WITHOUT_TLS,
    "SSL connection closed by peer .*in state SSL_HANDSHAKE": _WITHOUT_TLS,  # if the broker is quicker
    "certificate verify failed": "the broker's certificate is not trusted: name its CA in tls::ca_file",
    "brokers are down": _LISTENER,  # all that is said if a port ends connections
    r"security\.protocol": _LISTENER,
}
"""What to do, by a pattern of librdkafka's words, whose own advice names its own keys."""

UNANSWERED: Final = frozenset({
    KafkaError._FATAL, KafkaError._MSG_TIMED_OUT, KafkaError._PURGE_INFLIGHT, KafkaError._PURGE_QUEUE,
    KafkaError._TIMED_OUT,
})  # fmt: skip
"""The errors of messages that nobody has answered. An error of a connection says more."""


def outcome_of(error: KafkaError, place: str, hide: Iterable[str]) -> RetryLater | Rejected | Blocked:
    """The outcome that an error means.

    Args:
        error: The error of a message, or of a connection.
        place: Where the message should go, for the reason.
        hide: Strings that the reason must not contain.
    """
    code, name = error.code(), error.name().lstrip("_")
    said = one_line(error.str(), hide)
    if code in REJECTED:
        return Rejected(f"{name} from {place}: {said}")
    hint = next((hint for words, hint in _WORDS.items() if re.search(words, said)), HINTS.get(code))
    reason = f"{name} from {place}: {hint}: {said}" if hint else f"{name} from {place}: {said}"
    if code in RETRY_LATER:
        return RetryLater(reason, may_be_data=code == KafkaError.UNKNOWN)
    return Blocked(reason, hint or "")


def decisive(errors: Iterable[KafkaError]) -> KafkaError:
    """The error that decides about messages which failed in different ways.

    First what somebody has to repair, then what may pass: neither says anything about the data. An answer says more
    than none.
    """
    return min(errors, key=_rank)


def _rank(error: KafkaError) -> tuple[bool, ...]:
    code = error.code()
    says_little = code in UNANSWERED, code == KafkaError._ALL_BROKERS_DOWN
    return code in REJECTED, code == KafkaError.UNKNOWN, *says_little, code in RETRY_LATER
