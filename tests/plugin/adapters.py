"""The receivers under each way to serve them, over real sockets, and the webhooks that are sent to them."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import WSGIApplication

import falcon
import falcon.asgi
import pytest
import werkzeug.serving
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Mount
from waitress.server import create_server  # type: ignore[import-untyped] # the package has no py.typed
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from statsig_otel.exporters.consumer import Batch, Consumer, Receipt
from statsig_otel.plugin.receiver.asgi import StatsigReceiver, create_app
from statsig_otel.plugin.receiver.bodies import Limits
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.receiver.wsgi import StatsigWsgiReceiver, create_wsgi_app
from statsig_otel.plugin.webhook.signature import Verifier, sign
from tests.peers.http_server import in_thread
from tests.plugin.http_client import Address, Response, ServerThread, exchange, request

SECRET = "webhook-0123456789abcdef"
CHANGE: dict[str, object] = {
    "eventName": "statsig::config_change",
    "timestamp": 1739400185198,
    "metadata": {"type": "Gate", "name": "layout_v2", "action": "updated"},
}
EXPOSURE: dict[str, object] = {"eventName": "statsig::gate_exposure", "timestamp": "1655231253265"}
VERIFICATION = b'{"data": {"event": "url_verification", "verification_code": "abc123"}}'


class Sink:
    """A consumer that keeps what it gets, and answers as told."""

    def __init__(self, answer: Callable[[Batch], Receipt] | None = None) -> None:
        self.batches: list[Batch] = []
        self._answer = answer or (lambda batch: Receipt(accepted=len(batch.changes)))

    def consume(self, batch: Batch) -> Future[Receipt]:
        self.batches.append(batch)
        future: Future[Receipt] = Future()

        def work() -> None:
            try:
                future.set_result(self._answer(batch))
            except Exception as error:  # noqa: BLE001 - handed on through the future
                future.set_exception(error)

        threading.Thread(target=work).start()
        return future


def body_of(*items: object) -> bytes:
    return json.dumps({"data": items}).encode()


def signed(body: bytes, *, secret: str = SECRET, at_ms: int | None = None) -> dict[str, str]:
    return sign(body, secret=secret, timestamp_ms=time.time_ns() // 1_000_000 if at_ms is None else at_ms)


def post(address: Address, body: bytes, headers: dict[str, str] | None = None) -> Response:
    return exchange(address, request(body, headers=signed(body) if headers is None else headers))


def assert_refused(response: Response, status: int, case: object = None) -> None:
    """A refusal is JSON with a title and a description, and nothing else. What fails names the case."""
    assert response.status == status, case
    assert response.headers["content-type"].startswith("application/json"), case
    assert set(response.json) == {"title", "description"}, case
    assert str(status) in str(response.json["title"]), case


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a receiver is made of."""

    intake: Intake
    consumer: Consumer
    patience: float | None = None
    clock: Callable[[], int] = time.time_ns


Serving = AbstractContextManager[Address]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One way to serve a receiver at `/hook`.

    Attributes:
        name: For the test's id.
        serve: Serves.
        early: Whether the receiver is asked before the body is there.
        chunked: Whether chunked bodies reach it.
        whole: Whether all answers are the package's: in a host's application the host answers wrong paths, unheard-of
            methods and faults.
        drains: Whether a client that is still sending gets the answer.
        tells: Whether the application learns the path as it was sent: the standard library drops slashes at its start.
    """

    name: str
    serve: Callable[[Setting], Serving]
    early: bool = True
    chunked: bool = True
    whole: bool = True
    drains: bool = True
    tells: bool = True

    def receiving(
        self,
        sink: Consumer | None = None,
        *,
        secrets: tuple[str, ...] = (SECRET,),
        limits: Limits | None = None,
        intake: Intake | None = None,
        patience: float | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> Serving:
        intake = intake or Intake(verifier=Verifier(secrets), limits=limits)
        return self.serve(Setting(intake=intake, consumer=sink or Sink(), patience=patience, clock=clock))


def _asgi_receiver(setting: Setting) -> StatsigReceiver:
    return StatsigReceiver(setting.intake, setting.consumer, patience=setting.patience, clock=setting.clock)


def _wsgi_receiver(setting: Setting) -> StatsigWsgiReceiver:
    return StatsigWsgiReceiver(setting.intake, setting.consumer, patience=setting.patience, clock=setting.clock)


@contextmanager
def _serve_asgi(receiver: StatsigReceiver, app: Any) -> Iterator[Address]:
    thread = ServerThread(app)
    address = thread.start()
    try:
        yield address
    finally:
        thread.loop.call_soon_threadsafe(receiver.close)
        thread.stop()


def _asgi(setting: Setting) -> Serving:
    receiver = _asgi_receiver(setting)
    return _serve_asgi(receiver, create_app({"/hook": receiver}))


def _falcon_asgi(setting: Setting) -> Serving:
    receiver, app = _asgi_receiver(setting), falcon.asgi.App()
    app.add_route("/hook", receiver)
    return _serve_asgi(receiver, app)


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's signature
        """Say nothing."""


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no news."""


def _starlette(setting: Setting) -> Serving:
    receiver = _asgi_receiver(setting)
    return _serve_asgi(receiver, Starlette(routes=[Mount("/", app=create_app({"/hook": receiver}))]))


@contextmanager
def serve_wsgiref(app: WSGIApplication, timeout: float | None = None) -> Iterator[Address]:
    """The standard library's server with threads: chunked bodies are not decoded.

    Args:
        app: The application.
        timeout: Seconds of silence after which a read ends with TimeoutError.
    """
    handler = type("Handler", (_QuietHandler,), {"timeout": timeout})
    server = _ThreadingServer(("127.0.0.1", 0), handler)
    server.set_app(app)
    with in_thread(server) as address:
        yield address


@contextmanager
def serve_werkzeug(app: WSGIApplication, timeout: float | None = None) -> Iterator[Address]:
    """Flask's development server: it decodes chunked bodies as they come, and marks their end."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    base = werkzeug.serving.WSGIRequestHandler
    handler = type("Handler", (base,), {"timeout": timeout, "log": lambda *_: None})
    with in_thread(
        werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True, request_handler=handler)
    ) as address:
        yield address


@contextmanager
def serve_waitress(app: WSGIApplication) -> Iterator[Address]:
    """Waitress: it has the whole body before it asks the application."""
    sockets: dict[int, Any] = {}
    server = create_server(app, map=sockets, host="127.0.0.1", port=0, threads=4)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield "127.0.0.1", int(server.effective_port)
    finally:
        left: list[Any] = []

        def end() -> None:
            """End the loop, which runs while it has sockets. The trigger is one: this thread may be writing to it."""
            left.extend(sockets.values())
            sockets.clear()

        server.trigger.pull_trigger(end)
        thread.join()
        for one in left:
            with contextlib.suppress(OSError):
                one.close()
        server.task_dispatcher.shutdown()


def _wsgiref(setting: Setting) -> Serving:
    app = create_wsgi_app({"/hook": _wsgi_receiver(setting)})
    return serve_wsgiref(app, setting.intake.limits.read_timeout)


def _werkzeug(setting: Setting) -> Serving:
    app = create_wsgi_app({"/hook": _wsgi_receiver(setting)})
    return serve_werkzeug(app, setting.intake.limits.read_timeout)


def _waitress(setting: Setting) -> Serving:
    return serve_waitress(create_wsgi_app({"/hook": _wsgi_receiver(setting)}))


def _falcon_wsgi(setting: Setting) -> Serving:
    app = falcon.App()
    app.add_route("/hook", _wsgi_receiver(setting))
    return serve_wsgiref(app, setting.intake.limits.read_timeout)


def _flask(setting: Setting) -> Serving:
    app = create_wsgi_app({"/": _wsgi_receiver(setting)})
    mounted = DispatcherMiddleware(Flask("host").wsgi_app, {"/hook": app})
    return serve_werkzeug(mounted, setting.intake.limits.read_timeout)


ADAPTERS: Final = (
    Adapter(name="asgi", serve=_asgi),
    Adapter(name="falcon.asgi", serve=_falcon_asgi, early=False, whole=False),
    Adapter(name="wsgiref", serve=_wsgiref, chunked=False, drains=False, tells=False),
    Adapter(name="werkzeug", serve=_werkzeug, tells=False),
    Adapter(name="waitress", serve=_waitress, early=False),
    Adapter(name="falcon", serve=_falcon_wsgi, chunked=False, drains=False, whole=False),
    Adapter(name="starlette", serve=_starlette),
    Adapter(name="flask", serve=_flask, whole=False),
)


def adapters(condition: Callable[[Adapter], bool]) -> pytest.MarkDecorator:
    """Run a test with those adapters only."""
    chosen = [pytest.param(adapter, id=adapter.name) for adapter in ADAPTERS if condition(adapter)]
    return pytest.mark.parametrize("adapter", chosen, indirect=True)


def chunks(*sizes: int, condition: Callable[[Adapter], bool] = lambda _: True) -> pytest.MarkDecorator:
    """Run a test with bodies in chunks of each size, 0 for a Content-Length, where chunked bodies are decoded."""
    chosen = [
        pytest.param(adapter, size, id=f"{adapter.name}-{size}")
        for adapter in ADAPTERS
        for size in sizes
        if condition(adapter) and (adapter.chunked or not size)
    ]
    return pytest.mark.parametrize(("adapter", "chunk"), chosen, indirect=["adapter"])
