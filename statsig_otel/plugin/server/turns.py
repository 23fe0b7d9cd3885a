"""Decides which connection of a server may read on: one in each millisecond, so that others are served.

If the loop went from turn to turn, its thread would hold the interpreter's lock all the time. Other threads get that
after 5 ms then, and the one that stores a webhook needs it dozens of times.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeAlias

NextTurn: TypeAlias = Callable[[], None]
"""Lets a connection read on."""

PAUSE: Final = 0.001
"""Seconds before each turn, in which others have the processor; loops count in milliseconds."""


class Turns:
    """The connections that wait for their turn.

    Those that only discard what a refused client still sends have theirs when no other waits.
    """

    def __init__(self) -> None:
        self._loop: Final = asyncio.get_running_loop()
        self._reading: Final = OrderedDict[NextTurn, None]()
        self._discarding: Final = OrderedDict[NextTurn, None]()
        self._is_called = False

    def add(self, next_turn: NextTurn, *, discards: bool = False) -> None:
        """Let a connection read on later."""
        (self._discarding if discards else self._reading)[next_turn] = None
        self._call()

    def drop(self, next_turn: NextTurn) -> None:
        """Forget a connection that is closed, if it waits."""
        self._reading.pop(next_turn, None)
        self._discarding.pop(next_turn, None)

    def _call(self) -> None:
        if not self._is_called and (self._reading or self._discarding):
            self._is_called = True
            self._loop.call_later(PAUSE, self._give)

    def _give(self) -> None:
        self._is_called = False
        if waiting := self._reading or self._discarding:
            next_turn, _ = waiting.popitem(last=False)
            self._call()
            next_turn()
