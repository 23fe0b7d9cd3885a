"""Starts something once and stops it once, however often and from whichever threads that is asked for.

Start and stop run in threads of their own, one after the other. No caller waits with a lock held, so a signal handler
that interrupts one caller can ask as well. A forked child can neither start nor stop what its parent started.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from statsig_otel._process import OwnerProcess

_logger: Final = logging.getLogger(__name__)


class Lifecycle:
    """Starts, stops, and doesn't start again.

    If `open_` raises, it has closed everything again. `close` is called after a successful start, and returns whether
    everything was closed.
    """

    def __init__(self, open_: Callable[[], None], close: Callable[[], bool]) -> None:
        self._open = open_
        self._close = close
        self._lock = threading.RLock()  # re-entrant, for a handler that interrupts its holder
        self._owner = OwnerProcess()
        self._started: Future[None] | None = None
        self._stopped: Future[bool] | None = None

    def start(self) -> "Future[None]":
        """Begin the start, or join one that has begun. All callers get the same future.

        Raises:
            RuntimeError: It was stopped already, or this process is a fork of the one that started it.
        """
        if self._owner.is_forked:
            raise RuntimeError(
                f"this service was started by the process {self._owner.pid}: make it, or start it, after the fork"
            )
        with self._lock:
            if self._stopped is not None:
                raise RuntimeError("this service was shut down, and a service starts once: make another one")
            if self._started is not None:
                return self._started
            started = self._started = _future()
            self._owner.enter()
        in_thread(lambda: self._run_start(started), "statsig-otel start")
        return started

    def stop(self) -> "Future[bool]":
        """Begin the stop, or join one that has begun. All callers get the same future, and it never fails.

        The stop waits for a start that is under way. Without a start, and in a forked child, the result is True.
        """
        if self._owner.is_forked:
            return _true()
        with self._lock:
            if self._stopped is not None:
                return self._stopped
            started = self._started
            stopped = self._stopped = _true() if started is None else _future()
        if started is not None:
            in_thread(lambda: self._run_stop(started, stopped), "statsig-otel stop")
        return stopped

    def _run_start(self, started: "Future[None]") -> None:
        if self._stopped is not None:
            started.set_exception(RuntimeError("this service was shut down before it had started"))
            return
        try:
            self._open()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            started.set_exception(error)
        else:
            started.set_result(None)

    def _run_stop(self, started: "Future[None]", stopped: "Future[bool]") -> None:
        complete = False
        try:
            complete = started.exception() is not None or self._close()
        except Exception:
            _logger.exception("The service could not be closed in order")
        finally:
            stopped.set_result(complete)


def in_thread(work: Callable[[], None], name: str) -> threading.Thread | None:
    """Run a function in a daemon thread. At the interpreter's end, when no thread starts any more, run it here."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        work()
        return None
    return thread


def _future() -> "Future[Any]":
    """A future that its waiters can't cancel."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _true() -> "Future[bool]":
    future: Future[bool] = Future()
    future.set_result(True)
    return future
