"""Where the queue is, and where the relative paths of a file start."""

import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from statsig_otel.config import ConfigError
from statsig_otel.config.configuration import Configuration
from statsig_otel.config.grammar import check
from statsig_otel.exporters import FileSettings, OtlpHttpSettings
from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.settings import storage
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.environment import read_document
from statsig_otel.plugin.settings.reading import exporter_settings, receiver_settings
from statsig_otel.plugin.settings.storage import find_directory

FILE = """\
receivers:
  statsig:
    signing_secrets: []
    tls: {cert_file: chain.pem, key_file: /etc/key.pem, client_ca_file: '${env:FOLDER}/ca.pem'}
exporters:
  file: {path: changes}
  otlp_http: {endpoint: https://h, tls: {ca_file: ca.pem, cert_file: "", key_file: }}
extensions: {file_storage: {directory: queue}}
service:
  extensions: [file_storage]
  pipelines: {logs: {receivers: [statsig], exporters: [file, otlp_http]}}
"""


def read(*locations: Path | str, environ: Mapping[str, str] | None = None) -> Configuration:
    return check(read_document(locations, environ or {"FOLDER": "pem"}), COMPONENTS)


def test_relative_paths_start_at_the_file_that_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command runs. What is not in a file starts at the working directory."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "config.yaml").write_text(FILE.replace(", key_file: }", "}"))
    monkeypatch.chdir(tmp_path)
    for location in ("etc/config.yaml", "file:etc/config.yaml", tmp_path / "etc" / "config.yaml"):
        found = read(location)
        assert find_directory(found, {}) == tmp_path / "etc" / "queue"
        exporters, tls = exporter_settings(found), receiver_settings(found)["statsig"].tls
        file, http = exporters["file"], exporters["otlp_http"]
        assert isinstance(file, FileSettings)
        assert isinstance(http, OtlpHttpSettings)
        assert tls is not None
        assert tls.client_ca_file is not None
        assert tls.key_file == Path("/etc/key.pem")
        paths = [file.path, Path(http.tls.ca_file), tls.cert_file, tls.client_ca_file]
        assert [path.absolute() for path in paths] == [
            tmp_path / "etc" / name for name in ("changes", "ca.pem", "chain.pem", "pem/ca.pem")
        ]
        assert http.tls.cert_file == ""
    over = "yaml:extensions::file_storage::directory: queue"
    assert find_directory(read("etc/config.yaml", over), {}) == tmp_path / "queue"


def test_the_default_directory_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_directory(None, {"STATE_DIRECTORY": "state:other"}) == tmp_path / "state"


@pytest.fixture
def _homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user as in many containers: only a number, without an entry in the password file, and without rights."""

    def no_entry(number: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.setattr(storage, "_SYSTEM", tmp_path / "nothing" / "statsig-otel")
    for name in ("HOME", "XDG_STATE_HOME", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


COMMANDS = ["run", "validate", "doctor", "queue", "dead-letters list", "reload"]


@pytest.mark.usefixtures("_homeless")
@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_home_each_command_asks_for_a_directory(command: str) -> None:
    done = CliRunner().invoke(main, command.split(), env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    assert done.exit_code == 1
    assert "there is no directory for the queue: " in done.output
    assert "the user has no home directory" in done.output
    assert "name one in extensions: {file_storage: {directory: ...}}, or in STATE_DIRECTORY" in done.output
    assert "Traceback" not in done.output
    assert isinstance(done.exception, SystemExit)


@pytest.mark.usefixtures("_homeless")
def test_who_has_no_queue_needs_no_directory(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "receivers: {statsig: {signing_secrets: []}}\nexporters: {debug: {sending_queue: {enabled: false}}}\n"
        "service: {pipelines: {logs: {receivers: [statsig], exporters: [debug]}}}\n"
    )
    assert find_directory(read(path), {}) == tmp_path / "nothing" / "statsig-otel"
    with pytest.raises(ConfigError, match="there is no directory"):
        find_directory(read(path, "yaml:exporters::debug::sending_queue: {enabled: true}"), {})
    assert find_directory(None, {"XDG_STATE_HOME": "/x"}) == Path("/x/statsig-otel")
    assert find_directory(None, {"HOME": "/x"}) == Path("/x/.local/state/statsig-otel")
