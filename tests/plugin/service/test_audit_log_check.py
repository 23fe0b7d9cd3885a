"""The watch of the audit log: what is missed is warned of once, counted, and remembered over a restart."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel._telemetry import counts_of
from statsig_otel.config import Opaque
from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.consumer import Batch
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.routing import QueuedExporter, Route
from statsig_otel.plugin import Service
from statsig_otel.plugin.service.audit_log_check import AuditLogCheck
from statsig_otel.plugin.settings.reading import receiver_settings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from tests.exporters.queue.helpers import PATIENCE, consume, delivered, put, reading, running, uid
from tests.metrics import collected
from tests.peers.audit_log import KEY, AuditLogServer, audit_entry, failing
from tests.plugin.record.record_helpers import plain, record_in
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
        self.queue = queue
        self._log = log
        self._now = now
        self.watch = AuditLogCheck(
            RECEIVER, queue, self._settings(settings), lambda batch: consume(queue, batch), clock=now
        )

    def _settings(self, given: Mapping[str, object]) -> StatsigReceiverSettings:
        """Settings of a receiver: those in `receiver` are its own, and all others those of `audit_log`."""
        own = given.get("receiver", {})
        log = {"api_key": KEY, "endpoint": self._log.url, **given}
        log.pop("receiver", None)
        assert isinstance(own, dict)
        return StatsigReceiverSettings.model_validate(
            {"signing_secrets": ["webhook-0123456789"], "audit_log": log, **own}
        )

    def use(self, **settings: object) -> None:
        """Use other settings, as a reload does."""
        self.watch.use(self._settings(settings))

    def made(self) -> list[LogRecord]:
        """The records in the queue, in order."""
        with reading(self.queue.database) as connection:
            return [record_in(row[0]) for row in connection.execute("SELECT payload FROM records ORDER BY seq")]

    def filled_in(self) -> list[str]:
        """The names of the changes whose records are in the queue, in order."""
        return [told(record)["feature_flag.key"] for record in self.made()]

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
    counts = counts_of(RECEIVER)
    counts.filled_in = counts.accepted = 0
    yield Now()
    counts.missed, counts.compared = None, 0


@contextmanager
def watched(
    directory: Path,
    log: AuditLogServer,
    now: Now,
    *,
    window: float = 86_400.0,
    size: int | None = None,
    **settings: object,
) -> Iterator[Watched]:
    receivers = {RECEIVER: Route(("otlp",), window=window, remembered=30 * 86_400.0)}
    exporters = {"otlp": QueuedExporter(queue_size=size)}
    with running(directory, receivers=receivers, exporters=exporters, clock=now) as queue:
        one = Watched(directory, log, now, queue, **settings)
        yield one
        one.watch.end()
        one.watch.join(PATIENCE)


def told(record: LogRecord) -> dict[str, Any]:
    """The attributes of a record."""
    return {one.key: plain(one.value) for one in record.attributes}


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
    assert "1 of these changes did not come by webhook, and it can't be told which: gate (Updated Gate)" in message


def test_a_log_that_can_not_be_read_is_said_once_and_nothing_is_lost(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    log.entries = [audit_entry(1, SINCE + 100)]
    with watched(tmp_path, log, now) as one:
        log.faults = [failing(401), failing(401)]
        assert one.look(SINCE + GRACE + 300) is None
        assert counts_of(RECEIVER).compared == SINCE, "an alert can tell how long ago that is"
        assert one.look(SINCE + GRACE + 600) is None
        assert one.look(SINCE + GRACE + 900) == 1
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
    with service:
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
        one.watch.start()
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
                assert one.look(SINCE + GRACE + 150) == 0
                assert one.filled_in() == [], "it may still come"
            assert one.look(SINCE + GRACE + 1000 * (look + 1)) == 0
            assert one.look(SINCE + GRACE + 1000 * (look + 1) + 300) == 0
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
        assert one.look(SINCE + GRACE + 300) == 0
        one.came(SINCE + 100, 7)
        assert put(one.queue, 7, receiver=RECEIVER).accepted == 1
        assert one.look(SINCE + GRACE + 600) == 0
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
            assert one.look(SINCE + GRACE + 300) == 0
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
        assert one.look(SINCE + GRACE + 600) == 0
        assert sorted(told(record)["statsig.audit_log.id"][-1] for record in one.made()) == ["1", "2"]
        assert one.look(SINCE + GRACE + 900) == 0
        assert len(one.made()) == 2


def test_what_was_missed_before_it_was_switched_on_is_filled_in_too(
    tmp_path: Path, log: AuditLogServer, now: Now
) -> None:
    day = 86_400
    log.entries = [audit_entry(1, SINCE + 100, "old"), audit_entry(2, SINCE + 5 * day, "new")]
    with watched(tmp_path, log, now) as one:
        assert one.look(SINCE + GRACE + 5 * day + 300) == 2
        assert one.look(SINCE + GRACE + 7 * day) == 2
        one.use(backfill=True)
        assert one.look(SINCE + GRACE + 7 * day + 300) == 0
        assert one.filled_in() == ["old", "new"]
        one.use()
        log.entries.append(audit_entry(3, SINCE + 7 * day, "later"))
        assert one.look(SINCE + GRACE + 7 * day + 600) == 1
        assert len(one.made()) == 2


def test_filling_in_waits_while_webhooks_may_need_the_room(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    log.entries = [audit_entry(number, SINCE + 100 * number, f"g{number}") for number in range(1, 6)]
    with watched(tmp_path, log, now, size=6, backfill=True) as one:
        assert one.look(SINCE + GRACE + 600) == 2
        assert one.look(SINCE + GRACE + 900) == 2
        assert one.filled_in() == ["g1", "g2", "g3"]
        delivered(one.queue.cursor("otlp"))
        assert one.look(SINCE + GRACE + 1200) == 0
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
            assert one.look(SINCE + GRACE + 300 * (again + 1)) == 0
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
            assert one.look(SINCE + GRACE + 300 * (again + 1)) == 2
        assert one.made() == []
        one.use(backfill=True)
        assert one.look(SINCE + GRACE + 1500) == 0
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
            assert one.look(SINCE + GRACE + 1000 * (look + 1)) == 1
            made = one.made()
    (record,) = made
    assert record.event_name == "statsig.config_change.details"
    assert told(record)["statsig.config_change.uid"] == uid(1)
    assert told(record)["statsig.audit_log.new"] == '{"rules":2}'


def test_a_clock_that_was_put_back_hides_nothing(tmp_path: Path, log: AuditLogServer, now: Now) -> None:
    """It was two days fast. What happens after it is right again is seen within the usual time."""
    two_days = 2 * 86_400
    with watched(tmp_path, log, now, backfill=True) as one:
        assert one.look(SINCE + GRACE + two_days) == 0
        log.entries = [audit_entry(1, SINCE + 400)]
        assert one.look(SINCE + GRACE + 600) == 0
        assert one.filled_in() == ["gate"]
        assert one.look(SINCE + GRACE + two_days + 300) == 0
        assert len(one.made()) == 1


def test_after_days_without_the_service_a_clock_that_was_fast_hides_nothing_either(
    tmp_path: Path, log: AuditLogServer, now: Now
) -> None:
    days = 86_400
    with watched(tmp_path, log, now) as one:
        assert one.look(SINCE + GRACE + 10 * days) == 0
    log.entries = [audit_entry(1, SINCE + days)]
    with watched(tmp_path, log, now) as one:
        assert one.look(SINCE + 4 * days) == 1


def test_a_clock_that_was_wrong_when_remembering_began_is_said(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    with watched(tmp_path, log, now) as one:
        for _ in range(2):
            assert one.look(SINCE - 86_400) is None
    (message,) = warnings(caplog)
    assert "remembered since 2026-09-21T14:13:20Z, so the clock was wrong then" in message
    assert "start once without audit_log" in message


def test_what_was_missed_by_other_settings_is_compared_again(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    """Also what is older than the last day. And a key may be of another project."""
    caplog.set_level(logging.INFO)
    days = 86_400
    log.entries = [audit_entry(1, SINCE + 100), audit_entry(2, SINCE + 200, "tagged", actionType="config_add_tag")]
    with watched(tmp_path, log, now) as one:
        one.came(SINCE + 105, 1)
        assert one.look(SINCE + GRACE + 300) == 2
        assert one.look(SINCE + 5 * days) == 2
        one.use(tolerance="10s")
        assert one.look(SINCE + 5 * days + 300) == 1
        one.use(tolerance="10s", ignore=["config_add_tag"])
        assert one.look(SINCE + 5 * days + 600) == 0
        one.use()
        log.entries = [audit_entry(3, SINCE + 5 * days, "of another project")]
        assert one.look(SINCE + 6 * days) == 1
        with AuditLogServer() as other:
            one.use(endpoint=other.url)
            assert one.look(SINCE + 6 * days + 300) == 0


def test_it_waits_for_as_long_as_the_server_asks(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    log.faults = [failing(429, Retry_After="3000")]
    with watched(tmp_path, log, now, interval="10ms") as one:
        now.seconds = SINCE + GRACE + 300
        one.watch.start()
        wait_until(lambda: bool(warnings(caplog)))
        time.sleep(0.3)
        assert len(log.asked) == 1
        one.use(interval="20ms")
        wait_until(lambda: len(log.asked) > 1)
