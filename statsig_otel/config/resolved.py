"""A configuration as the file that would say all of it: merged, with what was substituted, and with every default."""

from collections.abc import Mapping
from typing import Any

from statsig_otel.config.grammar import Configuration
from statsig_otel.config.model import Settings


def resolved(configuration: Configuration) -> dict[str, Any]:
    """The plain values of the whole file. Secrets are `[REDACTED]`; all else reads as the same configuration again."""
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
    return {id_: _escaped(settings.model_dump(mode="json", by_alias=True)) for id_, settings in components.items()}


def _escaped(value: Any) -> Any:
    """The value with each `$` written as the grammar wants it; keys are taken as they are."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return value
