"""Changes are lost in five ways, beside others that arrive: report, gauge and filled-in records are exactly right."""

import contextlib
import json
import signal
import socket
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import urllib3
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel.plugin.audit_log.entries import AuditEntry, parse_page
from statsig_otel.plugin.audit_log.records import DETAILS
from statsig_otel.plugin.record.record import uid
from tests.e2e.service_process import ServiceProcess, run_to_end
from tests.peers.audit_log import KEY, AuditLogServer, audit_entry
from tests.peers.otlp_servers import HttpAnswer, HttpSink, Received
from tests.peers.ports import free_port
from tests.plugin.http_client import Address, exchange
from tests.plugin.record.record_helpers import plain
from tests.plugin.services import SECRET, signed_request
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

OTHER_SECRET = "webhook-that-was-made-anew"
VALUES = {"rules": {"old": [{"passPercentage": 0}], "new": [{"passPercentage": 50}]}}
FULL = 6
"""The `queue_size`: as many changes come before one is refused with 503."""


class Backend:
    """A backend that takes nothing at first, and keeps what it takes."""

    def __init__(self, sink: HttpSink) -> None:
        self.takes = False
        self.taken: list[LogRecord] = []
        sink.answer = self._answer

    def _answer(self, received: Received) -> HttpAnswer:
        if not self.takes:
            return HttpAnswer(status=503)
        self.taken += received.records
        return HttpAnswer()

    def told(self, event_name: str = "statsig.config_change") -> dict[str, dict[str, Any]]:
        """The attributes of the records with this name, by uid: each came once."""
        found: list[dict[str, Any]] = [
            {one.key: plain(one.value) for one in record.attributes}
            for record in list(self.taken)
            if record.event_name == event_name
        ]
        by_uid = {str(one["log.record.uid"]): one for one in found}
        assert len(by_uid) == len(found), "once"
        return by_uid


def write(folder: Path, log: AuditLogServer, backend: str, ports: tuple[int, int], **audit_log: object) -> Path:
    """The configuration: the ports are those of the webhook and of the metrics."""
    keys = {"api_key": KEY, "endpoint": log.url, "interval": "1s", "grace": "1s", **audit_log}
    exporter = {
        "endpoint": backend,
        "sending_queue": {"queue_size": FULL},
        "retry_on_failure": {"initial_interval": "100ms", "max_interval": "500ms"},
    }
    reader = {"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": ports[1]}}}}
    document = {
        "receivers": {"statsig": {"endpoint": f"127.0.0.1:{ports[0]}", "signing_secrets": [SECRET], "audit_log": keys}},
        "exporters": {"otlp_http": exporter},
        "extensions": {"file_storage": {"directory": str(folder / "queue"), "min_free_bytes": 0}},
        "service": {
            "extensions": ["file_storage"],
            "telemetry": {"metrics": {"readers": [reader]}},
            "pipelines": {"logs": {"receivers": ["statsig"], "exporters": ["otlp_http"]}},
        },
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(document))
    return path


def item(name: str, second: int) -> dict[str, Any]:
    """A change as a webhook has it."""
    return {
        "eventName": "statsig::config_change",
        "timestamp": second * 1000 + 321,
        "user": {"name": "Ada", "email": "ada@example.com", "userID": "u1"},
        "metadata": {"type": "Gate", "name": name, "action": "updated", "description": "Updated Gate\n    - a detail"},
    }


def post(address: Address, *items: dict[str, Any], secret: str = SECRET) -> int:
    return exchange(address, signed_request(json.dumps({"data": items}).encode(), secret=secret)).status


def metric(port: int, name: str) -> float | None:
    """The value of a metric of the receiver; None if there is none."""
    text = urllib3.request("GET", f"http://127.0.0.1:{port}/metrics", retries=5).data.decode()
    found = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(f"{name}{{")]
    return float(found[0]) if found else None


def reconciled(config: Path) -> tuple[int, dict[str, Any]]:
    """The exit code of `statsig-otel reconcile`, and its report."""
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    result = run_to_end("reconcile", "--config", str(config), "--since", "1h", "--until", until, "--json")
    return result.returncode, json.loads(result.stdout)["receivers"]["statsig"]


def verdicts(report: dict[str, Any]) -> dict[int, str]:
    return {int(one["id"][2:]): one["verdict"] for one in report["entries"]}


def entry_of(number: int, log: AuditLogServer) -> AuditEntry:
    (raw,) = (one for one in log.entries if int(one["id"][2:]) == number)
    (entry,) = parse_page(json.dumps({"data": [raw]}).encode()).entries
    return entry


LOST = {4, 11, 12, 13, 14, 15}
OTHERS = {
    **dict.fromkeys((1, 2, 3, 5, 6, 7), "received"),
    **dict.fromkeys((21, 22), "not_a_change"),
    23: "unknown_type",
}
"""What is said of the others."""


def entries(begin: int) -> list[dict[str, Any]]:
    """The log: what arrives, what is lost, and what is about something else."""
    return [
        audit_entry(1, begin, "came", changes=VALUES),
        audit_entry(2, begin, "twins"),
        audit_entry(3, begin + 4, "twins"),
        audit_entry(4, begin, "one of twins is lost"),
        audit_entry(5, begin + 4, "one of twins is lost"),
        audit_entry(6, begin + 5, "came last"),
        audit_entry(7, begin + 5, "fills the queue"),
        audit_entry(11, begin, "while the service is down"),
        audit_entry(12, begin + 1, "with a secret that was made anew"),
        audit_entry(13, begin + 2, "dropped by the console", changes=VALUES),
        audit_entry(14, begin + 3, "on a connection that was cut", actionType="config_conditions_update"),
        audit_entry(15, begin + 4, "refused with 503"),
        audit_entry(21, begin, "Ada", actionType="user_login", changeLog="User logged in"),
        audit_entry(22, begin + 1, "Webhook", actionType="generate_integration_webhook_secret"),
        audit_entry(23, begin + 4, "a thing", actionType="thing_of_tomorrow"),
    ]


def arriving(begin: int) -> list[dict[str, Any]]:
    """The changes that arrive: as many as the queue takes."""
    found = [
        item("came", begin),
        item("twins", begin),
        item("twins", begin + 4),
        item("one of twins is lost", begin + 4),
        item("came last", begin + 5),
        item("fills the queue", begin + 5),
    ]
    assert len(found) == FULL
    return found


def arrive_and_get_lost(address: Address, begin: int) -> None:
    came = arriving(begin)
    assert post(address, *came[:3]) == 200
    assert post(address, came[3]) == post(address, came[3]) == 200, "a redelivery"
    assert post(address, item("with a secret that was made anew", begin + 1), secret=OTHER_SECRET) == 401
    cut = signed_request(json.dumps([item("on a connection that was cut", begin + 3)]).encode())
    with socket.create_connection(address) as client:
        client.sendall(cut[:-20])
    assert post(address, *came[4:]) == 200
    assert post(address, item("refused with 503", begin + 4)) == 503


def check_filled_in(told: dict[str, dict[str, Any]], log: AuditLogServer) -> None:
    """The records of what was lost, and no others, say where they are from and what the log says."""
    filled_in = {entry_of(number, log).uid: number for number in LOST}
    assert {identity for identity, one in told.items() if "statsig.origin" in one} == filled_in.keys()
    for identity, number in filled_in.items():
        one, entry = told[identity], entry_of(number, log)
        assert (one["statsig.audit_log.id"], one["feature_flag.key"]) == (entry.id, entry.name)
        assert (one["user.id"], one["change_event.label.description"]) == ("u1", "Updated Gate")
        assert one.get("change_event.type") == (None if number == 14 else "gate_updated")
        assert one.get("statsig.audit_log.new") == ('{"rules":[{"passPercentage":50}]}' if number == 13 else None)


def test_what_is_lost_in_five_ways_is_found_and_filled_in(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    address = "127.0.0.1", ports[0]

    def is_missed(number: int) -> Callable[[], bool]:
        return lambda: metric(ports[1], "statsig_otel_receiver_missed_changes") == number

    with AuditLogServer() as log, HttpSink() as sink:
        backend = Backend(sink)
        config = write(tmp_path, log, sink.url, ports)
        with ServiceProcess(config):
            pass  # what comes is remembered from now on
        begin = int(time.time()) + 5
        log.entries = entries(begin)
        with pytest.raises(OSError):  # noqa: PT011 - nobody listens
            post(address, item("while the service is down", begin))
        with ServiceProcess(config, exit_code=-signal.SIGKILL) as service:
            arrive_and_get_lost(address, begin)
            wait_until(is_missed(6))
            code, report = reconciled(config)
            assert (code, report["missed"]) == (1, 6)
            assert verdicts(report) == {**dict.fromkeys(LOST, "missed"), **OTHERS}

            backend.takes = True
            write(tmp_path, log, sink.url, ports, backfill=True, enrich=True)
            service.process.send_signal(signal.SIGHUP)
            sent = {uid(one) for one in arriving(begin)} | {entry_of(number, log).uid for number in LOST}
            wait_until(lambda: backend.told().keys() == sent, "all is delivered")
            wait_until(is_missed(0))
            assert metric(ports[1], "statsig_otel_receiver_filled_in_changes_total") == 6
            first = entry_of(1, log).details_uid
            wait_until(lambda: backend.told(DETAILS).keys() == {first}, "the values of one that came")
            wait_until(lambda: metric(ports[1], "otelcol_exporter_queue_size") == 0, "its delivery is on disk")
            service.process.kill()
            service.process.wait()
        with ServiceProcess(config):
            # The log is read and compared again, and nothing is made twice.
            wait_until(is_missed(0))
            late = item("dropped by the console", begin + 2)
            assert post(address, late) == 200
            wait_until(lambda: uid(late) in backend.told(), "a late webhook is delivered too")
            both = {first, entry_of(13, log).details_uid}
            wait_until(lambda: backend.told(DETAILS).keys() == both, "and its values")
            assert metric(ports[1], "statsig_otel_receiver_filled_in_changes_total") == 0
            code, report = reconciled(config)
        assert (code, report["missed"]) == (0, 0)
        assert verdicts(report) == {**dict.fromkeys(LOST, "filled_in"), **OTHERS, 13: "received"}
        uids = {int(one["id"][2:]): one["uid"] for one in report["entries"]}
        assert {number: uids[number] for number in LOST - {13}} == {
            number: entry_of(number, log).uid for number in LOST - {13}
        }
        assert (uids[1], uids[13]) == (uid(arriving(begin)[0]), uid(late))
        assert backend.told().keys() == sent | {uid(late)}
        check_filled_in(backend.told(), log)
    changed = {one["statsig.config_change.uid"] for one in backend.told(DETAILS).values()}
    assert changed == {uids[1], uids[13]}


def stored(folder: Path) -> list[str]:
    """The uids of the records in the queue, in order."""
    with contextlib.closing(
        sqlite3.connect(f"file:{folder}/queue/queue.db?mode=ro", uri=True, timeout=30)
    ) as connection:
        return [row[0].hex() for row in connection.execute("SELECT uid FROM records ORDER BY seq")]


def test_a_process_that_is_killed_again_and_again_fills_in_each_change_once(tmp_path: Path) -> None:
    """Whether it is about to store a record, has just stored one, or has not noted yet what is missed.

    Nothing prevents duplicates but what is remembered: there is no window for them.
    """
    number = 120
    ports = free_port(), free_port()
    with AuditLogServer() as log:
        config = write(
            tmp_path, log, f"http://127.0.0.1:{free_port()}", ports, backfill=True, grace="0s", tolerance="0s"
        )
        document = json.loads(config.read_text())
        document["receivers"]["statsig"]["deduplication"] = {"window": "0s"}
        document["exporters"]["otlp_http"]["sending_queue"] = {"queue_size": 10 * number}
        config.write_text(json.dumps(document))
        with ServiceProcess(config):
            pass
        begin = int(time.time()) + 1
        log.entries = [audit_entry(one, begin, f"gate {one}", changes=VALUES) for one in range(number)]
        kills = [0, 1, 2, 3, 10, 11, 40, 41, 80, number]
        for most in kills:
            with ServiceProcess(config, exit_code=-signal.SIGKILL) as service:
                wait_until(lambda: len(stored(tmp_path)) >= most)  # noqa: B023 - at once
                service.process.kill()
                service.process.wait()
        with ServiceProcess(config):
            wait_until(lambda: metric(ports[1], "statsig_otel_receiver_missed_changes") == 0)
        found = stored(tmp_path)
        assert sorted(found) == sorted(entry_of(one, log).uid for one in range(number))
