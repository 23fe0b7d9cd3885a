"""The forms in which a consumer may answer, and what is refused when a receiver is made."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from statsig_otel.exporters import Batch, LoggerProviderConsumer, Receipt, RefusedError
from statsig_otel.plugin import (
    Intake,
    LogRecordEncoder,
    Service,
    StatsigReceiver,
    StatsigWsgiReceiver,
    Verifier,
    create_app,
    create_wsgi_app,
    parse,
)
from statsig_otel.plugin.receiver.handover import consume, run_in_thread
from tests.looped import looped
from tests.plugin.adapters import ADAPTERS, CHANGE, SECRET, Adapter, assert_refused, body_of, post
from tests.plugin.services import Keeper, service

BODY = body_of(CHANGE)
TAKEN = Receipt(accepted=1)


def refusal() -> RefusedError:
    return RefusedError("the table is locked", reason="locked", retry_after=7)


class Consumer:
    """Answers with what a function returns, or raises."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer

    def consume(self, batch: Batch) -> Any:
        return self._answer()


class AsyncConsumer(Consumer):
    """As an embedder writes it: the answer comes from the event loop."""

    async def consume(self, batch: Batch) -> Any:
        await asyncio.sleep(0.01)
        return self._answer()


def raising(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


def cancelled() -> Future[Receipt]:
    """What an executor leaves that is shut down with `cancel_futures`: no thread will ever run it."""
    made: Future[Receipt] = Future()
    made.cancel()
    return made


def future(result: Any) -> Future[Any]:
    made: Future[Any] = Future()
    made.set_exception(result) if isinstance(result, BaseException) else made.set_result(result)
    return made


@pytest.fixture(params=[one for one in ADAPTERS if one.name in ("asgi", "wsgiref")], ids=lambda adapter: adapter.name)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    found: Adapter = request.param
    return found


def test_a_receipt_may_be_returned_or_come_later(adapter: Adapter) -> None:
    for consumer in (Consumer(lambda: TAKEN), Consumer(lambda: future(TAKEN)), AsyncConsumer(lambda: TAKEN)):
        with adapter.receiving(consumer, patience=30) as address:
            answer = post(address, BODY)
            assert (answer.status, answer.json["accepted"]) == (200, 1)


def test_a_refusal_may_be_raised_or_come_later(adapter: Adapter) -> None:
    later = Consumer(lambda: future(refusal()))
    for consumer in (Consumer(raising(refusal())), later, AsyncConsumer(raising(refusal()))):
        with adapter.receiving(consumer) as address:
            answer = post(address, BODY)
            assert_refused(answer, 503)
            assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("consumer", "said"),
    [
        (
            Consumer(lambda: None),
            "Consumer.consume answered with None instead of a Receipt, a concurrent.futures.Future",
        ),
        (Consumer(lambda: 1), "Consumer.consume answered with an int instead of a Receipt"),
        (
            Consumer(lambda: future(True)),
            "the future of Consumer.consume has a bool as its result instead of a Receipt",
        ),
        (
            AsyncConsumer(lambda: None),
            "the future of AsyncConsumer.consume has None as its result instead of a Receipt",
        ),
        (
            Consumer(lambda: Receipt(0)),
            "Consumer.consume answered with a wrong Receipt: receipt must count the changes",
        ),
        (Consumer(lambda: future(Receipt(9))), "which has 1, not 9 (accepted 9, duplicates 0)"),
        (AsyncConsumer(lambda: Receipt(1, 1)), "which has 1, not 2 (accepted 1, duplicates 1)"),
        (Consumer(lambda: Receipt(-1, 2)), "ValueError: accepted must not be negative"),
        (AsyncConsumer(raising(KeyError("x"))), "KeyError: 'x'"),
        (
            AsyncConsumer(raising(asyncio.CancelledError())),
            "AsyncConsumer.consume: the consumer cancelled its future",
        ),
        (Consumer(raising(asyncio.CancelledError())), "Consumer.consume raised CancelledError"),
        (Consumer(raising(SystemExit(3))), "Consumer.consume raised SystemExit"),
        (Consumer(raising(KeyboardInterrupt())), "Consumer.consume raised KeyboardInterrupt"),
        (Consumer(raising(GeneratorExit())), "Consumer.consume raised GeneratorExit"),
        (AsyncConsumer(raising(SystemExit(3))), "AsyncConsumer.consume raised SystemExit"),
        (AsyncConsumer(raising(KeyboardInterrupt())), "AsyncConsumer.consume raised KeyboardInterrupt"),
        (Consumer(cancelled), "RuntimeError: Consumer.consume: the consumer cancelled its future"),
        (Consumer(lambda: future(TimeoutError("of the table"))), "TimeoutError: of the table"),
        (Consumer(lambda: future(SystemExit(3))), "RuntimeError: the consumer's future has SystemExit"),
        (Consumer(lambda: future(GeneratorExit())), "RuntimeError: the consumer's future has GeneratorExit"),
        (Consumer(lambda: future(StopIteration())), "RuntimeError: the consumer's future has StopIteration"),
    ],
)
def test_any_other_answer_is_500_and_is_named(
    adapter: Adapter, consumer: Consumer, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with adapter.receiving(consumer) as address:
        assert post(address, BODY).status == 500
    assert said in caplog.text


def test_in_the_main_thread_an_exit_is_a_signal_s() -> None:
    """The handlers of gunicorn's workers raise SystemExit there, wherever the thread is: the process has to end."""
    mapped = INTAKE.mapper.map(parse(BODY), observed_ns=1)
    for exit_ in (SystemExit, KeyboardInterrupt):
        with pytest.raises(exit_):
            consume(Consumer(raising(exit_())), Batch("statsig", mapped.changes), run_in_thread)


def test_an_awaitable_that_takes_too_long_is_503_and_goes_on(adapter: Adapter) -> None:
    done: list[int] = []

    class Slow:
        async def consume(self, batch: Batch) -> Receipt:
            await asyncio.sleep(0.3)
            done.append(1)
            return TAKEN

    with adapter.receiving(Slow(), patience=0.05) as address:
        assert_refused(post(address, BODY), 503)
        assert done == []
        with adapter.receiving(Consumer(lambda: TAKEN)) as other:
            while not done:
                assert post(other, BODY).status == 200
    assert done == [1]


INTAKE = Intake(verifier=Verifier([SECRET]))
CONSUMER = Consumer(lambda: TAKEN)


class NoArgument:
    def consume(self) -> None:
        """Take nothing."""


@pytest.mark.parametrize("make", [StatsigReceiver, StatsigWsgiReceiver])
@looped(
    ("arguments", "patience", "said"),
    [
        ((CONSUMER, INTAKE), None, "intake must be an Intake, not Consumer"),
        ((Verifier([SECRET]), CONSUMER), None, "intake must be an Intake, not Verifier"),
        ((INTAKE, None), None, "consumer must be a Consumer: None has no consume()"),
        ((INTAKE, Consumer), None, "consumer must be an object, not the class Consumer"),
        (
            (INTAKE, NoArgument()),
            None,
            "consumer must be a Consumer: NoArgument has a consume() that can't be called as consume(batch)",
        ),
        ((INTAKE, CONSUMER), "10", "patience must be a number of seconds or None, not str"),
    ],
)
def test_wrong_arguments_of_a_receiver_are_refused_when_it_is_made(
    make: Any, arguments: tuple[Any, Any], patience: Any, said: str
) -> None:
    with pytest.raises(TypeError) as caught:
        make(*arguments, patience=patience)
    assert str(caught.value) == said


@pytest.mark.parametrize("make", [StatsigReceiver, StatsigWsgiReceiver])
def test_a_receiver_without_patience_is_refused(make: Any) -> None:
    for patience in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="patience must be more than 0"):
            make(INTAKE, CONSUMER, patience=patience)


def test_a_service_in_the_place_of_its_consumer_is_named(tmp_path: Any) -> None:
    running: Service = service(tmp_path, {"mine": Keeper()}, listen=False)
    with pytest.raises(
        TypeError, match=r"consumer must be a Consumer: Service has no consume\(\): give its attribute `consumer`"
    ):
        StatsigReceiver(INTAKE, running)  # type: ignore[arg-type] # what is tested
    StatsigReceiver(INTAKE, running.consumer)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"verifier": SECRET}, "verifier must be a Verifier, not str"),
        ({"verifier": [SECRET]}, "verifier must be a Verifier, not list"),
        ({"verifier": INTAKE.verifier, "mapper": LogRecordEncoder()}, "mapper must be a Mapper, not LogRecordEncoder"),
        ({"verifier": INTAKE.verifier, "limits": 5}, "limits must be a Limits, not int"),
        ({"verifier": INTAKE.verifier, "name": None}, "name must be a str, not None"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_an_intake_are_refused_when_it_is_made(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError) as caught:
        Intake(**keys)
    assert str(caught.value) == said


def test_wrong_receivers_of_an_application_are_refused_when_it_is_made() -> None:
    asgi, wsgi = StatsigReceiver(INTAKE, CONSUMER), StatsigWsgiReceiver(INTAKE, CONSUMER)
    rule = "must begin with / and be a plain path, without // and percent escapes"
    cases: list[tuple[Any, Any, str]] = [
        (create_app, {"/": wsgi}, "the receiver at / must be a StatsigReceiver, not StatsigWsgiReceiver"),
        (create_wsgi_app, {"/": asgi}, "the receiver at / must be a StatsigWsgiReceiver, not StatsigReceiver"),
        (create_app, asgi, "receivers must be a mapping by their paths, not StatsigReceiver"),
        (create_app, {"hook": asgi}, f"the path 'hook' {rule}"),
        (create_app, {"/${env:X}": asgi}, f"the path '/${{env:X}}' {rule}"),
        (create_wsgi_app, {"/{id}": wsgi}, f"the path '/{{id}}' {rule}"),
        (create_wsgi_app, {"/a//b": wsgi}, f"the path '/a//b' {rule}"),
        (create_wsgi_app, {f"/{80 * 'a'} ": wsgi}, f"the path '/{80 * 'a'} ' {rule}"),
    ]
    for make, receivers, said in cases:
        with pytest.raises((TypeError, ValueError)) as caught:
            make(receivers)
        assert str(caught.value) == said


def test_another_signal_s_provider_is_refused_when_its_consumer_is_made() -> None:
    with pytest.raises(TypeError, match="provider must be a LoggerProvider, not TracerProvider"):
        LoggerProviderConsumer(TracerProvider())  # type: ignore[arg-type] # what is tested


def test_a_refusal_asks_for_a_time_that_a_client_can_wait() -> None:
    for seconds in (-5, 31_536_001, 10**30):
        with pytest.raises(ValueError, match="retry_after must be from 0 to 31536000 seconds"):
            RefusedError("full", reason="full", retry_after=seconds)
    assert RefusedError("full", reason="full", retry_after=0).retry_after == 0
