"""Decides when to try again after a failed send. Pure decisions, without a clock or a thread."""

from dataclasses import dataclass, field
from typing import Final

SHORTEST_WAIT: Final = 0.05
"""The fewest seconds between two attempts, whatever the settings: a dead backend must not cause a busy loop."""

LONGEST_ASKED: Final = 3600.0
"""The longest wait that a backend may ask for, in seconds: nobody may silence an exporter for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings:
    """`retry_on_failure`, with the Collector's keys (configretry) and defaults, without an end by default."""

    enabled: bool = True
    initial_interval: float = 5.0  # seconds before the second attempt
    randomization_factor: float = 0.5  # the largest random change of a wait, in both directions, as a fraction of it
    multiplier: float = 1.5  # of the wait, with each attempt
    max_interval: float = 30.0  # seconds, before the random change; the backend may ask for more
    max_elapsed_time: float = 0.0  # of temporary failures of a record in a row, then it is a dead letter; 0: never


@dataclass(slots=True)
class Backoff:
    """The waits of one outage; `attempts` of them since the last `reset`."""

    settings: RetrySettings
    attempts: int = field(default=0, init=False)
    _interval: float = field(default=0.0, init=False)

    def next(self, chance: float, asked: float | None = None) -> float:
        """Seconds until the next attempt: exponential with jitter, and never less than the backend asked for.

        Args:
            chance: A random number from 0 to 1.
            asked: Seconds that the backend asks for; at most `LONGEST_ASKED` are granted.
        """
        settings = self.settings
        # Step by step: a power of the number of attempts would overflow in a long outage.
        grown = self._interval * settings.multiplier if self.attempts else settings.initial_interval
        self._interval = min(grown, settings.max_interval)
        self.attempts += 1
        jitter = settings.randomization_factor * (2 * chance - 1)
        return max(self._interval * (1 + jitter), min(asked or 0.0, LONGEST_ASKED), SHORTEST_WAIT)

    def reset(self) -> None:
        """The outage is over: the next wait is as long as the first one."""
        self.attempts = 0
