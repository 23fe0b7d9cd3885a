"""`--config` of the commands that read a whole configuration as the service does."""

from collections.abc import Mapping
from typing import Final

import click

from statsig_otel.config.locations import read_all
from statsig_otel.config.source import Document
from statsig_otel.plugin.settings.environment import document_from_environment

config_option: Final = click.option(
    "--config",
    "locations",
    multiple=True,
    metavar="LOCATION",
    help="A configuration, YAML: PATH, file:PATH, env:NAME or yaml:TEXT. Several are merged, and the later one wins. "
    "Without one the environment is the configuration.",
)


def read_document(locations: tuple[str, ...], environ: Mapping[str, str]) -> Document:
    """What was written: the locations, merged; without any, what the environment says.

    Raises:
        ConfigError: What can't be read.
    """
    return read_all(locations, environ=environ) if locations else document_from_environment(environ)
