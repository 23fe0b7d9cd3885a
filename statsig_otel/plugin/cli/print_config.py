"""`statsig-otel print-config`: the configuration as the service understands it."""

import os
from typing import Final

import click

from statsig_otel.config.errors import ConfigError
from statsig_otel.config.grammar import check
from statsig_otel.config.resolved import resolved, to_yaml
from statsig_otel.plugin.cli.options import config_option
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.environment import read_document

_REDACTED: Final = "redacted"
_OTHERS: Final = {
    "unredacted": "secrets are never printed; look into the file, or at the variable that it names",
    "unvalidated": "defaults are known of a valid configuration only; `statsig-otel validate` tells what is wrong",
}
"""The Collector's other modes, and why they are not here."""


def _check_mode(context: click.Context, parameter: click.Parameter, mode: str) -> str:  # noqa: ARG001 - click's
    if mode != _REDACTED:
        raise click.BadParameter(f"{mode} is not supported: {_OTHERS.get(mode, f'there is {_REDACTED} only')}")
    return mode


@click.command()
@config_option
@click.option(
    "--mode",
    default=_REDACTED,
    show_default=True,
    callback=_check_mode,
    expose_value=False,
    help="The Collector's word for: with [REDACTED] in place of secrets. There is no other.",
)
def command(locations: tuple[str, ...]) -> None:
    """Print the whole configuration as YAML: merged, with what ${...} stands for, and with every default.

    Secrets are printed as [REDACTED], the values of headers too. Where there are none, what is printed is a
    configuration of the same meaning.
    """
    try:
        configuration = check(read_document(locations, os.environ), COMPONENTS)
    except ConfigError as error:
        raise click.ClickException(f"the configuration has errors\n{error}") from error
    click.echo(to_yaml(resolved(configuration)), nl=False)
