"""What `run` and `validate` say before a start: keys without an effect, ports, directories, several locations."""

import os
import re
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest

from statsig_otel.config.grammar import check
from statsig_otel.config.opaque import reveal
from statsig_otel.config.source import read
from statsig_otel.exporters import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.exporters.paths import nearest
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.reading import exporter_settings
from tests.e2e.service_process import ServiceProcess
from tests.plugin.cli.configurations import STORAGE, call, config, errors, tls, wrong
from tests.waiting import wait_until

STORED = ("--config", "yaml:service::extensions: [file_storage]")


def test_a_service_runs_with_several_locations(tmp_path: Path) -> None:
    path = config(exporters="debug: {verbosity: '${NO}'}")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("exporters: {debug: {verbosity: basic}}\nreceivers: {statsig: {path: /hook}}\n")
    with ServiceProcess(overlay, "--config", str(tmp_path / path)) as service:
        assert service.url.endswith("/hook")


def test_a_service_with_only_variables_can_be_reached_from_elsewhere(tmp_path: Path) -> None:
    """And says at once that its disk is too full for webhooks."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "STATSIG_LISTEN": "localhost:1"}
    storage = f"yaml:extensions::file_storage: {{directory: {tmp_path}, min_free_bytes: 1000TiB}}"
    more = ["yaml:receivers::statsig::path: /x", storage, STORED[1]]
    options = [option for location in more for option in ("--config", location)]
    with ServiceProcess(None, "--listen", "0.0.0.0:0", *options, env=variables) as service:
        assert re.fullmatch(r"http://0\.0\.0\.0:\d+/x", service.url)
        service.wait_for_output(
            "  4. Copy the signing secret that Statsig then shows, and set it as STATSIG_SIGNING_SECRET"
        )
        refused = "MiB left, and webhooks are refused below 1048576000 MiB: free some space"
        wait_until(lambda: service.has_logged(refused), "it is said")


def test_the_printed_way_to_reload_works_in_another_terminal(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    directory = tmp_path / "a queue"
    file.write_text(
        "receivers: {statsig: {endpoint: 'localhost:0', signing_secrets: []}}\n"
        "exporters: {debug: {}}\n"
        f"extensions: {{file_storage: {{directory: '{directory}'}}}}\n"
        "service:\n  extensions: [file_storage]\n"
        "  pipelines: {logs: {receivers: [statsig], exporters: [debug]}}\n"
    )
    with ServiceProcess(file) as service:
        service.wait_for_output("Until then all requests")
        (line,) = [one for one in service.output if one.startswith("  4. ")]
        before, _, command = line.partition("Else run: statsig-otel ")
        assert "set it in signing_secrets. If you wrote ${env:NAME} there, start again with that variable." in before
        done = call(*shlex.split(command.removesuffix(" (or send SIGHUP).")))
        assert (done.exit_code, done.output) == (0, "Nothing has changed.\n")


@pytest.mark.parametrize("name", ["validate", "print-config", "components", "schema", "doctor", "explain"])
def test_each_command_has_its_help(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: main {name} ")


def test_a_umask_takes_no_rights_from_the_owner() -> None:
    before = os.umask(0o275)
    try:
        call("components")
    finally:
        assert os.umask(before) == 0o075


def test_what_has_no_effect_is_said_with_its_place() -> None:
    queue = "{num_consumers: 4, block_on_overflow: false, batch: {min_size: 8192, flush_timeout: 200ms}}"
    result = call("validate", "--config", config(exporters=f"debug: {{sending_queue: {queue}}}"))
    assert result.exit_code == 0
    where = "  warning: exporters::debug::sending_queue::"
    assert result.output.splitlines()[-2:] == [
        f"{where}num_consumers: 4 is not used: one sender keeps the order",
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


def with_reader(reader: str) -> tuple[str, ...]:
    more = f"  telemetry: {{metrics: {{readers: [{reader}]}}}}\n{STORAGE % 'queue'}"
    return ("--config", config("endpoint: 127.0.0.1:0", more=more), *STORED)


def test_the_port_of_a_reader_of_metrics_that_is_in_use() -> None:
    """`run` opens nothing else then; `validate` and `doctor` say it before."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = with_reader(f"{{pull: {{exporter: {{prometheus: {{host: 127.0.0.1, port: {port}}}}}}}}}")
        ran, said, diagnosed = call("run", *options), errors(*options), call("doctor", *options)
        assert call("validate", "--no-machine", *options).exit_code == 0
    assert ran.exit_code == 1
    place, fault = "service::telemetry::metrics::readers[0]", f"cannot listen on 127.0.0.1:{port}: the port is in use"
    hint = "  hint: stop the process that listens there, or choose another port"
    assert ran.output.endswith(f"Error: {place}: {fault} (config.yaml:10)\n{hint}\n")
    assert said == f"{place}::pull::exporter::prometheus: {fault} (config.yaml:10)\n{hint}"
    assert fault in diagnosed.output


def test_the_port_of_the_health_check_that_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        more = "  extensions: [file_storage, health_check]\nextensions: {file_storage: {directory: queue}, "
        path = config("endpoint: 127.0.0.1:0", more=f"{more}health_check: {{endpoint: '127.0.0.1:{port}'}}}}\n")
        ran, said = call("run", "--config", path), errors("--config", path)
    fault = (
        f"extensions::health_check::endpoint: cannot listen on 127.0.0.1:{port}: the port is in use (config.yaml:11)"
    )
    assert fault in ran.output
    assert said.startswith(fault)


def test_a_certificate_for_metrics_that_can_not_be_read() -> None:
    otlp = "{protocol: grpc, endpoint: 'https://h:1', certificate: nowhere.pem}"
    said = errors(*with_reader(f"{{periodic: {{exporter: {{otlp: {otlp}}}}}}}"))
    assert said.startswith(
        "service::telemetry::metrics::readers[0]::periodic::exporter::otlp::certificate: nowhere.pem can't be read"
    )


def test_a_certificate_for_spans_that_can_not_be_read() -> None:
    """`run` starts nothing then."""
    otlp = "{protocol: grpc, endpoint: 'https://h:1', certificate: nowhere.pem}"
    more = f"  telemetry: {{traces: {{processors: [{{batch: {{exporter: {{otlp: {otlp}}}}}}}]}}}}\n{STORAGE % 'queue'}"
    options = ("--config", config("endpoint: 127.0.0.1:0", more=more), *STORED)
    place = "service::telemetry::traces::processors[0]"
    assert errors(*options).startswith(f"{place}::batch::exporter::otlp::certificate: nowhere.pem can't be read")
    ran = call("run", *options)
    assert ran.exit_code == 1
    assert f"{place}::batch::exporter::otlp::certificate: " in ran.output


def test_run_says_a_host_s_fault_without_the_system_s_number() -> None:
    result = call("run", "--config", config("endpoint: host.invalid:80"))
    said = "Error: receivers::statsig::endpoint: cannot listen on host.invalid:80: the host is not known: "
    assert said in result.output
    assert result.output.endswith(" (config.yaml:5)\n")
    assert "Errno" not in result.output


def without_warning(output: str) -> str:
    """Without the line that a queue of the tests may be in memory."""
    return re.sub(r"(?m)\A.* WARNING statsig_otel: \S+ is on tmpfs, .*\n", "", output)


def test_run_says_where_a_directory_is_written_that_can_not_be_made(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    storage = f"extensions: {{file_storage: {{directory: {link}/queue}}}}\n"
    result = call("run", "--config", config(more=storage), *STORED)
    assert result.exit_code == 1
    assert without_warning(result.output) == (
        f"Error: extensions::file_storage::directory: {link} is a symbolic link that leads nowhere "
        "(config.yaml:10)\n  hint: name another directory, or move what is there away\n"
    )


def test_run_says_where_no_queue_can_be_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    monkeypatch.setenv("STATE_DIRECTORY", f"{link}/queue")
    result = call("run", "--config", config())
    assert without_warning(result.output) == (
        f"Error: the queue can't be in {link}/queue: {link} is a symbolic link that leads nowhere\n"
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
        f"  hint: {secret}",
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
        assert {name: reveal(value) for name, value in settings.headers.items()} == {"x-key": "007", "b": "z"}
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
