"""Says which changes of a configuration a running service can't apply without a restart."""

from collections.abc import Iterator
from typing import Final

from statsig_otel.config.configuration import Configuration
from statsig_otel.plugin.service.endpoints import SERVER_KEYS
from statsig_otel.plugin.settings.health_check import HealthCheckSettings
from statsig_otel.plugin.settings.storage import FileStorageSettings
from statsig_otel.plugin.settings.zpages import ZpagesSettings

_FIXED_KEYS: Final = (
    "endpoint", "path", "max_request_body_size", "max_in_flight_bytes", "read_timeout", *SERVER_KEYS
)  # fmt: skip
"""The keys of a receiver from which its server and its limits were made."""


class RestartNeededError(Exception):
    """A change of the configuration that a running service can't apply. The message says where and why.

    Example:
        >>> from statsig_otel.plugin import RestartNeededError, Service
        >>> service = Service.from_file(
        ...     "yaml:receivers: {statsig: {signing_secrets: []}}",
        ...     "yaml:exporters: {debug: {}}",
        ...     "yaml:service::pipelines::logs: {receivers: [statsig], exporters: [debug]}",
        ...     environ={},
        ... )
        >>> try:
        ...     service.reload()
        ... except RestartNeededError as error:
        ...     print(error)
        the service has not started
    """


def needing_restart(before: Configuration, after: Configuration) -> Iterator[str]:
    """The places of a configuration whose changes need a restart, except for the exporters' (`Outbound`)."""
    for name in [*before.receivers, *after.receivers]:
        if (name in before.receivers) is not (name in after.receivers):
            yield f"receivers::{name}: {'is new' if name in after.receivers else 'is gone'}"
    for name, settings in after.receivers.items():
        for key in _FIXED_KEYS if name in before.receivers else ():
            if getattr(settings, key) != getattr(before.receivers[name], key):
                yield f"receivers::{name}::{key}"
    if before.extension(FileStorageSettings) != after.extension(FileStorageSettings):
        yield "extensions::file_storage"
    if before.extension(HealthCheckSettings) != after.extension(HealthCheckSettings):
        yield "extensions::health_check"
    if before.extension(ZpagesSettings) != after.extension(ZpagesSettings):
        yield "extensions::zpages"
    if before.telemetry != after.telemetry:
        yield "service::telemetry"
