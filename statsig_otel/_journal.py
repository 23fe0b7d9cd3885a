"""The journal: what has happened last in this process, in memory.

It has three kinds of entries: answered requests, accepted changes, and attempts to send. Whoever wants to show them
reads them with `journal.requests()`, `journal.changes()` and `journal.attempts()`, newest first.
`plugin/watch/journal_json.py` makes JSON of them, which the command `journal` of the control socket returns.

Each kind has its last few hundred entries, and the records of changes have at most a few MiB, as `keep` says. Requests
of one second with the same verdict share an entry that counts them, and so do attempts. So a flood costs no memory, and
hardly pushes out what happened before it. Nothing waits for the journal. What it keeps of a change is its records, as
they are sent.
"""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from time import time
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

ACCEPTED: Final = "accepted"
"""The reason of the answer to a webhook that was accepted."""

DEFAULT_ENTRIES: Final = 300
"""The most entries of a kind, unless somebody says otherwise."""

MOST_ENTRIES: Final = 1000
"""The most entries of a kind that anybody can ask for."""

DEFAULT_BYTES: Final = 4 << 20
"""The most bytes of the records of all changes, unless somebody says otherwise."""

LOST_FOR: Final = 86_400.0
"""Seconds for which a webhook that was answered with 5xx is worth a word: it may never come again."""

_TOGETHER: Final = 1.0
"""Seconds within which requests with the same verdict share an entry."""

_MOST_KINDS: Final = 200
"""The journal keeps the last entry of each of these verdicts for as long as the process runs. When there are more, the
oldest goes, and before it those of requests that can't be lost webhooks."""

_MINUTE: Final = 60

_NO_ITEMS: Final[Mapping[str, object]] = {}
_OK: Final = 200
"""The HTTP status of all requests that are not refused."""

SERVER_ERROR: Final = 500
"""The least HTTP status that says that the fault is this service's, and not the client's."""

_BEFORE_THE_SIGNATURE: Final = "in_flight_bytes"
"""The reason of a 503 that strangers can cause: it comes before the signature is checked."""


@dataclass(slots=True)
class RequestEntry:
    """Requests of one second with the same verdict.

    Attributes:
        receiver: The receiver's id; empty if they were refused before they reached one.
        status: The HTTP status of the answer; 0 if there was none, since the TLS handshake failed.
        reason: The reason of the answer, a short word.
        detail: What happened, and what to check: after a refusal, the last time.
        at: When the first one was answered, in seconds since the epoch.
        last: When the last one was answered.
        count: The number of requests.
        run: The refused requests with this verdict, up to the last one of these, since the receiver accepted a webhook.
            Those that may be lost are counted for a day after the last of them, whatever was accepted since.
        follows: Whether the receiver had accepted a webhook before the last one of these.
        items: The items of accepted requests, by what became of them: accepted, duplicates, ignored, invalid.
        port: The port of the server that refused them before they reached a receiver; 0 if it is not known.
        path: The path that the last one had, if no receiver has it.
    """

    receiver: str
    status: int
    reason: str
    detail: str
    at: float
    count: int = 0
    items: dict[str, int] = field(default_factory=dict)
    port: int = 0
    last: float = 0.0
    run: int = 0
    follows: bool = False
    path: str = ""

    @property
    def may_be_lost(self) -> bool:
        """Whether these are webhooks that the service could not take, and Statsig may not send again.

        Bodies for which there was no memory do not count: whoever floods a service has no signature.
        """
        return bool(self.receiver) and self.status >= SERVER_ERROR and self.reason != _BEFORE_THE_SIGNATURE


class ChangeEntry(NamedTuple):
    """One accepted change.

    Attributes:
        at_ns: When its request arrived, in nanoseconds since the epoch.
        receiver: The receiver's id.
        uid: The change's `log.record.uid`.
        records: Its records, each as a serialised `ExportLogsServiceRequest`; none if they are too large to keep.
        size: The bytes of its records.
        note: `missed` or `filled in` for a change of the audit log that no webhook brought. In the first case its
            records are those that would be made of it.
    """

    at_ns: int
    receiver: str
    uid: str
    records: tuple[bytes, ...]
    size: int
    note: str = ""


@dataclass(slots=True)
class AttemptEntry:
    """Attempts of one second to send batches, with the same outcome.

    Attributes:
        exporter: The exporter's id.
        outcome: One of `_telemetry.OUTCOMES`.
        reason: What the backend said the first time; empty if it took everything.
        at: When the first one ended, in seconds since the epoch.
        seconds: How long the first one took.
        count: The number of attempts.
        records: The records that were sent.
        delivered: The records of these that the backend took.
    """

    exporter: str
    outcome: str
    reason: str
    at: float
    seconds: float
    count: int = 0
    records: int = 0
    delivered: int = 0


class _Change(Protocol):
    @property
    def uid(self) -> str: ...
    @property
    def records(self) -> tuple[bytes, ...]: ...


_E = TypeVar("_E", RequestEntry, AttemptEntry)


class _Kind(Generic[_E]):
    """The entries of one kind: the last ones, and the last one of each verdict."""

    def __init__(self) -> None:
        self.entries: deque[_E] = deque(maxlen=DEFAULT_ENTRIES)
        self.last: Final[dict[tuple[str | int, ...], _E]] = {}

    def resize(self, most: int) -> None:
        self.entries = deque(self.entries, maxlen=most)

    def all(self) -> Iterator[_E]:
        """All that are kept; some of them twice."""
        yield from self.entries
        yield from self.last.values()

    def add(self, verdict: tuple[str | int, ...], entry: _E) -> _E:
        self.entries.append(entry)
        if self.last.pop(verdict, None) is None and len(self.last) >= _MOST_KINDS:
            # Strangers can make a dozen verdicts for each receiver, but not those of webhooks that may be lost.
            harmless = (one for one, last in self.last.items() if not getattr(last, "may_be_lost", False))
            del self.last[next(harmless, next(iter(self.last)))]
        self.last[verdict] = entry
        return entry


class Journal:
    """Keeps the last entries. All methods may be called from any thread.

    Attributes:
        is_kept: Whether somebody may read it. Until a service calls `keep`, nothing is added.
    """

    def __init__(self) -> None:
        self.is_kept: bool = False
        self._renew_lock()
        self._taken: Final = _Kind[RequestEntry]()
        self._refused: Final = _Kind[RequestEntry]()
        self._attempts: Final = _Kind[AttemptEntry]()
        self._delivered: Final[dict[str, deque[tuple[int, int]]]] = {}  # by exporter, records by second
        # As in a `ChangeEntry`, and with the bytes of all records that were added before it.
        self._changes: deque[tuple[int, str, str, tuple[bytes, ...], int, str, int]] = deque(maxlen=DEFAULT_ENTRIES)
        self._added_bytes = 0
        self._most_bytes = DEFAULT_BYTES
        self._now = 0.0  # the time of the last entry
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        """Another thread of a parent process may hold it, and does not exist in the child."""
        self._lock = threading.RLock()  # re-entrant, for a signal handler

    def keep(self, entries: int = DEFAULT_ENTRIES, size: int = DEFAULT_BYTES) -> None:
        """Keep what happens from now on, and as much as fits of what was kept before.

        Args:
            entries: The most entries of each kind: accepted requests, refused ones, changes and attempts.
            size: The most bytes of the records of all changes.
        """
        with self._lock:
            self.is_kept = True
            self._most_bytes = size
            self._taken.resize(entries)
            self._refused.resize(entries)
            self._attempts.resize(entries)
            self._changes = deque(self._changes, maxlen=entries)
            self._drop_oldest_changes()

    def add_request(
        self,
        receiver: str,
        status: int,
        reason: str,
        detail: str,
        items: Mapping[str, object] = _NO_ITEMS,
        *,
        port: int = 0,
        path: str = "",
    ) -> None:
        """Add an answered request. `items` has the numbers of its items, by what became of them."""
        if not self.is_kept:
            return
        verdict = receiver, reason, port
        kind = self._taken if status == _OK else self._refused
        with self._lock:
            now = time()
            if now < self._now:
                self._move_back(now)
            self._now = now
            entry = before = kind.last.get(verdict)
            if entry is None or now - entry.at >= _TOGETHER:
                entry = kind.add(verdict, RequestEntry(receiver, status, reason, detail, now, port=port))
            if kind is self._refused:
                accepted = self._taken.last.get((receiver, ACCEPTED, 0))
                is_over = before is None or self._is_over(before, now, 0.0 if accepted is None else accepted.last)
                entry.run = 1 if before is None or is_over else before.run + 1
                entry.follows = accepted is not None
                entry.detail, entry.path = detail, path  # which belong to `last`
            entry.count += 1
            entry.last = now
            for word, number in items.items():
                if number and isinstance(number, int):
                    entry.items[word] = entry.items.get(word, 0) + number

    @staticmethod
    def _is_over(refused: RequestEntry, now: float, last_accepted: float) -> bool:
        """Whether a run of refusals has ended, so that the next one begins another."""
        return now - refused.last > LOST_FOR if refused.may_be_lost else last_accepted > refused.last

    def add_changes(self, receiver: str, at_ns: int, changes: Sequence[_Change], note: str = "") -> None:
        """Add accepted changes of one request, or changes of the audit log.

        Args:
            receiver: The receiver's id.
            at_ns: When the request arrived, in nanoseconds since the epoch.
            changes: The changes, in order. Only the last few hundred are kept.
            note: See `ChangeEntry`.
        """
        if not self.is_kept or not changes:
            return
        with self._lock:
            for change in changes:
                records, added = change.records, self._added_bytes
                size = sum(map(len, records))
                if size <= self._most_bytes:
                    self._added_bytes = added + size
                else:
                    records = ()
                self._changes.append((at_ns, receiver, change.uid, records, size, note, added))
            if self._added_bytes - self._changes[0][-1] > self._most_bytes:
                self._drop_oldest_changes()

    def _drop_oldest_changes(self) -> None:
        """Drop changes until the records of the others fit."""
        while self._changes and self._added_bytes - self._changes[0][-1] > self._most_bytes:
            self._changes.popleft()

    def add_attempt(
        self, exporter: str, outcome: str, reason: str, *, records: int, delivered: int, seconds: float
    ) -> None:
        """Add an attempt to send a batch."""
        if not self.is_kept:
            return
        verdict = exporter, outcome
        with self._lock:
            now = self._time()
            entry = self._attempts.last.get(verdict)
            if entry is None or now - entry.at >= _TOGETHER:
                entry = self._attempts.add(verdict, AttemptEntry(exporter, outcome, reason, now, seconds))
            entry.count += 1
            entry.records += records
            entry.delivered += delivered
            if delivered:
                by_second, second = self._delivered.setdefault(exporter, deque(maxlen=_MINUTE)), int(now)
                before = by_second.pop()[1] if by_second and by_second[-1][0] == second else 0
                by_second.append((second, before + delivered))

    def delivered_last_minute(self) -> dict[str, int]:
        """The records that each exporter's backend has taken in the last minute, however many entries are kept."""
        with self._lock:
            now = self._time()
            return {
                name: sum(number for second, number in by_second if now - _MINUTE < second <= now)
                for name, by_second in self._delivered.items()
            }

    def _time(self) -> float:
        """The time now, which is that of no earlier entry."""
        now = time()
        if now < self._now:
            self._move_back(now)
        self._now = now
        return now

    def _move_back(self, now: float) -> None:
        """Move all entries back, in order, since the clock was put back: they would stay the newest."""
        back = self._now - now + _TOGETHER
        requests = {id(one): one for kind in (self._taken, self._refused) for one in kind.all()}
        for entry in requests.values():
            entry.at, entry.last = entry.at - back, entry.last - back
        # A change of the request that has noticed it came after that.
        now_ns, back_ns = int(now * 1e9), int(back * 1e9)
        moved = ((one[0] - back_ns if one[0] > now_ns else one[0], *one[1:]) for one in self._changes)
        self._changes = deque(moved, maxlen=self._changes.maxlen)
        for attempt in {id(one): one for one in self._attempts.all()}.values():
            attempt.at -= back

    def requests(self) -> list[RequestEntry]:
        """The last requests, newest first."""
        return self._copies(self._taken.entries, self._refused.entries)

    def last_requests(self) -> list[RequestEntry]:
        """The last entry of each receiver, reason and port, newest first, however old it is."""
        found = self._copies(self._taken.last.values(), self._refused.last.values())
        return sorted(found, key=lambda entry: -entry.last)

    def _copies(self, *groups: Iterable[RequestEntry]) -> list[RequestEntry]:
        with self._lock:
            self._time()
            found = [replace(entry, items=dict(entry.items)) for group in groups for entry in group]
        return sorted(found, key=lambda entry: -entry.at)

    def changes(self) -> list[ChangeEntry]:
        """The last changes, newest first, each once."""
        with self._lock:
            self._time()
            found = list(self._changes)
        once: dict[str, ChangeEntry] = {}
        for row in found:  # a change that came again stands where it came first
            entry = ChangeEntry(*row[:-1])
            if entry.note:  # what was missed may be filled in now
                once.pop(entry.uid, None)
            once.setdefault(entry.uid, entry)
        return [*reversed(once.values())]

    def attempts(self) -> list[AttemptEntry]:
        """The last attempts, newest first."""
        with self._lock:
            self._time()
            found = [*map(copy, self._attempts.entries)]
        return sorted(found, key=lambda entry: -entry.at)


journal: Final = Journal()
"""The journal of this process."""
