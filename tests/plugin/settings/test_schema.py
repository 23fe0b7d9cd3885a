"""The JSON Schema and the reader agree: what one takes, the other takes, as far as a schema can know."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.config import ConfigError, Duration, Problem, Settings
from statsig_otel.config.grammar import check
from statsig_otel.config.reference import json_schema, keys
from statsig_otel.config.source import parse
from statsig_otel.plugin.settings.catalog import BUILT_IN
from tests.looped import slow_except

jsonschema: Any = pytest.importorskip("jsonschema")

SCHEMA: Final = jsonschema.Draft202012Validator(json_schema(BUILT_IN))

COMPONENTS: Final[dict[tuple[str, str], tuple[type[Settings], ...]]] = {
    **{
        (kind, type_): BUILT_IN.models(kind, type_)
        for kind in ("receivers", "exporters", "extensions")
        for type_ in BUILT_IN.of(kind) or ()
    },
    ("service", "telemetry"): (BUILT_IN.telemetry,),
}
PLACES: Final = [(kind, key.path) for kind, models in COMPONENTS.items() for key in keys(*models)]

LEAST: Final[dict[str, dict[str, Any]]] = {
    "statsig": {"signing_secrets": ["webhook-x"]},
    "otlp_grpc": {"endpoint": "h:1"},
    "otlp_http": {"endpoint": "https://h"},
    "file": {"path": "changes"},
    "file_storage": {"directory": "/x"},
}
"""What the components need."""

OTLP: Final = {"protocol": "grpc", "endpoint": "h:1"}
LEAST_BELOW: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("statsig", "audit_log"): {"api_key": "console-x"},
    ("statsig", "tls"): {"cert_file": "a", "key_file": "b"},
    ("zpages", "tls"): {"cert_file": "a", "key_file": "b"},
    ("otlp_grpc", "keepalive"): {"time": "1m"},
    ("telemetry", "metrics::readers::pull"): {"exporter": {"prometheus": {}}},
    ("telemetry", "metrics::readers::pull::exporter"): {"prometheus": {}},
    ("telemetry", "metrics::readers::periodic"): {"exporter": {"otlp": OTLP}},
    ("telemetry", "metrics::readers::periodic::exporter"): {"otlp": OTLP},
    ("telemetry", "metrics::readers::periodic::exporter::otlp"): OTLP,
}
LISTS: Final = {("telemetry", "metrics::readers")}
"""The mappings that stand in a list."""

TEXTS: Final = [
    "", " ", "true", "True", "tRuE", "yes", "on", "off", "y", "1", "0", " 5 ", "5", "+5", "-5", "1_000", "0x10", "0o7",
    "1e3", "5.0", ".5", "5.5", "1.5e1", "5s", "0s", "-5s", "5 s", "1h30m", "10MB", "10 MiB", "10M", "10mi", "5 ",
    "gzip", "GZIP", "none", "NONE", "INFO", "Info", " debug ", "warning", "full", "Full", "auto", "items", "requests",
    "proto", "1.2", "1.3", "1.30", "next", "localhost:1", "http://h", "https://h/x", "/x", "a", "inf", ".inf", "nan",
    "~", "null",
]  # fmt: skip
VALUES: Final[list[Any]] = [
    None, True, False, 0, 1, -1, 5, 1000, 5.0, 1e3, 0.5, 1.2, 1.3, 1.5, 1e6, [], {}, ["a"], [1], [1, "a"], [True],
    [None], {"a": 1}, {"a": "b"}, {"a": None}, [{"name": "a", "value": "b"}], [{}],
]  # fmt: skip

TYPE_ERRORS: Final = (
    "must be a whole number", "must be a number", "must be true or false", "must be a string", "must be a list",
    "must be a mapping", "must be a duration", "a duration needs a unit", "must be a size", "must be '", "unknown key",
    "is required", "has no value", "is a key of the Collector",
)  # fmt: skip


def written(place: tuple[tuple[str, str], str], value: Any) -> dict[str, Any]:
    """A configuration with a value in one place."""
    (kind, type_), path = place
    exporter = type_ if kind == "exporters" else "debug"
    file: dict[str, Any] = {
        "receivers": {"statsig": dict(LEAST["statsig"])},
        "exporters": {exporter: dict(LEAST.get(exporter, {}))},
        "service": {"pipelines": {"logs": {"receivers": ["statsig"], "exporters": [exporter]}}},
    }
    if kind == "extensions":
        file[kind] = {type_: dict(LEAST.get(type_, {}))}
        file["service"][kind] = [type_]
    holder = file[kind].setdefault(type_, {})
    *above, key = path.split("::")
    for index, step in enumerate(above):
        place_above = (type_, "::".join(above[: index + 1]))
        below = {**LEAST_BELOW.get(place_above, {})}
        holder[step] = [below] if place_above in LISTS else below
        holder = below
    holder[key] = value
    return file


def problems(file: dict[str, Any], environ: dict[str, str]) -> Iterator[Problem]:
    """What the reader says."""
    try:
        check(parse(json.dumps(file).encode(), file="f", directory=Path(), environ=environ), BUILT_IN)
    except ConfigError as error:
        yield from error.problems


def agree(place: tuple[tuple[str, str], str], value: Any) -> None:
    """Assert that both take a value, or that none does, where its type is what is wrong with it."""
    file = written(place, value)
    agreed(value, list(problems(file, {})), [error.message for error in SCHEMA.iter_errors(file)])


def agreed(value: Any, said: list[Problem], refused: list[str]) -> None:
    if not said:
        assert refused == [], f"the schema is stricter: {value!r}"
    elif all(problem.message.startswith(TYPE_ERRORS) for problem in said):
        assert refused, f"the schema is wider: {said}"


KINDS: Final = [
    (component, path)
    for component, path in PLACES
    if (component[1], path) in {
        ("statsig", "max_connections"), ("statsig", "include_original"), ("statsig", "read_timeout"),
        ("statsig", "max_request_body_size"), ("statsig", "user"), ("debug", "retry_on_failure::multiplier"),
        ("telemetry", "logs::level"), ("telemetry", "metrics::level"),
        ("telemetry", "metrics::readers::periodic::interval"), ("otlp_http", "compression"),
        ("otlp_http", "tls::min_version"), ("file", "path"),
    }
]  # fmt: skip
"""One place of each kind of value."""


@pytest.mark.parametrize(
    "place",
    slow_except(KINDS, *(place for place in KINDS if place[0][1] != "telemetry" or place[1] == "logs::level")),
    ids=lambda place: place[1],
)
def test_both_say_the_same_of_every_value(place: tuple[tuple[str, str], str]) -> None:
    """A file has one component for each value. Only telemetry can be there just once."""
    (kind, type_), _ = place
    values = [*VALUES, *TEXTS]
    if kind == "service":
        for value in values:
            agree(place, value)
        return
    file = written(place, None)
    file[kind] = {f"{type_}/{number}": written(place, value)[kind][type_] for number, value in enumerate(values)}
    file["service"]["pipelines"]["logs"][kind] = list(file[kind])
    said: dict[str, list[Problem]] = {}
    for problem in problems(file, {}):
        said.setdefault(str(problem.path[1]), []).append(problem)
    stricter = {str(error.absolute_path[1]): error for error in SCHEMA.iter_errors(file)}
    for name, value in zip(file[kind], values, strict=True):
        agreed(value, said.get(name, []), [stricter[name].message] if name in stricter else [])


@given(st.sampled_from(PLACES), st.sampled_from(VALUES) | st.sampled_from(TEXTS))
def test_both_say_the_same_of_a_value(place: tuple[tuple[str, str], str], value: Any) -> None:
    agree(place, value)


@given(st.sampled_from(PLACES), st.sampled_from(TEXTS), st.sampled_from(["${env:A}", "${A}", "${env:NO:-%s}"]))
def test_what_a_variable_may_bring_in_the_schema_allows(
    place: tuple[tuple[str, str], str], text: str, form: str
) -> None:
    file = written(place, form.replace("%s", text))
    if not list(problems(file, {"A": text})):
        assert [error.message for error in SCHEMA.iter_errors(file)] == []


def implied(model: type[Settings], above: str = "") -> Iterator[tuple[str, Any]]:
    """The keys that change nothing, at every depth, each with a value that is accepted."""
    for key, values in model.implied.items():
        for value in values:
            yield above + key, "1m" if value is Duration else {"on_start": True} if value is dict else value
            if value in ("", [], {}):
                yield above + key, None
    for key, info in model.model_fields.items():
        for member in (info.annotation, *get_args(info.annotation)):
            if isinstance(member, type) and issubclass(member, Settings):
                yield from implied(member, f"{above}{key}::")


def test_both_accept_values_that_ask_for_what_happens_anyway() -> None:
    tried = 0
    for component, models in COMPONENTS.items():
        for model in models:
            for path, value in implied(model):
                file = written((component, path), value)
                assert not [problem for problem in problems(file, {}) if problem.path[-1] == path.rpartition("::")[2]]
                assert [error.message for error in SCHEMA.iter_errors(file)] == [], path
                tried += 1
    assert tried > 60


@pytest.mark.slow
def test_every_place_is_one_that_the_reader_knows() -> None:
    """Else the tests above would test nothing there."""
    for (kind, type_), path in PLACES:
        said = list(problems(written(((kind, type_), path), "${NO}"), {}))
        assert not [problem for problem in said if problem.message == "unknown key"]
        wanted = (kind, type_, *path.split("::"))
        missed = [problem.path for problem in said if "NO is not set" in problem.message]
        assert [tuple(step for step in path if not isinstance(step, int)) for path in missed] == [wanted]


def test_a_schema_that_is_stricter_or_wider_would_be_seen() -> None:
    place = next(place for place in PLACES if place[1] == "max_connections")
    assert not list(problems(written(place, "5"), {}))
    assert [problem.message for problem in problems(written(place, True), {})] == ["must be a whole number"]
    assert list(SCHEMA.iter_errors(written(place, True)))
    assert not list(SCHEMA.iter_errors(written(place, "5")))
