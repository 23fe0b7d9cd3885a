"""Many waits of one event loop with one timer: a timer for each would cost more than most of the waits themselves."""

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Wait = TypeVar("Wait", bound=Hashable)


class Deadlines(Generic[Wait]):
    """Ends waits that last too long. All methods are for the thread of one event loop.

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
        self._next_look = math.inf

    def add(self, wait: Wait, seconds: float) -> None:
        """End a wait after so many seconds, unless it is discarded before."""
        loop = asyncio.get_running_loop()
        due = self._due[wait] = loop.time() + seconds
        if due < self._next_look:
            self._look_at(due, loop)

    def discard(self, wait: Wait) -> None:
        """Forget a wait, if it is here."""
        self._due.pop(wait, None)

    def hasten(self, seconds: float) -> None:
        """End all waits after so many seconds at the latest."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + seconds
        self._due = {wait: min(due, latest) for wait, due in self._due.items()}
        if self._due and latest < self._next_look:
            self._look_at(latest, loop)

    def _look_at(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        self._next_look = when
        if when < math.inf:
            loop.call_at(when, self._look, when)  # its handle would keep the loop alive where this outlives it

    def _look(self, when: float) -> None:
        if when != self._next_look:  # an earlier one has taken its place
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        over = [wait for wait, due in self._due.items() if due <= now]
        for wait in over:
            if self._due.pop(wait, None) is not None:  # none of those that ended before has discarded it
                self._end(wait)
        self._look_at(min(self._due.values(), default=math.inf), loop)
