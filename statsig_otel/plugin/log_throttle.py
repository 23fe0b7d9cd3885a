"""Keeps a repeated warning from filling the log: anybody on the internet can make a public URL refuse requests."""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

_INTERVAL: Final = 10.0
"""Seconds between two lines of one kind."""


@dataclass(slots=True)
class _State:
    next_line: float = 0.0
    suppressed: int = 0


class LogThrottle:
    """Writes at most one line of each kind every ten seconds, and says how many it left out.

    The kinds are few and fixed words of ours, never something that a request holds.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._states: dict[str, _State] = {}
        self._lock = threading.Lock()

    def warning(self, kind: str, message: str, *args: object) -> None:
        """Log a warning, unless one of this kind was logged just before."""
        now = time.monotonic()
        with self._lock:
            state = self._states.setdefault(kind, _State())
            if now < state.next_line:
                state.suppressed += 1
                return
            suppressed, state.suppressed = state.suppressed, 0
            state.next_line = now + _INTERVAL
        if suppressed:
            message += f" (and {suppressed} more like it before)"
        self._logger.warning(message, *args)
