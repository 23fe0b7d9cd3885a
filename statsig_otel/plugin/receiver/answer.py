"""The answer to a webhook request, and what a refusal says to the client and to the log."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from statsig_otel._times import RETRY_AFTER

_DESCRIPTIONS: Final = {
    HTTPStatus.BAD_REQUEST: "The body could not be read as a Statsig webhook.",
    HTTPStatus.UNAUTHORIZED: "The request is not signed with a signing secret of this receiver.",
    HTTPStatus.NOT_FOUND: "Nothing is served at this path.",
    HTTPStatus.METHOD_NOT_ALLOWED: "A webhook is sent with POST.",
    HTTPStatus.REQUEST_TIMEOUT: "The body did not arrive in time.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than this receiver takes.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "Content-Encoding must be identity: the signature covers the body as sent.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The request could not be handled. Send it again later.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The events could not be stored now. Send them again later.",
}

_DETAILS: Final = {
    "method": "only POST is answered with 200; a browser, for example, sends GET",
    "content_encoding": "the body is compressed: Statsig does not compress, so look at what a proxy does",
    "content_length": "Content-Length is repeated or malformed: look at what a proxy does",
    "too_large": "the body is larger than max_request_body_size: raise it if Statsig sent this",
    "slow_body": "the body did not arrive within read_timeout: look at the network and the proxy",
    "truncated": "the body ended early: the client or a proxy closed the connection",
    "gave_way": "newer bodies needed its memory (max_in_flight_bytes) while it arrived: look at who else sends here",
    "in_flight_bytes": "the bodies of all requests have max_in_flight_bytes: raise it if the machine has the memory",
    "shutting_down": "the service is stopping",
}
"""For the log: the meaning of a reason and what to do, where the refusal itself says no more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request.

    Attributes:
        status: The HTTP status.
        body: The JSON body. It contains nothing of the request except the code of a URL verification.
        reason: A short word for the counter and the log.
        detail: What happened, only for the log.
        retry_after: Seconds for the Retry-After header; None for no header.
        subject: What failed, such as an exporter; only for the log.

    Example:
        >>> from http import HTTPStatus
        >>> from statsig_otel.plugin import Answer
        >>> Answer(HTTPStatus.OK, {"accepted": 1}, reason="accepted").retry_after is None
        True
    """

    status: HTTPStatus
    body: dict[str, object]
    reason: str
    detail: str = ""
    retry_after: int | None = None
    subject: str = ""


def refusal(
    status: HTTPStatus, reason: str, detail: str = "", *, retry_after: int | None = None, subject: str = ""
) -> Answer:
    """The answer that refuses a request: a title and a description, the same for every client.

    Each 5xx has a Retry-After: a consumer may have its own, and otherwise it is `RETRY_AFTER`.
    """
    if retry_after is None and status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        retry_after = RETRY_AFTER
    body: dict[str, object] = {"title": f"{status.value} {status.phrase}", "description": _DESCRIPTIONS[status]}
    return Answer(status, body, reason, detail or _DETAILS.get(reason, ""), retry_after, subject)


class AnsweredError(Exception):
    """The request is answered before the end of its body.

    Example:
        >>> from statsig_otel.plugin import AnsweredError, Intake, Verifier
        >>> try:
        ...     Intake(verifier=Verifier(["webhook-..."])).begin([(b"content-encoding", b"gzip")], now_ns=0)
        ... except AnsweredError as error:
        ...     error.answer.status.value
        415
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.answer = answer
