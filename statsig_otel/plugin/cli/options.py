"""The option `--config`, shared by the commands that read a configuration as the service does."""

from typing import Final

import click

config_option: Final = click.option(
    "--config",
    "locations",
    multiple=True,
    metavar="LOCATION",
    help="A YAML configuration: PATH, file:PATH, env:NAME or yaml:TEXT. Several are merged; later ones win. "
    "Without one, environment variables are the configuration.",
)
