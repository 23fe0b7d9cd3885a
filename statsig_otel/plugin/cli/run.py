"""`statsig-otel run`: runs the service in the foreground until SIGTERM or Ctrl-C."""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import shlex
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import click

from statsig_otel import __version__
from statsig_otel._times import READERS_CLOSING
from statsig_otel.config.configuration import Configuration
from statsig_otel.config.document import Document
from statsig_otel.config.errors import ConfigError
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.plugin.cli.log_output import buffered_log
from statsig_otel.plugin.cli.notifier import Notifier
from statsig_otel.plugin.cli.options import config_option, listen_option
from statsig_otel.plugin.doctor.resources import check_space, start_problem
from statsig_otel.plugin.doctor.storage import check_file_system
from statsig_otel.plugin.server.listening import inherited_sockets
from statsig_otel.plugin.service.assembly import Assembly
from statsig_otel.plugin.service.reload import REFUSALS, PartlyAppliedError, Reloader, check_with_files
from statsig_otel.plugin.service.service import Service, service_of
from statsig_otel.plugin.settings import SECRET_VARIABLE
from statsig_otel.plugin.settings.environment import (
    Environment,
    check_enabled,
    log_level_from_environment,
    read_document,
)
from statsig_otel.plugin.settings.exporter_types import secrets_in
from statsig_otel.plugin.settings.metrics import MetricsSettings
from statsig_otel.plugin.settings.reading import metrics_settings, queued_exporters, traces_settings
from statsig_otel.plugin.settings.resource import resource_from_environment
from statsig_otel.plugin.settings.storage import find_directory
from statsig_otel.plugin.settings.telemetry import TelemetrySettings, named_level
from statsig_otel.plugin.settings.traces import TracesSettings

_logger: Final = logging.getLogger("statsig_otel")

_OPEN_FILES: Final = 65536
"""More than any sensible `max_connections`, and a limit on systems that have none."""

_OBJECTS_BEFORE_COLLECTION: Final = 20_000
"""New container objects (`gc.get_threshold`), about ten times as many as the requests of a busy moment hold."""

_SHORTEST_SECRET: Final = 8

_SIGNAL_REPEAT_SECONDS: Final = 0.5
"""Signals within this time count as one: a supervisor may signal the process and then its process group."""

_SETUP_STEPS: Final = """\
{name} has no signing secret yet. To set up the webhook:
  1. Make {url} reachable from the internet, under your own public host name.
  2. In the Statsig console, open Settings > Integrations > Generic Webhook and enter that URL.
  3. Under Filters choose Config Changes only, and save. Statsig verifies the URL, and this service answers.
  4. Copy the signing secret that Statsig then shows, and set it {where}.
Until then all requests except the verification are refused with 401."""


@click.command()
@config_option
@listen_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warn", "warning", "error"], case_sensitive=False),
    help="The log level. Overrides the configuration's level and OTEL_LOG_LEVEL.  [default: info]",
)
def command(locations: tuple[str, ...], listen: str | None, log_level: str | None) -> None:
    """Run the service until SIGTERM or Ctrl-C. A second signal, at least half a second later, ends it at once.

    SIGHUP reloads the configuration, as `statsig-otel reload` does. The log goes to standard error.

    Without --config the service listens on localhost:8080, or where STATSIG_LISTEN says. It takes its signing secret
    from STATSIG_SIGNING_SECRET and its exporter from the OTEL_EXPORTER_OTLP_* variables.
    """
    # By default SIGHUP ends the process. `_run` handles it for as long as there is something to reload.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _raise_open_files()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's C core would write between the lines of the log
    try:
        document, configuration = _read(locations, log_level, listen=listen)
        directory = find_directory(configuration, os.environ)
        inherited = inherited_sockets(os.environ)
        if inherited and listen is not None:
            _logger.warning("--listen has no effect on receivers whose socket the supervisor passes in LISTEN_FDS")
        assembly = Assembly(
            configuration,
            directory=directory,
            resource=resource_from_environment(os.environ),
            inherited=inherited,
        )
        notifier = Notifier(os.environ)

        def read() -> Document:
            return read_document(locations, os.environ, listen=listen)

        service = service_of(assembly, Reloader(assembly, document, read, notifier.reloading))
        stop_telling = _start_telling(configuration, document)
        # From here on webhooks can be in flight, which SIGTERM would cut by default. `_run` handles it afterwards.
        early: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: early.append(number))
        try:
            _start(service, configuration, document, directory)
        except BaseException:
            stop_telling()
            raise
        collect_garbage_rarely()
        reload = "send SIGHUP"
        if queued_exporters(configuration):
            reload = f"run: statsig-otel reload --directory {shlex.quote(str(directory))} (or send SIGHUP)"
    except ConfigError as error:
        raise click.ClickException(f"the configuration has errors\n{error}") from error
    except (OSError, ValueError, QueueError, sqlite3.Error) as error:
        raise click.ClickException(_message(error)) from error
    try:
        asyncio.run(
            _run(service, assembly, notifier, lambda name: _where_the_secret_goes(document, name, reload), early)
        )
    finally:
        service.shutdown()
        stop_telling()
    if assembly.has_lost:
        raise click.ClickException("acknowledged changes may be lost; the log says which, and why")
    _logger.info("Stopped")


def _read(
    locations: tuple[str, ...], log_level: str | None, *, listen: str | None = None
) -> tuple[Document, Configuration]:
    """Read and check the configuration, and start the log with the configured level and encoding."""
    environ = Environment(os.environ)
    with buffered_log(sys.stderr) as log:
        check_enabled(environ)
        document = read_document(locations, environ, listen=listen)
        configuration = check_with_files(document)
        logs = cast("TelemetrySettings", configuration.telemetry).logs
        log.begin(named_level(log_level) or logs.level or log_level_from_environment(os.environ), logs.encoding)
    unused = environ.unused() if locations else []
    if unused:
        _logger.warning(
            "There is a configuration, so these variables have no effect unless it names them: %s", ", ".join(unused)
        )
    if any(secret in argument for secret in _secrets(configuration) for argument in sys.argv):
        _logger.warning(
            "A secret of the configuration is on the command line, where every user of this machine can read it: write "
            "${file:PATH} or ${env:NAME} in its place"
        )
    return document, configuration


def _secrets(configuration: Configuration) -> list[str]:
    """The secrets of a configuration, without header values that are too short to be any."""
    parts = [
        *configuration.receivers.values(),
        *configuration.exporters.values(),
        *configuration.extensions.values(),
        configuration.telemetry,
    ]
    return [secret for secret in secrets_in(parts) if len(secret) >= _SHORTEST_SECRET]


def _where_the_secret_goes(document: Document, receiver: str, reload: str) -> str:
    place = document.place(("receivers", receiver, "signing_secrets"))
    if place is not None and place.file == SECRET_VARIABLE:
        return f"as {SECRET_VARIABLE}, and start again"
    return f"in signing_secrets. If you wrote ${{env:NAME}} there, start again with that variable. Else {reload}"


def collect_garbage_rarely() -> None:
    """Make the garbage collector run rarely, and only on objects that are created from now on.

    A collection stops all threads. With Python's defaults the objects of a few dozen requests in flight trigger one,
    and it also traverses everything that was created during the start. Requests leave no reference cycles behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTION)


def _start(service: Service, configuration: Configuration, document: Document, directory: Path) -> None:
    if queued_exporters(configuration) and (found := check_file_system(directory)).status == "warning":
        _logger.warning("%s is on %s: %s", directory, found.detail, found.hint)
    try:
        service.start()
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        problem = start_problem(error, configuration, document, directory)
        if problem is None:
            raise
        raise click.ClickException(str(problem)) from error
    with contextlib.suppress(OSError):
        if queued_exporters(configuration) and (fault := check_space(configuration, directory)) is not None:
            _logger.warning("%s: %s: %s", directory, *fault)


def _start_telling(configuration: Configuration, document: Document) -> Callable[[], None]:
    """Start the readers of the metrics, and send spans; return what stops both. Without either nothing is loaded."""
    stops: list[Callable[[float], None]] = []

    def stop() -> None:
        latest = time.monotonic() + READERS_CLOSING
        for one in stops:
            one(max(latest - time.monotonic(), 0.0))

    try:
        if (traces := traces_settings(configuration)).active:
            stops.append(_start_traces(traces, document))
        if (metrics := metrics_settings(configuration)).active:
            stops.append(_start_readers(metrics, document))
    except BaseException:
        stop()
        raise
    return stop


def _start_readers(settings: MetricsSettings, document: Document) -> Callable[[float], None]:
    from statsig_otel.plugin.watch.readers import ReaderError, Readers

    readers = Readers(settings)
    try:
        readers.start()
    except ReaderError as failure:
        message, hint = failure.fault
        path = ("service", "telemetry", "metrics", "readers", failure.position)
        raise click.ClickException(str(document.problem(path, message, hint))) from failure
    for url in readers.urls:
        _logger.info("Metrics for Prometheus: %s", url)
    return readers.shutdown


def _start_traces(settings: TracesSettings, document: Document) -> Callable[[float], None]:
    from statsig_otel.plugin.watch.traces import ProcessorError, Traces

    traces = Traces(settings)
    try:
        traces.start()
    except ProcessorError as failure:
        path = ("service", "telemetry", "traces", "processors", failure.position)
        raise click.ClickException(str(document.problem(path, *failure.fault))) from failure
    return traces.shutdown


def _message(error: Exception) -> str:
    """The error's message without its errno."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _raise_open_files() -> None:
    """Raise the soft limit of file descriptors to the hard one, as Go's runtime does: each connection needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # the server limits its connections to the descriptors it has
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _OPEN_FILES)), hard))


async def _run(
    service: Service,
    assembly: Assembly,
    notifier: Notifier,
    where_the_secret_goes: Callable[[str], str],
    early: Sequence[int],
) -> None:
    """Reload and stop the service on signals. The service itself runs in threads of its own.

    Args:
        service: The service.
        assembly: Its parts.
        notifier: The supervisor's.
        where_the_secret_goes: Says of a receiver where its secret has to be set.
        early: The signals to stop that came since the service began to start.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    reload_requested = asyncio.Event()
    first = 0.0

    def stop(number: signal.Signals) -> None:
        nonlocal first
        if not first:
            first = loop.time()
            _logger.info("%s: finishing the work in flight; a second signal ends the service at once", number.name)
            stopping.set()
        elif loop.time() - first >= _SIGNAL_REPEAT_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, reload_requested.set)
    for early_number in early:
        stop(signal.Signals(early_number))
    _logger.info("statsig-otel %s listens", __version__)
    for name, url in service.urls.items():
        click.echo(f"Webhook URL: {url}")
        if name in service.without_secret:
            click.echo(_SETUP_STEPS.format(name=name, url=url, where=where_the_secret_goes(name)))
    notifier.started()
    reloading = loop.create_task(_reload_on(reload_requested, service))
    watched = loop.create_task(_report_alive(notifier, assembly, stopping))
    ended = asyncio.wrap_future(service.ended)
    ended.add_done_callback(lambda _: stopping.set())
    try:
        await stopping.wait()
    finally:
        notifier.stopping()
        reloading.cancel()
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        await service.ashutdown()
        watched.cancel()
    if ended.done() and (error := ended.exception()) is not None:
        words = _message(error) if isinstance(error, Exception) else str(error)
        raise click.ClickException(f"the service failed: {words}")


async def _reload_on(requested: asyncio.Event, service: Service) -> None:
    """Reload on each signal. Signals that arrive during a reload lead to one more reload after it."""
    while True:
        await requested.wait()
        requested.clear()
        try:
            with contextlib.suppress(*REFUSALS, PartlyAppliedError):  # they were logged
                await asyncio.to_thread(service.reload)
        except Exception:  # the next signal has to be heard
            _logger.exception("Reload: unexpected error")


async def _report_alive(notifier: Notifier, assembly: Assembly, stopping: asyncio.Event) -> None:
    """Report regularly that webhooks are served; while the service stops, that this loop runs."""
    if notifier.watchdog_interval is None:
        return
    pause = notifier.watchdog_interval / 2
    stopped = asyncio.create_task(stopping.wait())
    while True:
        pong: asyncio.Future[Any] = asyncio.wrap_future(assembly.inbound.server_thread.ping())
        await asyncio.wait({pong, stopped}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        if pong.done() or stopping.is_set():
            notifier.alive()
            await asyncio.sleep(pause)
        pong.cancel()
