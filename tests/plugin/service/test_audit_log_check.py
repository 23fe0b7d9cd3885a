"""The comparison with the audit log: what is missed is warned of once, counted, and remembered over a restart."""

import json
import logging
from pathlib import Path

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel._telemetry import counts_of
from statsig_otel.config import Opaque
from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.consumer import Batch
from statsig_otel.plugin import Service
from statsig_otel.plugin.settings.reading import receiver_settings
from tests.exporters.queue.helpers import PATIENCE, consume, delivered, put, uid
from tests.metrics import collected
from tests.peers.audit_log import KEY, AuditLogServer, audit_entry, failing
from tests.plugin.service.watched_log import GRACE, RECEIVER, SINCE, Now, told, warnings, watched
from tests.waiting import wait_until


def test_a_missed_change_is_warned_of_once_and_counted_also_after_a_restart(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    log.entries = [audit_entry(1, SINCE + 100), audit_entry(2, SINCE + 200, "other")]
    with watched(tmp_path, log, now) as one:
        one.came(SINCE + 100, 1)
        assert one.compare(SINCE + GRACE + 150) == 0, "the second one may still come"
        assert one.compare(SINCE + GRACE + 300) == 1
        assert one.compare(SINCE + GRACE + 600) == 1
        assert counts_of(RECEIVER).last_missed == (("other", SINCE + 200),)
        with collected() as metrics:
            missed = metrics.numbers("statsig_otel_receiver_missed_changes", receiver=RECEIVER)
            compared = metrics.numbers("statsig_otel_receiver_audit_log_compared_timestamp", receiver=RECEIVER)
        assert (missed, compared) == ({(): 1}, {(): SINCE + 600})
    with watched(tmp_path, log, now) as one:
        assert one.compare(SINCE + GRACE + 900) == 1
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
        assert one.compare(SINCE + GRACE + 300) == 1
        one.came(SINCE + 100, 1)
        assert one.compare(SINCE + GRACE + 600) == 0
    assert "the change of the audit log's entry id00000000000000000001 has come after all" in caplog.text


def test_what_was_missed_while_the_service_was_down_for_days_is_found(
    tmp_path: Path, log: AuditLogServer, now: Now
) -> None:
    days = 86_400
    with watched(tmp_path, log, now) as one:
        assert one.compare(SINCE + GRACE + 300) == 0
    log.entries = [audit_entry(number, SINCE + number * days // 2) for number in range(1, 10)]
    with watched(tmp_path, log, now) as one:
        assert one.compare(SINCE + 5 * days) == 9
        assert one.compare(SINCE + 5 * days + 300) == 9
        assert one.compare(SINCE + 33 * days + 1000) == 3, "the others are older than 30 days"


def test_an_entry_that_is_in_the_log_late_is_found_and_only_new_pages_are_read(
    tmp_path: Path, log: AuditLogServer, now: Now
) -> None:
    log.entries = [audit_entry(number, SINCE + 300 * number, "x", actionType="user_login") for number in range(400)]
    with watched(tmp_path, log, now) as one:
        assert one.compare(SINCE + 120_000) == 0
        before = len(log.asked)
        log.entries.append(audit_entry(9999, SINCE + 119_000))
        assert one.compare(SINCE + 120_300) == 1
        assert before >= 8
        assert len(log.asked) - before <= 4, "entries of the last hours, and not those of all days"


def test_of_changes_that_can_not_be_told_apart_it_is_said_how_many_are_missed(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    log.entries = [audit_entry(1, SINCE + 100), audit_entry(2, SINCE + 101)]
    with watched(tmp_path, log, now) as one:
        one.came(SINCE + 100, 1)
        assert one.compare(SINCE + GRACE + 300) == 1
        assert one.compare(SINCE + GRACE + 600) == 1
    (message,) = warnings(caplog)
    assert "1 of these changes did not come by webhook, and it can't be told which: gate (Updated Gate)" in message


def test_a_log_that_can_not_be_read_is_said_once_and_nothing_is_lost(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    log.entries = [audit_entry(1, SINCE + 100)]
    with watched(tmp_path, log, now) as one:
        log.faults = [failing(401), failing(401)]
        assert one.compare(SINCE + GRACE + 300) is None
        assert counts_of(RECEIVER).compared == SINCE, "an alert can tell how long ago that is"
        assert one.compare(SINCE + GRACE + 600) is None
        assert one.compare(SINCE + GRACE + 900) == 1
    assert [message.partition(":")[2].split(":")[0] for message in warnings(caplog)] == [
        " the audit log can't be compared now",
        " no webhook brought gate (Updated Gate), changed at 2026-09-21T14",
        " the audit log is compared again",
    ]
    assert KEY not in caplog.text


def test_the_thread_looks_by_itself_and_ends_while_it_waits_for_another_attempt(
    tmp_path: Path, log: AuditLogServer, now: Now
) -> None:
    log.entries = [audit_entry(1, SINCE + 100)]
    with watched(tmp_path, log, now, interval="1s") as one:
        now.seconds = SINCE + GRACE + 300
        one.check.start()
        wait_until(lambda: counts_of(RECEIVER).missed == 1)
        log.faults = [failing(503)] * 9
        asked = len(log.asked)
        wait_until(lambda: len(log.asked) > asked)
        thread = one.check._thread
        one.check.end()
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
    with service:
        (check,) = service._assembly._outbound._audit_log_checks
        key.write_text(KEY)
        service._reloader.use_changed_secrets()
        assert check.settings.api_key == Opaque(KEY)
        key.write_text("webhook-in-the-wrong-place")
        secret.write_text("webhook-abcdef0123456789")
        service._reloader.use_changed_secrets()
        assert check.settings.api_key == Opaque(KEY)
    assert receiver_settings(service._assembly.configuration)["statsig"].signing_secrets == [
        Opaque("webhook-abcdef0123456789")
    ]
    place, stays = "receivers::statsig::audit_log::api_key", "the key for the audit log of statsig stays as it was"
    said = [one.getMessage() for one in caplog.records]
    assert [message for message in said if message.startswith("receivers::")] == [
        f"{place}: is a new secret, valid from now on",
        f"{place}: is a webhook's signing secret, which can't read the audit log; {stays}",
        "receivers::statsig::signing_secrets[0]: is a new secret, valid from now on",
    ]


def test_a_wrong_key_is_said_at_the_start_and_another_one_is_tried_at_once(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    with watched(tmp_path, log, now, api_key="console-old", interval="1h") as one:
        now.seconds += 1
        one.check.start()
        wait_until(lambda: "the audit log can't be compared now: HTTP 401" in caplog.text)
        log.entries = [audit_entry(1, SINCE + 100)]
        now.seconds = SINCE + GRACE + 300
        one.use(interval="1h")
        wait_until(lambda: counts_of(RECEIVER).missed == 1)


def test_what_is_missed_is_filled_in_once_also_over_restarts(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a window for duplicates, too: it is not the uid that prevents a second one."""
    log.entries = [audit_entry(1, SINCE + 100), audit_entry(2, SINCE + 200, "other"), audit_entry(3, SINCE + 300)]
    for look in range(3):
        with watched(tmp_path, log, now, window=0.0, backfill=True) as one:
            if not look:
                one.came(SINCE + 100, 1)
                assert one.compare(SINCE + GRACE + 150) == 0
                assert one.filled_in() == [], "it may still come"
            assert one.compare(SINCE + GRACE + 1000 * (look + 1)) == 0
            assert one.compare(SINCE + GRACE + 1000 * (look + 1) + 300) == 0
            assert one.filled_in() == ["other", "gate"]
            assert {told(record)["statsig.origin"] for record in one.made()} == {"audit_log"}
    counts = counts_of(RECEIVER)
    assert (counts.filled_in, counts.accepted, counts.last_missed) == (2, 2, ())
    first, second = warnings(caplog)
    assert first == (
        "statsig/audited: no webhook brought other (Updated Gate), changed at 2026-09-21T14:16:40Z by Ada: "
        "entry id00000000000000000002. It is filled in from the audit log"
    )
    assert "id00000000000000000003. It is filled in" in second


def test_a_webhook_that_comes_after_it_was_filled_in_is_delivered_too(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    log.entries = [audit_entry(1, SINCE + 100)]
    with watched(tmp_path, log, now, backfill=True) as one:
        assert one.compare(SINCE + GRACE + 300) == 0
        one.came(SINCE + 100, 7)
        assert put(one.queue, 7, receiver=RECEIVER).accepted == 1
        assert one.compare(SINCE + GRACE + 600) == 0
        assert len(delivered(one.queue.cursor("otlp"))) == 2
    assert len(warnings(caplog)) == 1


def test_two_services_make_the_same_records_of_one_log(tmp_path: Path, log: AuditLogServer, now: Now) -> None:
    """Each queue knows only what came to itself."""
    log.entries = [audit_entry(1, SINCE + 100, "to the first"), audit_entry(2, SINCE + 200, "to none")]
    made: list[dict[str, str]] = []
    for number in (1, 2):
        now.seconds = float(SINCE)
        with watched(tmp_path / str(number), log, now, backfill=True) as one:
            if number == 1:
                one.came(SINCE + 100, 1, "to the first")
            assert one.compare(SINCE + GRACE + 300) == 0
            made.append({told(record)["feature_flag.key"]: told(record)["log.record.uid"] for record in one.made()})
    assert made[0].keys() == {"to none"}
    assert made[1].keys() == {"to none", "to the first"}
    assert made[0]["to none"] == made[1]["to none"]


def test_all_that_can_not_be_told_apart_are_filled_in(tmp_path: Path, log: AuditLogServer, now: Now) -> None:
    """One of two came, and nobody knows which: better twice than not at all. Where both came there is nothing to do."""
    log.entries = [
        audit_entry(1, SINCE + 100),
        audit_entry(2, SINCE + 101),
        audit_entry(3, SINCE + 200, "both came"),
        audit_entry(4, SINCE + 201, "both came"),
        audit_entry(5, SINCE + 100, actionType="thing_of_tomorrow"),
        audit_entry(6, SINCE + 400, "a", actionType="config_add_tag"),
    ]
    with watched(tmp_path, log, now, backfill=True, ignore=["config_add_tag"]) as one:
        one.came(SINCE + 100, 1)
        one.came(SINCE + 200, 2, "both came")
        one.came(SINCE + 201, 3, "both came")
        assert one.compare(SINCE + GRACE + 600) == 0
        assert sorted(told(record)["statsig.audit_log.id"][-1] for record in one.made()) == ["1", "2"]
        assert one.compare(SINCE + GRACE + 900) == 0
        assert len(one.made()) == 2


def test_what_was_missed_before_it_was_switched_on_is_filled_in_too(
    tmp_path: Path, log: AuditLogServer, now: Now
) -> None:
    day = 86_400
    log.entries = [audit_entry(1, SINCE + 100, "old"), audit_entry(2, SINCE + 5 * day, "new")]
    with watched(tmp_path, log, now) as one:
        assert one.compare(SINCE + GRACE + 5 * day + 300) == 2
        assert one.compare(SINCE + GRACE + 7 * day) == 2
        one.use(backfill=True)
        assert one.compare(SINCE + GRACE + 7 * day + 300) == 0
        assert one.filled_in() == ["old", "new"]
        one.use()
        log.entries.append(audit_entry(3, SINCE + 7 * day, "later"))
        assert one.compare(SINCE + GRACE + 7 * day + 600) == 1
        assert len(one.made()) == 2


def test_filling_in_waits_while_webhooks_may_need_the_room(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    log.entries = [audit_entry(number, SINCE + 100 * number, f"g{number}") for number in range(1, 6)]
    with watched(tmp_path, log, now, size=6, backfill=True) as one:
        assert one.compare(SINCE + GRACE + 600) == 2
        assert one.compare(SINCE + GRACE + 900) == 2
        assert one.filled_in() == ["g1", "g2", "g3"]
        delivered(one.queue.cursor("otlp"))
        assert one.compare(SINCE + GRACE + 1200) == 0
    assert "has come after all" not in caplog.text
    errors = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert errors == [
        "statsig/audited: records of the audit log can't be stored now: half of queue_size or more waits for otlp"
    ]


def test_the_filter_drops_what_would_be_filled_in_and_the_log_names_nobody(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    log.entries = [audit_entry(1, SINCE + 100, "noise"), audit_entry(2, SINCE + 200, "gate")]
    receiver = {"filter": {"exclude": {"names": ["noise"]}}, "user": "drop"}
    with watched(tmp_path, log, now, backfill=True, receiver=receiver) as one:
        for again in range(3):
            assert one.compare(SINCE + GRACE + 300 * (again + 1)) == 0
        assert one.filled_in() == ["gate"]
        assert "user.name" not in told(one.made()[0])
    about = [one.getMessage() for one in caplog.records if "Updated Gate" in one.getMessage()]
    assert [message.partition(": ")[2].partition(" (")[0] for message in about] == [
        "the filter drops noise",
        "no webhook brought gate",
    ]
    assert "Ada" not in caplog.text


def test_a_record_that_is_too_large_is_said_once_and_stays_missed(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    log.entries = [audit_entry(1, SINCE + 100, "a"), audit_entry(2, SINCE + 200, "b")]
    receiver = {"max_record_bytes": 10_000, "resource": {"k": "x" * 10_000}}
    with watched(tmp_path, log, now, backfill=True, receiver=receiver) as one:
        for again in range(3):
            assert one.compare(SINCE + GRACE + 300 * (again + 1)) == 2
        assert one.made() == []
        one.use(backfill=True)
        assert one.compare(SINCE + GRACE + 1500) == 0
        assert one.filled_in() == ["a", "b"]
    assert len([one for one in caplog.records if "no record can be made" in one.getMessage()]) == 2


def test_old_and_new_values_follow_a_change_that_came_once(tmp_path: Path, log: AuditLogServer, now: Now) -> None:
    values = {"rules": {"old": 1, "new": 2}}
    log.entries = [
        audit_entry(1, SINCE + 100, changes=values),
        audit_entry(2, SINCE + 200, "has none"),
        audit_entry(3, SINCE + 300, "is dropped", changes=values),
        audit_entry(4, SINCE + 400, "is missed", changes=values),
        audit_entry(5, SINCE + 500, "twins", changes=values),
        audit_entry(6, SINCE + 501, "twins", changes=values),
    ]
    made: list[LogRecord] = []
    for look in range(2):
        with watched(tmp_path, log, now, window=0.0, enrich=True) as one:
            if not look:
                one.came(SINCE + 100, 1)
                one.came(SINCE + 200, 2, "has none")
                dropped = Arrival(uid(3), SINCE + 300, "is dropped", filtered=True)
                consume(one.queue, Batch(RECEIVER, arrivals=(dropped,))).result(PATIENCE)
                one.came(SINCE + 500, 5, "twins")
                one.came(SINCE + 501, 6, "twins")
            assert one.compare(SINCE + GRACE + 1000 * (look + 1)) == 1
            made = one.made()
    (record,) = made
    assert record.event_name == "statsig.config_change.details"
    assert told(record)["statsig.config_change.uid"] == uid(1)
    assert told(record)["statsig.audit_log.new"] == '{"rules":2}'
