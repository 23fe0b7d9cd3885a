"""The whole service: receivers on their servers, a pipeline behind them, exporters at its end, and their lifecycle."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from statsig_otel.config.errors import ConfigError, Problem
from statsig_otel.config.grammar import Configuration
from statsig_otel.exporters.queue.control import ControlServer, Handler
from statsig_otel.plugin.delivery import Delivery, RestartNeededError
from statsig_otel.plugin.delivery_settings import unused_keys
from statsig_otel.plugin.intake import Intake, Limits
from statsig_otel.plugin.log_record import AttributeValue
from statsig_otel.plugin.queue_configuration import (
    create_mapper,
    create_verifier,
    exporter_settings,
    receiver_settings,
)
from statsig_otel.plugin.receiver import StatsigReceiver, create_app
from statsig_otel.plugin.server import HttpServer, ServerTls
from statsig_otel.plugin.settings import ServerTlsSettings, StatsigReceiverSettings
from statsig_otel.plugin.storage import file_storage

_BODY_GRACE: Final = 5.0
"""Seconds after a stop for the bodies that are still being read. Well below the server's drain."""

_SERVER_DRAIN: Final = 10.0
"""Seconds after a stop for the requests in flight. With the delivery's own drain it stays within the 20 seconds that
supervisors usually grant."""

_SERVER_KEYS: Final = ("read_header_timeout", "max_connections", "tls")
"""The settings that belong to a server, and so have to agree for all receivers on one endpoint."""


_FIXED_KEYS: Final = (
    "endpoint", "path", "max_request_body_size", "max_in_flight_bytes", "read_timeout", *_SERVER_KEYS
)  # fmt: skip
"""The settings that only a restart can change."""


@dataclass(slots=True)
class _Endpoint:
    """One address with the receivers that share it."""

    settings: StatsigReceiverSettings
    receivers: dict[str, StatsigReceiver] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)


class Service:
    """Receivers, pipeline and exporters of one configuration. The constructor opens nothing.

    Args:
        configuration: A checked configuration.
        directory: The queue's directory; used where an exporter is queued, as all are by default.
        resource: Attributes of the records' resource below those that a receiver sets.

    Raises:
        ConfigError: Receivers that share an endpoint don't agree.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        directory: Path,
        resource: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        self._configuration = configuration
        self._resource = dict(resource or {})
        self._delivery = Delivery(configuration, directory)
        self._endpoints: dict[str, _Endpoint] = {}
        _check_endpoints(configuration)
        self._intakes = {
            name: Intake(
                verifier=create_verifier(settings),
                mapper=create_mapper(settings, self._resource),
                name=name,
                limits=_limits(settings),
            )
            for name, settings in receiver_settings(configuration).items()
        }
        for name, settings in receiver_settings(configuration).items():
            endpoint = self._endpoints.setdefault(settings.endpoint, _Endpoint(settings))
            endpoint.receivers[name] = StatsigReceiver(
                self._intakes[name], self._delivery.consumer, patience=self._delivery.patience(name)
            )
            endpoint.paths[name] = settings.path
        self._servers = {address: _server(endpoint) for address, endpoint in self._endpoints.items()}
        self._commands: dict[str, Handler] = {}
        socket = self._delivery.socket
        self._control = ControlServer(socket, self._delivery.handlers(self._intakes)) if socket else None

    def unused_keys(self) -> list[str]:
        """What the configuration says without effect, for people."""
        return list(unused_keys(exporter_settings(self._configuration)))

    @property
    def configuration(self) -> Configuration:
        """What it runs by now."""
        return self._configuration

    @property
    def urls(self) -> dict[str, str]:
        """For each receiver the URL at which it listens on this machine. After `start`."""
        found: dict[str, str] = {}
        for address, endpoint in self._endpoints.items():
            host, port = self._servers[address].address
            scheme = "https" if endpoint.settings.tls else "http"
            shown = f"[{host}]" if ":" in host else host
            found.update({name: f"{scheme}://{shown}:{port}{path}" for name, path in endpoint.paths.items()})
        return found

    @property
    def without_secret(self) -> list[str]:
        """The receivers in set-up mode: they answer URL verifications, and refuse all else."""
        return [
            name for name, settings in receiver_settings(self._configuration).items() if not settings.signing_secrets
        ]

    def offer(self, command: str, handler: Handler) -> None:
        """Answer one more command at the control socket, where there is one."""
        self._commands[command] = handler
        self._renew_handlers()

    def start(self) -> None:
        """Start the delivery and open the listening sockets. Where something fails, all is closed again.

        Raises:
            OSError: An address can't be listened on, or a file can't be opened; the message says which and why.
            ValueError: A file holds something else than it should.
            QueueError: The queue's directory belongs to another process, or its file can't be used.
        """
        try:
            self._delivery.start()
            if self._control is not None:
                self._control.start()
            for server in self._servers.values():
                server.bind()
        except BaseException:
            self.shutdown()
            raise

    def reconfigure(self, configuration: Configuration) -> list[str]:
        """Take over another configuration while it runs. No connection ends, and no event is dropped.

        Secrets, tolerance and mapping count from the next request on; for the exporters see `Delivery.reconfigure`.

        Args:
            configuration: A checked configuration.

        Returns:
            The changes, for people.

        Raises:
            ConfigError: Receivers that share an endpoint don't agree. Nothing has changed.
            RestartNeededError: A part of it needs a restart. Nothing has changed.
            QueueError: The queue can't be written. Nothing has changed.
            OSError: An exporter can't open a file. All else has been taken over.
            ValueError: A file of an exporter's holds something else than it should. As above.
        """
        _check_endpoints(configuration)
        needing = list(_needing_restart(self._configuration, configuration))
        if needing:
            raise RestartNeededError("; ".join(needing))
        before, after = receiver_settings(self._configuration), receiver_settings(configuration)
        verifiers = {name: create_verifier(settings) for name, settings in after.items()}
        mappers = {name: create_mapper(settings, self._resource) for name, settings in after.items()}

        def take_over() -> None:
            self._configuration = configuration
            for name, intake in self._intakes.items():
                intake.verifier, intake.mapper = verifiers[name], mappers[name]
            self._renew_handlers()

        try:
            changes = self._delivery.reconfigure(configuration, taken=take_over)
        finally:
            for endpoint in self._endpoints.values():
                for name, receiver in endpoint.receivers.items():
                    receiver.patience = self._delivery.patience(name)
        return [*(f"receivers::{name}: has changed" for name in after if before[name] != after[name]), *changes]

    def renew_secrets(self, configuration: Configuration) -> None:
        """Take over the signing secrets of a configuration that differs in nothing else. No exporter is touched."""
        self._configuration = configuration
        for name, settings in receiver_settings(configuration).items():
            self._intakes[name].verifier = create_verifier(settings)

    async def serve(self) -> None:
        """Answer requests until `stop`; then finish those in flight. After `start`."""
        servers = [asyncio.create_task(server.serve()) for server in self._servers.values()]
        try:
            await asyncio.gather(*servers)
        finally:
            # One server that fails takes the others along: half a service would look healthy.
            self.stop()
            await asyncio.gather(*servers, return_exceptions=True)

    def stop(self) -> None:
        """Take no more requests; those whose body is there are finished. In the loop that runs `serve`.

        What waits for a synchronous exporter is refused within a few seconds, so that it still gets its 503.
        """
        self._delivery.close()
        for endpoint in self._endpoints.values():
            for receiver in endpoint.receivers.values():
                receiver.close(grace=_BODY_GRACE)
        for server in self._servers.values():
            server.stop()

    def shutdown(self) -> None:
        """Close what `start` opened, after a last attempt to deliver what waits. Safe to call twice."""
        for server in self._servers.values():
            server.stop()
        if self._control is not None:
            self._control.shutdown()  # first: its handlers wait for the queue
        self._delivery.shutdown()

    def _renew_handlers(self) -> None:
        if self._control is not None:
            self._control.handlers = {**self._delivery.handlers(self._intakes), **self._commands}


def _limits(settings: StatsigReceiverSettings) -> Limits:
    return Limits(
        max_request_body_size=settings.max_request_body_size,
        max_in_flight_bytes=settings.max_in_flight_bytes,
        read_timeout=settings.read_timeout,
    )


def _server(endpoint: _Endpoint) -> HttpServer:
    settings = endpoint.settings
    host, port = settings.address
    app = create_app({endpoint.paths[name]: receiver for name, receiver in endpoint.receivers.items()})
    return HttpServer(
        app,
        host=host,
        port=port,
        read_header_timeout=settings.read_header_timeout,
        max_connections=settings.max_connections,
        tls=_tls(settings.tls),
        drain_timeout=_SERVER_DRAIN,
    )


def _tls(settings: ServerTlsSettings | None) -> ServerTls | None:
    if settings is None:
        return None
    return ServerTls(
        cert_file=settings.cert_file,
        key_file=settings.key_file,
        client_ca_file=settings.client_ca_file,
        min_version=settings.min_version,
    )


def _needing_restart(before: Configuration, after: Configuration) -> Iterable[str]:
    """What differs that only a restart can take over."""
    for name in [*before.receivers, *after.receivers]:
        if (name in before.receivers) is not (name in after.receivers):
            yield f"receivers::{name}: {'is new' if name in after.receivers else 'is gone'}"
    for name, settings in receiver_settings(after).items():
        for key in _FIXED_KEYS if name in before.receivers else ():
            if getattr(settings, key) != getattr(before.receivers[name], key):
                yield f"receivers::{name}::{key}"
    if file_storage(before) != file_storage(after):
        yield "extensions::file_storage"
    if before.telemetry != after.telemetry:
        yield "service::telemetry"


def _check_endpoints(configuration: Configuration) -> None:
    problems = list(_disagreements(receiver_settings(configuration)))
    if problems:
        raise ConfigError(problems)


def _disagreements(receivers: Mapping[str, StatsigReceiverSettings]) -> Iterable[Problem]:
    """Receivers with the same endpoint share one server: its keys must agree, their paths differ."""
    first: dict[str, str] = {}
    paths: dict[tuple[str, str], str] = {}
    for name, settings in receivers.items():
        other = first.setdefault(settings.endpoint, name)
        for key in _SERVER_KEYS:
            if getattr(settings, key) != getattr(receivers[other], key):
                message = f"differs from receivers::{other}::{key}, which listens on the same endpoint"
                yield Problem(("receivers", name, key), message, "let them agree, or give each its own endpoint")
        other = paths.setdefault((settings.endpoint, settings.path), name)
        if other != name:
            message = f"is the path of receivers::{other} too, which listens on the same endpoint"
            yield Problem(("receivers", name, "path"), message, "give each receiver its own path")
