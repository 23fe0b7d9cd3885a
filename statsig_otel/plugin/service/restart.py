"""Says which changes of a configuration a running service can't apply without a restart."""

from collections.abc import Iterator, Mapping
from typing import Final

from statsig_otel.config.configuration import Configuration
from statsig_otel.plugin.service.endpoints import SERVER_KEYS
from statsig_otel.plugin.settings.health_check import HealthCheckSettings
from statsig_otel.plugin.settings.reading import receiver_settings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
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
    yield from _of_receivers(receiver_settings(before), receiver_settings(after))
    if before.extension(FileStorageSettings) != after.extension(FileStorageSettings):
        yield "extensions::file_storage"
    if before.extension(HealthCheckSettings) != after.extension(HealthCheckSettings):
        yield "extensions::health_check"
    if before.extension(ZpagesSettings) != after.extension(ZpagesSettings):
        yield "extensions::zpages"
    if before.telemetry != after.telemetry:
        yield "service::telemetry"


def _of_receivers(
    before: Mapping[str, StatsigReceiverSettings], after: Mapping[str, StatsigReceiverSettings]
) -> Iterator[str]:
    for name in [*before, *after]:
        if (name in before) is not (name in after):
            yield f"receivers::{name}: {'is new' if name in after else 'is gone'}"
    for name in [one for one in after if one in before]:
        one, other = before[name], after[name]
        for key in _FIXED_KEYS:
            if getattr(one, key) != getattr(other, key):
                yield f"receivers::{name}::{key}"
        # A webhook that is read before the change and stored after it would not be remembered, and count as missed.
        if (one.audit_log is None) is not (other.audit_log is None):
            yield f"receivers::{name}::audit_log"
