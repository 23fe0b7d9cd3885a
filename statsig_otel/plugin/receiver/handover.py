"""Hands a batch to a consumer, in whichever way the consumer answers, and checks consumers when receivers are made."""

import asyncio
import inspect
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError, Future
from types import NoneType
from typing import Any, Final

from statsig_otel._arguments import check_type, described, mistyped, type_name, why_not_callable
from statsig_otel._futures import answered, failed, run_in_daemon
from statsig_otel.exporters.consumer import Batch, Consumer, Receipt, RefusedError
from statsig_otel.plugin.receiver.answer import Answer
from statsig_otel.plugin.receiver.intake import Intake, Request

_SEGMENT: Final = "[A-Za-z0-9._~!$&'()*+,;=:@-]+"
PLAIN_PATH: Final = re.compile(f"/(?:{_SEGMENT}(?:/{_SEGMENT})*/?)?")
"""A path of a receiver, letter by letter as a request has it."""
RULE_OF_PATHS: Final = "begin with / and be a plain path, without // and percent escapes"
"""The same in words: what a path must do."""

_ANSWERS: Final = "a Receipt, a concurrent.futures.Future of one, or an awaitable of one"


def check_parts(intake: object, consumer: object, patience: float | None, clock: object) -> None:
    """Check the arguments of a receiver.

    Raises:
        TypeError: One of them is something else. The message names it.
        ValueError: `patience` is not more than 0.
    """
    check_type("intake", intake, Intake)
    if isinstance(consumer, type):
        raise TypeError(f"consumer must be an object, not the class {consumer.__qualname__}")
    if why := why_not_callable(consumer, "consume", "batch", may_be_async=True):
        inner = getattr(getattr(consumer, "consumer", None), "consume", None)
        hint = ": give its attribute `consumer`" if callable(inner) else ""
        raise TypeError(f"consumer must be a Consumer: {type_name(consumer)} {why}{hint}")
    check_type("patience", patience, (int, float, NoneType), "a number of seconds or None")
    if patience is not None and not patience > 0:
        raise ValueError("patience must be more than 0 seconds; None waits without a limit")
    if not callable(clock):
        raise TypeError(mistyped("clock", clock, "a function"))


def check_receivers(receivers: Mapping[Any, object], type_: type[object]) -> None:
    """Check receivers by their paths.

    Raises:
        TypeError: They are not a mapping, or a value is not a receiver of this type.
        ValueError: A path is not a plain path.
    """
    check_type("receivers", receivers, Mapping, "a mapping by their paths")
    for path, receiver in receivers.items():
        check_type(f"the receiver at {path}", receiver, type_)
        if not isinstance(path, str) or not PLAIN_PATH.fullmatch(path):
            raise ValueError(f"the path {path!r} must {RULE_OF_PATHS}")


def consume(consumer: Consumer, batch: Batch, run: Callable[[Awaitable[Receipt]], Future[Receipt]]) -> Future[Receipt]:
    """Hand a batch to a consumer.

    Args:
        consumer: The consumer.
        batch: The batch.
        run: Makes an awaitable run.

    Raises:
        TypeError: The consumer has answered with something else.
    """
    try:
        answer: object = consumer.consume(batch)
    except RefusedError as error:
        return failed(error)
    except BaseException as error:
        if isinstance(error, Exception) or _ends_the_process(error):
            raise
        return failed(_unexpected(consumer, error))  # no server expects it, and some end their thread without an answer
    if isinstance(answer, Future):
        return answer
    if isinstance(answer, Receipt):
        return answered(answer)
    if inspect.isawaitable(answer):
        return run(_answer_of(consumer, answer))
    raise TypeError(f"{type(consumer).__qualname__}.consume answered with {described(answer)} instead of {_ANSWERS}")


async def _answer_of(consumer: Consumer, awaitable: Awaitable[Receipt]) -> Receipt:
    """What a consumer's awaitable gives. An exit that it asks for is its error, and does not end the event loop."""
    try:
        return await awaitable
    except (SystemExit, KeyboardInterrupt) as error:
        if _ends_the_process(error):
            raise
        raise _unexpected(consumer, error) from error


def _ends_the_process(error: BaseException) -> bool:
    """Whether a signal may have caused it, which only the main thread takes: gunicorn's handlers, or a Ctrl-C."""
    is_exit = isinstance(error, SystemExit | KeyboardInterrupt)
    return is_exit and threading.current_thread() is threading.main_thread()


def _unexpected(consumer: Consumer, error: BaseException) -> RuntimeError:
    failure = RuntimeError(f"{type(consumer).__qualname__}.consume raised {type(error).__name__}")
    failure.__cause__ = error
    return failure


def cancelled(consumer: Consumer) -> RuntimeError:
    """The error of a consumer whose future was cancelled."""
    return RuntimeError(f"{type(consumer).__qualname__}.consume: the consumer cancelled its future")


def result_of(taking: "Future[Receipt]") -> Receipt:
    """What the future of a consumer has, which is done.

    Raises:
        Exception: The consumer's error. One that would end a server or its event loop, such as the SystemExit of one of
            the consumer's threads, or that no asyncio future takes, is the cause of a RuntimeError.
    """
    try:
        return taking.result()
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        if taking.exception() is not error:
            raise  # of a signal, just now
        raise RuntimeError(f"the consumer's future has {type(error).__name__}") from error


def taken(request: Request, consumer: Consumer, result: object) -> Answer:
    """The answer to a request whose consumer has answered.

    Args:
        request: The request.
        consumer: The consumer.
        result: The result of the consumer's future.

    Raises:
        TypeError: The result is not a receipt.
        ValueError: The receipt is not one for the batch of the request.
    """
    name = f"{type(consumer).__qualname__}.consume"
    if not isinstance(result, Receipt):
        raise TypeError(f"the future of {name} has {described(result)} as its result instead of a Receipt")
    try:
        return request.taken(result)
    except ValueError as error:
        raise ValueError(f"{name} answered with a wrong Receipt: {error}") from None


def run_in_loop(awaitable: Awaitable[Receipt]) -> Future[Receipt]:
    """Run an awaitable in the running event loop."""
    answer: Future[Receipt] = Future()
    task = asyncio.ensure_future(awaitable)

    def done(task: "asyncio.Future[Receipt]") -> None:
        _running.discard(task)
        if task.cancelled():
            answer.set_exception(CancelledError())
        elif error := task.exception():
            answer.set_exception(error)
        else:
            answer.set_result(task.result())

    _running.add(task)
    task.add_done_callback(done)
    return answer


_running: Final[set["asyncio.Future[Receipt]"]] = set()
"""The consumers' awaitables: an event loop alone would let them be collected."""


def run_in_thread(awaitable: Awaitable[Receipt]) -> Future[Receipt]:
    """Run an awaitable in a thread and an event loop of its own."""

    async def wait() -> Receipt:
        return await awaitable

    return run_in_daemon(lambda: asyncio.run(wait()), "statsig-otel consumer")
