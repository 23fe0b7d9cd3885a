"""Runs a service's HTTP servers in a thread with its own event loop, apart from the embedder's loops."""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Final

import uvloop

from statsig_otel._futures import uncancellable
from statsig_otel._times import SERVER_CLOSING
from statsig_otel.plugin.server.server import HttpServer

_logger: Final = logging.getLogger(__name__)


class ServerThread:
    """Serves until the servers are stopped. The thread is a daemon: it does not keep the process alive.

    Args:
        servers: See below.
        name: The name of the thread.
        effect: What the failure of a server means, for the log.

    Attributes:
        ended: Done once all servers have ended. If one fails, or `fail` was called, all are stopped, and this contains
            the error.
        servers: The servers, which have to be bound before `start`. Until then others may take their place.
    """

    def __init__(
        self,
        servers: Sequence[HttpServer],
        *,
        name: str = "statsig-otel server",
        effect: str = "no more webhooks are accepted",
    ) -> None:
        self._name = name
        self._effect = effect
        self.ended: Future[None] = uncancellable()
        self.servers = servers
        self._thread: threading.Thread | None = None  # created in `start`: after a fork it would count as ended
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start to serve."""
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        thread.start()
        self._thread = thread  # only now that it runs, since `shutdown` joins it

    def stop_accepting(self, drain_timeout: float) -> None:
        """Accept no more connections, and wait until no more requests can come on those that were accepted.

        That takes at most a second. The requests in flight get `drain_timeout` seconds, from now on.
        """
        deadline = time.monotonic() + drain_timeout
        for server in self.servers:
            server.stop(drain_timeout)
        if self._thread is not None:
            for server in self.servers:
                server.wait_until_quiet(max(deadline - time.monotonic(), 0.0))

    def shutdown(self, drain_timeout: float) -> None:
        """Stop accepting, wait `drain_timeout` seconds for the requests in flight, and end. Works without `start`."""
        for server in self.servers:
            server.stop(drain_timeout)
        self.join(drain_timeout + SERVER_CLOSING)
        self.end_unstarted()

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the thread's end. Works without `start`."""
        if self._thread is not None:
            self._thread.join(timeout)

    def fail(self, error: Exception) -> None:
        """Stop the servers because of an error of what they serve. May be called from any thread."""
        self._end(error)
        for server in self.servers:
            server.stop()

    def end_unstarted(self) -> None:
        """Complete `ended` if `start` was never called and will not be. Safe to call twice."""
        if self._thread is None:
            self._end()

    def ping(self) -> Future[None]:
        """Done as soon as the thread's loop can do it: soon, unless it hangs. Never done while no loop runs."""
        pong: Future[None] = Future()

        def answer() -> None:
            if pong.set_running_or_notify_cancel():
                pong.set_result(None)

        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(answer)
        return pong

    def _run(self) -> None:
        try:
            uvloop.run(self._serve())
        except BaseException as error:
            _logger.exception("The server failed: %s", self._effect)
            # An exit that an application asks for is a failure too: whoever waits must not end as if all was well.
            is_error = isinstance(error, Exception)
            self._end(error if is_error else RuntimeError(f"the server's thread ended with {error!r}"))
        else:
            self._end()

    def _end(self, error: BaseException | None = None) -> None:
        with suppress(InvalidStateError):  # it has an error already
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        servers = [asyncio.create_task(server.serve()) for server in self.servers]
        try:
            await asyncio.gather(*servers)
        finally:
            # If one server fails, stop the others: half a service would look healthy.
            for server in self.servers:
                server.stop()
            await asyncio.gather(*servers, return_exceptions=True)
