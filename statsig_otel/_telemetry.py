"""Declares every metric of this package, and keeps the values of those that are counted.

Where the OpenTelemetry Collector has a metric for the same thing, its name is used, so that the Collector's dashboards
work. All other names begin with `statsig_otel_`. Only opentelemetry-api is imported.
"""

import os
import threading
import weakref
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from time import time_ns
from typing import Final, Literal, Protocol, TypeAlias, TypeVar, get_args

from opentelemetry.metrics import get_meter

from statsig_otel import __version__
from statsig_otel._instruments import Counter, Distribution, Metric, Read, Values, make_instruments

_T = TypeVar("_T")

SCOPE: Final = "statsig_otel"
"""The name of the instrumentation scope."""

_SHORT: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
_BYTES: Final = tuple(float(1 << power) for power in range(9, 26, 2))  # 512 B to 32 MiB

FailedState: TypeAlias = Literal["retrying", "refused", "blocked"]
"""The state of an exporter that delivers nothing: `refused` while no evidence says whether the data is at fault."""

StateName: TypeAlias = Literal["idle", "sending", "stopped"] | FailedState
"""The word for what an exporter does now."""

FAILED_STATES: Final[tuple[FailedState, ...]] = get_args(FailedState)
EXPORTER_STATES: Final = ("idle", "sending", *FAILED_STATES)
"""The states of an exporter that runs, the best one first."""

NOT_CONFIGURED: Final = "not configured"
"""The state of an exporter that left the configuration while records wait for it."""

OUTCOMES: Final = ("delivered", "partially_rejected", "rejected", "retry_later", "blocked")
"""The outcomes of an attempt to send."""

OTHER: Final = "other"
"""The event name of ignored items whose own name is not counted by itself."""

_MOST_NAMES: Final = 50
_LONGEST_NAME: Final = 100


# What metrics read.


class ReceiverCounts:
    """The numbers of one receiver. Whoever changes a count holds `lock`.

    Attributes:
        answers: The requests, by the status and the reason of their answers.
        verified: The verified requests, by the position of the signing secret, from 1.
        accepted: The accepted records of changes that had not been accepted before.
        refused: The refused records.
        changes: The changes that had not been accepted before.
        duplicates: Those that had.
        ignored: The items that were ignored, by the name of their event.
        invalid: The changes that no record could be made of.
        left_out: The fields that were left out, by name.
        in_seconds: The changes with a time in seconds.
        last_verified_ns: When the last verified webhook arrived, in nanoseconds since the epoch; 0 if none did.
        last_change_ns: When the last accepted change arrived, likewise.
        ahead_ms: The timestamp of the last verified webhook, less the time when it arrived.
        missed: The changes of the audit log that no webhook brought, and that were not filled in; None if it was not
            read.
        filled_in: The changes that no webhook brought and that became records from the audit log.
        last_missed: The names of those of the last day, newest first, with the second of each.
        compared: The time up to which the audit log was compared with what came, in seconds since the epoch, or 0.
    """

    def __init__(self) -> None:
        self.lock: AbstractContextManager[bool] = threading.RLock()  # re-entrant, for a signal handler
        self.answers: Final[Counts[tuple[int, str]]] = Counts()
        self.verified: Final[Counts[int]] = Counts()
        self.ignored: Final[Counts[str]] = Counts({OTHER: 0})
        self.left_out: Final[Counts[str]] = Counts()
        self.accepted: int = 0
        self.refused: int = 0
        self.changes: int = 0
        self.duplicates: int = 0
        self.invalid: int = 0
        self.in_seconds: int = 0
        self.last_verified_ns: int = 0
        self.last_change_ns: int = 0
        self.ahead_ms: int = 0
        self.missed: int | None = None
        self.filled_in: int = 0
        self.last_missed: tuple[tuple[str, int], ...] = ()
        self.compared: int = 0

    def move_back(self) -> None:
        """If the clock was put back, no time is in the future any more. The lock has to be held."""
        now_ns = time_ns()
        self.last_verified_ns = min(self.last_verified_ns, now_ns)
        self.last_change_ns = min(self.last_change_ns, now_ns)

    def ignore(self, names: Mapping[str, int]) -> None:
        """Count ignored items by the names of their events, which come from outside. The lock has to be held."""
        for name, number in names.items():
            is_counted = name in self.ignored or (len(self.ignored) < _MOST_NAMES and len(name) <= _LONGEST_NAME)
            self.ignored[name if is_counted else OTHER] += number


_receivers: Final[dict[str, ReceiverCounts]] = {}


def counts_of(receiver: str) -> ReceiverCounts:
    """The numbers of a receiver, by its id: the same ones for as long as the process runs."""
    return _receivers.setdefault(receiver, ReceiverCounts())


def _renew_locks() -> None:
    """Another thread of the parent may hold them, and does not exist in the child."""
    for counts in _receivers.values():
        counts.lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)


class ObservedQueue(Protocol):
    """A queue whose metrics are read at each collection. The keys of the first three are the exporters' ids."""

    def waiting(self) -> Mapping[str, int]:
        """The number of waiting records, also of exporters that left the configuration while some wait for them."""

    def capacities(self) -> Mapping[str, int]:
        """The largest number of waiting records. An exporter that only the disk limits is missing."""

    def ages(self) -> Mapping[str, float]:
        """Seconds since the oldest waiting record was observed. An exporter without waiting records is missing."""

    def dead_letters(self) -> Mapping[tuple[str, str], int]:
        """The number of dead letters, by kind and owner."""

    def disk(self) -> Mapping[str, tuple[int, int]]:
        """By directory the free bytes of its disk, and the bytes that have to stay free; none if nobody can tell."""


class ObservedExporter(Protocol):
    """An exporter whose state is read at each collection."""

    @property
    def name(self) -> str:
        """Its id."""

    @property
    def state(self) -> StateName:
        """What it does now."""


class ObservedServer(Protocol):
    """A server whose certificate is looked at in each collection."""

    def expiries(self) -> Mapping[str, float]:
        """By address the end of its certificate, in seconds since the epoch."""


queues: Final[weakref.WeakSet[ObservedQueue]] = weakref.WeakSet()
"""The queues whose metrics are collected."""

exporters: Final[weakref.WeakSet[ObservedExporter]] = weakref.WeakSet()
"""The exporters that run."""

servers: Final[weakref.WeakSet[ObservedServer]] = weakref.WeakSet()
"""The servers that listen."""


def _of_receivers(read: Callable[[ReceiverCounts], Mapping[Values, float]]) -> Read:
    """Reads numbers of all receivers. Their id is the first attribute."""

    def items() -> Iterator[tuple[Values, float]]:
        for name, counts in list(_receivers.items()):
            with counts.lock:
                counts.move_back()
                numbers = list(read(counts).items())
            yield from (((name, *values), number) for values, number in numbers)

    return items


def _all(observed: "weakref.WeakSet[_T]") -> list[_T]:
    while True:
        try:
            return list(observed)
        except RuntimeError:  # another thread has just added one
            continue


def _of_queues(read: Callable[[ObservedQueue], Iterable[tuple[Values, float]]]) -> Read:
    return lambda: (item for queue in _all(queues) for item in read(queue))


def _of_exporters(numbers: Mapping[str, float]) -> Iterator[tuple[Values, float]]:
    return (((name, "logs"), number) for name, number in numbers.items())


def _states() -> Iterator[tuple[Values, float]]:
    for exporter in _all(exporters):
        now = exporter.state
        if now in EXPORTER_STATES:
            yield from (((exporter.name, state), float(state == now)) for state in EXPORTER_STATES)


# The declarations.

Metric(
    "otelcol_receiver_accepted_log_records",
    "counter",
    "{records}",
    "Log records that the pipeline accepted, without those of duplicates.",
    ("receiver", "transport"),
    read=_of_receivers(lambda one: {("http",): one.accepted}),
)
Metric(
    "otelcol_receiver_refused_log_records",
    "counter",
    "{records}",
    "Log records that the pipeline refused.",
    ("receiver", "transport"),
    read=_of_receivers(lambda one: {("http",): one.refused}),
)
Metric(
    "statsig_otel_receiver_requests",
    "counter",
    "{requests}",
    "Answered webhook requests, by the HTTP status and the reason of the answer.",
    ("receiver", "status", "reason"),
    read=_of_receivers(lambda one: {(int(status), reason): number for (status, reason), number in one.answers.items()}),
)
Metric(
    "statsig_otel_receiver_verified_requests",
    "counter",
    "{requests}",
    "Requests with a valid signature, by the position of the secret in signing_secrets, from 1.",
    ("receiver", "secret"),
    read=_of_receivers(lambda one: {(position,): number for position, number in one.verified.items()}),
)
Metric(
    "statsig_otel_receiver_ignored_items",
    "counter",
    "{items}",
    "Verified items that are not a config change, or that the filter drops, by the name of their event.",
    ("receiver", "event_name"),
    read=_of_receivers(lambda one: {(name,): number for name, number in one.ignored.items()}),
)
Metric(
    "statsig_otel_receiver_invalid_items",
    "counter",
    "{items}",
    "Verified config changes that could not be mapped to a record.",
    ("receiver",),
    read=_of_receivers(lambda one: {(): one.invalid}),
)
Metric(
    "statsig_otel_receiver_duplicate_items",
    "counter",
    "{items}",
    "Config changes that had been accepted before.",
    ("receiver",),
    read=_of_receivers(lambda one: {(): one.duplicates}),
)
Metric(
    "statsig_otel_receiver_fields_left_out",
    "counter",
    "{fields}",
    "Optional fields left out of a record because of their value's type.",
    ("receiver", "field"),
    read=_of_receivers(lambda one: {(field,): number for field, number in one.left_out.items()}),
)
Metric(
    "statsig_otel_receiver_timestamps_in_seconds",
    "counter",
    "{items}",
    "Config changes whose timestamp has ten digits and was read as seconds.",
    ("receiver",),
    read=_of_receivers(lambda one: {(): one.in_seconds}),
)
Metric(
    "statsig_otel_receiver_last_verified_webhook_timestamp",
    "gauge",
    "s",
    "When the last webhook with a valid signature arrived, in seconds since the epoch.",
    ("receiver",),
    read=_of_receivers(lambda one: {(): one.last_verified_ns / 1e9} if one.last_verified_ns else {}),
)
Metric(
    "statsig_otel_receiver_last_change_timestamp",
    "gauge",
    "s",
    "When the last accepted config change arrived, in seconds since the epoch.",
    ("receiver",),
    read=_of_receivers(lambda one: {(): one.last_change_ns / 1e9} if one.last_change_ns else {}),
)
Metric(
    "statsig_otel_receiver_clock_difference",
    "gauge",
    "s",
    "The timestamp of the last webhook with a valid signature, less this machine's time when it arrived.",
    ("receiver",),
    read=_of_receivers(lambda one: {(): one.ahead_ms / 1000} if one.last_verified_ns else {}),
)
Metric(
    "statsig_otel_receiver_missed_changes",
    "gauge",
    "{changes}",
    "Changes of the last audit_log::keep in Statsig's audit log that no webhook brought, and that were not filled in.",
    ("receiver",),
    read=_of_receivers(lambda one: {} if one.missed is None else {(): one.missed}),
)
Metric(
    "statsig_otel_receiver_filled_in_changes",
    "counter",
    "{changes}",
    "Changes that no webhook brought and that became records from Statsig's audit log.",
    ("receiver",),
    read=_of_receivers(lambda one: {(): one.filled_in}),
)
Metric(
    "statsig_otel_receiver_audit_log_compared_timestamp",
    "gauge",
    "s",
    "The time up to which Statsig's audit log was compared with what came, in seconds since the epoch.",
    ("receiver",),
    read=_of_receivers(lambda one: {(): one.compared} if one.compared else {}),
)
request_duration: Final = Distribution(
    "statsig_otel_receiver_request_duration",
    "s",
    "The time from the headers of a request until its answer is known, and its consumer has finished.",
    ("receiver",),
    boundaries=_SHORT,
)
request_body_size: Final = Distribution(
    "statsig_otel_receiver_request_body_size",
    "By",
    "The part of a request's body that was read.",
    ("receiver",),
    boundaries=_BYTES,
)
server_refused: Final = Counter(
    "statsig_otel_server_refused_requests",
    "{requests}",
    "Requests that were refused before they reached a receiver, by the HTTP status and the reason.",
    ("status", "reason"),
)
handshakes_failed: Final = Counter(
    "statsig_otel_server_failed_handshakes", "{handshakes}", "TLS handshakes of clients that failed."
)
Metric(
    "statsig_otel_server_certificate_expiry_timestamp",
    "gauge",
    "s",
    "When the certificate of a server expires, in seconds since the epoch.",
    ("address",),
    read=lambda: (((address,), end) for one in _all(servers) for address, end in one.expiries().items()),
)
Metric(
    "otelcol_exporter_queue_size",
    "gauge",
    "{records}",
    "Log records waiting in the durable queue, also for an exporter that is not configured any more.",
    ("exporter", "data_type"),
    read=_of_queues(lambda queue: _of_exporters(queue.waiting())),
)
Metric(
    "otelcol_exporter_queue_capacity",
    "gauge",
    "{records}",
    "Limit of waiting log records, if queue_size sets one.",
    ("exporter", "data_type"),
    read=_of_queues(lambda queue: _of_exporters(queue.capacities())),
)
Metric(
    "statsig_otel_queue_oldest_age",
    "gauge",
    "s",
    "Time since the webhook of the oldest waiting log record arrived.",
    ("exporter", "data_type"),
    read=_of_queues(lambda queue: _of_exporters(queue.ages())),
)
commit_duration: Final = Distribution(
    "statsig_otel_queue_commit_duration",
    "s",
    "The time for one commit of the queue, fsync included.",
    boundaries=_SHORT,
)
commit_size: Final = Distribution(
    "statsig_otel_queue_commit_size",
    "{jobs}",
    "What shared one commit of the queue: batches of webhooks, and other changes of the queue.",
    boundaries=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0),
)
Metric(
    "statsig_otel_queue_disk_free",
    "gauge",
    "By",
    "Free space of the disk with the queue.",
    ("directory",),
    read=_of_queues(lambda queue: (((directory,), free) for directory, (free, _) in queue.disk().items())),
)
Metric(
    "statsig_otel_queue_disk_min_free",
    "gauge",
    "By",
    "The free space below which webhooks are refused: min_free_bytes.",
    ("directory",),
    read=_of_queues(lambda queue: (((directory,), least) for directory, (_, least) in queue.disk().items())),
)
exporter_enqueue_failed: Final = Counter(
    "otelcol_exporter_enqueue_failed_log_records",
    "{records}",
    "Log records that the durable queue refused; their webhooks were refused too.",
    ("exporter",),
)
queue_set_aside: Final = Counter(
    "statsig_otel_queue_set_aside", "{files}", "Queue databases that were unusable and were set aside."
)
queue_recovered: Final = Counter(
    "statsig_otel_queue_salvaged_log_records",
    "{records}",
    "Log records recovered from databases that were set aside.",
    ("exporter",),
)
exporter_sent: Final = Counter(
    "otelcol_exporter_sent_log_records", "{records}", "Log records that a backend accepted.", ("exporter",)
)
exporter_send_failed: Final = Counter(
    "otelcol_exporter_send_failed_log_records", "{records}", "Log records in failed attempts to send.", ("exporter",)
)
exporter_attempts: Final = Counter(
    "statsig_otel_exporter_attempts",
    "{attempts}",
    "Attempts to send a batch, by their outcome: delivered, partially_rejected, rejected, retry_later, blocked.",
    ("exporter", "outcome"),
)
Metric(
    "statsig_otel_exporter_state",
    "gauge",
    "",
    "1 for the state that an exporter has, 0 for the others: idle, sending, retrying, refused, blocked.",
    ("exporter", "state"),
    read=_states,
)
dead_letters: Final = Counter(
    "statsig_otel_dead_letters",
    "{letters}",
    "Dead letters written, by kind: item, body, record, batch, damaged.",
    ("kind", "owner"),
)
Metric(
    "statsig_otel_dead_letters_held",
    "gauge",
    "{letters}",
    "Dead letters that are kept now, by kind.",
    ("kind", "owner"),
    read=_of_queues(lambda queue: queue.dead_letters().items()),
)


make_instruments(get_meter(SCOPE, __version__))
