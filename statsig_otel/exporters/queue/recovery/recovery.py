"""Recovers the database files that a running queue has set aside, in the background.

It is a client of the queue, as a replay of dead letters is: it reads a file that nobody writes to any more, and hands
its content to the queue's writer in small transactions. Each of them notes the progress, so that recovery continues
there after a crash. In the end the file is renamed.
"""

import logging
import sqlite3
import threading
from pathlib import Path
from typing import Final, Literal

from statsig_otel.exporters.queue.errors import NotRunningError, StorageError
from statsig_otel.exporters.queue.jobs import Work
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.recovery import damaged_file
from statsig_otel.exporters.queue.recovery.carry_over import CarriedOver, CarryOver, NobodyConfiguredError

_logger: Final = logging.getLogger(__name__)

_PAUSE: Final = 5.0
"""Seconds before the next attempt if the storage fails or the disk is short of space."""

_PASSING: Final = (sqlite3.Error, OSError, StorageError)
"""Errors that end once the machine is repaired."""


class Recovery:
    """Recovers the files that a queue has set aside, one after the other, in a thread of its own.

    The queue runs from before `start` until after `stop`.
    """

    def __init__(self, queue: DurableQueue) -> None:
        self._queue = queue
        self._directory = queue.directory
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin with the files that are there."""
        self._stopping.clear()
        thread = threading.Thread(target=self._run, name="queue recovery", daemon=True)
        thread.start()
        self._thread = thread  # not before it runs: `stop` waits for its end

    def stop(self) -> None:
        """Finish the current transaction; the rest follows after the next start. Safe to call twice."""
        self._stopping.set()
        self._queue.recovery_due.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        failing = False
        while True:
            self._queue.recovery_due.clear()  # before the check of what `stop` sets first: else it could be missed
            if self._stopping.is_set():
                return
            try:
                for file in self._directory.set_aside_files():
                    self._recover(file)
                self._say_gone()
                failing = False
                self._queue.recovery_due.wait()
            except NotRunningError:
                return
            except _PASSING as error:
                if not failing:
                    _logger.error("The queue's files that were set aside can't be carried over now: %s", error)
                failing = True
                self._stopping.wait(_PAUSE)

    def _recover(self, file: Path) -> None:
        try:
            with damaged_file.opened(file, spare_bytes=self._queue.spare_bytes()) as connection:
                carry_over = CarryOver(
                    file.name, connection, exporters_of=self._exporters_of, now_ms=self._queue.now_ms
                )
                for step in carry_over.steps():
                    carry_over.done += self._do(step)
                    if self._stopping.is_set():
                        return
        except damaged_file.UnreadableError as error:
            kept = self._rename(file, "unreadable")
            _logger.error("%s, and the records that waited in it are lost. It is kept as %s", error, kept)
        except NobodyConfiguredError:
            _logger.error(
                "%s contains records without their exporters. They would go to every exporter with a sending queue, "
                "but none is configured: they stay in the file until one is",
                file,
            )
        except (NotRunningError, *_PASSING):
            raise
        except Exception:  # a mistake of ours, for which no other file must wait
            _logger.exception("%s can't be carried over; it is kept, and is tried again at the next start", file)
        else:
            carry_over.report(self._rename(file, "salvaged"))
            self._queue.submit(carry_over.forget).result()

    def _rename(self, file: Path, what: Literal["salvaged", "unreadable"]) -> Path:
        self._queue.not_recovered.discard(file)
        return self._directory.rename_aside(file, what)

    def _say_gone(self) -> None:
        """Log it if somebody deleted a file before it was carried over."""
        expected = self._queue.not_recovered.copy()
        for file in sorted(expected.difference(self._directory.set_aside_files())):
            self._queue.not_recovered.discard(file)
            _logger.error("Somebody deleted or moved %s before it was carried over: what waited in it is lost", file)

    def _do(self, step: Work[CarriedOver]) -> CarriedOver:
        """Carry out one step once the disk has space and the storage works. Others log it if not."""
        while not self._stopping.is_set():
            try:
                if self._queue.spare_bytes() >= 0:
                    return self._queue.submit(step).result()
            except StorageError:
                pass
            self._stopping.wait(_PAUSE)
        return CarriedOver()

    def _exporters_of(self, receiver: str) -> tuple[str, ...]:
        """The exporters of a receiver as configured now; all of them if it is not configured."""
        routing = self._queue.routing
        return routing.route(receiver).queued or tuple(routing.exporters)
