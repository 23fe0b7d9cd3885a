"""What a running service applies of another configuration, and what needs a restart."""

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.config import ConfigError
from statsig_otel.config.configuration import Configuration
from statsig_otel.config.grammar import check
from statsig_otel.config.source import parse
from statsig_otel.exporters import Batch, Change, Receipt
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.plugin import RestartNeededError
from statsig_otel.plugin.control.socket import call
from statsig_otel.plugin.server.tls import ServerTlsSettings
from statsig_otel.plugin.service.assembly import Assembly
from statsig_otel.plugin.service.outbound import Applied
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.reading import receiver_settings
from statsig_otel.plugin.watch.diagnosis import troubles
from statsig_otel.plugin.watch.status import status
from tests.exporters.delivery.helpers import encoded
from tests.metrics import collected
from tests.peers.certs import Authority, ServerTls
from tests.peers.otlp_servers import HttpSink
from tests.plugin.fresh import fresh_process
from tests.waiting import wait_until

LIMIT = 30.0

Configured = Callable[..., Configuration]

NAMES = ("statsig", "statsig/eu")


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    def make(
        exporters: dict[str, Any], pipelines: dict[str, Any] | None = None, receiver: dict[str, Any] | None = None
    ) -> Configuration:
        """Exporters by id; a word in the place of keys is that of a file's path, without a queue."""
        keys = {
            name: {"path": str(tmp_path / one), "sending_queue": {"enabled": False}} if isinstance(one, str) else one
            for name, one in exporters.items()
        }
        receivers = {name: {"endpoint": "127.0.0.1:0", "signing_secrets": [], "path": f"/{name}"} for name in NAMES}
        receivers["statsig"] |= receiver or {}
        values: dict[str, Any] = {
            "receivers": receivers,
            "exporters": keys,
            "extensions": {"file_storage": {"directory": str(tmp_path / "queue"), "min_free_bytes": 0}},
            "service": {
                "extensions": ["file_storage"],
                "pipelines": pipelines or {"logs": {"receivers": list(NAMES), "exporters": list(keys)}},
            },
        }
        document = parse(json.dumps(values).encode(), file="config.yaml", directory=tmp_path, environ={})
        return check(document, COMPONENTS)

    return make


@contextmanager
def running(configuration: Configuration, tmp_path: Path, *, listen: bool = False) -> Iterator[Assembly]:
    service = Assembly(configuration, directory=tmp_path / "queue", resource={}, listen=listen)
    service.open()
    try:
        yield service
    finally:
        service.begin_to_close(LIMIT, LIMIT)
        service.close()


def send(service: Assembly, name: str, receiver: str = "statsig") -> Receipt:
    uid = name.encode().hex().ljust(32, "0")
    return service.consumer.consume(Batch(receiver, (Change(uid, (encoded(name),)),))).result(LIMIT)


def lines(tmp_path: Path, name: str) -> int:
    return len((tmp_path / name).read_text().splitlines())


QUEUED = {"verbosity": "basic"}
UNQUEUED = {"verbosity": "basic", "sending_queue": {"enabled": False}}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            {"file": "a"},
            {"file": "b"},
            ["exporters::file::path: has changed, and the exporter has no sending queue"],
        ),
        (
            {"debug": UNQUEUED},
            {"debug": {**UNQUEUED, "verbosity": "normal", "retry_on_failure": {"enabled": False}}},
            [
                "exporters::debug::verbosity: has changed, and the exporter has no sending queue",
                "exporters::debug::retry_on_failure: has changed, and the exporter has no sending queue",
            ],
        ),
        (
            {"debug": QUEUED},
            {"debug": QUEUED, "file": "a"},
            ["exporters::file: is new, and has no sending queue"],
        ),
        (
            {"debug": QUEUED, "file": "a"},
            {"debug": QUEUED},
            ["exporters::file: is gone, and had no sending queue"],
        ),
        ({"debug": QUEUED}, {"debug": UNQUEUED}, ["exporters::debug::sending_queue::enabled: has changed"]),
        (
            {"debug": UNQUEUED, "debug/b": QUEUED},
            {"debug": QUEUED, "debug/b": QUEUED},
            ["exporters::debug::sending_queue::enabled: has changed"],
        ),
        (
            {"debug": UNQUEUED},
            {"debug": UNQUEUED, "debug/b": QUEUED},
            ["exporters::debug/b::sending_queue: there has been no queue so far"],
        ),
    ],
)
def test_what_is_about_an_exporter_without_a_queue_needs_a_restart(
    configured: Configured, tmp_path: Path, before: dict[str, Any], after: dict[str, Any], said: list[str]
) -> None:
    first = configured(before)
    with running(first, tmp_path) as service:
        with pytest.raises(RestartNeededError) as caught:
            service.reconfigure(configured(after))
        assert str(caught.value) == f"only a restart can apply this: {'; '.join(said)}"
        assert service.configuration is first
        assert send(service, "a") == Receipt(1)
        assert service.reconfigure(configured(before)) == Applied([], [])


def test_a_refused_change_leaves_the_exporters_that_are_queued_as_they_were(
    configured: Configured, tmp_path: Path
) -> None:
    with running(configured({"debug": QUEUED, "file": "a"}), tmp_path) as service:
        with pytest.raises(RestartNeededError, match="exporters::file::path"):
            service.reconfigure(configured({"debug": {"verbosity": "normal"}, "file": "b"}))
        assert send(service, "a") == Receipt(1)
        assert lines(tmp_path, "a") == 1
        assert not (tmp_path / "b").exists()


def states(service: Assembly) -> list[tuple[str, str, int | None]]:
    """As a health check tells them."""
    return [(one.name, one.state, one.waiting) for one in service.condition().exporters]


def test_records_of_an_exporter_that_left_are_not_forgotten(configured: Configured, tmp_path: Path) -> None:
    """Metrics, health checks, the live page and `top` have their number and age."""
    record = ExportLogsServiceRequest()
    record.resource_logs.add().scope_logs.add().log_records.add(observed_time_unix_nano=time.time_ns() - 60 * 10**9)
    away = {"otlp_http": {"endpoint": "http://127.0.0.1:1"}, "debug": QUEUED}
    debug, gone = ("debug", "idle", 0), ("otlp_http", "not configured", 1)
    with fresh_process(), running(configured(away), tmp_path) as service, collected() as metrics:
        batch = Batch("statsig", (Change("0" * 32, (record.SerializeToString(),)),))
        assert service.consumer.consume(batch).result(LIMIT) == Receipt(1)
        wait_until(lambda: debug in states(service))
        service.reconfigure(configured({"debug": QUEUED}))
        assert states(service) == [debug, gone]
        shown = status(service.facts())
        assert "otlp_http is not configured any more: 1 record waits." in shown["words"]
        one = shown["exporters"]["otlp_http"]
        assert (one["state"], one["waiting"], one["last_error"]) == ("not configured", 1, "")
        assert one["oldest_age_seconds"] >= 60
        (trouble, *_) = troubles(service.facts())  # the receivers have no secrets
        assert "`statsig-otel queue remove otlp_http`" in trouble.check
        for metric, least in (("otelcol_exporter_queue_size", 1), ("statsig_otel_queue_oldest_age", 60)):
            (number,) = metrics.numbers(metric, exporter="otlp_http").values()
            assert number >= least, metric
        call(tmp_path / "queue" / CONTROL, "queue remove", exporter="otlp_http", yes=True)
        assert states(service) == [debug]
        assert not metrics.numbers("otelcol_exporter_queue_size", exporter="otlp_http")


def test_pipelines_lead_to_exporters_without_a_queue_from_the_next_batch_on(
    configured: Configured, tmp_path: Path
) -> None:
    def both(*eu: str) -> Configuration:
        pipelines = {
            "logs": {"receivers": ["statsig"], "exporters": ["file/a", "debug"]},
            "logs/eu": {"receivers": ["statsig/eu"], "exporters": list(eu)},
        }
        return configured({"file/a": "a", "file/b": "b", "debug": QUEUED}, pipelines)

    with running(both("file/b"), tmp_path) as service:
        send(service, "1", "statsig/eu")
        assert (lines(tmp_path, "a"), lines(tmp_path, "b")) == (0, 1)
        assert service.reconfigure(both("file/b", "file/a")).changes == ["service::pipelines: have changed"]
        send(service, "2", "statsig/eu")
        assert (lines(tmp_path, "a"), lines(tmp_path, "b")) == (1, 2)
        service.reconfigure(both("file/b", "debug"))
        send(service, "3", "statsig/eu")
        send(service, "4")
        assert (lines(tmp_path, "a"), lines(tmp_path, "b")) == (2, 3)


@pytest.mark.parametrize("queued", [True, False])
def test_renewed_headers_and_certificates_are_taken_over(
    configured: Configured, tmp_path: Path, *, queued: bool
) -> None:
    authority = Authority()
    with HttpSink(tls=ServerTls(authority.issue("127.0.0.1"))) as sink:

        def exporting(key: str, **more: Any) -> Configuration:
            keys = {
                "endpoint": sink.url,
                "tls": {"ca_file": authority.write(tmp_path)},
                "headers": {"api-key": key},
                "sending_queue": {"enabled": queued},
                **more,
            }
            return configured({"otlp_http": keys})

        with running(exporting("old"), tmp_path) as service:
            send(service, "a")
            sink.wait_for(1)
            assert service.reconfigure(exporting("new")).changes == ["exporters::otlp_http: has changed"]
            send(service, "b")
            sink.wait_for(2)
            assert [received.headers["api-key"] for received in sink.requests] == ["old", "new"]
            other = Path(Authority().write(tmp_path, "other"))
            (tmp_path / "ca.pem").write_bytes((tmp_path / "ca.pem").read_bytes() + other.read_bytes())
            same = service.configuration
            assert service.reconfigure(same) == Applied(["exporters::otlp_http::tls: its files have changed"], [])
            (tmp_path / "ca.pem").write_text("no certificate")
            applied = service.reconfigure(same)
            assert applied.changes == []
            (failure,) = applied.failures
            assert failure.startswith(
                "exporters::otlp_http: its certificates and secrets were not renewed: tls::ca_file"
            )
            assert send(service, "c") == Receipt(1)
            sink.wait_for(3)
            if not queued:
                with pytest.raises(RestartNeededError, match="exporters::otlp_http::headers: "):
                    service.reconfigure(exporting("new", headers={"api-key": "new", "more": "x"}))


def test_exporters_that_can_not_be_started_are_blocked_each_with_its_reason(
    configured: Configured, tmp_path: Path
) -> None:
    """Each is named, `queue` shows why, a resume starts one, and a reload starts the others and names them."""

    def to(folder: str) -> Configuration:
        return configured({f"file/{name}": {"path": str(tmp_path / f"{folder}{name}")} for name in "abc"})

    def state(name: str) -> dict[str, Any]:
        answer: dict[str, Any] = call(tmp_path / "queue" / CONTROL, "queue")["exporters"][f"file/{name}"]
        return answer

    with ExitStack() as locks, running(to("old-"), tmp_path) as service:
        for name in "abc":
            fcntl.flock(locks.enter_context((tmp_path / f"new-{name}").open("w")), fcntl.LOCK_EX)
        names = ["file/a", "file/b", "file/c"]
        for changes in ([f"exporters::{name}: has changed" for name in names], []):
            applied = service.reconfigure(to("new-"))
            assert applied.changes == changes
            assert len(applied.failures) == 3
            for name, failure in zip("abc", applied.failures, strict=True):
                reason = f"{tmp_path}/new-{name} is locked"
                assert failure.startswith(f"exporters::file/{name}: can't be started: {reason}")
                assert (state(name)["state"], state(name)["attempts"]) == ("blocked", 1)
                assert state(name)["last_error"].startswith(f"can't be started: {reason}")
        assert send(service, "1") == Receipt(1)
        locks.close()
        assert call(tmp_path / "queue" / CONTROL, "queue resume", exporter="file/a") == {"state": "blocked"}
        wait_until(lambda: lines(tmp_path, "new-a") == 1)
        wait_until(lambda: state("a") == {"state": "idle", "attempts": 0, "last_error": ""})
        assert (lines(tmp_path, "new-b"), state("b")["state"]) == (0, "blocked")
        started = ["exporters::file/b: is started", "exporters::file/c: is started"]
        assert service.reconfigure(to("new-")) == Applied(started, [])
        wait_until(lambda: lines(tmp_path, "new-b") == lines(tmp_path, "new-c") == 1)
        assert service.reconfigure(to("new-")) == Applied([], [])


def test_certificates_that_can_not_be_used_keep_none_from_being_renewed(configured: Configured, tmp_path: Path) -> None:
    """One server of two, and one exporter of two, have new ones; the others go on, and are named."""
    places = {name: tmp_path / name.replace("/", "-") for name in (*NAMES, "otlp_grpc/a", "otlp_grpc/b")}
    authority = Authority()
    for place in places.values():
        place.mkdir()
        authority.issue("127.0.0.1").write(place, "server")
        authority.write(place)
    exporters = {
        name: {"endpoint": "127.0.0.1:1", "tls": {"ca_file": str(places[name] / "ca.pem")}}
        for name in ("otlp_grpc/a", "otlp_grpc/b")
    }
    before = configured(exporters)
    pairs = {name: (places[name] / "server.pem", places[name] / "server.key") for name in NAMES}
    receivers = {
        name: one.model_copy(update={"tls": ServerTlsSettings(cert_file=pairs[name][0], key_file=pairs[name][1])})
        for name, one in receiver_settings(before).items()
    }
    receivers["statsig/eu"] = receivers["statsig/eu"].model_copy(update={"endpoint": "localhost:0"})
    with running(replace(before, receivers=dict(receivers)), tmp_path, listen=True) as service:
        for name in ("statsig/eu", "otlp_grpc/b"):
            Authority().issue("127.0.0.1").write(places[name], "server")
            Authority().write(places[name])
        pairs["statsig"][1].write_text("no key")
        (places["otlp_grpc/a"] / "ca.pem").write_text("no certificate")
        for apply in (service.renew_certificates, lambda: service.reconfigure(service.configuration)):
            applied = apply()
            first, second = applied.failures
            assert first.startswith("receivers::statsig: its certificates were not renewed: tls: ")
            assert second.startswith(
                "exporters::otlp_grpc/a: its certificates and secrets were not renewed: tls::ca_file"
            )
            if apply == service.renew_certificates:
                assert applied.changes == [
                    "receivers::statsig/eu::tls: its files have changed",
                    "exporters::otlp_grpc/b::tls: its files have changed",
                ]
            else:
                assert applied.changes == []


def test_an_audit_log_comes_and_goes_with_a_restart_and_its_keys_change_at_once(
    configured: Configured, tmp_path: Path
) -> None:
    """Otherwise webhooks that were read before it came, and stored after, would count as missed."""
    log = {"audit_log": {"api_key": "console-x", "interval": "0s"}}  # it asks nobody
    longer = {"audit_log": {"api_key": "console-y", "keep": "800h", "interval": "0s"}}
    without, with_log = configured({"debug": QUEUED}), configured({"debug": QUEUED}, receiver=log)
    for first, second in ((without, with_log), (with_log, without)):
        with running(first, tmp_path) as service:
            with pytest.raises(RestartNeededError) as caught:
                service.reconfigure(second)
            assert str(caught.value) == "only a restart can apply this: receivers::statsig::audit_log"
    with running(with_log, tmp_path) as service:
        applied = service.reconfigure(configured({"debug": QUEUED}, receiver=longer))
        assert applied.changes == ["receivers::statsig: has changed"]


def test_an_audit_log_needs_a_queue(configured: Configured, tmp_path: Path) -> None:
    log = {"audit_log": {"api_key": "console-x", "interval": "0s"}}  # it asks nobody
    pipelines = {
        "logs": {"receivers": ["statsig"], "exporters": ["debug"]},
        "logs/eu": {"receivers": ["statsig/eu"], "exporters": ["debug/b"]},
    }
    wrong = configured({"debug": UNQUEUED, "debug/b": QUEUED}, pipelines, log)
    with pytest.raises(
        ConfigError, match=r"receivers::statsig::audit_log: needs the queue.*\n.*sending_queue::enabled"
    ):
        Assembly(wrong, directory=tmp_path / "queue", resource={})
