"""Writes a configuration as one YAML file: merged, with every reference resolved and every default written out."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.model import Composed, Settings
from statsig_otel.config.scalars import YAML_1_1_BOOLEANS, resolve

_PLAIN: Final = re.compile(r"[A-Za-z_/](?:[A-Za-z0-9_./:-]*[A-Za-z0-9_./-])?|[0-9]+[A-Za-z][A-Za-z0-9.]*")


def to_yaml(values: Mapping[str, object]) -> str:
    """A mapping as YAML, from which `yaml_tree` reads the same mapping."""
    return "".join(f"{line}\n" for line in _lines(values))


def _lines(value: object) -> Iterator[str]:
    """The lines of a mapping or a list that is not empty."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _entry(f"{_scalar(key)}:", "  ", item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _entry("-", "  ", item)


def _entry(start: str, indent: str, value: object) -> Iterator[str]:
    below = [f"{indent}{line}" for line in _lines(value)]
    if not below:
        yield f"{start} {_scalar(value)}"
    elif start == "-":
        yield f"- {below[0].removeprefix(indent)}"
        yield from below[1:]
    else:
        yield start
        yield from below


def _scalar(value: object) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    if isinstance(value, float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    return value if isinstance(value, str) and _is_plain(value) else json.dumps(value)  # JSON is YAML


def _is_plain(text: str) -> bool:
    """Whether it needs no quotes."""
    return bool(_PLAIN.fullmatch(text)) and resolve(text) == text and text.lower() not in YAML_1_1_BOOLEANS


def plain_values(configuration: Configuration) -> dict[str, Any]:
    """The plain values of the whole file. Secrets are `[REDACTED]`; all others read as the same configuration again."""
    service: dict[str, Any] = {
        "pipelines": {
            id_: {"receivers": list(pipeline.receivers), "exporters": list(pipeline.exporters)}
            for id_, pipeline in configuration.pipelines.items()
        }
    }
    if telemetry := _escaped(configuration.telemetry.model_dump(mode="json", by_alias=True)):
        service["telemetry"] = telemetry
    values = {"receivers": _section(configuration.receivers), "exporters": _section(configuration.exporters)}
    if configuration.extensions:
        values["extensions"] = _section(configuration.extensions)
        service = {"extensions": list(configuration.service_extensions), **service}
    return {**values, "service": service}


def _section(components: Mapping[str, Settings]) -> dict[str, Any]:
    return {id_: _escaped(_values(settings)) for id_, settings in components.items()}


def _values(settings: Settings) -> dict[str, Any]:
    values = settings.model_dump(mode="json", by_alias=True)
    return {**values, **_values(settings.settings)} if isinstance(settings, Composed) else values


def _escaped(value: Any) -> Any:
    """The value with each `$` escaped; keys need no escape."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return value
