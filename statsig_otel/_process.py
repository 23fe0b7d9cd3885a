"""Tells the process that started a component from a forked child, which has a copy of it but none of its threads."""

import os


class OwnerProcess:
    """The process that started a component."""

    def __init__(self) -> None:
        self.pid = 0  # until the component is started

    def enter(self) -> None:
        """The current process starts the component."""
        self.pid = os.getpid()

    def leave(self) -> None:
        """The component has ended."""
        self.pid = 0

    @property
    def is_current(self) -> bool:
        """Whether the current process started the component."""
        return self.pid == os.getpid()

    @property
    def is_forked(self) -> bool:
        """Whether another process started the component, so that the current one is a fork of it."""
        return self.pid not in (0, os.getpid())
