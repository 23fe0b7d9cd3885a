"""Translates an HTTP answer into an outcome, and words from a server or library into a reason. Pure functions.

- `RetryLater`: 408, 425, 429, and 5xx except 501 and 505. A 500 may be about the data.
- `Rejected`: 400, 413, 422.
- `Blocked`: all else.

A reason is written for a person who reads a log: one line of printable characters, of limited length, without the
values of the exporter's headers.
"""

import json
import re
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, quote_plus

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # the package has stubs, but no py.typed

from statsig_otel.exporters.delivery.retry import LONGEST_ASKED
from statsig_otel.exporters.exporter import Blocked, Outcome, Rejected, RetryLater
from statsig_otel.exporters.wording import phrase_of

MAX_MESSAGE_CHARS: Final = 300
"""The most characters of a server's message that a reason contains."""

_MOST_OF_MESSAGE: Final = 16 << 10
"""The most characters of a message that are looked at to show its beginning: each takes 80 bytes meanwhile."""

PROTOBUF: Final = "application/x-protobuf"
"""The content type of binary OTLP over HTTP."""

PROTOBUF_TYPES: Final = frozenset({PROTOBUF, "application/protobuf", "application/octet-stream", ""})

HTTP_RETRY_LATER: Final = frozenset({408, 425, 429, *range(500, 600)}) - {501, 505}
_HTTP_REJECTED: Final = frozenset({400, 413, 422})
_HTTP_REDIRECT: Final = range(300, 400)

REPAIR: Final = "repair the key (headers), the address (endpoint) or the certificate (tls)"
REPAIR_TLS: Final = "repair the certificates (tls)"
REPLACE_KEY: Final = "replace the key (headers)"
LET_WRITE: Final = "let the key (headers) write logs, or replace it"
CORRECT_ADDRESS: Final = "correct the address (endpoint)"
_HINTS: Final = {401: REPLACE_KEY, 403: LET_WRITE, 404: CORRECT_ADDRESS}

# The alerts of RFC 8446, section 6.2, about the client's certificate, as OpenSSL and BoringSSL name them.
_CLIENT_CERTIFICATE_ALERT: Final = re.compile(
    r"ALERT_(?:BAD_CERTIFICATE|UNSUPPORTED_CERTIFICATE|CERTIFICATE_(?:REVOKED|EXPIRED|UNKNOWN|REQUIRED)"
    r"|UNKNOWN_CA|ACCESS_DENIED)"
)


def untrusted(tls: str = "tls") -> str:
    """The reason for a server certificate that can't be verified or is for another host. `tls` is the settings' key."""
    keys = f"name its CA in {tls}::ca_file, or its host in {tls}::server_name_override"
    return f"the server's certificate is not trusted ({keys})"


CLIENT_CERTIFICATE_REFUSED: Final = "the server refuses the client certificate (see tls::cert_file)"
"""The reason for an alert about the exporter's own certificate."""


# The credentials, the query and the fragment of a URL (RFC 3986, section 3).
_LOCATION_SECRETS: Final = re.compile(r"(?<=//)[^/?#]*@|[?#].*", re.DOTALL)

_LONG_SECRET: Final = 8  # characters; a shorter secret would be found inside ordinary words

_DELAY_SECONDS: Final = re.compile(r"[0-9]+")
# A date of RFC 9110, section 5.6.7, consists of letters, digits and these few characters.
_DATE_LIKE: Final = re.compile(r"[A-Z][a-z]{2,8},? [A-Za-z0-9 :-]{12,32}")


def http_failure(
    status: int,
    body: bytes = b"",
    *,
    content_type: str = "",
    retry_after: str = "",
    location: str = "",
    now: float = 0.0,
    url: str = "",
    hide: Iterable[str] = (),
) -> Outcome:
    """The outcome of an HTTP response with a status other than 2xx.

    Args:
        status: The status code.
        body: The part of the body that was read: a `google.rpc.Status` by the specification, anything in practice.
        content_type: The header Content-Type.
        retry_after: The header Retry-After.
        location: The header Location.
        now: The time of the response, in seconds since the epoch.
        url: The URL of the request.
        hide: Strings that a reason must not contain.
    """
    words = [f"HTTP {status}", phrase_of(status)]
    if status in _HTTP_REDIRECT and location:
        words.append(f"to {one_line(_LOCATION_SECRETS.sub('', location), hide)}")
    if url:
        words.append(f"from {url}")
    reason = with_message(" ".join(filter(None, words)), one_line(_http_message(body, content_type), hide))
    return by_status(status, reason, parse_retry_after(retry_after, now))


def by_status(status: int, reason: str, after: float | None = None) -> Outcome:
    """The outcome of an HTTP status other than 2xx, with the seconds that the answer asks to wait."""
    if status in HTTP_RETRY_LATER:
        return RetryLater(reason, after, may_be_data=status == HTTPStatus.INTERNAL_SERVER_ERROR)
    if status in _HTTP_REJECTED:
        return Rejected(reason)
    return Blocked(reason, _HINTS.get(status, REPAIR))


def parse_retry_after(value: str, now: float) -> float | None:
    """The seconds to wait by a Retry-After header: a number of seconds or a date (RFC 9110, section 10.2.3).

    At most `LONGEST_ASKED`. None for a date before `now`, in seconds since the epoch, and for anything else.
    """
    value = value.strip(" \t")
    if _DELAY_SECONDS.fullmatch(value):
        return bounded(float(value))  # float() turns too many digits into infinity and does not raise
    date = server_time(value)
    return None if date is None else bounded(date - now)


def server_time(date: str) -> float | None:
    """A date in a header of a response in seconds since the epoch, or None if it is not a date.

    A date in Retry-After is by the server's clock. If the local clock is a day off, comparing the two adds that day.
    """
    try:
        return parsedate_to_datetime(date).timestamp() if _DATE_LIKE.fullmatch(date) else None
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def is_client_certificate_alert(text: str) -> bool:
    """Whether a TLS library's message reports the server's alert about the client certificate."""
    return _CLIENT_CERTIFICATE_ALERT.search(text) is not None


def one_line(text: str, hide: Iterable[str] = ()) -> str:
    """A server's or library's message as one line of limited length.

    Args:
        text: The message.
        hide: Strings that become `[REDACTED]`, such as header values: some servers quote a key that they refuse. The
            words of a string (as in `Bearer KEY`) are hidden too if they have at least 8 characters. A shorter string
            is hidden only where it is a whole word.
    """
    looked_at = text[:_MOST_OF_MESSAGE]
    line = " ".join("".join(char if char.isprintable() else " " for char in looked_at).split())
    secrets = {
        part
        for value in hide
        for part in (" ".join(value.split()), *(word for word in value.split() if len(word) >= _LONG_SECRET))
    }
    secrets.discard("")
    if secrets:
        longest_first = sorted({form for secret in secrets for form in _spellings(secret)}, key=len, reverse=True)
        line = re.sub("|".join(map(_as_pattern, longest_first)), "[REDACTED]", line, flags=re.IGNORECASE)
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 3] + "..."


def _spellings(secret: str) -> set[str]:
    """The forms in which a server may quote a secret: unchanged, or escaped for JSON, HTML or a URL."""
    import html  # noqa: PLC0415 - its table of entities uses memory, and most services never need it

    return {
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        html.escape(secret),
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
    }


def _as_pattern(secret: str) -> str:
    text = re.escape(secret)
    return text if len(secret) >= _LONG_SECRET else rf"(?<!\w){text}(?!\w)"


def bounded(seconds: float) -> float | None:
    """The seconds that a server asks to wait, within reason; None for a negative number."""
    return min(seconds, LONGEST_ASKED) if seconds >= 0 else None


def with_message(status: str, message: str) -> str:
    """A reason of a status and what a server says about it, if anything."""
    return f"{status}: {message}" if message else status


def media_type(content_type: str) -> str:
    """The media type of a header Content-Type, without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def _http_message(body: bytes, content_type: str) -> str:
    """The message of a `google.rpc.Status`, in binary or JSON, or else the whole text."""
    if media_type(content_type) in PROTOBUF_TYPES - {""}:
        try:
            return str(Status.FromString(body).message)
        except DecodeError:
            return ""
    text = body.decode("utf-8", "replace")
    if media_type(content_type) == "application/json":
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(document, dict) and isinstance(document.get("message"), str):
            return str(document["message"])
    return text
