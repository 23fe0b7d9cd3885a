"""Warns of settings that are valid and probably unintended: keys without an effect, and values that look wrong."""

from collections.abc import Iterator, Mapping
from typing import Final

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.document import NOWHERE, Document
from statsig_otel.config.opaque import reveal
from statsig_otel.exporters.kafka.settings import KafkaSettings
from statsig_otel.exporters.otlp.hints import doubt
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings, placeholder
from statsig_otel.plugin.settings.exporters import ConfiguredExporter
from statsig_otel.plugin.settings.reading import (
    configured_exporters,
    exporter_settings,
    exporters_of,
    receiver_settings,
)
from statsig_otel.plugin.webhook.secret import doubt_of_secret, is_in_quotes

_AROUND_A_RECORD: Final = 100
"""Bytes of a Kafka message beside its record: the key, and what a broker counts for it."""


def doubts(configuration: Configuration, document: Document = NOWHERE) -> Iterator[str]:
    """A sentence for each, with its place, to be said as a warning.

    Args:
        configuration: The configuration.
        document: What it was read from, if it was.
    """
    yield from map(str, document.doubts)
    stand_ins = {problem.path for problem in document.unresolved}
    for name, settings in receiver_settings(configuration).items():
        for index, secret in enumerate(settings.signing_secrets):
            place = ("receivers", name, "signing_secrets", index)
            if place not in stand_ins and (message := doubt_of_secret(reveal(secret))):
                yield str(document.problem(place, message))
    for name, exporter in exporter_settings(configuration).items():
        if isinstance(exporter, OtlpGrpcSettings | OtlpHttpSettings):
            yield from _of_headers(name, exporter, document)
    yield from _of_exporters(configured_exporters(configuration))
    yield from _of_sizes(configuration)


def _of_headers(name: str, exporter: OtlpGrpcSettings | OtlpHttpSettings, document: Document) -> Iterator[str]:
    for key, value in exporter.headers.items():
        message = ""
        if is_in_quotes(reveal(value)):
            message = "is in quotation marks, which are sent too: leave them out"
        elif form := placeholder(reveal(value)):
            message = f"contains {form}, which mostly stands for something of your own: write that in its place"
        if message:
            yield str(document.problem(("exporters", name, "headers", key), message))


def _of_exporters(exporters: Mapping[str, ConfiguredExporter]) -> Iterator[str]:
    for name, exporter in exporters.items():
        settings, queue, where = exporter.settings, exporter.sending_queue, f"exporters::{name}::sending_queue"
        if isinstance(settings, OtlpGrpcSettings | OtlpHttpSettings):
            if why := doubt(settings):
                yield f"exporters::{name}: {why}"
            if not settings.uses_tls and settings.tls.insecure_skip_verify:
                yield f"exporters::{name}::tls::insecure_skip_verify: not used: without TLS there is no certificate"
        if isinstance(settings, KafkaSettings) and not settings.uses_tls and _is_plain(settings):
            yield f"exporters::{name}::auth::sasl: without TLS the password is sent in the clear: write tls: {{}}"
        if not queue.enabled:
            written = [f"sending_queue::{key}" for key in sorted(queue.model_fields_set - {"enabled"})]
            written += ["retry_on_failure"] if "retry_on_failure" in exporter.model_fields_set else []
            if written:
                yield f"exporters::{name}: not used while sending_queue::enabled is false: {', '.join(written)}"
            continue
        if queue.num_consumers != 1:
            yield f"{where}::num_consumers: {queue.num_consumers} is not used: one sender keeps the order"
        if queue.batch.min_size or queue.batch.flush_timeout:
            yield f"{where}::batch: min_size and flush_timeout are not used: what waits is sent at once"


def _of_sizes(configuration: Configuration) -> Iterator[str]:
    """Records that a receiver makes, and that an exporter to Kafka refuses as too large."""
    exporters = exporter_settings(configuration)
    for receiver, settings in receiver_settings(configuration).items():
        for name in exporters_of(configuration, receiver):
            exporter = exporters.get(name)
            if isinstance(exporter, KafkaSettings):
                least = settings.max_record_bytes + _AROUND_A_RECORD
                if exporter.producer.max_message_bytes < least:
                    yield (
                        f"receivers::{receiver}::max_record_bytes: a record may have {settings.max_record_bytes} "
                        f"bytes, which exporters::{name}::producer::max_message_bytes "
                        f"({exporter.producer.max_message_bytes}) refuses: make that at least {least}, "
                        "and the topic's max.message.bytes too, or this smaller"
                    )


def _is_plain(settings: KafkaSettings) -> bool:
    """Whether the password itself is sent. With SCRAM it is not."""
    return settings.auth.sasl is not None and settings.auth.sasl.mechanism == "PLAIN"
