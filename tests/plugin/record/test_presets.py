"""Each preset of examples/presets, merged over a file of a user's: the records are those of preset_cases/."""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import pytest
from opentelemetry.semconv import attributes as stable
from opentelemetry.semconv._incubating import attributes as incubating

from statsig_otel import _attributes
from statsig_otel.config.grammar import check
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.environment import read_document
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from tests.plugin.record.test_mapping_cases import records

EXAMPLES: Final = Path(__file__).parents[3] / "examples"
CASES: Final = Path(__file__).parent / "preset_cases"
NAMES: Final = sorted(path.stem for path in (EXAMPLES / "presets").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_makes_exactly_these_records(name: str, update_golden: bool) -> None:
    """`pytest --update-golden` writes them anew: then read the difference."""
    files = (EXAMPLES / "collector" / "statsig-otel.yaml", EXAMPLES / "presets" / f"{name}.yaml")
    document = read_document(tuple(map(str, files)), {"STATSIG_SIGNING_SECRET": "webhook-x"})
    (receiver,) = check(document, COMPONENTS).receivers.values()
    settings = cast("StatsigReceiverSettings", receiver)
    assert settings.signing_secrets  # the user's own file counts beside it
    made = records((CASES / f"{name}.input.json").read_bytes(), settings.mapper())
    expected = CASES / f"{name}.record.json"
    if update_golden:
        expected.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    assert made == json.loads(expected.read_text())


def test_every_preset_has_a_case() -> None:
    for kind in ("input", "record"):
        assert sorted(path.name.removesuffix(f".{kind}.json") for path in CASES.glob(f"*.{kind}.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_takes_the_place_of_a_list_of_ones_own_is_told(name: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("receivers: {statsig: {mapping: {drop: [user.email]}}}")
    base, preset = EXAMPLES / "collector" / "statsig-otel.yaml", EXAMPLES / "presets" / f"{name}.yaml"
    document = read_document((str(base), str(own), str(preset)), {"STATSIG_SIGNING_SECRET": "webhook-x"})
    (receiver,) = check(document, COMPONENTS).receivers.values()
    mapping = cast("StatsigReceiverSettings", receiver).mapping
    assert mapping is not None
    readme = (EXAMPLES / "presets" / "README.md").read_text(encoding="utf-8")
    _, _, told = readme.partition("the `drop` of\n")
    assert (f"{name}.yaml" in told.partition(" replaces yours")[0]) is ("user.email" not in mapping.drop)


def attributes(name: str) -> set[str]:
    """The names of all attributes in the records of a case."""
    found = json.loads((CASES / f"{name}.record.json").read_text())["logRecords"]
    return {attribute["key"] for record in found for attribute in record["attributes"]}


def registered() -> Iterator[str]:
    """The attributes that the semantic conventions have, by their Python package."""
    for package in (stable, incubating):
        for module in pkgutil.iter_modules(package.__path__):
            names = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
            yield from (value for key, value in names.items() if key.isupper() and isinstance(value, str))


def test_the_plain_ones_are_all_those_that_are_registered() -> None:
    everything = attributes("event_name") - {"otel.event.name"}
    assert attributes("semantic_conventions") == everything & set(registered())
    assert "feature_flag.key" in attributes("semantic_conventions")


def test_chronospheres_fields_are_all_of_them() -> None:
    fields = {name for name in _attributes.ALL if name.startswith("change_event.")}
    assert attributes("chronosphere") == fields | {"log.record.uid"}


def test_the_attribute_is_the_event_name() -> None:
    for record in json.loads((CASES / "event_name.record.json").read_text())["logRecords"]:
        (name,) = [one["value"]["stringValue"] for one in record["attributes"] if one["key"] == "otel.event.name"]
        assert name == record["eventName"]
