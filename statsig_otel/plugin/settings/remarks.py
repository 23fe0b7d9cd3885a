"""Warns of settings that are valid and probably unintended: keys without an effect, and values that look wrong."""

from collections.abc import Iterator

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.document import NOWHERE, Document
from statsig_otel.config.opaque import reveal
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings, placeholder
from statsig_otel.plugin.settings.exporters import doubts
from statsig_otel.plugin.settings.reading import configured_exporters, exporter_settings, receiver_settings
from statsig_otel.plugin.webhook.secret import doubt_of_secret, is_in_quotes


def remarks(configuration: Configuration, document: Document = NOWHERE) -> Iterator[str]:
    """A sentence for each, with its place. `document` is what the configuration was read from, if it was."""
    yield from map(str, document.doubts)
    for name, settings in receiver_settings(configuration).items():
        for index, secret in enumerate(settings.signing_secrets):
            if message := doubt_of_secret(reveal(secret)):
                yield str(document.problem(("receivers", name, "signing_secrets", index), message))
    for name, exporter in exporter_settings(configuration).items():
        if isinstance(exporter, OtlpGrpcSettings | OtlpHttpSettings):
            yield from _of_headers(name, exporter, document)
    yield from doubts(configured_exporters(configuration))


def _of_headers(name: str, exporter: OtlpGrpcSettings | OtlpHttpSettings, document: Document) -> Iterator[str]:
    for key, value in exporter.headers.items():
        message = ""
        if is_in_quotes(reveal(value)):
            message = "is in quotation marks, which are sent too: leave them out"
        elif form := placeholder(reveal(value)):
            message = f"contains {form}, which mostly stands for something of your own: write that in its place"
        if message:
            yield str(document.problem(("exporters", name, "headers", key), message))
