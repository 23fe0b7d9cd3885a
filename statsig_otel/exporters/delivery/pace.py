"""Finds the pause between two requests that a limit on their rate needs. Pure decisions, without a clock or a thread.

A limit without a burst (nginx's `limit_req`) answers 503 to a request that comes soon after another one. While records
are refused, several requests in a row have to be answered before one is known to be at fault, so such a limit could
hold them up for good. But a backend can also fail at random, and then a pause only costs time. The difference: under a
limit each row of requests ends after its first ones. So the first such row causes a pause that soon gets shorter, and
some in succession a pause that grows.
"""

import math
from typing import Final

_ROW: Final = 3
"""The most answers before a failure for which a limit is a likely cause. More prove that a record is at fault."""

_LIKELY: Final = 3
"""The rows in a row that have to end early before a limit is the likely cause."""

_SHORTER: Final = 0.95
"""The part of the pause that is left after an answer that shows that it was long enough."""

_MUCH_SHORTER: Final = 0.8
"""The same while a limit is not a likely cause."""

_LONGEST_PAUSE: Final = 15.0
"""The longest pause between two requests, in seconds."""


class Pace:
    """The pause between two requests.

    Attributes:
        pause: Seconds from an outcome to the next request, at least.
    """

    def __init__(self, step: float) -> None:
        """Begin without a pause.

        Args:
            step: The shortest pause, in seconds.
        """
        self.pause: float = 0.0
        self._step = step
        self._answered = 0  # requests in a row
        self._ended_early = 0  # such rows, in a row
        self._last = -math.inf

    def answered(self, now: float) -> None:
        """A request was answered. If it followed another one soon, a shorter pause may do."""
        rested, self._last = now - self._last, now
        if rested > _LONGEST_PAUSE:
            self._answered = 0
        elif rested < self._longer():
            self.pause *= _SHORTER if self._ended_early >= _LIKELY else _MUCH_SHORTER
        self._answered += 1

    def failed(self, now: float) -> None:
        """A request failed, perhaps since it came too soon after another one."""
        rested, self._last = now - self._last, now
        answered, self._answered = self._answered, 0
        if answered >= _ROW or (not answered and rested >= self._longer()):
            self._ended_early = 0
        elif answered and rested < self._longer():
            self._ended_early += 1
            is_likely = self._ended_early >= _LIKELY
            self.pause = min(self._longer(), _LONGEST_PAUSE) if is_likely else max(self._step, self.pause)

    @property
    def answers(self) -> bool:
        """Whether enough requests in a row were answered that no limit ended the row, and the backend is not away."""
        return self._answered >= _ROW

    def reset(self) -> None:
        """Nothing waits that was refused."""
        self.pause, self._answered, self._ended_early = 0.0, 0, 0

    def _longer(self) -> float:
        return max(self._step, 2 * self.pause)
