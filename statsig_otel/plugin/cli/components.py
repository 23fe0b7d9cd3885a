"""`statsig-otel components`: lists the receivers, exporters and extensions that a configuration can use."""

from typing import Final

import click

from statsig_otel import __version__
from statsig_otel.config.errors import Fault
from statsig_otel.config.resolved import to_yaml
from statsig_otel.plugin.settings.catalog import BUILT_IN, EXPORTERS, missing_library
from statsig_otel.plugin.settings.exporter_types import InstalledType

_STABILITY: Final = "Alpha"
"""The Collector's stability level for components that may still change. It applies to the whole package."""


@click.command()
def command() -> None:
    """List the receivers, exporters and extensions that a configuration can use, as YAML.

    The list includes the exporters of other installed distributions, each with the distribution and its version. The
    command imports them; for an exporter that can't be used it prints the problem.

    The output is meant to be read by a person and may change with any version.
    """
    buildinfo = {"command": "statsig-otel", "description": "Statsig receiver", "version": __version__}
    click.echo(to_yaml({"buildinfo": buildinfo, **list_components()}), nl=False)


def list_components() -> dict[str, list[dict[str, object]]]:
    """All components by kind, each with its type, its origin and its stability."""
    return {
        "receivers": [_entry(type_, "logs") for type_ in BUILT_IN.receivers],
        "exporters": [
            *({**_entry(type_, "logs"), **_problem(missing_library(type_))} for type_ in BUILT_IN.exporters),
            *(_installed_entry(one) for one in EXPORTERS.installed()),
        ],
        "extensions": [_entry(type_, "extension") for type_ in BUILT_IN.extensions],
    }


def _entry(type_: str, signal: str) -> dict[str, object]:
    aliases = [alias for alias, name in BUILT_IN.aliases.items() if name == type_]
    return {
        "name": type_,
        **({"deprecated_names": aliases} if aliases else {}),
        "module": f"statsig-otel {__version__}",
        "built_in": True,
        "stability": {signal: _STABILITY},
    }


def _installed_entry(one: InstalledType) -> dict[str, object]:
    return {
        "name": one.name,
        "module": one.distribution,
        "built_in": False,
        "entry_point": one.value,
        **_problem(EXPORTERS.fault(one)),
    }


def _problem(fault: Fault | None) -> dict[str, object]:
    """Why an exporter can't be used, if it can't."""
    return {"problem": fault.message, "hint": fault.hint} if fault else {}
