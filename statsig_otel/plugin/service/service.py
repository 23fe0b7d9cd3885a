"""A whole service, as embedders and the command line use it: receivers, servers, queue, exporters, start and stop."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Final, Self
from wsgiref.types import WSGIApplication

from statsig_otel import _times
from statsig_otel.config.configuration import Configuration
from statsig_otel.config.errors import ConfigError, Problem
from statsig_otel.config.model import Opaque
from statsig_otel.exporters.consumer import Consumer
from statsig_otel.exporters.queue.directory import DirectoryInUseError
from statsig_otel.exporters.queue.queue import DEFAULT_MIN_FREE
from statsig_otel.plugin.control.socket import ControlServer, Handler
from statsig_otel.plugin.receiver.asgi import MountableApp, StatsigReceiver, create_app
from statsig_otel.plugin.receiver.intake import Intake, Limits
from statsig_otel.plugin.receiver.wsgi import StatsigWsgiReceiver, create_wsgi_app
from statsig_otel.plugin.record.otlp import AttributeValue
from statsig_otel.plugin.server.thread import ServerThread
from statsig_otel.plugin.service.builder import Exporters, Pipelines, Receivers, build_configuration
from statsig_otel.plugin.service.endpoints import Endpoint, check_endpoints, endpoints_of
from statsig_otel.plugin.service.lifecycle import Lifecycle
from statsig_otel.plugin.service.outbound import Outbound
from statsig_otel.plugin.service.restart import RestartNeededError, needing_restart
from statsig_otel.plugin.settings.delivery import unused_keys
from statsig_otel.plugin.settings.environment import resource_from_environment
from statsig_otel.plugin.settings.reading import (
    configured_exporters,
    create_mapper,
    create_verifier,
    receiver_settings,
)
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.webhook.signature import Verifier

_logger: Final = logging.getLogger(__name__)

_WORKERS: Final = (
    "one process owns a queue. Of a server's workers let one do it (gunicorn: --workers 1 --threads 8), or run "
    "statsig-otel beside them, or turn the queue off: sending_queue enabled=False for every exporter"
)


class Service:
    """Receivers, a durable queue and exporters, built in code. The constructor opens and starts nothing.

    A 200 means the same as with `statsig-otel run`: the changes are on disk, and reach every exporter. A service starts
    once and ends once, by `start` and `shutdown` or by a `with` or `async with` block. Both may be called from any
    thread, any number of times, under a running event loop and in a signal handler. A service that was made before a
    fork may be started after it. Its threads are daemons. It installs no signal handler, does not configure logging,
    and reads only the environment variables that it is given.

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

    Raises:
        ConfigError: All problems, each with its place: `exporters::otlp_grpc: ...`.

    Example:
        >>> from statsig_otel.config import Opaque
        >>> from statsig_otel.exporters import OtlpGrpcSettings
        >>> from statsig_otel.plugin import Service, StatsigReceiverSettings
        >>> service = Service(
        ...     receivers={"statsig": StatsigReceiverSettings(signing_secrets=[Opaque("webhook-...")])},
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
    ) -> None:
        configuration = build_configuration(
            receivers=receivers,
            exporters=exporters,
            pipelines=pipelines,
            resource=resource,
            directory=directory,
            min_free_bytes=min_free_bytes,
            listen=listen,
        )
        below = resource_from_environment(environ) if environ is not None else {}
        self._build(configuration, Path(directory or ""), {**below, **(resource or {})}, listen=listen)
        self._ways_out = _WORKERS

    @classmethod
    def from_configuration(
        cls,
        configuration: Configuration,
        *,
        directory: Path,
        resource: Mapping[str, AttributeValue] | None = None,
        listen: bool = True,
    ) -> Self:
        """A service with a configuration that was read from files and checked.

        Args:
            configuration: The configuration.
            directory: The queue's directory; used if an exporter is queued, as all are by default.
            resource: Attributes of the records' resource. A receiver's own attributes override them.
            listen: As in the constructor.

        Raises:
            ConfigError: Receivers that share an endpoint don't agree.
        """
        service = cls.__new__(cls)
        service._build(configuration, directory, resource or {}, listen=listen)  # noqa: SLF001 - it is this class's
        return service

    def _build(
        self, configuration: Configuration, directory: Path, resource: Mapping[str, AttributeValue], *, listen: bool
    ) -> None:
        settings = receiver_settings(configuration)
        check_endpoints(settings)
        self._configuration = configuration
        self._resource = dict(resource)
        self._ways_out = ""  # what to do if the directory is in use; the command line has no workers
        self._outbound = Outbound(configuration, directory)
        self._intakes = {name: _create_intake(name, one, resource) for name, one in settings.items()}
        self._receivers = {
            name: StatsigReceiver(intake, self._outbound.consumer, patience=self._outbound.patience(name))
            for name, intake in self._intakes.items()
        }
        self._wsgi_receivers = {
            name: StatsigWsgiReceiver(intake, self._outbound.consumer, patience=self._outbound.patience(name))
            for name, intake in self._intakes.items()
        }
        self._endpoints: list[Endpoint] = endpoints_of(settings, self._receivers) if listen else []
        self._servers = ServerThread([endpoint.server for endpoint in self._endpoints])
        self._commands: dict[str, Handler] = {}
        socket = self._outbound.socket
        self._control = ControlServer(socket, self._outbound.handlers(self._intakes)) if socket else None
        self._lifecycle = Lifecycle(self._open, self._close)
        self._is_open = False
        self._closing = False
        self._reconfiguring = threading.Lock()  # a shutdown waits for a reload that is under way
        self._until = 0.0  # by the monotonic clock: the end of the shutdown
        self._drain = _times.QUEUE_DRAIN

    def unused_keys(self) -> list[str]:
        """The keys of the configuration that have no effect, as sentences."""
        return list(unused_keys(configured_exporters(self._configuration)))

    @property
    def configuration(self) -> Configuration:
        """The current configuration."""
        return self._configuration

    @property
    def consumer(self) -> Consumer:
        """Takes batches to the queue and the exporters, for an HTTP server of your own.

        A batch's `receiver` is the id of one of the service's receivers. Before `start`, after `shutdown` and in a
        forked child batches are refused.
        """
        return self._outbound.consumer

    def receiver(self, name: str = "statsig") -> StatsigReceiver:
        """The receiver with this id as a resource of a Falcon ASGI application.

        Raises:
            KeyError: There is no such receiver.
        """
        return self._receivers[name]

    def wsgi_receiver(self, name: str = "statsig") -> StatsigWsgiReceiver:
        """The same for a Falcon WSGI application."""
        return self._wsgi_receivers[name]

    def asgi_app(self) -> MountableApp:
        """All receivers at their paths as an ASGI application, to mount in one of yours: Starlette, FastAPI.

        Start the service and shut it down with that application, for example in its lifespan.
        """
        return create_app({self._path(name): receiver for name, receiver in self._receivers.items()})

    def wsgi_app(self) -> WSGIApplication:
        """All receivers at their paths as a WSGI application, to mount in one of yours: Flask, Django."""
        return create_wsgi_app({self._path(name): receiver for name, receiver in self._wsgi_receivers.items()})

    @property
    def urls(self) -> dict[str, str]:
        """The URL of each receiver on this machine. Only after `start`; empty without servers."""
        return {name: url for endpoint in self._endpoints for name, url in endpoint.urls.items()}

    @property
    def without_secret(self) -> list[str]:
        """The receivers in set-up mode: they answer URL verifications, and refuse everything else."""
        return [name for name, one in receiver_settings(self._configuration).items() if not one.signing_secrets]

    @property
    def ended(self) -> "Future[None]":
        """Done when no more webhooks are answered: after a shutdown, or with an error if a server has failed.

        It can't be cancelled.
        """
        return self._servers.ended

    def offer(self, command: str, handler: Handler) -> None:
        """Answer one more command at the control socket, if there is one. The handler may shut the service down."""
        self._commands[command] = handler
        self._renew_handlers()

    def start(self) -> None:
        """Open the queue, start the exporters and listen. If something fails, everything is closed again.

        Returns when webhooks are accepted. A second call waits for the same start and has the same result: after a
        failed start make another service.

        Raises:
            OSError: An address can't be listened on, or a file can't be opened; the message says which and why.
            ValueError: The content of a file is not valid.
            QueueError: The queue's directory belongs to another process (`DirectoryInUseError`, which says what to do),
                or its file can't be used.
            RuntimeError: The service was shut down already, or was started before this process was forked.
        """
        started = self._lifecycle.start()
        try:
            started.result()
        except BaseException:
            if not started.done():  # a Ctrl-C has ended the wait
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

        What is not sent stays in the queue and is sent after the next start. A service that was never started can't be
        started any more. A second call waits for the same shutdown; the first call's times count.

        Args:
            timeout: Seconds for all of it; closing may take one more. What hangs is left behind in daemon threads.
            drain: How many of these seconds to spend on what waits in the queue, unless its backend is away.

        Returns:
            Whether everything was delivered and closed. If not, records stay in the queue, or something hangs; the log
            says which.
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

    def reconfigure(self, configuration: Configuration) -> list[str]:
        """Take over another configuration while the service runs. No connection ends, and no change is lost.

        Secrets, tolerance and mapping apply from the next request on, renewed TLS files of the servers from the next
        connection on. An exporter that changed finishes its batch before another one takes its place.

        Args:
            configuration: A checked configuration.

        Returns:
            The changes, as sentences.

        Raises:
            ConfigError: Receivers that share an endpoint don't agree, or a server's TLS files can't be used. Nothing
                has changed.
            RestartNeededError: A part of it needs a restart, or the service is not running. Nothing has changed.
            QueueError: The queue can't be written. Nothing has changed.
            OSError: An exporter can't open a file. Everything else has been taken over.
            ValueError: The content of an exporter's file is not valid. Everything else has been taken over.
        """
        with self._reconfiguring:
            if self._closing:
                raise RestartNeededError("the service is shutting down")
            if not self._is_open:
                raise RestartNeededError("the service has not started")
            return self._take_over(configuration)

    def _take_over(self, configuration: Configuration) -> list[str]:
        check_endpoints(receiver_settings(configuration))
        needing = [
            *needing_restart(self._configuration, configuration), *self._outbound.needing_restart(configuration)
        ]  # fmt: skip
        if needing:
            raise RestartNeededError("; ".join(needing))
        before, after = receiver_settings(self._configuration), receiver_settings(configuration)
        renewed = self._renewed_tls()
        verifiers = {name: create_verifier(settings) for name, settings in after.items()}
        mappers = {name: create_mapper(settings, self._resource) for name, settings in after.items()}

        def take_over() -> None:
            self._configuration = configuration
            for name, intake in self._intakes.items():
                intake.verifier, intake.mapper = verifiers[name], mappers[name]
            for use_tls in renewed.values():
                use_tls()
            self._renew_handlers()

        try:
            changes = self._outbound.reconfigure(configuration, taken=take_over)
        finally:
            for name in after:
                patience = self._outbound.patience(name)
                self._receivers[name].patience = self._wsgi_receivers[name].patience = patience
        return [
            *(f"receivers::{name}: has changed" for name in after if before[name] != after[name]),
            *(f"receivers::{name}::tls: its files have changed" for name in after if after[name].endpoint in renewed),
            *changes,
        ]

    def _renewed_tls(self) -> dict[str, Callable[[], None]]:
        """Functions that make the servers use their changed TLS files, by address."""
        try:
            return {one.address: use for one in self._endpoints if (use := one.server.renewed_tls())}
        except (OSError, ValueError) as error:
            raise ConfigError([Problem((), str(error))]) from error

    def renew_secrets(self, configuration: Configuration) -> None:
        """Take over the signing secrets of a configuration that differs only in them."""
        self._configuration = configuration
        for name, settings in receiver_settings(configuration).items():
            self._intakes[name].verifier = create_verifier(settings)

    def rotate_secrets(self, receiver: str, secrets: Sequence[str]) -> None:
        """Replace the signing secrets of a receiver from the next request on. Works before `start` too.

        To rotate without refusing a webhook, pass the old and the new secret first, and later only the new one.

        Args:
            receiver: The receiver's id.
            secrets: The whole signing secrets, in any order; none for the set-up mode.

        Raises:
            KeyError: There is no such receiver.
            ValueError: A secret is empty. Nothing has changed.
            TypeError: The secrets are one string. Nothing has changed.

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
        Verifier(secrets)  # raises what is wrong with them
        with self._reconfiguring:
            settings = receiver_settings(self._configuration)[receiver]
            renewed = settings.model_copy(update={"signing_secrets": [Opaque(secret) for secret in secrets]})
            receivers = {**self._configuration.receivers, receiver: renewed}
            self.renew_secrets(replace(self._configuration, receivers=receivers))

    def _path(self, name: str) -> str:
        return receiver_settings(self._configuration)[name].path

    def _open(self) -> None:
        try:
            self._outbound.start()
            if self._control is not None:
                self._control.start()
            for endpoint in self._endpoints:
                endpoint.server.bind()
            if self._endpoints:
                self._servers.start()
            self._is_open = True
        except BaseException as error:
            self._until = time.monotonic()
            self._drain = 0.0
            self._close()
            if isinstance(error, DirectoryInUseError) and not error.is_own and self._ways_out:
                raise DirectoryInUseError(f"{error}; {self._ways_out}") from None
            raise

    def _stop(self, timeout: float, drain: float) -> "Future[bool]":
        """Begin to shut down. Only the first call's times count."""
        if self._control is not None:
            self._control.let_go()  # a command that shuts down would wait for itself
        if not self._until:
            self._until, self._drain = time.monotonic() + min(timeout, _times.LONGEST_SHUTDOWN), drain
        stopped = self._lifecycle.stop()
        stopped.add_done_callback(lambda _: self._servers.end_unstarted())  # without a start nothing is closed
        return stopped

    def _left(self) -> float:
        return max(self._until - time.monotonic(), 0.0)

    def _close(self) -> bool:
        """Close what `_open` opened, within the time that is left. docs/architecture.md has the steps' budget."""
        self._closing = True
        timeout = self._left()
        grace = min(_times.SEND_GRACE, timeout / 4)
        self._outbound.close(grace)
        for receiver in self._receivers.values():
            receiver.close(min(_times.BODY_GRACE, timeout / 4))
        for wsgi_receiver in self._wsgi_receivers.values():
            wsgi_receiver.close()
        drained = time.monotonic() + min(_times.REQUEST_DRAIN, timeout / 2)
        self._servers.shutdown(max(drained - time.monotonic(), 0.0))
        for intake in self._intakes.values():  # those of an application that the receivers are mounted in
            intake.wait_until_idle(max(drained - time.monotonic(), 0.0))
        if self._control is not None:
            # Before the queue, which its handlers wait for.
            self._control.shutdown(self._left() / 2 + _times.SHUTDOWN_MARGIN)
        is_alone = self._reconfiguring.acquire(timeout=self._left() + _times.SHUTDOWN_MARGIN)
        try:
            return self._outbound.shutdown(min(self._drain, self._left()), grace=grace) and is_alone
        finally:
            if is_alone:
                self._reconfiguring.release()

    def _renew_handlers(self) -> None:
        if self._control is not None:
            self._control.handlers = {**self._outbound.handlers(self._intakes), **self._commands}


def _create_intake(name: str, settings: StatsigReceiverSettings, resource: Mapping[str, AttributeValue]) -> Intake:
    limits = Limits(
        max_request_body_size=settings.max_request_body_size,
        max_in_flight_bytes=settings.max_in_flight_bytes,
        read_timeout=settings.read_timeout,
    )
    mapper = create_mapper(settings, resource)
    return Intake(verifier=create_verifier(settings), mapper=mapper, name=name, limits=limits)


def _with_margin(timeout: float) -> float:
    """Seconds to wait for a shutdown that has this timeout."""
    return min(max(timeout, 0.0), _times.LONGEST_SHUTDOWN) + _times.SHUTDOWN_MARGIN


def _left_behind(timeout: float) -> bool:
    _logger.warning("The shutdown did not end within %g s; what hangs is left behind", timeout)
    return False
