"""The journal as JSON: of a running service over its control socket, and of records in every form."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statsig_otel._journal import Journal, journal
from statsig_otel.exporters import Blocked
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.plugin import DEFAULT_PATH, LogRecordEncoder, Mapper, Service, parse
from statsig_otel.plugin.control.socket import ControlError, call
from statsig_otel.plugin.watch.journal_json import entries
from tests.plugin.fresh import fresh_process
from tests.plugin.http_client import exchange, request
from tests.plugin.services import SECRET, Keeper, address_of, service, signed_request
from tests.waiting import wait_until

CHANGE = {
    "eventName": "statsig::config_change",
    "timestamp": 1739400185198,
    "user": {"name": "Jane", "email": "jane@example.com"},
    "metadata": {
        "type": "Gate",
        "name": "layout_v2",
        "action": "updated",
        "description": "- Updated rule",
        "environments": "production,staging",
    },
}


class Refusing(Keeper):
    def send(self, payload: bytes, count: int, timeout: float) -> Blocked:
        return Blocked("401 the key has expired")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    with fresh_process():
        yield


def test_the_command_tells_what_happened(tmp_path: Path) -> None:
    exporters = {"well": Keeper(), "expired": Refusing()}
    mark = uuid.uuid4().hex
    body = json.dumps([CHANGE | {"metadata": CHANGE["metadata"] | {"name": mark}}, {"eventName": "x"}]).encode()  # type: ignore[operator]

    def told(**arguments: Any) -> Any:
        return call(tmp_path / "queue" / CONTROL, "journal", **arguments)

    def of_exporters() -> set[str]:
        return {one["exporter"] for one in told()["attempts"]}

    with service(tmp_path / "queue", exporters) as running:
        address = address_of(running)
        assert exchange(address, signed_request(body)).status == 200
        assert exchange(address, signed_request(body, secret=f"{SECRET}0")).status == 401
        assert exchange(address, request(b"{}", path="/elsewhere")).status == 404
        assert exchange(address, b"\x16\x03\x01\x02\x00").status == 400
        wait_until(lambda: {"well", "expired"} <= of_exporters())
        answer = told(records=True)
        with pytest.raises(ControlError, match=r"the arguments are wrong.*>= 0.*limit"):
            told(limit=-1)
        assert told(limit=0) == {"requests": [], "changes": [], "attempts": []}
        assert [len(found) for found in told(limit=1).values()] == [1, 1, 1]

    newest = {one["reason"]: one for one in reversed(answer["requests"])}
    assert newest["accepted"]["items"] == {"accepted": 1, "ignored": 1}
    assert newest["signature_wrong"]["detail"].startswith("the client has a secret that is not in signing_secrets")
    assert newest["not_found"]["path"] == "/elsewhere"
    assert newest["not_found"]["detail"] == f"the receiver's path is {DEFAULT_PATH}"
    assert newest["tls"]["detail"].startswith("a client speaks TLS to this port")
    assert newest["tls"]["port"] == address[1]
    change = answer["changes"][0]
    (sent,) = change.pop("records")
    (record,) = sent["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert {"key": "feature_flag.key", "value": {"stringValue": mark}} in record["attributes"]
    assert change.pop("at").endswith("Z")
    assert len(change.pop("uid")) == 32
    assert change.pop("bytes") > 100
    assert change == {
        "receiver": "statsig",
        "happened_at": "2025-02-12T22:43:05.198Z",
        "type": "gate_updated",
        "title": f"{mark} updated",
        "flag": mark,
        "action": "updated",
        "who": "Jane",
        "description": "- Updated rule",
        "environments": ["production", "staging"],
        "services": ["statsig"],
    }
    by_exporter = {one["exporter"]: one for one in reversed(answer["attempts"])}
    assert by_exporter["expired"]["reason"] == "401 the key has expired"
    assert (by_exporter["expired"]["outcome"], by_exporter["expired"]["delivered"]) == ("blocked", 0)
    assert (by_exporter["well"]["outcome"], by_exporter["well"]["delivered"]) == ("delivered", 1)


def test_as_much_is_kept_as_the_configuration_says(tmp_path: Path) -> None:
    file = {"file": {"path": str(tmp_path / "sent.jsonl"), "sending_queue": {"enabled": False}}}
    configuration = {
        "receivers": {"statsig": {"endpoint": "127.0.0.1:0", "signing_secrets": [SECRET]}},
        "exporters": file,
        "service": {
            "telemetry": {"journal": {"max_entries": 2, "max_bytes": "64KiB"}},
            "pipelines": {"logs": {"receivers": ["statsig"], "exporters": ["file"]}},
        },
    }
    large = {"metadata": CHANGE["metadata"] | {"description": "x" * 70_000}}  # type: ignore[operator]
    with Service.from_file(f"yaml:{json.dumps(configuration)}", environ={}) as running:
        for number in range(3):
            one = {"metadata": CHANGE["metadata"] | {"name": f"flag_{number}"}}  # type: ignore[operator]
            body = json.dumps([CHANGE | one]).encode()
            assert exchange(address_of(running), signed_request(body)).status == 200
        assert [one["flag"] for one in entries(journal)["changes"]] == ["flag_2", "flag_1"]
        assert exchange(address_of(running), signed_request(json.dumps([CHANGE | large]).encode())).status == 200
        newest = entries(journal, records=True)["changes"][0]
        assert (newest["bytes"] > 70_000, newest["records"]) == (True, [])


def test_what_a_mapping_hides_is_not_in_the_journal() -> None:
    mapper = Mapper(LogRecordEncoder(user="drop"))
    shown = entries(with_changes(mapper), records=True)["changes"]
    assert "who" not in shown[0]
    assert "jane" not in json.dumps(shown).lower()


def test_records_that_are_not_otlp_do_not_break_it() -> None:
    journal = with_changes(Mapper())
    journal.add_changes("statsig", 1, [Odd()])
    shown = entries(journal)["changes"]
    assert [one.get("flag") for one in shown] == [None, "layout_v2"]
    assert entries(journal, records=True)["changes"][0]["records"] == []


class Odd:
    uid = "0" * 32
    records = (b"\xff\xff",)


def with_changes(mapper: Mapper) -> Journal:
    journal = Journal()
    journal.keep()
    journal.add_changes("statsig", 1, mapper.map(parse(json.dumps([CHANGE]).encode()), 1).changes)
    return journal
