"""A Kafka cluster of librdkafka's own, in this process: it listens on loopback, and fails as it is told.

The library's Python package has no names for it, so it is called in the shared object that the package brings.
"""

import ctypes
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

import confluent_kafka
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

PRODUCE: Final = 0
METADATA: Final = 3
INIT_PRODUCER_ID: Final = 22
"""The keys of requests, by the protocol of Kafka."""

_CALLS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "conf_new": (ctypes.c_void_p, ()),
    "conf_set": (ctypes.c_int, (ctypes.c_void_p, *(ctypes.c_char_p,) * 3, ctypes.c_size_t)),
    "new": (ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)),
    "destroy": (None, (ctypes.c_void_p,)),
    "mock_cluster_new": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int)),
    "mock_cluster_destroy": (None, (ctypes.c_void_p,)),
    "mock_cluster_bootstraps": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "mock_topic_create": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)),
    "mock_topic_set_error": (None, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)),
    "mock_partition_set_leader": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32)),
    "mock_push_request_errors_array": (
        None,
        (ctypes.c_void_p, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)),
    ),
    "mock_broker_set_down": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int32)),
    "mock_broker_set_up": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int32)),
    "mock_broker_set_rtt": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int32, ctypes.c_int)),
    "mock_start_request_tracking": (None, (ctypes.c_void_p,)),
    "mock_get_requests": (ctypes.POINTER(ctypes.c_void_p), (ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t))),
    "mock_request_api_key": (ctypes.c_int16, (ctypes.c_void_p,)),
    "mock_request_destroy_array": (None, (ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t)),
}


@cache
def _library() -> dict[str, Callable[..., Any]]:
    package = Path(confluent_kafka.__file__).parent
    folders = (package.parent / "confluent_kafka.libs", package / ".dylibs")
    (path,) = (path for folder in folders for path in folder.glob("librdkafka*"))
    library, found = ctypes.CDLL(str(path)), {}
    for name, (result, arguments) in _CALLS.items():
        call = getattr(library, f"rd_kafka_{name}")
        call.restype, call.argtypes = result, arguments
        found[name] = call
    return found


class KafkaCluster:
    """A cluster with the topic `otlp_logs`. Its brokers have the ids from 1 on.

    Args:
        brokers: How many.
        partitions: Of the topic, each with its own leader in turn.
    """

    def __init__(self, brokers: int = 1, partitions: int = 4) -> None:
        self._call = _library()
        self._size = brokers
        self._ids = range(1, brokers + 1)
        self._partitions = partitions

    def __enter__(self) -> Self:
        error = ctypes.create_string_buffer(512)
        configuration = self._call["conf_new"]()
        self._call["conf_set"](configuration, b"log_level", b"0", error, len(error))
        self._client = self._call["new"](0, configuration, error, len(error))
        assert self._client, error.value
        self._cluster = self._call["mock_cluster_new"](self._client, self._size)
        assert self._cluster
        self.brokers: list[str] = self._call["mock_cluster_bootstraps"](self._cluster).decode().split(",")
        self._call["mock_topic_create"](self._cluster, b"otlp_logs", self._partitions, self._size)
        self._call["mock_start_request_tracking"](self._cluster)
        return self

    def __exit__(self, *_: object) -> None:
        self._call["mock_cluster_destroy"](self._cluster)
        self._call["destroy"](self._client)

    def fail(self, *codes: int, request: int = PRODUCE) -> None:
        """Answer the next requests of a kind with these errors."""
        self._call["mock_push_request_errors_array"](
            self._cluster, request, len(codes), (ctypes.c_int * len(codes))(*codes)
        )

    def deny_topic(self, code: int) -> None:
        """Answer with an error whenever somebody asks for the topic; 0 for none."""
        self._call["mock_topic_set_error"](self._cluster, b"otlp_logs", code)

    def lead(self, broker: int, partition: int) -> None:
        """Let a broker lead a partition."""
        self._call["mock_partition_set_leader"](self._cluster, b"otlp_logs", partition, broker)

    def stop(self, *brokers: int) -> None:
        """Let these brokers, or all, close their connections and refuse new ones. They go on leading partitions."""
        for broker in brokers or self._ids:
            self._call["mock_broker_set_down"](self._cluster, broker)

    def resume(self) -> None:
        """Let all listen again."""
        for broker in self._ids:
            self._call["mock_broker_set_up"](self._cluster, broker)

    def delay(self, seconds: float) -> None:
        """Answer each request after this time."""
        for broker in self._ids:
            self._call["mock_broker_set_rtt"](self._cluster, broker, round(seconds * 1000))

    def count(self, request: int) -> int:
        """How many requests of a kind there were."""
        size = ctypes.c_size_t()
        found = self._call["mock_get_requests"](self._cluster, ctypes.byref(size))
        kinds = [self._call["mock_request_api_key"](found[index]) for index in range(size.value)]
        self._call["mock_request_destroy_array"](found, size)
        return kinds.count(request)

    def read(self, count: int, partitions: Iterable[int] | None = None) -> list[Message]:
        """The messages of the topic, at least so many, and what comes within a moment after them."""
        return read(self.brokers, count, "otlp_logs", range(self._partitions) if partitions is None else partitions)


def _consumer(brokers: list[str]) -> Consumer:
    return Consumer({
        "bootstrap.servers": ",".join(brokers), "group.id": "tests", "enable.auto.commit": False, "log_level": 0,
        "auto.offset.reset": "earliest", "error_cb": lambda error: None, "enable.partition.eof": True,
    })  # fmt: skip


def read_all(brokers: list[str], topic: str, within: float = 120.0) -> list[Message]:
    """All messages of a topic, up to the end that each partition has now."""
    consumer = _consumer(brokers)
    found: list[Message] = []
    try:
        left = set(consumer.list_topics(topic, timeout=within).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in left])
        latest = time.monotonic() + within
        while left:
            assert time.monotonic() < latest, f"partitions {left} were not read in time"
            for one in consumer.consume(1000, 0.2):
                if (error := one.error()) is None:
                    found.append(one)
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(one.partition())
    finally:
        consumer.close()
    return found


def read(brokers: list[str], count: int, topic: str, partitions: Iterable[int], within: float = 30.0) -> list[Message]:
    """The messages of a topic from its beginning on, at least so many, and what comes within a moment after them."""
    consumer = _consumer(brokers)
    found: list[Message] = []
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        latest = time.monotonic() + within
        while len(found) < count and time.monotonic() < latest:
            found += [one for one in consumer.consume(count, 0.2) if one.error() is None]
        found += [one for one in consumer.consume(100, 0.2) if one.error() is None]
    finally:
        consumer.close()
    return found
