"""Why a webhook is refused."""

from typing import ClassVar


class WebhookError(Exception):
    """A request that is not accepted.

    Args:
        reason: As below.
        message: What is wrong, for the log; the reason without it.

    Attributes:
        status: The HTTP status to answer.
        reason: A short word for a counter and the log. The caller is told nothing of it.

    Example:
        >>> from statsig_otel.plugin.webhook.errors import WebhookError
        >>> from statsig_otel.plugin import parse
        >>> try:
        ...     parse(b"{")
        ... except WebhookError as error:
        ...     (error.status, error.reason)
        (400, 'not_json')
    """

    status: ClassVar[int]

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class UnauthorizedError(WebhookError):
    """The request can't be proven to come from Statsig.

    Example:
        >>> from statsig_otel.plugin import UnauthorizedError, verify
        >>> try:
        ...     verify(b"", signature="v0=", timestamp="1739400185198", secrets=["webhook-..."], now_ms=1739400185198)
        ... except UnauthorizedError as error:
        ...     (error.status, error.reason)
        (401, 'signature_malformed')
    """

    status = 401


class MalformedBodyError(WebhookError):
    """The request is Statsig's, but its body is no UTF-8 JSON of a known shape.

    Example:
        >>> from statsig_otel.plugin import MalformedBodyError, parse
        >>> try:
        ...     parse(b'"a text"')
        ... except MalformedBodyError as error:
        ...     error.status
        400
    """

    status = 400
