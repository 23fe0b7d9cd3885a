"""What is right, and becomes a configuration."""

import math
from pathlib import Path

import pytest

from statsig_otel.config import ConfigError, Opaque
from statsig_otel.config.configuration import Components, Configuration, Pipeline
from statsig_otel.config.document import Document
from statsig_otel.config.errors import NOT_A_NAME, hint_for, render
from statsig_otel.config.grammar import check
from statsig_otel.config.source import parse, read
from tests.config.models import COMPONENTS, Colour, DebugSettings, ExporterSettings, ReceiverSettings, StorageSettings
from tests.looped import looped

RECEIVERS = 'receivers:\n  statsig: {signing_secrets: ["0123"]}\n'


def configuration(text: str, **environ: str) -> Configuration:
    return check(parse(text.encode(), file="config.yaml", directory=Path(), environ=environ), COMPONENTS)


def exporter(body: str, **environ: str) -> ExporterSettings:
    text = (
        f"{RECEIVERS}exporters:\n  otlp_grpc: {{{body}}}\n"
        "service: {pipelines: {logs: {receivers: [statsig], exporters: [otlp_grpc]}}}\n"
    )
    settings = configuration(text, **environ).exporters["otlp_grpc"]
    assert isinstance(settings, ExporterSettings)
    return settings


FULL = """
extensions:
  file_storage: {directory: /var/lib/statsig-otel}
receivers:
  statsig/b:
    signing_secrets: []
  statsig:
    endpoint: localhost:8080
    signing_secrets: ["${env:SECRET}"]
exporters:
  otlp/old: {endpoint: "collector:4317"}
  debug:
  otlp_http: {}
processors: {}
connectors:
service:
  extensions: [file_storage]
  pipelines:
    logs: {receivers: [statsig, statsig/b], processors: [], exporters: [otlp/old, debug]}
    logs/more: {receivers: [statsig], processors: , exporters: [otlp_http]}
"""


def test_a_whole_configuration(tmp_path: Path) -> None:
    """The ids as written and in their order; older names of types understood; no body means the defaults."""
    path = tmp_path / "config.yaml"
    path.write_text(FULL)
    assert check(read(path, environ={"SECRET": "0123"}), COMPONENTS) == Configuration(
        receivers={
            "statsig/b": ReceiverSettings(signing_secrets=[]),
            "statsig": ReceiverSettings(endpoint="localhost:8080", signing_secrets=[Opaque("0123")]),
        },
        exporters={
            "otlp/old": ExporterSettings(endpoint="collector:4317"),
            "debug": DebugSettings(),
            "otlp_http": ExporterSettings(),
        },
        extensions={"file_storage": StorageSettings(directory="/var/lib/statsig-otel")},
        pipelines={
            "logs": Pipeline(("statsig", "statsig/b"), ("otlp/old", "debug")),
            "logs/more": Pipeline(("statsig",), ("otlp_http",)),
        },
        service_extensions=("file_storage",),
    )


def test_keeps_the_order() -> None:
    found = configuration(FULL, SECRET="0123")
    assert list(found.receivers) == ["statsig/b", "statsig"]
    assert list(found.exporters) == ["otlp/old", "debug", "otlp_http"]


def test_check_tells_all_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(FULL.replace("debug:", "debug: {verbosity: loud}"))
    with pytest.raises(ConfigError) as caught:
        check(read(path, environ={}), COMPONENTS)
    assert [problem.line for problem in caught.value.problems] == [9, 12]


@pytest.mark.parametrize("id_", ["debug/a", "debug/a/b", "debug/ä", "debug/1-2.3", "debug/_", "debug/" + "n" * 1024])
def test_good_ids(id_: str) -> None:
    """The Collector's grammar: a name is anything but blanks, control characters and symbols."""
    text = (
        f"{RECEIVERS}exporters:\n  ? {id_}\n  : \n"
        f"service:\n  pipelines:\n    logs/x:\n      receivers: [statsig]\n      exporters:\n      - {id_}\n"
    )
    assert list(configuration(text).exporters) == [id_]


def test_the_type_of_an_id() -> None:
    assert COMPONENTS.type_of("otlp/backup/2") == "otlp_grpc"
    assert COMPONENTS.type_of("otlp_http") == "otlp_http"
    assert COMPONENTS.type_of("otlphttp") == "otlp_http"


def test_an_older_name_counts_only_where_its_type_is() -> None:
    components = Components(receivers={"statsig": ReceiverSettings}, exporters={}, aliases={"otlp": "otlp_grpc"})
    document = Document.from_values({"exporters": {"otlp": None}}, "the environment")
    with pytest.raises(ConfigError, match="there is no exporter of the type 'otlp'"):
        check(document, components)


@looped("written", ["007", "1e3", "0x1F", "1.10", "true", "NULL1", ".inf", "2001-01-01"])
def test_a_text_is_as_written(written: str) -> None:
    """What YAML reads as a number or a boolean, where the model wants a text."""
    found = exporter(f"endpoint: {written}, headers: {{x-id: {written}}}, topics: [{written}], path: {written}")
    assert found.endpoint == written
    assert found.headers["x-id"].reveal() == written
    assert found.topics == [written]
    assert found.path == Path(written).absolute()


def test_a_choice_of_texts_takes_a_number_without_quotes() -> None:
    assert exporter("version: 1.3").version == "1.3"


def test_only_what_wants_a_text_becomes_one() -> None:
    found = exporter("num_consumers: 007, ratio: 0.50, anything: {a: 007, b: true, c: 1e3, d: .inf}, endpoint: 08")
    assert (found.num_consumers, found.ratio, found.endpoint) == (7, 0.5, "08")
    assert found.anything == {"a": 7, "b": True, "c": 1000.0, "d": math.inf}


def test_the_message_is_about_what_was_written() -> None:
    """Not about the text that was tried in its place."""
    with pytest.raises(ConfigError) as caught:
        configuration(
            "receivers:\n  statsig: {signing_secrets: [7], endpoint: 1, tolerance: 5}\nexporters:\n  debug:\n"
            "service: {pipelines: {logs: {receivers: [statsig], exporters: [debug]}}}\n"
        )
    assert [problem.message for problem in caught.value.problems] == ["a duration needs a unit, such as 5s or 5ms"]


@pytest.mark.parametrize("number", ["5", "05"])
def test_a_substituted_text_becomes_what_the_model_wants(number: str) -> None:
    found = exporter(
        "num_consumers: '${N}', tls: {insecure: '${B}'}, ratio: '${env:R}', limits: ['${N}'], name: '${N}', "
        "colour: '${C}'",
        N=number, B="true", R="0.25", C="blue",
    )  # fmt: skip
    assert (found.num_consumers, found.tls.insecure, found.ratio, found.limits) == (5, True, 0.25, [5])
    assert (found.name, found.colour) == (number, Colour.BLUE)


def test_a_key_with_another_name_in_python() -> None:
    assert exporter("from: here").from_ == "here"


def test_the_environment_alone() -> None:
    """A start without a file: messages name the variables."""
    values = {
        "receivers": {"statsig": {"signing_secrets": [""]}},
        "exporters": {"otlp_grpc": {"num_consumers": "many", "tls": {"insecure": "true"}}},
        "service": {"pipelines": {"logs": {"receivers": ["statsig"], "exporters": ["otlp_grpc"]}}},
    }
    origins: dict[tuple[str | int, ...], str] = {
        ("receivers", "statsig", "signing_secrets"): "STATSIG_SIGNING_SECRET",
        ("exporters", "otlp_grpc", "num_consumers"): "CONSUMERS",
    }
    with pytest.raises(ConfigError) as caught:
        check(Document.from_values(values, "the environment", origins), COMPONENTS)
    assert str(caught.value) == (
        "exporters::otlp_grpc::num_consumers: must be a whole number (CONSUMERS)\n"
        "receivers::statsig::signing_secrets[0]: is empty (STATSIG_SIGNING_SECRET)\n"
        "  hint: paste the secret that Statsig shows"
    )


def test_a_secret_that_looks_like_a_number_is_hidden_too() -> None:
    with pytest.raises(ConfigError) as caught:
        exporter("api_key: bad12345, headers: {a: b}")
    assert "12345" not in str(caught.value)
    assert str(caught.value).count("[REDACTED]") == 2


def test_a_key_with_its_value_in_it_is_never_shown_and_the_name_in_an_id_is() -> None:
    for path, shown in (
        (
            ("exporters", "otlp_grpc", "headers", "authorization:Bearer x/y"),
            "exporters::otlp_grpc::headers::[REDACTED]",
        ),
        (("exporters", "api-key=x", 0), "exporters::[REDACTED][0]"),
        (("exporters", "otlp_grpc/a:b", "headers"), "exporters::otlp_grpc/a:b::headers"),
        (("exporters", "otlp_grpc/a: b c"), "exporters::[REDACTED]"),
    ):
        assert render(path) == shown
    assert hint_for("api-key=x", ["name"]) == NOT_A_NAME.hint
    assert hint_for("nam", ["name", "api-key=x"]) == "did you mean name? there are: [REDACTED], name"
