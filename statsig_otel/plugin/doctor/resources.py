"""Checks whether this machine has what a checked configuration needs: certificates, directories, ports.

Nothing is changed: ports are bound and released again, files and directories are only read.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path as FilePath
from typing import Final

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.document import Document
from statsig_otel.config.errors import ConfigError, Fault, Path, Problem
from statsig_otel.config.files import read_pem
from statsig_otel.exporters.kafka.settings import KafkaSettings
from statsig_otel.exporters.local.file import FileSettings, check_path, is_locked
from statsig_otel.exporters.network.proxy import proxy_for
from statsig_otel.exporters.network.tls import ClientTlsError, ClientTlsSettings
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.exporters.paths import unusable
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.queue import DEFAULT_MIN_FREE
from statsig_otel.plugin.doctor.storage import owner
from statsig_otel.plugin.server.asgi_types import Receive, Scope, Send
from statsig_otel.plugin.server.listening import ListenError
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.server.tls import ServerTlsError, ServerTlsSettings, server_context
from statsig_otel.plugin.settings.health_check import HealthCheckSettings
from statsig_otel.plugin.settings.metrics import PUSH_PEM_KEYS, OtlpPushSettings
from statsig_otel.plugin.settings.reading import (
    PEM_KEYS,
    exporter_settings,
    metrics_settings,
    queued_exporters,
    receiver_settings,
    traces_settings,
)
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.settings.storage import FileStorageSettings
from statsig_otel.plugin.settings.zpages import ZpagesSettings

_SYSTEMD: Final = FilePath("/run/systemd/system")
"""A directory that there is where systemd runs the machine: sd_booted(3)."""

_SOCKET_UNIT: Final = "If systemd listens there for this service, with a socket unit, nothing is wrong"
_ITSELF: Final = (
    "If it is the service that listens there, nothing is wrong: check it with the --config that it runs with"
)
_READERS: Final = ("service", "telemetry", "metrics", "readers")
_PROCESSORS: Final = ("service", "telemetry", "traces", "processors")
_READABLE_HINT: Final = "the service reads it as its own user; check the path and the permissions"


def check_resources(
    configuration: Configuration, document: Document, directory: FilePath
) -> tuple[list[Problem], list[Problem]]:
    """Everything that would keep a service from starting here.

    A process that owns the queue is most likely the running service of this very configuration. Then what is in use is
    not a fault of the configuration.

    Returns:
        The problems; and the resources that are only in use.
    """
    who = _owner(directory) if queued_exporters(configuration) else None
    ports = _ports(configuration, document)
    busy = [*(problem for problem, is_used in ports if is_used), *check_locks(configuration, document)]
    wrong = [
        *_certificates(configuration, document),
        *(problem for problem, is_used in ports if not is_used),
        *_exporters(configuration, document),
        *_files_of_telemetry(configuration, document),
        *_queue_files(configuration, document, directory),
    ]
    if who is None:
        return [*wrong, *busy, *_queue(configuration, document, directory)], []
    return wrong, [_in_use(configuration, document, f"{directory} is in use by {who}"), *busy]


def _owner(directory: FilePath) -> str | None:
    try:
        return owner(directory)
    except (OSError, ValueError):  # other checks say what is wrong with the directory
        return None


def check_files(configuration: Configuration, document: Document) -> list[Problem]:
    """The problems of the certificates, and those that would keep an exporter from starting here."""
    return [
        *_certificates(configuration, document),
        *_exporters(configuration, document),
        *_files_of_telemetry(configuration, document),
    ]


def _certificates(configuration: Configuration, document: Document) -> list[Problem]:
    """The problems of the certificates of the servers, and of those for the audit log."""
    found: dict[Path, ServerTlsSettings | None] = {
        ("receivers", name, "tls"): settings.tls for name, settings in _servers(configuration).items()
    }
    for name in configuration.service_extensions:
        extension = configuration.extensions.get(name)
        if isinstance(extension, ZpagesSettings):
            found["extensions", name, "tls"] = extension.tls
    of_servers = [
        problem
        for path, tls in found.items()
        if tls is not None
        for problem in _tls(tls, partial(server_context, tls), path, document)
    ]
    audit_logs = {name: one.audit_log for name, one in receiver_settings(configuration).items() if one.audit_log}
    of_audit_logs = [
        problem
        for name, one in audit_logs.items()
        for problem in _tls(one.tls, one.tls.read, ("receivers", name, "audit_log", "tls"), document)
    ]
    return of_servers + of_audit_logs


def check_ports(configuration: Configuration, document: Document) -> list[Problem]:
    """Which of the addresses can't be listened on. Not for the process that listens on them, if it is known."""
    return [
        replace(problem, hint=f"{problem.hint}. {_ITSELF}") if is_used else problem
        for problem, is_used in _ports(configuration, document)
    ]


def check_locks(configuration: Configuration, document: Document) -> list[Problem]:
    """Which of the exporters' files another process writes to now. Not for the process that writes to them."""
    return [
        document.problem(
            ("exporters", name, "path"),
            f"{settings.path} is locked: another process writes to it",
            "stop that process, or give this exporter a file of its own",
        )
        for name, settings in exporter_settings(configuration).items()
        if isinstance(settings, FileSettings) and is_locked(settings.path)
    ]


def start_problem(
    error: OSError, configuration: Configuration, document: Document, directory: FilePath
) -> Problem | None:
    """The problem that kept a service from starting, with its place in the configuration; None without a place."""
    if isinstance(error, ListenError):
        for path, address in _addresses(configuration).items():
            if error.address == address:
                return document.problem(path, *error.fault)
    return directory_problem(error, configuration, document, directory)


def file_problems(
    error: BaseException, configuration: Configuration, document: Document, directory: FilePath
) -> list[Problem]:
    """What kept a service from starting, if it is the queue's directory or a file that the configuration names."""
    if not isinstance(error, OSError | ValueError) or isinstance(error, ListenError | ConfigError):
        return []
    found = directory_problem(error, configuration, document, directory) if isinstance(error, OSError) else None
    return [found] if found else check_files(configuration, document)


def directory_problem(
    error: OSError, configuration: Configuration, document: Document, directory: FilePath
) -> Problem | None:
    """Why the queue can't be in its directory, with its place; None if the error is about something else."""
    absolute = directory.absolute()
    if error.filename is not None:
        path = FilePath(os.fsdecode(error.filename)).absolute()
        if path.parent == absolute or path in (absolute, *absolute.parents):
            fault = QueueDirectory(directory).check() or unusable(path, error)
            return _no_queue(configuration, document, directory, fault)
    return None


def _servers(configuration: Configuration) -> dict[str, StatsigReceiverSettings]:
    """The first receiver of each server."""
    first: dict[str, tuple[str, StatsigReceiverSettings]] = {}
    for name, settings in receiver_settings(configuration).items():
        first.setdefault(settings.endpoint, (name, settings))
    return dict(first.values())


def _ports(configuration: Configuration, document: Document) -> list[tuple[Problem, bool]]:
    """The addresses that can't be listened on, each with whether another process listens there."""
    found: list[tuple[Problem, bool]] = []
    with ExitStack() as bound:  # at the same time, since two may be the same port by different names
        for path, (host, port) in _addresses(configuration).items():
            server = HttpServer(_no_app, host=host, port=port)
            bound.callback(server.stop)
            try:
                server.bind()
            except ListenError as error:
                message, hint = error.fault
                is_used = error.errno == errno.EADDRINUSE
                if is_used and _SYSTEMD.is_dir():
                    hint = f"{hint}. {_SOCKET_UNIT}"
                found.append((document.problem(path, message, hint), is_used))
    return found


def _addresses(configuration: Configuration) -> dict[Path, tuple[str, int]]:
    """The addresses to listen on, by their places in the configuration."""
    found: dict[Path, tuple[str, int]] = {}
    for name, settings in _servers(configuration).items():
        found["receivers", name, "endpoint"] = settings.address
    for name in configuration.service_extensions:
        extension = configuration.extensions.get(name)
        if isinstance(extension, HealthCheckSettings | ZpagesSettings):
            found["extensions", name, "endpoint"] = extension.address
    for position, reader in metrics_settings(configuration).active.items():
        if reader.pull is not None:
            prometheus = reader.pull.exporter.prometheus
            found[(*_READERS, position, "pull", "exporter", "prometheus")] = prometheus.host, prometheus.port
    return found


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of a server that is bound and never serves."""
    raise NotImplementedError


def _exporters(configuration: Configuration, document: Document) -> Iterator[Problem]:
    files: dict[object, str] = {}
    for name, settings in exporter_settings(configuration).items():
        path: Path = ("exporters", name)
        if isinstance(settings, OtlpGrpcSettings | OtlpHttpSettings | KafkaSettings) and settings.uses_tls:
            yield from _tls(settings.tls, settings.tls.read, (*path, "tls"), document)
        if isinstance(settings, OtlpHttpSettings):
            try:
                proxy_for(settings.url)
            except ValueError as error:
                yield document.problem(path, f"can't be used here: {error}")
        elif isinstance(settings, FileSettings):
            first = files.setdefault(_identity(settings.path), name)
            if first != name:
                message = f"is also the file of exporters::{first}"
                yield document.problem((*path, "path"), message, "give each its own: only one can write to it")
            fault = check_path(settings.path)
            if fault is not None:
                yield document.problem((*path, "path"), *fault)


def _files_of_telemetry(configuration: Configuration, document: Document) -> Iterator[Problem]:
    pushes: dict[Path, OtlpPushSettings] = {
        (*_READERS, position, "periodic", "exporter", "otlp"): reader.periodic.exporter.otlp
        for position, reader in metrics_settings(configuration).active.items()
        if reader.periodic is not None
    }
    for position, processor in traces_settings(configuration).active.items():
        pushes[(*_PROCESSORS, position, "batch", "exporter", "otlp")] = processor.batch.exporter.otlp
    for path, otlp in pushes.items():
        files = {key: file for key in PUSH_PEM_KEYS if (file := getattr(otlp, key))}
        yield from _unreadable(files, path, document)


def _identity(file: FilePath) -> object:
    """Something that is equal for all paths of one file."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return os.path.realpath(file) if "\0" not in str(file) else str(file)
    return found.st_dev, found.st_ino


def _tls(
    settings: ServerTlsSettings | ClientTlsSettings, check: Callable[[], object], path: Path, document: Document
) -> Iterator[Problem]:
    """The problems of a server's or an exporter's PEM files: one can't be read, or `check` refuses them."""
    files = {key: FilePath(file) for key in PEM_KEYS if (file := getattr(settings, key, None))}
    unreadable = list(_unreadable(files, path, document))
    yield from unreadable
    if unreadable:
        return
    try:
        check()
    except (ServerTlsError, ClientTlsError) as error:
        yield document.problem(path, error.message)
    except OSError as error:  # gone since it was checked
        yield document.problem(path, str(error))


def _unreadable(files: Mapping[str, FilePath], path: Path, document: Document) -> Iterator[Problem]:
    for key, file in files.items():
        try:
            read_pem(file)
        except OSError as error:
            yield document.problem((*path, key), f"{file} can't be read: {error.strerror}", _READABLE_HINT)


def _queue(configuration: Configuration, document: Document, directory: FilePath) -> Iterator[Problem]:
    if not queued_exporters(configuration):
        return
    queue = QueueDirectory(directory)
    fault = queue.check()
    if fault is not None:
        yield _no_queue(configuration, document, directory, fault)
        return
    fault = check_space(configuration, directory)
    if fault is not None:
        yield _no_queue(configuration, document, directory, fault)


def check_space(configuration: Configuration, directory: FilePath) -> Fault | None:
    """Why all webhooks would be refused: the disk has less than `min_free_bytes` left. None if it has more.

    Raises:
        OSError: This user can't find out.
    """
    storage = configuration.extension(FileStorageSettings)
    return QueueDirectory(directory).check_space(storage.min_free_bytes if storage else DEFAULT_MIN_FREE)


def _no_queue(configuration: Configuration, document: Document, directory: FilePath, fault: Fault) -> Problem:
    if path := _storage_path(configuration):
        return document.problem(path, *fault)
    hint = "name another with extensions: {file_storage: {directory: ...}}"
    return Problem((), f"the queue can't be in {directory}: {fault.message}", hint)


def _queue_files(configuration: Configuration, document: Document, directory: FilePath) -> Iterator[Problem]:
    if not queued_exporters(configuration):
        return
    for name, settings in exporter_settings(configuration).items():
        if not isinstance(settings, FileSettings) or check_path(settings.path):
            continue
        if QueueDirectory(directory).has(settings.path):
            message = f"{settings.path} is a file of the queue"
            yield document.problem(("exporters", name, "path"), message, "choose another name")


def _in_use(configuration: Configuration, document: Document, message: str) -> Problem:
    path = _storage_path(configuration)
    return document.problem(path, message) if path else Problem((), message)


def _storage_path(configuration: Configuration) -> Path:
    """The path of the queue's directory in the configuration; empty for the default directory."""
    for id_ in configuration.service_extensions:
        if isinstance(configuration.extensions[id_], FileStorageSettings):
            return ("extensions", id_, "directory")
    return ()
