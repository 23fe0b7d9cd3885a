"""The Kafka exporter: produces a message for each record, and waits for the report of each."""

import ctypes
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final
from weakref import WeakSet

from confluent_kafka import KafkaError, KafkaException, Producer
from google.protobuf.message import DecodeError

from statsig_otel._log_throttle import LogThrottle
from statsig_otel._process import OwnerProcess
from statsig_otel.exporters.decoding import unreadable
from statsig_otel.exporters.delivery.guarded import TOO_LITTLE_MEMORY
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, Rejected, RetryLater
from statsig_otel.exporters.kafka.connection import connection, hidden_of, place_of
from statsig_otel.exporters.kafka.messages import Message, messages
from statsig_otel.exporters.kafka.outcomes import REJECTED, UNANSWERED, decisive, outcome_of
from statsig_otel.exporters.kafka.settings import KafkaSettings
from statsig_otel.exporters.network.answers import one_line
from statsig_otel.exporters.network.renewable import RenewableExporter
from statsig_otel.exporters.network.tls import TlsMaterial

_logger: Final = logging.getLogger(__name__)

_SLICE: Final = 0.1
"""Seconds of one wait for reports, so that a shutdown ends a send soon."""

_UNKNOWN_TOPIC_AFTER: Final = 0.8
"""The share of the timeout after which a topic that no broker knows counts as unknown: a new one takes a while."""

_MOST_PROPAGATION: Final = 3_600_000
"""Milliseconds: the library takes no more for that."""

_MOST_EVENTS: Final = 20
"""The most errors of connections that are remembered."""


class KafkaExporter(RenewableExporter[KafkaSettings]):
    """Sends log records to a Kafka topic. Implements `Exporter`.

    A record is delivered once a report says so: all in-sync replicas have it (`acks=all`), and the library's own
    retries have not written it twice (an idempotent producer). What a `send` leaves without a report is taken out of
    the producer, which is then replaced: nothing is written later but what was on its way to a broker.

    Args:
        name: The exporter's id, such as `kafka/eu`.
        settings: The exporter's settings.
    """

    def __init__(self, name: str, settings: KafkaSettings) -> None:
        super().__init__(name, settings)
        self._running = False
        self._owner = OwnerProcess()  # a forked child has none of the producer's threads, and would wait for them
        self._producer: Producer | None = None
        self._errors = _events()  # of the producer's connections, since a send succeeded
        self._throttle = LogThrottle(_logger)
        _exporters.add(self)

    def start(self) -> None:
        """Read the TLS files and create the producer, which connects by itself.

        Raises:
            OSError: A file of `tls` can't be read.
            ValueError: A file of `tls` does not contain what its key requires, or the library refuses the settings.
        """
        self._read_material()
        self._owner.enter()
        try:
            producer = self._create(self._settings, self._material)
        except KafkaException as error:
            raise ValueError(one_line(error.args[0].str(), hidden_of(self._settings))) from error
        with self._lock:
            self._producer, self._running = producer, True
        self._say_where(place_of(self._settings))

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:  # noqa: ARG002 - the messages tell
        """Produce a batch, and wait for the reports. For the parameters see `Exporter.send`.

        Returns:
            `Delivered`: All records are written; with `only`, some of them.
            Another outcome: None is. `outcomes` says what the errors mean.
        """
        latest = time.monotonic() + timeout
        if self._owner.is_forked:
            return RetryLater("the exporter was started in another process")
        try:
            batch = list(messages(payload, self._settings.logs.encoding))
            reports = self._write(batch, latest)
        except (DecodeError, RecursionError) as error:
            return Rejected(unreadable(error))
        except MemoryError:
            self._drop_producer()
            return RetryLater(TOO_LITTLE_MEMORY, may_be_data=True)
        except Exception as error:  # noqa: BLE001 - the contract: send never raises
            self._drop_producer()
            said = one_line(str(error), hidden_of(self._settings))
            return Blocked(f"unexpected {type(error).__name__} of the Kafka library: {said}")
        if reports is None:
            return RetryLater("the exporter is not running")
        errors = [error for error in reports if error is not None]
        if any(error.code() not in REJECTED for error in errors):
            self._drop_producer()
        if not errors:
            self._errors.clear()
            return Delivered()
        failure = self._failure(errors, timeout)
        if len(errors) == len(batch):
            return failure
        self._throttle.log(
            logging.WARNING, "partly", "%s: %d of %d records were not written: %s",
            self._name, len(errors), len(batch), failure.reason,
        )  # fmt: skip
        return Delivered(only=[position for position, error in enumerate(reports) if error is None])

    def shutdown(self) -> None:
        """End a send in progress. What has no report by then does not count as written. Safe to call twice."""
        if self._owner.is_forked:
            return
        with self._lock:
            self._running = False
        self._drop_producer()

    def keep_producer(self) -> None:
        """Keep the producer to the end of the process, in a forked child.

        The library frees one under a lock. If one of its threads had the lock at the fork, nobody gives it back.
        """
        if self._producer is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._producer))

    def _write(self, batch: list[Message], latest: float) -> list[KafkaError | None] | None:
        """Produce messages and wait for what is reported of each: an error, or None once it is written.

        Returns:
            The reports in the order of the messages. None if the exporter is not running.
        """
        producer = self._current_producer()
        if producer is None:
            return None
        reports: dict[int, KafkaError | None] = {}
        for position, message in enumerate(batch):
            _produce(producer, self._settings.logs.topic, message, position, reports)
        # That the producer has nothing left, as `flush` tells, says nothing of a message: only its report does.
        with self._broken_producer():
            while len(reports) < len(batch) and self._running and (left := latest - time.monotonic()) > 0:
                producer.flush(min(left, _SLICE))
        unanswered = KafkaError(KafkaError._TIMED_OUT)
        return [reports.get(position, unanswered) for position in range(len(batch))]

    @contextmanager
    def _broken_producer(self) -> Iterator[None]:
        """Take a fatal error of the producer for one of its connections; reports may follow."""
        try:
            yield
        except KafkaException as error:
            self._errors.append(error.args[0])

    def _failure(self, errors: list[KafkaError], timeout: float) -> RetryLater | Rejected | Blocked:
        """The outcome of messages that are not written. If nobody has answered, the connections say why."""
        error = decisive(errors)
        if error.code() in UNANSWERED:
            if not self._running:
                return RetryLater("the exporter is shutting down")
            if not self._errors:
                return RetryLater(f"no answer within {round(timeout, 1):g} s from {place_of(self._settings)}")
            error = decisive(reversed(self._errors))  # the last one, if they say the same
        return outcome_of(error, place_of(self._settings), hidden_of(self._settings))

    def _current_producer(self) -> Producer | None:
        """The producer, a new one if needed; None if the exporter is not running."""
        with self._lock:
            renewed, self._renewed = self._renewed, False
        if renewed:
            self._drop_producer()
        with self._lock:
            if not self._running:
                return None
            if self._producer is None:
                self._producer = self._create(self._settings, self._material)
            return self._producer

    def _drop_producer(self) -> None:
        """Let go of the producer, which writes nothing more. Its end can wait for a name service, in its own thread."""
        with self._lock:
            dropped, self._producer = [self._producer], None
        if dropped[0] is None:
            return
        dropped[0].purge(blocking=False)
        # Without the interpreter's end, a RuntimeError, there is always a thread.
        with suppress(RuntimeError):
            threading.Thread(target=dropped.clear, name=f"{self._name} closing", daemon=True).start()

    def _create(self, settings: KafkaSettings, material: TlsMaterial) -> Producer:
        self._errors = _events()  # the end of the last producer is not a failure of this one
        return Producer({
            **connection(settings, material, self._errors.append),
            "acks": "all",
            "enable.idempotence": True,
            "topic.metadata.propagation.max.ms": min(
                round(settings.timeout * 1000 * _UNKNOWN_TOPIC_AFTER), _MOST_PROPAGATION
            ),
            "queue.buffering.max.messages": 0,  # a batch has its own limits
            "message.max.bytes": settings.producer.max_message_bytes,
            "batch.num.messages": settings.producer.flush_max_messages,
            "compression.type": settings.producer.compression,
            "partitioner": "murmur2_random",
        })  # fmt: skip


_exporters: Final = WeakSet[KafkaExporter]()


def _keep_producers() -> None:
    for exporter in _exporters:
        exporter.keep_producer()


os.register_at_fork(after_in_child=_keep_producers)


def _events() -> deque[KafkaError]:
    return deque(maxlen=_MOST_EVENTS)


def _produce(
    producer: Producer, topic: str, message: Message, position: int, reports: dict[int, KafkaError | None]
) -> None:
    """Hand a message to the producer. Its report comes later, or at once if it can't be sent at all."""

    def report(error: KafkaError | None, _message: object) -> None:
        reports[position] = error

    try:
        producer.produce(topic, value=message.value, key=message.key, on_delivery=report)
    except KafkaException as error:  # too large, or the topic can't be used
        reports[position] = error.args[0]
