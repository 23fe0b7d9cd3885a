"""`statsig-otel print-config` and `components`: what is understood of a configuration, without secrets."""

from pathlib import Path

import pytest

import statsig_otel
from statsig_otel.config.source import parse
from statsig_otel.plugin.cli.components import list_components
from statsig_otel.plugin.settings.catalog import COMPONENTS
from tests.plugin.cli.configurations import SECRET, call, config

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
    assert f'path: "{Path.cwd()}/$$changes"' in first.output


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
