"""Commands while systemd does not run the service, and so its credentials are not there."""

import json
from pathlib import Path

import pytest

from statsig_otel.config import substitution
from statsig_otel.config.errors import quoted
from statsig_otel.exporters.queue import schema
from tests.conftest import needs_kafka
from tests.plugin.cli.configurations import call, errors

FOLDER = "/run/credentials/of-no-service.service"
HINT = (
    "systemd makes it while the service runs, if the unit has a LoadCredential= for it; while the service is stopped, "
    "use validate --no-machine"
)


@pytest.fixture
def location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration in which everything that is secret is a credential, with an empty queue."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue").mkdir()
    schema.connect(tmp_path / "queue" / "queue.db").close()
    return write(FOLDER)


def write(folder: str) -> str:
    Path("config.yaml").write_text(
        "receivers:\n"
        "  statsig:\n"
        "    endpoint: localhost:0\n"
        f"    signing_secrets: ['${{file:{folder}/secret}}', '${{file:{folder}/next-secret}}']\n"
        f"    audit_log: {{api_key: '${{file:{folder}/console-key}}'}}\n"
        "exporters:\n"
        f"  otlp_http: {{endpoint: 'http://localhost:1', headers: {{key: 'Bearer ${{file:{folder}/key}}'}}}}\n"
        "  kafka:\n"
        "    brokers: [localhost:1]\n"
        f"    auth: {{sasl: {{mechanism: PLAIN, username: a, password: '${{file:{folder}/password}}'}}}}\n"
        "extensions: {file_storage: {directory: queue, min_free_bytes: 0}}\n"
        "service:\n"
        "  extensions: [file_storage]\n"
        "  pipelines: {logs: {receivers: [statsig], exporters: [otlp_http, kafka]}}\n"
    )
    return "config.yaml"


@needs_kafka
def test_validate_goes_on_without_them_if_told_to(location: str) -> None:
    found = call("validate", "--no-machine", "--config", location)
    assert found.output.startswith("The configuration is valid.\n"), found.output
    assert "does not begin with webhook-" not in found.output
    told = errors("--config", location)
    assert told.count(f"No such file or directory ({location}:") == 5
    assert told.count(f"\n  hint: {HINT}") == 5


@pytest.mark.parametrize("command", ["run", "explain", "print-config"])
def test_commands_that_need_them_say_why_they_are_missing(location: str, command: str) -> None:
    arguments = ["/dev/null"] if command == "explain" else []
    found = call(command, "--config", location, *arguments)
    assert (found.exit_code, HINT in found.output) == (1, True)


def test_other_mistakes_are_still_found(location: str) -> None:
    told = errors("--no-machine", "--config", location, "--config", "yaml:receivers::statsig::user: ${file:/run/no}")
    assert told.splitlines()[0] == (
        "receivers::statsig::user: the file /run/no can't be read: No such file or directory "
        "(yaml:receivers::statsig::user:1)"
    )
    assert len(told.splitlines()) == 2


def test_what_the_unit_does_not_name_is_a_mistake_while_the_service_runs(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service has its directory then."""
    monkeypatch.setattr(substitution, "_CREDENTIALS", tmp_path)
    (tmp_path / "unit").mkdir()
    for name in ("secret", "next-secret", "console-key", "password"):
        (tmp_path / "unit" / name).write_text("0123456789abcdef")
    told = errors("--no-machine", "--config", write(f"{tmp_path}/unit"))
    found, _, why = told.partition(" can't be read: ")
    shown = quoted(f"{tmp_path}/unit/key")[1:-1].replace(f"{Path.cwd()}/", "")
    assert found == f"exporters::otlp_http::headers::key: the file {shown}"
    assert why.startswith("No such file")
    assert told.endswith(f"\n  hint: {HINT}")
    assert call("queue", "--config", location).exit_code == 1


def test_commands_that_need_only_the_directory_find_it(location: str) -> None:
    found = call("queue", "--config", location)
    assert found.output.startswith(f"{Path('queue').absolute()}: the queue of a service that is not running\n")
    assert call("dead-letters", "list", "--config", location).exit_code == 0
    assert "no service runs on the queue in" in call("top", "--once", "--config", location).output


def test_reconcile_says_that_it_needs_the_key(location: str) -> None:
    found = call("reconcile", "--config", location)
    assert found.exit_code == 3
    assert f"receivers::statsig::audit_log::api_key: the file {FOLDER}/console-key can't be read" in found.output
    assert "signing_secrets" not in found.output


def test_doctor_does_not_know_them_and_checks_everything_else(location: str) -> None:
    """It asks no broker, to whom it would have to say a password."""
    found = json.loads(call("doctor", "--config", location, "--json").output)["checks"]
    of_configuration = [(one["status"], one["hint"]) for one in found if one["check"] == "configuration"]
    assert of_configuration[:6] == [("unknown", HINT)] * 5 + [("ok", None)]
    assert "failed" not in dict(of_configuration)
    by_name = {one["check"]: one["status"] for one in found}
    assert by_name["queue state"] == "ok"
    assert by_name["exporters::otlp_http"] == "failed"
    assert "exporters::kafka" not in by_name
