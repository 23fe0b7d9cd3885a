"""A server that plays the audit log, and the time of a test that watches it."""

from collections.abc import Iterator

import pytest

from statsig_otel._telemetry import counts_of
from tests.peers.audit_log import AuditLogServer
from tests.plugin.service.watched_log import RECEIVER, Now


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
