"""`--config` of the commands that read a whole configuration as the service does."""

from typing import Final

import click

config_option: Final = click.option(
    "--config",
    "locations",
    multiple=True,
    metavar="LOCATION",
    help="A configuration, YAML: PATH, file:PATH, env:NAME or yaml:TEXT. Several are merged, and the later one wins. "
    "Without one the environment is the configuration.",
)
