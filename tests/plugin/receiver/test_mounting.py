"""Receivers below a prefix of somebody else's application, and beside its own routes, under real servers."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import uvicorn
from flask import Flask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from statsig_otel.plugin.receiver.asgi import MountableApp, StatsigReceiver, create_app
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.receiver.wsgi import StatsigWsgiReceiver, create_wsgi_app
from statsig_otel.plugin.server.asgi_types import Receive, Scope, Send
from statsig_otel.plugin.webhook.signature import Verifier
from tests.plugin.adapters import CHANGE, SECRET, Sink, assert_refused, body_of, serve_werkzeug, serve_wsgiref, signed
from tests.plugin.http_client import Address, exchange, request, serving

BODY = body_of(CHANGE)


@contextmanager
def serve_uvicorn(app: Any, **settings: Any) -> Iterator[Address]:
    """uvicorn as an embedder runs it, with its lifespan on."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="on", log_config=None, workers=1, **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def asgi_app(sink: Sink, path: str = "/hook") -> MountableApp:
    return create_app({path: StatsigReceiver(Intake(verifier=Verifier([SECRET])), sink)})


def wsgi_receiver(sink: Sink) -> StatsigWsgiReceiver:
    return StatsigWsgiReceiver(Intake(verifier=Verifier([SECRET])), sink)


def status_at(address: Address, path: str) -> int:
    return exchange(address, request(BODY, path=path, headers=signed(BODY))).status


async def healthy(_: Request) -> PlainTextResponse:
    return PlainTextResponse("healthy")


@pytest.mark.parametrize("root_path", ["", "/api"])
def test_below_a_prefix_of_a_starlette_application(root_path: str, caplog: pytest.LogCaptureFixture) -> None:
    """With its own routes and its own lifespan, and with a proxy's prefix in front of all."""
    said: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        said.append("up")
        yield
        said.append("down")

    sink = Sink()
    inner = Starlette(routes=[Mount("/inner", app=asgi_app(sink))])
    routes = [Route("/health", healthy), Mount("/statsig", app=asgi_app(sink)), Mount("/outer", app=inner)]
    app = Starlette(routes=routes, lifespan=lifespan)
    with serve_uvicorn(app, root_path=root_path) as address:
        assert exchange(address, request(method="GET", path="/health")).body == b"healthy"
        assert [status_at(address, path) for path in ("/statsig/hook", "/outer/inner/hook")] == [200, 200]
        assert_refused(exchange(address, request(path="/statsig/other")), 404)
        there = f"{root_path}/statsig"
        assert f"a request for {there}/other is answered with 404: the receiver's path is {there}/hook" in caplog.text
        assert_refused(exchange(address, request(path="/statsig/hook", method="GET")), 405)
        unsent = {"Content-Length": "100000"}
        assert_refused(exchange(address, request(path="/statsig/hook", headers=unsent)), 401)
        assert status_at(address, "/hook") == 404
    assert len(sink.batches) == 2
    assert said == ["up", "down"]


@pytest.mark.parametrize("root_path", ["", "/api"])
def test_by_itself_under_uvicorn_with_its_lifespan(root_path: str) -> None:
    sink = Sink()
    with serve_uvicorn(asgi_app(sink), root_path=root_path) as address:
        assert status_at(address, "/hook") == 200
        assert status_at(address, f"{root_path}/other") == 404
    assert len(sink.batches) == 1


@pytest.mark.parametrize(
    ("root_path", "path", "status"),
    [
        ("/api", "/api/hook", 200),
        ("/api/", "/api/hook", 200),
        ("/api", "/hook", 200),  # a server that has cut it off
        ("/ho", "/hook", 200),  # no prefix, only its first letters
        ("/", "/hook", 200),
        ("/api", "/api/api/hook", 404),
        ("/hook", "/hook", 404),
    ],
)
def test_the_path_is_what_follows_root_path(root_path: str, path: str, status: int) -> None:
    app = asgi_app(Sink())

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": root_path}, receive, send)

    with serving(mounted) as address:
        assert status_at(address, path) == status


def test_at_the_very_path_of_a_mount() -> None:
    app = asgi_app(Sink(), "/")

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": "/hook"}, receive, send)

    with serving(mounted) as address:
        assert status_at(address, "/hook") == 200


@pytest.mark.parametrize("serve", [serve_werkzeug, serve_wsgiref])
def test_below_a_prefix_of_a_flask_application(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink()
    host = Flask("host")
    host.add_url_rule("/health", view_func=lambda: "healthy")
    app = create_wsgi_app({"/hook": wsgi_receiver(sink)})
    mounted = DispatcherMiddleware(host.wsgi_app, {"/statsig": app, "/deep/er": app})
    with serve(mounted) as address:
        assert exchange(address, request(method="GET", path="/health")).body == b"healthy"
        assert [status_at(address, path) for path in ("/statsig/hook", "/deep/er/hook")] == [200, 200]
        assert_refused(exchange(address, request(path="/statsig/other")), 404)
        assert "a request for /statsig/other is answered with 404: the receiver's path is /statsig/hook" in caplog.text
        assert_refused(exchange(address, request(path="/statsig/hook", method="GET")), 405)
        assert status_at(address, "/hook") == 404
    assert len(sink.batches) == 2
