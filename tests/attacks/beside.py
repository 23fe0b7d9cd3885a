"""The steps of attacks on what answers beside the receivers: health checks, and the metrics for Prometheus."""

from __future__ import annotations

import contextlib
import socket

from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.settings.health_check import HealthCheckSettings
from statsig_otel.plugin.watch.health import READY, Condition, Health, HealthServer, with_health_path
from statsig_otel.plugin.watch.prometheus import Scrapes, create_app
from tests.attacks.attack import PATIENCE, Serve, awaited
from tests.plugin.server.echo import EchoApp, serving


class _Watched:
    """A service that takes webhooks."""

    is_open = True

    def condition(self) -> Condition:
        return Condition({})

    def ping(self) -> None:
        return None


def bodies_for_others(serve: Serve) -> None:
    """To what answers on the same address, or beside it."""
    health = Health(_Watched())
    own = HealthServer(HealthCheckSettings(endpoint="127.0.0.1:0"), health)
    own.start()
    try:
        with contextlib.ExitStack() as stack:
            addresses = {READY: own.address}
            for path, app in {
                "/health": with_health_path(EchoApp(), "/health", health),
                "/metrics": create_app("/metrics", Scrapes(InMemoryMetricReader())),
            }.items():
                server = HttpServer(app, host="127.0.0.1", port=0, drain_timeout=0.1)
                addresses[path] = stack.enter_context(serving(server)).server.address
            for path, address in addresses.items():
                with socket.create_connection(address, timeout=PATIENCE) as connection:
                    connection.sendall(b"GET %s HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n" % path.encode())
                    assert awaited(connection).status == 200
    finally:
        own.stop()
        own.join(PATIENCE)
