"""`statsig-otel validate`: all that is wrong with a configuration or with the machine, and where it is written."""

import contextlib
import fcntl
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from statsig_otel.exporters.paths import WRITABLE_HINT
from statsig_otel.exporters.queue import schema as schema_of_queue
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.plugin.doctor import resources
from tests.peers.certs import Authority
from tests.plugin.cli.configurations import STORAGE, call, config, errors, tls


def test_a_valid_configuration_is_told_with_what_it_holds() -> None:
    result = call("validate", "--config", config(names="debug", more="extensions:\n"))
    assert result.output == (
        "The configuration is valid.\n"
        "  receivers  statsig\n"
        "  exporters  debug\n"
        "  extensions -\n"
        "  pipelines  logs\n"
        f"  queue      {Path('state').absolute()}\n"
    )
    assert result.exit_code == 0
    assert not Path("state").exists()


def test_without_a_file_the_environment_is_checked() -> None:
    result = call("validate", env={"STATSIG_SIGNING_SECRET": ""})
    assert "STATSIG_SIGNING_SECRET: is empty\n  hint: set it to the signing secret, or unset it" in result.output
    assert result.exit_code == 1


def test_all_problems_of_all_files_at_once() -> None:
    Path("more.yaml").write_text("exporters:\n  debug: {verbosity: loud}\n  otlp: {}\n")
    assert errors("--config", config("tolerance: 5m"), "--config", "more.yaml") == (
        "receivers::statsig::tolerance: unknown key (config.yaml:5)\n"
        "  hint: did you mean timestamp_tolerance?\n"
        "exporters::debug::verbosity: must be 'basic', 'normal' or 'detailed' (more.yaml:2)\n"
        "exporters::otlp::endpoint: is required (more.yaml:3)\n"
        "  hint: write host:port, such as localhost:4317\n"
        "exporters::otlp: is not used by any pipeline (more.yaml:3)\n"
        "  hint: add it to service::pipelines::logs::exporters, or remove it"
    )


def test_a_later_file_repairs_an_earlier_one() -> None:
    found = call("validate", "--config", config("endpoint: ${NO}"), "--config", "yaml:receivers::statsig::endpoint: :0")
    assert found.exit_code == 0, found.output


def test_a_file_that_is_not_there() -> None:
    assert errors("--config", "nowhere.yaml") == "the file can't be read: No such file or directory (nowhere.yaml)"


def test_receivers_that_can_not_share_a_server_are_told_with_their_lines() -> None:
    config()
    Path("more.yaml").write_text(
        "receivers:\n  statsig/b:\n    endpoint: localhost:0\n    signing_secrets: []\n    max_connections: 5\n"
        "service: {pipelines: {logs: {receivers: [statsig, statsig/b]}}}\n"
    )
    assert errors("--config", "config.yaml", "--config", "more.yaml") == (
        "receivers::statsig/b::path: is the path of receivers::statsig too, which listens on the same endpoint "
        "(more.yaml:2)\n"
        "  hint: give each receiver its own path\n"
        "receivers::statsig/b::max_connections: differs from receivers::statsig::max_connections, which listens on "
        "the same endpoint (more.yaml:5)\n"
        "  hint: let them agree, or give each its own endpoint"
    )


def test_a_port_that_is_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert errors("--config", config(f"endpoint: 127.0.0.1:{port}")) == (
            f"receivers::statsig::endpoint: cannot listen on 127.0.0.1:{port}: the port is in use (config.yaml:5)\n"
            "  hint: stop the process that listens there, or choose another port"
        )
        listening = errors("--config", config(), "--listen", f"127.0.0.1:{port}")
        assert listening.startswith(f"receivers::statsig::endpoint: cannot listen on 127.0.0.1:{port}: ")
    assert call("validate", "--config", config(f"endpoint: 127.0.0.1:{port}")).exit_code == 0


def test_a_port_that_systemd_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_SYSTEMD", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = errors("--config", config(f"endpoint: 127.0.0.1:{taken.getsockname()[1]}"))
    assert said.endswith(". If systemd listens there for this service, with a socket unit, nothing is wrong")


def test_two_receivers_that_name_one_port_in_different_words() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config(f"endpoint: 127.0.0.1:{port}")
    text = errors(
        "--config", "config.yaml",
        "--config", f"yaml:receivers::statsig/b: {{endpoint: 'localhost:{port}', signing_secrets: [], path: /b}}",
        "--config", "yaml:service::pipelines::logs::receivers: [statsig, statsig/b]",
    )  # fmt: skip
    assert text.startswith(f"receivers::statsig/b::endpoint: cannot listen on localhost:{port}: the port is in use (")


def test_a_host_that_is_not_this_machine() -> None:
    assert "192.0.2.1 is not an address of this machine (config.yaml:5)" in errors(
        "--config", config("endpoint: 192.0.2.1:8080")
    )


def test_certificates_of_a_server_that_can_not_be_read_are_told_one_by_one() -> None:
    os.mkfifo("pipe")  # opening it would block
    config("endpoint: localhost:0\n    tls: " + tls(cert_file="no.pem", key_file="pipe", client_ca_file="/"))
    hint = "\n  hint: the service reads it as its own user; check the path and the permissions"
    assert errors("--config", "config.yaml") == (
        f"receivers::statsig::tls::cert_file: no.pem can't be read: No such file or directory (config.yaml:6){hint}\n"
        f"receivers::statsig::tls::key_file: pipe can't be read: it is not a regular file (config.yaml:6){hint}\n"
        f"receivers::statsig::tls::client_ca_file: / can't be read: Is a directory (config.yaml:6){hint}"
    )


def test_a_certificate_and_the_key_of_another() -> None:
    authority = Authority()
    chain, _ = authority.issue("localhost").write(Path(), "a")
    _, key = authority.issue("localhost").write(Path(), "b")
    config("endpoint: localhost:0\n    tls: " + tls(cert_file=chain, key_file=key))
    assert errors("--config", "config.yaml") == (
        "receivers::statsig::tls: the key in b.key is not that of the certificate in a.pem (config.yaml:6)"
    )


def test_certificates_that_fit(tmp_path: Path) -> None:
    authority = Authority()
    chain, key = authority.issue("localhost").write(tmp_path)
    ca = authority.write(tmp_path)
    both = tls(cert_file=chain, key_file=key)
    config(
        "endpoint: localhost:0\n    tls: " + tls(cert_file=chain, key_file=key, client_ca_file=ca),
        f"otlp_grpc: {{endpoint: 'h:1', tls: {both}}}\n  otlp_http: {{endpoint: 'https://h', tls: {both}}}",
        "otlp_grpc, otlp_http",
    )
    assert call("validate", "--config", "config.yaml").exit_code == 0


def test_certificates_of_an_exporter(tmp_path: Path) -> None:
    Path("empty.pem").touch()
    config(
        exporters="otlp_grpc: {endpoint: 'h:1', tls: {ca_file: no.pem}}\n"
        "  otlp_http: {endpoint: 'https://h', tls: {ca_file: empty.pem}}\n"
        "  otlp_grpc/plain: {endpoint: 'h:1', tls: {insecure: true, ca_file: no.pem}}",
        names="otlp_grpc, otlp_http, otlp_grpc/plain",
    )
    first, _, second = errors("--config", "config.yaml").splitlines()
    assert first == (
        "exporters::otlp_grpc::tls::ca_file: no.pem can't be read: No such file or directory (config.yaml:7)"
    )
    assert second.startswith("exporters::otlp_http::tls: ca_file contains no PEM certificate: ")
    assert second.endswith("(config.yaml:8)")


def test_a_proxy_of_the_environment_that_run_can_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://user:secret@h:1")
    config(
        exporters="otlp_http: {endpoint: 'https://backend'}\n  otlp_grpc: {endpoint: 'h:1'}",
        names="otlp_http, otlp_grpc",
    )
    assert errors("--config", "config.yaml") == (
        "exporters::otlp_http: can't be used here: the environment variable ALL_PROXY must be the URL of an HTTP "
        "proxy, such as http://proxy:3128; or write backend into NO_PROXY, to send without a proxy (config.yaml:7)"
    )
    monkeypatch.setenv("NO_PROXY", "backend:443")
    assert call("validate", "--config", "config.yaml").exit_code == 0


def test_where_a_file_exporter_can_not_write() -> None:
    Path("folder").mkdir()
    config(exporters="file: {path: no/changes.jsonl}\n  file/b: {path: folder}", names="file, file/b")
    assert errors("--config", "config.yaml") == (
        "exporters::file::path: there is no directory no (config.yaml:7)\n"
        "  hint: create it: the exporter does not\n"
        "exporters::file/b::path: folder is not a regular file (config.yaml:8)\n"
        "  hint: only a regular file can be synced and truncated"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/" + "x" * 300, (f"/{'x' * 119}... is longer than a path, or a name in it, may be (config.yaml:7)\n"
         "  hint: choose a shorter one")),
        ("in-a-circle", ("in-a-circle is a symbolic link that leads in a circle (config.yaml:7)\n"
         "  hint: remove the link, or name another path")),
        ("away", "there is no directory /nowhere (config.yaml:7)\n  hint: create it: the exporter does not"),
        ("no-otlp", ("no-otlp contains something other than OTLP/JSON log lines (config.yaml:7)\n"
         "  hint: move it away, or name another path")),
        ("state/lock", "state/lock is a file of the queue (config.yaml:7)\n  hint: choose another name"),
    ],
)  # fmt: skip
def test_what_no_file_exporter_can_write_to(name: str, said: str) -> None:
    Path("state").mkdir()
    Path("in-a-circle").symlink_to("in-a-circle")
    Path("away").symlink_to("/nowhere/changes.jsonl")
    Path("no-otlp").write_text("hello")
    assert errors("--config", config(exporters=f"file: {{path: {name}}}", names="file")) == (
        f"exporters::file::path: {said}"
    )


def test_a_link_to_a_file_that_is_still_to_be_made() -> None:
    Path("link").symlink_to("changes.jsonl")
    assert call("validate", "--config", config(exporters="file: {path: link}", names="file")).exit_code == 0
    assert not Path("changes.jsonl").exists()


@pytest.mark.parametrize("other", ["./state/../first", "symbolic", "hard"])
def test_one_file_under_two_names(other: str) -> None:
    Path("state").mkdir()
    Path("first").touch()
    Path("symbolic").symlink_to("first")
    Path("hard").hardlink_to("first")
    path = config(exporters=f"file: {{path: first}}\n  file/b: {{path: {other}}}", names="file, file/b")
    assert errors("--config", path) == (
        "exporters::file/b::path: is also the file of exporters::file (config.yaml:8)\n"
        "  hint: give each its own: only one can write to it"
    )


def test_a_file_that_another_process_writes_to() -> None:
    with Path("changes.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert errors("--config", config(exporters="file: {path: changes.jsonl}", names="file")) == (
            "exporters::file::path: changes.jsonl is locked: another process writes to it (config.yaml:7)\n"
            "  hint: stop that process, or give this exporter a file of its own"
        )


def test_where_a_queue_can_not_be() -> None:
    Path("taken").touch()
    config(more=STORAGE % "taken/queue")
    more = "yaml:service::extensions: [file_storage]"
    assert errors("--config", "config.yaml", "--config", more) == (
        "extensions::file_storage::directory: taken is not a directory (config.yaml:10)\n"
        "  hint: name another directory, or move what is there away"
    )


def in_queue(directory: str) -> str:
    """What `validate` says of a queue in a directory."""
    config(more=STORAGE % directory)
    text = errors("--config", "config.yaml", "--config", "yaml:service::extensions: [file_storage]")
    return text.removeprefix("extensions::file_storage::directory: ").removeprefix(f"{Path.cwd()}/")


@pytest.mark.parametrize("name", ["queue.db", "queue.db-wal", "lock", "state.json", "control.sock"])
def test_a_directory_where_a_queue_has_a_file(name: str) -> None:
    Path("queue", name).mkdir(parents=True)
    assert in_queue("queue") == (
        f"queue/{name} is a directory, where the queue has a file (config.yaml:10)\n"
        "  hint: name another directory, or move what is there away"
    )


def test_a_directory_that_no_queue_can_have() -> None:
    Path("away").symlink_to("/nowhere/queue")
    elsewhere = "\n  hint: name another directory, or move what is there away"
    too_long = "... is longer than a path, or a name in it, may be (config.yaml:10)\n  hint: choose a shorter one"
    assert in_queue("away/queue") == f"away is a symbolic link that leads nowhere (config.yaml:10){elsewhere}"
    assert in_queue("a/b" * 50 + "x" * 300).endswith(too_long)
    assert in_queue("abcdefg/" * 600).endswith(too_long)
    there = f"{Path.cwd()}/"
    assert in_queue(there + "a/" * ((4080 - len(there)) // 2)).endswith(too_long), "with its files"
    alone = " (config.yaml:10)\n  hint: write the path alone"
    for path in (r'"a\0b"', r'"a\n"', r'"a\tb"'):
        assert in_queue(path) == f"contains a control character, such as a line break{alone}"
    for path in ('"  "', '"a "'):
        assert in_queue(path) == f"ends with white space{alone}"


def test_a_database_that_is_another_program_s_or_a_newer_version_s() -> None:
    Path("queue").mkdir()
    with contextlib.closing(sqlite3.connect("queue/queue.db")) as connection:
        connection.execute("CREATE TABLE a (b)")
    assert in_queue("queue").startswith("queue/queue.db is a database of another program (config.yaml:10)\n  hint: ")
    Path("queue/queue.db").unlink()
    with contextlib.closing(schema_of_queue.connect(Path("queue/queue.db"))) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = Path("queue/queue.db").read_bytes()
    assert "queue/queue.db has schema version 99, and this version of statsig-otel knows" in in_queue("queue")
    assert Path("queue/queue.db").read_bytes() == before
    assert [file.name for file in Path("queue").iterdir()] == ["queue.db"]


def test_a_newer_version_s_database_whose_log_says_so(tmp_path: Path) -> None:
    """As after a crash of the newer version, just after it brought the database up to date."""
    path = tmp_path / "queue.db"
    schema_of_queue.connect(path).close()
    with contextlib.closing(schema_of_queue.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
        shutil.copytree(tmp_path, "queue")
    assert sorted(file.name for file in Path("queue").iterdir()) == ["queue.db", "queue.db-shm", "queue.db-wal"]
    assert "queue/queue.db has schema version 99, and this version of statsig-otel knows" in in_queue("queue")
    extensions = "yaml:service::extensions: [file_storage]"
    assert "has schema version 99" in call("doctor", "--config", "config.yaml", "--config", extensions).output
    for command in (("queue",), ("dead-letters", "list")):
        refused = call(*command, "--directory", "queue")
        assert refused.exit_code == 1
        assert "queue/queue.db has schema version 99, and this version" in refused.output


def test_a_disk_below_its_reserve(tmp_path: Path) -> None:
    said = in_queue(f"{tmp_path}, min_free_bytes: 1000TiB")
    assert said.startswith("the disk has ")
    assert "MiB left, and webhooks are refused below 1048576000 MiB" in said
    assert "hint: free some space" in said


def test_a_damaged_database_is_no_fault_of_the_configuration() -> None:
    """The service sets it aside, and starts."""
    Path("state").mkdir()
    Path("state/queue.db").write_bytes(b"no database" * 1000)
    assert call("validate", "--config", config()).exit_code == 0


def test_beside_the_running_service_what_it_has_in_use_is_a_warning() -> None:
    """Told by the owner of its queue. Another's port is as good as its own then; what is wrong stays an error."""
    with socket.socket() as taken, Path("changes.jsonl").open("a") as file:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        fcntl.flock(file, fcntl.LOCK_EX)
        port = taken.getsockname()[1]
        path = config(f"endpoint: 127.0.0.1:{port}", "file: {path: changes.jsonl}", "file", STORAGE % "queue")
        both = ("--config", path, "--config", "yaml:service::extensions: [file_storage]")
        held = QueueDirectory(Path("queue"))
        held.acquire()
        try:
            result = call("validate", *both)
            wrong = errors(*both, "--config", "yaml:receivers::statsig::endpoint: 192.0.2.1:80")
            doctor = call("doctor", *both).output
        finally:
            held.release()
        assert len(errors(*both).splitlines()) == 4, "without the service they are errors"
    assert result.exit_code == 0
    assert result.output.splitlines()[-4:] == [
        (
            f"  warning: extensions::file_storage::directory: {Path.cwd()}/queue is in use by process "
            f"{os.getpid()}, starting or stopping (config.yaml:10)"
        ),
        (
            f"  warning: receivers::statsig::endpoint: cannot listen on 127.0.0.1:{port}: the port is in use "
            "(config.yaml:5)"
        ),
        (
            f"  warning: exporters::file::path: {Path.cwd()}/changes.jsonl is locked: another process writes to it "
            "(config.yaml:7)"
        ),
        "  hint: the running service probably uses these; stop it before another one starts here",
    ]
    assert wrong.startswith("receivers::statsig::endpoint: cannot listen on 192.0.2.1:80: 192.0.2.1 is not an address")
    assert "locked" not in doctor
    assert f"in use by process {os.getpid()}" in doctor


def test_where_the_default_queue_can_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("taken").touch()
    monkeypatch.setenv("STATE_DIRECTORY", "taken")
    assert errors("--config", config()) == (
        "the queue can't be in taken: taken is not a directory\n"
        "  hint: name another with extensions: {file_storage: {directory: ...}}"
    )
    config(exporters="debug: {sending_queue: {enabled: false}}")
    assert call("validate", "--config", "config.yaml").exit_code == 0


@pytest.mark.slow
def test_a_directory_on_a_file_system_that_is_mounted_read_only(tmp_path: Path) -> None:
    """As in a container. Nobody's permissions are at fault."""
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
    alone = ["unshare", "--mount", "sh", "-c", mount, "sh", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    config(more=STORAGE % "queue")
    command = ["validate", "--config", "config.yaml", "--config", "yaml:service::extensions: [file_storage]"]
    ran = subprocess.run(
        [*alone, sys.executable, "-m", "statsig_otel", *command], capture_output=True, text=True, check=False
    )
    assert ran.stderr.endswith(
        f"extensions::file_storage::directory: {tmp_path} can't be written: it is on a file system that is mounted "
        "read-only (config.yaml:10)\n  hint: mount it for writing (in Kubernetes a volume), or name another path\n"
    )


@pytest.mark.skipif(
    "os.access('/proc/sys', os.W_OK) or os.statvfs('/proc/sys').f_flag & os.ST_RDONLY",
    reason="needs a place that nobody can write to, though its file system could be written",
)
def test_a_directory_that_can_not_be_written() -> None:
    config(exporters="file: {path: /proc/sys/changes}", names="file", more=STORAGE % "/proc/sys/queue")
    more = "yaml:service::extensions: [file_storage]"
    owner = f"by uid {os.geteuid()}: /proc/sys belongs to uid 0, gid 0, with mode 555"
    hint = f"\n  hint: {WRITABLE_HINT}"
    assert errors("--config", "config.yaml", "--config", more) == (
        f"exporters::file::path: /proc/sys/changes can't be written {owner} (config.yaml:7){hint}\n"
        f"extensions::file_storage::directory: /proc/sys can't be written {owner} (config.yaml:10){hint}"
    )
