"""Receives the webhook under WSGI, for Falcon, Flask, Django and gunicorn. `intake` makes the decisions.

Under WSGI the server decides whether the application runs before the body has arrived, and how long a read may take.
CGI variables have one value for each header and don't distinguish `-` from `_`: servers join repeated headers with
commas (RFC 3875, 4.1.18). The values are separated again here. If a server keeps only the last one, they are lost.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from falcon import App, Request, Response

from statsig_otel._tracing import tracing
from statsig_otel.exporters.consumer import Consumer, Receipt, RefusedError
from statsig_otel.plugin.receiver import intake
from statsig_otel.plugin.receiver.answer import Answer, AnsweredError
from statsig_otel.plugin.receiver.handover import (
    cancelled,
    check_parts,
    check_receivers,
    consume,
    result_of,
    run_in_thread,
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
from statsig_otel.plugin.webhook.body import MAX_URL_VERIFICATION_SIZE
from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER

_CHUNK: Final = 64 << 10
"""Bytes that are read at a time, so that a body over a limit is refused before all of it is in memory."""

_FIRST_CHUNK: Final = MAX_URL_VERIFICATION_SIZE + 1
"""Bytes of the first read. A read waits for all its bytes, and no more are needed to refuse an unsigned body."""

_HEADERS: Final = {
    f"HTTP_{name.upper().replace('-', '_')}": name.encode()
    for name in ("Content-Encoding", SIGNATURE_HEADER, TIMESTAMP_HEADER)
}
"""The headers that the intake reads, besides Content-Length, by their CGI variables. No valid value of theirs contains
a comma."""


class StatsigWsgiReceiver:
    """A Falcon WSGI resource that takes Statsig's webhook. Safe to use from several threads.

    A slow body occupies its thread for as long as the server allows: `Limits.read_timeout` does not apply, so set the
    server's own timeout. If it ends a read with `TimeoutError`, the answer is 408. A body without Content-Length is
    read if the server marks its end (`wsgi.input_terminated`, as gunicorn and waitress do). A server that does not
    decode chunked bodies does not, and such a request is answered with 400, as truncated.

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
        >>> import falcon
        >>> from statsig_otel.exporters import LoggerProviderConsumer
        >>> from statsig_otel.plugin import DEFAULT_PATH, Intake, Verifier
        >>> receiver = StatsigWsgiReceiver(Intake(verifier=Verifier(["webhook-..."])), LoggerProviderConsumer())
        >>> app = falcon.App()
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
        self._closed = False

    def close(self) -> None:
        """Refuse new requests with 503, and finish the others. Any thread may call it, any number of times."""
        self._closed = True

    def on_post(self, req: Request, resp: Response) -> None:
        """Answer one webhook."""
        span = None if tracing.tracer is None else WebhookSpan(tracing.tracer, req, self._intake.name)
        answer: Answer | None = None
        try:
            try:
                answer = self._answer(req.env)
            except AnsweredError as answered:
                answer = answered.answer
            self._send(resp, answer)
        finally:
            if span is not None:
                span.end(answer)

    def on_options(self, req: Request, resp: Response) -> None:  # noqa: ARG002 - Falcon's signature
        """Refuse every other method, also OPTIONS, which Falcon would answer with 200."""
        self._send(resp, wrong_method(resp))

    on_delete = on_options
    on_get = on_options
    on_head = on_options
    on_patch = on_options
    on_put = on_options

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        if self._closed:
            return shutting_down()
        request = self._intake.begin(_headers(environ), self._clock())
        taking: Future[Receipt] | None = None
        try:
            outcome = request.finish(complete=_read(environ, request))
            if isinstance(outcome, Answer):
                return outcome
            taking = consume(self._consumer, outcome, run_in_thread)
            patience = self.patience
            with suppress(TimeoutError, CancelledError):
                taking.exception(patience)  # `futures.wait` would never see the end of a future that was cancelled
            if patience is not None and not taking.done():
                return request.refused(slow_consumer(patience))
            try:
                return taken(request, self._consumer, result_of(taking))
            except RefusedError as error:
                # The traceback would make a reference cycle with this frame.
                return request.refused(error.with_traceback(None))
            except CancelledError as error:
                raise cancelled(self._consumer) from error
        finally:
            if taking is None:
                request.close()
            else:  # the body stays in memory until the consumer has finished
                taking.add_done_callback(lambda _: request.close())

    def _send(self, resp: Response, answer: Answer) -> None:
        self._intake.report(answer)
        fill(resp, answer)


def create_wsgi_app(receivers: Mapping[str, StatsigWsgiReceiver]) -> WSGIApplication:
    """A WSGI application that serves receivers at their paths, and refuses all other requests.

    It may be mounted below a prefix: paths are compared with PATH_INFO, which does not include SCRIPT_NAME.

    Args:
        receivers: The receivers by their paths, as the settings' `path` has them: `/statsig`.

    Raises:
        TypeError: One of them is not a `StatsigWsgiReceiver`.
        ValueError: A path is not a plain path, which begins with `/`.

    Example:
        >>> from statsig_otel.exporters import LoggerProviderConsumer
        >>> from statsig_otel.plugin import Intake, StatsigWsgiReceiver, Verifier
        >>> receiver = StatsigWsgiReceiver(Intake(verifier=Verifier(["webhook-..."])), LoggerProviderConsumer())
        >>> app = create_wsgi_app({"/statsig": receiver})
    """
    check_receivers(receivers, StatsigWsgiReceiver)
    app = App()
    app.set_error_serializer(serialize_error)
    app.add_error_handler(Exception, handle_unexpected)
    paths = Paths(receivers)
    for path, receiver in receivers.items():
        app.add_route(path, receiver)

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        prefix, path = environ.get("SCRIPT_NAME", "").rstrip("/"), environ.get("PATH_INFO", "")
        routed = {
            **environ,
            "PATH_INFO": paths.route(path, method, prefix=prefix, encoded=_encoded_path(environ)),
            "QUERY_STRING": "",  # nobody asks for it, and Falcon would parse it
            # Falcon would answer unknown methods itself. HEAD stays, so that its answer has no body.
            "REQUEST_METHOD": method if method in ("POST", "HEAD") else "OPTIONS",
        }
        body: Iterable[bytes] = app(routed, start_response)
        return body

    return serve


def _encoded_path(environ: WSGIEnvironment) -> str:
    """The path as it was sent, from servers that tell: gunicorn and werkzeug, uWSGI and mod_wsgi."""
    sent: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    return sent.partition("?")[0]


def _headers(environ: WSGIEnvironment) -> Iterator[tuple[bytes, bytes]]:
    """The headers that the intake reads, repeated ones separated again."""
    if length := environ.get("CONTENT_LENGTH"):  # PEP 3333: an empty one is absent
        yield b"content-length", _bytes(length)
    for variable, name in _HEADERS.items():
        if variable in environ:
            for value in environ[variable].split(",", 1):  # two are enough to see that there are several
                yield name, _bytes(value.strip(" \t"))


def _bytes(value: str) -> bytes:
    return value.encode("latin-1", errors="replace")


def _read(environ: WSGIEnvironment, request: intake.Request) -> bool:
    """Feed the body to the request; whether it was read to its end."""
    length = environ.get("CONTENT_LENGTH")
    if not length and not environ.get("wsgi.input_terminated"):
        # No body, or a chunked one that the server does not decode: a read could wait for ever.
        return "HTTP_TRANSFER_ENCODING" not in environ
    left = int(length) if length else sys.maxsize
    stream, size = environ["wsgi.input"], _FIRST_CHUNK
    try:
        while left > 0 and (chunk := stream.read(min(size, left))):
            request.feed(chunk)
            left, size = left - len(chunk), _CHUNK
    except TimeoutError:
        raise AnsweredError(slow_body()) from None
    except OSError:  # servers say so that the client has left
        return False
    return True
