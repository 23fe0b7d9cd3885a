"""The webhook as a Falcon resource: reads the body, waits for the consumer, sends the answer. `intake` decides."""

import asyncio
import contextlib
import math
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from falcon.asgi import App, Request, Response

from statsig_otel.exporters.consumer import Batch, Consumer, Receipt, RefusedError
from statsig_otel.plugin.receiver import intake
from statsig_otel.plugin.receiver.answers import (
    fill,
    handle_unexpected,
    serialize_error,
    shutting_down,
    slow_body,
    slow_consumer,
    wrong_method,
)
from statsig_otel.plugin.receiver.deadlines import Deadlines
from statsig_otel.plugin.receiver.intake import Answer, AnsweredError, Intake
from statsig_otel.plugin.server.asgi_types import Message, Receive, Send

MountableApp: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
"""An ASGI 3 application by the types of this package's server, and by Starlette's and FastAPI's."""


class StatsigReceiver:
    """A Falcon ASGI resource that takes Statsig's webhook.

    Args:
        intake: The receiver's secrets, mapping and limits.
        consumer: Where the records go. A request is answered with 200 only after it has taken them over.
        patience: Seconds after which a request is answered with 503 without a word of the consumer's. It may still take
            over what it was handed. None to wait for as long as it takes.
        clock: The time now, in nanoseconds since the epoch; read once a request.

    Attributes:
        patience: As above; it may change.

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
        self._intake = intake
        self._consumer = consumer
        self.patience = patience
        self._clock = clock
        self._waits: WeakKeyDictionary[asyncio.AbstractEventLoop, _Waits] = WeakKeyDictionary()
        self._judge: ThreadPoolExecutor | None = None
        self._closed = False

    def close(self, grace: float = 0.0) -> None:
        """Refuse new requests with 503, and those whose body is not there within `grace` seconds; finish the rest.

        From any thread, any number of times.
        """
        self._closed = True
        for reference in self._waits.keyrefs():
            loop = reference()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                if loop is not None:
                    loop.call_soon_threadsafe(self._waits[loop].reading.hasten, grace)
        if self._judge is not None:
            self._judge.shutdown(wait=False)  # what it was given is finished all the same

    async def on_post(self, req: Request, resp: Response) -> None:
        """Answer one webhook."""
        try:
            answer = await self._answer(req)
        except AnsweredError as answered:
            answer = answered.answer
        self._send(resp, answer)

    async def on_options(self, req: Request, resp: Response) -> None:  # noqa: ARG002 - Falcon's signature
        """Refuse every other method; OPTIONS too, which Falcon by itself would answer with 200."""
        self._send(resp, wrong_method(resp))

    on_delete = on_options
    on_get = on_options
    on_head = on_options
    on_patch = on_options
    on_put = on_options

    async def _answer(self, req: Request) -> Answer:
        loop = asyncio.get_running_loop()
        waits = self._waits.get(loop)  # before the look at what `close` has set
        if waits is None:
            waits = self._waits[loop] = _Waits(loop)
        if self._closed:
            return shutting_down()
        request = self._intake.begin(req.scope["headers"], self._clock())
        taking: Future[Receipt] | None = None
        try:
            complete = await self._read(_Body.of(req), request, waits.reading)
            if request.is_large and not self._closed:
                outcome = await self._finish_apart(request, complete=complete)
            else:
                outcome = request.finish(complete=complete)
            if isinstance(outcome, Answer):
                return outcome
            taking = self._consumer.consume(outcome)
            patience = self.patience
            try:
                # What was handed over is stored, also where nobody waits for the answer any more.
                return request.taken(await waits.wait_for(taking, patience))
            except RefusedError as error:
                return request.refused(error.with_traceback(None))  # or it would refer to this frame, which has it
            except _OutOfPatienceError:
                return request.refused(slow_consumer(patience or 0.0))
        finally:
            if taking is None or taking.done():
                request.close()
            else:  # the body is in memory for as long as the consumer has it
                taking.add_done_callback(lambda _: request.close())

    async def _finish_apart(self, request: intake.Request, *, complete: bool) -> Answer | Batch:
        """Judge a large body in a thread of its own, since it may take seconds that the loop has not."""
        if self._judge is None:
            self._judge = ThreadPoolExecutor(1, thread_name_prefix="statsig-otel-judge")
        finish = partial(request.finish, complete=complete)
        try:
            judged = asyncio.get_running_loop().run_in_executor(self._judge, finish)
        except RuntimeError:  # another thread has just closed it, or the interpreter is about to end
            return finish()
        return await judged

    async def _read(self, body: "_Body", request: intake.Request, deadlines: Deadlines[asyncio.Timeout]) -> bool:
        """Feed the body to the request, in time; whether it came to its end."""
        try:
            async with asyncio.timeout(None) as reading:
                deadlines.add(reading, self._intake.limits.read_timeout)
                try:
                    return await body.feed(request)
                finally:
                    deadlines.discard(reading)
        except TimeoutError:
            answer = shutting_down() if self._closed else slow_body()
            raise AnsweredError(answer) from None

    def _send(self, resp: Response, answer: Answer) -> None:
        self._intake.report(answer)
        fill(resp, answer)


class _Waits:
    """What the requests of one event loop wait for: their bodies, and the consumer's answers.

    All answers that come together wake the loop once. One commit answers many requests, from the writer's thread: with
    asyncio's own bridge each of them would write to the loop's pipe, and the two threads would hand the interpreter to
    and fro.

    Attributes:
        reading: Ends the bodies that don't come in time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reading: Deadlines[asyncio.Timeout] = Deadlines(_end_reading)
        self._loop = weakref.ref(loop)
        self._patience: Deadlines[asyncio.Future[Receipt]] = Deadlines(_end_waiting)
        self._ready: deque[tuple[asyncio.Future[Receipt], Future[Receipt]]] = deque()
        self._woken = False

    def wait_for(self, answer: Future[Receipt], patience: float | None) -> "asyncio.Future[Receipt]":
        """The same answer in the loop, in whose thread this is called.

        Raises:
            _OutOfPatienceError: By the future: there is none after so many seconds.
        """
        waiter: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        if patience is not None:
            self._patience.add(waiter, patience)
        answer.add_done_callback(partial(self._add, waiter))
        return waiter

    def _add(self, waiter: "asyncio.Future[Receipt]", answer: Future[Receipt]) -> None:
        self._ready.append((waiter, answer))
        if self._woken:
            return
        self._woken = True  # taken back before anything is handed out, so that nothing is left behind
        loop = self._loop()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            if loop is not None:
                loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._woken = False
        while self._ready:
            waiter, answer = self._ready.popleft()
            self._patience.discard(waiter)
            if waiter.done():
                continue
            try:
                waiter.set_result(answer.result())
            except Exception as error:  # noqa: BLE001 - the consumer's, or that it was cancelled
                waiter.set_exception(error)


def _end_reading(reading: asyncio.Timeout) -> None:
    reading.reschedule(-math.inf)


def _end_waiting(waiter: "asyncio.Future[Receipt]") -> None:
    if not waiter.done():
        waiter.set_exception(_OutOfPatienceError)


class _OutOfPatienceError(Exception):
    """The consumer has not answered in time."""


def create_app(receivers: Mapping[str, StatsigReceiver]) -> MountableApp:
    """An ASGI application that serves receivers at their paths, and answers all else as the contract says.

    It may be mounted below a prefix: the paths are compared with what follows the scope's `root_path`. It takes part in
    the lifespan protocol where it is served by itself; it needs nothing of it. Before the loop ends, `close` the
    receivers.

    Args:
        receivers: The receivers by path, each beginning with `/`.

    Example:
        >>> from statsig_otel.exporters import LoggerProviderConsumer
        >>> from statsig_otel.plugin import Intake, StatsigReceiver, Verifier
        >>> receiver = StatsigReceiver(Intake(verifier=Verifier(["webhook-..."])), LoggerProviderConsumer())
        >>> app = create_app({"/statsig": receiver})
    """
    app = App()
    app.set_error_serializer(serialize_error)
    app.add_error_handler(Exception, _handle_unexpected)
    for path, receiver in receivers.items():
        app.add_route(path, receiver)

    async def serve(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        routed = dict(scope)
        if root := scope.get("root_path"):
            routed["path"] = _below(root, scope["path"])
        if scope["type"] == "http":
            receive = routed[_BODY] = _Body(receive)
            # Falcon answers methods that a resource does not name with 400 or with a list of all others.
            if scope["method"] != "POST":
                routed["method"] = "OPTIONS"
        await app(routed, receive, send)

    return serve


def _below(root: str, path: str) -> str:
    """The path that Falcon has to route by: by the ASGI specification `path` has `root_path` in front."""
    root = root.rstrip("/")
    if not path.startswith(root) or path[len(root) :][:1] not in ("", "/"):  # a server that has cut it off already
        return path
    return path[len(root) :]


async def _handle_unexpected(req: Request, resp: Response, error: Exception, params: dict[str, object]) -> None:
    handle_unexpected(req, resp, error, params)


_BODY: Final = "statsig_otel.body"
"""Where in a request's scope its `_Body` is."""

_HEADERS_ONLY: Final[Message] = {"type": "http.request", "body": b"", "more_body": True}


class _Body:
    """One request's body, between the server and Falcon: both see an ASGI `receive` in it.

    Falcon waits for the first bytes of a body before it routes: nobody could refuse a sender who declares a body and
    stays silent. So the first event that Falcon gets is an empty one. All others are for `feed`, which also sees a
    client leave. In Falcon's own stream a body that was cut short ends like a whole one; with chunked encoding
    nothing else would tell them apart, and the signature of a cut body would look forged.

    Args:
        receive: The server's.
        first: The event that was taken from it before.
    """

    def __init__(self, receive: Receive, first: Message = _HEADERS_ONLY) -> None:
        self._receive = receive
        self._first = first

    @classmethod
    def of(cls, req: Request) -> "_Body":
        """The body of a request; below an application that `create_app` has not made, too."""
        found = req.scope.get(_BODY)
        if isinstance(found, cls):
            return found
        # There is no public way; a test over a socket holds it.
        return cls(req._receive, req._first_event or _HEADERS_ONLY)  # noqa: SLF001

    async def __call__(self) -> Message:
        """What Falcon calls, once."""
        return self._first

    async def feed(self, request: intake.Request) -> bool:
        """Feed the body to a request as it comes in; whether it came to its end before the client left."""
        event = self._first
        while event["type"] == "http.request":
            if chunk := event.get("body"):
                request.feed(chunk)
            if not event.get("more_body"):
                return True
            event = await self._receive()
        return False
