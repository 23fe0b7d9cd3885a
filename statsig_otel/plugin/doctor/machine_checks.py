"""Whether this machine has what a checked configuration asks for: certificates, directories, ports.

Nothing is changed: ports are bound and let go again, files and directories are looked at only.
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path as FilePath
from typing import Final

from statsig_otel.config.errors import Path, Problem
from statsig_otel.config.grammar import Configuration
from statsig_otel.config.source import Document
from statsig_otel.exporters.local.file import FileSettings
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.exporters.otlp.tls import ClientTlsSettings
from statsig_otel.plugin.doctor.paths import file_fault, is_locked, is_of_queue, owner, queue_fault, same_file, unusable
from statsig_otel.plugin.server.asgi_types import Receive, Scope, Send
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.server.tls import ServerTls
from statsig_otel.plugin.settings.reading import exporter_settings, queued_exporters, receiver_settings
from statsig_otel.plugin.settings.receiver import ServerTlsSettings, StatsigReceiverSettings
from statsig_otel.plugin.settings.storage import FileStorageSettings

_READABLE_HINT: Final = "the service reads it as its own user; look at the path and at the permissions"
_NO_PATH: Final = "holds a NUL, and is no path that a file can have"
_SERVER_FILES: Final = ("cert_file", "key_file", "client_ca_file")
_CLIENT_FILES: Final = ("ca_file", "cert_file", "key_file")


def check_machine(
    configuration: Configuration, document: Document, directory: FilePath
) -> tuple[list[Problem], list[Problem]]:
    """All that would keep a service from starting here.

    Where the queue belongs to a process, that is the running service, most likely of this very configuration: then
    what it has in use is no fault of the configuration.

    Args:
        configuration: What is to run.
        document: Where it was written.
        directory: The queue's directory.

    Returns:
        What is wrong, and what is only in use.
    """
    who = _owner(directory) if queued_exporters(configuration) else None
    ports = _ports(configuration, document)
    busy = [*(problem for problem, is_used in ports if is_used), *check_locks(configuration, document)]
    wrong = [
        *_certificates(configuration, document),
        *(problem for problem, is_used in ports if not is_used),
        *_exporters(configuration, document),
        *_queue_files(configuration, document, directory),
    ]
    if who is None:
        return [*wrong, *busy, *_queue(configuration, document, directory)], []
    return wrong, [_in_use(configuration, document, f"{directory} is in use by {who}"), *busy]


def _owner(directory: FilePath) -> str | None:
    try:
        return owner(directory)
    except (OSError, ValueError):  # what is wrong with the directory is said by the other checks
        return None


def check_files(configuration: Configuration, document: Document) -> list[Problem]:
    """What is wrong with the certificates, and what would keep an exporter from starting here. Writes nothing.

    Args:
        configuration: The configuration.
        document: Where it was written.
    """
    return [*_certificates(configuration, document), *_exporters(configuration, document)]


def _certificates(configuration: Configuration, document: Document) -> list[Problem]:
    """All that is wrong with the certificates of the receivers' servers; see `check_machine`."""
    return [
        problem
        for name, settings in _servers(configuration).items()
        if settings.tls is not None
        for problem in _server_tls(settings.tls, ("receivers", name, "tls"), document)
    ]


def check_ports(configuration: Configuration, document: Document) -> list[Problem]:
    """Which of the receivers' addresses can't be listened on; see `check_machine`."""
    return [problem for problem, _ in _ports(configuration, document)]


def check_locks(configuration: Configuration, document: Document) -> list[Problem]:
    """Which of the exporters' files somebody writes to now. Not for the process that does."""
    return [
        document.problem(
            ("exporters", name, "path"),
            f"{settings.path} is locked: another process writes to it",
            "stop that one, or give this exporter a file of its own",
        )
        for name, settings in exporter_settings(configuration).items()
        if isinstance(settings, FileSettings) and is_locked(settings.path)
    ]


def start_problem(
    error: OSError, configuration: Configuration, document: Document, directory: FilePath
) -> Problem | None:
    """What kept a service from starting, at its place in the configuration; None where that can't be told.

    Args:
        error: What the start raised.
        configuration: What was to run.
        document: Where it was written.
        directory: The queue's directory.
    """
    said = error.strerror or ""
    for name, settings in _servers(configuration).items():
        if said.startswith(f"cannot listen on {settings.endpoint}: "):
            message, _, hint = said.partition("; ")
            return document.problem(("receivers", name, "endpoint"), message, hint or None)
    place = directory.absolute()
    if isinstance(error.filename, str) and FilePath(error.filename).absolute() in (place, *place.parents):
        return _no_queue(configuration, document, directory, *unusable(FilePath(error.filename), error))
    return None


def _servers(configuration: Configuration) -> dict[str, StatsigReceiverSettings]:
    """The first receiver of each server."""
    first: dict[str, tuple[str, StatsigReceiverSettings]] = {}
    for name, settings in receiver_settings(configuration).items():
        first.setdefault(settings.endpoint, (name, settings))
    return dict(first.values())


def _ports(configuration: Configuration, document: Document) -> list[tuple[Problem, bool]]:
    """The addresses that can't be listened on, each with whether somebody else listens there."""
    found: list[tuple[Problem, bool]] = []
    with ExitStack() as bound:  # all at once: two may name the same port in different words
        for name, settings in _servers(configuration).items():
            host, port = settings.address
            server = HttpServer(_no_app, host=host, port=port)
            bound.callback(server.stop)
            try:
                server.bind()
            except OSError as error:
                message, _, hint = str(error.strerror).partition("; ")
                problem = document.problem(("receivers", name, "endpoint"), message, hint or None)
                found.append((problem, error.errno == errno.EADDRINUSE))
    return found


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand where the server wants an application: it is bound, and never serves."""
    raise NotImplementedError


def _server_tls(settings: ServerTlsSettings, path: Path, document: Document) -> Iterator[Problem]:
    files = {key: file for key in _SERVER_FILES if (file := getattr(settings, key)) is not None}
    unreadable = list(_unreadable(files, path, document))
    yield from unreadable
    if unreadable:
        return
    try:
        ServerTls(
            cert_file=settings.cert_file, key_file=settings.key_file, client_ca_file=settings.client_ca_file
        ).context()
    except (OSError, ValueError) as error:
        yield document.problem(path, str(error).removeprefix("tls: "))


def _exporters(configuration: Configuration, document: Document) -> Iterator[Problem]:
    files: dict[object, str] = {}
    for name, settings in exporter_settings(configuration).items():
        path: Path = ("exporters", name)
        if isinstance(settings, OtlpGrpcSettings):
            if settings.uses_tls:
                yield from _client_tls(settings.tls, (*path, "tls"), document)
        elif isinstance(settings, OtlpHttpSettings):
            if settings.url.scheme == "https":
                yield from _client_tls(settings.tls, (*path, "tls"), document)
        elif isinstance(settings, FileSettings):
            first = files.setdefault(same_file(settings.path), name)
            if first != name:
                message = f"is the file of exporters::{first} too"
                yield document.problem((*path, "path"), message, "give each its own: only one can write to it")
            fault = file_fault(settings.path)
            if fault is not None:
                yield document.problem((*path, "path"), *fault)


def _client_tls(settings: ClientTlsSettings, path: Path, document: Document) -> Iterator[Problem]:
    files = {key: FilePath(file) for key in _CLIENT_FILES if (file := getattr(settings, key))}
    unreadable = list(_unreadable(files, path, document))
    yield from unreadable
    if unreadable:
        return
    try:
        settings.read()
    except (OSError, ValueError) as error:
        yield document.problem(path, str(error).replace("tls::", ""))


def _unreadable(files: Mapping[str, FilePath], path: Path, document: Document) -> Iterator[Problem]:
    for key, file in files.items():
        try:
            with file.open("rb"):
                pass
        except OSError as error:
            yield document.problem((*path, key), f"{file} can't be read: {error.strerror}", _READABLE_HINT)
        except ValueError:
            yield document.problem((*path, key), _NO_PATH)


def _queue(configuration: Configuration, document: Document, directory: FilePath) -> Iterator[Problem]:
    if not queued_exporters(configuration):
        return
    fault = queue_fault(directory)
    if fault is not None:
        yield _no_queue(configuration, document, directory, *fault)


def _no_queue(
    configuration: Configuration, document: Document, directory: FilePath, message: str, hint: str | None
) -> Problem:
    if path := _storage_path(configuration):
        return document.problem(path, message, hint)
    hint = "name another with extensions: {file_storage: {directory: ...}}"
    return Problem((), f"the queue can't be in {directory}: {message}", hint)


def _queue_files(configuration: Configuration, document: Document, directory: FilePath) -> Iterator[Problem]:
    if not queued_exporters(configuration):
        return
    for name, settings in exporter_settings(configuration).items():
        if not isinstance(settings, FileSettings) or file_fault(settings.path):
            continue
        if is_of_queue(settings.path, directory):
            message = f"{settings.path} is a file of the queue"
            yield document.problem(("exporters", name, "path"), message, "choose another name")


def _in_use(configuration: Configuration, document: Document, message: str) -> Problem:
    path = _storage_path(configuration)
    return document.problem(path, message) if path else Problem((), message)


def _storage_path(configuration: Configuration) -> Path:
    """Where the queue's directory is written; empty where it is the default one."""
    for id_ in configuration.service_extensions:
        if isinstance(configuration.extensions[id_], FileStorageSettings):
            return ("extensions", id_, "directory")
    return ()
