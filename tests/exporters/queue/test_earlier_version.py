"""A queue directory that an earlier version left behind: nothing that it acknowledged is lost by an upgrade."""

import contextlib
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.consumer import Batch, Change, Receipt
from statsig_otel.exporters.queue import arrivals, dead_letters, schema
from statsig_otel.exporters.queue.arrivals import Remembered
from statsig_otel.exporters.queue.dead_letters import Selection
from statsig_otel.exporters.queue.records import Stored
from statsig_otel.exporters.routing import Route
from tests.exporters.queue.helpers import (
    PATIENCE,
    ROOT,
    check_counters,
    consume,
    errors,
    kept,
    read_all,
    reading,
    running,
)

DIRECTORIES = sorted((ROOT / "tests" / "data" / "queues").iterdir())
"""One or two for each version, written by its own code. The tests below say what each contains: the same."""

REMEMBERING = "-remembering"
"""How the name ends of a directory that also has what came, as with `audit_log`."""

RECEIVERS = {"statsig": Route(("otlp", "archive")), "statsig/eu": Route(("archive",))}
REMEMBERED = {**RECEIVERS, "statsig": Route(("otlp", "archive"), remembered=30 * 86_400.0)}
WRITTEN_AT = 1_751_457_600
ARRIVALS = tuple(
    Arrival(
        f"{number:032x}", WRITTEN_AT - number, f"gate {number}", user, "Ada", None, "Gate", "updated", "\u00e9", **how
    )
    for number, user, how in ((2, "u1", {}), (1, None, {"filtered": True, "from_log": True}))
)
MISSED = {"entry-1": WRITTEN_AT - 60}
"""An entry of the audit log without a change."""

SPLIT = "43f831adb64795f32e9e8de9c103019c"
"""The uid of the change that was split over three services."""


def names_of(records: Sequence[Stored]) -> list[str]:
    """The feature of each record, with its service where the change was split."""
    found = []
    for record in records:
        assert record.intact
        (resource_logs,) = ExportLogsServiceRequest.FromString(record.payload).resource_logs
        (log_record,) = resource_logs.scope_logs[0].log_records
        attributes = {one.key: one.value.string_value for one in log_record.attributes}
        resource = {one.key: one.value.string_value for one in resource_logs.resource.attributes}
        service = f" {resource['service.name']}" if attributes["feature_flag.key"] == "checkout_v2" else ""
        found.append(attributes["feature_flag.key"] + service)
    return found


@pytest.fixture(params=DIRECTORIES, ids=lambda directory: directory.name)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "queue"))


def test_what_waits_is_delivered_in_order_to_whom_it_is_for(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = ["checkout_v2 cart", "checkout_v2 checkout", "checkout_v2 payment"]
    with running(directory, receivers=RECEIVERS, exporters=("otlp", "archive")) as queue:
        check_counters(queue)
        assert queue.sizes() == {"otlp": 4, "archive": 7}
        # This one was done with the first of the three.
        assert names_of(read_all(queue.cursor("otlp"), at_once=3)) == [*split[1:], "banner", "search"]
        archived = [*split, "consent", "banner", "search", "currency"]
        assert names_of(read_all(queue.cursor("archive"), at_once=3)) == archived
        check_counters(queue)
    assert not errors(caplog)
    assert not kept(directory)


def test_what_was_seen_is_a_duplicate(directory: Path) -> None:
    with running(
        directory, receivers=RECEIVERS, exporters=("otlp", "archive"), clock=lambda: WRITTEN_AT + 3600.0
    ) as queue:
        for receiver, receipt in (("statsig", Receipt(0, 1)), ("statsig/eu", Receipt(1))):
            assert consume(queue, Batch(receiver, (Change(SPLIT, (b"again",)),))).result(PATIENCE) == receipt
        assert queue.sizes() == {"otlp": 4, "archive": 8}


def test_the_dead_letters_of_each_kind_are_listed_with_their_content(directory: Path) -> None:
    with running(directory, receivers=RECEIVERS, exporters=("otlp", "archive")) as queue, reading(queue.database) as at:
        found = dead_letters.select(at, Selection())
        assert [(one.id, one.kind, one.owner, one.reason, one.attempts, one.count) for one in found] == [
            (1, "item", "statsig", "metadata.name: must be a text that is not empty, is empty", 0, 1),
            (2, "body", "statsig", "no list of events", 0, 1),
            (3, "record", "otlp", "HTTP 400: no good", 1, 1),
            (4, "batch", "archive", "1 of 2 records was refused", 1, 2),
            (5, "damaged", "archive", "damaged on disk: its checksum is wrong", 0, 1),
        ]
        assert {one.at_ms for one in found} == {WRITTEN_AT * 1000 + 1000}
        contents = [dead_letters.content(at, one.id) or b"" for one in found]
        assert contents[0].startswith(b'{"eventName": "statsig::config_change"')
        assert contents[1] == b'{"data": "of a shape that nobody knows"}'
        records = [*dead_letters.split(contents[2]), *dead_letters.split(contents[3])]
        stored = [Stored(0, uid, payload, intact=True) for uid, payload in records]
        assert names_of(stored) == ["layout_v3", "layout_v2", "layout_v3"]
        assert stored[0].uid == found[2].uid


def test_what_came_and_what_is_missed_is_remembered(directory: Path, request: pytest.FixtureRequest) -> None:
    expected = Remembered(WRITTEN_AT + 1, WRITTEN_AT, WRITTEN_AT - 60, list(ARRIVALS))
    with (
        running(
            directory, receivers=REMEMBERED, exporters=("otlp", "archive"), clock=lambda: WRITTEN_AT + 9.0
        ) as queue,
        reading(queue.database) as at,
    ):
        found = arrivals.read(at, "statsig", 0, 1 << 40)
    if not request.node.callspec.id.endswith(REMEMBERING):
        expected = Remembered(WRITTEN_AT + 9, WRITTEN_AT + 9, None, [])
    assert found == expected


def test_its_schema_is_byte_for_byte_that_of_a_new_queue(
    directory: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def schema_of(database: Path) -> list[tuple[object, ...]]:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            pragmas = [
                connection.execute(f"PRAGMA {name}").fetchone()
                for name in ("user_version", "application_id", "auto_vacuum", "page_size")
            ]
            tables = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master"
            return [*pragmas, *connection.execute(tables).fetchall()]

    found = schema_of(directory / "queue.db")
    with running(directory, receivers=RECEIVERS, exporters=("otlp", "archive")):
        pass
    with contextlib.closing(schema.connect(tmp_path / "new.db")) as new:
        if request.node.callspec.id.endswith(REMEMBERING):
            schema.upgrade(new, schema.REMEMBERING)
    assert schema_of(directory / "queue.db") == schema_of(tmp_path / "new.db") == found
