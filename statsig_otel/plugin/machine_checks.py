"""Whether this machine has what a checked configuration asks for: certificates, directories, ports.

Nothing is changed: ports are bound and let go again, files and directories are looked at only.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path as FilePath
from typing import Final

from statsig_otel.config.errors import Path, Problem
from statsig_otel.config.grammar import Configuration
from statsig_otel.config.source import Document
from statsig_otel.exporters.file import FileSettings, begins_as_ours
from statsig_otel.exporters.otlp_settings import ClientTlsSettings, OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.plugin.asgi import Receive, Scope, Send
from statsig_otel.plugin.queue_configuration import queued_exporters, receiver_settings
from statsig_otel.plugin.server import HttpServer, ServerTls
from statsig_otel.plugin.settings import ServerTlsSettings, StatsigReceiverSettings
from statsig_otel.plugin.storage import FileStorageSettings, file_storage

_READABLE_HINT: Final = "the service reads it as its own user; look at the path and at the permissions"
_WRITABLE_HINT: Final = "let the service's own user write there, or name another place"
_NO_PATH: Final = "holds a NUL, and is no path that a file can have"
_SERVER_FILES: Final = ("cert_file", "key_file", "client_ca_file")
_CLIENT_FILES: Final = ("ca_file", "cert_file", "key_file")


def check_machine(configuration: Configuration, document: Document, directory: FilePath) -> list[Problem]:
    """All that would keep a service from starting here.

    Args:
        configuration: What is to run.
        document: Where it was written.
        directory: The queue's directory.
    """
    return [
        *check_certificates(configuration, document),
        *check_ports(configuration, document),
        *_exporters(configuration, document),
        *_queue(configuration, document, directory),
    ]


def check_certificates(configuration: Configuration, document: Document) -> list[Problem]:
    """All that is wrong with the certificates of the receivers' servers; see `check_machine`."""
    return [
        problem
        for name, settings in _servers(configuration).items()
        if settings.tls is not None
        for problem in _server_tls(settings.tls, ("receivers", name, "tls"), document)
    ]


def check_ports(configuration: Configuration, document: Document) -> list[Problem]:
    """Which of the receivers' addresses can't be listened on; see `check_machine`."""
    return list(_ports(configuration, document))


def _servers(configuration: Configuration) -> dict[str, StatsigReceiverSettings]:
    """The first receiver of each server."""
    first: dict[str, tuple[str, StatsigReceiverSettings]] = {}
    for name, settings in receiver_settings(configuration).items():
        first.setdefault(settings.endpoint, (name, settings))
    return dict(first.values())


def _ports(configuration: Configuration, document: Document) -> Iterator[Problem]:
    with ExitStack() as bound:  # all at once: two may name the same port in different words
        for name, settings in _servers(configuration).items():
            host, port = settings.address
            server = HttpServer(_no_app, host=host, port=port)
            bound.callback(server.stop)
            try:
                server.bind()
            except OSError as error:
                message, _, hint = str(error.strerror).partition("; ")
                yield document.problem(("receivers", name, "endpoint"), message, hint or None)


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


def check_exporters(configuration: Configuration, document: Document) -> list[Problem]:
    """All that would keep an exporter from starting here; see `check_machine`."""
    return list(_exporters(configuration, document))


def _exporters(configuration: Configuration, document: Document) -> Iterator[Problem]:
    files: dict[FilePath, str] = {}
    for name, settings in configuration.exporters.items():
        path: Path = ("exporters", name)
        if isinstance(settings, OtlpGrpcSettings):
            if settings.uses_tls:
                yield from _client_tls(settings.tls, (*path, "tls"), document)
        elif isinstance(settings, OtlpHttpSettings):
            if settings.url.scheme == "https":
                yield from _client_tls(settings.tls, (*path, "tls"), document)
        elif isinstance(settings, FileSettings):
            first = files.setdefault(settings.path.absolute(), name)
            if first != name:
                message = f"is the file of exporters::{first} too"
                yield document.problem((*path, "path"), message, "give each its own: only one can write to it")
            yield from _file(settings.path, (*path, "path"), document)


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


def _file(file: FilePath, path: Path, document: Document) -> Iterator[Problem]:
    if "\0" in str(file):
        yield document.problem(path, _NO_PATH)
    elif nearest(file.parent) != file.parent.absolute() or not file.parent.is_dir():
        yield document.problem(path, f"there is no directory {file.parent}", "make it: the exporter does not")
    elif _is_there(file) and not file.is_file():
        yield document.problem(path, f"{file} is no regular file", "only a regular file can be synced and cut")
    elif not os.access(file if _is_there(file) else file.parent, os.W_OK):
        yield document.problem(path, f"{file} can't be written", _WRITABLE_HINT)
    elif _is_there(file) and not begins_as_ours(file):
        message = f"{file} holds something else than OTLP/JSON lines of logs"
        yield document.problem(path, message, "move it away, or name another")


def nearest(directory: FilePath) -> FilePath:
    """The directory, or the first one above it that is there, as far as this user may look."""
    return next(place for place in (directory.absolute(), *directory.absolute().parents) if _is_there(place))


def _is_there(place: FilePath) -> bool:
    try:
        return place.exists()
    except OSError:  # not ours to look at, or longer than any name
        return False


def _queue(configuration: Configuration, document: Document, directory: FilePath) -> Iterator[Problem]:
    if not queued_exporters(configuration):
        return
    place = nearest(directory)
    if not place.is_dir():
        message = f"{place} is no directory"
    elif not os.access(place, os.W_OK | os.X_OK):
        message = f"{place} can't be written"
    else:
        return
    if file_storage(configuration) is None:
        hint = "name another with extensions: {file_storage: {directory: ...}}"
        yield Problem((), f"the queue can't be in {directory}: {message}", hint)
        return
    id_ = next(
        id_
        for id_ in configuration.service_extensions
        if isinstance(configuration.extensions[id_], FileStorageSettings)
    )
    yield document.problem(("extensions", id_, "directory"), message, _WRITABLE_HINT)
