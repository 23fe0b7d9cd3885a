"""How the library connects to the brokers, and a check whether they answer."""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from statsig_otel.config.errors import Fault
from statsig_otel.config.opaque import reveal
from statsig_otel.exporters.kafka.outcomes import decisive, outcome_of
from statsig_otel.exporters.kafka.settings import KafkaSettings
from statsig_otel.exporters.network.tls import TlsMaterial
from statsig_otel.exporters.wording import counted

_logger: Final = logging.getLogger(__name__)

_CONFIGS: Final = (
    (
        "min.insync.replicas", "1", "one broker acknowledges alone while the others are away",
        "set it to 2: what such a broker loses is lost",
    ),
    (
        "unclean.leader.election.enable", "true", "a broker without the last records may lead a partition",
        "set it to false: what such a broker lacks is lost",
    ),
    (
        "cleanup.policy", ".*compact.*", "of a change's records for several services only one is kept",
        "set it to delete",
    ),
)  # fmt: skip
"""Keys of a topic, with a pattern of values by which it can lose records, what these do, and what to do."""

_MOMENT: Final = 1.0
"""Seconds for a second question to brokers that have answered the first one."""


class _LibraryLog:
    """Takes the lines of librdkafka, which would go to the standard error, to the log at debug.

    A fatal error of a producer is one of them. It only means that the exporter needs another producer.
    """

    def log(self, _level: int, message: str, *values: object) -> None:
        """Log a line."""
        _logger.debug(message, *values)


def place_of(settings: KafkaSettings) -> str:
    """Where messages go, for use after `from`."""
    return f"the topic {settings.logs.topic} at {', '.join(settings.brokers)}"


def hidden_of(settings: KafkaSettings) -> Sequence[str]:
    """What no message may contain: a broker may quote the password that it refuses."""
    return (reveal(settings.auth.sasl.password),) if settings.auth.sasl else ()


def connection(
    settings: KafkaSettings, material: TlsMaterial, on_error: Callable[[KafkaError], object]
) -> dict[str, Any]:
    """The part of librdkafka's configuration that is about connections.

    Args:
        settings: The exporter's settings.
        material: The content of the files of `tls`.
        on_error: Called with each error of a connection, while the client is polled.
    """
    canonical = settings.resolve_canonical_bootstrap_servers_only
    security = "ssl" if settings.uses_tls else "plaintext"
    found: dict[str, Any] = {
        "bootstrap.servers": ",".join(settings.brokers),
        "client.id": settings.client_id,
        # Otherwise brokers may create a missing topic, with a single replica, which nobody reads.
        "allow.auto.create.topics": False,
        "client.dns.lookup": "resolve_canonical_bootstrap_servers_only" if canonical else "use_all_dns_ips",
        "socket.keepalive.enable": True,
        "security.protocol": security,
        "error_cb": on_error,
        "logger": _LibraryLog(),
        "log_level": 0,  # what is not fatal comes to error_cb
    }
    if settings.uses_tls:
        skip = settings.tls.insecure_skip_verify
        found["enable.ssl.certificate.verification"] = not skip
        found["ssl.endpoint.identification.algorithm"] = "none" if skip else "https"
        pem = {"ssl.ca.pem": material.ca, "ssl.certificate.pem": material.certificate, "ssl.key.pem": material.key}
        # Beside its ASCII a PEM file may have comments in any encoding, and an error would quote the whole key.
        found |= {key: content.decode("ascii", "replace") for key, content in pem.items() if content is not None}
    if sasl := settings.auth.sasl:
        found |= {
            "security.protocol": f"sasl_{security}",
            "sasl.mechanism": sasl.mechanism,
            "sasl.username": sasl.username,
            "sasl.password": reveal(sasl.password),
        }
    return found


def check_brokers(settings: KafkaSettings, timeout: float) -> tuple[str, Fault | None]:
    """Ask the brokers for the topic. Nothing is written or created.

    Args:
        settings: The exporter's settings.
        timeout: Seconds for the answer.

    Returns:
        What was found, and what about it is wrong, although the brokers answer.

    Raises:
        OSError: A file of `tls` can't be read; or the brokers don't answer, refuse the exporter, or don't have the
            topic. The message says why.
        ValueError: A file of `tls` does not contain what its key requires, or the library refuses the settings.
    """
    material = settings.tls.read() if settings.uses_tls else TlsMaterial()
    errors: list[KafkaError] = []
    topic = settings.logs.topic
    try:
        client = AdminClient(connection(settings, material, errors.append))
    except KafkaException as error:
        raise ValueError(error.args[0].str()) from error
    try:
        found = client.list_topics(topic, timeout)
    except KafkaException as error:
        client.poll(0)
        failure = decisive([*reversed(errors), error.args[0]])
        raise OSError(outcome_of(failure, place_of(settings), hidden_of(settings)).reason) from error
    if (denied := found.topics[topic].error) is not None:
        raise OSError(outcome_of(denied, place_of(settings), hidden_of(settings)).reason)
    partitions = found.topics[topic].partitions.values()
    if unled := sum(one.leader < 0 for one in partitions):
        why = "nothing is written there until a broker that has its records is back"
        raise OSError(
            f"of {counted(len(partitions), 'partition')} of the topic {topic} {unled} without a leader: {why}"
        )
    detail = f"{counted(len(found.brokers), 'broker')}; the topic {topic} has {counted(len(partitions), 'partition')}"
    if any(len(one.replicas) < 2 for one in partitions):  # noqa: PLR2004 - the broker that leads is one of them
        message = "has only one replica: if its broker loses data, the data is lost"
        return detail, Fault(message, "give it a replication factor of 3, and min.insync.replicas=2")
    if any(len(one.isrs) < len(one.replicas) for one in partitions):
        message = "lacks replicas, since a broker is away or behind"
        return detail, Fault(message, "start it: with fewer than min.insync.replicas nothing is written")
    configs = _configs(client, topic)
    for key, pattern, effect, hint in _CONFIGS:
        if re.fullmatch(pattern, value := configs.get(key, "")):
            return detail, Fault(f"has {key}={value}: {effect}", hint)
    return detail, None


def _configs(client: AdminClient, topic: str) -> dict[str, str]:
    """The topic's configuration; empty if it isn't told, as to a user without DESCRIBE_CONFIGS on the topic."""
    asked = ConfigResource(ResourceType.TOPIC, topic)
    try:
        found = client.describe_configs([asked], request_timeout=_MOMENT)[asked].result()
    except KafkaException:
        return {}
    return {key: str(entry.value) for key, entry in found.items()}
