"""Reads typed parts out of a checked configuration: the queue's directory, the routing, receivers and exporters."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.errors import ConfigError, Problem
from statsig_otel.config.grammar import check, examine
from statsig_otel.config.model import Settings
from statsig_otel.exporters.routing import QueuedExporter, Route, Routing
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.settings.audit_log import AuditLogSettings
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.environment import read_document
from statsig_otel.plugin.settings.exporters import ConfiguredExporter
from statsig_otel.plugin.settings.metrics import MetricsSettings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings, with_resource
from statsig_otel.plugin.settings.resource import resource_from_environment
from statsig_otel.plugin.settings.storage import FileStorageSettings, find_directory
from statsig_otel.plugin.settings.telemetry import TelemetrySettings
from statsig_otel.plugin.settings.traces import TracesSettings
from statsig_otel.plugin.settings.zpages import ZpagesSettings

PEM_KEYS: Final = ("ca_file", "cert_file", "key_file", "client_ca_file")
"""The keys of `tls` that name files, of servers and of exporters."""


@dataclass(frozen=True, slots=True)
class QueueConfiguration:
    """The parts of a configuration file that a command needs. Mappers and audit logs are by receiver.

    `missing` has the credentials that systemd makes only while the service runs. Random strings stand for them.
    """

    directory: Path
    routing: Routing
    mappers: Mapping[str, Mapper]
    audit_logs: Mapping[str, AuditLogSettings]
    missing: tuple[Problem, ...] = ()


def read(locations: tuple[str, ...], environ: Mapping[str, str]) -> QueueConfiguration:
    """Read the locations of a configuration, whether or not the service runs.

    Raises:
        ConfigError: All that is wrong with it.
    """
    document = read_document(locations, environ)
    configuration = check(document, COMPONENTS, may_be_stopped=True)
    check_audit_logs(configuration)
    resource = resource_from_environment(environ)
    return QueueConfiguration(
        directory=find_directory(configuration, environ),
        routing=routing(configuration),
        mappers={name: with_resource(one, resource).mapper() for name, one in receiver_settings(configuration).items()},
        audit_logs={name: one.audit_log for name, one in receiver_settings(configuration).items() if one.audit_log},
        missing=document.unresolved,
    )


def check_audit_logs(configuration: Configuration) -> None:
    """Check that what comes for a receiver with an audit log can be remembered.

    Raises:
        ConfigError: None of its exporters has a queue.
    """
    routes = routing(configuration).receivers
    problems = [
        Problem(
            ("receivers", name, "audit_log"),
            "needs the queue, in which what came is remembered, and no exporter of this receiver has one",
            "leave sending_queue::enabled out for one of them",
        )
        for name, settings in receiver_settings(configuration).items()
        if settings.audit_log is not None and not routes[name].queued
    ]
    if problems:
        raise ConfigError(problems)


def read_directory(locations: tuple[str, ...], environ: Mapping[str, str]) -> Path:
    """The queue's directory according to a configuration, whatever else is wrong with the configuration.

    For commands that only have to reach the service, and may lack its environment and its files.

    Raises:
        ConfigError: The directory is not known; it contains what is wrong with the part that names it.
    """
    configuration, problems = examine(read_document(locations, environ), COMPONENTS)
    found = [one.directory for one in configuration.extensions.values() if isinstance(one, FileStorageSettings)]
    if found:
        return found[0].absolute()
    unknown = [
        problem
        for problem in problems
        if problem.path[:1] in ((), ("extensions",)) or problem.path[:2] == ("service", "extensions")
    ]
    if unknown:
        raise ConfigError(unknown)
    return find_directory(None, environ)


def metrics_settings(configuration: Configuration) -> MetricsSettings:
    """Who reads the service's own metrics."""
    return cast("TelemetrySettings", configuration.telemetry).metrics


def traces_settings(configuration: Configuration) -> TracesSettings:
    """Where the service's own spans are sent."""
    return cast("TelemetrySettings", configuration.telemetry).traces


def receiver_settings(configuration: Configuration) -> Mapping[str, StatsigReceiverSettings]:
    """The settings of each receiver; there is only one type."""
    return cast("Mapping[str, StatsigReceiverSettings]", configuration.receivers)


def configured_exporters(configuration: Configuration) -> dict[str, ConfiguredExporter]:
    """Each exporter, with how it is fed."""
    return {name: one for name, one in configuration.exporters.items() if isinstance(one, ConfiguredExporter)}


def exporter_settings(configuration: Configuration) -> dict[str, Settings]:
    """The settings of each exporter, without how it is fed."""
    return {name: one.settings for name, one in configured_exporters(configuration).items()}


def configured_pem_files(configuration: Configuration) -> list[Path]:
    """The files of certificates and keys that servers and exporters use."""
    exporters = [one for one in exporter_settings(configuration).values() if getattr(one, "uses_tls", False)]
    every = [one.tls for one in receiver_settings(configuration).values()] + [
        getattr(one, "tls", None) for one in exporters
    ]
    page = configuration.extension(ZpagesSettings)
    every.append(None if page is None else page.tls)
    return [Path(file) for tls in every for key in PEM_KEYS if (file := getattr(tls, key, None))]


def queued_exporters(configuration: Configuration) -> tuple[str, ...]:
    """The exporters behind the queue."""
    return tuple(name for name, one in configured_exporters(configuration).items() if one.is_queued)


def exporters_of(configuration: Configuration, receiver: str) -> tuple[str, ...]:
    """The exporters of all pipelines of a receiver."""
    pipelines = [one for one in configuration.pipelines.values() if receiver in one.receivers]
    return tuple(dict.fromkeys(name for pipeline in pipelines for name in pipeline.exporters))


def routing(configuration: Configuration) -> Routing:
    """Which exporters the records of each receiver are for. If its pipelines share one, that gets each record once."""
    configured = configured_exporters(configuration)
    return Routing(
        receivers={
            receiver: _route(configuration, receiver, settings)
            for receiver, settings in receiver_settings(configuration).items()
        },
        exporters={
            name: QueuedExporter(
                one.sending_queue.queue_size,
                one.sending_queue.start_at == "oldest",
                one.sending_queue.sizer == "bytes",
            )
            for name, one in configured.items()
            if one.is_queued
        },
    )


def _route(configuration: Configuration, receiver: str, settings: StatsigReceiverSettings) -> Route:
    queued = queued_exporters(configuration)
    exporters = exporters_of(configuration, receiver)
    return Route(
        queued=tuple(name for name in exporters if name in queued),
        window=settings.deduplication.window,
        synchronous=tuple(name for name in exporters if name not in queued),
        private=settings.user != "full",  # what its records don't show must not be in the log instead
        remembered=settings.audit_log.keep if settings.audit_log is not None else 0.0,
    )
