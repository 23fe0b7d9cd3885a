"""`statsig-otel reconcile`, with a service that took webhooks and a server that plays Statsig's audit log."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from statsig_otel._telemetry import ReceiverCounts, counts_of
from statsig_otel.plugin import Service
from statsig_otel.plugin.cli import reconcile
from statsig_otel.plugin.record.record import uid
from tests.peers.audit_log import KEY, AuditLogServer, answer, audit_entry, failing
from tests.plugin.http_client import exchange
from tests.plugin.services import SECRET, address_of, signed_request
from tests.waiting import wait_until

SOON = int(time.time()) + 1800
"""When the changes of these tests are made: after the service has begun to remember, also on a slow machine."""

UNTIL = (datetime.now(UTC) + timedelta(hours=1)).isoformat()


@pytest.fixture
def log() -> Iterator[AuditLogServer]:
    with AuditLogServer() as server:
        yield server


def configured(folder: Path, log: AuditLogServer, **others: object) -> str:
    """A configuration with a backend that is away, in a file."""
    audit_log = {"api_key": KEY, "endpoint": log.url, **others.pop("audit_log", {})}  # type: ignore[dict-item]
    receiver = {"endpoint": "127.0.0.1:0", "signing_secrets": [SECRET], "audit_log": audit_log, **others}
    document = {
        "receivers": {"statsig": receiver},
        "exporters": {
            "otlp_http": {"endpoint": "http://127.0.0.1:9", "sending_queue": {"queue_size": 5}},
        },
        "extensions": {"file_storage": {"directory": str(folder / "queue"), "min_free_bytes": 0}},
        "service": {
            "extensions": ["file_storage"],
            "pipelines": {"logs": {"receivers": ["statsig"], "exporters": ["otlp_http"]}},
        },
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(document))
    return str(path)


@contextmanager
def running(config: str) -> Iterator[Service]:
    service = Service.from_file(config, environ={})
    service.start()
    try:
        yield service
    finally:
        service.shutdown(timeout=5.0, drain=0.0)


def item(name: str, second: int, **others: Any) -> dict[str, Any]:
    """A change as a webhook has it: of Ada, as in the log."""
    metadata = {"type": "Gate", "name": name, "action": "updated", "description": "Updated Gate\n    - a detail"}
    return {
        "eventName": "statsig::config_change",
        "timestamp": second * 1000 + 321,
        "user": {"name": "Ada", "email": "ada@example.com", "userID": "u1"},
        "metadata": {**metadata, **others},
    }


def forgotten() -> ReceiverCounts:
    """The numbers of the receiver, as if the log was never read."""
    counts = counts_of("statsig")
    counts.missed, counts.compared = None, 0
    return counts


def post(service: Service, *items: dict[str, Any], secret: str = SECRET) -> int:
    request = signed_request(json.dumps({"data": items}).encode(), secret=secret)
    return exchange(address_of(service), request).status


def run(config: str, *arguments: str) -> Result:
    return CliRunner().invoke(reconcile.command, ["--config", config, "--since", "1h", "--until", UNTIL, *arguments])


def entries(result: Result) -> dict[str, str]:
    """The verdicts, by the id of the entry."""
    found = json.loads(result.stdout)["receivers"]["statsig"]["entries"]
    return {one["id"]: one["verdict"] for one in found}


def test_changes_that_are_lost_in_five_ways_are_found_and_no_others(tmp_path: Path, log: AuditLogServer) -> None:
    """Two of those that came are twins, four seconds apart, and one twin of another pair is lost."""
    config = configured(tmp_path, log, filter={"exclude": [{"names": ["noise"]}]})
    log.entries = [
        audit_entry(1, SOON, "came"),
        audit_entry(2, SOON + 10, "twins"),
        audit_entry(3, SOON + 14, "twins"),
        audit_entry(4, SOON + 20, "one of twins is lost"),
        audit_entry(5, SOON + 24, "one of twins is lost"),
        audit_entry(6, SOON + 30, "noise"),
        audit_entry(7, SOON + 32, "came last"),
        audit_entry(11, SOON + 40, "while the service is down"),
        audit_entry(12, SOON + 41, "with a secret that was made anew"),
        audit_entry(13, SOON + 42, "dropped by the console"),
        audit_entry(14, SOON + 43, "on a connection that was cut"),
        audit_entry(15, SOON + 44, "refused with 503"),
        audit_entry(21, SOON + 50, "Ada", actionType="user_login", changeLog="User logged in"),
        audit_entry(22, SOON + 41, "Webhook", actionType="generate_integration_webhook_secret", changeLog="New key"),
        audit_entry(23, SOON + 60, "a thing", actionType="thing_of_tomorrow"),
    ]
    with running(config) as service:
        assert post(service, item("came", SOON), item("twins", SOON + 10), item("twins", SOON + 14)) == 200
        assert post(service, item("one of twins is lost", SOON + 24)) == 200
        assert post(service, item("one of twins is lost", SOON + 24)) == 200, "a redelivery"
        secret = "webhook-that-was-made-anew"
        assert post(service, item("with a secret that was made anew", SOON + 41), secret=secret) == 401
        cut = signed_request(json.dumps({"data": [item("on a connection that was cut", SOON + 43)]}).encode())
        with socket.create_connection(address_of(service)) as client:
            client.sendall(cut[:-20])
        assert post(service, item("came last", SOON + 32)) == 200
        assert post(service, item("refused with 503", SOON + 44)) == 503, "five records wait for the backend"
        assert post(service, item("noise", SOON + 30)) == 200
        shown, address = run(config), address_of(service)
    with pytest.raises(OSError):  # nobody listens  # noqa: PT011
        exchange(address, signed_request(json.dumps([item("while the service is down", SOON + 40)]).encode()))
    found = run(config, "--json")
    lost = {f"id{number:020d}" for number in (4, 11, 12, 13, 14, 15)}
    assert (shown.exit_code, found.exit_code) == (1, 1), shown.output
    verdicts = entries(found)
    assert {identity for identity, verdict in verdicts.items() if verdict == "missed"} == lost
    assert {int(identity[2:]): verdict for identity, verdict in verdicts.items() if identity not in lost} == {
        **dict.fromkeys((1, 2, 3, 5, 7), "received"),
        6: "filtered",
        21: "not_a_change",
        22: "not_a_change",
        23: "unknown_type",
    }
    report = json.loads(found.stdout)["receivers"]["statsig"]
    assert report["missed"] == 6
    assert report["entries"][0]["uid"] == uid(item("came", SOON))
    for words in ("6  missed", "5  received", "1  filtered here", "while the service is down", "signing secret was"):
        assert words in shown.stdout
    assert KEY not in shown.output + found.output


@pytest.mark.slow
def test_the_running_service_finds_the_same_and_counts_it(
    tmp_path: Path, log: AuditLogServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The five ways once more, at times that pass meanwhile."""
    config = configured(tmp_path, log, audit_log={"interval": "1s", "grace": "1s"})
    counts = forgotten()
    with running(config) as service:
        begin = int(time.time()) + 4
        names = ["while down", "another secret", "dropped by the console", "cut", "refused"]
        log.entries = [
            audit_entry(1, begin, "came"),
            audit_entry(2, begin + 1, "twins"),
            audit_entry(3, begin + 5, "twins"),
            *(audit_entry(10 + number, begin + 3, name) for number, name in enumerate(names)),
        ]
        assert post(service, item("came", begin), item("twins", begin + 1), item("twins", begin + 5)) == 200
        assert post(service, item("another secret", begin + 3), secret="webhook-that-was-made-anew") == 401
        with socket.create_connection(address_of(service)) as client:
            client.sendall(signed_request(json.dumps([item("cut", begin + 3)]).encode())[:-20])
        assert post(service, item("fills the queue", begin + 300), item("and more", begin + 300)) == 200
        assert post(service, item("refused", begin + 3)) == 503
        wait_until(lambda: counts.compared > begin + 5)
        assert counts.missed == 5
    forgotten()  # again after a restart, without another warning
    with running(config):
        wait_until(lambda: counts.missed is not None)
        assert counts.missed == 5
        now = datetime.now(UTC).isoformat()
        found = CliRunner().invoke(reconcile.command, ["--config", config, "--since", "1h", "--until", now, "--json"])
    assert json.loads(found.stdout)["receivers"]["statsig"]["missed"] == 5
    told = [one.getMessage() for one in caplog.records if "no webhook brought" in one.getMessage()]
    assert sorted(message.split("brought ")[1].split(" (")[0] for message in told) == sorted(names)


def test_what_can_not_be_told_apart_is_said_to_be_so(tmp_path: Path, log: AuditLogServer) -> None:
    config = configured(tmp_path, log)
    log.entries = [audit_entry(1, SOON), audit_entry(2, SOON + 1)]
    with running(config) as service:
        assert post(service, item("gate", SOON)) == 200
    found = run(config, "--json")
    assert found.exit_code == 1
    report = json.loads(found.stdout)["receivers"]["statsig"]
    assert report["missed"] == 1
    assert [one["may_be"] for one in report["entries"]] == [["missed", "received"]] * 2
    assert "at least 1 of them are missed" in run(config).stdout


def test_before_it_was_remembered_nothing_counts_as_missed(tmp_path: Path, log: AuditLogServer) -> None:
    config = configured(tmp_path, log)
    log.entries = [audit_entry(1, int(time.time()) - 600)]
    with running(config):
        pass
    found = run(config, "--json")
    assert found.exit_code == 0, found.output
    assert entries(found) == {f"id{1:020d}": "not_remembered"}
    assert "What came is remembered since" in run(config).stdout


def test_types_for_which_statsig_sends_nothing_can_be_named(tmp_path: Path, log: AuditLogServer) -> None:
    config = configured(tmp_path, log, audit_log={"ignore": ["gate_update"]})
    log.entries = [audit_entry(1, SOON), audit_entry(2, SOON + 60)]
    with running(config) as service:
        assert post(service, item("gate", SOON)) == 200
    found = run(config, "--json")
    assert found.exit_code == 0
    assert [*entries(found).values()] == ["received", "ignored_type"]


def test_a_change_that_became_a_dead_letter_has_come(tmp_path: Path, log: AuditLogServer) -> None:
    config = configured(tmp_path, log, max_record_bytes=10_000)
    log.entries = [audit_entry(1, SOON)]
    with running(config) as service:
        assert post(service, item("gate", SOON, description="Updated Gate\n" + "x" * 20_000)) == 200
    assert [*entries(run(config, "--json")).values()] == ["received"]


def test_the_pages_can_be_kept_without_the_key(tmp_path: Path, log: AuditLogServer) -> None:
    config = configured(tmp_path, log)
    log.entries = [audit_entry(1, SOON, changes={"rules": {"new": KEY, "old": None}})]
    with running(config):
        pass
    folder = tmp_path / "pages"
    assert run(config, "--save", str(folder), "--since", "2999-01-01").exit_code == 2
    log.faults = [failing(401)]
    assert run(config, "--save", str(folder)).exit_code == 3
    assert run(config, "--save", str(folder)).exit_code == 1, "the directory does not exist yet"
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"000{number}-statsig.json" for number in (1, 2, 3)]
    assert json.loads(files[1].read_bytes())["data"][0]["changes"]["rules"] == {"new": "[REDACTED]", "old": None}
    again = run(config, "--save", str(folder))
    assert again.exit_code == 3
    assert "Name a directory that does not exist yet" in again.output


def test_what_can_not_be_read_has_an_exit_code_of_its_own(tmp_path: Path, log: AuditLogServer) -> None:
    config = configured(tmp_path, log)
    assert "contains no queue" in run(config).output
    with running(config):
        pass
    for fault, words in ((failing(403), "the key may not read"), (failing(400), "HTTP 400")):
        log.faults = [fault]
        result = run(config)
        assert (result.exit_code, KEY in result.output) == (3, False)
        assert words in result.output
    assert "no receiver has" not in run(config, "--receiver", "statsig").output
    assert "no receiver 'other' with `audit_log` is in this" in run(config, "--receiver", "other").output
    result = CliRunner().invoke(reconcile.command, ["--config", config, "--since", "10m"])
    assert (result.exit_code, "--since must be before --until" in result.output) == (2, True)
    for moment, words in (
        ("yesterday", "is not an age such as 7d"),
        ("2026-13-01", "nor a date and time such as 2026"),
        ("0001-01-01", "is not in the years 1970 to 2999"),
        ("9999-12-31T23:59:59-12:00", "is not in the years 1970 to 2999"),
    ):
        for option in ("--since", "--until"):
            result = run(config, option, moment)
            assert (result.exit_code, words in result.output) == (2, True), result.output
    assert run(config, "--since", "1970-01-01T00:00+14:00", "--until", "2999-12-31T23:59-12:00").exit_code == 0
    assert run(config, "--since", "99999d").exit_code == 0


def test_a_report_that_is_interrupted_has_not_found_that_something_is_missed(
    tmp_path: Path, log: AuditLogServer
) -> None:
    config = configured(tmp_path, log)
    with running(config):
        pass

    def interrupt(handler: BaseHTTPRequestHandler) -> None:
        signal.raise_signal(signal.SIGINT)
        answer(handler, 200, log.page({}))

    log.faults = [interrupt]
    result = run(config)
    assert (result.exit_code, "interrupted" in result.output) == (3, True)


def test_without_an_audit_log_the_command_says_how_to_begin(tmp_path: Path, log: AuditLogServer) -> None:
    config = Path(configured(tmp_path, log))
    document = json.loads(config.read_text())
    del document["receivers"]["statsig"]["audit_log"]
    (tmp_path / "without.yaml").write_text(json.dumps(document))
    with running(str(tmp_path / "without.yaml")):
        pass
    assert "docs/no-gaps.md says how to begin" in run(str(tmp_path / "without.yaml")).output
    result = run(str(config))
    assert result.exit_code == 3
    assert "begins when the service starts with `audit_log` configured" in result.output


@pytest.mark.slow
def test_what_is_filled_in_goes_to_exporters_without_a_queue_too(tmp_path: Path, log: AuditLogServer) -> None:
    settings = {"interval": "1s", "grace": "0s", "tolerance": "0s", "backfill": True}
    config = Path(configured(tmp_path, log, audit_log=settings))
    document = json.loads(config.read_text())
    written = tmp_path / "written"
    document["exporters"]["file"] = {"path": str(written), "sending_queue": {"enabled": False}}
    document["service"]["pipelines"]["logs"]["exporters"].append("file")
    config.write_text(json.dumps(document))
    counts = forgotten()
    counts.filled_in = 0
    with running(str(config)) as service:
        log.entries = [audit_entry(1, int(time.time()) + 1, "lost")]
        wait_until(lambda: counts.filled_in == 1)
        assert len(written.read_text().splitlines()) == 1
        waiting = {one.name: one.waiting for one in service._assembly._outbound.exporters()}
        assert waiting["otlp_http"] == 1
        assert post(service, item("came", SOON)) == 200
    assert len(written.read_text().splitlines()) == 2
