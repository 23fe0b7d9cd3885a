"""`statsig-otel schema`: the committed JSON Schema, and what it allows and refuses."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.looped import looped
from tests.plugin.cli.configurations import call, config, wrong

ROOT = Path(__file__).parents[3]


CASES = ROOT / "tests" / "plugin" / "settings" / "cases"


def test_the_schema_is_the_committed_one() -> None:
    assert call("schema").output == (ROOT / "docs" / "configuration.schema.json").read_text()


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("examples/**/*statsig-otel*.yaml")), ids=lambda path: path.parent.name
)
def test_the_examples_keep_to_the_schema(schema: Any, path: Path) -> None:
    assert wrong(schema, path.read_text()) == []


@looped("name", ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))])
def test_configurations_in_the_docs_keep_to_the_schema(schema: Any, name: str) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    for block in blocks:
        if re.search(r"receivers:[\s{]+statsig", block) and "service:" in block:  # others are a Collector's
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


@looped(
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


@looped(
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


@looped(
    # What needs two places to be seen, or a look into a text, is the reader's alone.
    "path",
    sorted(
        path
        for path in CASES.glob("*.yaml")
        if not path.stem.startswith(("storage", "intervals", "verification", "template_fields"))
    ),
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
