"""Keeps a repeated line from filling the log: anybody on the internet can make a public URL answer requests."""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

_INTERVAL: Final = 10.0
"""Seconds between two lines of one kind."""

_MAX_KINDS: Final = 100
_OTHER: Final = "other"
"""The kind that all share which come when there are so many already."""


@dataclass(slots=True)
class _State:
    next_line: float = 0.0
    suppressed: int = 0


class LogThrottle:
    """Writes at most one line of each kind every ten seconds, and says how many it left out.

    The kinds are words of ours, never something that a request holds; past a hundred of them the rest is one kind.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._states: dict[str, _State] = {}
        self._lock = threading.Lock()

    def warning(self, kind: str, message: str, *args: object) -> None:
        """Log a warning, unless a line of this kind was logged just before."""
        self._log(logging.WARNING, kind, message, *args)

    def info(self, kind: str, message: str, *args: object) -> None:
        """Log for information, unless a line of this kind was logged just before."""
        self._log(logging.INFO, kind, message, *args)

    def _log(self, level: int, kind: str, message: str, *args: object) -> None:
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
