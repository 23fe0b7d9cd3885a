"""Something that starts once and stops once, whoever asks for it, from whichever thread, and as often as they like.

The work is done in threads of its own, one after the other, and nobody waits for it with a lock held: so a signal's
handler that interrupts a caller can ask, too. A forked child has nothing to start or to stop of what its parent began.
"""

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

_logger: Final = logging.getLogger(__name__)


class Lifecycle:
    """One life: it starts, it stops, and doesn't start again.

    Args:
        open_: Does the start. Where it raises, it has closed all again.
        close: Does the stop of what has started; says whether it was done to the end.
    """

    def __init__(self, open_: Callable[[], None], close: Callable[[], bool]) -> None:
        self._open = open_
        self._close = close
        self._lock = threading.RLock()  # re-entrant, for a handler that interrupts its holder
        self._pid = 0
        self._started: Future[None] | None = None
        self._stopped: Future[bool] | None = None

    def start(self) -> "Future[None]":
        """Start, or take part in the start that somebody else began; the same future for all.

        Raises:
            RuntimeError: It was stopped already; or another process has started it, of which this is a fork.
        """
        if self._is_forked():
            raise RuntimeError(
                f"this service was started by the process {self._pid}: make it, or start it, after the fork"
            )
        with self._lock:
            if self._stopped is not None:
                raise RuntimeError("this service was shut down, and a service starts once: make another one")
            started, is_first = self._started, self._started is None
            if started is None:
                started = self._started = _future()
                self._pid = os.getpid()
        if is_first:
            in_thread(lambda: self._run_start(started), "statsig-otel start")
        return started

    def stop(self) -> "Future[bool]":
        """Stop, or take part in the stop that somebody else began; the same future for all. It never fails.

        A start that is under way is waited for. True at once where there was none, and in a forked child.
        """
        if self._is_forked():
            return _true()
        with self._lock:
            stopped, is_first, started = self._stopped, self._stopped is None, self._started
            if stopped is None:
                stopped = self._stopped = _true() if started is None else _future()
        if is_first and started is not None:
            in_thread(lambda: self._run_stop(started, stopped), "statsig-otel stop")
        return stopped

    def _is_forked(self) -> bool:
        return self._pid not in (0, os.getpid())

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


def in_thread(work: Callable[[], None], name: str) -> None:
    """Do something in a thread that keeps no process alive; at the interpreter's end, where none starts, do it here."""
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError:
        work()


def _future() -> "Future[Any]":
    """A future that nobody who waits for it can cancel."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _true() -> "Future[bool]":
    future: Future[bool] = Future()
    future.set_result(True)
    return future
