"""The services that a change concerns: which rules find them, a record for each, and uids that stay what they are."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from statsig_otel import _attributes
from statsig_otel.exporters.consumer import Batch, Change, Receipt
from statsig_otel.exporters.local.logger_provider import LoggerProviderConsumer
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.record.services import (
    MAX_CHARACTERS,
    ImpactedService,
    service_uid,
)
from statsig_otel.plugin.webhook.body import parse
from statsig_otel.plugin.webhook.lenient_json import Item
from tests.exporters.queue.helpers import PATIENCE, consume, read_all, running
from tests.looped import looped
from tests.plugin.record.mapping_helpers import OBSERVED, mapper_of, plain

DATA: Final = Path(__file__).parents[2] / "data"
VECTORS: Final = json.loads((DATA / "service_uid_vectors.json").read_text())["vectors"]
Shown = tuple[dict[str, object], dict[str, object]]
"""The attributes of a record's resource, and its own."""


def event(**metadata: object) -> dict[str, Any]:
    metadata = {"type": "Gate", "name": "checkout_v2", "action": "updated", **metadata}
    return {"eventName": "statsig::config_change", "timestamp": 1739400185198, "metadata": metadata}


def change_of(mapper: Mapper, item: object) -> Change:
    payload = parse(json.dumps([item]).encode())
    (change,) = mapper.map(payload, OBSERVED).changes
    return change


def shown(change: Change) -> list[Shown]:
    found = []
    for encoded in change.records:
        (resource_logs,) = ExportLogsServiceRequest.FromString(encoded).resource_logs
        (record,) = resource_logs.scope_logs[0].log_records
        pair = resource_logs.resource.attributes, record.attributes
        resource, attributes = ({one.key: plain(one.value) for one in attributes} for attributes in pair)
        assert (len(resource), len(attributes)) == tuple(map(len, pair))
        found.append((resource, attributes))
    return found


def services(change: Change) -> list[str]:
    """What the records' resources name, as NAMESPACE/NAME."""
    return ["/".join(str(r[k]) for k in ("service.namespace", "service.name") if k in r) for r, _ in shown(change)]


def uids(change: Change) -> list[object]:
    return [attributes[_attributes.UID] for _, attributes in shown(change)]


def rules(text: str, others: str = "user: full", *, split: bool = True) -> Mapper:
    return mapper_of(f"{others}\nimpacted_services: {{split: {json.dumps(split)}, rules: {text}}}")


@looped(
    ("written", "metadata", "expected"),
    [
        ("{name: checkout}", {}, ["checkout"]),
        ("{name: checkout, namespace: shop}", {}, ["shop/checkout"]),
        ("[{name: checkout}]", {}, ["checkout"]),
        ('{name: checkout, match: {names: ["checkout_*"]}}', {}, ["checkout"]),
        ('{name: checkout, match: {names: ["cart_*"]}}', {}, ["statsig"]),
        ("{name: billing, match: {tags: [payments]}}", {"tags": ["core", "payments"]}, ["billing"]),
        ("{name: billing, match: {tags: [payments]}}", {"tags": ["core"]}, ["statsig"]),
        ("{name: till, match: {target_apps: [till-*]}}", {"targetApps": ["till-eu"]}, ["till"]),
        ("{name: a, match: {types: [gate], actions: [created]}}", {}, ["statsig"]),
        ("{name: a, match: [{types: [gate]}, {actions: [created]}]}", {}, ["a"]),
        ("{name: a, match: {projects: [Web], environments: [production]}}",
         {"projectName": "Web", "environments": "production,staging"}, ["a"]),
        ("{name: [a, b]}", {}, ["a", "b"]),
        ('{name: "{target_apps}"}', {"targetApps": ["b", "a", "b"]}, ["b", "a"]),
        ('{name: "{target_apps}"}', {"targetApps": []}, ["statsig"]),
        ('{name: "{metadata.service}"}', {"service": "from-statsig"}, ["from-statsig"]),
        ('{name: "{metadata.service}"}', {"service": 7}, ["7"]),
        ('{name: "{metadata.service}"}', {"service": " \t"}, ["statsig"]),
        ('{name: ["{tags}", fixed]}', {"tags": ["x", "fixed"]}, ["x", "fixed"]),
        ('{name: "{project.name}-{type}", namespace: "{project.id}"}',
         {"projectName": "web", "projectID": "p"}, ["p/web-Gate"]),
        ('{name: a, namespace: "{project.id}"}', {}, ["a"]),
        ('{name: {lookup: "{tags}", table: {core: platform, ui: web}}}', {"tags": ["ui", "x", "core"]},
         ["web", "platform"]),
        ('{name: {lookup: "{tags}", table: {core: platform}, default: "{project.name}"}}',
         {"projectName": "Web"}, ["Web"]),
        ("[{name: a}, {name: b}, {name: [c, a]}]", {}, ["a", "b", "c"]),
        ("[{name: a}, {name: a, namespace: n}]", {}, ["a", "n/a"]),
    ],
)  # fmt: skip
def test_a_rule_finds_these_services(written: str, metadata: dict[str, object], expected: list[str]) -> None:
    """In the order of the rules, and of what they find. Where there is none the receiver's resource stays."""
    change = change_of(rules(written), event(**metadata))
    assert services(change) == expected
    listed = shown(change_of(rules(written, split=False), event(**metadata)))
    assert listed[0][1].get(_attributes.IMPACTED_SERVICES, ["statsig"]) == expected


def test_the_namespace_of_all_rules_is_for_those_without_one() -> None:
    mapper = mapper_of("impacted_services: {namespace: shop, rules: [{name: a}, {name: b, namespace: other}]}")
    assert services(change_of(mapper, event())) == ["shop/a", "other/b"]


def test_the_resource_of_a_record_is_its_service() -> None:
    """Of what was said of another service nothing stays; all else does, behind it."""
    keys = """
        resource: {service.name: flags, service.namespace: tools, service.instance.id: x, team: web, n: [1, 2]}
        impacted_services: {rules: [{match: {names: [checkout_v2]}, name: checkout}]}
    """
    mapper = mapper_of(keys)
    ((resource, _),) = shown(change_of(mapper, event()))
    assert list(resource.items()) == [("service.name", "checkout"), ("team", "web"), ("n", [1, 2])]
    ((other, attributes),) = shown(change_of(mapper, event(name="x")))
    assert other["service.instance.id"] == "x"
    assert not {_attributes.CHANGE_UID, _attributes.IMPACTED_SERVICES} & set(attributes)


def test_a_record_tells_its_service_and_its_change() -> None:
    change = change_of(rules("[{name: a}, {name: b, namespace: n}]"), event())
    assert [attributes[_attributes.IMPACTED_SERVICES] for _, attributes in shown(change)] == [["a"], ["n/b"]]
    assert {attributes[_attributes.CHANGE_UID] for _, attributes in shown(change)} == {uid(event())} == {change.uid}


def test_beside_its_service_a_record_is_the_one_without_services() -> None:
    (before,) = change_of(mapper_of("user: full"), event()).records
    for encoded in change_of(rules("{name: [a, b]}"), event()).records:
        request = ExportLogsServiceRequest.FromString(encoded)
        record = request.resource_logs[0].scope_logs[0].log_records[0]
        request.resource_logs[0].resource.attributes[0].value.string_value = "statsig"
        assert [one.key for one in record.attributes[-2:]] == [_attributes.CHANGE_UID, _attributes.IMPACTED_SERVICES]
        del record.attributes[-2:]
        for attribute in record.attributes:
            if attribute.key == _attributes.UID:
                attribute.value.string_value = uid(event())
        assert request == ExportLogsServiceRequest.FromString(before)


def test_without_a_service_a_record_is_byte_for_byte_the_one_without_rules() -> None:
    for split in (True, False):
        mapper = rules("{name: a, match: {names: [nothing]}}", split=split)
        assert change_of(mapper, event()) == change_of(mapper_of("user: full"), event())


def test_one_record_has_the_list() -> None:
    change = change_of(rules("{name: [a, b]}", split=False), event())
    ((resource, attributes),) = shown(change)
    assert resource == {"service.name": "statsig"}
    assert (attributes[_attributes.UID], attributes[_attributes.IMPACTED_SERVICES]) == (uid(event()), ["a", "b"])
    assert _attributes.CHANGE_UID not in attributes


def test_the_mapping_reads_the_records_own_service() -> None:
    mapper = mapper_of("""
        impacted_services: {namespace: shop, rules: {name: [a, b]}}
        mapping:
          body: "{service.namespace}/{service.name}"
          rename: {statsig.config_change.uid: change}
          drop: [statsig.impacted_services]
          attributes: {service.name: "{service.name}", seen: "{statsig.impacted_services}"}
    """)
    found = shown(change_of(mapper, event()))
    assert [(one["service.name"], one["seen"], one["change"]) for _, one in found] == [
        ("a", ["shop/a"], uid(event())),
        ("b", ["shop/b"], uid(event())),
    ]
    assert not any(_attributes.IMPACTED_SERVICES in one for _, one in found)


@pytest.mark.parametrize("vector", VECTORS)
def test_the_vectors_of_uids(vector: dict[str, str]) -> None:
    text = f"statsig-otel/1/service\n{vector['change']}\n{vector['pair']}"
    assert sha256(text.encode("ascii")).hexdigest()[:32] == vector["uid"]
    assert service_uid(vector["change"], ImpactedService(vector["name"], vector["namespace"])) == vector["uid"]


def test_the_uid_of_a_service_is_the_same_whatever_stands_beside_it() -> None:
    """Another rule, another order, or a second service changes nothing of the first one's."""
    expected = service_uid(uid(event()), ImpactedService("checkout"))
    for written in (
        "{name: checkout}",
        "[{name: checkout}, {name: cart}]",
        "[{name: cart}, {name: checkout}]",
        '{name: "{metadata.service}"}',
    ):
        change = change_of(rules(written), event(service="checkout"))
        known = service_uid(uid(event(service="checkout")), ImpactedService("checkout"))
        assert dict(zip(services(change), uids(change), strict=True))["checkout"] == known
    assert uids(change_of(rules("{name: checkout}"), event())) == [expected]


def test_a_redelivery_gives_the_same_records() -> None:
    mapper, again = (rules("{name: [a, b]}") for _ in range(2))
    item = event()
    other_order = json.loads(json.dumps(item, sort_keys=True))
    assert uids(change_of(mapper, item)) == uids(change_of(again, other_order))


@given(st.lists(st.builds(ImpactedService, st.sampled_from(["a", "b", "a/b", '"', ","]),
                          st.sampled_from(["", "a", "b", "a/b", '"', ","])), min_size=2, unique=True))  # fmt: skip
def test_no_two_services_share_a_uid(found: Sequence[ImpactedService]) -> None:
    made = {service_uid(uid(event()), service) for service in found}
    assert len(made) == len(found)
    assert uid(event()) not in made


FIRST_MATCH: Final = """
impacted_services:
  first_match: true
  rules:
    - {match: {names: ["checkout_*"]}, name: [checkout, cart]}
    - {name: "{target_apps}"}
    - {name: {lookup: "{tags}", table: {payments: billing}}}
    - {name: everything-else}
"""


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"targetApps": ["web"]}, ["checkout", "cart"]),
        ({"name": "b", "targetApps": "web, ios", "tags": ["payments"]}, ["web", "ios"]),
        ({"name": "b", "tags": ["payments"]}, ["billing"]),
        ({"name": "b", "targetApps": ["", " "], "tags": ["other"]}, ["everything-else"]),
    ],
)
def test_the_first_rule_that_finds_a_service_can_be_the_only_one(
    metadata: dict[str, object], expected: list[str]
) -> None:
    """So that the last rule is for all changes that no other rule knows."""
    mapper = mapper_of(FIRST_MATCH)
    assert services(change_of(mapper, event(**metadata))) == expected
    item = event(**metadata)
    concerned = mapper.concerned(Item(json.dumps(item)))
    assert concerned is not None
    assert len({rule for one in concerned.found for rule in one.rules}) == 1


@pytest.mark.parametrize(("count", "records"), [(99, 99), (100, 100), (101, 1), (1000, 1)])
def test_a_change_of_too_many_services_is_one_record_with_the_list(count: int, records: int) -> None:
    """Nothing is lost, and nothing of it depends on the rest of the batch."""
    item = event(targetApps=[f"app-{index}" for index in range(count)])
    change = change_of(rules('{name: "{target_apps}"}'), item)
    assert len(change.records) == records
    if records == 1:
        ((resource, attributes),) = shown(change)
        assert resource == {"service.name": "statsig"}
        assert attributes[_attributes.UID] == uid(item)
        assert attributes[_attributes.IMPACTED_SERVICES] == [f"app-{index}" for index in range(count)]


@pytest.mark.parametrize(("spare", "records"), [(0, 2), (1, 1)])
def test_a_long_text_is_not_held_often(spare: int, records: int) -> None:
    item = event(description="")
    length = MAX_CHARACTERS // 2 - len(json.dumps(item)) + spare
    item["metadata"]["description"] = "x" * length
    limit = "max_record_bytes: 16MB"
    assert len(change_of(rules("{name: [a, b]}", limit), item).records) == records
    item["metadata"]["description"] *= 2
    assert services(change_of(rules("{name: a}", limit), item)) == ["a"]  # that one is held once


def test_a_rule_of_more_constants_is_an_error() -> None:
    names = ", ".join(f"a{index}" for index in range(101))
    with pytest.raises(Exception, match=r"impacted_services::rules::name"):
        rules(f"{{name: [{names}]}}")


def test_a_redelivery_is_one_duplicate_of_all_records(tmp_path: Path) -> None:
    """The change is what is known again: all its records are stored at once, or none."""
    change = change_of(rules("{name: [a, b, c]}"), event())
    with running(tmp_path) as queue:
        receipts = [consume(queue, Batch("statsig", (change,))).result(PATIENCE) for _ in range(2)]
        assert receipts == [Receipt(1), Receipt(0, duplicates=1)]
        assert [stored.payload for stored in read_all(queue.cursor("otlp"))] == list(change.records)


def test_a_logger_provider_gets_each_record() -> None:
    """The resource is the provider's there, so it is the attributes that tell the service."""
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    change = change_of(rules("{name: [a, b]}"), event())
    assert LoggerProviderConsumer(provider).consume(Batch("statsig", (change,))).result() == Receipt(1)
    found = [one.log_record.attributes or {} for one in exporter.get_finished_logs()]
    assert [(one[_attributes.IMPACTED_SERVICES], one[_attributes.UID]) for one in found] == [
        (("a",), uids(change)[0]),
        (("b",), uids(change)[1]),
    ]
    provider.shutdown()


def test_an_explanation_finds_what_the_records_are_for() -> None:
    mapper = rules("[{name: a}, {name: [b, a]}, {name: c, match: {names: [nothing]}}]")
    concerned = mapper.concerned(Item(json.dumps(event())))
    assert concerned is not None
    assert [(str(one.service), one.rules) for one in concerned.found] == [("a", (0, 1)), ("b", (1,))]
    assert (concerned.split, concerned.too_many) == (True, False)
    assert mapper_of("user: full").concerned(Item("{}")) is None
