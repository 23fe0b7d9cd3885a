"""A batch becomes a message for each record, with the key of its change."""

import json
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters.decoding import log_records
from statsig_otel.exporters.kafka.messages import messages
from statsig_otel.plugin import LogRecordEncoder, Mapper, parse
from tests.exporters.kafka.records import record


def test_a_message_has_the_stored_bytes_of_one_record_and_the_uid_of_its_change() -> None:
    first, second, third = record("1" * 32), record("2" * 32, change="c" * 32, size=70_000), record("")
    found = list(messages(first + second + third, "otlp_proto"))
    assert [one.value for one in found] == [first, second, third]
    assert [one.key for one in found] == ["1" * 32, "c" * 32, None]


def test_the_key_of_a_real_change_is_its_uid() -> None:
    sample = json.loads((Path(__file__).parents[2] / "data" / "config_changes.json").read_text())
    body = json.dumps({"data": [one["event"] for one in sample["events"]]}).encode()
    changes = Mapper(LogRecordEncoder()).map(parse(body), 0).changes
    found = list(messages(b"".join(change.records[0] for change in changes), "otlp_proto"))
    assert found == [(change.uid, change.records[0]) for change in changes]
    assert len(found) > 1


def test_json_is_one_request_with_one_record() -> None:
    for one, name in zip(messages(record("1" * 32) + record("2" * 32), "otlp_json"), "12", strict=True):
        ((scope,),) = (list(logs["scopeLogs"]) for logs in json.loads(one.value)["resourceLogs"])
        assert [attribute["value"] for attribute in scope["logRecords"][0]["attributes"]] == [
            {"stringValue": name * 32}
        ]


@given(st.lists(st.lists(st.lists(st.text(max_size=3), max_size=3), max_size=3), max_size=4), st.booleans())
def test_records_that_share_a_resource_or_a_scope_are_split_too(shape: list[list[list[str]]], joined: bool) -> None:
    requests = []
    for resources in shape:
        request = ExportLogsServiceRequest()
        for scopes in [resources]:
            resource = request.resource_logs.add(schema_url="of the resource")
            for bodies in scopes:
                scope = resource.scope_logs.add(schema_url="of the scope")
                for body in bodies:
                    scope.log_records.add(trace_id=b"t" * 16).body.string_value = body
        requests.append(request)
    payload = b"".join(request.SerializeToString() for request in requests)
    if joined:
        payload = ExportLogsServiceRequest.FromString(payload).SerializeToString()
    found = [one.value for one in messages(payload, "otlp_proto")]
    assert [[one] for one in log_records(payload)] == [list(log_records(value)) for value in found]
    for value in found:
        (resource_logs,) = ExportLogsServiceRequest.FromString(value).resource_logs
        assert (resource_logs.schema_url, resource_logs.scope_logs[0].schema_url) == ("of the resource", "of the scope")


@given(st.binary(max_size=40))
def test_nonsense_is_refused_or_read_as_protobuf_reads_it(payload: bytes) -> None:
    try:
        expected = list(log_records(payload))
    except DecodeError:
        with pytest.raises(DecodeError):
            list(messages(payload, "otlp_proto"))
        return
    assert [one for found in messages(payload, "otlp_proto") for one in log_records(found.value)] == expected
