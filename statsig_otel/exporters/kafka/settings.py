"""The settings of the Kafka exporter, with the keys of the Collector's kafka exporter.

Every accepted key has an effect. A key that the library or the promise not to lose anything can't support is an error
that says so.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from statsig_otel.config.errors import SettingError
from statsig_otel.config.model import Settings
from statsig_otel.config.opaque import Opaque, reveal
from statsig_otel.config.units import Duration, Timeout
from statsig_otel.config.values import ReadAs, Secret
from statsig_otel.exporters.exporter_type import IN_A_DESTINATION
from statsig_otel.exporters.hosts import host_and_port, is_host, is_port
from statsig_otel.exporters.network.tls import NOTHING, ClientTlsSettings

_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")  # Kafka: org.apache.kafka.common.internals.Topic
_OTHER_SIGNAL: Final = "leave it out: changes are log records, see logs"
_BY_COLLECTOR: Final = "use SCRAM-SHA-512, PLAIN or a client certificate (tls), or send to a Collector that has it"
_NO_METADATA: Final = "leave it out: a webhook has no metadata; name the topic in logs::topic"

Encoding = Literal["otlp_proto", "otlp_json"]
"""`otlp_proto` or `otlp_json`."""


class KafkaLogsSettings(Settings):
    """`logs` of a Kafka exporter.

    Attributes:
        topic: The topic.
        encoding: The form of a message: an OTLP request with one record, as protobuf or as JSON.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "message_key_from_metadata_key": "leave it out: the key of a message is the change's uid",
        "topic_from_metadata_key": _NO_METADATA,
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = dict.fromkeys(
        ("message_key_from_metadata_key", "topic_from_metadata_key"), ("",)
    )

    topic: str = Field(default="otlp_logs", json_schema_extra={"minLength": 1})
    encoding: Encoding = "otlp_proto"

    @field_validator("topic")
    @classmethod
    def _check_topic(cls, topic: str) -> str:
        if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
            raise SettingError("is not the name of a topic", "letters, digits, ., _ and - only, at most 249")
        return topic

    @field_validator("encoding", mode="before")
    @classmethod
    def _explain_raw(cls, encoding: object) -> object:
        if encoding == "raw":
            raise SettingError("raw would send the body alone", "write otlp_proto or otlp_json")
        return encoding


def _compression(value: object) -> object:
    return "none" if value in (None, "") else value


class KafkaProducerSettings(Settings):
    """`producer` of a Kafka exporter.

    Attributes:
        max_message_bytes: The largest message, before compression. A larger record becomes a dead letter.
        compression: The compression of messages.
        flush_max_messages: The most messages in one request to a broker.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "allow_auto_topic_creation": "create the topic yourself: one that brokers make has a single replica",
        "compression_params": "leave it out: each compression has its usual level",
        "linger": "leave it out: what waits is sent at once",
        "max_broker_write_bytes": "leave it out: the library chooses the size of a request",
        "required_acks": "leave it out: a change counts as delivered once all in-sync replicas have it",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "allow_auto_topic_creation": (False,),
        "compression_params": ({},),
        "linger": (Duration,),
        "required_acks": ("all", -1),
    }

    max_message_bytes: int = Field(default=1_000_000, ge=1000, le=1_000_000_000)
    compression: Annotated[
        Literal["none", "gzip", "snappy", "lz4", "zstd"],
        BeforeValidator(_compression),
        WithJsonSchema({"anyOf": [{"enum": ["none", "gzip", "snappy", "lz4", "zstd"]}, *NOTHING]}),
    ] = "none"
    flush_max_messages: int = Field(default=10_000, ge=1, le=1_000_000)


def _mechanism(value: object) -> object:
    if value in ("AWS_MSK_IAM_OAUTHBEARER", "OAUTHBEARER", "OIDCFILE"):
        raise SettingError(f"{value} needs tokens that are renewed, which is not supported here", _BY_COLLECTOR)
    return value


class KafkaSaslSettings(Settings):
    """`auth::sasl` of a Kafka exporter.

    Attributes:
        mechanism: How the password is proved.
        username: The name of the user.
        password: The password.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "aws_msk": _BY_COLLECTOR,
        "oauthbearer_token_source": _BY_COLLECTOR,
        "oidc_file": _BY_COLLECTOR,
        "version": "leave it out: it is negotiated with the brokers",
    }
    needed: ClassVar[Mapping[str, str]] = {
        "mechanism": "write SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN",
        "username": "write the name of the user",
        "password": 'write a reference to it, such as "${env:KAFKA_PASSWORD}"',
    }

    mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
        BeforeValidator(_mechanism),
        WithJsonSchema({"enum": ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]}),
    ]
    username: str
    password: Secret

    @field_validator("username", "password")
    @classmethod
    def _refuse_empty(cls, value: str | Opaque) -> str | Opaque:
        if not reveal(value):
            raise SettingError("is empty", "fill the file or the variable that belongs there")
        return value


class KafkaAuthSettings(Settings):
    """`auth` of a Kafka exporter.

    Attributes:
        sasl: A user's name and password.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "kerberos": f"the library's wheels have no Kerberos: {_BY_COLLECTOR}",
        "plain_text": "write sasl: {mechanism: PLAIN, username: ..., password: ...}",
        "tls": "write tls beside auth",
    }

    sasl: KafkaSaslSettings | None = None


class KafkaTlsSettings(ClientTlsSettings):
    """The client's side of TLS, restricted to what librdkafka supports."""

    @field_validator("server_name_override")
    @classmethod
    def _cannot_override(cls, name: str) -> str:
        if name:
            raise SettingError("librdkafka can't check another name than the broker's", "leave it out")
        return name

    @field_validator("min_version")
    @classmethod
    def _cannot_raise(cls, value: str | None) -> str | None:
        if value not in (None, "1.2"):
            raise SettingError("librdkafka can't set the lowest TLS version (it is 1.2)", "leave it out")
        return value

    @model_validator(mode="after")
    def _cannot_add(self) -> "KafkaTlsSettings":
        if self.include_system_ca_certs_pool and (self.ca_file or self.ca_pem is not None):
            raise SettingError(
                "librdkafka can't trust ca_file in addition to the system's certificates",
                "put all certificates into ca_file, and leave include_system_ca_certs_pool out",
            )
        return self


_EXAMPLE: Final = "name some brokers, such as [kafka-1:9092, kafka-2:9092]"


def _is_broker(value: str) -> bool:
    host, port = host_and_port(value)
    return is_host(host) and is_port(port)


def _broker(value: str) -> str:
    if not _is_broker(value):
        hint = "leave the scheme out; tls turns TLS on" if "://" in value else "write it as kafka-1:9092"
        raise SettingError("is not host:port", hint)
    return value


class KafkaSettings(Settings):
    """A Kafka exporter, with the keys of the Collector's `kafka` exporter.

    Attributes:
        brokers: Some of the cluster's brokers, as `host:port`; the others are found by them.
        client_id: The name by which the brokers' logs and quotas know the exporter.
        timeout: The time for one attempt, including connecting.
        logs: Where the messages go, and their form.
        producer: How they are sent.
        auth: A user's name and password, if the brokers want them.
        tls: TLS is on if this key is there, unless `insecure` is true.
        resolve_canonical_bootstrap_servers_only: Use the canonical names of the addresses of `brokers`.

    Example:
        >>> from statsig_otel.exporters import KafkaSettings
        >>> KafkaSettings(brokers=["kafka-1:9092", "kafka-2:9092"]).logs.topic
        'otlp_logs'
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "conn_idle_timeout": "leave it out: a connection is reopened when it is needed",
        "include_metadata_keys": "leave it out: a webhook has no metadata",
        "metadata": "leave it out: a new leader is found as soon as an old one refuses messages",
        **dict.fromkeys(("metrics", "profiles", "traces"), _OTHER_SIGNAL),
        **dict.fromkeys(
            ("partition_logs_by_resource_attributes", "partition_logs_by_trace_id"),
            "leave it out: the change's uid decides on the partition",
        ),
        **dict.fromkeys(("partition_metrics_by_resource_attributes", "partition_traces_by_id"), _OTHER_SIGNAL),
        "protocol_version": "leave it out: it is negotiated with the brokers",
        "rack_id": "leave it out: it is for consumers",
        "record_headers": "leave it out: a message has no headers; the receiver's resource is in each record",
        "record_partitioner": "leave it out: the partition is the key's, by murmur2, as for Kafka's own producer",
        "topic_from_attribute": "name the topic in logs::topic, and use an exporter for each topic",
        "use_leader_epoch": "leave it out: it is for consumers",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "conn_idle_timeout": (Duration,),
        "include_metadata_keys": ([],),
        "metadata": (dict,),
        **dict.fromkeys(
            (
                "partition_logs_by_resource_attributes",
                "partition_logs_by_trace_id",
                "partition_metrics_by_resource_attributes",
                "partition_traces_by_id",
            ),
            (False,),
        ),
        **dict.fromkeys(("metrics", "profiles", "traces"), ({},)),
        "record_headers": ({},),
        "record_partitioner": ({}, {"sticky_key": {"hasher": "murmur2"}}),
        "topic_from_attribute": ("",),
        "use_leader_epoch": (True, False),
    }
    meant: ClassVar[Mapping[str, str]] = {
        "acks": "producer::required_acks",
        "bootstrap_servers": "brokers",
        "broker": "brokers",
        "compression": "producer::compression",
        "encoding": "logs::encoding",
        "endpoint": "brokers",
        "max_message_bytes": "producer::max_message_bytes",
        "sasl": "auth::sasl",
        "topic": "logs::topic",
        **IN_A_DESTINATION,
    }

    brokers: list[Annotated[str, AfterValidator(_broker)]] = Field(
        default=["localhost:9092"], json_schema_extra={"minItems": 1}
    )
    client_id: str = "statsig-otel"
    timeout: Timeout = 5.0
    logs: KafkaLogsSettings = Field(default_factory=KafkaLogsSettings)
    producer: KafkaProducerSettings = Field(default_factory=KafkaProducerSettings)
    auth: KafkaAuthSettings = Field(default_factory=KafkaAuthSettings)
    tls: Annotated[ClientTlsSettings, ReadAs(KafkaTlsSettings)] = Field(
        default_factory=lambda: KafkaTlsSettings(insecure=True)
    )
    resolve_canonical_bootstrap_servers_only: bool = False

    @field_validator("brokers", mode="before")
    @classmethod
    def _want_a_list(cls, brokers: Any) -> Any:
        if isinstance(brokers, str):
            parts = brokers.replace(",", " ").split()
            shown = ", ".join(parts)  # only if nothing in it can be a password
            raise SettingError("must be a list", f"write [{shown}]" if all(map(_is_broker, parts)) else _EXAMPLE)
        return brokers

    @field_validator("brokers")
    @classmethod
    def _check_brokers(cls, brokers: list[str]) -> list[str]:
        if not brokers:
            raise SettingError("is empty", _EXAMPLE)
        return brokers

    @field_validator("tls", mode="before")
    @classmethod
    def _explain_none(cls, tls: object) -> object:
        if tls is None:
            raise SettingError("has no value", "write tls: {} for TLS; without this key nothing is encrypted")
        return tls

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return not self.tls.insecure
