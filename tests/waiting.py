"""Waits for what another thread or process does."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str = "it", *, within: float = 30.0) -> None:
    """Return as soon as a condition holds. It fails after so many seconds, and says for what it waited."""
    deadline, pause = time.monotonic() + within, 0.001
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(pause)
        pause = min(pause * 1.2, 0.02)
