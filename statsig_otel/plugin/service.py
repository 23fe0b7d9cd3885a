"""The whole service: receivers on their servers, a pipeline behind them, exporters at its end, and their lifecycle."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from statsig_otel.config.errors import ConfigError, Problem
from statsig_otel.config.grammar import Configuration
from statsig_otel.exporters.synchronous import Route, SynchronousConsumer
from statsig_otel.plugin.components import create_exporter
from statsig_otel.plugin.intake import Intake, Limits
from statsig_otel.plugin.log_record import DEFAULT_RESOURCE, AttributeValue, LogRecordEncoder
from statsig_otel.plugin.mapper import Mapper
from statsig_otel.plugin.receiver import StatsigReceiver, create_app
from statsig_otel.plugin.server import HttpServer, ServerTls
from statsig_otel.plugin.settings import ServerTlsSettings, StatsigReceiverSettings
from statsig_otel.plugin.webhook import Verifier

_logger: Final = logging.getLogger(__name__)

_DEFAULT_TIMEOUT: Final = 30.0
"""Seconds for one `send` of an exporter whose settings have no timeout."""

_BODY_GRACE: Final = 5.0
"""Seconds after a stop for the bodies that are still being read. Well below the server's drain timeout."""

_SERVER_KEYS: Final = ("read_header_timeout", "max_connections", "tls")
"""The settings that belong to a server, and so have to agree for all receivers on one endpoint."""


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
        resource: Attributes of the records' resource below those that a receiver sets.

    Raises:
        ConfigError: Receivers that share an endpoint don't agree.
    """

    def __init__(self, configuration: Configuration, *, resource: Mapping[str, AttributeValue] | None = None) -> None:
        self._consumer = _consumer(configuration)
        self._resource = {**DEFAULT_RESOURCE, **(resource or {})}
        self._endpoints: dict[str, _Endpoint] = {}
        receivers = cast("Mapping[str, StatsigReceiverSettings]", configuration.receivers)
        problems = list(_disagreements(receivers))
        if problems:
            raise ConfigError(problems)
        for name, settings in receivers.items():
            endpoint = self._endpoints.setdefault(settings.endpoint, _Endpoint(settings))
            endpoint.receivers[name] = StatsigReceiver(self._intake(name, settings), self._consumer)
            endpoint.paths[name] = settings.path
        self._servers = {address: _server(endpoint) for address, endpoint in self._endpoints.items()}
        self._without_secret = [name for name, settings in receivers.items() if not settings.signing_secrets]

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
        return list(self._without_secret)

    def start(self) -> None:
        """Start the exporters and open the listening sockets. Where something fails, all is closed again.

        Raises:
            OSError: An address can't be listened on, or a file can't be opened; the message says which and why.
            ValueError: A file holds something else than it should.
        """
        try:
            self._consumer.start()
            for server in self._servers.values():
                server.bind()
        except BaseException:
            self.shutdown()
            raise

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
        """Take no more requests; those whose body is there are finished. In the loop that runs `serve`."""
        for endpoint in self._endpoints.values():
            for receiver in endpoint.receivers.values():
                receiver.close(grace=_BODY_GRACE)
        for server in self._servers.values():
            server.stop()

    def shutdown(self) -> None:
        """Close what `start` opened. Safe to call twice."""
        for server in self._servers.values():
            server.stop()
        self._consumer.shutdown()

    def _intake(self, name: str, settings: StatsigReceiverSettings) -> Intake:
        encoder = LogRecordEncoder(
            resource={**self._resource, **settings.resource},
            user=settings.user,
            hash_key=settings.hash_key.reveal() if settings.hash_key else None,
            include_original=settings.include_original,
        )
        secrets = [secret.reveal() for secret in settings.signing_secrets]
        limits = Limits(
            max_request_body_size=settings.max_request_body_size,
            max_in_flight_bytes=settings.max_in_flight_bytes,
            read_timeout=settings.read_timeout,
        )
        verifier = Verifier(secrets, tolerance=settings.timestamp_tolerance)
        return Intake(verifier=verifier, mapper=Mapper(encoder), name=name, limits=limits)


def _consumer(configuration: Configuration) -> SynchronousConsumer:
    routes = {
        name: Route(create_exporter(name, settings), float(getattr(settings, "timeout", _DEFAULT_TIMEOUT)))
        for name, settings in configuration.exporters.items()
    }
    receivers: dict[str, dict[str, None]] = {name: {} for name in configuration.receivers}
    for pipeline in configuration.pipelines.values():
        for receiver in pipeline.receivers:
            # Where pipelines share an exporter, it gets each record once.
            receivers[receiver].update(dict.fromkeys(pipeline.exporters))
    return SynchronousConsumer(routes, {name: tuple(exporters) for name, exporters in receivers.items()})


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
