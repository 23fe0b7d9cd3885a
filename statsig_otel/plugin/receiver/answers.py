"""Shared by the ASGI and WSGI adapters: Falcon responses, and the answers that don't depend on the request."""

import logging
from http import HTTPStatus
from typing import Final

import msgspec
from falcon import HTTPError, Request, Response

from statsig_otel._times import RETRY_AFTER
from statsig_otel.exporters.consumer import RefusedError
from statsig_otel.plugin.receiver.intake import Answer, refusal

_logger: Final = logging.getLogger(__name__)


def fill(resp: Response, answer: Answer) -> None:
    """Write an answer into Falcon's response."""
    resp.status = answer.status
    resp.data = msgspec.json.encode(answer.body)
    if answer.retry_after is not None:
        resp.set_header("Retry-After", str(answer.retry_after))


def wrong_method(resp: Response) -> Answer:
    """The answer to every method but POST."""
    resp.set_header("Allow", "POST")
    return refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method")


def shutting_down() -> Answer:
    """The answer of a closed receiver."""
    return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "shutting_down", retry_after=RETRY_AFTER)


def slow_body() -> Answer:
    """The answer if a body does not arrive in time."""
    return refusal(HTTPStatus.REQUEST_TIMEOUT, "slow_body")


def slow_consumer(patience: float) -> RefusedError:
    """The refusal that a consumer's silence counts as.

    Args:
        patience: Seconds that the consumer had.
    """
    return RefusedError(f"the consumer has not answered within {patience:g} s", reason="slow_consumer")


def unexpected(error: Exception) -> Answer:
    """The answer to an unexpected error. It is never a 2xx: the sender is told to send the webhook again."""
    _logger.error("A webhook could not be handled", exc_info=error)
    return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "unexpected", retry_after=RETRY_AFTER)


def handle_unexpected(
    req: Request,  # noqa: ARG001 - Falcon's signature
    resp: Response,
    error: Exception,
    params: dict[str, object],  # noqa: ARG001
) -> None:
    """Handle all errors that are not Falcon's own."""
    fill(resp, unexpected(error))


def serialize_error(req: Request, resp: Response, error: HTTPError) -> None:  # noqa: ARG001 - Falcon's signature
    """Give Falcon's own errors, such as a wrong path, the form of all other answers."""
    resp.data = msgspec.json.encode(refusal(HTTPStatus(error.status_code), "framework").body)
