"""Runs a start and a stop once each, even if several threads ask for them.

Start and stop run in threads of their own, one after the other. No caller waits with a lock held, so a signal handler
that interrupts one caller can ask as well. A forked child can neither start nor stop what its parent started.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from statsig_otel._futures import answered, uncancellable
from statsig_otel._process import OwnerProcess

_logger: Final = logging.getLogger(__name__)


class Lifecycle:
    """Starts, stops, and doesn't start again. A start that failed may be tried again.

    If `open_` raises, it has closed everything again. It may call its argument before it returns: then those who wait
    for the start go on, and it fails without them. `close` is called after a successful start, and returns whether
    everything was closed.
    """

    def __init__(self, open_: Callable[[Callable[[], None]], None], close: Callable[[], bool]) -> None:
        self._open = open_
        self._close = close
        self._lock = threading.RLock()  # re-entrant, for a handler that interrupts its holder
        self._owner = OwnerProcess()
        self._start: _Start | None = None  # the one that is under way or has succeeded
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
            if self._start is not None:
                return self._start.answer
            start = self._start = _Start(uncancellable(), uncancellable())
            self._owner.enter()
        in_thread(lambda: self._run_start(start), "statsig-otel start")
        return start.answer

    def stop(self) -> "Future[bool]":
        """Begin the stop, or join one that has begun. All callers get the same future, and it never fails.

        The stop waits for a start that is under way. Without a start, and in a forked child, the result is True.
        """
        if self._owner.is_forked:
            return answered(True)
        with self._lock:
            if self._stopped is not None:
                return self._stopped
            start = self._start
            stopped = self._stopped = answered(True) if start is None else uncancellable()
        if start is not None:
            in_thread(lambda: self._run_stop(start, stopped), "statsig-otel stop")
        return stopped

    def _run_start(self, start: "_Start") -> None:
        try:
            if self._stopped is not None:
                raise RuntimeError("this service was shut down before it had started")  # noqa: TRY301 - as `_open` does
            self._open(start.succeed)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            with self._lock:
                self._start = None
                self._owner.leave()
            start.fail(error, is_wanted=self._stopped is None)
        else:
            start.succeed()
            start.is_open.set_result(True)

    def _run_stop(self, start: "_Start", stopped: "Future[bool]") -> None:
        complete = False
        try:
            complete = not start.is_open.result() or self._close()
        except Exception:
            _logger.exception("The service could not be closed in order")
        finally:
            stopped.set_result(complete)


@dataclass(frozen=True, slots=True)
class _Start:
    """One attempt to start: what its callers wait for, and whether there is something to close."""

    answer: "Future[None]"
    is_open: "Future[bool]"

    def succeed(self) -> None:
        if not self.answer.done():
            self.answer.set_result(None)

    def fail(self, error: BaseException, *, is_wanted: bool) -> None:
        """Report an outcome to all who wait for it. If nobody does any more, log it, unless a stop has caused it."""
        if not self.answer.done():
            self.answer.set_exception(error)
        elif is_wanted:
            _logger.error("The service could not be started: %s", error, exc_info=error)
        self.is_open.set_result(False)


def in_thread(work: Callable[[], None], name: str) -> threading.Thread | None:
    """Run a function in a daemon thread. At the interpreter's end, when no thread starts any more, run it here."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        work()
        return None
    return thread
