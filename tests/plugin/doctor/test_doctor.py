"""`statsig-otel doctor`: each check against something real, and the command with all of them."""

import fcntl
import json
import os
import re
import resource
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import statsig_otel
from statsig_otel.exporters.queue import schema
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.doctor import storage, system
from statsig_otel.plugin.doctor.finding import Finding
from statsig_otel.plugin.doctor.storage import owner
from tests.e2e.processes import write_config
from tests.e2e.service_process import ServiceProcess
from tests.e2e.statsig_client import ENV, change, post
from tests.exporters.queue.helpers import copy_of, put, running
from tests.looped import looped
from tests.peers.otlp_servers import HttpSink
from tests.peers.ports import free_port

VERSIONS = [(3, 6, 23), (3, 7, 0), (3, 40, 1), (3, 44, 5), (3, 44, 6), (3, 45, 0), (3, 50, 6), (3, 50, 8), (3, 51, 2),
            (3, 51, 3), (3, 53, 0)]  # fmt: skip
FAULTY = [(3, 7, 0), (3, 40, 1), (3, 44, 5), (3, 45, 0), (3, 50, 6), (3, 51, 2)]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("OTEL_", "STATSIG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


@looped("version", VERSIONS)
def test_a_version_of_sqlite_with_the_wal_reset_bug_is_told(version: tuple[int, ...]) -> None:
    found = system.sqlite(version)
    assert (found.status == "warning") == (version in FAULTY)
    assert ("WAL-reset bug" in found.detail) == (version in FAULTY)


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /mnt/a\040share rw - nfs4 server:/a rw
24 22 0:6 / /mnt rw shared:2 master:1 - tmpfs tmpfs rw
25 24 0:7 / /mnt rw - xfs /dev/sdb1 rw
""".lstrip()


@pytest.mark.parametrize(
    ("place", "found"),
    [("/var", "ext4"), ("/", "ext4"), ("/mnt/a share/x", "nfs4"), ("/mnt/a sharex", "xfs"), ("/mnt", "xfs")],
)
def test_the_file_system_is_that_of_the_nearest_mount(place: str, found: str) -> None:
    assert storage.file_system(Path(place), MOUNTS) == found


@pytest.mark.parametrize(
    ("kind", "status"),
    [("ext4", "ok"), ("nfs4", "warning"), ("cifs", "warning"), ("tmpfs", "warning"), ("overlay", "warning")],
)
def test_a_place_that_no_queue_should_be_in_is_told(
    kind: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 8:1 / / rw - {kind} x rw\n")
    monkeypatch.setattr(storage, "_MOUNTS", mounts)
    assert storage.check_file_system(tmp_path).status == status
    mounts.unlink()
    assert storage.check_file_system(tmp_path).status == "unknown"


@pytest.mark.parametrize(("mode", "status"), [(0o700, "ok"), (0o775, "ok"), (0o757, "warning"), (0o1777, "warning")])
def test_a_directory_that_every_user_can_write_is_told(mode: int, status: str, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    found = next(storage.queue(tmp_path, 0))
    assert (found.check, found.status) == ("queue directory", status)
    assert (f"chmod o-w {tmp_path}" in (found.hint or "")) == (status == "warning")


@pytest.mark.parametrize(
    ("kept", "offsets", "status", "detail"),
    [
        (True, [("a", 1000.0)], "ok", "synchronised"),
        (None, [], "unknown", "can't be determined"),
        (None, [("a", 0.4)], "ok", "agrees with the server of a"),
        (None, [("a", 400.0), ("b", -6.0)], "warning", "6 s ahead of the server of b"),
        (None, [("a", 400.0)], "failed", "400 s behind the server of a"),
    ],
)
def test_the_clock(kept: bool | None, offsets: list[tuple[str, float]], status: str, detail: str) -> None:
    found = system.clock(kept, offsets)
    assert (found.status, detail in found.detail) == (status, True)
    assert (found.hint is None) == (status == "ok")


def test_the_system_never_says_that_the_clock_is_wrong() -> None:
    assert system.clock_is_kept() in (True, None)


def test_fewer_open_files_than_connections_are_told() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert system.open_files(1).status == "ok"
    if hard != resource.RLIM_INFINITY:
        assert system.open_files(hard).status == "warning"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A queue that a service has left in order."""
    directory = QueueDirectory(tmp_path / "queue")
    directory.acquire()
    schema.connect(directory.database).close()
    directory.mark(clean=True)
    directory.release()
    return directory.path


def queue(directory: Path, min_free_bytes: int = 0) -> dict[str, Finding]:
    return {found.check: found for found in storage.queue(directory, min_free_bytes)}


def test_a_queue_in_order(directory: Path) -> None:
    found = queue(directory)
    assert found["queue state"] == Finding("queue state", "ok", "no service runs; closed in order")
    assert found["queue directory"].status == found["disk space"].status == "ok"
    assert "set aside" not in found


@pytest.mark.skipif("os.geteuid() != 0", reason="only root can become somebody else")
def test_a_queue_of_another_user(directory: Path) -> None:
    directory.parent.chmod(0o700)
    code = (
        "import os, sys; from pathlib import Path; from statsig_otel.plugin.doctor.storage import queue\n"
        "os.setuid(65534)\n"
        "for found in queue(Path(sys.argv[1]), 0): print(found.check, found.status)"
    )
    command = [sys.executable, "-c", code, str(directory)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.stdout.splitlines()[:2] == ["queue directory failed", "disk space unknown"]


def test_a_directory_that_can_not_be_one_is_said_and_ends_no_check(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for directory in (tmp_path / ("a" * 300) / "queue", tmp_path / "a" / "queue"):
        found = queue(directory)
        states = [found[check].status for check in ("queue directory", "disk space", "queue state")]
        assert states == ["failed", "unknown", "unknown"], directory


def test_a_disk_that_is_too_full(directory: Path) -> None:
    assert queue(directory, 1 << 60)["disk space"].status == "failed"


def test_a_queue_that_was_not_closed_in_order(directory: Path) -> None:
    Path(f"{directory}/queue.db-wal").touch()
    (directory / "state.json").write_text('{"clean": false}')
    assert queue(directory)["queue state"].status == "warning"
    Path(f"{directory}/queue.db-wal").unlink()
    found = queue(directory)["queue state"]
    assert (found.status, "queue.db-wal) is gone" in found.detail) == ("failed", True)


def test_a_queue_whose_log_is_damaged(tmp_path: Path) -> None:
    with running(tmp_path / "running") as taking:
        for number in range(10):
            put(taking, number)
        crashed = copy_of(tmp_path / "running", tmp_path / "crashed")
    log = crashed / "queue.db-wal"
    content = log.read_bytes()
    assert queue(crashed)["queue state"].status == "warning"
    log.write_bytes(content.replace(b"3.0---", b"3.0!--"))
    found = queue(crashed)["queue state"]
    assert (found.status, "its log (queue.db-wal) is damaged" in found.detail) == ("failed", True)
    log.write_bytes(content[: len(content) // 2])
    found = queue(crashed)["queue state"]
    assert (found.status, "was cut short" in found.detail) == ("failed", True)


def test_a_queue_whose_database_is_gone(directory: Path) -> None:
    (directory / "queue.db").write_bytes(b"")
    found = queue(directory)["queue state"]
    assert (found.status, "its database (queue.db) is gone or empty" in found.detail) == ("failed", True)
    Path(f"{directory}/queue.db-wal").write_bytes(b"a frame")
    found = queue(directory)["queue state"]
    assert (found.status, "and its log is not" in found.detail) == ("failed", True)
    assert "carries over what its log contains" in (found.hint or "")


def test_what_was_set_aside(directory: Path) -> None:
    names = [f"queue.db.{kind}-20260101T000000Z-1" for kind in ("corrupt", "salvaged", "unreadable")]
    for name in names:
        (directory / name).touch()
        (directory / f"{name}-wal").touch()
    found = [one for one in storage.queue(directory, 0) if one.check == "set aside"]
    assert [one.detail for one in found] == names
    assert {one.status for one in found} == {"warning"}


def test_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    found = queue(tmp_path / "a" / "b")
    assert "does not exist yet, and can be created" in found["queue directory"].detail
    assert found["queue state"].detail == "no queue yet"
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert queue(tmp_path / "file")["queue directory"].status == "failed"


def test_a_directory_where_something_else_is(directory: Path) -> None:
    (directory / "queue.db").unlink()
    (directory / "queue.db").mkdir()
    found = queue(directory)["queue directory"]
    assert (found.status, found.detail.endswith("is a directory, where the queue has a file")) == ("failed", True)


def test_an_owner_that_does_not_answer_is_told_and_keeps_its_lock(directory: Path) -> None:
    """It starts, or it stops."""
    held = QueueDirectory(directory)
    held.acquire()
    try:
        assert owner(directory) == f"process {os.getpid()}, starting or stopping"
    finally:
        held.release()
    assert owner(directory) is None


def call(*args: str, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["doctor", *args], env=env)


def checks(*args: str, env: Mapping[str, str] | None = None, exit_code: int = 0) -> dict[str, dict[str, Any]]:
    """By JSON; of several with one name the last."""
    result = call(*args, "--json", env=env)
    assert result.exit_code == exit_code, result.output
    found = json.loads(result.output)
    assert (found["failed"] > 0) == (exit_code == 1)
    return {one["check"]: one for one in found["checks"]}


@pytest.fixture
def sink() -> Iterator[HttpSink]:
    with HttpSink() as sink:
        yield sink


def test_all_is_well(tmp_path: Path, sink: HttpSink) -> None:
    config = write_config(tmp_path, {"otlp_http": {"endpoint": sink.url}}, queued=True)
    result = call("--config", str(config), env=ENV)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert lines[0] == ["CHECK", "STATUS", "RESULT"]
    assert ["statsig-otel", "ok", statsig_otel.__version__] in lines
    assert ["configuration", "ok", "valid"] in lines
    *_, last = result.output.splitlines()
    numbers = [int(word) for word in re.findall(r"\d+", last)]
    assert last == "{} checks: {} ok, {} failed, {} with a warning, {} without an answer".format(*numbers)
    assert numbers[0] == sum(numbers[1:])
    assert numbers[2] == 0
    assert not (tmp_path / "queue").exists()


def test_a_configuration_that_can_not_be_read() -> None:
    found = checks("--config", "no.yaml", exit_code=1)
    assert found["configuration"]["detail"] == "the file can't be read: No such file or directory (no.yaml)"
    assert found["clock"]["status"] in ("ok", "unknown")


def test_a_configuration_that_is_wrong_is_looked_at_as_far_as_it_is_right(
    tmp_path: Path, directory: Path, sink: HttpSink
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "receivers: {statsig: {endpoint: 'localhost:0', signing_secret: [webhook-s3cr3t]}}\n"
        f"exporters: {{otlp_http: {{endpoint: '{sink.url}'}}, file: {{path: /no/such/directory/x}}, debug: {{x: 1}}}}\n"
        f"extensions: {{file_storage: {{directory: {directory}, min_free_bytes: 0}}}}\n"
        "service: {extensions: [file_storage], pipelines: {logs: {receivers: [statsig], exporters: [otlp_http]}}}\n"
    )
    result = call("--config", str(config))
    assert result.exit_code == 1
    assert "webhook-s3cr3t" not in result.output
    found = checks("--config", str(config), exit_code=1)
    assert found["configuration"]["status"] == "failed"
    assert "receivers::statsig::signing_secret: unknown key" in result.output
    assert "hint: did you mean signing_secrets?" in result.output
    assert "there is no directory /no/such/directory" in found["this machine"]["detail"]
    assert found["queue state"]["detail"] == "no service runs; closed in order"
    assert found["exporters::otlp_http"]["status"] == "ok"


def test_without_a_configuration_the_environment_is_looked_at(sink: HttpSink) -> None:
    variables = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_ENDPOINT": sink.url}
    assert checks(env=variables)["exporters::otlp_http"]["status"] == "ok"
    found = checks(env={**variables, "OTEL_SDK_DISABLED": "true"}, exit_code=1)
    assert found["environment"]["status"] == "failed"


def test_variables_beside_a_configuration_that_does_not_name_them(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"debug": {}})
    found = checks("--config", str(config), env={**ENV, "OTEL_EXPORTER_OTLP_HEADERS": "api-key=s3cr3t"})["environment"]
    assert found["status"] == "warning"
    assert found["detail"].endswith(": OTEL_EXPORTER_OTLP_HEADERS")


def test_a_port_that_another_process_has(tmp_path: Path) -> None:
    """Where there is no queue, nothing tells whether that is the service itself."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        queued = write_config(tmp_path, {"debug": {}}, queued=True, endpoint=endpoint)
        found = checks("--config", str(queued), env=ENV, exit_code=1)["this machine"]
        assert (found["status"], "the port is in use" in found["detail"]) == ("failed", True)
        direct = write_config(tmp_path, {"debug": {}}, endpoint=endpoint)
        found = checks("--config", str(direct), env=ENV)["this machine"]
        assert found["status"] == "warning"
        assert "If it is the service that listens there, nothing is wrong" in found["hint"]
        free = write_config(tmp_path, {"debug": {}}, queued=True)
        found = checks("--config", str(free), "--listen", endpoint, env=ENV, exit_code=1)["this machine"]
        assert "the port is in use" in found["detail"]


def test_a_file_that_another_process_writes_to(tmp_path: Path) -> None:
    path = tmp_path / "changes.jsonl"
    config = write_config(tmp_path, {"file": {"path": str(path)}}, queued=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = checks("--config", str(config), env=ENV, exit_code=1)["this machine"]
        assert (found["status"], "another process writes to it" in found["detail"]) == ("failed", True)
    checks("--config", str(config), env=ENV)


def test_a_running_service_is_not_disturbed(tmp_path: Path, sink: HttpSink) -> None:
    port = free_port()
    config = write_config(tmp_path, {"otlp_http": {"endpoint": sink.url}}, queued=True, endpoint=f"127.0.0.1:{port}")
    with ServiceProcess(config, env=ENV) as service:
        assert post(service.url, change(1)).status == 200
        found = checks("--config", str(config), env=ENV)
        assert found["queue state"]["detail"] == f"in use by process {service.process.pid}"
        assert "this machine" not in found  # its port was not tried
        assert post(service.url, change(2)).status == 200
    with closing(sqlite3.connect(tmp_path / "queue" / "queue.db")) as connection:
        assert connection.execute("SELECT count(*) FROM seen").fetchone() == (2,)


def test_nothing_in_the_queue_s_directory_is_changed(tmp_path: Path, directory: Path) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in directory.iterdir()}

    config = write_config(tmp_path, {"debug": {}}, queued=True)
    before = state()
    assert call("--config", str(config), env=ENV).exit_code == 0
    assert state() == before
