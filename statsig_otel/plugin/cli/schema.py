"""`statsig-otel schema`: prints the JSON Schema of the configuration file, for editors."""

import json
from collections.abc import Callable
from dataclasses import replace

import click

from statsig_otel.config.reference import json_schema
from statsig_otel.plugin.settings.catalog import BUILT_IN, EXPORTERS


@click.command()
def command() -> None:
    """Print the JSON Schema of the configuration file, with which an editor completes and checks it.

    The schema includes the exporters of other installed distributions. An exporter without a schema is left out, with a
    warning on standard error.

    With the YAML language server, write the schema to a file and make this the configuration's first line:

    \b
      # yaml-language-server: $schema=configuration.schema.json
    """
    click.echo(installed_schema(lambda warning: click.echo(f"warning: {warning}", err=True)), nl=False)


def installed_schema(warn: Callable[[str], None]) -> str:
    """The schema of all built-in and installed components. `warn` gets a message for each exporter that is left out."""
    exporters = dict(BUILT_IN.exporters)
    for one in EXPORTERS.installed():
        fault = EXPORTERS.fault(one)
        if fault is not None:
            warn(f"left out: {fault.message}")
            continue
        model = EXPORTERS[one.name]
        try:
            json_schema(replace(BUILT_IN, exporters={one.name: model}))
        except Exception as error:  # noqa: BLE001 - its types may be anything
            warn(f"left out: the exporter type {one.name} of {one.distribution} has no schema: {error}")
        else:
            exporters[one.name] = model
    return json.dumps(json_schema(replace(BUILT_IN, exporters=exporters)), indent=2) + "\n"
