"""Decides which connection of a server may read on: one in each round of the event loop, so that others are served."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeAlias

NextTurn: TypeAlias = Callable[[], None]
"""Lets a connection read on."""


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
        """Let a connection read on in a later round of the loop."""
        (self._discarding if discards else self._reading)[next_turn] = None
        self._call()

    def drop(self, next_turn: NextTurn) -> None:
        """Forget a connection that is closed, if it waits."""
        self._reading.pop(next_turn, None)
        self._discarding.pop(next_turn, None)

    def _call(self) -> None:
        if not self._is_called and (self._reading or self._discarding):
            self._is_called = True
            self._loop.call_soon(self._give)

    def _give(self) -> None:
        self._is_called = False
        if waiting := self._reading or self._discarding:
            next_turn, _ = waiting.popitem(last=False)
            self._call()
            next_turn()
