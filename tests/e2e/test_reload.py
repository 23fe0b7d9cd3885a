"""A running service reads its configuration again: secrets, mistakes, signals, and what needs a restart."""

import signal
import threading
import time
from pathlib import Path

import pytest

from statsig_otel.plugin.record.record import uid
from tests.e2e.processes import write_config
from tests.e2e.reloading import OTHER_SECRET, Senders, reload, status_with
from tests.e2e.service_process import ServiceProcess, run_to_end
from tests.e2e.statsig_client import ENV, SECRET, change, grpc_exporter, post, uids
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink
from tests.waiting import wait_until


@pytest.mark.parametrize("how", [pytest.param("file", marks=pytest.mark.slow), "reload"])
def test_a_secret_is_rotated_under_load_and_no_valid_request_is_refused(tmp_path: Path, how: str) -> None:
    """First both are taken, then everybody signs with the new one, then the old one is taken no more."""
    current, following = tmp_path / "current", tmp_path / "following"
    current.write_text(SECRET + "\n")
    following.write_text(SECRET + "\n")

    def secrets(*texts: str) -> list[str]:
        return [f"${{file:{current}}}", f"${{file:{following}}}"] if how == "file" else list(texts)

    with GrpcSink() as sink:
        exporters = {"otlp_grpc": grpc_exporter(sink)}
        config = write_config(tmp_path, exporters, queued=True, signing_secrets=secrets(SECRET))
        with ServiceProcess(config, env=ENV) as service:
            senders = Senders(service.url)
            with senders.sending():
                senders.wait_for_more()
                assert status_with(service.url, OTHER_SECRET) == 401
                if how == "file":
                    following.write_text(OTHER_SECRET + "\n")
                else:
                    write_config(tmp_path, exporters, queued=True, signing_secrets=secrets(SECRET, OTHER_SECRET))
                    assert "receivers::statsig: has changed" in reload(service, tmp_path)
                wait_until(lambda: status_with(service.url, OTHER_SECRET) == 200, "the new secret is taken")
                senders.secret = OTHER_SECRET
                senders.wait_for_more()
                if how == "file":
                    current.write_text(OTHER_SECRET + "\n")
                else:
                    write_config(tmp_path, exporters, queued=True, signing_secrets=secrets(OTHER_SECRET))
                    reload(service, tmp_path)
                wait_until(lambda: status_with(service.url, SECRET) == 401, "the old secret is taken no more")
                senders.wait_for_more()
            assert set(senders.statuses) == {200}
            wait_until(lambda: set(senders.acknowledged) <= set(uids(sink.requests)), "all is delivered")
    log = "\n".join([*service.log, *service.output])
    assert SECRET not in log
    assert OTHER_SECRET not in log


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "\n"])
def test_a_secret_s_file_that_is_gone_or_empty_changes_nothing(tmp_path: Path, content: str | None) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    config = write_config(
        tmp_path, {"file": {"path": str(tmp_path / "out.jsonl")}}, signing_secrets=[f"${{file:{secret}}}"]
    )
    with ServiceProcess(config, env=ENV) as service:
        if content is None:
            secret.unlink()
        else:
            secret.write_text(content)
        wait_until(
            lambda: any("the secrets of statsig stay as they were" in line for line in service.log), "it is said"
        )
        assert status_with(service.url, SECRET) == 200
        secret.write_text(OTHER_SECRET)
        wait_until(lambda: status_with(service.url, OTHER_SECRET) == 200, "the new one is taken")
        assert status_with(service.url, SECRET) == 401
    assert sum("the secrets of statsig stay as they were" in line for line in service.log) == 1


def test_a_reload_with_an_error_changes_nothing_and_says_why(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        good = {"otlp_grpc": grpc_exporter(sink)}
        config = write_config(tmp_path, good, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink, endpont="x:1")}, queued=True, signing_secrets=[""])
            done = run_to_end("reload", "--directory", str(tmp_path / "queue"), env=ENV)
            assert done.returncode == 1
            assert "exporters::otlp_grpc::endpont: unknown key" in done.stderr
            assert "receivers::statsig::signing_secrets[0]: is empty" in done.stderr
            service.process.send_signal(signal.SIGHUP)
            wait_until(lambda: sum("nothing has changed" in line for line in service.log) == 2, "the log says it too")
            assert post(service.url, change(1)).status == 200
            wait_until(lambda: uids(sink.requests) == [uid(change(1))], "it is delivered as before")


@pytest.mark.parametrize(
    ("receiver", "said"),
    [
        ({"endpoint": "127.0.0.1:1"}, "receivers::statsig::endpoint"),
        pytest.param({"path": "/other"}, "receivers::statsig::path", marks=pytest.mark.slow),
        pytest.param({"max_connections": 7}, "receivers::statsig::max_connections", marks=pytest.mark.slow),
    ],
)
def test_what_needs_a_restart_is_said_and_nothing_else_is_applied(
    tmp_path: Path, receiver: dict[str, object], said: str
) -> None:
    with GrpcSink() as sink, GrpcSink() as other:
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            write_config(tmp_path, {"otlp_grpc": grpc_exporter(other)}, queued=True, **receiver)
            done = run_to_end("reload", "--directory", str(tmp_path / "queue"), env=ENV)
            assert done.returncode == 1
            assert f"only a restart can apply this: {said}" in done.stderr
            assert post(service.url, change(1)).status == 200
            wait_until(lambda: uids(sink.requests) == [uid(change(1))], "by the exporter as it was")


def test_without_a_service_a_reload_says_so(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV):
            pass
    done = run_to_end("reload", "--directory", str(tmp_path / "queue"), env=ENV)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: no service is running on {tmp_path / 'queue'}\nhint: ")


@pytest.mark.slow
def test_a_reload_reaches_the_service_from_an_environment_that_lacks_its_variables(tmp_path: Path) -> None:
    """As from a shell on the machine: only the service knows its secrets. What is wrong, the service says."""
    with GrpcSink() as sink:
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink, timeout="7s")}, queued=True)
            done = run_to_end("reload", "--config", str(config))
            assert (done.stdout, done.returncode) == ("exporters::otlp_grpc: has changed\n", 0), done.stderr
            write_config(tmp_path, {"otlp_grpc": grpc_exporter(sink, timeout="7")}, queued=True)
            done = run_to_end("reload", "--config", str(config))
            assert done.returncode == 1
            assert "nothing has changed\nexporters::otlp_grpc::timeout: must be a duration" in done.stderr
            assert "STATSIG_SIGNING_SECRET" not in done.stderr
            assert post(service.url, change(1)).status == 200


@pytest.mark.slow
@pytest.mark.parametrize("queued", [True, False])
def test_a_stop_waits_for_no_reload_whose_exporter_hangs(tmp_path: Path, *, queued: bool) -> None:
    with GrpcSink() as hanging, GrpcSink() as other:
        hanging.answer = GrpcAnswer(hang=True)
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(hanging, timeout="60s")}, queued=queued)
        with ServiceProcess(config, env=ENV) as service:
            answers: list[int] = []
            posting = threading.Thread(target=lambda: answers.append(post(service.url, change(1)).status))
            posting.start()
            hanging.wait_for(1)
            write_config(tmp_path, {"otlp_grpc": grpc_exporter(other)}, queued=queued)
            service.process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            assert service.wait() == 0
            assert time.monotonic() - began < 20, "what a supervisor grants"
            posting.join()
            assert answers == [200 if queued else 503]


@pytest.mark.slow
def test_signals_that_come_during_a_reload_are_one_reload_more(tmp_path: Path) -> None:
    with GrpcSink() as hanging, GrpcSink() as other:
        hanging.answer = GrpcAnswer(hang=True)
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(hanging, timeout="3s")}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            assert post(service.url, change(1)).status == 200
            hanging.wait_for(1)
            write_config(tmp_path, {"otlp_grpc": grpc_exporter(other)}, queued=True)
            for _ in range(40):  # the first of them waits for the exporter that hangs
                service.process.send_signal(signal.SIGHUP)
                time.sleep(0.01)
            other.wait_for(1)
            wait_until(lambda: any("Reload: nothing" in line for line in service.log), "the last one is done, too")
        reloads = [line.partition("Reload: ")[2] for line in service.log if "Reload: " in line]
    assert reloads == ["exporters::otlp_grpc: has changed", "nothing has changed"]


@pytest.mark.slow
def test_a_signal_to_reload_during_the_stop_changes_nothing(tmp_path: Path) -> None:
    with GrpcSink() as hanging:
        hanging.answer = GrpcAnswer(hang=True)
        config = write_config(tmp_path, {"otlp_grpc": grpc_exporter(hanging)}, queued=True)
        with ServiceProcess(config, env=ENV) as service:
            assert post(service.url, change(1)).status == 200
            hanging.wait_for(1)
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: any("SIGTERM" in line for line in service.log), "it stops")
            for _ in range(20):
                if service.process.poll() is None:
                    service.process.send_signal(signal.SIGHUP)
                time.sleep(0.1)
            assert service.wait() == 0
        assert any("Stopped" in line for line in service.log)
