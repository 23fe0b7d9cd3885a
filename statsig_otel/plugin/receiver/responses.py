"""Shared by the ASGI and WSGI adapters: paths, Falcon responses, and answers that don't depend on the request."""

import logging
import re
import traceback
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

import msgspec
from falcon import HTTPError, Request, Response

from statsig_otel._journal import journal
from statsig_otel._log_throttle import LogThrottle
from statsig_otel._telemetry import server_refused
from statsig_otel.exporters.consumer import RefusedError
from statsig_otel.exporters.terminal import printable
from statsig_otel.plugin.receiver.answer import Answer, refusal

_logger: Final = logging.getLogger(__name__)

_OTHER_FORM: Final = re.compile("(?:/.*)?//|/.*%2f", re.IGNORECASE)
"""A path as it was sent, with an empty part or an escaped slash. An absolute URL is not one."""

_NOWHERE: Final = "/\0"
"""A path that no receiver can have."""

_ESCAPED: Final = 4
"""How many times longer than a receiver's path one may be that was meant for it. To decode a long one takes long."""

_SHOWN: Final = 100
"""The most characters of a path that are logged."""


class Paths:
    """Decides which receiver a path leads to, and logs why a path leads to none.

    A path has to be that of a receiver, letter by letter. It may have one slash more at its end. Other forms, such as
    `//` or an escaped slash, are not the same path: a proxy may have applied other rules to them.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = {form: path for path in paths for form in (path, f"{path.rstrip('/')}/")}
        self._longest = _ESCAPED * max(map(len, self._paths), default=0)
        self._throttle = LogThrottle(_logger)
        server_refused.add(0, int(HTTPStatus.NOT_FOUND), "not_found")

    def route(self, path: str, method: str, *, prefix: str = "", encoded: str = "", port: int = 0) -> str:
        """The path of the receiver, or one that leads nowhere.

        Args:
            path: The path with its escapes decoded, below the prefix of a mount; empty at the prefix itself.
            method: The method of the request. Only POST can be a webhook with a wrong URL.
            prefix: The prefix, without a slash at its end.
            encoded: The whole path as it was sent, if the server tells.
            port: The port that the request came to; 0 if it is not known.
        """
        path = path or "/"
        found = self._paths.get(path)
        if found is not None and not _OTHER_FORM.match(encoded):  # servers may have changed it to the right one
            return found
        server_refused.add(1, int(HTTPStatus.NOT_FOUND), "not_found")
        shown = printable((encoded or prefix + path)[:_SHOWN])
        meant = self._paths.get(re.sub("/+", "/", unquote(path))) if len(path) <= self._longest else None
        known = [meant] if meant else sorted(set(self._paths.values()))
        hint = f"the receiver's path is {' or '.join(prefix + one for one in known)}"
        self._throttle.log(logging.WARNING, f"404 {meant}", "a request for %s is answered with 404: %s", shown, hint)
        reason = "not_found" if method == "POST" else "method"
        journal.add_request("", HTTPStatus.NOT_FOUND, reason, hint, port=port, path=shown)
        return _NOWHERE


def fill(resp: Response, answer: Answer) -> None:
    """Write an answer into Falcon's response."""
    resp.status = answer.status
    resp.set_header("X-Content-Type-Options", "nosniff")
    resp.data = msgspec.json.encode(answer.body)
    if answer.retry_after is not None:
        resp.set_header("Retry-After", str(answer.retry_after))


def wrong_method(resp: Response) -> Answer:
    """The answer to every method but POST."""
    resp.set_header("Allow", "POST")
    return refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method")


def shutting_down() -> Answer:
    """The answer of a closed receiver."""
    return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "shutting_down")


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
    """The answer to an unexpected error. It is never a 2xx, which would acknowledge the webhook."""
    _logger.error("A webhook could not be handled", exc_info=error)
    # The traceback and the futures in its frames are reference cycles, which would keep the body for long.
    traceback.clear_frames(error.__traceback__)
    return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "unexpected")


def handle_unexpected(
    req: Request,  # noqa: ARG001 - Falcon's signature
    resp: Response,
    error: Exception,
    params: dict[str, object],  # noqa: ARG001 - Falcon's signature
) -> None:
    """Handle all errors that are not Falcon's own."""
    fill(resp, unexpected(error))


def serialize_error(req: Request, resp: Response, error: HTTPError) -> None:  # noqa: ARG001 - Falcon's signature
    """Give Falcon's own errors, such as a wrong path, the form of all other answers."""
    fill(resp, refusal(HTTPStatus(error.status_code), "framework"))
