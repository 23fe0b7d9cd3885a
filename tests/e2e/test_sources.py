"""Several sources on one server: a receiver for each, with its own path, secrets, filter, mapping and resource."""

import json
import time
from pathlib import Path
from urllib.parse import urljoin

import urllib3

from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.webhook.signature import sign
from tests.e2e.service_process import ServiceProcess
from tests.e2e.statsig_client import change, grpc_exporter, http, uids
from tests.peers.otlp_servers import GrpcSink, Received
from tests.waiting import wait_until


def send(url: str, secret: str, *changes: dict[str, object]) -> urllib3.BaseHTTPResponse:
    body = json.dumps({"data": changes}).encode()
    headers = sign(body, secret=secret, timestamp_ms=time.time_ns() // 1_000_000)
    return http.request("POST", url, body=body, headers=headers)


def write_sources(folder: Path, sink: GrpcSink) -> Path:
    """Two projects: of the first what concerns production goes out, of the second all but gates."""
    web = {
        "endpoint": "127.0.0.1:0",
        "path": "/web",
        "signing_secrets": ["webhook-web"],
        "filter": {"include": {"environments": ["production"]}},
        "mapping": {"body": "{name} of the web"},
        "resource": {"team": "web"},
    }
    mobile = {
        "endpoint": "127.0.0.1:0",
        "path": "/mobile/changes",
        "signing_secrets": ["webhook-mobile"],
        "filter": {"exclude": {"types": ["gate"]}},
        "mapping": {"event_name": "mobile.{change_event.type}"},
        "resource": {"team": "mobile"},
    }
    config = {
        "receivers": {"statsig/web": web, "statsig/mobile": mobile},
        "exporters": {"otlp_grpc": grpc_exporter(sink)},
        "extensions": {"file_storage": {"directory": str(folder / "queue"), "min_free_bytes": 0}},
        "service": {
            "extensions": ["file_storage"],
            "pipelines": {"logs": {"receivers": ["statsig/web", "statsig/mobile"], "exporters": ["otlp_grpc"]}},
        },
    }
    path = folder / "statsig-otel.yaml"
    path.write_text(json.dumps(config))
    return path


def exported(requests: list[Received]) -> list[tuple[str, str, str]]:
    """Of each record the team of its resource, its event name and its body; sorted."""
    return sorted(
        (team, record.event_name, record.body.string_value)
        for request in list(requests)
        for resource_logs in request.message.resource_logs
        for team in [one.value.string_value for one in resource_logs.resource.attributes if one.key == "team"]
        for scope_logs in resource_logs.scope_logs
        for record in scope_logs.log_records
    )


def test_two_sources_on_one_server_keep_to_their_own_settings(tmp_path: Path) -> None:
    """A change that both get is a change of each, with the same uid; a secret opens its own path only."""
    gate = change(1, environments="production")
    draft = change(2, environments="development", type="Experiment")
    both = change(3, environments="production", type="Experiment")
    receipt = {"accepted": 2, "duplicates": 0, "ignored": 1, "invalid": 0}
    with GrpcSink() as sink, ServiceProcess(write_sources(tmp_path, sink)) as service:
        web, mobile = service.url, urljoin(service.url, "/mobile/changes")
        assert web.endswith("/web")
        assert send(web, "webhook-mobile", gate).status == 401
        assert send(mobile, "webhook-web", gate).status == 401
        assert send(urljoin(web, "/mobile"), "webhook-mobile", gate).status == 404
        assert send(web, "webhook-web", gate, draft, both).json() == receipt
        assert send(mobile, "webhook-mobile", gate, draft, both).json() == receipt
        assert send(mobile, "webhook-mobile", both).json() == {**receipt, "accepted": 0, "duplicates": 1, "ignored": 0}
        wait_until(lambda: len(uids(sink.requests)) == 4, "all are delivered")
    assert exported(sink.requests) == [
        ("mobile", "mobile.experiment_updated", "gate_2 updated"),
        ("mobile", "mobile.experiment_updated", "gate_3 updated"),
        ("web", "statsig.config_change", "gate_1 of the web"),
        ("web", "statsig.config_change", "gate_3 of the web"),
    ]
    assert sorted(uids(sink.requests)) == sorted([uid(gate), uid(draft), uid(both), uid(both)])
