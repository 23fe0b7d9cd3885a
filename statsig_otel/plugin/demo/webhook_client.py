"""A webhook client: signs a body as Statsig would, posts it to a receiver, and explains the answer."""

import json
import os
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from secrets import token_hex
from typing import Final
from urllib.parse import urlsplit

import urllib3
from urllib3 import exceptions as http

from statsig_otel import __version__
from statsig_otel.exporters.terminal import printable
from statsig_otel.exporters.wording import phrase_of
from statsig_otel.plugin.demo.samples import url_verification
from statsig_otel.plugin.settings import SECRET_VARIABLE
from statsig_otel.plugin.webhook.body import parse, parse_url_verification
from statsig_otel.plugin.webhook.errors import MalformedBodyError
from statsig_otel.plugin.webhook.secret import fault_of_secret
from statsig_otel.plugin.webhook.signature import sign

_MAX_ANSWER: Final = 64 << 10
"""The most bytes of an answer that are read. A receiver's answers are far shorter."""

_HINTS: Final[Mapping[int, str]] = {
    400: "The signature is valid, but the body is not a Statsig webhook that the receiver can read.",
    401: "The receiver has another signing secret or none, or the two clocks differ by more than its tolerance.",
    404: "Nothing is served at this path. The default is /api/v1/data/events/receiver/statsig.",
    405: "This URL does not accept POST. Is it the receiver's?",
    413: "The body is larger than max_request_body_size.",
    415: "A proxy between this command and the receiver has encoded the body.",
    503: "The receiver can't deliver now, so it accepted nothing. Its log says why.",
}


class SendError(Exception):
    """Nothing was sent, or no answer came. The message is one line and says what to check."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A receiver's answer."""

    status: int
    body: bytes  # its first 64 KiB
    location: str | None = None  # the target of a redirect, which is not followed
    retry_after: str | None = None  # the header, as sent

    @property
    def status_line(self) -> str:
        """The status and its reason phrase, such as `200 OK`."""
        return f"{self.status} {phrase_of(self.status)}".rstrip()

    @property
    def text(self) -> str:
        """The body with unprintable characters escaped."""
        return "\n".join(map(printable, self.body.decode(errors="replace").splitlines()))

    @property
    def hint(self) -> str | None:
        """The usual meaning of the answer, or None if that is clear."""
        if self.location is not None:
            return f"Redirects are not followed. This one points to {printable(self.location)}: use the final URL."
        hint = _HINTS.get(self.status)
        if hint is not None and self.retry_after is not None:
            return f"{hint} Retry-After is {printable(self.retry_after)}."
        return hint


def read_secret(file: Path | None, environment: Mapping[str, str] = os.environ) -> str:
    """The signing secret from a file, without one line break at its end, or else from STATSIG_SIGNING_SECRET.

    Raises:
        SendError: There is no secret, or the file can't be read.
    """
    if file is None:
        secret, source = environment.get(SECRET_VARIABLE, ""), SECRET_VARIABLE
        if not secret:
            raise SendError(
                f"there is no signing secret: set {SECRET_VARIABLE} or name a file with --secret-file. Use one of the "
                "receiver's signing_secrets, as the Statsig console shows it."
            )
    else:
        source = str(file)
        try:
            # A variable has bytes that are not UTF-8 as lone surrogates too (PEP 383).
            text = file.read_bytes().decode(errors="surrogateescape")
        except OSError as error:
            raise SendError(f"the secret file can't be read: {error}") from error
        secret = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
        if not secret:
            raise SendError(f"the secret file {source} is empty")
    if any("\ud800" <= char <= "\udfff" for char in secret):
        raise SendError(f"the secret in {source} is not valid UTF-8")
    if fault := fault_of_secret(secret):
        raise SendError(f"the secret in {source} {fault.message}: {fault.hint}")
    return secret


def body_hint(body: bytes) -> str | None:
    """Why a receiver would answer 400 to this body, or None if the body is well-formed."""
    if parse_url_verification(body) is not None:
        return None
    try:
        parse(body)
    except MalformedBodyError as error:
        return str(error)
    return None


class WebhookClient:
    """Posts bodies to one URL, byte for byte, and follows no redirects.

    The timeout is in seconds, from the connection to the end of the answer. The CA file has PEM certificates to trust
    instead of the system's.

    Raises:
        SendError: The URL is not valid, or the file contains no certificate.
    """

    def __init__(self, url: str, *, timeout: float = 10.0, ca_file: Path | None = None) -> None:
        _check_url(url)
        self._url = url
        self._timeout = timeout
        self._tls = _tls(ca_file) if url.lower().startswith("https:") else None

    def post(self, body: bytes, *, secret: str) -> Answer:
        """Post a body, signed with the current time.

        Raises:
            SendError: There was no answer.
        """
        return self._post(body, sign(body, secret=secret, timestamp_ms=time.time_ns() // 1_000_000))

    def verify_url(self) -> tuple[Answer, bool]:
        """Send a URL verification as Statsig does when a webhook is saved: unsigned, with a random code.

        Return the answer, and whether it is a 200 that echoes the code.

        Raises:
            SendError: There was no answer.
        """
        code = token_hex(8)
        answer = self._post(url_verification(code), {})
        return answer, answer.status == HTTPStatus.OK and _verification_code(answer.body) == code

    def _post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        deadline = time.monotonic() + self._timeout
        fields = {"Content-Type": "application/json", "User-Agent": f"statsig-otel/{__version__}", **headers}
        with urllib3.PoolManager(ssl_context=self._tls) as pool:
            try:
                response = pool.request(
                    "POST", self._url, body=body, headers=fields, retries=False, redirect=False,
                    timeout=urllib3.Timeout(total=self._timeout), preload_content=False,
                )  # fmt: skip
                content = b""
                with closing(response):
                    while len(content) < _MAX_ANSWER and (chunk := response.read1(_MAX_ANSWER - len(content))):
                        content += chunk
                        if time.monotonic() > deadline:
                            raise SendError(self._too_slow())
            except http.HTTPError as error:
                raise SendError(self._explain(error)) from error
        location = response.headers.get("Location") if 300 <= response.status < 400 else None  # noqa: PLR2004 - RFC 9110
        return Answer(response.status, content, location, response.headers.get("Retry-After"))

    def _explain(self, error: http.HTTPError) -> str:
        where = _host(self._url)
        if isinstance(error, http.NameResolutionError):
            return f"the host of {where} can't be found"
        if isinstance(error, http.ConnectTimeoutError) and not isinstance(error, http.NewConnectionError):
            return f"no connection to {where} within {self._timeout:g} s"
        if isinstance(error, http.NewConnectionError):
            return f"no connection to {where}: {_cause(error)}. Is the service running, and is this its address?"
        if isinstance(error, http.TimeoutError):
            return self._too_slow()
        if isinstance(error, http.SSLError):
            return (
                f"no TLS connection to {where}: {_cause(error)}. If your own authority signed the certificate, "
                "use --ca-file."
            )
        return f"{where} did not answer: {_cause(error)}"

    def _too_slow(self) -> str:
        return f"{_host(self._url)} did not answer within {self._timeout:g} s (--timeout)"


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SendError(f"the URL can't be read: {error}") from error
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise SendError("the URL must begin with http:// or https:// and name a host")
    if parts.username is not None:
        raise SendError("the URL contains a user or a password: remove it, a receiver checks only the signature")
    if port == 0:
        raise SendError("the URL has port 0: use the port that the service prints at its start")


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise SendError(f"the CA file {ca_file} contains no PEM certificate") from error
    except OSError as error:
        raise SendError(f"the CA file can't be read: {error.strerror}: {ca_file}") from error


def _host(url: str) -> str:
    return printable(urlsplit(url).netloc)


def _cause(error: BaseException) -> str:
    """The innermost cause: urllib3 wraps the operating system's errors."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(text or type(error).__name__)


def _verification_code(body: bytes) -> object:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer.get("verification_code") if isinstance(answer, dict) else None
