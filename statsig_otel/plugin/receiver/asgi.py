"""Receives the webhook under ASGI, for Falcon, Starlette and FastAPI: reads the body, waits for the consumer, answers.

`intake` makes the decisions.
"""

import asyncio
import contextlib
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias, cast
from weakref import WeakKeyDictionary

from falcon.asgi import App, Request, Response

from statsig_otel._tracing import tracing
from statsig_otel.exporters.consumer import Batch, Consumer, Receipt, RefusedError
from statsig_otel.plugin.receiver import intake
from statsig_otel.plugin.receiver.answer import Answer, AnsweredError
from statsig_otel.plugin.receiver.handover import (
    cancelled,
    check_parts,
    check_receivers,
    consume,
    result_of,
    run_in_loop,
    taken,
)
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.receiver.responses import (
    Paths,
    fill,
    handle_unexpected,
    serialize_error,
    shutting_down,
    slow_body,
    slow_consumer,
    wrong_method,
)
from statsig_otel.plugin.receiver.span import WebhookSpan
from statsig_otel.plugin.server.asgi_types import Message, Receive, Send

MountableApp: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
"""An ASGI 3 application by the types of this package's server, and by those of Starlette and FastAPI."""

_SENT: Final = "statsig_otel.sent"
"""The key of the server's `headers` and `receive` in a request's scope."""

_TINY_BODY: Final = 16 << 10
"""Bytes. A webhook of a few config changes has fewer, and a batch of exposures more."""

_HEADERS_ONLY: Final[Message] = {"type": "http.request", "body": b"", "more_body": True}


class StatsigReceiver:
    """A Falcon ASGI resource that takes Statsig's webhook.

    Args:
        intake: The receiver's secrets, mapping and limits.
        consumer: Takes the records. A request is answered with 200 only after the consumer has accepted them.
        patience: Seconds to wait for the consumer before a request is answered with 503. The consumer may still accept
            the batch afterwards. None to wait without a limit.
        clock: Gives the time now, in nanoseconds since the epoch. It is called once for each request.

    Attributes:
        patience: See above. It may be changed.

    Raises:
        TypeError: An argument has another type, such as a consumer in the place of the intake.
        ValueError: `patience` is not more than 0.

    Example:
        >>> import falcon.asgi
        >>> from statsig_otel.exporters import LoggerProviderConsumer
        >>> from statsig_otel.plugin import DEFAULT_PATH, Intake, Verifier
        >>> receiver = StatsigReceiver(Intake(verifier=Verifier(["webhook-..."])), LoggerProviderConsumer())
        >>> app = falcon.asgi.App()
        >>> app.add_route(DEFAULT_PATH, receiver)
    """

    def __init__(
        self,
        intake: Intake,
        consumer: Consumer,
        *,
        patience: float | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        check_parts(intake, consumer, patience, clock)
        self._intake = intake
        self._consumer = consumer
        self.patience = patience
        self._clock = clock
        self._waits: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopWaits] = WeakKeyDictionary()
        self._large_bodies: ThreadPoolExecutor | None = None
        self._closed = False

    def close(self, grace: float = 0.0) -> None:
        """Refuse new requests with 503, and those whose body does not arrive within `grace` seconds. Finish the others.

        It may be called from any thread, any number of times.
        """
        self._closed = True
        for reference in self._waits.keyrefs():
            loop = reference()
            with contextlib.suppress(RuntimeError):  # the loop is closed: no request is reading any more
                if loop is not None:
                    loop.call_soon_threadsafe(self._waits[loop].hasten, grace)
        if self._large_bodies is not None:
            self._large_bodies.shutdown(wait=False)  # bodies that it already has are still finished

    async def on_post(self, req: Request, resp: Response) -> None:
        """Answer one webhook."""
        span = None if tracing.tracer is None else WebhookSpan(tracing.tracer, req, self._intake.name)
        answer: Answer | None = None
        try:
            try:
                answer = await self._answer(req)
            except AnsweredError as answered:
                answer = answered.answer
            self._send(resp, answer)
        finally:
            if span is not None:
                span.end(answer)

    async def on_options(self, req: Request, resp: Response) -> None:  # noqa: ARG002 - Falcon's signature
        """Refuse every other method, also OPTIONS, which Falcon would answer with 200."""
        self._send(resp, wrong_method(resp))

    on_delete = on_options
    on_get = on_options
    on_head = on_options
    on_patch = on_options
    on_put = on_options

    async def _answer(self, req: Request) -> Answer:
        loop = asyncio.get_running_loop()
        waits = self._waits.get(loop)  # before `_closed` is read: `close` sets it, then goes through these
        if waits is None:
            waits = self._waits[loop] = _LoopWaits(loop)
        if self._closed:
            return shutting_down()
        headers, receive = req.scope[_SENT] if _SENT in req.scope else (_headers(req), None)
        request = self._intake.begin(headers, self._clock())
        taking: Future[Receipt] | None = None
        try:
            complete = await self._read(req, receive, request, waits)
            request.arrived()
            if request.is_large and not self._closed:
                outcome = await self._finish_in_thread(request, complete=complete)
            else:
                outcome = await waits.finish(request, complete=complete)
            if isinstance(outcome, Answer):
                return outcome
            taking = consume(self._consumer, outcome, run_in_loop)
            try:
                # The consumer stores the batch even if the client has left.
                receipt = await waits.answer(taking, self.patience)
                return taken(request, self._consumer, receipt)
            except RefusedError as error:
                # The traceback would make a reference cycle with this frame.
                return request.refused(error.with_traceback(None))
            except CancelledError as error:
                raise cancelled(self._consumer) from error
        finally:
            if taking is None or taking.done():
                request.close()
            else:  # the body stays in memory until the consumer has finished
                taking.add_done_callback(lambda _: request.close())

    async def _finish_in_thread(self, request: intake.Request, *, complete: bool) -> Answer | Batch:
        """Finish a large body in another thread: it may take seconds, and the loop must not stop for them."""
        if self._large_bodies is None:
            self._large_bodies = ThreadPoolExecutor(1, thread_name_prefix="statsig-otel-large-bodies")
        finish = partial(request.finish, complete=complete)
        try:
            finished = asyncio.get_running_loop().run_in_executor(self._large_bodies, finish)
        except RuntimeError:  # another thread has just closed it, or the interpreter is shutting down
            return finish()
        return await finished

    async def _read(self, req: Request, receive: Receive | None, request: intake.Request, waits: "_LoopWaits") -> bool:
        """Feed the body to the request, within `read_timeout`; whether it was complete before the client left.

        Falcon's own stream ends alike for a whole body and for a cut one, whose signature would look forged.
        """
        event: Message = _HEADERS_ONLY
        if receive is None:  # in an application that `create_app` has not made. A test over a socket covers these.
            receive, event = req._receive, req._first_event or event  # noqa: SLF001 - Falcon has no other way
        try:
            async with asyncio.timeout(self._intake.limits.read_timeout) as reading:
                waits.reading.add(reading)
                try:
                    while event["type"] == "http.request":
                        if chunk := event.get("body"):
                            request.feed(chunk)
                        if not event.get("more_body"):
                            return True
                        event = await receive()
                    return False
                finally:
                    waits.reading.discard(reading)
        except TimeoutError:
            answer = shutting_down() if self._closed else slow_body()
            raise AnsweredError(answer) from None

    def _send(self, resp: Response, answer: Answer) -> None:
        self._intake.report(answer)
        fill(resp, answer)


class _LoopWaits:
    """The waits of all requests in one event loop: for their bodies, for their turn, and for the consumer's answers.

    Tiny bodies that have arrived in the same turn of the loop are finished together, step by step: all are verified,
    then all are mapped. A processor that does the same several times in a row needs less time for it.

    Answers that come together wake the loop once. One commit of the queue answers many requests from another thread;
    `asyncio.wrap_future` would wake the loop for each of them, and the two threads would compete for the interpreter.

    Attributes:
        reading: The bodies that are being read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reading: set[asyncio.Timeout] = set()
        self._loop = weakref.ref(loop)
        self._arrived: list[_Arrived] = []
        self._ready: deque[tuple[asyncio.Future[Receipt], Future[Receipt]]] = deque()
        self._woken = False

    def hasten(self, seconds: float) -> None:
        """Stop reading bodies after at most that many seconds. Called in the loop's thread."""
        latest = asyncio.get_running_loop().time() + seconds
        for reading in self.reading:
            if not reading.expired():
                reading.reschedule(min(latest, reading.when() or latest))

    async def finish(self, request: intake.Request, *, complete: bool) -> Answer | Batch:
        """Finish a request, a tiny one together with all others of this turn. Called in the loop's thread."""
        if request.size > _TINY_BODY:  # it gains nothing, and would have to wait while others are read
            return request.finish(complete=complete)
        loop = asyncio.get_running_loop()
        arrived = _Arrived(partial(request.verify, complete=complete), request.map, loop.create_future())
        self._arrived.append(arrived)
        if len(self._arrived) == 1:
            loop.call_soon(self._finish_all)
        await arrived.waiter
        return arrived.take()

    def _finish_all(self) -> None:
        arrived, self._arrived = self._arrived, []
        for one in arrived:
            one.attempt(one.verify)
        for one in arrived:
            one.attempt(one.map)

    async def answer(self, taking: Future[Receipt], patience: float | None) -> Receipt:
        """The consumer's answer. Called in the loop's thread.

        Raises:
            RefusedError: The consumer refuses the batch, or has not answered after `patience` seconds.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Receipt] = loop.create_future()
        timer = None if patience is None else loop.call_later(patience, _refuse, waiter, patience)
        taking.add_done_callback(partial(self._add, waiter))
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()

    def _add(self, waiter: "asyncio.Future[Receipt]", taking: Future[Receipt]) -> None:
        self._ready.append((waiter, taking))
        if self._woken:
            return
        self._woken = True  # reset before answers are taken out, so that none is left behind
        loop = self._loop()
        with contextlib.suppress(RuntimeError):  # the loop is closed: no request is waiting any more
            if loop is not None:
                loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._woken = False
        while self._ready:
            waiter, taking = self._ready.popleft()
            if waiter.done():
                continue
            try:
                waiter.set_result(result_of(taking))
            except Exception as error:  # noqa: BLE001 - the consumer's error, or that the answer was cancelled
                waiter.set_exception(error)


@dataclass(slots=True, eq=False)
class _Arrived:
    """A request whose body has arrived: its two steps, its wait, and the outcome.

    The steps run in the request's own context: what they log belongs to its span.
    """

    verify: Callable[[], Answer | Batch | None]
    map: Callable[[], Answer | Batch]
    waiter: asyncio.Future[None]
    context: Context = field(default_factory=copy_context)
    outcome: Answer | Batch | Exception | None = None

    def attempt(self, step: Callable[[], Answer | Batch | None]) -> None:
        """Take a step, unless the wait is over: there is an outcome already, or the request was cancelled."""
        if self.waiter.done():
            return
        try:
            self.outcome = self.context.run(step)
        except Exception as error:  # noqa: BLE001 - it concerns only this request, and is raised where that waits
            self.outcome = error
        if self.outcome is not None:
            self.waiter.set_result(None)

    def take(self) -> Answer | Batch:
        """The outcome, once: an error that stays here would make a reference cycle with the frames of its traceback."""
        outcome, self.outcome = self.outcome, None
        if isinstance(outcome, Exception):
            raise outcome
        return cast("Answer | Batch", outcome)


def _refuse(waiter: "asyncio.Future[Receipt]", patience: float) -> None:
    if not waiter.done():
        waiter.set_exception(slow_consumer(patience))


def create_app(receivers: Mapping[str, StatsigReceiver]) -> MountableApp:
    """An ASGI application that serves receivers at their paths, and refuses all other requests.

    It may be mounted below a prefix: paths are compared with the part after the scope's `root_path`. It accepts
    lifespan events and does not need them. Call `close` of the receivers before the loop ends.

    Args:
        receivers: The receivers by their paths, as the settings' `path` has them: `/statsig`.

    Raises:
        TypeError: One of them is not a `StatsigReceiver`.
        ValueError: A path is not a plain path, which begins with `/`.

    Example:
        >>> from statsig_otel.exporters import LoggerProviderConsumer
        >>> from statsig_otel.plugin import Intake, StatsigReceiver, Verifier
        >>> receiver = StatsigReceiver(Intake(verifier=Verifier(["webhook-..."])), LoggerProviderConsumer())
        >>> app = create_app({"/statsig": receiver})
    """
    check_receivers(receivers, StatsigReceiver)
    app = App()
    app.set_error_serializer(serialize_error)
    app.add_error_handler(Exception, _handle_unexpected)
    paths = Paths(receivers)
    for path, receiver in receivers.items():
        app.add_route(path, receiver)

    async def serve(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(dict(scope), receive, send)
            return
        root, raw = (scope.get("root_path") or "").rstrip("/"), scope.get("raw_path") or b""
        _, port = scope.get("server") or ("", 0)
        # Falcon answers unknown methods with 400, and those that a resource lacks with a list of all others.
        method = "POST" if scope["method"] == "POST" else "OPTIONS"
        encoded = raw.decode("latin-1")
        path = paths.route(_below(root, scope["path"]), method, prefix=root, encoded=encoded, port=port or 0)
        # It waits for the first event of the body before it routes, so nothing would refuse a client that declares a
        # body and then stays silent. It gets an empty event, and the receiver reads the body.
        # It would also parse the query and join the headers, thousands of them, and nobody asks it for these. A header
        # may be any iterable: Falcon's test client sends iterators.
        changed = {"path": path, "method": method, "query_string": b"", "headers": ()}
        await app({**scope, **changed, _SENT: (map(tuple, scope["headers"]), receive)}, _headers_only, send)

    return serve


def _headers(req: Request) -> Sequence[tuple[Any, ...]]:
    """The headers of a request in a Falcon application of the program's own.

    They may be an iterator, and so may each of them, as from Falcon's test client. Falcon has read those to their ends.
    """
    pairs = [tuple(pair) for pair in req.scope["headers"]]
    if pairs and all(pairs):
        return pairs
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in req.headers.items()]


async def _headers_only() -> Message:
    return _HEADERS_ONLY


def _below(root: str, path: str) -> str:
    """The part of the path that Falcon has to route: by the ASGI specification `path` begins with `root_path`."""
    if not path.startswith(root) or path[len(root) :][:1] not in ("", "/"):  # some servers have removed it already
        return path
    return path[len(root) :]


async def _handle_unexpected(req: Request, resp: Response, error: Exception, params: dict[str, object]) -> None:
    handle_unexpected(req, resp, error, params)
