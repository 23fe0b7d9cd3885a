"""Answers health checks: the Collector's, /livez and /readyz on a port of their own, and one on the webhooks' port.

Ready is a service that takes webhooks. A backend that is away does not change that, since the queue is for it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, Protocol

import falcon.asgi
import msgspec

from statsig_otel.config.units import format_duration
from statsig_otel.exporters.delivery.facts import ExporterFacts
from statsig_otel.plugin.server.asgi_types import AsgiApp, Receive, Scope, Send
from statsig_otel.plugin.server.exchange import without_body
from statsig_otel.plugin.server.listening import host_port
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.server.thread import ServerThread
from statsig_otel.plugin.settings.health_check import HealthCheckSettings, ResponseBodySettings
from statsig_otel.plugin.watch.recent import Recent

_logger: Final = logging.getLogger(__name__)

LIVE: Final = "/livez"
READY: Final = "/readyz"

_PATIENCE: Final = 5.0
"""Seconds within which the threads that take webhooks have to show that they live."""

_MOST_CONNECTIONS: Final = 32
_NEVER: Final = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Condition:
    """The condition of a service.

    Attributes:
        reasons: Why it does not take webhooks: a sentence for each reason; empty if it takes them.
        exporters: The state of each exporter.
    """

    reasons: Mapping[str, str]
    exporters: Sequence[ExporterFacts] = ()


class Watched(Protocol):
    """A service, as its health checks see it. They ask in a thread of their own."""

    @property
    def is_open(self) -> bool:
        """Whether it has started, and does not stop yet."""

    def condition(self) -> Condition:
        """Its condition now."""

    def ping(self) -> "Future[None] | None":
        """Done soon if the thread that takes webhooks lives; None if there is none."""


class Health:
    """Asks a service for its condition, at most twice a second."""

    def __init__(self, watched: Watched, clock: Callable[[], float] = time.monotonic) -> None:
        self.watched: Final = watched
        self._condition = Recent(watched.condition, clock)

    def condition(self) -> Condition:
        """The condition of the service now, or a moment ago."""
        return self._condition.get()


class HealthServer:
    """The server of a `health_check` extension. The constructor opens nothing."""

    def __init__(self, settings: HealthCheckSettings, health: Health) -> None:
        host, port = settings.address
        app = _create_app(settings, health)
        self._server = HttpServer(app, host=host, port=port, max_connections=_MOST_CONNECTIONS, takes_webhooks=False)
        self._thread: ServerThread | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens. Known after `start`."""
        return self._server.address

    def start(self) -> None:
        """Listen and answer.

        Raises:
            ListenError: The address can't be listened on.
        """
        self._server.bind()
        self._thread = ServerThread([self._server], name="statsig-otel health", effect="no health check is answered")
        self._thread.start()
        _logger.info("Health checks: http://%s%s and %s", host_port(*self.address), READY, LIVE)

    def stop(self) -> None:
        """Accept no more connections, and close those that there are. Returns at once."""
        self._server.stop(0.0)

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the end after `stop`. Works without `start`, and twice."""
        if self._thread is not None:
            self._thread.join(timeout)


def with_health_path(app: AsgiApp, path: str, health: Health) -> AsgiApp:
    """An application that answers GET and HEAD of a path by whether the service takes webhooks, and no more."""

    def answer(_: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        is_ready = not health.condition().reasons
        _fill(resp, {"status": "ready" if is_ready else "not ready"}, is_good=is_ready)

    inner = falcon.asgi.App()
    inner.add_route(path, _Resource(answer))
    bodiless = without_body(inner)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        is_asked = scope["path"] == path and scope["method"] in ("GET", "HEAD")
        await (bodiless if is_asked else app)(scope, receive, send)

    return serve


def _create_app(settings: HealthCheckSettings, health: Health) -> AsgiApp:
    began, began_monotonic = time.time(), time.monotonic()

    def collector(_: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        is_up = health.watched.is_open
        if settings.response_body is not None:
            _fill_text(resp, settings.response_body, is_good=is_up)
            return
        since = datetime.fromtimestamp(began, UTC).isoformat().replace("+00:00", "Z") if is_up else _NEVER
        status = "Server available" if is_up else "Server not available"
        uptime = format_duration(round(time.monotonic() - began_monotonic, 3)) if is_up else ""
        _fill(resp, {"status": status, "upSince": since, "uptime": uptime}, is_good=is_up)

    def ready(_: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        condition = health.condition()
        status = "not ready" if condition.reasons else "ready"
        exporters = {one.name: _exporter(one) for one in condition.exporters}
        body = {"status": status, "reasons": condition.reasons, "exporters": exporters}
        _fill(resp, body, is_good=not condition.reasons)

    app = falcon.asgi.App()
    app.add_route(settings.path, _Resource(collector))
    app.add_route(READY, _Resource(ready))
    app.add_route(LIVE, _Liveness(health))
    app.set_error_serializer(_serialize_error)
    return without_body(app)


def _exporter(one: ExporterFacts) -> dict[str, str | int]:
    return {"state": one.state, **({} if one.waiting is None else {"waiting": one.waiting})}


class _Resource:
    """Answers GET and HEAD with a function."""

    def __init__(self, answer: Callable[[falcon.asgi.Request, falcon.asgi.Response], None]) -> None:
        self._answer = answer

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        self._answer(req, resp)

    on_head = on_get


class _Liveness:
    """Whether a restart would help: the thread that takes webhooks does not answer any more."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def on_get(self, _: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        pong = self._health.watched.ping()
        hangs = False
        if pong is not None:
            done, _pending = await asyncio.wait({asyncio.wrap_future(pong)}, timeout=_PATIENCE)
            hangs = not done
        reasons = {"hangs": f"the thread that takes webhooks has not answered for {_PATIENCE:g} s"} if hangs else {}
        _fill(resp, {"status": "hangs" if hangs else "alive", "reasons": reasons}, is_good=not hangs)

    on_head = on_get


def _fill(resp: falcon.asgi.Response, body: Mapping[str, Any], *, is_good: bool) -> None:
    resp.status = HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE
    resp.set_header("Cache-Control", "no-store")
    resp.data = msgspec.json.encode(body)


def _fill_text(resp: falcon.asgi.Response, body: ResponseBodySettings, *, is_good: bool) -> None:
    _fill(resp, {}, is_good=is_good)
    resp.content_type = falcon.MEDIA_TEXT
    resp.data = (body.healthy if is_good else body.unhealthy).encode()


def _serialize_error(_: falcon.asgi.Request, resp: falcon.asgi.Response, error: falcon.HTTPError) -> None:
    hint = f"see {READY} and {LIVE}" if error.status_code == HTTPStatus.NOT_FOUND else error.status
    resp.data = msgspec.json.encode({"status": "unknown", "reasons": {"request": hint}})
