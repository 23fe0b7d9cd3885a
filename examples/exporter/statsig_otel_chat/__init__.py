"""An example of your own exporter: posts config changes to a chat's incoming webhook.

Slack, Mattermost, Rocket.Chat and Discord (below `/slack`) all accept the same message: a JSON object with a `text`.
"""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from pydantic import Field, field_validator

from statsig_otel.config import Duration, Opaque, SettingError, Settings
from statsig_otel.exporters import Blocked, Delivered, ExporterType, Outcome, Rejected, RetryLater, log_records

_LONGEST: Final = 300
"""The most characters of one change. The length of a message is limited, and one change must always fit."""

_ESCAPED: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""A flag's name must not notify the whole channel (`<!channel>`)."""


class ChatSettings(Settings):
    """The settings of a `chat` exporter.

    Attributes:
        url: The webhook's address. Anyone who knows it can write to the channel, so it is a secret.
        timeout: The time for one message, including connecting.
    """

    url: Opaque
    timeout: Duration = Field(default=10.0, gt=0)

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: Opaque) -> Opaque:
        parts = urlsplit(url.reveal())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingError("must be a URL", "copy the whole of it, from https:// on")
        _ = parts.port  # raises a ValueError where it is none
        return url


class ChatExporter:
    """Posts to one channel. Implements `statsig_otel.exporters.Exporter`.

    Args:
        name: The id in the configuration, such as `chat/releases`.
        settings: The settings in the configuration.
    """

    def __init__(self, name: str, settings: ChatSettings) -> None:
        self._name = name
        self._url = urlsplit(settings.url.reveal())
        self._lock = threading.Lock()  # for the next two attributes, because `shutdown` is called from another thread
        self._socket: socket.socket | None = None
        self._closed = False

    def start(self) -> None:
        """Open nothing: changes are rare, so each message has its own connection."""
        self._closed = False

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:  # noqa: ARG002 - the protocol's signature
        """Post the batch as one message: the chat accepts all of it or nothing, so that a retry repeats no change."""
        message = json.dumps({"text": "\n".join(_lines(payload))}).encode()
        deadline = threading.Timer(timeout, self._disconnect)  # the connection's own timeout restarts with each byte
        deadline.daemon = True
        deadline.start()
        try:
            return self._post(message, timeout)
        except (OSError, HTTPException) as error:
            # The error's message may contain the URL, which is a secret.
            return RetryLater(f"no answer: {type(error).__name__}")
        finally:
            deadline.cancel()

    def shutdown(self) -> None:
        """Make a `send` in progress end."""
        self._closed = True
        self._disconnect()

    def _post(self, message: bytes, timeout: float) -> Outcome:
        kind = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=timeout)
        try:
            connection.connect()
            with self._lock:
                self._socket = connection.sock  # the connection may drop its reference before the answer is read
            if self._closed:
                return RetryLater("shut down")
            path = f"{self._url.path or '/'}{f'?{self._url.query}' if self._url.query else ''}"
            connection.request("POST", path, message, {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                text = response.read(200).decode(errors="replace").strip()
                return _outcome(response.status, text, response.headers.get("Retry-After", ""))
        finally:
            with self._lock:
                self._socket = None
                connection.close()

    def _disconnect(self) -> None:
        with self._lock:
            if self._socket is not None:
                with suppress(OSError):  # the connection may already be closed
                    # socket.shutdown, because SSLSocket.shutdown would discard the TLS state while `send` reads.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _outcome(status: int, text: str, retry_after: str) -> Outcome:
    """What an answer means for the batch."""
    reason = f"{status} {text}".rstrip()
    if status // 100 == 2:  # noqa: PLR2004 - the class of success
        return Delivered()
    if status in (408, 425, 429) or status // 100 == 5:  # noqa: PLR2004 - the class of the server's own faults
        return RetryLater(reason, float(retry_after) if retry_after.isdecimal() else None)
    if status in (400, 413, 422):  # about the message: the batch is halved until the refused change is alone
        return Rejected(reason)
    return Blocked(reason)  # for example a deleted channel or webhook: someone has to fix the configuration


def _lines(payload: bytes) -> Iterator[str]:
    """One line per change."""
    yield from map(_line, log_records(payload))


def _line(record: LogRecord) -> str:
    texts = {attribute.key: attribute.value.string_value for attribute in record.attributes}
    who = texts.get("user.name") or texts.get("user.email")
    by = f" by {who}" if who else ""
    description = texts.get("change_event.label.description", "")
    line = " ".join(f"{record.body.string_value}{by}{f': {description}' if description else ''}".split())
    shown = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
    return shown.translate(_ESCAPED)


EXPORTER: Final = ExporterType(ChatSettings, ChatExporter)
"""The entry point in pyproject.toml refers to this."""
