"""`statsig-otel run`: the service in the foreground, until SIGTERM or Ctrl-C."""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sqlite3
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import click

from statsig_otel import __version__
from statsig_otel.config.configuration import Configuration
from statsig_otel.config.errors import ConfigError
from statsig_otel.config.grammar import check
from statsig_otel.config.source import Document
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.plugin.cli.log_output import held_back
from statsig_otel.plugin.cli.options import config_option
from statsig_otel.plugin.control.socket import ControlError
from statsig_otel.plugin.doctor.machine_checks import check_files, start_problem
from statsig_otel.plugin.service.reload import Reloader, ReloadError
from statsig_otel.plugin.service.service import Service
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.environment import (
    SECRET_VARIABLE,
    Environment,
    check_enabled,
    log_level_from_environment,
    read_document,
    resource_from_environment,
)
from statsig_otel.plugin.settings.storage import find_directory
from statsig_otel.plugin.settings.telemetry import TelemetrySettings, named_level

_logger: Final = logging.getLogger("statsig_otel")

_OPEN_FILES: Final = 65536
"""More than any `max_connections` that makes sense, and a bound where the system has none."""

_OBJECTS_BEFORE_COLLECTION: Final = 20_000
"""New objects that may refer to others. Some ten times as many as the requests of a busy moment hold."""

_SAME_SIGNAL: Final = 0.5
"""Seconds in which signals count as one: a supervisor may send one to the process and once more to its group."""

_SECRETS_EVERY: Final = 1.0
"""Seconds between looks at the files of the signing secrets."""

_SET_UP: Final = """\
{name} has no signing secret yet. To set the webhook up:
  1. Make {url} reachable for Statsig, at your own public host name.
  2. In Statsig's console: Settings > Integrations > Generic Webhook; enter the URL.
  3. Under Filters choose Config Changes only, and save: Statsig verifies the URL, and this service answers.
  4. Copy the signing secret that Statsig shows then, set it {where}.
Until then everything but the verification is refused with 401."""


@click.command()
@config_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warn", "warning", "error"], case_sensitive=False),
    help="What is logged, on standard error. Goes before the configuration's level and OTEL_LOG_LEVEL. [default: info]",
)
def command(locations: tuple[str, ...], log_level: str | None) -> None:
    """Run the service until SIGTERM or Ctrl-C; a second one, half a second later, ends it at once.

    SIGHUP has it read its configuration again, as `statsig-otel reload` does.

    Without --config it listens on localhost:8080 and takes its signing secret from STATSIG_SIGNING_SECRET and its
    exporter from the OTEL_EXPORTER_OTLP_* variables.
    """
    # By itself it ends the process; `_run` gives it its meaning, for as long as there is something to reload.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _raise_open_files()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # grpc-core writes to standard error past the log
    try:
        document, configuration = _read(locations, log_level)
        directory = find_directory(configuration, os.environ)
        service = Service.from_configuration(
            configuration, directory=directory, resource=resource_from_environment(os.environ)
        )
        for sentence in service.unused_keys():
            _logger.warning("%s", sentence)
        _start(service, configuration, document, directory)
        collect_garbage_rarely()
    except ConfigError as error:
        raise click.ClickException(f"the configuration has errors\n{error}") from error
    except (OSError, ValueError, QueueError, sqlite3.Error) as error:
        raise click.ClickException(_message(error)) from error
    reloader = Reloader(service, document, lambda: read_document(locations, os.environ))
    service.offer("reload", partial(_reload, reloader))
    try:
        where = (
            "in signing_secrets, and run: statsig-otel reload (or send SIGHUP)"
            if locations
            else f"as {SECRET_VARIABLE}, and start again"
        )
        asyncio.run(_run(service, reloader, where=where))
    finally:
        service.shutdown()
    _logger.info("Stopped")


def _read(locations: tuple[str, ...], log_level: str | None) -> tuple[Document, Configuration]:
    """What to run. From here on the log is as the configuration wants it."""
    environ = Environment(os.environ)
    with held_back(sys.stderr) as log:
        check_enabled(environ)
        document = read_document(locations, environ)
        configuration = check(document, COMPONENTS)
        if problems := check_files(configuration, document):
            raise ConfigError(problems)
        logs = cast("TelemetrySettings", configuration.telemetry).logs
        log.begin(named_level(log_level) or logs.level or log_level_from_environment(os.environ), logs.encoding)
    unused = environ.unused() if locations else []
    if unused:
        _logger.warning(
            "There is a configuration, so these variables count only where it names them: %s", ", ".join(unused)
        )
    return document, configuration


def collect_garbage_rarely() -> None:
    """Let the garbage collector look for cycles rarely, and only among what is made from now on.

    A look stops all threads, and with the defaults the objects of a few dozen requests in flight are enough for one,
    after which all that the start has made is looked at, too. Requests leave no cycles behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTION)


def _start(service: Service, configuration: Configuration, document: Document, directory: Path) -> None:
    try:
        service.start()
    except OSError as error:
        problem = start_problem(error, configuration, document, directory)
        if problem is None:
            raise
        raise click.ClickException(str(problem)) from error


def _message(error: Exception) -> str:
    """What went wrong, without the system's number for it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _raise_open_files() -> None:
    """Use all file descriptors that the system allows, as Go's runtime does: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # then `max_connections` is held to what there is
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _OPEN_FILES)), hard))


def _reload(reloader: Reloader, _: dict[str, Any]) -> dict[str, Any]:
    """`reload` at the control socket."""
    try:
        return {"changes": reloader.reload()}
    except ReloadError as error:
        raise ControlError(str(error)) from error


async def _run(service: Service, reloader: Reloader, *, where: str) -> None:
    """Have the service reloaded and stopped by signals; it answers in threads of its own."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    asked = asyncio.Event()

    first = 0.0

    def stop(number: signal.Signals) -> None:
        nonlocal first
        if not first:
            first = loop.time()
            _logger.info("%s: finishing what is in flight; a second signal ends at once", number.name)
            stopping.set()
        elif loop.time() - first >= _SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    _logger.info("statsig-otel %s listens", __version__)
    for name, url in service.urls.items():
        click.echo(f"Webhook URL: {url}")
        if name in service.without_secret:
            click.echo(_SET_UP.format(name=name, url=url, where=where))
    tasks = [loop.create_task(_watch(reloader)), loop.create_task(_reload_when(asked, reloader))]
    ended = asyncio.wrap_future(service.ended)
    ended.add_done_callback(lambda _: stopping.set())
    try:
        await stopping.wait()
    finally:
        for task in tasks:
            task.cancel()
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        await service.ashutdown()
    if ended.done():
        ended.result()  # where a server has failed


async def _reload_when(asked: asyncio.Event, reloader: Reloader) -> None:
    """Reload for each signal; for those that come during a reload, once more after it."""
    while True:
        await asked.wait()
        asked.clear()
        await asyncio.to_thread(_reload_logged, reloader)


def _reload_logged(reloader: Reloader) -> None:
    with contextlib.suppress(ReloadError):  # it is in the log
        reloader.reload()


async def _watch(reloader: Reloader) -> None:
    """Look at the files of the signing secrets for ever."""
    while True:
        await asyncio.sleep(_SECRETS_EVERY)
        if reloader.watches:
            await asyncio.to_thread(reloader.look_at_secrets)
