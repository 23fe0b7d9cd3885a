"""The promise behind a 200, with real processes: what was acknowledged reaches every exporter."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from statsig_otel.plugin.record.record import uid
from tests.e2e.processes import write_config
from tests.e2e.service_process import ServiceProcess, run_to_end
from tests.e2e.statsig_client import ENV, change, give, grpc_exporter, post, uids, waiting
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink, HttpSink, Received
from tests.waiting import wait_until


def test_a_backend_that_is_down_costs_no_webhook_and_gets_all_in_order(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        sink.answer = GrpcAnswer(grpc.StatusCode.UNAVAILABLE, "down")
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        changes = [change(number) for number in range(30)]
        with ServiceProcess(config, env=ENV) as service:
            assert [post(service.url, one).status for one in changes] == [200] * 30
            sink.requests.clear()
            sink.answer = GrpcAnswer()
            wait_until(lambda: len(set(uids(sink.requests))) == 30, "all are delivered")
        delivered = list(dict.fromkeys(uids(sink.requests)))
        assert delivered == [uid(one) for one in changes]
    outage = [line for line in service.log if "can't deliver now" in line]
    over = [line for line in service.log if "again after" in line]
    assert (len(outage), len(over)) == (1, 1)


def test_what_waits_at_the_end_is_delivered_after_the_next_start(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        sink.answer = GrpcAnswer(grpc.StatusCode.UNAUTHENTICATED, "the key has expired")
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            assert post(service.url, change(1), change(2)).status == 200
        wait_until(lambda: service.has_logged("is blocked until somebody repairs it"), "it is said")
        assert waiting(tmp_path) == {"otlp_grpc": 2}
        sink.requests.clear()
        sink.answer = GrpcAnswer()
        with ServiceProcess(config, env=ENV):
            wait_until(lambda: len(uids(sink.requests)) == 2, "both are delivered")
        assert uids(sink.requests) == [uid(change(1)), uid(change(2))]
        assert waiting(tmp_path) == {"otlp_grpc": 0}


@pytest.mark.slow
def test_the_same_change_sent_many_times_is_stored_and_delivered_once(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        counts: list[dict[str, int]] = []
        for _ in range(4):
            with ServiceProcess(config, env=ENV) as service:
                now_ms = time.time_ns() // 1_000_000
                # Each is signed at another time, so that no two requests are the same.
                times = [now_ms + 10_000 * number for number in range(-12, 13)]
                with ThreadPoolExecutor(25) as clients:
                    counts += clients.map(lambda at, url=service.url: post(url, change(7), now_ms=at).json(), times)
                wait_until(lambda: waiting(tmp_path) == {"otlp_grpc": 0}, "it is delivered")
        assert sum(count["accepted"] for count in counts) == 1
        assert sum(count["duplicates"] for count in counts) == 99
        assert uids(sink.requests) == [uid(change(7))]


@pytest.mark.slow
def test_one_dead_exporter_does_not_delay_the_other(tmp_path: Path) -> None:
    with GrpcSink() as good, GrpcSink() as dead:
        dead.answer = GrpcAnswer(hang=True)
        exporters = {"otlp_grpc/good": grpc_exporter(good), "otlp_grpc/dead": grpc_exporter(dead)}
        with ServiceProcess(write_config(tmp_path, exporters, queued=True), env=ENV) as service:
            for number in range(20):
                assert post(service.url, change(number)).status == 200
            wait_until(lambda: len(uids(good.requests)) == 20, "the good one has all")
        assert waiting(tmp_path) == {"otlp_grpc/good": 0, "otlp_grpc/dead": 20}


def test_a_synchronous_exporter_beside_a_queued_one(tmp_path: Path) -> None:
    """Where the synchronous one fails nothing is stored, so the redelivery reaches both."""
    with GrpcSink() as queued, HttpSink() as at_once:
        exporters: dict[str, dict[str, object]] = {
            "otlp_grpc": grpc_exporter(queued),
            "otlp_http": {"endpoint": at_once.url, "sending_queue": {"enabled": False}},
        }
        config = write_config(tmp_path, exporters, queued=True)
        at_once.close()
        with ServiceProcess(config, env=ENV) as service:
            assert post(service.url, change(1)).status == 503
            with HttpSink(port=at_once.port) as again:
                answer = post(service.url, change(1))
                assert (answer.status, answer.json()["accepted"]) == (200, 1)
                wait_until(lambda: len(uids(queued.requests)) == 1, "the queued one has it")
                assert uids(again.requests) == uids(queued.requests) == [uid(change(1))]


def test_a_queue_at_its_size_refuses_and_resumes(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        sink.answer = GrpcAnswer(grpc.StatusCode.UNAVAILABLE, "down")
        exporter = grpc_exporter(sink, sending_queue={"queue_size": 3})
        with ServiceProcess(write_config(tmp_path, {"otlp_grpc": exporter}, queued=True), env=ENV) as service:
            assert [post(service.url, change(number)).status for number in range(3)] == [200, 200, 200]
            refused = post(service.url, change(3))
            assert (refused.status, refused.headers["Retry-After"]) == (503, "10")
            sink.answer = GrpcAnswer()
            wait_until(lambda: post(service.url, change(3)).status == 200, "service resumes")


def test_a_second_service_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            second = run_to_end("run", "--config", str(config), env=ENV)
            assert second.returncode == 1
            assert f"is in use by the process {service.process.pid}" in second.stderr
            assert "give each service its own queue directory" in second.stderr
            assert "Traceback" not in second.stderr


@pytest.mark.slow
def test_an_exporter_that_left_the_configuration_keeps_its_place(tmp_path: Path) -> None:
    with GrpcSink() as stays, GrpcSink() as leaves:
        leaves.answer = GrpcAnswer(grpc.StatusCode.UNAVAILABLE, "down")
        both = {"otlp_grpc/stays": grpc_exporter(stays), "otlp_grpc/leaves": grpc_exporter(leaves)}
        with ServiceProcess(write_config(tmp_path, both, queued=True), env=ENV) as service:
            assert post(service.url, change(1)).status == 200
            wait_until(lambda: len(uids(stays.requests)) == 1, "one has it")
        config = write_config(tmp_path, {"otlp_grpc/stays": both["otlp_grpc/stays"]}, queued=True)
        with ServiceProcess(config, env=ENV):
            pass
        with ServiceProcess(config, env=ENV) as service:
            pass
        wait_until(lambda: service.has_logged("otlp_grpc/leaves is in no pipeline any more"), "it is said")
        leaves.requests.clear()
        leaves.answer = GrpcAnswer()
        with ServiceProcess(write_config(tmp_path, both, queued=True), env=ENV):
            wait_until(lambda: len(uids(leaves.requests)) == 1, "the other has it now")


@pytest.mark.slow
def test_a_crash_after_a_probe_was_taken_loses_nothing_and_gives_nothing_else_up(tmp_path: Path) -> None:
    """The evidence was in memory, so the probe may come again, with the same uid."""
    poison, other, last = change(1), change(2), change(3)
    with GrpcSink() as sink:
        victims: list[ServiceProcess] = []

        def answer(received: Received) -> GrpcAnswer:
            if uid(poison) not in uids([received]):
                return GrpcAnswer()
            if victims and uid(other) in uids(sink.requests):  # the probe was taken: this is the next attempt
                victims.pop().process.send_signal(signal.SIGKILL)
            return GrpcAnswer(grpc.StatusCode.INVALID_ARGUMENT, "no good")

        sink.answer = answer
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV, exit_code=-signal.SIGKILL) as service:
            assert post(service.url, poison).status == 200
            wait_until(lambda: len(sink.requests) == 1, "it is refused")
            victims.append(service)
            assert post(service.url, other).status == 200
            service.wait()
        assert waiting(tmp_path) == {"otlp_grpc": 2}
        with ServiceProcess(config, env=ENV) as service:
            assert post(service.url, last).status == 200
            wait_until(lambda: waiting(tmp_path) == {"otlp_grpc": 0}, "the queue is drained")
        dead = json.loads(give(tmp_path, "dead-letters", "list", "--json"))
        assert [one["uid"] for one in dead] == [uid(poison)]
        assert {uid(other), uid(last)} <= set(uids(sink.requests))
