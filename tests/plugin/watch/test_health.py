"""What health checks are told of a service, in each of its conditions."""

import json
import re
import socket
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from statsig_otel.config import ConfigError
from statsig_otel.plugin import Destination, SendingQueueSettings, Service
from statsig_otel.plugin.watch import health, recent
from statsig_otel.plugin.watch.health import Condition, Health
from tests.peers.certs import Authority
from tests.plugin.http_client import Address, Response, connect, exchange, request
from tests.plugin.service.test_waiting_for_directory import owned
from tests.plugin.services import SECRET, Keeper, address_of, post_change, webhook
from tests.plugin.services import service as service_in_code
from tests.waiting import wait_until

NOWHERE = {"endpoint": "http://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at a service is a new one, so that no test has to wait."""
    monkeypatch.setattr(recent, "KEPT_FOR", 0.0)


def from_file(
    tmp_path: Path,
    *,
    receiver: dict[str, Any] | None = None,
    queue: dict[str, Any] | None = None,
    storage: dict[str, Any] | None = None,
    checks: dict[str, Any] | None = None,
    **options: Any,
) -> Service:
    """A service with health checks on a free port, whose backend is away."""
    configuration = {
        "receivers": {"statsig": {"endpoint": "127.0.0.1:0", "signing_secrets": [SECRET], **(receiver or {})}},
        "exporters": {"otlp_http": {**NOWHERE, "sending_queue": queue or {}}},
        "extensions": {
            "file_storage": {"directory": str(tmp_path / "queue"), "min_free_bytes": 0, **(storage or {})},
            "health_check": {"endpoint": "127.0.0.1:0", **(checks or {})},
        },
        "service": {
            "extensions": ["file_storage", "health_check"],
            "pipelines": {"logs": {"receivers": ["statsig"], "exporters": ["otlp_http"]}},
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(configuration))
    return Service.from_file(path, environ={}, **options)


def checks_of(service: Service) -> Address:
    found = service._assembly.health
    assert found is not None
    return found.address


def get(address: Address, path: str, *, method: str = "GET") -> Response:
    return exchange(address, request(method=method, path=path), head=method == "HEAD")


def becomes(address: Address, status: int, *reasons: str) -> dict[str, Any]:
    """Wait until /readyz answers so."""
    found: list[dict[str, Any]] = []

    def is_so() -> bool:
        answer = get(address, "/readyz")
        found[:] = [answer.json]
        return answer.status == status and list(found[0]["reasons"]) == list(reasons)

    wait_until(is_so, f"{status} {reasons}")
    return found[0]


def test_a_service_whose_backend_is_away_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says which backend it is, and what waits for it."""
    with from_file(tmp_path) as service:
        address = checks_of(service)
        assert becomes(address, 200)["status"] == "ready"
        assert post_change(service, "a").status == 200
        exporter = {"state": "retrying", "waiting": 1}
        wait_until(lambda: get(address, "/readyz").json["exporters"] == {"otlp_http": exporter})
        assert get(address, "/readyz").status == 200
        assert (get(address, "/livez").status, get(address, "/livez").json) == (200, {"status": "alive", "reasons": {}})
        collectors = get(address, "/")
        assert (collectors.status, collectors.json["status"]) == (200, "Server available")
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+Z", str(collectors.json["upSince"]))
        with monkeypatch.context() as put_back:
            put_back.setattr(time, "time", lambda: 0.0)
            assert not str(get(address, "/").json["uptime"]).startswith("-")
        head = get(address, "/readyz", method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert get(address, "/other").status == 404
        assert get(address, "/readyz", method="POST").status == 405


def test_a_full_queue_is_not_ready(tmp_path: Path) -> None:
    with from_file(tmp_path, queue={"queue_size": 1}, receiver={"health_path": "/healthz"}) as service:
        address = checks_of(service)
        assert get(address_of(service), "/healthz").status == 200
        assert post_change(service, "a").status == 200
        found = becomes(address, 503, "queue_full")
        assert found["status"] == "not ready"
        assert found["reasons"]["queue_full"] == "1 record or more wait for otlp_http: that is its queue_size"
        assert post_change(service, "b").status == 503
        wait_until(lambda: get(address_of(service), "/healthz").status == 503)
        answer = get(address_of(service), "/healthz")
        assert answer.json == {"status": "not ready"}, "the public port gives no reason"
        assert get(address_of(service), "/healthz", method="HEAD").body == b""
        assert get(address_of(service), "/healthz", method="POST").status == 404
        assert get(address, "/livez").status == 200
        assert get(address, "/").status == 200


def test_a_full_disk_is_not_ready(tmp_path: Path) -> None:
    with from_file(tmp_path, storage={"min_free_bytes": "1000TiB"}) as service:
        found = becomes(checks_of(service), 503, "disk_full")
        assert "less than min_free_bytes" in found["reasons"]["disk_full"]


def test_a_disk_that_is_gone_is_not_ready(tmp_path: Path) -> None:
    with from_file(tmp_path) as service:
        address = checks_of(service)
        becomes(address, 200)
        queue, elsewhere = tmp_path / "queue", tmp_path / "elsewhere"
        queue.rename(elsewhere)
        queue.symlink_to(queue)  # else the service may soon have made another directory
        becomes(address, 503, "storage_failed")
        queue.unlink()
        elsewhere.rename(queue)
        becomes(address, 200)


def test_an_expired_certificate_is_not_ready(tmp_path: Path) -> None:
    """Statsig would refuse it. A renewed one is used, and then the service is ready."""
    authority = Authority()
    cert_file, key_file = authority.issue("127.0.0.1", expired=True).write(tmp_path)
    receiver = {"tls": {"cert_file": cert_file, "key_file": key_file}}
    with from_file(tmp_path, receiver=receiver) as service:
        found = becomes(checks_of(service), 503, "certificate_expired")
        assert "has expired" in found["reasons"]["certificate_expired"]
        authority.issue("127.0.0.1").write(tmp_path)
        service.reload()
        becomes(checks_of(service), 200)


def test_a_service_that_stops_is_not_ready_until_it_has_stopped(tmp_path: Path) -> None:
    """Health checks are answered while it finishes what is in flight."""
    with from_file(tmp_path, receiver={"read_timeout": "1m"}) as service:
        address = checks_of(service)
        becomes(address, 200)
        with connect(address_of(service)) as connection:
            whole = webhook("a")
            connection.sendall(whole[:-1])
            wait_until(lambda: service._assembly.inbound.intakes["statsig"].bodies.size)
            stopping = threading.Thread(target=service.shutdown)
            stopping.start()
            becomes(address, 503, "shutting_down")
            assert get(address, "/").json == {
                "status": "Server not available", "upSince": "0001-01-01T00:00:00Z", "uptime": ""
            }  # fmt: skip
            connection.sendall(whole[-1:])
            stopping.join(30)
        with pytest.raises(OSError, match="refused"):
            get(address, "/readyz")


def test_a_service_that_waits_for_its_directory_leaves_the_port_to_the_one_before(tmp_path: Path) -> None:
    """As a worker of gunicorn does that takes the place of another one."""
    with owned(tmp_path / "queue") as given_up, socket.create_server(("127.0.0.1", 0)) as of_the_other:
        port = of_the_other.getsockname()[1]
        checks = {"endpoint": f"127.0.0.1:{port}"}
        service = from_file(tmp_path, wait_for_directory=True, listen=False, checks=checks)
        service.start()
        of_the_other.close()
        given_up.set()
        wait_until(lambda: service._assembly.is_open)
        becomes(("127.0.0.1", port), 200)
        service.shutdown()


def test_a_waiting_service_whose_port_stays_in_use_gives_the_directory_back(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = from_file(tmp_path, wait_for_directory=True, listen=False, checks={"endpoint": f"127.0.0.1:{port}"})
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            service.start()
        with service_in_code(tmp_path / "queue", {"mine": Keeper()}, listen=False):
            pass


def test_a_service_that_has_not_started_is_not_ready(tmp_path: Path) -> None:
    service = from_file(tmp_path)
    assert list(service._assembly.condition().reasons) == ["not_running"]
    service.shutdown()
    assert list(service._assembly.condition().reasons) == ["shutting_down"]


def test_a_loop_that_hangs_is_not_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PATIENCE", 0.1)
    go_on = threading.Event()
    with from_file(tmp_path) as service:
        wait_until(lambda: service._assembly.inbound.server_thread._loop is not None)
        address, loop = checks_of(service), service._assembly.inbound.server_thread._loop
        assert loop is not None
        loop.call_soon_threadsafe(go_on.wait, 60)
        wait_until(lambda: get(address, "/livez").status == 503)
        assert list(get(address, "/livez").json["reasons"]) == ["hangs"]  # type: ignore[call-overload] # a mapping
        go_on.set()
        wait_until(lambda: get(address, "/livez").status == 200)


def test_the_collector_s_path_and_bodies_can_be_chosen(tmp_path: Path) -> None:
    checks = {"path": "/health", "response_body": {"healthy": "I'm good", "unhealthy": "I'm bad"}}
    with from_file(tmp_path, checks=checks) as service:
        answer = get(checks_of(service), "/health")
        assert (answer.status, answer.body, answer.headers["content-type"]) == (
            200,
            b"I'm good",
            "text/plain; charset=utf-8",
        )
        assert get(checks_of(service), "/").status == 404
        becomes(checks_of(service), 200)


def test_a_start_that_fails_leaves_the_port_free_and_may_be_tried_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = from_file(tmp_path, checks={"endpoint": f"127.0.0.1:{port}"})
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            service.start()
    service.start()
    becomes(checks_of(service), 200)
    service.shutdown()


def test_a_synchronous_exporter_has_a_state_too(tmp_path: Path) -> None:
    direct = Destination(Keeper(), sending_queue=SendingQueueSettings(enabled=False))
    with service_in_code(tmp_path, {"direct": direct, "queued": Keeper()}) as service:
        condition = service._assembly.condition()
        found = [(one.name, one.state, one.waiting) for one in condition.exporters]
        assert (condition.reasons, found) == ({}, [("direct", "idle", None), ("queued", "idle", 0)])


def test_health_checks_can_not_look_at_the_disk_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a second is enough."""
    monkeypatch.undo()
    now, looks = 100.0, 0

    class Service:
        is_open = True

        def condition(self) -> Condition:
            nonlocal looks
            looks += 1
            return Condition({})

        def ping(self) -> "Future[None] | None":
            return None

    found = Health(Service(), clock=lambda: now)
    for passed, wanted in ((0, 1), (0.4, 1), (0.2, 2), (0, 2)):
        now += passed
        found.condition()
        assert looks == wanted


def test_a_path_for_health_is_not_that_of_a_webhook(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="receivers::statsig::health_path: is the path of receivers::statsig"):
        from_file(tmp_path, receiver={"path": "/a", "health_path": "/a"})


def test_a_changed_health_check_needs_a_restart(tmp_path: Path) -> None:
    with from_file(tmp_path) as service:
        path = tmp_path / "config.yaml"
        path.write_text(path.read_text().replace('"health_check": {', '"health_check": {"path": "/x", '))
        with pytest.raises(Exception, match="extensions::health_check"):
            service.reload()
