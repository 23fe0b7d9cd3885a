"""Keys and values of the Collector that this service has not: each file in config_cases/ with what is said about it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest
from pydantic import ValidationError

from statsig_otel.config import ConfigError, Duration, Settings
from statsig_otel.config.grammar import check
from statsig_otel.config.source import parse
from statsig_otel.plugin.settings.catalog import COMPONENTS
from tests.looped import looped

CASES: Final = Path(__file__).parent / "cases"
NAMES: Final = sorted(path.stem for path in CASES.glob("*.yaml"))


@looped("name", NAMES)
def test_says_exactly_this(name: str) -> None:
    data = (CASES / f"{name}.yaml").read_bytes()
    with pytest.raises(ConfigError) as caught:
        check(parse(data, file="config.yaml", directory=CASES, environ={}), COMPONENTS)
    assert str(caught.value) == (CASES / f"{name}.txt").read_text().removesuffix("\n")


def test_every_message_belongs_to_a_file() -> None:
    assert sorted(path.stem for path in CASES.glob("*.txt")) == NAMES


def models(annotation: Any) -> Iterator[type[Settings]]:
    """The models that a type holds, at every depth."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
        for info in annotation.model_fields.values():
            yield from models(info.annotation)
    for argument in get_args(annotation):
        yield from models(argument)


TABLES: Final = (COMPONENTS.receivers, COMPONENTS.exporters, COMPONENTS.extensions, COMPONENTS.composed)
ALL: Final = {
    found
    for model in [*(model for table in TABLES for model in table.values()), COMPONENTS.telemetry]
    for found in models(model)
}


def test_every_refused_key_is_in_a_file() -> None:
    messages = "".join((CASES / f"{name}.txt").read_text() for name in NAMES)
    refused = {(key, advice) for model in ALL for key, advice in model.unsupported.items()}
    assert len(refused) > 50
    for key, advice in refused:
        words = r"(is a key of the Collector that is not supported|can only be \S.*) here \(.*\)"
        assert re.search(rf"::{key}: {words}\n  hint: {re.escape(advice)}\n", messages), key


def test_values_that_ask_for_what_happens_anyway_are_accepted() -> None:
    """In a file and in code, and as the string of a variable."""
    tried = 0
    for model in ALL:
        for key, values in model.implied.items():
            assert key in model.unsupported
            for value in values:
                written = "1m" if value is Duration else {"on_start": True} if value is dict else value
                assert key not in wrong_keys(model, {key: written})
                tried += 1
                if isinstance(value, bool):
                    assert key not in wrong_keys(model, {key: str(value).lower()})
                    assert (key in wrong_keys(model, {key: not value})) is ((not value) not in values)
    assert tried > 40


def wrong_keys(model: type[Settings], values: dict[str, object]) -> set[object]:
    """The keys that a model complains of, apart from those that are missing."""
    try:
        model.__pydantic_validator__.validate_python(values)
    except ValidationError as error:
        return {details["loc"][0] for details in error.errors() if details["type"] == "extra_forbidden"}
    return set()


def test_what_to_write_is_said_for_each_required_key() -> None:
    for model in ALL:
        required = {name for name, info in model.model_fields.items() if info.is_required()} - {"settings"}
        assert required == set(model.needed), model


def test_no_key_is_refused_and_known() -> None:
    for model in ALL:
        assert not set(model.unsupported) & set(model.model_fields)
