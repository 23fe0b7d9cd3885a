"""Ends waits that last too long, with one timer for all waits of an event loop: a timer for each would cost more."""

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Wait = TypeVar("Wait", bound=Hashable)


class Deadlines(Generic[Wait]):
    """Ends waits that last too long. All methods have to be called in the thread of one event loop.

    Args:
        end: Called in the loop with each wait whose time is over.

    Example:
        >>> import asyncio
        >>> async def main() -> None:
        ...     deadlines = Deadlines(end=print)
        ...     deadlines.add("too long", 0.01)
        ...     deadlines.add("short enough", 0.01)
        ...     deadlines.discard("short enough")
        ...     await asyncio.sleep(0.1)
        >>> asyncio.run(main())
        too long
    """

    def __init__(self, end: Callable[[Wait], object]) -> None:
        self._end = end
        self._due: dict[Wait, float] = {}  # by the loop's clock
        self._next_check = math.inf

    def add(self, wait: Wait, seconds: float) -> None:
        """End a wait after that many seconds, unless it is discarded first."""
        loop = asyncio.get_running_loop()
        due = self._due[wait] = loop.time() + seconds
        if due < self._next_check:
            self._check_at(due, loop)

    def discard(self, wait: Wait) -> None:
        """Forget a wait, if it was added."""
        self._due.pop(wait, None)

    def hasten(self, seconds: float) -> None:
        """End all waits after at most that many seconds."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + seconds
        self._due = {wait: min(due, latest) for wait, due in self._due.items()}
        if self._due and latest < self._next_check:
            self._check_at(latest, loop)

    def _check_at(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        self._next_check = when
        if when < math.inf:
            loop.call_at(when, self._check, when)  # its handle, if it were kept, could keep the loop in memory

    def _check(self, when: float) -> None:
        if when != self._next_check:  # an earlier check has replaced this one
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        over = [wait for wait, due in self._due.items() if due <= now]
        for wait in over:
            if self._due.pop(wait, None) is not None:  # ending another one may have discarded it
                self._end(wait)
        self._check_at(min(self._due.values(), default=math.inf), loop)
