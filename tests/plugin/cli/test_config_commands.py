"""`validate`, `print-config`, `components` and `schema`, and `run` with several `--config`."""

import contextlib
import fcntl
import json
import os
import re
import socket
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML

import statsig_otel
from statsig_otel.config.grammar import check
from statsig_otel.config.source import parse, read
from statsig_otel.exporters import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.exporters.paths import nearest
from statsig_otel.exporters.queue import schema as schema_of_queue
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.plugin.cli.components import list_components
from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.reading import exporter_settings
from tests.e2e.service_process import ServiceProcess
from tests.peers.certs import Authority

SECRET = "webhook-s3cr3t"
STORED = ("--config", "yaml:service::extensions: [file_storage]")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine configures anything here."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES", "STATSIG_SIGNING_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def call(*args: str, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, args, env=env)


def config(receiver: str = "", exporters: str = "debug: {}", names: str = "debug", more: str = "") -> str:
    """A configuration of ten lines or so; the receiver's keys begin in line 5, the exporters in line 7."""
    Path("config.yaml").write_text(
        "receivers:\n"
        "  statsig:\n"
        f"    signing_secrets: [{SECRET}]\n"
        "    # the rest:\n"
        f"    {receiver or 'endpoint: localhost:0'}\n"
        "exporters:\n"
        f"  {exporters}\n"
        f"service:\n  pipelines: {{logs: {{receivers: [statsig], exporters: [{names}]}}}}\n{more}"
    )
    return "config.yaml"


def errors(*args: str) -> str:
    """What `validate` says, without its first line."""
    result = call("validate", *args)
    assert result.exit_code == 1
    assert SECRET not in result.output
    first, _, rest = result.output.partition("\n")
    assert first == "Error: the configuration has errors"
    return rest.removesuffix("\n")


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
    assert call("validate", "--config", "config.yaml").exit_code == 0


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


def tls(**files: str) -> str:
    return "{" + ", ".join(f"{key}: {file}" for key, file in files.items()) + "}"


def test_certificates_of_a_server_that_can_not_be_read_are_told_one_by_one() -> None:
    config("endpoint: localhost:0\n    tls: " + tls(cert_file="no.pem", key_file="no.key", client_ca_file="/"))
    hint = "\n  hint: the service reads it as its own user; look at the path and at the permissions"
    assert errors("--config", "config.yaml") == (
        f"receivers::statsig::tls::cert_file: no.pem can't be read: No such file or directory (config.yaml:6){hint}\n"
        f"receivers::statsig::tls::key_file: no.key can't be read: No such file or directory (config.yaml:6){hint}\n"
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
    assert second.startswith("exporters::otlp_http::tls: ca_file holds no PEM certificate: ")
    assert second.endswith("(config.yaml:8)")


def test_where_a_file_exporter_can_not_write() -> None:
    Path("folder").mkdir()
    config(exporters="file: {path: no/changes.jsonl}\n  file/b: {path: folder}", names="file, file/b")
    assert errors("--config", "config.yaml") == (
        "exporters::file::path: there is no directory no (config.yaml:7)\n"
        "  hint: make it: the exporter does not\n"
        "exporters::file/b::path: folder is no regular file (config.yaml:8)\n"
        "  hint: only a regular file can be synced and cut"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 300, (f"{'x' * 120}... is longer than a path, or a name in it, may be (config.yaml:7)\n"
         "  hint: choose a shorter one")),
        ("in-a-circle", ("in-a-circle is a symbolic link that leads in a circle (config.yaml:7)\n"
         "  hint: remove the link, or name another place")),
        ("away", "there is no directory /nowhere (config.yaml:7)\n  hint: make it: the exporter does not"),
        ("no-otlp", ("no-otlp holds something else than OTLP/JSON lines of logs (config.yaml:7)\n"
         "  hint: move it away, or name another")),
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
        "exporters::file/b::path: is the file of exporters::file too (config.yaml:8)\n"
        "  hint: give each its own: only one can write to it"
    )


def test_a_file_that_another_process_writes_to() -> None:
    with Path("changes.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert errors("--config", config(exporters="file: {path: changes.jsonl}", names="file")) == (
            "exporters::file::path: changes.jsonl is locked: another process writes to it (config.yaml:7)\n"
            "  hint: stop that one, or give this exporter a file of its own"
        )


STORAGE = "extensions: {file_storage: {directory: %s}}\n"


def test_where_a_queue_can_not_be() -> None:
    Path("taken").touch()
    config(more=STORAGE % "taken/queue")
    more = "yaml:service::extensions: [file_storage]"
    assert errors("--config", "config.yaml", "--config", more) == (
        f"extensions::file_storage::directory: {Path('taken').absolute()} is not a directory (config.yaml:10)\n"
        "  hint: let the service's own user write there, or name another place"
    )


def in_queue(directory: str) -> str:
    """What `validate` says of a queue in a directory."""
    config(more=STORAGE % directory)
    text = errors("--config", "config.yaml", "--config", "yaml:service::extensions: [file_storage]")
    return text.removeprefix("extensions::file_storage::directory: ")


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
    assert in_queue("away/queue") == (
        f"{Path('away').absolute()} is a symbolic link that leads nowhere (config.yaml:10){elsewhere}"
    )
    assert in_queue("a/b" * 50 + "x" * 300).endswith(too_long)
    assert in_queue("abcdefg/" * 600).endswith(too_long)
    there = f"{Path.cwd()}/"
    assert in_queue(there + "a/" * ((4080 - len(there)) // 2)).endswith(too_long), "with its files"
    assert in_queue('"a\\0b"') == "holds a NUL, and is no path that a directory can have (config.yaml:10)"


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
            f"  warning: extensions::file_storage::directory: queue is in use by process {os.getpid()}, starting or "
            "stopping (config.yaml:10)"
        ),
        (
            f"  warning: receivers::statsig::endpoint: cannot listen on 127.0.0.1:{port}: the port is in use "
            "(config.yaml:5)"
        ),
        "  warning: exporters::file::path: changes.jsonl is locked: another process writes to it (config.yaml:7)",
        "  hint: the running service probably uses these; stop it before another one starts here",
    ]
    assert wrong.startswith("receivers::statsig::endpoint: cannot listen on 192.0.2.1:80: 192.0.2.1 is not an address")
    assert "locked" not in doctor
    assert f"in use by process {os.getpid()}" in doctor


def test_where_the_default_queue_can_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("taken").touch()
    monkeypatch.setenv("STATE_DIRECTORY", "taken")
    assert errors("--config", config()) == (
        f"the queue can't be in taken: {Path('taken').absolute()} is not a directory\n"
        "  hint: name another with extensions: {file_storage: {directory: ...}}"
    )
    config(exporters="debug: {sending_queue: {enabled: false}}")
    assert call("validate", "--config", "config.yaml").exit_code == 0


@pytest.mark.skipif("os.access('/proc/sys', os.W_OK)", reason="needs a place that nobody can write to")
def test_a_directory_that_can_not_be_written() -> None:
    config(exporters="file: {path: /proc/sys/changes}", names="file", more=STORAGE % "/proc/sys/queue")
    more = "yaml:service::extensions: [file_storage]"
    hint = "\n  hint: let the service's own user write there, or name another place"
    assert errors("--config", "config.yaml", "--config", more) == (
        f"exporters::file::path: /proc/sys/changes can't be written (config.yaml:7){hint}\n"
        f"extensions::file_storage::directory: /proc/sys can't be written (config.yaml:10){hint}"
    )


def test_a_service_runs_with_several_locations(tmp_path: Path) -> None:
    path = config(exporters="debug: {verbosity: '${NO}'}")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("exporters: {debug: {verbosity: basic}}\nreceivers: {statsig: {path: /hook}}\n")
    with ServiceProcess(overlay, "--config", str(tmp_path / path)) as service:
        assert service.url.endswith("/hook")


HEADER = "h3ad3r-s3cr3t"


def test_the_whole_configuration_is_printed_without_secrets() -> None:
    path = config(
        "user: hash\n    hash_key: ${env:KEY}",
        f"otlp_grpc: {{endpoint: 'h:1', headers: {{x-key: {HEADER}}}}}\n  otlp_http: {{endpoint: 'http://h'}}",
        "otlp_grpc, otlp_http",
    )
    result = call("print-config", "--config", path, "--mode=redacted", env={"KEY": "k3y-s3cr3t"})
    assert result.exit_code == 0
    assert "s3cr3t" not in result.output
    assert '    signing_secrets:\n      - "[REDACTED]"\n' in result.output
    assert '    headers:\n      x-key: "[REDACTED]"\n' in result.output
    assert '    hash_key: "[REDACTED]"\n' in result.output
    assert "    timestamp_tolerance: 5m0s\n    max_request_body_size: 20MiB\n" in result.output


def test_what_is_printed_is_valid_and_prints_the_same() -> None:
    everything = (
        "otlp_grpc: {endpoint: 'h:1', keepalive: {time: 1m}, tls: {min_version: 1.2}}\n"
        "  otlp_http: {logs_endpoint: 'https://h/x', compression: none}\n"
        "  file: {path: $$changes, sending_queue: {queue_size: 5}}\n  debug:"
    )
    path = config("resource: {a: [1, 2], b: 1.5, c: '5'}", everything, "otlp_grpc, otlp_http, file, debug")
    text = Path(path).read_text().replace(SECRET, "")
    first = call("print-config", "--config", f"yaml:{text}")
    assert first.exit_code == 0, first.output
    again = call("print-config", "--config", f"yaml:{first.output}")
    assert again.output == first.output
    assert 'path: "$$changes"' in first.output


def test_later_locations_and_variables_show_in_what_is_printed() -> None:
    path = config("path: ${env:HOOK:-/hook}")
    result = call("print-config", "--config", path, "--config", "yaml:exporters::debug::verbosity: ${WORD}",
                  env={"WORD": "detailed"})  # fmt: skip
    assert "    path: /hook\n" in result.output
    assert "    verbosity: detailed\n" in result.output


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("unredacted", "unredacted is not supported: secrets are never printed"),
        ("unvalidated", "unvalidated is not supported: only a valid configuration has known defaults"),
        ("all", "all is not supported: the only mode is redacted"),
    ],
)
def test_the_other_modes_of_the_collector_say_why_they_are_not_here(mode: str, why: str) -> None:
    result = call("print-config", "--config", config(), f"--mode={mode}")
    assert why in result.output
    assert result.exit_code == 2


def test_a_wrong_configuration_is_not_printed() -> None:
    result = call("print-config", "--config", config("tolerance: 5m"))
    assert result.exit_code == 1
    assert result.output.startswith("Error: the configuration has errors\nreceivers::statsig::tolerance: unknown key")
    assert SECRET not in result.output


def test_components_are_listed_with_where_they_are_from() -> None:
    result = call("components")
    assert result.exit_code == 0
    found = parse(result.output.encode(), file="components", directory=Path(), environ={}).values
    assert found["buildinfo"] == {
        "command": "statsig-otel",
        "description": "Statsig receiver",
        "version": statsig_otel.__version__,
    }
    listed = list_components()
    assert {kind: found[kind] for kind in listed} == listed
    assert {kind: [entry["name"] for entry in entries] for kind, entries in listed.items()} == {
        "receivers": list(COMPONENTS.receivers),
        "exporters": list(COMPONENTS.exporters),
        "extensions": list(COMPONENTS.extensions),
    }
    assert listed["exporters"][0] == {
        "name": "otlp_grpc",
        "deprecated_names": ["otlp"],
        "module": f"statsig-otel {statsig_otel.__version__}",
        "built_in": True,
        "stability": {"logs": "Alpha"},
    }


ROOT = Path(__file__).parents[3]
CASES = ROOT / "tests" / "plugin" / "settings" / "cases"


@pytest.fixture(scope="module")
def schema() -> Any:
    """A validator with the schema that the command prints."""
    jsonschema = pytest.importorskip("jsonschema")
    printed = json.loads(call("schema").output)
    jsonschema.Draft202012Validator.check_schema(printed)
    return jsonschema.Draft202012Validator(printed)


def as_written(text: str) -> Any:
    """What an editor sees: no reference is resolved."""
    return YAML(typ="safe", pure=True).load(text)


def wrong(schema: Any, text: str) -> list[str]:
    return ["::".join(map(str, error.absolute_path)) for error in schema.iter_errors(as_written(text))]


def test_the_schema_is_the_committed_one() -> None:
    assert call("schema").output == (ROOT / "docs" / "configuration.schema.json").read_text()


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("examples/**/*statsig-otel*.yaml")), ids=lambda path: path.parent.name
)
def test_the_examples_keep_to_the_schema(schema: Any, path: Path) -> None:
    assert wrong(schema, path.read_text()) == []


@pytest.mark.parametrize("name", ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))])
def test_configurations_in_the_docs_keep_to_the_schema(schema: Any, name: str) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    for block in blocks:
        if "receivers:" in block and "service:" in block:
            assert wrong(schema, block) == []


def test_what_is_printed_keeps_to_the_schema(schema: Any) -> None:
    """Every key of every component, with its default."""
    everything = (
        "otlp_grpc: {endpoint: 'h:1', keepalive: {time: 1m}}\n  otlp_http: {endpoint: 'https://h'}\n"
        "  file: {path: changes}\n  debug:"
    )
    config("resource: {a: [1, 2], b: 1.5, c: '5', d: true}", everything, "otlp_grpc, otlp_http, file, debug",
           "extensions: {file_storage: {directory: /x}}\n")  # fmt: skip
    result = call("print-config", "--config", "config.yaml", "--config", "yaml:service::extensions: [file_storage]")
    assert result.exit_code == 0, result.output
    assert wrong(schema, result.output) == []


RECEIVER = "receivers: {statsig: {signing_secrets: [], %s}}\n"
REST = "exporters: {debug: }\nservice: {pipelines: {logs: {receivers: [statsig], exporters: [debug]}}}\n"


@pytest.mark.parametrize(
    "text",
    [
        *(
            RECEIVER % keys + REST
            for keys in [
                "max_connections: '${env:N}'", "read_timeout: '${N}ms'", "max_request_body_size: '${N}MiB'",
                "include_original: '${B}'", "user: '${U}'", "tls: {cert_file: a, key_file: b, min_version: 1.3}",
                "read_timeout: 0", "read_timeout: 1h30m", "max_in_flight_bytes: 5 MiB", "max_in_flight_bytes: 5",
                "max_connections: '5'", "max_connections: 5.0", "max_connections: 0x10", "max_connections: 1_000",
                "include_original: 'true'", "include_original: True", "max_in_flight_bytes: 1e9",
                "endpoint: 007", "tls: ", "tls: {cert_file: 1, key_file: b}", "resource: {a: x, b: [1, 2], c: true}",
            ]
        ),
        RECEIVER % "" + "exporters: {otlp/old: {endpoint: 'h:1', headers: {a: b, c: 7}}, otlphttp: }\n"
        "service: {extensions: , pipelines: {logs/x: {receivers: [statsig], exporters: [otlp/old, otlphttp]}}}\n",
        RECEIVER % "" + REST + "processors: {}\nconnectors:\n",
        RECEIVER % "" + REST + "processors: []\nextensions:\n",
    ],
)  # fmt: skip
def test_what_the_schema_allows(schema: Any, text: str) -> None:
    assert wrong(schema, text) == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (RECEIVER % "" + "exporters: {debug: }\n", ""),
        (RECEIVER % "tolerance: 5m" + REST, "receivers::statsig"),
        (RECEIVER % "max_connections: many" + REST, "receivers::statsig::max_connections"),
        (RECEIVER % "max_connections: 0" + REST, "receivers::statsig::max_connections"),
        (RECEIVER % "read_timeout: 5" + REST, "receivers::statsig::read_timeout"),
        (RECEIVER % "read_timeout: 5 s" + REST, "receivers::statsig::read_timeout"),
        (RECEIVER % "read_timeout: -5s" + REST, "receivers::statsig::read_timeout"),
        (RECEIVER % "max_request_body_size: 5 apples" + REST, "receivers::statsig::max_request_body_size"),
        (RECEIVER % "include_original: on" + REST, "receivers::statsig::include_original"),
        (RECEIVER % "include_original: 1" + REST, "receivers::statsig::include_original"),
        (RECEIVER % "max_connections: '5.5'" + REST, "receivers::statsig::max_connections"),
        (RECEIVER % "max_connections: true" + REST, "receivers::statsig::max_connections"),
        (RECEIVER % "read_timeout: -1" + REST, "receivers::statsig::read_timeout"),
        (RECEIVER % "max_request_body_size: 5M" + REST, "receivers::statsig::max_request_body_size"),
        (RECEIVER % "user: nobody" + REST, "receivers::statsig::user"),
        (RECEIVER % "tls: {cert_file: a}" + REST, "receivers::statsig::tls"),
        (RECEIVER % "tls: yes" + REST, "receivers::statsig::tls"),
        (RECEIVER % "endpoint: [a]" + REST, "receivers::statsig::endpoint"),
        ("receivers: {statsig: }\n" + REST, "receivers::statsig"),
        ("receivers: {statsig: {signing_secrets: x}}\n" + REST, "receivers::statsig::signing_secrets"),
        ("receivers: {statsig/: {signing_secrets: []}}\n" + REST, "receivers"),
        ("receivers: {otlp: {}}\n" + REST, "receivers"),
        (RECEIVER % "" + REST + "processors: {batch: }\n", "processors"),
        (RECEIVER % "" + REST + "exporter: {}\n", ""),
        (RECEIVER % "" + "exporters: {debug: {verbosity: loud}}\nservice: {pipelines: }\n", "exporters::debug"),
        (RECEIVER % "" + "exporters: {debug: }\nservice: {pipelines: {traces: {}}}\n", "service::pipelines"),
        (
            RECEIVER % "" + "exporters: {debug: }\nservice: {pipelines: {logs: {receivers: [], exporters: [debug]}}}\n",
            "service::pipelines::logs::receivers",
        ),
    ],
)
def test_what_the_schema_refuses(schema: Any, text: str, path: str) -> None:
    assert any(found.startswith(path) for found in wrong(schema, text))


@pytest.mark.parametrize(
    # What needs two places to be seen, or a look into a text, is the reader's alone.
    "path",
    sorted(
        path
        for path in CASES.glob("*.yaml")
        if not path.stem.startswith(("storage", "intervals", "verification", "template_fields"))
    ),
    ids=lambda path: path.stem,
)
def test_keys_and_words_that_the_reader_refuses_are_refused_by_the_schema(schema: Any, path: Path) -> None:
    assert wrong(schema, path.read_text())


def test_the_schema_tells_what_a_key_is(schema: Any) -> None:
    """For an editor's completion and its hovering text."""
    receiver = schema.schema["$defs"]["StatsigReceiverSettings"]["properties"]
    assert receiver["timestamp_tolerance"]["default"] == "5m0s"
    assert receiver["max_request_body_size"]["default"] == "20MiB"
    assert receiver["signing_secrets"]["examples"][0] == ["${env:STATSIG_SIGNING_SECRET}"]
    assert all(
        "description" in key
        for definition in schema.schema["$defs"].values()
        for key in definition.get("properties", {}).values()
    )
    exporters = schema.schema["properties"]["exporters"]
    assert exporters["properties"]["otlp"]["deprecated"] is True
    assert set(exporters["patternProperties"]) == {f"^{type_}/.+$" for type_ in exporters["properties"]}


@pytest.mark.parametrize("name", ["validate", "print-config", "components", "schema", "doctor", "explain"])
def test_each_command_has_its_help(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: main {name} ")


def test_what_has_no_effect_is_said_with_its_place() -> None:
    queue = "{num_consumers: 4, block_on_overflow: true, batch: {min_size: 8192, flush_timeout: 200ms}}"
    result = call("validate", "--config", config(exporters=f"debug: {{sending_queue: {queue}}}"))
    assert result.exit_code == 0
    where = "  warning: exporters::debug::sending_queue::"
    assert result.output.splitlines()[-3:] == [
        f"{where}num_consumers: 4 is not used: one sender keeps the order",
        f"{where}block_on_overflow: not used: a full queue answers the webhook with 503",
        f"{where}batch: min_size and flush_timeout are not used: what waits is sent at once",
    ]
    keys = "{sending_queue: {enabled: false, queue_size: 5}, retry_on_failure: {enabled: true}}"
    result = call("validate", "--config", config(exporters=f"debug: {keys}"))
    assert result.output.splitlines()[-1] == (
        "  warning: exporters::debug: not used while sending_queue::enabled is false: sending_queue::queue_size, "
        "retry_on_failure"
    )


def test_what_only_tls_uses_is_said_where_there_is_none() -> None:
    """The Collector takes both, and many of its files have both."""
    tls = "tls: {insecure: true, insecure_skip_verify: true}"
    exporters = f"otlp_grpc: {{endpoint: 'h:1', {tls}}}\n  otlp_http: {{endpoint: 'http://h', {tls}}}\n  debug:"
    result = call("validate", "--config", config(exporters=exporters, names="otlp_grpc, otlp_http, debug"))
    assert result.exit_code == 0, result.output
    said = "tls::insecure_skip_verify: not used: without TLS there is no certificate"
    assert result.output.splitlines()[-2:] == [
        f"  warning: exporters::otlp_grpc::{said}",
        f"  warning: exporters::otlp_http::{said}",
    ]


def test_run_says_where_the_port_is_written() -> None:
    storage = "extensions: {file_storage: {directory: queue}}\n"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = call("run", "--config", config(f"endpoint: 127.0.0.1:{port}", more=storage), *STORED)
    assert result.exit_code == 1
    assert result.output.endswith(
        f"Error: receivers::statsig::endpoint: cannot listen on 127.0.0.1:{port}: the port is in use (config.yaml:5)\n"
        "  hint: stop the process that listens there, or choose another port\n"
    )


def test_run_says_a_host_s_fault_without_the_system_s_number() -> None:
    result = call("run", "--config", config("endpoint: host.invalid:80"))
    said = "Error: receivers::statsig::endpoint: cannot listen on host.invalid:80: the host is not known: "
    assert said in result.output
    assert result.output.endswith(" (config.yaml:5)\n")
    assert "Errno" not in result.output


def test_run_says_where_a_directory_is_written_that_can_not_be_made() -> None:
    storage = "extensions: {file_storage: {directory: /proc/nothing/queue}}\n"
    result = call("run", "--config", config(more=storage), *STORED)
    assert result.exit_code == 1
    assert result.output == (
        "Error: extensions::file_storage::directory: /proc/nothing can't be used: No such file or directory "
        "(config.yaml:10)\n  hint: let the service's own user write there, or name another place\n"
    )


def test_run_says_where_no_queue_can_be_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/proc/nothing/queue")
    result = call("run", "--config", config())
    assert result.output == (
        "Error: the queue can't be in /proc/nothing/queue: /proc/nothing can't be used: No such file or directory\n"
        "  hint: name another with extensions: {file_storage: {directory: ...}}\n"
    )


def test_what_depends_on_the_machine_can_be_left_out() -> None:
    """As on another machine, or beside the running service."""
    Path("taken").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config(
            f"endpoint: 127.0.0.1:{port}\n    tls: " + tls(cert_file="no.pem", key_file="no.key"),
            "otlp_http: {endpoint: 'https://h', tls: {ca_file: no.pem}}",
            "otlp_http",
            more=STORAGE % "taken/queue",
        )
        both = ("--config", "config.yaml", "--config", "yaml:service::extensions: [file_storage]")
        assert len([line for line in errors(*both).splitlines() if "(config.yaml:" in line]) == 5
        found = call("validate", "--no-machine", *both)
    assert found.exit_code == 0, found.output
    assert "tolerance: unknown key" in errors("--no-machine", "--config", config("tolerance: 5m"))


def test_receivers_that_can_not_share_a_server_are_told_without_the_machine_too() -> None:
    more = "yaml:receivers::statsig/b: {endpoint: 'localhost:0', signing_secrets: []}"
    more_pipeline = "yaml:service::pipelines::logs::receivers: [statsig, statsig/b]"
    text = errors("--no-machine", "--config", config(), "--config", more, "--config", more_pipeline)
    assert "receivers::statsig/b::path: is the path of receivers::statsig too" in text


def test_a_secret_s_variable_that_is_not_set_is_not_given_a_default() -> None:
    path = Path("config.yaml")
    path.write_text(
        'receivers: {statsig: {signing_secrets: ["${env:NO}"], user: hash, hash_key: "${NO}"}}\n'
        'exporters: {otlp_grpc: {endpoint: "${NO}", headers: {a: "${NO}"}}}\n'
        "service: {pipelines: {logs: {receivers: [statsig], exporters: [otlp_grpc]}}}\n"
    )
    unset, secret = (
        "the environment variable NO is not set (config.yaml:%d)",
        ("set it where the service runs, or write ${file:PATH}, with the secret in a file"),
    )
    assert errors("--config", str(path)).splitlines() == [
        f"receivers::statsig::signing_secrets[0]: {unset % 1}",
        f"  hint: {secret}; write signing_secrets: [] to set the webhook up before there is a secret",
        f"receivers::statsig::hash_key: {unset % 1}",
        f"  hint: {secret}",
        f"exporters::otlp_grpc::endpoint: {unset % 2}",
        "  hint: set it, or write a default: ${env:NO:-default}",
        f"exporters::otlp_grpc::headers::a: {unset % 2}",
        f"  hint: {secret}",
    ]


def test_a_disabled_sdk_is_not_valid() -> None:
    result = call("validate", "--config", config(), env={"OTEL_SDK_DISABLED": "true"})
    assert result.exit_code == 1
    assert "OTEL_SDK_DISABLED: is true" in result.output


HEADER_FORMS = ["{x-key: '007', b: z}", "[{name: x-key, value: 007}, {name: b, value: z}]"]


@pytest.mark.parametrize("headers", HEADER_FORMS)
def test_headers_are_a_mapping_or_a_list(schema: Any, headers: str) -> None:
    """Newer Collectors write them as a list."""
    path = config(
        exporters=f"otlp_grpc: {{endpoint: 'h:1', headers: {headers}}}\n"
        f"  otlp_http: {{endpoint: 'http://h', headers: {headers}}}",
        names="otlp_grpc, otlp_http",
    )
    document = read(Path(path), environ={})
    for settings in exporter_settings(check(document, COMPONENTS)).values():
        assert isinstance(settings, OtlpGrpcSettings | OtlpHttpSettings)
        assert {name: value.reveal() for name, value in settings.headers.items()} == {"x-key": "007", "b": "z"}
    assert wrong(schema, Path(path).read_text()) == []
    printed = call("print-config", "--config", path).output
    assert printed.count('    headers:\n      x-key: "[REDACTED]"\n      b: "[REDACTED]"\n') == 2


def test_a_place_that_this_user_may_not_look_into_is_none_that_is_there(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "queue").mkdir(parents=True)
    closed.chmod(0)
    try:
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may look everywhere
        assert nearest(closed / "queue" / "a") in closed.parents or nearest(closed / "queue" / "a") == closed
    finally:
        os.seteuid(os.getuid())
        closed.chmod(0o700)
    assert nearest(closed / "queue" / "a") == closed / "queue"
