"""Compares Statsig's audit log with the changes that came, logs the missed ones, and fills them in.

What is made of the log goes the way of a webhook's changes. The commit that stores a record also remembers that it was
made, so it is made once, whenever the process ends.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Final

from statsig_otel._journal import journal
from statsig_otel._telemetry import counts_of
from statsig_otel.config.opaque import reveal
from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError
from statsig_otel.exporters.queue import arrivals, schema
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.terminal import printable
from statsig_otel.exporters.wording import rfc3339
from statsig_otel.plugin.audit_log.client import AuditLogClient, AuditLogError
from statsig_otel.plugin.audit_log.entries import AuditEntry, Page
from statsig_otel.plugin.audit_log.records import LogRecords
from statsig_otel.plugin.audit_log.report import Line, Period, Report, report
from statsig_otel.plugin.record.change_event import InvalidItemError
from statsig_otel.plugin.settings.audit_log import AuditLogSettings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings, log_records

_logger: Final = logging.getLogger(__name__)

_AGAIN: Final = 86_400
"""Seconds for which entries are compared again and again: a webhook may come late, and so may an entry."""

_LATE: Final = 3600
"""Seconds by which an entry may be in the log later than its time says."""

_PASSING: Final = (AuditLogError, QueueError, sqlite3.Error, OSError, ValueError)
"""Errors that are of the network, the disk or the settings."""


_PATIENCE: Final = 0.2
"""Seconds between two checks whether the service ends, while a record is being stored."""


class _StoppedError(Exception):
    """The service ends while a request waits for another attempt."""


@dataclass(frozen=True, slots=True)
class _Comparison:
    """What one comparison has to do.

    Attributes:
        settings: How the log is read.
        period: The period.
        records: Makes the records.
        hides: Whether the log must not name who made a change.
        hindrances: Why records could not be made or stored.
    """

    settings: AuditLogSettings
    period: Period
    records: LogRecords
    hides: bool
    hindrances: set[str] = field(default_factory=set)


class AuditLogCheck:
    """Compares the audit log with what came to one receiver, in a thread of its own.

    The queue runs from before `start` until after `join`.

    Args:
        receiver: The receiver's id.
        queue: Remembers what came, and how far the log was compared.
        settings: The receiver's settings, with all of its resource. It has `audit_log`.
        consume: Takes what is made of the log, as it takes the batches of webhooks.
        clock: Seconds since the epoch.

    Attributes:
        receiver: The receiver's id.
    """

    def __init__(
        self,
        receiver: str,
        queue: DurableQueue,
        settings: StatsigReceiverSettings,
        consume: Callable[[Batch], Future[Receipt]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.receiver: Final = receiver
        self._settings = settings
        self._queue = queue
        self._consume = consume
        self._clock = clock
        self._entries: dict[str, AuditEntry] = {}
        self._asked: list[float] = []  # when the last requests were sent, for the rate limit of all comparisons
        self._known: tuple[int, int] | None = None  # the first and the last second of what was read
        self._known_by: AuditLogSettings | None = None  # how that was read
        self._pause = 0.0  # the seconds that the server asks to wait
        self._hindrances: set[str] = set()  # why records could not be made or stored, now and the last time
        self._unclear: frozenset[str] = frozenset()  # some of these entries are missed, but it can't be told which
        self._has_unreadable = False  # whether the pages that were read last have entries that can't be read
        self._failure = ""  # what was logged last
        self._ended = threading.Event()
        self._due = threading.Event()  # to compare at once, or to end
        self._thread: threading.Thread | None = None

    @property
    def settings(self) -> AuditLogSettings:
        """How the log is read."""
        if self._settings.audit_log is None:
            raise RuntimeError("this receiver has no audit_log")
        return self._settings.audit_log

    def use(self, settings: StatsigReceiverSettings) -> None:
        """Use other settings, at once if the log is read in another way: a wrong key may be what has changed."""
        before, self._settings = self._settings, settings
        if settings.audit_log != before.audit_log:
            self._due.set()

    def start(self) -> None:
        """Begin to compare."""
        thread = threading.Thread(target=self._run, name=f"{self.receiver} audit log", daemon=True)
        thread.start()
        self._thread = thread

    def end(self) -> None:
        """Compare no more. Returns at once; safe to call twice."""
        self._ended.set()
        self._due.set()

    def join(self, timeout: float) -> None:
        """Wait for the end. A request under way is left behind after that time, in its daemon thread."""
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    def _run(self) -> None:
        while not self._ended.is_set():
            interval = self.settings.interval
            if interval:
                with contextlib.suppress(_StoppedError):
                    self.compare()
            self._due.wait(max(interval, self._pause) if interval else None)
            self._due.clear()

    def compare(self) -> None:
        """Compare once, and say what has changed. An error is logged once, until it works again."""
        self._pause = 0.0
        try:
            self._compare_period()
        except _StoppedError:
            raise
        except Exception as error:
            self._pause = error.after if isinstance(error, AuditLogError) else 0.0
            if not self._ended.is_set() and str(error) != self._failure:
                self._failure = str(error)
                is_known = isinstance(error, _PASSING)
                message = "%s: the audit log can't be compared now: %s"
                _logger.error(message, self.receiver, error, exc_info=None if is_known else error)
            return
        if self._failure:
            self._failure = ""
            _logger.warning("%s: the audit log is compared again", self.receiver)

    def _compare_period(self) -> None:
        settings, now = self.settings, int(self._clock())
        end = now - int(settings.grace)
        state = self._remembered(end, end)
        if state is None:
            return
        counts = counts_of(self.receiver)
        counts.compared = counts.compared or state.compared  # also if the log can't be read
        if state.since > now + _LATE:
            raise QueueError(
                f"what came is remembered since {rfc3339(state.since)}, so the clock was wrong then, or is now: if it "
                "is right now, start once without audit_log, so that the queue starts to remember again"
            )
        if settings != self._known_by:  # perhaps it is the log of another project, or fewer are missed by them
            self._known_by, self._known, self._entries = settings, None, {}
        begin = min(state.compared if state.compared <= now else state.since, end - _AGAIN)  # the clock was put back
        if state.oldest_missed is not None and (settings.backfill or self._known is None):
            begin = min(begin, state.oldest_missed)
        begin = max(state.since, begin)
        if self._known is None or end > state.since:  # at first also if it is too early: the key may be wrong
            self._read_on(settings, begin, now)
        if end <= state.since:
            return
        kept = now - int(settings.keep)
        run = _Comparison(settings, Period(begin, end, max(state.since, kept)), log_records(self._settings),
                     hides=self._settings.user != "full")  # fmt: skip
        found, made = self._report(run)
        if settings.backfill and self._fill_in(run, found):
            found, made = self._report(run)
        self._note(run, found, kept)
        if settings.enrich:
            self._enrich(run, [line for line in found.lines if line.entry.details_uid not in made])
        for what in sorted(run.hindrances - self._hindrances):
            _logger.error("%s: %s", self.receiver, printable(what))
        self._hindrances = run.hindrances

    def _remembered(self, first: float, last: float) -> arrivals.Remembered | None:
        with contextlib.closing(schema.connect_reading(self._queue.database)) as connection:
            return arrivals.read(connection, self.receiver, first, last)

    def _report(self, run: _Comparison) -> tuple[Report, set[str]]:
        """What is said of the entries, and the uids of the records that were made of the log."""
        period, tolerance = run.period, run.settings.tolerance
        came = self._remembered(period.begin - tolerance, period.end + tolerance)
        if came is None:
            raise QueueError("it is not remembered any more what came")
        page = Page(tuple(self._entries.values()), ())
        found = report(page, came.arrivals, period, tolerance=tolerance, ignore=run.settings.ignore)
        return found, {one.uid for one in came.arrivals if one.from_log}

    def _note(self, run: _Comparison, found: Report, kept: int) -> None:
        """Remember what is missed, count it, and say what has changed."""
        begin, end = run.period.begin, run.period.end
        missed = {line.entry.id: line.entry for line in found.lines if line.verdict == "missed"}
        seconds = {key: one.second for key, one in missed.items()}
        noted = self._queue.submit(
            lambda connection: arrivals.note(connection, self.receiver, seconds, begin=begin, end=end, kept=kept)
        ).result()
        self._say(run, noted, missed, found)
        counts = counts_of(self.receiver)
        last = sorted(missed.values(), key=lambda one: -one.second)
        counts.last_missed = tuple((one.name, one.second) for one in last if one.second > end - _AGAIN)
        counts.missed, counts.compared = noted.missed + found.missed - len(missed), end

    def _fill_in(self, run: _Comparison, found: Report) -> bool:
        """Make records of what is missed, or may be; whether there was something to make."""
        missed = [line for line in found.lines if _may_be_missed(line, run.settings)]
        return self._make_all(run, missed, lambda line, now_ns: self._fill_in_one(run, line.entry, now_ns))

    def _fill_in_one(self, run: _Comparison, entry: AuditEntry, now_ns: int) -> None:
        batch = run.records.change(self.receiver, entry, observed_ns=now_ns)
        self._store(batch)
        if not batch.changes:
            _logger.info("%s: the filter drops %s", self.receiver, _described(entry, hides=run.hides))
            return
        journal.add_changes(self.receiver, now_ns, batch.changes, "filled in")
        counts = counts_of(self.receiver)
        with counts.lock:
            counts.filled_in += 1
        message = "%s: no webhook brought %s. It is filled in from the audit log"
        _logger.warning(message, self.receiver, _described(entry, hides=run.hides))

    def _enrich(self, run: _Comparison, lines: list[Line]) -> None:
        """Send the old and new values of changes that came."""
        came = [line for line in lines if line.verdict == "received" and _has_values(line.entry)]

        def make(line: Line, now_ns: int) -> None:
            if line.uid is not None:
                self._store(run.records.details(self.receiver, line.entry, line.uid, observed_ns=now_ns))

        self._make_all(run, came, make)

    def _make_all(self, run: _Comparison, lines: list[Line], make: Callable[[Line, int], None]) -> bool:
        """Make records, one after the other, while there is room for them; whether there was something to make."""
        for line in lines:
            try:
                self._check_room()
                make(line, int(self._clock() * 1e9))
            except InvalidItemError as error:
                run.hindrances.add(f"no record can be made of the audit log's entry {line.entry.id}: it {error}")
            except RefusedError as error:
                run.hindrances.add(f"records of the audit log can't be stored now: {error}")
                break
        return bool(lines)

    def _check_room(self) -> None:
        """Check that webhooks are not refused for what can wait.

        Raises:
            RefusedError: They might soon be.
        """
        routing = self._queue.routing
        for name in routing.route(self.receiver).queued:
            limit = routing.exporters[name]
            try:
                cursor = self._queue.cursor(name)
            except KeyError:  # it has just left
                continue
            used = cursor.size if limit.counts_bytes else cursor.waiting
            if limit.queue_size is not None and used * 2 >= limit.queue_size:
                raise RefusedError(f"half of queue_size or more waits for {name}", reason="queue_full")

    def _store(self, batch: Batch) -> None:
        """Store a batch, and wait until it is on disk.

        Raises:
            RefusedError: It was refused.
        """
        answer = self._consume(batch)
        while not wait([answer], _PATIENCE).done:
            if self._ended.is_set():
                raise _StoppedError
        if answer.result().accepted:
            counts = counts_of(self.receiver)
            with counts.lock:
                counts.accepted += sum(len(one.records) for one in batch.changes)

    def _read_on(self, settings: AuditLogSettings, begin: int, now: int) -> None:
        """Read what is new in the log; all of the period if some of it is not known, or the clock was put back."""
        first, last = self._known or (begin, 0)
        begins_anew = begin < first or not first <= last <= now
        self._read(settings, begin if begins_anew else last - _LATE, now)
        before = begin - settings.tolerance
        self._entries = {key: one for key, one in self._entries.items() if one.second >= before}
        self._known = begin, now

    def _read(self, settings: AuditLogSettings, begin: int, end: int) -> None:
        """Read the entries of a period, in addition to those that are known."""
        key = reveal(settings.api_key)
        client = AuditLogClient(
            settings.endpoint, key, tls=settings.tls, timeout=settings.timeout, wait=self._wait, asked=self._asked
        )
        try:
            page = client.read(begin, end)
        finally:
            client.close()
        self._entries.update((one.id, one) for one in page.entries)
        if page.unreadable and not self._has_unreadable:
            message = "%s: some of the audit log's entries can't be compared with webhooks: %s"
            _logger.warning(message, self.receiver, printable("; ".join(page.unreadable[:10])))
        self._has_unreadable = bool(page.unreadable)

    def _wait(self, seconds: float) -> None:
        if self._ended.wait(seconds):
            raise _StoppedError

    def _say(self, run: _Comparison, noted: arrivals.Noted, missed: dict[str, AuditEntry], found: Report) -> None:
        came = {line.entry.id for line in found.lines if line.uid is not None and line.verdict != "filled_in"}
        for key in noted.found & came:
            _logger.info("%s: the change of the audit log's entry %s has come after all", self.receiver, key)
        for entry in sorted((missed[key] for key in noted.new), key=lambda one: one.second):
            _logger.warning("%s: no webhook brought %s", self.receiver, _described(entry, hides=run.hides))
            now_ns = int(self._clock() * 1e9)
            with contextlib.suppress(InvalidItemError):  # too large for the page
                shown = run.records.change(self.receiver, entry, observed_ns=now_ns)
                journal.add_changes(self.receiver, now_ns, shown.changes, "missed")
        unclear = [line.entry for line in found.lines if line.verdict == "ambiguous" and "missed" in line.may_be]
        number = found.missed - len(missed)
        ids = frozenset(one.id for one in unclear) if number else frozenset[str]()
        if ids - self._unclear:
            told = "; ".join(_described(one, hides=run.hides) for one in unclear[:10])
            _logger.warning("%s: %d of these changes did not come by webhook, and it can't be told which: %s",
                            self.receiver, number, told)  # fmt: skip
        self._unclear = ids


def _may_be_missed(line: Line, settings: AuditLogSettings) -> bool:
    """Whether a change has to be filled in: better twice than not at all."""
    is_change = line.entry.kind == "change" and line.entry.action_type not in settings.ignore
    return is_change and (line.verdict == "missed" or "missed" in line.may_be)


def _has_values(entry: AuditEntry) -> bool:
    return bool(entry.old or entry.new or entry.size)


def _described(entry: AuditEntry, *, hides: bool) -> str:
    """An entry in one line. With `hides` it does not say who made the change."""
    who = "" if hides else f" by {entry.user_name or entry.user_email or entry.user_id or 'somebody'}"
    what = entry.text or entry.action_type
    return printable(f"{entry.name} ({what}), changed at {rfc3339(entry.second)}{who}: entry {entry.id}")
