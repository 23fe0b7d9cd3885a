"""`statsig-otel components`: what a configuration can name."""

from collections.abc import Iterator
from typing import Final

import click

from statsig_otel import __version__
from statsig_otel.config.yaml_text import to_yaml
from statsig_otel.plugin.components import COMPONENTS

_STABILITY: Final = "Alpha"
"""The Collector's word for what may still change; it is that of the whole package."""


@click.command()
def command() -> None:
    """List the receivers, exporters and extensions that a configuration can name, as YAML.

    The output is for people, and may change with any version.
    """
    buildinfo = {"command": "statsig-otel", "description": "Statsig receiver", "version": __version__}
    click.echo(to_yaml({"buildinfo": buildinfo, **list_components()}), nl=False)


def list_components() -> dict[str, list[dict[str, object]]]:
    """All components, by kind: the type, where it comes from, its stability."""
    return {
        "receivers": [_entry(type_, "logs") for type_ in COMPONENTS.receivers],
        "exporters": [_entry(type_, "logs") for type_ in COMPONENTS.exporters],
        "extensions": [_entry(type_, "extension") for type_ in COMPONENTS.extensions],
    }


def _entry(type_: str, signal: str) -> dict[str, object]:
    aliases = list(_aliases(type_))
    return {
        "name": type_,
        **({"deprecated_names": aliases} if aliases else {}),
        "module": f"statsig-otel {__version__}",
        "built_in": True,
        "stability": {signal: _STABILITY},
    }


def _aliases(type_: str) -> Iterator[str]:
    return (alias for alias, name in COMPONENTS.aliases.items() if name == type_)
