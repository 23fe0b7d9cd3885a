"""Tells a supervisor such as systemd about the service: started, reloading, stopping, alive (sd_notify(3))."""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

_logger: Final = logging.getLogger(__name__)

_PATIENCE: Final = 1.0
"""Seconds that a supervisor with a full socket may delay the service."""


class Notifier:
    """Sends messages to the socket that NOTIFY_SOCKET names. Without that variable nothing is sent.

    Args:
        environ: The environment variables.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name  # unix(7): a name without a file
        self._is_stopping = False
        self.watchdog_interval: Final = _watchdog_interval(environ) if name else None
        """Seconds after which the supervisor expects the next `alive`, or None if it does not."""

    def started(self) -> None:
        """The service listens."""
        self._send("READY=1", "STATUS=Listening")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """The configuration is read again within the block. A reload that fails ends it too."""
        if self._is_stopping:
            yield
            return
        # systemd.service(5), Type=notify-reload: the time tells this reload from an earlier one.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=Reloading")
        status = "Listening. The last reload failed: see the log"
        try:
            yield
            status = "Listening"
        finally:
            if not self._is_stopping:
                self._send("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        """The service finishes its work, and ends."""
        self._is_stopping = True
        self._send("STOPPING=1", "STATUS=Finishing the work in flight")

    def alive(self) -> None:
        """The service works."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
                sending.settimeout(_PATIENCE)
                sending.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            _logger.warning(
                "The supervisor can't be told %s at NOTIFY_SOCKET=%s: %s",
                lines[0],
                self._address.replace("\0", "@"),
                error.strerror or error,
            )


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """The interval of sd_watchdog_enabled(3): it is for one process, which WATCHDOG_PID names."""
    microseconds, process = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdecimal() or not int(microseconds) or process != str(os.getpid()):
        return None
    return int(microseconds) / 1_000_000
