"""The durable path in somebody else's web application: a service without a server of its own."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import falcon
import falcon.asgi
import pytest
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from statsig_otel.config import ConfigError
from statsig_otel.exporters import DirectoryInUseError
from statsig_otel.plugin import DEFAULT_PATH, Service
from tests.plugin.adapters import serve_werkzeug, serve_wsgiref
from tests.plugin.http_client import Address, connect, exchange, read_response, serving
from tests.plugin.receiver.test_mounting import serve_uvicorn
from tests.plugin.services import Keeper, service, signed_request, webhook
from tests.waiting import wait_until


def assert_taken(address: Address, path: str) -> None:
    answers = [exchange(address, webhook("a", path)) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert [(answer.json["accepted"], answer.json["duplicates"]) for answer in answers] == [(1, 0), (0, 1)]


def test_below_a_starlette_application_with_the_service_s_lifespan(tmp_path: Path) -> None:
    keeper = Keeper()
    running = service(tmp_path, {"mine": keeper}, listen=False)
    app = Starlette(routes=[Mount("/statsig", app=running.asgi_app())], lifespan=running.lifespan)
    with serve_uvicorn(app) as address:
        assert_taken(address, "/statsig" + DEFAULT_PATH)
    assert keeper.names == ["a"]
    assert running.shutdown() is True
    with pytest.raises(RuntimeError, match="knows the URLs of its receivers only by its `url`"):
        _ = running.urls


def test_as_an_application_of_its_own_that_the_server_starts_and_ends(tmp_path: Path) -> None:
    keeper = Keeper()
    running = service(tmp_path, {"mine": keeper}, listen=False)
    with serve_uvicorn(running.asgi_app()) as address:
        assert_taken(address, DEFAULT_PATH)
    assert keeper.names == ["a"]
    with pytest.raises(RuntimeError, match="was shut down"):
        running.start()


def test_a_start_that_fails_is_told_to_the_server(tmp_path: Path) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    with service(tmp_path, {"mine": Keeper()}):
        second = service(tmp_path, {"mine": Keeper()}, listen=False)

        async def serve() -> None:
            await second.asgi_app()({"type": "lifespan"}, receive, send)

        with pytest.raises(DirectoryInUseError):
            asyncio.run(serve())
    (message,) = sent
    assert message["type"] == "lifespan.startup.failed"
    assert "is in use by another service" in message["message"]


def test_below_a_flask_application(tmp_path: Path) -> None:
    keeper = Keeper()
    with service(tmp_path, {"mine": keeper}, listen=False, receiver={"path": "/hook"}) as running:
        app = DispatcherMiddleware(Flask("host").wsgi_app, {"/statsig": running.wsgi_app()})
        with serve_werkzeug(app) as address:
            assert_taken(address, "/statsig/hook")
            assert running.shutdown() is True
            assert exchange(address, webhook("b", "/statsig/hook")).status == 503
    assert keeper.names == ["a"]


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_as_a_resource_of_a_falcon_application(tmp_path: Path, kind: str) -> None:
    keeper = Keeper()
    with service(tmp_path, {"mine": keeper}, listen=False) as running:
        with pytest.raises(ConfigError, match="receivers::statsig/eu: there is no such receiver"):
            running.receiver("statsig/eu")
        if kind == "asgi":
            app = falcon.asgi.App()
            app.add_route("/here", running.receiver())
            server = serving(app)
        else:
            wsgi = falcon.App()
            wsgi.add_route("/here", running.wsgi_receiver())
            server = serve_wsgiref(wsgi)
        with server as address:
            assert_taken(address, "/here")
    assert keeper.names == ["a"]


def test_before_its_start_a_mounted_service_refuses(tmp_path: Path) -> None:
    running = service(tmp_path, {"mine": Keeper()}, listen=False)
    with serving(running.asgi_app()) as address:
        answer = exchange(address, webhook("a"))
        assert (answer.status, answer.headers["retry-after"]) == (503, "10")
        with running:
            assert exchange(address, webhook("a")).status == 200


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_a_shutdown_in_another_thread_lets_a_request_finish(tmp_path: Path, kind: str) -> None:
    """As on the service's own servers: a 503 may be the loss of the change."""
    keeper = Keeper()
    running = service(tmp_path, {"mine": keeper}, listen=False)
    data, stopped = webhook("a"), []
    server = serving(running.asgi_app()) if kind == "asgi" else serve_werkzeug(running.wsgi_app())
    with server as address, running, connect(address) as connection:
        connection.sendall(data[:-5])
        assert exchange(address, webhook("b")).status == 200  # so the one before it is being read
        stopping = threading.Thread(target=lambda: stopped.append(running.shutdown()))
        stopping.start()
        # Nothing of these is stored where they still come before the shutdown.
        wait_until(lambda: exchange(address, signed_request(b'{"data": []}')).status == 503, "it has begun")
        connection.sendall(data[-5:])
        assert read_response(connection).status == 200
        stopping.join()
    assert stopped == [True]
    assert keeper.names == ["b", "a"]


def test_a_shutdown_in_another_thread_ends_the_wait_for_a_body(tmp_path: Path) -> None:
    """It is in the embedder's loop that the request is read."""
    running: Service = service(tmp_path, {"mine": Keeper()}, listen=False, receiver={"read_timeout": 25.0})
    data = webhook("a")
    with serving(running.asgi_app()) as address, running, connect(address) as connection:
        connection.sendall(data[:-5])
        assert exchange(address, webhook("b")).status == 200  # so the one before it is being read
        running.shutdown(0.4)
        assert read_response(connection).status == 503
