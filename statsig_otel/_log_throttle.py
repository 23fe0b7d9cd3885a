"""Limits how often a line is logged: anybody on the internet can make a public URL answer requests."""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

_INTERVAL: Final = 10.0
"""Seconds between two lines of one kind."""

_MAX_KINDS: Final = 100
_OTHER: Final = "other"
"""Shared by all kinds after the first hundred."""


@dataclass(slots=True)
class _State:
    next_line: float = 0.0
    suppressed: int = 0


class LogThrottle:
    """Logs at most one line of each kind in ten seconds, and says how many it left out.

    The kinds are our own words, never a part of a request. All kinds after the first hundred count as one.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._states: dict[str, _State] = {}
        self._lock = threading.Lock()

    def log(self, level: int, kind: str, message: str, *args: object) -> None:
        """Log a line, unless one of this kind was logged in the last ten seconds."""
        now = time.monotonic()
        with self._lock:
            if kind not in self._states and len(self._states) >= _MAX_KINDS:
                kind = _OTHER
            state = self._states.setdefault(kind, _State())
            if now < state.next_line:
                state.suppressed += 1
                return
            suppressed, state.suppressed = state.suppressed, 0
            state.next_line = now + _INTERVAL
        if suppressed:
            message += f" (and {suppressed} more like it before)"
        self._logger.log(level, message, *args)
