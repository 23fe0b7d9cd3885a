"""The watch of the audit log: what is missed is warned of once, counted, and remembered over a restart."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statsig_otel._telemetry import counts_of
from statsig_otel.config import Opaque
from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.consumer import Batch
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.routing import Route
from statsig_otel.plugin import Service
from statsig_otel.plugin.service.audit_log_watch import AuditLogWatch
from statsig_otel.plugin.settings.audit_log import AuditLogSettings
from statsig_otel.plugin.settings.reading import receiver_settings
from tests.exporters.queue.helpers import PATIENCE, consume, running, uid
from tests.metrics import collected
from tests.peers.audit_log import KEY, AuditLogServer, audit_entry, failing
from tests.waiting import wait_until

SINCE = 1_790_000_000
GRACE = 900
RECEIVER = "statsig/audited"


class Now:
    """The time of a test."""

    def __init__(self) -> None:
        self.seconds = float(SINCE)

    def __call__(self) -> float:
        return self.seconds


class Watched:
    """A queue with its watch, and a log. The time does not go on by itself."""

    def __init__(self, directory: Path, log: AuditLogServer, now: Now, queue: DurableQueue, **settings: object) -> None:
        given = {"api_key": KEY, "endpoint": log.url, **settings}
        self.queue = queue
        self.watch = AuditLogWatch(RECEIVER, queue, AuditLogSettings.model_validate(given), clock=now)
        self._now = now

    def came(self, second: int, number: int, name: str = "gate") -> None:
        one = Arrival(uid(number), second, name, "u1", "Ada", "ada@example.com", "Gate", "updated", "Updated Gate")
        consume(self.queue, Batch(RECEIVER, arrivals=(one,))).result(PATIENCE)

    def look(self, now: float) -> int | None:
        """The changes that are missed then."""
        self._now.seconds = now
        self.watch.look()
        return counts_of(RECEIVER).missed


@pytest.fixture
def log() -> Iterator[AuditLogServer]:
    with AuditLogServer() as server:
        yield server


@pytest.fixture
def now() -> Iterator[Now]:
    yield Now()
    counts_of(RECEIVER).missed, counts_of(RECEIVER).compared = None, 0


@contextmanager
def watched(directory: Path, log: AuditLogServer, now: Now, **settings: object) -> Iterator[Watched]:
    receivers = {RECEIVER: Route(("otlp",), remembered=30 * 86_400.0)}
    with running(directory, receivers=receivers, clock=now) as queue:
        one = Watched(directory, log, now, queue, **settings)
        yield one
        one.watch.end()
        one.watch.join(PATIENCE)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def test_a_missed_change_is_warned_of_once_and_counted_also_after_a_restart(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    log.entries = [audit_entry(1, SINCE + 100), audit_entry(2, SINCE + 200, "other")]
    with watched(tmp_path, log, now) as one:
        one.came(SINCE + 100, 1)
        assert one.look(SINCE + GRACE + 150) == 0, "the second one may still come"
        assert one.look(SINCE + GRACE + 300) == 1
        assert one.look(SINCE + GRACE + 600) == 1
        assert counts_of(RECEIVER).last_missed == (("other", SINCE + 200),)
        with collected() as metrics:
            missed = metrics.numbers("statsig_otel_receiver_missed_changes", receiver=RECEIVER)
            compared = metrics.numbers("statsig_otel_receiver_audit_log_compared_timestamp", receiver=RECEIVER)
        assert (missed, compared) == ({(): 1}, {(): SINCE + 600})
    with watched(tmp_path, log, now) as one:
        assert one.look(SINCE + GRACE + 900) == 1
    (message,) = warnings(caplog)
    assert message == (
        "statsig/audited: no webhook brought other (Updated Gate), changed at 2026-09-21T14:16:40Z by Ada: "
        "entry id00000000000000000002"
    )


def test_a_webhook_that_comes_late_is_not_missed_any_more(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    log.entries = [audit_entry(1, SINCE + 100)]
    with watched(tmp_path, log, now) as one:
        assert one.look(SINCE + GRACE + 300) == 1
        one.came(SINCE + 100, 1)
        assert one.look(SINCE + GRACE + 600) == 0
    assert "the change of the audit log's entry id00000000000000000001 has come after all" in caplog.text


def test_what_was_missed_while_the_service_was_down_for_days_is_found(
    tmp_path: Path, log: AuditLogServer, now: Now
) -> None:
    days = 86_400
    with watched(tmp_path, log, now) as one:
        assert one.look(SINCE + GRACE + 300) == 0
    log.entries = [audit_entry(number, SINCE + number * days // 2) for number in range(1, 10)]
    with watched(tmp_path, log, now) as one:
        assert one.look(SINCE + 5 * days) == 9
        assert one.look(SINCE + 5 * days + 300) == 9
        assert one.look(SINCE + 33 * days + 1000) == 3, "the others are older than 30 days"


def test_an_entry_that_is_in_the_log_late_is_found_and_only_new_pages_are_read(
    tmp_path: Path, log: AuditLogServer, now: Now
) -> None:
    log.entries = [audit_entry(number, SINCE + 300 * number, "x", actionType="user_login") for number in range(400)]
    with watched(tmp_path, log, now) as one:
        assert one.look(SINCE + 120_000) == 0
        before = len(log.asked)
        log.entries.append(audit_entry(9999, SINCE + 119_000))
        assert one.look(SINCE + 120_300) == 1
        assert before >= 8
        assert len(log.asked) - before <= 4, "entries of the last hours, and not those of all days"


def test_of_changes_that_can_not_be_told_apart_it_is_said_how_many_are_missed(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    log.entries = [audit_entry(1, SINCE + 100), audit_entry(2, SINCE + 101)]
    with watched(tmp_path, log, now) as one:
        one.came(SINCE + 100, 1)
        assert one.look(SINCE + GRACE + 300) == 1
        assert one.look(SINCE + GRACE + 600) == 1
    (message,) = warnings(caplog)
    assert "of these changes webhooks did not bring 1, and it is not known which: gate (Updated Gate)" in message


def test_a_log_that_can_not_be_read_is_said_once_and_nothing_is_lost(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    log.entries = [audit_entry(1, SINCE + 100)]
    with watched(tmp_path, log, now) as one:
        log.faults = [failing(401), failing(401)]
        assert one.look(SINCE + GRACE + 300) is None
        assert one.look(SINCE + GRACE + 600) is None
        assert one.look(SINCE + GRACE + 900) == 1
    assert [message.partition(":")[2].split(":")[0] for message in warnings(caplog)] == [
        " what is missed is not known now",
        " no webhook brought gate (Updated Gate), changed at 2026-09-21T14",
        " the audit log can be compared with what came again",
    ]
    assert KEY not in caplog.text


def test_the_thread_looks_by_itself_and_ends_while_it_waits_for_another_attempt(
    tmp_path: Path, log: AuditLogServer, now: Now
) -> None:
    log.entries = [audit_entry(1, SINCE + 100)]
    with watched(tmp_path, log, now, interval="1s") as one:
        now.seconds = SINCE + GRACE + 300
        one.watch.start()
        wait_until(lambda: counts_of(RECEIVER).missed == 1)
        log.faults = [failing(503)] * 9
        asked = len(log.asked)
        wait_until(lambda: len(log.asked) > asked)
        thread = one.watch._thread
        one.watch.end()
        assert thread is not None
        wait_until(lambda: not thread.is_alive())


def test_a_key_in_a_file_is_renewed_without_a_reload_and_a_wrong_one_disturbs_no_secret(
    tmp_path: Path, log: AuditLogServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key, secret = tmp_path / "key", tmp_path / "secret"
    key.write_text("console-old")
    secret.write_text("webhook-0123456789abcdef")
    audit_log = {"api_key": f"${{file:{key}}}", "endpoint": log.url, "interval": "0s"}
    receiver = {"endpoint": "127.0.0.1:0", "signing_secrets": [f"${{file:{secret}}}"], "audit_log": audit_log}
    document = {
        "receivers": {"statsig": receiver},
        "exporters": {"debug": {}},
        "extensions": {"file_storage": {"directory": str(tmp_path / "queue"), "min_free_bytes": 0}},
        "service": {
            "extensions": ["file_storage"],
            "pipelines": {"logs": {"receivers": ["statsig"], "exporters": ["debug"]}},
        },
    }
    (tmp_path / "config.yaml").write_text(json.dumps(document))
    service = Service.from_file(str(tmp_path / "config.yaml"), environ={})
    (watch,) = service._assembly._outbound._watches
    key.write_text(KEY)
    service._reloader.use_changed_secrets()
    assert watch.settings.api_key == Opaque(KEY)
    key.write_text("webhook-in-the-wrong-place")
    secret.write_text("webhook-abcdef0123456789")
    service._reloader.use_changed_secrets()
    assert watch.settings.api_key == Opaque(KEY)
    assert receiver_settings(service._assembly.configuration)["statsig"].signing_secrets == [
        Opaque("webhook-abcdef0123456789")
    ]
    place, stays = "receivers::statsig::audit_log::api_key", "the key for the audit log of statsig stays as it was"
    assert [one.getMessage() for one in caplog.records] == [
        f"{place}: is a new secret, valid from now on",
        f"{place}: is a webhook's signing secret, which can't read the audit log; {stays}",
        "receivers::statsig::signing_secrets[0]: is a new secret, valid from now on",
    ]


def test_a_wrong_key_is_said_at_the_start_and_another_one_is_tried_at_once(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    with watched(tmp_path, log, now, api_key="console-old", interval="1h") as one:
        now.seconds += 1
        one.watch.start()
        wait_until(lambda: "what is missed is not known now: HTTP 401" in caplog.text)
        log.entries = [audit_entry(1, SINCE + 100)]
        now.seconds = SINCE + GRACE + 300
        one.watch.settings = AuditLogSettings.model_validate({**one.watch.settings.model_dump(), "api_key": KEY})
        wait_until(lambda: counts_of(RECEIVER).missed == 1)
