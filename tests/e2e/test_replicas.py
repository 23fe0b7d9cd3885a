"""Replicas without a disk, on Kafka: what each of them answers, and what is in the topic then."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3

from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.webhook.signature import sign
from tests.e2e.kafka_chain import balancer, tries, url
from tests.e2e.kafka_kills import Sender
from tests.e2e.otelcol import UnavailableError
from tests.e2e.processes import write_config
from tests.e2e.service_process import ServiceProcess
from tests.e2e.statsig_client import ENV, SECRET, Client, change, http, load, post, uids
from tests.exporters.kafka.records import uids_of
from tests.peers.kafka_cluster import KafkaCluster, read_all
from tests.peers.otlp_servers import HttpSink
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[KafkaCluster]:
    with KafkaCluster(brokers=3) as running:
        yield running


def replica(
    folder: Path,
    cluster: KafkaCluster,
    *,
    exit_code: int = 0,
    secrets: Sequence[str] = ("${env:STATSIG_SIGNING_SECRET}",),
) -> ServiceProcess:
    """A service whose only exporter is synchronous. Its working directory is empty, and so is its state directory."""
    folder.mkdir()
    config = write_config(folder, {"kafka": {"brokers": cluster.brokers, "timeout": "2s"}}, signing_secrets=secrets)
    return ServiceProcess(config, env={**ENV, "STATE_DIRECTORY": str(folder)}, folder=folder, exit_code=exit_code)


def in_topic(cluster: KafkaCluster, count: int) -> Counter[str]:
    return Counter(uids_of(one.value() for one in cluster.read(count)))


def test_each_replica_answers_alike_and_none_writes_a_file(tmp_path: Path, cluster: KafkaCluster) -> None:
    with replica(tmp_path / "a", cluster) as first, replica(tmp_path / "b", cluster) as second:
        for one in (first, second):
            body = json.dumps({"data": {"event": "url_verification", "verification_code": "abc"}}).encode()
            answer = http.request("POST", one.url, body=body, headers={"Content-Type": "application/json"})
            assert (answer.status, answer.json()) == (200, {"verification_code": "abc"})
            answer = post(one.url, change(1), change(2))
            assert (answer.status, answer.json()["accepted"]) == (200, 2)
        cluster.stop()
        refused = post(first.url, change(3))
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) >= 1
        cluster.resume()
        wait_until(lambda: post(second.url, change(4)).status == 200, "the brokers are back")
    found = in_topic(cluster, 5)
    assert found[uid(change(1))] == found[uid(change(2))] == 2, "the same uid from each"
    assert found[uid(change(4))] >= 1
    for name in ("a", "b"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["statsig-otel.yaml"]


def test_a_change_that_nothing_keeps_refuses_its_webhook_and_the_others_in_it_are_delivered(
    tmp_path: Path, cluster: KafkaCluster
) -> None:
    """By each synchronous exporter. Once a record can be made of it, the same webhook is accepted."""
    large = change(2, description="x" * 20_000)
    unreadable: dict[str, object] = {"eventName": "statsig::config_change"}

    def answers(folder: Path, limit: int) -> list[int]:
        folder.mkdir()
        exporters: dict[str, dict[str, object]] = {
            "kafka": {"brokers": cluster.brokers},
            "otlp_http": {"endpoint": sink.url},
        }
        with ServiceProcess(write_config(folder, exporters, max_record_bytes=limit), env=ENV) as service:
            found = [post(service.url, change(1), large), post(service.url, large), post(service.url, unreadable)]
            assert [one.headers.get("Retry-After") for one in found if one.status == 503][-1] == "3600"
            wait_until(partial(service.has_logged, "503 (not_kept): without a queue nothing keeps 1 change"))
        return [one.status for one in found]

    with HttpSink() as sink:
        assert answers(tmp_path / "small", 10_000) == [503, 503, 503]
        assert uids(sink.requests) == [uid(change(1))] == list(in_topic(cluster, 1))
        assert answers(tmp_path / "large", 50_000) == [200, 200, 503]
        assert set(uids(sink.requests)) == {uid(change(1)), uid(large)} == set(in_topic(cluster, 4))


def test_a_secret_is_rotated_on_all_replicas_while_webhooks_come(tmp_path: Path, cluster: KafkaCluster) -> None:
    """First all know both secrets, then Statsig signs with the new one, then the old one is removed from all."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text(SECRET)
    new.write_text("")
    secrets = [f"${{file:{old}}}", f"${{file:{new}}}"]
    other = SECRET.replace("0", "1")

    def answers(secret: str) -> list[int]:
        return [post(one.url, change(1), secret=secret).status for one in (first, second)]

    with (
        replica(tmp_path / "a", cluster, secrets=secrets) as first,
        replica(tmp_path / "b", cluster, secrets=secrets) as second,
    ):
        assert (answers(SECRET), answers(other)) == ([200, 200], [401, 401])
        new.write_text(other)
        wait_until(lambda: answers(other) == [200, 200], "the new secret")
        assert answers(SECRET) == [200, 200]
        old.write_text("")
        wait_until(lambda: answers(SECRET) == [401, 401], "the end of the old secret")
        assert answers(other) == [200, 200]


def test_nothing_acknowledged_is_lost_if_replicas_are_killed_and_brokers_are_away(
    tmp_path: Path, cluster: KafkaCluster
) -> None:
    chance = random.Random(1)
    clients = [Client(seed) for seed in range(4)]
    with ExitStack() as stack, load(clients):
        for number in range(6):
            killed = stack.enter_context(replica(tmp_path / f"{number}", cluster, exit_code=-signal.SIGKILL))
            before = sum(len(client.acknowledged) for client in clients)
            for client in clients:
                client.url = killed.url
            wait_until(lambda: sum(len(client.acknowledged) for client in clients) > before, "there is load")  # noqa: B023 - at once
            if number % 2:
                cluster.stop(chance.choice([1, 2, 3]))
            time.sleep(chance.uniform(0.0, 0.5))
            killed.process.send_signal(signal.SIGKILL)
            killed.process.wait(10)
            cluster.resume()
    acknowledged = set[str]().union(*(client.acknowledged for client in clients))
    assert len(acknowledged) > 6
    assert acknowledged <= in_topic(cluster, len(acknowledged)).keys()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["hangs", "has lost the brokers"])
def test_nginx_passes_on_what_one_replica_does_not_take(tmp_path: Path, cluster: KafkaCluster, fault: str) -> None:
    """With the file of the example. Each webhook is answered with 200, those at that replica after a while.

    One whose client does not wait so long arrives, too, and one that is larger than the buffers of a connection.
    """
    hasty = [change(200 + number) for number in range(3)]
    exposures = [{"eventName": "statsig::gate_exposure", "value": "x" * 1_000_000} for _ in range(15)]
    with ExitStack() as stack:
        own = stack.enter_context(KafkaCluster())
        made = [
            stack.enter_context(replica(tmp_path / f"{number}", own if number == 0 else cluster)) for number in range(3)
        ]
        try:
            nginx = balancer(tmp_path / "nginx", [urlsplit(one.url).port or 0 for one in made])
        except UnavailableError as error:
            pytest.skip(f"!! {error}")
        stack.callback(nginx.stop)
        nginx.start()
        senders = [Sender(seed, url(nginx)) for seed in range(9)]
        assert all(one.post([change(one.seed)]) for one in senders)
        if fault == "hangs":
            os.kill(made[0].process.pid, signal.SIGSTOP)
            stack.callback(os.kill, made[0].process.pid, signal.SIGCONT)
        else:
            own.stop()
        large = [Sender(20 + number, url(nginx)) for number in range(len(made))]
        with ThreadPoolExecutor(len(large)) as executor:
            assert all(executor.map(lambda one: one.post([change(300 + one.seed), *exposures]), large))
        for one in hasty:
            body = json.dumps({"data": [one]}).encode()
            headers = sign(body, secret=SECRET, timestamp_ms=time.time_ns() // 1_000_000)
            with suppress(urllib3.exceptions.TimeoutError):
                http.request("POST", url(nginx), body=body, headers=headers, timeout=1)
        with ThreadPoolExecutor(len(senders)) as executor:
            assert all(executor.map(lambda one: one.post([change(100 + one.seed)]), senders))
        passed = tries(tmp_path / "nginx" / "access.log")
        assert max(passed.values()) >= 2, "it was tried"
        assert max(passed[agent] for one in large for agent in one.uids) >= 2, "also with a large webhook"
        sent = {uid(change(100 + one.seed)) for one in senders} | {uid(one) for one in hasty}
        wait_until(
            lambda: sent <= set(uids_of(one.value() for one in read_all(cluster.brokers, "otlp_logs"))),
            "all in the topic", within=60,
        )  # fmt: skip
