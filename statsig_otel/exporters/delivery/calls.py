"""Marks a thread's calls of its exporter, so that a shutdown can abandon one that hangs."""

import threading


class AbandonedCall(BaseException):
    """Ends the thread of a call that was abandoned and has returned after all."""


class ExporterCalls:
    """The calls of `start` and `send` that a sender's thread makes, each in a `with` block.

    A call that was abandoned ends with `AbandonedCall` instead of returning: another sender may have the cursor
    by then.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # over the two below
        self._under_way = False
        self._is_abandoned = False

    def __enter__(self) -> None:
        with self._lock:
            self._under_way = True

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._under_way = False
            if self._is_abandoned:
                raise AbandonedCall

    @property
    def is_abandoned(self) -> bool:
        """Whether a call was abandoned."""
        return self._is_abandoned

    def abandon(self) -> bool:
        """Abandon the call under way; False if there is none."""
        with self._lock:
            self._is_abandoned = self._under_way
        return self._is_abandoned
