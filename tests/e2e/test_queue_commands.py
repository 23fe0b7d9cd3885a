"""The commands of the queue as a user gives them: real processes, beside a running service and after a stopped one."""

import base64
import json
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
import urllib3
from click.testing import CliRunner, Result

from statsig_otel.exporters.queue import store
from statsig_otel.exporters.queue.database import StoppedQueue
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.webhook.body import parse
from statsig_otel.plugin.webhook.signature import sign
from tests.e2e.processes import write_config
from tests.e2e.service_process import ServiceProcess, environment, run_to_end
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink, HttpAnswer, HttpSink
from tests.waiting import wait_until

SECRET = "webhook-0123456789abcdef0123456789abcdef"
ENV = {"STATSIG_SIGNING_SECRET": SECRET}
EXPIRED = GrpcAnswer(grpc.StatusCode.UNAUTHENTICATED, "the key has expired")
WAIT = 30.0

http = urllib3.PoolManager(retries=False, timeout=20)


def change(number: int, **others: object) -> dict[str, object]:
    metadata = {"type": "Gate", "name": f"gate_{number}", "action": "updated"}
    return {"eventName": "statsig::config_change", "timestamp": 1739400185198, "metadata": metadata, **others}


def post(url: str, body: object) -> int:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = sign(content, secret=SECRET, timestamp_ms=time.time_ns() // 1_000_000)
    return http.request("POST", url, body=content, headers=headers).status


def exporter(sink: GrpcSink) -> dict[str, object]:
    return {"endpoint": sink.address, "tls": {"insecure": True}}


def delivered(sink: GrpcSink | HttpSink, key: str = "feature_flag.key") -> list[str]:
    """The names of the gates that the sink took, in order; or another attribute of the records."""
    return [
        attribute.value.string_value
        for request in sink.requests
        for record in request.records
        for attribute in record.attributes
        if attribute.key == key
    ]


def give(folder: Path, *arguments: str, config: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """A command in a process of its own."""
    done = run_to_end(*arguments, *place(folder, config), env=ENV)
    assert "Traceback" not in done.stderr
    return done


def place(folder: Path, config: Path | None = None) -> list[str]:
    return ["--config", str(config)] if config else ["--directory", str(folder / "queue")]


def give_here(folder: Path, *arguments: str, config: Path | None = None) -> Result:
    """A command in this process, which is quicker."""
    return CliRunner(env=ENV).invoke(main, [*arguments, *place(folder, config)])


def as_json(folder: Path, *arguments: str, config: Path | None = None) -> Any:
    """What a command prints. Beside a blocked exporter its exit code is 3."""
    done = give_here(folder, *arguments, "--json", config=config)
    assert done.exit_code == (3 if '"state": "blocked"' in done.output else 0), done.output
    return json.loads(done.stdout)


def state(folder: Path) -> dict[str, Any]:
    """The row of the one exporter."""
    (row,) = as_json(folder, "queue")["exporters"]
    assert isinstance(row, dict)
    return row


def test_a_running_service_lists_and_replays_dead_letters(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        sink.answer = EXPIRED
        config = write_config(tmp_path, {"otlp_grpc": exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            socket = tmp_path / "queue" / "control.sock"
            assert stat.S_IMODE(socket.stat().st_mode) == 0o600
            assert post(service.url, {"data": [change(1), change(2), change(3)]}) == 200
            wait_until(lambda: state(tmp_path)["state"] == "blocked", "the key is refused")
            assert post(service.url, [change(4, timestamp="soon")]) == 200
            assert post(service.url, b'{"events": []}') == 400

            found = as_json(tmp_path, "queue", config=config)
            assert (found["running"], found["pid"], found["dead_letters"]) == (True, service.process.pid, 2)
            row = found["exporters"][0]
            assert (row["name"], row["waiting"], row["configured"]) == ("otlp_grpc", 3, True)
            assert "the key has expired" in row["last_error"]
            assert "the key has expired" in give(tmp_path, "queue").stdout

            before = len(sink.requests)
            assert give(tmp_path, "queue", "skip", "otlp_grpc").returncode == 0
            wait_until(lambda: state(tmp_path)["waiting"] == 2, "the first one is skipped")
            wait_until(lambda: len(sink.requests) > before, "the second one is refused in its place")
            wait_until(lambda: state(tmp_path)["attempts"] > 0, "and waits")
            item, body, record = as_json(tmp_path, "dead-letters", "list")
            assert [one["kind"] for one in (item, body, record)] == ["item", "body", "record"]
            said = "skipped by command: UNAUTHENTICATED: the key has expired"
            assert (record["uid"], record["reason"]) == (uid(change(1)), said)

            sink.requests.clear()
            sink.answer = GrpcAnswer()
            assert "tries again now" in give(tmp_path, "queue", "resume", "otlp_grpc").stdout
            wait_until(lambda: delivered(sink) == ["gate_2", "gate_3"], "the others are delivered")
            assert give(tmp_path, "dead-letters", "replay", str(record["id"])).returncode == 0
            wait_until(lambda: delivered(sink) == ["gate_2", "gate_3", "gate_1"], "the skipped one is delivered")

            refused = give(tmp_path, "dead-letters", "replay", "--receiver", "statsig")
            assert refused.returncode == 1
            assert f"{item['id']} stays: " in refused.stderr
            assert f"{body['id']} stays: " in refused.stderr
            shown = as_json(tmp_path, "dead-letters", "show", str(body["id"]))
            assert shown[0]["text"] == '{"events": []}'
            assert as_json(tmp_path, "dead-letters", "drop", "--all", "--yes") == [item["id"], body["id"]]
            assert as_json(tmp_path, "queue")["dead_letters"] == 0
        assert not socket.exists()
    log = "\n".join(service.log)
    for line in (
        "queue skip: ",
        "queue resume: ",
        "dead-letters replay: replayed 1 dead letter",
        "dead-letters drop: deleted 2",
    ):
        assert log.count(f"Command {line}") == 1, log


@pytest.mark.slow
def test_a_stopped_service_is_looked_at_and_replayed_for_its_next_start(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        sink.answer = EXPIRED
        config = write_config(tmp_path, {"otlp_grpc": exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            assert post(service.url, [change(1), change(2), change(3, timestamp="soon")]) == 200
            wait_until(lambda: state(tmp_path)["state"] == "blocked", "the key is refused")
        row = state(tmp_path)
        assert (row["state"], row["waiting"]) == ("not running", 2)
        assert give(tmp_path, "queue", "resume", "otlp_grpc").returncode == 1
        assert give(tmp_path, "queue", "skip", "otlp_grpc", config=config).returncode == 0
        assert [one["kind"] for one in as_json(tmp_path, "dead-letters", "list")] == ["item", "record"]
        assert give(tmp_path, "dead-letters", "replay", "2", config=config).returncode == 0
        still = give(tmp_path, "dead-letters", "replay", "--kind", "item", config=config)
        assert still.returncode == 1
        assert "1 stays: " in still.stderr
        assert give(tmp_path, "dead-letters", "drop", "1", "--yes").returncode == 0
        sink.requests.clear()
        sink.answer = GrpcAnswer()
        with ServiceProcess(config, env=ENV) as service:
            wait_until(lambda: delivered(sink) == ["gate_2", "gate_1"], "both are delivered, the skipped one last")
        assert not [line for line in service.log if " ERROR " in line]


@pytest.mark.slow
def test_a_killed_service_counts_as_stopped_and_starts_again(tmp_path: Path) -> None:
    """Its socket and its log are still there: neither is in the way, and nothing of the log is lost."""
    with GrpcSink() as sink:
        sink.answer = EXPIRED
        config = write_config(tmp_path, {"otlp_grpc": exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV, exit_code=-signal.SIGKILL) as service:
            assert post(service.url, [change(1), change(2)]) == 200
            service.process.kill()
            service.wait()
        assert (tmp_path / "queue" / "control.sock").exists()
        assert not as_json(tmp_path, "queue")["running"]
        assert state(tmp_path)["waiting"] == 2
        assert give(tmp_path, "queue", "skip", "otlp_grpc").returncode == 0
        assert state(tmp_path)["waiting"] == 1
        sink.requests.clear()
        sink.answer = GrpcAnswer()
        with ServiceProcess(config, env=ENV) as service:
            wait_until(lambda: delivered(sink) == ["gate_2"], "the second one is delivered")
            assert as_json(tmp_path, "queue")["running"]
            assert give(tmp_path, "dead-letters", "replay", "--all").returncode == 0
            wait_until(lambda: delivered(sink) == ["gate_2", "gate_1"], "the first one is delivered")


@pytest.mark.slow
def test_an_exporter_that_left_the_configuration_is_removed_by_command_alone(tmp_path: Path) -> None:
    with GrpcSink() as sink, GrpcSink() as other:
        sink.answer = EXPIRED
        config = write_config(tmp_path, {"otlp_grpc": exporter(sink), "otlp_grpc/b": exporter(other)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            assert post(service.url, [change(1)]) == 200
            wait_until(lambda: delivered(other) == ["gate_1"], "the other one has it")
            assert give(tmp_path, "queue", "remove", "otlp_grpc", "--yes").returncode == 1
        config = write_config(tmp_path, {"otlp_grpc/b": exporter(other)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            rows = {row["name"]: row for row in as_json(tmp_path, "queue")["exporters"]}
            assert (rows["otlp_grpc"]["state"], rows["otlp_grpc"]["waiting"]) == ("not configured", 1)
            refused = give(tmp_path, "queue", "remove", "otlp_grpc")
            assert refused.returncode == 1
            assert "1 record of" in refused.stderr
            unknown = give(tmp_path, "queue", "remove", "otlp_grcp")
            assert unknown.returncode == 1
            assert "did you mean otlp_grpc" in unknown.stderr
            assert give(tmp_path, "queue", "remove", "otlp_grpc", "--yes").returncode == 0
            assert [row["name"] for row in as_json(tmp_path, "queue")["exporters"]] == ["otlp_grpc/b"]
            assert post(service.url, [change(2)]) == 200
            wait_until(lambda: delivered(other) == ["gate_1", "gate_2"], "delivery goes on")
        forgotten = "Command queue remove: otlp_grpc is forgotten, and 1 record of"
        wait_until(lambda: service.has_logged(forgotten), "it is said")


@pytest.mark.slow
def test_a_service_killed_during_a_replay_loses_and_doubles_no_letter(tmp_path: Path) -> None:
    """Every record is delivered in the end; twice only what a kill repeats at most (docs/queue.md, Duplicates)."""
    total, size, kills, repeated = 800, 5, 2, 17
    with GrpcSink() as sink:
        queue = {"enabled": True, "batch": {"max_size": size}}
        config = write_config(tmp_path, {"otlp_grpc": {**exporter(sink), "sending_queue": queue}}, queued=True)
        fill(tmp_path, total)
        for round_ in range(kills):
            with ServiceProcess(config, env=ENV, exit_code=-signal.SIGKILL) as service, replaying(tmp_path) as command:
                assert command.stdout is not None
                for _ in range(1 + 60 * round_):  # lines of the pages that were answered; the next ones are under way
                    command.stdout.readline()
                service.process.kill()
                service.wait()
                command.stdout.read()
                assert command.wait(WAIT) == 1
        left = as_json(tmp_path, "dead-letters", "list")
        assert 0 < len(left) < total
        with ServiceProcess(config, env=ENV):
            assert give(tmp_path, "dead-letters", "replay", "--all").returncode == 0
            wait_until(lambda: state(tmp_path)["waiting"] == 0, "all are delivered")
        got = delivered(sink)
        assert set(got) == {f"gate_{number}" for number in range(total)}
        assert len(got) - len(set(got)) <= kills * repeated * size
        assert as_json(tmp_path, "dead-letters", "list") == []


@pytest.mark.slow
def test_several_people_replay_at_once_and_nothing_is_doubled(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        config = write_config(tmp_path, {"otlp_grpc": exporter(sink)}, queued=True)
        fill(tmp_path, 500)
        with ServiceProcess(config, env=ENV):
            with replaying(tmp_path) as first, replaying(tmp_path) as second:
                printed = [json.loads(command.communicate(timeout=WAIT)[0]) for command in (first, second)]
            wait_until(lambda: state(tmp_path)["waiting"] == 0, "all are delivered")
        replayed = [one["id"] for page in printed for one in page if one["outcome"] == "replayed"]
        assert sorted(replayed) == list(range(1, 501))
        assert sorted(delivered(sink)) == sorted(f"gate_{number}" for number in range(500))


@pytest.mark.slow
def test_a_replayed_item_reaches_synchronous_exporters_too(tmp_path: Path) -> None:
    """All or nothing: while the synchronous one can't be reached, the queued one gets nothing either."""
    with GrpcSink() as queued, HttpSink() as at_once:
        synchronous = {"endpoint": at_once.url, "sending_queue": {"enabled": False}}
        config = write_config(tmp_path, {"otlp_grpc": exporter(queued), "otlp_http": synchronous}, queued=True)
        keep_items(tmp_path, 150)
        stopped = give_here(tmp_path, "dead-letters", "replay", "1", config=config)
        assert stopped.exit_code == 1
        assert "1 stays: not delivered: otlp_http has no sending queue" in stopped.stderr
        with ServiceProcess(config, env=ENV) as service:
            at_once.answer = HttpAnswer(503)
            failed = give_here(tmp_path, "dead-letters", "replay", "1")
            assert failed.exit_code == 1
            assert "1 stays: not delivered: otlp_http retry later: " in failed.stderr
            assert len(as_json(tmp_path, "dead-letters", "list")) == 150
            assert queued.requests == []

            at_once.requests.clear()
            at_once.answer = HttpAnswer()
            (done,) = as_json(tmp_path, "dead-letters", "replay", "1")
            assert (done["exporters"], done["delivered"]) == (["otlp_grpc"], ["otlp_http"])
            assert delivered(at_once, "log.record.uid") == [uid(change(0))]
            wait_until(lambda: delivered(queued, "log.record.uid") == [uid(change(0))], "the queued one has it")
            assert post(service.url, [change(0)]) == 200
            assert state(tmp_path)["waiting"] == 0

            with replaying(tmp_path) as first, replaying(tmp_path) as second:
                printed = [json.loads(command.communicate(timeout=WAIT)[0]) for command in (first, second)]
            wait_until(lambda: state(tmp_path)["waiting"] == 0, "all are delivered")
        replayed = [one["id"] for page in printed for one in page if one["outcome"] == "replayed"]
        assert sorted(replayed) == list(range(2, 151))
        assert sorted(delivered(queued)) == sorted(f"gate_{number}" for number in range(150))
        assert set(delivered(at_once)) == set(delivered(queued))
        assert as_json(tmp_path, "dead-letters", "list") == []


@pytest.mark.slow
def test_a_record_that_is_damaged_on_disk_is_shown_and_dropped_and_never_sent(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        sink.answer = EXPIRED
        config = write_config(tmp_path, {"otlp_grpc": exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            assert post(service.url, [change(1), change(2), change(3)]) == 200
        with StoppedQueue(tmp_path / "queue") as queue:
            flip = "UPDATE records SET payload = substr(payload, 1, 20) WHERE seq = 2"
            queue.submit(lambda connection: connection.execute(flip).rowcount).result()
        sink.requests.clear()
        sink.answer = GrpcAnswer()
        with ServiceProcess(config, env=ENV):
            wait_until(lambda: delivered(sink) == ["gate_1", "gate_3"], "its neighbours are delivered")
            wait_until(lambda: state(tmp_path)["waiting"] == 0, "nothing waits")
            (dead_letter,) = as_json(tmp_path, "dead-letters", "show", "--kind", "damaged")
            assert (dead_letter["id"], dead_letter["exporter"], dead_letter["bytes"]) == (1, "otlp_grpc", 20)
            assert len(base64.b64decode(dead_letter["base64"])) == 20
            assert "The rest of it, which may be wrong:" in give_here(tmp_path, "dead-letters", "show", "1").stdout
            kept = give_here(tmp_path, "dead-letters", "replay", "--all")
            assert kept.exit_code == 1
            assert "1 stays: it was damaged on disk" in kept.stderr
            assert as_json(tmp_path, "dead-letters", "drop", "1", "--yes") == [1]
        assert delivered(sink) == ["gate_1", "gate_3"]


def keep_items(folder: Path, count: int) -> None:
    """Dead letters of the receiver that can be mapped by now, in a queue that no service has used yet."""

    def work(connection: sqlite3.Connection) -> None:
        for number in range(count):
            store.add_dead_letter(
                connection, DeadLetter("item", "statsig", "?", json.dumps(change(number)).encode()), 0
            )

    with StoppedQueue(folder / "queue") as queue:
        queue.submit(work).result()


def fill(folder: Path, count: int) -> None:
    """Dead letters of the exporter otlp_grpc, in a queue that no service has used yet."""
    payload = parse(json.dumps([change(number) for number in range(count)]).encode())
    changes = Mapper().map(payload, time.time_ns()).changes

    def work(connection: sqlite3.Connection) -> None:
        store.ensure_exporter(connection, "otlp_grpc")
        for one in changes:
            dead_letter = DeadLetter("record", "otlp_grpc", "?", one.records[0], bytes.fromhex(one.uid))
            store.add_dead_letter(connection, dead_letter, 0)

    with StoppedQueue(folder / "queue") as queue:
        queue.submit(work).result()


def replaying(folder: Path) -> "subprocess.Popen[str]":
    """A replay of all dead letters, under way; it prints each one's outcome on a line of its own."""
    arguments = ["dead-letters", "replay", "--all", "--json", *place(folder)]
    command = [sys.executable, "-m", "statsig_otel", *arguments]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
