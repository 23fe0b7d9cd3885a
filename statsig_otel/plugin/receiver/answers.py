"""What the Falcon adapters share, under ASGI and under WSGI: how answers are sent, and which no request decides."""

import logging
from http import HTTPStatus
from typing import Final

import msgspec
from falcon import HTTPError, Request, Response

from statsig_otel.exporters.consumer import RefusedError
from statsig_otel.plugin.receiver.intake import Answer, refusal

_logger: Final = logging.getLogger(__name__)


def fill(resp: Response, answer: Answer) -> None:
    """Put an answer into Falcon's response."""
    resp.status = answer.status
    resp.data = msgspec.json.encode(answer.body)
    if answer.retry_after is not None:
        resp.set_header("Retry-After", str(answer.retry_after))


def wrong_method(resp: Response) -> Answer:
    """The answer to every method but POST."""
    resp.set_header("Allow", "POST")
    return refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method")


def shutting_down() -> Answer:
    """The answer once a receiver is closed."""
    return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "shutting_down", retry_after=10)


def slow_body() -> Answer:
    """The answer where a body does not come in time."""
    return refusal(HTTPStatus.REQUEST_TIMEOUT, "slow_body")


def slow_consumer(patience: float) -> RefusedError:
    """What a consumer's silence counts as.

    Args:
        patience: Seconds that it had.
    """
    return RefusedError(f"the consumer has not answered within {patience:g} s", reason="slow_consumer")


def unexpected(error: Exception) -> Answer:
    """The answer to a fault of ours. It is never a 2xx: the sender is told to come again."""
    _logger.error("A webhook could not be handled", exc_info=error)
    return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "unexpected", retry_after=10)


def handle_unexpected(
    req: Request,  # noqa: ARG001 - Falcon's signature
    resp: Response,
    error: Exception,
    params: dict[str, object],  # noqa: ARG001
) -> None:
    """Falcon's handler of all errors that are not its own."""
    fill(resp, unexpected(error))


def serialize_error(req: Request, resp: Response, error: HTTPError) -> None:  # noqa: ARG001 - Falcon's signature
    """Falcon's own errors, a wrong path above all, in the same form as ours."""
    resp.data = msgspec.json.encode(refusal(HTTPStatus(error.status_code), "framework").body)
