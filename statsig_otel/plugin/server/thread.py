"""The servers of a service, in a thread with an event loop of its own: no loop of the embedder's is touched."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Final

from statsig_otel.plugin.server.server import HttpServer

_logger: Final = logging.getLogger(__name__)

_CLOSING: Final = 3.0
"""Seconds above the drain for the connections to be closed."""


class ServerThread:
    """Serves until the servers are stopped; the thread keeps no process alive.

    Args:
        servers: The servers, bound before `start`.

    Attributes:
        ended: Done once no server answers any more; with the error where one failed, which takes the others along.
    """

    def __init__(self, servers: Sequence[HttpServer]) -> None:
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()
        self._servers = servers
        self._thread: threading.Thread | None = None  # one that is made before a fork counts as ended after it

    def start(self) -> None:
        """Begin to serve."""
        thread = threading.Thread(target=self._run, name="statsig-otel server", daemon=True)
        thread.start()
        self._thread = thread  # not before it runs: `shutdown` waits for its end

    def shutdown(self, drain_timeout: float) -> None:
        """Take no more requests, give those in flight so many seconds, and end. Also without a `start`."""
        for server in self._servers:
            server.stop(drain_timeout)
        if self._thread is not None:
            self._thread.join(drain_timeout + _CLOSING)
        self.end_unstarted()

    def end_unstarted(self) -> None:
        """Say that all has ended where no server was started, and none will be. Safe to call twice."""
        if self._thread is None:
            with suppress(InvalidStateError):
                self.ended.set_result(None)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            _logger.exception("The server has failed: no webhook is taken any more")
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    async def _serve(self) -> None:
        servers = [asyncio.create_task(server.serve()) for server in self._servers]
        try:
            await asyncio.gather(*servers)
        finally:
            # One server that fails takes the others along: half a service would look healthy.
            for server in self._servers:
                server.stop()
            await asyncio.gather(*servers, return_exceptions=True)
