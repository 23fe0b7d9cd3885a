"""When to try again: a pure decision, without a clock or a thread."""

from dataclasses import dataclass, field
from typing import Final

SHORTEST_WAIT: Final = 0.05
"""Seconds between two attempts at least, whatever the settings say: a dead backend is no reason for a busy loop."""

LONGEST_ASKED: Final = 3600.0
"""Seconds that a backend may ask for: nobody may silence an exporter for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings:
    """`retry_on_failure`, with the Collector's keys (configretry) and defaults, but no end by default.

    Attributes:
        enabled: Whether a batch is sent again at all.
        initial_interval: Seconds before the second attempt.
        randomization_factor: How far a wait is moved by chance, as a fraction, both ways.
        multiplier: By what the wait grows with each attempt.
        max_interval: Seconds; the longest wait that is not asked for by the backend, before chance moves it.
        max_elapsed_time: Seconds after which a batch becomes a dead letter; 0 for never.
    """

    enabled: bool = True
    initial_interval: float = 5.0
    randomization_factor: float = 0.5
    multiplier: float = 1.5
    max_interval: float = 30.0
    max_elapsed_time: float = 0.0


@dataclass(slots=True)
class Backoff:
    """The waits of one outage.

    Attributes:
        settings: How long to wait.
        attempts: How many waits there were since the last `reset`.
    """

    settings: RetrySettings
    attempts: int = field(default=0, init=False)
    _interval: float = field(default=0.0, init=False)

    def next(self, chance: float, asked: float | None = None) -> float:
        """Seconds until the next attempt: exponential with jitter, and never less than the backend asked for.

        Args:
            chance: A number from 0 to 1, the caller's.
            asked: Seconds that the backend wants to be left alone for; at most `LONGEST_ASKED` are granted.
        """
        settings = self.settings
        # Grown step by step: a power of the number of attempts would overflow in a long outage.
        grown = self._interval * settings.multiplier if self.attempts else settings.initial_interval
        self._interval = min(grown, settings.max_interval)
        self.attempts += 1
        jitter = settings.randomization_factor * (2 * chance - 1)
        return max(self._interval * (1 + jitter), min(asked or 0.0, LONGEST_ASKED), SHORTEST_WAIT)

    def reset(self) -> None:
        """The outage is over: the next wait is the first one."""
        self.attempts = 0
