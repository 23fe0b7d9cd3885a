"""Compares Statsig's audit log with what came, while the service runs, and says which changes are missed."""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Final

from statsig_otel._telemetry import counts_of
from statsig_otel.config.opaque import reveal
from statsig_otel.exporters.queue import arrivals, schema
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.terminal import printable
from statsig_otel.exporters.wording import rfc3339
from statsig_otel.plugin.audit_log.client import AuditLogClient, AuditLogError
from statsig_otel.plugin.audit_log.entries import AuditEntry, Page
from statsig_otel.plugin.audit_log.report import Period, Report, report
from statsig_otel.plugin.settings.audit_log import AuditLogSettings

_logger: Final = logging.getLogger(__name__)

_AGAIN: Final = 86_400
"""Seconds for which entries are compared again and again: a webhook may come late, and so may an entry."""

_LATE: Final = 3600
"""Seconds by which an entry may be in the log later than its time says."""

_PASSING: Final = (AuditLogError, QueueError, sqlite3.Error, OSError, ValueError)
"""Errors that are of the network, the disk or the settings."""


class _StoppedError(Exception):
    """The service ends while a request waits for another attempt."""


class AuditLogWatch:
    """Watches the audit log for one receiver, in a thread of its own.

    The queue runs from before `start` until after `join`.

    Args:
        receiver: The receiver's id.
        queue: Remembers what came, and how far the log was compared.
        settings: How the log is read.
        clock: Seconds since the epoch.

    Attributes:
        receiver: The receiver's id.
    """

    def __init__(
        self,
        receiver: str,
        queue: DurableQueue,
        settings: AuditLogSettings,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.receiver: Final = receiver
        self._settings = settings
        self._queue = queue
        self._clock = clock
        self._entries: dict[str, AuditEntry] = {}
        self._read_to: int | None = None
        self._unclear: frozenset[str] = frozenset()  # some of these entries are missed, but it can't be told which
        self._failure = ""  # what was logged last
        self._ended = threading.Event()
        self._due = threading.Event()  # to look at once, or to end
        self._thread: threading.Thread | None = None

    @property
    def settings(self) -> AuditLogSettings:
        """How the log is read. Others are used at once, since a wrong key may be what has changed."""
        return self._settings

    @settings.setter
    def settings(self, settings: AuditLogSettings) -> None:
        if settings != self._settings:
            self._settings = settings
            self._due.set()

    def start(self) -> None:
        """Begin to watch."""
        thread = threading.Thread(target=self._run, name=f"{self.receiver} audit log", daemon=True)
        thread.start()
        self._thread = thread

    def end(self) -> None:
        """Look no more. Returns at once; safe to call twice."""
        self._ended.set()
        self._due.set()

    def join(self, timeout: float) -> None:
        """Wait for the end. A request under way is left behind after that time, in its daemon thread."""
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._settings.interval:
                with contextlib.suppress(_StoppedError):
                    self.look()
            self._due.wait(self._settings.interval or None)
            self._due.clear()

    def look(self) -> None:
        """Compare once, and say what has changed. An error is logged once, until it works again."""
        try:
            self._compare(self._settings)
        except _StoppedError:
            raise
        except Exception as error:
            if not self._ended.is_set() and str(error) != self._failure:
                self._failure = str(error)
                is_known = isinstance(error, _PASSING)
                message = "%s: what is missed is not known now: %s"
                _logger.error(message, self.receiver, error, exc_info=None if is_known else error)
            return
        if self._failure:
            self._failure = ""
            _logger.warning("%s: the audit log can be compared with what came again", self.receiver)

    def _compare(self, settings: AuditLogSettings) -> None:
        now, tolerance = int(self._clock()), settings.tolerance
        end = now - int(settings.grace)
        with contextlib.closing(schema.connect_reading(self._queue.database)) as connection:
            state = arrivals.read(connection, self.receiver, end, end)
        if state is None:
            return
        begin = max(state.since, min(state.compared, end - _AGAIN))
        if self._read_to is None or end > state.since:  # at first also if it is too early: the key may be wrong
            self._read(settings, begin if self._read_to is None else self._read_to - _LATE, now)
        if end <= state.since:
            return
        self._entries = {key: one for key, one in self._entries.items() if one.second >= begin - tolerance}
        with contextlib.closing(schema.connect_reading(self._queue.database)) as connection:
            came = arrivals.read(connection, self.receiver, begin - tolerance, end + tolerance)
        if came is None:
            return
        kept = now - int(settings.keep)
        period = Period(begin, end, max(came.since, kept))
        page = Page(tuple(self._entries.values()), ())
        found = report(page, came.arrivals, period, tolerance=tolerance, ignore=settings.ignore)
        missed = {line.entry.id: line.entry for line in found.lines if line.verdict == "missed"}
        seconds = {key: one.second for key, one in missed.items()}
        noted = self._queue.submit(
            lambda connection: arrivals.note(connection, self.receiver, seconds, begin=begin, end=end, kept=kept)
        ).result()
        self._say(noted, missed, found)
        counts = counts_of(self.receiver)
        last = sorted(missed.values(), key=lambda one: -one.second)
        counts.last_missed = tuple((one.name, one.second) for one in last if one.second > end - _AGAIN)
        counts.missed, counts.compared = noted.missed + found.missed - len(missed), end

    def _read(self, settings: AuditLogSettings, begin: int, end: int) -> None:
        """Read the entries of a period, in addition to those that are known."""
        key = reveal(settings.api_key)
        client = AuditLogClient(settings.endpoint, key, tls=settings.tls, timeout=settings.timeout, wait=self._wait)
        try:
            page = client.read(begin, end)
        finally:
            client.close()
        self._entries.update((one.id, one) for one in page.entries)
        self._read_to = end

    def _wait(self, seconds: float) -> None:
        if self._ended.wait(seconds):
            raise _StoppedError

    def _say(self, noted: arrivals.Noted, missed: dict[str, AuditEntry], found: Report) -> None:
        for key in noted.found:
            _logger.info("%s: the change of the audit log's entry %s has come after all", self.receiver, key)
        for entry in sorted((missed[key] for key in noted.new), key=lambda one: one.second):
            _logger.warning("%s: no webhook brought %s", self.receiver, _described(entry))
        unclear = [line.entry for line in found.lines if line.verdict == "ambiguous" and "missed" in line.may_be]
        number = found.missed - len(missed)
        ids = frozenset(one.id for one in unclear) if number else frozenset[str]()
        if ids - self._unclear:
            told = "; ".join(map(_described, unclear[:10]))
            _logger.warning("%s: of these changes webhooks did not bring %d, and it is not known which: %s",
                            self.receiver, number, told)  # fmt: skip
        self._unclear = ids


def _described(entry: AuditEntry) -> str:
    """An entry in one line."""
    who = entry.user_name or entry.user_email or entry.user_id or "somebody"
    what = entry.text or entry.action_type
    return printable(f"{entry.name} ({what}), changed at {rfc3339(entry.second)} by {who}: entry {entry.id}")
