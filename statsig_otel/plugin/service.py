"""The whole service: receivers on their servers, a pipeline behind them, exporters at its end, and their lifecycle."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from statsig_otel.config.errors import ConfigError, Problem
from statsig_otel.config.grammar import Configuration
from statsig_otel.plugin.delivery import Delivery
from statsig_otel.plugin.intake import Intake, Limits
from statsig_otel.plugin.log_record import AttributeValue
from statsig_otel.plugin.queue_configuration import create_mapper
from statsig_otel.plugin.receiver import StatsigReceiver, create_app
from statsig_otel.plugin.server import HttpServer, ServerTls
from statsig_otel.plugin.settings import ServerTlsSettings, StatsigReceiverSettings
from statsig_otel.plugin.webhook import Verifier

_BODY_GRACE: Final = 5.0
"""Seconds after a stop for the bodies that are still being read. Well below the server's drain."""

_SERVER_DRAIN: Final = 10.0
"""Seconds after a stop for the requests in flight. With the delivery's own drain it stays within the 20 seconds that
supervisors usually grant."""

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
        self._delivery = Delivery(configuration, directory)
        self._resource = dict(resource or {})
        self._endpoints: dict[str, _Endpoint] = {}
        receivers = cast("Mapping[str, StatsigReceiverSettings]", configuration.receivers)
        problems = list(_disagreements(receivers))
        if problems:
            raise ConfigError(problems)
        intakes = {name: self._intake(name, settings) for name, settings in receivers.items()}
        for name, settings in receivers.items():
            endpoint = self._endpoints.setdefault(settings.endpoint, _Endpoint(settings))
            endpoint.receivers[name] = StatsigReceiver(
                intakes[name], self._delivery.consumer, patience=self._delivery.patience(name)
            )
            endpoint.paths[name] = settings.path
        self._servers = {address: _server(endpoint) for address, endpoint in self._endpoints.items()}
        self._control = self._delivery.control(intakes)
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

    def _intake(self, name: str, settings: StatsigReceiverSettings) -> Intake:
        secrets = [secret.reveal() for secret in settings.signing_secrets]
        limits = Limits(
            max_request_body_size=settings.max_request_body_size,
            max_in_flight_bytes=settings.max_in_flight_bytes,
            read_timeout=settings.read_timeout,
        )
        verifier = Verifier(secrets, tolerance=settings.timestamp_tolerance)
        return Intake(verifier=verifier, mapper=create_mapper(settings, self._resource), name=name, limits=limits)


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
