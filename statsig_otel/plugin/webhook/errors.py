"""Why a webhook is refused.

WebhookError
 ├── UnauthorizedError    not provably from Statsig
 └── MalformedBodyError   from Statsig, but of no known shape
"""


class WebhookError(Exception):
    """A request that is not accepted.

    Args:
        reason: As below.
        message: What is wrong, for the log; the reason without it.

    Attributes:
        reason: A short word for a counter and the log. The caller is told nothing of it.

    Example:
        >>> from statsig_otel.plugin import WebhookError, parse
        >>> try:
        ...     parse(b"{")
        ... except WebhookError as error:
        ...     error.reason
        'not_json'
    """

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
        ...     error.reason
        'signature_malformed'
    """


class MalformedBodyError(WebhookError):
    """The request is Statsig's, but its body is no UTF-8 JSON of a known shape.

    Example:
        >>> from statsig_otel.plugin import MalformedBodyError, parse
        >>> try:
        ...     parse(b'"a text"')
        ... except MalformedBodyError as error:
        ...     error.reason
        'unknown_shape'
    """
