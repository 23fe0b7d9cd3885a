"""Marks a thread's calls of its exporter, so that a shutdown can leave one behind that hangs."""

import threading


class LeftBehind(BaseException):
    """Ends the thread of a call that was left behind and has returned after all."""


class ExporterCalls:
    """The calls of `start` and `send` that a sender's thread makes, each in a `with` block.

    A call that was left behind ends with `LeftBehind` instead of returning: what the thread shared is somebody else's
    by then.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # over the next two
        self._under_way = False
        self._left_behind = False

    def __enter__(self) -> None:
        with self._lock:
            self._under_way = True

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._under_way = False
            if self._left_behind:
                raise LeftBehind

    @property
    def left_behind(self) -> bool:
        """Whether a call was left behind."""
        return self._left_behind

    def leave_behind(self) -> bool:
        """Give up the call under way; False if there is none."""
        with self._lock:
            self._left_behind = self._under_way
        return self._left_behind
