"""Makes futures for threads: ones that can't be cancelled, have their answer, follow another, or run a function."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

_T = TypeVar("_T")


def uncancellable() -> Future[Any]:
    """A future that its waiters can't cancel."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def answered(result: _T) -> Future[_T]:
    """A future that has its result."""
    future: Future[_T] = Future()
    future.set_result(result)
    return future


def failed(error: BaseException) -> Future[Any]:
    """A future that has an error."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def run_in_daemon(work: Callable[[], _T], name: str) -> Future[_T]:
    """Run a function in a thread of its own, which keeps no process alive.

    An error that would end a program is an Exception here, so that it ends nothing for whoever waits.
    """
    answer: Future[_T] = uncancellable()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            answer.set_exception(error if isinstance(error, Exception) else CancelledError())

    threading.Thread(target=run, name=name, daemon=True).start()
    return answer


def pass_on(source: Future[_T], target: Future[_T]) -> None:
    """Answer one future as another is answered."""

    def done(source: Future[_T]) -> None:
        if error := source.exception():
            target.set_exception(error)
        else:
            target.set_result(source.result())

    source.add_done_callback(done)
