"""`statsig-otel schema`: the JSON Schema of the configuration file."""

import json

import click

from statsig_otel.config.reference import json_schema
from statsig_otel.plugin.components import COMPONENTS


@click.command()
def command() -> None:
    """Print the JSON Schema of the configuration file, so that an editor completes and checks it.

    With the YAML language server, write the schema to a file and this as the configuration's first line:

    \b
      # yaml-language-server: $schema=configuration.schema.json
    """  # noqa: D301 - click wants the character itself
    click.echo(json.dumps(json_schema(COMPONENTS), indent=2))
