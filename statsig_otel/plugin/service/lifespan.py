"""Starts and ends a service by the lifespan events of an ASGI server."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from statsig_otel.plugin.receiver.asgi import MountableApp
from statsig_otel.plugin.server.asgi_types import Receive, Send


def with_lifespan(
    app: MountableApp, start: Callable[[], Awaitable[None]], shutdown: Callable[[], Awaitable[object]]
) -> MountableApp:
    """The application, which also answers lifespan events (the ASGI specification's "Lifespan Protocol").

    Args:
        app: The application for requests.
        start: Runs before the server takes requests. If it raises, the server ends.
        shutdown: Runs once the server takes no more requests.
    """

    async def serve(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        await receive()
        try:
            await start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await shutdown()
        await send({"type": "lifespan.shutdown.complete"})

    return serve
