"""The comparison with the audit log: a clock that was wrong, other settings, and a server that asks to wait."""

import logging
import time
from pathlib import Path

import pytest

from tests.peers.audit_log import AuditLogServer, audit_entry, failing
from tests.plugin.service.watched_log import GRACE, SINCE, Now, warnings, watched
from tests.waiting import wait_until


def test_a_clock_that_was_put_back_hides_nothing(tmp_path: Path, log: AuditLogServer, now: Now) -> None:
    """It was two days fast. What happens after it is right again is seen within the usual time."""
    two_days = 2 * 86_400
    with watched(tmp_path, log, now, backfill=True) as one:
        assert one.compare(SINCE + GRACE + two_days) == 0
        log.entries = [audit_entry(1, SINCE + 400)]
        assert one.compare(SINCE + GRACE + 600) == 0
        assert one.filled_in() == ["gate"]
        assert one.compare(SINCE + GRACE + two_days + 300) == 0
        assert len(one.made()) == 1


def test_after_days_without_the_service_a_clock_that_was_fast_hides_nothing_either(
    tmp_path: Path, log: AuditLogServer, now: Now
) -> None:
    days = 86_400
    with watched(tmp_path, log, now) as one:
        assert one.compare(SINCE + GRACE + 10 * days) == 0
    log.entries = [audit_entry(1, SINCE + days)]
    with watched(tmp_path, log, now) as one:
        assert one.compare(SINCE + 4 * days) == 1


def test_a_clock_that_was_wrong_when_remembering_began_is_said(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    with watched(tmp_path, log, now) as one:
        for _ in range(2):
            assert one.compare(SINCE - 86_400) is None
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
        assert one.compare(SINCE + GRACE + 300) == 2
        assert one.compare(SINCE + 5 * days) == 2
        one.use(tolerance="10s")
        assert one.compare(SINCE + 5 * days + 300) == 1
        one.use(tolerance="10s", ignore=["config_add_tag"])
        assert one.compare(SINCE + 5 * days + 600) == 0
        one.use()
        log.entries = [audit_entry(3, SINCE + 5 * days, "of another project")]
        assert one.compare(SINCE + 6 * days) == 1
        with AuditLogServer() as other:
            one.use(endpoint=other.url)
            assert one.compare(SINCE + 6 * days + 300) == 0


def test_it_waits_for_as_long_as_the_server_asks(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    log.faults = [failing(429, Retry_After="3000")]
    with watched(tmp_path, log, now, interval="10ms") as one:
        now.seconds = SINCE + GRACE + 300
        one.check.start()
        wait_until(lambda: bool(warnings(caplog)))
        time.sleep(0.3)
        assert len(log.asked) == 1
        one.use(interval="20ms")
        wait_until(lambda: len(log.asked) > 1)


def test_an_entry_that_can_not_be_read_is_said_once(
    tmp_path: Path, log: AuditLogServer, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    log.entries = [audit_entry(1, SINCE + 100), audit_entry(2, SINCE + 100, "")]
    with watched(tmp_path, log, now) as one:
        one.came(SINCE + 100, 1)
        for look in range(3):
            assert one.compare(SINCE + GRACE + 300 + look) == 0
    (message,) = warnings(caplog)
    assert message == (
        "statsig/audited: some of the audit log's entries can't be compared with webhooks: "
        "the entry id00000000000000000002 does not name what was changed"
    )
