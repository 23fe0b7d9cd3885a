"""The main job against real collectors: a signed webhook in, over HTTP; OTLP out behind the collector, field by field.

rotel runs always: its binary comes in a Python package. The OpenTelemetry Collector is built first, so its tests are
slow ones. Where either can't be had, its tests are skipped with a reason that begins with "NO REAL COLLECTOR".
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import pytest
from google.protobuf import json_format

from statsig_otel import __version__
from statsig_otel.config.grammar import check
from statsig_otel.config.opaque import reveal
from statsig_otel.config.source import read
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.reading import exporter_settings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from tests.e2e import otelcol
from tests.e2e.processes import SECRET, Collector, Ports, Protocol, find_rotel, post, rotel, signed, write_config
from tests.e2e.service_process import ServiceProcess
from tests.peers.otlp_servers import GrpcSink, HttpAnswer, HttpSink, Received
from tests.peers.ports import free_port
from tests.plugin.http_client import Response
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "collector"
SECRET_ENV = {"STATSIG_SIGNING_SECRET": SECRET}
UNAVAILABLE = "NO REAL COLLECTOR: the main job is not proven behind"

EVERY_FIELD = {
    "user": {"name": "Release Manager", "email": "release.manager@example.com", "userID": "user-7"},
    "userID": "user-7",
    "timestamp": 1739400185198,
    "eventName": "statsig::config_change",
    "metadata": {
        "type": "Dynamic Config",
        "name": "größe_布局",
        "action": "updated",
        "description": "Updated Config Conditions\n    - Updated rule test pass percentage from 100 to 50 \U0001f680",
        "environments": "staging, production",
        "projectName": "Example Shop",
        "projectID": "example-shop",
        "tags": ["core", {"id": "t1", "name": "Checkout"}],
        "targetApps": ["web", "ios"],
    },
}
"""A config change with every field of Statsig's table, some of it beyond ASCII."""
UID_OF_EVERY_FIELD = "adc621dd646b27001cdf271e47122ebc"

ONE_MORE = {
    "timestamp": 1739400185199,
    "eventName": "statsig::config_change",
    "metadata": {"type": "Gate", "name": "one_more", "action": "archived"},
}
UID_OF_ONE_MORE = "942e4f947950a34184aa76f04f5dc61f"


def body_of(*changes: object) -> bytes:
    return json.dumps({"data": changes}, ensure_ascii=False).encode()


def samples() -> list[object]:
    """The config changes of Statsig's documentation, and the one with every field."""
    events = json.loads((ROOT / "tests" / "data" / "config_changes.json").read_text())["events"]
    return [*(event["event"] for event in events), EVERY_FIELD]


def text(value: str) -> dict[str, object]:
    return {"stringValue": value}


def texts(*values: str) -> dict[str, object]:
    return {"arrayValue": {"values": [text(value) for value in values]}}


RESOURCE_SETTINGS = {
    "service.namespace": "shop",
    "statsig.canary": True,
    "statsig.replicas": 3,
    "statsig.share": 0.5,
    "statsig.zones": ["a", "b"],
}
"""A resource with a value of each type that a configuration can hold."""

RESOURCE = {
    "service.name": text("statsig"),
    "service.namespace": text("shop"),
    "statsig.canary": {"boolValue": True},
    "statsig.replicas": {"intValue": "3"},
    "statsig.share": {"doubleValue": 0.5},
    "statsig.zones": texts("a", "b"),
}
CONTEXT = {
    "resource": {"attributes": RESOURCE},
    "resourceSchemaUrl": "",
    "scope": {"name": "statsig_otel", "version": __version__},
    "schemaUrl": "https://opentelemetry.io/schemas/1.44.0",
}

ALWAYS = {
    "change_event.category": text("feature_flags"),
    "change_event.source": text("statsig"),
    "feature_flag.provider.name": text("statsig"),
}
EXPECTED: list[dict[str, object]] = [
    {
        "timeUnixNano": "1709660061095000000",
        "severityNumber": 9,
        "eventName": "statsig.config_change",
        "body": text("layout_v2 created"),
        "attributes": {
            **ALWAYS,
            "change_event.type": text("gate_created"),
            "change_event.happened_at": text("2024-03-05T17:34:21.095Z"),
            "change_event.title": text("layout_v2 created"),
            "change_event.label.type": text("Gate"),
            "change_event.label.name": text("layout_v2"),
            "change_event.label.action": text("created"),
            "change_event.label.description": text("Description: Change default page layout"),
            "feature_flag.key": text("layout_v2"),
            "user.name": text("Test User"),
            "user.email": text("test.user@example.com"),
            "log.record.uid": text("a2f6f49fa3950ddb32702e8e06b432e5"),
        },
    },
    {
        "timeUnixNano": "1709658507446000000",
        "severityNumber": 9,
        "eventName": "statsig.config_change",
        "body": text("heading_test updated"),
        "attributes": {
            **ALWAYS,
            "change_event.type": text("experiment_updated"),
            "change_event.happened_at": text("2024-03-05T17:08:27.446Z"),
            "change_event.title": text("heading_test updated"),
            "change_event.label.type": text("Experiment"),
            "change_event.label.name": text("heading_test"),
            "change_event.label.action": text("updated"),
            "change_event.label.description": text(
                "- Updated experiment settings\n    - Groups updated: control, test\n    - Parameters added: heading\n"
                "    - Parameters updated: directives"
            ),
            "feature_flag.key": text("heading_test"),
            "user.name": text("Test User"),
            "user.email": text("test.user@example.com"),
            "log.record.uid": text("91c4101745fc6e589f253c88cc11e8cf"),
        },
    },
    {
        "timeUnixNano": "1655232119734000000",
        "severityNumber": 9,
        "eventName": "statsig.config_change",
        "body": text("a_gate_name changed"),
        "attributes": {
            **ALWAYS,
            "change_event.type": text("gate_changed"),
            "change_event.happened_at": text("2022-06-14T18:41:59.734Z"),
            "change_event.title": text("a_gate_name changed"),
            "change_event.label.type": text("gate"),
            "change_event.label.name": text("a_gate_name"),
            "change_event.label.description": text("a_description"),
            "feature_flag.key": text("a_gate_name"),
            "deployment.environment.name": text("production"),
            "user.name": text("A User"),
            "user.email": text("a.user@example.com"),
            "log.record.uid": text("a0915f41a52901552525575eada4e0b1"),
            "statsig.environments": texts("production"),
        },
    },
    {
        "timeUnixNano": "1739400185198000000",
        "severityNumber": 9,
        "eventName": "statsig.config_change",
        "body": text("größe_布局 updated"),
        "attributes": {
            **ALWAYS,
            "change_event.type": text("dynamic_config_updated"),
            "change_event.happened_at": text("2025-02-12T22:43:05.198Z"),
            "change_event.title": text("größe_布局 updated"),
            "change_event.label.type": text("Dynamic Config"),
            "change_event.label.name": text("größe_布局"),
            "change_event.label.action": text("updated"),
            "change_event.label.description": text(
                "Updated Config Conditions\n    - Updated rule test pass percentage from 100 to 50 \U0001f680"
            ),
            "feature_flag.key": text("größe_布局"),
            "feature_flag.set.id": text("example-shop"),
            "user.name": text("Release Manager"),
            "user.email": text("release.manager@example.com"),
            "user.id": text("user-7"),
            "log.record.uid": text(UID_OF_EVERY_FIELD),
            "statsig.environments": texts("staging", "production"),
            "statsig.project.name": text("Example Shop"),
            "statsig.project.id": text("example-shop"),
            "statsig.tags": texts("core", '{"id":"t1","name":"Checkout"}'),
            "statsig.target_apps": texts("web", "ios"),
        },
    },
]
"""What the samples become, without the observed time: the record's table of the design, in OTLP/JSON's types."""


class StartCollector(Interface):
    """Starts a collector of one kind."""

    def __call__(
        self, *, protocol: Protocol, backend: str, folder: Path, ports: Ports | None = None
    ) -> AbstractContextManager[Collector]: ...


@pytest.fixture(scope="session")
def otelcol_binary() -> Path:
    """The OpenTelemetry Collector, built where that has not been done yet."""
    try:
        return otelcol.build()
    except otelcol.UnavailableError as error:
        pytest.skip(f"{UNAVAILABLE} an OpenTelemetry Collector: {' | '.join(str(error).splitlines())}")


OTHER_WAYS = (("grpc", "none"), ("http", "gzip"), ("http", "none"))
SLOW = (pytest.mark.slow, pytest.mark.timeout(otelcol.TEST_TIMEOUT))


@pytest.fixture(params=["rotel", pytest.param("otelcol", marks=SLOW)])
def start_collector(request: pytest.FixtureRequest) -> StartCollector:
    """Each kind of collector."""
    if request.param == "otelcol":
        return partial(otelcol.otelcol, request.getfixturevalue("otelcol_binary"))
    binary = find_rotel()
    if binary is None:
        pytest.skip(f"{UNAVAILABLE} rotel: it is not installed, or does not run here")
    return partial(rotel, binary)


@contextmanager
def sink(protocol: Protocol) -> Iterator[GrpcSink | HttpSink]:
    """A backend behind a collector."""
    with GrpcSink() if protocol == "grpc" else HttpSink() as backend:
        yield backend


def wait_for(backend: GrpcSink | HttpSink, *wanted: str) -> None:
    """Wait until records with these uids have come in, in however many requests."""
    while not set(wanted) <= set(uids(so_far := list(backend.requests))):
        backend.wait_for(len(so_far) + 1)


def flat(requests: Sequence[Received]) -> list[dict[str, Any]]:
    """Every log record with the resource and the scope that it came under, in OTLP/JSON's types.

    Nothing is left out, so whatever a collector adds shows up. An order of attributes means nothing in OTLP.
    """
    found: list[dict[str, Any]] = []
    for request in requests:
        for resource_logs in request.message.resource_logs:
            for scope_logs in resource_logs.scope_logs:
                for log_record in scope_logs.log_records:
                    record = json_format.MessageToDict(log_record, use_integers_for_enums=True)
                    resource = json_format.MessageToDict(resource_logs.resource)
                    found.append(
                        {
                            **record,
                            "attributes": _by_key(record["attributes"]),
                            "resource": {**resource, "attributes": _by_key(resource["attributes"])},
                            "resourceSchemaUrl": resource_logs.schema_url,
                            "scope": json_format.MessageToDict(scope_logs.scope),
                            "schemaUrl": scope_logs.schema_url,
                        }
                    )
    return found


def _by_key(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    keys = [attribute["key"] for attribute in attributes]
    assert len(set(keys)) == len(keys), f"a key is there twice: {keys}"
    return {attribute["key"]: attribute["value"] for attribute in attributes}


def uids(requests: Sequence[Received]) -> list[str]:
    return [record["attributes"]["log.record.uid"]["stringValue"] for record in flat(requests)]


@pytest.mark.parametrize(
    ("protocol", "compression"),
    [("grpc", "gzip"), *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHER_WAYS)],
)
def test_every_field_arrives_behind_the_collector(
    start_collector: StartCollector, protocol: Protocol, compression: str, tmp_path: Path
) -> None:
    """What is behind the collector is what the design says, and what the service sends with no collector between."""
    body = body_of(*samples())
    with (
        GrpcSink() as direct,
        sink(protocol) as backend,
        start_collector(protocol=protocol, backend=backend.address, folder=tmp_path) as collector,
    ):
        straight: dict[str, dict[str, object]] = {
            "otlp_grpc/direct": {"endpoint": direct.address, "tls": {"insecure": True}}
        }
        exporters = {**collector.exporter(protocol, compression=compression), **straight}
        with ServiceProcess(write_config(tmp_path, exporters, resource=RESOURCE_SETTINGS), env=SECRET_ENV) as service:
            begin = time.time_ns()
            answer = post(service.url, body, signed(body))
            end = time.time_ns()
        wait_for(backend, *uids(direct.requests))
        arrived, sent = flat(backend.requests), flat(direct.requests)

    assert (answer.status, answer.json) == (200, {"accepted": 4, "duplicates": 0, "ignored": 0, "invalid": 0})
    # LOUD: rotel and the OpenTelemetry Collector drop nothing and change nothing of what the service sends. Resource
    # attributes with their types, the scope's name and version, the schema URL, both times, the event name and arrays
    # all pass. A release of either that drops one of them fails here.
    assert arrived == sent
    for record, expected in zip(arrived, EXPECTED, strict=True):
        observed = record.pop("observedTimeUnixNano")
        assert begin <= int(observed) <= end
        assert record == {**expected, **CONTEXT}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_webhook_is_refused_while_the_collector_is_down_and_taken_once_it_is_up(
    start_collector: StartCollector, protocol: Protocol, tmp_path: Path
) -> None:
    """503 with Retry-After as long as nobody takes the records; then the same webhook gets its 200, and arrives."""
    with sink(protocol) as backend:

        def collector(ports: Ports | None = None) -> AbstractContextManager[Collector]:
            return start_collector(protocol=protocol, backend=backend.address, folder=tmp_path, ports=ports)

        with collector() as first:
            ports = first.ports
        config = write_config(tmp_path, first.exporter(protocol))
        with ServiceProcess(config, env=SECRET_ENV) as service:
            for number, (change, uid) in enumerate([(EVERY_FIELD, UID_OF_EVERY_FIELD), (ONE_MORE, UID_OF_ONE_MORE)]):
                body = body_of(change)
                headers = signed(body)
                refused = post(service.url, body, headers)
                assert refused.status == 503
                assert int(refused.headers["retry-after"]) > 0
                assert len(set(uids(backend.requests))) == number  # nothing of this webhook

                with collector(ports):
                    assert deliver(service.url, body, headers).json["accepted"] == 1
                    wait_for(backend, uid)


def deliver(url: str, body: bytes, headers: Mapping[str, str]) -> Response:
    """Send the same webhook until it is taken; asked to wait, wait less, since the outage is over."""
    deadline = time.monotonic() + 60
    while (answer := post(url, body, headers)).status == 503:
        assert time.monotonic() < deadline, "the service does not find the collector again"
        time.sleep(0.1)
    assert answer.status == 200
    return answer


def test_the_configuration_of_the_example_is_what_it_says() -> None:
    """The service of examples/collector listens on 8080, and sends to the usual port of a Collector on this machine."""
    configuration = check(read(EXAMPLE / "statsig-otel.yaml", environ=SECRET_ENV), COMPONENTS)
    receiver, exporter = configuration.receivers["statsig"], exporter_settings(configuration)["otlp_grpc"]
    assert isinstance(receiver, StatsigReceiverSettings)
    assert isinstance(exporter, OtlpGrpcSettings)
    assert receiver.address == ("localhost", 8080)
    assert [reveal(secret) for secret in receiver.signing_secrets] == [SECRET]
    assert exporter.target == "dns:///localhost:4317"
    assert not exporter.uses_tls
    pipeline = configuration.pipelines["logs"]
    assert (pipeline.receivers, pipeline.exporters) == (("statsig",), ("otlp_grpc",))


@pytest.mark.slow
@pytest.mark.timeout(otelcol.TEST_TIMEOUT)
def test_a_sidecar_keeps_nothing_so_that_nothing_is_lost_with_it(otelcol_binary: Path, tmp_path: Path) -> None:
    """While the backend is away the record is in the service's queue, and the Collector is killed. Then it arrives."""
    at = {"OTLP_GRPC_ENDPOINT": f"127.0.0.1:{free_port()}", "OTLP_HTTP_ENDPOINT": "127.0.0.1:0"}
    with HttpSink() as backend:
        backend.answer = HttpAnswer(status=503)
        variables = {**at, "BACKEND_ENDPOINT": backend.url}
        endpoints = {
            "WEBHOOK_ENDPOINT": "127.0.0.1:0",
            "COLLECTOR_ENDPOINT": at["OTLP_GRPC_ENDPOINT"],
            "QUEUE_DIRECTORY": str(tmp_path / "queue"),
        }
        with ServiceProcess(EXAMPLE / "statsig-otel.yaml", env={**SECRET_ENV, **endpoints}) as service:
            with otelcol.start(otelcol_binary, EXAMPLE / "sidecar.yaml", **variables) as collector:
                body = body_of(EVERY_FIELD)
                assert post(service.url, body, signed(body)).status == 200
                wait_until(lambda: backend.requests, "an attempt that the backend refuses", within=60)
                collector.process.kill()
            attempts = len(backend.requests)
            backend.answer = HttpAnswer()
            with otelcol.start(otelcol_binary, EXAMPLE / "sidecar.yaml", **variables):
                wait_until(lambda: len(backend.requests) > attempts, "the record", within=90)
        assert UID_OF_EVERY_FIELD.encode() in backend.requests[-1].payload


@pytest.mark.slow
@pytest.mark.timeout(otelcol.TEST_TIMEOUT)
def test_the_example_shows_a_change_behind_the_collector(otelcol_binary: Path, tmp_path: Path) -> None:
    """Both files of examples/collector as they stand, but for the ports: the Collector prints the change event."""
    free = {"OTLP_GRPC_ENDPOINT": "127.0.0.1:0", "OTLP_HTTP_ENDPOINT": "127.0.0.1:0"}
    with otelcol.start(otelcol_binary, EXAMPLE / "collector.yaml", **free) as collector:
        endpoints = {
            "WEBHOOK_ENDPOINT": "127.0.0.1:0",
            "COLLECTOR_ENDPOINT": f"127.0.0.1:{collector.ports.grpc}",
            "QUEUE_DIRECTORY": str(tmp_path / "queue"),
        }
        with ServiceProcess(EXAMPLE / "statsig-otel.yaml", env={**SECRET_ENV, **endpoints}) as service:
            body = body_of(EVERY_FIELD)
            assert post(service.url, body, signed(body)).status == 200
        for shown in ("EventName: statsig.config_change", "Body: Str(größe_布局 updated)", UID_OF_EVERY_FIELD):
            collector.process.wait_for(re.escape(shown))
