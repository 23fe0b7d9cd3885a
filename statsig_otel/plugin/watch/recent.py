"""Keeps a value for half a second, so that many readers of a service cost no more than one."""

import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

_T = TypeVar("_T")

KEPT_FOR: Final = 0.5
"""Seconds for which a value is kept. To make one asks the system for the free space of a disk."""


class Recent(Generic[_T]):
    """A value that is made when it is asked for, at most twice a second.

    Args:
        make: Makes the value.
        clock: The monotonic clock.
    """

    def __init__(self, make: Callable[[], _T], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._until = 0.0
        self._value: _T | None = None

    def get(self) -> _T:
        """The value, which may be half a second old."""
        now, value = self._clock(), self._value
        if value is None or now >= self._until:
            value = self._value = self._make()
            self._until = now + KEPT_FOR
        return value

    def forget(self) -> None:
        """Make the value anew when it is asked for next."""
        self._value = None
