"""Groups receivers by address, checks that those on one address agree, and makes what they share: server and memory."""

import logging
import resource
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from statsig_otel.config.errors import ConfigError, Problem
from statsig_otel.plugin.receiver.asgi import StatsigReceiver, create_app
from statsig_otel.plugin.receiver.bodies import Bodies
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.server.asgi_types import AsgiApp
from statsig_otel.plugin.server.listening import InheritedSocket
from statsig_otel.plugin.server.server import HttpServer, connections_within
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.watch.health import Health, with_health_path

_logger: Final = logging.getLogger(__name__)

SERVER_KEYS: Final = ("read_header_timeout", "max_connections", "tls", "health_path")
"""The settings of a server, which have to agree for all receivers on one endpoint."""

_MEMORY_KEY: Final = "max_in_flight_bytes"
"""Has to agree too, and also for the receivers of one application."""


def check_shared_endpoints(receivers: Mapping[str, StatsigReceiverSettings], *, listens: bool) -> None:
    """Check that receivers on one endpoint have the same settings of what they share, and different paths.

    Args:
        receivers: The receivers' settings.
        listens: Whether they have servers. If not, they are parts of one application, in which their paths differ.

    Raises:
        ConfigError: Receivers that share an endpoint don't agree.
    """
    problems: list[Problem] = []
    first: dict[str, str] = {}
    paths: dict[tuple[str, str], str] = {}
    for name, settings in receivers.items():
        endpoint = settings.endpoint if listens else ""
        other = first.setdefault(endpoint, name)
        for key in (*(SERVER_KEYS if listens else ()), _MEMORY_KEY):
            if getattr(settings, key) != getattr(receivers[other], key):
                where = "listens on the same endpoint" if listens else "is in the same application"
                message = f"differs from receivers::{other}::{key}, which {where}"
                hint = "let them agree, or give each its own endpoint" if listens else "let them agree"
                problems.append(Problem(("receivers", name, key), message, hint))
        other = paths.setdefault((endpoint, settings.path), name)
        if other != name:
            message = (
                f"is the path of receivers::{other} too{', which listens on the same endpoint' if listens else ''}"
            )
            problems.append(Problem(("receivers", name, "path"), message, "give each receiver its own path"))
    for name, settings in receivers.items():
        if settings.health_path is not None and (receiver := paths.get((settings.endpoint, settings.health_path))):
            message = f"is the path of receivers::{receiver}"
            problems.append(Problem(("receivers", name, "health_path"), message, "choose another, such as /healthz"))
    if problems:
        raise ConfigError(problems)


def share_memory(
    intakes: Mapping[str, Intake], receivers: Mapping[str, StatsigReceiverSettings], *, listens: bool
) -> None:
    """Let receivers on one endpoint share `max_in_flight_bytes`. Otherwise anybody could take it once for each of them.

    Args:
        intakes: What answers for each receiver. They have no requests yet.
        receivers: The receivers' settings, which agree.
        listens: Whether they have servers. If not, they are parts of one application.
    """
    groups: dict[str, list[Intake]] = {}
    for name, settings in receivers.items():
        groups.setdefault(settings.endpoint if listens else "", []).append(intakes[name])
    for group in groups.values():
        limits = [intake.limits for intake in group]
        bodies = Bodies(limits[0].max_in_flight_bytes, max(one.max_large_bytes for one in limits))
        for intake in group:
            intake.bodies = bodies


class Endpoint:
    """One address and its server, for the receivers with these settings. The constructor opens nothing."""

    def __init__(
        self,
        settings: Mapping[str, StatsigReceiverSettings],
        receivers: Mapping[str, StatsigReceiver],
        inherited: socket.socket | None,
        health: Health,
        max_connections: int,
    ) -> None:
        self._paths = {name: one.path for name, one in settings.items()}
        self.receivers: Final = tuple(settings)
        first = next(iter(settings.values()))
        self.address: Final = first.endpoint
        self._scheme = "https" if first.tls else "http"
        host, port = first.address
        app: AsgiApp = create_app({path: receivers[name] for name, path in self._paths.items()})
        self.server: Final = HttpServer(
            app if first.health_path is None else with_health_path(app, first.health_path, health),
            host=host,
            port=port,
            inherited=inherited,
            read_header_timeout=first.read_header_timeout,
            max_connections=max_connections,
            tls=first.tls,
        )

    @property
    def port(self) -> int:
        """The port on which the server listens; 0 before its `bind`."""
        try:
            return self.server.address[1]
        except RuntimeError:
            return 0

    @property
    def urls(self) -> dict[str, str]:
        """The URL of each receiver on this machine. Only after the server's `bind`."""
        host, port = self.server.address
        shown = f"[{host}]" if ":" in host else host
        return {name: f"{self._scheme}://{shown}:{port}{path}" for name, path in self._paths.items()}


def endpoints_of(
    settings: Mapping[str, StatsigReceiverSettings],
    receivers: Mapping[str, StatsigReceiver],
    inherited: Sequence[InheritedSocket] = (),
    *,
    health: Health,
) -> list[Endpoint]:
    """The endpoint of each address that receivers listen on.

    Args:
        settings: The receivers' settings, by id.
        receivers: The receivers, by id.
        inherited: Sockets that a supervisor listens on. The name of each is the id of a receiver. If there is one
            socket for one endpoint, its name does not matter. An endpoint without a socket listens by itself.
        health: What is answered at the `health_path` of receivers.

    Raises:
        ValueError: The sockets do not fit the endpoints.
    """
    shared: dict[str, dict[str, StatsigReceiverSettings]] = {}
    for name, one in settings.items():
        shared.setdefault(one.endpoint, {})[name] = one
    sockets = _by_endpoint(inherited, {name: one.endpoint for name, one in settings.items()})
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = within_open_files([next(iter(group.values())).max_connections for group in shared.values()], limit)
    return [
        Endpoint(group, receivers, sockets.get(address), health, connections)
        for (address, group), connections in zip(shared.items(), most, strict=True)
    ]


def within_open_files(connections: Sequence[int], limit: int) -> list[int]:
    """The most connections of several servers, which leave open files to each other and to the rest of the process.

    Otherwise clients of two servers could use up all files, and no server would accept a connection. A server that is
    alone sees to that by itself.

    Args:
        connections: The most connections of each server, as they are configured.
        limit: Of open files.
    """
    wanted, allowed = sum(connections), connections_within(limit)
    if len(connections) == 1 or limit == resource.RLIM_INFINITY or wanted <= allowed:
        return [*connections]
    message = (
        "%d connections of %d endpoints exceed the limit of %d open files, so only %d are served at a time; raise the "
        "limit (LimitNOFILE in systemd)"
    )
    _logger.warning(message, wanted, len(connections), limit, allowed)
    return [max(one * allowed // wanted, 1) for one in connections]


def expired_certificates(endpoints: Iterable[Endpoint]) -> dict[str, str]:
    """The sentence of the reason `certificate_expired`, if one of the servers has such a certificate."""
    now = time.time()
    for endpoint in endpoints:
        for address, end in endpoint.server.expiries().items():
            if end < now:
                return {"certificate_expired": f"the certificate of {address} has expired"}
    return {}


def _by_endpoint(inherited: Sequence[InheritedSocket], endpoints: Mapping[str, str]) -> dict[str, socket.socket]:
    """The socket of each endpoint that has one. `endpoints` has the endpoint of each receiver."""
    if len(inherited) == 1 and len(set(endpoints.values())) == 1:
        return dict.fromkeys(endpoints.values(), inherited[0].socket)
    sockets: dict[str, socket.socket] = {}
    for one in inherited:
        endpoint = endpoints.get(one.name)
        if endpoint is None:
            raise ValueError(
                f"LISTEN_FDNAMES: {one.name} is not the id of a receiver; name each socket after a receiver at its "
                f"endpoint ({', '.join(endpoints)}); in a systemd socket unit this is FileDescriptorName"
            )
        if endpoint in sockets:
            raise ValueError(
                f"LISTEN_FDNAMES: {one.name} is the name of two sockets for one endpoint, {endpoint}; pass one"
            )
        sockets[endpoint] = one.socket
    return sockets
