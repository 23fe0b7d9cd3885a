"""A reload exchanges exporters under load: no request is refused, and no change is lost."""

import fcntl
import json
import re
import signal
import time
from functools import partial
from pathlib import Path

import grpc
import pytest
import urllib3

from statsig_otel.plugin.record.record import uid
from tests.e2e.processes import signed, write_config
from tests.e2e.reloading import OTHER_SECRET, Senders, http, is_taken, reload
from tests.e2e.service_process import ServiceProcess, run_to_end
from tests.e2e.statsig_client import ENV, SECRET, change, grpc_exporter, post, uids, waiting
from tests.peers.certs import Authority, ServerTls
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink
from tests.waiting import wait_until


def test_an_exporter_is_replaced_under_load_and_nothing_is_lost_or_refused(tmp_path: Path) -> None:
    with GrpcSink() as before, GrpcSink() as after:
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(before)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            senders = Senders(service.url)
            with senders.sending():
                senders.wait_for_more()
                write_config(tmp_path, {"otlp_grpc": grpc_exporter(after)}, queued=True)
                service.process.send_signal(signal.SIGHUP)
                wait_until(
                    lambda: any("exporters::otlp_grpc: has changed" in line for line in service.log), "it is said"
                )
                senders.wait_for_more()
            assert set(senders.statuses) == {200}
            wait_until(
                lambda: set(senders.acknowledged) <= {*uids(before.requests), *uids(after.requests)}, "all is delivered"
            )
        delivered = [*uids(before.requests), *uids(after.requests)]
        assert len(delivered) == len(set(delivered)), "once"
        assert len(uids(after.requests)) >= 20


@pytest.mark.slow
def test_a_file_is_never_written_by_two_exporters(tmp_path: Path) -> None:
    path = tmp_path / "changes.jsonl"
    config = write_config(tmp_path, {"file": {"path": str(path)}}, queued=True)
    with ServiceProcess(config, env=ENV) as service:
        senders = Senders(service.url)
        with senders.sending():
            for number in range(1, 6):
                senders.wait_for_more()
                keys = {"path": str(path), "retry_on_failure": {"multiplier": 1 + number}}
                write_config(tmp_path, {"file": keys}, queued=True)
                service.process.send_signal(signal.SIGHUP)
            senders.wait_for_more()
        assert set(senders.statuses) == {200}

        def written() -> list[str]:
            return re.findall(r'"log.record.uid", *"value": *{"stringValue": *"([0-9a-f]{32})"', path.read_text())

        wait_until(lambda: set(senders.acknowledged) <= set(written()), "all is written")
    assert len(written()) == len(set(written())), "once"
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.slow
def test_a_blocked_exporter_is_tried_at_once_after_a_reload(tmp_path: Path) -> None:
    """The key is mended in the file; the backend that was not touched is asked again as well."""
    with GrpcSink() as mended, GrpcSink() as same:
        for sink in (mended, same):
            sink.answer = GrpcAnswer(grpc.StatusCode.UNAUTHENTICATED, "wrong key")
        exporters = {"otlp_grpc/mended": grpc_exporter(mended), "otlp_grpc/same": grpc_exporter(same)}
        config = write_config(tmp_path, exporters, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            assert post(service.url, change(1)).status == 200
            wait_until(lambda: sum("is blocked" in line for line in service.log) == 2, "both are blocked")
            for sink in (mended, same):
                sink.requests.clear()
                sink.answer = GrpcAnswer()
            exporters["otlp_grpc/mended"] = grpc_exporter(mended, headers={"authorization": "right"})
            write_config(tmp_path, exporters, queued=True)
            assert reload(service, tmp_path) == "exporters::otlp_grpc/mended: has changed\n"
            wait_until(lambda: len(uids(mended.requests)) == len(uids(same.requests)) == 1, "both have it")
            assert ("authorization", "right") in [(key, value) for key, value in mended.requests[0].headers.items()]


def test_exporters_come_and_go_with_a_reload(tmp_path: Path) -> None:
    """A new one begins at the next change, one that is gone keeps its place, and is found there when it comes back."""
    with GrpcSink() as first, GrpcSink() as second:
        one = {"otlp_grpc/first": grpc_exporter(first)}
        both = {**one, "otlp_grpc/second": grpc_exporter(second)}
        config = write_config(tmp_path, one, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            assert post(service.url, change(1)).status == 200
            write_config(tmp_path, both, queued=True)
            assert "exporters::otlp_grpc/second: is new" in reload(service, tmp_path)
            assert post(service.url, change(2)).status == 200
            wait_until(lambda: len(uids(first.requests)) == 2, "the first has both")
            wait_until(lambda: len(uids(second.requests)) == 1, "the second the later")
            second.answer = GrpcAnswer(grpc.StatusCode.UNAVAILABLE, "down")
            assert post(service.url, change(3)).status == 200
            write_config(tmp_path, one, queued=True)
            assert "exporters::otlp_grpc/second: is gone" in reload(service, tmp_path)
            assert post(service.url, change(4)).status == 200
            wait_until(lambda: len(uids(first.requests)) == 4, "the first goes on")
            left = {"otlp_grpc/first": 0, "otlp_grpc/second": 1}
            wait_until(lambda: waiting(tmp_path) == left, "and what is for the second stays")
            second.requests.clear()
            second.answer = GrpcAnswer()
            write_config(tmp_path, both, queued=True)
            reload(service, tmp_path)
            wait_until(lambda: uids(second.requests) == [uid(change(3))], "what waited for it")


@pytest.mark.slow
def test_many_reloads_in_a_hurry_lose_nothing(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            senders = Senders(service.url)
            with senders.sending():
                for number in range(10):
                    write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink, timeout=f"{number + 1}s")}, queued=True)
                    service.process.send_signal(signal.SIGHUP)
                    time.sleep(0.05)
                senders.wait_for_more()
            assert set(senders.statuses) == {200}
            wait_until(lambda: set(senders.acknowledged) <= set(uids(sink.requests)), "all is delivered")


@pytest.mark.slow
@pytest.mark.parametrize("queued", [True, False])
def test_certificates_that_were_renewed_count_without_a_reload(tmp_path: Path, *, queued: bool) -> None:
    """Under the same names: those of the server from the next connection on, those of an exporter at once."""
    first, second = Authority(), Authority()
    cert_file, key_file = first.issue("127.0.0.1").write(tmp_path, "server")
    ca_file = first.write(tmp_path)

    def backend(authority: Authority, port: int = 0) -> GrpcSink:
        return GrpcSink(port=port, tls=ServerTls(authority.issue("127.0.0.1")))

    def trusting(authority: Authority) -> urllib3.PoolManager:
        return urllib3.PoolManager(retries=False, timeout=20, ca_certs=authority.write(tmp_path, "trusted"))

    def send(authority: Authority, url: str, number: int) -> int:
        body = json.dumps({"data": [change(number)]}).encode()
        return trusting(authority).request("POST", url, body=body, headers=signed(body, secret=SECRET)).status

    with backend(first) as sink:
        exporter = grpc_exporter(sink, tls={"ca_file": ca_file})
        config = write_config(
            tmp_path, {"otlp_grpc": exporter}, queued=queued, tls={"cert_file": cert_file, "key_file": key_file}
        )
        with ServiceProcess(config, env=ENV) as service:
            assert send(first, service.url, 1) == 200
            sink.wait_for(1)
            sink.close()
            with backend(second, sink.port) as renewed:
                second.issue("127.0.0.1").write(tmp_path, "server")
                second.write(tmp_path)
                said = "its files have changed, and are used from the next connection on"
                for line in (f"receivers::statsig::tls: {said}", f"exporters::otlp_grpc::tls: {said}"):
                    wait_until(partial(service.has_logged, line), "it is said")
                with pytest.raises(urllib3.exceptions.SSLError):
                    send(first, service.url, 2)
                assert send(second, service.url, 2) == 200
                # The first one too where its answer was lost with the old backend.
                wait_until(lambda: uid(change(2)) in uids(renewed.requests), "it is delivered")
                Path(key_file).write_text("no key")
                refused = "receivers::statsig: its certificates were not renewed"
                wait_until(lambda: any(refused in line for line in service.log), "it is refused")
                assert send(second, service.url, 3) == 200
                service.process.send_signal(signal.SIGHUP)
                refused = "receivers::statsig::tls: "
                wait_until(
                    lambda: any(line.startswith(f"  {refused}") for line in service.log), "with its place at a reload"
                )


@pytest.mark.slow
def test_under_load_each_change_reaches_the_exporters_of_one_reload(tmp_path: Path) -> None:
    """Of before or of after: a batch is never for one exporter of before and another one of after."""
    with GrpcSink() as unqueued, GrpcSink() as queued, GrpcSink() as other:
        sinks = {"otlp_grpc/unqueued": unqueued, "otlp_grpc/queued": queued, "otlp_grpc/other": other}
        exporters: dict[str, dict[str, object]] = {
            name: grpc_exporter(sink, sending_queue={"enabled": sink is not unqueued}) for name, sink in sinks.items()
        }
        config = write_config(tmp_path, exporters, queued=True)

        def lead_to(*names: str) -> None:
            """The receiver's changes go to these; the other exporters belong to one that gets none."""
            written = json.loads(config.read_text())
            idle = {"endpoint": "127.0.0.1:0", "path": "/idle", "signing_secrets": []}
            written["receivers"]["statsig/idle"] = idle
            written["service"]["pipelines"] = {
                "logs": {"receivers": ["statsig"], "exporters": list(names)},
                "logs/idle": {"receivers": ["statsig/idle"], "exporters": list(exporters)},
            }
            config.write_text(json.dumps(written))

        routes = ["otlp_grpc/unqueued", "otlp_grpc/queued"], ["otlp_grpc/other"]
        lead_to(*routes[0])
        with ServiceProcess(config, env=ENV) as service:
            senders = Senders(service.url)
            with senders.sending(8):
                for number in range(1, 9):
                    senders.wait_for_more()
                    lead_to(*routes[number % 2])
                    service.process.send_signal(signal.SIGHUP)
                    wait_until(partial(service.has_logged, "pipelines: have changed", times=number), "it is applied")
                senders.wait_for_more()
            assert set(senders.statuses) == {200}

            def delivered() -> bool:
                first, second, third = (set(uids(sink.requests)) for sink in sinks.values())
                return first == second and set(senders.acknowledged) <= first | third

            wait_until(delivered, "all is delivered, to all of one configuration")
            assert not set(uids(unqueued.requests)) & set(uids(other.requests))
            assert uids(other.requests)


@pytest.mark.parametrize("queued", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_file_of_a_header_counts_after_a_reload(tmp_path: Path, *, queued: bool) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    with GrpcSink() as sink:
        exporter = grpc_exporter(sink, headers={"api-key": f"${{file:{token}}}"})
        config = write_config(tmp_path, {"otlp_grpc": exporter}, queued=queued)
        with ServiceProcess(config, env=ENV) as service:
            assert post(service.url, change(1)).status == 200
            sink.wait_for(1)
            token.write_text("new")
            service.process.send_signal(signal.SIGHUP)
            wait_until(lambda: any("exporters::otlp_grpc: has changed" in line for line in service.log), "it is said")
            assert post(service.url, change(2)).status == 200
            sink.wait_for(2)
        assert [received.headers["api-key"] for received in sink.requests] == ["old", "new"]


def test_an_exporter_without_a_queue_needs_a_restart_for_other_keys_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "changes.jsonl"
    config = write_config(tmp_path, {"file": {"path": str(path)}})
    with ServiceProcess(config, env=ENV) as service:
        for keys, said in (
            ({"path": str(tmp_path / "other.jsonl")}, "exporters::file::path: has changed, and the exporter has no"),
            ({"path": str(path), "sending_queue": {"enabled": True}}, "exporters::file::sending_queue::enabled"),
        ):
            write_config(tmp_path, {"file": keys})
            service.process.send_signal(signal.SIGHUP)
            refused = f"only a restart can apply this: {said}"
            wait_until(partial(service.has_logged, refused), "it is said")
        assert post(service.url, change(1)).status == 200
        assert len(path.read_text().splitlines()) == 1


@pytest.mark.slow
def test_if_one_exporter_can_not_start_the_rest_of_a_reload_is_applied(tmp_path: Path) -> None:
    secret, locked = tmp_path / "secret", tmp_path / "locked.jsonl"
    secret.write_text(SECRET)
    with GrpcSink() as sink, locked.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        exporters: dict[str, dict[str, object]] = {"otlp_grpc": grpc_exporter(sink)}
        config = write_config(tmp_path, exporters, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            exporters["file"] = {"path": str(locked)}
            write_config(tmp_path, exporters, queued=True, signing_secrets=[f"${{file:{secret}}}"])
            done = run_to_end("reload", "--directory", str(tmp_path / "queue"), env=ENV)
            assert (done.returncode, done.stdout) == (
                3,
                "exporters::file: is new\nservice::pipelines: have changed\n",
            )
            assert re.search("^Error: exporters::file: can't be started: .*locked.jsonl is locked", done.stderr)
            for text in (OTHER_SECRET, SECRET, OTHER_SECRET):
                secret.write_text(text)
                wait_until(partial(is_taken, service.url, text), "it is taken")
            fcntl.flock(held, fcntl.LOCK_UN)
            assert reload(service, tmp_path).endswith("exporters::file: is started\n")
            body = json.dumps({"data": [change(1)]}).encode()
            answer = http.request("POST", service.url, body=body, headers=signed(body, secret=OTHER_SECRET))
            assert answer.status == 200
            wait_until(lambda: len(locked.read_text().splitlines()) == 1, "it is delivered there, too")
    assert not any("stay as they were" in line for line in service.log)
