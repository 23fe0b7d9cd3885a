"""The reasons for which a webhook is refused.

WebhookError
 ├── UnauthorizedError    it can't be proven to come from Statsig
 └── MalformedBodyError   it comes from Statsig, but its body can't be read
"""

from typing import Final

from statsig_otel._arguments import mistyped

_BYTES: Final = (bytes, bytearray)


class WebhookError(Exception):
    """The base of the reasons for which a request is refused.

    Args:
        message: What is wrong, for the log; by default the reason.

    Attributes:
        reason: A short word for the counter and the log. The client is not told.
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
    """The request comes from Statsig, but its body is not UTF-8, not JSON, or has none of the known shapes.

    Example:
        >>> from statsig_otel.plugin import MalformedBodyError, parse
        >>> try:
        ...     parse(b'"a text"')
        ... except MalformedBodyError as error:
        ...     error.reason
        'unknown_shape'
    """


def check_body(body: object) -> None:
    """Refuse a body that was decoded: the signature covers its bytes.

    Raises:
        TypeError: The body is not bytes.
    """
    if not isinstance(body, _BYTES):  # without a call, since each part of a body is checked
        raise TypeError(mistyped("body", body, "bytes", hint="pass the raw body of the request, as it was sent"))
