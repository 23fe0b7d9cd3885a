"""Runs all checks of `doctor`. The configuration may be wrong or missing, and the service may be running."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.document import Document
from statsig_otel.config.errors import ConfigError
from statsig_otel.config.grammar import examine
from statsig_otel.exporters.kafka.settings import KafkaSettings
from statsig_otel.exporters.queue.queue import DEFAULT_MIN_FREE
from statsig_otel.plugin.doctor import storage, system
from statsig_otel.plugin.doctor.endpoints import check_backends
from statsig_otel.plugin.doctor.finding import Finding, Status, of_problem
from statsig_otel.plugin.doctor.resources import check_files, check_locks, check_ports
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.doubts import doubts
from statsig_otel.plugin.settings.environment import Environment, check_enabled, read_document
from statsig_otel.plugin.settings.reading import exporter_settings, queued_exporters, receiver_settings
from statsig_otel.plugin.settings.storage import FileStorageSettings, find_directory


def diagnose(locations: tuple[str, ...], environ: Mapping[str, str], *, listen: str | None = None) -> Iterator[Finding]:
    """Check everything that a service depends on. Without locations the environment is its configuration.

    Args:
        locations: Where the configuration is.
        environ: The environment of the service.
        listen: Where it listens, in place of the receivers' endpoint.
    """
    yield from system.versions()
    yield system.sqlite()
    offsets: list[tuple[str, float]] = []
    try:
        check_enabled(environ)
    except ConfigError as error:
        yield from (of_problem("environment", problem) for problem in error.problems)
    try:
        variables = Environment(environ)
        document = read_document(locations, variables, listen=listen)
    except ConfigError as error:
        yield from (of_problem("configuration", problem) for problem in error.problems)
    else:
        unused = variables.unused() if locations else []
        if unused:
            detail = f"not used, since the configuration does not name them: {', '.join(unused)}"
            yield Finding("environment", "warning", detail, "name them as ${env:NAME} where they are meant")
        configuration, problems = examine(document, COMPONENTS)
        yield from (of_problem("configuration", problem) for problem in ConfigError(problems).problems)
        if all(problem.of_running for problem in problems):
            yield Finding("configuration", "ok", "valid")
            yield from (Finding("configuration", "warning", sentence) for sentence in doubts(configuration, document))
        there = tuple(name for name in configuration.service_extensions if name in configuration.extensions)
        configuration = replace(configuration, service_extensions=there)
        yield from _on_this_machine(configuration, document, environ)
        without_credential = {problem.path[:2] for problem in problems if problem.of_running}
        # Only brokers need to know who asks.
        asked = {
            name: one
            for name, one in exporter_settings(configuration).items()
            if ("exporters", name) not in without_credential or not isinstance(one, KafkaSettings)
        }
        findings, offsets = check_backends(asked)
        yield from findings
    yield system.clock(system.clock_is_kept(), offsets)


def _on_this_machine(configuration: Configuration, document: Document, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check what a configuration needs of this machine. If it is wrong, its right parts are checked."""
    receivers = receiver_settings(configuration)
    servers = {settings.endpoint: settings.max_connections for settings in receivers.values()}
    yield system.open_files(sum(servers.values()))
    for problem in check_files(configuration, document):
        yield of_problem("this machine", problem)
    is_running: bool | None = None
    if queued_exporters(configuration):
        try:
            directory = find_directory(configuration, environ)
        except ConfigError as error:
            yield from (of_problem("queue directory", problem) for problem in error.problems)
        else:
            settings = configuration.extension(FileStorageSettings)
            yield from storage.queue(directory, settings.min_free_bytes if settings else DEFAULT_MIN_FREE)
            yield from storage.exporters(directory)
            with suppress(OSError):
                is_running = storage.owner(directory) is not None
    if not is_running:
        # If it is not known whether the service runs, the service may be the process that listens.
        status: Status = "failed" if is_running is False else "warning"
        for problem in [*check_ports(configuration, document), *check_locks(configuration, document)]:
            yield of_problem("this machine", problem, status)
