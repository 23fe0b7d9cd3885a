"""Kills parts of the chain with Kafka under load, and compares what was acknowledged, written and delivered.

A test and proofs/kafka_kills.py use it, and examples/kafka its sender.
"""

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import urllib3

from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.webhook.signature import sign
from tests.e2e.kafka_chain import GROUP, TOPIC, Chain, tries
from tests.e2e.processes import Restartable
from tests.e2e.statsig_client import SECRET, Client, change, load
from tests.exporters.kafka.records import uid_of
from tests.peers.kafka_cluster import read_all
from tests.peers.otlp_servers import HttpSink, Received
from tests.waiting import wait_until

PATIENCE: Final = 300.0
"""Seconds for what a loaded machine takes long for, such as brokers that start again."""

READ_AGAIN: Final = "records read again by a consumer"
"""A figure of a verdict."""

_AGAIN: Final = 0.05
"""The share of webhooks that are sent again although they were answered with 200."""

# The timeout: nginx answers after 35 s + 30 s at the latest.
_http: Final = urllib3.PoolManager(retries=False, timeout=80, maxsize=8)

RecordBytes = tuple[bytes, bytes, bytes]
"""The resource, the scope and the record of a log record, as protobuf."""


@dataclass
class Sender(Client):
    """Counts as acknowledged only what was answered with 200. It sends a webhook that was not once more.

    Attributes:
        pause: Seconds between two webhooks.
        uids: The uids of each webhook's changes, by its User-Agent.
    """

    pause: float = 0.05
    uids: dict[str, list[str]] = field(default_factory=dict)

    def run(self) -> None:
        chance = random.Random(self.seed)
        while not self.stopped:
            changes = [change(self.seed * 1_000_000 + self.sent + index) for index in range(chance.randint(1, 3))]
            self.sent += len(changes)
            if not self.post(changes) or chance.random() < _AGAIN:
                time.sleep(self.pause)
                self.post(changes)
            time.sleep(self.pause)

    def post(self, changes: Sequence[dict[str, object]]) -> bool:
        """Send a webhook. Whether it was answered with 200."""
        uids = [uid(one) for one in changes]
        agent = f"sender/{uids[0]}"
        self.uids[agent] = uids
        body = json.dumps({"data": changes}).encode()
        headers = sign(body, secret=SECRET, timestamp_ms=time.time_ns() // 1_000_000)
        try:
            status = _http.request("POST", self.url, body=body, headers={**headers, "User-Agent": agent}).status
        except urllib3.exceptions.HTTPError:
            status = 0
        self.statuses[status] += 1
        if status == 200:
            self.acknowledged.update(uids)
        return status == 200


class ReceivedRecords:
    """The records that a backend has got. Each look reads only what is new.

    Attributes:
        records: How many times it has got each record.
        uids: How many records it has got of each uid.
    """

    def __init__(self, sink: HttpSink) -> None:
        self._sink = sink
        self._seen = 0
        self.records: Counter[RecordBytes] = Counter()
        self.uids: Counter[str] = Counter()

    def look(self) -> list[Received]:
        """Read what has come since the last look."""
        new = self._sink.requests[self._seen :]
        self._seen += len(new)
        for one in new:
            self.records.update(record_bytes(one.payload))
            self.uids.update(
                attribute.value.string_value
                for record in one.records
                for attribute in record.attributes
                if attribute.key == "log.record.uid"
            )
        return new

    def has(self, uids: set[str]) -> bool:
        """Whether it has got all of these."""
        self.look()
        return uids <= self.uids.keys()


def record_bytes(payload: bytes) -> list[RecordBytes]:
    """The records of a request, each with its resource and scope."""
    return [
        (resource.resource.SerializeToString(), scope.scope.SerializeToString(), record.SerializeToString())
        for resource in Received(payload, {}, "").message.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


@dataclass
class Verdict:
    """What has become of all webhooks.

    Attributes:
        figures: How many there were of what.
        faults: What must not be, in sentences.
    """

    figures: dict[str, int]
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "; ".join([", ".join(f"{number} {what}" for what, number in self.figures.items()), *self.faults])


def kill_under_load(
    chain: Chain, senders: Sequence[Sender], *, replicas: int = 0, brokers: int = 0, consumers: int = 0, seed: int = 1
) -> None:
    """Kill so many of each in a random order, each while webhooks are acknowledged, and start it again a moment later.

    It begins once each Collector has its partitions. A broker is mostly killed once the last one has caught up; one in
    five does not wait for that. Returns once all run again, and the senders have ended.
    """
    wait_until(lambda: chain.kafka.is_stable(GROUP, len(chain.consumers)), "the consumer group", within=PATIENCE)
    chance = random.Random(seed)
    kinds: list[tuple[Sequence[Restartable], int]] = [
        (chain.replicas, replicas), (chain.kafka.brokers, brokers), (chain.consumers, consumers),
    ]  # fmt: skip
    order = [kind for kind, count in kinds for _ in range(count)]
    chance.shuffle(order)
    before = 0

    def has_load() -> bool:
        return sum(len(sender.acknowledged) for sender in senders) > before

    with load(list(senders)):
        for kind in order:
            wait_until(has_load, "webhooks are acknowledged", within=PATIENCE)
            if kind is chain.kafka.brokers and chance.random() < 0.8:
                wait_until(lambda: chain.kafka.are_in_sync(TOPIC), "all brokers have caught up", within=PATIENCE)
            part = chance.choice(kind)
            before = sum(len(sender.acknowledged) for sender in senders)
            part.kill()
            time.sleep(chance.uniform(0.0, 3.0))
            part.start()
        wait_until(lambda: chain.kafka.are_in_sync(TOPIC), "all brokers have caught up", within=PATIENCE)
        wait_until(has_load, "webhooks are acknowledged", within=PATIENCE)
    assert all(part.is_running for part in chain.parts)


def judge(chain: Chain, senders: Sequence[Sender], delivered: ReceivedRecords, *, read_again: int | None) -> Verdict:
    """Wait until all that is in the topic has arrived, and compare. The senders have ended.

    Args:
        chain: The chain.
        senders: All that have sent webhooks to it.
        delivered: What the backend has got.
        read_again: How many records consumers may have read twice: as many as before, if only replicas were killed
            since. A broker may be the one that keeps the group's offsets.
    """
    acknowledged = set[str]().union(*(sender.acknowledged for sender in senders))
    webhooks = {agent: uids for sender in senders for agent, uids in sender.uids.items()}
    messages = read_all(chain.kafka.addresses(), TOPIC)
    partitions: dict[str, set[int | None]] = defaultdict(set)
    topic: Counter[str] = Counter()
    written: Counter[RecordBytes] = Counter()
    for message in messages:
        value, key = message.value(), message.key()
        assert value is not None
        assert key is not None
        topic[uid_of(value)] += 1
        written.update(record_bytes(value))
        partitions[key.decode()].add(message.partition())
    faults: list[str] = []
    try:
        wait_until(lambda: delivered.has(set(topic) | acknowledged), "all that was written", within=PATIENCE)
        time.sleep(2.0)  # for what comes twice
        delivered.look()
    except AssertionError:
        lost = acknowledged - delivered.uids.keys()
        faults.append(f"{len(lost)} acknowledged changes were not delivered: {sorted(lost)[:5]}")
        lost = topic.keys() - delivered.uids.keys()
        faults.append(f"{len(lost)} written changes were not delivered: {sorted(lost)[:5]}")
    tried = tries(chain.access_log)
    passed: Counter[str] = Counter()
    for agent, uids in webhooks.items():
        passed.update(dict.fromkeys(uids, tried.get(agent, 0)))
    if lost := acknowledged - topic.keys():
        faults.append(f"{len(lost)} acknowledged changes are not in the topic: {sorted(lost)[:5]}")
    if unsent := (topic.keys() | delivered.uids.keys()) - passed.keys():
        faults.append(f"{len(unsent)} changes were never sent: {sorted(unsent)[:5]}")
    if repeated := [one for one, count in topic.items() if count > passed[one]]:
        faults.append(f"{len(repeated)} changes were written more often than a replica got them: {repeated[:5]}")
    if scattered := [key for key, found in partitions.items() if len(found) > 1]:
        faults.append(f"{len(scattered)} keys are in several partitions: {scattered[:5]}")
    if other := delivered.records.keys() ^ written.keys():
        faults.append(f"{len(other)} records are not the same in the topic and at the backend")
    reread = delivered.records.total() - written.total()
    if read_again is not None and reread > read_again:
        faults.append(f"{reread - read_again} records were read twice, although only replicas were killed")
    figures = {
        "changes acknowledged": len(acknowledged),
        "written": len(topic),
        "written more than once": sum(count > 1 for count in topic.values()),
        "delivered": len(delivered.uids),
        READ_AGAIN: reread,
        "webhooks not answered with 200": sum(
            count for sender in senders for status, count in sender.statuses.items() if status != 200
        ),
    }
    return Verdict(figures, faults)
