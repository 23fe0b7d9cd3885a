"""Keeps how many requests, records and deliveries each minute of the last hour had, from the counts of the metrics."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from statsig_otel import _telemetry

_logger: Final = logging.getLogger(__name__)

MINUTES: Final = 60

SERIES: Final = ("Requests accepted", "Requests refused", "Config changes", "Records delivered")

_INTERVAL: Final = 5.0
"""Seconds between two readings of the counts. A minute's boundary is that exact."""

_REFUSED: Final = 400


def totals(receivers: Iterable[str]) -> tuple[float, ...]:
    """What the receivers and all exporters have counted so far, in the order of `SERIES`."""
    taken = refused = changes = 0.0
    for name in receivers:
        counts = _telemetry.counts_of(name)
        with counts.lock:
            answers = list(counts.answers.items())
            changes += counts.changes
        for (status, _), number in answers:
            if status < _REFUSED:
                taken += number
            else:
                refused += number
    refused += sum(number for _, number in _telemetry.server_refused.read())
    refused += sum(number for _, number in _telemetry.handshakes_failed.read())
    return taken, refused, changes, sum(number for _, number in _telemetry.exporter_sent.read())


class History:
    """The minutes of the last hour.

    Args:
        read: Returns what was counted so far, in the order of `SERIES`.
        clock: Returns the time in seconds since the epoch.
    """

    def __init__(self, read: Callable[[], tuple[float, ...]], clock: Callable[[], float] = time.time) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._begun: deque[tuple[int, tuple[float, ...]]] = deque(maxlen=MINUTES)  # minutes, and the totals before them
        self._stopped = threading.Event()

    def start(self) -> None:
        """Read the counts every few seconds, in a thread."""
        self.note()
        threading.Thread(target=self._run, name="statsig-otel history", daemon=True).start()

    def stop(self) -> None:
        """Stop reading."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL):
            try:
                self.note()
            except Exception:
                _logger.exception("The counts of the last hour can't be noted now")

    def note(self) -> tuple[float, ...]:
        """Note the counts if a new minute has begun, and return them."""
        now, minute = self._read(), int(self._clock() // 60)
        with self._lock:
            while self._begun and self._begun[-1][0] > minute:  # the clock was put back
                self._begun.pop()
            if not self._begun or minute > self._begun[-1][0]:
                self._begun.append((minute, now))
        return now

    def minutes(self) -> list[tuple[int, tuple[float, ...]]]:
        """For each of the last 60 minutes, oldest first, when it began and what it had, in the order of `SERIES`.

        The times are in seconds since the epoch. A minute without a reading counts with the one before it.
        """
        now = self.note()
        last = int(self._clock() // 60)
        with self._lock:
            begun = list(self._begun)
        ends = [total for _, total in begun[1:]] + [now]
        found = {
            minute: tuple(max(end - start, 0.0) for start, end in zip(before, after, strict=True))
            for (minute, before), after in zip(begun, ends, strict=True)
        }
        nothing = (0.0,) * len(SERIES)
        return [(minute * 60, found.get(minute, nothing)) for minute in range(last - MINUTES + 1, last + 1)]
