"""docs/configuration.md and docs/configuration.schema.json say what the models say."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsig_otel.config import Settings
from statsig_otel.config.grammar import check
from statsig_otel.config.reference import keys
from statsig_otel.config.source import parse
from statsig_otel.config.validation import in_words
from statsig_otel.plugin.cli.configuration_docs import TABLES, default_text, fill, main, schema
from statsig_otel.plugin.settings.catalog import COMPONENTS

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "configuration.md").read_text(encoding="utf-8")
UPDATE = "python -m statsig_otel.plugin.cli.configuration_docs docs"
MODELS = {
    **{
        f"{kind}::{type_}": COMPONENTS.models(kind, type_)
        for kind in ("receivers", "exporters", "extensions")
        for type_ in COMPONENTS.of(kind) or ()
    },
    "service::telemetry": (COMPONENTS.telemetry,),
}


def rows(part: str) -> Iterator[list[str]]:
    """The cells of the tables in a part of the page, without their heads."""
    for line in part.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def section(title: str) -> str:
    """What stands below a heading, up to the next one of any level."""
    return PAGE.partition(f"# {title}\n")[2].partition("\n#")[0]


def test_the_generated_parts_are_up_to_date() -> None:
    assert fill(PAGE) == PAGE, UPDATE
    assert (DOCS / "configuration.schema.json").read_text(encoding="utf-8") == schema(), UPDATE


def test_the_command_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = re.sub(r"(<!-- generated: .* -->\n)(?:.*\n)*?(<!-- end -->)", r"\1\2", PAGE)
    assert len(empty) < len(PAGE) / 2
    (tmp_path / "configuration.md").write_text(empty)
    monkeypatch.setattr("sys.argv", ["configuration_docs", str(tmp_path)])
    main()
    assert (tmp_path / "configuration.md").read_text() == PAGE
    assert (tmp_path / "configuration.schema.json").read_text() == schema()


@pytest.mark.parametrize("name", MODELS)
def test_every_key_is_in_its_section(name: str) -> None:
    """With its type, its default and its meaning."""
    type_ = name.rpartition("::")[2]
    shared = section("Every exporter") if name.startswith("exporters") else ""
    told = {row[0]: row[1:] for row in rows(section(type_) + shared)}
    for key in keys(*MODELS[name]):
        type_told, default, meaning = told[f"`{key.path}`"]
        assert type_told == key.type
        assert default == ("required" if key.is_required else default_text(key.default))
        assert meaning, key.path


def test_bounds_are_told_as_a_user_would_write_them() -> None:
    told = {key.path: key.meaning for key in keys(*MODELS["service::telemetry"], *MODELS["exporters::otlp_http"])}
    for path, bounds in {
        "journal::max_entries": " At least 1 and at most 1000.",
        "journal::max_bytes": " At least 64KiB and at most 256MiB.",
        "metrics::readers::periodic::interval": " At least 1s.",
        "retry_on_failure::initial_interval": " More than 0.",
        "retry_on_failure::randomization_factor": " At most 1.",
        "sending_queue::queue_size": " More than 0.",
    }.items():
        assert told[path].endswith(bounds), path
    assert "At least" not in told["retry_on_failure::max_elapsed_time"]


def test_every_refused_key_is_told() -> None:
    part = section("Keys of the Collector that are not here")
    told = set(re.findall(r"^\| .*? \| (`\w+`) \| (.*?) \| (.*) \|$", part, re.MULTILINE))
    models = {model for found in MODELS.values() for model in found}
    for model in {base for found in models for base in found.__mro__ if issubclass(base, Settings)}:
        for key, advice in model.unsupported.items():
            assert (f"`{key}`", in_words(model.implied.get(key, ())), advice) in told


def test_the_defaults_that_differ_are_ours() -> None:
    """Where the table gives a value, it is the one that holds."""
    defaults = {
        **{key.path: key.default for key in keys(TABLES["every exporter"])},
        **{f"{type_}: {key.path}": key.default for type_, model in TABLES.items() for key in keys(model)},
    }
    checked = 0
    for path, here, there, why in rows(section("Defaults that differ from the Collector's")):
        name = path.replace("`", "")
        if here.startswith("`"):
            assert here == default_text(defaults[name]), name
            assert here != there
            checked += 1
        assert why
    assert checked == 8


@pytest.mark.parametrize("alias", COMPONENTS.aliases)
def test_older_names_are_told(alias: str) -> None:
    assert f"Its older name `{alias}` is understood." in section(COMPONENTS.aliases[alias])


def test_the_example_is_valid() -> None:
    examples = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if block.startswith("receivers:")]
    assert len(examples) == 1
    for example in examples:
        document = parse(
            example.encode(), file="example", directory=DOCS, environ={"STATSIG_SIGNING_SECRET": "webhook-x"}
        )
        assert check(document, COMPONENTS).receivers


def test_a_part_without_a_source_is_an_error() -> None:
    with pytest.raises(KeyError):
        fill("<!-- generated: nothing -->\n<!-- end -->\n")
