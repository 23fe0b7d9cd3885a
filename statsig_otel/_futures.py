"""Futures between threads: one that can't be cancelled, one that is answered already, and one that follows another."""

from concurrent.futures import Future
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


def pass_on(source: Future[_T], target: Future[_T]) -> None:
    """Answer one future as another is answered."""

    def done(source: Future[_T]) -> None:
        if error := source.exception():
            target.set_exception(error)
        else:
            target.set_result(source.result())

    source.add_done_callback(done)
