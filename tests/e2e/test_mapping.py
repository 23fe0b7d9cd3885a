"""Filter and mapping in a running service: what it answers, what goes out, and a reload."""

from pathlib import Path

from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.record.services import ImpactedService, service_uid
from tests.e2e.processes import write_config
from tests.e2e.service_process import ServiceProcess, run_to_end
from tests.e2e.statsig_client import ENV, change, grpc_exporter, post, uids
from tests.peers.otlp_servers import GrpcSink
from tests.waiting import wait_until


def test_filter_and_mapping_count_from_the_next_request_after_a_reload(tmp_path: Path) -> None:
    """What the filter drops is ignored, and is no duplicate later; a duplicate is one behind every mapping.

    What is accepted are changes: one that concerns two services is one, and comes as two records.
    """
    kept, dropped = change(1, environments="production"), change(2, environments="development")
    with GrpcSink() as sink:
        keys = {
            "filter": {"include": {"environments": ["production"]}},
            "mapping": {"body": "{name} in {environments}"},
        }
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True, **keys)
        with ServiceProcess(config, env=ENV) as service:
            receipt = {"accepted": 1, "duplicates": 0, "ignored": 1, "invalid": 0}
            assert post(service.url, kept, dropped).json() == receipt
            assert post(service.url, dropped).json() == {**receipt, "accepted": 0}
            keys = {
                "mapping": {"body": "{name} of {service.name}"},
                "impacted_services": {"rules": {"name": ["a", "b"]}},
            }
            write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True, **keys)
            done = run_to_end("reload", "--directory", str(tmp_path / "queue"), env=ENV)
            assert done.returncode == 0, done.stderr
            assert post(service.url, kept, dropped).json() == {**receipt, "duplicates": 1, "ignored": 0}
            wait_until(lambda: len(uids(sink.requests)) == 3, "all are delivered")
        of_services = [service_uid(uid(dropped), ImpactedService(name)) for name in ("a", "b")]
        assert uids(sink.requests) == [uid(kept), *of_services]
        bodies = [record.body.string_value for request in sink.requests for record in request.records]
        assert bodies == ["gate_1 in production", "gate_2 of a", "gate_2 of b"]
