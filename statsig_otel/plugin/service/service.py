"""A whole service, as embedders and the command line use it: receivers, servers, queue, exporters, start and stop."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from types import NoneType
from typing import Final, Self
from wsgiref.types import WSGIApplication

from opentelemetry.trace import TracerProvider

from statsig_otel import _times, _tracing
from statsig_otel._arguments import check_type
from statsig_otel.config.errors import ConfigError, Problem
from statsig_otel.config.files import absolute
from statsig_otel.config.model import replaced
from statsig_otel.config.opaque import Opaque
from statsig_otel.exporters.queue.queue import DEFAULT_MIN_FREE
from statsig_otel.plugin.doctor.resources import file_problems
from statsig_otel.plugin.receiver.asgi import MountableApp, StatsigReceiver, create_app
from statsig_otel.plugin.receiver.wsgi import StatsigWsgiReceiver, create_wsgi_app
from statsig_otel.plugin.record.serializer import AttributeValue
from statsig_otel.plugin.service.assembly import Assembly
from statsig_otel.plugin.service.builder import (
    Exporters,
    Pipelines,
    Receivers,
    as_argument,
    build_configuration,
    check_arguments,
    keys_of_servers,
    secrets_of,
)
from statsig_otel.plugin.service.dispatch import ServiceConsumer
from statsig_otel.plugin.service.lifecycle import Lifecycle
from statsig_otel.plugin.service.lifespan import with_lifespan
from statsig_otel.plugin.service.reload import Reloader, check_with_files
from statsig_otel.plugin.settings.doubts import doubts
from statsig_otel.plugin.settings.environment import read_document
from statsig_otel.plugin.settings.reading import receiver_settings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.settings.resource import resource_from_environment
from statsig_otel.plugin.settings.storage import find_directory

_logger: Final = logging.getLogger(__name__)

_WORKERS: Final = (
    "one process owns a queue. Run one worker in your server (gunicorn: --workers 1 --threads 8), or run "
    "statsig-otel next to your workers, or turn the queue off: sending_queue enabled=False for every exporter"
)
_WAIT: Final = "if that process is about to end, as a worker at a reload is, use wait_for_directory=True"


class Service:
    """Receivers, a durable queue and exporters, built in code; `from_file` reads them from files instead.

    A 200 means the same as with `statsig-otel run`: the changes are on disk, and reach every exporter. The constructor
    opens and starts nothing. A service starts once and ends once, by `start` and `shutdown` or by a `with` or `async
    with` block. Both may be called from any thread, any number of times, under a running event loop and in a signal
    handler. A service that was made before a fork may be started after it. Its threads are daemons. It installs no
    signal handler, does not configure logging, and reads only the environment variables that it is given.

    Args:
        receivers: The receivers, by id: `statsig` or `statsig/NAME`. Settings, or a mapping as in a file.
        exporters: The exporters, by id: `otlp_grpc`, `otlp_http/NAME`, ... Settings; an exporter of your own, with an
            id of its own such as `mine`; a `Destination` around either, which says how it is fed; or a mapping as in a
            file.
        pipelines: Which receivers feed which exporters, or a mapping as in a file. By default all receivers feed all.
        directory: The queue's directory, which no other service may use. It is created if it is missing. A relative
            path is resolved now. Required unless all exporters are without a queue.
        min_free_bytes: Webhooks are refused while the directory's disk has fewer free bytes.
        resource: Attributes of the records' resource. A receiver's own attributes override them.
        environ: Where OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME are read, such as `os.environ`; None for nowhere.
            `resource` overrides them.
        listen: Whether receivers listen at their endpoints, on servers in a thread of the service. With False there is
            no server: mount `asgi_app()`, `wsgi_app()` or `receiver(...)` in an application of your own.
        wait_for_directory: Whether to wait while another process owns the directory, such as the worker that a reload
            of gunicorn is about to replace. Meanwhile webhooks are held, each for at most 10 s, and are then refused. A
            service with servers of its own listens only after that: until then `start` waits, without limit, for the
            other process or for a `shutdown`.
        url: What comes before the receivers' paths in their URLs, such as `https://flags.example.com/statsig`. Only
            `urls` tells it. By default `urls` has the addresses of the service's own servers.
        tracer_provider: Gets a span of each webhook and each delivery, once the service starts. It counts for the whole
            process. None for no spans.

    Raises:
        ConfigError: All problems, each with its place: `exporters::otlp_grpc: ...`.

    Example:
        >>> from statsig_otel.config import Opaque
        >>> from statsig_otel.exporters import OtlpGrpcSettings
        >>> from statsig_otel.plugin import Service, StatsigReceiverSettings
        >>> service = Service(
        ...     receivers={"statsig": StatsigReceiverSettings(signing_secrets=["webhook-..."])},
        ...     exporters={"otlp_grpc": OtlpGrpcSettings(endpoint="https://collector:4317")},
        ...     directory="/var/lib/agent/statsig",
        ... )
    """

    def __init__(
        self,
        *,
        receivers: Receivers,
        exporters: Exporters,
        pipelines: Pipelines | None = None,
        directory: Path | str | None = None,
        min_free_bytes: int = DEFAULT_MIN_FREE,
        resource: Mapping[str, AttributeValue] | None = None,
        environ: Mapping[str, str] | None = None,
        listen: bool = True,
        wait_for_directory: bool = False,
        url: str = "",
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        check_type("tracer_provider", tracer_provider, (TracerProvider, NoneType))
        environ = {} if environ is None else environ
        check_arguments(environ=environ, listen=listen, wait_for_directory=wait_for_directory, url=url)
        built = build_configuration(
            receivers=receivers,
            exporters=exporters,
            pipelines=pipelines,
            resource=resource,
            directory=directory,
            min_free_bytes=min_free_bytes,
            environ=environ,
            listen=listen,
        )
        assembly = Assembly(
            built.configuration,
            directory=built.directory,
            resource=built.resource,
            listen=listen,
            wait_for_directory=wait_for_directory,
            url=url,
            ways_out=_ways_out(listen=listen, waits=wait_for_directory),
        )
        self._use(assembly, Reloader(assembly), tracer_provider)

    @classmethod
    def from_file(
        cls,
        *locations: Path | str,
        environ: Mapping[str, str],
        listen: bool = True,
        wait_for_directory: bool = False,
        url: str = "",
        tracer_provider: TracerProvider | None = None,
    ) -> Self:
        """A service with the configuration of files, as `statsig-otel run` reads it.

        Entry points, `${env:...}` and `${file:...}` work as described in docs/configuration.md. Files of signing
        secrets and certificates are read again when they change. Of `service::telemetry` only `journal` is used: the
        log is your program's, and so are metrics and spans.

        Args:
            locations: The files, or what else `--config` takes: `env:NAME`, `yaml:TEXT`. Several are merged; later ones
                win. Without any, the environment variables are the configuration. Relative paths count from now.
            environ: The environment variables, such as `os.environ`.
            listen: As in the constructor. With False, keys of servers are not used, and the log says so.
            wait_for_directory: As in the constructor.
            url: As in the constructor.
            tracer_provider: As in the constructor.

        Raises:
            ConfigError: All problems, each with its place, file and line.

        Example:
            >>> import os
            >>> from statsig_otel.plugin import Service
            >>> service = Service.from_file(
            ...     "yaml:receivers: {statsig: {signing_secrets: []}}",
            ...     "yaml:exporters: {debug: {}}",
            ...     "yaml:service::pipelines::logs: {receivers: [statsig], exporters: [debug]}",
            ...     environ=os.environ,
            ... )
            >>> service.without_secret
            ['statsig']
        """
        check_type("tracer_provider", tracer_provider, (TracerProvider, NoneType))
        check_arguments(*locations, environ=environ, listen=listen, wait_for_directory=wait_for_directory, url=url)
        document = read_document(locations, environ)
        configuration = check_with_files(document)
        assembly = Assembly(
            configuration,
            directory=find_directory(configuration, environ),
            resource=resource_from_environment(environ),
            listen=listen,
            wait_for_directory=wait_for_directory,
            url=url,
            ways_out=_ways_out(listen=listen, waits=wait_for_directory),
        )
        here = absolute(Path())
        reloader = Reloader(assembly, document, lambda: read_document(locations, environ, directory=here))
        service = cls.__new__(cls)
        service._use(assembly, reloader, tracer_provider)  # noqa: SLF001 - it is this class's
        for one in [] if listen else keys_of_servers(receiver_settings(configuration)):
            _logger.warning("%s", document.problem(one.path, one.message))
        return service

    def _use(self, assembly: Assembly, reloader: Reloader, tracer_provider: TracerProvider | None = None) -> None:
        self._assembly = assembly
        self._tracer_provider = tracer_provider
        self._reloader = reloader
        self._lifecycle = Lifecycle(self._open, self._close)
        for sentence in doubts(assembly.configuration, reloader.document):
            _logger.warning("%s", sentence)

    def reload(self) -> list[str]:
        """Read the files of `from_file` again, and apply what has changed while the service runs.

        No connection ends, and no change is lost. Secrets, tolerance and mapping apply from the next request on,
        renewed TLS files of the servers from the next connection on. An exporter that changed finishes its batch before
        another one takes its place. Of a service that was made in code only certificates are read again; they are also
        watched. `statsig-otel reload` does the same from outside.

        Returns:
            The changes, as sentences.

        Raises:
            ConfigError: The configuration has errors, or a file that it names can't be used. Nothing has changed.
            RestartNeededError: A part of it needs a restart, or the service is not running. Nothing has changed.
            QueueError: The queue can't be written. Nothing has changed.
            OSError: An exporter can't be started, or certificates can't be renewed. The message names each, with the
                reason. All else is applied. An exporter that can't be started is blocked, and tries again by itself.
            ValueError: The same error, which is of both types.
        """
        return self._reloader.reload()

    @property
    def consumer(self) -> ServiceConsumer:
        """Takes batches to the queue and the exporters, for an HTTP server of your own.

        A batch's `receiver` is the id of one of the service's receivers. Before `start`, after `shutdown` and in a
        forked child batches are refused.
        """
        return self._assembly.consumer

    def receiver(self, name: str = "statsig") -> StatsigReceiver:
        """The receiver with this id as a resource of a Falcon ASGI application.

        Raises:
            ConfigError: There is no such receiver.
            TypeError: The id is not a string.
        """
        return self._assembly.inbound.receivers[self._assembly.inbound.known(name)]

    def wsgi_receiver(self, name: str = "statsig") -> StatsigWsgiReceiver:
        """The receiver with this id as a resource of a Falcon WSGI application. Errors as for `receiver`."""
        return self._assembly.inbound.wsgi_receivers[self._assembly.inbound.known(name)]

    def asgi_app(self) -> MountableApp:
        """All receivers at their paths as an ASGI application, alone or mounted in one of yours: Starlette, FastAPI.

        Where it gets the server's lifespan events it starts the service and shuts it down. Frameworks don't pass these
        on to what is mounted: there `lifespan` does it.
        """
        app = create_app(self._assembly.inbound.by_path(self._assembly.inbound.receivers))
        return with_lifespan(app, self.astart, self.ashutdown)

    def wsgi_app(self) -> WSGIApplication:
        """All receivers at their paths as a WSGI application, to mount in one of yours: Flask, Django."""
        return create_wsgi_app(self._assembly.inbound.by_path(self._assembly.inbound.wsgi_receivers))

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:  # noqa: ARG002 - the frameworks' signature
        """Start the service, and shut it down at the end: the `lifespan` of a Starlette or FastAPI application.

        Args:
            app: The application, which is not used.

        Example:
            >>> from starlette.applications import Starlette
            >>> from starlette.routing import Mount
            >>> from statsig_otel.exporters import DebugSettings
            >>> from statsig_otel.plugin import Service
            >>> service = Service(
            ...     receivers={"statsig": {"signing_secrets": ["webhook-..."]}},
            ...     exporters={"debug": DebugSettings()},
            ...     directory="statsig-queue",
            ...     listen=False,
            ... )
            >>> app = Starlette(routes=[Mount("/statsig", app=service.asgi_app())], lifespan=service.lifespan)
        """
        async with self:
            yield

    @property
    def urls(self) -> dict[str, str]:
        """The URL of each receiver: below the given `url`, or else on this machine.

        Without `url`, a service that does not listen, or has not started, raises a `RuntimeError`.
        """
        return self._assembly.inbound.urls

    @property
    def without_secret(self) -> list[str]:
        """The receivers in set-up mode: they answer URL verifications, and refuse everything else."""
        return [name for name, one in self._assembly.inbound.complete_settings.items() if not one.signing_secrets]

    @property
    def ended(self) -> "Future[None]":
        """Done when no more webhooks are answered: after a shutdown, or with an error if a server or the queue failed.

        It can't be cancelled.
        """
        return self._assembly.inbound.server_thread.ended

    def start(self) -> None:
        """Open the queue, start the exporters and listen. If something fails, everything is closed again.

        Returns when webhooks are accepted, or held because of `wait_for_directory`. A service with servers of its own
        that waits for its directory returns only once that is free; `shutdown`, from another thread, ends the wait. A
        second call waits for the same start and has the same result. A start that failed may be tried again.

        Raises:
            OSError: An address can't be listened on, or an exporter can't be started; the message says which and why.
            QueueError: The queue's directory belongs to another process (`DirectoryInUseError`, which says what to do),
                or its file can't be used.
            ConfigError: The queue's directory can't be used, or a file of an exporter or a server; or a second attempt
                can't make an exporter from its settings any more.
            RuntimeError: The service was shut down already, or was started before this process was forked.
        """
        try:
            self._lifecycle.start().result()
        except Exception:
            raise
        except BaseException:  # a Ctrl-C, wherever it came
            self.shutdown(0.0)
            raise

    async def astart(self) -> None:
        """As `start`, without blocking the caller's event loop. A cancellation shuts the service down."""
        started = self._lifecycle.start()
        try:
            await asyncio.wrap_future(started)
        except asyncio.CancelledError:
            self._stop(0.0, 0.0)
            raise

    def shutdown(self, timeout: float = _times.SHUTDOWN_TIMEOUT, *, drain: float = _times.QUEUE_DRAIN) -> bool:
        """Accept no more webhooks, finish those in flight, spend a while sending what waits, and close everything.

        Records that are not sent stay in the queue and are sent after the next start. A service that was never started
        can't be started any more. A second call waits for the same shutdown; the first call's times count.

        Args:
            timeout: Seconds for all of it; closing may take one more. What hangs is left behind in daemon threads.
            drain: How many of these seconds to spend on what waits in the queue, unless its backend is away.

        Returns:
            Whether everything was delivered and closed. If not, records stay in the queue, or something hangs; the log
            says which.

        Raises:
            ValueError: A time is negative or NaN. The service goes on, as after a TypeError.
        """
        stopped = self._stop(timeout, drain)
        try:
            return stopped.result(_with_margin(timeout))
        except TimeoutError:
            return _left_behind(timeout)

    async def ashutdown(self, timeout: float = _times.SHUTDOWN_TIMEOUT, *, drain: float = _times.QUEUE_DRAIN) -> bool:  # noqa: ASYNC109 - it bounds what goes on in threads
        """As `shutdown`, without blocking the caller's event loop. After a cancellation the shutdown goes on.

        For the parameters and the result see `shutdown`.
        """
        stopped = asyncio.wrap_future(self._stop(timeout, drain))
        try:
            async with asyncio.timeout(_with_margin(timeout)):
                return await stopped
        except TimeoutError:
            return _left_behind(timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    async def __aenter__(self) -> Self:
        await self.astart()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.ashutdown()

    def rotate_secrets(self, receiver: str, secrets: Sequence[str | Opaque]) -> None:
        """Replace the signing secrets of a receiver from the next request on. Works before `start` too.

        To rotate without refusing a webhook, pass the old and the new secret first, and later only the new one. The
        secrets of a service that `from_file` made are changed in its files.

        Args:
            receiver: The receiver's id.
            secrets: The whole signing secrets, in any order, as strings or as `Opaque`; none for the set-up mode.

        Raises:
            ConfigError: A secret is empty, or does not look like one. The receiver is unknown, or the service was made
                by `from_file`. Nothing has changed.
            TypeError: An argument has another type, such as one string for the secrets. Nothing has changed.

        Example:
            >>> from statsig_otel.exporters import DebugSettings
            >>> from statsig_otel.plugin import Service, StatsigReceiverSettings
            >>> service = Service(
            ...     receivers={"statsig": StatsigReceiverSettings(signing_secrets=["webhook-old"])},
            ...     exporters={"debug": DebugSettings()},
            ...     directory="statsig-queue",
            ... )
            >>> service.rotate_secrets("statsig", ["webhook-old", "webhook-new"])
        """
        wanted, after = self._assembly.inbound.known(receiver), secrets_of(receiver, secrets)
        if self._reloader.has_files:
            problem = "this service was made from files, which say what its secrets are"
            raise ConfigError(
                [Problem((), problem, "change them there, and call reload; files of secrets are watched")]
            )

        def changed(name: str, settings: StatsigReceiverSettings) -> StatsigReceiverSettings:
            return replaced(settings, signing_secrets=after) if name == wanted else settings

        self._assembly.change_secrets(changed)

    def _open(self, go_on: Callable[[], None]) -> None:
        if self._tracer_provider is not None:
            _tracing.begin(self._tracer_provider)
        try:
            self._reloader.start()
            self._assembly.open(go_on)
        except BaseException as error:
            self._reloader.shutdown()
            if problems := file_problems(
                error, self._assembly.configuration, self._reloader.document, self._assembly.directory
            ):
                in_code = not self._reloader.has_files
                raise ConfigError([*map(as_argument, problems)] if in_code else problems) from error
            raise

    def _close(self) -> bool:
        self._reloader.shutdown()
        return self._assembly.close()

    def _stop(self, timeout: float, drain: float) -> "Future[bool]":
        """Begin to shut down. Only the first call's times count."""
        for argument, seconds in {"timeout": timeout, "drain": drain}.items():
            check_type(argument, seconds, (int, float), "a number of seconds")
            if not seconds >= 0:  # NaN is not
                raise ValueError(f"{argument} must be a number of seconds, 0 or more, not {seconds!r}")
        self._assembly.begin_to_close(timeout, drain)
        stopped = self._lifecycle.stop()
        servers = self._assembly.inbound.server_thread
        stopped.add_done_callback(lambda _: servers.end_unstarted())  # without a start nothing is closed
        return stopped


def service_of(assembly: Assembly, reloader: Reloader) -> Service:
    """A service with these parts, whose configuration is read and checked already."""
    service = Service.__new__(Service)
    service._use(assembly, reloader)  # noqa: SLF001 - it is this module's
    return service


def _ways_out(*, listen: bool, waits: bool) -> str:
    """What else to do if another process owns the directory."""
    return "; ".join([*([] if listen else [_WORKERS]), *([] if waits else [_WAIT])])


def _with_margin(timeout: float) -> float:
    """Seconds to wait for a shutdown that has this timeout."""
    return min(timeout, _times.LONGEST_SHUTDOWN) + _times.SHUTDOWN_MARGIN


def _left_behind(timeout: float) -> bool:
    _logger.warning("The shutdown did not end within %g s; what hangs is left behind", timeout)
    return False
